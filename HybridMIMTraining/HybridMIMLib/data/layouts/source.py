"""A folder in which a layout is looked for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from HybridMIMLib.data.layouts.cases import read_object
from HybridMIMLib.data.layouts.names import read_names
from HybridMIMLib.data.scans import SUFFIXES, find_scans, scan_name

_NO_PATIENTS = re.compile(
    "train(ing)?|tr|val(id|idation)?|test(ing)?|ts|(cb)?ct|mri?|pet|t1(w|n|c|ce)?|t2(w|f)?|flair"
)
"""Subfolders with these names, in small letters, hold scans of many."""


class Source:
    """A folder that a layout is looked for in; every part of it is listed once.

    Attributes:
        folder: the folder.
        description: its ``dataset.json``; empty where there is none.
        naming: the names of labels that are written in the folder.
        partial: as in :class:`Dataset`.
        notes: what its user should be told, as in :class:`Dataset`; layouts add to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = folder / "dataset.json"
        self.description: dict[str, Any] = read_object(file) if file.is_file() else {}
        self.naming, self.partial = read_names(folder, self.description, file)
        self.notes: list[str] = []
        self._scans: dict[str, list[Path]] = {}
        self._parts = _subfolders(folder)

    def has(self, part: str) -> bool:
        """Whether the folder has such a subfolder; capitals do not matter."""
        return self.place(part).is_dir()

    def place(self, part: str) -> Path:
        """The path of a subfolder: of ``images``, that of ``Images`` where there is no other."""
        exact = self.folder / part
        return exact if exact.is_dir() else self.folder / self._parts.get(part.lower(), part)

    @property
    def subfolders(self) -> list[str]:
        """The names of its subfolders, sorted."""
        return sorted(self._parts.values())

    def scans(self, part: str = "") -> list[Path]:
        """Every scan in a subfolder, or in the whole folder.

        Raises:
            DataError: there is none.
        """
        if part not in self._scans:
            unreadable: list[str] = []
            self._scans[part] = find_scans(self.place(part), unreadable)
            self.notes += [line for line in unreadable if line not in self.notes]
        return self._scans[part]

    def named(self, part: str = "") -> list[tuple[str, Path]]:
        """The same with the names of their cases."""
        return [(case_name(self.place(part), path), path) for path in self.scans(part)]

    @property
    def images_folder(self) -> str:
        """``images`` or ``imagesTr``, whichever there is, or nothing."""
        return next((part for part in ("images", "imagesTr") if self.has(part)), "")


def _subfolders(folder: Path) -> dict[str, str]:
    """By their names in small letters, as some systems do not tell ``Images`` from ``images``."""
    try:
        return {path.name.lower(): path.name for path in sorted(folder.iterdir()) if path.is_dir()}
    except OSError:
        return {}  # whoever looks for scans in the folder says so


def case_name(folder: Path, path: Path) -> str:
    """The name of a scan after the subfolders it lies in; a DICOM series is named after its folder already.

    Accents are composed (NFC): macOS keeps them apart in names, and images and labels may come from two systems.
    """
    folders, name = path.relative_to(folder).parts[:-1], scan_name(path)
    is_series = not path.name.lower().endswith(SUFFIXES)
    if is_series and folders and f"{name}_".startswith(f"{folders[-1]}_"):
        folders = folders[:-1]
    return unicodedata.normalize("NFC", "_".join((*folders, name)))


def patients_by_folder(folder: Path, paths: Sequence[Path]) -> list[str]:
    """Whose scans these are, going by the subfolders ``P1/``, ``P2/`` … of a folder; empty where that is not known.

    It is known where every scan lies in a subfolder, there are several, and none is called after a kind of scan
    or a part of a split. DICOM names its patient itself.
    """
    parts = [path.relative_to(folder).parts for path in paths]
    firsts = {part[0].lower() for part in parts if len(part) > 1}
    if any(len(part) == 1 for part in parts) or len(firsts) < 2 or any(map(_NO_PATIENTS.fullmatch, firsts)):
        return [""] * len(parts)
    own = [part[0] if path.name.lower().endswith(SUFFIXES) else "" for path, part in zip(paths, parts)]
    return [unicodedata.normalize("NFC", name) for name in own]
