"""A scan as the network sees it: along R, A, S, at the plan's spacing, intensities from 0 to 1, cut to the body."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from HybridMIMLib.data.body import Body, air_level, find_body
from HybridMIMLib.data.grid import Grid, to_canonical
from HybridMIMLib.data.normalisation import intensity_range
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.store import bring_to_plan
from HybridMIMLib.data.volume import mm
from HybridMIMLib.errors import DataError
from HybridMIMLib.inference.windows import Triple, Windows, plan_windows
from HybridMIMLib.networks.memory import machine_memory

Image = npt.NDArray[np.float32]
_MOST_BYTES = 2**40
"""Of a scan at the plan's spacing, where the system does not tell how much memory it has."""


@dataclass(frozen=True)
class PreparedScan:
    """A scan as the network sees it.

    Attributes:
        grid: of the scan along R, A, S.
        orientation: leads back to the axes of the file.
        coarse: shape at the plan's spacing.
        body: where the body is, or None where that is not asked.
        windows: where to look.
        box: (C, D, H, W) what the windows look at, with padding.
        seconds: how long it took to get here.
    """

    grid: Grid
    orientation: npt.NDArray[np.float64]
    coarse: Triple
    body: Body | None
    windows: Windows
    box: Tensor
    seconds: float


def prepare_scan(
    array: npt.NDArray[Any], grid: Grid, plan: Plan, step: Triple, skip_air: bool, follow: bool = False
) -> PreparedScan:
    """Bring a scan to the form that the network was trained on, and lay windows over it.

    Args:
        array: (C, D, H, W), intensities as in the file.
        grid: of the scan; any orientation, spacing and shear.
        plan: of the model.
        step: voxels from a window to the next.
        skip_air: whether to look at the body alone.
        follow: whether windows follow the body; see :func:`plan_windows`.

    Raises:
        DataError: the scan has another number of channels than the plan, or cannot be held at its spacing.
    """
    began = time.monotonic()
    if len(array) != plan.channels:
        raise DataError(
            f"the scan has {len(array)} channel(s), the model was trained with {plan.channels}",
            cure="Choose a scan of the kind the model was trained on. Channels in files of their own are read "
            "together where the folder says so, as that of nnU-Net does with dataset.json.",
        )
    turned, turned_grid, orientation = to_canonical(array, grid)
    _check_size(turned_grid, plan)
    image = _normalised(bring_to_plan(turned, turned_grid, plan)[0], plan)
    coarse = (image.shape[1], image.shape[2], image.shape[3])
    body = find_body(image, air_level(plan)) if skip_air else None
    windows = plan_windows(coarse, plan.crop, step, body, follow)
    box = with_padding(image, windows)
    return PreparedScan(turned_grid, orientation, coarse, body, windows, box, time.monotonic() - began)


def _check_size(grid: Grid, plan: Plan) -> None:
    """Refuse a scan that this machine cannot hold at the plan's spacing: mostly the unit of its file is not mm.

    Some systems give out memory that they do not have, and end the program once it is used.
    """
    # Numbers of any size: whole ones would run over where voxels are as large as a damaged header says.
    with np.errstate(over="ignore"):
        voxels = np.prod(np.maximum(np.multiply(grid.shape, grid.spacing) / plan.spacing, 1.0))
    # As resampled, and as normalised; each in single precision.
    needed, there = 2 * 4 * plan.channels * float(voxels), machine_memory() or _MOST_BYTES
    if needed > there:
        raise DataError(
            f"the scan has voxels of {mm(grid.spacing)}; at those of the model, {mm(plan.spacing)}, it would take "
            f"{needed / 1e9:.3g} GB, and this machine has {there / 1e9:.3g} GB",
            cure="Check that its unit is mm; if it is, crop it, or use a machine with more memory.",
        )


def _normalised(image: Image, plan: Plan) -> Image:
    """Intensities (C, D, H, W) from 0 to 1, in new memory: ``image`` may be the voxels of the caller."""
    ranges = np.array(intensity_range(image, plan), dtype=np.float32)
    low, high = ranges[:, 0, None, None, None], ranges[:, 1, None, None, None]
    normalised: Image = image - low
    normalised /= high - low
    return np.clip(normalised, 0, 1, out=normalised)


def with_padding(image: npt.NDArray[np.float32], windows: Windows) -> Tensor:
    """The box (C, D, H, W) that the windows look at, padded with 0 to their size."""
    d, h, w = (slice(lower, lower + size) for lower, size in zip(windows.lower, windows.box))
    box = torch.from_numpy(image[:, d, h, w])
    pads = [(b, s - n - b) for b, s, n in zip(windows.before, windows.shape, windows.box)]
    return F.pad(box, [side for pad in reversed(pads) for side in pad]) if any(map(any, pads)) else box
