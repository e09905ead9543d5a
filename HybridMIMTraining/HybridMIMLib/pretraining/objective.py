"""What every objective can do, so that the run need not know which one it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from HybridMIMLib.networks.interface import EncoderDecoder
from HybridMIMLib.pretraining.crops import Crops


@dataclass(frozen=True)
class Preview:
    """What a masked objective saw of crops, and what it made of them.

    Attributes:
        masked: (B, C, D, H, W) the image with 0 where it was hidden, whatever stands there in the network.
        predicted: (B, C, D, H, W) intensities that it predicts everywhere.
        hidden: (B, D, H, W) True for voxels that were hidden.
    """

    masked: Tensor
    predicted: Tensor
    hidden: Tensor


class Objective(nn.Module, ABC):
    """A way to teach a backbone without labels.

    Attributes:
        backbone: what is pre-trained and kept; heads of the objective are not.
        trains_decoder: whether the backbone's decoder learns too, or keeps its initial weights.
    """

    backbone: EncoderDecoder
    trains_decoder: bool

    @abstractmethod
    def losses(self, crops: Crops) -> dict[str, Tensor]:
        """Losses by name, each multiplied by its weight; their sum is minimised.

        Everything is computed for the whole batch on its device, without a look back by the host.
        """

    @abstractmethod
    def measures(self, crops: Crops) -> dict[str, float]:
        """How well the heads do, without dropout: ``NAME_accuracy`` beside ``NAME_chance``, and the like."""

    def preview(self, crops: Crops) -> Preview | None:
        """What the objective makes of crops; None where it reconstructs nothing."""
        return None

    def forward(self, crops: Crops) -> dict[str, Tensor]:
        """See :meth:`losses`."""
        return self.losses(crops)


def train_encoder_alone(backbone: EncoderDecoder) -> None:
    """Leave the decoder out of training: neither the optimizer nor other processes wait for its gradients."""
    for name, parameter in backbone.named_parameters():
        if not backbone.is_of_encoder(name):
            parameter.requires_grad_(False)


@contextmanager
def mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Train or evaluate in the block, then go back to what it was."""
    was_training = module.training
    module.train(training)
    try:
        yield
    finally:
        module.train(was_training)
