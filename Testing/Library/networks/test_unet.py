"""U-Net: shapes, entry at any stage, and boxes at another place in each sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from HybridMIMLib.config import NetworkSettings
from HybridMIMLib.networks import SegmentationNetwork, UNet, make_backbone, make_segmentation_network
from HybridMIMLib.networks.dropout import SampleDropout, dropout_keys
from HybridMIMLib.networks.interface import Box, Pyramid

FEATURES = [[4, 6], [3, 5, 8], [2, 3, 4, 5], [8, 4, 2]]
BOX = Box(torch.tensor([[0, 8, 4], [4, 0, 0]]), (4, 8, 12))


@pytest.fixture
def network() -> UNet:
    """Three stages (stride 4), no dropout, biases that differ from 0."""
    torch.manual_seed(0)
    unet = UNet(2, [4, 6, 8], dropout=0.0)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    return unet


@pytest.fixture
def scan() -> Tensor:
    """Two samples, two channels, three different sides."""
    return torch.rand(2, 2, 8, 16, 20, generator=torch.Generator().manual_seed(1))


def same(one: Pyramid, other: Pyramid) -> bool:
    """Whether all levels agree."""
    return len(one) == len(other) and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, other))


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("channels", [1, 3])
def test_levels_have_the_announced_widths_and_strides(features: list[int], channels: int) -> None:
    unet = UNet(channels, features).eval()
    assert unet.widths == tuple(features)
    assert unet.strides == tuple((2**level,) * 3 for level in range(len(features)))
    size = (8, 16, 24)
    pyramid = unet.encode(torch.rand(2, channels, *size))
    for level, width, stride in zip(pyramid, unet.widths, unet.strides, strict=True):
        assert level.shape == (2, width, *(n // s for n, s in zip(size, stride)))
    assert unet.decode(pyramid).shape == (2, features[0], *size)


@pytest.mark.parametrize("features", FEATURES)
def test_the_bottleneck_stride_is_that_of_the_settings(features: list[int]) -> None:
    assert UNet(1, features).strides[-1][0] == NetworkSettings(features=features).stride


@pytest.mark.parametrize("features", FEATURES)
def test_entering_at_a_stage_gives_the_same_levels(features: list[int]) -> None:
    unet, x = UNet(1, features, dropout=0.5), torch.rand(2, 1, 16, 16, 16)
    with dropout_keys([1, 2]):
        whole = unet.encode(x)
        for stage in range(1, len(features)):
            assert same(unet.encode_from(stage, whole[stage - 1]), whole[stage:])
        assert same(unet.encode_from(0, x), whole)


def test_running_later_stages_changes_no_earlier_level(network: UNet, scan: Tensor) -> None:
    """Activations work in place; neither the scan nor a level that is used again may change."""
    before = scan.clone()
    pyramid = network.encode(scan)
    levels = [level.detach().clone() for level in pyramid]
    network.encode_from(1, pyramid[0])
    network.decode(pyramid)
    network.decode(pyramid, BOX)
    assert torch.equal(scan, before) and same(pyramid, levels)


def test_dropout_is_in_every_stage() -> None:
    unet, x = UNet(1, [16, 16, 16], dropout=0.5), torch.rand(1, 1, 8, 8, 8)
    for stage in range(3):
        entry = x if stage == 0 else torch.rand(1, 16, 8, 8, 8)
        outputs = []
        for key in (1, 2):
            with dropout_keys([key]):
                outputs.append(unet.encode_from(stage, entry)[0])
        assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)


def test_dropout_layers_have_names_of_their_own() -> None:
    names = [module.name for module in UNet(1, [4, 4, 4]).modules() if isinstance(module, SampleDropout)]
    assert len(set(names)) == len(names) == 6


def test_box_is_cut_by_voxel_at_every_level(scan: Tensor) -> None:
    for step in (1, 2, 4):
        level = scan[:, :, ::step, ::step, ::step]
        cut = BOX.crop(level, (step, step, step))
        d, h, w = (n // step for n in BOX.size)
        assert cut.shape == (2, 2, d, h, w)
        for sample, (a, b, c) in enumerate(BOX.lower.tolist()):
            for i in range(d):
                for j in range(h):
                    for k in range(w):
                        voxel = scan[sample, :, a + i * step, b + j * step, c + k * step]
                        assert torch.equal(cut[sample, :, i, j, k], voxel)


def test_box_with_unequal_strides(scan: Tensor) -> None:
    cut = BOX.crop(scan[:, :, :, ::4, ::2], (1, 4, 2))
    assert torch.equal(cut[1], scan[1, :, 4:8, 0:8:4, 0:12:2])


def test_box_for_another_number_of_samples_is_an_error(scan: Tensor) -> None:
    with pytest.raises(ValueError):
        BOX.crop(scan[:1])
    with pytest.raises(ValueError):
        BOX.crop(torch.cat([scan, scan]))


def test_decoding_a_box_is_decoding_what_is_cut_out(network: UNet, scan: Tensor) -> None:
    pyramid = network.encode(scan)
    result = network.decode(pyramid, BOX)
    assert result.shape == (2, 4, *BOX.size)
    for sample, (a, b, c) in enumerate(BOX.lower.tolist()):
        d, h, w = BOX.size
        cut = [
            level[sample : sample + 1, :, a // s : (a + d) // s, b // s : (b + h) // s, c // s : (c + w) // s]
            for level, s in zip(pyramid, (1, 2, 4))
        ]
        assert torch.allclose(result[sample : sample + 1], network.decode(cut), atol=1e-5)


def test_box_of_the_whole_scan_is_no_box(network: UNet, scan: Tensor) -> None:
    pyramid = network.encode(scan)
    box = Box(torch.zeros(2, 3, dtype=torch.long), (8, 16, 20))
    assert torch.allclose(network.decode(pyramid, box), network.decode(pyramid), atol=1e-5)


def test_outside_of_the_box_nothing_is_seen(network: UNet, scan: Tensor) -> None:
    pyramid = [level.detach().requires_grad_() for level in network.encode(scan)]
    (network.decode(pyramid, BOX) ** 2).sum().backward()
    for level, stride in zip(pyramid, network.strides):
        assert level.grad is not None
        assert all(part.abs().sum() > 0 for part in BOX.crop(level.grad, stride))
        inside = torch.zeros_like(level)
        for sample, lower in enumerate(BOX.lower.tolist()):
            d, h, w = (slice(a // s, (a + n) // s) for a, n, s in zip(lower, BOX.size, stride))
            inside[sample, :, d, h, w] = 1
        assert float((level.grad * (1 - inside)).abs().max()) == 0


def test_the_smallest_box_is_one_voxel_of_the_bottleneck(network: UNet, scan: Tensor) -> None:
    result = network.decode(network.encode(scan), Box(torch.tensor([[4, 12, 16], [0, 0, 0]]), (4, 4, 4)))
    assert result.shape == (2, 4, 4, 4, 4) and bool(result.isfinite().all())


def test_samples_do_not_mix(network: UNet, scan: Tensor) -> None:
    together = network.decode(network.encode(scan), BOX)
    for sample in range(2):
        box = Box(BOX.lower[sample : sample + 1], BOX.size)
        alone = network.decode(network.encode(scan[sample : sample + 1]), box)
        assert torch.allclose(alone[0], together[sample], atol=1e-4)


def test_the_memory_layout_does_not_matter(network: UNet, scan: Tensor) -> None:
    expected = network.decode(network.encode(scan), BOX)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    result = network.decode(network.encode(scan.contiguous(memory_format=torch.channels_last_3d)), BOX)
    assert torch.allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_scan_of_one_value_gives_finite_numbers(value: float) -> None:
    torch.manual_seed(0)
    unet = UNet(1, [4, 6, 8, 10], dropout=0.0)
    result = unet.decode(unet.encode(torch.full((1, 1, 16, 16, 16), value)))
    (result - 1).pow(2).mean().backward()
    gradients = [parameter.grad for parameter in unet.parameters()]
    assert result.isfinite().all() and all(g is not None and g.isfinite().all() for g in gradients)
    assert max(float(g.norm()) for g in gradients if g is not None) < 1e3


def test_every_weight_is_trained(scan: Tensor) -> None:
    unet = SegmentationNetwork(UNet(2, [4, 6, 8]), 3)
    with dropout_keys([1, 2]):
        scores = unet(scan)
    assert scores.shape == (2, 3, 8, 16, 20)
    scores.square().mean().backward()
    assert [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_initial_weights_follow_from_the_seed_alone() -> None:
    settings = NetworkSettings(features=[4, 8])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = make_segmentation_network(settings, 1, 2, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again, other = (make_segmentation_network(settings, 1, 2, seed=seed) for seed in (3, 4))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(one.head.weight, other.head.weight)
    assert not torch.equal(next(one.backbone.parameters()), next(other.backbone.parameters()))


def test_the_backbone_does_not_depend_on_the_classes() -> None:
    settings = NetworkSettings(features=[4, 8], dropout=0.3)
    backbone = make_backbone(settings, 2, seed=5)
    for classes in (1, 4):
        network = make_segmentation_network(settings, 2, classes, seed=5)
        assert network.head.out_channels == classes + 1
        for name, tensor in backbone.state_dict().items():
            assert torch.equal(tensor, network.backbone.state_dict()[name])


def test_settings_reach_the_network() -> None:
    backbone = make_backbone(NetworkSettings(features=[4, 8, 16], dropout=0.3), 2)
    assert backbone.widths == (4, 8, 16)
    shares = [module.share for module in backbone.modules() if isinstance(module, SampleDropout)]
    assert sorted(shares) == [0.0, 0.0, 0.0, 0.3, 0.3, 0.3]
