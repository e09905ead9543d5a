"""MONAI's DynUNet, plain or residual, as an encoder that can be entered at any stage and a decoder of a box.

Two 3×3×3 convolutions a level, each with instance norm and leaky ReLU; strided convolutions down, transposed ones up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from HybridMIMLib.networks.dropout import SampleDropout
from HybridMIMLib.networks.interface import Box, EncoderDecoder, Pyramid

LEAST_FOR_MONAI = 3
"""Stages that MONAI's class asks for; ours works with two as well."""


class UNet(EncoderDecoder, DynUNet):  # type: ignore[misc]  # MONAI is not typed
    """U-Net.

    Args:
        channels: of the scan.
        features: channels of each stage; the last is the bottleneck.
        strides: step of each stage along each axis, 1 or 2; the first stage keeps the grid.
        dropout: share of channels dropped at the entry of each stage after the first, while training; in the first
            between its two convolutions, because a scan has too few channels to drop one.
        residual: blocks with a residual connection.
    """

    input_block: nn.Module
    downsamples: nn.ModuleList
    bottleneck: nn.Module
    upsamples: nn.ModuleList

    encoder_parts = ("input_block", "downsamples", "bottleneck")
    head_name = "output_block.conv.conv"

    def __init__(
        self,
        channels: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        dropout: float = 0.1,
        residual: bool = False,
    ) -> None:
        super().__init__(
            spatial_dims=3,
            in_channels=channels,
            out_channels=1,
            kernel_size=[3] * len(features),
            strides=[list(step) for step in strides],
            upsample_kernel_size=[list(step) for step in strides[1:]],
            filters=list(features),
            res_block=residual,
        )
        # MONAI keeps every block a second time, nested; and the head is not part of what is pre-trained.
        del self.skip_layers, self.output_block
        self.widths, self.out_width, self.fill_width = tuple(features), features[0], channels
        self.decoder_widths = self.widths[:-1]
        downsamples = ((f"downsamples.{number}",) for number in range(len(self.downsamples)))
        self.encoder_layers = (("input_block",), *downsamples, ("bottleneck",))
        totals = np.cumprod(strides, axis=0).tolist()
        # DynUNet calls the step of each stage strides; whoever uses the interface asks for the way from the scan.
        self.strides = tuple((d, h, w) for d, h, w in totals)
        self.dropouts = nn.ModuleList(SampleDropout(dropout, stage) for stage in range(len(features)))
        self.input_block.get_submodule("conv2").register_forward_pre_hook(self._drop_in_first_block)

    def _drop_in_first_block(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # A method and no closure: a copy of the network then drops with its own layers.
        return (self.dropouts[0](inputs[0]),)

    def check_kernel_stride(self) -> None:
        """Let networks of two stages be; settings are checked before."""

    def encode_from(self, stage: int, x: Tensor) -> Pyramid:
        """See :meth:`EncoderDecoder.encode_from`."""
        pyramid = []
        blocks = [self.input_block, *self.downsamples, self.bottleneck]
        for number in range(stage, len(blocks)):
            x = blocks[number](self.dropouts[number](x) if number else x)
            pyramid.append(x)
        return pyramid

    def decode_stages(self, pyramid: Pyramid, box: Box | None = None) -> Iterator[Tensor]:
        """See :meth:`EncoderDecoder.decode_stages`."""
        *skips, x = self.in_box(pyramid, box)
        for up, skip in zip(self.upsamples, reversed(skips)):
            x = up(x, skip)
            yield x
