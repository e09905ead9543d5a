"""Masked autoencoder (arXiv:2111.06377, in 3D: arXiv:2204.11716): the ViT computes visible tokens alone.

At a ratio of 0.75 that is a quarter of the tokens. A narrow decoder of a few blocks, which is thrown away afterwards,
puts a learned token in each hidden place and predicts the voxels there.

All samples of a batch have the same number of visible places, which follows from the settings alone, so that the host
need not ask the device for it. Where a sample has padding, fewer of its patches are masked, but fewer are visible,
too: padding takes the places that are left. Where the ratio is a range, there are as many places as the lowest ratio
asks for; each sample draws a ratio of its own, and no token attends to the places that it leaves empty.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from HybridMIMLib.networks.unetr import UNETR
from HybridMIMLib.pretraining.heads import START, Blocks, to_scan
from HybridMIMLib.pretraining.masking import PatchGrid, Triple
from HybridMIMLib.pretraining.reconstruction import Reconstruction, ratio_of
from HybridMIMLib.settings.pretraining import PretrainingSettings

DEPTH = 4
"""Blocks of the decoder; eight, 512 wide, are published."""


class MAE(Reconstruction):
    """The objective: a UNETR of which the ViT is trained, and a decoder of its own.

    Args:
        backbone: its ViT is pre-trained.
        grid: crop and patch, the patch a multiple of the backbone's tokens.
        channels: of the scans.
        settings: ratio, target, error, depth and width of the decoder; without a block the decoder could not tell
            hidden tokens anything of the visible ones.
    """

    backbone: UNETR
    _tokens: Tensor

    def __init__(self, backbone: UNETR, grid: PatchGrid, channels: int, settings: PretrainingSettings) -> None:
        super().__init__(backbone, grid, settings)
        self.side: Triple = (backbone.token,) * 3
        self.places = visible_places(grid, settings)
        ratio, width = ratio_of(settings), settings.head_width
        self.leaves_places_empty = isinstance(ratio, list) and ratio[0] < ratio[1]
        tokens = tokens_of_patches(grid, backbone.token)
        # Follows from the settings, so there is no need to save it.
        self.register_buffer("_tokens", tokens, persistent=False)
        self.narrow = nn.Linear(backbone.widths[-1], width)
        self.hidden_token = nn.Parameter(START * torch.randn(width))
        self.blocks = Blocks(tokens.numel(), width, DEPTH if settings.head_depth is None else settings.head_depth)
        self.voxels = nn.Linear(width, channels * prod(self.side))

    def predict(self, image: Tensor, whole: Tensor, mask: Tensor) -> Tensor:
        """See :meth:`Reconstruction.predict`."""
        patches, used = visible_patches(whole, mask, self.places)
        tokens, used = self._tokens[patches].flatten(1), used.repeat_interleave(self._tokens.shape[1], dim=1)
        embedded = self.backbone.embed(image, tokens)
        seen = self.narrow(self.backbone.attend(embedded, used if self.leaves_places_empty else None))
        hidden = self.hidden_token.to(seen.dtype)
        seen = torch.where(used[:, :, None], seen, hidden)
        everywhere = hidden.expand(len(seen), self._tokens.numel(), -1)
        everywhere = everywhere.scatter(1, tokens[:, :, None].expand_as(seen), seen)
        d, h, w = (c // s for c, s in zip(self.grid.crop, self.side))
        return to_scan(self.voxels(self.blocks(everywhere)), (d, h, w), self.side)


def visible_places(grid: PatchGrid, settings: PretrainingSettings) -> int:
    """How many patches of a crop the encoder computes: as many as the lowest ratio leaves of a whole crop."""
    ratio, patches = ratio_of(settings), prod(grid.patches)
    return patches - masked_count(min(ratio) if isinstance(ratio, list) else ratio, patches)


def masked_count(ratio: float, patches: int) -> int:
    """How many of a crop's patches :func:`HybridMIMLib.pretraining.masking.draw_patches` masks, without a draw.

    In float32, in which the device multiplies too: both must round to the same number.
    """
    wanted = max(int(np.round(np.float32(ratio) * np.float32(patches))), 1)
    return min(wanted, max(patches - 1, 1))


def visible_patches(whole: Tensor, mask: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """Which patches the encoder computes: visible ones first, then padding.

    Args:
        whole: (B, D', H', W') True for patches without padding.
        mask: (B, D', H', W') True for masked patches, all of them whole.
        places: how many patches to compute of each sample, no fewer than it has visible ones.

    Returns:
        (B, places) numbers of patches, in the order of their place in space within each kind.
        (B, places) whether a place is used; one that is not holds a masked patch, for want of another.
    """
    kind = (torch.where(whole, 0, 1) + 2 * mask).flatten(1)
    patches = kind.argsort(dim=1, stable=True)[:, :places]
    return patches, kind.gather(1, patches) < 2


def tokens_of_patches(grid: PatchGrid, side: int) -> Tensor:
    """(patches, tokens of a patch) numbers of the tokens in each patch; both run along the last axis first."""
    d, h, w = (n // side for n in grid.crop)
    pd, ph, pw = (n // side for n in grid.patch)
    numbers = torch.arange(d * h * w).reshape(d, h, w)
    return rearrange(numbers, "(d pd) (h ph) (w pw) -> (d h w) (pd ph pw)", pd=pd, ph=ph, pw=pw)
