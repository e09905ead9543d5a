"""``dataset.json`` as the Medical Segmentation Decathlon writes it (arXiv:1902.09063): it lists every case.

MONAI's lists have the same form, with ``validation`` beside ``training`` and, perhaps, a list of images a case.
nnU-Net, version 1, lists ``CASE.nii.gz`` where the files are called ``CASE_0000.nii.gz``, a channel each.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count as numbers
from itertools import takewhile
from pathlib import Path
from typing import Any

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.layouts.cases import Case
from HybridMIMLib.data.layouts.rows import CaseList, find_file, is_resource_fork
from HybridMIMLib.data.layouts.source import Source
from HybridMIMLib.data.scans import SUFFIXES, scan_name
from HybridMIMLib.errors import DataError


def lacks(source: Source) -> str:
    """What keeps a folder from being in this layout; nothing if it is."""
    if not (source.folder / "dataset.json").is_file():
        return "there is no dataset.json"
    return "" if "training" in source.description else "its dataset.json has no list 'training'"


def read(source: Source, labelled: bool) -> list[Case]:
    """The cases of the folder's ``dataset.json``; without labels, those for testing too."""
    return listed_cases(source.folder / "dataset.json", source.description, source.naming.classes, labelled)


def listed_cases(
    file: Path, description: Mapping[str, Any], classes: tuple[LabelClass, ...], labelled: bool
) -> list[Case]:
    """The cases of a description that was read from ``file``.

    Raises:
        DataError: an entry cannot be read, or there is none.
    """
    cases = CaseList(file, classes, labelled)
    keys = ("training", "validation") if labelled else ("training", "validation", "test")
    modality = description.get("modality")
    count = len(modality) if isinstance(modality, dict) else 0
    rows = (row for key in keys for row in _rows(file, description, key))
    found = [cases.case(_with_channels(file, row, count)) for row in rows]
    if not found:
        raise DataError(f"{file}: lists no case", cure="Fill in its list, or remove the file.")
    return found


def _rows(file: Path, description: Mapping[str, Any], key: str) -> list[Any]:
    rows = description.get(key, [])
    if not isinstance(rows, list):
        raise DataError(f"{file}: {key!r} is no list", cure="Correct the file.")
    return [row for row in rows if not is_resource_fork(row)]


def _with_channels(file: Path, row: Any, count: int) -> Any:
    """An entry of nnU-Net, version 1, with the file of each channel instead of their common name.

    Args:
        file: the list.
        row: any entry; one whose image is there, or has no ``_0000`` either, is returned as it is.
        count: how many modalities the list names; 0: as many as there are files.
    """
    image = row.get("image") if isinstance(row, Mapping) else row
    if not isinstance(image, str):
        return row
    suffixes = [suffix for suffix in SUFFIXES if image.lower().endswith(suffix)]
    if not suffixes or find_file(file.parent / image).is_file():
        return row
    end = len(max(suffixes, key=len))
    name, suffix = image[:-end], image[-end:]
    if not find_file(file.parent / f"{name}_0000{suffix}").is_file():
        return row
    channels = (f"{name}_{number:04d}{suffix}" for number in (range(count) if count else numbers()))
    there = channels if count else takewhile(lambda one: find_file(file.parent / one).is_file(), channels)
    entry = dict(row) if isinstance(row, Mapping) else {}
    return {"name": scan_name(Path(image)), **entry, "image": list(there)}
