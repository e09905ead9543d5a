"""Pre-training: a folder of unlabelled scans → weights of encoder and decoder."""

from __future__ import annotations

from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from HybridMIMLib.architectures import settled, total_stride
from HybridMIMLib.config import Run, make_run
from HybridMIMLib.data.layouts import Dataset
from HybridMIMLib.data.prepare import Prepared, prepare_folder
from HybridMIMLib.errors import DataError
from HybridMIMLib.events import EventLog
from HybridMIMLib.networks.device import choose_device
from HybridMIMLib.networks.memory import FEWEST_TO_CONTRAST, activation_bytes, settle_batch
from HybridMIMLib.pretraining.choice import box_size, make_objective
from HybridMIMLib.pretraining.crops import CropSource
from HybridMIMLib.pretraining.masking import PatchGrid
from HybridMIMLib.pretraining.objective import Objective
from HybridMIMLib.runs import carry_out, keep_inputs
from HybridMIMLib.training import Schedule, TrainingLoop
from HybridMIMLib.weights import save_weights

WEIGHTS_FILE = "pretrained.safetensors"


def pretrain(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """Pre-train on ``unlabelled`` scans; a run that was stopped is continued.

    Args:
        run: all settings; or
        settings: some of them by name, e.g. ``pretrain(unlabelled="scans", output="run", seed=1)``.

    Returns:
        ``weights`` (path), ``losses`` of the last step, ``accuracies`` of the heads beside their chance
        floors, ``warnings``.

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
    run = replace(run, network=settled(run.network, prepared.plan.spacing))
    batch = settle_batch(
        run.pretraining.batch, _crop_bytes(run, prepared), device, folder, events, FEWEST_TO_CONTRAST
    )
    run = replace(run, pretraining=replace(run.pretraining, batch=batch))
    source = CropSource(prepared.cases, prepared.plan.crop, batch, run.seed, device)
    objective = make_objective(run, prepared.plan, source.sampler.patients).to(device)
    chosen = run.pretraining
    losses = TrainingLoop(
        name="pretrain",
        module=objective,
        losses=lambda step: objective(source.draw(step)),
        schedule=Schedule(chosen.steps, chosen.learning_rate, chosen.warmup_steps, chosen.weight_decay),
        checkpoint=folder / "checkpoint.pt",
        checkpoint_every=chosen.checkpoint_every,
        events=events,
        validate=lambda step: _measured(objective, source, chosen.steps + step, 1),
        validate_every=chosen.measure_every,
    ).run()
    measures = _measured(objective, source, 2 * chosen.steps + 1, 4)
    events.message("heads: " + ", ".join(f"{name} {value:.2f}" for name, value in measures.items()))
    description = {"network": asdict(run.network), "plan": prepared.plan.to_json(), "scans": len(prepared.cases)}
    save_weights(folder / WEIGHTS_FILE, objective.backbone.state_dict(), description)
    return {"weights": str(folder / WEIGHTS_FILE), "losses": losses, "accuracies": measures}


def _measured(objective: Objective, source: CropSource, first: int, count: int) -> dict[str, float]:
    """Measures on the crops of ``count`` steps, which must be none that is trained on; their mean."""
    rows = [objective.measures(source.draw(first + n)) for n in range(count)]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _crop_bytes(run: Run, prepared: Prepared) -> int:
    """Memory that a crop takes in a step: the encoder, the decoder in the box, the second pass of the contrast."""
    plan, chosen, features = prepared.plan, run.pretraining, run.network.features
    assert features is not None
    grid = PatchGrid(plan.crop, plan.patch, plan.region)
    decoded = prod(box_size(grid, chosen, total_stride(run.network))) / prod(plan.crop)
    again = min(chosen.contrast_stage, len(features) - 1) if chosen.contrast_weight else None
    return activation_bytes(features, plan.crop, plan.channels, decoded, again)


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
