"""A convolutional U-Net whose encoder can be entered at any stage and whose decoder can work on a box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from HybridMIMLib.networks.dropout import SampleDropout
from HybridMIMLib.networks.interface import Box, EncoderDecoder, Pyramid


class ConvBlock(nn.Sequential):
    """3×3×3 convolution, instance norm, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            # The norm takes any bias away again.
            nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.InstanceNorm3d(outputs, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        )


class UNet(EncoderDecoder):
    """U-Net: each encoder stage after the first halves the grid, the decoder mirrors it.

    Args:
        channels: of the scan.
        features: channels of each stage; the last is the bottleneck.
        dropout: share of channels dropped at the entry of each stage after the first, while training.
    """

    def __init__(self, channels: int, features: Sequence[int], dropout: float = 0.1) -> None:
        super().__init__()
        self.widths = tuple(features)
        self.strides = tuple((2**level,) * 3 for level in range(len(features)))
        inputs = [channels, *features[:-1]]
        self.stages = nn.ModuleList(
            nn.Sequential(
                # Dropping whole channels of the scan itself would leave nothing of a scan with one channel.
                SampleDropout(dropout if level else 0.0, f"stage {level}, entry"),
                ConvBlock(inputs[level], width, stride=2 if level else 1),
                SampleDropout(dropout if level == 0 else 0.0, f"stage {level}, middle"),
                ConvBlock(width, width),
            )
            for level, width in enumerate(features)
        )
        pairs = list(zip(features[1:], features[:-1]))
        self.ups = nn.ModuleList(nn.ConvTranspose3d(deep, fine, 2, stride=2) for deep, fine in pairs)
        self.merges = nn.ModuleList(ConvBlock(2 * fine, fine) for _, fine in pairs)

    def encode_from(self, stage: int, x: Tensor) -> Pyramid:
        """See :meth:`EncoderDecoder.encode_from`."""
        pyramid = []
        for block in list(self.stages)[stage:]:
            x = block(x)
            pyramid.append(x)
        return pyramid

    def decode(self, pyramid: Pyramid, box: Box | None = None) -> Tensor:
        """See :meth:`EncoderDecoder.decode`."""
        if box is not None:
            pyramid = [box.crop(level, stride) for level, stride in zip(pyramid, self.strides)]
        x = pyramid[-1]
        for up, merge, skip in reversed(list(zip(self.ups, self.merges, pyramid[:-1]))):
            x = merge(torch.cat([up(x), skip], dim=1))
        return x
