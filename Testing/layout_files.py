"""Folders of empty files: no layout opens a scan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from HybridMIMLib.data.layouts import Dataset


def touch(folder: Path, *names: str) -> Path:
    """Empty files with these paths; the folder."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def describe(folder: Path, name: str = "dataset.json", **content: Any) -> Path:
    """A JSON object in a file of the folder; the folder."""
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def names_of(dataset: Dataset) -> dict[int, str]:
    """The classes' names by label."""
    return {one.label: one.name for one in dataset.classes}


def regions_of(dataset: Dataset) -> dict[str, set[int]]:
    """The regions' labels by name."""
    return {one.name: set(one.labels) for one in dataset.regions}
