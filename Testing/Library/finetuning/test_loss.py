"""The supervised loss against loops, the cure for a class that collapses, and classes that were not annotated."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from HybridMIMLib.finetuning.loss import (
    class_shares,
    cross_entropy,
    dice_loss,
    on_coarser_grids,
    region_losses,
    segmentation_losses,
    set_initial_probability,
    set_initial_shares,
    weighted_losses,
)

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


# --- regions that overlap -----------------------------------------------------------------------------------

KNOWN = torch.tensor([[True, False, True], [False, False, True]])


def regions(samples: int = 2, count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    truth = (torch.rand(samples, count, *SIZE, generator=generator) > 0.4).float()
    return torch.randn(samples, count, *SIZE, generator=generator), truth


@pytest.mark.parametrize("known", [None, KNOWN])
def test_losses_of_regions_against_loops(known: Tensor | None) -> None:
    scores, truth = regions()
    counts = torch.ones(2, 3).bool() if known is None else known
    dice, entropy, voxels_counted = [], 0.0, 0
    for region in range(3):
        overlap = total = 0.0
        for b, d, h, w in voxels(2):
            if counts[b, region]:
                share = 1 / (1 + math.exp(-float(scores[b, region, d, h, w])))
                inside = float(truth[b, region, d, h, w])
                overlap, total = overlap + share * inside, total + share + inside
                entropy -= inside * math.log(share) + (1 - inside) * math.log(1 - share)
                voxels_counted += 1
        if counts[:, region].any():
            dice.append(1 - (2 * overlap + 1) / (total + 1))
    losses = region_losses(scores, truth, known)
    assert float(losses["dice"]) == pytest.approx(sum(dice) / len(dice), abs=1e-5)
    assert float(losses["cross_entropy"]) == pytest.approx(entropy / voxels_counted, abs=1e-5)


def test_a_region_that_is_not_known_in_a_sample_has_no_gradient_there() -> None:
    scores, truth = regions()
    scores.requires_grad_()
    torch.stack(list(region_losses(scores, truth, KNOWN).values())).sum().backward()
    assert scores.grad is not None
    for b in range(2):
        for region in range(3):
            assert bool((scores.grad[b, region] != 0).any()) == bool(KNOWN[b, region])


def test_a_batch_in_which_no_region_is_known_teaches_nothing() -> None:
    scores, truth = regions()
    scores = (1e4 * scores).requires_grad_()
    losses = region_losses(scores, truth, torch.zeros(2, 3).bool())
    torch.stack(list(losses.values())).sum().backward()
    assert all(float(loss.detach()) == 0 for loss in losses.values())
    assert scores.grad is not None and float(scores.grad.abs().max()) == 0


def test_extreme_scores_of_regions_stay_finite() -> None:
    scores, truth = regions()
    scores = (scores * 1e4).requires_grad_()
    losses = region_losses(scores, truth)
    torch.stack(list(losses.values())).sum().backward()
    assert scores.grad is not None and bool(torch.isfinite(scores.grad).all())
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())


def test_regions_do_not_compete() -> None:
    """Both may be certain in one voxel, which a softmax does not allow."""
    truth = torch.ones(1, 2, *SIZE)
    losses = region_losses(torch.full((1, 2, *SIZE), 30.0), truth)
    assert all(float(loss) < 1e-6 for loss in losses.values())


def test_regions_begin_as_hardly_anywhere() -> None:
    bias = torch.randn(4)
    set_initial_probability(bias, inside=0.2)
    assert torch.allclose(bias.sigmoid(), torch.full((4,), 0.2))


# --- coarser grids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("annotated", [None, ANNOTATED])
def test_shares_of_whole_voxels_have_the_loss_of_their_class(annotated: Tensor | None) -> None:
    scores, label = batch()
    shares = class_shares(label, 4).float()
    # Where a class was not annotated, no voxel is called so.
    if annotated is not None:
        for b in range(2):
            label[b][torch.isin(label[b], torch.nonzero(~annotated[b])[:, 0] + 1)] = 0
        shares = class_shares(label, 4).float()
    one, other = segmentation_losses(scores, label, annotated), segmentation_losses(scores, shares, annotated)
    assert all(torch.allclose(one[kind], other[kind]) for kind in one)


def test_shares_on_coarser_grids_against_loops() -> None:
    """Steps as thick slices have them; each grid is made of the one before."""
    label = torch.randint(0, 3, (1, 4, 8, 4), generator=torch.Generator().manual_seed(3))
    grids = [torch.empty(1, 5, 2, 4, 4), torch.empty(1, 7, 2, 4, 4), torch.empty(1, 7, 1, 2, 2)]
    coarser = on_coarser_grids(class_shares(label, 3).float(), grids)
    for found, step in zip(coarser, [(2, 2, 1), (2, 2, 1), (4, 4, 2)], strict=True):
        for number in range(3):
            for d, h, w in [(d, h, w) for d in range(4 // step[0]) for h in range(8 // step[1]) for w in range(2)]:
                d0, h0, w0 = d * step[0], h * step[1], w * step[2]
                covered = label[0, d0 : d0 + step[0], h0 : h0 + step[1], w0 : w0 + step[2]]
                assert float(found[0, number, d, h, w]) == pytest.approx(float((covered == number).float().mean()))


def test_a_line_one_voxel_wide_is_not_lost_and_not_moved() -> None:
    for place in range(4):
        label = torch.zeros(1, 4, 4, 4, dtype=torch.long)
        label[0, :, place, place] = 1
        (coarser,) = on_coarser_grids(class_shares(label, 2).float(), [torch.empty(1, 1, 2, 2, 2)])
        assert float(coarser[0, 1].sum()) == pytest.approx(4 / 8)
        middle = (coarser[0, 1].sum((0, 2)) * torch.tensor([0.5, 2.5])).sum() / coarser[0, 1].sum()
        assert abs(float(middle) - place) <= 0.5


def test_stages_are_weighed_and_summed() -> None:
    scores, label = batch()
    half = F.avg_pool3d(scores, (2, 1, 2))
    shares = F.avg_pool3d(class_shares(label, 4).float(), (2, 1, 2))
    parts = segmentation_losses(scores, label), segmentation_losses(half, shares)
    summed = weighted_losses(segmentation_losses, [scores, half], [label, shares], (0.75, 0.25))
    assert all(
        float(summed[k]) == pytest.approx(0.75 * float(parts[0][k]) + 0.25 * float(parts[1][k])) for k in summed
    )
    alone = weighted_losses(segmentation_losses, [scores, half], [label, shares], (1.0, 0.0))
    assert all(torch.equal(alone[kind], parts[0][kind]) for kind in alone)
