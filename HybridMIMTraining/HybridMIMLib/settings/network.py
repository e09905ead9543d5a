"""The section network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional

from HybridMIMLib.settings.checks import require, require_positive, require_share
from HybridMIMLib.settings.tree import check_types, setting


@dataclass
class NetworkSettings:
    """The network that is pre-trained and fine-tuned."""

    architecture: Literal["unet", "resunet", "swinunetr", "unetr", "segresnet"] = setting(
        "unet",
        "convolutional, good with few scans: unet, resunet (with residual blocks), segresnet; transformers, which "
        "ask for a GPU and many scans: swinunetr, unetr (a ViT)",
    )
    size: Literal["tiny", "small", "base"] = setting("tiny", "tiny: for a CPU; small; base: as published, for a GPU")
    features: Optional[list[int]] = setting(
        None, "unet, resunet: channels of each stage, in place of size; each further stage halves the grid"
    )
    strides: Optional[list[list[int]]] = setting(
        None, "unet, resunet: step of each stage along R, A, S; default: thick slices are halved later"
    )
    window: int = setting(7, "swinunetr: tokens along a side of an attention window")
    token: int = setting(16, "unetr: voxels along a side of a token, 8 or 16")
    dropout: float = setting(
        0.1, "share of channels dropped in the encoder in the pre-training; in the fine-tuning: finetuning.dropout"
    )

    def __post_init__(self) -> None:
        check_types("network.", self)
        u_net = self.architecture in ("unet", "resunet")
        for name in ("features", "strides"):
            require(
                u_net or getattr(self, name) is None,
                f"network.{name} is given, and {self.architecture} has none",
                "Leave it out and choose network.size, or set network.architecture to unet or resunet.",
            )
        if self.features is not None:
            require(
                len(self.features) >= 2 and all(f > 0 for f in self.features),
                f"network.features is {self.features}",
                "Give two or more positive numbers.",
            )
        self._check_strides()
        require_positive("network.window", self.window)
        require(self.token in (8, 16), f"network.token is {self.token}", "Give 8 or 16.")
        require_share("network.dropout", self.dropout, below_one=True)

    def _check_strides(self) -> None:
        if self.strides is None:
            return
        require(
            self.features is not None and len(self.strides) == len(self.features),
            f"network.strides is {self.strides}, and network.features is {self.features}",
            "Give as many strides as features.",
        )
        fine = all(len(step) == 3 and set(step) <= {1, 2} for step in self.strides) and self.strides[0] == [1, 1, 1]
        require(
            fine,
            f"network.strides is {self.strides}",
            "Give [1, 1, 1] first, then for each further stage three numbers that are 1 or 2.",
        )
