"""A run made ready for another machine: one folder that can be moved, with all that the run needs.

====================  ================================================================================
``README.md``         what this is, and how it is started, continued and brought back
``run.yaml``          the settings; paths are relative to the folder
``start.sh``          on a workstation; ``torchrun.sh``: on several GPUs of one, where the command can be shared
``submit.sh``         under SLURM
``library/``          this library, so that the other machine computes what this one would
``data/``             lists of the scans, or the scans; ``store/``: prepared scans
``weights/``          weights to start from, where there are some
``run/``              the run: made there, or the one to be continued
``export.json``       the command, the versions it was made with, and where things lie on this machine
====================  ================================================================================

It is written under a temporary name and renamed when it is whole.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import HybridMIMLib
from HybridMIMLib.cli import parse
from HybridMIMLib.config import Run, make_run, user_path
from HybridMIMLib.data.finding import files_of
from HybridMIMLib.data.layouts import Case, Dataset, dataset_of, open_dataset
from HybridMIMLib.errors import DataError, DiskError, RunError, SettingsError
from HybridMIMLib.events import EventLog
from HybridMIMLib.export_texts import RUN, readme, to_type, ways
from HybridMIMLib.files import TEMPORARY, atomic_path, disk_errors, flush_to_disk, make_folder, write_json, write_text
from HybridMIMLib.runs import command_of, living_owner, load_settings, other_machine, save_settings, versions

ABOUT = "export.json"
"""What tells that a folder was exported, and whence."""
DATA, STORE, WEIGHTS, LIBRARY = "data", "store", "weights", "library"
COMMANDS = ("pretrain", "finetune", "train", "study")
FORMAT = 1

_SPARE = 64 * 2**20
_DESCRIPTIONS = (".json", ".csv", ".tsv", ".txt")
"""Files beside the scans that may say how their folder is to be read."""
_LARGEST_DESCRIPTION = 4 * 2**20
_LEFT_BEHIND = ("run.pid", "heartbeat", "stop", STORE)
"""Of a run that is to be continued: what is about this machine, and what is chosen by itself."""


@dataclass(frozen=True)
class Export:
    """What to export.

    Attributes:
        target: a new or empty folder.
        command: pretrain, finetune, train or study.
        options: of the command line, without the dashes; not used where a run is continued.
        run: a run folder to be continued elsewhere, or None.
        copy_scans: whether the scans come along; otherwise the other machine has to see them under the same paths.
        copy_store: whether the prepared scans come along.
    """

    target: Path
    command: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    run: Path | None = None
    copy_scans: bool = True
    copy_store: bool = False


@dataclass
class _Cargo:
    """What is to be copied and written.

    Attributes:
        copies: pairs of a file and where it goes, relative to the folder.
        lists: JSON files to write, by where they go.
        names: of the cases of each folder, to see whether the copy holds the same ones.
    """

    copies: list[tuple[Path, PurePosixPath]] = field(default_factory=list)
    lists: dict[PurePosixPath, Any] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def folder(self, source: Path, place: PurePosixPath, left_out: Sequence[str] = ()) -> None:
        """Take a folder along, without some of its own entries."""
        for file in _files_below(source):
            inside = file.relative_to(source)
            if inside.parts[0] not in left_out:
                self.copies.append((file, place / inside.as_posix()))


def export_run(export: Export, work: Path, events: EventLog) -> dict[str, Any]:
    """Write the folder.

    Args:
        export: what to write, and where.
        work: a folder beside the target that does not exist yet; it becomes the target.
        events: to report to.

    Returns:
        ``folder``, ``command``, ``bytes``, ``files`` and ``commands`` (kind of machine → what to type there).

    Raises:
        SettingsError, DataError, RunError: the settings, the scans or the run do not allow it.
        DiskError: it could not be written; nothing is left behind.
    """
    _check_target(export.target)
    command, run = _settled(export)
    cargo, there = _Cargo(), replace(run, output=RUN, store=None, device="auto")
    for name in ("unlabelled", "labelled"):
        if getattr(run, name):
            there = make_run(there, {name: _take_scans(cargo, run, name, export.copy_scans)})
    if run.labelled and not run.name:
        # Otherwise the model would be called after the list.
        there = replace(there, name=user_path(run.labelled).name)
    there = _take_weights(cargo, run, there)
    there = _take_split(cargo, run, there)
    there = _take_store(cargo, run, there, export)
    if export.run is not None:
        cargo.folder(export.run, PurePosixPath(RUN), _LEFT_BEHIND)
    cargo.copies += [(file, PurePosixPath(LIBRARY, *inside.parts)) for file, inside in _library()]
    try:
        size = _copy(cargo, work, export.target, events)
        _write(cargo, work, command, run, there, export)
        _check_copy(cargo, work, there)
        _put_in_place(work, export.target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {
        "folder": str(export.target),
        "command": command,
        "bytes": size,
        "files": len(cargo.copies),
        "commands": {kind: to_type(kind) for kind, _, _ in ways(command)},
    }


def store_to_copy(run: Run, folder: Path | None) -> Path | None:
    """Where prepared scans of a run lie by now, or None.

    Args:
        run: its settings.
        folder: of the run, or None before it was started.
    """
    places = [user_path(run.store)] if run.store else [folder / STORE] if folder else []
    return next((place for place in places if place.is_dir() and any(place.iterdir())), None)


def _check_target(target: Path) -> None:
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise RunError(f"{target}: is not an empty folder", cure="Choose a new or empty folder to export to.")


def _settled(export: Export) -> tuple[str, Run]:
    """The command, and its settings as they are on this machine."""
    if export.run is None:
        given = [f"--{name}={value}" for name, value in export.options.items() if value not in (None, "")]
        command, run = export.command, parse(export.command, given) if export.command in COMMANDS else None
    else:
        command, run = command_of(export.run) or "", _of_unfinished(export.run)
    if run is None or command not in COMMANDS:
        raise SettingsError(
            f"{command or 'a run of no command'} cannot be exported", cure=f"Choose one of {', '.join(COMMANDS)}."
        )
    if not (run.unlabelled or run.labelled):
        raise SettingsError("there are no scans to work on", cure="Choose the folders of scans first.")
    return command, run


def _of_unfinished(folder: Path) -> Run:
    if living_owner(folder) is not None or other_machine(folder) is not None:
        raise RunError(
            f"{folder}: a process is working on this run", cure="Pause it here first, so that one machine has it."
        )
    if (folder / "result.json").exists():
        raise RunError(f"{folder}: this run is finished", cure="Choose one that is not, or export new settings.")
    return load_settings(folder / "run.yaml")


# --- scans ------------------------------------------------------------------------------------------------------


def _take_scans(cargo: _Cargo, run: Run, name: str, copy: bool) -> str:
    """Take scans along or list them; returns what the settings are to say of them."""
    dataset = dataset_of(run, name)
    cargo.names[name] = [case.name for case in dataset.cases]
    if not copy and dataset.customary:
        # What the labels mean follows from the layout alone, which a list would lose.
        return str(dataset.root.absolute())
    place, file = PurePosixPath(DATA, name), PurePosixPath(DATA, f"{name}.json")
    if copy and dataset.root.is_dir() and _lies_inside(dataset):
        _take_folder(cargo, dataset, place)
        return str(place)
    rows = [_row(cargo, case, file.parent, PurePosixPath(name) if copy else None) for case in dataset.cases]
    cargo.lists[file] = {"labels": _names_of(dataset), "partially_labelled": dataset.partial, "cases": rows}
    return str(file)


def _files_of_case(case: Case) -> Iterator[Path]:
    for path in (*case.images, *([case.label] if case.label else [])):
        yield from files_of(path)


def _lies_inside(dataset: Dataset) -> bool:
    root = dataset.root.absolute()
    return all(root in file.absolute().parents for case in dataset.cases for file in _files_of_case(case))


def _take_folder(cargo: _Cargo, dataset: Dataset, place: PurePosixPath) -> None:
    """The files of all cases and what describes them, lying as they do in the folder."""
    root = dataset.root.absolute()
    files = {file.absolute() for case in dataset.cases for file in _files_of_case(case)}
    files |= {
        file
        for file in root.iterdir()
        if file.suffix.lower() in _DESCRIPTIONS and file.is_file() and file.stat().st_size < _LARGEST_DESCRIPTION
    }
    cargo.copies += [(file, place / file.relative_to(root).as_posix()) for file in sorted(files)]


def _row(cargo: _Cargo, case: Case, base: PurePosixPath, place: PurePosixPath | None) -> dict[str, Any]:
    """One case of a list; with a place, its files are copied there.

    Args:
        base: the folder of the list.
        place: for the copies, relative to that; or None.
    """
    paths = [*case.images, *([case.label] if case.label else [])]
    if place is None:
        said = [str(path.absolute()) for path in paths]
    else:
        said = [_taken(cargo, path, base, place / _plain(case.name) / str(n)) for n, path in enumerate(paths)]
    count = len(case.images)
    row: dict[str, Any] = {"name": case.name, "image": said[0] if count == 1 else said[:count]}
    if case.label:
        row["label"] = said[-1]
    if case.patient:
        row["patient"] = case.patient
    if case.annotated is not None:
        row["annotated"] = sorted(case.annotated)
    return row


def _taken(cargo: _Cargo, path: Path, base: PurePosixPath, place: PurePosixPath) -> str:
    """Copy the files of a scan into a folder of their own; a DICOM series is called by that folder."""
    files = files_of(path)
    cargo.copies += [(file, base / place / file.name) for file in files]
    is_series = path not in files or len({file.suffix for file in files}) == 1 < len(files)
    return str(place if is_series else place / path.name)


def _names_of(dataset: Dataset) -> dict[str, Any]:
    """Classes and regions as ``labels`` of a list."""
    names: dict[str, Any] = {one.name: one.label for one in dataset.classes}
    return {**names, **{region.name: sorted(region.labels) for region in dataset.regions}}


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("._")[:80] or "case"


# --- what else a run needs --------------------------------------------------------------------------------------


def _take_weights(cargo: _Cargo, run: Run, there: Run) -> Run:
    if not run.weights:
        return there
    path = user_path(run.weights)
    file = path
    if path.is_dir():
        # It loads torch, which takes seconds, and most exports need none.
        from HybridMIMLib.pretrained import WEIGHTS_FILE

        file = path / WEIGHTS_FILE
    if not file.is_file():
        raise SettingsError(f"{path}: the weights to start from are not there", cure="Choose others, or none.")
    cargo.copies.append((file, PurePosixPath(WEIGHTS, file.name)))
    return replace(there, weights=f"{WEIGHTS}/{file.name}")


def _take_split(cargo: _Cargo, run: Run, there: Run) -> Run:
    if not run.finetuning.split:
        return there
    file = user_path(run.finetuning.split)
    if not file.is_file():
        raise SettingsError(f"{file}: the file of the split is not there", cure="Choose another, or leave it out.")
    cargo.copies.append((file, PurePosixPath(DATA, "split.json")))
    return replace(there, finetuning=replace(there.finetuning, split=f"{DATA}/split.json"))


def _take_store(cargo: _Cargo, run: Run, there: Run, export: Export) -> Run:
    if not export.copy_store:
        return there
    store = store_to_copy(run, export.run)
    if store is None:
        raise SettingsError(
            "there are no prepared scans yet", cure="Export without them: they are made where the run goes on."
        )
    cargo.folder(store, PurePosixPath(STORE))
    return replace(there, store=STORE)


def _library() -> list[tuple[Path, PurePosixPath]]:
    """The files of this library, but for what belongs into Slicer, and where each goes."""
    home = Path(HybridMIMLib.__file__).parent
    kept = (".py", ".yaml", ".txt")
    found = []
    for file in _files_below(home):
        inside = file.relative_to(home)
        if file.suffix in kept and inside.parts[0] != "slicer_side":
            found.append((file, PurePosixPath("HybridMIMLib", *inside.parts)))
    return found


def _files_below(folder: Path) -> list[Path]:
    """All files; links, and what is half written, are passed over."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith(TEMPORARY))
        paths = (Path(place, name) for name in sorted(names) if not name.startswith(TEMPORARY))
        found += [path for path in paths if path.is_file() and not path.is_symlink()]
    return found


