"""Which files of a folder are the images and the labels of which case.

Recognised are a ``dataset.json`` as the Medical Segmentation Decathlon writes it, the folders ``images`` and
``labels`` (or ``imagesTr`` and ``labelsTr``, with one file a channel as nnU-Net has it), and a plain folder
of images, in which ``.seg.nrrd`` files and subfolders whose names begin with ``labels`` are passed over.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from HybridMIMLib.data.classes import LabelClass, default_color
from HybridMIMLib.data.scans import find_scans, natural_key, scan_name
from HybridMIMLib.errors import DataError
from HybridMIMLib.files import read_json

_PAIRS = (("images", "labels"), ("imagesTr", "labelsTr"))
_SHOWN = 3


@dataclass(frozen=True)
class Case:
    """One scan, and its label map where it has one.

    Attributes:
        name: unique in its data set; the file's name without suffix, after its subfolders.
        images: one file, or one a channel.
        label: the label map, or None.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None


@dataclass(frozen=True)
class Dataset:
    """The cases of a folder, in natural order of their names.

    Attributes:
        cases: at least one.
        classes: by label; empty where the folder does not name them.
        layout: ``"msd"``, ``"images-labels"`` or ``"folder"``.
        root: the folder.
    """

    cases: tuple[Case, ...]
    classes: tuple[LabelClass, ...]
    layout: str
    root: Path


