"""The section finetuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional

from HybridMIMLib.settings.checks import require, require_positive, require_share, require_training_numbers
from HybridMIMLib.settings.tree import check_types, setting

MOST_FOLDS = 20


@dataclass
class FinetuningSettings:
    """Supervised training on the labelled scans."""

    steps: int = setting(
        1000,
        "how often the network is adjusted, each time on a batch of crops; the best state on the validation scans is "
        "kept",
    )
    batch: int = setting(4, "crops a step; 0: as fit the device, 4 to 16")
    learning_rate: float = setting(2e-3, "peak learning rate of AdamW")
    weight_decay: float = setting(1e-3, "weight decay of AdamW")
    warmup_steps: int = setting(50, "steps in which the learning rate rises; afterwards it falls as scheduled")
    schedule: Literal["cosine", "poly"] = setting(
        "cosine", "how the learning rate falls: as half a cosine, or as a polynomial of power 0.9"
    )
    start: Literal["all", "encoder"] = setting(
        "all", "what is taken from --weights: encoder and decoder, or the encoder alone; without them: from scratch"
    )
    frozen_steps: int = setting(
        0,
        "first steps in which the encoder keeps the weights it came with, and only the decoder learns; -1: all steps",
    )
    layer_decay: float = setting(
        1.0,
        "factor of the learning rate from each layer of the encoder to the one before it, counted from the decoder "
        "(layer: a stage of a convolutional network, a block of a transformer); 1: all learn alike",
    )
    dropout: float = setting(
        0.0,
        "share of channels dropped in the encoder; 0: none, which with few labelled scans and few steps did best",
    )
    target: Literal["classes", "regions"] = setting(
        "classes",
        "classes: each voxel is of one class or none (softmax, Dice + cross-entropy); regions: groups of labels that "
        "may hold each other, such as WT, TC and ET of BraTS, each told by itself (sigmoid, Dice + binary "
        "cross-entropy)",
    )
    deep_supervision: int = setting(
        0,
        "coarser stages of the decoder that learn from a head of their own in training, each with half the weight of "
        "the one before; -1: all that there are",
    )
    precision: Literal["auto", "float32", "half"] = setting(
        "auto", "half: bfloat16 where that is enough, with losses and weights in float32; auto: where that is faster"
    )
    labelled_fraction: float = setting(
        1.0,
        "share of the scans that are not held out to train on, drawn by patient; a smaller share is a part of a "
        "larger one. At which resolution: plan.spacing",
    )
    validation_cases: int = setting(
        -1,
        "labelled scans held out to choose the best checkpoint; -1: a fifth of them, 0: none, keep the last",
    )
    split: Optional[str] = setting(
        None, 'JSON file {"training": [names], "validation": [names]}; without: drawn, no patient on both sides'
    )
    folds: int = setting(
        0,
        "divide the labelled scans by patient into so many folds, train a network for each on all other folds, "
        "measure it on its own, and make one model of all networks; 0: one network, no folds. With labelled_fraction "
        "each learns from a share of its scans",
    )
    fold: int = setting(0, "train for this fold alone, such as 2 of 5, on one of several machines; 0: for all")
    validate_every: int = setting(100, "steps between validations on whole scans")
    patience: int = setting(
        0, "validations in a row without a better mean Dice after which the training ends early; 0: it never does"
    )
    foreground_share: float = setting(0.67, "share of the crops centred on a voxel of a class, each class as often")
    augment: bool = setting(True, "rotate, scale, flip, and vary the intensities of crops")
    flip_axes: list[int] = setting(
        [], "axes along which crops may be flipped, 0 = left-right; none, because left and right may be classes"
    )
    checkpoint_every: int = setting(50, "steps between checkpoints")

    def __post_init__(self) -> None:
        check_types("finetuning.", self)
        require_training_numbers("finetuning", self)
        require_positive("finetuning.validate_every", self.validate_every)
        require(
            self.validation_cases >= -1,
            f"finetuning.validation_cases is {self.validation_cases}",
            "Give a number of scans, 0 for none, or -1 for a fifth of them.",
        )
        require(
            self.split is None or self.validation_cases == -1,
            "finetuning.split and finetuning.validation_cases both say who is held out",
            "Set finetuning.validation_cases to -1, or leave out the split.",
        )
        self._check_folds()
        require(
            self.frozen_steps >= -1,
            f"finetuning.frozen_steps is {self.frozen_steps}",
            "Give a number of steps, 0 for none, or -1 for all.",
        )
        require(
            self.deep_supervision >= -1,
            f"finetuning.deep_supervision is {self.deep_supervision}",
            "Give a number of stages, 0 for none, or -1 for all.",
        )
        for name in ("layer_decay", "labelled_fraction"):
            share = getattr(self, name)
            require(0 < share <= 1, f"finetuning.{name} is {share}", "Give a number above 0, up to 1.")
        require(
            self.patience >= 0,
            f"finetuning.patience is {self.patience}",
            "Give a number of validations, or 0 to train to the last step.",
        )
        require(
            self.patience == 0 or self.validation_cases != 0,
            "finetuning.patience waits for better validations, and finetuning.validation_cases is 0",
            "Set finetuning.patience to 0, or hold out scans for the validation.",
        )
        require_share("finetuning.foreground_share", self.foreground_share)
        require_share("finetuning.dropout", self.dropout, below_one=True)
        require(
            all(axis in (0, 1, 2) for axis in self.flip_axes),
            f"finetuning.flip_axes is {self.flip_axes}",
            "Give axes among 0, 1 and 2.",
        )

    def _check_folds(self) -> None:
        require(
            self.folds == 0 or 2 <= self.folds <= MOST_FOLDS,
            f"finetuning.folds is {self.folds}",
            f"Give a number from 2 to {MOST_FOLDS}, such as 5, or 0 for none.",
        )
        require(
            0 <= self.fold <= self.folds,
            f"finetuning.fold is {self.fold}, and finetuning.folds is {self.folds}",
            f"Give a number from 1 to {self.folds}, or 0 for all."
            if self.folds
            else "Set finetuning.folds too, such as 5, or set finetuning.fold to 0.",
        )
        for name, value, default in (
            ("split", self.split, None),
            ("validation_cases", self.validation_cases, -1),
        ):
            require(
                self.folds == 0 or value == default,
                f"finetuning.folds and finetuning.{name} both say who is held out",
                f"Leave out finetuning.{name}, or set finetuning.folds to 0.",
            )
