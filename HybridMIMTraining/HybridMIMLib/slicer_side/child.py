"""A command in a process of its own: started, watched, and stopped with everything that it started.

Its output goes to a file and not through a pipe: a pipe breaks when Slicer closes, and a training run must outlive
Slicer.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import HybridMIMLib
from HybridMIMLib.errors import RunError
from HybridMIMLib.files import make_folder
from HybridMIMLib.runs import kernel_fields, living_owner

_TAIL = 64 * 1024
_NO_WINDOW, _NEW_GROUP = 0x08000000, 0x00000200


class Process(Protocol):
    """What a job needs to know of the process that does its work."""

    log_begins: int
    """Bytes of the log that are older than it."""

    @property
    def running(self) -> bool:
        """Whether it still works."""

    @property
    def exit_code(self) -> int | None:
        """What it ended with (negative: the signal); None while it works, or where nobody can know."""

    def ask_to_end(self) -> None:
        """Let it end by itself, with its files in order."""

    def kill(self) -> None:
        """End it and all processes that it started, now."""


class Child:
    """A process that this one started, and all that it starts.

    Slicer's own Python is started by a launcher that neither hands signals on nor ends when the Python behind it
    does well: the whole group of processes is asked, watched and ended, and not its first one alone.

    Args:
        command: program and arguments; they never pass through a shell.
        log: file to which standard output and standard error are appended.
        pipes: speak with it instead, over its standard input and output; it ends with this process then.

    Attributes:
        requests, answers: its standard input and output, if there are pipes.

    Raises:
        RunError: the program cannot be started.
    """

    def __init__(self, command: Sequence[str], log: Path, pipes: bool = False) -> None:
        make_folder(log.parent)
        try:
            with open(log, "ab") as output:
                self.log_begins = output.seek(0, os.SEEK_END)
                self._process = subprocess.Popen(
                    list(command),
                    stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if pipes else output,
                    stderr=output if pipes else subprocess.STDOUT,
                    env=_environment(),
                    **_group_of_its_own(),
                )
        except OSError as error:
            raise RunError(
                f"{command[0]}: cannot be started ({error.strerror})",
                cure="Check that this Python can be run, and that the disk is not full.",
            ) from error
        self.pid = self._process.pid
        self.requests, self.answers = self._process.stdin, self._process.stdout
        self._asked = False
        self._ended = False

    @property
    def running(self) -> bool:
        if self._ended:
            return False
        if self._process.poll() is None:
            return True
        # What was asked to end may still be tidying up behind a launcher, until somebody loses patience and kills it;
        # what was not asked has lost its launcher.
        if self._asked and _group_works(self.pid):
            return True
        _kill_group(self.pid)
        self._ended = True
        return False

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def wait(self, seconds: float) -> None:
        """Wait until it ends.

        Raises:
            subprocess.TimeoutExpired: it did not.
        """
        self._process.wait(seconds)

    def ask_to_end(self) -> None:
        if self.running:
            self._asked = True
            _ask_group_to_end(self.pid)

    def kill(self) -> None:
        if self._ended:
            return
        _kill_group(self.pid)
        try:
            # One that hangs in a driver ends later; Slicer's window must not wait for it.
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            return
        self._ended = True


class OtherProcess:
    """A command of ours at work on a run folder that another program started, an earlier Slicer for example."""

    def __init__(self, folder: Path, pid: int) -> None:
        self._folder, self.pid = folder, pid
        self.log_begins = 0

    @property
    def running(self) -> bool:
        return living_owner(self._folder) == self.pid

    @property
    def exit_code(self) -> int | None:
        return None

    def ask_to_end(self) -> None:
        if self.running:
            _ask_to_end(self.pid)

    def kill(self) -> None:
        if self.running:
            _kill(self.pid)


def library_command(command: str, options: Sequence[str]) -> list[str]:
    """``python -m HybridMIMLib COMMAND …`` as a list of arguments."""
    return [python_executable(), "-m", "HybridMIMLib", command, *options]


def python_executable() -> str:
    """The Python that shares Slicer's packages; outside Slicer the one that runs now.

    Raises:
        RunError: there is none; Slicer itself would be started again.
    """
    found = shutil.which("PythonSlicer") or sys.executable or ""
    if "python" not in Path(found).name.lower():
        raise RunError(
            "PythonSlicer, which comes with Slicer, was not found",
            cure="Start Slicer by its own launcher (the file Slicer, not SlicerApp-real), or install it again.",
        )
    return found


def last_lines(log: Path, count: int, since: int = 0) -> list[str]:
    """The last lines of a log that are not blank, whatever bytes are in it; ``since`` bytes are passed over."""
    try:
        with open(log, "rb") as handle:
            handle.seek(max(handle.seek(0, os.SEEK_END) - _TAIL, since))
            text = handle.read().decode("utf-8", "replace")
    except OSError:
        return []
    # A progress bar overwrites its line with \r; control characters have no place in a panel.
    lines = ("".join(c for c in line if c.isprintable()).strip() for line in text.splitlines())
    return [line for line in lines if line][-count:]


def _environment() -> dict[str, str]:
    library = str(Path(HybridMIMLib.__file__).parents[1])
    paths = [library, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUTF8": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _group_of_its_own() -> dict[str, Any]:
    """So that the whole tree can be ended at once, and Ctrl+C in the terminal of Slicer does not reach it."""
    if os.name == "nt":
        return {"creationflags": _NO_WINDOW | _NEW_GROUP}
    return {"start_new_session": True}


def _ask_group_to_end(group: int) -> None:
    if os.name == "nt":
        # A process without a console cannot be asked; every file of a run is whole at any moment.
        _kill_group(group)
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGTERM)


def _kill_group(group: int) -> None:
    if os.name == "nt":
        _kill(group)
        return
    # PermissionError: on macOS, when all of it have ended and nobody has looked yet.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _group_works(group: int) -> bool:
    """Whether a process of the group is alive; those that have ended and that nobody looked after do not count."""
    if os.name == "nt":
        return False
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    if not Path("/proc/self/stat").exists():
        return True
    told = (kernel_fields(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return any(fields[2:3] == [str(group)] and fields[0] not in "ZX" for fields in told)


def _ask_to_end(pid: int) -> None:
    if os.name == "nt":
        _kill(pid)
        return
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGTERM)


def _kill(pid: int) -> None:
    if os.name == "nt":
        command = ["taskkill", "/PID", str(pid), "/T", "/F"]
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(command, capture_output=True, check=False, timeout=10, creationflags=_NO_WINDOW)
        return
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
