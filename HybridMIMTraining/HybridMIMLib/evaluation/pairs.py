"""Which prediction belongs to which reference: two folders of label maps, whoever made them.

Either may be a data set in one of the layouts that are known (MSD, nnU-Net, BTCV, BraTS, images/ and labels/, a
list), what ``segment`` wrote, or a plain folder of label maps in any format, such as ``labelsTr`` alone or the
results of another program. Names of classes come from the data set, or from a ``classes.json`` or ``dataset.json`` in
the folder or, for ``labelsTr`` and its like, beside it.

Cases are matched by name: first as they are called, then without what programs add (``_seg``, ``-label``, ``_pred``
…), then without capitals, the channel ``_0000``, and ``img`` or ``label`` before a number. A name that fits several
is left for nobody to guess.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from HybridMIMLib.data.classes import LabelClass, Naming
from HybridMIMLib.data.layouts import Dataset, classes_from_labels, open_dataset
from HybridMIMLib.data.layouts.cases import Case, check_unique_files
from HybridMIMLib.data.layouts.source import Source
from HybridMIMLib.data.scans import natural_key, scan_name
from HybridMIMLib.errors import DataError

_MARK = re.compile(
    r"(?P<case>.+?)[_. -](?:labels?|labelmap|seg|segm|segmentations?|masks?|pred|predictions?|predicted|gt|results?|"
    r"output|manual|auto)",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"(.+)_0000")
_BEFORE_A_NUMBER = re.compile(r"(?:img|image|label|seg)[_-]?([0-9]+)")
_SEGMENTATION = ".seg.nrrd"
"""How Slicer calls segmentations; :func:`scan_name` leaves it out."""
_OUR_LABELS = "labels"


@dataclass(frozen=True)
class Matching:
    """Predictions by reference.

    Attributes:
        found: case name of the reference → prediction.
        missing: names of references without one.
        left: predictions that belong to no reference.
    """

    found: dict[str, Path]
    missing: tuple[str, ...]
    left: tuple[Path, ...]


def open_labels(place: Path, missing_labels: str = "absent") -> Dataset:
    """The label maps of a folder or a list; none is read.

    Args:
        place: the folder or the list.
        missing_labels: as in :func:`HybridMIMLib.data.layouts.open_dataset`.

    Raises:
        DataError: there is none, two have one name, or the layout is broken.
    """
    if place.is_file():
        return open_dataset(place, True, missing_labels)
    if not place.is_dir():
        raise DataError(f"{place}: no such folder", cure="Check the path, or choose another folder.")
    own = place / _OUR_LABELS
    if (place / "segmented.json").is_file() and own.is_dir():
        return _plain(own, missing_labels)
    source = Source(place)
    is_data_set = source.images_folder or "training" in source.description or "dataset" in source.description
    try:
        return open_dataset(place, True, missing_labels)
    except DataError:
        # What is meant to be a data set, and is none, should be told; what lies in no layout is a plain folder.
        if is_data_set:
            raise
    return _plain(place, missing_labels)


def match(references: Sequence[Case], predictions: Sequence[Case]) -> Matching:
    """Find the prediction of each reference by name; see the top of this file."""
    waiting = {case.name: _names(case) for case in references}
    free = {case.name: _names(case) for case in predictions}
    paths = {case.name: _label(case) for case in predictions}
    found: dict[str, Path] = {}
    for form in (str, _without_mark, _bare):
        for reference, prediction in _fitting(waiting, free, form):
            found[reference] = paths[prediction]
            del waiting[reference], free[prediction]
    return Matching(found, tuple(waiting), tuple(paths[name] for name in free))


def bare_names(case: Case) -> frozenset[str]:
    """What a case and all its files are called, without what programs add, channel and capitals."""
    files = [path for path in (case.label, *case.images) if path is not None]
    names = [case.name, *(unicodedata.normalize("NFC", scan_name(path)) for path in files)]
    return frozenset(_bare(name) for name in names)


def scans_by_case(references: Sequence[Case], place: Path) -> dict[str, Path]:
    """The scan of each reference in a folder, the first channel of several; those that are not there are left out."""
    cases = open_dataset(place, labelled=False).cases
    as_labels = [replace(case, label=case.images[0]) for case in cases]
    return match(references, as_labels).found


def own_scans(dataset: Dataset) -> dict[str, Path]:
    """The scan of each case, where the references are a data set that has them."""
    return {case.name: case.images[0] for case in dataset.cases if case.images and case.images[0] != case.label}


def _plain(folder: Path, missing_labels: str) -> Dataset:
    source = Source(folder)
    named = _label_maps(source.named())
    check_unique_files(folder, [(name, (path,)) for name, path in named], "label maps")
    cases = tuple(Case(name, (path,), path) for name, path in sorted(named, key=lambda one: natural_key(one[0])))
    naming, partial = source.naming, source.partial
    if not naming.classes and (folder.parent / "dataset.json").is_file() and _is_part(folder):
        above = Source(folder.parent)
        naming, partial = above.naming, above.partial
    return Dataset(
        cases, naming.classes, "label maps", folder, naming.regions, partial or missing_labels == "unannotated",
        notes=tuple(source.notes),
    )  # fmt: skip


def _is_part(folder: Path) -> bool:
    """Whether a folder is called like the labels of a data set, whose names lie beside it then."""
    return folder.name.lower().startswith(("label", "mask", "seg", "gt"))


def _label_maps(named: Sequence[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Where scans lie beside their label maps, the label maps: ``a_seg`` and not ``a``."""
    groups: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for name, path in named:
        groups[_without_mark(name)].append((name, path))
    kept = []
    for case, group in groups.items():
        marked = [(name, path) for name, path in group if name != case or path.name.lower().endswith(_SEGMENTATION)]
        kept += marked if len(marked) == 1 else group
    return kept


