"""Bringing a label map onto the grid of its scan, where the user asked for that."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.scans import LabelMap
from HybridMIMLib.errors import LabelError

_MOST_OF_IT = 0.95


def align_labels(label: LabelMap, grid: Grid) -> LabelMap:
    """The label map on another grid: each voxel takes the label at its centre, background where there was none.

    Grids may differ in place, direction, spacing and shear. One that is the same already comes back as it is;
    otherwise a warning says what was done.

    Raises:
        LabelError: a label is lost by that, because it lies outside the scan or is too thin for its voxels: the scan
            would teach that there is none.
    """
    if grid.same_as(label.grid):
        return label
    # From voxels of the scan to voxels of the label map.
    way = np.linalg.inv(label.grid.affine) @ grid.affine
    # "grid-constant": an outermost voxel reaches to its outer face; with "constant" it would end at its centre.
    moved = ndimage.affine_transform(
        label.array, way[:3, :3], way[:3, 3], output_shape=grid.shape, order=0, mode="grid-constant", cval=0
    )
    lost = sorted(set(np.unique(label.array).tolist()) - set(np.unique(moved).tolist()) - {0})
    if lost:
        raise LabelError(
            f"{label.path}: on the grid of its scan nothing is left of label {', '.join(map(str, lost))}",
            cure="Check that scan and label map belong together, and that the labels lie inside the scan.",
        )
    told = "its label map was on another grid and was resampled onto the scan"
    kept = np.count_nonzero(moved) * _volume(grid) / max(np.count_nonzero(label.array) * _volume(label.grid), 1e-9)
    if kept < _MOST_OF_IT:
        told += f"; {100 * (1 - kept):.0f} % of the labelled volume lies outside or was too thin"
    return replace(label, array=moved, grid=grid, warnings=(*label.warnings, told))


def _volume(grid: Grid) -> float:
    """Of a voxel, in mm³."""
    return float(abs(np.linalg.det(grid.affine[:3, :3])))
