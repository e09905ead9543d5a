"""What every objective starts from: crops of unlabelled scans, on the training device."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from HybridMIMLib.data.patches import CropSampler, keys_on, sizes_on, to_device
from HybridMIMLib.data.store import PreparedCase

Triple = tuple[int, int, int]

AHEAD = 2
"""Threads that cut the next crops while a GPU computes; a CPU has no hands free for that."""


@dataclass(frozen=True)
class Crops:
    """Crops of one step.

    Attributes:
        image: (B, C, D, H, W), intensities from 0 to 1; padding, at the far end, is 0.
        sizes: (B, 3) int64, voxels along each axis that hold scan; the rest is padding.
        keys: (B) int64, from which every draw for a sample follows.
        patients: (B) int64, a number for each sample, the same for crops of one patient in every batch.
    """

    image: Tensor
    sizes: Tensor
    keys: Tensor
    patients: Tensor


class CropSource:
    """Draws the crops of any step from prepared scans.

    Args:
        cases: prepared scans.
        crop: voxels along each axis.
        batch: crops a step, of all processes together.
        seed: of the run.
        device: where to put them.
    """

    def __init__(
        self, cases: Sequence[PreparedCase], crop: Triple, batch: int, seed: int, device: torch.device
    ) -> None:
        self.batch, self.device = batch, device
        self.sampler = CropSampler(cases, crop, seed, "pretrain", workers=AHEAD if device.type == "cuda" else 0)

    def part(self, which: int, parts: int) -> CropSource:
        """The same, but of every batch draws one of several equal parts alone."""
        part = copy(self)
        part.sampler = self.sampler.part(which, parts)
        return part

    def draw(self, step: int) -> Crops:
        """The crops of a step."""
        drawn = self.sampler.batch(step, self.batch, self.device)
        return Crops(
            drawn.image,
            sizes_on(drawn.sizes, self.device),
            keys_on(drawn.keys, self.device),
            to_device(np.array(drawn.patients, dtype=np.int64), self.device),
        )


def blank_crops(count: int, channels: int, crop: Triple) -> Crops:
    """Crops of nothing, filled to the last voxel and of a patient each: to see what a step takes."""
    return Crops(
        torch.zeros(count, channels, *crop),
        torch.tensor(crop).expand(count, 3).clone(),
        torch.arange(count),
        torch.arange(count),
    )
