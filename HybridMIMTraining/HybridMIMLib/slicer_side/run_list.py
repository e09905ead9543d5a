"""The runs of the workspace: what each is, how far it is, and whether somebody works on it.

    >>> runs = RunList()                                                                        # doctest: +SKIP
    >>> while not runs.look():                       # for a thread: it reads files
    ...     pass
    >>> for run in runs.found:
    ...     print(run.name, run.kind, run.state_in_words)

A run is known by its folder, and by nothing that is written in it: a workspace that was moved has its runs where it
is now. Runs that lie elsewhere are remembered in the workspace (:func:`remember`).
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from HybridMIMLib.config import workspace
from HybridMIMLib.data.model_description import METADATA
from HybridMIMLib.errors import RunError
from HybridMIMLib.files import TEMPORARY, read_json, write_json
from HybridMIMLib.runs import is_command, living_owner, other_machine, runs_folder
from HybridMIMLib.slicer_side.child import last_lines
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED, LOG, STOPPED
from HybridMIMLib.slicer_side.progress import PHASES
from HybridMIMLib.slicer_side.run_log import RunLog

AT_WORK, STARTING, DIED, DAMAGED, MISSING = "at work", "starting", "died", "damaged", "not found"
"""States besides finished, stopped and failed."""

KINDS = {
    "prepare": "preparing scans",
    "pretrain": "pre-training",
    "finetune": "fine-tuning",
    "train": "training",
    "study": "study",
    "demo": "demo",
    "segment": "segmenting",
    "rank": "ranking",
    "evaluate": "evaluation",
    "estimate": "estimate",
}
"""Commands that work in a run folder, and what to call that."""

_SIGNS = ("run.yaml", "about.json", "run.pid", "events.jsonl", "result.json", LOG)
_SECONDS_TO_START = 60.0
_ERROR = re.compile(r"[\w.]*Error\b")
_MODELS = ("model", "fine-tuning/model")


@dataclass(frozen=True)
class RunInfo:
    """What is known of a run.

    Attributes:
        folder: of it.
        state: at work, starting, finished, stopped, failed, died (its process has gone without a word), damaged (its
            files cannot be read) or not found.
        command: that began it; empty where that is not known.
        reason: why it failed, died, is damaged or not found.
        owner: number of the process on this machine that works on it, or None.
        is_followable: whether that is a command of ours, which can be followed and asked to end.
        machine: the other machine that works on it; empty if none does.
        host: the machine on which it began.
        began: ISO 8601; empty where that is not known.
        seconds: of work, without pauses.
        phase, step, steps: how far it is.
        dice: best mean Dice, on validation, test or unseen scans, or None.
        model: folder of the model package that it made, or None.
        is_elsewhere: whether it lies outside the workspace and is remembered there.
    """

    folder: Path
    state: str
    command: str = ""
    reason: str = ""
    owner: int | None = None
    is_followable: bool = False
    machine: str = ""
    host: str = ""
    began: str = ""
    seconds: float = 0.0
    phase: str = ""
    step: int = 0
    steps: int = 0
    dice: float | None = None
    model: Path | None = None
    is_elsewhere: bool = False

    @property
    def name(self) -> str:
        """Of the folder, as it can be shown: bytes that are no text are replaced."""
        return os.fsencode(self.folder.name).decode("utf-8", "replace")

    @property
    def place(self) -> str:
        """The whole path, as it can be shown."""
        return os.fsencode(self.folder).decode("utf-8", "replace")

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return KINDS.get(self.command, self.command or "unknown")

    @property
    def is_at_work(self) -> bool:
        """Whether somebody works on it, or may be about to."""
        return self.state in (AT_WORK, STARTING)

    @property
    def state_in_words(self) -> str:
        """The state, and who works on it."""
        if self.state != AT_WORK:
            return self.state
        if self.machine:
            return f"at work on {self.machine}"
        return f"at work, process {self.owner}" if self.is_followable else f"at work in program {self.owner}"

    @property
    def progress_in_words(self) -> str:
        """Phase and step; empty before the first."""
        if not self.phase:
            return ""
        phase = PHASES.get(self.phase, self.phase)
        return f"{phase}, {self.step} of {self.steps}" if self.steps > 1 else phase


class RunList:
    """All runs, looked at again and again; what has not changed is not read again.

    Attributes:
        found: the runs, the latest first; after the first complete :meth:`look` all of them.
    """

    def __init__(self) -> None:
        self.found: list[RunInfo] = []
        self._readers: dict[Path, _Reader] = {}
        self._waiting: list[tuple[Path, bool]] = []
        self._infos: dict[Path, RunInfo] = {}
        # A look that nobody waits for any more may still be at it.
        self._lock = threading.Lock()

    def look(self, seconds: float = 0.3) -> bool:
        """Look at some of the runs; returns whether that were the last of all. For a thread.

        Args:
            seconds: after which no further run is begun.
        """
        with self._lock:
            if not self._waiting:
                self._waiting = self._list()
            end = time.monotonic() + seconds
            while self._waiting and time.monotonic() < end:
                self._look_at(*self._waiting.pop(0))
            self.found = sorted(self._infos.values(), key=lambda run: (run.began, run.name), reverse=True)
            return not self._waiting

    def _list(self) -> list[tuple[Path, bool]]:
        folders = [(folder, False) for folder in workspace_runs()]
        folders += [(folder, True) for folder in remembered()]
        there = {folder for folder, _ in folders}
        self._readers = {folder: one for folder, one in self._readers.items() if folder in there}
        self._infos = {folder: one for folder, one in self._infos.items() if folder in there}
        return folders

    def _look_at(self, folder: Path, is_elsewhere: bool) -> None:
        reader = self._readers.setdefault(folder, _Reader(folder, is_elsewhere))
        info = reader.look()
        if info is None:
            self._infos.pop(folder, None)
        else:
            self._infos[folder] = info


def read_run(folder: Path) -> RunInfo:
    """One run as it is now; for a thread, for its log may be long."""
    path = _absolute(folder)
    info = _Reader(path, path.parent != _absolute(runs_folder())).look()
    return info or RunInfo(path, MISSING, reason="There is no run in this folder.")


def workspace_runs() -> list[Path]:
    """The folders in which runs of the workspace are, the latest first by their names' age on the disk."""
    try:
        with os.scandir(_absolute(runs_folder())) as entries:
            found = [(_modified(entry.path), entry.path) for entry in entries if not entry.name.startswith(TEMPORARY)]
    except OSError:
        return []
    return [Path(path) for _age, path in sorted(found, reverse=True)]


