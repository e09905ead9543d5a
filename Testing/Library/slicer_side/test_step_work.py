"""Work that a panel does piece by piece."""

from __future__ import annotations

import time
from typing import Any

import pytest

from HybridMIMLib.errors import RunError
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED, STOPPED
from HybridMIMLib.slicer_side.step_work import StepWork
from HybridMIMLib.slicer_side.steps import Step, Steps


class FakeNode:
    """Knows whether it is in a scene."""

    scene: object = "scene"

    def GetName(self) -> str:  # noqa: N802
        return "Liver"

    def GetScene(self) -> object:  # noqa: N802
        return self.scene


def pieces(count: int, seconds: float = 0.0, closed: list[int] | None = None) -> Steps[str]:
    done = 0
    try:
        for done in range(count):
            time.sleep(seconds)
            yield Step(done / count, f"piece {done}")
    finally:
        if closed is not None:
            closed.append(done)
    return f"{count} pieces"


def test_it_is_done_bit_by_bit_and_tells_how_far_it_is() -> None:
    work = StepWork(pieces(20, 0.005), lambda text: f"Made {text}.")
    told = []
    while work.update():
        told.append((work.progress.fraction, work.progress.describe()))
    assert work.state == FINISHED and work.message == "Made 20 pieces." and work.value == "20 pieces"
    # Some pieces a look: neither all at once nor one by one.
    assert 2 <= len(told) <= 10
    assert [one for one, _ in told] == sorted(one for one, _ in told if one is not None)
    assert all(text.startswith("piece ") for _, text in told)


@pytest.mark.parametrize("how", ["cancel", "kill"])
def test_stopped_it_takes_back_what_it_did(how: str) -> None:
    closed: list[int] = []
    work = StepWork(pieces(1000, 0.03, closed), str)
    assert work.update()
    getattr(work, how)()
    assert work.state == STOPPED and work.message == "Stopped." and len(closed) == 1
    assert not work.update() and work.value is None


def test_it_ends_when_what_it_needs_has_gone() -> None:
    closed: list[int] = []
    node: Any = FakeNode()
    work = StepWork(pieces(1000, 0.03, closed), str, [FakeNode(), node])
    assert work.update()
    node.scene = None
    assert not work.update()
    assert work.state == FAILED and work.message.startswith("Liver was removed from the scene") and len(closed) == 1


def test_errors_are_its_message_and_defects_are_raised_once() -> None:
    def fails(error: Exception) -> Steps[None]:
        yield Step(0.0, "beginning")
        raise error

    work = StepWork(fails(RunError("it is gone", cure="Get it.")), str)
    assert not work.update() and work.state == FAILED and work.message == "it is gone. Get it."
    work = StepWork(fails(KeyError("x")), str)
    with pytest.raises(KeyError):
        work.update()
    assert work.state == FAILED and "Unexpected error: KeyError" in work.message
    assert not work.update()


def test_what_goes_wrong_with_the_result_is_a_failure_too() -> None:
    def done(text: str) -> str:
        raise RuntimeError(text)

    work = StepWork(pieces(1), done)
    with pytest.raises(RuntimeError):
        work.update()
    assert work.ended and work.state == FAILED
