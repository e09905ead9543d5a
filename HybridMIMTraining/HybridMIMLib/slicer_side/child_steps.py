"""A short job for a process of its own, waited for piece by piece (:mod:`~HybridMIMLib.slicer_side.steps`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from HybridMIMLib.events import EventReader
from HybridMIMLib.files import write_json
from HybridMIMLib.slicer_side.child import Child, python_executable
from HybridMIMLib.slicer_side.job_folder import JobFolder
from HybridMIMLib.slicer_side.jobs import FINISHED, LOG, Job, error_of
from HybridMIMLib.slicer_side.steps import Step, Steps

T = TypeVar("T")

_PAUSE = 0.01


def with_folder(do: Callable[[Path], Steps[T]]) -> Steps[T]:
    """Do something with a temporary folder, which is removed beside the window, for it may hold a large scan."""
    work = JobFolder()
    try:
        result = yield from do(work.path)
    except BaseException:
        # Begun, and not waited for: there may be nobody left to wait.
        work.is_removed()
        raise
    while not work.is_removed():
        yield Step(1.0, "Tidying up")
    return result


def in_child(module: str, job: Mapping[str, Any], folder: Path, text: str) -> Steps[dict[str, Any]]:
    """Have ``python -m MODULE JOB.json`` do a job; closed early, the process is ended.

    Args:
        module: writes ``result.json`` beside the job, prints an error as one line, tells events as runs do.
        job: for it.
        folder: for the files.
        text: what is being done, until the process says it itself.

    Returns:
        The result.

    Raises:
        RunError: the process failed, or cannot be started; the message has the cause and the cure.
        DiskError: the job cannot be written.
    """
    write_json(folder / "job.json", job)
    reader = EventReader(folder / "events.jsonl", from_end=True)
    command = [python_executable(), "-m", module, str(folder / "job.json")]
    work = Job(folder, Child(command, folder / LOG), reader)
    try:
        while work.update():
            time.sleep(_PAUSE)
            said = work.progress.describe() if work.progress.phase else text
            yield Step(work.progress.fraction or 0.0, said)
    finally:
        work.kill()
    if work.state != FINISHED:
        raise error_of(work.message)
    return work.result
