"""Resampling between grids that cover the same box of space with different numbers of voxels.

Voxels are cells, not points: resampling n voxels to m keeps the outer faces where they are, so that going there and
back never shifts anything.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage

from HybridMIMLib.data.grid import Grid

Shape = tuple[int, int, int]


def resampled_grid(grid: Grid, spacing: tuple[float, float, float]) -> Grid:
    """The grid that covers the box of ``grid`` with voxels of ``spacing`` mm, as nearly as whole voxels allow."""
    lengths = np.multiply(grid.shape, grid.spacing)
    shape = np.maximum(np.round(lengths / spacing), 1).astype(int)
    factor = np.divide(grid.shape, shape)
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] * factor
    affine[:3, 3] = grid.affine[:3, 3] + grid.affine[:3, :3] @ ((factor - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def resample_image(array: npt.NDArray[np.float32], shape: Shape) -> npt.NDArray[np.float32]:
    """Resample (C, D, H, W) linearly; an axis that shrinks by more than 1.5 is low-passed first."""
    if array.shape[1:] == shape:
        return array
    factors = [old / new for old, new in zip(array.shape[1:], shape)]
    if max(factors) > 1.5:
        sigma = [0.0] + [factor / 2 if factor > 1.5 else 0.0 for factor in factors]
        array = ndimage.gaussian_filter(array, sigma, mode="nearest")
    resampled = F.interpolate(torch.from_numpy(array)[None], shape, mode="trilinear", align_corners=False)
    return resampled[0].numpy()


def resample_labels(labels: npt.NDArray[np.uint8], shape: Shape) -> npt.NDArray[np.uint8]:
    """Resample a label map (D, H, W); each voxel takes the label at its centre."""
    tensor = torch.from_numpy(labels)[None, None]
    return F.interpolate(tensor, shape, mode="nearest-exact")[0, 0].numpy()


def labels_from_scores(scores: torch.Tensor, shape: Shape, slab: int = 16) -> npt.NDArray[np.uint8]:
    """The class with the highest linearly interpolated score in each voxel of a finer or coarser grid.

    Works a slab of slices at a time, because all classes on a whole fine grid can be many gigabytes.

    Args:
        scores: (K, d, h, w).
        shape: of the result.
        slab: slices at a time.

    Returns:
        (D, H, W) index of the winning class.
    """
    lower, weight = _neighbours(scores.shape[1], shape[0])
    labels = np.empty(shape, dtype=np.uint8)
    for start in range(0, shape[0], slab):
        rows, share = lower[start : start + slab], weight[start : start + slab].to(scores)
        above = (rows + 1).clamp(max=scores.shape[1] - 1)
        mixed = torch.lerp(scores[:, rows], scores[:, above], share[None, :, None, None])
        flat = F.interpolate(mixed.transpose(0, 1), shape[1:], mode="bilinear", align_corners=False)
        labels[start : start + slab] = flat.argmax(dim=1).to(torch.uint8).cpu().numpy()
    return labels


def _neighbours(old: int, new: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of ``new`` cells along an axis: the cell of ``old`` below its centre, and how far it is beyond."""
    centre = ((torch.arange(new, dtype=torch.float64) + 0.5) * old / new - 0.5).clamp(0, old - 1)
    lower = centre.floor().long().clamp(max=old - 1)
    return lower, (centre - lower).float()
