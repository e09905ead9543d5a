"""Exporting and importing a run, done in a process of its own: ``python -m HybridMIMLib.elsewhere_job JOB.json``.

The job is a JSON object, and its folder the run folder: ``result.json`` and ``events.jsonl`` go there. ::

    {"do": "export", "target": …, "work": …, "command": …, "options": {…}, "run": null, "copy_scans": true,
     "copy_store": false}
    {"do": "import", "source": …, "work": …}

They give what :func:`~HybridMIMLib.exporting.export_run` and :func:`~HybridMIMLib.importing.import_run` return. An
error is one line on standard error, and the exit code 1.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from HybridMIMLib.errors import SettingsError
from HybridMIMLib.events import EventLog
from HybridMIMLib.exporting import Export, export_run
from HybridMIMLib.files import read_json
from HybridMIMLib.importing import import_run
from HybridMIMLib.window_jobs import work_off


def main(arguments: Sequence[str] | None = None) -> int:
    """Do a job; returns the exit code."""
    return work_off(
        "elsewhere_job", lambda file: do_job(_read_job(file), EventLog(file.parent / "events.jsonl")), arguments
    )


def do_job(job: Mapping[str, Any], events: EventLog) -> dict[str, Any]:
    """Do a job.

    Args:
        job: see the head of this file.
        events: to report to.

    Raises:
        HybridMIMError: it cannot be done.
    """
    if job["do"] == "import":
        return import_run(Path(job["source"]), Path(job["work"]), events).to_json()
    run = Path(job["run"]) if job["run"] else None
    export = Export(
        Path(job["target"]), job["command"], job["options"], run, bool(job["copy_scans"]), bool(job["copy_store"])
    )
    return export_run(export, Path(job["work"]), events)


def _read_job(file: Path) -> Mapping[str, Any]:
    try:
        job = read_json(file)
        assert isinstance(job, dict) and job.get("do") in ("export", "import") and job["work"]
    except (OSError, ValueError, KeyError, AssertionError) as error:
        raise SettingsError(f"{file}: is no job ({error})", cure="See the head of elsewhere_job.py.") from error
    return job


if __name__ == "__main__":
    sys.exit(main())
