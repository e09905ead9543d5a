"""The files of a model package, in a folder or a ``.zip``, read as if they came from somebody who means harm.

Nothing of a package is unpacked before all of it was looked at: that names stay inside the folder on every system,
that there is nothing that a program could run, that sizes are bounded, and that each file has the SHA-256 that
:data:`HASHES` lists for it. What a zip says of sizes is not believed: bytes are counted as they come.

No torch here: panels import packages in Slicer's process.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import unicodedata
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from HybridMIMLib.errors import DiskError, ModelError
from HybridMIMLib.files import TEMPORARY, atomic_path, disk_errors, write_json

HASHES = Path("configs") / "sha256.json"
"""{name: SHA-256} of every file but this one."""

MOST_FILES = 64
MOST_BYTES = 4 * 2**30 - 2**20
"""Of all files together: what a zip can hold without its extensions, and ten times the largest network here."""
MOST_TEXT = 4 * 2**20
"""Bytes of a file that is no weights and no picture, and is read whole."""
MOST_INFLATION, SMALL = 100, 16 * 2**20
"""Bytes unpacked for one packed, above :data:`SMALL` bytes; numbers of a trained network hardly shrink."""
LONGEST_NAME, DEEPEST = 150, 4
SPARE = 64 * 2**20
"""Bytes that stay free on the disk."""

SUFFIXES = frozenset({"", ".json", ".md", ".txt", ".safetensors", ".png", ".jpg", ".jpeg"})
PROGRAMS = frozenset(
    {
        ".pt",
        ".pth",
        ".ckpt",
        ".pkl",
        ".pickle",
        ".bin",
        ".ts",
        ".onnx",
        ".npy",
        ".npz",
        ".joblib",
        ".py",
        ".pyc",
        ".so",
    }
)
"""What could run when it is loaded, or holds what can."""

_BLOCK = 2**20
_LONGEST_PART = 120
"""Bytes that the name of a model gives to a path: less than :data:`LONGEST_NAME`, and 255, which systems allow."""
_AGAIN = "Get the package again from where it came from."
_GIVE = "Give the folder 'model' that finetune wrote, or a .zip that 'model pack' made of it."
_NOT_IN_NAMES = re.compile(r'[<>:"|?*\\]')
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])", re.IGNORECASE)
_END_OF_ZIP, _END_OF_LARGE_ZIP, _LONGEST_END = b"PK\x05\x06", b"PK\x06\x07", 22 + 65535


class PackageFiles(ABC):
    """The files of one package, open for reading.

    Attributes:
        path: the folder or the ``.zip``.
        sizes: bytes of each file, by its name with slashes; what the system litters folders with is left out.
    """

    path: Path
    sizes: dict[str, int]

    @abstractmethod
    def _open(self, name: str) -> IO[bytes]:
        """The bytes of a file."""

    def blocks(self, name: str) -> Iterator[bytes]:
        """The bytes of a file in parts; no more of them than ``sizes`` says.

        Raises:
            ModelError: there are more or fewer, or they cannot be read.
        """
        left = self.sizes[name]
        try:
            with self._open(name) as stream:
                while block := stream.read(min(_BLOCK, left + 1)):
                    left -= len(block)
                    if left < 0:
                        break
                    yield block
        except (
            OSError,
            EOFError,
            RuntimeError,
            NotImplementedError,
            ValueError,
            zlib.error,
            zipfile.BadZipFile,
        ) as error:
            raise ModelError(f"{self.path}: {name} cannot be read ({error})", cure=_AGAIN) from error
        if left != 0:
            raise ModelError(f"{self.path}: {name} is not as long as it says", cure=_AGAIN)

    def read(self, name: str, most: int = MOST_TEXT) -> bytes:
        """The whole of a file.

        Raises:
            ModelError: there is none, it has more than ``most`` bytes, or it cannot be read.
        """
        if name not in self.sizes:
            raise ModelError(f"{self.path}: has no {name}", cure=_AGAIN)
        if self.sizes[name] > most:
            raise ModelError(f"{self.path}: {name} has {self.sizes[name]} bytes, more than {most}", cure=_AGAIN)
        return b"".join(self.blocks(name))

    def read_json(self, name: str) -> Any:
        """The content of a JSON file.

        Raises:
            ModelError: it cannot be read.
            ValueError: it is no JSON, or nested too deeply.
        """
        try:
            return json.loads(self.read(name).decode("utf-8"))
        except RecursionError as error:
            raise ValueError("nested too deeply") from error

    def sha256(self, name: str) -> str:
        """The hash of a file's bytes."""
        digest = hashlib.sha256()
        for block in self.blocks(name):
            digest.update(block)
        return digest.hexdigest()


