"""A set of synthetic scans, made in a process of its own: ``python -m HybridMIMLib.data.phantom_job JOB.json``.

The job is a JSON object, and its folder gets ``result.json`` and ``events.jsonl``. ::

    {"folder": "sample", "seed": 0, "unlabelled": 16, "labelled": 12, "unseen": 4}

An error is one line on standard error, and the exit code 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from HybridMIMLib.data.phantom import writing_phantoms
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import read_json
from HybridMIMLib.window_jobs import work_off

_GROUPS = ("unlabelled", "labelled", "unseen")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a set; returns the exit code."""
    return work_off("phantom_job", _make, arguments)


def _make(file: Path) -> dict[str, Any]:
    try:
        job = read_json(file)
        folder, seed, counts = Path(job["folder"]), int(job["seed"]), [int(job[name]) for name in _GROUPS]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{file}: is no job ({error})", cure="See the head of phantom_job.py.") from error
    phase = EventLog(file.parent / "events.jsonl").phase("Drawing scans", sum(counts))
    for done in writing_phantoms(folder, seed, counts):
        phase.progress(done)
    return {}


if __name__ == "__main__":
    sys.exit(main())
