"""The run folder: the only truth about a run.

====================  ================================================================================
``run.yaml``          the settings; any command accepts them back with ``--config``
``about.json``        the command, versions of everything, the machine, when it began
``events.jsonl``      what happened (:mod:`HybridMIMLib.events`)
``run.pid``           process that works on it now, when that began, and on which machine; ``heartbeat`` is touched
                      while it lives
``stop``              asks the process named in it to keep what it has done and end (:func:`ask_to_stop`)
``log.txt``           what the process printed; written by whoever started it, before the run begins
``checkpoint.pt``     where to continue (tensors and numbers alone)
``result.json``       written last: the run is finished, and what it made
====================  ================================================================================

A run that was stopped, killed or failed is continued by the same command on the same folder.
"""

from __future__ import annotations

import _thread
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from HybridMIMLib import distributed
from HybridMIMLib.config import Run, differences, from_dict, to_dict, user_path, workspace
from HybridMIMLib.errors import DiskError, HybridMIMError, RunError, SettingsError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import TEMPORARY, disk_errors, make_folder, read_json, write_json, write_text

PACKAGES = (
    "torch",
    "monai",
    "pytorch-ignite",
    "numpy",
    "scipy",
    "SimpleITK",
    "nibabel",
    "pydicom",
    "safetensors",
    "einops",
    "jsonargparse",
    "matplotlib",
    "vtk",
    "slicer-core",
)

# What may differ when a run is continued: where it lies and what it is computed on.
_MAY_DIFFER = {"output", "store", "device"}

COMMAND = "command"
"""How ``run.pid`` marks a process that was started as ``python -m HybridMIMLib …``."""

_SECONDS_BETWEEN_BEATS, _SECONDS_WITHOUT_BEAT = 5.0, 60.0
_SECONDS_BETWEEN_LOOKS = 0.5
_STOP = "stop"
_QUERY, _STILL_ACTIVE = 0x1000, 259

_INPUTS = ("split.json", "folds.json", "scans.json")
_MADE_NOTHING = {
    *("run.yaml", "about.json", "events.jsonl", "heartbeat", "run.pid", "log.txt", "plan.json", "plan.yaml"),
    *("batch.json", "precision.json", "store", "probe", "estimate.json", _STOP),
    *_INPUTS,
}
"""What a run folder holds before there is anything to continue from; the store fits by itself or is made anew."""


