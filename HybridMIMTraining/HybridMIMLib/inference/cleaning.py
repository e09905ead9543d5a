"""Cleaning up a label map class by class: components that cannot be true, and holes.

The order: first the components of every class that are too small are removed, or all but the largest, as asked for;
then the holes of what is left are filled. What is removed becomes background.

A component is 26-connected: voxels that share a face, an edge or a corner belong together. Its volume counts voxels
by the volume of one, which on a sheared grid is less than the product of its edges. Of components of one size the one
whose first voxel comes first is the largest.

A hole of a class is a region outside the class that is 6-connected (voxels share a face) and does not reach the edge
of the scan. The background in it becomes the class; voxels of other classes in it, such as a tumour in a liver, stay
what they are. Where the holes of two classes lie in each other, the smaller one counts, so that the hole of a cyst is
filled by the cyst and not by the kidney around it. A tunnel that leads outside is no hole.

Each class is looked at in its bounding box alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.clean_up import CleanUp
from HybridMIMLib.data.grid import Grid

Labels = npt.NDArray[np.integer[Any]]
Mask = npt.NDArray[np.bool_]
Box = tuple[slice, ...]

_TOUCHING = np.ones((3, 3, 3), dtype=bool)


def clean(labels: Labels, grid: Grid, clean_up: CleanUp) -> Labels:
    """A label map after its clean-up; the one that is given is left as it is, and handed back where nothing is done.

    Args:
        labels: (D, H, W), 0 is background.
        grid: of the labels.
        clean_up: what to do to which class.

    Returns:
        (D, H, W) labels of the same type.
    """
    if not clean_up:
        return labels
    cleaned = labels.copy()
    for label, box in _boxes(cleaned, clean_up.largest | set(clean_up.smallest_ml)):
        part = cleaned[box]
        part[_unwanted(part == label, label, grid, clean_up)] = 0
    # Boxes anew: a speck far away makes one as large as the scan.
    holes = [_holes(cleaned, label, box) for label, box in _boxes(cleaned, clean_up.fill_holes)]
    if holes:
        places, sizes, fillings = (np.concatenate(parts) for parts in zip(*holes))
        # The smallest is written last, and of equal ones that of the lowest label: the sort is stable.
        order = np.argsort(-sizes, kind="stable")
        cleaned.reshape(-1)[places[order]] = fillings[order]
    return cleaned


def clean_layers(layers: Mask, classes: Sequence[LabelClass], grid: Grid, clean_up: CleanUp) -> Mask:
    """Classes that overlap after their clean-up, each by itself: a hole is filled whatever other classes hold there.

    Args:
        layers: (K, D, H, W), where each class is; left as they are.
        classes: K.
        grid: of the layers.
        clean_up: what to do to which class.

    Returns:
        (K, D, H, W) bool.
    """
    if not clean_up:
        return layers
    cleaned = np.empty(layers.shape, dtype=np.uint8)
    for to, layer, one in zip(cleaned, layers, classes):
        to[...] = clean(layer.view(np.uint8), grid, _for_one(clean_up, one.label))
    return cleaned.view(np.bool_)


def _boxes(labels: Labels, wanted: Collection[int]) -> list[tuple[int, Box]]:
    """The bounding boxes of those of the wanted classes that are there, the highest label first."""
    boxes = dict(enumerate(ndimage.find_objects(labels), 1)) if wanted else {}
    return [(label, boxes[label]) for label in sorted(wanted, reverse=True) if boxes.get(label) is not None]


def _for_one(clean_up: CleanUp, label: int) -> CleanUp:
    """What is done to a class, for a mask of it: its label is 1 there."""
    only = frozenset({1})
    return CleanUp(
        only if label in clean_up.largest else frozenset(),
        only if label in clean_up.fill_holes else frozenset(),
        {1: clean_up.smallest_ml[label]} if label in clean_up.smallest_ml else {},
    )


def _unwanted(mask: Mask, label: int, grid: Grid, clean_up: CleanUp) -> Mask:
    """(D, H, W): the voxels of the components that go."""
    components, count = ndimage.label(mask, structure=_TOUCHING)
    sizes = np.bincount(components.reshape(-1), minlength=count + 1)
    goes = sizes < _least_voxels(clean_up.smallest_ml.get(label, 0.0), grid)
    if label in clean_up.largest:
        goes[np.arange(count + 1) != 1 + np.argmax(sizes[1:])] = True
    goes[0] = False
    unwanted: Mask = goes[components]
    return unwanted


def _least_voxels(ml: float, grid: Grid) -> int:
    """How many voxels make up a volume; a volume that they hit but for rounding counts as hit."""
    voxel_ml = abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1000
    return math.ceil(ml / voxel_ml * (1 - 1e-9))


def _holes(labels: Labels, label: int, box: Box) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """The background in the holes of a class: index in the flat array, size of the whole hole, and the label."""
    part = labels[box]
    regions, count = ndimage.label(part != label)
    sizes = np.bincount(regions.reshape(-1), minlength=count + 1)
    # What touches a face of the bounding box goes on outside of it, as nothing of the class is there.
    is_hole = np.ones(count + 1, dtype=bool)
    is_hole[0] = False
    for axis in range(3):
        for end in (0, -1):
            is_hole[regions.take(end, axis)] = False
    filled = np.nonzero(is_hole[regions] & (part == 0))
    corner = [one.start for one in box]
    places = np.ravel_multi_index(tuple(index + start for index, start in zip(filled, corner)), labels.shape)
    return places, sizes[regions[filled]], np.full(len(places), label, dtype=labels.dtype)
