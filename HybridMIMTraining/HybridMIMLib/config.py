"""The settings of everything: one typed tree that every command takes, saves and accepts back.

A :class:`Run` says what to work on (top level) and how (one section a stage). Each section checks itself when it
is made, so that a wrong value ends in one line before any work starts. ``run.yaml`` in every run folder is this
tree; it can be given back to any command with ``--config``.

This file imports the standard library alone, because panels and ``--help`` load it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Optional, Union, get_args, get_origin, get_type_hints

from HybridMIMLib.errors import SettingsError

Triple = list[int]


DEMO_DEFAULTS: dict[str, Any] = {
    "pretraining": {"steps": 100},
    "finetuning": {"steps": 240, "validate_every": 80},
}
"""Where the demo differs from a real run: short enough for two cores."""


MOST_FOLDS = 20


def setting(default: Any, help_text: str) -> Any:
    """A dataclass field with a default and the line that ``--help`` shows for it."""
    metadata = {"help": help_text}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type, help_text: str) -> Any:
    """A dataclass field that holds a section of settings."""
    return field(default_factory=kind, metadata={"help": help_text})


@dataclass
class PlanSettings:
    """How scans are brought to one form; what is not given is derived from the scans themselves."""

    # Optional[...] and not "| None": get_type_hints must evaluate these on Python 3.10 for jsonargparse too.
    spacing: Optional[list[float]] = setting(
        None,
        "voxel size in mm along R, A, S that scans and crops are brought to, e.g. [1.5, 1.5, 2.0]; finer shows more "
        "and takes longer",
    )
    normalisation: Literal["auto", "window", "percentiles", "zscore"] = setting(
        "auto",
        "how intensities become alike; window: fixed ones (CT); zscore: by median and spread of each scan's body "
        "(MR); percentiles: of each scan; auto: window for CT, else zscore",
    )
    window: list[float] = setting(
        [-1000.0, 1000.0],
        "intensities that become 0 and 1 with normalisation=window, of a CT in HU; what lies outside is cut off",
    )
    crop: Optional[Triple] = setting(
        None,
        "voxels of the crops of scans that are trained on, along R, A, S (left-right, back-front, feet-head); a "
        "multiple of the region",
    )
    patch: Optional[Triple] = setting(None, "voxels of a patch, the unit that is masked")
    region: Optional[Triple] = setting(None, "voxels of a region (sub-volume), a multiple of the patch")

    def __post_init__(self) -> None:
        _check_types("plan.", self)
        _positive_triple("plan.spacing", self.spacing)
        for name in ("crop", "patch", "region"):
            _positive_triple(f"plan.{name}", getattr(self, name))
        _require(
            len(self.window) == 2 and self.window[0] < self.window[1],
            f"plan.window is {self.window}",
            "Give two intensities, the lower one first.",
        )
        _multiple("plan.region", self.region, "plan.patch", self.patch)
        _multiple("plan.crop", self.crop, "plan.region", self.region)


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
        _check_types("network.", self)
        u_net = self.architecture in ("unet", "resunet")
        for name in ("features", "strides"):
            _require(
                u_net or getattr(self, name) is None,
                f"network.{name} is given, and {self.architecture} has none",
                "Leave it out and choose network.size, or set network.architecture to unet or resunet.",
            )
        if self.features is not None:
            _require(
                len(self.features) >= 2 and all(f > 0 for f in self.features),
                f"network.features is {self.features}",
                "Give two or more positive numbers.",
            )
        self._check_strides()
        _positive("network.window", self.window)
        _require(self.token in (8, 16), f"network.token is {self.token}", "Give 8 or 16.")
        _share("network.dropout", self.dropout, below_one=True)

    def _check_strides(self) -> None:
        if self.strides is None:
            return
        _require(
            self.features is not None and len(self.strides) == len(self.features),
            f"network.strides is {self.strides}, and network.features is {self.features}",
            "Give as many strides as features.",
        )
        fine = all(len(step) == 3 and set(step) <= {1, 2} for step in self.strides) and self.strides[0] == [1, 1, 1]
        _require(
            fine,
            f"network.strides is {self.strides}",
            "Give [1, 1, 1] first, then for each further stage three numbers that are 1 or 2.",
        )


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
        _check_types("pretraining.", self)
        _training_numbers("pretraining", self)
        for name in ("mask_ratio", "region_ratio"):
            _share_or_range(f"pretraining.{name}", getattr(self, name))
        _positive_triple("pretraining.box", self.box)
        weights = [getattr(self, f.name) for f in fields(self) if f.name.endswith("_weight")]
        _require(
            min(weights) >= 0 and (max(weights) > 0 or self.objective != "hybridmim"),
            f"the weights of the losses in pretraining are {weights}",
            "Give no negative weight, and at least one above 0.",
        )
        _positive("pretraining.contrast_temperature", self.contrast_temperature)
        for name in ("contrast_stage", "measure_every", "preview_every"):
            number = getattr(self, name)
            _require(number >= 0, f"pretraining.{name} is {number}", "Give a whole number from 0.")
        _require(
            self.contrast_queue >= -1, f"pretraining.contrast_queue is {self.contrast_queue}", "Give -1, 0 or more."
        )
        _require(
            self.head_depth is None or 0 <= self.head_depth <= 8,
            f"pretraining.head_depth is {self.head_depth}",
            "Give a number from 0 (one linear layer) to 8.",
        )
        _require(
            self.head_width > 0 and self.head_width % 32 == 0,
            f"pretraining.head_width is {self.head_width}",
            f"Give a multiple of 32, such as {max(round(self.head_width / 32), 1) * 32}.",
        )
        _positive("pretraining.projection", self.projection)


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
        _check_types("finetuning.", self)
        _training_numbers("finetuning", self)
        _positive("finetuning.validate_every", self.validate_every)
        _require(
            self.validation_cases >= -1,
            f"finetuning.validation_cases is {self.validation_cases}",
            "Give a number of scans, 0 for none, or -1 for a fifth of them.",
        )
        _require(
            self.split is None or self.validation_cases == -1,
            "finetuning.split and finetuning.validation_cases both say who is held out",
            "Set finetuning.validation_cases to -1, or leave out the split.",
        )
        self._check_folds()
        _require(
            self.frozen_steps >= -1,
            f"finetuning.frozen_steps is {self.frozen_steps}",
            "Give a number of steps, 0 for none, or -1 for all.",
        )
        _require(
            self.deep_supervision >= -1,
            f"finetuning.deep_supervision is {self.deep_supervision}",
            "Give a number of stages, 0 for none, or -1 for all.",
        )
        for name in ("layer_decay", "labelled_fraction"):
            share = getattr(self, name)
            _require(0 < share <= 1, f"finetuning.{name} is {share}", "Give a number above 0, up to 1.")
        _require(
            self.patience >= 0,
            f"finetuning.patience is {self.patience}",
            "Give a number of validations, or 0 to train to the last step.",
        )
        _require(
            self.patience == 0 or self.validation_cases != 0,
            "finetuning.patience waits for better validations, and finetuning.validation_cases is 0",
            "Set finetuning.patience to 0, or hold out scans for the validation.",
        )
        _share("finetuning.foreground_share", self.foreground_share)
        _share("finetuning.dropout", self.dropout, below_one=True)
        _require(
            all(axis in (0, 1, 2) for axis in self.flip_axes),
            f"finetuning.flip_axes is {self.flip_axes}",
            "Give axes among 0, 1 and 2.",
        )

    def _check_folds(self) -> None:
        _require(
            self.folds == 0 or 2 <= self.folds <= MOST_FOLDS,
            f"finetuning.folds is {self.folds}",
            f"Give a number from 2 to {MOST_FOLDS}, such as 5, or 0 for none.",
        )
        _require(
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
            _require(
                self.folds == 0 or value == default,
                f"finetuning.folds and finetuning.{name} both say who is held out",
                f"Leave out finetuning.{name}, or set finetuning.folds to 0.",
            )


@dataclass
class InferenceSettings:
    """Segmenting whole scans with a sliding window."""

    preset: Literal["fast", "balanced", "best"] = setting(
        "balanced",
        "fast: windows overlap by a quarter and follow the body; balanced: by a half; best: by five eighths, and "
        "each is flipped too along the axes along which the model was trained to be flipped",
    )
    overlap: Optional[float] = setting(
        None, "share by which neighbouring windows overlap; without: what the preset says"
    )
    step: Optional[Triple] = setting(None, "voxels from a window to the next along R, A, S, in place of overlap")
    flips: Optional[list[int]] = setting(
        None,
        "axes (0: left-right, 1: front-back, 2: up-down) along which each window is flipped too, in every "
        "combination; without: what the preset says",
    )
    skip_air: bool = setting(
        True, "look at the body alone: no windows outside the box around it, none that hold air alone"
    )
    follow_body: bool = setting(
        False,
        "lay windows anew around the body in each slab of the scan: about half as many where neck and shoulders are "
        "in it, and labels that differ a little from those of plain MONAI",
    )
    window_batch: int = setting(0, "windows that go through the network together; 0: as suits the device")
    engine: Literal["auto", "torch", "openvino"] = setting(
        "auto", "what computes the network; auto: OpenVINO on a CPU where it is installed, else PyTorch"
    )
    precision: Literal["auto", "float32", "half"] = setting(
        "auto", "auto: half precision where a GPU is faster with it, and float32 elsewhere"
    )
    uncertainty: bool = setting(False, "write how uncertain each voxel is (entropy, 0 to 1) beside the label maps")
    largest: Optional[list[str]] = setting(
        None, "classes (or all) of which only the largest component is kept; without: what the model says"
    )
    fill_holes: Optional[list[str]] = setting(
        None, "classes (or all) whose holes are filled; without: what the model says"
    )
    smallest_ml: Optional[list[str]] = setting(
        None,
        'components smaller than this are removed: CLASS=ML or all=ML, such as ["liver=20"]; without: what the model '
        "says",
    )

    def __post_init__(self) -> None:
        _check_types("inference.", self)
        if self.overlap is not None:
            _share("inference.overlap", self.overlap, below_one=True)
        _positive_triple("inference.step", self.step)
        _require(
            self.overlap is None or self.step is None,
            f"inference.overlap is {self.overlap} and inference.step is {self.step}: both say the same",
            "Give one of them.",
        )
        _require(
            self.flips is None or sorted(set(self.flips) & {0, 1, 2}) == sorted(self.flips),
            f"inference.flips is {self.flips}",
            "Give a list of different axes out of 0, 1, 2; empty for none.",
        )
        _require(self.window_batch >= 0, f"inference.window_batch is {self.window_batch}", "Give 0 or more.")
        for text in self.smallest_ml or []:
            _require(
                _is_volume(text.rpartition("=")[2]) and bool(text.rpartition("=")[0].strip()),
                f"inference.smallest_ml has {text!r}",
                "Give CLASS=ML, such as liver=20.",
            )


@dataclass
class EvaluationSettings:
    """Judging segmentations by references."""

    tolerance: float = setting(2.0, "mm that surfaces may be apart in the surface Dice (NSD)")
    tolerances: Optional[list[str]] = setting(
        None, 'the same for single classes or regions: CLASS=MM, such as ["liver=3", "aorta=1"]'
    )
    missing_predictions: Literal["empty", "leave_out"] = setting(
        "empty",
        "what a reference without a prediction means; empty: nothing was found in it, which counts; leave_out: it "
        "was not to be segmented",
    )
    resamples: int = setting(2000, "draws of the bootstrap that makes the 95 % intervals")
    pictures: int = setting(6, "cases with the lowest Dice that the report shows as pictures; 0: none")

    def __post_init__(self) -> None:
        _check_types("evaluation.", self)
        _positive("evaluation.tolerance", self.tolerance)
        for text in self.tolerances or []:
            _require(
                _is_volume(text.rpartition("=")[2]) and bool(text.rpartition("=")[0].strip()),
                f"evaluation.tolerances has {text!r}",
                "Give CLASS=MM, such as liver=3.",
            )
        _require(
            self.resamples >= 100, f"evaluation.resamples is {self.resamples}", "Give 100 or more, such as 2000."
        )
        _require(self.pictures >= 0, f"evaluation.pictures is {self.pictures}", "Give 0 or more.")


@dataclass
class SplitSettings:
    """How the demo shares out cases when the folders are the user's own."""

    unseen: int = setting(-1, "labelled scans kept for the test, never trained on; -1: a quarter of them")
    labelled: int = setting(-1, "labelled scans to fine-tune on; -1: all that are not kept for the test")
    unlabelled: int = setting(-1, "scans to pre-train on; -1: all that are not kept for the test")

    def __post_init__(self) -> None:
        _check_types("split.", self)
        for name in ("unseen", "labelled", "unlabelled"):
            number = getattr(self, name)
            _require(number >= -1 and number != 0, f"split.{name} is {number}", "Give a number above 0, or -1.")
        for name in ("labelled", "unlabelled"):
            _require(getattr(self, name) != 1, f"split.{name} is 1", "Give 2 or more: one alone cannot be compared.")


