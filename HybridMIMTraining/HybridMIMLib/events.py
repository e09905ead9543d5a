"""What a long job tells while it works: one JSON object a line in ``events.jsonl``.

The terminal's bar and the panels read nothing else. Fields of an event, each only where it has something to say:

=============  ==========================================================================================
time           seconds since 1970
kind           ``plan``, ``phase`` (one begins), ``progress``, ``message``, ``cases``, ``case``, ``end``
phase          prepare, pretrain, finetune, segment …
step, steps    how far, of how many; half way through the second of three long steps is 1.5 of 3
seconds_left   until the end of this phase, estimated
losses         name → value
metrics        name → value; an accuracy of a head, ``NAME_accuracy``, beside its ``NAME_chance``
memory         now and then, in bytes: ``process``, and of a GPU ``gpu`` (of the run), ``gpu_used`` (of all programs),
               ``gpu_total``
phases         of ``plan``: pairs of name and steps, the trainings to come in their order; a later plan replaces it
message        a sentence; ``level`` is ``info`` or ``warning``
outcome        of ``end``: ``finished``, ``stopped``, ``failed``
cases          of ``cases``, which lists all: ``name``, ``scan`` (file) and ``state`` of each
case, state    of ``case``: the name, and :data:`WAITING`, :data:`WORKING`, :data:`DONE`, :data:`SKIPPED` (it cannot
               be used) or :data:`FAILED` (it could be, elsewhere or later); ``message`` says why
=============  ==========================================================================================
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from HybridMIMLib.files import disk_errors, json_text

Event = dict[str, Any]

WAITING, WORKING, DONE, SKIPPED, FAILED = "waiting", "working", "done", "skipped", "failed"


class EventLog:
    """Appends events to a file; without a file it keeps nothing (for use as a library).

    Args:
        path: ``events.jsonl`` of a run folder, or None.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self.warnings: list[str] = []

    def write(self, kind: str, **content: Any) -> None:
        """Append one event.

        Raises:
            DiskError: the file could not be written.
        """
        event: Event = {"time": round(time.time(), 3), "kind": kind, **content}
        if self.path is not None:
            line = json_text(event) + "\n"
            with self._lock, disk_errors(self.path), open(self.path, "ab+") as handle:
                # Names of files that are no UTF-8 come as lone surrogates, for which JSON has \udc.. too.
                handle.write(_end_torn_line(handle) + line.encode("utf-8", "backslashreplace"))

    def message(self, text: str) -> None:
        """Say something that is good to know."""
        self.write("message", message=text, level="info")

    def warning(self, text: str) -> None:
        """Say something that the user should act on; it is listed again at the end."""
        self.warnings.append(text)
        self.write("message", message=text, level="warning")

    def cases(self, listed: Iterable[tuple[str, str, str]]) -> None:
        """List all cases that are to be worked on, those that were done before too: name, scan, state of each."""
        self.write("cases", cases=[{"name": name, "scan": scan, "state": state} for name, scan, state in listed])

    def case(self, name: str, state: str, reason: str = "") -> None:
        """Tell what has become of a case."""
        self.write("case", case=name, state=state, **({"message": reason} if reason else {}))

    def plan(self, phases: Iterable[tuple[str, int]]) -> None:
        """Tell which trainings are to come, each with its steps, so that the time of the whole can be estimated."""
        self.write("plan", phases=[list(one) for one in phases])

    def phase(self, name: str, steps: int, done: int = 0) -> Phase:
        """Begin a phase of ``steps`` steps, of which ``done`` were done by an earlier, interrupted run."""
        return Phase(self, name, steps, done)


class Phase:
    """Progress of one phase; estimates the time left and limits how often it is written.

    The longer a phase lasts, the rarer: a study of days would fill its log with some 40 MB a day.
    """

    SECONDS_BETWEEN = 0.25
    RARER_AFTER, MOST_TIMES_RARER = 250.0, 8.0
    """Seconds that a phase has lasted until the time between two begins to grow with it, and how far that goes."""

    def __init__(self, log: EventLog, name: str, steps: int, done: int) -> None:
        self._log, self.name, self.steps = log, name, steps
        self._first = self._last_step = done
        self._began, self._last = time.monotonic(), 0.0
        log.write("phase", phase=name, step=done, steps=steps)

    def due(self, step: float) -> bool:
        """Whether a progress event would be written now; ask before reading losses back from a device."""
        now = time.monotonic()
        rarer = min(max((now - self._began) / self.RARER_AFTER, 1.0), self.MOST_TIMES_RARER)
        return step >= self.steps or now - self._last >= self.SECONDS_BETWEEN * rarer

    def progress(
        self,
        step: float,
        losses: Mapping[str, float] | None = None,
        metrics: Mapping[str, float] | None = None,
        memory: Mapping[str, int] | None = None,
        always: bool = False,
    ) -> None:
        """Report that ``step`` steps are done, which need not be a whole number where a step takes long.

        Events with metrics, and those that ``always`` matter, are always written, others when due.
        """
        if metrics is None and not always and not self.due(step):
            return
        self._last = time.monotonic()
        content: Event = {"phase": self.name, "step": step, "steps": self.steps}
        if step > self._first:
            pace = (self._last - self._began) / (step - self._first)
            content["seconds_left"] = round(pace * (self.steps - step), 1)
        if losses:
            content["losses"] = {name: float(value) for name, value in losses.items()}
        if metrics:
            content["metrics"] = {name: float(value) for name, value in metrics.items()}
        if memory:
            content["memory"] = dict(memory)
        self._log.write("progress", **content)


def _end_torn_line(handle: BinaryIO) -> bytes:
    """What has to come before the next line: a process that was killed may have left half a line."""
    if handle.seek(0, os.SEEK_END) == 0:
        return b""
    handle.seek(-1, os.SEEK_END)
    return b"" if handle.read(1) == b"\n" else b"\n"


class EventReader:
    """Reads the events that were added to a file since the last call; a half-written last line waits.

    A file that was cut short, or replaced by another, is read anew from its beginning.

    Attributes:
        beginnings: how often that was.
    """

    def __init__(self, path: Path, from_end: bool = False) -> None:
        self.path = path
        self.beginnings = 0
        self._offset = path.stat().st_size if from_end and path.exists() else 0
        self._file: tuple[int, int] | None = None

    def read(self) -> Iterator[Event]:
        """The new events. A line that is not JSON (a torn write) is passed over.

        Whoever takes some of them and no more gets the others at the next call.
        """
        if not self.path.exists():
            return
        with open(self.path, "rb") as handle:
            self._see_whether_it_is_another(os.fstat(handle.fileno()))
            handle.seek(self._offset)
            for line in handle:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                try:
                    event = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(event, dict):
                    yield event

    def _see_whether_it_is_another(self, about: os.stat_result) -> None:
        file = (about.st_dev, about.st_ino)
        if about.st_size < self._offset or (self._file is not None and file != self._file):
            self._offset = 0
            self.beginnings += 1
        self._file = file


def duration(seconds: float) -> str:
    """``m:ss``, or ``h:mm:ss`` from an hour on."""
    moment = time.gmtime(max(round(seconds), 0))
    hours = int(max(round(seconds), 0) // 3600)
    return f"{hours}:{moment.tm_min:02}:{moment.tm_sec:02}" if hours else f"{moment.tm_min}:{moment.tm_sec:02}"
