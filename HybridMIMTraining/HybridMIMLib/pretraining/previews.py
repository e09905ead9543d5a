"""Pictures of how far an objective has come: one scan as original, masked, reconstructed, and the error.

All previews of a run show the same crop with the same patches hidden, so that they can be compared. In ``previews/``
of the run folder lie

====================================  =========================================================================
``original.nrrd``                     the crop as the network gets it, before anything is hidden
``step_000500_masked.nrrd``           the same with the hidden patches at the lowest intensity
``step_000500_reconstructed.nrrd``    what was predicted where patches are hidden, the original elsewhere
``step_000500_error.nrrd``            how far off that is, without its sign; 0 elsewhere
``step_000500.png``                   all of it on one sheet
====================================  =========================================================================

in the scan's own intensities (of a CT: HU), cut off at those that become 0 and 1 for the network, and at the place of
the crop in the scan, so that Slicer shows them on it. Scans of several channels have a file for each,
``…_channel_1.nrrd``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.itk import save_itk
from HybridMIMLib.data.patches import crop_at, keys_on, sizes_on
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.store import PreparedCase, place_of
from HybridMIMLib.files import atomic_path
from HybridMIMLib.pretraining.crops import Crops
from HybridMIMLib.pretraining.objective import Objective
from HybridMIMLib.pretraining.sheets import Sheet, draw_sheet
from HybridMIMLib.pretraining.targets import reconstruction_errors
from HybridMIMLib.randomness import stream_key

FOLDER = "previews"

Array = npt.NDArray[np.float32]
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class PreviewCrop:
    """The crop that all previews of a run show.

    Attributes:
        name: of the case.
        crops: a batch of this one crop.
        size: voxels along each axis that hold scan; the rest is padding, and is not shown.
        grid: where these voxels lie.
        ends: for each channel the intensities of the scan that are 0 and 1 in the crop.
    """

    name: str
    crops: Crops
    size: Triple
    grid: Grid
    ends: tuple[tuple[float, float], ...]

    def in_units(self, values: torch.Tensor) -> Array:
        """Values (1, C, D, H, W) from 0 to 1 as intensities (C, d, h, w) of the scan, without padding."""
        low, high = np.array(self.ends, dtype=np.float32).T[..., None, None, None]
        d, h, w = self.size
        shown: Array = values[0, :, :d, :h, :w].to("cpu", torch.float32).numpy()
        return shown * (high - low) + low


class Previews:
    """Writes the previews of a run.

    Args:
        objective: what is shown.
        shown: the crop that it is shown on.
        plan: sizes of the run.
        name: of the objective, for the title.
        folder: where the files go; made with the first one.
    """

    def __init__(self, objective: Objective, shown: PreviewCrop, plan: Plan, name: str, folder: Path) -> None:
        self.objective, self.shown, self.plan, self.name, self.folder = objective, shown, plan, name, folder

    def write(self, step: int) -> None:
        """Write the files of a step; none for an objective that reconstructs nothing.

        Raises:
            DiskError: a file could not be written.
        """
        made = self.objective.preview(self.shown.crops)
        if made is None:
            return
        image, hidden = self.shown.crops.image, made.hidden[:, None]
        d, h, w = self.shown.size
        errors = reconstruction_errors(made.predicted, image, hidden.to(image.dtype), self.plan.patch)
        sheet = Sheet(
            title=f"{self.name}, step {step}: {self.shown.name}",
            original=self.shown.in_units(image),
            masked=self.shown.in_units(made.masked),
            reconstructed=self.shown.in_units(torch.where(hidden, made.predicted, image)),
            hidden=made.hidden[0, :d, :h, :w].cpu().numpy(),
            ends=self.shown.ends,
            grid=self.shown.grid,
            error_to_patch_mean=errors.get("error_to_patch_mean"),
        )
        self._write_volumes(f"step_{step:06}", sheet)
        with atomic_path(self.folder / f"step_{step:06}.png") as temporary:
            draw_sheet(temporary, sheet)

    def _write_volumes(self, start: str, sheet: Sheet) -> None:
        volumes = {
            "original": sheet.original,
            f"{start}_masked": sheet.masked,
            f"{start}_reconstructed": sheet.reconstructed,
            f"{start}_error": sheet.error,
        }
        for name, volume in volumes.items():
            for number, channel in enumerate(volume, 1):
                path = self.folder / f"{name}{'' if len(volume) == 1 else f'_channel_{number}'}.nrrd"
                if name == "original" and path.exists():
                    continue
                with atomic_path(path) as temporary:
                    save_itk(temporary, channel, sheet.grid)


def preview_crop(cases: Sequence[PreparedCase], crop: Triple, seed: int, device: torch.device) -> PreviewCrop:
    """The middle of the scan that fills most of a crop; of several, the largest, then the first by name.

    Args:
        cases: prepared scans.
        crop: voxels along each axis.
        seed: of the run, from which the hidden patches follow.
        device: where the network is.

    Raises:
        DataError: the prepared scan cannot be read any more.
    """
    case = min(cases, key=lambda one: _order(one, crop))
    d, h, w = (max(n - c, 0) // 2 for n, c in zip(case.image.shape[1:], crop))
    image, size = crop_at(case, (d, h, w), crop, device)
    whole, scales = place_of(case)
    affine = whole.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ (d, h, w)
    ends = [(low * s + o, high * s + o) for low, high, (s, o) in zip(case.low, case.high, scales)]
    keys = keys_on([stream_key(seed, "preview")], device)
    patients = torch.zeros(1, dtype=torch.int64, device=device)
    crops = Crops(image, sizes_on([size], device), keys, patients)
    return PreviewCrop(case.name, crops, size, Grid(size, affine), tuple(ends))


def _order(case: PreparedCase, crop: Triple) -> tuple[int, int, str]:
    shape = case.image.shape[1:]
    filled = np.prod(np.minimum(shape, crop))
    return -int(filled), -int(np.prod(shape)), case.name
