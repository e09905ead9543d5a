"""The jobs of the warm worker: taken in, done one after the other, answered.

One thread listens, so that cancel, status and quit work at once; another does the jobs.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Union

from HybridMIMLib.errors import HybridMIMError, SettingsError
from HybridMIMLib.worker_protocol import (
    MOST_BYTES,
    Cancel,
    Id,
    Load,
    Quit,
    Request,
    RequestError,
    Segment,
    Status,
    parse,
)  # fmt: skip

if TYPE_CHECKING:
    from HybridMIMLib.worker_tasks import Tasks

Send = Callable[[Mapping[str, Any]], None]

MOST_WAITING = 100
"""Jobs; more are refused."""
SECONDS_TO_END, SECONDS_TO_WRITE = 5.0, 60.0
"""How long a job may go on after it was told to end: to its next window, or until its file is written."""
_SECONDS_WITHOUT_JOB = 0.5
_SECONDS_BETWEEN_PROGRESS = 0.25
_NOTHING: dict[str, Any] = {"model": None, "device": None, "warm": False}


class Cancelled(Exception):
    """Ends a job that nobody wants any more."""


@dataclass
class Job:
    """A load or a segment, from when it was accepted until its last event; the voice of the task that does it."""

    request: Union[Load, Segment]
    send: Send
    cancelled: bool = False
    progress: dict[str, Any] = field(default_factory=dict)
    _sent: float = 0.0
    _began: float = 0.0

    def tell(self, event: str, **content: Any) -> None:
        """Send an event of this job."""
        self.send({"id": self.request.id, "event": event, **content})

    def phase(self, name: str) -> None:
        """See :class:`~HybridMIMLib.worker_tasks.Voice`."""
        self._check()
        self._began = time.monotonic()
        self._tell_progress({"phase": name})

    def windows(self, done: int, of: int) -> None:
        """See :class:`~HybridMIMLib.worker_tasks.Voice`."""
        self._check()
        now = time.monotonic()
        if now - self._sent >= _SECONDS_BETWEEN_PROGRESS or done >= of:
            left = (now - self._began) / max(done, 1) * (of - done)
            self._tell_progress({"phase": "segment", "done": done, "of": of, "seconds_left": round(left, 1)})

    def message(self, text: str, level: str = "info") -> None:
        """See :class:`~HybridMIMLib.worker_tasks.Voice`."""
        self._check()
        self.tell("message", message=text, level=level)

    def _check(self) -> None:
        if self.cancelled:
            raise Cancelled

    def _tell_progress(self, progress: dict[str, Any]) -> None:
        self.progress, self._sent = progress, time.monotonic()
        self.tell("progress", **progress)


class Worker:
    """Takes requests, does the jobs one after the other, and answers.

    Args:
        send: writes an answer; called from several threads.
        make_tasks: makes what does the work; called in the thread that works.
        idle_seconds: after so long without a job the device is freed.
    """

    def __init__(self, send: Send, make_tasks: Callable[[], Tasks], idle_seconds: float) -> None:
        self._send, self._make_tasks, self._idle_seconds = send, make_tasks, idle_seconds
        self._tasks: Tasks | None = None
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._working: Job | None = None
        self._state = dict(_NOTHING)
        self._quit: list[Id] = []
        self._ending = self._abandoned = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="jobs")

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def take(self, line: bytes | None) -> bool:
        """Take in one line (None: one that was too long); returns whether to go on listening."""
        if line is not None and not line.strip():
            return True
        try:
            if line is None:
                raise RequestError(f"a line is longer than {MOST_BYTES} bytes", cure="Write shorter requests.")
            return self._answer(parse(line))
        except RequestError as error:
            self._refuse(error.id, error)
        except Exception as error:
            # A defect of ours; the worker goes on.
            traceback.print_exc()
            self._refuse(None, _defect(error))
        return True

    def end(self) -> bool:
        """Cancel every job; returns whether the one at work came to an end in time."""
        with self._changed:
            self._ending = True
            while self._waiting:
                self._waiting.popleft().tell("cancelled")
            if self._working is not None:
                self._working.cancelled = True
            self._changed.notify_all()
        began = time.monotonic()
        while self._thread.is_alive() and time.monotonic() - began < self._patience():
            self._thread.join(0.05)
        with self._changed:
            self._abandoned = True
            if self._working is not None:
                self._working.tell("cancelled")
        for id_ in self._quit:
            self._send({"id": id_, "event": "done"})
        return not self._thread.is_alive()

    def _patience(self) -> float:
        job = self._working
        if job is None:
            # Torch may still be on its way.
            return _SECONDS_WITHOUT_JOB
        return SECONDS_TO_WRITE if job.progress.get("phase") == "write" else SECONDS_TO_END

    # --- listening ------------------------------------------------------------------------------------------

    def _answer(self, request: Request) -> bool:
        if isinstance(request, Quit):
            self._quit.append(request.id)
            return False
        with self._changed:
            if isinstance(request, (Load, Segment)):
                self._accept(request)
            elif isinstance(request, Cancel):
                self._cancel(request)
            else:
                self._tell_status(request)
        return True

    def _accept(self, request: Union[Load, Segment]) -> None:
        jobs = self._jobs()
        if any(job.request.id == request.id for job in jobs):
            # Without the id: it is that of a job that goes on.
            raise RequestError(
                f"a job of the id {request.id!r} waits or is at work", cure="Give each request an id of its own."
            )
        if len(self._waiting) >= MOST_WAITING:
            raise RequestError(f"{MOST_WAITING} jobs are waiting", cure="Ask again later.", id_=request.id)
        job = Job(request, self._send)
        job.tell("accepted", waiting=len(jobs))
        self._waiting.append(job)
        self._changed.notify_all()

    def _cancel(self, request: Cancel) -> None:
        job = next((job for job in self._jobs() if job.request.id == request.job), None)
        if job is None:
            raise RequestError(
                f"no job of the id {request.job!r} waits or is at work",
                cure="Nothing has to be done if it has ended.",
                id_=request.id,
            )
        was = "working" if job is self._working else "waiting"
        job.cancelled = True
        self._send({"id": request.id, "event": "done", "was": was})
        if was == "waiting":
            self._waiting.remove(job)
            job.tell("cancelled")

    def _tell_status(self, request: Status) -> None:
        job, working = self._working, None
        if job is not None:
            command = "load" if isinstance(job.request, Load) else "segment"
            working = {"id": job.request.id, "command": command, **job.progress}
        waiting = [one.request.id for one in self._waiting]
        about = {**self._state, "working": working, "waiting": waiting, "pid": os.getpid()}
        self._send({"id": request.id, "event": "done", **about})

    def _jobs(self) -> list[Job]:
        return [*([] if self._working is None else [self._working]), *self._waiting]

    def _refuse(self, id_: Id | None, error: HybridMIMError) -> None:
        self._send({"id": id_, "event": "refused", "message": error.message, "cure": error.cure})

    # --- working --------------------------------------------------------------------------------------------

    def _work(self) -> None:
        # While nobody waits yet; if it fails, the first job will say why.
        with suppress(Exception):
            self._at_hand()
        while not self._ending:
            job = self._next()
            if job is not None:
                self._carry_out(job)
            elif not self._ending:
                self._release()

    def _next(self) -> Job | None:
        """The next job, once there is one; None when none came for a while, or it is time to end."""
        with self._changed:
            patience = self._idle_seconds if self._state["warm"] else None
            self._changed.wait_for(lambda: self._waiting or self._ending, patience)
            if not self._waiting or self._ending:
                return None
            self._working = self._waiting.popleft()
            return self._working

    def _carry_out(self, job: Job) -> None:
        event, content, in_order = "failed", dict[str, Any](), True
        try:
            tasks = self._at_hand()
            do: Callable[[Any, Job], dict[str, Any]] = tasks.load if isinstance(job.request, Load) else tasks.segment
            event, content = "done", do(job.request, job)
        except Cancelled:
            event = "cancelled"
        except HybridMIMError as error:
            content = {"message": error.message, "cure": error.cure}
        except Exception as error:
            failure, in_order = _explain(error), False
            content = {"message": failure.message, "cure": failure.cure}
        # Outside the except block: while an error lives, its traceback holds what fills the memory.
        if not in_order:
            self._recover()
        with self._changed:
            self._working = None
            self._look_at_state()
            if not self._abandoned:
                job.tell(event, **content)

    def _recover(self) -> None:
        if self._tasks is not None:
            self._safely(self._tasks.recover)

    def _release(self) -> None:
        assert self._tasks is not None
        self._safely(self._tasks.release)
        with self._changed:
            self._look_at_state()
            self._send({"id": None, "event": "released"})

    def _safely(self, do: Callable[[], None]) -> None:
        """A device that takes nothing any more must not end the worker; whatever is on it is given up."""
        try:
            do()
        except Exception:
            traceback.print_exc()
            self._tasks = None

    def _look_at_state(self) -> None:
        self._state = dict(_NOTHING) if self._tasks is None else self._tasks.state()

    def _at_hand(self) -> Tasks:
        if self._tasks is None:
            self._tasks = self._make_tasks()
        return self._tasks


def _explain(error: Exception) -> HybridMIMError:
    """What to tell the user of an error that is none of ours."""
    if isinstance(error, ImportError):
        return SettingsError(
            f"a package is missing or broken ({error})", cure="Install the packages of requirements.txt again."
        )
    from HybridMIMLib.worker_tasks import explain

    known = explain(error)
    if known is None:
        traceback.print_exception(error)
    return known or _defect(error)


def _defect(error: Exception) -> HybridMIMError:
    return HybridMIMError(
        f"unexpected error: {type(error).__name__}: {error}",
        cure="Try it again; if it comes back, report it with what the worker wrote to standard error.",
    )
