"""The objective: each loss against loops, what it may see, and where its gradient goes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from HybridMIMLib.config import PretrainingSettings
from HybridMIMLib.networks import UNet
from HybridMIMLib.networks.dropout import dropout_keys
from HybridMIMLib.networks.interface import Box, Pyramid
from HybridMIMLib.pretraining import hybridmim
from HybridMIMLib.pretraining.hybridmim import (
    HybridMIM,
    MaskedBatch,
    consistency_loss,
    location_loss,
    nt_xent,
    number_loss,
)
from HybridMIMLib.pretraining.masking import PatchGrid, Triple, by_region, draw_box, draw_mask, whole_patches

# Patches smaller than the stride along one axis, 8 patches in each of 2×2×2 regions, no two axes alike.
GRID = PatchGrid((8, 16, 16), (4, 2, 4), (4, 8, 8))
BOX: Triple = (4, 8, 12)
NAMES = ("partial", "number", "location", "consistency", "contrast")


def objective(
    dropout: float = 0.2, channels: int = 2, features: Sequence[int] = (4, 6, 8), **settings: Any
) -> HybridMIM:
    """In training mode, stride 4, with weights that are the same each time."""
    torch.manual_seed(0)
    chosen = PretrainingSettings(**{"projection": 12, "contrast_stage": 1, **settings})
    return HybridMIM(UNet(channels, features, dropout), GRID, channels, chosen)


def only(name: str, weight: float = 1.0) -> dict[str, Any]:
    """Settings in which one loss has a weight and the others have none."""
    return {f"{other}_weight": weight * (other == name) for other in NAMES}


def draw(*sizes: Triple, channels: int = 2, ratio: float = 0.4) -> MaskedBatch:
    """A batch with one sample for each size of scan; padding is 0."""
    image = torch.rand(len(sizes), channels, *GRID.crop, generator=torch.Generator().manual_seed(7))
    inside = torch.zeros(len(sizes), *GRID.crop, dtype=torch.bool)
    for sample, (d, h, w) in zip(inside, sizes):
        sample[:d, :h, :w] = True
    whole = [whole_patches(size, GRID) for size in sizes]
    streams = [np.random.default_rng(sample) for sample in range(len(sizes))]
    masks = [draw_mask(stream, GRID, patches, ratio, 0.75) for stream, patches in zip(streams, whole)]
    lower = [draw_box(stream, GRID, patches, BOX, (4, 4, 4)) for stream, patches in zip(streams, whole)]
    return MaskedBatch(
        image=image * inside[:, None],
        inside=inside,
        whole=torch.from_numpy(np.stack(whole)),
        mask=torch.from_numpy(np.stack(masks)),
        box=Box(torch.tensor(lower), BOX),
        keys=tuple(range(100, 100 + len(sizes))),
    )


def part(batch: MaskedBatch, *samples: int) -> MaskedBatch:
    """Some samples of a batch."""
    chosen = list(samples)
    return MaskedBatch(
        batch.image[chosen],
        batch.inside[chosen],
        batch.whole[chosen],
        batch.mask[chosen],
        Box(batch.box.lower[chosen], batch.box.size),
        tuple(batch.keys[sample] for sample in chosen),
    )


@pytest.fixture
def batch() -> MaskedBatch:
    """One whole crop, one padded along one axis, one along two, the last within a patch."""
    return draw(GRID.crop, (8, 16, 8), (8, 11, 15))


def hidden(batch: MaskedBatch) -> Tensor:
    """(B, D, H, W) True in masked patches, by a loop."""
    result = torch.zeros(batch.inside.shape, dtype=torch.bool)
    for b, d, h, w in np.ndindex(*result.shape):
        result[b, d, h, w] = batch.mask[b, d // 4, h // 2, w // 4]
    return result


def in_box(batch: MaskedBatch) -> Tensor:
    """(B, D, H, W) True in the box."""
    result = torch.zeros(batch.inside.shape, dtype=torch.bool)
    for sample, (a, b, c) in enumerate(batch.box.lower.tolist()):
        result[sample, a : a + BOX[0], b : b + BOX[1], c : c + BOX[2]] = True
    return result


def detached(pyramid: Pyramid) -> Pyramid:
    """A pyramid of leaves, whose gradients can be looked at."""
    return [level.detach().clone().requires_grad_() for level in pyramid]


def value(losses: dict[str, Tensor]) -> dict[str, float]:
    """Losses as numbers."""
    return {name: float(loss.detach()) for name, loss in losses.items()}


# --- what is hidden -----------------------------------------------------------


def test_masked_voxels_alone_are_set_to_0(batch: MaskedBatch) -> None:
    image = objective().masked(replace(batch, image=batch.image + 0.5))
    assert torch.equal(image == 0, hidden(batch)[:, None].expand_as(image))
    assert torch.equal(image, (batch.image + 0.5) * ~hidden(batch)[:, None])


def test_the_network_never_sees_what_is_masked(batch: MaskedBatch) -> None:
    model = objective(**{**only("number"), "contrast_weight": 1.0})
    other = replace(batch, image=torch.where(hidden(batch)[:, None], 0.9, batch.image))
    assert value(model.losses(batch)) == pytest.approx(value(model.losses(other)), abs=1e-6)


# --- pixel level --------------------------------------------------------------


def test_partial_loss_is_the_mean_over_masked_voxels_of_the_box(batch: MaskedBatch) -> None:
    model = objective()
    pyramid = model.backbone.eval().encode(model.masked(batch))
    predicted = torch.sigmoid(model.reconstruction(model.backbone.decode(pyramid, batch.box))).detach()
    used, squares = hidden(batch) & in_box(batch), []
    for b, d, h, w in used.nonzero().tolist():
        lower = batch.box.lower[b].tolist()
        for channel in range(2):
            guess = predicted[b, channel, d - lower[0], h - lower[1], w - lower[2]]
            squares.append((float(guess) - float(batch.image[b, channel, d, h, w])) ** 2)
    assert len(squares) > 200
    assert model.partial_loss(pyramid, batch).item() == pytest.approx(np.mean(squares), rel=1e-4)


def test_partial_loss_depends_on_masked_voxels_of_the_box_alone(batch: MaskedBatch) -> None:
    model = objective()
    pyramid = model.backbone.eval().encode(model.masked(batch))
    target = batch.image.clone().requires_grad_()
    model.partial_loss(pyramid, replace(batch, image=target)).backward()
    assert target.grad is not None
    counted = (hidden(batch) & in_box(batch))[:, None].expand_as(target)
    assert torch.equal(target.grad != 0, counted)
    assert not (counted & ~batch.inside[:, None]).any(), "padding is reconstructed"
    dark = replace(batch, image=torch.where(counted, batch.image, 0.0))
    assert model.partial_loss(pyramid, dark).item() == pytest.approx(model.partial_loss(pyramid, batch).item())


def test_partial_loss_sees_the_box_alone(batch: MaskedBatch) -> None:
    model = objective()
    pyramid = detached(model.backbone.eval().encode(model.masked(batch)))
    model.partial_loss(pyramid, batch).backward()
    for level, stride in zip(pyramid, (1, 2, 4)):
        assert level.grad is not None
        box = in_box(batch)[:, None, ::stride, ::stride, ::stride]
        assert float((level.grad * ~box).abs().max()) == 0
        assert float((level.grad * box).abs().max()) > 0


def test_partial_loss_is_0_where_the_box_holds_nothing_masked(batch: MaskedBatch) -> None:
    model = objective()
    empty = replace(batch, mask=torch.zeros_like(batch.mask))
    loss = model.partial_loss(model.backbone.eval().encode(model.masked(empty)), empty)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# --- region level -------------------------------------------------------------


def test_region_logits_come_from_the_cells_of_the_region() -> None:
    """Cells and labels of a region lie at the same place in space."""
    model, bottleneck = objective(), torch.rand(2, 8, 2, 4, 4)
    number, location = model.region_logits(bottleneck)
    assert number.shape == (2, 8, 9) and location.shape == (2, 8, 8)
    for region, (d, h, w) in enumerate(np.ndindex(2, 2, 2)):
        cells = bottleneck[:, :, d : d + 1, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].flatten(1)
        assert torch.allclose(number[:, region], model.number(cells), atol=1e-5)
        assert torch.allclose(location[:, region], model.location(cells), atol=1e-5)


def labels(batch: MaskedBatch) -> list[tuple[int, int, list[tuple[int, bool]]]]:
    """(sample, region, [(patch of the region, masked)]), whole patches alone; regions without any are left out."""
    found = []
    for b in range(len(batch.mask)):
        for region, corner in enumerate(np.ndindex(2, 2, 2)):
            patches = []
            for inner, step in enumerate(np.ndindex(1, 4, 2)):
                d, h, w = (c * n + s for c, n, s in zip(corner, (1, 4, 2), step))
                if batch.whole[b, d, h, w]:
                    patches.append((inner, bool(batch.mask[b, d, h, w])))
            if patches:
                found.append((b, region, patches))
    return found


def test_region_losses_are_those_of_loops(batch: MaskedBatch) -> None:
    model = objective(number_weight=1.0, location_weight=1.0, consistency_weight=1.0)
    bottleneck = torch.randn(3, 8, 2, 4, 4)
    number, location = (logits.double() for logits in model.region_logits(bottleneck))
    numbers, locations, consistencies = [], [], []
    for b, region, patches in labels(batch):
        shares = number[b, region].softmax(0).tolist()
        numbers.append(-math.log(shares[sum(masked for _, masked in patches)]))
        chances = {inner: location[b, region, inner].sigmoid().item() for inner, _ in patches}
        locations += [-math.log(chances[inner] if masked else 1 - chances[inner]) for inner, masked in patches]
        expected = sum(count * share for count, share in enumerate(shares))
        consistencies.append((expected - sum(chances.values())) ** 2)
    assert len(numbers) < 24, "the padded scans leave regions without a whole patch"
    losses = value(model._region_losses(bottleneck, batch))
    assert losses["number"] == pytest.approx(np.mean(numbers), rel=1e-4)
    assert losses["location"] == pytest.approx(np.mean(locations), rel=1e-4)
    assert losses["consistency"] == pytest.approx(np.mean(consistencies), rel=1e-4)


def test_dark_scans_have_the_labels_of_the_mask(batch: MaskedBatch) -> None:
    """An image of zeros is not a masked image."""
    model, bottleneck = objective(), torch.randn(3, 8, 2, 4, 4)
    dark = replace(batch, image=torch.zeros_like(batch.image))
    assert value(model._region_losses(bottleneck, dark)) == value(model._region_losses(bottleneck, batch))


def test_right_answers_cost_nothing() -> None:
    target = torch.rand(2, 5, 6) < 0.4
    whole = torch.ones_like(target)
    number = torch.nn.functional.one_hot(target.sum(-1), 7) * 60.0
    location = (target * 2.0 - 1) * 60
    for loss in (
        number_loss(number, target, whole),
        location_loss(location, target, whole),
        consistency_loss(number, location, whole),
    ):
        assert float(loss) == pytest.approx(0, abs=1e-6)
    assert float(consistency_loss(number, -location, whole)) > 0.1


def test_logits_of_padding_do_not_matter(batch: MaskedBatch) -> None:
    whole = by_region(batch.whole, GRID)
    target = by_region(batch.mask, GRID)
    number, location = torch.randn(3, 8, 9, requires_grad=True), torch.randn(3, 8, 8, requires_grad=True)
    losses = number_loss(number, target, whole), location_loss(location, target, whole)
    (sum(losses) + consistency_loss(number, location, whole)).backward()
    assert number.grad is not None and location.grad is not None
    assert torch.equal(number.grad.abs().sum(-1) > 0, whole.any(-1))
    assert torch.equal(location.grad != 0, whole)


def test_consistency_teaches_both_heads(batch: MaskedBatch) -> None:
    model = objective(**only("consistency"))
    model.losses(batch)["consistency"].backward()
    for head in (model.number, model.location):
        assert head.weight.grad is not None and float(head.weight.grad.abs().max()) > 0


def test_region_heads_learn_where_patches_are_masked() -> None:
    """Labels cut from the wrong place in space cannot be learnt on masks that were not seen before."""
    model = objective(0.0, 1, [8, 16, 32], **only("location"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    stream, batch = np.random.default_rng(0), draw(*[GRID.crop] * 4, channels=1)
    batch, whole = replace(batch, image=batch.image * 0.5 + 0.5), batch.whole[0].numpy()

    def fresh() -> MaskedBatch:
        masks = [draw_mask(stream, GRID, whole, 0.4, 0.75) for _ in range(4)]
        return replace(batch, mask=torch.from_numpy(np.stack(masks)))

    for _ in range(60):
        optimizer.zero_grad()
        model.losses(fresh())["location"].backward()
        optimizer.step()
    assert model.accuracies(fresh())["location_accuracy"] > 0.95


# --- sample level -------------------------------------------------------------


@pytest.mark.parametrize("samples, temperature", [(1, 0.5), (2, 0.5), (5, 0.1), (4, 2.0)])
def test_nt_xent_is_equation_1(samples: int, temperature: float) -> None:
    one, other = torch.randn(2, samples, 7, generator=torch.Generator().manual_seed(samples)).double()
    views = [*one.tolist(), *other.tolist()]

    def likeness(i: int, j: int) -> float:
        dot = sum(a * b for a, b in zip(views[i], views[j]))
        return math.exp(dot / math.hypot(*views[i]) / math.hypot(*views[j]) / temperature)

    terms = []
    for i in range(2 * samples):
        partner = (i + samples) % (2 * samples)
        terms.append(-math.log(likeness(i, partner) / sum(likeness(i, k) for k in range(2 * samples) if k != i)))
    assert float(nt_xent(one, other, temperature)) == pytest.approx(np.mean(terms), rel=1e-6, abs=1e-9)
    assert float(nt_xent(other, one, temperature)) == pytest.approx(np.mean(terms), rel=1e-6, abs=1e-9)
    assert float(nt_xent(3 * one, 0.1 * other, temperature)) == pytest.approx(np.mean(terms), rel=1e-6, abs=1e-9)


def test_nt_xent_wants_each_sample_beside_itself() -> None:
    views = torch.eye(4)
    right, wrong = nt_xent(views, views, 0.5), nt_xent(views, views.roll(1, 0), 0.5)
    assert float(right) < float(nt_xent(torch.ones(4, 4), torch.ones(4, 4), 0.5)) < float(wrong)


def test_nt_xent_of_one_sample_has_no_gradient_and_no_nan() -> None:
    one, other = torch.randn(2, 1, 6).requires_grad_()
    gradients = torch.autograd.grad(nt_xent(one, other, 0.5), [one, other])
    assert all(torch.allclose(g, torch.zeros_like(g), atol=1e-6) for g in gradients)


def encodings(
    model: HybridMIM, batch: MaskedBatch, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[int, Tensor, Pyramid]]:
    """(stage, entry, result) of every pass through the encoder in one step."""
    calls: list[tuple[int, Tensor, Pyramid]] = []
    encode_from = model.backbone.encode_from

    def spy(stage: int, x: Tensor) -> Pyramid:
        result = encode_from(stage, x)
        calls.append((stage, x, result))
        return result

    monkeypatch.setattr(model.backbone, "encode_from", spy)
    model.losses(batch)
    return calls


@pytest.mark.parametrize("stage, entered", [(0, 0), (1, 1), (2, 2), (9, 2)])
def test_second_pass_enters_at_the_stage(
    stage: int, entered: int, batch: MaskedBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = objective(contrast_stage=stage)
    first, second = encodings(model, batch, monkeypatch)
    assert (first[0], second[0]) == (0, entered)
    if entered:
        assert second[1] is first[2][entered - 1], "earlier features are used again"
    else:
        assert torch.equal(second[1], first[1]), "the whole encoder runs again on the same masked crop"
    assert len(second[2]) == 3 - entered
    assert not torch.allclose(first[2][-1], second[2][-1], atol=1e-3), "dropout makes the views differ"


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_views_are_alike_without_dropout(stage: int, batch: MaskedBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = encodings(objective(dropout=0.0, contrast_stage=stage), batch, monkeypatch)
    assert torch.allclose(first[2][-1], second[2][-1], atol=1e-5)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_views_differ_through_the_keys_alone(stage: int, batch: MaskedBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hybridmim, "stream_key", lambda key, which: key)
    first, second = encodings(objective(dropout=0.5, contrast_stage=stage), batch, monkeypatch)
    assert torch.allclose(first[2][-1], second[2][-1], atol=1e-5)


def test_contrast_is_nt_xent_of_pooled_projections(batch: MaskedBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    model = objective(**only("contrast", 0.7), contrast_temperature=0.3)
    loss = model.losses(batch)["contrast"].item()
    first, second = encodings(model, batch, monkeypatch)
    views = []
    for bottleneck in (first[2][-1], second[2][-1]):
        pooled = torch.zeros(3, 8)
        for b, d, h, w in batch.inside.nonzero().tolist():
            pooled[b] += bottleneck[b, :, d // 4, h // 4, w // 4].detach() / batch.inside[b].sum()
        views.append(model.projection(pooled))
    assert loss == pytest.approx(0.7 * nt_xent(views[0], views[1], 0.3).item(), rel=1e-3)


def test_padding_has_no_part_in_the_pooled_features(batch: MaskedBatch) -> None:
    bottleneck = torch.rand(3, 8, 2, 4, 4).requires_grad_()
    objective()._pool(bottleneck, batch.inside).sum().backward()
    assert bottleneck.grad is not None
    for b, d, h, w in np.ndindex(3, 2, 4, 4):
        share = batch.inside[b, 4 * d : 4 * d + 4, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4].sum() / batch.inside[b].sum()
        assert torch.allclose(bottleneck.grad[b, :, d, h, w], share.expand(8), atol=1e-6)


# --- the whole ----------------------------------------------------------------


def test_every_parameter_is_trained(batch: MaskedBatch) -> None:
    model = objective()
    losses = model.losses(batch)
    assert set(losses) == set(NAMES)
    sum(losses.values(), torch.zeros(())).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", NAMES)
def test_weights_multiply(name: str, batch: MaskedBatch) -> None:
    one, other = (value(objective(**only(name, weight)).losses(batch)) for weight in (1.0, 0.25))
    assert set(one) == set(other) == {name}
    assert other[name] == pytest.approx(0.25 * one[name], rel=1e-5)


def forbidden(name: str) -> Mock:
    """Fails the test when it is called."""
    return Mock(side_effect=AssertionError(f"{name} is computed"))


@pytest.mark.parametrize("name", NAMES)
def test_what_has_no_weight_is_not_computed(name: str, batch: MaskedBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    model = objective(**dict[str, Any]({f"{name}_weight": 0.0}))
    owner: Any = model if name in ("partial", "contrast") else hybridmim
    monkeypatch.setattr(owner, f"{name}_loss", forbidden(name))
    if name == "partial":
        monkeypatch.setattr(model.backbone, "decode", forbidden("the decoder"))
    calls = encodings(model, batch, monkeypatch)
    assert set(model.losses(batch)) == set(NAMES) - {name}
    assert len(calls) == 2 + 2 * (name != "contrast")


def test_without_region_losses_the_heads_are_not_computed(
    batch: MaskedBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = objective(**only("partial"))
    monkeypatch.setattr(model, "region_logits", forbidden("a region head"))
    assert set(model.losses(batch)) == {"partial"}


def test_a_sample_does_not_depend_on_its_batch(batch: MaskedBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout: the features of a sample are the same alone, and in another order."""
    model = objective(dropout=0.5)
    together = encodings(model, batch, monkeypatch)
    turned = encodings(model, part(batch, 2, 0, 1), monkeypatch)
    alone = encodings(model, part(batch, 1), monkeypatch)
    for which in range(2):
        expected = together[which][2][-1]
        assert torch.allclose(turned[which][2][-1], expected[[2, 0, 1]], atol=1e-4)
        assert torch.allclose(alone[which][2][-1], expected[[1]], atol=1e-4)


