"""Writing files so that a reader never sees half of one.

Everything is written to a temporary name in the same folder and renamed when it is whole. A full disk becomes a
:class:`~HybridMIMLib.errors.DiskError` that names the file, and the temporary file is removed.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from HybridMIMLib.errors import DiskError

# EFBIG is what a file-size limit (ulimit -f, some network drives) answers in place of ENOSPC.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What libraries make of it when they do not hand the number on: numpy and, from the fourth on, torch of a write that
# was cut short.
_FULL_IN_WORDS = (
    *("No space left on device", "File too large", "requested and"),
    *("iostream error", "unexpected pos", "PytorchStreamWriter failed"),
)
_MAY_NOT = {errno.EACCES, errno.EPERM, errno.EROFS}

TEMPORARY = ".tmp-"
"""How the name of every temporary file begins; whoever lists a folder passes these over."""


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission met in the block into an error that names ``target``.

    Libraries wrap the system's error in their own, so the chain of causes and the words are looked at too.

    Raises:
        DiskError: the disk is full, a quota was reached, or the folder may not be written to.
    """
    try:
        yield
    except DiskError:
        # It names the file already, and more closely.
        raise
    except Exception as error:
        number = _errno_of(error)
        if number in _FULL:
            free = free_bytes(target) / 1e6
            raise DiskError(
                f"{target}: the disk is full or a size limit was reached ({free:.0f} MB free)",
                cure="Free some space, or choose another folder with --output, and run the command again.",
            ) from error
        if number in _MAY_NOT:
            raise DiskError(
                f"{target}: writing is not permitted",
                cure="Choose a folder that you may write to with --output.",
            ) from error
        raise


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are not there.

    Raises:
        DiskError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(
            f"{path}: the folder cannot be made ({error.strerror})",
            cure="Choose another folder with --output or --store.",
        ) from error


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; rename it to ``target`` when the block ends well.

    The temporary name keeps the suffixes of ``target``, because writers choose the format by them, but not all of
    a long name: file systems allow 255 bytes.

    Raises:
        DiskError: the file could not be written; nothing is left behind.
    """
    temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{target.name[-60:]}")
    if target.parent.is_file():
        raise DiskError(
            f"{target.parent}: is a file where a folder has to be",
            cure="Move it away, or choose another folder.",
        )
    with disk_errors(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            flush_to_disk(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(target: Path, content: Any) -> None:
    """Write JSON atomically, readable for people; see :func:`json_text`."""
    write_text(target, json_text(content, indent=1) + "\n")


def json_text(content: Any, indent: int | None = None) -> str:
    """JSON with non-ASCII letters as they are, and null for numbers that are none: JSON has no NaN."""
    return json.dumps(_without_nan(content), indent=indent, ensure_ascii=False, allow_nan=False)


def read_json(source: Path) -> Any:
    """The content of a UTF-8 JSON file.

    Raises:
        OSError, ValueError: as ``open`` and ``json`` raise them; callers know what the file was for.
    """
    return json.loads(source.read_text(encoding="utf-8"))


def _without_nan(content: Any) -> Any:
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return content


def _errno_of(error: BaseException | None) -> int | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if any(words in str(error) for words in _FULL_IN_WORDS):
            return errno.ENOSPC
        error = error.__cause__ or error.__context__
    return None


def free_bytes(target: Path) -> int:
    """Room on the disk on which a file or a folder is, or would be made."""
    folder = next((p for p in (target, *target.parents) if p.is_dir()), Path.cwd())
    return shutil.disk_usage(folder).free


def size_in_words(count: float | None) -> str:
    """``2.1 GB``, ``35 MB`` or ``0.4 MB``; a question mark where nobody knows."""
    if count is None:
        return "?"
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:{'.0f' if count >= 1e7 else '.1f'}} MB"


def flush_to_disk(path: Path) -> None:
    """A rename may reach the disk before the content does; a power cut would then leave an empty file."""
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())
