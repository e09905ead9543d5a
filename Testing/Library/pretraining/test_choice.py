"""Which objective the settings make: each one on each network learns, and what cannot work is refused with a cure."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from small_objectives import SIZES, draw_crops, numbers_in, plan, settings, small_objective
from torch._subclasses import FakeTensorMode

from HybridMIMLib.architectures import U_NETS
from HybridMIMLib.errors import DataError, SettingsError
from HybridMIMLib.networks import make_backbone
from HybridMIMLib.pretraining.choice import box_size, make_objective, queue_length
from HybridMIMLib.pretraining.contrast import QUEUE
from HybridMIMLib.pretraining.crops import Crops
from HybridMIMLib.pretraining.hybridmim import MaskedCrops
from HybridMIMLib.pretraining.mae import MAE
from HybridMIMLib.pretraining.masking import PatchGrid, Triple
from HybridMIMLib.pretraining.objective import Objective
from HybridMIMLib.pretraining.simclr import SimCLR
from HybridMIMLib.settings.pretraining import PretrainingSettings

ALL = [(a, o) for a in SIZES for o in ("hybridmim", "simmim", "mae", "simclr") if o != "mae" or a == "unetr"]


def batch(architecture: str) -> Crops:
    """A whole crop and a padded one, with something in them to see."""
    crop = SIZES[architecture][0]
    crops = draw_crops(crop, crop, tuple(n - 1 for n in crop))
    bright = torch.linspace(0, 1, crop[0])[:, None, None] * torch.tensor([0.9, 0.5])[:, None, None, None, None]
    return replace(crops, image=(crops.image > 0) * (0.1 * crops.image + bright))


def train(objective: Objective, crops: Crops, steps: int, rate: float = 1e-3) -> list[float]:
    """The sum of the losses before each step."""
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=rate)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.stack(list(objective(crops).values())).sum()
        loss.backward()
        found.append(loss.item())
        optimizer.step()
    return found


@pytest.mark.parametrize("architecture, name", ALL)
def test_every_objective_learns_on_every_network(architecture: str, name: str) -> None:
    objective, crops = small_objective(architecture, name, contrast_queue=0), batch(architecture)
    before = {key: tensor.clone() for key, tensor in objective.backbone.named_parameters()}
    rate = 5e-3 if architecture in U_NETS else 1e-3
    # The decoder of a SwinUNETR is slow.
    losses = train(objective, crops, 3 if (architecture, name) == ("swinunetr", "hybridmim") else 10, rate)
    assert losses[-1] < 0.9 * losses[0]
    for key, parameter in objective.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    for key, parameter in objective.backbone.named_parameters():
        of_encoder = objective.backbone.is_of_encoder(key)
        if of_encoder and parameter.requires_grad:
            assert not torch.equal(parameter, before[key]), key
        if not of_encoder:
            assert parameter.requires_grad == objective.trains_decoder, key
            assert objective.trains_decoder or torch.equal(parameter, before[key]), key
    assert objective.trains_decoder == (name == "hybridmim")


@pytest.mark.parametrize(
    "architecture, name", [("unet", "hybridmim"), ("unetr", "mae"), *((a, "simmim") for a in SIZES)]
)
def test_a_step_does_not_look_at_the_device(architecture: str, name: str) -> None:
    objective, crops = small_objective(architecture, name, mask_ratio=[0.3, 0.7]), batch(architecture)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        seen = Crops(*(fake.from_tensor(getattr(crops, part)) for part in ("image", "sizes", "keys", "patients")))
        torch.stack(list(objective(seen).values())).sum().backward()


@pytest.mark.parametrize("architecture, name", [pair for pair in ALL if pair[0] != "swinunetr"])
def test_a_step_in_half_precision_is_close_to_one_in_full(architecture: str, name: str) -> None:
    objective, crops = small_objective(architecture, name, mask_ratio=[0.3, 0.7]), batch(architecture)
    full = {key: loss.item() for key, loss in objective(crops).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = objective(crops)
    torch.stack(list(half.values())).sum().backward()
    assert {key: loss.item() for key, loss in half.items()} == pytest.approx(full, rel=0.1, abs=0.02)


@pytest.mark.parametrize("architecture", SIZES)
def test_the_encoder_of_an_objective_works_in_a_network_of_its_own(architecture: str) -> None:
    """With what was left out of pre-training free to learn again."""
    run, sizes = settings(architecture, "simmim"), plan(architecture)
    objective = make_objective(run, sizes, 4)
    train(objective, batch(architecture), 1)
    fresh = make_backbone(run.network, sizes.channels, sizes.crop, seed=5).eval()
    fresh.load_state_dict(objective.backbone.state_dict())
    features = fresh.decode(fresh.encode(batch(architecture).image))
    assert features.shape == (2, fresh.out_width, *sizes.crop)
    trainable = {key for key, parameter in fresh.named_parameters() if parameter.requires_grad}
    assert any(not fresh.is_of_encoder(key) for key in trainable)


def test_weights_follow_from_the_seed() -> None:
    run, sizes = settings("unetr", "mae"), plan("unetr")
    torch.manual_seed(1)
    one = make_objective(run, sizes, 4).state_dict()
    torch.manual_seed(2)
    same, other = (make_objective(replace(run, seed=seed), sizes, 4).state_dict() for seed in (0, 3))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["narrow.weight"], other["narrow.weight"])
    assert not torch.equal(one["hidden_token"], other["hidden_token"])


def test_hybridmim_without_a_reconstruction_leaves_the_decoder_alone() -> None:
    objective = small_objective("unet", "hybridmim", partial_weight=0.0)
    assert not objective.trains_decoder
    assert {
        objective.backbone.is_of_encoder(k) for k, p in objective.backbone.named_parameters() if p.requires_grad
    } == {True}


def test_settings_that_an_objective_has_no_use_for_may_be_anything() -> None:
    ignored: dict[str, Any] = {"box": [7, 7, 7], "contrast_weight": 0.1, "network": {"dropout": 0.0}, "batch": 1}
    small_objective("unet", "simmim", **ignored, contrast_queue=0)
    small_objective("unet", "simclr", **{**ignored, "batch": 2}, mask_ratio=1.0)
    small_objective("unet", "hybridmim", head_depth=0, box=[7, 7, 7], partial_weight=0.0)
    small_objective("unet", "none", **ignored, contrast_queue=0)
    run = settings("unet", "simmim")
    make_objective(run, plan("unet"), patients=1)


# --- what cannot work -----------------------------------------------------------


def refused(architecture: str, name: str, **chosen: Any) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        small_objective(architecture, name, **chosen)
    return caught.value


def test_a_contrast_by_dropout_needs_dropout() -> None:
    error = refused("unet", "hybridmim", network={"dropout": 0.0})
    assert "network.dropout" in error.message and "contrast_weight to 0" in error.cure
    small_objective("unet", "hybridmim", network={"dropout": 0.0}, contrast_weight=0.0)


@pytest.mark.parametrize("architecture", ["unet", "resunet", "segresnet", "swinunetr"])
def test_mae_needs_a_vit(architecture: str) -> None:
    error = refused(architecture, "mae")
    assert architecture in error.message
    assert "network.architecture to unetr" in error.cure and "pretraining.objective to simmim" in error.cure
    small_objective("unetr", "mae")
    small_objective(architecture, "simmim")


def test_mae_needs_a_block_in_its_decoder() -> None:
    error = refused("unetr", "mae", head_depth=0)
    assert "pretraining.head_depth" in error.message and "from 1 to 8" in error.cure
    small_objective("unetr", "mae", head_depth=1)
    small_objective("unetr", "simmim", head_depth=0)


@pytest.mark.parametrize("name", ["simmim", "mae"])
@pytest.mark.parametrize("token", [8, 16])
@pytest.mark.parametrize("patch", [(4, 4, 4), (16, 8, 12), (12, 24, 48), (2, 1, 3)])
def test_patches_of_part_of_a_token_are_refused(patch: Triple, token: int, name: str) -> None:
    run, region = settings("unetr", name, {"token": token}), (48, 48, 48)
    sizes = replace(plan("unetr", patch=patch, region=region), crop=(48, 48, 96))
    with pytest.raises(SettingsError, match=re.escape(f"plan.patch {list(patch)}")) as caught:
        make_objective(run, sizes, 4)
    _, *nearest = numbers_in(caught.value.cure)
    assert nearest
    for found in nearest:
        make_objective(run, replace(sizes, patch=(found[0], found[1], found[2])), 4)
    for axis, wanted in enumerate(patch):
        fitting = [n for n in range(token, 49, token) if 48 % n == 0]
        distance = min(abs(n - wanted) for n in fitting)
        assert min(abs(found[axis] - wanted) for found in nearest) == distance


def test_patches_of_part_of_a_token_are_hidden_where_voxels_are_set_to_0() -> None:
    small_objective("unetr", "hybridmim", patch=(4, 4, 4))


def test_swin_has_tokens_too() -> None:
    run, sizes = settings("swinunetr", "simmim"), plan("swinunetr", patch=(1, 2, 4))
    with pytest.raises(SettingsError, match="2 voxels along a token of swinunetr"):
        make_objective(run, sizes, 4)
    make_objective(run, replace(sizes, patch=(2, 2, 4)), 4)


@pytest.mark.parametrize("ratio", [1.0, [0.2, 1.0]])
@pytest.mark.parametrize(
    "architecture, name", [("unetr", "mae"), ("unetr", "simmim"), ("unet", "simmim"), ("unet", "hybridmim")]
)
def test_something_must_be_left_to_see(architecture: str, name: str, ratio: float | list[float]) -> None:
    error = refused(architecture, name, mask_ratio=ratio)
    assert f"{ratio} hides all" in error.message
    found = re.search(r"Choose ([\d.]+) at most", error.cure)
    assert found
    for fine in (float(found[1]), 0.999):
        objective = small_objective(architecture, name, mask_ratio=fine)
        drawn = objective.mask(draw_crops(SIZES[architecture][0]))  # type: ignore[operator]
        mask = drawn.mask if isinstance(drawn, MaskedCrops) else drawn[1]
        assert (mask.flatten(1).sum(dim=1) == mask[0].numel() - 1).all()


def test_a_few_patches_leave_one_to_see() -> None:
    run, sizes = settings("unet", "simmim"), replace(plan("unet"), crop=(8, 8, 16), patch=(8, 8, 8))
    _, mask = make_objective(run, sizes, 4).mask(draw_crops((8, 8, 16)))  # type: ignore[operator]
    assert (mask.flatten(1).sum(dim=1) == 1).all()


def test_a_crop_of_one_patch_cannot_be_masked() -> None:
    run, sizes = settings("unet", "simmim"), replace(plan("unet"), crop=(8, 8, 8), patch=(8, 8, 8))
    with pytest.raises(SettingsError, match="a single patch") as caught:
        make_objective(run, sizes, 4)
    assert "larger plan.crop" in caught.value.cure
    make_objective(run, replace(sizes, patch=(8, 4, 4)), 4)


@pytest.mark.parametrize("name, cure", [("hybridmim", "contrast_weight to 0"), ("simclr", "another objective")])
def test_one_patient_cannot_be_contrasted(name: str, cure: str) -> None:
    run = replace(settings("unet", name), unlabelled="folder of scans")
    with pytest.raises(DataError, match="folder of scans: holds usable scans of one patient") as caught:
        make_objective(run, plan("unet"), patients=1)
    assert cure in caught.value.cure
    make_objective(run, plan("unet"), patients=2)


@pytest.mark.parametrize("name", ["hybridmim", "simclr"])
def test_one_crop_a_step_needs_a_queue(name: str) -> None:
    error = refused("unet", name, batch=1, contrast_queue=0)
    assert "nothing to contrast with" in error.message
    small_objective("unet", name, batch=4, contrast_queue=0)
    small_objective("unet", name, batch=1, contrast_queue=-1)


@pytest.mark.parametrize(
    "crops, patients, asked, length",
    [
        (4, 4, -1, 0),
        (8, 5, -1, 0),
        (3, 9, -1, QUEUE),
        (9, 3, -1, QUEUE),
        (1, 2, -1, QUEUE),
        (8, 9, 17, 17),
        (2, 2, 0, 0),
    ],
)
def test_crops_are_kept_where_a_batch_has_few_patients(crops: int, patients: int, asked: int, length: int) -> None:
    run = settings("unet", "simclr", batch=crops, contrast_queue=asked)
    assert queue_length(run, patients) == length
    objective = make_objective(run, plan("unet"), patients)
    assert isinstance(objective, SimCLR)
    assert (0 if objective.queue is None else len(objective.queue.patients)) == length


# --- the box --------------------------------------------------------------------


@st.composite
def boxes(draw: st.DrawFn) -> tuple[PatchGrid, list[int], list[int]]:
    """A grid, a stride, and a box that may not fit."""
    stride = [draw(st.sampled_from([1, 2, 4, 8, 16, 32])) for _ in range(3)]
    crop = [step * draw(st.integers(1, 6)) for step in stride]
    assume(crop != stride)
    whole = (crop[0], crop[1], crop[2])
    box = [draw(st.one_of(st.integers(1, 2 * c), st.sampled_from([s, c]))) for c, s in zip(crop, stride)]
    return PatchGrid(whole, whole, whole), stride, box


def fits(grid: PatchGrid, stride: list[int], box: tuple[int, ...]) -> bool:
    within = all(s <= b <= c and b % s == 0 for b, c, s in zip(box, grid.crop, stride))
    return within and list(box) != stride


@given(given_box=boxes())
@hypothesis_settings(deadline=None, max_examples=100)
def test_a_box_fits_or_is_refused_with_one_that_does(given_box: tuple[PatchGrid, list[int], list[int]]) -> None:
    grid, stride, box = given_box
    if fits(grid, stride, tuple(box)):
        assert box_size(grid, PretrainingSettings(box=box), stride) == tuple(box)
        return
    with pytest.raises(SettingsError, match="pretraining.box") as caught:
        box_size(grid, PretrainingSettings(box=box), stride)
    (nearest,) = numbers_in(caught.value.cure)
    assert fits(grid, stride, tuple(nearest))
    assert box_size(grid, PretrainingSettings(box=nearest), stride) == tuple(nearest)
    if nearest != [2 * s for s in stride] and all(b != s for b, s in zip(nearest, stride)):
        assert all(abs(n - min(b, c)) <= s / 2 or n == s for n, b, c, s in zip(nearest, box, grid.crop, stride))


@given(given_box=boxes())
@hypothesis_settings(deadline=None, max_examples=60)
def test_the_usual_box_always_fits(given_box: tuple[PatchGrid, list[int], list[int]]) -> None:
    grid, stride, _ = given_box
    assert fits(grid, stride, box_size(grid, PretrainingSettings(), stride))


def test_the_usual_box_is_the_published_one() -> None:
    grid = PatchGrid((96, 96, 96), (16, 16, 16), (32, 32, 32))
    for stride in (8, 16, 32):
        assert box_size(grid, PretrainingSettings(), [stride] * 3) == (64, 64, 64)


def test_a_box_without_reconstruction_plays_no_part() -> None:
    grid = PatchGrid((16, 16, 16), (8, 8, 8), (8, 8, 8))
    assert box_size(grid, PretrainingSettings(box=[99, 1, 1], partial_weight=0.0), [4, 4, 4]) == (12, 12, 12)


def test_tokens_of_16_voxels_work_as_well() -> None:
    """Those of the papers, at their sizes along one axis."""
    run = settings("unetr", "mae", {"token": 16}, head_depth=None)
    objective = make_objective(
        run, replace(plan("unetr"), crop=(96, 16, 32), patch=(16, 16, 16), region=(32, 16, 16)), 4
    )
    assert isinstance(objective, MAE) and objective.places == 3
    crops = draw_crops((96, 16, 32), (96, 16, 32), (60, 16, 32))
    assert objective(crops)["reconstruction"].item() > 0
