"""Crops for training: drawn from the store by (seed, step, sample), put together on the training device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from HybridMIMLib.data.store import PreparedCase
from HybridMIMLib.randomness import random_stream, stream_key

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class CropBatch:
    """Crops of one step.

    Attributes:
        image: (B, C, D, H, W), intensities from 0 to 1; padding is 0.
        label: (B, D, H, W) class numbers, 0 where there is background or padding; None without labels.
        sizes: for each sample, voxels along each axis that hold scan; the rest, at the far end, is padding.
        keys: one number a sample, from which further draws follow.
        cases: the names of the cases.
    """

    image: Tensor
    label: Tensor | None
    sizes: tuple[Triple, ...]
    keys: tuple[int, ...]
    cases: tuple[str, ...]


class CropSampler:
    """Draws the crops of any step, whichever was drawn before.

    Args:
        cases: prepared scans.
        crop: voxels along each axis; a smaller scan is padded at its far end.
        seed: of the run.
        purpose: tells streams apart, such as ``"pretrain"``.
        foreground_share: share of the crops that are centred on a voxel of a class; needs labels.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        crop: Triple,
        seed: int,
        purpose: str,
        foreground_share: float = 0.0,
    ) -> None:
        self.cases, self.crop, self.seed, self.purpose = list(cases), crop, seed, purpose
        self.foreground_share = foreground_share

    def batch(self, step: int, size: int, device: torch.device, labels: bool = False) -> CropBatch:
        """The crops of a step, each of another case where there are enough."""
        order = random_stream(self.seed, self.purpose, step, "cases")
        # Fewer cases than samples come round as evenly as they can.
        chosen = np.resize(order.permutation(len(self.cases)), size)
        cases = [self.cases[index] for index in chosen]
        places = [self._place(case, step, sample) for sample, case in enumerate(cases)]
        image = torch.stack([torch.from_numpy(_cut(case.image, at, self.crop)) for case, at in zip(cases, places)])
        label = None
        if labels:
            parts = [torch.from_numpy(_cut(case.label, at, self.crop)) for case, at in zip(cases, places)]
            label = torch.stack(parts).to(device, non_blocking=True).long()
        sizes = tuple(self._filled(case) for case in cases)
        keys = tuple(stream_key(self.seed, self.purpose, step, sample) for sample in range(size))
        return CropBatch(
            _normalise(image.to(device, non_blocking=True), cases, sizes),
            label,
            sizes,
            keys,
            tuple(case.name for case in cases),
        )

    def _place(self, case: PreparedCase, step: int, sample: int) -> Triple:
        random = random_stream(self.seed, self.purpose, step, sample, "place")
        room = [max(n - c, 0) for n, c in zip(case.image.shape[1:], self.crop)]
        present = np.flatnonzero(case.counts)
        if len(present) and random.random() < self.foreground_share:
            number = random.choice(present)
            first = sum(case.counts[:number])
            voxel = case.foreground[first + random.integers(case.counts[number])]
            lower = [int(np.clip(v - c // 2, 0, r)) for v, c, r in zip(voxel, self.crop, room)]
        else:
            lower = [int(random.integers(r + 1)) for r in room]
        return (lower[0], lower[1], lower[2])

    def _filled(self, case: PreparedCase) -> Triple:
        d, h, w = (min(n, c) for n, c in zip(case.image.shape[1:], self.crop))
        return (d, h, w)


def inside_mask(sizes: Sequence[Triple], crop: Triple, device: torch.device) -> Tensor:
    """(B, D, H, W) True where the crop holds scan, for scans that fill the first ``sizes`` voxels."""
    mask = torch.zeros((len(sizes), *crop), dtype=torch.bool)
    for sample, (d, h, w) in zip(mask, sizes):
        sample[:d, :h, :w] = True
    return mask.to(device)


def _cut(array: np.ndarray, lower: Triple, crop: Triple) -> np.ndarray:
    """Crop (…, D, H, W), zeros beyond the far end; copies only what the crop needs."""
    d, h, w = (slice(start, start + size) for start, size in zip(lower, crop))
    part = array[..., d, h, w]
    if part.shape[-3:] == crop:
        return np.array(part)
    padded = np.zeros((*array.shape[:-3], *crop), dtype=array.dtype)
    padded[..., : part.shape[-3], : part.shape[-2], : part.shape[-1]] = part
    return padded


def _normalise(stored: Tensor, cases: Sequence[PreparedCase], sizes: Sequence[Triple]) -> Tensor:
    low = torch.tensor([case.low for case in cases], device=stored.device)[..., None, None, None]
    high = torch.tensor([case.high for case in cases], device=stored.device)[..., None, None, None]
    image = ((stored.float() - low) / (high - low)).clamp(0, 1)
    crop = (stored.shape[2], stored.shape[3], stored.shape[4])
    if any(size != crop for size in sizes):
        image = image * inside_mask(sizes, crop, stored.device)[:, None]
    return image
