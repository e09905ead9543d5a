"""What the warm worker and those who give it work say to each other: one JSON object a line, UTF-8, both ways.

    python -m HybridMIMLib serve [--device auto] [--idle_seconds 300]

Requests come on standard input. Each has an ``id`` (text or a whole number, chosen by whoever asks) and a
``command``:

=========  ========================================================================================================
load       ``model`` (folder, .zip, or name of a model that was added); ``device``, ``inference`` (settings, as a
           section of a run.yaml): they hold until the next load
segment    ``scan`` (file, or a list of files, one a channel), ``output`` (label map to write: .nii.gz, .nii, .nrrd,
           .mha); ``uncertainty`` (.nii.gz, .nii, .nrrd or .mha to write); ``layers`` (folder to write a mask a class
           into, where classes overlap); ``model``, without: the one that is loaded; ``device``, ``inference``: for
           this scan alone, on top of those of the load. Paths are whole ones
cancel     ``job`` (id of a load or segment that waits or is at work)
status     nothing more
quit       nothing more; what waits or is at work is cancelled
=========  ========================================================================================================

Answers go to standard output, and nothing else does. Each has the ``id`` of its request (null: of none) and an
``event``. Every request gets one of the last four, and nothing after it:

=========  ========================================================================================================
ready      (id null) the worker listens: ``protocol``, ``version``, ``pid``
released   (id null) nobody asked for anything for a while: the device is free, and the next request takes it again
accepted   a load or segment has its place in the queue; ``waiting``: how many jobs come before it
progress   ``phase`` (load, read, segment, write), and in phase segment ``done``, ``of`` windows, ``seconds_left``
message    ``message``: a sentence for the user; ``level`` is info or warning
done       of load: ``model`` (name, digest, path), ``device`` (in words), ``warm``, ``seconds`` (total). Of segment:
           ``label``, ``uncertainty`` (path or null), ``layers`` (class → path, or null), ``classes`` (found: name,
           label, ml), ``empty`` (names of those not found), ``windows``, ``skipped``, ``seconds`` (load, read,
           segment, write, total, and network, which is part of segment), ``presets`` (seconds that each would have
           taken, without the load), ``model``, ``device``. Of cancel: ``was`` (waiting or working). Of status:
           ``model``, ``device``, ``warm`` (whether the device is held), ``working`` (id, command and the last
           progress, or null), ``waiting`` (ids), ``pid``. Of quit: nothing
failed     ``message``, ``cure``: of an accepted job; nothing half-written is left, and the next job is unaffected
cancelled  an accepted job was
refused    ``message``, ``cure``: the line was no request, or one that cannot work
=========  ========================================================================================================

The worker ends on quit, when standard input ends, when its parent dies, and on SIGTERM. What is at work is cancelled
then. No torch here: Slicer's side speaks this too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Union

from HybridMIMLib.config import make_run, user_path
from HybridMIMLib.errors import HybridMIMError, SettingsError
from HybridMIMLib.files import json_text

PROTOCOL = 1
MOST_BYTES = 2**20
"""Of a line; a longer one is refused."""
LAST_EVENTS = ("done", "failed", "cancelled", "refused")
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Of what can be written."""

Id = Union[str, int]
_LONGEST_ID, _LARGEST_ID = 200, 2**53
"""Of whole numbers, what every reader of JSON keeps exactly."""
_BLOCK = 2**16


class RequestError(HybridMIMError):
    """A line that is no request, or one that cannot work; ``id`` is that of the request where it has one."""

    def __init__(self, message: str, *, cure: str, id_: Id | None = None) -> None:
        super().__init__(message, cure=cure)
        self.id = id_


@dataclass(frozen=True)
class Load:
    """Have a model ready. ``device`` None: the worker's own; ``inference`` holds the settings that were given."""

    id: Id
    model: str
    device: str | None
    inference: Mapping[str, Any]


@dataclass(frozen=True)
class Segment:
    """Segment one scan; None and nothing in ``inference``: as the last load said."""

    id: Id
    scan: tuple[Path, ...]
    output: Path
    uncertainty: Path | None
    layers: Path | None
    model: str | None
    device: str | None
    inference: Mapping[str, Any]


@dataclass(frozen=True)
class Cancel:
    """Give up a job."""

    id: Id
    job: Id


@dataclass(frozen=True)
class Status:
    """Tell what is loaded, at work and waiting."""

    id: Id


@dataclass(frozen=True)
class Quit:
    """End."""

    id: Id


Request = Union[Load, Segment, Cancel, Status, Quit]
_KINDS: dict[str, type[Request]] = {
    "load": Load, "segment": Segment, "cancel": Cancel, "status": Status, "quit": Quit
}  # fmt: skip


