"""A command of the library at work in its run folder, as seen from Slicer.

    >>> job = start_job("train", {"labelled": "cases", "finetuning.steps": 100}, Path("run"))   # doctest: +SKIP
    >>> while job.update():                                                                    # doctest: +SKIP
    ...     print(job.progress.describe())
    ...     time.sleep(0.2)
    >>> job.state, job.message                                                                 # doctest: +SKIP

The job reads the run folder and nothing else; the process may have been started by another Slicer. Nothing here
blocks: a panel calls :meth:`Job.update` a few times a second.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from HybridMIMLib.errors import HybridMIMError, RunError
from HybridMIMLib.events import EventReader
from HybridMIMLib.files import free_bytes, read_json
from HybridMIMLib.runs import ask_to_stop, is_command, living_owner
from HybridMIMLib.slicer_side.child import Child, OtherProcess, Process, last_lines, library_command
from HybridMIMLib.slicer_side.progress import RunProgress

RUNNING, STOPPING, FINISHED, STOPPED, FAILED = "running", "stopping", "finished", "stopped", "failed"

LOG = "log.txt"
"""What the process prints; in its run folder."""

_SECONDS_TO_LISTEN = 0.02
"""That a look may take."""
_EVENTS_PER_LOOK_AT_THE_CLOCK = 20
_SOME_SCANS_SKIPPED = 3
_ROOM_FOR_WORDS = 1_000_000
"""Bytes; with less free a disk counts as full."""
_ASKED_TO_END = (-15, 130, 143)
_KILLED = {-9: "killed", 137: "killed", -11: "crashed", 139: "crashed", -6: "aborted"}
"""Slicer's launcher of Python makes 1 of all of them, which is also what an exception ends with."""

_EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Interrupt|Exit)\b")
_ERROR = "error: "


class Work:
    """Something that goes on, is looked at several times a second, and ends in one way or another.

    Args:
        folder: in which it is done.

    Attributes:
        state: running, stopping, finished, stopped or failed.
        progress: what it has told so far.
        result: of what has finished.
        message: how it ended, for the user: what, why, and the cure where something went wrong.
        said: the last lines that its process printed, once it has ended.
    """

    SECONDS_TO_END = 8.0
    """How long a process that was asked to end may take before it is killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state, self.message = folder, RUNNING, ""
        self.progress = RunProgress()
        self.result: dict[str, Any] = {}
        self.said: list[str] = []
        self._asked = 0.0

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.state in (FINISHED, STOPPED, FAILED)

    def update(self) -> bool:
        """Take in what happened since the last call; returns whether it goes on."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Ask for its end, which :meth:`update` sees to."""
        raise NotImplementedError

    def kill(self) -> None:
        """End it now."""
        raise NotImplementedError

    def wait(self, on_update: Callable[[Any], None] | None = None, interval: float = 0.1) -> dict[str, Any]:
        """Wait until it ends, for scripts; returns the result.

        Args:
            on_update: called several times a second, e.g. to print ``job.progress.describe()`` or to cancel.
            interval: seconds between two looks.

        Raises:
            RunError: it failed or was stopped; the message says why and what to do.
        """
        while self.update():
            if on_update is not None:
                on_update(self)
            time.sleep(interval)
        if self.state != FINISHED:
            raise error_of(self.message)
        return self.result


class ProcessWork(Work):
    """Work of a process of its own.

    Args:
        folder: as in :class:`Work`.
        process: that does the work.
    """

    def __init__(self, folder: Path, process: Process) -> None:
        super().__init__(folder)
        self._process = process
        self._is_behind = False
        """Whether it has told more than could be taken in at the last look."""

    def update(self) -> bool:
        """Take in what happened since the last call; returns whether it goes on."""
        if self.ended:
            return False
        # Asked before what it told is read: what came before the end is then there for sure.
        running = self._process.running
        self._listen()
        if not running and not self._is_behind:
            self._end()
        elif running and self._asked and time.monotonic() - self._asked > self.SECONDS_TO_END:
            self._process.kill()
        return not self.ended

    def cancel(self) -> None:
        """Ask the process to end; :meth:`update` kills it if it does not. What it has done is kept."""
        if not self.ended and not self._asked:
            self.state, self._asked = STOPPING, time.monotonic()
            self._process.ask_to_end()

    def kill(self) -> None:
        """End the process and everything it started, now."""
        if not self.ended:
            self._asked = self._asked or time.monotonic()
            self._process.kill()
            self.update()

    def _listen(self) -> None:
        """Take in what it told, as much as can be done at a look."""
        raise NotImplementedError

    def _end(self) -> None:
        """It has ended: set the state and the message."""
        raise NotImplementedError


