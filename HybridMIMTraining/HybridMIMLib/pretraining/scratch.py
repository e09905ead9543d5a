"""No pre-training: the same weights file as after any other objective, with what every run begins with."""

from __future__ import annotations

from torch import Tensor

from HybridMIMLib.networks.interface import EncoderDecoder
from HybridMIMLib.pretraining.crops import Crops
from HybridMIMLib.pretraining.objective import Objective


class Scratch(Objective):
    """Nothing to learn: no losses, no measures, and no parameter that a step could change.

    A run with it must take no steps, for there is nothing to minimise; ``any(p.requires_grad for p in
    objective.parameters())`` is False, and ``run.pretraining.objective`` is ``"none"``.

    Args:
        backbone: keeps its initial weights, those with which fine-tuning from scratch begins for the same seed.
    """

    trains_decoder = False

    def __init__(self, backbone: EncoderDecoder) -> None:
        super().__init__()
        self.backbone = backbone
        self.requires_grad_(False)

    def losses(self, crops: Crops) -> dict[str, Tensor]:
        """None."""
        return {}

    def measures(self, crops: Crops) -> dict[str, float]:
        """None."""
        return {}
