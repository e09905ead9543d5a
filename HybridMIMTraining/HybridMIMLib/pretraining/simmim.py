"""SimMIM (arXiv:2111.09886, in 3D: arXiv:2204.11716): masked patches are predicted from the bottleneck.

Something learned stands for what is hidden: a token in a transformer, an intensity of each channel in a U-Net. The
encoder therefore sees a crop of the usual shape, and any network will do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from HybridMIMLib.networks.interface import EncoderDecoder
from HybridMIMLib.pretraining.heads import START, VoxelHead
from HybridMIMLib.pretraining.masking import PatchGrid, to_voxels
from HybridMIMLib.pretraining.reconstruction import Reconstruction
from HybridMIMLib.settings.pretraining import PretrainingSettings

DEPTH = 0
"""Blocks of the head as published: one linear layer."""


class SimMIM(Reconstruction):
    """The objective: a backbone, what stands for hidden voxels or tokens, and a head on the bottleneck.

    Args:
        backbone: its encoder is pre-trained.
        grid: crop and patch, the patch a multiple of the backbone's tokens.
        channels: of the scans.
        settings: ratio, target, error, depth and width of the head.
    """

    def __init__(
        self, backbone: EncoderDecoder, grid: PatchGrid, channels: int, settings: PretrainingSettings
    ) -> None:
        super().__init__(backbone, grid, settings)
        stride = backbone.strides[-1]
        d, h, w = (c // s for c, s in zip(grid.crop, stride))
        depth = DEPTH if settings.head_depth is None else settings.head_depth
        self.fill = nn.Parameter(START * torch.randn(backbone.fill_width))
        self.head = VoxelHead(backbone.widths[-1], (d, h, w), stride, channels, depth, settings.head_width)

    def predict(self, image: Tensor, whole: Tensor, mask: Tensor) -> Tensor:
        """See :meth:`Reconstruction.predict`."""
        pyramid = self.backbone.encode_hidden(image, to_voxels(mask, self.grid.patch), self.fill)
        values: Tensor = self.head(pyramid[-1])
        return values
