"""Every scan of a folder, segmented by a process that outlives Slicer; a table tells what has become of each.

    >>> batch = start_batch(BatchSettings("scans", "hippocampus", "segmented"))                 # doctest: +SKIP
    >>> while batch.update():                                                                   # doctest: +SKIP
    ...     print(batch.progress.describe(), batch.table.describe())
    ...     time.sleep(0.2)
    >>> batch = start_batch(settings)  # once more: what is done is passed over, the rest is tried again

The work is that of the command ``segment``, and the folder of results is its run folder. A later Slicer finds what it
left behind by the list that is kept in the workspace::

    >>> for note in recent_batches():                                                           # doctest: +SKIP
    ...     batch = attach_batch(note.folder)              # at work still: follow it as above
    ...     table = batch.table if batch else read_table(note.folder)

:func:`attach_batch` and :func:`read_table` read a whole log, which takes a while where there are thousands of scans:
a window has a thread do that (:class:`~HybridMIMLib.slicer_side.background.Background`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from HybridMIMLib.config import user_path, workspace
from HybridMIMLib.errors import HybridMIMError, SettingsError
from HybridMIMLib.events import DONE, FAILED, SKIPPED, WAITING, WORKING, Event, EventReader
from HybridMIMLib.files import read_json, write_json
from HybridMIMLib.runs import command_of, is_command, living_owner
from HybridMIMLib.slicer_side.child import OtherProcess, Process
from HybridMIMLib.slicer_side.jobs import LOG, Job, launch
from HybridMIMLib.slicer_side.models import find_model
from HybridMIMLib.slicer_side.progress import RunProgress

COMMAND = "segment"

_MOST_NOTES = 20
_LABEL_SUFFIXES = (".nrrd", ".nii.gz")
_KILLED = "Its process ended before the scan was finished, most often because memory ran out. Try it again."
_LITTER = {LOG, ".DS_Store", "Thumbs.db", "desktop.ini"}
"""What may lie in a folder that counts as empty."""


@dataclass(frozen=True)
class BatchSettings:
    """What to segment, with what, and where to.

    Attributes:
        scans: folder of scans.
        model: folder, ``.zip`` or name of a model package.
        output: folder for the results: new, empty, or that of an earlier batch, which is continued.
        device: auto, cpu, cuda, cuda:1, mps.
        inference: settings, as in the section of that name of a run.yaml.
    """

    scans: str
    model: str
    output: str
    device: str = "auto"
    inference: Mapping[str, Any] = field(default_factory=dict)

    def why_not(self) -> str:
        """Why the batch cannot start, as a sentence; empty if it can."""
        for text, what in ((self.scans, "folder of scans"), (self.model, "model"), (self.output, "output folder")):
            if not text.strip():
                return f"No {what} is chosen; choose one."
        if not os.path.isdir(os.path.expanduser(self.scans)):
            return f"The folder of scans is not there: {self.scans}. Choose another."
        output = os.path.expanduser(self.output)
        if os.path.isfile(output):
            return f"The output is a file: {self.output}. Choose a folder."
        if os.path.isdir(output) and not os.path.isfile(os.path.join(output, "run.yaml")):
            others = set(os.listdir(output)) - _LITTER
            if others:
                return f"The output folder is not empty: {self.output}. Choose a new or empty one."
        return ""

    def options(self) -> dict[str, object]:
        """The settings as options of the command."""
        inference = {f"inference.{name}": value for name, value in self.inference.items()}
        return {"scans": self.scans, "model": self.model, "device": self.device, **inference}


@dataclass
class CaseRow:
    """A scan of the batch.

    Attributes:
        name: of the case.
        scan: its file.
        state: waiting, working, done, skipped (it cannot be used) or failed (it may work when it is tried again).
        reason: why it was skipped or failed, and the cure.
    """

    name: str
    scan: str = ""
    state: str = WAITING
    reason: str = ""


class BatchTable:
    """A row a scan, kept up to date by the events of the run; for a table in a window or a table node.

    Attributes:
        rows: in the order of the folder.
        lists: counts up whenever the rows are others than before, and not only their states.
    """

    COLUMNS = ("Scan", "State", "Reason")

    def __init__(self) -> None:
        self.rows: list[CaseRow] = []
        self.lists = 0
        self._index: dict[str, int] = {}
        self._changed: set[int] = set()

    def take(self, event: Event) -> None:
        """Take in an event of the log, whatever is in it."""
        kind = event.get("kind")
        if kind == "cases" and isinstance(event.get("cases"), list):
            self._list(event["cases"])
        elif kind == "case":
            self._set(str(event.get("case")), str(event.get("state")), str(event.get("message", "")))
        elif kind == "end":
            self.end(str(event.get("outcome")), str(event.get("message", "")))

    def end(self, outcome: str, message: str = _KILLED) -> None:
        """No scan is at work any more.

        Args:
            outcome: finished, stopped or failed.
            message: why it failed, which is the fault of the scan that was at work.
        """
        for row in [row for row in self.rows if row.state == WORKING]:
            is_to_blame = outcome == "failed"
            self._set(row.name, FAILED if is_to_blame else WAITING, message if is_to_blame else "")

    def text(self, row: int, column: int) -> str:
        """What stands in a cell."""
        one = self.rows[row]
        # The row says already which scan it is about.
        reason = one.reason[len(one.scan) + 2 :] if one.reason.startswith(f"{one.scan}: ") else one.reason
        return (one.name, one.state, reason)[column]

    def take_changes(self) -> list[int]:
        """Numbers of the rows that have changed since this was asked last."""
        changed, self._changed = sorted(self._changed), set()
        return changed

    def counts(self) -> dict[str, int]:
        """How many scans are in each state."""
        found = Counter(row.state for row in self.rows)
        return {state: found[state] for state in (WAITING, WORKING, DONE, SKIPPED, FAILED)}

    def describe(self) -> str:
        """One line: "3 of 40 done, 1 skipped, 2 failed"; empty before the scans are known."""
        counts = self.counts()
        rest = [f"{counts[state]} {state}" for state in (SKIPPED, FAILED) if counts[state]]
        return ", ".join([f"{counts[DONE]} of {len(self.rows)} done", *rest]) if self.rows else ""

    def _list(self, cases: list[Any]) -> None:
        before = {row.name: row for row in self.rows}
        self.rows = []
        for one in cases:
            if isinstance(one, dict) and one.get("name"):
                row = CaseRow(str(one["name"]), str(one.get("scan", "")), _state(str(one.get("state"))))
                # It is tried again; until it has been, why it failed is of interest.
                row.reason = before[row.name].reason if row.name in before and row.state == WAITING else ""
                self.rows.append(row)
        self._index = {row.name: number for number, row in enumerate(self.rows)}
        self._changed = set(range(len(self.rows)))
        self.lists += 1

    def _set(self, name: str, state: str, reason: str) -> None:
        number = self._index.get(name)
        if number is not None:
            self.rows[number].state, self.rows[number].reason = _state(state), reason
            self._changed.add(number)


@dataclass
class BatchProgress(RunProgress):
    """What a panel knows of a batch.

    Attributes:
        table: a row a scan.
    """

    table: BatchTable = field(default_factory=BatchTable)

    def take(self, event: Event) -> None:
        """Take in one event."""
        super().take(event)
        self.table.take(event)


class Batch(Job):
    """A batch at work; see the head of this file."""

    def __init__(self, folder: Path, process: Process, events: EventReader) -> None:
        super().__init__(folder, process, events)
        self.progress: BatchProgress = BatchProgress()

    @property
    def table(self) -> BatchTable:
        """What has become of each scan."""
        return self.progress.table

    def catch_up(self) -> None:
        """Take in what the log has told until now."""
        with suppress(OSError):
            for event in self._events.read():
                self.progress.take(event)

    def _end(self) -> None:
        try:
            super()._end()
        finally:
            self.table.end(self.state, self.message)

    def _take_result(self) -> str:
        return f"{self.table.describe() or 'Done'}. The label maps are in {self.folder / 'labels'}."


@dataclass(frozen=True)
class BatchNote:
    """A batch of the past, or of now.

    Attributes:
        settings: with which it was started.
        began: when that was last, ISO 8601.
    """

    settings: BatchSettings
    began: str

    @property
    def folder(self) -> Path:
        """Of its results."""
        return user_path(self.settings.output)


def start_batch(settings: BatchSettings) -> Batch:
    """Start a batch, or go on with the one that the output folder holds: done scans are passed over if neither they
    nor the model nor the settings have changed, and all others are tried (again).

    Raises:
        SettingsError: something is not chosen or not there, or the folder holds results of another model.
        HybridMIMError: the process cannot be started.
    """
    if reason := settings.why_not():
        message, _, cure = reason.replace("; ", ". ").partition(". ")
        raise SettingsError(message, cure=f"{cure[:1].upper()}{cure[1:]}")
    folder = user_path(settings.output)
    at_work = attach_batch(folder)
    if at_work is not None:
        return at_work
    _check_model(settings, folder)
    batch = Batch(folder, *launch(COMMAND, settings.options(), folder))
    _keep_note(settings)
    return batch


def _check_model(settings: BatchSettings, folder: Path) -> None:
    """That the folder is not known to hold results of another model: the list would lose which one that was."""
    before = next((note for note in _read_notes() if note.folder == folder.absolute()), None)
    if before is None or not (folder / "run.yaml").is_file():
        return
    try:
        is_same = find_model(before.settings.model).path == find_model(settings.model).path
    except HybridMIMError:
        # The process tells what is wrong with it.
        return
    if not is_same:
        raise SettingsError(
            f"{settings.output} holds results of another model ({before.settings.model})",
            cure="Choose that model, or another output folder.",
        )


def attach_batch(folder: Path) -> Batch | None:
    """The batch that a process, whoever started it, is doing in a folder now; None if there is none.

    Its log is read: for a thread, where it may be long.
    """
    pid = living_owner(folder)
    if pid is None or not is_command(folder) or command_of(folder) != COMMAND:
        return None
    batch = Batch(folder, OtherProcess(folder, pid), EventReader(folder / "events.jsonl"))
    batch.catch_up()
    return batch


def read_table(folder: Path) -> BatchTable:
    """What has become of the scans of a batch that is not at work; its log is read, as :func:`attach_batch` does."""
    table = BatchTable()
    with suppress(OSError):
        for event in EventReader(folder / "events.jsonl").read():
            table.take(event)
    # A process that was killed, or a machine that was switched off, said nothing.
    table.end("failed")
    return table


def label_file(folder: Path, name: str) -> Path | None:
    """The label map of a case, or None where there is none (yet)."""
    paths = (folder / "labels" / f"{name}{suffix}" for suffix in _LABEL_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def recent_batches() -> list[BatchNote]:
    """The batches of this user whose folders are there, the latest first."""
    notes = _read_notes()
    return [note for note in notes if os.path.isdir(note.folder)]


def _keep_note(settings: BatchSettings) -> None:
    """Write down where the batch is; that it cannot be written is no reason not to segment."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    folder = user_path(settings.output).absolute()
    settings = BatchSettings(**{**asdict(settings), "output": str(folder)})
    others = [note for note in _read_notes() if note.folder != folder]
    notes = [BatchNote(settings, now), *others][:_MOST_NOTES]
    with suppress(HybridMIMError, OSError):
        write_json(_notes_file(), [asdict(note) for note in notes])


def _read_notes() -> list[BatchNote]:
    try:
        return [BatchNote(BatchSettings(**one["settings"]), str(one["began"])) for one in read_json(_notes_file())]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _notes_file() -> Path:
    return workspace() / "batches.json"


def _state(text: str) -> str:
    return text if text in (WAITING, WORKING, DONE, SKIPPED, FAILED) else WAITING
