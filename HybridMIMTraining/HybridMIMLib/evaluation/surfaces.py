"""How far apart two surfaces are, in mm: the 95th percentile of distances (HD95) and the surface Dice.

The surface of a mask runs between its voxels and the background. It is cut into elements, one at each corner at which
both meet, and each has a position and an area in mm² (marching cubes, as in github.com/deepmind/surface-distance;
the areas are MONAI's table). What lies outside the scan is background.

Distances are those between positions in the world, whatever the spacing and the directions of the axes. Shares are
shares of area. That is where MONAI's ``compute_hausdorff_distance`` is not followed: it counts every voxel of the
border once, so that where slices are thick the caps of an organ, of many small faces, outweigh its walls, of few
large ones. A box of 40 x 40 x 4 voxels of 1 x 1 x 10 mm of which a wall, 16 % of its surface, is moved by 4 mm has an
HD95 of 3 mm there, and of 4 mm here. MONAI's ``compute_surface_dice`` with ``use_subvoxels`` has the same elements,
and the same result.

On a sheared grid (a tilted gantry) positions and distances are exact, too; the areas, which are only weights, are
those of a grid of the same spacing with right angles.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.volume import largest_shear

Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float64]

PERCENTILE = 95
ROUNDING = 1e-5
"""Millimetres by which a distance may be above a tolerance: of numbers in single precision."""

_SEARCH = 5_000
"""Voxels of a distance map that take as long as a search from one element, at its slowest."""


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """From each element of one surface to the nearest of another, and back.

    Attributes:
        there, back: (N,) and (M,) distances in mm.
        areas_there, areas_back: of the same elements, in mm².
    """

    there: Numbers
    back: Numbers
    areas_there: Numbers
    areas_back: Numbers

    @property
    def hd95(self) -> float:
        """The larger of both 95th percentiles: 95 % of the area of either surface is that near to the other."""
        return max(_percentile(self.there, self.areas_there), _percentile(self.back, self.areas_back))

    def surface_dice(self, tolerance: float) -> float:
        """The share of the area of both surfaces that is no further than ``tolerance`` mm from the other."""
        near = float(self.areas_there[self.there <= tolerance + ROUNDING].sum())
        near += float(self.areas_back[self.back <= tolerance + ROUNDING].sum())
        return near / float(self.areas_there.sum() + self.areas_back.sum())


def surface_distances(one: Mask, other: Mask, grid: Grid) -> SurfaceDistances:
    """Distances between the surfaces of two masks.

    Args:
        one, other: (D, H, W), each with at least one voxel; parts of a scan, or all of it.
        grid: of the scan; its affine alone matters.

    Raises:
        ValueError: a mask is empty, or the shapes differ.
    """
    if one.shape != other.shape or not (one.any() and other.any()):
        raise ValueError("distances are between two masks of one shape that are not empty")
    codes = [_corner_codes(np.pad(mask, 1)) for mask in (one, other)]
    # Neither inside nor outside: 0 and 255 are no surface.
    surfaces = [(code != 0) & (code != 255) for code in codes]
    table = _areas(grid.spacing)
    areas = [table[code[surface]] for code, surface in zip(codes, surfaces)]
    ours, theirs = surfaces
    return SurfaceDistances(_distances(ours, theirs, grid), _distances(theirs, ours, grid), *areas)


def _corner_codes(mask: Mask) -> npt.NDArray[np.uint8]:
    """(D-1, H-1, W-1): for each inner corner, which of the eight voxels around it belong to the mask, a bit each."""
    depth, height, width = (size - 1 for size in mask.shape)
    voxels = mask.view(np.uint8)
    codes = np.zeros((depth, height, width), dtype=np.uint8)
    # In the order of MONAI's table: the voxel with the lowest indices is the highest bit.
    for bit, (i, j, k) in zip(range(7, -1, -1), itertools.product((0, 1), repeat=3)):
        codes |= voxels[i : depth + i, j : height + j, k : width + k] << np.uint8(bit)
    return codes


@lru_cache(maxsize=32)
def _areas(spacing: tuple[float, float, float]) -> Numbers:
    """(256,) mm² of surface at a corner, by its code."""
    # Imported late: it takes seconds.
    from monai.metrics.utils import get_code_to_measure_table

    table, _ = get_code_to_measure_table(spacing)
    return np.asarray(table.cpu().numpy(), dtype=np.float64)


def _distances(start: Mask, goal: Mask, grid: Grid) -> Numbers:
    """(N,) mm from each place in ``start`` to the nearest in ``goal``.

    A distance map takes as long wherever the surfaces lie, a search in a tree very long where they are far apart. The
    tree is for few places in a large box, and for axes that are not at right angles, of which no map knows.
    """
    away = ~goal[start]
    distances = np.zeros(len(away))
    if away.any():
        by_search = largest_shear(grid.affine) > 0 or np.count_nonzero(away) * _SEARCH < goal.size
        places = np.argwhere(start)[away]
        distances[away] = _searched(places, goal, grid) if by_search else _mapped(places, goal, grid)
    return distances


def _searched(places: npt.NDArray[np.int64], goal: Mask, grid: Grid) -> Numbers:
    from scipy.spatial import cKDTree

    matrix = grid.affine[:3, :3].T
    distances, _ = cKDTree(np.argwhere(goal) @ matrix, leafsize=32).query(places @ matrix)
    return np.asarray(distances)


def _mapped(places: npt.NDArray[np.int64], goal: Mask, grid: Grid) -> Numbers:
    """By a map of the whole box; ITK's is three times as fast as SciPy's, and needs a fifth of its memory."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(goal.view(np.uint8))
    image.SetSpacing(grid.spacing[::-1])
    distances = SimpleITK.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False,
                                                  useImageSpacing=True)  # fmt: skip
    return np.asarray(SimpleITK.GetArrayViewFromImage(distances)[tuple(places.T)], dtype=np.float64)


def _percentile(distances: Numbers, areas: Numbers) -> float:
    """The smallest distance that at least 95 % of the area does not exceed."""
    order = np.argsort(distances)
    reached = np.cumsum(areas[order])
    place = np.searchsorted(reached, PERCENTILE / 100 * reached[-1] * (1 - 1e-9))
    return float(distances[order[place]])
