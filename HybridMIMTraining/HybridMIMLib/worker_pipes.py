"""Standard input and output, kept for the worker's requests and answers alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from HybridMIMLib.errors import SettingsError
from HybridMIMLib.worker_protocol import encode, split_lines

_IN, _OUT, _ERRORS = 0, 1, 2


class Pipes:
    """Takes standard input and output away from everything else in the process.

    Libraries print, in C too, and programs that they start inherit the streams: from here on what they print goes to
    standard error, and what they read is empty.

    Args:
        on_broken: called once, by whoever sends, when nobody reads the answers any more.

    Raises:
        SettingsError: this process has no standard input or output.
    """

    def __init__(self, on_broken: Callable[[], None]) -> None:
        try:
            self._in, self._out = os.dup(_IN), os.dup(_OUT)
        except OSError as error:
            raise SettingsError(
                f"serve has no standard input and output to speak on ({error.strerror})",
                cure="Start it from a program that gives it both as pipes.",
            ) from error
        self._on_broken, self._broken = on_broken, False
        self._lock = threading.Lock()
        _let_wait(self._in, self._out)
        _divert()

    def lines(self) -> Iterator[bytes | None]:
        """The lines that come in, as :func:`~HybridMIMLib.worker_protocol.split_lines` has them."""
        with suppress(OSError):
            yield from split_lines(lambda count: os.read(self._in, count))

    def send(self, content: Mapping[str, Any]) -> None:
        """Write one line, from any thread; nothing happens where nobody reads it."""
        line, broke = memoryview(encode(content)), False
        with self._lock:
            try:
                while line and not self._broken:
                    line = line[os.write(self._out, line) :]
            except OSError:
                self._broken = broke = True
        if broke:
            self._on_broken()


def _let_wait(*streams: int) -> None:
    """A parent may have set its end of a pipe to not wait, and for some kinds of pipe ours with it."""
    if os.name != "nt":
        for stream in streams:
            os.set_blocking(stream, True)


def _divert() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, _IN)
    try:
        os.dup2(_ERRORS, _OUT)
    except OSError:
        # No standard error either.
        os.dup2(nothing, _OUT)
    os.close(nothing)
