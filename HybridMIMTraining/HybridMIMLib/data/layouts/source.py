"""A folder in which a layout is looked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from HybridMIMLib.data.layouts.cases import read_object
from HybridMIMLib.data.layouts.names import read_names
from HybridMIMLib.data.scans import SUFFIXES, find_scans, scan_name


class Source:
    """A folder that a layout is looked for in; every part of it is listed once.

    Attributes:
        folder: the folder.
        description: its ``dataset.json``; empty where there is none.
        naming: the names of labels that are written in the folder.
        partial: as in :class:`Dataset`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = folder / "dataset.json"
        self.description: dict[str, Any] = read_object(file) if file.is_file() else {}
        self.naming, self.partial = read_names(folder, self.description, file)
        self._scans: dict[str, list[Path]] = {}

    def has(self, part: str) -> bool:
        """Whether the folder has such a subfolder."""
        return (self.folder / part).is_dir()

    def scans(self, part: str = "") -> list[Path]:
        """Every scan in a subfolder, or in the whole folder.

        Raises:
            DataError: there is none.
        """
        if part not in self._scans:
            self._scans[part] = find_scans(self.folder / part)
        return self._scans[part]

    def named(self, part: str = "") -> list[tuple[str, Path]]:
        """The same with the names of their cases."""
        return [(case_name(self.folder / part, path), path) for path in self.scans(part)]

    @property
    def images_folder(self) -> str:
        """``images`` or ``imagesTr``, whichever there is, or nothing."""
        return next((part for part in ("images", "imagesTr") if self.has(part)), "")


def case_name(folder: Path, path: Path) -> str:
    """The name of a scan after the subfolders it lies in; a DICOM series is named after its folder already."""
    folders, name = path.relative_to(folder).parts[:-1], scan_name(path)
    is_series = not path.name.lower().endswith(SUFFIXES)
    if is_series and folders and f"{name}_".startswith(f"{folders[-1]}_"):
        folders = folders[:-1]
    return "_".join((*folders, name))