def is_run(folder: Path) -> bool:
    """Whether a folder looks like that of a run.

    Raises:
        OSError: it cannot be looked into.
    """
    names = set(os.listdir(folder))
    # A log alone is what an attempt leaves that failed before it knew what to do.
    return not names.isdisjoint(_SIGNS[:-1]) or (LOG in names and len(names) == 1)


# --- runs elsewhere ---------------------------------------------------------------------------------------------


def remember(folder: Path) -> Path:
    """List a run that lies outside the workspace from now on; returns its whole path.

    Raises:
        RunError: there is no run in the folder.
        DiskError: it cannot be written down.
    """
    path = _absolute(folder)
    try:
        is_one = is_run(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be looked into ({error.strerror})", cure="Choose another folder.") from error
    if not is_one:
        raise RunError(f"{path}: there is no run in this folder", cure="Choose the folder that has a run.yaml in it.")
    if path.parent != _absolute(runs_folder()):
        _write_notes([path, *(one for one in remembered() if one != path)])
    return path


def forget(folder: Path) -> None:
    """List a run that lies outside the workspace no more; its folder stays as it is.

    Raises:
        DiskError: that cannot be written down.
    """
    _write_notes([one for one in remembered() if one != _absolute(folder)])


def remembered() -> list[Path]:
    """The runs outside the workspace, whether they are there or not, the latest to be remembered first."""
    try:
        texts = read_json(_notes_file())
    except (OSError, ValueError):
        return []
    return [Path(text) for text in texts if isinstance(text, str) and text] if isinstance(texts, list) else []


def _write_notes(folders: Iterable[Path]) -> None:
    write_json(_notes_file(), [str(one) for one in folders])


def _notes_file() -> Path:
    return workspace() / "runs_elsewhere.json"


# --- one run ----------------------------------------------------------------------------------------------------


class _JsonFile:
    """A file that holds a dictionary, read again when it has changed.

    Attributes:
        content: of it; empty if it is not there or cannot be read.
        problem: why it cannot be read; empty if it can, or is not there.
        is_there: whether it is.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._seen = file, (0, 0)
        self.content: Mapping[str, Any] = {}
        self.problem, self.is_there = "", False

    def look(self) -> None:
        try:
            about = self._file.stat()
        except OSError:
            self.content, self.problem, self.is_there, self._seen = {}, "", False, (0, 0)
            return
        self.is_there = True
        if self._seen != (about.st_mtime_ns, about.st_size):
            self._seen = about.st_mtime_ns, about.st_size
            self._read()

    def _read(self) -> None:
        self.content, self.problem = {}, ""
        try:
            content = read_json(self._file)
        except (OSError, ValueError, RecursionError) as error:
            self.problem = f"{self._file.name} cannot be read ({error})"
            return
        if isinstance(content, dict):
            self.content = content
        else:
            self.problem = f"{self._file.name} is not what a run writes"


class _Reader:
    """Looks at one run."""

    def __init__(self, folder: Path, is_elsewhere: bool) -> None:
        self._folder, self._is_elsewhere = folder, is_elsewhere
        self._about, self._result = _JsonFile(folder / "about.json"), _JsonFile(folder / "result.json")
        self._log = RunLog(folder / "events.jsonl")

    def look(self) -> RunInfo | None:
        """The run as it is now; None if there is none in the folder, and none is remembered there."""
        try:
            if not is_run(self._folder):
                return self._gone("There is no run in this folder any more.")
            return self._look()
        except (FileNotFoundError, NotADirectoryError):
            return self._gone("The folder is not there: its drive may be missing, or it was moved or deleted.")
        except OSError as error:
            reason = f"It cannot be read ({error.strerror}). Look at the permissions of the folder."
            return RunInfo(self._folder, DAMAGED, self._command, reason, is_elsewhere=self._is_elsewhere)

    def _look(self) -> RunInfo:
        self._log.read()
        self._about.look()
        self._result.look()
        owner, machine = living_owner(self._folder), other_machine(self._folder) or ""
        if owner is not None or machine:
            return self._info(AT_WORK, "", owner, machine)
        return self._info(*self._state())

    def _gone(self, reason: str) -> RunInfo | None:
        return RunInfo(self._folder, MISSING, reason=reason, is_elsewhere=True) if self._is_elsewhere else None

    def _state(self) -> tuple[str, str]:
        """State and reason of a run that nobody works on."""
        told, message = self._log.progress.outcome, self._log.progress.message
        if self._about.problem or (self._about.is_there and not self._command):
            return DAMAGED, f"{self._about.problem or 'about.json does not tell which command began it'}."
        if self._result.problem:
            return DAMAGED, f"{self._result.problem}. Remove that file; then it can be resumed."
        if self._result.is_there:
            return FINISHED, ""
        # Of an attempt that died, what an earlier one told last is no news.
        if (self._folder / "run.pid").exists():
            return DIED, self._last_sign()
        if told == "failed":
            return FAILED, message
        if told == "stopped":
            return STOPPED, ""
        if told == "finished":
            return DAMAGED, "Its log says that it is finished, and its result.json is missing."
        return self._before_it_began()

    def _before_it_began(self) -> tuple[str, str]:
        """State of a folder in which nothing was told yet: the packages are loaded, or it failed at that."""
        lines = last_lines(self._folder / LOG, 20)
        errors = [line for line in lines if line.startswith("error: ") or _ERROR.match(line)]
        newest = max(_modified(str(self._folder / name)) for name in _SIGNS)
        if not errors and time.time() - newest < _SECONDS_TO_START:
            return STARTING, ""
        said = (errors or lines or ["It ended before it began to work."])[-1]
        return FAILED, said.removeprefix("error: ")

    def _last_sign(self) -> str:
        beat = _modified(str(self._folder / "heartbeat"))
        when = f" Its last sign of life was at {_iso(beat)[:16].replace('T', ' ')}." if beat else ""
        return (
            "Its process ended without a word: it was killed, memory ran out, or the computer was switched off."
            f"{when} What it had saved by then is kept."
        )

    @property
    def _command(self) -> str:
        command = self._about.content.get("command")
        return command if isinstance(command, str) else ""

    def _info(self, state: str, reason: str, owner: int | None = None, machine: str = "") -> RunInfo:
        told = self._log.progress
        began = self._about.content.get("began")
        return RunInfo(
            self._folder,
            state,
            command=self._command,
            reason=reason,
            owner=owner,
            is_followable=owner is not None and is_command(self._folder),
            machine=machine if owner is None else "",
            host=str(self._about.content.get("host") or ""),
            began=began if isinstance(began, str) and began else _iso(_modified(str(self._folder))),
            seconds=self._log.seconds,
            phase=told.phase,
            step=told.step,
            steps=told.steps,
            dice=_dice_of(self._result.content, self._log.dice),
            model=next((path for path in map(self._folder.joinpath, _MODELS) if (path / METADATA).is_file()), None),
            is_elsewhere=self._is_elsewhere,
        )


def _dice_of(result: Mapping[str, Any], told: float | None) -> float | None:
    """The best score that a run is known by: of its result, or, before there is one, of its log."""
    arms = result.get("arms")
    places: list[Any] = [result.get("validation"), result.get("dice"), result.get("mean")]
    places += [one.get("dice") for one in arms if isinstance(one, Mapping)] if isinstance(arms, list) else []
    numbers = [number for place in places for number in _numbers(place)]
    return max(numbers) if numbers else told


def _numbers(place: Any) -> Iterable[float]:
    """The mean Dice in a part of a result: ``{"mean": 0.8}``, or a figure of an evaluation."""
    for name in ("mean", "dice"):
        value = place.get(name) if isinstance(place, Mapping) else None
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:
            yield float(value)


def _modified(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _iso(moment: float) -> str:
    try:
        return datetime.fromtimestamp(moment).astimezone().isoformat(timespec="seconds") if moment else ""
    except (OSError, ValueError, OverflowError):
        return ""


def _absolute(folder: Path) -> Path:
    # Links stay as they are: what a link is called is what the user knows.
    return Path(os.path.abspath(folder))
