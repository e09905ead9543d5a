"""How long a segmentation will take on this computer, told before it begins from what the last one took.

Nothing is computed or tried for that: each segmentation leaves a note, by model and device, and from its windows the
worker knows what the other presets would have taken for the same scan. Another scan takes as much longer as it is
larger. Where no note is, or that of a scan of quite another size, nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from HybridMIMLib.data.model_description import ModelDescription
from HybridMIMLib.machine_notes import recall, remember
from HybridMIMLib.slicer_side.inputs import Inputs
from HybridMIMLib.slicer_side.segment_table import ml_of_voxel
from HybridMIMLib.slicer_side.segments import ijk_to_ras

_SECTION = "segmentation times"
_LIKE = 4.0
"""Scans of which one is more than so many times as large as the other tell nothing about each other."""


@dataclass(frozen=True)
class TimeTaken:
    """What the last segmentation with a model took.

    Attributes:
        ml: what its scans cover.
        presets: seconds that each preset takes for that, with a model that is loaded.
        cold: seconds beyond those where the worker had to be started first, or None where that is not known.
        warm: the same where it was there already.
    """

    ml: float
    presets: Mapping[str, float]
    cold: float | None = None
    warm: float | None = None

    def expected(self, ml: float, is_warm: bool) -> dict[str, float]:
        """Seconds by preset for scans that cover so many ml; empty where nobody can say."""
        factor = ml / self.ml
        if not 1 / _LIKE <= factor <= _LIKE:
            return {}
        known = (self.warm, self.cold) if is_warm else (self.cold, self.warm)
        # With a warm worker there is next to nothing beyond its own work, so that of a cold one says nothing of it.
        beyond = known[0] if known[0] is not None else 0.0 if is_warm else known[1] or 0.0
        return {name: beyond + factor * seconds for name, seconds in self.presets.items()}


def note_time(
    model: ModelDescription,
    device: str,
    ml: float,
    answers: Sequence[Mapping[str, Any]],
    seconds: float,
    was_warm: bool,
) -> None:
    """Keep what a segmentation took; work for a thread.

    Args:
        device: as it was asked for.
        ml: what its scans cover.
        answers: what the worker said of each of them in the end.
        seconds: from Apply on until the worker was done with all.
        was_warm: whether the worker was there already.
    """
    presets = [one.get("presets") or {} for one in answers]
    if ml <= 0 or not presets or not all(presets):
        return
    work = sum(one["seconds"]["total"] - one["seconds"]["load"] for one in answers)
    before = time_taken(model, device)
    beyond = {"cold": before.cold if before else None, "warm": before.warm if before else None}
    beyond["warm" if was_warm else "cold"] = max(seconds - work, 0.0)
    total = {name: sum(one[name] for one in presets) for name in presets[0]}
    remember(_SECTION, _key(model, device), asdict(TimeTaken(ml, total, **beyond)))


def time_taken(model: ModelDescription, device: str) -> TimeTaken | None:
    """What is known of this model on this device; work for a thread."""
    note = recall(_SECTION, _key(model, device))
    try:
        numbers = {name: None if note[name] is None else float(note[name]) for name in ("cold", "warm")}
        presets = {str(name): float(value) for name, value in note["presets"].items()}
        return TimeTaken(float(note["ml"]), presets, **numbers) if float(note["ml"]) > 0 else None
    except (AttributeError, LookupError, TypeError, ValueError):
        # None is there, or not one of this version.
        return None


def ml_of(inputs: Inputs) -> float:
    """What the scans of all items cover."""
    total = 0.0
    for item in range(inputs.items):
        volume = inputs.volumes(item)[0]
        i, j, k = volume.GetImageData().GetDimensions()
        total += i * j * k * ml_of_voxel(ijk_to_ras(volume))
    return total


def in_words(seconds: float) -> str:
    """As exact as a prediction is."""
    if seconds < 10:
        return f"{max(round(seconds), 1)} s"
    if seconds < 60:
        return f"{round(seconds / 5) * 5} s"
    return f"{round(seconds / 30) / 2:g} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _key(model: ModelDescription, device: str) -> str:
    return f"{model.path.absolute()} {model.trained} {device}"
