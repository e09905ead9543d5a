"""One cell of a study, in a process of its own: ``python -m HybridMIMLib.studies.cell JOB.json PARENT``.

A cell works in a run folder like any other, which panels and ``--config`` take too. One that was stopped goes on from
its checkpoint when it is started again. It ends with whoever started it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from HybridMIMLib.config import Run, from_dict
from HybridMIMLib.data.layouts import Dataset
from HybridMIMLib.errors import DataError, HybridMIMError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import read_json, write_json
from HybridMIMLib.parents import when_gone
from HybridMIMLib.runs import carry_out
from HybridMIMLib.studies.protocol import Protocol

TEST = "test.json"
"""What was measured on the test cases; in the run folder of the fine-tuning."""
CHECKPOINT = "checkpoint.pt"


def main(file: Path, parent: int | None = None) -> int:
    """Work a job off; returns the exit code, as the commands do.

    Args:
        file: the job.
        parent: number of the process that started it, which may have ended before this one could look.
    """
    when_gone(parent, lambda: os._exit(1))
    signal.signal(signal.SIGTERM, _stop)
    try:
        work(read_json(file))
    except HybridMIMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def work(job: Mapping[str, Any]) -> None:
    """Pre-train; or fine-tune, and test where test cases are named; what is finished is not done again.

    Args:
        job: ``kind`` (``"pretrain"`` or ``"finetune"``), ``run`` (settings), ``protocol`` (file), ``cases`` (names
            to learn from and, of a fine-tuning, to validate on), ``test`` (names).

    Raises:
        HybridMIMError: the message names the cure.
    """
    protocol, run = Protocol.load(Path(job["protocol"])), from_dict(job["run"])
    folder = run.folder("output", "the folder of the cell")
    if not (folder / "result.json").exists():
        _learn(job["kind"], run, protocol, job["cases"])
        # As large as all the rest; nothing continues from it any more.
        (folder / CHECKPOINT).unlink(missing_ok=True)
    if job["test"] and not (folder / TEST).exists():
        _test(run, protocol.dataset(run, "labelled", job["test"]), folder)


def _learn(kind: str, run: Run, protocol: Protocol, cases: list[str]) -> None:
    from HybridMIMLib.finetuning.run import run_finetuning
    from HybridMIMLib.pretraining.run import run_pretraining

    if kind == "pretrain":
        scans = protocol.dataset(run, "unlabelled", cases)
        carry_out("pretrain", run, lambda path, events: run_pretraining(run, path, events, scans))
    else:
        labelled = protocol.dataset(run, "labelled", cases)
        carry_out("finetune", run, lambda path, events: run_finetuning(run, path, events, labelled))


def _test(run: Run, dataset: Dataset, folder: Path) -> None:
    """Segment the test cases with the checkpoint that was kept, and measure them on their own grids.

    Raises:
        DataError: one cannot be used, so that the arms would be compared on different cases.
    """
    from HybridMIMLib.evaluation.measuring import measure_case
    from HybridMIMLib.inference.cases import find_in_cases
    from HybridMIMLib.inference.predictor import make_predictor
    from HybridMIMLib.model_package import load_model

    events = EventLog()
    predictor = make_predictor(load_model(folder / "model"), run.inference, run.device, events.message)
    # An engine may have been tried first, which is no matter of the cases.
    rows, measured, began = [], 0, time.monotonic()
    for found in find_in_cases(dataset.cases, predictor, events, "test"):
        assert found.reference is not None
        present = {int(label) for label in set(found.reference.ravel().tolist())} - {0}
        rows += measure_case(
            found.reference, found.labels, found.grid, dataset.classes, dataset.regions,
            annotated=dataset.annotated_in(found.case, present), tolerances=run.evaluation.tolerance_by_name(),
            tolerance=run.evaluation.tolerance, case=found.case.name,
        )  # fmt: skip
        measured += 1
    if measured < len(dataset.cases):
        raise DataError(
            f"{len(dataset.cases) - measured} test case(s) cannot be segmented: {'; '.join(events.warnings)}",
            cure="Mend them; the study cannot compare arms on different cases.",
        )
    seconds = round(time.monotonic() - began, 2)
    write_json(folder / TEST, {"rows": [asdict(row) for row in rows], "seconds": seconds})


def _stop(number: int, frame: FrameType | None) -> None:
    """End on SIGTERM as on Ctrl+C, so that the run folder says that it was stopped."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None))
