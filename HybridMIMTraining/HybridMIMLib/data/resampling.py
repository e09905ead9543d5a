"""Resampling between grids that cover the same box of space with different numbers of voxels.

Voxels are cells, not points: resampling n voxels to m keeps the outer faces where they are, so that going there and
back never shifts anything.

Images are interpolated linearly, and an axis that shrinks by more than :data:`LOW_PASS_FROM` is low-passed first. Not
cubically: that overshoots beside air, bone and metal, so that intensities leave the range of the scan, takes longer,
and segments no better (TotalSegmentator went from order 3 to order 1 "with very similar accuracy"). Low pass and
interpolation are one banded matrix an axis, see :func:`resampling_matrix`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from HybridMIMLib.data.grid import Grid

Shape = tuple[int, int, int]

LOW_PASS_FROM = 1.5
"""An axis that shrinks by more than this factor is blurred first; sigma is half the factor, in source voxels."""
_SLAB = 16
"""Slices at a time, because a whole scan as float32, and once more for each step, can be gigabytes."""


def resampled_grid(grid: Grid, spacing: tuple[float, float, float]) -> Grid:
    """The grid that covers the box of ``grid`` with voxels of ``spacing`` mm, as nearly as whole voxels allow."""
    lengths = np.multiply(grid.shape, grid.spacing)
    shape = np.maximum(np.round(lengths / spacing), 1).astype(int)
    factor = np.divide(grid.shape, shape)
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] * factor
    affine[:3, 3] = grid.affine[:3, 3] + grid.affine[:3, :3] @ ((factor - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def resampling_matrix(old: int, new: int, sigma: float | None = None) -> npt.NDArray[np.float64]:
    """What each of ``new`` cells along an axis takes from the ``old`` cells of the same length.

    Args:
        old: cells of the source.
        new: cells of the result.
        sigma: of the low pass, in cells of the source; None: as much as the change of size needs.

    Returns:
        (new, old); each row sums to 1 and is zero away from its own place; the outermost cells go on beyond the
        faces.
    """
    if sigma is None:
        sigma = old / new / 2 if old / new > LOW_PASS_FROM else 0.0
    reach = int(4 * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2) if sigma else np.ones(1)
    kernel /= kernel.sum()
    lower, share = interpolation(old, new)
    matrix = np.zeros((new, old))
    for neighbour, part in ((lower, 1 - share), (np.minimum(lower + 1, old - 1), share)):
        sources = np.clip(neighbour[:, None] + offsets, 0, old - 1)
        np.add.at(matrix, (np.arange(new)[:, None], sources), part[:, None] * kernel)
    return matrix


def resample_image(array: npt.NDArray[Any], shape: Shape) -> npt.NDArray[np.float32]:
    """Resample (C, D, H, W), of any type of number, linearly; an axis that shrinks much is low-passed first.

    Works a slab of slices at a time: beside source and result it needs some ten slabs.
    """
    if array.shape[1:] == shape:
        return array.astype(np.float32, copy=False)
    depth, height, width = (
        None if old == new else torch.from_numpy(resampling_matrix(old, new)).float()
        for old, new in zip(array.shape[1:], shape)
    )
    resampled = np.empty((len(array), *shape), dtype=np.float32)
    for channel, start in product(range(len(array)), range(0, shape[0], _SLAB)):
        rows = slice(start, start + _SLAB)
        slab = _slab_along_depth(array[channel], rows, depth)
        if height is not None:
            slab = torch.matmul(height, slab)
        if width is not None:
            slab = torch.matmul(slab, width.T)
        resampled[channel, rows] = slab.numpy()
    return resampled


def _slab_along_depth(array: npt.NDArray[Any], rows: slice, matrix: torch.Tensor | None) -> torch.Tensor:
    """Rows of the result along the first axis of (D, H, W): (len(rows), H, W) float32."""
    if matrix is None:
        return torch.from_numpy(array[rows].astype(np.float32))
    used = matrix[rows].any(dim=0).nonzero()[:, 0]
    first, last = int(used[0]), int(used[-1]) + 1
    source = torch.from_numpy(array[first:last].astype(np.float32))
    return torch.tensordot(matrix[rows, first:last], source, dims=1)


def resample_labels(labels: npt.NDArray[np.uint8], shape: Shape) -> npt.NDArray[np.uint8]:
    """Resample a label map (D, H, W) of class numbers, 0 = background, without losing what is thin.

    Each cell takes the class at its centre. On a coarser grid that would drop a vessel, a sheet or a single voxel
    that lies between the centres, so: where a voxel's class is neither in the cell that holds the voxel nor in the 26
    cells around, the cell takes that class; of several the one with the fewest voxels in the scan. A class whose only
    cells are lost to others in this way gets the nearest cell that can be spared. So a voxel has its class within one
    cell (unless a rarer class is there), large objects keep their surface, and no class vanishes while there are
    cells for all.
    """
    centres = [(2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(labels.shape, shape)]
    resampled = np.ascontiguousarray(labels[np.ix_(*centres)])
    if any(new < old for old, new in zip(labels.shape, shape)):
        counts = _counts(labels)
        _paint(resampled, list(_lost_voxels(labels, resampled)), counts)
        for number in np.flatnonzero(counts[1:] * (_counts(resampled)[1:] == 0)) + 1:
            voxel = np.unravel_index(int((labels == number).argmax()), labels.shape)
            cell = [(2 * int(at) + 1) * new // (2 * old) for at, old, new in zip(voxel, labels.shape, shape)]
            _give_a_cell(resampled, np.array(cell), int(number))
    return resampled


Lost = tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]


def _lost_voxels(labels: npt.NDArray[np.uint8], resampled: npt.NDArray[np.uint8]) -> Iterator[Lost]:
    """For a slab at a time, the cells (N, 3) of voxels whose class is not in the cells around, and their classes."""
    shape = np.array(resampled.shape)
    depth, height, width = (
        (2 * np.arange(old) + 1) * new // (2 * old) for old, new in zip(labels.shape, resampled.shape)
    )
    around = [offset for offset in product((0, -1, 1), repeat=3) if any(offset)]
    for start in range(0, len(labels), _SLAB):
        part, planes = labels[start : start + _SLAB], depth[start : start + _SLAB]
        if not part.any():
            continue
        there = resampled[planes].take(height, axis=1).take(width, axis=2)
        places = np.nonzero((part != there) & (part != 0))
        values, cells = part[places], np.stack([planes[places[0]], height[places[1]], width[places[2]]], axis=1)
        for offset in around:
            near = np.clip(cells + offset, 0, shape - 1)
            away = resampled[near[:, 0], near[:, 1], near[:, 2]] != values
            values, cells = values[away], cells[away]
        yield cells, values


def _paint(resampled: npt.NDArray[np.uint8], lost: list[Lost], counts: npt.NDArray[np.int64]) -> None:
    if not lost:
        return
    cells, values = (np.concatenate(parts) for parts in zip(*lost))
    # Where an index comes twice, the last value stays: the rarest class.
    order = np.argsort(-counts[values], kind="stable")
    resampled[tuple(cells[order].T)] = values[order]


def _give_a_cell(resampled: npt.NDArray[np.uint8], wanted: npt.NDArray[np.int64], number: int) -> None:
    """The nearest cell that is not the only one of another class becomes one of ``number``, if there is any."""
    spare = np.union1d(np.flatnonzero(_counts(resampled) > 1), 0)
    reach = 1
    while True:
        box = tuple(slice(max(at - reach, 0), at + reach + 1) for at in wanted)
        free = np.argwhere(np.isin(resampled[box], spare))
        if len(free):
            free += [side.start for side in box]
            nearest = ((free - wanted) ** 2).sum(axis=1).argmin()
            resampled[tuple(free[nearest])] = number
            return
        if resampled[box].size == resampled.size:
            return
        reach *= 2


def _counts(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """(256,) voxels of each value."""
    total = np.zeros(256, dtype=np.int64)
    # A slab at a time, because bincount makes 64-bit numbers of its input.
    for start in range(0, len(labels), _SLAB):
        total += np.bincount(labels[start : start + _SLAB].ravel(), minlength=256)
    return total


def interpolation(old: int, new: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """For each of ``new`` cells along an axis: the cell of ``old`` below its centre, and how far it is beyond."""
    centre = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
    lower = centre.astype(np.int64)
    return lower, centre - lower
