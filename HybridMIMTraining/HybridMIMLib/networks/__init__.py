"""Encoder-decoder pairs with one interface: ``encode`` → feature pyramid, ``decode(pyramid, box=None)``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from HybridMIMLib.architectures import SEGRESNET, SWIN, VIT
from HybridMIMLib.networks.deep_supervision import DeeplySupervised
from HybridMIMLib.networks.interface import EncoderDecoder, SegmentationNetwork, Triple
from HybridMIMLib.networks.segresnet import SegResNet
from HybridMIMLib.networks.swin_unetr import SwinUNETR
from HybridMIMLib.networks.unet import UNet
from HybridMIMLib.networks.unetr import UNETR
from HybridMIMLib.randomness import stream_key
from HybridMIMLib.settings.network import NetworkSettings

__all__ = [
    "UNETR",
    "DeeplySupervised",
    "EncoderDecoder",
    "SegResNet",
    "SegmentationNetwork",
    "SwinUNETR",
    "UNet",
    "initial_weights",
    "make_backbone",
    "make_segmentation_network",
]


def make_backbone(settings: NetworkSettings, channels: int, crop: Triple, seed: int = 0) -> EncoderDecoder:
    """The encoder-decoder that the settings describe, with initial weights that follow from the seed.

    Args:
        settings: settled ones (:func:`HybridMIMLib.architectures.settled`).
        channels: of a scan.
        crop: voxels along each axis; a ViT learns a position for each token of it.
        seed: of the run.
    """
    with initial_weights(seed, "backbone"):
        return _BACKBONES[settings.architecture](settings, channels, crop)


def _u_net(settings: NetworkSettings, channels: int, crop: Triple) -> EncoderDecoder:
    assert settings.features and settings.strides, "the settings are not settled"
    residual = settings.architecture == "resunet"
    return UNet(channels, settings.features, settings.strides, settings.dropout, residual)


def _swin_unetr(settings: NetworkSettings, channels: int, crop: Triple) -> EncoderDecoder:
    return SwinUNETR(channels, SWIN[settings.size], settings.window, settings.dropout)


def _unetr(settings: NetworkSettings, channels: int, crop: Triple) -> EncoderDecoder:
    return UNETR(channels, VIT[settings.size], crop, settings.token, settings.dropout)


def _segresnet(settings: NetworkSettings, channels: int, crop: Triple) -> EncoderDecoder:
    return SegResNet(channels, SEGRESNET[settings.size], settings.dropout)


_BACKBONES = {
    "unet": _u_net,
    "resunet": _u_net,
    "swinunetr": _swin_unetr,
    "unetr": _unetr,
    "segresnet": _segresnet,
}


def make_segmentation_network(
    settings: NetworkSettings,
    channels: int,
    classes: int,
    crop: Triple,
    seed: int = 0,
    *,
    overlapping: bool = False,
    levels: int = 0,
) -> SegmentationNetwork:
    """The backbone with a head of ``classes`` + 1 (background first) output channels.

    Args:
        settings, channels, crop, seed: see :func:`make_backbone`.
        classes: to tell apart.
        overlapping: one output a class, and none for the background.
        levels: coarser stages of the decoder that have a head of their own, for a training.
    """
    backbone = make_backbone(settings, channels, crop, seed)
    outputs = classes + (not overlapping)
    with initial_weights(seed, "head"):
        # The last head is drawn first, and is the same with and without the others.
        return DeeplySupervised(backbone, outputs, levels) if levels else SegmentationNetwork(backbone, outputs)


@contextmanager
def initial_weights(seed: int, purpose: str) -> Iterator[None]:
    """Let layers made in the block, on the CPU, begin with weights that follow from seed and purpose."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the GPUs too, and leave them so.
        torch.default_generator.manual_seed(stream_key(seed, "initial weights", purpose))
        yield