class Job(ProcessWork):
    """One command at work in its run folder; ``result`` is what ``result.json`` has.

    Args:
        folder: its run folder.
        process: that does the work.
        events: reads ``events.jsonl`` of the folder.

    Attributes:
        pausing: whether it was asked to pause.
    """

    def __init__(self, folder: Path, process: Process, events: EventReader) -> None:
        super().__init__(folder, process)
        self._events = events
        self.pausing = False

    @property
    def log(self) -> Path:
        """What the process printed."""
        return self.folder / LOG

    def update(self) -> bool:
        """Take in what happened since the last call; returns whether it goes on.

        A long log, as that of a run to which a later Slicer is attached, is taken in over several calls.
        """
        if self.pausing and not self.ended and not self._asked:
            # It may have been asked before it was at work. A disk that is full will have room, or the user cancels.
            with suppress(HybridMIMError, OSError):
                ask_to_stop(self.folder)
        return super().update()

    def pause(self) -> None:
        """Ask the process to save the step that it is at and end, however long that takes; it can be resumed then."""
        if not self.ended and not self._asked and not self.pausing:
            self.state, self.pausing = STOPPING, True

    def _listen(self) -> None:
        self._is_behind = False
        end = time.monotonic() + _SECONDS_TO_LISTEN
        # A network drive that is gone for a moment is there again at the next look.
        with suppress(OSError):
            for count, event in enumerate(self._events.read(), 1):
                self.progress.take(event)
                if count % _EVENTS_PER_LOOK_AT_THE_CLOCK == 0 and time.monotonic() > end:
                    self._is_behind = True
                    return

    def _end(self) -> None:
        # What an earlier attempt in this folder printed is over.
        lines = last_lines(self.log, 20, self._process.log_begins)
        self.said = [self.progress.for_user(line) for line in lines]
        try:
            self.result = self._read_result()
            self.message = self._take_result()
            self.state = FINISHED
        except HybridMIMError as error:
            self.state = STOPPED if self._was_stopped() else FAILED
            self.message = "Stopped." if self.state == STOPPED else self.progress.for_user(str(error))
        except Exception as error:
            # A defect of ours; the job is over all the same, and is not tried again at the next look.
            self.state, self.message = FAILED, f"Unexpected error: {type(error).__name__}: {error}"
            raise

    def _was_stopped(self) -> bool:
        """By us, or by somebody else: another Slicer, a logout."""
        return bool(self._asked) or self.progress.outcome == "stopped" or self._process.exit_code in _ASKED_TO_END

    def _read_result(self) -> dict[str, Any]:
        """What the process wrote last of all; without it, and a good exit code, nothing is believed."""
        if self._process.exit_code not in (None, 0, _SOME_SCANS_SKIPPED):
            raise self._why_it_failed()
        file = self.folder / "result.json"
        try:
            result = read_json(file)
        except FileNotFoundError:
            raise self._why_it_failed() from None
        except (OSError, ValueError) as error:
            raise RunError(f"{file}: cannot be read ({error})", cure="Start it again.") from error
        if not isinstance(result, dict):
            raise RunError(f"{file}: is not the result of a run", cure="Start it again.")
        return result

    def _take_result(self) -> str:
        """Use the result; returns what to tell the user. Special jobs do more here."""
        return "Done."

    def _why_it_failed(self) -> HybridMIMError:
        said = self.said[-4:]
        has_told = any(line.startswith(_ERROR) for line in said)
        if not has_told and self.progress.outcome == "failed" and self.progress.message:
            return RunError(self.progress.message, cure="See the log.")
        if not self.said and (full := self._disk_is_full()) is not None:
            return full
        return why_it_died(self._process.exit_code, said)

    def _disk_is_full(self) -> HybridMIMError | None:
        """The error of a process that could not even write down why it ended."""
        with suppress(OSError):
            if free_bytes(self.folder) < _ROOM_FOR_WORDS:
                return RunError(f"{self.folder}: the disk is full", cure="Free some space, then start it again.")
        return None


def start_job(command: str, options: Mapping[str, object], folder: Path) -> Job:
    """Start a command, or continue the run that its folder holds.

    Args:
        command: train, segment …
        options: of the command line, without the dashes; those that are None or empty are left out.
        folder: the run folder; made if it is not there.

    Raises:
        RunError: the process cannot be started.
        DiskError: the folder cannot be made.
    """
    return Job(folder, *launch(command, options, folder))


def attach_job(folder: Path) -> Job | None:
    """The job that a command, whoever started it, is doing in ``folder`` now; None if there is none.

    A run at work inside another program, a Python session say, is none: it could not be stopped without that.
    """
    pid = living_owner(folder)
    if pid is None or not is_command(folder):
        return None
    process = OtherProcess(folder, pid)
    # An error is printed last of all: one that is there while the process lives was that of an earlier attempt.
    with suppress(OSError):
        process.log_begins = (folder / LOG).stat().st_size
    return Job(folder, process, EventReader(folder / "events.jsonl"))


def launch(command: str, options: Mapping[str, object], folder: Path) -> tuple[Child, EventReader]:
    """The process of :func:`start_job`, and a reader of what it will tell."""
    given = [f"--{name}={value}" for name, value in options.items() if value not in (None, "")]
    # What an earlier attempt told is over.
    reader = EventReader(folder / "events.jsonl", from_end=True)
    return Child(library_command(command, [*given, f"--output={folder}"]), folder / LOG), reader


def why_it_died(code: int | None, said: Sequence[str], cure: str = "See the log.") -> RunError:
    """The error for a process that ended without a result.

    Args:
        code: its exit code, or None where nobody knows.
        said: the last lines that it printed.
        cure: where those are all that is known.
    """
    errors = [line[len(_ERROR) :] for line in said if line.startswith(_ERROR)]
    if errors:
        return error_of(errors[-1])
    if code is None:
        return RunError("The process ended without a result", cure="Start it again.")
    if code in _KILLED or (code == 1 and not any(_EXCEPTION.match(line) for line in said)):
        how = f"was {_KILLED[code]} by the system" if code in _KILLED else "ended without a reason (exit code 1)"
        return RunError(
            f"The process {how}, most often because memory ran out",
            cure="Close other programs, then start it again.",
        )
    words = f"It said last: {' / '.join(said)}" if said else "It said nothing"
    return RunError(f"The process ended with exit code {code} and no result. {words}", cure=cure)


def error_of(text: str) -> RunError:
    """An error from the line in which another process printed it."""
    message, _, cure = text.partition(". ")
    return RunError(message, cure=cure or "See the log.")