STUDY_OBJECTIVES = (
    "scratch",
    "hybridmim",
    *(f"hybridmim-{loss}" for loss in ("partial", "number", "location", "consistency", "contrast")),
    "simmim",
    "mae",
    "simclr",
)
"""What a study compares; ``hybridmim-number`` is HybridMIM without that loss."""


@dataclass
class StudySettings:
    """What a study crosses, by which protocol, and how it is worked off."""

    preset: Optional[Literal["quick", "paper"]] = setting(
        None,
        "quick: few steps and two seeds, to see that it works; paper: the axes of arXiv:2204.11716, each varied by "
        "itself, for a GPU. Either fills in what is left at its default",
    )
    objectives: list[str] = setting(
        ["scratch", "hybridmim", "simmim"],
        "scratch, hybridmim, simmim, mae, simclr, and hybridmim without one of its losses: hybridmim-partial, "
        "-number, -location, -consistency, -contrast",
    )
    networks: Optional[list[str]] = setting(
        None, "architectures, with a size if wanted, such as [unet-tiny, unetr-base]; without: that of --network"
    )
    mask_ratios: Optional[list[float]] = setting(None, "shares of the patches that are masked")
    patches: Optional[list[int]] = setting(None, "voxels along a side of a patch")
    head_depths: Optional[list[int]] = setting(None, "simmim, mae: transformer blocks of the head")
    spacings: Optional[list[Union[float, list[float]]]] = setting(
        None, "resolutions: mm along R, A, S, or a number: so many times the spacing of the plan"
    )
    vary: Literal["all", "one"] = setting(
        "all", "all: every value of an axis with every value of the others; one: each axis by itself"
    )
    labelled: list[Union[float, str]] = setting(
        ["all"], 'how many cases to fine-tune on: numbers from 1, shares below 1, or "all"'
    )
    steps: Optional[list[int]] = setting(
        None, "steps of the fine-tuning, one for each entry of study.labelled; without: finetuning.steps for all"
    )
    learning_rates: Optional[list[float]] = setting(
        None,
        "peak learning rates of the fine-tuning, of which each arm gets the one with the best validation of the "
        "first seed; without: finetuning.learning_rate for all",
    )
    seeds: list[int] = setting([0, 1, 2], "seeds of the fine-tuning, of which the labelled cases are drawn too")
    pretraining_seeds: Optional[list[int]] = setting(
        None,
        "seeds of the pre-training; as many as study.seeds: one for each of them, else all pairs; without: as "
        "study.seeds",
    )
    scratch_double: bool = setting(True, "train from scratch for twice the steps too")
    test_cases: int = setting(-1, "labelled cases that are tested on and serve nothing else; -1: a quarter")
    test: Optional[list[str]] = setting(
        None, "names of the test cases, or of a JSON file with a list of them, in place of a draw"
    )
    validation_cases: int = setting(
        -1, "labelled cases that choose checkpoint and learning rate; -1: a fifth of the rest"
    )
    validations: int = setting(10, "how often a fine-tuning is validated, its last step included")
    jobs: int = setting(1, "pre-trainings or fine-tunings at once; the cores are divided among them")
    estimate_only: bool = setting(False, "try a few steps, tell how long the study will take, and end")

    def __post_init__(self) -> None:
        _check_types("study.", self)
        self._check_objectives()
        self._check_lists()
        self._check_labelled()
        _positive("study.validations", self.validations)
        _positive("study.jobs", self.jobs)
        for name in ("test_cases", "validation_cases"):
            number = getattr(self, name)
            _require(
                number > 0 or number == -1, f"study.{name} is {number}", "Give a number of cases above 0, or -1."
            )
        _require(
            self.test is None or self.test_cases == -1,
            "study.test and study.test_cases both say which cases are tested on",
            "Set study.test_cases to -1, or leave out study.test.",
        )

    def _check_objectives(self) -> None:
        unknown = [name for name in self.objectives if name not in STUDY_OBJECTIVES]
        _require(
            not unknown,
            f"study.objectives has {', '.join(map(repr, unknown))}",
            f"Objectives are: {', '.join(STUDY_OBJECTIVES)}.",
        )
        _require(
            "scratch" in self.objectives and len(set(self.objectives)) > 1,
            f"study.objectives is {self.objectives}: a study compares scratch with something",
            "Name scratch and at least one other, such as [scratch, hybridmim].",
        )
        known = [f"{a}{s}" for a in _choices(NetworkSettings, "architecture")
                 for s in ("", *(f"-{size}" for size in _choices(NetworkSettings, "size")))]  # fmt: skip
        for name in self.networks or []:
            _require(name in known, f"study.networks has {name!r}", f"Networks are: {', '.join(known)}.")

    def _check_lists(self) -> None:
        for one in fields(self):
            values = getattr(self, one.name)
            if not isinstance(values, list):
                continue
            _require(len(values) > 0, f"study.{one.name} is empty", "Name at least one, or leave it out.")
            _require(
                one.name == "steps" or all(value not in values[:index] for index, value in enumerate(values)),
                f"study.{one.name} is {values}: one is there twice",
                "Name each once.",
            )
        for name in ("patches", "steps", "learning_rates"):
            for value in getattr(self, name) or []:
                _positive(f"a number in study.{name}", value)
        for spacing in self.spacings or []:
            if isinstance(spacing, list):
                _positive_triple("a spacing in study.spacings", spacing)
            else:
                _positive("a number in study.spacings", spacing)
        for ratio in self.mask_ratios or []:
            _require(0 < ratio < 1, f"study.mask_ratios has {ratio}", "Give shares above 0 and below 1.")
        for depth in self.head_depths or []:
            _require(
                0 <= depth <= 8, f"study.head_depths has {depth}", "Give numbers from 0 (one linear layer) to 8."
            )
        for seed in [*self.seeds, *(self.pretraining_seeds or [])]:
            _require(seed >= 0, f"a seed of the study is {seed}", "Give whole numbers from 0.")

    def _check_labelled(self) -> None:
        for amount in self.labelled:
            fine = amount == "all" if isinstance(amount, str) else 0 < amount < 1 or (amount >= 1 and amount % 1 == 0)
            _require(
                fine,
                f"study.labelled has {amount!r}",
                'Give whole numbers of cases from 1, shares between 0 and 1, or "all".',
            )
        _require(
            self.steps is None or len(self.steps) == len(self.labelled),
            f"study.steps has {len(self.steps or [])} entries, and study.labelled has {len(self.labelled)}",
            "Give a number of steps for each, or leave out study.steps.",
        )


