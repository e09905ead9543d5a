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

Three things differ from the published code on purpose. The mask is a tensor of its own, so that neither dark voxels
nor padding count as masked. Consistency compares expected counts, so that its gradient reaches both heads. The
contrast uses pooled features and enters the encoder again at a later stage instead of running it twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from HybridMIMLib.config import PretrainingSettings
from HybridMIMLib.networks.dropout import dropout_keys
from HybridMIMLib.networks.interface import Box, EncoderDecoder, Pyramid
from HybridMIMLib.pretraining.masking import PatchGrid, by_region, to_voxels
from HybridMIMLib.randomness import stream_key


@dataclass(frozen=True)
class MaskedBatch:
    """Crops with what is hidden of them.

    Attributes:
        image: (B, C, D, H, W), intensities from 0 to 1.
        inside: (B, D, H, W) True where the crop holds scan and not padding.
        whole: (B, D', H', W') True for patches without padding.
        mask: (B, D', H', W') True for masked patches, all of them whole.
        box: what is reconstructed.
        keys: one number a sample, from which its dropout follows.
        patients: (B) a number for each sample, the same for crops of one patient; None: all differ.
    """

    image: Tensor
    inside: Tensor
    whole: Tensor
    mask: Tensor
    box: Box
    keys: tuple[int, ...]
    patients: Tensor | None = None


