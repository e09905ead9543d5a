"""The progress bar of the terminal. It knows of a job what stands in ``events.jsonl``, and nothing else."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import TracebackType
from typing import TextIO

from HybridMIMLib.events import Event, EventReader, duration

_BAR = 24


class TerminalBar:
    """Follows an event log in a thread and draws it, as a context manager around the job.

    On a terminal one line is drawn over and over; elsewhere (a log, CI) a line is written at the start of each phase
    and at every tenth of it.

    Args:
        events: the file to follow; it need not exist yet.
        stream: where to draw.
    """

    def __init__(self, events: Path, stream: TextIO) -> None:
        self._reader = EventReader(events, from_end=True)
        self._stream, self._live = stream, stream.isatty()
        self._tenth = -1
        self._drawn = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> TerminalBar:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._drawn:
            self._stream.write("\n")
            self._drawn = False

    def _follow(self) -> None:
        while True:
            ending = self._stop.is_set()
            for event in self._reader.read():
                self._show(event)
            if ending:
                return
            self._stop.wait(0.1)

    def _show(self, event: Event) -> None:
        kind = event.get("kind")
        if kind == "message":
            mark = "warning: " if event.get("level") == "warning" else ""
            self._line(f"{mark}{event['message']}")
        elif kind == "phase":
            self._tenth = -1
            self._progress(event)
        elif kind == "progress":
            self._progress(event)

    def _progress(self, event: Event) -> None:
        text = describe_progress(event)
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r\x1b[K{text[:width]}")
            self._drawn = True
            if event["step"] >= event["steps"]:
                self._stream.write("\n")
                self._drawn = False
        else:
            tenth = int(10 * event["step"] // max(event["steps"], 1))
            if tenth == self._tenth and "metrics" not in event:
                return
            self._tenth = tenth
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def _line(self, text: str) -> None:
        self._stream.write(f"\r\x1b[K{text}\n" if self._live else f"{text}\n")
        self._stream.flush()


def describe_progress(event: Event) -> str:
    """One line for an event: phase, bar, step, time left, losses or metrics."""
    step, steps = event["step"], max(int(event["steps"]), 1)
    filled = int(_BAR * step // steps)
    parts = [f"{event['phase']:<14} [{'#' * filled}{'.' * (_BAR - filled)}] {int(step)}/{steps}"]
    if "seconds_left" in event and step < steps:
        parts.append(f"{duration(event['seconds_left'])} left")
    numbers = {**event.get("losses", {}), **event.get("metrics", {})}
    parts += [f"{name} {value:.3f}" for name, value in numbers.items() if value is not None]
    return "  ".join(parts)
