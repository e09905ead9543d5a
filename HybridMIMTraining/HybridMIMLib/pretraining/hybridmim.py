"""HybridMIM (arXiv:2303.10333): one masked crop teaches encoder and decoder at three levels.

=========  ===========================  ==========================================================================
level      loss                         what it asks
=========  ===========================  ==========================================================================
pixel      partial region prediction    reconstruct the masked voxels of a box, from features of that box alone
region     number                       from a region's bottleneck feature: how many of its patches are masked
region     location                     which of them
region     consistency                  both answers must agree
sample     contrast                     two passes that differ by dropout are alike, other patients are not
=========  ===========================  ==========================================================================

What differs from the published code, on purpose:

- The mask is drawn in two levels, and is a tensor of its own: neither dark voxels nor padding count as masked.
- Hidden voxels take a learned intensity. They are 0 in the published code, which in CT is air: no head could tell
  hidden air from air that is seen.
- Regions are cut out of the grid in space, so that a region's label belongs to its feature.
- The box lies anywhere, not always in the same corner.
- Consistency is the squared difference of expected counts, so that its gradient reaches both heads, and as large
  for regions of many patches as for those of 8.
- The contrast uses pooled features of different patients, with dropout from a chosen stage of the encoder on, where
  the second pass enters again: that saves running the whole encoder twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from HybridMIMLib.architectures import check_divides
from HybridMIMLib.data.patches import inside_mask
from HybridMIMLib.draws import derived_keys
from HybridMIMLib.networks.dropout import dropout_keys
from HybridMIMLib.networks.interface import Box, EncoderDecoder, Pyramid
from HybridMIMLib.pretraining.contrast import NegativeQueue, nt_xent, partner_found, pooled
from HybridMIMLib.pretraining.crops import Crops
from HybridMIMLib.pretraining.masking import (
    PatchGrid,
    Triple,
    by_region,
    draw_box,
    draw_mask,
    to_voxels,
    whole_patches,
)
from HybridMIMLib.pretraining.objective import Objective, Preview, mode
from HybridMIMLib.pretraining.targets import (
    masked_error,
    mean_over,
    normalised,
    patch_statistics,
    reconstruction_errors,
)
from HybridMIMLib.settings.pretraining import PretrainingSettings

MASK_RATIO, PUBLISHED_PATCHES = 0.40, 8
"""Share of the patches that is masked, and patches of a region, as published."""


@dataclass(frozen=True)
class MaskedCrops:
    """Crops with what is hidden of them.

    Attributes:
        crops: the crops.
        whole: (B, D', H', W') True for patches without padding.
        mask: (B, D', H', W') True for masked patches, all of them whole.
        box: what is reconstructed; None where nothing is.
    """

    crops: Crops
    whole: Tensor
    mask: Tensor
    box: Box | None


class HybridMIM(Objective):
    """The objective: a backbone, a head for each loss, and five losses; one whose weight is 0 has neither.

    Args:
        backbone: encoder and decoder to pre-train.
        grid: crop, patch and region; the region must be a multiple of the backbone's stride.
        box: voxels of what is reconstructed, along each axis.
        channels: of the scans.
        settings: ratios, weights, temperature and stage of the contrast.
        queue: earlier crops to contrast with, 0 for none.

    Raises:
        SettingsError: the region is no multiple of the backbone's stride.
    """

    trains_decoder = True

    def __init__(
        self,
        backbone: EncoderDecoder,
        grid: PatchGrid,
        box: Triple,
        channels: int,
        settings: PretrainingSettings,
        queue: int = 0,
    ) -> None:
        super().__init__()
        check_divides("plan.region", grid.region, "the stride of the network", backbone.strides[-1])
        self.backbone, self.grid, self.box, self.settings = backbone, grid, box, settings
        self.error = "l2" if settings.reconstruction == "auto" else settings.reconstruction
        self.stage = min(settings.contrast_stage, len(backbone.widths) - 1)
        self.cells = tuple(r // s for r, s in zip(grid.region, backbone.strides[-1]))
        count, width = prod(grid.per_region), backbone.widths[-1]
        feature = width * prod(self.cells)
        weights = settings
        self.trains_decoder = weights.partial_weight > 0
        # Begins at 0, as published; what is not learnt stays there.
        self.fill = nn.Parameter(torch.zeros(channels), requires_grad=settings.fill == "learned")
        if weights.partial_weight:
            self.reconstruction = nn.Conv3d(backbone.out_width, channels, 1)
        if weights.number_weight or weights.consistency_weight:
            self.number = nn.Linear(feature, count + 1)
        if weights.location_weight or weights.consistency_weight:
            self.location = nn.Linear(feature, count)
        if weights.contrast_weight:
            self.projection = nn.Linear(width, settings.projection)
        self.queue = NegativeQueue(queue, settings.projection) if weights.contrast_weight and queue else None

    def mask(self, crops: Crops) -> MaskedCrops:
        """Draw what is hidden of crops, and the box."""
        chosen = self.settings
        whole = whole_patches(crops.sizes, self.grid)
        ratio = MASK_RATIO if chosen.mask_ratio is None else chosen.mask_ratio
        mask = draw_mask(crops.keys, self.grid, whole, ratio, chosen.region_ratio)
        return MaskedCrops(crops, whole, mask, self._draw_box(crops, whole) if chosen.partial_weight else None)

    def losses(self, crops: Crops) -> dict[str, Tensor]:
        """See :meth:`Objective.losses`."""
        return self.losses_of(self.mask(crops))

    def losses_of(self, batch: MaskedCrops) -> dict[str, Tensor]:
        """The losses by name, each multiplied by its weight; one whose weight is 0 is not computed."""
        weights = self.settings
        pyramid = self._encode(0, self.hide(batch), batch.crops.keys, "first pass")
        losses: dict[str, Tensor] = {}
        if weights.partial_weight:
            losses["partial"] = weights.partial_weight * self.partial_loss(pyramid, batch)
        losses.update(self._region_losses(pyramid[-1], batch))
        if weights.contrast_weight:
            losses["contrast"] = weights.contrast_weight * self.contrast_loss(pyramid, batch)
        return losses

    def hide(self, batch: MaskedCrops) -> Tensor:
        """The image with the voxels of masked patches set to the fill."""
        hidden = to_voxels(batch.mask, self.grid.patch)[:, None]
        return torch.where(hidden, self.fill[None, :, None, None, None], batch.crops.image)

    def partial_loss(self, pyramid: Pyramid, batch: MaskedCrops) -> Tensor:
        """Mean error over the masked voxels inside the box (partial region prediction)."""
        box, image = batch.box, batch.crops.image
        assert box is not None
        target = image if self.settings.target == "raw" else normalised(image, self.grid.patch)
        return masked_error(self.predict(pyramid, box), box.crop(target), box.crop(self._hidden(batch)), self.error)

    def predict(self, pyramid: Pyramid, box: Box | None = None) -> Tensor:
        """What lies in the box, or everywhere: intensities, or what :func:`normalised` makes of them."""
        values: Tensor = self.reconstruction(self.backbone.decode(pyramid, box))
        return torch.sigmoid(values) if self.settings.target == "raw" else values

    def number_logits(self, bottleneck: Tensor) -> Tensor:
        """Logits (B, regions, patches + 1) of how many patches of each region are masked."""
        logits: Tensor = self.number(self._region_features(bottleneck))
        return logits

    def location_logits(self, bottleneck: Tensor) -> Tensor:
        """Logits (B, regions, patches) of which patches of each region are masked."""
        logits: Tensor = self.location(self._region_features(bottleneck))
        return logits

    def contrast_loss(self, pyramid: Pyramid, batch: MaskedCrops) -> Tensor:
        """NT-Xent between this pass and a second one that differs by dropout from a stage of the encoder on."""
        one, other = self._views(pyramid, batch)
        patients = batch.crops.patients
        loss = nt_xent(one, other, self.settings.contrast_temperature, patients, self.queue)
        if self.queue is not None:
            self.queue.push(one.detach(), patients)
        return loss

    def measures(self, crops: Crops) -> dict[str, float]:
        """See :meth:`Objective.measures`; the chance floor of a head is the best answer that is always the same."""
        batch = self.mask(crops)
        found: dict[str, Tensor] = {}
        errors: dict[str, float] = {}
        with torch.no_grad(), mode(self, training=False):
            pyramid = self.backbone.encode(self.hide(batch))
            target, whole = by_region(batch.mask, self.grid), by_region(batch.whole, self.grid)
            if hasattr(self, "number"):
                used, counts = whole.any(dim=-1), target.sum(dim=-1)
                right = self.number_logits(pyramid[-1]).argmax(dim=-1) == counts
                found["number_accuracy"] = mean_over(right, used)
                always = torch.stack([mean_over(counts == n, used) for n in range(prod(self.grid.per_region) + 1)])
                found["number_chance"] = always.amax()
            if hasattr(self, "location"):
                right = (self.location_logits(pyramid[-1]) > 0) == target
                found["location_accuracy"] = mean_over(right, whole)
                masked = mean_over(target, whole)
                found["location_chance"] = torch.maximum(masked, 1 - masked)
            if hasattr(self, "reconstruction"):
                predicted = self._intensities(self.predict(pyramid, batch.box), crops, batch.box)
                errors = reconstruction_errors(
                    predicted, crops.image, self._hidden(batch), self.grid.patch, batch.box
                )
        if hasattr(self, "projection"):
            with torch.no_grad(), mode(self, training=True):
                one, other = self._views(self._encode(0, self.hide(batch), crops.keys, "first pass"), batch)
                found["contrast_accuracy"], found["contrast_chance"] = partner_found(one, other, crops.patients)
        return {**{name: float(value) for name, value in found.items()}, **errors}

    def preview(self, crops: Crops) -> Preview | None:
        """See :meth:`Objective.preview`; the whole crop is decoded, not the box alone."""
        if not hasattr(self, "reconstruction"):
            return None
        batch = self.mask(crops)
        with torch.no_grad(), mode(self, training=False):
            predicted = self._intensities(self.predict(self.backbone.encode(self.hide(batch))), crops)
        hidden = to_voxels(batch.mask, self.grid.patch)
        return Preview(crops.image.masked_fill(hidden[:, None], 0.0), predicted, hidden)

    def _draw_box(self, crops: Crops, whole: Tensor) -> Box:
        content = _variation(crops.image, crops.sizes) if self.settings.box_placement == "content" else None
        return draw_box(crops.keys, self.grid, whole, self.box, self.backbone.strides[-1], content)

    def _region_losses(self, bottleneck: Tensor, batch: MaskedCrops) -> dict[str, Tensor]:
        weights = self.settings
        target, whole = by_region(batch.mask, self.grid), by_region(batch.whole, self.grid)
        number = self.number_logits(bottleneck) if hasattr(self, "number") else None
        location = self.location_logits(bottleneck) if hasattr(self, "location") else None
        losses = {}
        if weights.number_weight and number is not None:
            losses["number"] = weights.number_weight * number_loss(number, target, whole)
        if weights.location_weight and location is not None:
            losses["location"] = weights.location_weight * location_loss(location, target, whole)
        if weights.consistency_weight and number is not None and location is not None:
            losses["consistency"] = weights.consistency_weight * consistency_loss(number, location, whole)
        return losses

    def _region_features(self, bottleneck: Tensor) -> Tensor:
        """(B, regions, features): the bottleneck's voxels inside each region, one after another."""
        d, h, w = self.cells
        pattern = "b c (rd d) (rh h) (rw w) -> b (rd rh rw) (c d h w)"
        return rearrange(bottleneck, pattern, d=d, h=h, w=w)

    def _views(self, pyramid: Pyramid, batch: MaskedCrops) -> tuple[Tensor, Tensor]:
        """Projections (B, F) of a first pass and of a second one that enters the encoder again."""
        entry = self.hide(batch) if self.stage == 0 else pyramid[self.stage - 1]
        second = self._encode(self.stage, entry, batch.crops.keys, "second pass")
        stride, sizes = self.backbone.strides[-1], batch.crops.sizes
        one, other = (self.projection(pooled(passed[-1], sizes, stride)) for passed in (pyramid, second))
        return one, other

    def _encode(self, stage: int, x: Tensor, keys: Tensor, which: str) -> Pyramid:
        with dropout_keys(derived_keys(keys, which), from_stage=self.stage):
            return self.backbone.encode_from(stage, x)

    def _hidden(self, batch: MaskedCrops) -> Tensor:
        """(B, 1, D, H, W) 1 for masked voxels."""
        return to_voxels(batch.mask, self.grid.patch)[:, None].to(batch.crops.image.dtype)

    def _intensities(self, predicted: Tensor, crops: Crops, box: Box | None = None) -> Tensor:
        """What was predicted in the box, or everywhere, as intensities."""
        if self.settings.target == "raw":
            return predicted
        mean, deviation = patch_statistics(crops.image, self.grid.patch)
        return predicted * deviation + mean if box is None else predicted * box.crop(deviation) + box.crop(mean)


def number_loss(logits: Tensor, target: Tensor, whole: Tensor) -> Tensor:
    """Cross-entropy of how many patches of a region are masked.

    Args:
        logits: (B, R, P + 1).
        target: (B, R, P) True for masked patches.
        whole: (B, R, P) True for patches without padding; regions with none are left out.
    """
    losses = F.cross_entropy(logits.flatten(0, 1), target.sum(dim=-1).flatten(), reduction="none")
    return mean_over(losses.reshape(whole.shape[:2]), whole.any(dim=-1))


def location_loss(logits: Tensor, target: Tensor, whole: Tensor) -> Tensor:
    """Binary cross-entropy of which patches of a region are masked; all arguments (B, R, P), padding left out."""
    losses = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    return mean_over(losses, whole)


def consistency_loss(number: Tensor, location: Tensor, whole: Tensor) -> Tensor:
    """Squared difference of the two expected counts of masked patches, mean over the regions.

    Counts are those of a region of 8 patches, as published: the square of a difference among 64 or 512 patches would
    be larger than all other losses together.

    Args:
        number: (B, R, P + 1) logits; the expectation of the count under their softmax is one answer.
        location: (B, R, P) logits; the sum of their sigmoids over the whole patches is the other.
        whole: (B, R, P) True for patches without padding.
    """
    counts = torch.arange(number.shape[-1], device=number.device, dtype=number.dtype)
    by_number = (number.softmax(dim=-1) * counts).sum(dim=-1)
    by_location = (location.sigmoid() * whole).sum(dim=-1)
    difference = (by_number - by_location) * (PUBLISHED_PATCHES / location.shape[-1])
    return mean_over(difference**2, whole.any(dim=-1))


def _variation(image: Tensor, sizes: Tensor) -> Tensor:
    """(B, D, H, W) how much intensities change from voxel to voxel; air has little of it.

    The step from the scan (its first ``sizes`` (B, 3) voxels) to padding is none.
    """
    d, h, w = image.shape[2:]
    inside = inside_mask(sizes, (d, h, w))[:, None]
    total = torch.zeros_like(image)
    for axis in (2, 3, 4):
        count = image.shape[axis] - 1
        step = image.diff(dim=axis).abs() * inside.narrow(axis, 1, count)
        total.narrow(axis, 0, count).add_(step)
    return total.mean(dim=1)
