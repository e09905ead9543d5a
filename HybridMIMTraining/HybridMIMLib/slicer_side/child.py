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
from pathlib import Path
from typing import Any, Protocol

import HybridMIMLib
from HybridMIMLib.errors import RunError
from HybridMIMLib.files import make_folder
from HybridMIMLib.runs import living_owner

_TAIL = 64 * 1024


class Process(Protocol):
    """What a job needs to know of the process that does its work."""

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
    """A process that this one started.

    Args:
        command: program and arguments; they never pass through a shell.
        log: file to which standard output and standard error are appended.

    Raises:
        RunError: the program cannot be started.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        make_folder(log.parent)
        try:
            with open(log, "ab") as output:
                self._process = subprocess.Popen(
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=_environment(),
                    **_group_of_its_own(),
                )
        except OSError as error:
            raise RunError(
                f"{command[0]}: cannot be started ({error.strerror})",
                cure="Check that this Python can be run, and that the disk is not full.",
            ) from error
        self.pid = self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

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
            _ask_to_end(self.pid)

    def kill(self) -> None:
        # The group may live on when its first process has ended, so it is not asked whether that one runs.
        _kill_group(self.pid)
        self._process.wait()


class OtherProcess:
    """A process at work on a run folder that another program started, an earlier Slicer for example."""

    def __init__(self, folder: Path, pid: int) -> None:
        self._folder, self.pid = folder, pid

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
            _kill_group(self.pid)


def library_command(command: str, options: Sequence[str]) -> list[str]:
    """``python -m HybridMIMLib COMMAND …`` as a list of arguments."""
    return [python_executable(), "-m", "HybridMIMLib", command, *options]


def python_executable() -> str:
    """The Python that shares Slicer's packages; outside Slicer the one that runs now."""
    # Inside Slicer sys.executable is Slicer itself.
    return shutil.which("PythonSlicer") or sys.executable


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines of a log that are not blank, whatever bytes are in it."""
    try:
        with open(log, "rb") as handle:
            handle.seek(max(handle.seek(0, os.SEEK_END) - _TAIL, 0))
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
        # 0x08000000 (no console window) | 0x00000200 (own process group)
        return {"creationflags": 0x08000200}
    return {"start_new_session": True}


def _ask_to_end(pid: int) -> None:
    if os.name == "nt":
        # A process without a console cannot be asked; every file of a run is whole at any moment.
        _kill_group(pid)
        return
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass


def _kill_group(pid: int) -> None:
    if os.name == "nt":
        subprocess.run(["taskkill", "/PID", str(pid), "/T", "/F"], capture_output=True, check=False)
        return
    try:
        # A child of ours leads its group; of another process that is not sure, and its group may hold others.
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
