"""``dataset.json`` as the Medical Segmentation Decathlon writes it (arXiv:1902.09063): it lists every case.

MONAI's lists have the same form, with ``validation`` beside ``training`` and, perhaps, a list of images a case.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.layouts.cases import Case
from HybridMIMLib.data.layouts.rows import CaseList, is_resource_fork
from HybridMIMLib.data.layouts.source import Source
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
    found = [cases.case(row) for key in keys for row in _rows(file, description, key)]
    if not found:
        raise DataError(f"{file}: lists no case", cure="Fill in its list, or remove the file.")
    return found


def _rows(file: Path, description: Mapping[str, Any], key: str) -> list[Any]:
    rows = description.get(key, [])
    if not isinstance(rows, list):
        raise DataError(f"{file}: {key!r} is no list", cure="Correct the file.")
    return [row for row in rows if not is_resource_fork(row)]
