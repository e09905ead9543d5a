"""Several files of a folder changed as one: all of them or none, even if the process is killed in between.

New files are made in a folder of their own, :data:`STAGING`, on the same disk. What is to be moved where is written
down before the first move; whoever finds such a list takes back what it lists.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from HybridMIMLib.errors import DiskError
from HybridMIMLib.files import disk_errors, make_folder, read_json, write_json

STAGING = ".adding"
_JOURNAL = "moves.json"

Move = tuple[Path, Path]
"""From where to where."""


def staging_folder(folder: Path) -> Path:
    """An empty place for new files; what an earlier attempt left half done is taken back first.

    Raises:
        DiskError: it cannot be made, or what is there cannot be taken back.
    """
    take_back(folder)
    staging = folder / STAGING
    make_folder(staging)
    return staging


def move_all(folder: Path, moves: Sequence[Move]) -> None:
    """Make the moves in their order, or none of them; the staging folder is gone afterwards.

    Raises:
        DiskError: a file could not be moved; all is as it was.
    """
    listed = [[_inside(folder, path) for path in move] for move in moves]
    write_json(folder / STAGING / _JOURNAL, listed)
    try:
        for source, target in moves:
            with disk_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    raise DiskError(f"{target}: is there already", cure="Try again.")
                os.rename(source, target)
    except BaseException:
        take_back(folder)
        raise
    # From here on it is done.
    (folder / STAGING / _JOURNAL).unlink()
    shutil.rmtree(folder / STAGING, ignore_errors=True)


def take_back(folder: Path) -> None:
    """Undo what an attempt that did not come to its end has moved, and remove what it made.

    Raises:
        DiskError: a file could not be moved back.
    """
    journal = folder / STAGING / _JOURNAL
    try:
        moves = [(folder / str(source), folder / str(target)) for source, target in read_json(journal)]
    except (OSError, ValueError, TypeError):
        # Written in one piece, and before the first move: without it nothing was moved.
        moves = []
    for source, target in reversed(moves):
        if target.exists() and not source.exists() and _is_below(folder, source) and _is_below(folder, target):
            with disk_errors(source):
                source.parent.mkdir(parents=True, exist_ok=True)
                os.rename(target, source)
            _remove_empty(folder, target.parent)
    with suppress(OSError):
        journal.unlink()
    shutil.rmtree(folder / STAGING, ignore_errors=True)


def _remove_empty(folder: Path, place: Path) -> None:
    """The folders that were made for a file, if there is nothing else in them."""
    with suppress(OSError):
        while place != folder:
            place.rmdir()
            place = place.parent


def _inside(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _is_below(folder: Path, path: Path) -> bool:
    """The list is a file that anybody may have written to: it has no say over what lies elsewhere."""
    return folder.resolve() in path.resolve().parents
