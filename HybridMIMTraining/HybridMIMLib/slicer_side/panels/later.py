"""Something looked up beside the window, which goes on with what was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import qt

from HybridMIMLib.slicer_side.background import Background

T = TypeVar("T")

_INTERVAL = 30
"""Milliseconds between two looks."""


class Later:
    """One question at a time: a later one takes the place of an earlier, whose answer nobody wants any more.

    >>> later = Later()                                                                        # doctest: +SKIP
    >>> later.ask(recent_batches, lambda notes: print(len(notes)))                             # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._work: Background[Any] | None = None
        self._then: Callable[[Any], None] = lambda _answer: None
        self._timer = qt.QTimer()
        self._timer.interval = _INTERVAL
        self._timer.connect("timeout()", self._look)

    @property
    def busy(self) -> bool:
        """Whether an answer is still to come."""
        return self._work is not None

    def ask(self, do: Callable[[], T], then: Callable[[T], None]) -> None:
        """Have a thread do something that touches neither the scene nor a widget.

        Args:
            do: returns what was found; what it raises is a defect.
            then: gets that, in the window's thread.
        """
        self._work, self._then = Background(do), then
        self._timer.start()

    def close(self) -> None:
        """Nobody wants to know any more."""
        self._timer.stop()
        self._work = None

    def _look(self) -> None:
        work = self._work
        if work is None or not work.done:
            return
        # First, so that whatever goes wrong below happens once.
        self.close()
        self._then(work.result())