def open_dataset(folder: Path, labelled: bool) -> Dataset:
    """List the cases of a folder; no scan is read.

    Args:
        folder: a folder in one of the layouts above.
        labelled: True to list the cases with labels and to insist on a label for each; False to list all
            images, those meant for testing too, without labels.

    Raises:
        DataError: the folder does not exist, has no scan, lists a file that is missing, has an image without
            label or a label without image, two cases of one name, or class names that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder", cure="Check the path, or choose another folder.")
    description = _description(folder)
    if "training" in description:
        layout, cases = "msd", _msd_cases(folder, description, labelled)
    elif pair := _pair_of_folders(folder):
        layout, cases = "images-labels", _paired_cases(folder, *pair, labelled=labelled)
    else:
        layout, cases = "folder", _plain_cases(folder, labelled)
    _check_names(folder, cases)
    ordered = tuple(sorted(cases, key=lambda case: natural_key(case.name)))
    return Dataset(ordered, _classes(folder, description), layout, folder)


def classes_from_labels(values: Iterable[int]) -> tuple[LabelClass, ...]:
    """Classes named ``class 1``, ``class 2`` … for the labels met in label maps; 0 is left out."""
    labels = sorted({int(value) for value in values} - {0})
    return tuple(LabelClass(label, f"class {label}", default_color(label)) for label in labels)


# --- dataset.json -------------------------------------------------------------------------------------------


def _description(folder: Path) -> dict[str, Any]:
    file = folder / "dataset.json"
    return _read_object(file) if file.is_file() else {}


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error})", cure="Correct the file, or remove it.") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: is no JSON object", cure="Correct the file, or remove it.")
    return content


def _msd_cases(folder: Path, description: Mapping[str, Any], labelled: bool) -> list[Case]:
    training = [_msd_entry(folder, entry) for entry in _entries(folder, description, "training")]
    if labelled:
        cases = [_labelled_case(folder, *entry) for entry in training]
    else:
        test = [_msd_entry(folder, entry) for entry in _entries(folder, description, "test")]
        cases = [Case(scan_name(image), (image,), None) for image, _ in training + test]
    if not cases:
        raise DataError(f"{folder / 'dataset.json'}: lists no case", cure="Fill in its list, or remove the file.")
    return cases


def _entries(folder: Path, description: Mapping[str, Any], key: str) -> list[Any]:
    entries = description.get(key, [])
    if not isinstance(entries, list):
        raise DataError(f"{folder / 'dataset.json'}: {key!r} is no list", cure="Correct the file.")
    return [entry for entry in entries if not _is_resource_fork(entry)]


def _is_resource_fork(entry: Any) -> bool:
    """macOS leaves ``._name`` beside every file that it copies, and some data sets list these."""
    image = entry.get("image") if isinstance(entry, Mapping) else entry
    return isinstance(image, str) and PurePosixPath(image).name.startswith("._")


def _msd_entry(folder: Path, entry: Any) -> tuple[Path, Path | None]:
    image = entry.get("image") if isinstance(entry, Mapping) else entry
    label = entry.get("label") if isinstance(entry, Mapping) else None
    if not isinstance(image, str) or not isinstance(label, (str, type(None))):
        raise DataError(
            f"{folder / 'dataset.json'}: the entry {entry!r} does not name one image",
            cure='Write each case as {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}.',
        )
    return _listed(folder, image), _listed(folder, label) if label is not None else None


def _listed(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise DataError(f"{path}: listed in dataset.json but missing", cure="Restore the file, or remove its entry.")
    return path


def _labelled_case(folder: Path, image: Path, label: Path | None) -> Case:
    if label is None:
        raise DataError(
            f"{folder / 'dataset.json'}: image {image.name} has no label",
            cure="Add its label to the list, or remove the entry.",
        )
    return Case(scan_name(image), (image,), label)


# --- images and labels --------------------------------------------------------------------------------------


def _pair_of_folders(folder: Path) -> tuple[Path, Path] | None:
    for images, labels in _PAIRS:
        if (folder / images).is_dir():
            return folder / images, folder / labels
    return None


def _paired_cases(folder: Path, images: Path, labels: Path, *, labelled: bool) -> list[Case]:
    found = _images_by_name(images)
    if labelled:
        return _matched(folder, found, images, labels)
    if images.name == "imagesTr" and (folder / "imagesTs").is_dir():
        found += _images_by_name(folder / "imagesTs")
    return [Case(name, files, None) for name, files in found]


def _images_by_name(folder: Path) -> list[tuple[str, tuple[Path, ...]]]:
    """Only ``imagesTr`` and ``imagesTs`` have channels; in ``images`` a final number is a mere number."""
    named = _named(folder)
    return [(name, (path,)) for name, path in named] if folder.name == "images" else _channels(named)


def _named(folder: Path) -> list[tuple[str, Path]]:
    """Every scan of a folder with the name of its case, which has its subfolders in it."""
    return [(_case_name(folder, path), path) for path in find_scans(folder)]


def _case_name(folder: Path, path: Path) -> str:
    return "_".join((*path.relative_to(folder).parts[:-1], scan_name(path)))


def _channels(named: list[tuple[str, Path]]) -> list[tuple[str, tuple[Path, ...]]]:
    """Join ``a_0000`` and ``a_0001`` to one case if all files are named like that, as nnU-Net names them."""
    matches = [re.fullmatch(r"(.+)_([0-9]{4})", name) for name, _ in named]
    groups: dict[str, dict[str, Path]] = {}
    for match, (_, path) in zip(matches, named, strict=True):
        if match is not None:
            groups.setdefault(match[1], {})[match[2]] = path
    files = sum(len(group) for group in groups.values())
    if files < len(named) or any("0000" not in group for group in groups.values()):
        return [(name, (path,)) for name, path in named]
    return [(name, tuple(group[key] for key in sorted(group))) for name, group in groups.items()]


def _matched(folder: Path, found: list[tuple[str, tuple[Path, ...]]], images: Path, labels: Path) -> list[Case]:
    if not labels.is_dir():
        raise _no_labels(folder, f"has {images.name}/ but no {labels.name}/")
    named = _named(labels)
    by_name = dict(named)
    _check_unique(labels, [name for name, _ in named], "label maps")
    _check_none_left([name for name, _ in found if name not in by_name], "image", "label", labels)
    names = {name for name, _ in found}
    _check_none_left([name for name in by_name if name not in names], "label", "image", images)
    return [Case(name, files, by_name[name]) for name, files in found]


def _check_none_left(names: list[str], one: str, other: str, place: Path) -> None:
    if not names:
        return
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    verb = "has" if len(names) == 1 else "have"
    plural = "" if len(names) == 1 else "s"
    raise DataError(
        f"{place.parent}: {one}{plural} {shown} {verb} no {other} in {place.name}/",
        cure=f"Add the {other} under the same name, or remove the {one}.",
    )


# --- plain folders ------------------------------------------------------------------------------------------


def _plain_cases(folder: Path, labelled: bool) -> list[Case]:
    named = [(name, path) for name, path in _named(folder) if not _is_known_label(path.relative_to(folder))]
    if labelled:
        raise _no_labels(folder, "has no labels that belong to images")
    if not named:
        raise DataError(f"{folder}: holds label maps only", cure="Choose the folder with the images.")
    return [Case(name, (path,), None) for name, path in named]


def _is_known_label(path: Path) -> bool:
    """A segmentation of Slicer, or a file in a folder labels…: it is no image to learn from."""
    folders = (part.lower() for part in path.parts[:-1])
    return path.name.lower().endswith(".seg.nrrd") or any(part.startswith("labels") for part in folders)


def _no_labels(folder: Path, what: str) -> DataError:
    return DataError(
        f"{folder}: {what}",
        cure="Put the images into images/ and their label maps, under the same names, into labels/, "
        "or choose a folder with a dataset.json.",
    )


def _check_names(folder: Path, cases: list[Case]) -> None:
    _check_unique(folder, [case.name for case in cases], "cases")


def _check_unique(folder: Path, names: list[str], what: str) -> None:
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{folder}: {count} {what} have the name {name}", cure="Rename or remove all but one.")


# --- classes ------------------------------------------------------------------------------------------------


def _classes(folder: Path, description: Mapping[str, Any]) -> tuple[LabelClass, ...]:
    file = folder / "classes.json"
    if file.is_file():
        return _named_classes(file, _read_object(file))
    return _named_classes(folder / "dataset.json", description.get("labels", {}))


def _named_classes(file: Path, names: Any) -> tuple[LabelClass, ...]:
    """From {"1": "Liver"}, or from {"Liver": 1} as nnU-Net writes it."""
    try:
        pairs = [_label_and_name(key, value) for key, value in names.items()]
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{file}: the names of the classes cannot be read ({error})",
            cure='Write them as {"1": "Liver", "2": "Spleen"}; regions of several labels are not supported.',
        ) from error
    _check_unique(file, [str(label) for label, _ in pairs] or [""], "classes")
    names_of = [name for label, name in pairs if label > 0]
    if len(set(names_of)) < len(names_of) or "mean" in names_of:
        raise DataError(
            f"{file}: two classes have one name, or one is called 'mean', which is the mean of all: {names_of}",
            cure="Give each class a name of its own.",
        )
    return tuple(LabelClass(label, name, default_color(label)) for label, name in sorted(pairs) if label > 0)


def _label_and_name(key: str, value: Any) -> tuple[int, str]:
    if key.isdigit() and isinstance(value, str):
        return int(key), value
    if isinstance(value, bool) or not isinstance(value, (int, str)) or int(value) < 0:
        raise ValueError(f"{key!r}: {value!r}")
    return int(value), key
