"""How long a training will take, and how much memory and disk: told after a few real steps, before it is begun.

``python -m HybridMIMLib estimate --of train …`` takes the options of the command that it is asked about. What a few
steps on a few scans took (:mod:`HybridMIMLib.trial`) is multiplied by how often it will be done. The scans of the
whole set count by the bytes of their files. Nothing of the trial is kept.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any

from HybridMIMLib.agreement import check_folders
from HybridMIMLib.config import Run, make_run, user_path
from HybridMIMLib.data.layouts import Dataset, dataset_of
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import free_bytes, size_in_words
from HybridMIMLib.runs import carry_out, runs_folder
from HybridMIMLib.stages import FINETUNING, PRETRAINING

if TYPE_CHECKING:
    from HybridMIMLib.trial import StageTrial

_TRIAL = "probe"
MOST_OF_MEMORY = 0.9
"""Of the machine's; what goes beyond it may end the training."""


def estimate(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """Try a few steps of the training that ``of`` names, and reckon what all of it will take.

    With ``output`` the answer is kept there as ``result.json``, and taken from there when it is asked for again;
    without, nothing is written.

    Returns:
        See :func:`reckon`.

    Raises:
        HybridMIMError: settings, scans or disk do not allow a few steps, and so they would not allow the training.
    """
    run = make_run(run, settings)
    _asked(run)
    if run.output:
        return carry_out("estimate", run, lambda folder, events: reckon(run, folder, events))
    with tempfile.TemporaryDirectory() as folder:
        return reckon(run, Path(folder), EventLog())


def reckon(run: Run, folder: Path, events: EventLog) -> dict[str, Any]:
    """The estimate, made in a folder in which nothing of it is left.

    Returns:
        ``stages``: by name (``pre-training``, ``fine-tuning``) ``scans``, ``steps``, ``batch``, ``networks`` (as many
        as folds), ``step_seconds``, ``seconds`` (in all), ``parts`` (the same divided), ``memory`` and ``gpu_memory``
        (the most bytes, None where unknown), ``disk`` (bytes of ``store``, ``checkpoints`` and ``previews``) and
        ``tried`` (on how many ``scans`` and ``steps``). Of all together ``seconds``, ``memory``, ``gpu_memory`` and
        ``disk``, and ``spare``, which is needed besides as long as the training goes on; ``memory_total``,
        ``gpu_memory_total`` and ``free`` are what there is, the last on the disk of ``folder``. ``device``, ``of``,
        ``notes`` and ``warnings`` are for people.

    Raises:
        HybridMIMError: as :func:`estimate`.
    """
    run = _asked(run)
    unlabelled, labelled = (dataset_of(run, name) if getattr(run, name) else None for name in _FOLDERS)
    validated = _validated(run, labelled) if labelled else 0
    # Imported late: torch takes seconds, and a wrong folder should be told before them.
    from HybridMIMLib.networks.device import choose_device
    from HybridMIMLib.networks.memory import machine_memory
    from HybridMIMLib.networks.peak import gpu_memory
    from HybridMIMLib.trial import measure

    device = choose_device(run.device)
    try:
        found = measure(run, unlabelled, labelled, folder / _TRIAL, events)
    finally:
        shutil.rmtree(folder / _TRIAL, ignore_errors=True)
    stages = {}
    if unlabelled:
        stages[PRETRAINING] = _pretraining(run, len(unlabelled.cases), found[PRETRAINING])
    if labelled:
        twice = 2 if unlabelled else 1
        stages[FINETUNING] = _finetuning(run, len(labelled.cases), validated, twice, found[FINETUNING])
    rows = list(stages.values())
    place = user_path(run.store) if run.store else runs_folder()
    result = {
        "of": run.of,
        "device": str(device),
        "stages": stages,
        "seconds": sum(row["seconds"] for row in rows),
        "memory": _most(row["memory"] for row in rows),
        "memory_total": machine_memory(),
        "gpu_memory": _most(row["gpu_memory"] for row in rows),
        "gpu_memory_total": gpu_memory(device),
        "disk": sum(sum(row["disk"].values()) for row in rows),
        # While a checkpoint is written the one before is still there.
        "spare": max(one.checkpoint for one in found.values()),
        "free": free_bytes(place),
        "folder": str(place),
        "notes": _notes(run, bool(labelled)),
    }
    for text in _warnings(result):
        events.warning(text)
    return {**result, "warnings": list(events.warnings)}


_FOLDERS = ("unlabelled", "labelled")


def _asked(run: Run) -> Run:
    """The settings of the training that is asked about.

    Raises:
        SettingsError: it has nothing to train on.
    """
    if run.of == "pretrain":
        run.folder("unlabelled", "the folder of scans to pre-train on")
        return replace(run, labelled=None, weights=None)
    if run.of == "finetune":
        run.folder("labelled", "the folder of labelled scans")
        return replace(run, unlabelled=None)
    check_folders(run)
    return run


def _validated(run: Run, dataset: Dataset) -> int:
    """Cases that a network is validated on."""
    # Imported late, as above.
    from HybridMIMLib.data.splits import read_split
    from HybridMIMLib.finetuning.cases import held_out

    names = [case.name for case in dataset.cases]
    if run.finetuning.split:
        return len(read_split(user_path(run.finetuning.split), names, names)[1])
    if run.finetuning.folds:
        return -(-len(names) // run.finetuning.folds)
    return held_out(run, len(names))


def _pretraining(run: Run, scans: int, trial: StageTrial) -> dict[str, Any]:
    from HybridMIMLib.pretraining.run import measured_at_the_end

    chosen = run.pretraining
    # With an objective that trains nothing there is no step.
    steps = chosen.steps if trial.step else 0
    previews = turns(steps, chosen.preview_every)
    looks = turns(steps, chosen.measure_every) + measured_at_the_end(steps)
    parts = {
        "preparing": (trial.check + trial.prepare) / trial.sample.share,
        "steps": steps * trial.step,
        # One of each is part of the beginning and the end.
        "validation": max(looks - 2, 0) * trial.look,
        "checkpoints": max(turns(steps, chosen.checkpoint_every) - 1, 0) * trial.save,
        "previews": max(previews - 1, 0) * trial.preview,
        "rest": trial.around,
    }
    return _stage(trial, scans, steps, 1, parts, max(previews, 1))


def _finetuning(run: Run, scans: int, validated: int, checks: int, trial: StageTrial) -> dict[str, Any]:
    """``checks``: how often the scans are looked through."""
    chosen = run.finetuning
    steps, networks = chosen.steps, chosen.folds if chosen.folds and not chosen.fold else 1
    every = chosen.validate_every if validated else 0
    # Each fold is segmented once more in the end.
    looks = (turns(steps, every) if validated else 0) + (1 if networks > 1 else 0)
    parts = {
        "preparing": (checks * trial.check + trial.prepare) / trial.sample.share,
        "steps": networks * steps * trial.step,
        "validation": networks * looks * validated * trial.look,
        "checkpoints": networks * max(saves(steps, chosen.checkpoint_every, every) - 1, 0) * trial.save,
        "previews": 0.0,
        "rest": networks * trial.around,
    }
    return _stage(trial, scans, steps, networks, parts, 0)


def _stage(
    trial: StageTrial, scans: int, steps: int, networks: int, parts: Mapping[str, float], previews: int
) -> dict[str, Any]:
    return {
        "scans": scans,
        "steps": steps,
        "batch": trial.batch,
        "networks": networks,
        "step_seconds": round(trial.step, 5),
        "seconds": round(sum(parts.values()), 2),
        "parts": {name: round(seconds, 2) for name, seconds in parts.items()},
        "memory": trial.memory,
        "gpu_memory": trial.gpu_memory,
        "disk": {
            "store": round(trial.store / trial.sample.share),
            "checkpoints": networks * (trial.checkpoint + trial.made),
            "previews": previews * trial.previews,
        },
        "tried": {"scans": trial.sample.cases, "steps": trial.steps},
    }


def turns(steps: int, every: int) -> int:
    """How often something is done that is done every so many steps and after the last; 0: after the last alone."""
    return 0 if steps == 0 else (steps - 1) // every + 1 if every else 1


def saves(steps: int, every: int, validate_every: int) -> int:
    """How often a checkpoint is written: in its turn, and after each validation, once where both fall together."""
    if not validate_every:
        return turns(steps, every)
    return turns(steps, every) + turns(steps, validate_every) - turns(steps, lcm(every, validate_every))


def _notes(run: Run, finetunes: bool) -> list[str]:
    """What makes the real training differ."""
    notes = []
    if finetunes and run.finetuning.patience:
        notes.append("The fine-tuning may end earlier (finetuning.patience).")
    if finetunes and run.finetuning.frozen_steps > 0:
        notes.append("Steps with a frozen encoder take less (finetuning.frozen_steps).")
    return notes


def _warnings(result: Mapping[str, Any]) -> Sequence[str]:
    warnings = []
    room = result["disk"] + result["spare"]
    if room > result["free"]:
        needed, free = size_in_words(room), size_in_words(result["free"])
        warnings.append(
            f"{needed} of disk would be needed, and {free} are free in {result['folder']}. Free some space, or set "
            "store, or HYBRIDMIM_WORKSPACE, to a folder on another disk."
        )
    for name, what in (("memory", "memory"), ("gpu_memory", "GPU memory")):
        most, there = result[name], result[f"{name}_total"]
        if most and there and most > MOST_OF_MEMORY * there:
            warnings.append(
                f"{size_in_words(most)} of {what} would be needed, and this machine has {size_in_words(there)}. "
                "Choose a smaller batch, plan.crop or network.size."
            )
    return warnings


def _most(values: Any) -> int | None:
    return max((value for value in values if value is not None), default=None)
