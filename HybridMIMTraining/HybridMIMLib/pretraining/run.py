"""Pre-training: a folder of unlabelled scans → weights of encoder and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from HybridMIMLib.config import PretrainingSettings, Run, make_run
from HybridMIMLib.data.layouts import Dataset
from HybridMIMLib.data.patches import CropBatch, CropSampler, inside_mask
from HybridMIMLib.data.prepare import Prepared, prepare_folder
from HybridMIMLib.errors import DataError, SettingsError
from HybridMIMLib.events import EventLog
from HybridMIMLib.networks import initial_weights, make_backbone
from HybridMIMLib.networks.device import choose_device
from HybridMIMLib.networks.interface import Box
from HybridMIMLib.networks.memory import FEWEST_TO_CONTRAST, activation_bytes, settle_batch
from HybridMIMLib.pretraining.hybridmim import HybridMIM, MaskedBatch
from HybridMIMLib.pretraining.masking import PatchGrid, Triple, draw_box, draw_mask, whole_patches
from HybridMIMLib.randomness import random_stream, stream_key
from HybridMIMLib.runs import carry_out, keep_inputs
from HybridMIMLib.training import Schedule, TrainingLoop
from HybridMIMLib.weights import save_weights

WEIGHTS_FILE = "pretrained.safetensors"


def pretrain(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """Pre-train on ``unlabelled`` scans with HybridMIM; a run that was stopped is continued.

    Args:
        run: all settings; or
        settings: some of them by name, e.g. ``pretrain(unlabelled="scans", output="run", seed=1)``.

    Returns:
        ``weights`` (path), ``losses`` of the last step, ``accuracies`` of the region heads, ``warnings``.

    Raises:
        HybridMIMError: settings, scans or disk do not allow it; the message names the cure.
    """
    run = make_run(run, settings)
    run.folder("unlabelled", "the folder of scans to pre-train on")
    return carry_out("pretrain", run, lambda folder, events: run_pretraining(run, folder, events))


def run_pretraining(run: Run, folder: Path, events: EventLog, dataset: Dataset | None = None) -> dict[str, Any]:
    """Prepare, train, write the weights; see :func:`pretrain`. ``dataset`` names a part of the folder's scans."""
    device = choose_device(run.device)
    prepared = prepare_folder(run, "unlabelled", folder, events, dataset=dataset)
    keep_inputs(folder / "scans.json", {facts.case.name: facts.content for facts in prepared.facts})
    _check_patches_fit(run, prepared, events)
    batch = settle_batch(
        run.pretraining.batch, _crop_bytes(run, prepared), device, folder, events, FEWEST_TO_CONTRAST
    )
    run = replace(run, pretraining=replace(run.pretraining, batch=batch))
    objective = _objective(run, prepared).to(device)
    batches = MaskedBatches(prepared, objective, run, device)
    chosen = run.pretraining
    losses = TrainingLoop(
        name="pretrain",
        module=objective,
        losses=lambda step: objective.losses(batches.draw(step)),
        schedule=Schedule(chosen.steps, chosen.learning_rate, chosen.warmup_steps, chosen.weight_decay),
        checkpoint=folder / "checkpoint.pt",
        checkpoint_every=chosen.checkpoint_every,
        events=events,
    ).run()
    accuracies = _mean([objective.accuracies(batches.draw(chosen.steps + 1 + n)) for n in range(4)])
    events.message("region heads, right answers: " + ", ".join(f"{k} {v:.2f}" for k, v in accuracies.items()))
    description = {"network": asdict(run.network), "plan": prepared.plan.to_json(), "scans": len(prepared.cases)}
    save_weights(folder / WEIGHTS_FILE, objective.backbone.state_dict(), description)
    return {"weights": str(folder / WEIGHTS_FILE), "losses": losses, "accuracies": accuracies}


