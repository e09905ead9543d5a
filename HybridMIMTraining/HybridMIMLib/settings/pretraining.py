"""The section pretraining."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, Optional, Union

from HybridMIMLib.settings.checks import (
    require,
    require_positive,
    require_positive_triple,
    require_share_or_range,
    require_training_numbers,
)
from HybridMIMLib.settings.tree import Triple, check_types, setting

Share = Union[float, list[float]]
"""A share, or the lowest and the highest of a range from which one is drawn for each crop."""


@dataclass
class PretrainingSettings:
    """Self-supervised pre-training (HybridMIM: arXiv:2303.10333; SimMIM and MAE: arXiv:2204.11716)."""

    objective: Literal["hybridmim", "simmim", "mae", "simclr", "none"] = setting(
        "hybridmim",
        "what is learnt without labels; hybridmim: what is hidden, by voxels, by regions and as a whole; simmim, mae "
        "(unetr only): hidden voxels; simclr: to tell two altered views of a crop from others; none: nothing, as "
        "from scratch",
    )
    steps: int = setting(
        2000, "how often the network is adjusted, each time on a batch of crops; more helps, up to a point"
    )
    batch: int = setting(
        4, "crops a step, each from another patient where there are enough; 0: as fit the device, 4 to 16"
    )
    learning_rate: float = setting(1e-3, "peak learning rate of AdamW")
    weight_decay: float = setting(1e-3, "weight decay of AdamW")
    warmup_steps: int = setting(50, "steps in which the learning rate rises; it falls as a cosine afterwards")
    mask_ratio: Optional[Share] = setting(
        None,
        "share of a crop that is hidden in the pre-training, or a range [low, high]; default: hybridmim 0.40, others "
        "0.75",
    )
    region_ratio: Share = setting(
        0.75,
        "hybridmim: share of the regions in which patches are masked (level 1), or a range "
        "[low, high]; more, where these cannot hold what is masked",
    )
    fill: Literal["learned", "zero"] = setting(
        "learned",
        "hybridmim: what hidden voxels are set to; learned: an intensity for each channel; zero: as published, which "
        "in CT is air",
    )
    target: Literal["raw", "normalised"] = setting(
        "raw", "what is reconstructed: intensities as they are, or with each patch brought to mean 0 and spread 1"
    )
    reconstruction: Literal["auto", "l1", "l2"] = setting(
        "auto", "error of the reconstruction; auto: l2 (squared) for hybridmim, l1 (absolute) for simmim and mae"
    )
    head_depth: Optional[int] = setting(
        None, "simmim, mae: transformer blocks of the head, 0 to 8, 0 = one linear layer; default: simmim 0, mae 4"
    )
    head_width: int = setting(192, "simmim, mae: width of these blocks; a multiple of 32")
    box: Optional[Triple] = setting(None, "voxels of the box that is reconstructed; default: 2/3 of the crop")
    box_placement: Literal["random", "content"] = setting(
        "random", "where the box lies: anywhere, or rather where intensities vary"
    )
    partial_weight: float = setting(1.0, "weight of the partial region prediction (pixel level)")
    number_weight: float = setting(0.1, "weight of: how many patches of a region are masked")
    location_weight: float = setting(0.1, "weight of: which patches of a region are masked")
    consistency_weight: float = setting(0.01, "weight of: number and location must agree")
    contrast_weight: float = setting(0.1, "weight of the dropout contrast (sample level)")
    contrast_temperature: float = setting(0.5, "temperature of the contrast")
    contrast_stage: int = setting(
        3, "first encoder stage with dropout, where the second pass re-enters; 0 = whole; at most the last"
    )
    contrast_queue: int = setting(
        -1, "crops of earlier steps that serve as negatives too; -1: 64 where a batch has fewer than four patients"
    )
    projection: int = setting(384, "width of the vectors that are contrasted")
    checkpoint_every: int = setting(50, "steps between checkpoints")
    measure_every: int = setting(100, "steps between measurements of the heads on fresh crops; 0: at the end only")
    preview_every: int = setting(
        500, "steps between pictures of one scan as original, masked, reconstructed and error; 0: at the end only"
    )

    def __post_init__(self) -> None:
        check_types("pretraining.", self)
        require_training_numbers("pretraining", self)
        for name in ("mask_ratio", "region_ratio"):
            require_share_or_range(f"pretraining.{name}", getattr(self, name))
        require_positive_triple("pretraining.box", self.box)
        weights = [getattr(self, f.name) for f in fields(self) if f.name.endswith("_weight")]
        require(
            min(weights) >= 0 and (max(weights) > 0 or self.objective != "hybridmim"),
            f"the weights of the losses in pretraining are {weights}",
            "Give no negative weight, and at least one above 0.",
        )
        require_positive("pretraining.contrast_temperature", self.contrast_temperature)
        for name in ("contrast_stage", "measure_every", "preview_every"):
            number = getattr(self, name)
            require(number >= 0, f"pretraining.{name} is {number}", "Give a whole number from 0.")
        require(
            self.contrast_queue >= -1, f"pretraining.contrast_queue is {self.contrast_queue}", "Give -1, 0 or more."
        )
        require(
            self.head_depth is None or 0 <= self.head_depth <= 8,
            f"pretraining.head_depth is {self.head_depth}",
            "Give a number from 0 (one linear layer) to 8.",
        )
        require(
            self.head_width > 0 and self.head_width % 32 == 0,
            f"pretraining.head_width is {self.head_width}",
            f"Give a multiple of 32, such as {max(round(self.head_width / 32), 1) * 32}.",
        )
        require_positive("pretraining.projection", self.projection)
