"""Dice + cross-entropy for exclusive classes, Dice + binary cross-entropy for regions that overlap.

Some of the classes may not have been annotated in some of the cases. Then background in the label map means
"background or that class". The cross-entropy is that of the union, whose probability is the sum of theirs, and the
Dice is taken over what was annotated: the marginal loss of Shi et al., Medical Image Analysis 2021
(arXiv:2007.03868). A region is told by itself, so that a sample in which it is not known is left out for it.

On a coarser grid (deep supervision) a voxel has the share of each class among the voxels that it covers. Strides are
even, so that no voxel lies at its centre: to take the nearest would shift all by half a voxel, and a vessel one voxel
wide would be all there or gone, as it happens to lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Losses = dict[str, Tensor]


def dice_loss(scores: Tensor, label: Tensor, annotated: Tensor | None = None) -> Tensor:
    """1 - soft Dice, mean over the classes, background left out.

    Taken over the whole batch at once: a crop without a class then still pulls false positives down, and a class
    that fills few voxels of one crop has a gradient that is steady enough not to collapse to nothing.

    Args:
        scores: (B, K + 1, D, H, W).
        label: (B, D, H, W) class numbers, or (B, K + 1, D, H, W) the share of each.
        annotated: (B, K) whether a class was annotated in a sample; where not, the sample does not count for the
            class, and a class that no sample counts for is left out of the mean. None: all.
    """
    truth = label if label.ndim == scores.ndim else class_shares(label, scores.shape[1])
    return _soft_dice_loss(scores.softmax(dim=1)[:, 1:], truth[:, 1:].to(scores.dtype), annotated)


def _soft_dice_loss(shares: Tensor, truth: Tensor, counted: Tensor | None) -> Tensor:
    """Of shares and truth (B, K, D, H, W), over the samples that count for each of the K, (B, K) bool."""
    if counted is not None:
        counts = counted.to(shares.dtype)[..., None, None, None]
        shares, truth = shares * counts, truth * counts
    axes = (0, 2, 3, 4)
    overlap, total = (shares * truth).sum(axes), (shares + truth).sum(axes)
    losses = 1 - (2 * overlap + 1) / (total + 1)
    if counted is None:
        return losses.mean()
    known = counted.any(dim=0)
    return (losses * known).sum() / known.sum().clamp(min=1)


def cross_entropy(scores: Tensor, label: Tensor, annotated: Tensor | None = None) -> Tensor:
    """Mean over the voxels of -log of the probability of what the label map says.

    Args:
        scores: (B, K + 1, D, H, W).
        label: (B, D, H, W) class numbers, or (B, K + 1, D, H, W) the share of each.
        annotated: (B, K) whether a class was annotated in a sample; one that was not is one with the background,
            in the scores and in the label. None: all.
    """
    if annotated is None:
        return F.cross_entropy(scores, label)
    logs = scores.log_softmax(dim=1)
    # Background and the classes not annotated, (B, K + 1, 1, 1, 1).
    united = F.pad(~annotated, (1, 0), value=True)[..., None, None, None]
    union = logs.masked_fill(~united, -torch.inf).logsumexp(dim=1, keepdim=True)
    logs = torch.where(united, union, logs)
    return F.nll_loss(logs, label) if label.ndim < scores.ndim else -(logs * label).sum(dim=1).mean()


def segmentation_losses(scores: Tensor, label: Tensor, annotated: Tensor | None = None) -> Losses:
    """Dice and cross-entropy, to be summed; see there for the arguments."""
    return {"dice": dice_loss(scores, label, annotated), "cross_entropy": cross_entropy(scores, label, annotated)}


def region_losses(scores: Tensor, truth: Tensor, known: Tensor | None = None) -> Losses:
    """Dice and binary cross-entropy of regions that are told each by itself, to be summed.

    The Dice is that of :func:`dice_loss`, with a sigmoid. The cross-entropy is the mean over the voxels of the
    samples and regions that count.

    Args:
        scores: (B, R, D, H, W), one channel a region, none for the background.
        truth: (B, R, D, H, W) the share of each region, 0 or 1 on the grid of the label map.
        known: (B, R) whether a sample counts for a region. None: all.
    """
    entropy = F.binary_cross_entropy_with_logits(scores, truth, reduction="none").mean(dim=(2, 3, 4))
    counts = torch.ones_like(entropy) if known is None else known.to(entropy.dtype)
    return {
        "dice": _soft_dice_loss(scores.sigmoid(), truth, known),
        "cross_entropy": (entropy * counts).sum() / counts.sum().clamp(min=1),
    }


def class_shares(label: Tensor, outputs: int) -> Tensor:
    """Class numbers (B, D, H, W) → (B, outputs, D, H, W), 1 for the class of a voxel, else 0."""
    return F.one_hot(label, outputs).movedim(-1, 1)


def on_coarser_grids(truth: Tensor, grids: Sequence[Tensor]) -> list[Tensor]:
    """Shares (B, K, D, H, W) on the grids of other tensors (B, …, d, h, w), none of them finer than the one before.

    A voxel has the mean of those that it covers, whole ones.
    """
    coarser = []
    for grid in grids:
        steps = [n // m for n, m in zip(truth.shape[2:], grid.shape[2:])]
        truth = F.avg_pool3d(truth, steps)
        coarser.append(truth)
    return coarser


def weighted_losses(
    losses: Callable[[Tensor, Tensor], Losses],
    scores: Sequence[Tensor],
    truths: Sequence[Tensor],
    weights: Sequence[float],
) -> Losses:
    """Losses of several stages of a decoder, each kind the weighted sum over them.

    Args:
        losses: of scores and truth on one grid.
        scores: of each stage.
        truths: on their grids.
        weights: of the stages.
    """
    parts = [losses(*pair) for pair in zip(scores, truths, strict=True)]
    return {
        kind: torch.stack([weight * part[kind] for weight, part in zip(weights, parts, strict=True)]).sum()
        for kind in parts[0]
    }


def set_initial_shares(bias: Tensor, background: float = 0.9) -> None:
    """Begin with scores that say mostly background, as most voxels are.

    From equal shares, the first steps push every class down together and a small one may never come back.

    Args:
        bias: (K + 1) of the last layer, changed in place.
        background: share of the voxels.
    """
    with torch.no_grad():
        foreground = (1 - background) / (len(bias) - 1)
        bias.fill_(0.0)
        bias[0] = torch.tensor(background / foreground).log()


def set_initial_probability(bias: Tensor, inside: float = 0.1) -> None:
    """The same for regions: begin with scores that say of every voxel that it is hardly in any.

    Args:
        bias: (R) of the last layer, changed in place.
        inside: probability that a voxel is in a region.
    """
    with torch.no_grad():
        bias.fill_(torch.tensor(inside).logit().item())
