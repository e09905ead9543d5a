"""SegResNet: its levels against those of MONAI's class, dropout after the first convolution, hidden voxels."""

from __future__ import annotations

import pytest
import torch
from monai.networks import nets

from HybridMIMLib.architectures import SEGRESNET, SegResNetSize
from HybridMIMLib.networks import SegmentationNetwork, SegResNet
from HybridMIMLib.networks.dropout import dropout_keys

SIZE = SegResNetSize(8, (1, 2, 1, 1))


def scan(channels: int = 1) -> torch.Tensor:
    return torch.rand(2, channels, 16, 8, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels", [1, 3])
def test_levels_and_features_are_monais(channels: int) -> None:
    torch.manual_seed(0)
    backbone = SegResNet(channels, SIZE, 0.0)
    monai = nets.SegResNet(3, 8, channels, 2, blocks_down=SIZE.blocks, use_conv_final=False)
    monai.load_state_dict(backbone.state_dict(), strict=False)
    x = scan(channels)
    with torch.no_grad():
        bottleneck, levels = monai.encode(x)
        pyramid = backbone.encode(x)
        assert len(pyramid) == 4 and all(torch.equal(a, b) for a, b in zip(pyramid, levels))
        features = backbone.conv_final(monai.decode(bottleneck, levels[::-1]))
        assert torch.equal(backbone.decode(pyramid), features) and torch.equal(backbone(x), features)


def test_the_first_stage_drops_what_the_first_convolution_gives() -> None:
    backbone = SegResNet(1, SIZE, 0.5)
    entries: list[torch.Tensor] = []
    backbone.convInit.register_forward_pre_hook(lambda _, inputs: entries.append(inputs[0]))
    backbone.down_layers[0].register_forward_pre_hook(lambda _, inputs: entries.append(inputs[0]))
    x = scan()
    with dropout_keys(torch.tensor([1, 2])):
        backbone.encode(x)
    first, second = entries
    assert torch.equal(first, x)
    gone = (second == 0).flatten(2).all(dim=2)
    assert 0 < int(gone.sum()) < 16 and torch.allclose(second[~gone], 2 * backbone.convInit(x)[~gone], atol=1e-6)


def test_hidden_voxels_take_the_fill_of_their_channel() -> None:
    backbone, x = SegResNet(2, SIZE, 0.0), scan(2)
    hidden, fill = torch.rand(2, 16, 8, 24) < 0.5, torch.tensor([0.25, -3.0])
    filled = x.clone()
    for channel in range(2):
        filled[:, channel][hidden] = fill[channel]
    expected = backbone.encode(filled)
    assert all(torch.equal(a, b) for a, b in zip(backbone.encode_hidden(x, hidden, fill), expected))


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_every_size_has_the_tensors_of_monais_class(size: str) -> None:
    chosen = SEGRESNET[size]
    state = SegmentationNetwork(SegResNet(1, chosen), 2).monai_state()
    monai = nets.SegResNet(3, chosen.filters, 1, 2, blocks_down=chosen.blocks).state_dict()
    assert {name: tensor.shape for name, tensor in state.items()} == {name: t.shape for name, t in monai.items()}