class HybridMIM(nn.Module):
    """The objective: a backbone, four heads and five losses.

    Args:
        backbone: encoder and decoder to pre-train.
        grid: crop, patch and region; the region must be a multiple of the backbone's stride.
        channels: of the scans.
        settings: weights, temperature and stage of the contrast.
    """

    def __init__(
        self, backbone: EncoderDecoder, grid: PatchGrid, channels: int, settings: PretrainingSettings
    ) -> None:
        super().__init__()
        self.backbone, self.grid, self.settings = backbone, grid, settings
        stride = backbone.strides[-1]
        self.cells = tuple(r // s for r, s in zip(grid.region, stride))
        count = grid.per_region[0] * grid.per_region[1] * grid.per_region[2]
        feature = backbone.widths[-1] * self.cells[0] * self.cells[1] * self.cells[2]
        self.reconstruction = nn.Conv3d(backbone.widths[0], channels, 1)
        self.number = nn.Linear(feature, count + 1)
        self.location = nn.Linear(feature, count)
        self.projection = nn.Linear(backbone.widths[-1], settings.projection)

    def losses(self, batch: MaskedBatch) -> dict[str, Tensor]:
        """The losses by name, each multiplied by its weight; one whose weight is 0 is not computed."""
        weights = self.settings
        pyramid = self._encode(0, self.masked(batch), batch.keys, "first pass")
        losses: dict[str, Tensor] = {}
        if weights.partial_weight:
            losses["partial"] = weights.partial_weight * self.partial_loss(pyramid, batch)
        losses.update(self._region_losses(pyramid[-1], batch))
        if weights.contrast_weight:
            losses["contrast"] = weights.contrast_weight * self.contrast_loss(pyramid, batch)
        return losses

    def masked(self, batch: MaskedBatch) -> Tensor:
        """The image with the voxels of masked patches set to 0."""
        hidden = to_voxels(batch.mask, self.grid.patch)
        return batch.image.masked_fill(hidden[:, None], 0.0)

    def partial_loss(self, pyramid: Pyramid, batch: MaskedBatch) -> Tensor:
        """Mean squared error over the masked voxels inside the box (partial region prediction)."""
        features = self.backbone.decode(pyramid, batch.box)
        predicted = torch.sigmoid(self.reconstruction(features))
        hidden = to_voxels(batch.mask, self.grid.patch)[:, None].to(predicted.dtype)
        hidden, target = batch.box.crop(hidden), batch.box.crop(batch.image)
        count = (hidden.sum() * target.shape[1]).clamp(min=1)
        return (hidden * (predicted - target) ** 2).sum() / count

    def region_logits(self, bottleneck: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of number (B, regions, patches + 1) and of location (B, regions, patches)."""
        d, h, w = self.cells
        pattern = "b c (rd d) (rh h) (rw w) -> b (rd rh rw) (c d h w)"
        feature = rearrange(bottleneck, pattern, d=d, h=h, w=w)
        return self.number(feature), self.location(feature)

    def contrast_loss(self, pyramid: Pyramid, batch: MaskedBatch) -> Tensor:
        """NT-Xent between this pass and a second one that differs by dropout from a stage of the encoder on."""
        stage = min(self.settings.contrast_stage, len(pyramid) - 1)
        entry = self.masked(batch) if stage == 0 else pyramid[stage - 1]
        second = self._encode(stage, entry, batch.keys, "second pass")
        views = [self.projection(self._pool(level, batch.inside)) for level in (pyramid[-1], second[-1])]
        return nt_xent(views[0], views[1], self.settings.contrast_temperature, batch.patients)

    def accuracies(self, batch: MaskedBatch) -> dict[str, float]:
        """Shares of right answers of the region heads, without dropout."""
        was_training = self.training
        self.eval()
        with torch.no_grad():
            number, location = self.region_logits(self.backbone.encode(self.masked(batch))[-1])
        self.train(was_training)
        target, whole = by_region(batch.mask, self.grid), by_region(batch.whole, self.grid)
        right_number = (number.argmax(-1) == target.sum(-1))[whole.any(-1)]
        right_location = ((location > 0) == target)[whole]
        return {
            "number_accuracy": float(_mean(right_number.float())),
            "location_accuracy": float(_mean(right_location.float())),
        }

    def _region_losses(self, bottleneck: Tensor, batch: MaskedBatch) -> dict[str, Tensor]:
        weights = self.settings
        if not (weights.number_weight or weights.location_weight or weights.consistency_weight):
            return {}
        number, location = self.region_logits(bottleneck)
        target, whole = by_region(batch.mask, self.grid), by_region(batch.whole, self.grid)
        parts = {
            "number": (weights.number_weight, lambda: number_loss(number, target, whole)),
            "location": (weights.location_weight, lambda: location_loss(location, target, whole)),
            "consistency": (weights.consistency_weight, lambda: consistency_loss(number, location, whole)),
        }
        return {name: weight * loss() for name, (weight, loss) in parts.items() if weight}

    def _encode(self, stage: int, x: Tensor, keys: tuple[int, ...], which: str) -> Pyramid:
        with dropout_keys([stream_key(key, which) for key in keys]):
            return self.backbone.encode_from(stage, x)

    def _pool(self, bottleneck: Tensor, inside: Tensor) -> Tensor:
        """Mean over the voxels of the bottleneck (B, C, d, h, w), each weighted by how much of it is scan."""
        stride = self.backbone.strides[-1]
        weight = F.avg_pool3d(inside[:, None].to(bottleneck.dtype), stride)
        total = reduce(weight, "b c d h w -> b c", "sum").clamp(min=1e-6)
        return reduce(bottleneck * weight, "b c d h w -> b c", "sum") / total


def number_loss(logits: Tensor, target: Tensor, whole: Tensor) -> Tensor:
    """Cross-entropy of how many patches of a region are masked.

    Args:
        logits: (B, R, P + 1).
        target: (B, R, P) True for masked patches.
        whole: (B, R, P) True for patches without padding; regions with none are left out.
    """
    used = whole.any(dim=-1)
    return _mean(F.cross_entropy(logits[used], target.sum(dim=-1)[used], reduction="none"))


def location_loss(logits: Tensor, target: Tensor, whole: Tensor) -> Tensor:
    """Binary cross-entropy of which patches of a region are masked; all arguments (B, R, P), padding left out."""
    losses = F.binary_cross_entropy_with_logits(logits[whole], target[whole].to(logits.dtype), reduction="none")
    return _mean(losses)


def consistency_loss(number: Tensor, location: Tensor, whole: Tensor) -> Tensor:
    """Squared difference of the two expected counts of masked patches, mean over the regions.

    Args:
        number: (B, R, P + 1) logits; the expectation of the count under their softmax is one answer.
        location: (B, R, P) logits; the sum of their sigmoids over the whole patches is the other.
        whole: (B, R, P) True for patches without padding.
    """
    counts = torch.arange(number.shape[-1], device=number.device, dtype=number.dtype)
    by_number = (number.softmax(dim=-1) * counts).sum(dim=-1)
    by_location = (location.sigmoid() * whole).sum(dim=-1)
    return _mean(((by_number - by_location) ** 2)[whole.any(dim=-1)])


def nt_xent(one: Tensor, other: Tensor, temperature: float, patients: Tensor | None = None) -> Tensor:
    """Normalised temperature-scaled cross-entropy (SimCLR, arXiv:2002.05709, equation 1).

    Args:
        one, other: (B, F) two views of the same B samples; row i of one belongs to row i of the other.
        temperature: divides the cosine similarities.
        patients: (B) a number for each sample; samples with the same number are no negatives of each other.
    """
    views = F.normalize(torch.cat([one, other]), dim=1)
    similarity = views @ views.T / temperature
    itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
    partner = torch.arange(len(views), device=views.device).roll(len(one))
    left_out = itself
    if patients is not None:
        both = torch.cat([patients, patients])
        left_out = (both[:, None] == both[None, :]).scatter(1, partner[:, None], False)
    return F.cross_entropy(similarity.masked_fill(left_out, float("-inf")), partner)


def _mean(values: Tensor) -> Tensor:
    """Mean; 0 of nothing, as where every scan of a batch is thinner than a patch."""
    return values.sum() / max(values.numel(), 1)