@dataclass
class Run:
    """What to work on, and how. Paths are text, so that the tree can be written as YAML."""

    unlabelled: Optional[str] = setting(None, "folder of scans without labels, or a CSV or JSON list of them")
    labelled: Optional[str] = setting(
        None, "folder of labelled scans (images/ + labels/, MSD, nnU-Net, BTCV, BraTS), or a CSV or JSON list of them"
    )
    missing_labels: Literal["absent", "unannotated"] = setting(
        "absent",
        "what it means that a class is missing from a label map; unannotated: nobody looked for it, learn nothing "
        "from it (always so where the scans say that they are partially labelled)",
    )
    resample_labels: bool = setting(
        False, "bring a label map that lies on another grid onto its scan (nearest neighbour) instead of refusing it"
    )
    check: bool = setting(
        False,
        "write nothing: tell of every scan whether it can be used, and why not; of scans to segment, how long each "
        "preset would take",
    )
    of: Literal["train", "pretrain", "finetune"] = setting(
        "train", "estimate: the command of which time, memory and disk are told"
    )
    scans: Optional[str] = setting(
        None, "scan, or folder of scans, to segment; evaluate draws its pictures on those of this folder"
    )
    predictions: Optional[str] = setting(None, "folder of label maps to judge, of this program or any other")
    references: Optional[str] = setting(
        None, "folder of label maps that are held to be right: a labelled data set, or label maps alone"
    )
    compare: Optional[str] = setting(None, "folder of other label maps of the same scans, to compare with")
    model: Optional[str] = setting(None, "model package: a folder, a .zip, or the name of one that was added")
    models: Optional[list[str]] = setting(
        None,
        "model packages to make one of: folders, .zip files or names; they may stand behind the command, without "
        "--models",
    )
    weights: Optional[str] = setting(
        None, "run folder of a pre-training to start from, or a published .pt file; without: from scratch"
    )
    partial_weights: bool = setting(
        False, "start from the weights also where they fill less than 90 % of the encoder, instead of refusing them"
    )
    name: Optional[str] = setting(None, "what the model is called; without: the name of the labelled folder")
    license: Optional[str] = setting(
        None, "license of a model to hand on, such as CC-BY-4.0, or a file with its text"
    )
    output: Optional[str] = setting(None, "run folder to write to; without: a new one where runs are kept")
    store: Optional[str] = setting(None, "folder for prepared scans, shared by runs; without: in the run folder")
    seed: int = setting(0, "number from which every random draw follows")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    plan: PlanSettings = section(PlanSettings, "how scans are brought to one form")
    network: NetworkSettings = section(NetworkSettings, "the network")
    pretraining: PretrainingSettings = section(PretrainingSettings, "pre-training without labels")
    finetuning: FinetuningSettings = section(FinetuningSettings, "training with labels")
    inference: InferenceSettings = section(InferenceSettings, "segmenting scans")
    evaluation: EvaluationSettings = section(EvaluationSettings, "judging segmentations")
    split: SplitSettings = section(SplitSettings, "sharing out cases in the demo")
    study: StudySettings = section(StudySettings, "what a study compares")

    def __post_init__(self) -> None:
        _check_types("", self)
        _require(
            self.name is None or is_name(self.name), f"name is {self.name!r}", "Give one line that is not blank."
        )
        _require(self.seed >= 0, f"seed is {self.seed}", "Give a whole number from 0.")
        _require(
            re.fullmatch("auto|cpu|mps|cuda(:[0-9]+)?", self.device) is not None,
            f"device is {self.device!r}",
            "Give auto, cpu, cuda, cuda:1 (a number) or mps.",
        )

    def folder(self, name: str, purpose: str) -> Path:
        """The path in field ``name``.

        Raises:
            SettingsError: it was not given; ``purpose`` says what it is needed for.
        """
        value = getattr(self, name)
        _require(value is not None, f"--{name} is missing: {purpose}", f"Add --{name} PATH.")
        return user_path(value)


