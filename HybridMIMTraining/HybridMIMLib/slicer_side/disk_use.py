"""How much of a disk files take; for a thread, because every file is looked at."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def bytes_in(folder: Path, stop: threading.Event | None = None) -> int:
    """Bytes of all files in a folder; links are not followed, and what cannot be looked at counts as nothing.

    Args:
        folder: with all that is below it.
        stop: once set, what has been counted so far is returned.
    """
    total = 0
    for place, _, names in os.walk(folder):
        total += sum(bytes_of(os.path.join(place, name)) for name in names)
        if stop is not None and stop.is_set():
            break
    return total


def bytes_of(path: str) -> int:
    """Bytes of one file."""
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0
