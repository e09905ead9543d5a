"""MONAI's SwinUNETR (arXiv:2201.01266) as an encoder that can be entered at any stage and a decoder of a box."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR
from torch import Tensor, nn

from HybridMIMLib.architectures import SwinSize
from HybridMIMLib.networks.dropout import SampleDropout
from HybridMIMLib.networks.interface import Box, EncoderDecoder, Pyramid, wholly_hidden

TOKEN = 2
"""Voxels along a side of what is embedded as one."""
_STAGES = 4


class SwinUNETR(EncoderDecoder, MonaiSwinUNETR):  # type: ignore[misc]  # MONAI is not typed
    """SwinUNETR.

    The pyramid is the scan, the embedded tokens (1/2), and the output of each of the four Swin stages (1/4 to 1/32).
    Levels that a further stage takes are as it takes them; MONAI's layer norm over their channels, which the decoder
    wants, sees each voxel alone and so can wait until the box is cut. The bottleneck has it already.

    Args:
        channels: of the scan.
        size: features, blocks and heads.
        window: tokens along a side of an attention window.
        dropout: share of channels dropped while training, of the embedded tokens and at the entry of each Swin stage.
    """

    swinViT: nn.Module  # MONAI's name
    encoder1: nn.Module
    encoder2: nn.Module
    encoder3: nn.Module
    encoder4: nn.Module
    encoder10: nn.Module
    decoder1: nn.Module
    decoder2: nn.Module
    decoder3: nn.Module
    decoder4: nn.Module
    decoder5: nn.Module

    encoder_parts = ("swinViT",)
    head_name = "out.conv.conv"

    def __init__(self, channels: int, size: SwinSize, window: int = 7, dropout: float = 0.1) -> None:
        super().__init__(
            in_channels=channels,
            out_channels=1,
            patch_size=TOKEN,
            depths=size.depths,
            num_heads=size.heads,
            window_size=window,
            feature_size=size.features,
        )
        del self.out
        self.encoder_layers = (("swinViT.patch_embed",), *_blocks(size))
        self.widths = (channels, *(size.features * 2**level for level in range(_STAGES + 1)))
        self.strides = tuple((2**level,) * 3 for level in range(_STAGES + 2))
        self.out_width = self.fill_width = size.features
        self.decoder_widths = (size.features, *(size.features * 2**level for level in range(_STAGES)))
        self.dropouts = nn.ModuleList(SampleDropout(dropout, stage) for stage in range(1, _STAGES + 2))

    def encode_from(self, stage: int, x: Tensor) -> Pyramid:
        """See :meth:`EncoderDecoder.encode_from`; stage 0 hands on the scan, stage 1 embeds it."""
        if stage == 0:
            return [x, *self.encode_from(1, x)]
        if stage == 1:
            return self._from_tokens(self.swinViT.get_submodule("patch_embed")(x))
        pyramid = []
        for number in range(stage, _STAGES + 2):
            layer = self.swinViT.get_submodule(f"layers{number - 1}.0")
            x = layer(self.dropouts[number - 1](x).contiguous())
            pyramid.append(x)
        return [*pyramid[:-1], self._normalised(x)]

    def encode_hidden(self, x: Tensor, hidden: Tensor, fill: Tensor) -> Pyramid:
        """See :meth:`EncoderDecoder.encode_hidden`; level 0 is the scan with hidden voxels set to 0."""
        seen = x.masked_fill(hidden[:, None], 0.0)
        tokens = self.swinViT.get_submodule("patch_embed")(seen)
        places = wholly_hidden(hidden, (TOKEN, TOKEN, TOKEN))[:, None]
        tokens = torch.where(places, fill[None, :, None, None, None].to(tokens.dtype), tokens)
        return [seen, *self._from_tokens(tokens)]

    def decode_stages(self, pyramid: Pyramid, box: Box | None = None) -> Iterator[Tensor]:
        """See :meth:`EncoderDecoder.decode_stages`."""
        scan, *levels, bottleneck = self.in_box(pyramid, box)
        half, quarter, eighth, sixteenth = (self._normalised(level) for level in levels)
        yield (x := self.decoder5(self.encoder10(bottleneck), sixteenth))
        yield (x := self.decoder4(x, self.encoder4(eighth)))
        yield (x := self.decoder3(x, self.encoder3(quarter)))
        yield (x := self.decoder2(x, self.encoder2(half)))
        yield self.decoder1(x, self.encoder1(scan))

    def _from_tokens(self, tokens: Tensor) -> Pyramid:
        tokens = self.dropouts[0](tokens)
        return [tokens, *self.encode_from(2, tokens)]

    def _normalised(self, level: Tensor) -> Tensor:
        """Each voxel's channels at mean 0 and spread 1."""
        result: Tensor = self.swinViT.proj_out(level, True)  # type: ignore[operator]
        return result


def _blocks(size: SwinSize) -> Iterator[tuple[str, ...]]:
    """First parts of the names of each block's tensors; what brings a stage to half the grid goes with its last."""
    for stage, depth in enumerate(size.depths, 1):
        for block in range(depth):
            names = (f"swinViT.layers{stage}.0.blocks.{block}",)
            yield names if block < depth - 1 else (*names, f"swinViT.layers{stage}.0.downsample")