def to_dict(run: Run) -> dict[str, Any]:
    """The tree as nested dictionaries of plain values."""
    return dataclasses.asdict(run)


def from_dict(content: Mapping[str, Any]) -> Run:
    """The tree from nested dictionaries; fields that are not there keep their default.

    Raises:
        SettingsError: a field is unknown or has a value that cannot work.
    """
    built = _build(Run, content, "")
    assert isinstance(built, Run)
    return built


def make_run(run: Run | None, settings: Mapping[str, Any]) -> Run:
    """The settings of a Python call: a tree, fields of a tree, or a tree with some fields replaced.

    Sections may be given as dictionaries: ``pretrain(unlabelled="scans", pretraining={"steps": 100})``.

    Raises:
        SettingsError: a field is unknown or has a value that cannot work.
    """
    _require(
        run is None or isinstance(run, Run),
        f"the settings are {run!r}, which is no Run",
        "Say what it is, such as unlabelled=PATH.",
    )
    merged = to_dict(run) if run is not None else {}
    for name, value in settings.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        if isinstance(value, Mapping) and isinstance(merged.get(name), dict):
            value = {**merged[name], **value}
        merged[name] = value
    return from_dict(merged)


def differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names (dotted) of the settings that differ between two trees as dictionaries."""
    names: list[str] = []
    for key in sorted(set(one) | set(other)):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(prefix + key)
    return names


def workspace() -> Path:
    """The folder in which runs are kept when no output is named."""
    return user_path(os.environ.get("HYBRIDMIM_WORKSPACE") or "~/HybridMIM")


def user_path(text: str) -> Path:
    """A path as a user writes it, with ``~`` for the home folder.

    Raises:
        SettingsError: there is no such home folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise SettingsError(
            f"{text}: there is no such home folder",
            cure="Write the whole path, or set HYBRIDMIM_WORKSPACE to a folder.",
        ) from error


