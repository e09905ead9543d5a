"""What every network can do, so that objectives, fine-tuning and inference need not know which one it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pyramid = list[Tensor]
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Box:
    """A box of one size in every sample of a batch, each at a place of its own.

    Attributes:
        lower: (B, 3) int64, first voxel of the box in each sample, multiples of the network's stride.
        size: voxels along each axis, multiples of the network's stride.
    """

    lower: Tensor
    size: Triple

    def crop(self, x: Tensor, stride: Triple = (1, 1, 1)) -> Tensor:
        """The box cut out of ``x`` (B, C, D, H, W), whose voxels are ``stride`` input voxels apart.

        Places stay on the device: to cut slices, the host would have to wait for them.
        """
        if len(self.lower) != len(x):
            raise ValueError(f"boxes of {len(self.lower)} samples do not fit a batch of {len(x)}")
        size = tuple(n // s for n, s in zip(self.size, stride))
        if size == x.shape[2:]:
            return x
        flat = torch.zeros((len(x), 1, 1, 1), dtype=torch.int64, device=x.device)
        for axis, (count, step) in enumerate(zip(size, stride)):
            places = (self.lower[:, axis] // step)[:, None] + torch.arange(count, device=x.device)
            shape = [len(x), 1, 1, 1]
            shape[axis + 1] = count
            flat = flat * x.shape[axis + 2] + places.reshape(shape)
        index = flat.reshape(len(x), 1, -1).expand(-1, x.shape[1], -1)
        return x.flatten(2).gather(2, index).reshape(len(x), x.shape[1], *size)


def wholly_hidden(hidden: Tensor, token: Triple) -> Tensor:
    """Which tokens are hidden to their last voxel: (B, D, H, W) bool → (B, d, h, w) bool."""
    return F.max_pool3d((~hidden)[:, None].to(torch.float32), token)[:, 0] == 0


class EncoderDecoder(nn.Module, ABC):
    """An encoder and a decoder that are pre-trained together.

    The encoder works in stages; the output of each is a level of the pyramid. Transformers hand on the scan itself as
    level 0, because their decoders look at it too. Names of tensors are those of MONAI's class, so that a trained
    network runs in plain MONAI.

    Attributes:
        widths: channels of the pyramid's levels, finest first; the last is the bottleneck.
        strides: input voxels between voxels of each level, along each axis.
        out_width: channels of what :meth:`decode` returns.
        decoder_widths: channels of the decoder's stages, finest first; the first is ``out_width``.
        fill_width: numbers that stand for what is hidden, see :meth:`encode_hidden`: channels of the scan, or of a
            token.
        encoder_parts: first parts of the names of the encoder's tensors; all others are the decoder's.
        encoder_layers: the same in more detail: for each layer of the encoder, from the scan to the bottleneck, first
            parts of the names of its tensors. A layer is a stage of a convolutional network or a block of a
            transformer.
        head_name: what MONAI's class calls the layer to class scores.
    """

    widths: tuple[int, ...]
    strides: tuple[Triple, ...]
    out_width: int
    decoder_widths: tuple[int, ...]
    fill_width: int
    encoder_parts: tuple[str, ...]
    encoder_layers: tuple[tuple[str, ...], ...]
    head_name: str

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
    def decode_stages(self, pyramid: Pyramid, box: Box | None = None) -> Iterator[Tensor]:
        """What each stage of the decoder makes, coarsest first; the last is what :meth:`decode` returns.

        Each is handed on as soon as it is computed, so that a coarser one can be forgotten.
        """

    def decode(self, pyramid: Pyramid, box: Box | None = None) -> Tensor:
        """Features (B, out_width, D, H, W) on the input's grid, or of ``box`` alone.

        With a box, every level is cut to it first: nothing outside is computed or seen
        (partial region prediction, arXiv:2303.10333).

        Near faces of the box that lie inside the scan the result is not that of the whole, because convolutions see
        zeros there: they reach 30 voxels at most, and 126 in SwinUNETR, of which less than 1e-4 is left after 32.
        Instance and group norms differ everywhere, because their statistics are those of the box: 32 voxels and more
        from such faces, on the mean, by 0.06 to 0.08 of the spread of the features in the U-Net, 0.07 to 0.09 in
        SwinUNETR, 0.05 to 0.06 in UNETR, 0.05 to 0.07 in SegResNet; over the whole box by 0.10 to 0.19. Measured with
        a box of 64³ in the corner of a crop of 96³, size base, initial weights, three CT scans.
        """
        return deque(self.decode_stages(pyramid, box), maxlen=1).pop()

    def encode_hidden(self, x: Tensor, hidden: Tensor, fill: Tensor) -> Pyramid:
        """The pyramid of a scan of which something is hidden (SimMIM, arXiv:2111.09886).

        Args:
            x: (B, C, D, H, W).
            hidden: (B, D, H, W) True for voxels that are hidden; for transformers whole tokens.
            fill: (fill_width) takes their place: of the voxels, or of the embedded tokens.
        """
        return self.encode(torch.where(hidden[:, None], fill[None, :, None, None, None].to(x.dtype), x))

    def encode(self, x: Tensor) -> Pyramid:
        """The feature pyramid of ``x`` (B, C, D, H, W), finest level first."""
        return self.encode_from(0, x)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, out_width, D, H, W) of ``x`` (B, C, D, H, W)."""
        return self.decode(self.encode(x))

    def in_box(self, pyramid: Pyramid, box: Box | None) -> Pyramid:
        """Every level cut to the box."""
        if box is None:
            return pyramid
        return [box.crop(level, stride) for level, stride in zip(pyramid, self.strides, strict=True)]

    def is_of_encoder(self, name: str) -> bool:
        """Whether a tensor of the state dict belongs to the encoder."""
        return _is_in(name, self.encoder_parts)

    def layers_below_decoder(self, name: str) -> int:
        """How many layers of the encoder a tensor has before it to the decoder, its own counted; 0 in the decoder."""
        layers = reversed(self.encoder_layers)
        return next((number for number, parts in enumerate(layers, 1) if _is_in(name, parts)), 0)


def _is_in(name: str, parts: Iterable[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


class SegmentationNetwork(nn.Module):
    """A backbone with one linear layer to class scores."""

    def __init__(self, backbone: EncoderDecoder, outputs: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv3d(backbone.out_width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, outputs, D, H, W), background first, of a scan (B, C, D, H, W)."""
        scores: Tensor = self.head(self.backbone(x))
        return scores

    def scores_by_stage(self, x: Tensor) -> list[Tensor]:
        """Scores of each stage of the decoder that has a head, finest first: here the last one alone."""
        return [self(x)]

    def head_biases(self) -> list[Tensor]:
        """The bias of each head."""
        return [head.bias for head in self.heads() if head.bias is not None]

    def heads(self) -> list[nn.Conv3d]:
        """The layers to scores, that of the last stage first."""
        return [self.head]

    def monai_state(self) -> Mapping[str, Tensor]:
        """The tensors under the names of MONAI's class; what serves the training alone is none of them."""
        own = {f"{self.backbone.head_name}.{name}": tensor for name, tensor in self.head.state_dict().items()}
        return {**self.backbone.state_dict(), **own}

    def own_state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under the names of MONAI's class, as :meth:`monai_state` gives them, under those of this one."""
        head = f"{self.backbone.head_name}."
        return {
            f"head.{name.removeprefix(head)}" if name.startswith(head) else f"backbone.{name}": tensor
            for name, tensor in tensors.items()
        }
