"""Training from a script: runs that are started, waited for, paused and followed, with Slicer's window or without.

    >>> run = start_pretraining("scans", pretraining={"steps": 500})                           # doctest: +SKIP
    >>> run.wait(60)                                     # "running": it goes on by itself      # doctest: +SKIP
    >>> for event in run.events():                       # those that are new                   # doctest: +SKIP
    ...     print(event["kind"], event.get("losses"))
    >>> run.pause()                                                                            # doctest: +SKIP
    >>> run.resume()                                                                           # doctest: +SKIP
    >>> run.wait(log=print)                              # "finished", or RunError              # doctest: +SKIP
    >>> tuned = start_finetuning("cases", weights=run, name="Liver")                           # doctest: +SKIP
    >>> tuned.wait(progress=lambda fraction, text: print(text))                                # doctest: +SKIP
    >>> tuned.model                                                                            # doctest: +SKIP

Each run is a process of its own, which goes on when this one ends, and several may be at work at once. Nothing here
loads torch. Settings are those of the library's functions of the same purpose (``python -m HybridMIMLib COMMAND
--help`` lists them): sections as dictionaries, and ``config`` names a preset or a file.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from HybridMIMLib.config import make_run, user_path
from HybridMIMLib.errors import RunError, SettingsError
from HybridMIMLib.events import Event, EventReader
from HybridMIMLib.presets import config_path
from HybridMIMLib.runs import new_path
from HybridMIMLib.slicer_side.environment import missing_packages
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED, STOPPING, Job, attach_job, error_of, start_job
from HybridMIMLib.slicer_side.run_actions import resume_run
from HybridMIMLib.slicer_side.window import let_window_live

_PAUSE = 0.05
_MODEL = "configs/metadata.json"


class TrainingRun:
    """A run that was started or attached to.

    Args:
        job: that does the work; a panel may follow the same one.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._reader = EventReader(job.folder / "events.jsonl")
        self._told = 0

    @property
    def folder(self) -> Path:
        """The run folder; as ``weights`` of a fine-tuning it is what a pre-training learnt."""
        return self.job.folder

    @property
    def state(self) -> str:
        """running, stopping, finished, stopped or failed, as it is now."""
        self.job.update()
        return self.job.state

    @property
    def message(self) -> str:
        """How it ended: what, why, and the cure; empty while it works."""
        return self.job.message

    @property
    def result(self) -> dict[str, Any]:
        """What it made, once it is finished."""
        return self.job.result

    @property
    def model(self) -> Path | None:
        """The model package that it made, or None. It is looked for where the run is now."""
        places = (self.folder / "model", self.folder / "fine-tuning" / "model")
        return next((place for place in places if (place / _MODEL).is_file()), None)

    def events(self) -> Iterator[Event]:
        """The events of the run that were not handed out yet, those of its earlier attempts too; never waits.

        What an event holds is told in :mod:`HybridMIMLib.events`. A damaged line of the log is passed over.
        """
        yield from self._reader.read()

    def wait(
        self,
        seconds: float | None = None,
        log: Callable[[str], None] | None = None,
        progress: Callable[[float | None, str], None] | None = None,
    ) -> str:
        """Wait until it ends; the window of Slicer stays alive meanwhile.

        Args:
            seconds: at most; None: as long as it takes.
            log: gets each message of the run, such as ``print``.
            progress: gets the share that is done of the phase, None while unknown, and a line that says more.

        Returns:
            The state: ``"finished"``, ``"stopped"`` (it was cancelled or paused, here or elsewhere), or
            ``"running"`` or ``"stopping"`` where the time was over first.

        Raises:
            RunError: it failed; the message says why, and what to do. What it has done is kept.
        """
        ending = None if seconds is None else time.monotonic() + seconds
        while self.job.update() and (ending is None or time.monotonic() < ending):
            self._tell(log, progress)
            let_window_live()
            time.sleep(_PAUSE)
        self._tell(log, progress)
        if self.job.state == FAILED:
            raise error_of(self.job.message)
        return self.job.state

    def cancel(self) -> None:
        """Have it end within seconds, and return at once; :meth:`resume` goes on from its last checkpoint."""
        self.job.cancel()

    def pause(self) -> str:
        """Let it save the step that it is at and end, which frees memory and graphics card, and wait for that.

        :meth:`resume` goes on from there.

        Returns:
            The state: ``"stopped"``, or ``"finished"`` if it ended by itself meanwhile.

        Raises:
            RunError: it failed meanwhile.
        """
        self.job.pause()
        return self.wait()

    def resume(self) -> None:
        """Go on with a run that was paused, cancelled or killed, or that failed.

        Raises:
            RunError: it is still at work, or finished.
            HybridMIMError: the process cannot be started.
        """
        if self.job.update():
            raise RunError(f"{self.folder}: the run is at work", cure="Pause it first, or wait for its end.")
        if self.job.state == FINISHED:
            raise RunError(f"{self.folder}: the run is finished", cure="Start another one.")
        self.job, self._told = continued(self.folder).job, 0

    def _tell(self, log: Callable[[str], None] | None, progress: Callable[[float | None, str], None] | None) -> None:
        lines = self.job.progress.lines
        if log is not None:
            for line in lines[self._told :]:
                log(line)
            self._told = len(lines)
        if progress is not None:
            progress(self.job.progress.fraction, _described(self.job))


