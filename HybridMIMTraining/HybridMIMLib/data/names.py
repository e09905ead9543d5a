"""Names of files: which are scans, which are passed over, and how people sort them."""

from __future__ import annotations

import re

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
"""The file formats that are known by their names, in lower case; DICOM is known by its content."""


def has_scan_suffix(name: str) -> bool:
    """Whether a file is of one of these formats, going by its name."""
    return name.lower().endswith(SUFFIXES)


def is_passed_over(name: str) -> bool:
    """Whether a file is hidden (as the ``._name`` of macOS) or temporary."""
    return name.startswith(".") or ".tmp." in name.lower()


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers by value, and otherwise by letters whatever their case."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    key = [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part.casefold()) for part in parts]
    return [*key, (2, 0, text)]
