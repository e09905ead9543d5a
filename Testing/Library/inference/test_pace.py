"""How long a scan will take is told once, after a few windows, and only where it is worth it."""

from __future__ import annotations

import pytest

from HybridMIMLib.inference import pace
from HybridMIMLib.inference.pace import Pace


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace, "time", made)
    return made


def test_what_is_left_follows_from_the_second_to_last_windows(clock: Clock) -> None:
    """The first batch, which is slow, does not count; what comes afterwards does."""
    told: list[str] = []
    waited: list[float] = []
    watched: list[tuple[int, int]] = []
    one = Pace("12 windows", 7.0, lambda: waited.append(clock.now), told.append, lambda *n: watched.append(n))
    clock.now += 60
    one.watch(2, 12)
    assert not told
    clock.now += 6
    one.watch(4, 12)  # three seconds a window, eight to go, seven afterwards
    assert told == ["12 windows: about 0:31"] and len(waited) == 2
    clock.now += 100
    one.watch(12, 12)
    assert len(told) == 1 and len(waited) == 2, "a device is waited for only to measure"
    assert watched == [(2, 12), (4, 12), (12, 12)]


def test_what_is_done_elsewhere_does_not_count(clock: Clock) -> None:
    told: list[str] = []
    one = Pace("12 windows", 0.0, lambda: None, told.append, None)
    one.watch(2, 12)
    with one.not_counted():
        clock.now += 1000
    clock.now += 6
    one.watch(4, 12)
    assert told == ["12 windows: about 0:24"]


def test_what_is_quick_is_not_told(clock: Clock) -> None:
    told: list[str] = []
    one = Pace("3 windows", 1.0, lambda: None, told.append, None)
    for done in (1, 2, 3):
        clock.now += 3.9
        one.watch(done, 3)
    assert not told


def test_a_single_batch_tells_nothing(clock: Clock) -> None:
    told: list[str] = []
    Pace("4 windows", 100.0, lambda: None, told.append, None).watch(4, 4)
    assert not told
