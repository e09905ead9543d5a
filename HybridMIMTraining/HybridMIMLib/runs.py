"""The run folder: the only truth about a run.

====================  ================================================================================
``run.yaml``          the settings; any command accepts them back with ``--config``
``about.json``        the command, versions of everything, the machine, when it began
``events.jsonl``      what happened (:mod:`HybridMIMLib.events`)
``run.pid``           process that works on it now; ``heartbeat`` is touched while it lives
``log.txt``           what the process printed; written by whoever started it, before the run begins
``checkpoint.pt``     where to continue (tensors and numbers alone)
``result.json``       written last: the run is finished, and what it made
====================  ================================================================================

A run that was stopped, killed or failed is continued by the same command on the same folder.
"""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from HybridMIMLib.config import Run, differences, from_dict, to_dict, user_path, workspace
from HybridMIMLib.errors import DiskError, HybridMIMError, RunError, SettingsError
from HybridMIMLib.events import Event, EventLog
from HybridMIMLib.files import TEMPORARY, disk_errors, make_folder, read_json, write_json, write_text

PACKAGES = (
    "torch",
    "monai",
    "pytorch-ignite",
    "numpy",
    "scipy",
    "SimpleITK",
    "nibabel",
    "safetensors",
    "einops",
    "jsonargparse",
    "matplotlib",
    "vtk",
    "slicer-core",
)

# What may differ when a run is continued: where it lies and what it is computed on.
_MAY_DIFFER = {"output", "store", "device"}

_INPUTS = ("split.json", "scans.json")
_MADE_NOTHING = {
    *("run.yaml", "about.json", "events.jsonl", "heartbeat", "run.pid", "log.txt", "plan.json", "store"),
    *_INPUTS,
}
"""What a run folder holds before there is anything to continue from; the store fits by itself or is made anew."""


