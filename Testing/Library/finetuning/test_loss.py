"""The supervised loss against loops, the cure for a class that collapses, and classes that were not annotated."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from HybridMIMLib.finetuning.loss import cross_entropy, dice_loss, segmentation_losses, set_initial_shares

SIZE = (2, 3, 2)


def batch(samples: int = 2, classes: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    scores = torch.randn(samples, classes + 1, *SIZE)
    return scores, torch.randint(0, classes + 1, (samples, *SIZE))


def voxels(samples: int) -> list[tuple[int, int, int, int]]:
    return [(b, d, h, w) for b in range(samples) for d in range(2) for h in range(3) for w in range(2)]


# --- all annotated ------------------------------------------------------------------------------------------


def test_dice_loss_against_loops() -> None:
    scores, label = batch(classes=2)
    shares = scores.softmax(1)
    expected = 0.0
    for number in (1, 2):
        overlap = total = 0.0
        for b, d, h, w in voxels(2):
            share, truth = float(shares[b, number, d, h, w]), float(label[b, d, h, w] == number)
            overlap, total = overlap + share * truth, total + share + truth
        expected += 1 - (2 * overlap + 1) / (total + 1)
    assert float(dice_loss(scores, label)) == pytest.approx(expected / 2, abs=1e-5)


def test_right_scores_have_almost_no_loss() -> None:
    label = torch.randint(0, 3, (1, 4, 4, 4))
    scores = 50 * F.one_hot(label, 3).movedim(-1, 1).float()
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


# --- partially annotated ------------------------------------------------------------------------------------


def test_with_everything_annotated_it_is_the_same_loss_and_gradient_to_the_last_bit() -> None:
    scores, label = batch()
    whole, partial = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    one, other = segmentation_losses(whole, label), segmentation_losses(partial, label, torch.ones(2, 3).bool())
    assert all(torch.equal(one[name], other[name]) for name in ("dice", "cross_entropy"))
    assert torch.equal(one["cross_entropy"], F.cross_entropy(scores, label))
    torch.stack(list(one.values())).sum().backward()
    torch.stack(list(other.values())).sum().backward()
    assert whole.grad is not None and partial.grad is not None and torch.equal(whole.grad, partial.grad)


ANNOTATED = torch.tensor([[True, False, True], [False, False, True]])


def test_cross_entropy_against_loops() -> None:
    scores, label = batch()
    shares = scores.softmax(1)
    expected = 0.0
    for b, d, h, w in voxels(2):
        united = [0, *(k for k in (1, 2, 3) if not ANNOTATED[b, k - 1])]
        number = int(label[b, d, h, w])
        counted = united if number in united else [number]
        expected -= math.log(sum(float(shares[b, k, d, h, w]) for k in counted))
    assert float(cross_entropy(scores, label, ANNOTATED)) == pytest.approx(expected / label.numel(), abs=1e-5)


def test_dice_against_loops() -> None:
    scores, label = batch()
    shares = scores.softmax(1)
    losses = []
    for number in (1, 3):  # 2 is annotated in neither
        overlap = total = 0.0
        for b, d, h, w in voxels(2):
            if ANNOTATED[b, number - 1]:
                share, truth = float(shares[b, number, d, h, w]), float(label[b, d, h, w] == number)
                overlap, total = overlap + share * truth, total + share + truth
        losses.append(1 - (2 * overlap + 1) / (total + 1))
    assert float(dice_loss(scores, label, ANNOTATED)) == pytest.approx(sum(losses) / 2, abs=1e-5)


def test_a_class_that_was_not_annotated_is_not_pushed_down_where_the_label_says_background() -> None:
    scores, label = batch()
    label[0, 0] = 0
    scores.requires_grad_()
    torch.stack(list(segmentation_losses(scores, label, ANNOTATED).values())).sum().backward()
    gradient = scores.grad
    assert gradient is not None
    for b, d, h, w in voxels(2):
        for number in (1, 2, 3):
            if not ANNOTATED[b, number - 1] and label[b, d, h, w] == 0:
                assert gradient[b, number, d, h, w] <= 1e-9
    # Annotated everywhere, the same scores are pushed down.
    again = scores.detach().clone().requires_grad_()
    torch.stack(list(segmentation_losses(again, label).values())).sum().backward()
    assert again.grad is not None and bool((again.grad[:, 2][label == 0] > 0).all())


def test_the_share_of_a_class_that_was_not_annotated_is_free() -> None:
    """Moving probability between background and a class nobody looked for changes nothing."""
    label = torch.zeros(1, *SIZE, dtype=torch.long)
    annotated = torch.tensor([[True, False]])
    one = torch.tensor([0.5, 0.2, 0.3]).log().reshape(1, 3, 1, 1, 1).expand(1, 3, *SIZE)
    other = torch.tensor([0.1, 0.2, 0.7]).log().reshape(1, 3, 1, 1, 1).expand(1, 3, *SIZE)
    first, second = (segmentation_losses(scores, label, annotated) for scores in (one, other))
    assert all(torch.allclose(first[name], second[name]) for name in first)
    assert float(first["cross_entropy"]) == pytest.approx(-math.log(0.8))


def test_a_batch_in_which_nothing_was_annotated_teaches_nothing() -> None:
    scores, label = batch()
    scores.requires_grad_()
    losses = segmentation_losses(scores, label, torch.zeros(2, 3).bool())
    torch.stack(list(losses.values())).sum().backward()
    assert all(float(loss.detach()) == pytest.approx(0, abs=1e-6) for loss in losses.values())
    assert scores.grad is not None and float(scores.grad.abs().max()) < 1e-6


def test_extreme_scores_stay_finite() -> None:
    scores, label = batch()
    scores = (scores * 1e4).requires_grad_()
    losses = segmentation_losses(scores, label, ANNOTATED)
    torch.stack(list(losses.values())).sum().backward()
    assert scores.grad is not None and bool(torch.isfinite(scores.grad).all())
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())
