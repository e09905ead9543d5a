"""Pieces of work (:mod:`~HybridMIMLib.slicer_side.steps`) that a panel follows as it follows any other job."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from HybridMIMLib.errors import HybridMIMError
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED, STOPPED, Work
from HybridMIMLib.slicer_side.segments import Node
from HybridMIMLib.slicer_side.steps import Step, Steps

T = TypeVar("T")

_BUDGET = 0.02
"""Seconds of a look after which no further piece is begun."""


class StepWork(Work, Generic[T]):
    """Does a few pieces at each look.

    Args:
        steps: the pieces; closed early, they leave everything as it was.
        done: takes what they return, and says what to tell the user.
        needs: nodes; when one of them leaves the scene, the work is over.

    Attributes:
        value: what the pieces returned, once the state is finished.
    """

    def __init__(self, steps: Steps[T], done: Callable[[T], str], needs: Sequence[Node] = ()) -> None:
        super().__init__(Path())
        self.value: T | None = None
        self._steps, self._done, self._needs = steps, done, needs
        self._tell(Step(0.0, "Starting"))

    def update(self) -> bool:
        """Do some more; returns whether it goes on.

        Raises:
            Exception: a defect of ours, once; the work has failed then.
        """
        end = time.monotonic() + _BUDGET
        while not self.ended:
            self._advance()
            if time.monotonic() > end:
                break
        return not self.ended

    def cancel(self) -> None:
        """End it: between two pieces that can be done at once."""
        if not self.ended:
            self._steps.close()
            self.state, self.message = STOPPED, "Stopped."

    kill = cancel

    def _advance(self) -> None:
        gone = next((node.GetName() for node in self._needs if node.GetScene() is None), None)
        if gone is not None:
            self._fail(f"{gone} was removed from the scene, so this was stopped. Load it again, then try again.")
            return
        try:
            self._do_next()
        except HybridMIMError as error:
            self._fail(str(error))
        except Exception as error:
            # A defect of ours; it is over all the same, and is not tried again at the next look.
            self._fail(f"Unexpected error: {type(error).__name__}: {error}")
            raise

    def _do_next(self) -> None:
        try:
            step = next(self._steps)
        except StopIteration as end:
            self.value = end.value
            self.message = self._done(end.value)
            self.state = FINISHED
        else:
            self._tell(step)

    def _fail(self, message: str) -> None:
        self._steps.close()
        self.state, self.message = FAILED, message

    def _tell(self, step: Step) -> None:
        self.progress.take({"kind": "progress", "phase": step.text, "step": step.fraction, "steps": 1})