class RunFolder:
    """A folder in which one command works.

    Attributes:
        path: the folder.
        events: the log to report to.
    """

    def __init__(self, path: Path, command: str, settings: Run) -> None:
        self.path, self.command, self.settings = path, command, settings
        self._last_beat = 0.0
        self.events = EventLog(path / "events.jsonl", on_event=self._beat)

    @classmethod
    def open(cls, command: str, settings: Run) -> RunFolder:
        """The folder of ``settings.output`` (or a new one in the workspace), made or found to fit.

        Raises:
            RunError: the folder holds another run, other files, or a run at work.
            DiskError: it could not be made.
        """
        path = user_path(settings.output) if settings.output else new_path(command)
        folder = cls(path, command, settings)
        make_folder(path)
        folder._check_what_is_there()
        if not (path / "run.yaml").exists():
            write_json(path / "about.json", describe_run(command))
            save_settings(path / "run.yaml", settings)
        return folder

    @property
    def result(self) -> dict[str, Any] | None:
        """What the finished run made, or None while it is not finished."""
        file = self.path / "result.json"
        try:
            return dict(read_json(file)) if file.exists() else None
        except (OSError, ValueError, TypeError) as error:
            raise RunError(
                f"{file}: is damaged ({error})", cure="Remove the file; the same command then finishes the run again."
            ) from error

    @contextmanager
    def at_work(self) -> Iterator[EventLog]:
        """Hold the folder while working; the last event says how it ended, whatever happens."""
        write_text(self.path / "run.pid", f"{os.getpid()} {_start_of(os.getpid())}\n")
        try:
            yield self.events
        except KeyboardInterrupt:
            self._end("stopped", "stopped; the same command continues it")
            raise
        except HybridMIMError as error:
            self._end("failed", str(error))
            raise
        except BaseException as error:
            self._end("failed", f"{type(error).__name__}: {error}")
            raise
        else:
            self._end("finished", f"done: {self.path}")
        finally:
            (self.path / "run.pid").unlink(missing_ok=True)

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Record what the run made; from here on it counts as finished."""
        result = {**result, "warnings": list(self.events.warnings)}
        write_json(self.path / "result.json", result)
        return result

    def _check_what_is_there(self) -> None:
        # A run that was killed while its folder was made has not got further than these.
        there = {p.name for p in self.path.iterdir() if not p.name.startswith(TEMPORARY)}
        if "run.yaml" not in there and not there <= _MADE_NOTHING:
            raise RunError(
                f"{self.path}: the folder is not empty and holds no run",
                cure="Choose an empty or new folder with --output.",
            )
        owner = living_owner(self.path)
        if owner is not None and owner != os.getpid():
            raise RunError(
                f"{self.path}: process {owner} is working on this run",
                cure="Wait for it, stop it, or choose another --output. If that process is something else, remove "
                "the file run.pid there.",
            )
        if there <= _MADE_NOTHING:
            # An attempt that failed before it made anything, a wrong path say, must not be in the way.
            for name in ("run.yaml", *_INPUTS):
                (self.path / name).unlink(missing_ok=True)
        if (self.path / "run.yaml").exists():
            self._check_same_run()

    def _check_same_run(self) -> None:
        try:
            earlier = read_json(self.path / "about.json")["command"]
        except (OSError, ValueError, KeyError, TypeError):
            earlier = self.command
        changed = [f"the command ({earlier})"] if earlier != self.command else []
        there, here = to_dict(load_settings(self.path / "run.yaml")), to_dict(self.settings)
        changed += [name for name in differences(there, here) if name not in _MAY_DIFFER]
        if changed:
            raise RunError(
                f"{self.path}: holds a run with other settings: {', '.join(changed)}",
                cure="Give the same settings (--config) to continue it, or another --output.",
            )

    def _beat(self, event: Event) -> None:
        if time.monotonic() - self._last_beat > 1.0:
            self._last_beat = time.monotonic()
            with disk_errors(self.path / "heartbeat"):
                (self.path / "heartbeat").touch()

    def _end(self, outcome: str, message: str) -> None:
        try:
            self.events.write("end", outcome=outcome, message=message)
        except DiskError:
            # The error that ended the run matters more than that its last line found no room.
            pass


def carry_out(command: str, settings: Run, work: Callable[[Path, EventLog], dict[str, Any]]) -> dict[str, Any]:
    """Do the work of a command in its run folder, or hand back what it made when it is finished already.

    Args:
        command: its name.
        settings: of the run; ``output`` names the folder.
        work: gets the folder and the log; what it returns is kept as ``result.json``.

    Raises:
        RunError, DiskError: the folder cannot be used; see :meth:`RunFolder.open`.
    """
    folder = RunFolder.open(command, settings)
    if folder.result is not None:
        folder.events.message(f"finished before; remove {folder.path} to compute it anew")
        return folder.result
    with folder.at_work() as events:
        return folder.finish(work(folder.path, events))


def keep_inputs(file: Path, inputs: Mapping[str, Any]) -> None:
    """Write down which scans serve what, by content; a run that goes on must go on with the same ones.

    Were the scans shared out anew after one was added, one that was trained on could come out as unseen.

    Raises:
        RunError: the run began with others.
    """
    if file.exists() and read_json(file) != inputs:
        raise RunError(
            f"{file.parent}: the scans have changed since this run began",
            cure="Put them back to continue it, or choose another --output.",
        )
    write_json(file, inputs)


def save_settings(path: Path, settings: Run) -> None:
    """Write settings as YAML."""
    import yaml

    write_text(path, yaml.safe_dump(to_dict(settings), sort_keys=False, allow_unicode=True))


def load_settings(path: Path) -> Run:
    """Read settings from YAML.

    Raises:
        SettingsError: the file cannot be read or holds something that is not a setting.
    """
    import yaml

    try:
        return from_dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except SettingsError as error:
        raise SettingsError(f"{path}: {error.message}", cure=error.cure) from error
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path}: the settings cannot be read ({error})", cure="Give a run.yaml that a run wrote."
        ) from error


def living_owner(path: Path) -> int | None:
    """Process number of whoever works on the run in ``path``, or None."""
    try:
        first, *rest = (path / "run.pid").read_text().split()
        number = int(first)
    except (OSError, ValueError):
        return None
    if not (0 < number < 2**31 and _is_alive(number)):
        return None
    # After a kill or a reboot the number may have gone to another process, which began at another time.
    began = _start_of(number)
    return None if rest and began and rest[0] != began else number


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on, without importing any of them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_run(command: str) -> dict[str, Any]:
    """What ``about.json`` says of a run that begins now."""
    return {
        "command": command,
        "began": datetime.now().astimezone().isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "versions": versions(),
    }


def new_path(command: str) -> Path:
    """A folder for a new run in the workspace; it does not exist yet."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    base = workspace() / "runs" / f"{command}-{stamp}"
    return next(p for n in range(1000) if not (p := base if n == 0 else base.with_name(f"{base.name}-{n}")).exists())


def _start_of(number: int) -> str:
    """When a process began, in the kernel's own count; empty where the system does not tell."""
    try:
        # The name in brackets may hold spaces; the fields after it are counted from the last bracket.
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _is_alive(number: int) -> bool:
    if os.name == "nt":
        return _is_alive_on_windows(number)
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_alive_on_windows(number: int) -> bool:
    # os.kill(pid, 0) would end the process on Windows.
    import ctypes

    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    handle = kernel.OpenProcess(0x1000, False, number)
    if handle:
        kernel.CloseHandle(handle)
    return bool(handle)
