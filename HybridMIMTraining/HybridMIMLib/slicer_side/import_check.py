"""Whether packages can be used: ``python -m HybridMIMLib.slicer_side.import_check FOLDER NAME …``.

Of each the files are looked for that it says it has, and then it is imported: in this process, which is not Slicer's,
because an import may crash. What is found goes to ``events.jsonl`` in the folder package by package, so that the one
at which the process ended is known, and to ``result.json``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from HybridMIMLib.events import DONE, FAILED, WAITING, WORKING, EventLog
from HybridMIMLib.files import write_json

_IMPORTED_AS = {"pytorch-ignite": "ignite", "pyyaml": "yaml", "simpleitk": "SimpleITK"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Check packages; returns the exit code."""
    folder_name, *names = sys.argv[1:] if arguments is None else arguments
    folder = Path(folder_name)
    events = EventLog(folder / "events.jsonl")
    events.cases((name, "", WAITING) for name in names)
    phase = events.phase("Checking packages", len(names))
    broken = {}
    for done, name in enumerate(names, 1):
        events.case(name, WORKING)
        reason = why_broken(name)
        if reason:
            broken[name] = reason
        events.case(name, FAILED if reason else DONE, reason)
        phase.progress(done)
    write_json(folder / "result.json", {"broken": broken})
    return 0


def why_broken(name: str) -> str:
    """Why an installed package cannot be used; empty if it can."""
    try:
        missing = missing_files(name)
    except metadata.PackageNotFoundError:
        return "it is not installed"
    if missing:
        return f"{len(missing)} of its files are missing, such as {missing[0]}"
    try:
        importlib.import_module(_IMPORTED_AS.get(name.lower(), name))
    except BaseException as error:
        return f"it cannot be imported ({type(error).__name__}: {error})"
    return ""


def missing_files(name: str) -> list[str]:
    """Files that a package lists and that are not there; what Python makes by itself does not count."""
    files = metadata.distribution(name).files or []
    needed = (one for one in files if one.suffix != ".pyc" and ".." not in one.parts)
    return [str(one) for one in needed if not Path(str(one.locate())).exists()]


if __name__ == "__main__":
    sys.exit(main())
