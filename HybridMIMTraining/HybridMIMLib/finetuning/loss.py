"""Dice + cross-entropy for exclusive classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dice_loss(scores: Tensor, label: Tensor) -> Tensor:
    """1 - soft Dice, mean over the classes, background left out.

    Taken over the whole batch at once: a crop without a class then still pulls false positives down, and a class
    that fills few voxels of one crop has a gradient that is steady enough not to collapse to nothing.

    Args:
        scores: (B, K + 1, D, H, W).
        label: (B, D, H, W) class numbers.
    """
    shares = scores.softmax(dim=1)[:, 1:]
    truth = F.one_hot(label, scores.shape[1]).movedim(-1, 1)[:, 1:].to(shares.dtype)
    axes = (0, 2, 3, 4)
    overlap, total = (shares * truth).sum(axes), (shares + truth).sum(axes)
    return (1 - (2 * overlap + 1) / (total + 1)).mean()


def segmentation_losses(scores: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Dice and cross-entropy, to be summed."""
    return {"dice": dice_loss(scores, label), "cross_entropy": F.cross_entropy(scores, label)}


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
