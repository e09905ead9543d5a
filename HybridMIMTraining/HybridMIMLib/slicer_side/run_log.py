"""What the event log of a run tells for a list of runs: how far it is, its best score, how it ended.

A log may have a hundred thousand lines, and a list hundreds of logs. Each is read once, and later what was added; of
the many lines that tell of a step, those that another takes the place of are not even parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from HybridMIMLib.slicer_side.progress import RunProgress

SCORE = "validation mean"
"""The metric by which a fine-tuning keeps its best weights: the mean Dice of the validation scans."""

_BLOCK = 1 << 20
_BEGIN = re.compile(rb'\{"time": ([0-9.]+), "kind": "(\w+)"')
_PAUSE = 3600.0
"""Seconds. Who says nothing for so long was not at work."""


class RunLog:
    """Reads ``events.jsonl``, whatever is in it.

    Args:
        file: the log; it need not be there.

    Attributes:
        progress: phase, step, steps, and how the run ended if it has.
        dice: the best validation score, or None.
        seconds: of work, without the pauses between one attempt and the next.
        last: when it told something last, in seconds since 1970; 0 before.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._forget()

    def read(self) -> None:
        """Take in what was added.

        Raises:
            OSError: the log is there and cannot be read.
        """
        try:
            with open(self._file, "rb") as handle:
                if handle.seek(0, 2) < self._offset:
                    # Another run has taken its place.
                    self._forget()
                handle.seek(self._offset)
                while lines := list(self._lines(handle.read(_BLOCK))):
                    self._take_all(lines)
                    handle.seek(self._offset)
        except FileNotFoundError:
            self._forget()

    def _forget(self) -> None:
        self._offset, self._is_paused = 0, True
        self.progress = RunProgress()
        self.dice: float | None = None
        self.seconds, self.last = 0.0, 0.0

    def _lines(self, block: bytes) -> Iterator[bytes]:
        """The whole lines of a block; of one that is longer than a block nothing is believed."""
        end = block.rfind(b"\n") + 1
        if not end and len(block) == _BLOCK:
            self._offset += len(block)
            yield b""
            return
        self._offset += end
        yield from block[:end].splitlines()

    def _take_all(self, lines: list[bytes]) -> None:
        step = b""
        for line in lines:
            begin = _BEGIN.match(line)
            kind = begin.group(2) if begin else b""
            if begin:
                self._take_time(begin.group(1), kind)
            if kind == b"progress" and b'"metrics"' not in line:
                step = line
            elif kind not in (b"message", b"case", b"cases"):
                for one in (step, line):
                    self._take(one)
                step = b""
        self._take(step)

    def _take_time(self, text: bytes, kind: bytes) -> None:
        try:
            now = float(text)
        except ValueError:
            return
        passed = now - self.last
        if not self._is_paused and 0 < passed < _PAUSE:
            self.seconds += passed
        self.last, self._is_paused = now, kind == b"end"

    def _take(self, line: bytes) -> None:
        if not line:
            return
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(event, dict):
            return
        self.progress.take(event)
        metrics = event.get("metrics")
        score = metrics.get(SCORE) if isinstance(metrics, dict) else None
        if isinstance(score, (int, float)) and not isinstance(score, bool) and score == score:
            self.dice = max(score, self.dice or 0.0)