def is_name(text: str) -> bool:
    """Whether text can name a model or a class where people read it: one line, and not blank."""
    return bool(text.strip()) and text.splitlines() == [text]


@functools.cache
def hints_of(kind: type) -> Mapping[str, Any]:
    """The types of the settings of a section; evaluated once, as a panel asks at every letter that somebody types."""
    return get_type_hints(kind)


def _build(kind: type, content: Any, prefix: str) -> Any:
    _require(
        isinstance(content, Mapping),
        f"{prefix.rstrip('.') or 'the settings'} is {content!r}",
        "Give a section of names and values.",
    )
    hints = hints_of(kind)
    known = {f.name for f in fields(kind)}
    for name in content:
        _require(
            name in known,
            f"there is no setting {prefix}{name}",
            f"Settings here are: {', '.join(sorted(known))}.",
        )
    values = {
        name: _build(hints[name], value, f"{prefix}{name}.") if dataclasses.is_dataclass(hints[name]) else value
        for name, value in content.items()
    }
    return kind(**values)


def _check_types(prefix: str, settings: Any) -> None:
    """Each value is of its field's type; tuples, paths and numpy's numbers become what YAML gives back."""
    kind: type = type(settings)
    for name, hint in hints_of(kind).items():
        value = getattr(settings, name)
        try:
            setattr(settings, name, _as_type(value, hint))
        except TypeError as error:
            raise SettingsError(f"{prefix}{name} is {value!r}", cure=f"Give {_in_words(hint)}.") from error