def start_pretraining(unlabelled: str | Path, *, folder: str | Path | None = None, **settings: Any) -> TrainingRun:
    """Learn from scans without labels.

    Args:
        unlabelled: folder of scans, or a list of them.
        folder: for the run; without: a new one in the workspace.
        settings: as for :func:`HybridMIMLib.pretrain`, such as ``pretraining={"steps": 500}``.

    Raises:
        SettingsError: a setting cannot work, or the scans, or the weights to start from, are not there.
        HybridMIMError: packages are missing, or the process cannot be started.
    """
    return start_run("pretrain", {"unlabelled": unlabelled, **settings}, folder)


def start_finetuning(
    labelled: str | Path,
    *,
    weights: str | Path | TrainingRun | None = None,
    folder: str | Path | None = None,
    **settings: Any,
) -> TrainingRun:
    """Learn to segment from labelled scans.

    Args:
        labelled: folder of labelled scans, or a list of them.
        weights: what to start from: a pre-training, its folder, or a published file; without: from scratch.
        folder: for the run; without: a new one in the workspace.
        settings: as for :func:`HybridMIMLib.finetune`, such as ``name="Liver"``, ``finetuning={"steps": 500}``.

    Raises:
        As :func:`start_pretraining`.
    """
    start = _weights_of(weights) if isinstance(weights, TrainingRun) else weights
    return start_run("finetune", {"labelled": labelled, "weights": start, **settings}, folder)


def start_training(
    unlabelled: str | Path | None = None,
    labelled: str | Path | None = None,
    *,
    folder: str | Path | None = None,
    **settings: Any,
) -> TrainingRun:
    """Pre-train, then fine-tune, in one run; either folder may be left out.

    Args:
        unlabelled, labelled: folders of scans, or lists of them.
        folder: for the run; without: a new one in the workspace.
        settings: as for :func:`HybridMIMLib.train`.

    Raises:
        As :func:`start_pretraining`.
    """
    return start_run("train", {"unlabelled": unlabelled, "labelled": labelled, **settings}, folder)


def start_study(
    unlabelled: str | Path, labelled: str | Path, *, folder: str | Path | None = None, **settings: Any
) -> TrainingRun:
    """See whether pre-training helps on these scans.

    Args:
        unlabelled, labelled: folders of scans, or lists of them.
        folder: for the run; without: a new one in the workspace.
        settings: as for :func:`HybridMIMLib.study`, such as ``study={"preset": "quick"}``.

    Raises:
        As :func:`start_pretraining`.
    """
    return start_run("study", {"unlabelled": unlabelled, "labelled": labelled, **settings}, folder)


def start_run(command: str, settings: Mapping[str, Any], folder: str | Path | None = None) -> TrainingRun:
    """Start a command in a process of its own.

    Args:
        command: pretrain, finetune, train or study.
        settings: fields and sections of :class:`HybridMIMLib.config.Run`, and ``config``.
        folder: for the run; one that holds it already is continued; without: a new one in the workspace.

    Raises:
        As :func:`start_pretraining`.
    """
    options = _options(settings)
    _check_packages()
    place = user_path(str(folder)).absolute() if folder else new_path(run_name(command, settings))
    return TrainingRun(start_job(command, options, place))


def continued(folder: str | Path) -> TrainingRun:
    """The run in a folder: followed, if a process works on it, else started again where it was stopped.

    Raises:
        RunError: the folder holds no run that can go on, or another program works on it.
        HybridMIMError: packages are missing, or the process cannot be started.
    """
    place = user_path(str(folder)).absolute()
    job = attach_job(place)
    if job is None:
        _check_packages()
        job = resume_run(place)
    return TrainingRun(job)


def _options(settings: Mapping[str, Any]) -> dict[str, object]:
    """Settings as options of the command line, once they are known to be possible."""
    known = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    config = known.pop("config", None)
    for name in ("unlabelled", "labelled"):
        if known.get(name) and not os.path.exists(os.path.expanduser(str(known[name]))):
            raise SettingsError(f"{known[name]}: the {name} scans are not there", cure="Give another folder.")
    if known.get("weights") and not os.path.exists(os.path.expanduser(str(known["weights"]))):
        raise SettingsError(
            f"{known['weights']}: the weights to start from are not there", cure="Give others, or none."
        )
    make_run(None, known)
    options: dict[str, object] = {} if config is None else {"config": config_path(str(config))}
    for name, value in known.items():
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        for part, one in parts:
            options[f"{name}.{part}" if part else name] = _as_option(one)
    return options


def _as_option(value: object) -> object:
    """A value as the command line reads it."""
    return json.dumps(value) if isinstance(value, (bool, list, tuple)) else value


def _check_packages() -> None:
    if missing := missing_packages():
        raise RunError(
            f"These packages are missing: {', '.join(missing)}",
            cure="Install them in the module HybridMIM Training, under Environment.",
        )


def run_name(command: str, settings: Mapping[str, Any]) -> str:
    """What the folder of a new run is called: the command, and the model or the folder of scans."""
    source = settings.get("labelled") or settings.get("unlabelled") or ""
    name = re.sub(r"[^\w-]+", "-", str(settings.get("name") or Path(str(source)).name)).strip("-")
    return f"{command}-{name}"[:50].strip("-")


def _weights_of(run: TrainingRun) -> Path:
    """What a run learnt without labels: its own folder, or that of its first stage."""
    inside = run.folder / "pre-training"
    return inside if inside.is_dir() else run.folder


def _described(job: Job) -> str:
    return "Stopping" if job.state == STOPPING else job.message if job.ended else job.progress.describe()
