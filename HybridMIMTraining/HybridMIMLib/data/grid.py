"""Where the voxels of an array lie in the world, and how to turn an array to the canonical axes R, A, S.

An array is (D, H, W) or (C, D, H, W); D, H, W are the voxel axes i, j, k of the file. An affine is 4x4, in
mm, and takes a voxel (i, j, k) to RAS, as NIfTI's affine and Slicer's IJKToRAS do.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel import orientations

from HybridMIMLib.errors import ScanError

Array = npt.NDArray[Any]
Affine = npt.NDArray[np.float64]
Orientation = npt.NDArray[np.float64]
"""(3, 2): for each voxel axis its world axis (0 R, 1 A, 2 S), and 1, or -1 where it runs backwards."""

_SMALLEST_VOLUME = 1e-9
"""The smallest volume of a parallelepiped with edges of unit length; less is flat up to rounding."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The shape of a scan and its place in the world.

    Attributes:
        shape: voxels along i, j, k.
        affine: (4, 4) float64, read-only, voxel to RAS in mm.

    Raises:
        ScanError: the affine is not 4x4, not finite, or squeezes the scan to a plane.
    """

    shape: tuple[int, int, int]
    affine: Affine

    def __post_init__(self) -> None:
        """Verify the affine, and keep a copy of it that nobody can change."""
        depth, height, width = (int(size) for size in self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        _check_affine(affine)
        affine.setflags(write=False)
        object.__setattr__(self, "shape", (depth, height, width))
        object.__setattr__(self, "affine", affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """The size of a voxel along i, j, k in mm."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def axis_codes(self) -> str:
        """The direction that each voxel axis runs to, such as ``"LPS"``."""
        return "".join(orientations.aff2axcodes(self.affine))

    @property
    def corners(self) -> npt.NDArray[np.float64]:
        """(8, 3): the RAS positions in mm of the centres of the corner voxels."""
        ends = [(0, size - 1) for size in self.shape]
        voxels = np.array(list(itertools.product(*ends)), dtype=np.float64)
        return np.asarray(voxels @ self.affine[:3, :3].T + self.affine[:3, 3])

    def distance(self, other: Grid) -> float:
        """How far apart the same corner of the two grids lies at most, in voxels of this grid."""
        shift = other.corners - self.corners
        return float(np.abs(np.linalg.solve(self.affine[:3, :3], shift.T)).max())

    def same_as(self, other: Grid, tolerance: float = 0.05) -> bool:
        """Whether both have the same shape and no corner is off by more than ``tolerance`` voxels.

        The tolerance is a share of a voxel because files round their affines: one twentieth of a voxel is
        more than any rounding and too little to matter to a label.
        """
        return self.shape == other.shape and self.distance(other) <= tolerance


def to_canonical(array: Array, grid: Grid) -> tuple[Array, Grid, Orientation]:
    """Reorder and flip the voxel axes so that they run as close to R, A, S as they can; nothing is resampled.

    Args:
        array: (D, H, W) or (C, D, H, W).
        grid: the grid of the array.

    Returns:
        The turned array (contiguous), its grid, and the orientation that :func:`from_canonical` needs.

    Raises:
        ValueError: the array does not have the shape of the grid.
    """
    orientation = np.asarray(orientations.io_orientation(grid.affine), dtype=np.float64)
    turned, turned_grid = reorient(array, grid, orientation)
    return turned, turned_grid, orientation


def from_canonical(array: Array, orientation: Orientation) -> Array:
    """Undo :func:`to_canonical`: (D, H, W) or (C, D, H, W) in R, A, S, back on the axes of the file."""
    canonical = np.array([[0, 1], [1, 1], [2, 1]], dtype=np.float64)
    return _turn(array, orientations.ornt_transform(canonical, orientation))


def reorient(array: Array, grid: Grid, orientation: Orientation) -> tuple[Array, Grid]:
    """Move voxel axis n to axis ``orientation[n, 0]``, flipped where ``orientation[n, 1]`` is -1.

    Raises:
        ValueError: the array does not have the shape of the grid.
    """
    if array.shape[-3:] != grid.shape:
        raise ValueError(f"an array of shape {array.shape} does not lie on a grid of shape {grid.shape}")
    turned = _turn(array, orientation)
    affine = grid.affine @ orientations.inv_ornt_aff(orientation, grid.shape)
    depth, height, width = turned.shape[-3:]
    return turned, Grid((depth, height, width), affine)


def _turn(array: Array, orientation: Orientation) -> Array:
    """Flip first, then permute the last three axes; leading axes stay."""
    lead = array.ndim - 3
    flips = (slice(None),) * lead + tuple(slice(None, None, int(sign)) for sign in orientation[:, 1])
    order = np.argsort(orientation[:, 0])
    axes = (*range(lead), *(lead + int(axis) for axis in order))
    return np.ascontiguousarray(array[flips].transpose(axes))


def _check_affine(affine: Affine) -> None:
    cure = "Set its spacing and directions anew, for example in Slicer's Volumes module, and save it again."
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ScanError("the affine is not a 4x4 matrix of finite numbers", cure=cure)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (lengths == 0).any() or abs(np.linalg.det(affine[:3, :3] / lengths)) < _SMALLEST_VOLUME:
        raise ScanError("the affine is singular: its three axes do not span a volume", cure=cure)
