"""The predictor: scan in, label map on the scan's own grid out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from HybridMIMLib.config import InferenceSettings
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.grid import Grid, from_canonical, to_canonical
from HybridMIMLib.data.normalisation import intensity_range
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.resampling import labels_from_scores
from HybridMIMLib.data.store import bring_to_plan
from HybridMIMLib.errors import DataError

Labels = npt.NDArray[np.integer[Any]]


class Predictor:
    """Segments scans with a network that stays on the device.

    Args:
        network: (B, C, D, H, W) → class scores (B, K + 1, D, H, W).
        plan: how scans are brought to the form the network knows.
        classes: what outputs 1 to K mean.
        settings: overlap and batch of the sliding window.
        device: where to compute.
    """

    def __init__(
        self,
        network: nn.Module,
        plan: Plan,
        classes: tuple[LabelClass, ...],
        settings: InferenceSettings,
        device: torch.device,
    ) -> None:
        self.network, self.plan, self.classes = network.to(device), plan, classes
        self.settings, self.device = settings, device
        values = [0, *(c.label for c in classes)]
        self._values = np.array(values, dtype=np.uint8 if max(values) < 256 else np.uint16)

    def predict(self, array: npt.NDArray[Any], grid: Grid) -> Labels:
        """Segment one scan.

        Args:
            array: (C, D, H, W), intensities as in the file.
            grid: of the scan; any orientation, spacing and shear.

        Returns:
            (D, H, W) labels, on the same grid; uint8, or uint16 where a class has a label above 255.

        Raises:
            DataError: the scan has another number of channels than the model.
        """
        if len(array) != self.plan.channels:
            raise DataError(
                f"the scan has {len(array)} channel(s), the model was trained with {self.plan.channels}",
                cure="Choose a scan of the kind the model was trained on.",
            )
        turned, turned_grid, orientation = to_canonical(array, grid)
        scores = self._scores(self._input(turned, turned_grid))
        numbers = labels_from_scores(scores, turned_grid.shape)
        return from_canonical(self._values[numbers], orientation)

    def _input(self, turned: npt.NDArray[Any], grid: Grid) -> Tensor:
        """The scan (C, D, H, W) at the plan's spacing, intensities from 0 to 1, as training saw it."""
        image, _ = bring_to_plan(turned, grid, self.plan)
        ranges = np.array(intensity_range(image, self.plan), dtype=np.float32)
        low, high = ranges[:, 0, None, None, None], ranges[:, 1, None, None, None]
        return torch.from_numpy(np.clip((image - low) / (high - low), 0, 1))

    def _scores(self, image: Tensor) -> Tensor:
        """Class scores (K + 1, D, H, W) of an image (C, D, H, W), from overlapping windows."""
        from monai.inferers import sliding_window_inference

        was_training = self.network.training
        self.network.eval()
        batch = image[None].to(self.device)
        with torch.inference_mode():
            scores = sliding_window_inference(
                batch,
                roi_size=self.plan.crop,
                sw_batch_size=self.settings.window_batch,
                predictor=lambda windows: self.network(windows).float(),
                overlap=self.settings.overlap,
                mode="gaussian",
            )
        self.network.train(was_training)
        assert isinstance(scores, Tensor)
        return scores[0]
