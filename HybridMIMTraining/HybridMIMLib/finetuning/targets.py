"""What a fine-tuning learns to tell: classes that exclude each other, or regions that overlap.

Classes compete in a softmax with the background, by Dice + cross-entropy. Regions, such as the whole tumour, the core
and the enhancing part of BraTS, have one sigmoid output each, by Dice + binary cross-entropy. A region is where any
of its labels is. In a case in which not all of them were annotated, nobody knows where it ends: the case does not
count for it, neither in the loss nor in the validation.

Crops need no draw of their own for regions. Each class is as often at the centre of one, and a region is its classes
together: it is there as often as all of these, and no region more seldom than a class is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from HybridMIMLib.config import Run
from HybridMIMLib.data.classes import LabelClass, Region, regions_in_label_map, telling_regions
from HybridMIMLib.data.survey import CaseFacts
from HybridMIMLib.errors import LabelError, SettingsError
from HybridMIMLib.finetuning.loss import (
    Losses,
    class_shares,
    on_coarser_grids,
    region_losses,
    segmentation_losses,
    set_initial_probability,
    set_initial_shares,
    weighted_losses,
)
from HybridMIMLib.networks.deep_supervision import stage_weights


class Target(ABC):
    """What the outputs of a network are, and how far they are from a label map.

    Attributes:
        outputs: what they mean; one for the background stands before them, unless they overlap.
        overlapping: whether each is told by itself.
        measured: names of what counts for the mean Dice of a validation.
    """

    outputs: tuple[LabelClass, ...]
    overlapping: bool
    measured: tuple[str, ...]

    def losses(
        self,
        scores: Sequence[Tensor],
        label: Tensor,
        annotated: Tensor | None = None,
        weights: Sequence[float] | None = None,
    ) -> Losses:
        """The losses of a batch, to be summed.

        Args:
            scores: (B, outputs, D, H, W) on the label's grid; further ones, each on a grid as coarse as the one
                before or coarser, are those of coarser stages of the decoder.
            label: (B, D, H, W) class numbers.
            annotated: (B, K) whether a class was annotated in a sample. None: all.
            weights: of the stages; None: half as much from each to the next coarser one, 1 together.
        """
        counted = None if annotated is None else self.counted(annotated)
        weights = stage_weights(len(scores) - 1) if weights is None else weights
        return weighted_losses(
            lambda some, truth: self.on_one_grid(some, truth, counted), scores, self.truths(label, scores), weights
        )

    def truths(self, label: Tensor, scores: Sequence[Tensor]) -> list[Tensor]:
        """The label map as each stage should see it."""
        if len(scores) == 1:
            return [self.truth(label)]
        return [self.truth(label), *on_coarser_grids(self.shares(label), scores[1:])]

    @abstractmethod
    def truth(self, label: Tensor) -> Tensor:
        """Class numbers (B, D, H, W) as the losses take them on their own grid."""

    @abstractmethod
    def shares(self, label: Tensor) -> Tensor:
        """Class numbers (B, D, H, W) → (B, outputs, D, H, W) float32, 1 in the voxels of an output."""

    @abstractmethod
    def counted(self, annotated: Tensor) -> Tensor:
        """From what was annotated, (B, K), to what the losses ask for."""

    @abstractmethod
    def on_one_grid(self, scores: Tensor, truth: Tensor, counted: Tensor | None) -> Losses:
        """The losses of one stage."""

    @abstractmethod
    def begin(self, bias: Tensor) -> None:
        """Set the bias of a head so that it says mostly background."""

    @abstractmethod
    def held_by(self, labels: Collection[int]) -> set[str]:
        """Names of the outputs that label maps with these labels have voxels of."""

    @abstractmethod
    def check_annotated(self, run: Run, training: Iterable[CaseFacts]) -> None:
        """See whether every output can be learnt from these cases, each class being annotated in one of them.

        Raises:
            LabelError: one cannot.
        """


class ClassTarget(Target):
    """Classes, of which each voxel has one or none."""

    overlapping = False

    def __init__(self, classes: Sequence[LabelClass]) -> None:
        self.outputs = tuple(classes)
        self.measured = tuple(one.name for one in classes)

    def truth(self, label: Tensor) -> Tensor:
        """As they are."""
        return label

    def shares(self, label: Tensor) -> Tensor:
        """See :meth:`Target.shares`; background first."""
        return class_shares(label, len(self.outputs) + 1).float()

    def counted(self, annotated: Tensor) -> Tensor:
        """As it is."""
        return annotated

    def on_one_grid(self, scores: Tensor, truth: Tensor, counted: Tensor | None) -> Losses:
        """Dice and cross-entropy."""
        return segmentation_losses(scores, truth, counted)

    def begin(self, bias: Tensor) -> None:
        """See :func:`set_initial_shares`."""
        set_initial_shares(bias)

    def held_by(self, labels: Collection[int]) -> set[str]:
        """See :meth:`Target.held_by`."""
        return {one.name for one in self.outputs if one.label in labels}

    def check_annotated(self, run: Run, training: Iterable[CaseFacts]) -> None:
        """Nothing is asked beyond that each class is annotated somewhere."""


class RegionTarget(Target):
    """Regions, of which a voxel may be in several.

    Args:
        classes: of the label maps.
        regions: groups of their labels.

    Raises:
        SettingsError: a label map cannot hold these regions.
    """

    overlapping = True

    def __init__(self, classes: Sequence[LabelClass], regions: Sequence[Region]) -> None:
        self.regions = telling_regions(classes, regions)
        self.outputs = regions_in_label_map(classes, self.regions)
        self.measured = tuple(region.name for region in self.regions)
        # (R, K + 1) whether a region holds a class, background first.
        held = [[False, *(one.label in region.labels for one in classes)] for region in self.regions]
        self._held = torch.tensor(held)

    def truth(self, label: Tensor) -> Tensor:
        """See :meth:`Target.shares`."""
        return self.shares(label)

    def shares(self, label: Tensor) -> Tensor:
        """1 where a region has any of its labels."""
        return torch.stack([held[label] for held in self._held.to(label.device)], dim=1).float()

    def counted(self, annotated: Tensor) -> Tensor:
        """(B, R) whether all labels of a region were annotated."""
        missing = ~annotated[:, None] & self._held[:, 1:].to(annotated.device)
        return ~missing.any(dim=2)

    def on_one_grid(self, scores: Tensor, truth: Tensor, counted: Tensor | None) -> Losses:
        """Dice and binary cross-entropy."""
        return region_losses(scores, truth, counted)

    def begin(self, bias: Tensor) -> None:
        """See :func:`set_initial_probability`."""
        set_initial_probability(bias)

    def held_by(self, labels: Collection[int]) -> set[str]:
        """See :meth:`Target.held_by`; a region is where any of its labels is."""
        return {region.name for region in self.regions if not region.labels.isdisjoint(labels)}

    def check_annotated(self, run: Run, training: Iterable[CaseFacts]) -> None:
        """Each region needs a case in which all its labels were annotated."""
        looked_for = [facts.annotated for facts in training]
        for region in self.regions:
            if not any(labels is None or region.labels <= labels for labels in looked_for):
                raise LabelError(
                    f"{run.labelled}: the labels of region {region.name} ({_numbers(region)}) are annotated together "
                    f"in none of the {len(looked_for)} scans to train on",
                    cure="Add scans in which all of them are annotated, choose who is trained on with "
                    "finetuning.split, or set finetuning.target to classes.",
                )


def make_target(run: Run, classes: Sequence[LabelClass], regions: Sequence[Region]) -> Target:
    """What the settings ask to learn.

    Args:
        run: the settings.
        classes: of the label maps.
        regions: of the data set, of these classes.

    Raises:
        SettingsError: regions are asked for, and there are none, or none that a label map can hold.
    """
    if run.finetuning.target == "classes":
        return ClassTarget(classes)
    if not regions:
        raise SettingsError(
            f"finetuning.target is regions, and {run.labelled} names no region of several labels",
            cure='Name them in classes.json, such as {"WT": [1, 2, 4], "TC": [1, 4], "ET": 4}, or set '
            "finetuning.target to classes.",
        )
    return RegionTarget(classes, regions)


def _numbers(region: Region) -> str:
    return ", ".join(str(label) for label in sorted(region.labels))