def _fitting(
    waiting: dict[str, list[str]], free: dict[str, list[str]], form: Callable[[str], str]
) -> list[tuple[str, str]]:
    """References and predictions that agree in a form of their names, and of that form there is one of each."""

    def by_form(names: dict[str, list[str]]) -> dict[str, set[str]]:
        known: dict[str, set[str]] = defaultdict(set)
        for name, forms in names.items():
            for one in forms:
                known[form(one)].add(name)
        return known

    ours, theirs = by_form(waiting), by_form(free)
    pairs: dict[str, str] = {}
    for key, names in ours.items():
        others = theirs.get(key, set())
        if len(names) == 1 and len(others) == 1:
            reference, prediction = next(iter(names)), next(iter(others))
            if reference not in pairs and prediction not in pairs.values():
                pairs[reference] = prediction
    return list(pairs.items())


def _names(case: Case) -> list[str]:
    """What a case may be called: itself, and its label map, which BTCV calls otherwise."""
    files = [path for path in (case.label, *case.images[:1]) if path is not None]
    return list(dict.fromkeys([case.name, *(unicodedata.normalize("NFC", scan_name(path)) for path in files)]))


def _without_mark(name: str) -> str:
    while found := _MARK.fullmatch(name):
        name = found["case"]
    return name


def _bare(name: str) -> str:
    name = _without_mark(name)
    channel = _CHANNEL.fullmatch(name)
    name = _without_mark(channel[1] if channel else name).casefold()
    number = _BEFORE_A_NUMBER.fullmatch(name)
    return number[1] if number else name


def _label(case: Case) -> Path:
    assert case.label is not None
    return case.label


def classes_for(naming: Sequence[LabelClass], met: Iterable[int]) -> tuple[LabelClass, ...]:
    """Named classes, and ``class 7`` for each label met that has no name."""
    known = {one.label for one in naming}
    return (*naming, *classes_from_labels(set(met) - known))


def naming_of(references: Dataset, others: Iterable[Dataset]) -> Naming:
    """The names that the references have, or else those of the predictions."""
    for one in (references, *others):
        if one.classes or one.regions:
            return Naming(one.classes, one.regions)
    return Naming()