# --- writing ----------------------------------------------------------------------------------------------------


def _copy(cargo: _Cargo, work: Path, target: Path, events: EventLog) -> int:
    """Copy everything; returns the bytes."""
    make_folder(work)
    sizes = [file.stat().st_size for file, _ in cargo.copies]
    needed, free = sum(sizes), shutil.disk_usage(work).free
    if needed + _SPARE > free:
        raise DiskError(
            f"{target}: {needed / 1e6:.0f} MB are to be copied, {free / 1e6:.0f} MB are free",
            cure="Free some space, choose another disk, or do not copy the scans.",
        )
    phase, done = events.phase("Copying", max(needed, 1)), 0
    for (file, place), size in zip(cargo.copies, sizes):
        _copy_file(file, work / place, target / place)
        done += size
        phase.progress(done)
    return needed


def _copy_file(source: Path, copy: Path, final: Path) -> None:
    with disk_errors(final):
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            # With its date: prepared scans are known by it.
            shutil.copy2(source, copy)
            copy.chmod(0o644)
            flush_to_disk(copy)
        except FileNotFoundError as error:
            raise DataError(f"{source}: has gone while it was copied", cure="Export once more.") from error


def _write(cargo: _Cargo, work: Path, command: str, here: Run, there: Run, export: Export) -> None:
    for place, content in cargo.lists.items():
        write_json(work / place, content)
    save_settings(work / "run.yaml", there)
    if export.run is not None:
        save_settings(work / RUN / "run.yaml", there)
    write_json(work / ABOUT, _about(command, here, there, export))
    for _, name, text in ways(command):
        _write_script(work / name, text)
    write_text(work / "README.md", readme(command, there, export.run is not None, export.copy_scans))


