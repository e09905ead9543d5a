"""What a panel knows of a run: the events of its log, taken in one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from HybridMIMLib.events import Event, duration

PHASES = {
    "check scans": "Checking scans",
    "prepare scans": "Preparing scans",
    "pretrain": "Pre-training",
    "finetune": "Fine-tuning",
    "segment": "Segmenting",
    "rank": "Ranking scans",
    "estimate": "Trying a few steps",
}

_IN_A_TERMINAL = {
    " with --output, and run the command again": ", then start again",
    " with --output": "",
    " (--config)": "",
    "another --output": "another output folder",
}
"""Words of cures that help nobody who works in a window, and what they mean there."""


LOSS = "loss: "
"""How the name of a loss begins: one may be called dice, and a score too; one should fall, the other rise."""


@dataclass
class Value:
    """A loss or a metric: what it was first, and what it is now."""

    first: float
    now: float


@dataclass
class RunProgress:
    """Where a run stands.

    A log that was damaged may hold anything: what is not a number, or not text, is passed over.

    Attributes:
        phase: check scans, prepare scans, pretrain, finetune, segment …; empty before the first.
        step, steps: how far, of how many, in this phase.
        share: of the step that is at work, what is done of it; 0 where steps are too short to tell.
        in_parts: whether this phase tells of shares of its steps.
        seconds_left: until the end of the phase, or None while unknown.
        to_come: the trainings after this phase, each with its steps.
        is_training: whether this phase is one that was announced.
        memory: bytes in use, by the names of :mod:`HybridMIMLib.events`; empty while unknown.
        values: losses ("loss: dice") and metrics ("validation Liver") of this phase, by name.
        lines: messages, in their order; warnings begin with "warning: ".
        warnings: the messages that the user should act on.
        outcome: finished, stopped or failed, once the log says so; what the log says last counts.
        message: of the end.
        called: what texts of the log are to be called for the user, a temporary file for example.
    """

    phase: str = ""
    step: int = 0
    steps: int = 0
    share: float = 0.0
    in_parts: bool = False
    seconds_left: float | None = None
    to_come: list[tuple[str, float]] = field(default_factory=list)
    is_training: bool = False
    memory: dict[str, int] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    outcome: str = ""
    message: str = ""
    called: dict[str, str] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """Take in one event."""
        kind = event.get("kind")
        if kind == "plan":
            self._take_plan(event.get("phases"))
        elif kind in ("phase", "progress"):
            self._take_progress(event)
        elif kind == "message" and event.get("message"):
            self._take_message(self.for_user(str(event["message"])), event.get("level") == "warning")
        elif kind == "end":
            self.outcome, self.message = str(event.get("outcome", "")), self.for_user(str(event.get("message", "")))

    def for_user(self, text: str) -> str:
        """A text with the names that the user knows, and without options of commands."""
        for name, called in {**_IN_A_TERMINAL, **self.called}.items():
            text = text.replace(name, called)
        return text

    @property
    def fraction(self) -> float | None:
        """Share of this phase that is done, or None while nobody can say."""
        if self.steps < 2 and not self.in_parts:
            # One single step of which nobody tells more is either not done or over: a bar would stand still.
            return None
        return min(max((self.step + self.share) / max(self.steps, 1), 0.0), 1.0)

    @property
    def seconds_left_in_all(self) -> float | None:
        """Until the end of the last training that is to come, if its steps take as long as those of this one.

        None while unknown, and where nothing is to come.
        """
        left = self.steps - self.step - self.share
        # The steps of what prepares a training are others than its own.
        if self.seconds_left is None or not self.is_training or not self.to_come or left <= 0:
            return None
        return self.seconds_left * (1 + sum(steps for _, steps in self.to_come) / left)

    def describe(self) -> str:
        """One line: phase, step, time left."""
        if not self.phase:
            return "Starting"
        parts = [PHASES.get(self.phase, self.phase)]
        if self.steps > 1:
            parts.append(f"step {self.step} of {self.steps}")
        if self.seconds_left is not None and self.step < self.steps:
            parts.append(f"{duration(self.seconds_left)} left")
        return ", ".join(parts)

    def _take_progress(self, event: Event) -> None:
        phase, step, steps = event.get("phase"), number(event.get("step")), number(event.get("steps"))
        if not isinstance(phase, str) or step is None or steps is None:
            return
        if phase != self.phase:
            self.values, self.in_parts = {}, False
        if event.get("kind") == "phase":
            self._begin(phase)
        # A run that is continued begins its phases anew and has not ended yet.
        self.phase, self.step, self.steps, self.outcome = phase, int(step), int(steps), ""
        self.share = step - int(step)
        self.in_parts = self.in_parts or self.share > 0
        self.seconds_left = number(event.get("seconds_left"))
        memory = event.get("memory")
        if isinstance(memory, dict):
            self.memory = {str(name): int(size) for name, one in memory.items() if (size := number(one)) is not None}
        for name, value in values_of(event):
            self._take_value(name, value)

    def _begin(self, phase: str) -> None:
        """What was announced to come before this phase has been left out."""
        names = [name for name, _ in self.to_come]
        self.is_training = phase in names
        if self.is_training:
            self.to_come = self.to_come[names.index(phase) + 1 :]

    def _take_plan(self, phases: Any) -> None:
        pairs = [one for one in phases if isinstance(one, list) and len(one) == 2] if isinstance(phases, list) else []
        self.to_come = [(str(name), steps) for name, count in pairs if (steps := number(count)) is not None]

    def _take_value(self, name: str, value: float) -> None:
        if name in self.values:
            self.values[name].now = value
        else:
            self.values[name] = Value(value, value)

    def _take_message(self, text: str, is_warning: bool) -> None:
        if is_warning:
            self.warnings.append(text)
        self.lines.append(f"warning: {text}" if is_warning else text)


def values_of(event: Event) -> Iterator[tuple[str, float]]:
    """Losses ("loss: dice") and metrics ("validation Liver") of an event; what is not a number is passed over."""
    for kind, prefix in (("losses", LOSS), ("metrics", "")):
        values = event.get(kind)
        for name, one in values.items() if isinstance(values, dict) else ():
            value = number(one)
            if value is not None:
                yield f"{prefix}{name}", value


def number(value: Any) -> float | None:
    """A number of an event, or None where there is none."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        # A whole number of hundreds of digits.
        return None
