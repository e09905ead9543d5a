"""A run that comes back from another machine becomes one of this workspace.

What comes, a folder or a ``.zip``, is read as if it came from somebody who means harm: names stay inside the folder,
links are refused, sizes are bounded, and only kinds of files that runs have are taken. Nothing in it is run: its
checkpoints are read as tensors alone, and the models in it are checked as those of strangers are. It is copied under
a temporary name, checked there, and renamed when all of it is sound.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

from HybridMIMLib.config import Run, make_run, workspace
from HybridMIMLib.data.model_description import METADATA
from HybridMIMLib.data.package_check import check_package
from HybridMIMLib.data.package_files import wrong_with_name
from HybridMIMLib.data.weights_header import read_header
from HybridMIMLib.errors import DiskError, HybridMIMError, RunError
from HybridMIMLib.events import EventLog
from HybridMIMLib.export_texts import RUN
from HybridMIMLib.exporting import ABOUT, COMMANDS
from HybridMIMLib.files import TEMPORARY, disk_errors, flush_to_disk, make_folder, read_json, write_json
from HybridMIMLib.runs import command_of, load_settings, runs_folder, save_settings

MOST_FILES = 200_000
LONGEST_NAME, DEEPEST = 400, 12
MOST_INFLATION, SMALL = 200, 64 * 2**20
"""Bytes unpacked for one packed, above :data:`SMALL` bytes."""
CHECKPOINT = "checkpoint.pt"

_SPARE = 64 * 2**20
_BLOCK = 2**20
_MOST_TEXT = 16 * 2**20
_AGAIN = "Copy it again from the other machine."
_SUFFIXES = frozenset({
    "", ".yaml", ".json", ".jsonl", ".txt", ".log", ".md", ".csv", ".html", ".svg", ".png", ".jpg", ".nrrd", ".gz",
    ".safetensors",
})  # fmt: skip
_LEFT_OUT = ("run.pid", "heartbeat", "stop", "store")
"""Entries of a run that are about the other machine, or can be made anew."""
_SIGNS = ("run.yaml", "about.json")
_PATHS = ("unlabelled", "labelled", "weights", "store", "split")


@dataclass(frozen=True)
class Imported:
    """What became of a run that came back.

    Attributes:
        run: its folder in the workspace.
        command: pretrain, finetune, train or study.
        finished: whether it is.
        model: a model package that it made, or None.
        notes: what the user should know.
    """

    run: Path
    command: str
    finished: bool
    model: Path | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For another process."""
        model = None if self.model is None else str(self.model)
        return {
            "run": str(self.run),
            "command": self.command,
            "finished": self.finished,
            "model": model,
            "notes": [*self.notes],
        }


