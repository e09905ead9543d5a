"""What can be done with a run of the list: resumed, made a package of, deleted; and what is there to look at.

>>> run = read_run(folder)                                                                  # doctest: +SKIP
>>> why_not_resume(run) or resume_run(folder)                                               # doctest: +SKIP
>>> why_not_delete(run) or delete_run(folder)                                               # doctest: +SKIP

All but :class:`Packing` is for a thread, because it looks at files.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from HybridMIMLib.config import Run, user_path, workspace
from HybridMIMLib.data.model_store import locate
from HybridMIMLib.errors import DiskError, HybridMIMError, RunError
from HybridMIMLib.events import duration
from HybridMIMLib.files import TEMPORARY, size_in_words
from HybridMIMLib.runs import command_of, living_owner, load_settings, other_machine, runs_folder
from HybridMIMLib.slicer_side.child import Child, last_lines, library_command
from HybridMIMLib.slicer_side.job_folder import JobFolder
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED, LOG, STOPPED, Job, ProcessWork, start_job, why_it_died
from HybridMIMLib.slicer_side.run_list import (
    AT_WORK,
    DAMAGED,
    MISSING,
    STARTING,
    RunInfo,
    forget,
    is_run,
    read_run,
    remembered,
    workspace_runs,
)

_INPUTS = {
    "prepare": ("unlabelled", "labelled"),
    "pretrain": ("unlabelled",),
    "finetune": ("labelled", "weights"),
    "train": ("unlabelled", "labelled", "weights"),
    "study": ("unlabelled", "labelled"),
    "demo": ("unlabelled", "labelled"),
    "segment": ("scans", "model"),
    "rank": ("scans", "model"),
    "evaluate": ("predictions", "references", "compare"),
}
"""Settings that name what a command reads, which has to be where it was."""

_IN_WORDS = {
    "unlabelled": "unlabelled scans",
    "labelled": "labelled scans",
    "weights": "pre-trained weights",
    "scans": "scans",
    "model": "model",
    "predictions": "segmentations",
    "references": "references",
    "compare": "other segmentations",
}
_REPORTS = (
    "report.html",
    "cross-validation/report.html",
    "fine-tuning/cross-validation/report.html",
    "scene/*.png",
    "previews/step_*.png",
    "pre-training/previews/step_*.png",
    "pre-training/*/previews/step_*.png",
)
"""What people look at, the best first; of several the last by name, which is the latest."""

_DELETED = f"{TEMPORARY}deleted-"
_SECONDS_TO_DELETE = 3600
_TRIES = 5
_LONGEST_SETTINGS = 1_000_000


@dataclass(frozen=True)
class RunDetails:
    """What is looked up of a run when it is chosen.

    Attributes:
        folder: of the run.
        lacks: what it reads and cannot be found, a sentence each.
        report: a page or a picture to open, or None.
        used_by: names of other runs whose settings name this folder.
        problem: why its settings cannot be read; empty if they can.
        holds: why its folder must not be deleted, because it holds more than the run; empty if it does not.
    """

    folder: Path
    lacks: tuple[str, ...] = ()
    report: Path | None = None
    used_by: tuple[str, ...] = ()
    problem: str = ""
    holds: str = ""


def look_closer(run: RunInfo) -> RunDetails:
    """What the list does not tell."""
    if run.state == MISSING:
        return RunDetails(run.folder)
    lacks, problem = _check_inputs(run)
    users = tuple(_users(run.folder))
    return RunDetails(run.folder, lacks, _report(run.folder), users, problem, _what_it_holds(run.folder))


def describe(run: RunInfo, details: RunDetails | None, size: int | None) -> str:
    """What is known of a run, in a few lines.

    Args:
        details: None while they are looked up.
        size: bytes of its folder, None while they are counted.
    """
    began = f"began {run.began[:16].replace('T', ' ')}" if run.began else ""
    facts = [
        began + (f" on {run.host}" if began and run.host else ""),
        f"{duration(run.seconds)} of work" if run.seconds >= 1 else "",
        f"best Dice {run.dice:.3f}" if run.dice is not None else "",
        size_in_words(size) if size is not None else "",
    ]
    told = ", ".join(fact for fact in facts if fact)
    if run.state == MISSING:
        return f"{run.name}: {run.state}.\n{run.reason}\n{run.place}"
    lines = [
        f"{run.name}: {run.kind}, {run.state_in_words}.",
        f"Reason: {run.reason}" if run.state == FAILED and run.reason else run.reason,
        f"{told[:1].upper()}{told[1:]}." if told else "",
    ]
    if not run.is_at_work and run.progress_in_words and run.state != FINISHED:
        lines.append(f"It came to: {run.progress_in_words}.")
    if details is not None and not run.is_at_work:
        lines += details.lacks
        lines.append(f"Other runs use it: {', '.join(details.used_by)}." if details.used_by else "")
        lines.append("" if why_not_resume(run, details) else "Resume goes on with it.")
    lines.append(run.place if run.is_elsewhere else "")
    return "\n".join(line for line in lines if line)


# --- following, resuming ----------------------------------------------------------------------------------------


def why_not_attach(run: RunInfo) -> str:
    """Why a run cannot be followed, as a sentence; empty if it can."""
    if run.machine:
        return f"The machine {run.machine} works on it; it can be followed there."
    if run.state == STARTING:
        return "It is just starting: wait a moment."
    if run.state != AT_WORK:
        return "Nobody works on it."
    if not run.is_followable:
        return f"It is at work inside another program (process {run.owner}), which would be stopped with it."
    return ""


def why_not_resume(run: RunInfo, details: RunDetails | None = None) -> str:
    """Why a run cannot be continued, as a sentence; empty if it can.

    Args:
        details: of the run, if they are known.
    """
    if run.state == AT_WORK:
        who = f"The machine {run.machine}" if run.machine else f"Process {run.owner}"
        return f"{who} is working on it."
    reasons = {FINISHED: "It is finished.", STARTING: "It is just starting: wait a moment."}
    if run.state in (DAMAGED, MISSING, *reasons):
        return reasons.get(run.state, run.reason)
    if run.command not in _INPUTS:
        return "It failed before it wrote down what it was to do; start it anew."
    if details is not None and (details.problem or details.lacks):
        return details.problem or " ".join(details.lacks)
    return ""


def resume_run(folder: Path) -> Job:
    """Go on with a run: the same command on the same folder, with the settings that it wrote down.

    Its log, which may be long, is not read, so that a window may call this.

    Raises:
        RunError: it cannot be continued, or the process cannot be started.
    """
    try:
        is_there = is_run(folder)
    except OSError:
        is_there = False
    if not is_there:
        raise RunError(
            f"{os.fsencode(folder).decode('utf-8', 'replace')}: cannot be resumed, there is no run in this folder",
            cure="It was moved or deleted, or its drive is missing: put it back, or choose another.",
        )
    owner, machine = living_owner(folder), other_machine(folder) or ""
    state = AT_WORK if owner or machine else FINISHED if os.path.exists(folder / "result.json") else STOPPED
    run = RunInfo(folder, state, command_of(folder) or "", owner=owner, machine=machine)
    lacks, problem = _check_inputs(run)
    if reason := why_not_resume(run, RunDetails(folder, lacks, problem=problem)):
        raise RunError(f"{run.place}: cannot be resumed", cure=reason)
    return start_job(run.command, {"config": folder / "run.yaml"}, folder)


def _check_inputs(run: RunInfo) -> tuple[tuple[str, ...], str]:
    """What cannot be found of what a run reads, and why its settings cannot be read."""
    try:
        settings = load_settings(run.folder / "run.yaml")
    except HybridMIMError as error:
        return (), str(error)
    except ImportError:
        return (), "Its settings cannot be read without the package PyYAML: see Environment."
    return tuple(_lacks(run, settings)), ""


def _lacks(run: RunInfo, settings: Run) -> Iterator[str]:
    for name in _INPUTS.get(run.command, ()):
        text = getattr(settings, name)
        if not text or _is_there(name, text):
            continue
        yield f"The {_IN_WORDS[name]} cannot be found: {text}. {_what_helps(name, text)}"
    if run.state == FINISHED and run.command in ("finetune", "train", "demo") and run.model is None:
        yield "The model that it made is not in its folder any more."


def _what_helps(name: str, text: str) -> str:
    if name == "model" and not set(text) & {"/", "\\"}:
        return "Import the model of that name again."
    if not os.path.isabs(os.path.expanduser(text)):
        return "That path begins where the run was started: resume it in a terminal there."
    where = _moved_to(text)
    if where:
        return f"It may be {where} now; a run goes on only with what it began with, where that was."
    return "Put it back, or connect its drive."


def _is_there(name: str, text: str) -> bool:
    try:
        return (locate(text) if name == "model" else user_path(text)).exists()
    except (HybridMIMError, OSError, ValueError):
        return False


def _moved_to(text: str) -> Path | None:
    """Where something of the workspace may be, since the workspace has moved."""
    # A path may be of another system, whose separators are others.
    parts = text.replace("\\", "/").split("/")
    if "runs" not in parts or ".." in parts:
        return None
    path = runs_folder().joinpath(*parts[len(parts) - parts[::-1].index("runs") :])
    return path if path != runs_folder() and path.exists() else None


def _report(folder: Path) -> Path | None:
    with suppress(OSError):
        for pattern in _REPORTS:
            if found := sorted(folder.glob(pattern)):
                return found[-1]
    return None


def _users(folder: Path) -> Iterator[str]:
    """Other runs whose settings name something in this one."""
    hint = folder.name.split()[0]
    for other in {*workspace_runs(), *remembered()} - {folder}:
        file = other / "run.yaml"
        # Only what may name it is parsed, which takes its time.
        with suppress(OSError, ValueError, ImportError, HybridMIMError):
            if file.stat().st_size < _LONGEST_SETTINGS and hint in file.read_text(encoding="utf-8"):
                settings = load_settings(file)
                if any(_is_in(getattr(settings, name), folder) for name in ("store", *_IN_WORDS)):
                    yield other.name


def _is_in(text: str | None, folder: Path) -> bool:
    return text is not None and (text == str(folder) or text.startswith((f"{folder}{os.sep}", f"{folder}/")))


# --- a package --------------------------------------------------------------------------------------------------


class Packing(ProcessWork):
    """A process that makes a package of a model, to hand on.

    Args:
        model: folder of the model.
        target: the ``.zip`` to write.

    Raises:
        HybridMIMError: the process cannot be started.
    """

    def __init__(self, model: Path, target: Path) -> None:
        self._temporary, self._target = JobFolder(), target
        folder = self._temporary.path
        command = library_command("model pack", [f"--model={model}", f"--output={target}"])
        try:
            super().__init__(folder, Child(command, folder / LOG))
        except HybridMIMError:
            self._temporary.remove()
            raise
        self.progress.take({"kind": "phase", "phase": "Making a package", "step": 0, "steps": 1})

    def _listen(self) -> None:
        """It tells nothing before its end."""

    def _end(self) -> None:
        code = self._process.exit_code
        self.said = last_lines(self.folder / LOG, 20)
        if code == 0:
            self.state, self.message = FINISHED, f"The package is {self._target}."
            self.result = {"package": str(self._target)}
        else:
            # What it was writing has a name of its own, which nobody else uses.
            for rest in self._target.parent.glob(f"{TEMPORARY}*-{self._target.name[-60:]}"):
                with suppress(OSError):
                    rest.unlink()
            self.state = STOPPED if self._asked else FAILED
            self.message = "Stopped." if self._asked else str(why_it_died(code, self.said[-4:]))
        self._temporary.is_removed()


# --- deleting ---------------------------------------------------------------------------------------------------


def why_not_delete(run: RunInfo, details: RunDetails | None = None) -> str:
    """Why a run may not be deleted, as a sentence; empty if it may.

    Args:
        details: of the run, if they are known.
    """
    if run.state == MISSING:
        return "Its folder is not there."
    if run.state == STARTING:
        return "It is just starting: wait a moment."
    if run.state == AT_WORK:
        who = f"The machine {run.machine}" if run.machine else f"Process {run.owner}"
        return f"{who} is working on it: stop it first."
    return details.holds if details is not None else ""


def delete_run(folder: Path) -> str:
    """Delete the folder of a run and nothing else; returns what to tell the user.

    It gets another name first, so that what is half deleted is no run to anybody. Where the folder is a link, or has
    links in it, these go, and what they lead to stays.

    Raises:
        RunError: somebody works on it, or it may not be deleted.
        DiskError: it could not be deleted.
    """
    run = read_run(folder)
    if reason := why_not_delete(run, RunDetails(folder, holds=_what_it_holds(folder))):
        raise RunError(f"{run.place}: is not deleted", cure=reason)
    remove_leftovers()
    if folder.is_symlink():
        with _deletion_of(folder):
            folder.unlink()
        _forget(folder)
        return f"Removed the link {run.name}; what it led to is still there."
    away = _put_away(folder)
    _delete(away)
    _forget(folder)
    if os.path.lexists(away):
        raise DiskError(
            f"{away}: some of its files could not be deleted", cure="Close what uses them, then remove that folder."
        )
    return f"Deleted {run.name}."


def remove_leftovers() -> None:
    """Delete what was not deleted to its end long ago, because Slicer was closed or a file was in use."""
    for path in runs_folder().glob(f"{_DELETED}*"):
        when = path.name[len(_DELETED) :].partition("-")[0]
        if when.isdigit() and time.time() - int(when) > _SECONDS_TO_DELETE:
            shutil.rmtree(path, ignore_errors=True)


def _forget(folder: Path) -> None:
    """A full disk must not keep anybody from making room."""
    if folder in remembered():
        with suppress(HybridMIMError):
            forget(folder)


def _put_away(folder: Path) -> Path:
    """Give it another name, unless somebody has begun to work in it."""
    away = folder.with_name(f"{_DELETED}{int(time.time())}-{uuid.uuid4().hex[:8]}")
    with _deletion_of(folder):
        os.replace(folder, away)
    at_work = next((place for place in _places_of_work(away) if living_owner(place) or other_machine(place)), None)
    if at_work is not None:
        os.replace(away, folder)
        owner = living_owner(folder / at_work.relative_to(away)) or "of another machine"
        raise RunError(f"{folder}: is not deleted", cure=f"Process {owner} is working in it: stop it first.")
    return away


@contextmanager
def _deletion_of(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{folder}: cannot be deleted ({error.strerror})",
            cure="Close what uses its files, or see who may change that folder, then try again.",
        ) from error


def _places_of_work(folder: Path) -> Iterable[Path]:
    """The run itself, and those inside it: a study has one for each of its cells."""
    return (file.parent for depth in ("", "*/", "*/*/") for file in folder.glob(f"{depth}run.pid"))


def _what_it_holds(folder: Path) -> str:
    """Why a folder must not go, although a run is in it: it holds more than that."""
    real = Path(os.path.realpath(folder))
    kept = {Path(os.path.realpath(one)): name for name, one in _kept().items()}
    for one, name in kept.items():
        if not folder.is_symlink() and (real == one or real in one.parents):
            return f"It holds {name} ({one})."
    others = [one for one in remembered() if not folder.is_symlink() and folder in one.parents]
    return f"It holds another run ({others[0]})." if others else ""


def _kept() -> dict[str, Path]:
    places = {"your workspace": workspace(), "the folder of all runs": runs_folder(), "your home folder": Path.home()}
    with suppress(OSError):
        places["the folder in which this program works"] = Path.cwd()
    return places


def _delete(folder: Path) -> None:
    """Delete what can be deleted, also what may only be read; nothing outside the folder is changed."""

    def allow(_do: Callable[..., object], path: str, _error: object) -> None:
        for one in (os.path.dirname(path), path):
            # The permissions of a link are those of what it leads to.
            if os.path.commonpath([one, folder]) == str(folder) and not os.path.islink(one):
                with suppress(OSError):
                    os.chmod(one, stat.S_IRWXU)

    name: str = "onexc" if sys.version_info >= (3, 12) else "onerror"
    for _ in range(_TRIES):
        shutil.rmtree(folder, **cast(Any, {name: allow}))
        if not os.path.lexists(folder):
            return
