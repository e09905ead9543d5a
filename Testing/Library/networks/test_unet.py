"""U-Net on MONAI's DynUNet: what it has of its own; what every network promises is tested in test_interface.py."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from HybridMIMLib.architectures import settled
from HybridMIMLib.networks import UNet, make_backbone
from HybridMIMLib.networks.dropout import dropout_keys
from HybridMIMLib.networks.interface import Box
from HybridMIMLib.settings.network import NetworkSettings

STEPS = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
BOX = Box(torch.tensor([[0, 8, 4], [4, 0, 0]]), (4, 8, 12))


@pytest.fixture
def network() -> UNet:
    """Three stages (stride 4), no dropout, biases that differ from 0."""
    torch.manual_seed(0)
    unet = UNet(2, [4, 6, 8], STEPS, dropout=0.0)
    for parameter in unet.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    return unet


@pytest.fixture
def scan() -> Tensor:
    """Two samples, two channels, three different sides."""
    return torch.rand(2, 2, 8, 16, 20, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    "strides",
    [STEPS[:2], STEPS, [[1, 1, 1], [2, 1, 2], [1, 2, 1], [2, 2, 1]], [[1, 1, 1], [2, 2, 2], [1, 1, 1], [1, 1, 1]]],
)
def test_any_steps_add_up_and_are_undone(strides: list[list[int]], residual: bool) -> None:
    features = [4, 6, 8, 10][: len(strides)]
    unet = UNet(1, features, strides, residual=residual).eval()
    x = torch.rand(1, 1, 16, 16, 16)
    pyramid, size = unet.encode(x), [16, 16, 16]
    for level, width, step, stride in zip(pyramid, features, strides, unet.strides, strict=True):
        size = [n // s for n, s in zip(size, step)]
        assert level.shape == (1, width, *size) and [16 // s for s in stride] == size
    assert unet.decode(pyramid).shape == (1, 4, 16, 16, 16)


@pytest.mark.parametrize("architecture", ["unet", "resunet"])
def test_the_published_sizes(architecture: str) -> None:
    """64, 64, 128, 256, 512 channels, bottleneck at 1/8, two convolutions of 3³ a level, transposed ones up."""
    chosen = settled(NetworkSettings(architecture=architecture, size="base"), (1, 1, 1))  # type: ignore[arg-type]
    backbone = make_backbone(chosen, 1, (16, 16, 16))
    assert backbone.widths == (64, 64, 128, 256, 512)
    assert backbone.strides == ((1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))
    down = [backbone.get_submodule(name) for name in ("input_block", *(f"downsamples.{n}" for n in range(3)))]
    for block in (*down, backbone.get_submodule("bottleneck")):
        kernels = [m.kernel_size for m in block.modules() if isinstance(m, nn.Conv3d)]
        assert kernels[:2] == [(3, 3, 3), (3, 3, 3)]
        assert sum(isinstance(m, nn.InstanceNorm3d) for m in block.modules()) == len(kernels)
        assert any(isinstance(m, nn.LeakyReLU) for m in block.modules())
    assert sum(isinstance(m, nn.ConvTranspose3d) for m in backbone.modules()) == 4
    count = sum(weight.numel() for weight in backbone.parameters())
    print(f"{architecture}: {count / 1e6:.2f} M parameters without the head")
    assert 2e7 < count < 3e7


def test_thick_slices_of_the_published_sizes() -> None:
    chosen = settled(NetworkSettings(size="base"), (1, 1, 5))
    backbone = make_backbone(chosen, 1, (32, 32, 16)).eval()
    assert backbone.strides[-1] == (8, 8, 2)
    assert backbone.encode(torch.rand(1, 1, 16, 16, 8))[-1].shape == (1, 512, 2, 2, 4)


def test_the_first_stage_drops_features_and_never_the_scan() -> None:
    """A scan of one channel has none to spare."""
    unet = UNet(1, [16, 16], STEPS[:2], dropout=0.5)
    seen: list[Tensor] = []
    unet.input_block.get_submodule("conv1").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    unet.input_block.get_submodule("conv2").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.rand(1, 1, 8, 8, 8) + 1
    with dropout_keys(torch.tensor([1])):
        unet.encode(x)
    assert torch.equal(seen[0], x)
    gone = (seen[1] == 0).flatten(2).all(dim=2)
    assert 0 < int(gone.sum()) < 16


def test_hidden_voxels_take_the_fill_of_their_channel(network: UNet, scan: Tensor) -> None:
    hidden, fill = torch.rand(2, 8, 16, 20) < 0.5, torch.tensor([0.25, -3.0])
    filled = scan.clone()
    for channel in range(2):
        filled[:, channel][hidden] = fill[channel]
    expected = network.encode(filled)
    assert all(torch.equal(a, b) for a, b in zip(network.encode_hidden(scan, hidden, fill), expected))


def test_the_memory_layout_does_not_matter(network: UNet, scan: Tensor) -> None:
    expected = network.decode(network.encode(scan), BOX)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    result = network.decode(network.encode(scan.contiguous(memory_format=torch.channels_last_3d)), BOX)
    assert torch.allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_scan_of_one_value_gives_finite_numbers(value: float) -> None:
    torch.manual_seed(0)
    unet = UNet(1, [4, 6, 8, 10], [[1, 1, 1], *[[2, 2, 2]] * 3], dropout=0.0)
    result = unet.decode(unet.encode(torch.full((1, 1, 16, 16, 16), value)))
    (result - 1).pow(2).mean().backward()
    gradients = [parameter.grad for parameter in unet.parameters()]
    assert result.isfinite().all() and all(g is not None and g.isfinite().all() for g in gradients)
    assert max(float(g.norm()) for g in gradients if g is not None) < 1e3


def test_a_copy_drops_with_its_own_layers() -> None:
    network = make_backbone(settled(NetworkSettings(features=[4, 8], dropout=0.5), (1, 1, 1)), 1, (8, 8, 8))
    other = pickle.loads(pickle.dumps(copy.deepcopy(network))).train()
    network.eval()
    x = torch.rand(2, 1, 8, 8, 8)
    network.encode(x)
    with pytest.raises(RuntimeError, match="one key a sample"):
        other.encode(x)
