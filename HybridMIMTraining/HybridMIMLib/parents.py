"""Noticing that the process that started this one has gone: nobody is left to work for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from HybridMIMLib.runs import is_alive

_SECONDS_BETWEEN_LOOKS = 0.5
_SYNCHRONIZE, _FOR_EVER, _DENIED = 0x00100000, 0xFFFFFFFF, 5


def when_gone(parent: int | None, do: Callable[[], None]) -> None:
    """Call ``do`` once, from a thread, when the parent has ended. The end of standard input may not tell: another
    child of the parent may hold the pipe open.

    Args:
        parent: number of a process to watch as well, where a launcher stands between it and this one; or None.
        do: what to do then.
    """
    wait = _wait_on_windows if os.name == "nt" else _wait
    # Now, and not in the thread: an orphan gets another parent, which would be taken for the first.
    first = os.getppid()

    def watch() -> None:
        wait(first, parent)
        do()

    threading.Thread(target=watch, daemon=True, name="parent").start()


def _wait(first: int, parent: int | None) -> None:
    while os.getppid() == first and (parent is None or is_alive(parent)):
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _wait_on_windows(first: int, parent: int | None) -> None:
    """Waits on one process alone: the one that was named, or else the one that started this one."""
    import ctypes

    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
    kernel.OpenProcess.restype = ctypes.c_void_p
    kernel.WaitForSingleObject.argtypes = (ctypes.c_void_p, ctypes.c_ulong)
    # While the handle is open, its number goes to no other process.
    handle = kernel.OpenProcess(_SYNCHRONIZE, False, first if parent is None else parent)
    if handle:
        kernel.WaitForSingleObject(handle, _FOR_EVER)
    elif ctypes.get_last_error() == _DENIED:  # type: ignore[attr-defined]
        # It is there and cannot be watched; standard input has to tell.
        threading.Event().wait()
