"""Small objectives and crops, shared by the tests of pre-training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from HybridMIMLib.architectures import U_NETS, settled
from HybridMIMLib.config import Run
from HybridMIMLib.data.patches import inside_mask
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.pretraining.choice import make_objective
from HybridMIMLib.pretraining.crops import Crops
from HybridMIMLib.pretraining.objective import Objective
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.settings.pretraining import PretrainingSettings

Triple = tuple[int, int, int]

SIZES: dict[str, tuple[Triple, Triple, Triple]] = {
    "unet": ((16, 8, 16), (4, 4, 4), (8, 8, 8)),
    "resunet": ((16, 8, 16), (4, 4, 4), (8, 8, 8)),
    "segresnet": ((16, 16, 32), (4, 8, 8), (8, 8, 8)),
    "swinunetr": ((64, 32, 32), (8, 8, 8), (32, 32, 32)),
    "unetr": ((32, 16, 24), (8, 8, 8), (16, 16, 8)),
}
"""Crop, patch and region for each architecture, no two axes of a crop alike where that stays small."""


def settings(architecture: str, objective: str, network: dict[str, Any] | None = None, **chosen: Any) -> Run:
    """A run with a small network, of stride 4 for the U-Nets."""
    usual: dict[str, Any] = {"architecture": architecture, "window": 4, "token": 8, "dropout": 0.1}
    if architecture in U_NETS:
        usual["features"] = [4, 6, 8]
    shape = NetworkSettings(**{**usual, **(network or {})})
    pretraining = {"objective": objective, "batch": 4, "projection": 8, "head_width": 32, **chosen}
    return Run(network=settled(shape, (1, 1, 1)), pretraining=PretrainingSettings(**pretraining))


def plan(architecture: str, channels: int = 1, patch: Sequence[int] | None = None, **other: Sequence[int]) -> Plan:
    """A plan with the sizes in :data:`SIZES`, or others."""
    crop, usual, region = SIZES[architecture]
    sizes = {"crop": crop, "patch": usual if patch is None else tuple(patch), "region": region, **other}
    return Plan(channels, (1.0, 1.0, 1.5), "zscore", (0.0, 1.0), **sizes)  # type: ignore[arg-type]


def small_objective(architecture: str, objective: str, channels: int = 1, **chosen: Any) -> Objective:
    """An objective with its initial weights; ``patch``, ``network`` and all of pre-training's settings can be set."""
    patch = chosen.pop("patch", None)
    return make_objective(
        settings(architecture, objective, **chosen), plan(architecture, channels, patch), patients=4
    )


def draw_crops(crop: Triple, *sizes: Triple, channels: int = 1, seed: int = 0) -> Crops:
    """A crop for each size of scan, of patients that all differ; four whole ones without sizes. Padding is 0."""
    sizes = sizes or (crop,) * 4
    held = torch.tensor(sizes)
    image = torch.rand(len(sizes), channels, *crop, generator=torch.Generator().manual_seed(seed))
    numbers = torch.arange(len(sizes))
    return Crops(image * inside_mask(held, crop)[:, None], held, 1000 * seed + 7 * numbers, numbers)


def part(crops: Crops, *samples: int) -> Crops:
    """Some samples of a batch."""
    rows = list(samples)
    return Crops(crops.image[rows], crops.sizes[rows], crops.keys[rows], crops.patients[rows])


def numbers_in(cure: str) -> list[list[int]]:
    """The lists of whole numbers that a message names."""
    return [[int(number) for number in found.split(",")] for found in re.findall(r"\[([\d, ]+)\]", cure)]
