"""The objective: each loss against loops, what it may see, where its gradient goes, and what is not computed."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_objectives import draw_crops, part
from torch import Tensor

from HybridMIMLib.data.patches import inside_mask
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.networks import UNet
from HybridMIMLib.networks.dropout import dropout_keys
from HybridMIMLib.networks.interface import Box, Pyramid
from HybridMIMLib.pretraining import hybridmim
from HybridMIMLib.pretraining.contrast import nt_xent
from HybridMIMLib.pretraining.crops import Crops
from HybridMIMLib.pretraining.hybridmim import (
    HybridMIM,
    MaskedCrops,
    consistency_loss,
    location_loss,
    number_loss,
)
from HybridMIMLib.pretraining.masking import PatchGrid, Triple, by_region, draw_mask
from HybridMIMLib.settings.pretraining import PretrainingSettings

# Patches smaller than the stride along one axis, 8 patches in each of 2×2×2 regions, no two axes alike.
GRID = PatchGrid((8, 16, 16), (4, 2, 4), (4, 8, 8))
BOX: Triple = (4, 8, 12)
NAMES = ("partial", "number", "location", "consistency", "contrast")
HEADS = {
    "partial": {"reconstruction"},
    "number": {"number"},
    "location": {"location"},
    "consistency": {"number", "location"},
    "contrast": {"projection"},
}
PADDED: tuple[Triple, ...] = (GRID.crop, (8, 16, 8), (8, 11, 15))
"""One whole crop, one padded along one axis, one along two, there within a patch."""


def objective(dropout: float = 0.2, channels: int = 2, grid: PatchGrid = GRID, **chosen: Any) -> HybridMIM:
    """In training mode, with a U-Net of stride 4 and weights that are the same each time."""
    queue, features = chosen.pop("queue", 0), chosen.pop("features", (4, 6, 8))
    torch.manual_seed(0)
    backbone = UNet(channels, features, [[1, 1, 1], *[[2, 2, 2]] * (len(features) - 1)], dropout)
    box, usual = chosen.pop("region_box", BOX), {"projection": 12, "contrast_stage": 1}
    return HybridMIM(backbone, grid, box, channels, PretrainingSettings(**{**usual, **chosen}), queue)


def only(*names: str, weight: float = 1.0) -> dict[str, Any]:
    """Settings in which some losses have a weight and the others have none."""
    return {f"{other}_weight": weight * (other in names) for other in NAMES}


def draw(*sizes: Triple, **chosen: Any) -> MaskedCrops:
    """Masked crops, one for each size of scan; padding is 0."""
    return objective(**chosen).mask(draw_crops(GRID.crop, *sizes, channels=2))


def few(batch: MaskedCrops, *samples: int) -> MaskedCrops:
    """Some samples of a batch."""
    rows, box = list(samples), Box(batch.box.lower[list(samples)], batch.box.size)
    return MaskedCrops(part(batch.crops, *rows), batch.whole[rows], batch.mask[rows], box)


def with_image(batch: MaskedCrops, image: Tensor) -> MaskedCrops:
    """The same, of another image."""
    return replace(batch, crops=replace(batch.crops, image=image))


@pytest.fixture
def batch() -> MaskedCrops:
    """Crops with padding, see :data:`PADDED`."""
    return draw(*PADDED)


def hidden(batch: MaskedCrops) -> Tensor:
    """(B, D, H, W) True in masked patches, by a loop."""
    result = torch.zeros(batch.crops.image[:, 0].shape, dtype=torch.bool)
    for b, d, h, w in np.ndindex(*result.shape):
        result[b, d, h, w] = batch.mask[b, d // 4, h // 2, w // 4]
    return result


def in_box(batch: MaskedCrops) -> Tensor:
    """(B, D, H, W) True in the box."""
    result = torch.zeros(batch.crops.image[:, 0].shape, dtype=torch.bool)
    for sample, (a, b, c) in enumerate(batch.box.lower.tolist()):
        result[sample, a : a + BOX[0], b : b + BOX[1], c : c + BOX[2]] = True
    return result


def encoded(model: HybridMIM, batch: MaskedCrops) -> Pyramid:
    """The pyramid without dropout."""
    model.eval()
    return model.backbone.encode(model.hide(batch))


def value(losses: dict[str, Tensor]) -> dict[str, float]:
    """Losses as numbers."""
    return {name: float(loss.detach()) for name, loss in losses.items()}


def total(losses: dict[str, Tensor]) -> Tensor:
    """What is minimised."""
    return torch.stack(list(losses.values())).sum()


# --- what is hidden -----------------------------------------------------------


@pytest.mark.parametrize("fill", ["zero", "learned"])
def test_masked_voxels_alone_are_filled(batch: MaskedCrops, fill: str) -> None:
    bright, model = with_image(batch, batch.crops.image + 0.5), objective(fill=fill)
    assert model.fill.requires_grad == (fill == "learned")
    assert not model.fill.any()
    with torch.no_grad():
        model.fill.copy_(torch.tensor([0.0, -1.0]))
    image = model.hide(bright)
    for channel, value in ((0, 0.0), (1, -1.0)):
        assert torch.equal(image[:, channel] == value, hidden(batch))
    assert torch.equal(image * ~hidden(batch)[:, None], bright.crops.image * ~hidden(batch)[:, None])


@pytest.mark.parametrize("stage", [0, 1])
def test_the_network_never_sees_what_is_masked(
    batch: MaskedCrops, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = objective(contrast_stage=stage)
    other = with_image(batch, torch.where(hidden(batch)[:, None], 0.9, batch.crops.image))
    one, changed = (encodings(model, which, monkeypatch) for which in (batch, other))
    for (_, _, features), (_, _, same) in zip(one, changed):
        assert all(torch.equal(level, again) for level, again in zip(features, same))


def test_the_mask_is_drawn_in_two_levels_from_keys_and_settings() -> None:
    crops = draw_crops(GRID.crop, *PADDED, channels=2)
    for ratio, region_ratio, drawn in ((None, 0.5, 0.40), (0.2, 1.0, 0.2), ([0.3, 0.6], [0.2, 0.9], [0.3, 0.6])):
        found = objective(mask_ratio=ratio, region_ratio=region_ratio).mask(crops)
        assert torch.equal(found.mask, draw_mask(crops.keys, GRID, found.whole, drawn, region_ratio))
        assert not (found.mask & ~found.whole).any()


def test_a_region_that_is_no_multiple_of_the_stride_is_named() -> None:
    with pytest.raises(SettingsError, match="stride of the network"):
        objective(grid=PatchGrid((8, 8, 8), (2, 2, 2), (2, 4, 4)))


def slow_variation(image: Tensor, size: Triple) -> np.ndarray:
    """(D, H, W) sum of the steps to the next voxel along each axis that both hold scan, mean over the channels."""
    result = np.zeros(image.shape[1:])
    for place in np.ndindex(*size):
        for axis in range(3):
            after = tuple(n + (axis == k) for k, n in enumerate(place))
            if after[axis] < size[axis]:
                steps = [abs(float(channel[after]) - float(channel[place])) for channel in image]
                result[place] += np.mean(steps)
    return result


def test_content_is_variation_within_the_scan_alone() -> None:
    sizes: list[Triple] = [(3, 5, 4), (2, 5, 1), (1, 1, 1)]
    crops = draw_crops((3, 5, 4), *sizes, channels=2)
    found = hybridmim._variation(crops.image, crops.sizes)
    for sample, size in enumerate(sizes):
        assert np.allclose(found[sample].numpy(), slow_variation(crops.image[sample], size), atol=1e-6)


def test_boxes_go_where_the_scan_varies() -> None:
    """A detail in one corner of a flat scan is in every box towards content, and not in every random one."""
    image = torch.full((40, 2, *GRID.crop), 0.5)
    image[:, :, 5:7, 13:15, 13:15] = torch.rand(40, 2, 2, 2, 2)
    rows = torch.arange(40)
    crops = Crops(image, torch.tensor(GRID.crop).expand(40, 3), rows, rows)
    shares = []
    for placement in ("random", "content"):
        lower = objective(box_placement=placement, **only("partial")).mask(crops).box.lower
        shares.append((lower == torch.tensor([4, 8, 4])).all(dim=1).float().mean().item())
    assert shares[0] < 0.4 and shares[1] == 1


# --- pixel level --------------------------------------------------------------


@pytest.mark.parametrize("error", ["auto", "l1", "l2"])
@pytest.mark.parametrize("target", ["raw", "normalised"])
def test_partial_loss_is_the_mean_over_masked_voxels_of_the_box(batch: MaskedCrops, target: str, error: str) -> None:
    model = objective(target=target, reconstruction=error)
    pyramid = encoded(model, batch)
    predicted = model.reconstruction(model.backbone.decode(pyramid, batch.box)).detach().double()
    predicted = torch.sigmoid(predicted) if target == "raw" else predicted
    errors = []
    for b, d, h, w in (hidden(batch) & in_box(batch)).nonzero().tolist():
        i, j, k = batch.box.lower[b].tolist()
        for channel, image in enumerate(batch.crops.image[b].double()):
            true = image[d, h, w]
            if target == "normalised":
                z, y, x = d // 4 * 4, h // 2 * 2, w // 4 * 4
                patch = image[z : z + 4, y : y + 2, x : x + 4]
                true = (true - patch.mean()) / (patch.var(correction=0) + 1e-6).sqrt()
            off = float(predicted[b, channel, d - i, h - j, w - k] - true)
            errors.append(abs(off) if error == "l1" else off**2)
    assert len(errors) > 200
    assert model.partial_loss(pyramid, batch).item() == pytest.approx(np.mean(errors), rel=1e-4)


@pytest.mark.parametrize("target", ["raw", "normalised"])
def test_targets_that_do_not_count_change_nothing(batch: MaskedCrops, target: str) -> None:
    """Not by a bit: voxels that are not masked, padding, and what lies in no patch of the box."""
    model = objective(target=target)
    pyramid = encoded(model, batch)
    before = model.partial_loss(pyramid, batch)
    noise = torch.rand(batch.crops.image.shape)
    # A normalised target follows from its whole patch, also from the part of it that the box leaves out.
    touched = torch.nn.functional.max_pool3d(in_box(batch)[:, None].float(), (4, 2, 4)).bool()
    near = touched.repeat_interleave(4, 2).repeat_interleave(2, 3).repeat_interleave(4, 4)
    counted = hidden(batch)[:, None] & (in_box(batch)[:, None] if target == "raw" else near)
    other = with_image(batch, torch.where(counted, batch.crops.image, noise))
    assert torch.equal(model.partial_loss(pyramid, other), before)
    assert not (counted & ~inside_mask(batch.crops.sizes, GRID.crop)[:, None]).any(), "padding is reconstructed"
    for b, channel, d, h, w in (counted & in_box(batch)[:, None]).expand_as(noise).nonzero()[::37].tolist():
        image = batch.crops.image.clone()
        image[b, channel, d, h, w] += 0.5
        assert not torch.equal(model.partial_loss(pyramid, with_image(batch, image)), before)


def test_partial_loss_sees_the_box_alone(batch: MaskedCrops) -> None:
    model = objective()
    pyramid = [level.detach().clone().requires_grad_() for level in encoded(model, batch)]
    model.partial_loss(pyramid, batch).backward()
    for level, stride in zip(pyramid, (1, 2, 4)):
        assert level.grad is not None
        box = in_box(batch)[:, None, ::stride, ::stride, ::stride]
        assert float((level.grad * ~box).abs().max()) == 0
        assert float((level.grad * box).abs().max()) > 0


def test_partial_loss_is_0_where_the_box_holds_nothing_masked(batch: MaskedCrops) -> None:
    model = objective()
    empty = replace(batch, mask=torch.zeros_like(batch.mask))
    loss = model.partial_loss(encoded(model, empty), empty)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# --- region level -------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(cells=st.tuples(*[st.integers(1, 2)] * 3), outer=st.tuples(*[st.integers(1, 3)] * 3))
def test_region_logits_come_from_the_cells_of_the_region(cells: Triple, outer: Triple) -> None:
    """Cells and labels of a region lie at the same place in space."""
    region = (4 * cells[0], 4 * cells[1], 4 * cells[2])
    crop = (region[0] * outer[0], region[1] * outer[1], region[2] * outer[2])
    model = objective(0.0, 1, PatchGrid(crop, (2, 4, 4), region), region_box=(4, 4, 4))
    bottleneck = torch.rand(2, 8, *(c // 4 for c in crop))
    number, location = model.number_logits(bottleneck), model.location_logits(bottleneck)
    count = 2 * math.prod(cells)
    assert number.shape == (2, math.prod(outer), count + 1) and location.shape == (2, math.prod(outer), count)
    for place, corner in enumerate(np.ndindex(*outer)):
        d, h, w = (slice(c * n, (c + 1) * n) for c, n in zip(corner, cells))
        features = bottleneck[:, :, d, h, w].flatten(1)
        assert torch.allclose(number[:, place], model.number(features), atol=1e-5)
        assert torch.allclose(location[:, place], model.location(features), atol=1e-5)


def labels(batch: MaskedCrops) -> list[tuple[int, int, list[tuple[int, bool]]]]:
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


def test_region_losses_are_those_of_loops(batch: MaskedCrops) -> None:
    model, bottleneck = objective(**only("number", "location", "consistency")), torch.randn(3, 8, 2, 4, 4)
    number, location = model.number_logits(bottleneck).double(), model.location_logits(bottleneck).double()
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


@pytest.mark.parametrize("patches", [1, 8, 64, 512])
def test_consistency_is_as_large_whatever_the_patches_of_a_region(patches: int) -> None:
    """All or none of the patches: the counts of a region of 8 are 8 apart."""
    number, whole = torch.zeros(1, 1, patches + 1), torch.ones(1, 1, patches, dtype=torch.bool)
    number[..., -1] = 60
    assert float(consistency_loss(number, torch.full((1, 1, patches), -60.0), whole)) == pytest.approx(64)


def test_dark_scans_have_the_labels_of_the_mask(batch: MaskedCrops) -> None:
    """An image of zeros is not a masked image."""
    model, bottleneck = objective(), torch.randn(3, 8, 2, 4, 4)
    dark = with_image(batch, torch.zeros_like(batch.crops.image))
    assert value(model._region_losses(bottleneck, dark)) == value(model._region_losses(bottleneck, batch))


def test_right_answers_cost_nothing() -> None:
    target = torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.4
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


def test_logits_of_padding_do_not_matter(batch: MaskedCrops) -> None:
    whole, target = by_region(batch.whole, GRID), by_region(batch.mask, GRID)
    number, location = torch.randn(3, 8, 9, requires_grad=True), torch.randn(3, 8, 8, requires_grad=True)
    losses = number_loss(number, target, whole), location_loss(location, target, whole)
    (sum(losses) + consistency_loss(number, location, whole)).backward()
    assert number.grad is not None and location.grad is not None
    assert torch.equal(number.grad.abs().sum(-1) > 0, whole.any(-1))
    assert torch.equal(location.grad != 0, whole)


def test_region_heads_learn_where_patches_are_masked() -> None:
    """Labels cut from the wrong place in space cannot be learnt on masks that were not seen before."""
    model = objective(0.0, 1, features=(8, 16, 32), **only("location"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def fresh(step: int) -> Crops:
        crops = draw_crops(GRID.crop, seed=step)
        return replace(crops, image=crops.image * 0.5 + 0.5)

    for step in range(60):
        optimizer.zero_grad()
        total(model(fresh(step))).backward()
        optimizer.step()
    measures = model.measures(fresh(99))
    assert measures["location_accuracy"] > 0.95 > 0.8 > measures["location_chance"]


# --- sample level -------------------------------------------------------------


def encodings(
    model: HybridMIM, batch: MaskedCrops, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[int, Tensor, Pyramid]]:
    """(stage, entry, result) of every pass through the encoder in one step."""
    calls: list[tuple[int, Tensor, Pyramid]] = []
    encode_from = type(model.backbone).encode_from

    def spy(stage: int, x: Tensor) -> Pyramid:
        result = encode_from(model.backbone, stage, x)
        calls.append((stage, x, result))
        return result

    monkeypatch.setattr(model.backbone, "encode_from", spy)
    model.losses_of(batch)
    return calls


@pytest.mark.parametrize("stage, entered", [(0, 0), (1, 1), (2, 2), (9, 2)])
def test_second_pass_enters_at_the_stage(
    stage: int, entered: int, batch: MaskedCrops, monkeypatch: pytest.MonkeyPatch
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


@pytest.mark.parametrize("stage", [0, 1, 2, 9])
def test_stages_run_once_or_twice_and_drop_from_the_chosen_one_on(stage: int, batch: MaskedCrops) -> None:
    model, runs = objective(dropout=0.5, contrast_stage=stage), [0, 0, 0]
    backbone: Any = model.backbone
    for number, block in enumerate([backbone.input_block, *backbone.downsamples, backbone.bottleneck]):

        def count(*_: object, number: int = number) -> None:
            runs[number] += 1

        block.register_forward_hook(count)
    dropped: list[Tensor] = []
    for layer in backbone.dropouts:
        layer.register_forward_hook(lambda _, given, made: dropped.append(torch.equal(given[0], made)))
    model.losses_of(batch)
    entered = min(stage, 2)
    assert runs == [1 + (number >= entered) for number in range(3)]
    # Layers run in the order of the stages, then again from the one that was entered.
    passes = [*range(3), *range(entered, 3)]
    assert dropped == [number < entered for number in passes]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_views_are_alike_without_dropout(stage: int, batch: MaskedCrops, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = encodings(objective(dropout=0.0, contrast_stage=stage), batch, monkeypatch)
    assert torch.allclose(first[2][-1], second[2][-1], atol=1e-5)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_views_differ_through_the_keys_alone(stage: int, batch: MaskedCrops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hybridmim, "derived_keys", lambda keys, which: keys)
    first, second = encodings(objective(dropout=0.5, contrast_stage=stage), batch, monkeypatch)
    assert torch.allclose(first[2][-1], second[2][-1], atol=1e-5)


@pytest.mark.parametrize("queue", [0, 5])
def test_contrast_is_nt_xent_of_pooled_projections(
    batch: MaskedCrops, queue: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = replace(batch, crops=replace(batch.crops, patients=torch.tensor([0, 1, 0])))
    model = objective(**only("contrast", weight=0.7), contrast_temperature=0.3, queue=queue)
    earlier = None
    if queue:
        assert model.queue is not None
        earlier = objective(queue=queue, **only("contrast")).queue
        assert earlier is not None
        for kept in (model.queue, earlier):
            kept.push(torch.randn(4, 12, generator=torch.Generator().manual_seed(5)), torch.tensor([7, 8, 9, 0]))
    loss = model.losses_of(batch)["contrast"].item()
    first, second = encodings(model, batch, monkeypatch)
    inside, views = inside_mask(batch.crops.sizes, GRID.crop), []
    for bottleneck in (first[2][-1], second[2][-1]):
        mean = torch.zeros(3, 8)
        for b, d, h, w in inside.nonzero().tolist():
            mean[b] += bottleneck[b, :, d // 4, h // 4, w // 4].detach() / inside[b].sum()
        views.append(model.projection(mean))
    expected = 0.7 * nt_xent(views[0], views[1], 0.3, batch.crops.patients, earlier).item()
    assert loss == pytest.approx(expected, rel=1e-3)


def test_a_queue_gives_one_crop_something_to_contrast_with() -> None:
    model, losses = objective(**only("contrast"), queue=3), []
    for step in range(5):
        crops = draw_crops(GRID.crop, GRID.crop, channels=2, seed=step)
        losses.append(model(replace(crops, patients=torch.tensor([step])))["contrast"].item())
    assert losses[0] == pytest.approx(0, abs=1e-6) and min(losses[1:]) > 0.1
    assert model.queue is not None and sorted(model.queue.patients.tolist()) == [2, 3, 4]


def test_a_run_that_goes_on_has_the_queue_it_had() -> None:
    model, other = (objective(**only("contrast"), queue=6) for _ in range(2))
    for step in range(3):
        model(draw_crops(GRID.crop, GRID.crop, GRID.crop, channels=2, seed=step))
    other.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
    crops = draw_crops(GRID.crop, GRID.crop, GRID.crop, channels=2, seed=3)
    crops = replace(crops, patients=crops.patients + 10)
    assert model(crops)["contrast"].item() == other(crops)["contrast"].item()


# --- where gradients go, and what is not computed -----------------------------


@pytest.mark.parametrize("name", NAMES)
def test_each_loss_reaches_its_heads_and_what_comes_before(name: str, batch: MaskedCrops) -> None:
    model = objective()
    model.losses_of(batch)[name].backward()
    reached = {key for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    heads = {key.split(".")[0] for key in reached} - {"backbone"}
    assert heads == HEADS[name] | {"fill"}
    names = [key.removeprefix("backbone.") for key in dict(model.named_parameters()) if key.startswith("backbone.")]
    encoder = {key for key in names if model.backbone.is_of_encoder(key)}
    decoder = set(names) - encoder
    reached_there = {key.removeprefix("backbone.") for key in reached}
    assert encoder and encoder <= reached_there
    assert decoder and (decoder <= reached_there if name == "partial" else not decoder & reached_there)


def test_every_parameter_is_trained(batch: MaskedCrops) -> None:
    model = objective()
    losses = model.losses_of(batch)
    assert set(losses) == set(NAMES)
    total(losses).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", NAMES)
def test_weights_multiply(name: str, batch: MaskedCrops) -> None:
    one, other = (value(objective(**only(name, weight=weight)).losses_of(batch)) for weight in (1.0, 0.25))
    assert set(one) == set(other) == {name}
    assert other[name] == pytest.approx(0.25 * one[name], rel=1e-5)


@pytest.mark.parametrize("names", [(name,) for name in NAMES] + [("number", "contrast"), ("partial", "location")])
def test_what_has_no_weight_has_no_head_and_is_not_computed(
    names: tuple[str, ...], batch: MaskedCrops, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = objective(**only(*names), queue=4)
    wanted = set().union(*(HEADS[name] for name in names))
    assert {name.split(".")[0] for name, _ in model.named_parameters()} - {"backbone", "fill"} == wanted
    assert (model.queue is not None) == ("contrast" in names)
    for other in set(NAMES) - set(names):
        owner: Any = model if other in ("partial", "contrast") else hybridmim
        monkeypatch.setattr(owner, f"{other}_loss", Mock(side_effect=AssertionError(f"{other} is computed")))
    decode = Mock(wraps=model.backbone.decode)
    monkeypatch.setattr(model.backbone, "decode", decode)
    assert len(encodings(model, batch, monkeypatch)) == 1 + ("contrast" in names)
    losses = model.losses_of(batch)
    assert set(losses) == set(names) and decode.called == ("partial" in names) == model.trains_decoder
    total(losses).backward()
    measures = model.measures(batch.crops)
    heads = {name.removesuffix("_accuracy") for name in measures if name.endswith("_accuracy")}
    assert heads == wanted - {"reconstruction", "projection"} | ({"contrast"} & set(names))
    assert ("error_to_patch_mean" in measures) == ("partial" in names)
    assert (model.preview(batch.crops) is None) == ("partial" not in names)


# --- the whole ----------------------------------------------------------------


def test_a_sample_does_not_depend_on_its_batch(batch: MaskedCrops, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout: mask, box and features of a sample are the same alone, and in another order."""
    model = objective(dropout=0.5, box_placement="content", mask_ratio=[0.2, 0.6])
    batch = model.mask(batch.crops)
    turned, alone = model.mask(part(batch.crops, 2, 0, 1)), model.mask(part(batch.crops, 1))
    assert torch.equal(turned.mask, batch.mask[[2, 0, 1]]) and torch.equal(alone.mask, batch.mask[[1]])
    assert torch.equal(turned.box.lower, batch.box.lower[[2, 0, 1]])
    assert torch.equal(alone.box.lower, batch.box.lower[[1]])
    together, other, single = (encodings(model, which, monkeypatch) for which in (batch, turned, alone))
    for which in range(2):
        expected = together[which][2][-1]
        assert torch.allclose(other[which][2][-1], expected[[2, 0, 1]], atol=1e-4)
        assert torch.allclose(single[which][2][-1], expected[[1]], atol=1e-4)


