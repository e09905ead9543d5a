"""SwinUNETR: its levels against those of MONAI's class, and hidden tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.networks import nets
from torch import Tensor

from HybridMIMLib.architectures import SWIN, SwinSize
from HybridMIMLib.networks import SegmentationNetwork, SwinUNETR

SIZE = SwinSize(12, (2, 1, 1, 1), (1, 2, 4, 4))
CROP = (64, 32, 32)


@pytest.fixture(scope="module")
def network() -> SwinUNETR:
    """Two channels, no dropout."""
    torch.manual_seed(0)
    return SwinUNETR(2, SIZE, 4, 0.0).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def scan() -> Tensor:
    return torch.rand(1, 2, *CROP, generator=torch.Generator().manual_seed(1))


def normalised(level: Tensor) -> Tensor:
    """Each voxel's channels at mean 0 and spread 1."""
    return (level - level.mean(1, keepdim=True)) / (level.var(1, correction=0, keepdim=True) + 1e-5).sqrt()


def test_levels_are_monais_before_its_norm_and_the_last_after(network: SwinUNETR, scan: Tensor) -> None:
    first, *levels, last = network.encode(scan)
    *hidden, bottleneck = network.swinViT(scan, True)
    assert torch.equal(first, scan) and torch.equal(last, bottleneck)
    for level, raw, expected in zip(levels, network.swinViT(scan, False), hidden, strict=False):
        assert torch.equal(level, raw)
        assert torch.allclose(normalised(level), expected, atol=1e-4)


def test_tokens_hidden_to_the_last_voxel_take_the_fill(network: SwinUNETR, scan: Tensor) -> None:
    hidden = torch.zeros(1, *CROP, dtype=torch.bool)
    hidden[0, :4, :2, :6] = True
    hidden[0, 10, 10, 10] = True
    fill = torch.arange(12.0)
    seen, tokens, *_ = network.encode_hidden(scan, hidden, fill)
    assert torch.equal(seen, scan * ~hidden[:, None])
    expected = F.conv3d(seen, network.get_parameter("swinViT.patch_embed.proj.weight"), stride=2)
    expected += network.get_parameter("swinViT.patch_embed.proj.bias")[:, None, None, None]
    expected[0, :, :2, :1, :3] = fill[:, None, None, None]
    assert torch.allclose(tokens, expected, atol=1e-5)


def test_the_published_size() -> None:
    """48 features and 62.2 M parameters, as MONAI's own class has."""
    with torch.random.fork_rng():
        whole = SegmentationNetwork(SwinUNETR(1, SWIN["base"]), 2)
    assert whole.backbone.widths == (1, 48, 96, 192, 384, 768)
    monai = nets.SwinUNETR(1, 2, feature_size=48)
    shapes = {name: tensor.shape for name, tensor in monai.state_dict().items()}
    assert {name: tensor.shape for name, tensor in whole.monai_state().items()} == shapes
    assert 62e6 < sum(weight.numel() for weight in whole.parameters()) < 62.5e6