def test_a_step_repeats_and_leaves_the_global_streams(batch: MaskedBatch) -> None:
    model = objective(dropout=0.5)

    def step() -> dict[str, float]:
        losses = model.losses(batch)
        sum(losses.values(), torch.zeros(())).backward()
        model.accuracies(batch)
        return value(losses)

    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    one = step()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), repr(np.random.get_state()))
    torch.manual_seed(99)
    assert step() == pytest.approx(one, rel=1e-5)


THIN: Triple = (3, 16, 16)
DEGENERATE = {
    "one sample": draw(GRID.crop),
    "one scan thinner than a patch": draw(GRID.crop, THIN),
    "all scans thinner than a patch": draw(THIN, (8, 1, 16)),
    "one voxel": draw((1, 1, 1), (1, 1, 1)),
    "everything masked": draw(GRID.crop, GRID.crop, ratio=1.0),
    "one patch masked": draw(GRID.crop, GRID.crop, ratio=0.001),
    "dark": replace(draw(GRID.crop, GRID.crop), image=torch.zeros(2, 2, *GRID.crop)),
    "the same crop twice": part(draw(GRID.crop), 0, 0),
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_odd_batches_give_finite_losses_and_gradients(case: str, dropout: float) -> None:
    model, batch = objective(dropout), DEGENERATE[case]
    losses = model.losses(batch)
    assert set(losses) == set(NAMES)
    sum(losses.values(), torch.zeros(())).backward()
    assert all(math.isfinite(loss) for loss in value(losses).values())
    norm = nn_norm(model)
    assert math.isfinite(norm) and norm < 1e3
    assert all(0 <= share <= 1 for share in model.accuracies(batch).values())


def nn_norm(model: HybridMIM) -> float:
    """Norm of all gradients together."""
    return math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))


