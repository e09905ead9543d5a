"""Cases and data sets, and what every layout checks of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from HybridMIMLib.data.classes import LabelClass, Naming, Region
from HybridMIMLib.data.names import SUFFIXES, natural_key
from HybridMIMLib.errors import DataError
from HybridMIMLib.files import read_json

_SHOWN = 3


@dataclass(frozen=True)
class Case:
    """One scan, and its label map where it has one.

    Attributes:
        name: unique in its data set; the file's name without suffix, after its subfolders.
        images: one file, or one a channel; a DICOM series by its first slice.
        label: the label map, or None.
        patient: whose scan it is; empty where the data set does not say.
        annotated: the labels that were looked for in this case; None: see :attr:`Dataset.partial`.
        resample: whether a label map on another grid is brought onto the scan instead of being refused.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None
    patient: str = ""
    annotated: frozenset[int] | None = None
    resample: bool = False


@dataclass(frozen=True)
class Dataset:
    """The cases of a folder, in natural order of their names.

    Attributes:
        cases: at least one.
        classes: by label; empty where the folder does not name them.
        layout: ``"msd"``, ``"nnunet"``, ``"btcv"``, ``"brats"``, ``"images-labels"``, ``"folder"`` or ``"list"``.
        root: the folder, or the file of the list.
        regions: groups of labels that are measured as one besides the classes.
        partial: a class that is missing from a case's label map was not annotated there, which does not mean that
            it is absent. It holds for the cases that do not say themselves what was annotated.
        customary: what labels mean where this layout is customary, written nowhere in the folder; the classes and
            regions above are the first of these, and :func:`named_for_labels` tells whether they fit.
        least_met: how many of their labels the set has to hold for them to fit.
        notes: what its user should be told: files that were passed over, folders that cannot be read.
    """

    cases: tuple[Case, ...]
    classes: tuple[LabelClass, ...]
    layout: str
    root: Path
    regions: tuple[Region, ...] = ()
    partial: bool = False
    customary: tuple[Naming, ...] = ()
    least_met: int = 0
    notes: tuple[str, ...] = ()

    def annotated_in(self, case: Case, present: Iterable[int]) -> frozenset[int] | None:
        """The labels that were annotated in a case; None: all.

        Args:
            case: one of ``cases``.
            present: what its label map holds.
        """
        if case.annotated is not None or not self.partial:
            return case.annotated
        return frozenset(int(label) for label in present) - {0}


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    content = read_value(file)
    if not isinstance(content, dict):
        raise DataError(f"{file}: is no JSON object", cure="Correct the file, or remove it.")
    return content


def read_value(file: Path) -> Any:
    """Whatever JSON a file holds.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error})", cure="Correct the file, or remove it.") from error


def check_unique(place: Path, names: Iterable[str], what: str) -> None:
    """Raises:
    DataError: one of the names is there twice.
    """
    for name, times in Counter(names).most_common(1):
        if times > 1:
            raise DataError(f"{place}: {times} {what} have the name {name}", cure="Rename or remove all but one.")


def check_unique_files(place: Path, named: Iterable[tuple[str, tuple[Path, ...]]], what: str) -> None:
    """Raises:
    DataError: one of the names, each with its files, is there twice; the files are listed.
    """
    groups: dict[str, list[Path]] = defaultdict(list)
    for name, files in named:
        groups[name].append(files[0])
    for name, paths in groups.items():
        if len(paths) > 1:
            listed = some([_below(place, path) for path in paths])
            raise DataError(
                f"{place}: {len(paths)} {what} have the name {name}: {listed}", cure="Rename or remove all but one."
            )


def unique_names(cases: Iterable[Case]) -> list[Case]:
    """Cases without labels, with names that tell them apart: nothing but the scan belongs to such a name.

    Those of one name get what their files end with, as ``a_nii`` and ``a_nrrd``; where these are the same, too, the
    first keeps its name and the others are numbered from 2.
    """
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.name].append(case)
    taken = set(groups)
    return [case for name, group in groups.items() for case in _told_apart(name, group, taken)]


def _told_apart(name: str, group: list[Case], taken: set[str]) -> list[Case]:
    if len(group) == 1:
        return group
    ends = [f"{name}_{_ending(case.images[0])}" for case in group]
    if len(set(ends)) == len(ends) and taken.isdisjoint(ends) and not any(end.endswith("_") for end in ends):
        taken.update(ends)
        return [replace(case, name=end) for case, end in zip(group, ends)]
    first, *others = sorted(group, key=lambda case: natural_key(case.images[0].as_posix()))
    numbered = (f"{name}_{number}" for number in count(2))
    free = [replace(case, name=next(one for one in numbered if one not in taken)) for case in others]
    taken.update(case.name for case in free)
    return [first, *free]


def _ending(path: Path) -> str:
    """``nii_gz`` of ``a.nii.gz``; nothing of a file without a known suffix."""
    suffixes = [suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)]
    return max(suffixes, key=len, default="").lstrip(".").replace(".", "_")


def _below(place: Path, path: Path) -> str:
    return path.relative_to(place).as_posix() if place in path.parents else str(path)


def check_none_left(names: list[str], one: str, other: str, place: Path) -> None:
    """Refuse images without label, or labels without image.

    Args:
        names: those that are left.
        one: what they are, ``"image"`` or ``"label"``.
        other: what they lack.
        place: the folder in which that should lie.

    Raises:
        DataError: there are such names.
    """
    if not names:
        return
    verb = "has" if len(names) == 1 else "have"
    plural = "" if len(names) == 1 else "s"
    raise DataError(
        f"{place.parent}: {one}{plural} {some(names)} {verb} no {other} in {place.name}/",
        cure=f"Add the {other} under the same name, or remove the {one}.",
    )


def some(names: list[str]) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def no_labels(place: Path, what: str) -> DataError:
    """The error for a folder without label maps."""
    return DataError(
        f"{place}: {what}",
        cure="Put the images into images/ and their label maps, under the same names, into labels/, choose a "
        "folder with a dataset.json, or list the files in a CSV with the columns image and label.",
    )
