"""What every network can do, so that objectives, fine-tuning and inference need not know which one it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Pyramid = list[Tensor]


@dataclass(frozen=True)
class Box:
    """A box of one size in every sample of a batch, each at a place of its own.

    Attributes:
        lower: (B, 3) first voxel of the box in each sample, multiples of the network's stride.
        size: voxels along each axis, multiples of the network's stride.
    """

    lower: Tensor
    size: tuple[int, int, int]

    def crop(self, x: Tensor, stride: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
        """The box cut out of ``x`` (B, C, D, H, W), whose voxels are ``stride`` input voxels apart."""
        lower = [[int(v) // s for v, s in zip(row, stride)] for row in self.lower.tolist()]
        size = [v // s for v, s in zip(self.size, stride)]
        places = zip(x, lower, strict=True)
        return torch.stack(
            [sample[:, a : a + size[0], b : b + size[1], c : c + size[2]] for sample, (a, b, c) in places]
        )


class EncoderDecoder(nn.Module, ABC):
    """An encoder and a decoder that are pre-trained together.

    Attributes:
        widths: channels of the pyramid's levels, finest first; the last is the bottleneck.
        strides: input voxels between voxels of each level, along each axis.
    """

    widths: tuple[int, ...]
    strides: tuple[tuple[int, int, int], ...]

    @abstractmethod
    def encode_from(self, stage: int, x: Tensor) -> Pyramid:
        """Run the encoder's stages from ``stage`` on.

        Args:
            stage: first stage to run.
            x: (B, C, D, H, W), the scan for stage 0, else the output of stage ``stage - 1``.

        Returns:
            Outputs of the stages that ran, finest first.
        """

    @abstractmethod
    def decode(self, pyramid: Pyramid, box: Box | None = None) -> Tensor:
        """Features (B, widths[0], D, H, W) on the input's grid, or of ``box`` alone.

        With a box, every level is cut to it first: nothing outside is computed or seen
        (partial region prediction, arXiv:2303.10333).
        """

    def encode(self, x: Tensor) -> Pyramid:
        """The feature pyramid of ``x`` (B, C, D, H, W), finest level first."""
        return self.encode_from(0, x)


class SegmentationNetwork(nn.Module):
    """A backbone with one linear layer to class scores."""

    def __init__(self, backbone: EncoderDecoder, outputs: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv3d(backbone.widths[0], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, outputs, D, H, W), background first, of a scan (B, C, D, H, W)."""
        scores: Tensor = self.head(self.backbone.decode(self.backbone.encode(x)))
        return scores
