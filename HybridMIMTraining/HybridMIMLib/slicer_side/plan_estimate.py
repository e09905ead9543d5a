"""What a training will take, as told by a process that tried a few of its steps.

>>> job = EstimateJob({"labelled": "cases", "finetuning.steps": 100})                     # doctest: +SKIP
>>> job.wait()                                                                            # doctest: +SKIP
>>> job.message                                                                           # doctest: +SKIP
'About 7 min in all. Memory: 2.1 of 16.8 GB. Disk: 350 MB, of 120.3 GB that are free.'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from HybridMIMLib.errors import HybridMIMError, RunError
from HybridMIMLib.files import size_in_words
from HybridMIMLib.slicer_side.job_folder import JobFolder
from HybridMIMLib.slicer_side.jobs import Job, launch

COMMAND = "estimate"

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        stage: its name.
        steps: how many, and how long each takes.
        time, memory, disk: in words.
        details: what the time is made of, and what the disk holds.
    """

    stage: str
    steps: str
    time: str
    memory: str
    disk: str
    details: str

    @property
    def cells(self) -> tuple[str, ...]:
        """What stands in the columns."""
        return self.stage, self.steps, self.time, self.memory, self.disk


class EstimateJob(Job):
    """Tries a few steps; a :class:`~HybridMIMLib.slicer_side.jobs.Job` that leaves nothing behind.

    Args:
        options: of the training, as for ``train``.

    Attributes:
        rows: of the table, once it has finished.
        notes: what else there is to say, and warnings.

    Raises:
        HybridMIMError: the process cannot be started.
    """

    def __init__(self, options: Mapping[str, object]) -> None:
        self._temporary = JobFolder()
        folder = self._temporary.path
        try:
            process, events = launch(COMMAND, {"of": "train", **options}, folder)
        except HybridMIMError:
            self._temporary.remove()
            raise
        super().__init__(folder, process, events)
        self.rows: list[Row] = []
        self.notes: list[str] = []

    def _end(self) -> None:
        try:
            super()._end()
        finally:
            # There may be gigabytes in it, where the process was killed.
            self._temporary.is_removed()

    def _take_result(self) -> str:
        try:
            self.rows, self.notes = _rows(self.result), [str(one) for one in self.result["notes"]]
            return _in_all(self.result)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"what the trial said makes no sense ({error!r})", cure="Estimate once more.") from error


def time_in_words(seconds: float) -> str:
    """As exact as such a figure can be: ``40 s``, ``7 min``, ``2 h 10 min``, ``3 days 4 h``."""
    if seconds < _MINUTE:
        return f"{max(round(seconds), 1)} s"
    if seconds < _HOUR:
        return f"{round(seconds / _MINUTE)} min"
    if seconds < _DAY:
        minutes = round(seconds / _MINUTE)
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    hours = round(seconds / _HOUR)
    days = f"{hours // 24} day{'s' if hours >= 48 else ''}"
    return f"{days} {hours % 24} h" if hours % 24 else days


def _in_all(result: Mapping[str, Any]) -> str:
    gpu = ""
    if result["gpu_memory"]:
        gpu = f" Of the GPU: {_of(result['gpu_memory'], result['gpu_memory_total'])}."
    return (
        f"About {time_in_words(result['seconds'])} in all, on {result['device']}. "
        f"Memory: {_of(result['memory'], result['memory_total'])}.{gpu} "
        f"Disk: {size_in_words(result['disk'])}, of {size_in_words(result['free'])} that are free."
    )


def _of(some: float | None, whole: float | None) -> str:
    return f"{size_in_words(some)} of {size_in_words(whole)}" if whole else size_in_words(some)


def _rows(result: Mapping[str, Any]) -> list[Row]:
    return [_row(str(name), one) for name, one in result["stages"].items()]


def _row(name: str, one: Mapping[str, Any]) -> Row:
    networks = f"{one['networks']} × " if one["networks"] > 1 else ""
    parts = "\n".join(f"{part}: {time_in_words(seconds)}" for part, seconds in one["parts"].items() if seconds)
    disk = "\n".join(f"{part}: {size_in_words(count)}" for part, count in one["disk"].items() if count)
    tried = one["tried"]
    return Row(
        name.capitalize(),
        f"{networks}{one['steps']} × {_step(float(one['step_seconds']))}",
        time_in_words(one["seconds"]),
        size_in_words(one["gpu_memory"] or one["memory"]),
        size_in_words(sum(one["disk"].values())),
        f"{one['scans']} scans, {one['batch']} crops a step\nseen in {tried['steps']} steps on {tried['scans']} "
        f"scans\n\nTime\n{parts}\n\nDisk\n{disk}",
    )


def _step(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
