"""The folder in which a job keeps the scan of a patient for as long as it takes, and not longer.

It is removed when the job ends, however it ends, and when the process does. What a process that was killed left is
removed when the next one begins a job.
"""

from __future__ import annotations

import atexit
import os
import platform
import re
import shutil
import tempfile
import threading
import time
from pathlib import Path

import slicer

from HybridMIMLib.errors import DiskError
from HybridMIMLib.runs import is_alive

ROOM = "Free some space, or choose another temporary folder (Edit > Application Settings > Modules), then try again."
_TRIES, _PAUSE = 5, 0.2
"""On Windows a file that somebody still looks at cannot be removed."""


class JobFolder:
    """A new folder that nobody else may look into.

    Attributes:
        path: of it.

    Raises:
        DiskError: it cannot be made.
    """

    def __init__(self) -> None:
        root = temporary_root()
        try:
            self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=root))
        except OSError as error:
            raise DiskError(f"{root}: no folder can be made there ({error.strerror})", cure=ROOM) from error
        self._removal: threading.Thread | None = None
        atexit.register(self.remove)
        threading.Thread(target=_remove_leftovers, args=(root,), daemon=True).start()

    def is_removed(self) -> bool:
        """Have it removed in a thread; returns whether that is over."""
        if self._removal is None:
            self._removal = threading.Thread(target=self.remove, daemon=True)
            self._removal.start()
        self._removal.join(0.01)
        return not self._removal.is_alive()

    def remove(self) -> None:
        """Remove it, and wait for that."""
        atexit.unregister(self.remove)
        for _ in range(_TRIES):
            shutil.rmtree(self.path, ignore_errors=True)
            if not self.path.exists():
                return
            time.sleep(_PAUSE)


def temporary_root() -> Path:
    """Where temporary files go: as the user set it in Slicer, elsewhere as the system has it."""
    application = getattr(slicer, "app", None)
    return Path(str(application.temporaryPath) if application is not None else tempfile.gettempdir())


_PREFIX = f"hybridmim-{re.sub(r'[^A-Za-z0-9]+', '_', platform.node())}-"
"""Numbers of processes mean something on one machine alone."""


def _remove_leftovers(root: Path) -> None:
    for path in root.glob(f"{_PREFIX}*"):
        number = path.name[len(_PREFIX) :].partition("-")[0]
        if number.isdigit() and not is_alive(int(number)):
            shutil.rmtree(path, ignore_errors=True)
