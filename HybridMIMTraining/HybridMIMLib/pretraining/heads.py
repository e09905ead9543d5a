"""What turns the features of tokens into voxels: one linear layer, or transformer blocks before it."""

from __future__ import annotations

from math import prod

import torch
from einops import rearrange
from monai.networks.blocks import TransformerBlock
from torch import Tensor, nn

Triple = tuple[int, int, int]

HEAD_CHANNELS = 32
"""Channels of an attention head."""
START = 0.02
"""Spread of learned positions and tokens before training, as in MAE (arXiv:2111.06377)."""


class Blocks(nn.Module):
    """Transformer blocks over all tokens of a crop, which know where they are: (B, N, width) → (B, N, width).

    Args:
        tokens: how many a crop has.
        width: a multiple of :data:`HEAD_CHANNELS`.
        depth: how many blocks.
    """

    def __init__(self, tokens: int, width: int, depth: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(START * torch.randn(tokens, width))
        self.blocks = nn.Sequential(*(_block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """The tokens after the last block, normalised."""
        result: Tensor = self.norm(self.blocks(tokens + self.positions))
        return result


class VoxelHead(nn.Module):
    """Predicts the voxels that each voxel of a level of the pyramid stands for.

    Args:
        width: channels of the level.
        cells: voxels of the level along each axis.
        stride: voxels of the scan between them.
        channels: of the scan.
        depth: transformer blocks; 0 is one linear layer.
        head_width: of the blocks.
    """

    def __init__(self, width: int, cells: Triple, stride: Triple, channels: int, depth: int, head_width: int) -> None:
        super().__init__()
        self.cells, self.stride = cells, stride
        outputs = channels * prod(stride)
        if depth == 0:
            self.layers: nn.Module = nn.Linear(width, outputs)
        else:
            blocks = Blocks(prod(cells), head_width, depth)
            self.layers = nn.Sequential(nn.Linear(width, head_width), blocks, nn.Linear(head_width, outputs))

    def forward(self, level: Tensor) -> Tensor:
        """(B, width, d, h, w) → (B, channels, D, H, W)."""
        return to_scan(self.layers(level.flatten(2).transpose(1, 2)), self.cells, self.stride)


def to_scan(values: Tensor, cells: Triple, side: Triple) -> Tensor:
    """Put the voxels of all tokens, (B, N, channels of each of its voxels), in their places: (B, C, D, H, W).

    Args:
        values: of a token come one channel after another, each as its voxels along the last axis, then the others.
        cells: tokens along each axis.
        side: voxels of a token along each axis.
    """
    (d, h, w), (pd, ph, pw) = cells, side
    pattern = "b (d h w) (c pd ph pw) -> b c (d pd) (h ph) (w pw)"
    return rearrange(values, pattern, d=d, h=h, w=w, pd=pd, ph=ph, pw=pw)


def _block(width: int) -> nn.Module:
    block = TransformerBlock(width, 4 * width, width // HEAD_CHANNELS, qkv_bias=True, use_flash_attention=True)
    # Nothing uses it; several GPUs would wait for its gradient.
    block.norm_cross_attn = nn.Identity()
    return block
