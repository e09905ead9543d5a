"""What a window asks of a labelled folder, done in a process of its own: ``python -m HybridMIMLib.data.labelled_job
JOB.json``.

The job is a JSON object, and its folder the run folder: ``result.json`` and ``events.jsonl`` go there. ::

    {"do": "add", "folder": "cases", "case": {…}, "replace": false, "new_classes": false}
    {"do": "next", "ranking": "ranked/ranking.json", "folder": "cases", "passed": []}
    {"do": "read", "scan": "a.nii.gz", "folder": "segmented"}
    {"do": "case", "name": "a", "images": ["a.nii.gz"], "label": "a_label.nii.gz", "folder": "cases"}
    {"do": "check", "unlabelled": "scans", "labelled": "cases", "folder": ""}

The first gives what :meth:`~HybridMIMLib.data.adding.Added.to_json` makes (``new_classes`` may be null too); the
second what :func:`~HybridMIMLib.data.next_scan.write_for_window` returns, with ``row`` (of the ranking), ``labelled``
and ``notes``, or without a scan the last two; the third what that function returns of a scan; the fourth what
:func:`~HybridMIMLib.data.next_scan.write_case_for_window` returns. The last writes what
:func:`~HybridMIMLib.data.check.check_for_window` returns, which is long, to a file, and gives that as ``checked``; a
folder that is not named is not looked at. An error is one line on standard error, and the exit code 1.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from HybridMIMLib.config import user_path
from HybridMIMLib.data.adding import NewCase, add_case
from HybridMIMLib.data.check import FOLDERS, check_for_window
from HybridMIMLib.data.layouts import Case
from HybridMIMLib.data.next_scan import next_scan, write_case_for_window, write_for_window
from HybridMIMLib.data.scans import read_scan
from HybridMIMLib.errors import DataError, SettingsError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import read_json, write_json
from HybridMIMLib.window_jobs import work_off

_JOBS = {"add": "case", "next": "ranking", "read": "scan", "case": "images", "check": "labelled"}
"""What each job cannot do without, besides the folder."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do a job; returns the exit code."""
    return work_off("labelled_job", lambda file: do_job(_read_job(file), file.parent), arguments)


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
    if job["do"] == "check":
        return _check(job, folder, events)
    if job["do"] == "read":
        return write_for_window(read_scan(Path(str(job["scan"]))), folder)
    if job["do"] == "case":
        label = Path(str(job["label"])) if job.get("label") else None
        case = Case(str(job["name"]), tuple(Path(str(one)) for one in job["images"]), label)
        return write_case_for_window(case, folder)
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


def _check(job: Mapping[str, Any], folder: Path, events: EventLog) -> dict[str, Any]:
    """Written beside the result: that is read by the window's own thread, which must not wait."""
    places = {name: user_path(str(job[name])) for name in FOLDERS if job.get(name)}
    file = folder / "checked.json"
    write_json(file, check_for_window(places, events))
    return {"checked": str(file)}


def _read_job(file: Path) -> Mapping[str, Any]:
    try:
        job = read_json(file)
        assert isinstance(job, dict) and job["do"] in _JOBS and {"folder", _JOBS[job["do"]]} <= set(job)
        assert job["folder"] or job["do"] == "check"
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
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
