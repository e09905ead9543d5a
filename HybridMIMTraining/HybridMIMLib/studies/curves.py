"""What the events of a run tell afterwards: how long a training took, and how good it was when."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from HybridMIMLib.events import Event, EventReader

_VALIDATION = "validation "


@dataclass(frozen=True)
class Point:
    """One validation.

    Attributes:
        step: after which it was.
        seconds: of training up to there, earlier validations included and this one left out.
        dice: mean over the classes.
    """

    step: int
    seconds: float
    dice: float


@dataclass(frozen=True)
class Trace:
    """What is known of a training.

    Attributes:
        points: its validations, by step.
        seconds: from its first step to its last, pauses between two calls left out; validations are included.
        step_seconds: of one step.
        validation_seconds: of one validation; 0 without any.
    """

    points: tuple[Point, ...]
    seconds: float
    step_seconds: float
    validation_seconds: float


def trace(file: Path, phase: str) -> Trace:
    """The trace of a run from its ``events.jsonl``; ``phase`` is ``"pretrain"`` or ``"finetune"``."""
    return _Tracer(phase).follow(EventReader(file).read())


class _Tracer:
    """Follows events; what was done after the last checkpoint is done again when a run goes on, and counts once."""

    def __init__(self, phase: str) -> None:
        self._phase = phase
        self._at: dict[float, float] = {0: 0.0}
        self._points: dict[int, Point] = {}
        self._validating: list[float] = []
        self._steps = self._training = 0.0

    def follow(self, events: Iterable[Event]) -> Trace:
        began, offset, last, last_step = 0.0, 0.0, 0.0, 0.0
        for event in events:
            if event.get("phase") != self._phase:
                continue
            step, time = float(event["step"]), float(event["time"])
            if event["kind"] == "phase":
                offset = max((t for s, t in self._at.items() if s <= step), default=0.0)
                began, last, last_step = time, time, step
                continue
            seconds = time - began + offset
            if "metrics" in event:
                self._validate(event, step, last - began + offset)
                # A step that told its losses just before has the validation between the two events.
                if last_step == step:
                    self._validating.append(time - last)
            else:
                self._training += time - last
                self._steps += step - last_step
            self._at = {s: t for s, t in self._at.items() if s < step} | {step: seconds}
            last, last_step = time, step
        pace = self._training / self._steps if self._steps else 0.0
        points = tuple(self._points[step] for step in sorted(self._points))
        return Trace(points, max(self._at.values()), pace, _mean(self._validating))

    def _validate(self, event: Event, step: float, seconds: float) -> None:
        dice = event["metrics"].get(f"{_VALIDATION}mean")
        self._points = {s: point for s, point in self._points.items() if s < step}
        if dice is not None:
            self._points[int(step)] = Point(int(step), round(seconds, 2), float(dice))
        elif any(name.startswith(_VALIDATION) for name in event["metrics"]):
            # No class could be measured.
            self._points[int(step)] = Point(int(step), round(seconds, 2), 0.0)


def best(points: Sequence[Point]) -> Point:
    """The best of them, the first of equals."""
    return max(points, key=lambda point: (point.dice, -point.step))


def reached(points: Sequence[Point], dice: float) -> Point | None:
    """The first that is at least as good."""
    return next((point for point in points if point.dice >= dice), None)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
