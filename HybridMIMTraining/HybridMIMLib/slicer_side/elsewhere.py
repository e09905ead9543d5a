"""Runs that are computed on another machine: exported as a folder, and taken back as a run of the workspace.

    >>> made = finish(export_steps(ExportSettings("out", "train", {"labelled": "cases"})))       # doctest: +SKIP
    >>> made.describe()                                                                          # doctest: +SKIP
    >>> back = finish(import_steps(Path("out")))                 # or out.zip, or out/run         # doctest: +SKIP
    >>> back.run, back.model                                                                     # doctest: +SKIP

Both are work of a process of its own (:mod:`HybridMIMLib.elsewhere_job`), which copies under a temporary name and
renames at the end; what a process that was ended has left is removed here.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from HybridMIMLib.config import user_path, workspace
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.files import TEMPORARY, make_folder, size_in_words
from HybridMIMLib.runs import command_of, living_owner, other_machine, runs_folder
from HybridMIMLib.slicer_side.child_steps import in_child, with_folder
from HybridMIMLib.slicer_side.steps import Steps

COMMANDS = {
    "pretrain": "Pre-train",
    "finetune": "Fine-tune",
    "train": "Pre-train and fine-tune",
    "study": "Study",
}
"""What can be exported, and what to call it."""

_MODULE = "HybridMIMLib.elsewhere_job"
_WORK = f"{TEMPORARY}elsewhere-"
_SECONDS_TO_COPY = 24 * 3600
_NEEDS = {"pretrain": ("unlabelled",), "finetune": ("labelled",), "train": (), "study": ("unlabelled", "labelled")}


@dataclass(frozen=True)
class ExportSettings:
    """What to export, and where to.

    Attributes:
        target: a new or empty folder.
        command: one of :data:`COMMANDS`.
        options: of the command line, without the dashes; not used where a run is continued.
        run: a run folder to be continued elsewhere, or None.
        copy_scans: whether scans are copied; otherwise the other machine has to see them under the same paths.
        copy_store: whether prepared scans are copied.
    """

    target: str
    command: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    run: Path | None = None
    copy_scans: bool = True
    copy_store: bool = False

    def why_not(self) -> str:
        """Why it cannot be exported, as a sentence; empty if it can."""
        if not self.target.strip():
            return "No folder to export to is chosen; choose a new or empty one."
        if self.run is None:
            for kind in _NEEDS.get(self.command, ()):
                if not self.options.get(kind):
                    return f"No folder of {kind} scans is chosen, under Data; choose one."
            if not (self.options.get("unlabelled") or self.options.get("labelled")):
                return "No folder of scans is chosen, under Data; choose one."
        # Unlike the methods of Path this answers for names that are too long, and for folders that are locked, too.
        target = os.path.expanduser(self.target.strip())
        if os.path.isfile(target):
            return f"This is a file: {self.target}. Choose a folder."
        if not os.path.isdir(os.path.dirname(os.path.abspath(target))):
            return f"There is no folder in which this could be made: {self.target}. Choose another."
        if os.path.isdir(target):
            try:
                is_empty = not os.listdir(target)
            except OSError as error:
                return f"The folder cannot be read ({error.strerror}): {self.target}. Choose another."
            if not is_empty:
                return f"The folder is not empty: {self.target}. Choose a new or empty one."
        return ""


@dataclass(frozen=True)
class Exported:
    """A folder that is ready for another machine.

    Attributes:
        folder: that was written.
        command: that the run is of.
        size: bytes, of what was copied.
        commands: kind of machine → what to type there, in the folder.
    """

    folder: Path
    command: str
    size: int
    commands: Mapping[str, str]

    def describe(self) -> str:
        """What to do with it."""
        lines = [
            f"Exported to {self.folder} ({size_in_words(self.size)}). Copy it to the other machine, and type there:",
            *(f"{kind}: {text}" for kind, text in self.commands.items()),
            "Its README.md says the rest.",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class TakenBack:
    """A run that has come back.

    Attributes:
        run: its folder, in the workspace.
        command: that it is of.
        finished: whether it is.
        model: a model that it made, or None.
        notes: what the user should know.
    """

    run: Path
    command: str
    finished: bool
    model: Path | None
    notes: tuple[str, ...]

    def describe(self) -> str:
        """What was taken back."""
        what = "with its model" if self.model else "finished" if self.finished else "to be continued"
        return " ".join([f"Imported as the run {self.run.name}, {what}.", *self.notes])


def export_steps(settings: ExportSettings) -> Steps[Exported]:
    """Write the folder; closed early, nothing of it is left.

    Raises:
        SettingsError: something is not chosen or not there.
        RunError, DiskError: it could not be written; nothing of it is left.
    """
    if reason := settings.why_not():
        message, _, cure = reason.replace("; ", ". ").partition(". ")
        raise SettingsError(message, cure=f"{cure[:1].upper()}{cure[1:]}")
    target = user_path(settings.target.strip()).absolute()
    job = {
        "do": "export",
        "target": str(target),
        "command": settings.command,
        "options": {name: _as_text(value) for name, value in settings.options.items()},
        "run": None if settings.run is None else str(settings.run),
        "copy_scans": settings.copy_scans,
        "copy_store": settings.copy_store,
    }
    made = yield from _beside(target.parent, job, "Looking for the scans")
    return Exported(Path(made["folder"]), str(made["command"]), int(made["bytes"]), dict(made["commands"]))


def import_steps(source: Path) -> Steps[TakenBack]:
    """Make what came back a run of this workspace; closed early, nothing of it is left.

    Args:
        source: a run folder, an exported folder, or a ``.zip`` of either.

    Raises:
        RunError: something is wrong with it; the message names the file and the cure.
        DiskError: there is no room.
    """
    make_folder(workspace())
    job = {"do": "import", "source": str(source.absolute())}
    found = yield from _beside(workspace(), job, "Looking at what came back")
    model = Path(found["model"]) if found["model"] else None
    return TakenBack(
        Path(found["run"]), str(found["command"]), bool(found["finished"]), model, tuple(map(str, found["notes"]))
    )


def unfinished_runs() -> list[Path]:
    """The runs of the workspace that another machine could continue, the newest first; for a thread."""
    found = []
    for file in runs_folder().glob("*/run.yaml"):
        folder = file.parent
        if command_of(folder) not in COMMANDS or (folder / "result.json").exists():
            continue
        if living_owner(folder) is None and other_machine(folder) is None:
            with suppress(OSError):
                found.append((file.stat().st_mtime, folder))
    return [folder for _, folder in sorted(found, reverse=True)]


def _as_text(value: object) -> object:
    """An option as it can be handed on in JSON and is then read by the command line."""
    return value if isinstance(value, (str, int, float, bool, list, type(None))) else str(value)


def _beside(place: Path, job: Mapping[str, Any], text: str) -> Steps[dict[str, Any]]:
    """Do a job that writes into a temporary folder in ``place``, which is removed however it ends."""
    work = place / f"{_WORK}{uuid.uuid4().hex[:8]}"
    threading.Thread(target=_remove_old, args=(place,), daemon=True).start()
    try:
        whole = {**job, "work": str(work)}
        return (yield from with_folder(lambda folder: in_child(_MODULE, whole, folder, text)))
    finally:
        # The process may have been killed; a large folder takes a while to remove, and nobody waits for it.
        threading.Thread(target=partial(shutil.rmtree, work, ignore_errors=True), daemon=True).start()


def _remove_old(place: Path) -> None:
    """What is left of copies whose Slicer was killed."""
    for path in place.glob(f"{_WORK}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _SECONDS_TO_COPY:
                shutil.rmtree(path, ignore_errors=True)
