"""The losses and metrics of a run over its steps, read from its log a little at a time, as many as a plot can show.

    >>> curves = RunCurves(folder)                                                             # doctest: +SKIP
    >>> while curves.read():                             # at each look of a window, or all at once
    ...     pass
    >>> curves.series["loss: reconstruction"].points()                                         # doctest: +SKIP
    ([1.0, 2.0, …], [0.93, 0.91, …])

A window calls :meth:`RunCurves.read` from a timer: each call takes a few milliseconds, however long the log is.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from pathlib import Path

from HybridMIMLib.events import Event, EventReader
from HybridMIMLib.slicer_side.progress import LOSS, PHASES, number, values_of

LOSSES, DICE, HEADS, OTHERS = "losses", "dice", "heads", "others"
"""What curves belong together in one chart."""

_BUCKETS = 499
"""Of a series; each gives two points at most, and the ends of the series two more."""

_EVENTS_PER_LOOK_AT_THE_CLOCK = 20


class Series:
    """A number over the steps, thinned so that its lowest and highest points stay.

    Points are kept in buckets of equally many, of which each remembers its lowest and its highest; where there are
    too many buckets, two become one. What is kept does not grow, and a point costs the same however many there were.

    Attributes:
        phase: pretrain, finetune …
    """

    def __init__(self, phase: str = "") -> None:
        self.phase = phase
        self._buckets: list[_Bucket] = []
        self._size = 1
        self._last: tuple[float, float] | None = None
        self._first: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.points()[0])

    @property
    def last(self) -> tuple[float, float] | None:
        """Step and value of the newest point."""
        return self._last

    def add(self, step: float, value: float) -> None:
        """Take in a point; where the steps go back, as in a run that goes on, what was there before is forgotten."""
        if self._last is not None and step <= self._last[0]:
            self.cut(step)
        if self._first is None:
            self._first = (step, value)
        self._last = (step, value)
        if self._buckets and self._buckets[-1].count < self._size:
            self._buckets[-1].add(step, value)
            return
        self._buckets.append(_Bucket(step, value))
        if len(self._buckets) > _BUCKETS:
            self._merge()

    def cut(self, step: float) -> None:
        """Forget what is at a step and behind it."""
        while self._buckets and not self._buckets[-1].cut(step):
            self._buckets.pop()
        self._last = self._buckets[-1].points()[-1] if self._buckets else None
        self._first = self._first if self._buckets else None

    def points(self) -> tuple[list[float], list[float]]:
        """Steps, which rise, and the values there."""
        found = [point for bucket in self._buckets for point in bucket.points()]
        if self._first is not None and found[0] != self._first:
            found.insert(0, self._first)
        if self._last is not None and found[-1] != self._last:
            found.append(self._last)
        return [step for step, _ in found], [value for _, value in found]

    def _merge(self) -> None:
        pairs = zip(self._buckets[::2], [*self._buckets[1::2], None])
        self._buckets = [first.joined(second) for first, second in pairs]
        self._size *= 2


class _Bucket:
    """Some points after each other, of which the lowest and the highest are known."""

    __slots__ = ("count", "high", "low")

    def __init__(self, step: float, value: float) -> None:
        self.count = 1
        self.low = self.high = (step, value)

    def add(self, step: float, value: float) -> None:
        self.count += 1
        if value < self.low[1]:
            self.low = (step, value)
        elif value > self.high[1]:
            self.high = (step, value)

    def joined(self, other: _Bucket | None) -> _Bucket:
        """Both in one."""
        if other is not None:
            self.count += other.count
            self.low = min(self.low, other.low, key=_value)
            self.high = max(self.high, other.high, key=_value)
        return self

    def cut(self, step: float) -> bool:
        """Forget what is at a step and behind it; returns whether anything is left."""
        left = [point for point in (self.low, self.high) if point[0] < step]
        if left:
            self.low, self.high = left[0], left[-1]
        return bool(left)

    def points(self) -> list[tuple[float, float]]:
        return sorted({self.low, self.high})


class RunCurves:
    """The curves of a run, kept up to date.

    Args:
        path: run folder; its ``events.jsonl`` need not be there yet, may hold damaged lines, and may be cut short or
            replaced while it is read.

    Attributes:
        series: by name, as in :mod:`~HybridMIMLib.slicer_side.progress`: ``"loss: dice"``, ``"validation mean"`` …;
            where two phases have the same, the later one's is called ``"loss: dice (Fine-tuning)"``.
        changes: counts up whenever a point came or went.
        events: how many were read.
    """

    def __init__(self, path: Path) -> None:
        self.series: dict[str, Series] = {}
        self.changes = self.events = 0
        self._reader = EventReader(path / "events.jsonl")
        self._beginnings = 0

    def read(self, seconds: float = 0.02) -> bool:
        """Take in what is new in the log.

        Args:
            seconds: after which it stops for this time.

        Returns:
            Whether there is more to be read at once.
        """
        end, count = time.monotonic() + seconds, 0
        # A network drive that is gone for a moment is there again at the next look.
        with suppress(OSError):
            for event in self._reader.read():
                self._look_whether_it_began_anew()
                self._take(event)
                count += 1
                if count % _EVENTS_PER_LOOK_AT_THE_CLOCK == 0 and time.monotonic() > end:
                    return True
            self._look_whether_it_began_anew()
        return False

    def of(self, group: str) -> dict[str, Series]:
        """The series of a group: losses, dice, heads or others."""
        return {name: one for name, one in self.series.items() if group_of(name) == group}

    def _look_whether_it_began_anew(self) -> None:
        if self._reader.beginnings != self._beginnings:
            self._beginnings = self._reader.beginnings
            self.series, self.events = {}, 0
            self.changes += 1

    def _take(self, event: Event) -> None:
        self.events += 1
        phase, step = event.get("phase"), number(event.get("step"))
        if not isinstance(phase, str) or step is None:
            return
        if event.get("kind") == "phase":
            # What was done after the last checkpoint is done again.
            self._cut(phase, math.nextafter(step, math.inf))
        elif event.get("kind") == "progress":
            for name, value in values_of(event):
                self._series(phase, name).add(step, value)
                self.changes += 1

    def _cut(self, phase: str, step: float) -> None:
        for one in self.series.values():
            if one.phase == phase:
                one.cut(step)
                self.changes += 1

    def _series(self, phase: str, name: str) -> Series:
        found = self.series.setdefault(name, Series(phase))
        if found.phase != phase:
            found = self.series.setdefault(f"{name} ({PHASES.get(phase, phase)})", Series(phase))
        return found


def group_of(name: str) -> str:
    """Which chart a series belongs to."""
    name = name.partition(" (")[0]
    if name.startswith(LOSS):
        return LOSSES
    if name.startswith("validation "):
        return DICE
    return HEADS if name.endswith(("_accuracy", "_chance")) else OTHERS


def _value(point: tuple[float, float]) -> float:
    return point[1]