class RunFolder:
    """A folder in which one command works.

    Attributes:
        path: the folder.
        events: the log to report to.
    """

    def __init__(self, path: Path, command: str, settings: Run, may_differ: Collection[str] = ()) -> None:
        self.path, self.command, self.settings = path, command, settings
        self._may_differ = may_differ
        self.events = EventLog(path / "events.jsonl")

    @classmethod
    def open(cls, command: str, settings: Run, may_differ: Collection[str] = ()) -> RunFolder:
        """The folder of ``settings.output`` (or a new one in the workspace), made or found to fit.

        Args:
            command: its name.
            settings: of the run.
            may_differ: sections whose settings may be others than those of an earlier call in the folder, because
                the command computes anew what follows from them; the folder takes on the new ones.

        Raises:
            SettingsError: the command was started in several processes and works in one.
            RunError: the folder holds another run, other files, or a run at work.
            DiskError: it could not be made.
        """
        distributed.check_command(command)
        path = user_path(settings.output) if settings.output else new_path(command)
        folder = cls(path, command, settings, may_differ)
        make_folder(path)
        folder._check_what_is_there()
        known = (path / "run.yaml").exists()
        if known and may_differ:
            save_settings(path / "run.yaml", settings)
        if not known:
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
        """Hold the folder while working; the last event says how it ended, whatever happens.

        Raises:
            RunError: another process has begun to work in it meanwhile.
            DiskError: it cannot be written to.
        """
        kind = COMMAND if _is_command() else "library"
        self._claim(kind)
        ended = threading.Event()
        threading.Thread(target=self._beat, args=(ended,), daemon=True).start()
        if kind == COMMAND:
            # A Python session in which somebody called the library is not ours to end.
            threading.Thread(target=self._watch, args=(ended,), daemon=True).start()
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
            ended.set()
            for name in ("run.pid", _STOP):
                (self.path / name).unlink(missing_ok=True)

    def reopen(self) -> None:
        """From here on the run is unfinished again: what an earlier call made is about to be replaced.

        Raises:
            DiskError: its result could not be removed.
        """
        file = self.path / "result.json"
        with disk_errors(file):
            file.unlink(missing_ok=True)

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Record what the run made; from here on it counts as finished."""
        result = {**result, "warnings": list(self.events.warnings)}
        write_json(self.path / "result.json", result)
        return result

    def _claim(self, kind: str) -> None:
        """Say in the folder who works in it, unless somebody else does: of several that ask at once one gets it."""
        heartbeat = self.path / "heartbeat"
        told = (str(os.getpid()), _start_of(os.getpid()), kind, socket.gethostname())
        with disk_errors(heartbeat), open(heartbeat, "ab") as handle:
            _lock(handle)
            # First, as what beats now would tell of life.
            self._check_nobody_works()
            heartbeat.touch()
            write_text(self.path / "run.pid", "".join(f"{line}\n" for line in told))

    def _check_what_is_there(self) -> None:
        # A run that was killed while its folder was made has not got further than these.
        there = {p.name for p in self.path.iterdir() if not p.name.startswith(TEMPORARY)}
        if "run.yaml" not in there and not there <= _MADE_NOTHING:
            raise RunError(
                f"{self.path}: the folder is not empty and holds no run",
                cure="Choose an empty or new folder with --output.",
            )
        self._check_nobody_works()
        if there <= _MADE_NOTHING:
            # An attempt that failed before it made anything, a wrong path say, must not be in the way.
            for name in ("run.yaml", *_INPUTS):
                (self.path / name).unlink(missing_ok=True)
        if (self.path / "run.yaml").exists():
            self._check_same_run()

    def _check_nobody_works(self) -> None:
        owner = living_owner(self.path)
        if owner is not None and owner != os.getpid():
            raise RunError(
                f"{self.path}: process {owner} is working on this run",
                cure="Wait for it, stop it, or choose another --output. If that process is something else, remove "
                "the file run.pid there.",
            )
        machine = other_machine(self.path)
        if machine is not None:
            raise RunError(
                f"{self.path}: the machine {machine} is working on this run",
                cure="Wait for it, stop it there, or choose another --output.",
            )

    def _check_same_run(self) -> None:
        earlier = command_of(self.path) or self.command
        changed = [f"the command ({earlier})"] if earlier != self.command else []
        there, here = to_dict(load_settings(self.path / "run.yaml")), to_dict(self.settings)
        changed += [
            name
            for name in differences(there, here)
            if name not in _MAY_DIFFER and name.partition(".")[0] not in self._may_differ
        ]
        if changed:
            raise RunError(
                f"{self.path}: holds a run with other settings: {', '.join(changed)}",
                cure="Give the same settings (--config) to continue it, or another --output.",
            )

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(_SECONDS_BETWEEN_BEATS):
            # A disk that is full for the moment must not end this thread; the run itself tells of it.
            with suppress(OSError):
                (self.path / "heartbeat").touch()

    def _watch(self, ended: threading.Event) -> None:
        """End this process as Ctrl+C does when somebody asks for it."""
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            if _asked_to_stop(self.path) == os.getpid():
                _interrupt()
                return

    def _end(self, outcome: str, message: str) -> None:
        try:
            self.events.write("end", outcome=outcome, message=message)
        except DiskError:
            # The error that ended the run matters more than that its last line found no room.
            pass


def carry_out(command: str, settings: Run, work: Callable[[Path, EventLog], dict[str, Any]]) -> dict[str, Any]:
    """Do the work of a command in its run folder, or hand back what it made when it is finished already.

    Where several processes share a run (:mod:`HybridMIMLib.distributed`), the first alone holds the folder.

    Args:
        command: its name.
        settings: of the run; ``output`` names the folder.
        work: gets the folder and the log; what it returns is kept as ``result.json``.

    Raises:
        SettingsError, RunError, DiskError: the folder cannot be used; see :meth:`RunFolder.open`.
    """
    path = distributed.by_first(lambda: RunFolder.open(command, settings).path)
    folder = RunFolder(path, command, settings)
    result = distributed.by_first(lambda: folder.result)
    if result is None and not distributed.is_first():
        with distributed.failures_shared():
            return work(path, EventLog())
    if result is None:
        with folder.at_work() as events, distributed.failures_shared():
            return folder.finish(work(path, events))
    if distributed.is_first():
        folder.events.message(f"finished before; remove {path} to compute it anew")
    return result


def keep_inputs(file: Path, inputs: Mapping[str, Any]) -> None:
    """Write down which scans serve what, by content; a run that goes on must go on with the same ones.

    Were the scans shared out anew after one was added, one that was trained on could come out as unseen.

    Raises:
        RunError: the run began with others, or nobody can tell.
    """
    if file.exists() and read_result(file, "Choose another --output.") != inputs:
        raise RunError(
            f"{file.parent}: the scans have changed since this run began",
            cure="Put them back to continue it, or choose another --output.",
        )
    write_json(file, inputs)


def read_result(file: Path, cure: str) -> Any:
    """What a run wrote down in a JSON file.

    Args:
        file: of the run.
        cure: where it is damaged.

    Raises:
        RunError: it is.
    """
    try:
        return read_json(file)
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: is damaged ({error})", cure=cure) from error


def save_settings(path: Path, settings: Run) -> None:
    """Write settings as YAML."""
    write_text(path, settings_text(settings))


def settings_text(settings: Run) -> str:
    """Settings as YAML."""
    import yaml

    text: str = yaml.safe_dump(to_dict(settings), sort_keys=False, allow_unicode=True)
    return text


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
    """Process number of whoever works on the run in ``path``, or None.

    After a kill or a reboot the number may have gone to another process. That one began at another time; where the
    system does not tell when, a heart that beats no more gives it away.
    """
    try:
        number_text, began, *_ = (path / "run.pid").read_text().split("\n")
        number = int(number_text)
    except (OSError, ValueError):
        return None
    if not (0 < number < 2**31 and is_alive(number)):
        return None
    begins = _start_of(number)
    if began and begins:
        return number if began == begins else None
    return number if _beats(path / "heartbeat") else None


def other_machine(path: Path) -> str | None:
    """Name of another machine that works on the run in ``path``, on a drive that both use, or None.

    Its processes cannot be looked at from here; a heart that beats tells.
    """
    try:
        machine = (path / "run.pid").read_text().split("\n")[3]
    except (OSError, ValueError, IndexError):
        return None
    return machine if machine not in ("", socket.gethostname()) and _beats(path / "heartbeat") else None


def is_command(path: Path) -> bool:
    """Whether the owner of a run is a command of ours, which may be asked to end.

    A Python session, or Slicer itself, in which somebody called the library, may not.
    """
    try:
        return (path / "run.pid").read_text().split("\n")[2] == COMMAND
    except (OSError, IndexError):
        return False


def ask_to_stop(path: Path) -> None:
    """Ask the command that works on a run to keep what it has done and end; where there is none, nothing happens.

    A training saves the step that it is at. On every system, where a signal cannot be sent to each process. To be
    called again while one that has just been started is not yet at work.

    Raises:
        DiskError: the run folder cannot be written to.
    """
    number = _owner(path)
    if number is not None and _asked_to_stop(path) != number:
        write_text(path / _STOP, f"{number}\n")


def _lock(handle: IO[bytes]) -> None:
    """Wait until nobody else holds a file, and hold it until it is closed; on a drive without locks do nothing."""
    with suppress(OSError):
        if os.name == "nt":
            import msvcrt

            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)


def _interrupt() -> None:
    """Have the main thread end as on SIGTERM, or on Ctrl+C where that is not handled."""
    number = signal.SIGTERM if callable(signal.getsignal(signal.SIGTERM)) else signal.SIGINT
    main = threading.main_thread().ident
    if os.name != "nt" and main is not None:
        # A signal that is sent ends a wait, too.
        signal.pthread_kill(main, number)
    else:
        _thread.interrupt_main(number)


def _asked_to_stop(path: Path) -> int | None:
    """The process that is asked to end."""
    try:
        return int((path / _STOP).read_text())
    except (OSError, ValueError):
        return None


def _owner(path: Path) -> int | None:
    """The process that said last that it works on a run, whether it lives or not."""
    try:
        return int((path / "run.pid").read_text().split("\n")[0])
    except (OSError, ValueError):
        return None


def kernel_fields(number: int) -> list[str]:
    """What Linux tells of a process, from its state on (state, parent, group, …); empty where nothing is told."""
    try:
        # The name before them stands in brackets and may hold spaces and brackets.
        return Path(f"/proc/{number}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def command_of(path: Path) -> str | None:
    """The command that began the run in ``path``, or None where that cannot be read."""
    try:
        return str(read_json(path / "about.json")["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def runs_folder() -> Path:
    """Where runs are kept: a folder of the user's, so that no update of the program touches it."""
    return workspace() / "runs"


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
    base = runs_folder() / f"{command}-{stamp}"
    return next(p for n in range(1000) if not (p := base if n == 0 else base.with_name(f"{base.name}-{n}")).exists())


