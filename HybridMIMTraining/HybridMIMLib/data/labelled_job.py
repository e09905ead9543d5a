"""What a window asks of a labelled folder, done in a process of its own: ``python -m HybridMIMLib.data.labelled_job
JOB.json``.

The job is a JSON object, and its folder the run folder: ``result.json`` and ``events.jsonl`` go there. ::

    {"do": "add", "folder": "cases", "case": {…}, "replace": false, "new_classes": false}
    {"do": "next", "ranking": "ranked/ranking.json", "folder": "cases", "passed": []}
    {"do": "read", "scan": "a.nii.gz", "folder": "segmented"}

The first gives what :meth:`~HybridMIMLib.data.adding.Added.to_json` makes (``new_classes`` may be null too); the
second what :func:`~HybridMIMLib.data.next_scan.write_for_window` returns, with ``row`` (of the ranking), ``labelled``
and ``notes``, or without a scan the last two; the third what that function returns of a scan. An error is one line on
standard error, and the exit code 1.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from HybridMIMLib.data.adding import NewCase, add_case
from HybridMIMLib.data.next_scan import next_scan, write_for_window
from HybridMIMLib.data.scans import read_scan
from HybridMIMLib.errors import DataError, HybridMIMError, SettingsError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import read_json, write_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Do a job; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if len(arguments) != 1:
            raise SettingsError("no job is named", cure="Give one: labelled_job JOB.json.")
        file = Path(arguments[0])
        result = do_job(_read_job(file), file.parent)
        write_json(file.parent / "result.json", result)
    except HybridMIMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def do_job(job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Do a job.

    Args:
        job: see the head of this file.
        folder: for what it writes.

    Raises:
        HybridMIMError: it cannot be done.
    """
    events = EventLog(folder / "events.jsonl")
    place = Path(str(job["folder"]))
    if job["do"] == "read":
        return write_for_window(read_scan(Path(str(job["scan"]))), folder)
    if job["do"] == "add":
        new = NewCase.from_json(job["case"])
        new_classes = None if job["new_classes"] is None else bool(job["new_classes"])
        return add_case(place, new, bool(job["replace"]), new_classes, events).to_json()
    rows = _ranking(Path(str(job["ranking"])))
    found = next_scan([Path(row["scan"]) for row in rows], place, frozenset(job["passed"]), events)
    about: dict[str, Any] = {"labelled": found.labelled, "notes": list(found.notes)}
    if found.scan is None:
        return about
    row = next(row for row in rows if Path(row["scan"]) == found.scan.path)
    return {**about, **write_for_window(found.scan, folder), "row": row}


def _read_job(file: Path) -> Mapping[str, Any]:
    try:
        job = read_json(file)
        assert isinstance(job, dict) and job.get("do") in ("add", "next", "read") and job["folder"]
    except (OSError, ValueError, KeyError, AssertionError) as error:
        raise SettingsError(f"{file}: is no job ({error})", cure="See the head of labelled_job.py.") from error
    return job


def _ranking(file: Path) -> list[dict[str, Any]]:
    try:
        rows = read_json(file)
        assert isinstance(rows, list) and all(isinstance(row["scan"], str) for row in rows)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise DataError(f"{file}: is no ranking ({error})", cure="Rank the scans again.") from error
    return rows


if __name__ == "__main__":
    sys.exit(main())
