"""Encoder-decoder pairs with one interface: ``encode`` → feature pyramid, ``decode(pyramid, box=None)``."""

from __future__ import annotations

from HybridMIMLib.config import NetworkSettings
from HybridMIMLib.networks.interface import EncoderDecoder, SegmentationNetwork
from HybridMIMLib.networks.unet import UNet
from HybridMIMLib.randomness import stream_key

__all__ = ["EncoderDecoder", "SegmentationNetwork", "UNet", "make_backbone", "make_segmentation_network"]


def make_backbone(settings: NetworkSettings, channels: int, seed: int = 0) -> EncoderDecoder:
    """The encoder-decoder that the settings describe, with initial weights that follow from the seed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_key(seed, "initial weights"))
        return UNet(channels, settings.features, settings.dropout)


def make_segmentation_network(
    settings: NetworkSettings, channels: int, classes: int, seed: int = 0
) -> SegmentationNetwork:
    """The backbone with a head of ``classes`` + 1 (background first) output channels."""
    import torch

    backbone = make_backbone(settings, channels, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_key(seed, "initial head"))
        return SegmentationNetwork(backbone, classes + 1)
