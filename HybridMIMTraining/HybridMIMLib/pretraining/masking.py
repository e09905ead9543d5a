"""Patches, regions and two-level masks: pure functions that every masked objective shares.

A crop is a grid of patches; a region (sub-volume) is a block of neighbouring patches. Level 1 of the masking draws
WHICH regions are touched, level 2 HOW the patches inside a touched one are masked (arXiv:2303.10333).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange, repeat
from torch import Tensor

from HybridMIMLib.errors import SettingsError

BoolArray = npt.NDArray[np.bool_]
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class PatchGrid:
    """How a crop divides into patches and regions; all sizes in voxels along the three axes.

    Raises:
        SettingsError: the crop is no multiple of the region, or the region none of the patch.
    """

    crop: Triple
    patch: Triple
    region: Triple

    def __post_init__(self) -> None:
        for big, small, names in (
            (self.crop, self.region, "crop region"),
            (self.region, self.patch, "region patch"),
        ):
            if any(b % s for b, s in zip(big, small)):
                first, second = names.split()
                raise SettingsError(
                    f"plan.{first} {list(big)} is not a multiple of plan.{second} {list(small)}",
                    cure="Choose sizes that divide evenly.",
                )

    @property
    def patches(self) -> Triple:
        """Patches in the crop, along each axis."""
        return _divide(self.crop, self.patch)

    @property
    def regions(self) -> Triple:
        """Regions in the crop, along each axis."""
        return _divide(self.crop, self.region)

    @property
    def per_region(self) -> Triple:
        """Patches in a region, along each axis."""
        return _divide(self.region, self.patch)


def by_region(patches: Tensor, grid: PatchGrid) -> Tensor:
    """Sort a value a patch by region: (B, D', H', W') patch grid → (B, regions, patches of a region).

    Regions, and patches within one, run in the order of their place in space. Cutting the flat list of patches into
    runs instead mixes patches of different regions.
    """
    d, h, w = grid.per_region
    pattern = "b (rd pd) (rh ph) (rw pw) -> b (rd rh rw) (pd ph pw)"
    return rearrange(patches, pattern, pd=d, ph=h, pw=w)


def to_voxels(patches: Tensor, patch: Triple) -> Tensor:
    """Give every voxel the value of its patch: (B, D', H', W') → (B, D, H, W)."""
    d, h, w = patch
    return repeat(patches, "b d h w -> b (d pd) (h ph) (w pw)", pd=d, ph=h, pw=w)


def whole_patches(size: Sequence[int], grid: PatchGrid) -> BoolArray:
    """Which patches lie inside a scan that fills the first ``size`` voxels of the crop; the rest is padding.

    A patch with a single padded voxel counts as padding: it is never masked, counted or reconstructed.
    """
    inside = [
        (np.arange(count) + 1) * patch <= length for count, patch, length in zip(grid.patches, grid.patch, size)
    ]
    return inside[0][:, None, None] & inside[1][None, :, None] & inside[2][None, None, :]


def draw_mask(
    random: np.random.Generator, grid: PatchGrid, whole: BoolArray, mask_ratio: float, region_ratio: float
) -> BoolArray:
    """Draw a two-level mask.

    Args:
        random: where the draws come from.
        grid: crop, patch and region.
        whole: (D', H', W') which patches may be masked.
        mask_ratio: share of the whole patches that is masked, exact to one patch.
        region_ratio: share of the regions that is touched; more are, where those cannot hold the masked patches,
            and fewer, where there are not as many masked patches.

    Returns:
        (D', H', W') True where a patch is masked.
    """
    room = _split(whole, grid)
    capacity = room.sum(axis=1)
    masked = _at_least_one(mask_ratio * int(capacity.sum()), int(capacity.sum()))
    touched = _draw_regions(random, capacity, masked, region_ratio)
    counts = _draw_counts(random, np.where(touched, capacity, 0), masked)
    # Of each region the patches with the smallest random numbers are masked; padded ones come last.
    order = np.where(room, random.random(room.shape), np.inf)
    rank = order.argsort(axis=1).argsort(axis=1)
    return _join(rank < counts[:, None], grid)


def draw_box(random: np.random.Generator, grid: PatchGrid, whole: BoolArray, size: Triple, step: Triple) -> Triple:
    """Draw the first voxel of a box of ``size`` voxels, at a multiple of ``step``, with no padding inside.

    Where the scan is smaller than the box, it is drawn among the places with the most whole patches.
    """
    starts = [np.arange(0, c - s + 1, t) for c, s, t in zip(grid.crop, size, step)]
    inside = repeat(whole, "d h w -> (d a) (h b) (w c)", a=grid.patch[0], b=grid.patch[1], c=grid.patch[2])
    # Whole patches form a block from the origin, so what a box holds of it is a product over the axes.
    reach = [int(inside.any(axis=other).sum()) for other in ((1, 2), (0, 2), (0, 1))]
    held = [np.clip(r - s, 0, n) for r, s, n in zip(reach, starts, size)]
    volume = held[0][:, None, None] * held[1][None, :, None] * held[2][None, None, :]
    best = np.argwhere(volume == volume.max())
    place = best[random.integers(len(best))]
    return (int(starts[0][place[0]]), int(starts[1][place[1]]), int(starts[2][place[2]]))


def _draw_regions(
    random: np.random.Generator, capacity: npt.NDArray[np.int64], masked: int, region_ratio: float
) -> BoolArray:
    usable = np.flatnonzero(capacity)
    order = random.permutation(usable)
    wanted = min(_at_least_one(region_ratio * len(usable), len(usable)), masked)
    enough = int(np.searchsorted(np.cumsum(capacity[order]), masked)) + 1 if masked else 0
    touched = np.zeros(len(capacity), dtype=bool)
    touched[order[: max(wanted, enough)]] = True
    return touched


def _draw_counts(random: np.random.Generator, room: npt.NDArray[np.int64], masked: int) -> npt.NDArray[np.int64]:
    counts = (room > 0).astype(np.int64)
    rest = masked - int(counts.sum())
    return counts + random.multivariate_hypergeometric(room - counts, rest, method="marginals")


def _split(patches: BoolArray, grid: PatchGrid) -> BoolArray:
    return by_region(torch.from_numpy(patches)[None], grid)[0].numpy()


def _join(patches: BoolArray, grid: PatchGrid) -> BoolArray:
    (rd, rh, rw), (pd, ph, pw) = grid.regions, grid.per_region
    pattern = "(rd rh rw) (pd ph pw) -> (rd pd) (rh ph) (rw pw)"
    joined: BoolArray = rearrange(patches, pattern, rd=rd, rh=rh, rw=rw, pd=pd, ph=ph, pw=pw)
    return joined


def _at_least_one(number: float, most: int) -> int:
    return min(max(round(number), 1), most)


def _divide(big: Triple, small: Triple) -> Triple:
    return (big[0] // small[0], big[1] // small[1], big[2] // small[2])
