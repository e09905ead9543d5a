"""What the labels of a data set mean: from its dataset.json or classes.json, or from the label maps themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from HybridMIMLib.data.classes import LabelClass, Naming, default_color, make_naming
from HybridMIMLib.data.layouts.cases import Dataset, check_unique, read_object
from HybridMIMLib.errors import DataError

DESCRIPTIONS = frozenset({"classes.json", "dataset.json"})
"""Files of a folder of scans that say so."""

PARTIAL = "partially_labelled"
"""The entry of dataset.json, classes.json or a list that says so, true or false."""


def read_names(folder: Path, description: Mapping[str, Any], source: Path) -> tuple[Naming, bool]:
    """The names, and whether a label that is missing from a label map was not annotated.

    Names in a ``classes.json`` of the folder go before those in ``description``.

    Args:
        folder: of the data set.
        description: an object with ``labels`` and, perhaps, ``partially_labelled``.
        source: the file that it was read from.

    Raises:
        DataError: the names cannot be read, or one of them stands for two things.
    """
    file, own = folder / "classes.json", {}
    if file.is_file() and file != source:
        own = read_object(file)
    partial = _is_partial(file, own) or _is_partial(source, description)
    names = {key: value for key, value in own.items() if key != PARTIAL}
    if names:
        return naming_from(file, names), partial
    return naming_from(source, description.get("labels", {})), partial


def naming_from(file: Path, names: Any) -> Naming:
    """From {"1": "Liver"}, from {"Liver": 1}, and regions from {"Abdomen": [1, 2]}, as nnU-Net has the last two.

    A label that belongs to regions alone is called after its number. Background, 0, is left out.

    Raises:
        DataError: ``file`` holds something else, or one name or label twice.
    """
    try:
        entries = [_labels_and_name(key, value) for key, value in names.items()]
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{file}: the names of the classes cannot be read ({error})",
            cure='Write them as {"1": "Liver", "2": "Spleen"}, and a region of several as {"Both": [1, 2]}.',
        ) from error
    alone = [(labels[0], name) for labels, name in entries if len(labels) == 1]
    check_unique(file, [str(label) for label, _ in alone], "classes")
    regions = {name: labels for labels, name in entries if len(labels) > 1}
    classes = {label: f"class {label}" for labels in regions.values() for label in labels}
    classes |= {label: name for label, name in alone if label > 0}
    _check_names(file, [*classes.values(), *regions])
    return make_naming(classes, regions)


def classes_from_labels(values: Iterable[int]) -> tuple[LabelClass, ...]:
    """Classes named ``class 1``, ``class 2`` … for the labels met in label maps; 0 is left out."""
    labels = sorted({int(value) for value in values} - {0})
    return tuple(LabelClass(label, f"class {label}", default_color(label)) for label in labels)


def named_for_labels(dataset: Dataset, met: Iterable[int]) -> Dataset:
    """The data set with the first customary names that know every label met; without any, where none do.

    Nor has it any where fewer labels were met than such a set has (:attr:`Dataset.least_met`).

    Names that are written in the data set stay: a label that they do not know is an error to be told.

    Args:
        dataset: as it was opened.
        met: labels that its label maps hold.
    """
    if not dataset.customary:
        return dataset
    labels = {int(value) for value in met} - {0}
    fitting = (one for one in dataset.customary if labels <= {c.label for c in one.classes})
    naming = next(fitting, Naming()) if len(labels) >= dataset.least_met else Naming()
    return replace(dataset, classes=naming.classes, regions=naming.regions)


def _is_partial(file: Path, content: Mapping[str, Any]) -> bool:
    value = content.get(PARTIAL, False)
    if not isinstance(value, bool):
        raise DataError(f"{file}: {PARTIAL} is {value!r}", cure="Write true or false.")
    return value


def _labels_and_name(key: str, value: Any) -> tuple[list[int], str]:
    if key.isdigit() and isinstance(value, str):
        return [int(key)], value
    if key == "ignore":
        raise ValueError("a label to ignore is not supported; annotated says what was looked for in a case")
    if isinstance(value, list) and value and not key.isdigit():
        labels = sorted({_label(key, one) for one in value})
        if labels[0] == 0:
            raise ValueError(f"{key!r}: {value!r} holds the background")
        return labels, key
    return [_label(key, value)], key


def _label(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)) or int(value) < 0:
        raise ValueError(f"{key!r}: {value!r}")
    return int(value)


def _check_names(file: Path, names: list[str]) -> None:
    if len(set(names)) < len(names) or "mean" in names:
        raise DataError(
            f"{file}: two classes or regions have one name, or one is called 'mean', the mean of all: {names}",
            cure="Give each a name of its own.",
        )
