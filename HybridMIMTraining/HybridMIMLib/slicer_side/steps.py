"""Work that is done a piece at a time, so that the window stays alive.

A function that takes long is a generator: each ``next`` does a piece, and what it yields says how far it has come.
A window calls ``next`` from a timer, a script calls :func:`finish`. Pieces are meant to take less than 50 ms; what
needs no scene goes to a thread by :func:`in_thread`, which looks after it once a piece. Whoever closes the generator
early finds everything as it was before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

T = TypeVar("T")

_PAUSE = 0.005
"""Seconds. Where the application keeps Python's lock while it waits for events, threads get on in this time alone."""


@dataclass(frozen=True)
class Step:
    """How far it has come.

    Attributes:
        fraction: done of the whole, 0 to 1.
        text: what is being done, without a full stop.
    """

    fraction: float
    text: str


Steps: TypeAlias = Generator[Step, None, T]


def finish(steps: Steps[T], on_step: Callable[[Step], None] | None = None) -> T:
    """Do all the pieces one after another; returns what the generator returns.

    An exception in ``on_step`` closes the generator.
    """
    try:
        while True:
            step = next(steps)
            if on_step is not None:
                on_step(step)
    except StopIteration as end:
        return end.value
    finally:
        steps.close()


def in_thread(work: Callable[[], T], step: Step) -> Steps[T]:
    """Do in a thread what needs no MRML: reading files, numpy; yields ``step`` again and again meanwhile.

    Closed early, the thread goes on to its end, and nobody takes what it made.
    """
    future: Future[T] = Future()
    threading.Thread(target=_fulfil, args=(future, work), daemon=True, name="hybridmim").start()
    while not future.done():
        time.sleep(_PAUSE)
        if not future.done():
            yield step
    return future.result()


def _fulfil(future: Future[T], work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


def part(steps: Steps[T], begin: float, end: float) -> Steps[T]:
    """The same work as a part of a larger one: its fractions run from ``begin`` to ``end``."""
    while True:
        try:
            step = next(steps)
        except StopIteration as done:
            return done.value
        try:
            yield Step(begin + (end - begin) * step.fraction, step.text)
        except GeneratorExit:
            steps.close()
            raise
