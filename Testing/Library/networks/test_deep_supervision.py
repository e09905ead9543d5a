"""Heads of coarser decoder stages: where they sit, what they teach, and that nothing of them is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from HybridMIMLib.architectures import decoder_stages, settled
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.networks import DeeplySupervised, SegmentationNetwork, make_segmentation_network
from HybridMIMLib.networks.deep_supervision import ALL, stage_weights, supervised_levels
from HybridMIMLib.networks.dropout import dropout_keys
from HybridMIMLib.settings.network import NetworkSettings

KINDS: dict[str, NetworkSettings] = {
    "unet": NetworkSettings(features=[4, 6, 8, 10]),
    "resunet": NetworkSettings(architecture="resunet", features=[4, 6, 8, 10]),
    "swinunetr": NetworkSettings(architecture="swinunetr", window=2),
    "unetr": NetworkSettings(architecture="unetr"),
    "unetr 8": NetworkSettings(architecture="unetr", token=8),
    "segresnet": NetworkSettings(architecture="segresnet"),
}
every = pytest.mark.parametrize("kind", KINDS)
CROP = (64, 32, 32)
THICK = settled(NetworkSettings(features=[4, 6, 8, 10]), (1.0, 1.0, 5.0))


def made(kind: str, levels: int = 0, seed: int = 3) -> SegmentationNetwork:
    return make_segmentation_network(settled(KINDS[kind], (1, 1, 1)), 1, 2, CROP, seed, levels=levels)


def scan() -> Tensor:
    return torch.rand(1, 1, *CROP, generator=torch.Generator().manual_seed(1))


@every
def test_stages_have_the_announced_widths_and_the_last_is_what_decode_returns(kind: str) -> None:
    backbone = made(kind).backbone.eval()
    with torch.no_grad():
        pyramid = backbone.encode(scan())
        stages = list(backbone.decode_stages(pyramid))[::-1]
        assert torch.equal(stages[0], backbone.decode(pyramid))
    assert [stage.shape[1] for stage in stages] == list(backbone.decoder_widths)
    assert len(stages) == decoder_stages(KINDS[kind]) and backbone.decoder_widths[0] == backbone.out_width
    sizes = [stage.shape[2:] for stage in stages]
    assert sizes[0] == CROP and all(c == [n // 2 for n in f] for f, c in zip(sizes, map(list, sizes[1:])))


@every
def test_the_network_is_the_same_with_and_without_its_coarse_heads(kind: str) -> None:
    plain, deep = made(kind).eval(), made(kind, decoder_stages(KINDS[kind]) - 1).eval()
    assert isinstance(deep, DeeplySupervised)
    mine, theirs = plain.monai_state(), deep.monai_state()
    assert list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)
    with torch.no_grad():
        scores = deep.scores_by_stage(scan())
        assert torch.equal(deep(scan()), plain(scan())) and torch.equal(scores[0], plain(scan()))
        assert len(plain.scores_by_stage(scan())) == 1
    assert len(scores) == len(deep.heads()) == decoder_stages(KINDS[kind])
    # What is kept while training holds the heads.
    assert sum(name.startswith("coarse_heads.") for name in deep.state_dict()) == 2 * (len(scores) - 1)


@every
def test_a_coarse_stage_learns_from_its_own_head_and_teaches_no_finer_one(kind: str) -> None:
    levels = decoder_stages(KINDS[kind]) - 1
    deep = made(kind, levels).train()
    assert isinstance(deep, DeeplySupervised)
    reached = []
    for level in range(levels + 1):
        deep.zero_grad()
        with dropout_keys(torch.arange(1)):
            deep.scores_by_stage(scan())[level].square().sum().backward()
        names = {name for name, p in deep.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        heads = {name for name in names if "head" in name and "backbone" not in name}
        own = "head." if level == 0 else f"coarse_heads.{level - 1}."
        assert heads == {f"{own}weight", f"{own}bias"}
        reached.append(names - heads)
    for finer, coarser in zip(reached, reached[1:]):
        assert coarser < finer, "each stage has weights of its own"
    backbone = deep.backbone
    assert all(any(not backbone.is_of_encoder(n.removeprefix("backbone.")) for n in names) for names in reached)


def test_only_the_finest_of_the_coarser_stages_have_a_head_where_fewer_are_asked() -> None:
    network = made("unet", 1).eval()
    with torch.no_grad():
        scores = network.scores_by_stage(scan())
    assert [one.shape[2:] for one in scores] == [CROP, (32, 16, 16)]


def test_thick_slices_keep_their_number_in_the_finer_stages() -> None:
    network = make_segmentation_network(THICK, 1, 2, (32, 32, 8), levels=2).eval()
    with torch.no_grad():
        scores = network.scores_by_stage(torch.rand(1, 1, 32, 32, 8))
    assert [one.shape[2:] for one in scores] == [(32, 32, 8), (16, 16, 8), (8, 8, 8)]


def test_weights_halve_from_stage_to_stage() -> None:
    assert stage_weights(0) == (1.0,)
    assert stage_weights(2) == pytest.approx((4 / 7, 2 / 7, 1 / 7))


@every
def test_all_stages_can_be_asked_for_and_no_more(kind: str) -> None:
    there = decoder_stages(KINDS[kind]) - 1
    assert supervised_levels(0, KINDS[kind]) == 0
    assert supervised_levels(there, KINDS[kind]) == supervised_levels(ALL, KINDS[kind]) == there >= 2
    with pytest.raises(SettingsError, match=rf"has {there} coarser stage") as caught:
        supervised_levels(there + 1, KINDS[kind])
    assert f"from 0 (none) to {there}" in caught.value.cure


def test_a_network_without_coarser_stages_is_told_which_have_them() -> None:
    two = NetworkSettings(features=[4, 8])
    assert supervised_levels(0, two) == 0
    for asked in (ALL, 1):
        with pytest.raises(SettingsError, match="has one stage alone") as caught:
            supervised_levels(asked, two)
        assert all(name in caught.value.cure for name in ("unet", "resunet", "swinunetr", "unetr", "segresnet"))
    with pytest.raises(ValueError, match="1 coarser stages of a decoder of 1"):
        make_segmentation_network(settled(two, (1, 1, 1)), 1, 2, CROP, levels=1)


def test_the_number_of_stages_does_not_hang_on_whether_settings_are_settled() -> None:
    for size in ("tiny", "small", "base"):
        chosen = NetworkSettings(size=size)  # type: ignore[arg-type]
        assert decoder_stages(chosen) == decoder_stages(settled(chosen, (1, 1, 3))) >= 3
