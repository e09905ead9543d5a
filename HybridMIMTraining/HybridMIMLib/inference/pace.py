"""How long a scan will take, told after a few windows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from HybridMIMLib.events import duration
from HybridMIMLib.inference.sliding import Watch

SECONDS_WORTH_TELLING = 5.0


class Pace:
    """Stands between whoever computes windows and whoever watches, and tells once how long all of them will take.

    Args:
        about: what to put in front, such as the number of windows.
        afterwards: seconds of work that no window is part of.
        wait: returns when the device has done what it was given; called twice.
        tell: where to say it, if it is worth it.
        watch: who watches, or None.
    """

    def __init__(
        self,
        about: str,
        afterwards: float,
        wait: Callable[[], None],
        tell: Callable[[str], None],
        watch: Watch | None,
    ) -> None:
        self._about, self._afterwards, self._wait, self._tell, self._watch = about, afterwards, wait, tell, watch
        self._first: tuple[float, int] | None = None
        self._told, self._elsewhere = False, 0.0

    def watch(self, done: int, windows: int) -> None:
        """Hand on how many windows are done."""
        if not self._told:
            self._wait()
        now = time.monotonic() - self._elsewhere
        if self._first is None:
            # The first windows are slower: libraries choose their ways, memory is asked for.
            self._first = (now, done)
        elif not self._told:
            since, before = self._first
            left = (now - since) / (done - before) * (windows - done) + self._afterwards
            self._told = True
            if left > SECONDS_WORTH_TELLING:
                self._tell(f"{self._about}: about {duration(left)}")
        if self._watch is not None:
            self._watch(done, windows)

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        """What is done in the block is not for windows."""
        began = time.monotonic()
        yield
        self._elsewhere += time.monotonic() - began
