"""What was made of which scan, from which bytes and with what: the existence of a file says none of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from HybridMIMLib.data.layouts import Case
from HybridMIMLib.data.survey import content_hash
from HybridMIMLib.files import read_json, write_json


class Ledger:
    """Remembers what a command has made, so that it can go on where it was stopped.

    Args:
        file: where it is kept; the files that it tells of lie in the same folder, or below.
        made_with: model, settings, and whatever else the results follow from, as JSON has it. What was made with
            something else counts no more; its files go once the scan's own new ones are there.
    """

    def __init__(self, file: Path, made_with: Mapping[str, Any]) -> None:
        self._file, self._made_with = file, dict(made_with)
        self._hashes: dict[str, str] = {}
        self._made: dict[str, dict[str, Any]] = {}
        try:
            content = read_json(file)
            entries = {str(name): _entry(entry) for name, entry in content["scans"].items()}
            counts = content["made_with"] == self._made_with
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return
        self._made = entries if counts else {name: {"files": entry["files"]} for name, entry in entries.items()}

    def get(self, case: Case) -> dict[str, Any] | None:
        """What was kept of a case, or None if there is nothing, its scan has changed, or a file is missing."""
        entry = self._made.get(case.name)
        if entry is None or entry.get("content") != self._hash(case):
            return None
        there = all((self._file.parent / name).is_file() for name in entry["files"])
        about = entry.get("about")
        return about if there and isinstance(about, dict) else None

    def add(self, case: Case, about: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """Keep what was found in a case, and which files were made; those of before that are not among them go.

        Raises:
            DiskError: it could not be written.
        """
        names = [path.relative_to(self._file.parent).as_posix() for path in files]
        # An uncertainty or a class of other settings beside this label map would be taken for its own.
        self._remove(name for name in self._made.get(case.name, {"files": []})["files"] if name not in names)
        self._made[case.name] = {"content": self._hash(case), "files": names, "about": dict(about)}
        write_json(self._file, {"made_with": self._made_with, "scans": self._made})

    def _remove(self, names: Iterable[str]) -> None:
        folder = self._file.parent.resolve()
        for path in (folder / name for name in names):
            # The ledger is a file that anybody may have written to: it has no say over what lies elsewhere.
            if folder in path.resolve().parents:
                with suppress(OSError):
                    path.unlink()

    def _hash(self, case: Case) -> str:
        if case.name not in self._hashes:
            self._hashes[case.name] = content_hash(case.images)
        return self._hashes[case.name]


def _entry(content: Any) -> dict[str, Any]:
    """An entry as :meth:`Ledger.add` wrote it.

    Raises:
        TypeError, ValueError, KeyError: it is none.
    """
    entry = dict(content)
    if not all(isinstance(name, str) and "\0" not in name for name in entry["files"]):
        raise TypeError(f"no list of files: {entry['files']!r}")
    return entry
