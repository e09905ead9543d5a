"""Pre-training: a folder of unlabelled scans → weights of encoder and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from HybridMIMLib import distributed
from HybridMIMLib.agreement import check_settings
from HybridMIMLib.architectures import settled
from HybridMIMLib.config import Run, make_run
from HybridMIMLib.data.layouts import Dataset
from HybridMIMLib.data.patches import who_is
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.prepare import Prepared, prepare_folder
from HybridMIMLib.data.survey import CaseFacts
from HybridMIMLib.errors import DataError
from HybridMIMLib.events import EventLog
from HybridMIMLib.measures import in_words
from HybridMIMLib.networks.device import choose_device
from HybridMIMLib.networks.memory import FEWEST_TO_CONTRAST, crop_bytes, settle_batch
from HybridMIMLib.pretrained import WEIGHTS_FILE, Origin, save_pretrained
from HybridMIMLib.pretraining.choice import make_objective
from HybridMIMLib.pretraining.crops import CropSource, blank_crops
from HybridMIMLib.pretraining.hybridmim import HybridMIM
from HybridMIMLib.pretraining.objective import Objective
from HybridMIMLib.pretraining.previews import FOLDER as PREVIEWS
from HybridMIMLib.pretraining.previews import Previews, preview_crop
from HybridMIMLib.pretraining.simclr import SimCLR
from HybridMIMLib.pretraining.targets import error_to_patch_mean
from HybridMIMLib.runs import carry_out, keep_inputs
from HybridMIMLib.settings.pretraining import PretrainingSettings
from HybridMIMLib.training import Schedule, TrainingLoop

MASKED = ("hybridmim", "simmim", "mae")
"""Objectives that hide patches."""
MEASURED_AT_THE_END = 16
"""Batches, if as many were trained on; of fewer the error of the hidden voxels says more about the crops than about
the network."""


def pretrain(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """Pre-train on ``unlabelled`` scans; a run that was stopped is continued.

    Args:
        run: all settings; or
        settings: some of them by name, e.g. ``pretrain(unlabelled="scans", output="run", seed=1)``.

    Returns:
        ``weights`` (path), ``losses`` of the last step, ``accuracies`` of the heads beside their chance
        floors, ``previews`` (path, None where the objective reconstructs nothing), ``warnings``.

    Raises:
        HybridMIMError: settings, scans or disk do not allow it; the message names the cure.
    """
    run = make_run(run, settings)
    run.folder("unlabelled", "the folder of scans to pre-train on")
    distributed.check_batch("pretraining.batch", run.pretraining.batch)
    return carry_out("pretrain", run, lambda folder, events: run_pretraining(run, folder, events))


def run_pretraining(run: Run, folder: Path, events: EventLog, dataset: Dataset | None = None) -> dict[str, Any]:
    """Prepare, train, write the weights; see :func:`pretrain`. ``dataset`` names a part of the folder's scans."""
    check_settings(run)
    device = distributed.own_device(choose_device(run.device))
    prepared, run = distributed.by_first(lambda: _prepared(run, folder, events, dataset, device))
    distributed.connect(device)
    objective = make_objective(run, prepared.plan, _patients(prepared)).to(device)
    source = CropSource(prepared.cases, prepared.plan.crop, run.pretraining.batch, run.seed, device)
    if isinstance(objective, HybridMIM):
        _tell_what_is_less(run, prepared.plan, objective, events)
    previews = Previews(
        objective,
        preview_crop(prepared.cases, prepared.plan.crop, run.seed, device),
        prepared.plan,
        run.pretraining.objective,
        folder / PREVIEWS,
    )
    losses = _learn(run, objective, source, previews, folder, events)
    measures = distributed.by_first(lambda: _finish(run, prepared, objective, source, folder, events))
    distributed.disconnect()
    shown = folder / PREVIEWS
    return {
        "weights": str(folder / WEIGHTS_FILE),
        "losses": losses,
        "accuracies": measures,
        "previews": str(shown) if shown.is_dir() else None,
    }


def _prepared(
    run: Run, folder: Path, events: EventLog, dataset: Dataset | None, device: torch.device
) -> tuple[Prepared, Run]:
    """The prepared scans, and the settings with what follows from them: the network settled, the batch chosen."""
    prepared = prepare_folder(
        run, "unlabelled", folder, events, dataset=dataset, suits=lambda plan, found: _try_objective(run, plan, found)
    )
    keep_inputs(folder / "scans.json", {facts.case.name: facts.content for facts in prepared.facts})
    if run.pretraining.objective in MASKED:
        _check_patches_fit(run, prepared, events)
    run = replace(run, network=settled(run.network, prepared.plan.spacing))
    batch = settle_batch(
        run.pretraining.batch,
        lambda: _crop_bytes(run, prepared),
        device,
        folder,
        events,
        FEWEST_TO_CONTRAST,
        distributed.processes(),
    )
    distributed.check_batch("the batch that this run began with,", batch)
    return prepared, replace(run, pretraining=replace(run.pretraining, batch=batch))


