"""A plain folder of scans without labels; ``.seg.nrrd`` files and subfolders ``labels…`` are passed over."""

from __future__ import annotations

from pathlib import Path

from HybridMIMLib.data.layouts.cases import Case
from HybridMIMLib.data.layouts.source import Source
from HybridMIMLib.errors import DataError


def read(source: Source) -> list[Case]:
    """Every scan as a case.

    Raises:
        DataError: there are label maps only.
    """
    named = [(name, path) for name, path in source.named() if not _is_known_label(path.relative_to(source.folder))]
    if not named:
        raise DataError(f"{source.folder}: holds label maps only", cure="Choose the folder with the images.")
    return [Case(name, (path,), None) for name, path in named]


def _is_known_label(path: Path) -> bool:
    """A segmentation of Slicer, or a file in a folder labels…: it is no image to learn from."""
    folders = (part.lower() for part in path.parts[:-1])
    return path.name.lower().endswith(".seg.nrrd") or any(part.startswith("labels") for part in folders)
