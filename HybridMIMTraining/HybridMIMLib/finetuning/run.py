"""Fine-tuning: labelled scans, and pre-trained weights where there are any → a model package."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from HybridMIMLib.architectures import settled
from HybridMIMLib.config import Run, make_run, user_path
from HybridMIMLib.data.augmentation import apply_augmentation, draw_augmentation
from HybridMIMLib.data.classes import LabelClass, Region
from HybridMIMLib.data.layouts import Dataset, dataset_of, named_for_labels
from HybridMIMLib.data.patches import CropSampler, keys_on
from HybridMIMLib.data.prepare import Prepared, prepare_folder
from HybridMIMLib.data.splits import Split, draw_split, read_split, shared_patients
from HybridMIMLib.data.survey import CaseFacts, classes_of, read_case, survey
from HybridMIMLib.errors import DataError, LabelError
from HybridMIMLib.evaluation.dice import dice_by_class, dice_by_region, mean_dice
from HybridMIMLib.events import EventLog
from HybridMIMLib.finetuning.loss import segmentation_losses, set_initial_shares
from HybridMIMLib.inference.predictor import Predictor
from HybridMIMLib.model_package import ModelPackage
from HybridMIMLib.networks import EncoderDecoder, SegmentationNetwork, make_segmentation_network
from HybridMIMLib.networks.device import choose_device
from HybridMIMLib.networks.dropout import dropout_keys
from HybridMIMLib.networks.memory import crop_bytes, settle_batch
from HybridMIMLib.pretrained import Pretrained
from HybridMIMLib.runs import carry_out, keep_inputs
from HybridMIMLib.training import Schedule, TrainingLoop
from HybridMIMLib.transfer import transfer
from HybridMIMLib.weights import load_weights, restore, save_weights

FEWEST_CASES = 2


def finetune(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """Train a segmentation network on ``labelled`` scans; a run that was stopped is continued.

    Args:
        run: all settings; or
        settings: some of them by name, e.g. ``finetune(labelled="cases", weights="pretrained", output="run")``.

    Returns:
        ``model`` (path of the package), ``validation`` (Dice by class of the kept checkpoint), ``step`` it was
        reached at, ``loaded`` (what came from the pre-trained weights), ``warnings``.

    Raises:
        HybridMIMError: settings, scans, weights or disk do not allow it; the message names the cure.
    """
    run = make_run(run, settings)
    run.folder("labelled", "the folder of labelled scans")
    return carry_out("finetune", run, lambda folder, events: run_finetuning(run, folder, events))


def run_finetuning(run: Run, folder: Path, events: EventLog, dataset: Dataset | None = None) -> dict[str, Any]:
    """Prepare, train, validate, write the package; see :func:`finetune`. ``dataset`` names a part of the cases."""
    device = choose_device(run.device)
    start = Pretrained.of(run)
    if start:
        run = replace(run, network=start.network_for(run))
    if dataset is None:
        dataset = dataset_of(run, "labelled")
    plan = start.plan_for(run) if start else None
    prepared = prepare_folder(run, "labelled", folder, events, plan, FEWEST_CASES, dataset, plan is not None)
    network_settings = settled(run.network, prepared.plan.spacing)
    run = replace(run, network=network_settings)
    batch = settle_batch(run.finetuning.batch, lambda: _crop_bytes(run, prepared), device, folder, events)
    run = replace(run, finetuning=replace(run.finetuning, batch=batch))
    plan, classes = prepared.plan, len(prepared.classes)
    network = make_segmentation_network(network_settings, plan.channels, classes, plan.crop, run.seed)
    assert network.head.bias is not None
    set_initial_shares(network.head.bias)
    loaded = begin_with(network.backbone, start, run.partial_weights, events)
    shares = _split_cases(run, dataset, prepared.facts, prepared.classes, events)
    contents = {facts.case.name: facts.content for facts in prepared.facts}
    kinds = zip(("training", "validation"), shares)
    keep_inputs(folder / "split.json", {kind: {name: contents[name] for name in names} for kind, names in kinds})
    regions = _regions(dataset, prepared)
    trainer = _Finetuning(run, prepared, network, shares, regions, folder, events, device)
    memory = trainer.train()
    package = ModelPackage(
        network,
        network_settings,
        prepared.plan,
        prepared.classes,
        {
            "trained": datetime.now().astimezone().isoformat(timespec="seconds"),
            "pretrained": loaded,
            "labelled_scans": len(shares[0]),
            "validation_scans": len(shares[1]),
            "validation_dice": {k[len("best ") :]: v for k, v in memory.items() if k.startswith("best ")},
            "settings": asdict(run.finetuning),
            "seed": run.seed,
        },
        model_name(run),
    )
    package.save(folder / "model")
    return {
        "model": str(folder / "model"),
        "validation": package.provenance["validation_dice"],
        "step": int(memory.get("step", run.finetuning.steps)),
        "loaded": loaded,
    }


def _crop_bytes(run: Run, prepared: Prepared) -> int:
    """Memory that a crop takes in a step; a network is made for this question alone."""
    plan, classes = prepared.plan, len(prepared.classes)
    network = make_segmentation_network(run.network, plan.channels, classes, plan.crop)

    def losses(count: int) -> dict[str, Tensor]:
        label = torch.zeros(count, *plan.crop, dtype=torch.int64)
        with dropout_keys(torch.arange(count)):
            scores = network(torch.zeros(count, plan.channels, *plan.crop))
        return segmentation_losses(scores, label)

    return crop_bytes(losses)


def check_labelled(run: Run, dataset: Dataset) -> None:
    """Read all cases once, for what would end a fine-tuning on them: before hours go into the pre-training.

    Raises:
        DataError: too few scans can be used, or the split does not fit them.
        LabelError: a label map is wrong, or a class was annotated in none of those to train on.
    """
    # What is merely odd is told when they are read again, for the fine-tuning itself.
    events = EventLog()
    facts = survey(dataset.cases, events, dataset.partial)
    classes = classes_of(facts, named_for_labels(dataset, _labels_met(facts)).classes)
    _split_cases(run, dataset, facts, classes, events)


def model_name(run: Run) -> str:
    """What the model is called: as set, or as the folder of the labelled scans."""
    if run.name is not None:
        return run.name
    # The whole path, because "." has no name; a folder's name may hold blanks and line breaks.
    folder = Path(os.path.abspath(user_path(str(run.labelled))))
    # A list of scans is a file: its suffix is no part of the name.
    name = folder.stem if folder.is_file() else folder.name
    return " ".join(name.split()) or "model"


def begin_with(backbone: EncoderDecoder, start: Pretrained | None, partial: bool, events: EventLog) -> str:
    """Fill the backbone from pre-trained weights, if any, and tell of it; the sentence sums it up."""
    if start is None:
        events.message("from scratch")
        return "from scratch"
    account = transfer(backbone, start, partial)
    for line in account.lines():
        events.message(line)
    return account.sentence()


class _Finetuning:
    """Steps, validation on whole scans with the predictor that users get, and the best checkpoint."""

    def __init__(
        self,
        run: Run,
        prepared: Prepared,
        network: SegmentationNetwork,
        shares: Split,
        regions: Sequence[Region],
        folder: Path,
        events: EventLog,
        device: torch.device,
    ) -> None:
        self.run, self.plan, self.classes, self.events = run, prepared.plan, prepared.classes, events
        self.device, self.network = device, network
        self.predictor = Predictor(network, prepared.plan, prepared.classes, run.inference, self.device)
        training, validation = (set(names) for names in shares)
        cases = [case for case in prepared.cases if case.name in training]
        self.sampler = CropSampler(cases, self.plan.crop, run.seed, "finetune", run.finetuning.foreground_share)
        self.validation = [facts for facts in prepared.facts if facts.case.name in validation]
        self.regions = tuple(regions)
        self.partial = any(case.annotated is not None for case in cases)
        self.folder, self.best = folder, folder / "best.safetensors"
        self.memory: dict[str, float] = {}

    def train(self) -> dict[str, float]:
        """Train; the network holds the best weights afterwards. Returns score and step they were reached at."""
        chosen = self.run.finetuning
        self.network.to(self.device)
        TrainingLoop(
            name="finetune",
            module=self.network,
            losses=self.losses,
            schedule=Schedule(chosen.steps, chosen.learning_rate, chosen.warmup_steps, chosen.weight_decay),
            checkpoint=self.folder / "checkpoint.pt",
            checkpoint_every=chosen.checkpoint_every,
            events=self.events,
            validate=self.validate if self.validation else None,
            validate_every=chosen.validate_every,
            memory=self.memory,
        ).run()
        if self.validation:
            restore(self.network, load_weights(self.best)[0], self.best)
            self._warn_of_lost_classes()
        return self.memory

    def _warn_of_lost_classes(self) -> None:
        for one in self.classes:
            if self.memory.get(f"best {one.name}") == 0:
                self.events.warning(
                    f"class {one.name} was not found in any validation scan. Train for more finetuning.steps, "
                    "or add scans in which it is labelled."
                )

    def losses(self, step: int) -> dict[str, Tensor]:
        """The losses of one step."""
        batch = self.sampler.batch(step, self.run.finetuning.batch, self.device, labels=True)
        assert batch.label is not None
        image, label = batch.image, batch.label
        if self.run.finetuning.augment:
            drawn = draw_augmentation(batch.keys, self.plan.spacing, self.run.finetuning.flip_axes)
            image, label = apply_augmentation(image, label, drawn)
        with dropout_keys(keys_on(batch.keys, self.device)):
            scores = self.network(image)
        return segmentation_losses(scores, label, batch.annotated if self.partial else None)

    def validate(self, step: int) -> dict[str, float]:
        """Dice on the whole validation scans, on their own grids; keeps the weights if they are the best yet."""
        rows = [self._dice(facts) for facts in self.validation]
        means = mean_dice(rows, [region.name for region in self.regions])
        score = 0.0 if math.isnan(means["mean"]) else means["mean"]
        if score > self.memory.get("best mean", -1.0):
            save_weights(self.best, self.network.state_dict(), {"step": step})
            self.memory.update({f"best {name}": value for name, value in means.items()}, step=step)
        return {f"validation {name}": value for name, value in means.items()}

    def _dice(self, facts: CaseFacts) -> dict[str, float]:
        scan, label = read_case(facts.case)
        assert label is not None
        found = self.predictor.predict(scan.array, scan.grid)
        classes = dice_by_class(found, label.array, self.classes, facts.annotated)
        return {**classes, **dice_by_region(found, label.array, self.regions, facts.annotated)}


def _split_cases(
    run: Run, dataset: Dataset, found: Sequence[CaseFacts], classes: Sequence[LabelClass], events: EventLog
) -> Split:
    """The cases to train on and those held out: as a file says, or drawn by patient."""
    patients = {facts.case.name: facts.patient for facts in found}
    if run.finetuning.split is None:
        shares = draw_split(patients, _held_out(run, len(patients)), run.seed)
    else:
        file = user_path(run.finetuning.split)
        shares = read_split(file, list(patients), (case.name for case in dataset.cases))
        if both := shared_patients(shares, patients):
            events.warning(f"{file}: scans of patient {both[0]} are both trained on and validated on.")
    _check_annotated(run, [facts for facts in found if facts.case.name in set(shares[0])], classes)
    return shares


def _held_out(run: Run, count: int) -> int:
    held_out = run.finetuning.validation_cases
    if held_out < 0:
        held_out = max(count // 5, 1)
    if held_out > count - 1:
        raise DataError(
            f"{run.labelled}: {count} labelled scans, of which {held_out} are to be held out for validation",
            cure="Add labelled scans, or lower finetuning.validation_cases.",
        )
    return held_out


def _check_annotated(run: Run, training: Sequence[CaseFacts], classes: Sequence[LabelClass]) -> None:
    """A class that is annotated nowhere would be learnt from nothing."""
    if any(facts.annotated is None for facts in training):
        return
    known = set().union(*(facts.annotated or () for facts in training))
    for one in classes:
        if one.label not in known:
            raise LabelError(
                f"{run.labelled}: class {one.name} ({one.label}) is annotated in none of the {len(training)} scans "
                "to train on",
                cure="Add scans in which it is annotated, remove it from the names of the classes, or choose who "
                "is trained on with finetuning.split.",
            )


def _regions(dataset: Dataset, prepared: Prepared) -> tuple[Region, ...]:
    """The regions that can be measured with the classes that are learnt."""
    known = {one.label for one in prepared.classes}
    named = named_for_labels(dataset, _labels_met(prepared.facts))
    return tuple(region for region in named.regions if region.labels <= known)


def _labels_met(found: Sequence[CaseFacts]) -> set[int]:
    return set().union(*(facts.labels for facts in found))