def _as_type(value: Any, hint: Any) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Union:
        return _as_one_of(value, parts)
    if origin is list and isinstance(value, Sequence) and not isinstance(value, str):
        return [_as_type(part, parts[0]) for part in value]
    if hint is str and isinstance(value, (str, os.PathLike)):
        return str(value)
    if hint is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if hint is float and isinstance(value, Real) and not isinstance(value, bool):
        # A whole number of hundreds of digits is too large for it.
        with suppress(OverflowError):
            if math.isfinite(value):
                return float(value)
    if origin is Literal and value in parts:
        return value
    if isinstance(hint, type) and (hint is bool or dataclasses.is_dataclass(hint)) and isinstance(value, hint):
        return value
    raise TypeError


def _as_one_of(value: Any, hints: Sequence[Any]) -> Any:
    for hint in hints:
        if value is None and hint is type(None):
            return None
        with suppress(TypeError):
            return _as_type(value, hint)
    raise TypeError


def _in_words(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Union:
        return " or ".join(_in_words(part) for part in parts if part is not type(None))
    if origin is list and get_origin(parts[0]) is list:
        return "a list of lists of whole numbers"
    if origin is list and str in (parts[0], *get_args(parts[0])):
        return "a list of names" if parts[0] is str else "a list of numbers and names"
    if origin is list:
        return "a list of whole numbers" if parts[0] is int else "a list of numbers"
    if origin is Literal:
        return " or ".join(parts)
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return words.get(hint, "a section of names and values")


def _choices(kind: type, name: str) -> tuple[str, ...]:
    """The values that a setting may have."""
    return get_args(hints_of(kind)[name])


def _require(condition: bool, message: str, cure: str) -> None:
    if not condition:
        raise SettingsError(message, cure=cure)


def _positive(name: str, value: float) -> None:
    _require(value > 0, f"{name} is {value}", "Give a number above 0.")


def _share(name: str, value: float, below_one: bool = False) -> None:
    within = 0 <= value < 1 if below_one else 0 <= value <= 1
    _require(within, f"{name} is {value}", f"Give a share from 0 to {'below ' if below_one else ''}1.")


def _share_or_range(name: str, value: Share | None) -> None:
    ends = [] if value is None else value if isinstance(value, list) else [value, value]
    fine = not ends or (len(ends) == 2 and 0 < ends[0] <= ends[1] <= 1)
    _require(fine, f"{name} is {value}", "Give a share above 0, up to 1, or two of them, the lower one first.")


def _is_volume(text: str) -> bool:
    with suppress(ValueError):
        return math.isfinite(float(text)) and float(text) > 0
    return False


def _positive_triple(name: str, value: Sequence[float] | None) -> None:
    fine = value is None or (len(value) == 3 and all(part > 0 for part in value))
    _require(fine, f"{name} is {value}", "Give three numbers above 0, one an axis.")


def _multiple(name: str, value: Sequence[int] | None, of: str, unit: Sequence[int] | None) -> None:
    if value is None or unit is None or all(v % u == 0 for v, u in zip(value, unit)):
        return
    below, above = ([max(v // u, 1) * u for v, u in zip(value, unit)], [-(-v // u) * u for v, u in zip(value, unit)])
    nearest = f"{above}" if below == above else f"{below} or {above}"
    raise SettingsError(
        f"{name} {value} is not a multiple of {of} {unit}", cure=f"The nearest for {name} is {nearest}."
    )


def _training_numbers(name: str, values: Any) -> None:
    for part in ("steps", "learning_rate", "checkpoint_every"):
        _positive(f"{name}.{part}", getattr(values, part))
    for part in ("batch", "weight_decay", "warmup_steps"):
        number = getattr(values, part)
        _require(number >= 0, f"{name}.{part} is {number}", "Give 0 or a number above it.")
