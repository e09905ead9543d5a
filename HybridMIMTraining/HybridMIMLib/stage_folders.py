"""The parts of one run that are done one after the other, each in a folder of its own.

Each has a checkpoint and a ``result.json`` of its own; all of them report to the ``events.jsonl`` of the run. A stage
that is finished is not done again when a stopped run goes on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from HybridMIMLib.errors import HybridMIMError, RunError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import write_json
from HybridMIMLib.runs import read_result

_WORTH_KEEPING = ("checkpoint.pt", "*/*/checkpoint.pt", "*/*/result.json")
"""What a stage can be continued from, or the stages in a folder inside it."""


class StageFolders:
    """The stages of one run, or of a stage.

    Attributes:
        folder: of the run.
        events: the one log of all stages.
        seconds: what each stage took, by name; filled as they are done.
    """

    def __init__(self, folder: Path, events: EventLog) -> None:
        self.folder, self.events = folder, events
        self.seconds: dict[str, float] = {}

    def do(self, name: str, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Do a stage, or take what it made when an earlier, interrupted run finished it, with its warnings.

        Args:
            name: of the stage and its subfolder.
            work: gets the subfolder, which it makes when it writes; what it returns is kept there.

        Raises:
            RunError: what an earlier run wrote down is damaged.
        """
        path, warnings = self.folder / name, self.events.warnings
        file = path / "result.json"
        if self.is_done(name):
            warnings += _made(file).get("warnings", [])
        else:
            _remove_if_nothing_to_continue(path)
            began, known = time.monotonic(), len(warnings)
            try:
                result = work(path)
            except HybridMIMError:
                _remove_if_nothing_to_continue(path)
                raise
            seconds = round(time.monotonic() - began, 1)
            write_json(file, {**result, "seconds": seconds, "warnings": warnings[known:]})
        result = _made(file)
        self.seconds[name] = result["seconds"]
        return result

    def is_done(self, name: str) -> bool:
        """Whether a stage is finished."""
        return (self.folder / name / "result.json").exists()


def _made(file: Path) -> dict[str, Any]:
    found = read_result(file, "Remove the file; the same command then finishes this part again.")
    if not isinstance(found, dict) or "seconds" not in found:
        raise RunError(f"{file}: is no result of a run", cure="Remove the file, and start the same command again.")
    return found


def _remove_if_nothing_to_continue(path: Path) -> None:
    """An attempt that ended before it made anything must not be in the way of the next, with other settings."""
    if not any(any(path.glob(pattern)) for pattern in _WORTH_KEEPING):
        shutil.rmtree(path, ignore_errors=True)
