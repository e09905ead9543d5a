"""SimMIM: its loss against loops, and what it may and may not depend on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from small_objectives import SIZES, draw_crops, part, small_objective
from torch import Tensor

from HybridMIMLib.pretraining.crops import Crops
from HybridMIMLib.pretraining.masking import to_voxels
from HybridMIMLib.pretraining.objective import mode
from HybridMIMLib.pretraining.simmim import SimMIM

CROP, PATCH, _ = SIZES["unet"]
PADDED = ((16, 8, 16), (8, 8, 15), (3, 3, 3))
"""A whole crop, one padded along two axes and within a patch along one, and a scan thinner than a patch."""


def simmim(architecture: str = "unet", channels: int = 2, **chosen: Any) -> SimMIM:
    found = small_objective(architecture, "simmim", channels, **chosen)
    assert isinstance(found, SimMIM)
    return found


def predictions(model: SimMIM, crops: Crops, image: Tensor | None = None) -> Tensor:
    whole, mask = model.mask(crops)
    with torch.no_grad(), mode(model, training=False):
        return model.predict(crops.image if image is None else image, whole, mask)


def slow_loss(
    predicted: Tensor, image: Tensor, mask: Tensor, error: str = "l1", target: str = "raw", deviation: float = 1e-6
) -> float:
    """Mean over the voxels of masked patches, patch by patch."""
    errors: list[float] = []
    for b, d, h, w in np.ndindex(*mask.shape):
        if not mask[b, d, h, w]:
            continue
        place = tuple(slice(n * p, (n + 1) * p) for n, p in zip((d, h, w), PATCH))
        for channel in range(image.shape[1]):
            true = image[(b, channel, *place)].double().numpy()
            if target == "normalised":
                true = (true - true.mean()) / np.sqrt(true.var() + deviation)
            off = predicted[(b, channel, *place)].double().numpy() - true
            errors += (np.abs(off) if error == "l1" else off**2).flatten().tolist()
    return float(np.mean(errors))


@pytest.mark.parametrize("target", ["raw", "normalised"])
@pytest.mark.parametrize("error", ["auto", "l1", "l2"])
def test_the_loss_is_the_mean_over_masked_voxels(error: str, target: str) -> None:
    model = simmim(reconstruction=error, target=target, network={"dropout": 0.0})
    crops = draw_crops(CROP, *PADDED, channels=2)
    _, mask = model.mask(crops)
    wanted = slow_loss(predictions(model, crops), crops.image, mask, "l2" if error == "l2" else "l1", target)
    assert list(model(crops)) == ["reconstruction"]
    assert model(crops)["reconstruction"].item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("architecture", SIZES)
def test_what_is_hidden_has_no_influence(architecture: str) -> None:
    crop, patch, _ = SIZES[architecture]
    model, crops = simmim(architecture, 1), draw_crops(crop, crop, crop)
    hidden = to_voxels(model.mask(crops)[1], patch)[:, None]
    assert hidden.any() and not hidden.all()
    noise = torch.rand_like(crops.image)
    before = predictions(model, crops)
    assert torch.equal(before, predictions(model, crops, torch.where(hidden, noise, crops.image)))
    assert not torch.equal(before, predictions(model, crops, torch.where(hidden, crops.image, noise)))


def test_what_stands_for_hidden_voxels_is_learned() -> None:
    model, crops = simmim(), draw_crops(CROP, channels=2)
    hidden = to_voxels(model.mask(crops)[1], PATCH)
    filled = crops.image.clone()
    for b, d, h, w in hidden.nonzero().tolist():
        filled[b, :, d, h, w] = model.fill
    with torch.no_grad(), mode(model, training=False):
        wanted = model.head(model.backbone.encode(filled)[-1])
    assert torch.equal(predictions(model, crops), wanted)
    model(crops)["reconstruction"].backward()
    assert model.fill.shape == (2,) and model.fill.grad is not None and (model.fill.grad != 0).all()


def test_the_target_outside_of_the_mask_changes_no_loss() -> None:
    model, crops = simmim(target="normalised"), draw_crops(CROP, *PADDED, channels=2)
    predicted, (_, mask) = predictions(model, crops), model.mask(crops)
    hidden = to_voxels(mask, PATCH)[:, None]
    loss = model.error_of(predicted, crops.image, mask)
    noise = torch.rand_like(crops.image)
    assert torch.equal(loss, model.error_of(predicted, torch.where(hidden, crops.image, noise), mask))
    assert not torch.equal(loss, model.error_of(predicted, torch.where(hidden, noise, crops.image), mask))


@given(
    ratio=st.one_of(st.floats(0.02, 0.98), st.lists(st.floats(0.02, 0.98), min_size=2, max_size=2).map(sorted)),
    sizes=st.lists(st.tuples(st.integers(1, 16), st.integers(1, 8), st.integers(1, 16)), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
@hypothesis_settings(deadline=None, max_examples=40)
def test_the_ratio_is_one_of_whole_patches_exactly(
    ratio: float | list[float], sizes: list[tuple[int, int, int]], seed: int
) -> None:
    whole, mask = simmim(mask_ratio=ratio).mask(draw_crops(CROP, *sizes, seed=seed))
    low, high = ratio if isinstance(ratio, list) else (ratio, ratio)
    for size, of, masked in zip(sizes, whole, mask):
        count = int(np.prod([n // p for n, p in zip(size, PATCH)]))
        assert int(of.sum()) == count and not (masked & ~of).any()
        room = max(count - 1, min(count, 1))
        least, most = (min(max(round(share * count + shift), 1), room) for share, shift in ((low, -0.5), (high, 0.5)))
        assert least <= int(masked.sum()) <= most
        if low == high and abs(low * count % 1 - 0.5) > 1e-3:
            assert int(masked.sum()) == min(max(round(low * count), 1), room)


def test_three_quarters_are_masked_unless_it_is_set() -> None:
    _, mask = simmim().mask(draw_crops(CROP))
    assert mask.flatten(1).sum(dim=1).tolist() == [24] * 4
    _, mask = simmim(mask_ratio=0.5).mask(draw_crops(CROP))
    assert mask.flatten(1).sum(dim=1).tolist() == [16] * 4


def test_a_batch_with_nothing_to_hide_has_a_loss_of_0() -> None:
    model, crops = simmim(), draw_crops(CROP, (3, 3, 3), (16, 2, 16), channels=2)
    loss = model(crops)["reconstruction"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("architecture", ["unet", "unetr"])
def test_other_samples_of_the_batch_have_no_influence(architecture: str) -> None:
    crop, _, _ = SIZES[architecture]
    model, crops = simmim(architecture, 1), draw_crops(crop, crop, tuple(n // 2 for n in crop), crop)
    together, alone = predictions(model, crops), predictions(model, part(crops, 2))
    assert torch.allclose(together[2:], alone, atol=1e-5)
    assert torch.equal(model.mask(crops)[1][2:], model.mask(part(crops, 2))[1])


@pytest.mark.parametrize("depth", [0, 1, 8])
def test_heads_have_the_asked_depth_and_width(depth: int) -> None:
    model = simmim(head_depth=depth, head_width=64)
    assert sum(name.endswith("attn.qkv.weight") for name in model.state_dict()) == depth
    model(draw_crops(CROP, channels=2))["reconstruction"].backward()
    assert all(p.grad is not None for p in model.head.parameters())


@pytest.mark.parametrize("target", ["raw", "normalised"])
def test_measures_and_previews_are_in_intensities(target: str) -> None:
    model, crops = simmim(target=target), draw_crops(CROP, *PADDED, channels=2)
    _, mask = model.mask(crops)
    values = predictions(model, crops).double().numpy()
    shown = model.preview(crops)
    assert torch.equal(shown.hidden, to_voxels(mask, PATCH))
    assert (shown.masked[shown.hidden[:, None].expand_as(crops.image)] == 0).all()
    seen = ~shown.hidden[:, None].expand_as(crops.image)
    assert torch.equal(shown.masked[seen], crops.image[seen])
    ours, floor = [], []
    for b, d, h, w in np.ndindex(*mask.shape):
        for channel in range(2):
            place = (b, channel, *(slice(n * p, (n + 1) * p) for n, p in zip((d, h, w), PATCH)))
            true, wanted = crops.image[place].double().numpy(), values[place]
            if target == "normalised":
                wanted = wanted * np.sqrt(true.var() + 1e-6) + true.mean()
            assert np.allclose(shown.predicted[place], wanted, atol=1e-5)
            if mask[b, d, h, w]:
                ours += ((wanted - true) ** 2).flatten().tolist()
                floor += ((true.mean() - true) ** 2).flatten().tolist()
    assert model.measures(crops) == {
        "hidden_error": pytest.approx(np.mean(ours), rel=1e-4),
        "patch_mean_error": pytest.approx(np.mean(floor), rel=1e-4),
        "error_to_patch_mean": pytest.approx(np.mean(ours) / np.mean(floor), rel=1e-4),
    }
    assert model.training, "measuring does not end the training mode"
