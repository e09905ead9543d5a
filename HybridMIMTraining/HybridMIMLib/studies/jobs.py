"""Jobs in processes of their own, several at once: what is finished is not done again, what fails stops no other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from HybridMIMLib.events import EventLog, EventReader, Phase
from HybridMIMLib.files import disk_errors, write_json
from HybridMIMLib.runs import ask_to_stop

CELL = "HybridMIMLib.studies.cell"
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_TO_END = 15.0
_KILLED = "its process was killed (memory may have run out)"


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        id: names its files.
        title: names it to people.
        spec: what :mod:`HybridMIMLib.studies.cell` takes.
        folder: where it works; its ``events.jsonl`` tells how far it is.
        seconds: that it will take, estimated.
        makes: the file whose existence says that it is done.
    """

    id: str
    title: str
    spec: Mapping[str, Any]
    folder: Path
    seconds: float
    makes: Path

    @property
    def is_done(self) -> bool:
        """Whether it was finished, now or earlier."""
        return self.makes.exists()


class Progress:
    """One bar over all jobs of a study, in seconds of work as they were estimated."""

    def __init__(self, events: EventLog, total: float, done: float) -> None:
        self._done = done
        self._phase: Phase = events.phase("study", max(round(total), 1), round(done))

    def finished(self, job: Job) -> None:
        """A job is done, or will not be."""
        self._done += job.seconds

    def at(self, shares: Iterable[tuple[Job, float]]) -> None:
        """Jobs at work, each with the share of it that is done."""
        now = self._done + sum(job.seconds * share for job, share in shares)
        self._phase.progress(min(round(now, 1), self._phase.steps))


class Process:
    """A job at work."""

    def __init__(self, job: Job, folder: Path, threads: int) -> None:
        self.job = job
        file, self._log = folder / f"{job.id}.json", folder / f"{job.id}.log"
        write_json(file, job.spec)
        self._events, self._share = EventReader(job.folder / "events.jsonl", from_end=True), 0.0
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        with disk_errors(self._log), open(self._log, "wb") as log:
            # A session of its own: Ctrl+C is for the study, which tells its jobs.
            self._child = subprocess.Popen(
                [sys.executable, "-m", CELL, str(file), str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
                start_new_session=os.name != "nt",
            )  # fmt: skip

    @property
    def has_ended(self) -> bool:
        """Whether it works no more."""
        return self._child.poll() is not None

    @property
    def failure(self) -> str:
        """Why it failed; empty if it did not."""
        code = self._child.returncode
        if code == 0 and self.job.is_done:
            return ""
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
        return last.removeprefix("error: ") or (_KILLED if code < 0 else f"it ended with code {code}")

    def share(self) -> float:
        """How much of it is done, as far as it tells: the last phase that has begun."""
        for event in self._events.read():
            if event.get("phase") in ("pretrain", "finetune") and event.get("steps"):
                self._share = min(event["step"] / event["steps"], 1.0)
        return self._share

    def stop(self) -> None:
        """Ask it to save the step that it is at, and end."""
        if os.name == "nt":
            # There a process cannot be sent a signal, only be killed.
            ask_to_stop(self.job.folder)
        else:
            self._child.terminate()

    def wait(self) -> None:
        """Wait until it has ended; after a while it is made to."""
        try:
            self._child.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


class Runner:
    """Runs jobs.

    Args:
        folder: gets a description and the output of each.
        at_once: how many.
        events: where failures are told.
    """

    def __init__(self, folder: Path, at_once: int, events: EventLog) -> None:
        self.folder, self.at_once, self.events = folder, at_once, events
        self.threads = max(cores() // at_once, 1)
        self.failures: dict[str, str] = {}

    def run(self, jobs: Iterable[Job], progress: Progress | None = None) -> None:
        """Run all that are not done; what failed is in ``failures``, by title."""
        waiting = [job for job in jobs if not job.is_done]
        at_work: list[Process] = []
        try:
            while waiting or at_work:
                while waiting and len(at_work) < self.at_once:
                    at_work.append(Process(waiting.pop(0), self.folder, self.threads))
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                for one in [process for process in at_work if process.has_ended]:
                    at_work.remove(one)
                    self._end(one, progress)
                if progress is not None:
                    progress.at([(one.job, one.share()) for one in at_work])
        finally:
            for one in at_work:
                one.stop()
            for one in at_work:
                one.wait()

    def _end(self, process: Process, progress: Progress | None) -> None:
        job = process.job
        if failure := process.failure:
            self.failures[job.title] = failure
            self.events.warning(f"skipped: {job.title} failed and is tried again at the next start: {failure}")
        else:
            self.failures.pop(job.title, None)
        if progress is not None:
            progress.finished(job)


def cores() -> int:
    """How many may be used: as the environment says, or all that this process may run on."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
