"""Training from Slicer: the logic of the module HybridMIMTraining, without any GUI.

    >>> from HybridMIMLib.slicer_side.training import Trainer, TrainingSettings
    >>> job = Trainer().start(TrainingSettings("scans", "cases", name="Liver"))      # doctest: +SKIP
    >>> job.wait(lambda job: print(job.progress.describe()))                        # doctest: +SKIP

The run goes on when Slicer closes; a later Slicer finds it with :func:`training_at_work`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from HybridMIMLib.errors import SettingsError
from HybridMIMLib.runs import command_of, new_path, runs_folder
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED, STOPPED, Job, attach_job, start_job
from HybridMIMLib.slicer_side.models import model_name

COMMAND = "train"


@dataclass(frozen=True)
class TrainingSettings:
    """What to train on, and for how long.

    Attributes:
        unlabelled: folder of scans to pre-train on, or empty: no pre-training.
        labelled: folder of labelled scans to fine-tune on, or empty: pre-training alone.
        name: of the model; empty: that of the labelled folder.
        pretraining_steps, finetuning_steps: optimizer steps.
        device: auto, cpu, cuda, cuda:1, mps.
    """

    unlabelled: str = ""
    labelled: str = ""
    name: str = ""
    pretraining_steps: int = 2000
    finetuning_steps: int = 1000
    device: str = "auto"

    def why_not(self) -> str:
        """Why training cannot start, as a sentence; empty if it can."""
        if not self.unlabelled and not self.labelled:
            return "Choose a folder of unlabelled scans, a folder of labelled scans, or both."
        for kind, folder in (("unlabelled", self.unlabelled), ("labelled", self.labelled)):
            # Unlike Path.is_dir this answers for names that are too long, and for folders that are locked, too.
            if folder and not os.path.isdir(os.path.expanduser(folder)):
                return f"The folder of {kind} scans is not there: {folder}. Choose another."
        return ""

    def options(self) -> dict[str, object]:
        """The settings as options of the command."""
        return {
            "unlabelled": self.unlabelled,
            "labelled": self.labelled,
            "name": self.name.strip(),
            "device": self.device,
            "pretraining.steps": self.pretraining_steps,
            "finetuning.steps": self.finetuning_steps,
        }


class Trainer:
    """Starts runs, and continues the one that did not end.

    A run that was stopped, or whose process was killed, is continued when it is started again with the same
    settings. Should that fail too, the next start begins anew: its scans may have changed, for example.
    """

    def __init__(self) -> None:
        self._unfinished: dict[TrainingSettings, Path] = {}
        self._started: tuple[TrainingSettings, Path] | None = None
        self._continued = False

    def start(self, settings: TrainingSettings) -> Job:
        """Start a run in a process of its own, in a folder of the workspace.

        Raises:
            SettingsError: there is nothing to train on.
            HybridMIMError: the process cannot be started.
        """
        reason = settings.why_not()
        if reason:
            raise SettingsError(reason, cure="Then start again.")
        earlier = self._unfinished.pop(settings, None)
        job = start_job(COMMAND, settings.options(), earlier or new_path(_run_name(settings)))
        self._started, self._continued = (settings, job.folder), earlier is not None
        return job

    def take_end(self, job: Job) -> str:
        """Take note of how the run ended; returns what to tell the user."""
        if job.state == FINISHED:
            return _what_was_made(job)
        if self._started is None or self._started[1] != job.folder or (job.state == FAILED and self._continued):
            return job.message
        self._unfinished[self._started[0]] = job.folder
        # An error of the scans has a cure of its own, and nothing to boast of.
        return f"{job.message} Start continues it." if job.state == STOPPED else job.message


def training_at_work() -> Job | None:
    """The run of the workspace that a process is working on, or None; the newest if there are several."""
    at_work = [file.parent for file in runs_folder().glob("*/run.pid") if command_of(file.parent) == COMMAND]
    for folder in sorted(at_work, key=_began, reverse=True):
        job = attach_job(folder)
        if job is not None:
            return job
    return None


def _what_was_made(job: Job) -> str:
    if not job.result.get("model"):
        return f"The pre-trained weights are in {job.folder}. Choose labelled scans too to train a model."
    validation = job.result.get("validation")
    dice = validation.get("mean") if isinstance(validation, dict) else None
    score = f" Dice on its validation scans: {dice:.3f}." if isinstance(dice, float) else ""
    name = model_name(job.result["model"])
    return f"The model {name} is ready; use it in the module HybridMIM Segmentation.{score}"


def _run_name(settings: TrainingSettings) -> str:
    name = settings.name or Path(settings.labelled or settings.unlabelled).name
    return re.sub(r"[^\w-]+", "-", name).strip("-")[:40] or COMMAND


def _began(folder: Path) -> float:
    try:
        return (folder / "run.pid").stat().st_mtime
    except OSError:
        # It has ended since it was listed.
        return 0.0
