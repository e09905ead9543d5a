"""Cases and data sets, and what every layout checks of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from HybridMIMLib.data.classes import LabelClass, Naming, Region
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
    """

    cases: tuple[Case, ...]
    classes: tuple[LabelClass, ...]
    layout: str
    root: Path
    regions: tuple[Region, ...] = ()
    partial: bool = False
    customary: tuple[Naming, ...] = ()

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
    for name, count in Counter(names).most_common(1):
        if count > 1:
            raise DataError(f"{place}: {count} {what} have the name {name}", cure="Rename or remove all but one.")


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