def _is_command() -> bool:
    """Whether this process is ``python -m HybridMIMLib …``."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name.split(".")[0] == __name__.split(".")[0]


def _beats(heartbeat: Path) -> bool:
    try:
        return abs(time.time() - heartbeat.stat().st_mtime) < _SECONDS_WITHOUT_BEAT
    except OSError:
        return False


def _start_of(number: int) -> str:
    """When a process began, in whatever words the system has for it; empty where it does not tell."""
    if os.name == "nt":
        return _start_on_windows(number)
    fields = kernel_fields(number)
    return fields[19] if len(fields) > 19 else _start_by_ps(number)


def _start_by_ps(number: int) -> str:
    command = ["ps", "-o", "lstart=", "-p", str(number)]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False, env={"LC_ALL": "C"})
    except (OSError, subprocess.SubprocessError):
        return ""
    return " ".join(told.stdout.split())


def is_alive(number: int) -> bool:
    """Whether there is a process of this number that has not ended."""
    if os.name == "nt":
        return _is_alive_on_windows(number)
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # One that has ended stays until its parent has looked; without an init process for ever.
    return kernel_fields(number)[:1] != ["Z"]


def _is_alive_on_windows(number: int) -> bool:
    # os.kill(pid, 0) would end the process on Windows; and one that has ended can be opened while others hold it.
    import ctypes

    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    handle = kernel.OpenProcess(_QUERY, False, number)
    if not handle:
        return False
    code = ctypes.c_ulong()
    told = kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return not told or code.value == _STILL_ACTIVE


def _start_on_windows(number: int) -> str:
    import ctypes

    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    handle = kernel.OpenProcess(_QUERY, False, number)
    if not handle:
        return ""
    times = [ctypes.c_ulonglong() for _ in range(4)]
    told = kernel.GetProcessTimes(handle, *(ctypes.byref(one) for one in times))
    kernel.CloseHandle(handle)
    return str(times[0].value) if told else ""
