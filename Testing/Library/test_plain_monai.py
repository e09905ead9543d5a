"""A trained network runs in plain MONAI: its classes take our tensors, every one, and give what ours give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNETR, DynUNet, SegResNet, SwinUNETR
from torch import nn

from HybridMIMLib.architectures import SEGRESNET, SWIN, VIT, settled
from HybridMIMLib.config import NetworkSettings
from HybridMIMLib.networks import make_backbone, make_segmentation_network
from HybridMIMLib.pretrained import load_pretrained
from HybridMIMLib.transfer import transfer

CHANNELS, OUTPUTS, CROP = 2, 3, (64, 64, 32)


def dynunet(settings: NetworkSettings) -> nn.Module:
    assert settings.features is not None and settings.strides is not None
    return DynUNet(
        3,
        CHANNELS,
        OUTPUTS,
        kernel_size=[3] * len(settings.features),
        strides=settings.strides,
        upsample_kernel_size=settings.strides[1:],
        filters=settings.features,
        res_block=settings.architecture == "resunet",
    )


def swinunetr(settings: NetworkSettings) -> nn.Module:
    size = SWIN[settings.size]
    return SwinUNETR(
        CHANNELS,
        OUTPUTS,
        feature_size=size.features,
        depths=size.depths,
        num_heads=size.heads,
        window_size=settings.window,
    )


def unetr(settings: NetworkSettings) -> nn.Module:
    size = VIT[settings.size]
    return UNETR(CHANNELS, OUTPUTS, CROP, size.features, size.width, 4 * size.width, size.heads)


def segresnet(settings: NetworkSettings) -> nn.Module:
    size = SEGRESNET[settings.size]
    return SegResNet(3, size.filters, CHANNELS, OUTPUTS, blocks_down=size.blocks)


MAKERS: dict[str, Callable[[NetworkSettings], nn.Module]] = {
    "unet": dynunet,
    "resunet": dynunet,
    "swinunetr": swinunetr,
    "unetr": unetr,
    "segresnet": segresnet,
}


@pytest.mark.parametrize("architecture", MAKERS)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 4.0)])
def test_monai_takes_the_tensors_and_gives_the_same(architecture: str, spacing: tuple[float, ...]) -> None:
    chosen = NetworkSettings(architecture=architecture, window=4)  # type: ignore[arg-type]
    settings = settled(chosen, spacing)
    ours = make_segmentation_network(settings, CHANNELS, OUTPUTS - 1, CROP, seed=4).eval()
    theirs = MAKERS[architecture](settings).eval()
    state = ours.monai_state()
    # DynUNet keeps each block a second time, nested: these names are the same tensors.
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("skip_layers.") for name in missing)
    x = torch.randn(1, CHANNELS, *CROP)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), ours(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", MAKERS)
def test_weights_of_monai_are_a_start(architecture: str, tmp_path: Path) -> None:
    settings = settled(NetworkSettings(architecture=architecture, window=4), (1.0, 1.0, 1.0))  # type: ignore[arg-type]
    theirs = MAKERS[architecture](settings)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "w.pt")
    ours = make_backbone(settings, CHANNELS, CROP, seed=9)
    account = transfer(ours, load_pretrained(tmp_path / "w.pt"))
    assert [part.share for part in account.parts] == [1, 1]
    state = theirs.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
    # The head, and a second time what DynUNet nests.
    assert all(name.startswith((ours.head_name, "skip_layers.")) for name in account.left_out)
    assert {name for name in account.left_out if name.startswith(ours.head_name)}