class _FolderFiles(PackageFiles):
    def __init__(self, folder: Path) -> None:
        self.path, self.sizes = folder, {}
        root = Path(os.path.realpath(folder))
        for place, folders, names in os.walk(root):
            for name in (*folders, *names):
                path = Path(place, name)
                inside = path.relative_to(root).as_posix()
                self._check_kind(path, inside)
                if name in names and not _is_litter(inside):
                    self.sizes[inside] = path.stat().st_size
            _check_count(folder, len(self.sizes))
            if len(Path(place).relative_to(root).parts) > DEEPEST:
                raise ModelError(f"{folder}: its folders are nested too deeply", cure=_AGAIN)

    def _check_kind(self, path: Path, inside: str) -> None:
        if path.is_symlink() or os.path.realpath(path) != str(path):
            raise ModelError(
                f"{self.path}: {inside} leads to another place",
                cure="Put a copy of the file there in place of the link.",
            )
        if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
            raise ModelError(f"{self.path}: {inside} is neither a file nor a folder", cure="Remove it.")

    def _open(self, name: str) -> IO[bytes]:
        return open(self.path / name, "rb")


class _ZipFiles(PackageFiles):
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self._archive = path, archive
        entries: dict[str, zipfile.ZipInfo] = {}
        for one in archive.infolist():
            # zipfile cuts names at a zero byte, and turns the system's separators to slashes.
            name = one.orig_filename
            if name in entries:
                raise ModelError(f"{path}: holds two files {name!r}", cure=_AGAIN)
            if not name.endswith("/") and not _is_litter(name):
                _check_entry(path, one)
                entries[name] = one
        top = _top(entries)
        self._entries = {name[len(top) :]: one for name, one in entries.items() if name.startswith(top)}
        if len(self._entries) < len(entries):
            raise ModelError(f"{path}: holds files beside the folder of the model", cure=_AGAIN)
        self.sizes = {name: one.file_size for name, one in self._entries.items()}
        unpacked = sum(self.sizes.values())
        if unpacked > SMALL and unpacked > MOST_INFLATION * path.stat().st_size:
            raise ModelError(f"{path}: would unpack to {unpacked} bytes, as no model does", cure=_AGAIN)

    def _open(self, name: str) -> IO[bytes]:
        return self._archive.open(self._entries[name])


@contextmanager
def open_package(path: Path) -> Iterator[PackageFiles]:
    """The files of a package, once their names and sizes are known to be harmless.

    Raises:
        ModelError: it is neither a folder nor a ``.zip``, or holds what no package may hold.
    """
    with ExitStack() as stack:
        try:
            if path.is_dir():
                _check_is_package(path)
                files: PackageFiles = _FolderFiles(path)
            else:
                _check_directory(path)
                files = _ZipFiles(path, stack.enter_context(zipfile.ZipFile(path)))
        except FileNotFoundError as error:
            raise ModelError(
                f"{path}: is not a model package: there is no such folder or file", cure=_GIVE
            ) from error
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
            raise ModelError(f"{path}: is not a model package: it cannot be read ({error})", cure=_GIVE) from error
        _check_names(files)
        yield files


def read_hashes(files: PackageFiles) -> dict[str, str]:
    """What the package says of the hashes of its files: of each of them, and of no others.

    Raises:
        ModelError: it does not say, or of other files.
    """
    try:
        content = files.read_json(HASHES.as_posix())
        if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
            raise ValueError("no list of files")
    except ValueError as error:
        raise ModelError(f"{files.path}: {HASHES.as_posix()} is damaged ({error})", cure=_AGAIN) from error
    there = set(files.sizes) - {HASHES.as_posix()}
    for words, names in (("lacks", set(content) - there), ("holds, and does not list,", there - set(content))):
        if names:
            raise ModelError(f"{files.path}: {words} {sorted(names)[0]!r}", cure=_AGAIN)
    return dict(content)


