"""Work beside the GUI: a function in a thread of its own, looked at now and then.

    >>> work = Background(lambda: 6 * 7)
    >>> while not work.done:
    ...     pass
    >>> work.result()
    42

Such a function touches numbers and files, and never the scene: MRML belongs to the thread of the GUI.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

T = TypeVar("T")

_PAUSE = 0.01
"""Seconds at most. Where an application keeps Python's lock as it waits for events, threads get on in this time."""


class Background(Generic[T]):
    """A function at work in a thread, which ends with the process.

    Args:
        do: the function.
    """

    def __init__(self, do: Callable[[], T]) -> None:
        self._future: Future[T] = Future()
        threading.Thread(target=self._run, args=(do,), daemon=True, name="hybridmim").start()

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._future.done()

    def result(self) -> T:
        """What the function returned, or what it raised; waits for it."""
        return self._future.result()

    def wait(self) -> Iterator[None]:
        """Yield as long as it is at work, having given it a moment each time."""
        while not wait([self._future], _PAUSE).done:
            yield

    def _run(self, do: Callable[[], T]) -> None:
        try:
            self._future.set_result(do())
        except BaseException as error:
            self._future.set_exception(error)
