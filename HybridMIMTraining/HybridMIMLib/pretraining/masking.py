"""Patches, regions, masks and boxes: pure functions on whole batches that every masked objective shares.

A crop is a grid of patches; a region (sub-volume) is a block of neighbouring patches. Level 1 of the masking draws
WHICH regions are touched, level 2 HOW the patches inside a touched one are masked (arXiv:2303.10333). Everything is
drawn on the training device from the keys of the samples, without a look back by the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from HybridMIMLib.architectures import check_divides
from HybridMIMLib.draws import ranks, uniform
from HybridMIMLib.networks.interface import Box
from HybridMIMLib.settings.pretraining import Share

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
        check_divides("plan.region", self.region, "plan.patch", self.patch)
        check_divides("plan.crop", self.crop, "plan.region", self.region)

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


def to_patches(regions: Tensor, grid: PatchGrid) -> Tensor:
    """The inverse of :func:`by_region`: (B, regions, patches of a region) → (B, D', H', W')."""
    (rd, rh, rw), (pd, ph, pw) = grid.regions, grid.per_region
    pattern = "b (rd rh rw) (pd ph pw) -> b (rd pd) (rh ph) (rw pw)"
    return rearrange(regions, pattern, rd=rd, rh=rh, rw=rw, pd=pd, ph=ph, pw=pw)


def to_voxels(patches: Tensor, patch: Triple) -> Tensor:
    """Give every voxel the value of its patch: (B, D', H', W') → (B, D, H, W)."""
    d, h, w = patch
    return repeat(patches, "b d h w -> b (d pd) (h ph) (w pw)", pd=d, ph=h, pw=w)


def whole_patches(sizes: Tensor, grid: PatchGrid) -> Tensor:
    """Which patches lie inside scans that fill the first ``sizes`` (B, 3) voxels; the rest is padding.

    A patch with a single padded voxel counts as padding: it is never masked, counted or reconstructed.

    Returns:
        (B, D', H', W') bool.
    """
    d, h, w = (
        (torch.arange(1, count + 1, device=sizes.device) * side)[None, :] <= sizes[:, axis, None]
        for axis, (count, side) in enumerate(zip(grid.patches, grid.patch))
    )
    return d[:, :, None, None] & h[:, None, :, None] & w[:, None, None, :]


def draw_share(keys: Tensor, purpose: str, share: Share) -> Tensor:
    """A share for each sample (B): as given, or drawn evenly from a range."""
    low, high = share if isinstance(share, list) else (share, share)
    return low + (high - low) * uniform(keys, purpose)


def draw_patches(keys: Tensor, whole: Tensor, mask_ratio: Share) -> Tensor:
    """Draw which patches are masked, all as likely (SimMIM, MAE).

    Args:
        keys: (B) of the samples.
        whole: (B, D', H', W') which patches may be masked.
        mask_ratio: share of the whole patches, exact to one patch; at least one where there is one, and never all
            where there are more.

    Returns:
        (B, D', H', W') True where a patch is masked.
    """
    flat = whole.flatten(1)
    wanted = _hidden_count(draw_share(keys, "mask ratio", mask_ratio), flat.sum(dim=1))
    order = uniform(keys, "masked patches", flat.shape[1])
    return _smallest(order, flat, wanted).reshape(whole.shape)


def draw_mask(keys: Tensor, grid: PatchGrid, whole: Tensor, mask_ratio: Share, region_ratio: Share) -> Tensor:
    """Draw two-level masks (arXiv:2303.10333).

    Level 1 draws the touched regions. Level 2 draws as many patches in them as ``mask_ratio`` asks for: one in each,
    and of all the others as many as are missing, each as likely. What a region has beyond its first patch therefore
    follows the multivariate hypergeometric law.

    Args:
        keys: (B) of the samples.
        grid: crop, patch and region.
        whole: (B, D', H', W') which patches may be masked.
        mask_ratio: share of the whole patches that is masked, exact to one patch.
        region_ratio: share of the regions that is touched; more are, where those cannot hold the masked patches,
            and fewer, where there are not as many masked patches.

    Returns:
        (B, D', H', W') True where a patch is masked.
    """
    room = by_region(whole, grid)
    capacity = room.sum(dim=2)
    masked = _hidden_count(draw_share(keys, "mask ratio", mask_ratio), capacity.sum(dim=1))
    touched = _draw_regions(keys, capacity, masked, draw_share(keys, "region ratio", region_ratio))
    allowed = room & touched[:, :, None]
    # One patch of each touched region comes before all others, so that no touched region stays whole. It has a draw
    # of its own: were it the smallest of its region, what is left would be larger in some regions than in others.
    first = uniform(keys, "first patches", *room.shape[1:])
    first = _smallest(first.flatten(0, 1), allowed.flatten(0, 1), masked.new_ones(1)).reshape(room.shape)
    order = uniform(keys, "masked patches", *room.shape[1:]) - first.to(torch.float32)
    mask = _smallest(order.flatten(1), allowed.flatten(1), masked).reshape(room.shape)
    return to_patches(mask, grid)


def _draw_regions(keys: Tensor, capacity: Tensor, masked: Tensor, region_ratio: Tensor) -> Tensor:
    """(B, R) True for regions that may be touched, where there are as many masked patches; others never are."""
    usable = capacity > 0
    order = ranks(uniform(keys, "touched regions", capacity.shape[1]).masked_fill(~usable, 2.0))
    wanted = _count(region_ratio, usable.sum(dim=1))
    # How many regions it takes, in the order drawn, to hold the masked patches.
    in_order = torch.zeros_like(capacity).scatter(1, order, capacity)
    enough = (in_order.cumsum(dim=1) < masked[:, None]).sum(dim=1) + 1
    return usable & (order < torch.maximum(wanted, enough)[:, None])


def draw_box(
    keys: Tensor, grid: PatchGrid, whole: Tensor, size: Triple, step: Triple, content: Tensor | None = None
) -> Box:
    """Draw a box of ``size`` voxels for each sample, at a multiple of ``step``, with no padding inside.

    Where a scan is smaller than the box, it is drawn among the places with the most voxels of whole patches.

    Args:
        keys: (B) of the samples.
        grid: crop, patch and region.
        whole: (B, D', H', W') which patches hold no padding.
        size: of the box, multiples of ``step``.
        step: stride of the network.
        content: (B, D, H, W) from 0 up; a place is as likely as the box there has content, and never drawn where it
            has none, unless there is none anywhere. None: all places are as likely.
    """
    window, places = _divide(size, step), tuple((c - s) // t + 1 for c, s, t in zip(grid.crop, size, step))
    held = _whole_voxels(grid, whole, size, step).flatten(1)
    chance = (held == held.amax(dim=1, keepdim=True)).to(torch.float32)
    if content is not None:
        amount = chance * F.avg_pool3d(F.avg_pool3d(content[:, None], step), window, stride=1).flatten(1)
        chance = torch.where(amount.sum(dim=1, keepdim=True) > 0, amount, chance)
    place = _drawn(keys, "box", chance)
    lower = place // (places[1] * places[2]), place // places[2] % places[1], place % places[2]
    return Box(torch.stack([at * t for at, t in zip(lower, step)], dim=1), size)


def _whole_voxels(grid: PatchGrid, whole: Tensor, size: Triple, step: Triple) -> Tensor:
    """(B, d, h, w) how many voxels of whole patches a box holds at each of its places.

    Whole patches fill a block from the origin, so that the count is a product over the axes.
    """
    counts = []
    for axis, (crop, side, stride, patch) in enumerate(zip(grid.crop, size, step, grid.patch)):
        others = [other for other in (1, 2, 3) if other != axis + 1]
        reach = whole.any(dim=others[1]).any(dim=others[0]).sum(dim=1) * patch
        starts = torch.arange(0, crop - side + 1, stride, device=whole.device)
        counts.append((reach[:, None] - starts).clamp(0, side))
    d, h, w = counts
    return d[:, :, None, None] * h[:, None, :, None] * w[:, None, None, :]


def _drawn(keys: Tensor, purpose: str, chance: Tensor) -> Tensor:
    """(B) a column for each row, as likely as its chance (B, N), and never one without.

    Of clocks that ring at random times, each as often as its chance, it is the one that rings first. Unlike a look
    into cumulated sums, that does not depend on how a device rounds them.
    """
    wait = -torch.log1p(-uniform(keys, purpose, chance.shape[1])) / chance
    return torch.where(chance > 0, wait, torch.inf).argmin(dim=1)


def _count(share: Tensor, of: Tensor) -> Tensor:
    """The share of a number, rounded, and at least one where there is one."""
    return torch.minimum((share * of).round().to(torch.int64).clamp(min=1), of)


def _hidden_count(share: Tensor, of: Tensor) -> Tensor:
    """As :func:`_count`, but that of two patches and more one is left to see."""
    return torch.minimum(_count(share, of), (of - 1).clamp(min=1))


def _smallest(order: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
    """(B, N) True for the ``count`` (B, or 1 for all) smallest of the allowed values, below 2, in each row."""
    return allowed & (ranks(order.masked_fill(~allowed, 2.0)) < count[:, None])


def _divide(big: Triple, small: Triple) -> Triple:
    return (big[0] // small[0], big[1] // small[1], big[2] // small[2])