def check_hashes(files: PackageFiles) -> dict[str, str]:
    """See whether each file has the hash that the package lists for it; the hashes.

    Raises:
        ModelError: one has another, one is missing, or one is not listed.
    """
    listed = read_hashes(files)
    for name, expected in listed.items():
        if files.sha256(name) != expected:
            raise changed(files.path, name)
    return listed


def changed(package: Path, name: str) -> ModelError:
    """The error for a file that is not what it was when the package was made."""
    return ModelError(f"{package}: {name} was changed or damaged since the package was made", cure=_AGAIN)


def digest_of(hashes: Mapping[str, str]) -> str:
    """One SHA-256 for the content of a package, whatever way it is packed."""
    lines = "".join(f"{value}  {name}\n" for name, value in sorted(hashes.items()))
    return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()


def write_hashes(folder: Path) -> None:
    """List the files of a package that is being made."""
    files = _FolderFiles(folder)
    names = sorted(set(files.sizes) - {HASHES.as_posix()})
    write_json(folder / HASHES, {name: files.sha256(name) for name in names})


def unpack(files: PackageFiles, hashes: Mapping[str, str], target: Path) -> None:
    """Write a checked package to a folder that does not exist yet; hashes are looked at once more on the way.

    Raises:
        ModelError: a file is not what was checked.
        DiskError: there is no room, or it may not be written.
    """
    needed, free = sum(files.sizes.values()), shutil.disk_usage(_existing(target)).free
    if needed + SPARE > free:
        raise DiskError(
            f"{target}: the model needs {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free",
            cure="Free some space, or move the workspace with HYBRIDMIM_WORKSPACE.",
        )
    for name in (*hashes, HASHES.as_posix()):
        path, digest = target / name, hashlib.sha256()
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as file:
                for block in files.blocks(name):
                    digest.update(block)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
        if name in hashes and digest.hexdigest() != hashes[name]:
            raise changed(files.path, name)


def pack(folder: Path, target: Path, top: str) -> None:
    """Write the files of a package into one ``.zip``, below a folder ``top``; the same files give the same bytes.

    Raises:
        DiskError: it could not be written.
    """
    files = _FolderFiles(folder)
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in sorted(files.sizes):
            entry = zipfile.ZipInfo(f"{top}/{name}")
            # Numbers of a network hardly shrink, and what is not packed is read faster.
            is_text = not name.endswith(".safetensors")
            entry.compress_type = zipfile.ZIP_DEFLATED if is_text else zipfile.ZIP_STORED
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            with archive.open(entry, "w") as part:
                for block in files.blocks(name):
                    part.write(block)


def file_name(text: str) -> str:
    """A name of a model as a part of a path: letters, numbers and hyphens."""
    name = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", text))[:40]
    name = name.encode("utf-8", "ignore")[:_LONGEST_PART].decode("utf-8", "ignore").strip("-") or "model"
    return f"model-{name}" if _DEVICES.fullmatch(name) else name


def _check_names(files: PackageFiles) -> None:
    """Names that stay in the folder and are different from each other on every system, of files that run nothing."""
    _check_count(files.path, len(files.sizes))
    seen: dict[str, str] = {}
    for name in files.sizes:
        if reason := wrong_with_name(name):
            raise ModelError(f"{files.path}: holds {name!r}, {reason}", cure=_AGAIN)
        _check_suffix(files.path, name)
        # The folders that it lies in, too: with a slash, so that none is taken for a file.
        for part in (name, *(f"{folder}/" for folder in PurePosixPath(name).parents[:-1])):
            known = seen.setdefault(unicodedata.normalize("NFKC", part).casefold().rstrip("/"), part)
            if known != part:
                raise ModelError(f"{files.path}: {known!r} and {part!r} are one name to some systems", cure=_AGAIN)
    total = sum(files.sizes.values())
    if total > MOST_BYTES:
        raise ModelError(f"{files.path}: holds {total} bytes, more than a model has ({MOST_BYTES})", cure=_AGAIN)


