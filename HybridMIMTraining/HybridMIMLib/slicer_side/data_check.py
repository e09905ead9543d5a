"""Whether folders of scans are fit for a training: every scan looked at, by a process of its own.

    >>> job = start_check("scans", "cases")                      # to be followed                # doctest: +SKIP
    >>> job.wait()                                                                             # doctest: +SKIP
    >>> found = job.take()                                                                     # doctest: +SKIP
    >>> describe("labelled", found.folders["labelled"])                                        # doctest: +SKIP
    'Labelled: 40 scans in images/ and labels/, all can be used. …'
    >>> why_not(found, "finetune", "scans", "cases")                                           # doctest: +SKIP
    ''

What is told here is what the library finds when it prepares scans: a folder that is refused here would be refused
there, after the user has gone home.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.walking import folder_stamp
from HybridMIMLib.errors import DataError, RunError, SettingsError
from HybridMIMLib.events import EventReader
from HybridMIMLib.files import read_json, write_json
from HybridMIMLib.slicer_side.child import Child, Process, python_executable
from HybridMIMLib.slicer_side.job_folder import JobFolder
from HybridMIMLib.slicer_side.jobs import LOG, Job

UNLABELLED, LABELLED = "unlabelled", "labelled"
NEEDS = {
    "pretrain": (UNLABELLED,),
    "finetune": (LABELLED,),
    "train": (UNLABELLED, LABELLED),
    "study": (UNLABELLED, LABELLED),
}
"""Which folders a command reads."""

GOOD, WARNING, SKIPPED = "good", "warning", "skipped"

_MODULE = "HybridMIMLib.data.labelled_job"
_LAYOUTS = {
    "msd": "the layout of the Medical Segmentation Decathlon",
    "nnunet": "the layout of nnU-Net",
    "btcv": "the layout of BTCV",
    "brats": "the layout of BraTS",
    "images-labels": "images/ and labels/",
    "folder": "a plain folder",
    "list": "a list",
}
_SHOWN = 3


@dataclass(frozen=True)
class ScanRow:
    """A scan, and whether it can be used.

    Attributes:
        status: good, warning (used, but odd) or skipped.
        name: of the case.
        voxels, mm: its size and spacing along R, A, S, such as ``35 x 51 x 35``; empty where it cannot be read.
        modality: CT, MR, or empty where nobody can tell.
        channels: how many, as text; empty where it cannot be read.
        reason, cure: why it is odd or skipped, and what helps.
        images: its files, one, or one a channel.
        label: the file of its label map, or empty.
        labels: what that holds.
    """

    status: str
    name: str
    voxels: str
    mm: str
    modality: str
    channels: str
    reason: str
    cure: str
    images: tuple[str, ...]
    label: str
    labels: tuple[int, ...]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ScanRow:
        """What :func:`~HybridMIMLib.data.check.check_for_window` says of a scan."""
        texts = {
            key: str(content[key])
            for key in ("status", "name", "voxels", "mm", "modality", "channels", "reason", "cure", "label")
        }
        images = tuple(map(str, content["images"]))
        return cls(images=images, labels=tuple(map(int, content["labels"])), **texts)


@dataclass(frozen=True)
class ClassRow:
    """A class of a labelled folder.

    Attributes:
        look: its label, name and colour.
        cases: how many usable label maps hold it.
        annotated: in how many somebody looked for it.
    """

    look: LabelClass
    cases: int
    annotated: int


@dataclass(frozen=True)
class FolderCheck:
    """What was found in a folder.

    Attributes:
        path: of it.
        error: why nothing in it can be used, with the cure; everything below is empty then.
        layout: as the library calls it.
        rows: a scan each.
        classes: what its label maps hold.
        modalities: how many usable scans of each; ``unknown`` where nobody can tell.
        patients: how many people were scanned, as far as it is known.
        spacings: smallest and largest spacing along R, A, S in mm; empty without a usable scan.
        channels: of its scans; 0 without a usable one.
        others: how many files belong to no scan.
        notes: what was passed over.
        problems: what would end any training on it.
        training: what would end a training on its labels.
        weak: what ends nothing, but makes a model worse.
        stamp: see :func:`~HybridMIMLib.data.walking.folder_stamp`.
    """

    path: str
    error: str = ""
    layout: str = ""
    rows: tuple[ScanRow, ...] = ()
    classes: tuple[ClassRow, ...] = ()
    modalities: tuple[tuple[str, int], ...] = ()
    patients: int = 0
    spacings: tuple[tuple[float, float], ...] = ()
    channels: int = 0
    others: int = 0
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    weak: tuple[str, ...] = ()
    stamp: str = ""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FolderCheck:
        """What :func:`~HybridMIMLib.data.check.check_for_window` says of a folder."""
        if content.get("error"):
            error = str(content["error"])
            return cls(str(content["path"]), error=f"{error[:1].upper()}{error[1:]}")
        texts = {key: tuple(map(str, content[key])) for key in ("notes", "problems", "training", "weak")}
        classes = (
            ClassRow(LabelClass.from_json(one), int(one["cases"]), int(one["annotated"]))
            for one in content["classes"]
        )
        return cls(
            path=str(content["path"]),
            layout=str(content["layout"]),
            rows=tuple(map(ScanRow.from_json, content["rows"])),
            classes=tuple(classes),
            modalities=tuple((str(name), int(count)) for name, count in content["modalities"].items()),
            spacings=tuple((float(low), float(high)) for low, high in content["spacings"]),
            patients=int(content["patients"]),
            channels=int(content["channels"]),
            others=int(content["others"]),
            notes=texts["notes"],
            problems=texts["problems"],
            training=texts["training"],
            weak=texts["weak"],
            stamp=str(content["stamp"]),
        )

    def count(self, status: str) -> int:
        """How many scans have this verdict."""
        return sum(row.status == status for row in self.rows)

    @property
    def usable(self) -> int:
        """How many scans would be used."""
        return len(self.rows) - self.count(SKIPPED)

    @property
    def looks(self) -> list[LabelClass]:
        """Its classes."""
        return [one.look for one in self.classes]


@dataclass(frozen=True)
class DataCheck:
    """What was found.

    Attributes:
        folders: by ``unlabelled`` and ``labelled``; those that were looked at.
        in_both: names (labelled, unlabelled) of scans that are in both folders.
    """

    folders: Mapping[str, FolderCheck]
    in_both: tuple[tuple[str, str], ...] = ()

    def of(self, name: str, path: str) -> FolderCheck | None:
        """What was found in a folder, if it is this one that was looked at."""
        found = self.folders.get(name)
        return found if found is not None and path and found.path == _place(path) else None


class CheckJob(Job):
    """A check at work; what it found is handed over once, by :meth:`take`."""

    def __init__(self, work: JobFolder, process: Process, events: EventReader) -> None:
        super().__init__(work.path, process, events)
        self._work = work

    def take(self) -> DataCheck:
        """What it found, once it has finished; for a thread, as it may be of thousands of scans.

        Raises:
            RunError: it cannot be read, or was taken before.
        """
        try:
            return _read(Path(str(self.result["checked"])))
        finally:
            self._work.remove()

    def _end(self) -> None:
        try:
            super()._end()
        finally:
            if not self.result:
                self._work.is_removed()

    def _take_result(self) -> str:
        return ""


def start_check(unlabelled: str, labelled: str) -> CheckJob:
    """Have every scan of one or two folders looked at; nothing in them is changed.

    Args:
        unlabelled, labelled: folders; an empty one is not looked at.

    Raises:
        SettingsError: no folder is chosen, or one is not there.
        HybridMIMError: the process cannot be started.
    """
    chosen = {UNLABELLED: unlabelled.strip(), LABELLED: labelled.strip()}
    if not any(chosen.values()):
        raise SettingsError("No folder of scans is chosen", cure="Choose one.")
    for name, path in chosen.items():
        if reason := why_no_folder(name, path) if path else "":
            message, _, cure = reason.rpartition(". ")
            raise SettingsError(message, cure=cure)
    work = JobFolder()
    try:
        job = {name: _place(path) if path else "" for name, path in chosen.items()}
        write_json(work.path / "job.json", {"do": "check", "folder": "", **job})
        command = [python_executable(), "-m", _MODULE, str(work.path / "job.json")]
        return CheckJob(work, Child(command, work.path / LOG), EventReader(work.path / "events.jsonl"))
    except BaseException:
        work.is_removed()
        raise


def why_no_folder(name: str, path: str) -> str:
    """Why a folder cannot be read, as a sentence with the cure; empty if it is there."""
    if not path.strip():
        return f"No folder of {name} scans is chosen. Choose one."
    if not os.path.isdir(_place(path)):
        filled = ", or save cases into it" if name == LABELLED else ""
        return f"The folder of {name} scans is not there: {path}. Choose another{filled}."
    return ""


def why_not(found: DataCheck | None, command: str, unlabelled: str, labelled: str) -> str:
    """Why a command would fail on these folders, as far as a check has found out; empty if nothing is known.

    Args:
        found: by the last check, which may have looked at other folders.
        command: pretrain, finetune, train or study.
        unlabelled, labelled: the folders that are chosen now. They are not looked for.
    """
    chosen = {UNLABELLED: unlabelled, LABELLED: labelled}
    checked: list[FolderCheck] = []
    for name in NEEDS[command]:
        folder = found.of(name, chosen[name]) if found is not None else None
        if folder is None:
            continue
        if reason := _why_no_good(folder, name):
            return reason
        checked.append(folder)
    if command == "study" and len({folder.channels for folder in checked}) > 1:
        counts = " and ".join(str(folder.channels) for folder in checked)
        return f"Unlabelled and labelled scans have {counts} channels: a study needs scans of one kind."
    return ""


def changed_since(found: DataCheck) -> frozenset[str]:
    """Names of the folders in which a file has come, gone or been changed since; for a thread."""
    return frozenset(name for name, folder in found.folders.items() if _stamp(folder.path) != folder.stamp)


def describe(name: str, folder: FolderCheck) -> str:
    """What was found in a folder, in a few lines for the user."""
    if folder.error:
        return folder.error
    total, usable, warned = len(folder.rows), folder.usable, folder.count(WARNING)
    some = "all" if usable == total else str(usable or "none")
    odd = f" ({warned} with a warning)" if warned else ""
    rest = f", {total - usable} cannot" if 0 < usable < total else ""
    layout = (
        "images/"
        if (name, folder.layout) == (UNLABELLED, "images-labels")
        else _LAYOUTS.get(folder.layout, folder.layout)
    )
    lines = [f"{name.capitalize()}: {_count(total, 'scan')} in {layout}, {some} can be used{odd}{rest}."]
    if usable:
        known = [f"{number} {kind}" for kind, number in folder.modalities if kind != "unknown"]
        unknown = dict(folder.modalities).get("unknown", 0)
        kinds = ", ".join([*known, *([f"{unknown} unknown"] if unknown and known else [])])
        # Where nobody says who was scanned, each scan counts as somebody.
        people = f" Of {_count(folder.patients, 'patient')}." if folder.patients < usable else ""
        lines.append(f"Modality: {kinds or 'not told by the files'}.{people}")
        lines.append(f"Spacing (mm, R x A x S): {_ranges(folder.spacings)}.")
    if folder.others:
        lines.append(f"{_count(folder.others, 'other file')}, not used.")
    return "\n".join(lines)


def describe_problems(folder: FolderCheck) -> str:
    """What would end a training on a folder, a line each; empty where nothing would."""
    return "\n".join(_sentence(f"A training would stop: {one}") for one in (*folder.problems, *folder.training))


def describe_notes(found: DataCheck, folder: FolderCheck) -> str:
    """What is good to know of a folder though it ends nothing, a line each."""
    # The path of the folder stands above.
    notes = (one.removeprefix(f"{folder.path}: ") for one in folder.notes)
    lines = [_sentence(f"Note: {one}") for one in (*folder.weak, *notes)]
    if found.in_both:
        names = ", ".join(labelled for labelled, _unlabelled in found.in_both[:_SHOWN])
        more = ", …" if len(found.in_both) > _SHOWN else ""
        lines.append(
            f"Note: {_count(len(found.in_both), 'scan')} in both folders ({names}{more}). That is allowed; keep "
            "scans for a test out of both."
        )
    return "\n".join(lines)


def problems_first(rows: tuple[ScanRow, ...]) -> list[ScanRow]:
    """The rows with a problem: those that cannot be used, then those with a warning, each in their order."""
    return [row for status in (SKIPPED, WARNING) for row in rows if row.status == status]


def _why_no_good(folder: FolderCheck, name: str) -> str:
    """Why nothing can be trained on a folder."""
    if folder.error:
        return folder.error
    wrong = [*folder.problems, *(folder.training if name == LABELLED else ())]
    if wrong:
        return _sentence(f"The {name} scans cannot be used as they are: {wrong[0]}")
    if not folder.usable:
        reasons = Counter(row.reason for row in folder.rows).most_common(1)
        return _sentence(f"None of the {len(folder.rows)} {name} scans can be used, most because: {reasons[0][0]}")
    return ""


def _read(file: Path) -> DataCheck:
    try:
        content = read_json(file)
        folders = {str(name): FolderCheck.from_json(one) for name, one in content["folders"].items()}
        return DataCheck(folders, tuple((str(one), str(other)) for one, other in content["duplicates"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file}: what the check found cannot be read ({error})", cure="Check again.") from error


def _place(path: str) -> str:
    # Unlike user_path this takes a home folder that nobody has for a name.
    return os.path.abspath(os.path.expanduser(path.strip()))


def _stamp(path: str) -> str:
    try:
        return folder_stamp(Path(path))
    except (DataError, OSError):
        # It had none either when it was looked at, if it was like this.
        return ""


def _ranges(spacings: tuple[tuple[float, float], ...]) -> str:
    """``0.7–0.9 x 0.7–0.9 x 5``."""
    ends = ((f"{low:.3g}", f"{high:.3g}") for low, high in spacings)
    return " x ".join(low if low == high else f"{low}–{high}" for low, high in ends)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