def test_a_step_repeats_and_leaves_the_global_streams(batch: MaskedCrops) -> None:
    model = objective(dropout=0.5)

    def step() -> dict[str, float]:
        losses = model(batch.crops)
        total(losses).backward()
        model.measures(batch.crops)
        model.preview(batch.crops)
        return value(losses)

    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    one = step()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), repr(np.random.get_state()))
    torch.manual_seed(99)
    assert step() == pytest.approx(one, rel=1e-5)


THIN: Triple = (3, 16, 16)
DEGENERATE: dict[str, tuple[dict[str, Any], tuple[Triple, ...]]] = {
    "one sample": ({}, (GRID.crop,)),
    "one scan thinner than a patch": ({}, (GRID.crop, THIN)),
    "all scans thinner than a patch": ({}, (THIN, (8, 1, 16))),
    "one voxel": ({}, ((1, 1, 1), (1, 1, 1))),
    "everything masked": ({"mask_ratio": 1.0}, (GRID.crop, GRID.crop)),
    "one patch masked": ({"mask_ratio": 0.001}, (GRID.crop, GRID.crop)),
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("usual", [{}, {"queue": 3, "target": "normalised", "box_placement": "content"}])
def test_odd_batches_give_finite_losses_and_gradients(case: str, usual: dict[str, Any]) -> None:
    chosen, sizes = DEGENERATE[case]
    crops = draw_crops(GRID.crop, *sizes, channels=2)
    for image in (crops.image, torch.zeros_like(crops.image)):
        model = objective(**usual, **chosen)
        for _ in range(2):
            losses = model(replace(crops, image=image))
            assert set(losses) == set(NAMES) and all(map(math.isfinite, value(losses).values()))
            total(losses).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        for name, share in model.measures(crops).items():
            assert math.isfinite(share) and (0 <= share <= 1 or name == "error_to_patch_mean")


def test_the_same_crop_twice_is_no_negative_of_itself() -> None:
    crops = part(draw_crops(GRID.crop, GRID.crop, channels=2), 0, 0)
    assert objective(**only("contrast"))(crops)["contrast"].item() == pytest.approx(0, abs=1e-6)


def test_a_scan_without_whole_patches_teaches_the_regions_nothing() -> None:
    """The others of the batch count as if it were not there."""
    model, batch = objective(dropout=0.0, contrast_weight=0.0), draw(GRID.crop, THIN)
    assert value(model.losses_of(batch)) == pytest.approx(value(model.losses_of(few(batch, 0))), rel=1e-4)


# --- measures and preview -----------------------------------------------------


def test_accuracies_count_right_answers_without_padding(batch: MaskedCrops, monkeypatch: pytest.MonkeyPatch) -> None:
    model = objective()
    number, location = torch.zeros(3, 8, 9), torch.full((3, 8, 8), -1.0)
    regions, patches = [], []
    for place, (b, region, known) in enumerate(labels(batch)):
        count, wrong = sum(masked for _, masked in known), place % 3 == 0
        number[b, region, (count + wrong) % 9] = 1
        regions.append((count, not wrong))
        for inner, masked in known:
            location[b, region, inner] = 1.0 if masked != (inner == 0) else -1.0
            patches.append((masked, inner != 0))
    monkeypatch.setattr(model, "number_logits", lambda bottleneck: number)
    monkeypatch.setattr(model, "location_logits", lambda bottleneck: location)
    found = model.measures(batch.crops)
    assert found["number_accuracy"] == pytest.approx(np.mean([right for _, right in regions]))
    assert found["location_accuracy"] == pytest.approx(np.mean([right for _, right in patches]))
    # Chance: whoever always gives one answer, the best one.
    always = [np.mean([count == answer for count, _ in regions]) for answer in range(9)]
    assert found["number_chance"] == pytest.approx(max(always))
    always = [np.mean([masked == answer for masked, _ in patches]) for answer in (False, True)]
    assert found["location_chance"] == pytest.approx(max(always))
    assert found["contrast_chance"] == pytest.approx(1 / 5)


@pytest.mark.parametrize("target", ["raw", "normalised"])
def test_the_reconstruction_is_measured_in_intensities(batch: MaskedCrops, target: str) -> None:
    model = objective(target=target, mask_ratio=[0.3, 0.6])
    batch = model.mask(batch.crops)
    predicted = model.reconstruction(model.backbone.decode(encoded(model, batch), batch.box)).detach()
    ours, floor = 0.0, 0.0
    for b, d, h, w in (hidden(batch) & in_box(batch)).nonzero().tolist():
        i, j, k = batch.box.lower[b].tolist()
        z, y, x = d // 4 * 4, h // 2 * 2, w // 4 * 4
        for channel, image in enumerate(batch.crops.image[b].double()):
            patch = image[z : z + 4, y : y + 2, x : x + 4]
            made = predicted[b, channel, d - i, h - j, w - k].double()
            if target == "normalised":
                made = made * (patch.var(correction=0) + 1e-6).sqrt() + patch.mean()
            else:
                made = made.sigmoid()
            ours += float((made - image[d, h, w]) ** 2)
            floor += float((patch.mean() - image[d, h, w]) ** 2)
    assert model.measures(batch.crops)["error_to_patch_mean"] == pytest.approx(ours / floor, rel=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_measures_use_no_dropout_leave_the_queue_and_restore_the_mode(training: bool, batch: MaskedCrops) -> None:
    model = objective(dropout=0.9, queue=4).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one = model.measures(batch.crops)
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    sure = objective(dropout=0.0).measures(batch.crops)
    assert {k: v for k, v in one.items() if "contrast" not in k} == {
        k: v for k, v in sure.items() if "contrast" not in k
    }


@pytest.mark.parametrize("target", ["raw", "normalised"])
def test_a_preview_shows_the_masked_crop_and_a_prediction_everywhere(batch: MaskedCrops, target: str) -> None:
    model = objective(target=target).train()
    made = model.preview(batch.crops)
    assert made is not None and model.training
    drawn = model.mask(batch.crops)
    assert torch.equal(made.hidden, hidden(drawn))
    # Original outside of what is hidden.
    assert torch.equal(made.masked, torch.where(hidden(drawn)[:, None], 0.0, batch.crops.image))
    values = model.reconstruction(model.backbone.decode(encoded(model, drawn))).detach()
    if target == "raw":
        assert torch.allclose(made.predicted, values.sigmoid(), atol=1e-5)
    else:
        patches = batch.crops.image.unfold(2, 4, 4).unfold(3, 2, 2).unfold(4, 4, 4)
        for b, d, h, w in np.ndindex(3, 2, 8, 4):
            place = (slice(4 * d, 4 * d + 4), slice(2 * h, 2 * h + 2), slice(4 * w, 4 * w + 4))
            for channel in range(2):
                known = patches[b, channel, d, h, w]
                wanted = values[(b, channel, *place)] * (known.var(correction=0) + 1e-6).sqrt() + known.mean()
                assert torch.allclose(made.predicted[(b, channel, *place)], wanted, atol=1e-4)
    assert not made.predicted.requires_grad


def test_keys_given_outside_do_not_leak_in(batch: MaskedCrops) -> None:
    model = objective(dropout=0.5)
    expected = value(model.losses_of(batch))
    with dropout_keys(torch.tensor([9, 9, 9])):
        assert value(model.losses_of(batch)) == pytest.approx(expected, rel=1e-5)
