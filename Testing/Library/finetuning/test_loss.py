"""The supervised loss against loops, and the cure for a class that collapses."""

from __future__ import annotations

import math

import pytest
import torch

from HybridMIMLib.finetuning.loss import dice_loss, segmentation_losses, set_initial_shares


def test_dice_loss_against_loops() -> None:
    torch.manual_seed(0)
    scores, label = torch.randn(2, 3, 2, 3, 2), torch.randint(0, 3, (2, 2, 3, 2))
    shares = scores.softmax(1)
    expected = 0.0
    for number in (1, 2):
        overlap = total = 0.0
        for b in range(2):
            for d in range(2):
                for h in range(3):
                    for w in range(2):
                        share, truth = float(shares[b, number, d, h, w]), float(label[b, d, h, w] == number)
                        overlap, total = overlap + share * truth, total + share + truth
        expected += 1 - (2 * overlap + 1) / (total + 1)
    assert float(dice_loss(scores, label)) == pytest.approx(expected / 2, abs=1e-5)


def test_right_scores_have_almost_no_loss() -> None:
    label = torch.randint(0, 3, (1, 4, 4, 4))
    scores = 50 * torch.nn.functional.one_hot(label, 3).movedim(-1, 1).float()
    assert all(float(loss) < 1e-3 for loss in segmentation_losses(scores, label).values())


def test_a_class_that_is_missing_from_the_batch_has_a_gradient_against_false_positives() -> None:
    scores = torch.zeros(1, 3, 4, 4, 4, requires_grad=True)
    dice_loss(scores, torch.zeros(1, 4, 4, 4, dtype=torch.long)).backward()
    assert scores.grad is not None and bool((scores.grad[:, 1:] > 0).all())


def test_initial_shares_are_as_asked() -> None:
    bias = torch.randn(5)
    set_initial_shares(bias, background=0.8)
    shares = bias.softmax(0).tolist()
    assert shares[0] == pytest.approx(0.8) and all(math.isclose(s, 0.05, rel_tol=1e-5) for s in shares[1:])
