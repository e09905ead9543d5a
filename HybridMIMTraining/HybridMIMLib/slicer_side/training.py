"""What the panel HybridMIM Training starts, follows and tells of; scripts use :mod:`~.training_run`.

The run goes on when Slicer closes; a later Slicer finds it with :func:`training_at_work`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from HybridMIMLib.commands import COMMANDS
from HybridMIMLib.runs import command_of, new_path, runs_folder
from HybridMIMLib.slicer_side.jobs import FINISHED, Job, attach_job, start_job
from HybridMIMLib.slicer_side.models import model_name
from HybridMIMLib.slicer_side.training_run import run_name

TRAININGS = ("pretrain", "finetune", "train", "study")
"""Commands that the panel starts."""

WEIGHTS = "pretrained.safetensors"
_STAGE = "pre-training"
"""Folder of the first stage of ``train`` in its run folder."""


@dataclass(frozen=True)
class Pretraining:
    """A finished pre-training that a fine-tuning can start from.

    Attributes:
        folder: what ``weights`` takes.
        name: of the run.
        made: when, in seconds since 1970.
    """

    folder: Path
    name: str
    made: float


def options_of(
    command: str, unlabelled: str, labelled: str, plan: Mapping[str, object], weights: str = ""
) -> dict[str, object]:
    """Options of the command line; of the plan those that the command knows.

    Args:
        command: one of :data:`TRAININGS`.
        unlabelled, labelled: folders.
        plan: options by dotted name, and ``config``.
        weights: that a fine-tuning starts from; empty: from scratch, or what the plan names.
    """
    known = {"config", *COMMANDS[command].options}
    chosen: dict[str, object] = {"unlabelled": unlabelled, "labelled": labelled, **plan}
    if weights and command == "finetune":
        chosen["weights"] = weights
    return {name: value for name, value in chosen.items() if name.partition(".")[0] in known and value != ""}


def start_training(command: str, options: Mapping[str, object]) -> Job:
    """Start a run in a process of its own, in a new folder of the workspace.

    Raises:
        HybridMIMError: the process cannot be started.
    """
    return start_job(command, options, new_path(run_name(command, options)))


def training_at_work() -> Job | None:
    """The training of the workspace that a process is working on, or None; the newest if there are several."""
    at_work = [file.parent for file in runs_folder().glob("*/run.pid") if command_of(file.parent) in TRAININGS]
    for folder in sorted(at_work, key=_began, reverse=True):
        job = attach_job(folder)
        if job is not None:
            return job
    return None


def finished_pretrainings() -> list[Pretraining]:
    """What the workspace has to start a fine-tuning from, the latest first; for a thread: it looks at files."""
    found = []
    for folder in runs_folder().glob("*"):
        for place in (folder, folder / _STAGE):
            if (place / WEIGHTS).is_file() and (place / "result.json").is_file():
                found.append(Pretraining(place, os.fsencode(folder.name).decode("utf-8", "replace"), _made(place)))
    return sorted(found, key=lambda one: one.made, reverse=True)


def why_no_weights(path: str) -> str:
    """Why a fine-tuning cannot start from something, as a sentence with the cure; empty if it can.

    Args:
        path: a folder, or a file of weights; empty: from scratch.
    """
    place = os.path.expanduser(path)
    if not path or os.path.isfile(place) or os.path.isfile(os.path.join(place, WEIGHTS)):
        return ""
    cure = "Choose something else to fine-tune from, or nothing."
    if os.path.isdir(place):
        return f"There are no pre-trained weights in the folder to fine-tune from: {path}. {cure}"
    return f"What the fine-tuning is to start from is not there: {path}. {cure}"


def what_was_made(job: Job) -> str:
    """What to tell the user of a run that has finished; of another one its message."""
    if job.state != FINISHED:
        return job.message
    command = command_of(job.folder)
    if command == "study":
        return " ".join(["The study is finished.", *_verdicts(job), "Open report, under Runs, shows all of it."])
    if not job.result.get("model"):
        return "Pre-trained. Fine-tune starts from these weights, as long as they are chosen above."
    validation = job.result.get("validation")
    dice = validation.get("mean") if isinstance(validation, dict) else None
    score = f" Dice on its validation scans: {dice:.3f}." if isinstance(dice, float) else ""
    name = model_name(job.result["model"])
    return f"The model {name} is ready; use it in the module HybridMIM Segmentation.{score}"


def _verdicts(job: Job) -> list[str]:
    verdicts = job.result.get("verdicts")
    return [one for one in verdicts if isinstance(one, str)] if isinstance(verdicts, list) else []


def _made(folder: Path) -> float:
    try:
        return (folder / "result.json").stat().st_mtime
    except OSError:
        return 0.0


def _began(folder: Path) -> float:
    try:
        return (folder / "run.pid").stat().st_mtime
    except OSError:
        # It has ended since it was listed.
        return 0.0
