"""Bringing a label map onto the grid of its scan, where the user asked for that."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.scans import LabelMap


def align_labels(label: LabelMap, grid: Grid) -> LabelMap:
    """The label map on another grid: each voxel takes the label at its centre, background where there was none.

    Grids may differ in place, direction, spacing and shear. One that is the same already comes back as it is;
    otherwise a warning says what was done.
    """
    if grid.same_as(label.grid):
        return label
    # From voxels of the scan to voxels of the label map.
    way = np.linalg.inv(label.grid.affine) @ grid.affine
    # "grid-constant": an outermost voxel reaches to its outer face; with "constant" it would end at its centre.
    moved = ndimage.affine_transform(
        label.array, way[:3, :3], way[:3, 3], output_shape=grid.shape, order=0, mode="grid-constant", cval=0
    )
    lost = sorted(set(np.unique(label.array).tolist()) - set(np.unique(moved).tolist()))
    warnings = [*label.warnings, "its label map was on another grid and was resampled onto the scan"]
    if lost:
        warnings.append(f"labels {', '.join(map(str, lost))} were lost by that: they lie outside, or are too thin")
    return replace(label, array=moved, grid=grid, warnings=tuple(warnings))