def test_a_scan_without_whole_patches_teaches_the_regions_nothing() -> None:
    """The others of the batch count as if it were not there."""
    model, batch = objective(dropout=0.0, contrast_weight=0.0), draw(GRID.crop, THIN)
    assert value(model.losses(batch)) == pytest.approx(value(model.losses(part(batch, 0))), rel=1e-4)


def test_accuracies_count_right_answers_without_padding(batch: MaskedBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    model = objective()
    number, location = torch.zeros(3, 8, 9), torch.full((3, 8, 8), -1.0)
    regions = patches = wrong_regions = wrong_patches = 0
    for place, (b, region, known) in enumerate(labels(batch)):
        count = sum(masked for _, masked in known)
        wrong = place % 3 == 0
        number[b, region, (count + wrong) % 9] = 1
        regions, wrong_regions = regions + 1, wrong_regions + wrong
        for inner, masked in known:
            location[b, region, inner] = 1.0 if masked != (inner == 0) else -1.0
            patches, wrong_patches = patches + 1, wrong_patches + (inner == 0)
    monkeypatch.setattr(model, "region_logits", lambda bottleneck: (number, location))
    assert model.accuracies(batch) == pytest.approx(
        {"number_accuracy": 1 - wrong_regions / regions, "location_accuracy": 1 - wrong_patches / patches}
    )


@pytest.mark.parametrize("training", [True, False])
def test_accuracies_use_no_dropout_and_restore_the_mode(training: bool, batch: MaskedBatch) -> None:
    model = objective(dropout=0.9).train(training)
    one = model.accuracies(batch)
    assert model.training == model.backbone.training == training
    other_keys = replace(batch, keys=(1, 2, 3))
    assert model.accuracies(other_keys) == one


def test_keys_given_outside_do_not_leak_in(batch: MaskedBatch) -> None:
    model = objective(dropout=0.5)
    expected = value(model.losses(batch))
    with dropout_keys([9, 9, 9]):
        assert value(model.losses(batch)) == pytest.approx(expected, rel=1e-5)


def test_crops_of_one_patient_are_no_negatives_of_each_other() -> None:
    torch.manual_seed(3)
    one, other = torch.randn(3, 5), torch.randn(3, 5)
    views = torch.nn.functional.normalize(torch.cat([one, other]), dim=1)
    patients = [0, 1, 0]
    expected = 0.0
    for i in range(6):
        partner = (i + 3) % 6
        allowed = [j for j in range(6) if patients[j % 3] != patients[i % 3] or j == partner]
        logits = torch.stack([views[i] @ views[j] / 0.5 for j in allowed])
        expected -= float(logits.log_softmax(0)[allowed.index(partner)]) / 6
    assert nt_xent(one, other, 0.5, torch.tensor(patients)).item() == pytest.approx(expected, abs=1e-5)


def test_a_batch_of_one_patient_has_no_contrast_and_no_nan() -> None:
    one = torch.randn(3, 5, requires_grad=True)
    loss = nt_xent(one, torch.randn(3, 5), 0.5, torch.zeros(3, dtype=torch.long))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6) and bool(torch.isfinite(one.grad).all())
