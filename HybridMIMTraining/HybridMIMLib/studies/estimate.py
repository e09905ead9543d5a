"""How long a study will take, from a few real steps of each kind: told before the first hours are spent.

Of each network, resolution and objective one pre-training of few steps is begun, and of each network and resolution
one fine-tuning, with one validation and one test case. What they take is an upper guess: the first steps are slower.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Union

from HybridMIMLib.config import Run
from HybridMIMLib.errors import RunError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import json_text, make_folder, read_json, write_json
from HybridMIMLib.studies.axes import Arm, Finetuning, Pretraining, finetunings, pretrainings
from HybridMIMLib.studies.cell import TEST
from HybridMIMLib.studies.curves import trace
from HybridMIMLib.studies.jobs import Job, Runner
from HybridMIMLib.studies.protocol import Protocol

STEPS = 4
Cell = Union[Pretraining, Finetuning]


@dataclass(frozen=True)
class Pace:
    """What a kind of cell takes, in seconds.

    Attributes:
        start: to begin and end it.
        step: of training.
        validation: of one case.
        test: of one case.
    """

    start: float
    step: float
    validation: float = 0.0
    test: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """Paces by kind of cell.

    Attributes:
        paces: see :func:`_kind`.
        pretraining_steps: of a pre-training.
        validations: of a fine-tuning.
        validation_cases, test_cases: how many there are.
    """

    paces: dict[str, Pace]
    pretraining_steps: int
    validations: int
    validation_cases: int
    test_cases: int

    def training(self, cell: Cell) -> float:
        """Seconds until a cell is trained, its validations included."""
        pace = self.paces[_kind(cell)]
        if isinstance(cell, Pretraining):
            return pace.start + pace.step * self.pretraining_steps
        validations = self.validations * (2 if cell.arm.twice else 1)
        return pace.start + pace.step * cell.steps + pace.validation * validations * self.validation_cases

    def testing(self, cell: Finetuning) -> float:
        """Seconds that the test of one that was trained takes."""
        return self.paces[_kind(cell)].test * self.test_cases


def estimate(
    run: Run,
    protocol: Protocol,
    folder: Path,
    job: Callable[[Cell, int, Path], Job],
    events: EventLog,
) -> Estimate:
    """The estimate of a study; one that was made on the same settings is taken.

    Args:
        run: the settings.
        protocol: of the study.
        folder: of the study.
        job: makes one of a cell, a number of steps and a folder to work in.
        events: where to tell.

    Raises:
        RunError: a probe failed; so would the study.
    """
    file, digest = folder / "estimate.json", hashlib.sha256(json_text(protocol.settings).encode()).hexdigest()[:16]
    known = _known(file, digest)
    if known is None:
        known = _probe(run, protocol, folder / "probe" / digest, job, events)
        write_json(file, {"settings": digest, "paces": {kind: asdict(pace) for kind, pace in known.items()}})
    return Estimate(known, run.pretraining.steps, run.study.validations, len(protocol.validation), len(protocol.test))


def _probe(
    run: Run, protocol: Protocol, folder: Path, job: Callable[[Cell, int, Path], Job], events: EventLog
) -> dict[str, Pace]:
    cells = _kinds(run, protocol)
    phase = events.phase("estimate", len(cells))
    runner = Runner(folder / "jobs", run.study.jobs, EventLog())
    runner.at_once = 1
    make_folder(runner.folder)
    paces = {}
    for number, (kind, cell) in enumerate(cells.items()):
        work = job(cell, STEPS, folder / f"{number + 1:02}")
        began = time.monotonic()
        runner.run([work])
        if runner.failures:
            raise RunError(
                f"{cell.title}: cannot be trained: {next(iter(runner.failures.values()))}",
                cure="Remove the cause, or leave it out of the study, then give the command again.",
            )
        paces[kind] = _pace(work, "pretrain" if isinstance(cell, Pretraining) else "finetune",
                            time.monotonic() - began)  # fmt: skip
        phase.progress(number + 1)
    return paces


def _kinds(run: Run, protocol: Protocol) -> dict[str, Cell]:
    """One cell of each kind."""
    cells: list[Cell] = list(pretrainings(run.study, protocol.arms))
    for arm in protocol.arms:
        if arm.is_scratch and not arm.twice:
            cells += finetunings(run, arm, run.study.labelled[-1], [run.finetuning.learning_rate], only_first=True)
    kinds: dict[str, Cell] = {}
    for cell in cells:
        kinds.setdefault(_kind(cell), cell)
    return kinds


def _kind(cell: Cell) -> str:
    """What decides how long a cell takes: its steps aside, network and resolution, and the objective."""
    arm: Arm = cell.arm
    return f"{'scratch' if isinstance(cell, Finetuning) else arm.objective} | {arm.group}"


def _pace(job: Job, phase: str, wall: float) -> Pace:
    found = trace(job.folder / "events.jsonl", phase)
    step = found.step_seconds or found.seconds / STEPS
    test = float(read_json(job.folder / TEST)["seconds"]) if job.spec["test"] else 0.0
    # Scans are prepared once, for all cells.
    preparing = trace(job.folder / "events.jsonl", "prepare scans").seconds
    start = max(wall - step * STEPS - found.validation_seconds - test - preparing, 0.0)
    return Pace(*(round(value, 4) for value in (start, step, found.validation_seconds, test)))


def _known(file: Path, digest: str) -> dict[str, Pace] | None:
    try:
        content: dict[str, Any] = read_json(file)
        if content["settings"] != digest:
            return None
        return {kind: Pace(**pace) for kind, pace in content["paces"].items()}
    except (OSError, ValueError, TypeError, KeyError):
        return None
