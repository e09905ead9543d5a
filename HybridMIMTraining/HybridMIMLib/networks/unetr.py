"""MONAI's UNETR (arXiv:2103.10504): a ViT as an encoder that can be entered at any stage, and a decoder of a box."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from monai.networks.blocks import UnetrPrUpBlock, UnetrUpBlock
from monai.networks.nets import UNETR as MonaiUNETR
from torch import Tensor, nn

from HybridMIMLib.architectures import VitSize
from HybridMIMLib.networks.dropout import SampleDropout
from HybridMIMLib.networks.interface import Box, EncoderDecoder, Pyramid, Triple, wholly_hidden

MONAI_TOKEN = 16
"""Voxels along a side of a token in MONAI's class, the only one it has."""
_BLOCKS = {16: (0, 4, 7, 10, 12), 8: (0, 4, 8, 12)}
"""First block of each stage after the one that hands on the scan, and how many there are."""


class UNETR(EncoderDecoder, MonaiUNETR):  # type: ignore[misc]  # MONAI is not typed
    """UNETR.

    The pyramid is the scan and what the ViT's tokens are after blocks 4, 7, 10 and 12, as grids of one voxel a token;
    the last with the final norm. With tokens of 8 voxels the decoder has one doubling less: blocks 4, 8 and 12, no
    ``encoder4`` and ``decoder5``, ``encoder2`` and ``encoder3`` with one doubling less, and ``decoder4`` takes the
    ViT's width. All other names and shapes are those of MONAI's class, which has tokens of 16 alone.

    Args:
        channels: of the scan.
        size: width and heads of the ViT, features of the decoder.
        crop: voxels along each axis, multiples of the token; the ViT learns a position for each token.
        token: voxels along a side of a token, 8 or 16.
        dropout: share of channels dropped while training, of the embedded tokens and at the entry of each further
            stage.
    """

    vit: nn.Module
    encoder1: nn.Module
    decoder2: nn.Module

    encoder_parts = ("vit",)
    head_name = "out.conv.conv"

    def __init__(self, channels: int, size: VitSize, crop: Triple, token: int = 16, dropout: float = 0.1) -> None:
        super().__init__(
            in_channels=channels,
            out_channels=1,
            # As many tokens as the crop has of the chosen size.
            img_size=[side // token * MONAI_TOKEN for side in crop],
            feature_size=size.features,
            hidden_size=size.width,
            mlp_dim=4 * size.width,
            num_heads=size.heads,
        )
        del self.out
        if token != MONAI_TOKEN:
            self._take_smaller_tokens(channels, size, token)
        for block in self.vit.get_submodule("blocks").children():
            # Nothing uses it; several GPUs would wait for its gradient.
            block.get_submodule("norm_cross_attn").requires_grad_(False)
        self.token, self.blocks = token, _BLOCKS[token]
        blocks = [(f"vit.blocks.{block}",) for block in range(self.blocks[-1])]
        self.encoder_layers = (("vit.patch_embedding",), *blocks[:-1], (*blocks[-1], "vit.norm"))
        self.grid = tuple(side // token for side in crop)
        stages = len(self.blocks) - 1
        self.widths = (channels, *(size.width,) * stages)
        self.strides = ((1, 1, 1), *((token, token, token),) * stages)
        self.out_width, self.fill_width = size.features, size.width
        self.decoder_widths = tuple(size.features * 2**stage for stage in range(stages))
        self.dropouts = nn.ModuleList(SampleDropout(dropout, stage, axis=2) for stage in range(1, stages + 1))

    def embed(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """Tokens (B, N, width) of a scan (B, C, D, H, W), their positions added.

        With ``places`` (B, n), numbers of tokens of each sample, (B, n, width): no other token is computed.
        """
        if places is None:
            return self._with_positions(self._embedded(x))
        side, embedding = self.token, self.vit.get_submodule("patch_embedding.patch_embeddings")
        pattern = "b c (d pd) (h ph) (w pw) -> b (d h w) (c pd ph pw)"
        voxels = _taken(rearrange(x, pattern, pd=side, ph=side, pw=side), places)
        positions = self.vit.get_parameter("patch_embedding.position_embeddings").expand(len(x), -1, -1)
        # A convolution whose steps are as wide as its kernel is a product with each token's voxels.
        weight, bias = embedding.get_parameter("weight"), embedding.get_parameter("bias")
        return F.linear(voxels, weight.flatten(1), bias) + _taken(positions, places)

    def attend(self, tokens: Tensor, attended: Tensor | None = None) -> Tensor:
        """What the ViT makes of any of the tokens (B, n, width): all blocks, each stage's dropout, the final norm.

        Where ``attended`` (B, n) is False, no token looks at that one.
        """
        return self._attend_from(1, tokens, attended)[-1]

    def to_grid(self, tokens: Tensor) -> Tensor:
        """All tokens of a crop (B, N, width) as a level of the pyramid (B, width, d, h, w)."""
        return tokens.transpose(1, 2).reshape(len(tokens), -1, *self.grid).contiguous()

    def encode_from(self, stage: int, x: Tensor) -> Pyramid:
        """See :meth:`EncoderDecoder.encode_from`; stage 0 hands on the scan, stage 1 embeds it."""
        if stage == 0:
            return [x, *self.encode_from(1, x)]
        tokens = self.embed(x) if stage == 1 else x.flatten(2).transpose(1, 2)
        return [self.to_grid(level) for level in self._attend_from(stage, tokens)]

    def encode_hidden(self, x: Tensor, hidden: Tensor, fill: Tensor) -> Pyramid:
        """See :meth:`EncoderDecoder.encode_hidden`; level 0 is the scan with hidden voxels set to 0."""
        seen = x.masked_fill(hidden[:, None], 0.0)
        tokens = self._embedded(seen)
        places = wholly_hidden(hidden, (self.token, self.token, self.token)).flatten(1)[:, :, None]
        tokens = self._with_positions(torch.where(places, fill.to(tokens.dtype), tokens))
        return [seen, *(self.to_grid(level) for level in self._attend_from(1, tokens))]

    def decode_stages(self, pyramid: Pyramid, box: Box | None = None) -> Iterator[Tensor]:
        """See :meth:`EncoderDecoder.decode_stages`."""
        scan, *skips, x = self.in_box(pyramid, box)
        for number in range(len(skips), 0, -1):
            skip = self.get_submodule(f"encoder{number + 1}")(skips[number - 1])
            x = self.get_submodule(f"decoder{number + 2}")(x, skip)
            yield x
        yield self.decoder2(x, self.encoder1(scan))

    def _embedded(self, x: Tensor) -> Tensor:
        patches: Tensor = self.vit.get_submodule("patch_embedding.patch_embeddings")(x)
        return patches.flatten(2).transpose(1, 2)

    def _with_positions(self, tokens: Tensor) -> Tensor:
        return tokens + self.vit.get_parameter("patch_embedding.position_embeddings")

    def _attend_from(self, stage: int, tokens: Tensor, attended: Tensor | None = None) -> list[Tensor]:
        """Tokens after each stage from ``stage`` on."""
        levels = []
        for number in range(stage, len(self.blocks)):
            tokens = self.dropouts[number - 1](tokens)
            for block in range(self.blocks[number - 1], self.blocks[number]):
                tokens = self.vit.get_submodule(f"blocks.{block}")(tokens, attn_mask=attended)
            levels.append(tokens)
        return [*levels[:-1], self.vit.get_submodule("norm")(tokens)]

    def _take_smaller_tokens(self, channels: int, size: VitSize, token: int) -> None:
        """Replace what a token of half the side changes."""
        embedding = self.vit.get_submodule("patch_embedding")
        embedding.patch_embeddings = nn.Conv3d(channels, size.width, token, token)
        del self.encoder4, self.decoder5
        usual = {"spatial_dims": 3, "kernel_size": 3, "upsample_kernel_size": 2, "norm_name": "instance"}
        for name, doublings, wider in (("encoder2", 1, 2), ("encoder3", 0, 4)):
            block = UnetrPrUpBlock(
                in_channels=size.width,
                out_channels=wider * size.features,
                num_layer=doublings,
                stride=1,
                conv_block=True,
                res_block=True,
                **usual,
            )
            setattr(self, name, block)
        self.decoder4 = UnetrUpBlock(in_channels=size.width, out_channels=4 * size.features, res_block=True, **usual)


def _taken(tokens: Tensor, places: Tensor) -> Tensor:
    """Those (B, n, width) of the tokens (B, N, width) that are named by their number in each sample, (B, n)."""
    return tokens.gather(1, places[:, :, None].expand(-1, -1, tokens.shape[2]))
