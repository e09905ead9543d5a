"""Fine-tuning: labelled scans, and pre-trained weights where there are any → a model package."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from HybridMIMLib import __version__
from HybridMIMLib.architectures import settled, total_stride
from HybridMIMLib.config import Run, make_run, user_path
from HybridMIMLib.data.augmentation import apply_augmentation, draw_augmentation
from HybridMIMLib.data.classes import LabelClass, Region
from HybridMIMLib.data.clean_up import CleanUp
from HybridMIMLib.data.layouts import Dataset, dataset_of, named_for_labels
from HybridMIMLib.data.patches import CropBatch, CropSampler, keys_on
from HybridMIMLib.data.plan import Plan, fingerprint
from HybridMIMLib.data.prepare import Prepared, prepare_folder
from HybridMIMLib.data.splits import FEWEST_CASES
from HybridMIMLib.data.survey import CaseFacts, classes_of, read_case, survey
from HybridMIMLib.evaluation.dice import dice_by_class, dice_by_region, mean_dice
from HybridMIMLib.events import EventLog, duration
from HybridMIMLib.finetuning.cases import Chosen, Fold
from HybridMIMLib.finetuning.folds import choose, run_folds
from HybridMIMLib.finetuning.precision import in_precision, settle_precision, takes_half
from HybridMIMLib.finetuning.start import Freezer, begin_with, check_start, paces
from HybridMIMLib.finetuning.targets import Target, make_target
from HybridMIMLib.inference.engines import TorchEngine
from HybridMIMLib.inference.predictor import Predictor
from HybridMIMLib.model_package import ModelPackage
from HybridMIMLib.networks import SegmentationNetwork, make_segmentation_network
from HybridMIMLib.networks.deep_supervision import supervised_levels
from HybridMIMLib.networks.device import choose_device, device_in_words
from HybridMIMLib.networks.dropout import dropout_keys
from HybridMIMLib.networks.memory import crop_bytes, settle_batch
from HybridMIMLib.pretrained import Pretrained
from HybridMIMLib.runs import carry_out, keep_inputs, versions
from HybridMIMLib.training import Schedule, TrainingLoop
from HybridMIMLib.weights import load_weights, restore, save_weights

CPU = torch.device("cpu")
WINDOWS = 2
"""That go through the network at once in a validation, if the settings do not say: memory is full of training."""


def finetune(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """Train a segmentation network on ``labelled`` scans; a run that was stopped is continued.

    Args:
        run: all settings; or
        settings: some of them by name, e.g. ``finetune(labelled="cases", weights="pretrained", output="run")``.

    Returns:
        ``model`` (path of the package), ``validation`` (Dice by class of the kept checkpoint), ``step`` it was
        reached at, ``steps`` and ``seconds`` that were trained in all, ``ended_early`` (whether for want of a better
        validation), ``trained_on`` (names of the cases), ``loaded`` (what came from the pre-trained weights),
        ``warnings``. With ``finetuning.folds`` the model is that of all folds, ``validation`` is of the
        cross-validation, and there are also ``folds`` (``validation``, ``held_out``, ``step`` … of each) and ``csv``,
        ``json`` and ``report`` (files; see :mod:`HybridMIMLib.finetuning.folds`).

    Raises:
        HybridMIMError: settings, scans, weights or disk do not allow it; the message names the cure.
    """
    run = make_run(run, settings)
    run.folder("labelled", "the folder of labelled scans")
    return carry_out("finetune", run, lambda folder, events: run_finetuning(run, folder, events))


def run_finetuning(
    run: Run, folder: Path, events: EventLog, dataset: Dataset | None = None, fold: Fold | None = None
) -> dict[str, Any]:
    """Prepare, train, validate, write the package; see :func:`finetune`.

    Args:
        run: the settings; with ``finetuning.folds`` all of it is done for each fold.
        folder: of the run, or of its stage.
        events: where progress goes.
        dataset: a part of the cases; None takes all.
        fold: the one to fine-tune for; None: there are none, or all are asked for.
    """
    device = choose_device(run.device)
    start = Pretrained.of(run)
    check_start(run, start)
    if start:
        run = replace(run, network=start.network_for(run))
    supervised_levels(run.finetuning.deep_supervision, run.network)
    if dataset is None:
        dataset = dataset_of(run, "labelled")
    plan = start.plan_for(run) if start else None
    prepared = (
        fold.prepared
        if fold
        else prepare_folder(run, "labelled", folder, events, plan, FEWEST_CASES, dataset, plan is not None)
    )
    regions = _regions(dataset, prepared.facts, prepared.classes)
    target = make_target(run, prepared.classes, regions)
    # A class that is not there must not end the work after hours.
    clean_up = CleanUp().with_settings(run.inference, target.outputs)
    if run.finetuning.folds and not fold:
        return run_folds(run, folder, events, dataset, prepared, target)
    network_settings = settled(run.network, prepared.plan.spacing)
    run = replace(run, network=network_settings)
    side = min(c // s for c, s in zip(prepared.plan.crop, total_stride(network_settings)))
    precision = settle_precision(run.finetuning.precision, device, folder, events, side)
    batch = settle_batch(run.finetuning.batch, lambda: _crop_bytes(run, prepared, target), device, folder, events)
    run = replace(run, finetuning=replace(run.finetuning, batch=batch))
    network = _make_network(run, prepared.plan, target)
    encoder_alone, frozen = run.finetuning.start == "encoder", run.finetuning.frozen_steps != 0
    loaded = begin_with(network.backbone, start, run.partial_weights, events, encoder_alone, frozen)
    chosen = fold.chosen if fold else choose(run, dataset, prepared.facts, prepared.classes, target, events)[0]
    contents = {facts.case.name: facts.content for facts in prepared.facts}
    split = chosen.split
    keep_inputs(folder / "split.json", {kind: {n: contents[n] for n in names} for kind, names in split.items()})
    used = {"training": chosen.training, "validation": chosen.validation}
    trainer = _Finetuning(
        run, prepared, network, chosen, target, regions, folder, events, device, precision, clean_up
    )
    memory, progress = trainer.train(), trainer.progress
    package = ModelPackage(
        network,
        network_settings,
        prepared.plan,
        target.outputs,
        {
            "trained": datetime.now().astimezone().isoformat(timespec="seconds"),
            "pretrained": loaded,
            "labelled_scans": len(chosen.training),
            "validation_scans": len(chosen.validation),
            "validation_dice": {k[len("best ") :]: v for k, v in memory.items() if k.startswith("best ")},
            "step": int(memory.get("step", run.finetuning.steps)),
            "settings": asdict(run.finetuning),
            "seed": run.seed,
            "device": device.type,
            "versions": {"HybridMIM": __version__, **versions()},
            "fingerprint": fingerprint(prepared.facts).to_json(),
            "data": {kind: _digest(contents[name] for name in names) for kind, names in used.items()},
            **progress,
        },
        model_name(run),
        target.overlapping,
        clean_up=clean_up,
        flip_axes=_flip_axes(run),
    )
    package.save(folder / "model")
    return {
        "model": str(folder / "model"),
        "validation": package.provenance["validation_dice"],
        "step": int(memory.get("step", run.finetuning.steps)),
        **progress,
        "trained_on": chosen.training,
        "loaded": loaded,
    }


def _flip_axes(run: Run) -> tuple[int, ...]:
    """Axes along which crops are flipped, and along which windows may be flipped later."""
    return tuple(sorted(set(run.finetuning.flip_axes))) if run.finetuning.augment else ()


def _digest(contents: Iterable[str]) -> str:
    """One hash for a set of scans, whose names and number do not show."""
    return hashlib.sha256("".join(sorted(contents)).encode()).hexdigest()


def _make_network(run: Run, plan: Plan, target: Target) -> SegmentationNetwork:
    """The network, with heads that say mostly background; the settings of the network are settled."""
    levels = supervised_levels(run.finetuning.deep_supervision, run.network)
    # What a pre-training dropped is a part of its objective, and need not be good for the fine-tuning.
    settings = replace(run.network, dropout=run.finetuning.dropout)
    network = make_segmentation_network(
        settings, plan.channels, len(target.outputs), plan.crop, run.seed,
        overlapping=target.overlapping, levels=levels,
    )  # fmt: skip
    for bias in network.head_biases():
        target.begin(bias)
    return network


def _crop_bytes(run: Run, prepared: Prepared, target: Target) -> int:
    """Memory that a crop takes in a step; a network is made for this question alone."""
    plan = prepared.plan
    network = _make_network(run, plan, target)

    def losses(count: int) -> dict[str, Tensor]:
        label = torch.zeros(count, *plan.crop, dtype=torch.int64)
        with dropout_keys(torch.arange(count)):
            scores = network.scores_by_stage(torch.zeros(count, plan.channels, *plan.crop))
        return target.losses(scores, label)

    return crop_bytes(losses)


def check_labelled(run: Run, dataset: Dataset) -> None:
    """Read all cases once, for what would end a fine-tuning on them: before hours go into the pre-training.

    Raises:
        DataError: too few scans can be used, or the split does not fit them.
        LabelError: a label map is wrong, or a class was annotated in none of those to train on.
        SettingsError: the device cannot train in the precision that was asked for, or what is to be learnt is not
            there, in the network or in the names of the data set.
    """
    takes_half(run.finetuning.precision, choose_device(run.device))
    supervised_levels(run.finetuning.deep_supervision, run.network)
    # What is merely odd is told when they are read again, for the fine-tuning itself.
    events = EventLog()
    facts = survey(dataset.cases, events, dataset.partial)
    classes = classes_of(facts, named_for_labels(dataset, _labels_met(facts)).classes)
    target = make_target(run, classes, _regions(dataset, facts, classes))
    choose(run, dataset, facts, classes, target, events)


def model_name(run: Run) -> str:
    """What the model is called: as set, or as the folder of the labelled scans."""
    if run.name is not None:
        return run.name
    # The whole path, because "." has no name; a folder's name may hold blanks and line breaks.
    folder = Path(os.path.abspath(user_path(str(run.labelled))))
    # A list of scans is a file: its suffix is no part of the name.
    name = folder.stem if folder.is_file() else folder.name
    return " ".join(name.split()) or "model"


class _Finetuning:
    """Steps, validation on whole scans with the predictor that users get, and the best checkpoint."""

    def __init__(
        self,
        run: Run,
        prepared: Prepared,
        network: SegmentationNetwork,
        chosen: Chosen,
        target: Target,
        regions: Sequence[Region],
        folder: Path,
        events: EventLog,
        device: torch.device,
        precision: torch.dtype,
        clean_up: CleanUp,
    ) -> None:
        self.run, self.plan, self.classes, self.events = run, prepared.plan, prepared.classes, events
        self.device, self.network, self.precision = device, network, precision
        self.target, self.regions, self.clean_up = target, tuple(regions), clean_up
        self.predictor = self._predictor()
        cases = [case for case in prepared.cases if case.name in set(chosen.training)]
        self.sampler = CropSampler(cases, self.plan.crop, run.seed, "finetune", run.finetuning.foreground_share)
        self.validation = [facts for facts in prepared.facts if facts.case.name in set(chosen.validation)]
        self.partial = any(case.annotated is not None for case in cases)
        self.folder, self.best = folder, folder / "best.safetensors"
        self.freezer = Freezer(network.backbone, run.finetuning.frozen_steps)
        self.memory: dict[str, float] = {}
        self.progress: dict[str, Any] = {}

    def train(self) -> dict[str, float]:
        """Train; the network holds the best weights afterwards. Returns score and step they were reached at."""
        chosen = self.run.finetuning
        self.network.to(self.device)
        loop = TrainingLoop(
            name="finetune",
            module=self.network,
            losses=self.losses,
            schedule=Schedule(
                chosen.steps, chosen.learning_rate, chosen.warmup_steps, chosen.weight_decay, chosen.schedule
            ),
            checkpoint=self.folder / "checkpoint.pt",
            checkpoint_every=chosen.checkpoint_every,
            events=self.events,
            validate=self.validate if self.validation else None,
            validate_every=chosen.validate_every,
            memory=self.memory,
            paces=paces(self.network.backbone, chosen),
            enough=self._is_enough,
            cases=lambda step: self._batch(step, CPU).cases,
            serves_as_weights=True,
        )
        if chosen.frozen_steps:
            steps = "all steps" if chosen.frozen_steps < 0 else f"the first {chosen.frozen_steps} steps"
            self.events.message(f"the encoder is frozen in {steps}")
        loop.run()
        self.progress = {"steps": loop.done, "seconds": round(loop.seconds, 1), "ended_early": loop.ended_early}
        if loop.ended_early:
            self._tell_of_early_end()
        if self.validation:
            restore(self.network, load_weights(self.best)[0], self.best)
            self._warn_of_lost_classes()
        return self.memory

    def _predictor(self) -> Predictor:
        """What users get, with the network that is trained itself, and no copy that another engine made of it."""
        chosen = self.run.inference
        return Predictor(
            TorchEngine(self.network, self.device, chosen.window_batch or WINDOWS),
            self.plan,
            self.target.outputs,
            replace(chosen, uncertainty=False),
            self.target.overlapping,
            self.clean_up,
            _flip_axes(self.run),
        )

    def _warn_of_lost_classes(self) -> None:
        there = self.target.held_by(set().union(*(facts.labels for facts in self.validation)))
        for one in self.target.outputs:
            # Of what no validation scan has, 0 means that it was found where it is not.
            if self.memory.get(f"best {one.name}") == 0 and one.name in there:
                self.events.warning(
                    f"{one.name} was not found in any validation scan. Train for more finetuning.steps, "
                    "or add scans in which it is labelled."
                )

    def losses(self, step: int) -> dict[str, Tensor]:
        """The losses of one step."""
        self.freezer.at(step)
        batch = self._batch(step, self.device)
        assert batch.label is not None
        image, label = batch.image, batch.label
        if self.run.finetuning.augment:
            drawn = draw_augmentation(batch.keys, self.plan.spacing, self.run.finetuning.flip_axes)
            image, label = apply_augmentation(image, label, drawn)
        with dropout_keys(keys_on(batch.keys, self.device)), in_precision(self.precision, self.device):
            scores = self.network.scores_by_stage(image)
        annotated = batch.annotated if self.partial else None
        return self.target.losses([one.float() for one in scores], label, annotated)

    def validate(self, step: int) -> dict[str, float]:
        """Dice on the whole validation scans, on their own grids; keeps the weights if they are the best yet."""
        rows = [self._dice(facts) for facts in self.validation]
        self._come_back()
        means = mean_dice(rows, set(rows[0]) - set(self.target.measured))
        score = 0.0 if math.isnan(means["mean"]) else means["mean"]
        self.memory["waited"] = self.memory.get("waited", 0) + 1
        if score > self.memory.get("best mean", -1.0):
            self.memory["waited"] = 0
            save_weights(self.best, self.network.state_dict(), {"step": step})
            self.memory.update({f"best {name}": value for name, value in means.items()}, step=step)
        return {f"validation {name}": value for name, value in means.items()}

    def _come_back(self) -> None:
        """Where a GPU had no room for a validation, the predictor took the network to the CPU."""
        if self.predictor.engine.device != self.device:
            self.events.message(f"validated on the CPU, because {device_in_words(self.device)} was out of memory")
            self.predictor = self._predictor()

    def _is_enough(self) -> bool:
        return 0 < self.run.finetuning.patience <= self.memory["waited"]

    def _tell_of_early_end(self) -> None:
        steps, seconds = self.progress["steps"], self.progress["seconds"]
        self.events.message(
            f"ended early, after {steps} of {self.run.finetuning.steps} steps and {duration(seconds)}: the mean Dice "
            f"was best at step {self.memory['step']:.0f} ({self.memory['best mean']:.3f}), and "
            f"{self.memory['waited']:.0f} validations since were no better"
        )

    def _batch(self, step: int, device: torch.device) -> CropBatch:
        return self.sampler.batch(step, self.run.finetuning.batch, device, labels=True)

    def _dice(self, facts: CaseFacts) -> dict[str, float]:
        scan, label = read_case(facts.case)
        assert label is not None
        found = self.predictor.predict(scan.array, scan.grid).labels
        classes = dice_by_class(found, label.array, self.classes, facts.annotated)
        return {**classes, **dice_by_region(found, label.array, self.regions, facts.annotated)}


def _regions(dataset: Dataset, found: Sequence[CaseFacts], classes: Sequence[LabelClass]) -> tuple[Region, ...]:
    """The regions that can be measured with the classes that are learnt."""
    known = {one.label for one in classes}
    named = named_for_labels(dataset, _labels_met(found))
    return tuple(region for region in named.regions if region.labels <= known)


def _labels_met(found: Sequence[CaseFacts]) -> set[int]:
    return set().union(*(facts.labels for facts in found))
