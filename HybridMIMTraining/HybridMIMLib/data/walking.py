"""The files below a folder, and whether any of them has changed since they were looked at.

Nothing here reads a scan: a window asks this too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from HybridMIMLib.data.names import is_passed_over
from HybridMIMLib.errors import DataError

MAY_READ = "Ask for the right to read it."


def walk(folder: Path, unreadable: list[str] | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below (and with) a folder, with the names of its files; hidden and temporary ones left out.

    Args:
        folder: where to begin.
        unreadable: a line is added for every subfolder that may not be read; it is passed over.

    Raises:
        DataError: the folder itself may not be read.
    """

    def pass_over(error: OSError) -> None:
        text = f"{error.filename}: the folder cannot be read ({error.strerror})"
        if os.fspath(error.filename) == os.fspath(folder):
            raise DataError(text, cure=MAY_READ) from error
        if unreadable is not None:
            unreadable.append(text)

    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=pass_over):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(root), [name for name in names if not is_passed_over(name)]


def folder_stamp(folder: Path) -> str:
    """Another one when a file below a folder has come, gone, or been changed, by its name, size and time.

    Hidden and temporary files do not count. Takes a second for a hundred thousand files. Of a list of scans, which is
    a file, this says whether that was changed, and nothing of what it lists.

    Raises:
        DataError: the folder may not be read.
    """
    if folder.is_file():
        return _size_and_time(folder)
    digest = hashlib.sha256()
    for place, names in walk(folder):
        for name in sorted(names):
            digest.update(os.fsencode(f"{place / name}\0{_size_and_time(place / name)}\n"))
    return digest.hexdigest()


def _size_and_time(file: Path) -> str:
    try:
        found = file.stat()
    except OSError:
        # A link to nowhere, or gone since it was listed.
        return "-"
    return f"{found.st_size} {found.st_mtime_ns}"
