"""What SimMIM and MAE share: hide patches of a crop, and reconstruct them from what the encoder makes of the rest."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from HybridMIMLib.networks.dropout import dropout_keys
from HybridMIMLib.networks.interface import EncoderDecoder
from HybridMIMLib.pretraining.crops import Crops
from HybridMIMLib.pretraining.masking import PatchGrid, draw_patches, to_voxels, whole_patches
from HybridMIMLib.pretraining.objective import Objective, Preview, mode, train_encoder_alone
from HybridMIMLib.pretraining.targets import masked_error, normalised, patch_statistics, reconstruction_errors
from HybridMIMLib.settings.pretraining import PretrainingSettings, Share

MASK_RATIO = 0.75
"""As published (arXiv:2204.11716)."""


def ratio_of(settings: PretrainingSettings) -> Share:
    """Share of the patches that is masked, as set or as published."""
    return MASK_RATIO if settings.mask_ratio is None else settings.mask_ratio


class Reconstruction(Objective):
    """One masked crop, and one loss over its masked voxels. The backbone's decoder is not trained.

    Args:
        backbone: its encoder is pre-trained.
        grid: crop and patch; regions play no part.
        settings: ratio, target and error.
    """

    trains_decoder = False

    def __init__(self, backbone: EncoderDecoder, grid: PatchGrid, settings: PretrainingSettings) -> None:
        super().__init__()
        self.backbone, self.grid, self.settings = backbone, grid, settings
        self.error = "l1" if settings.reconstruction == "auto" else settings.reconstruction
        train_encoder_alone(backbone)

    @abstractmethod
    def predict(self, image: Tensor, whole: Tensor, mask: Tensor) -> Tensor:
        """What lies in each voxel (B, C, D, H, W): intensities, or what :func:`normalised` makes of them.

        Args:
            image: (B, C, D, H, W); nothing of it that is masked has an influence.
            whole: (B, D', H', W') True for patches without padding.
            mask: (B, D', H', W') True for masked patches, all of them whole.
        """

    def mask(self, crops: Crops) -> tuple[Tensor, Tensor]:
        """Draw what is hidden of crops: (B, D', H', W') which patches are whole, and which of these are masked."""
        whole = whole_patches(crops.sizes, self.grid)
        return whole, draw_patches(crops.keys, whole, ratio_of(self.settings))

    def losses(self, crops: Crops) -> dict[str, Tensor]:
        """See :meth:`Objective.losses`."""
        whole, mask = self.mask(crops)
        with dropout_keys(crops.keys):
            predicted = self.predict(crops.image, whole, mask)
        return {"reconstruction": self.error_of(predicted, crops.image, mask)}

    def error_of(self, predicted: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        """Mean error over masked voxels; those of other patches, and padding, count for nothing."""
        target = image if self.settings.target == "raw" else normalised(image, self.grid.patch)
        return masked_error(predicted, target, self._hidden(image, mask), self.error)

    def measures(self, crops: Crops) -> dict[str, float]:
        """See :meth:`Objective.measures`."""
        whole, mask = self.mask(crops)
        predicted = self._intensities(crops.image, whole, mask)
        return reconstruction_errors(predicted, crops.image, self._hidden(crops.image, mask), self.grid.patch)

    def preview(self, crops: Crops) -> Preview:
        """See :meth:`Objective.preview`; what is hidden is shown as 0, whatever stands for it in the network."""
        whole, mask = self.mask(crops)
        hidden = to_voxels(mask, self.grid.patch)
        masked = crops.image.masked_fill(hidden[:, None], 0.0)
        return Preview(masked, self._intensities(crops.image, whole, mask), hidden)

    def _intensities(self, image: Tensor, whole: Tensor, mask: Tensor) -> Tensor:
        """What is predicted without dropout, as intensities."""
        with torch.no_grad(), mode(self, training=False):
            predicted = self.predict(image, whole, mask)
        if self.settings.target == "raw":
            return predicted
        mean, deviation = patch_statistics(image, self.grid.patch)
        return predicted * deviation + mean

    def _hidden(self, image: Tensor, mask: Tensor) -> Tensor:
        """(B, 1, D, H, W) 1 for masked voxels."""
        return to_voxels(mask, self.grid.patch)[:, None].to(image.dtype)
