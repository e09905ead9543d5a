"""Where the body is in a scan, so that nothing is computed for the air around it.

Told by intensities as the network sees them, from 0 to 1: a voxel is air where no channel is above
:func:`air_level`. That is -500 HU where intensities are HU, between air and everything that is solid, and a
twentieth of the range elsewhere, because the air of MR is as dark as a scan gets. Lungs are air by this rule, and
bowel gas too; so what counts is what can be reached from outside:

- the *body box* is the smallest box around every voxel that is no air, and :data:`MARGIN` voxels more;
- the *body* is all that is no air, and what it encloses in a slice along S, as it encloses the lungs.

A model that looks for something outside the body has no use for either (``inference.skip_air``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from HybridMIMLib.data.plan import AIR, Plan

Image = npt.NDArray[np.float32]
Triple = tuple[int, int, int]

MARGIN = 8
"""Voxels of the plan around the body: where it ends is seen best with some air beside it."""
BLOCK = 4
"""Voxels along a side of the cells in which the body is told from air; each counts as body if one voxel does."""
_DARK = 0.05


def air_level(plan: Plan) -> float:
    """The intensity, from 0 to 1, up to which a voxel is air."""
    if plan.normalisation != "window":
        return _DARK
    low, high = plan.window
    # A window that begins above air shows nothing below it; what is cut to 0 looks like air to the network too. One
    # that ends below it shows the body as 1.
    return min(max((AIR - low) / (high - low), 0.0), 1 - _DARK)


@dataclass(frozen=True)
class Body:
    """Where the body is in a scan.

    Attributes:
        lower: first voxel of the body box.
        size: of the body box; that of the scan where there is nothing but air.
        cells: (d, h, w) which cells of :data:`BLOCK` voxels a side belong to the body.
    """

    lower: Triple
    size: Triple
    cells: npt.NDArray[np.bool_]


def find_body(image: Image, level: float) -> Body:
    """Tell the body from the air around it.

    Args:
        image: (C, D, H, W) intensities from 0 to 1.
        level: see :func:`air_level`.
    """
    solid: npt.NDArray[np.bool_] = np.any(image > level, axis=0)
    return Body(*_box(solid), _cells(solid))


def _box(solid: npt.NDArray[np.bool_]) -> tuple[Triple, Triple]:
    lower, upper = [], []
    for axis, size in enumerate(solid.shape):
        others = tuple(other for other in range(3) if other != axis)
        places = np.flatnonzero(solid.any(axis=others))
        if len(places) == 0:
            return (0, 0, 0), _triple(solid.shape)
        lower.append(max(int(places[0]) - MARGIN, 0))
        upper.append(min(int(places[-1]) + 1 + MARGIN, size))
    return _triple(lower), _triple(np.subtract(upper, lower).tolist())


def _cells(solid: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    from scipy.ndimage import binary_fill_holes

    padded = np.pad(solid, [(0, -size % BLOCK) for size in solid.shape])
    d, h, w = (size // BLOCK for size in padded.shape)
    cells: npt.NDArray[np.bool_] = np.any(padded.reshape(d, BLOCK, h, BLOCK, w, BLOCK), axis=(1, 3, 5))
    return np.stack([binary_fill_holes(cells[:, :, at]) for at in range(w)], axis=2)


def _triple(values: Sequence[Any]) -> Triple:
    d, h, w = (int(value) for value in values)
    return (d, h, w)