def wrong_with_name(name: str, longest: int = LONGEST_NAME, deepest: int = DEEPEST) -> str:
    """Why a file of a package may not be called so on some system, or nothing.

    Args:
        name: with slashes.
        longest: bytes.
        deepest: its parts.
    """
    parts = name.split("/")
    if not name.isprintable() or len(name.encode("utf-8", "surrogatepass")) > longest or len(parts) > deepest:
        return "which is no name for a file"
    if any(part in ("", ".", "..") for part in parts) or _NOT_IN_NAMES.search(name):
        return "which could lead out of the folder"
    if any(part[-1] in ". " or _DEVICES.fullmatch(part.split(".")[0].rstrip(" ")) for part in parts):
        return "which Windows takes for something else"
    return ""


def _check_suffix(package: Path, name: str) -> None:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in PROGRAMS:
        raise ModelError(
            f"{package}: holds {name}, which can run a program when it is loaded",
            cure="Remove it, or ask for a package with weights as .safetensors alone, as 'model pack' makes it.",
        )
    if suffix not in SUFFIXES:
        raise ModelError(
            f"{package}: holds {name}, which does not belong into a model package",
            cure="Remove it, or get the package again from where it came from.",
        )


def _check_count(package: Path, count: int) -> None:
    if count > MOST_FILES:
        raise ModelError(
            f"{package}: is not a model package: it holds more than {MOST_FILES} files",
            cure="Give the folder or the .zip of one model alone.",
        )


def _check_is_package(folder: Path) -> None:
    """What is wrong with the files of any other folder would not help whoever chose it by mistake.

    Raises:
        ModelError: none of the files that all packages have is there.
    """
    if not (folder / HASHES).exists() and not (folder / HASHES.parent / "metadata.json").exists():
        raise ModelError(f"{folder}: is not a model package", cure=_GIVE)


def _check_directory(path: Path) -> None:
    """The list of a zip's files is bounded, before :mod:`zipfile` makes objects of it.

    Raises:
        ModelError: it is no zip, or lists too much.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _LONGEST_END - 20, 0))
        tail = file.read()
    at = len(tail) - 22 if tail[-22:-18] == _END_OF_ZIP and tail.endswith(b"\0\0") else tail.rfind(_END_OF_ZIP)
    if at < 0 or len(tail) - at < 22:
        raise ModelError(f"{path}: is not a model package (a folder or a .zip)", cure=_GIVE)
    entries, length = (int.from_bytes(tail[at + first : at + last], "little") for first, last in ((10, 12), (12, 16)))
    if _END_OF_LARGE_ZIP in tail[max(at - 20, 0) : at] or length > MOST_TEXT or size > MOST_BYTES:
        raise ModelError(f"{path}: is larger than a model can be", cure=_AGAIN)
    # Folders, and what systems litter zips with, have entries too.
    _check_count(path, entries // 4)


def _check_entry(path: Path, entry: zipfile.ZipInfo) -> None:
    """An entry of a zip is a plain file that can be read."""
    name, kind = entry.orig_filename, stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise ModelError(f"{path}: {name!r} is a link or a device, and no file", cure=_AGAIN)
    if entry.flag_bits & 1:
        raise ModelError(f"{path}: {name!r} is encrypted", cure="Ask for the package without a password.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ModelError(f"{path}: {name!r} is packed in an unusual way", cure="Ask for a .zip of 'model pack'.")


def _top(names: Iterable[str]) -> str:
    """The folder inside a zip in which the package lies, with a slash; empty where it lies at the top."""
    ends = [name.removesuffix(HASHES.as_posix()) for name in names if name.endswith(HASHES.as_posix())]
    tops = [end for end in ends if end.count("/") == 1 and end.endswith("/") and not wrong_with_name(end[:-1])]
    return tops[0] if len(ends) == 1 and tops else ""


def _is_litter(name: str) -> bool:
    """What systems put into folders and zips, and half-written files: it is never read."""
    first, last = name.split("/")[0], name.rsplit("/", 1)[-1]
    return (
        first == "__MACOSX" or last in (".DS_Store", "Thumbs.db", "desktop.ini") or last.startswith(("._", TEMPORARY))
    )


def _existing(path: Path) -> Path:
    return next(folder for folder in path.absolute().parents if folder.is_dir())