def import_run(source: Path, work: Path, events: EventLog) -> Imported:
    """Make a run of the workspace of what came back.

    Args:
        source: a run folder, an exported folder with its run, or a ``.zip`` of either; it is only read.
        work: a folder of the workspace that does not exist yet; it becomes the run.
        events: to report to.

    Raises:
        RunError, ModelError, SettingsError: something is wrong with it; the message names the file and the cure.
        DiskError: it could not be written; nothing is left behind.
    """
    with _opened(source) as files:
        notes = _copy(files, work, events)
        try:
            _check(work, source, events)
            target = _free_name(_name_of(files))
            command, finished = _make_ours(work, target, files.about)
            with disk_errors(target):
                make_folder(target.parent)
                os.replace(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    model = next((one for one in _packages(target) if one.parent in (target, target / "fine-tuning")), None)
    if not finished:
        notes.append("It is not finished: Resume, under Runs, continues it here.")
    return Imported(target, command, finished, model, tuple(notes))


# --- what came ------------------------------------------------------------------------------------------------


class _Files(ABC):
    """The files of the run that came.

    Attributes:
        path: folder or ``.zip``.
        sizes: bytes of each, by its name in the run, with slashes.
        name: to call the run by, where nothing says another.
        about: what the ``export.json`` beside the run says, or nothing.
    """

    path: Path
    sizes: dict[str, int]
    name: str
    about: Mapping[str, Any]

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """The bytes of a file."""

    def _take(self, name: str, size: int) -> None:
        if reason := wrong_with_name(name, LONGEST_NAME, DEEPEST):
            raise RunError(f"{self.path}: holds {name!r}, {reason}", cure=f"Rename or remove it there. {_AGAIN}")
        self.sizes[name] = size
        if len(self.sizes) > MOST_FILES:
            raise RunError(f"{self.path}: holds more than {MOST_FILES} files", cure="Choose the folder of one run.")


class _FolderFiles(_Files):
    def __init__(self, source: Path) -> None:
        inside = source / RUN
        self.path = source if _is_run(source) or not _is_run(inside) else inside
        if not _is_run(self.path):
            raise _no_run(source, (source / ABOUT).is_file())
        if self.path == inside and inside.is_symlink():
            raise self._link(RUN)
        whole = self.path.parent if self.path.name == RUN else self.path
        self.sizes, self.name = {}, whole.absolute().name
        self.about = _object(self._beside(self.path.parent / ABOUT))
        for place, folders, names in os.walk(self.path):
            below = PurePosixPath(Path(place).relative_to(self.path).as_posix())
            # Prepared scans may be many, and are not taken.
            folders[:] = [name for name in folders if str(below / name) not in _LEFT_OUT]
            for name in (*folders, *names):
                self._look(Path(place, name), str(below / name), is_folder=name in folders)

    def _beside(self, file: Path) -> bytes:
        with suppress(OSError):
            return file.read_bytes() if file.stat().st_size < _MOST_TEXT else b""
        return b""

    def _look(self, path: Path, name: str, is_folder: bool) -> None:
        about = path.lstat()
        if stat.S_ISLNK(about.st_mode):
            raise self._link(name)
        if stat.S_ISREG(about.st_mode):
            self._take(name, about.st_size)
        elif not is_folder:
            raise RunError(f"{self.path}: {name} is neither a file nor a folder", cure="Remove it.")

    def _link(self, name: str) -> RunError:
        return RunError(
            f"{self.path}: {name} is a link to another place", cure="Put a copy there in place of the link."
        )

    def open(self, name: str) -> IO[bytes]:
        return open(self.path / name, "rb")


class _ZipFiles(_Files):
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self.sizes, self._archive = path, {}, archive
        # zipfile cuts names at a zero byte, and turns the system's separators to slashes.
        entries = [(entry.orig_filename, entry) for entry in archive.infolist()]
        self._top = _top(path, {name for name, _ in entries})
        parents = PurePosixPath(self._top)
        self.name = (parents.parent.name if parents.name == RUN else parents.name) or path.stem
        for name, entry in entries:
            if name.startswith(self._top) and not name.endswith("/"):
                self._look(name[len(self._top) :], entry)
        unpacked = sum(self.sizes.values())
        if unpacked > SMALL and unpacked > MOST_INFLATION * path.stat().st_size:
            raise RunError(f"{path}: would unpack to {unpacked} bytes, as no run does", cure=_AGAIN)
        self.about = _object(self._beside(str(parents.parent / ABOUT), entries))

    def _beside(self, name: str, entries: Sequence[tuple[str, zipfile.ZipInfo]]) -> bytes:
        if self._top and any(one == name and entry.file_size < _MOST_TEXT for one, entry in entries):
            with _readable(self.path, name), self._archive.open(name) as stream:
                return stream.read(_MOST_TEXT)
        return b""

    def _look(self, name: str, entry: zipfile.ZipInfo) -> None:
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            raise RunError(f"{self.path}: {name!r} is a link or a device, and no file", cure=_AGAIN)
        if entry.flag_bits & 1:
            raise RunError(f"{self.path}: {name!r} is encrypted", cure="Make a .zip without a password.")
        if name in self.sizes:
            raise RunError(f"{self.path}: holds two files {name!r}", cure=_AGAIN)
        self._take(name, entry.file_size)

    def open(self, name: str) -> IO[bytes]:
        return self._archive.open(f"{self._top}{name}")


def _is_run(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _SIGNS)


def _top(path: Path, names: Set[str]) -> str:
    """The folder of the run in a zip, with a slash; empty where it lies at the top."""
    tops = [name.removesuffix("run.yaml") for name in names if PurePosixPath(name).name == "run.yaml"]
    tops = [top for top in tops if f"{top}about.json" in names]
    if not tops:
        raise _no_run(path, any(PurePosixPath(name).name == ABOUT for name in names))
    first = min(top.count("/") for top in tops)
    # Runs within a run, such as those of a study, lie deeper.
    tops = [top for top in tops if top.count("/") == first]
    if len(tops) > 1:
        raise RunError(f"{path}: holds {len(tops)} runs", cure="Give the folder of one of them.")
    return tops[0]


def _no_run(source: Path, is_exported: bool) -> RunError:
    if is_exported:
        return RunError(
            f"{source}: is an exported folder in which nothing was run yet",
            cure="Start it on the other machine, as its README.md says, then bring it back.",
        )
    return RunError(
        f"{source}: holds no run, which has the files {' and '.join(_SIGNS)}",
        cure=f"Choose the folder {RUN} of an exported folder, or a .zip of it.",
    )


def _object(text: bytes) -> Mapping[str, Any]:
    """The JSON object in a text, or nothing: a run is one without it, too."""
    with suppress(ValueError, RecursionError):
        content = json.loads(text)
        if isinstance(content, dict):
            return content
    return {}


@contextmanager
def _opened(source: Path) -> Iterator[_Files]:
    with ExitStack() as stack:
        try:
            if source.is_dir():
                files: _Files = _FolderFiles(source)
            else:
                files = _ZipFiles(source, stack.enter_context(zipfile.ZipFile(source)))
        except FileNotFoundError as error:
            raise RunError(f"{source}: there is no such folder or file", cure="Choose another.") from error
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
            raise RunError(
                f"{source}: cannot be read as a run ({error})",
                cure=f"Give the folder of a run, or a .zip of it. {_AGAIN}",
            ) from error
        yield files


def _name_of(files: _Files) -> str:
    said = files.about.get("name")
    return re.sub(r"[^\w-]+", "-", said if isinstance(said, str) else files.name).strip("-")[:60] or "imported"


@contextmanager
def _readable(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, RuntimeError, NotImplementedError, ValueError, zlib.error) as error:
        raise RunError(f"{path}: {name} cannot be read ({error})", cure=_AGAIN) from error
    except zipfile.BadZipFile as error:
        raise RunError(f"{path}: {name} is damaged ({error})", cure=_AGAIN) from error


# --- copying --------------------------------------------------------------------------------------------------


def _copy(files: _Files, work: Path, events: EventLog) -> list[str]:
    """Copy what belongs to the run; returns what was left out, as notes."""
    wanted = [name for name in sorted(files.sizes) if PurePosixPath(name).parts[0] not in _LEFT_OUT]
    taken = [name for name in wanted if _is_of_a_run(name)]
    needed = sum(files.sizes[name] for name in taken)
    make_folder(workspace())
    free = shutil.disk_usage(workspace()).free
    if needed + _SPARE > free:
        raise DiskError(
            f"{workspace()}: the run needs {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free",
            cure="Free some space, or move the workspace with HYBRIDMIM_WORKSPACE.",
        )
    phase, done = events.phase("Copying", max(needed, 1)), 0
    try:
        for name in taken:
            _copy_file(files, name, work / name)
            done += files.sizes[name]
            phase.progress(done)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    others = [name for name in wanted if not _is_of_a_run(name)]
    return [f"{len(others)} file(s) that no run makes were left out, such as {others[0]}."] if others else []


def _is_of_a_run(name: str) -> bool:
    path = PurePosixPath(name)
    return path.name == CHECKPOINT or (path.suffix.lower() in _SUFFIXES and not path.name.startswith(TEMPORARY))


def _copy_file(files: _Files, name: str, target: Path) -> None:
    left = files.sizes[name]
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with _readable(files.path, name), files.open(name) as stream, disk_errors(target), open(target, "xb") as output:
        while block := stream.read(min(_BLOCK, left + 1)):
            left -= len(block)
            if left < 0:
                break
            output.write(block)
    if left != 0:
        raise RunError(f"{files.path}: {name} is not as long as it says", cure=_AGAIN)
    with disk_errors(target):
        flush_to_disk(target)


# --- checking -------------------------------------------------------------------------------------------------


def _check(work: Path, source: Path, events: EventLog) -> None:
    """See whether all of a copied run is sound; errors name the file as it came."""
    phase = events.phase("Checking", 1)
    try:
        _check_texts(work)
        _check_networks(work)
    except HybridMIMError as error:
        kind = type(error)
        # The cure of what is wrong with a file here is another copy of it.
        raise kind(error.message.replace(str(work), str(source)), cure=_cure(error)) from error
    phase.progress(1)


def _check_texts(work: Path) -> None:
    load_settings(work / "run.yaml")
    if command_of(work) not in COMMANDS:
        raise RunError(f"{work / 'about.json'}: names no command that makes a run", cure=_AGAIN)
    for file in work.rglob("result.json"):
        if not isinstance(_json(file), dict):
            raise RunError(f"{file}: is not the result of a run", cure=_AGAIN)


def _check_networks(work: Path) -> None:
    packages, checkpoints = _packages(work), list(work.rglob(CHECKPOINT))
    checked = [check_package(package) for package in packages]
    for file in work.rglob("*.safetensors"):
        if not any(package in file.parents for package in packages):
            _check_weights(file)
    if not checked and not checkpoints:
        return
    # Imported late: torch takes seconds, and what is wrong should be told before them.
    from HybridMIMLib.model_package import check_shapes
    from HybridMIMLib.training import load_checkpoint

    for one in checked:
        check_shapes(one)
    for file in checkpoints:
        load_checkpoint(file)


def _cure(error: HybridMIMError) -> str:
    return error.cure if _AGAIN in error.cure else f"{_AGAIN} If it is the same there, that run is damaged."


def _json(file: Path) -> Any:
    try:
        return read_json(file)
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: is damaged ({error})", cure=_AGAIN) from error


def _packages(work: Path) -> list[Path]:
    """The models in a run."""
    depth = len(Path(METADATA).parts)
    return sorted(file.parents[depth - 1] for file in work.rglob(str(METADATA)))


def _check_weights(file: Path) -> None:
    try:
        with open(file, "rb") as stream:
            read_header(stream.read, file.stat().st_size)
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: the weights are damaged ({error})", cure=_AGAIN) from error


# --- making it ours -------------------------------------------------------------------------------------------


def _free_name(name: str) -> Path:
    base = runs_folder() / name
    places = (base if n == 1 else base.with_name(f"{name}-{n}") for n in range(1, 10_000))
    return next(place for place in places if not place.exists())


def _make_ours(work: Path, target: Path, about: Mapping[str, Any]) -> tuple[str, bool]:
    """Bring paths to this machine; returns the command, and whether the run is finished."""
    run = load_settings(work / "run.yaml")
    there = run.output or RUN
    save_settings(work / "run.yaml", _at_home(replace(run, output=str(target)), about.get("origin")))
    finished = (work / "result.json").exists()
    if finished:
        write_json(work / "result.json", _moved(_json(work / "result.json"), there, target))
    return command_of(work) or "", finished


def _at_home(run: Run, origin: Any) -> Run:
    """The settings with the paths that they had here, where it is known that they were exported from here."""
    paths = dict(origin) if isinstance(origin, dict) else {}
    known = {name: paths[name] for name in _PATHS if isinstance(paths.get(name), (str, type(None))) and name in paths}
    if "split" in known:
        known["finetuning"] = {"split": known.pop("split")}
    return make_run(run, known)


def _moved(content: Any, there: str, target: Path) -> Any:
    """A result in which paths into the run are those of its new place."""
    if isinstance(content, dict):
        return {key: _moved(value, there, target) for key, value in content.items()}
    if isinstance(content, list):
        return [_moved(value, there, target) for value in content]
    if isinstance(content, str) and (content == there or content.startswith((f"{there}/", f"{there}\\"))):
        return str(target.joinpath(*re.split(r"[/\\]", content[len(there) :].strip("/\\"))))
    return content
