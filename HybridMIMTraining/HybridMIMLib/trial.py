"""A few real steps of a training, on a few of its scans: what they took, in seconds and bytes.

Everything is done twice, as a real training does it, in a folder that the caller removes. The first time it is a
single step, which shows what it takes to begin, as everything is loaded and set up. The second time there are as many
steps as go into some seconds, and they are no longer slowed by that. The scans are a few of different sizes; where
those few cannot be trained on by themselves, because all of them are without any label for example, more are taken.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from HybridMIMLib.config import Run
from HybridMIMLib.data.finding import files_of
from HybridMIMLib.data.layouts import Case, Dataset
from HybridMIMLib.errors import DataError
from HybridMIMLib.events import EventLog, EventReader
from HybridMIMLib.files import atomic_path, read_json
from HybridMIMLib.networks.device import choose_device
from HybridMIMLib.networks.peak import forget_peak, peak_gpu_memory, peak_memory
from HybridMIMLib.pretraining.previews import FOLDER as PREVIEWS
from HybridMIMLib.stages import FINETUNING, PRETRAINING, Stages
from HybridMIMLib.studies.curves import Trace, trace
from HybridMIMLib.training import load_checkpoint

SAMPLE = 4
"""Scans; the least with which fine-tuning can hold one out, and a batch can be of as many patients."""
_TIMES_MORE = 4
SECONDS, MOST_STEPS = 8.0, 60
"""How long the steps of a stage are measured, and how many they are at most; two are the least."""

_CHECK, _PREPARE = "check scans", "prepare scans"
_PHASE = {PRETRAINING: "pretrain", FINETUNING: "finetune"}
_SHARES = {_CHECK: (0.0, 0.2), _PREPARE: (0.2, 0.2), "pretrain": (0.4, 0.6), "finetune": (0.4, 0.6)}
"""Of the work of a stage: where each part of it begins, and how much it is. For the bar alone."""


@dataclass(frozen=True)
class Sample:
    """Some of the cases of a folder.

    Attributes:
        cases: how many.
        share: of the bytes of all cases, from which follows what all of them take.
    """

    cases: int
    share: float


@dataclass(frozen=True)
class StageTrial:
    """What a stage took. Times are in seconds, sizes in bytes.

    Attributes:
        sample: the scans that it was tried on.
        steps: that were measured.
        batch: crops of a step.
        check, prepare: to check and to prepare the sample.
        around: to begin and to end a training, a checkpoint and a preview included.
        step: of training.
        look: a validation of one case, or a measurement of the heads on one batch.
        save: to write a checkpoint.
        preview: to write one.
        store: of the prepared sample.
        checkpoint: of one.
        made: of everything else that is kept, weights and model.
        previews: of one turn.
        memory: the most that the process took of the machine's, or None where nobody can tell.
        gpu_memory: the same of a GPU.
    """

    sample: Sample
    steps: int
    batch: int
    check: float
    prepare: float
    around: float
    step: float
    look: float
    save: float
    preview: float
    store: int
    checkpoint: int
    made: int
    previews: int
    memory: int | None
    gpu_memory: int | None


def measure(
    run: Run, unlabelled: Dataset | None, labelled: Dataset | None, folder: Path, events: EventLog
) -> dict[str, StageTrial]:
    """Try the stages of a training; see :class:`StageTrial`.

    Args:
        run: its settings.
        unlabelled, labelled: its cases; None: that stage is left out.
        folder: to work in; what is left there is the caller's to remove.
        events: gets the progress.

    Returns:
        What each stage took, by its name.

    Raises:
        HybridMIMError: so would the training.
    """
    parts = [one for one in (unlabelled, labelled) if one is not None]
    phase = events.phase("estimate", 2 * len(parts))
    count = SAMPLE
    while True:
        samples = [None if one is None else _sample(one, count) for one in (unlabelled, labelled)]
        try:
            return _Trials(run, samples, folder / f"{count}", lambda done: phase.progress(done)).measure()
        except DataError:
            if count >= max(len(one.cases) for one in parts):
                raise
            # What is wrong may be wrong with these alone.
            shutil.rmtree(folder / f"{count}", ignore_errors=True)
            count *= _TIMES_MORE


def _sample(dataset: Dataset, count: int) -> tuple[Dataset, Sample]:
    """So many cases, evenly from the smallest to the largest."""
    cases = dataset.cases
    sizes = {case.name: _bytes_of(case) for case in cases}
    ordered = sorted(cases, key=lambda case: sizes[case.name])
    chosen = (
        {ordered[int((n + 0.5) * len(cases) / count)].name for n in range(count)} if count < len(cases) else sizes
    )
    # Of single cases one cannot say that a class was annotated in none.
    kept = tuple(replace(case, annotated=None) for case in cases if case.name in chosen)
    share = sum(sizes[name] for name in chosen) / max(sum(sizes.values()), 1)
    return replace(dataset, cases=kept, partial=False), Sample(len(kept), share or len(kept) / len(cases))


def _bytes_of(case: Case) -> int:
    files = [file for image in case.images for file in files_of(image)]
    return sum(file.stat().st_size for file in files if file.exists())


class _Trials:
    """Both times, on one sample."""

    def __init__(
        self,
        run: Run,
        samples: Sequence[tuple[Dataset, Sample] | None],
        folder: Path,
        tell: Callable[[float], None],
    ) -> None:
        self.run, self.samples, self.folder, self.tell = run, samples, folder, tell
        self.device = choose_device(run.device)
        self.done = 0.0

    def measure(self) -> dict[str, StageTrial]:
        """What each stage took."""
        first = self._do("first", dict.fromkeys(_PHASE, 1))
        self.run = _with_batches(self.run, first.batches)
        steps = {name: first.steps_to_measure(name) for name in first.walls}
        second = self._do("second", steps)
        batches = {PRETRAINING: self.run.pretraining.batch, FINETUNING: self.run.finetuning.batch}
        samples = {name: one[1] for name, one in zip(_PHASE, self.samples) if one is not None}
        return {
            name: _taken(name, sample, steps[name], batches[name], first, second) for name, sample in samples.items()
        }

    def _do(self, name: str, steps: Mapping[str, int]) -> _Trial:
        trial = _Trial(self.folder / name, self.device, self.done, self.tell)
        # Scans are prepared the first time, and the second one finds them so.
        run = replace(_few(self.run, steps), store=str(self.folder / "store"))
        unlabelled, labelled = (None if one is None else one[0] for one in self.samples)
        trial.learn(run, unlabelled, labelled)
        self.done = trial.done
        return trial


class _Trial(Stages):
    """One time: the stages of a training, each with a log of its own, watched from outside.

    Attributes:
        walls: seconds of each stage.
        memory, gpu_memory, stored: bytes of each: the peaks, and what the store has grown by.
        done: stages, both times counted.
    """

    def __init__(self, folder: Path, device: torch.device, done: float, tell: Callable[[float], None]) -> None:
        super().__init__(folder, EventLog())
        self.device, self.done, self.tell = device, done, tell
        self.walls: dict[str, float] = {}
        self.memory: dict[str, int | None] = {}
        self.gpu_memory: dict[str, int | None] = {}
        self.stored: dict[str, int] = {}

    def do(self, name: str, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Do a stage, and note what it took."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.events = _Watched(self._log(name), lambda share: self.tell(self.done + share))
        store = self.folder.parent / "store"
        before, began = _size(store), time.monotonic()
        forget_peak(self.device)
        result = super().do(name, work)
        self.walls[name] = time.monotonic() - began
        self.memory[name], self.gpu_memory[name] = peak_memory(), peak_gpu_memory(self.device)
        self.stored[name] = _size(store) - before
        self.done += 1
        self.tell(self.done)
        return result

    def trace(self, name: str, phase: str = "") -> Trace:
        """What the log of a stage tells; of its training, if no phase is named."""
        return trace(self._log(name), phase or _PHASE[name])

    @property
    def batches(self) -> dict[str, int]:
        """Crops of a step by stage, where they were fitted to the device."""
        files = {name: self.folder / name / "batch.json" for name in self.walls}
        return {name: int(read_json(file)["batch"]) for name, file in files.items() if file.exists()}

    def steps_to_measure(self, name: str) -> int:
        """As many steps as go into :data:`SECONDS`, going by the first."""
        return min(max(int(SECONDS / max(self.trace(name).step_seconds, 1e-3)), 2), MOST_STEPS)

    def save_seconds(self, name: str) -> float:
        """To write a checkpoint of a stage; it is written once more, beside the first."""
        file = self.folder / name / "checkpoint.pt"
        if not file.exists():
            return 0.0
        state, began = load_checkpoint(file), time.monotonic()
        with atomic_path(file.with_name("again.pt")) as temporary:
            torch.save(state, temporary)
        seconds = time.monotonic() - began
        file.with_name("again.pt").unlink()
        return seconds

    def preview_seconds(self, name: str) -> float:
        """To write a preview: from the last measurement to the last of its files."""
        files = list((self.folder / name / PREVIEWS).glob("*"))
        told = [float(one["time"]) for one in EventReader(self._log(name)).read() if one.get("phase") == _PHASE[name]]
        return max(max(file.stat().st_mtime for file in files) - told[-1], 0.0) if files and told else 0.0

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"


class _Watched(EventLog):
    """Tells besides what share of a stage is done."""

    def __init__(self, path: Path, tell: Callable[[float], None]) -> None:
        super().__init__(path)
        self._tell = tell

    def write(self, kind: str, **content: Any) -> None:
        """Append one event."""
        super().write(kind, **content)
        if kind in ("phase", "progress") and content["phase"] in _SHARES:
            begins, share = _SHARES[content["phase"]]
            self._tell(begins + share * min(content["step"] / max(content["steps"], 1), 1.0))


def _few(run: Run, steps: Mapping[str, int]) -> Run:
    """The settings with so few steps, each like one of the whole training; everything else is done once."""
    first, second = steps.get(PRETRAINING, 1), steps.get(FINETUNING, 1)
    return replace(
        run,
        pretraining=replace(
            run.pretraining, steps=first, checkpoint_every=first, measure_every=0, preview_every=0
        ),
        finetuning=replace(
            run.finetuning,
            steps=second,
            checkpoint_every=second,
            validate_every=second,
            validation_cases=0 if run.finetuning.validation_cases == 0 else 1,
            # An encoder that is frozen for some steps learns in the others, and these take longer.
            frozen_steps=min(run.finetuning.frozen_steps, 0),
            labelled_fraction=1.0,
            split=None,
            patience=0,
            folds=0,
            fold=0,
        ),
    )  # fmt: skip


def _with_batches(run: Run, batches: Mapping[str, int]) -> Run:
    """What was fitted to the device once is not fitted again."""
    first = replace(run.pretraining, batch=batches.get(PRETRAINING, run.pretraining.batch))
    second = replace(run.finetuning, batch=batches.get(FINETUNING, run.finetuning.batch))
    return replace(run, pretraining=first, finetuning=second)


def _taken(name: str, sample: Sample, steps: int, batch: int, first: _Trial, second: _Trial) -> StageTrial:
    """What both times say of a stage."""
    begun, found = first.trace(name), second.trace(name)
    check, prepare = (first.trace(name, phase).seconds for phase in (_CHECK, _PREPARE))
    folder = second.folder / name
    save, previews = second.save_seconds(name), _size(folder / PREVIEWS)
    checkpoint = _size(folder / "checkpoint.pt")
    return StageTrial(
        sample=sample,
        steps=steps,
        batch=batch,
        check=check,
        prepare=prepare,
        around=max(first.walls[name] - check - prepare - begun.seconds, 0.0),
        step=found.step_seconds,
        look=found.validation_seconds,
        save=save,
        preview=second.preview_seconds(name),
        store=first.stored[name],
        checkpoint=checkpoint,
        made=_size(folder) - checkpoint - previews,
        previews=previews,
        memory=_most(first.memory[name], second.memory[name]),
        gpu_memory=_most(first.gpu_memory[name], second.gpu_memory[name]),
    )


def _most(*values: int | None) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