def _write_script(file: Path, text: str) -> None:
    # As bytes: a shell does not know the ends of lines of Windows.
    with atomic_path(file) as temporary:
        temporary.write_bytes(text.encode())
        temporary.chmod(0o755)


def _about(command: str, here: Run, there: Run, export: Export) -> dict[str, Any]:
    """What ``export.json`` says; ``origin`` puts a run that comes back on the paths of this machine again."""
    return {
        "format": FORMAT,
        "command": command,
        "name": export.run.name if export.run is not None else export.target.name,
        "made": datetime.now().astimezone().isoformat(timespec="seconds"),
        "library": HybridMIMLib.__version__,
        "versions": versions(),
        "origin": {
            "unlabelled": here.unlabelled,
            "labelled": here.labelled,
            "weights": here.weights,
            "store": here.store,
            "device": here.device,
            "split": here.finetuning.split,
        },
    }


def _check_copy(cargo: _Cargo, work: Path, there: Run) -> None:
    """The folder holds the cases that this machine has; a layout that reads differently as a copy is told now."""
    for name, wanted in cargo.names.items():
        place = work / getattr(there, name)
        found = open_dataset(place, name == "labelled", there.missing_labels)
        if [case.name for case in found.cases] != wanted:
            raise DataError(
                f"{getattr(there, name)}: the copied folder of {name} scans reads as other cases than the first",
                cure="Export with the paths of the scans, and put the scans there by hand.",
            )


def _put_in_place(work: Path, target: Path) -> None:
    with disk_errors(target):
        if target.is_dir():
            try:
                target.rmdir()
            except OSError as error:
                raise RunError(
                    f"{target}: something was put there meanwhile", cure="Choose a new or empty folder."
                ) from error
        os.replace(work, target)