class MaskedBatches:
    """Draws crops, masks and boxes of any step from the prepared scans."""

    def __init__(self, prepared: Prepared, objective: HybridMIM, run: Run, device: torch.device) -> None:
        self.grid, self.settings, self.device = objective.grid, run.pretraining, device
        self.sampler = CropSampler(prepared.cases, prepared.plan.crop, run.seed, "pretrain")
        self.stride = objective.backbone.strides[-1]
        self.box = box_size(self.grid, self.settings, self.stride)

    def draw(self, step: int) -> MaskedBatch:
        """The batch of a step, on the device."""
        crops = self.sampler.batch(step, self.settings.batch, self.device)
        whole = [whole_patches(size, self.grid) for size in crops.sizes]
        streams = [random_stream(key, "mask") for key in crops.keys]
        masks = [
            draw_mask(random, self.grid, patches, self.settings.mask_ratio, self.settings.region_ratio)
            for random, patches in zip(streams, whole)
        ]
        lower = [
            draw_box(random, self.grid, patches, self.box, self.stride) for random, patches in zip(streams, whole)
        ]
        return MaskedBatch(
            image=crops.image,
            inside=inside_mask(crops.sizes, self.grid.crop, self.device),
            whole=torch.from_numpy(np.stack(whole)).to(self.device),
            mask=torch.from_numpy(np.stack(masks)).to(self.device),
            box=Box(torch.tensor(lower), self.box),
            keys=_dropout_keys(crops),
            patients=_numbers(crops.cases).to(self.device),
        )


def box_size(grid: PatchGrid, settings: PretrainingSettings, stride: Triple) -> Triple:
    """The box to reconstruct: as set, or two thirds of the crop along each axis, in steps of the stride.

    Raises:
        SettingsError: the box is larger than the crop, or no multiple of the network's stride.
    """
    if settings.box is None:
        d, h, w = (max(round(2 / 3 * c / s), 1) * s for c, s in zip(grid.crop, stride))
        return (d, h, w)
    if any(b > c or b % s for b, c, s in zip(settings.box, grid.crop, stride)):
        raise SettingsError(
            f"pretraining.box {settings.box} does not fit crop {list(grid.crop)} and stride {list(stride)}",
            cure="Choose a box within the crop, each side a multiple of the stride.",
        )
    d, h, w = settings.box
    return (d, h, w)


def _crop_bytes(run: Run, prepared: Prepared) -> int:
    """Memory that a crop takes in a step: the encoder, the decoder in the box, the second pass of the contrast."""
    plan, chosen, features = prepared.plan, run.pretraining, run.network.features
    grid, stride = PatchGrid(plan.crop, plan.patch, plan.region), run.network.stride
    decoded = prod(box_size(grid, chosen, (stride,) * 3)) / prod(plan.crop)
    again = min(chosen.contrast_stage, len(features) - 1) if chosen.contrast_weight else None
    return activation_bytes(features, plan.crop, plan.channels, decoded, again)


def _objective(run: Run, prepared: Prepared) -> HybridMIM:
    plan, chosen = prepared.plan, run.pretraining
    if chosen.contrast_weight and chosen.batch < 2:
        raise SettingsError(
            "pretraining.batch is 1, and the contrast needs other samples to compare with",
            cure="Set pretraining.batch to 2 or more (4 is better), or pretraining.contrast_weight to 0.",
        )
    if chosen.contrast_weight and run.network.dropout == 0:
        raise SettingsError(
            "network.dropout is 0, and the contrast compares two passes that differ by dropout",
            cure="Set network.dropout above 0 (0.1 is usual), or pretraining.contrast_weight to 0.",
        )
    if chosen.contrast_weight and len(prepared.cases) < 2:
        raise DataError(
            f"{run.unlabelled}: holds one usable scan, and the contrast compares different patients",
            cure="Add scans, or set pretraining.contrast_weight to 0.",
        )
    backbone = make_backbone(run.network, plan.channels, run.seed)
    with initial_weights(run.seed, "objective"):
        return HybridMIM(backbone, PatchGrid(plan.crop, plan.patch, plan.region), plan.channels, chosen)


def _check_patches_fit(run: Run, prepared: Prepared, events: EventLog) -> None:
    """A scan thinner than a patch has nothing to mask; without this, training on it would teach next to nothing."""
    patch = prepared.plan.patch
    thin = [case for case in prepared.cases if any(n < p for n, p in zip(case.image.shape[1:], patch))]
    cure = "Set plan.patch to no more voxels than the scans have, and plan.region to a multiple of it."
    if len(thin) == len(prepared.cases):
        raise DataError(f"{run.unlabelled}: every scan is thinner than a patch of {list(patch)} voxels", cure=cure)
    for case in thin:
        events.warning(
            f"{case.name} is thinner than a patch of {list(patch)} voxels: nothing of it is masked. {cure}"
        )


def _numbers(names: Sequence[str]) -> torch.Tensor:
    """The same number for the same name."""
    return torch.tensor([names.index(name) for name in names])


def _dropout_keys(crops: CropBatch) -> tuple[int, ...]:
    return tuple(stream_key(key, "dropout") for key in crops.keys)


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
