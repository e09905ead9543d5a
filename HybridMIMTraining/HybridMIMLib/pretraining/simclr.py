"""SimCLR (arXiv:2002.05709), the baseline: two augmented views of a crop are alike, other patients are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from HybridMIMLib.data.augmentation import apply_augmentation, draw_augmentation
from HybridMIMLib.data.patches import inside_mask
from HybridMIMLib.draws import derived_keys
from HybridMIMLib.networks.dropout import dropout_keys
from HybridMIMLib.networks.interface import EncoderDecoder
from HybridMIMLib.pretraining.contrast import NegativeQueue, nt_xent, partner_found, pooled_inside
from HybridMIMLib.pretraining.crops import Crops
from HybridMIMLib.pretraining.objective import Objective, mode, train_encoder_alone
from HybridMIMLib.settings.pretraining import PretrainingSettings

FLIPPED = (0, 1, 2)
"""Axes along which views are flipped: all, because no class depends on the side."""


@dataclass(frozen=True)
class Views:
    """Two views of each of B crops, all the first ones before all the second ones.

    Attributes:
        image: (2 B, C, D, H, W); what the augmentation moved in from beyond the crop is padding, and 0.
        inside: (2 B, D, H, W) True where there is scan.
        keys: (2 B) int64.
        patients: (B) int64.
    """

    image: Tensor
    inside: Tensor
    keys: Tensor
    patients: Tensor


class SimCLR(Objective):
    """The objective: a backbone, and a projection of two layers. The backbone's decoder is not trained.

    Args:
        backbone: its encoder is pre-trained.
        spacing: of the scans in mm, which keeps rotations rigid.
        settings: temperature, and width of the projection.
        queue: earlier crops to contrast with, 0 for none.
    """

    trains_decoder = False

    def __init__(
        self, backbone: EncoderDecoder, spacing: Sequence[float], settings: PretrainingSettings, queue: int = 0
    ) -> None:
        super().__init__()
        self.backbone, self.spacing, self.temperature = backbone, tuple(spacing), settings.contrast_temperature
        train_encoder_alone(backbone)
        width = backbone.widths[-1]
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, settings.projection))
        self.queue = NegativeQueue(queue, settings.projection) if queue else None

    @torch.no_grad()
    def views(self, crops: Crops) -> Views:
        """Augment each crop twice.

        This is preparation of the data, with the augmentation of fine-tuning: it draws on the host, which waits for
        the keys. What follows, :meth:`losses_of`, does not look at the device.
        """
        size = (crops.image.shape[2], crops.image.shape[3], crops.image.shape[4])
        inside = inside_mask(crops.sizes, size)
        keys = torch.cat([derived_keys(crops.keys, purpose) for purpose in ("first view", "second view")])
        drawn = draw_augmentation(keys.tolist(), self.spacing, FLIPPED)
        twice, inside = crops.image.repeat(2, 1, 1, 1, 1), inside.long().repeat(2, 1, 1, 1)
        # As everywhere else, intensities are prepared in full precision.
        with torch.autocast(twice.device.type, enabled=False):
            image, moved = apply_augmentation(twice, inside, drawn)
        return Views(image * moved[:, None], moved == 1, keys, crops.patients)

    def losses(self, crops: Crops) -> dict[str, Tensor]:
        """See :meth:`Objective.losses`, but that :meth:`views` looks at the keys."""
        return self.losses_of(self.views(crops))

    def losses_of(self, views: Views) -> dict[str, Tensor]:
        """NT-Xent between the two views of each crop."""
        one, other = self._projected(views)
        loss = nt_xent(one, other, self.temperature, views.patients, self.queue)
        if self.queue is not None:
            self.queue.push(one.detach(), views.patients)
        return {"contrast": loss}

    def measures(self, crops: Crops) -> dict[str, float]:
        """See :meth:`Objective.measures`."""
        with torch.no_grad(), mode(self, training=False):
            one, other = self._projected(self.views(crops))
        accuracy, chance = partner_found(one, other, crops.patients)
        return {"contrast_accuracy": float(accuracy), "contrast_chance": float(chance)}

    def _projected(self, views: Views) -> tuple[Tensor, Tensor]:
        """Projections (B, F) of the first and of the second views."""
        with dropout_keys(views.keys):
            bottleneck = self.backbone.encode(views.image)[-1]
        features = pooled_inside(bottleneck, views.inside, self.backbone.strides[-1])
        one, other = self.projection(features).chunk(2)
        return one, other