def _try_objective(run: Run, plan: Plan, found: Sequence[CaseFacts]) -> None:
    """Make the objective once, for what it refuses: before hours go into preparing scans."""
    patients = {facts.patient or f"scan {facts.case.name}" for facts in found}
    make_objective(_for_trial(run, plan), plan, len(patients))


def _for_trial(run: Run, plan: Plan) -> Run:
    """The settings with a network that is settled, and a batch where none is chosen yet."""
    batch = run.pretraining.batch or FEWEST_TO_CONTRAST
    return replace(run, network=settled(run.network, plan.spacing), pretraining=replace(run.pretraining, batch=batch))


def _tell_what_is_less(run: Run, plan: Plan, objective: HybridMIM, events: EventLog) -> None:
    """Say where sizes leave less of the method than the settings promise."""
    asked = run.pretraining.contrast_stage
    if objective.stage < asked and asked != PretrainingSettings().contrast_stage:
        events.warning(
            f"pretraining.contrast_stage is {asked}, and the last stage of this network is {objective.stage}: "
            "the contrast enters there."
        )
    if plan.crop == plan.region:
        events.warning(
            f"plan.crop {list(plan.crop)} is a single region, so all crops have as many hidden patches in it, and "
            "there is no region to choose. Set a smaller plan.patch and plan.region, or a larger plan.crop."
        )


def _patients(prepared: Prepared) -> int:
    return len({who_is(case) for case in prepared.cases})


def _finish(
    run: Run, prepared: Prepared, objective: Objective, source: CropSource, folder: Path, events: EventLog
) -> dict[str, float]:
    """Measure what was learnt, and write the weights."""
    measures = _measured(objective, source, 2 * run.pretraining.steps + 1, measured_at_the_end(run.pretraining.steps))
    for sentence in in_words(measures):
        events.message(sentence)
    save_pretrained(folder / WEIGHTS_FILE, objective.backbone, _origin(run, prepared, objective))
    return measures


def measured_at_the_end(steps: int) -> int:
    """Batches that are measured after so many steps; who tries a few must not wait for more."""
    return min(MEASURED_AT_THE_END, steps)


def _learn(
    run: Run, objective: Objective, source: CropSource, previews: Previews, folder: Path, events: EventLog
) -> dict[str, float]:
    """Train the objective; the losses of the last step, none where there is nothing to train."""
    chosen = run.pretraining
    if not _learns(objective):
        events.message("nothing is trained: the weights are those that a training from scratch begins with")
        return {}
    learner, share = distributed.shared(objective), source.part(distributed.place(), distributed.together())
    return TrainingLoop(
        name="pretrain",
        module=objective,
        losses=lambda step: learner(share.draw(step)),
        schedule=Schedule(chosen.steps, chosen.learning_rate, chosen.warmup_steps, chosen.weight_decay),
        checkpoint=folder / "checkpoint.pt",
        checkpoint_every=chosen.checkpoint_every,
        events=events,
        validate=lambda step: _measured(objective, source, chosen.steps + step, 1),
        validate_every=chosen.measure_every,
        looks=[(chosen.preview_every, previews.write)],
    ).run()


def _learns(objective: Objective) -> bool:
    return any(parameter.requires_grad for parameter in objective.parameters())


def _origin(run: Run, prepared: Prepared, objective: Objective) -> Origin:
    """What the weights are, and all that is needed to build their network again."""
    trained = ("encoder", "decoder") if objective.trains_decoder else ("encoder",)
    return Origin(run.network, prepared.plan, run.pretraining, trained, len(prepared.cases))


def _measured(objective: Objective, source: CropSource, first: int, count: int) -> dict[str, float]:
    """Measures on the crops of ``count`` steps, which must be none that is trained on; their mean."""
    rows = [objective.measures(source.draw(first + n)) for n in range(count)]
    means = {name: float(np.mean([row[name] for row in rows if name in row])) for row in rows for name in row}
    # Of the mean errors: a batch of little but air must not weigh as much as the others.
    means.pop("error_to_patch_mean", None)
    return {**means, **error_to_patch_mean(means)}


def _crop_bytes(run: Run, prepared: Prepared) -> int:
    """Memory that a crop takes in a step; an objective is made for this question alone."""
    plan = prepared.plan
    objective = make_objective(_for_trial(run, plan), plan, _patients(prepared))
    if isinstance(objective, SimCLR):
        # Its views are drawn on the host, which cannot look at tensors without data.
        views = [objective.views(blank_crops(count, plan.channels, plan.crop)) for count in (1, 2)]
        return crop_bytes(lambda count: objective.losses_of(views[count - 1]))
    learns = _learns(objective)
    return crop_bytes(lambda count: objective(blank_crops(count, plan.channels, plan.crop))) if learns else 1


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