def parse(line: bytes) -> Request:
    """The request in a line.

    Raises:
        RequestError: there is none that could work.
    """
    content = _object(line)
    id_ = content.get("id")
    if not _is_id(id_):
        raise RequestError(
            f"the request's id is {_shown(id_)}", cure="Give each request an id: text, or a whole number."
        )
    try:
        return _request(content)
    except HybridMIMError as error:
        raise RequestError(error.message, cure=error.cure, id_=id_) from error
    except (ArithmeticError, TypeError, ValueError, RecursionError) as error:
        # Such as a number that no float can hold. Whoever asked waits for an answer with the id.
        raise RequestError(
            f"the request cannot be understood ({error})", cure="Give each field a value of its kind.", id_=id_
        ) from error


def encode(content: Mapping[str, Any]) -> bytes:
    """A line for the other side. Names of files that are no UTF-8 have lone surrogates, which JSON can escape."""
    return (json_text(content) + "\n").encode("utf-8", "backslashreplace")


def split_lines(read: Callable[[int], bytes]) -> Iterator[bytes | None]:
    """The lines that a stream holds, without their ends; None for one longer than :data:`MOST_BYTES`.

    A last line without an end was torn: whoever wrote it died over it.

    Args:
        read: returns up to so many bytes as soon as there are any; none at the end.
    """
    held, too_long = b"", False
    while block := read(_BLOCK):
        *lines, held = (held + block).split(b"\n")
        for line in lines:
            yield None if too_long or len(line) > MOST_BYTES else line
            too_long = False
        if len(held) > MOST_BYTES:
            held, too_long = b"", True


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        content = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"a line is no JSON ({type(error).__name__}): {_shown(line.decode('utf-8', 'replace'))}",
            cure="Write one JSON object a line, in UTF-8.",
        ) from error
    if not isinstance(content, dict):
        raise RequestError(f"a line is no JSON object: {_shown(content)}", cure="Write one JSON object a line.")
    return content


def _request(content: Mapping[str, Any]) -> Request:
    command = content.get("command")
    kind = _KINDS.get(command) if isinstance(command, str) else None
    if kind is None:
        raise SettingsError(f"there is no command {_shown(command)}", cure=f"Commands are: {', '.join(_KINDS)}.")
    known = ["id", "command", *(one.name for one in fields(kind) if one.name != "id")]
    for name in content:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Fields are: {', '.join(known)}."
            raise SettingsError(f"{command} has no field {_shown(name)}", cure=hint)
    if kind is Load:
        return Load(content["id"], _text(content, "model"), _device(content), _inference(content))
    if kind is Segment:
        return _segment(content)
    if kind is Cancel:
        if not _is_id(content.get("job")):
            raise SettingsError("cancel does not say which job", cure='Add "job": the id of a load or segment.')
        return Cancel(content["id"], content["job"])
    return Status(content["id"]) if kind is Status else Quit(content["id"])


def _segment(content: Mapping[str, Any]) -> Segment:
    scans = content.get("scan")
    several = scans if isinstance(scans, list) and scans else [scans]
    scan = tuple(_path({"scan": one}, "scan") for one in several)
    output = _to_write(content, "output")
    uncertainty = None if content.get("uncertainty") is None else _to_write(content, "uncertainty")
    paths = [*scan, output, *([] if uncertainty is None else [uncertainty])]
    if len(set(paths)) < len(paths):
        raise SettingsError("two of scan, output and uncertainty are one file", cure="Give each a file of its own.")
    return Segment(
        content["id"],
        scan,
        output,
        uncertainty,
        None if content.get("layers") is None else _path(content, "layers"),
        None if content.get("model") is None else _text(content, "model"),
        _device(content),
        _inference(content),
    )


def _text(content: Mapping[str, Any], name: str) -> str:
    value = content.get(name)
    if not isinstance(value, str) or not value.strip() or not _can_be_a_path(value):
        raise SettingsError(f"{name} is {_shown(value)}", cure=f'Add "{name}" as text.')
    return value


def _can_be_a_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeError:
        return False


def _path(content: Mapping[str, Any], name: str) -> Path:
    """An absolute path: the two sides need not have the same working folder."""
    path = user_path(_text(content, name))
    if not path.is_absolute():
        raise SettingsError(f"{name} is {_shown(str(path))}, which is relative", cure="Give the whole path.")
    return path


def _to_write(content: Mapping[str, Any], name: str) -> Path:
    path = _path(content, name)
    if not path.name.lower().endswith(SUFFIXES):
        raise SettingsError(
            f"{name} is {_shown(str(path))}, which is no format to write",
            cure=f"Choose one of {', '.join(SUFFIXES)}.",
        )
    return path


def _device(content: Mapping[str, Any]) -> str | None:
    device = content.get("device")
    return None if device is None else make_run(None, {"device": device}).device


def _inference(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings that were given, once it is clear that they can work."""
    given = content.get("inference")
    if given is None:
        return {}
    make_run(None, {"inference": given})
    return dict(given)


def _is_id(value: Any) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= _LONGEST_ID
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST_ID


def _shown(value: Any) -> str:
    """A value of the other side for a message: the beginning says enough."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
