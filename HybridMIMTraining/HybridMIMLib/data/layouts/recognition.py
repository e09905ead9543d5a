"""Telling the layout of a folder, and listing its cases; no scan is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from HybridMIMLib.config import Run
from HybridMIMLib.data.classes import Naming
from HybridMIMLib.data.layouts import brats, btcv, decathlon, nnunet, pairs, plain
from HybridMIMLib.data.layouts.cases import Case, Dataset, check_unique_files, no_labels, unique_names
from HybridMIMLib.data.layouts.listed import read_list
from HybridMIMLib.data.layouts.source import Source
from HybridMIMLib.data.scans import natural_key
from HybridMIMLib.errors import DataError


@dataclass(frozen=True)
class _Layout:
    """How a layout is told and read.

    Attributes:
        name: as in :attr:`Dataset.layout`.
        title: as people call it.
        lacks: what a folder lacks to be in it; nothing if it is.
        read: the cases, from the folder and whether labels are wanted.
        customary: what its labels mean where the folder does not say.
        least_met: as in :class:`Dataset`.
    """

    name: str
    title: str
    lacks: Callable[[Source], str]
    read: Callable[[Source, bool], list[Case]]
    customary: Callable[[Source], tuple[Naming, ...]] = lambda source: ()
    least_met: int = 0


_LAYOUTS = (
    # What lists its cases, or keeps them in known folders, comes before what is told by the names of all scans.
    _Layout("msd", "MSD", decathlon.lacks, decathlon.read),
    _Layout("nnunet", "nnU-Net", nnunet.lacks, nnunet.read),
    _Layout("btcv", "BTCV", btcv.lacks, btcv.read, btcv.customary, btcv.LEAST_MET),
    _Layout("images-labels", "images/ and labels/", pairs.lacks, pairs.read),
    _Layout("brats", "BraTS", brats.lacks, brats.read, brats.customary),
)
_PLAIN = _Layout("folder", "a folder of scans", lambda source: "", lambda source, labelled: plain.read(source))


def dataset_of(run: Run, name: str) -> Dataset:
    """The cases of one of the run's folders, ``"unlabelled"`` or ``"labelled"``; see :func:`open_dataset`."""
    dataset = open_dataset(run.folder(name, f"the folder of {name} scans"), name == "labelled", run.missing_labels)
    if not run.resample_labels:
        return dataset
    return replace(dataset, cases=tuple(replace(case, resample=True) for case in dataset.cases))


def open_dataset(place: Path, labelled: bool, missing_labels: str = "absent") -> Dataset:
    """List the cases of a folder or a list; no scan is read.

    Args:
        place: a folder in one of the layouts of this package, or a CSV or JSON file (:mod:`.listed`).
        labelled: True to list the cases with labels and to insist on a label for each; False to list all
            images, those meant for testing too, without labels.
        missing_labels: ``"unannotated"``: a class that is missing from a label map was not annotated, though the
            data set does not say so itself.

    Raises:
        DataError: the folder does not exist, has no scan, lists a file that is missing, has an image without
            label or a label without image, two labelled cases of one name, or class names that cannot be read; or
            labels are wanted and no layout that has them fits.
    """
    place = Path(place)
    if place.is_file():
        layout, cases, naming, partial = read_list(place, labelled)
        dataset = Dataset(tuple(cases), naming.classes, layout, place, naming.regions, partial)
    elif place.is_dir():
        dataset = _read_folder(Source(place), labelled)
    else:
        raise DataError(f"{place}: no such folder", cure="Check the path, or choose another folder.")
    cases = list(dataset.cases) if labelled else unique_names(dataset.cases)
    check_unique_files(place, [(case.name, case.images) for case in cases], "cases")
    cases.sort(key=lambda case: natural_key(case.name))
    return replace(dataset, cases=tuple(cases), partial=dataset.partial or missing_labels == "unannotated")


def _read_folder(source: Source, labelled: bool) -> Dataset:
    tried = []
    for layout in _LAYOUTS:
        lack = layout.lacks(source)
        if not lack:
            return _read_as(layout, source, labelled)
        tried.append(f"{layout.title}: {lack}")
    if labelled:
        raise no_labels(source.folder, f"has no labels that belong to images ({'; '.join(tried)})")
    return _read_as(_PLAIN, source, labelled)


def _read_as(layout: _Layout, source: Source, labelled: bool) -> Dataset:
    customary = () if source.naming.classes else layout.customary(source)
    naming = customary[0] if customary else source.naming
    cases = tuple(layout.read(source, labelled))
    return Dataset(
        cases, naming.classes, layout.name, source.folder, naming.regions, source.partial, customary,
        layout.least_met, tuple(source.notes),
    )  # fmt: skip
