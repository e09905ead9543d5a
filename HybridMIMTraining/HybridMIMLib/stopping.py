"""A stop that waits for a good moment: what is half done when it is asked for is finished first.

Ctrl+C, and SIGTERM in the commands, end Python wherever it is. In the middle of a training step that would spoil the
weights, and what was done since the last checkpoint would be lost::

    with StopLater() as stop:
        while …:
            step()                        # is not interrupted
            with stop.at_once():
                validate()                # is
            if stop.asked:
                save()
                raise KeyboardInterrupt
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopLater:
    """Holds back what ends Python, as a context manager, until its end at most; asked again, it ends it at once.

    Outside of the main thread, which alone gets signals, it does nothing.

    Attributes:
        asked: whether a stop is wanted.
    """

    def __init__(self) -> None:
        self.asked = False
        self._at_once = False
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def __enter__(self) -> StopLater:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                # One that is ignored, or left to the system, stays that.
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        if self.asked and error is None:
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """In the block a stop does not wait.

        Raises:
            KeyboardInterrupt: it is wanted, or was before.
        """
        self._at_once = True
        try:
            if self.asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_again, self.asked = self.asked, True
        if self._at_once or is_again:
            self._handlers[number](number, frame)
