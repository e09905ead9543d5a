"""What a masked objective reconstructs, and how far a reconstruction is off: over masked voxels alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from HybridMIMLib.distributed import averaged
from HybridMIMLib.networks.interface import Box

Triple = tuple[int, int, int]

SMALLEST_VARIANCE = 1e-6

HIDDEN_ERROR, PATCH_MEAN_ERROR = "hidden_error", "patch_mean_error"
"""Names of what is measured."""


def patch_statistics(image: Tensor, patch: Triple) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch and channel, both given to every voxel: (B, C, D, H, W).

    The variance is bounded from below, as in MAE (arXiv:2111.06377), because a patch of air has none.
    """
    d, h, w = patch
    voxels = rearrange(image, "b c (d pd) (h ph) (w pw) -> b c d h w (pd ph pw)", pd=d, ph=h, pw=w)
    mean = voxels.mean(dim=-1)
    deviation = (voxels.var(dim=-1, correction=0) + SMALLEST_VARIANCE).sqrt()
    pattern = "b c d h w -> b c (d pd) (h ph) (w pw)"
    return repeat(mean, pattern, pd=d, ph=h, pw=w), repeat(deviation, pattern, pd=d, ph=h, pw=w)


def normalised(image: Tensor, patch: Triple) -> Tensor:
    """Each patch of (B, C, D, H, W) brought to mean 0 and spread 1 (MAE, arXiv:2111.06377, section 4)."""
    mean, deviation = patch_statistics(image, patch)
    return (image - mean) / deviation


def masked_error(predicted: Tensor, target: Tensor, hidden: Tensor, kind: str) -> Tensor:
    """Mean error over hidden voxels, in a run of several processes over those of all; 0 where nothing is hidden.

    Args:
        predicted, target: (B, C, D, H, W).
        hidden: (B, 1, D, H, W) 1 for hidden voxels, else 0.
        kind: ``"l1"`` absolute, or ``"l2"`` squared.
    """
    loss = F.l1_loss if kind == "l1" else F.mse_loss
    return mean_over(loss(predicted, target, reduction="none"), hidden.expand_as(target))


def mean_over(values: Tensor, used: Tensor) -> Tensor:
    """Mean of the values that are used, a scalar; 0 of nothing, as where every scan is thinner than a patch.

    In a run of several processes the mean over them of what this returns is the mean of the whole batch.

    Args:
        values: numbers, or whether something is so.
        used: of the same shape, 1 or True for values that count.
    """
    count = averaged(used.sum(dtype=torch.float32))
    return (values * used).sum(dtype=torch.float32) / torch.where(count > 0, count, 1.0)


def reconstruction_errors(
    predicted: Tensor, image: Tensor, hidden: Tensor, patch: Triple, box: Box | None = None
) -> dict[str, float]:
    """How far a reconstruction is off, beside what the true mean of each patch would give.

    Args:
        predicted: (B, C, D, H, W) intensities, or those of ``box`` alone.
        image: (B, C, D, H, W) intensities.
        hidden: (B, 1, D, H, W) 1 for hidden voxels, else 0.
        patch: voxels along each axis.
        box: what is compared; it may cut patches, whose means are those of the whole patch.

    Returns:
        :data:`HIDDEN_ERROR` and :data:`PATCH_MEAN_ERROR`, mean squared errors over hidden voxels, and what
        :func:`error_to_patch_mean` makes of them.
    """
    mean, _ = patch_statistics(image, patch)
    if box is not None:
        mean, image, hidden = box.crop(mean), box.crop(image), box.crop(hidden)
    found = {
        HIDDEN_ERROR: float(masked_error(predicted, image, hidden, "l2")),
        PATCH_MEAN_ERROR: float(masked_error(mean, image, hidden, "l2")),
    }
    return {**found, **error_to_patch_mean(found)}


def error_to_patch_mean(found: Mapping[str, float]) -> dict[str, float]:
    """The error as a share of what the true mean of each patch would give, if hidden voxels vary at all.

    A reconstruction below 1 shows more of a hidden patch than how bright it is. Where nothing is hidden, or nothing
    but air, there is nothing to compare with.
    """
    if found.get(PATCH_MEAN_ERROR, 0.0) <= SMALLEST_VARIANCE:
        return {}
    return {"error_to_patch_mean": found[HIDDEN_ERROR] / found[PATCH_MEAN_ERROR]}
