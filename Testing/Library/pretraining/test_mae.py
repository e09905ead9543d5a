"""MAE: the ViT computes visible tokens alone, and that gives what picking them by hand gives."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from small_objectives import SIZES, Triple, draw_crops, part, small_objective
from torch import Tensor

from HybridMIMLib.networks.dropout import dropout_keys
from HybridMIMLib.pretraining.crops import Crops
from HybridMIMLib.pretraining.mae import (
    MAE,
    masked_count,
    tokens_of_patches,
    visible_patches,
    visible_places,
)
from HybridMIMLib.pretraining.masking import PatchGrid, draw_patches, to_voxels, whole_patches
from HybridMIMLib.pretraining.objective import mode
from HybridMIMLib.settings.pretraining import PretrainingSettings

CROP = SIZES["unetr"][0]
TOKEN = 8
LARGE_PATCH = (16, 8, 8)
"""Of two tokens."""
PADDED = (CROP, (32, 8, 20), (16, 16, 24), (7, 7, 7))
SHARES = st.one_of(st.floats(0.02, 0.98), st.lists(st.floats(0.02, 0.98), min_size=2, max_size=2).map(sorted))


def mae(channels: int = 2, **chosen: Any) -> MAE:
    found = small_objective("unetr", "mae", channels, **chosen)
    assert isinstance(found, MAE)
    return found


def predictions(model: MAE, crops: Crops, image: Tensor | None = None) -> Tensor:
    whole, mask = model.mask(crops)
    with torch.no_grad(), mode(model, training=False):
        return model.predict(crops.image if image is None else image, whole, mask)


def tokens_by_hand(shown: Tensor) -> list[int]:
    """Numbers of the tokens of which a voxel (D, H, W) is shown."""
    found = []
    for number, (i, j, k) in enumerate(np.ndindex(*(n // TOKEN for n in shown.shape))):
        block = shown[i * TOKEN : (i + 1) * TOKEN, j * TOKEN : (j + 1) * TOKEN, k * TOKEN : (k + 1) * TOKEN]
        if block.any():
            found.append(number)
    return found


def shown_by_hand(whole: Tensor, mask: Tensor, places: int) -> Tensor:
    """Which patches (D', H', W') the ViT sees: whole ones that are not masked, then padding from the near end on."""
    shown = whole & ~mask
    for place in np.ndindex(*whole.shape):
        if not whole[place] and int(shown.sum()) < places:
            shown[place] = True
    return shown


def predicted_by_hand(model: MAE, crops: Crops) -> Tensor:
    """Sample by sample: embed all tokens, pick the visible ones, attend, put them back, decode."""
    whole, mask = model.mask(crops)
    rows = []
    for sample in range(len(crops.image)):
        shown = shown_by_hand(whole[sample], mask[sample], model.places)
        visible = tokens_by_hand(to_voxels(shown[None], model.grid.patch)[0])
        tokens = model.backbone.embed(crops.image[sample : sample + 1])
        seen = model.narrow(model.backbone.attend(tokens[:, visible]))
        everywhere = model.hidden_token.repeat(1, tokens.shape[1], 1)
        for place, number in enumerate(visible):
            everywhere[0, number] = seen[0, place]
        values = model.voxels(model.blocks(everywhere))[0]
        scan = torch.empty(crops.image[sample].shape)
        for number, (i, j, k) in enumerate(np.ndindex(*(n // TOKEN for n in CROP))):
            block = values[number].reshape(-1, TOKEN, TOKEN, TOKEN)
            at = [slice(n * TOKEN, (n + 1) * TOKEN) for n in (i, j, k)]
            scan[(slice(None), *at)] = block
        rows.append(scan)
    return torch.stack(rows)


@pytest.mark.parametrize("patch", [(8, 8, 8), LARGE_PATCH])
@pytest.mark.parametrize("ratio", [None, 0.3, [0.3, 0.9]])
def test_it_is_the_vit_on_a_list_of_visible_tokens(patch: Triple, ratio: float | list[float] | None) -> None:
    model, crops = mae(patch=patch, mask_ratio=ratio), draw_crops(CROP, *PADDED, channels=2)
    with torch.no_grad(), mode(model, training=False):
        wanted = predicted_by_hand(model, crops)
    assert torch.allclose(predictions(model, crops), wanted, atol=1e-5)


@pytest.mark.parametrize("patch", [(8, 8, 8), LARGE_PATCH])
def test_the_vit_computes_as_many_tokens_as_are_visible(patch: Triple, monkeypatch: pytest.MonkeyPatch) -> None:
    model, crops = mae(patch=patch, mask_ratio=0.75), draw_crops(CROP, *PADDED, channels=2)
    lengths: list[int] = []
    for block in model.backbone.vit.get_submodule("blocks").children():
        block.register_forward_hook(lambda _, inputs, result: lengths.extend([inputs[0].shape[1], result.shape[1]]))
    monkeypatch.setattr(model.backbone, "_embedded", None)
    model(crops)
    assert lengths == [24 // 4] * 24


@pytest.mark.parametrize("ratio", [0.6, [0.4, 0.8]])
@pytest.mark.parametrize("patch", [(8, 8, 8), LARGE_PATCH])
def test_what_is_hidden_has_no_influence(patch: Triple, ratio: float | list[float]) -> None:
    model, crops = mae(patch=patch, mask_ratio=ratio), draw_crops(CROP, *PADDED, channels=2)
    hidden = to_voxels(model.mask(crops)[1], patch)[:, None]
    noise, before = torch.rand_like(crops.image), predictions(model, crops)
    assert torch.equal(before, predictions(model, crops, torch.where(hidden, noise, crops.image)))
    assert not torch.equal(before, predictions(model, crops, torch.where(hidden, crops.image, noise)))


def test_the_target_outside_of_the_mask_changes_no_loss() -> None:
    model, crops = mae(), draw_crops(CROP, *PADDED, channels=2)
    predicted, (_, mask) = predictions(model, crops), model.mask(crops)
    hidden = to_voxels(mask, model.grid.patch)[:, None]
    noise = torch.rand_like(crops.image)
    loss = model.error_of(predicted, crops.image, mask)
    assert torch.equal(loss, model.error_of(predicted, torch.where(hidden, crops.image, noise), mask))
    wanted = (predicted - crops.image).abs()[hidden.expand_as(predicted)].mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("ratio", [0.75, [0.4, 0.8]])
def test_other_samples_of_the_batch_have_no_influence(ratio: float | list[float]) -> None:
    model, crops = mae(mask_ratio=ratio), draw_crops(CROP, *PADDED, channels=2)
    together = predictions(model, crops)
    for sample in range(len(PADDED)):
        assert torch.allclose(together[sample], predictions(model, part(crops, sample))[0], atol=1e-5)


@given(share=SHARES, patches=st.integers(1, 2000), keys=st.lists(st.integers(0, 2**60), min_size=1, max_size=5))
@hypothesis_settings(deadline=None, max_examples=100)
def test_the_host_counts_masked_patches_as_the_device_does(
    share: float | list[float], patches: int, keys: list[int]
) -> None:
    whole = torch.ones(len(keys), patches, 1, 1, dtype=torch.bool)
    masked = draw_patches(torch.tensor(keys), whole, share).flatten(1).sum(dim=1)
    low, high = share if isinstance(share, list) else (share, share)
    assert masked_count(low, patches) <= int(masked.min()) and int(masked.max()) <= masked_count(high, patches)


def test_host_and_device_round_halves_alike() -> None:
    """Plain shares of which a half is left over, and which Python's numbers and the device's round differently."""
    for patches in range(25, 512, 25):
        whole = torch.ones(1, patches, 1, 1, dtype=torch.bool)
        for percent in (7, 14, 18, 50):
            masked = draw_patches(torch.tensor([1]), whole, percent / 100)
            assert int(masked.sum()) == masked_count(percent / 100, patches)


@given(
    share=SHARES,
    sizes=st.lists(st.tuples(st.integers(1, 24), st.integers(1, 8), st.integers(1, 12)), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
)
@hypothesis_settings(deadline=None, max_examples=60)
def test_every_visible_patch_has_a_place_and_no_masked_one(
    share: float | list[float], sizes: list[Triple], seed: int
) -> None:
    grid = PatchGrid((24, 8, 12), (4, 4, 4), (8, 4, 4))
    whole = whole_patches(torch.tensor(sizes), grid)
    mask = draw_patches(seed + torch.arange(len(sizes)), whole, share)
    places = visible_places(grid, PretrainingSettings(mask_ratio=share))
    patches, used = visible_patches(whole, mask, places)
    assert patches.shape == used.shape == (len(sizes), places)
    for sample in range(len(sizes)):
        taken = patches[sample].tolist()
        computed = {n for n, use in zip(taken, used[sample].tolist()) if use}
        flat_mask, flat_whole = mask[sample].flatten().tolist(), whole[sample].flatten().tolist()
        assert len(set(taken)) == places
        assert computed >= {n for n, hidden in enumerate(flat_mask) if flat_whole[n] and not hidden}
        assert not any(flat_mask[n] for n in computed)
        assert len(computed) == min(places, flat_mask.count(False))
    if not isinstance(share, list):
        assert used.all()


@given(share=st.floats(0.01, 0.99), whole=st.lists(st.booleans(), min_size=1, max_size=300))
@hypothesis_settings(deadline=None, max_examples=80)
def test_any_share_fills_all_places_whatever_is_padding(share: float, whole: list[bool]) -> None:
    grid = PatchGrid((len(whole), 1, 1), (1, 1, 1), (1, 1, 1))
    which = torch.tensor(whole).reshape(1, -1, 1, 1)
    mask = draw_patches(torch.tensor([5]), which, share)
    places = visible_places(grid, PretrainingSettings(mask_ratio=share))
    patches, used = visible_patches(which, mask, places)
    assert used.all() and not mask.flatten()[patches].any()
    assert int((which & ~mask).sum()) <= places


@pytest.mark.parametrize("patch", [(8, 8, 8), (16, 8, 8), (16, 16, 8), (32, 16, 24)])
def test_tokens_of_patches_lie_in_them(patch: Triple) -> None:
    grid = PatchGrid(CROP, patch, patch)
    table = tokens_of_patches(grid, TOKEN)
    patch_of = torch.arange(prod(grid.patches)).reshape(1, *grid.patches)
    by_voxel = to_voxels(patch_of, patch)[0]
    for number, (i, j, k) in enumerate(np.ndindex(*(n // TOKEN for n in CROP))):
        owner = int(by_voxel[i * TOKEN, j * TOKEN, k * TOKEN])
        assert number in table[owner].tolist()
    assert sorted(table.flatten().tolist()) == list(range(prod(CROP) // TOKEN**3))


@pytest.mark.parametrize("depth", range(1, 9))
def test_decoders_of_every_depth_teach_the_whole_vit(depth: int) -> None:
    model = mae(head_depth=depth, head_width=64 if depth == 2 else 32)
    assert len(model.blocks.blocks) == depth and model.narrow.out_features == (64 if depth == 2 else 32)
    model(draw_crops(CROP, *PADDED, channels=2))["reconstruction"].backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert model.backbone.vit.get_parameter("norm.weight").requires_grad


def test_a_decoder_is_four_blocks_of_192_unless_it_is_set() -> None:
    model = mae(head_width=PretrainingSettings().head_width)
    assert len(model.blocks.blocks) == 4 and model.narrow.out_features == 192


def test_padding_is_not_reconstructed() -> None:
    model, crops = mae(), draw_crops(CROP, *PADDED, channels=2)
    target = crops.image.clone().requires_grad_()
    _, mask = model.mask(crops)
    model.error_of(predictions(model, crops), target, mask).backward()
    assert target.grad is not None
    for sample, (d, h, w) in enumerate(PADDED):
        counted = target.grad[sample].abs().sum(dim=0) > 0
        assert not counted[d:].any() and not counted[:, h:].any() and not counted[:, :, w:].any()
        assert int(counted.sum()) == TOKEN**3 * int(mask[sample].sum())
    assert mask.flatten(1).sum(dim=1).tolist() == [18, 6, 9, 0]


def test_dropout_follows_from_the_keys() -> None:
    model, crops = mae(network={"dropout": 0.5}), draw_crops(CROP, channels=2)
    once, again = model(crops)["reconstruction"], model(crops)["reconstruction"]
    assert torch.equal(once, again)
    whole, mask = model.mask(crops)
    with torch.no_grad(), dropout_keys(crops.keys + 1):
        other = model.error_of(model.predict(crops.image, whole, mask), crops.image, mask)
    assert not torch.equal(once, other)
