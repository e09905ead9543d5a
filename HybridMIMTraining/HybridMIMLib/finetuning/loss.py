"""Dice + cross-entropy for exclusive classes, some of which may not have been annotated in some of the cases.

Where a class was not annotated, background in the label map means "background or that class". The cross-entropy is
that of the union, whose probability is the sum of theirs, and the Dice is taken over what was annotated: the marginal
loss of Shi et al., Medical Image Analysis 2021 (arXiv:2007.03868).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dice_loss(scores: Tensor, label: Tensor, annotated: Tensor | None = None) -> Tensor:
    """1 - soft Dice, mean over the classes, background left out.

    Taken over the whole batch at once: a crop without a class then still pulls false positives down, and a class
    that fills few voxels of one crop has a gradient that is steady enough not to collapse to nothing.

    Args:
        scores: (B, K + 1, D, H, W).
        label: (B, D, H, W) class numbers.
        annotated: (B, K) whether a class was annotated in a sample; where not, the sample does not count for the
            class, and a class that no sample counts for is left out of the mean. None: all.
    """
    shares = scores.softmax(dim=1)[:, 1:]
    truth = F.one_hot(label, scores.shape[1]).movedim(-1, 1)[:, 1:].to(shares.dtype)
    if annotated is not None:
        counts = annotated.to(shares.dtype)[..., None, None, None]
        shares, truth = shares * counts, truth * counts
    axes = (0, 2, 3, 4)
    overlap, total = (shares * truth).sum(axes), (shares + truth).sum(axes)
    losses = 1 - (2 * overlap + 1) / (total + 1)
    if annotated is None:
        return losses.mean()
    known = annotated.any(dim=0)
    return (losses * known).sum() / known.sum().clamp(min=1)


def cross_entropy(scores: Tensor, label: Tensor, annotated: Tensor | None = None) -> Tensor:
    """Mean over the voxels of -log of the probability of what the label map says.

    Args:
        scores: (B, K + 1, D, H, W).
        label: (B, D, H, W) class numbers.
        annotated: (B, K) whether a class was annotated in a sample; one that was not is one with the background,
            in the scores and in the label. None: all.
    """
    if annotated is None:
        return F.cross_entropy(scores, label)
    logs = scores.log_softmax(dim=1)
    # Background and the classes not annotated, (B, K + 1, 1, 1, 1).
    united = F.pad(~annotated, (1, 0), value=True)[..., None, None, None]
    union = logs.masked_fill(~united, -torch.inf).logsumexp(dim=1, keepdim=True)
    return F.nll_loss(torch.where(united, union, logs), label)


def segmentation_losses(scores: Tensor, label: Tensor, annotated: Tensor | None = None) -> dict[str, Tensor]:
    """Dice and cross-entropy, to be summed; see there for the arguments."""
    return {"dice": dice_loss(scores, label, annotated), "cross_entropy": cross_entropy(scores, label, annotated)}


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
