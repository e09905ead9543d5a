"""Where label images lie in the world, and bringing one from the space of one node into that of another.

A node's own space is mm in which its IJKToRAS is written; its parent transform leads from there to the world. Two
nodes under the same transform share one space. Boxes of voxels are (K, J, I) with i running fastest, as VTK has them;
matrices are 4x4 in mm and take voxels as (i, j, k).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from HybridMIMLib.errors import HybridMIMError, RunError
from HybridMIMLib.slicer_side.segments import BINARY_LABELMAP, Node, ijk_to_ras
from HybridMIMLib.slicer_side.steps import Step, Steps, in_thread

_FAITHFUL = 0.1
"""mm that a point may be off after the way there and back through a warping transform."""
_EXACT = 1e-3
"""Voxels by which two grids may differ and still be called the same."""
_SAMPLES = 9
"""Points along an axis at which a warping transform is tried."""
_CHUNK, _PIECE = 4096, 0.02
"""Points that are moved at a time; seconds that a piece takes."""


@dataclass(frozen=True, eq=False)
class Box:
    """A part of a grid.

    Attributes:
        first: its first voxel, (i, j, k); may be negative.
        values: (K, J, I).
    """

    first: tuple[int, int, int]
    values: np.ndarray


class Relation:
    """The way from one node's own space into another's, through the world.

    Args:
        source, target: parent transforms of the two nodes, or None.

    Attributes:
        matrix: 4x4, mm to mm; None where a transform on the way warps.
    """

    def __init__(self, source: Node | None, target: Node | None) -> None:
        self._source, self._target = source, target
        self.matrix: np.ndarray | None = np.eye(4)
        if source is not target:
            self.matrix = _matrix_between(source, target)

    def points(self, points: np.ndarray) -> np.ndarray:
        """Where points of the source lie in the target: (N, 3) mm each."""
        if self.matrix is not None:
            return points @ self.matrix[:3, :3].T + self.matrix[:3, 3]
        return _moved(points, _general(self._source, self._target))

    def inverse(self) -> Relation:
        """The way back."""
        return Relation(self._target, self._source)

    def check(self, points: np.ndarray, what: str) -> None:
        """That points find the way there and back, and from each to the world and back.

        Args:
            points: (N, 3) mm of the source.
            what: is to be brought over, for the message.

        Raises:
            HybridMIMError: a transform on the way cannot be undone there.
        """
        if self.matrix is not None:
            return
        there = self.points(points)
        errors = [
            self.inverse().points(there) - points,
            _there_and_back(points, self._source),
            _there_and_back(there, self._target),
        ]
        worst = max(float(np.abs(error).max(initial=0)) if np.isfinite(error).all() else np.inf for error in errors)
        if worst > _FAITHFUL:
            names = " and ".join(node.GetName() for node in (self._source, self._target) if node is not None)
            raise HybridMIMError(
                f"{what} cannot be brought over: the warping transform {names} cannot be undone there",
                cure="Choose a new segmentation as output, or harden the transform first.",
            )


def segment_box(segmentation: Node, identifier: str, text: str) -> Steps[tuple[Box, np.ndarray]]:
    """The voxels of a segment of a segmentation node, and the grid that they are on, in the node's own space.

    Worked off in pieces and not in a thread: the image may be edited meanwhile.

    Args:
        text: for progress.

    Returns:
        A box of uint8, 1 where the segment is, no larger than the segment; the grid, voxel -> mm.

    Raises:
        RunError: the segment was changed or removed meanwhile.
    """
    value = segment_of(segmentation, identifier).GetLabelValue()
    image = _image_of(segmentation, identifier)
    return (yield from image_box(image, value, segmentation.GetName() or "The segmentation", text)), grid_of(image)


def segment_of(segmentation: Node, identifier: str) -> Any:
    """The ``vtkSegment`` of an id that was there a moment ago.

    Raises:
        RunError: it has been removed.
    """
    segment = segmentation.GetSegmentation().GetSegment(identifier)
    if segment is None:
        raise RunError(
            f"{segmentation.GetName()} lost the segment {identifier} while it was looked at", cure="Do it again."
        )
    return segment


def on_volume(node: Node, box: Box, grid: np.ndarray, volume: Node, text: str) -> Steps[Box]:
    """A box of a segmentation, as :func:`segment_box` gives it, on a volume's grid.

    Raises:
        HybridMIMError: they lie under transforms of which one warps and cannot be undone.
    """
    shape = volume.GetImageData().GetDimensions()
    relation = Relation(node.GetParentTransformNode(), volume.GetParentTransformNode())
    target = ijk_to_ras(volume)
    if relation.matrix is not None and same_grid(relation.matrix @ grid, target, shape):
        return box
    return (yield from resampled(box, grid, target, relation, shape, text))


def image_box(image: Any, value: int, name: str, text: str) -> Steps[Box]:
    """Where a ``vtkOrientedImageData`` has a value, as :func:`segment_box` gives it.

    Args:
        name, text: for the message, and for progress.
    """
    stamp, extent, begun = image.GetMTime(), image.GetExtent(), time.monotonic()
    planes: dict[int, np.ndarray] = {}
    count = extent[5] - extent[4] + 1 if image.GetPointData().GetScalars() is not None else 0
    for k in range(count):
        if time.monotonic() - begun > _PIECE:
            yield Step(k / count, text)
            begun = time.monotonic()
        if image.GetMTime() != stamp or image.GetPointData().GetScalars() is None:
            raise RunError(f"{name} was changed while it was looked at", cure="Do it again.")
        # Looked up each time: after an edit an earlier view would be of memory that is gone.
        plane = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])[k] == value
        if plane.any():
            planes[k] = plane
    if not planes:
        return Box((0, 0, 0), np.zeros((0, 0, 0), np.uint8))
    return _assembled(planes, extent)


def _assembled(planes: dict[int, np.ndarray], extent: tuple[int, ...]) -> Box:
    rows = np.flatnonzero(np.any([plane.any(axis=1) for plane in planes.values()], axis=0))
    columns = np.flatnonzero(np.any([plane.any(axis=0) for plane in planes.values()], axis=0))
    low, high = min(planes), max(planes)
    values = np.zeros((high - low + 1, rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1), np.uint8)
    for k, plane in planes.items():
        values[k - low] = plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Box((int(extent[0] + columns[0]), int(extent[2] + rows[0]), extent[4] + low), values)


def _image_of(segmentation: Node, identifier: str) -> Any:
    """The image of a segment; one that is made of surfaces alone gets one that the node does not keep."""
    image = segment_of(segmentation, identifier).GetRepresentation(BINARY_LABELMAP)
    if image is None:
        image = slicer.vtkOrientedImageData()
        make = slicer.vtkSlicerSegmentationsModuleLogic.GetSegmentBinaryLabelmapRepresentation
        if not make(segmentation, identifier, image, False):
            raise HybridMIMError(
                f"{segmentation.GetName()}: the segment {identifier} cannot be made an image",
                cure="In the module Segmentations, create its binary labelmap.",
            )
    return image


def grid_of(image: Any) -> np.ndarray:
    """4x4, mm, voxel -> the own space, of a ``vtkOrientedImageData``."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def same_grid(a: np.ndarray, b: np.ndarray, shape: tuple[int, int, int]) -> bool:
    """Whether voxels of a grid of this shape lie at the same places under both matrices, to a thousandth of one."""
    corners = np.array([[*(n * c for n, c in zip(shape, corner)), 1.0] for corner in np.ndindex(2, 2, 2)])
    return bool(np.abs(corners @ (np.linalg.inv(b) @ a - np.eye(4)).T).max() < _EXACT)


def resampled(
    source: Box, source_grid: np.ndarray, target_grid: np.ndarray, relation: Relation, limits: Any, what: str
) -> Steps[Box]:
    """The nearest voxel of the source at each voxel of another grid, where there is any.

    A linear relation is worked off in a thread, a warping one piece by piece: VTK cannot be asked beside the window.

    Args:
        source: on the grid ``source_grid``; voxels outside it are 0.
        source_grid, target_grid: voxel -> mm of the own spaces.
        relation: from the source's space into the target's.
        limits: (D, H, W) beyond which the target's grid has no voxels, or None for a grid without an end.
        what: is being brought over, for progress and message.

    Raises:
        HybridMIMError: a warping transform on the way cannot be undone.
    """
    if not source.values.size:
        return Box((0, 0, 0), source.values)
    lattice = _apply(source_grid, _lattice(source))
    relation.check(lattice, what)
    lower, upper = _reach(_apply(np.linalg.inv(target_grid), relation.points(lattice)), limits)
    if relation.matrix is not None:
        to_source = np.linalg.inv(source_grid) @ np.linalg.inv(relation.matrix) @ target_grid
        return (yield from in_thread(lambda: _linear(source, to_source, lower, upper), Step(0.0, what)))
    return (yield from _warped(source, source_grid, target_grid, relation.inverse(), lower, upper, what))


def _linear(source: Box, to_source: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> Box:
    shape = np.maximum(upper - lower, 0)
    values = np.zeros(shape[::-1], source.values.dtype)
    i, j = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="xy")
    plane = np.stack([i.ravel() + lower[0], j.ravel() + lower[1]], axis=1).astype(float)
    flat = plane @ to_source[:3, :2].T + to_source[:3, 3]
    for k in range(shape[2]):
        values[k] = _nearest(source, flat + to_source[:3, 2] * (k + lower[2])).reshape(shape[1], shape[0])
    return Box((int(lower[0]), int(lower[1]), int(lower[2])), values)


def _warped(
    source: Box,
    source_grid: np.ndarray,
    target_grid: np.ndarray,
    back: Relation,
    lower: np.ndarray,
    upper: np.ndarray,
    what: str,
) -> Steps[Box]:
    shape = np.maximum(upper - lower, 0)
    flat = np.zeros(int(np.prod(shape)), source.values.dtype)
    to_voxels, begun = np.linalg.inv(source_grid), time.monotonic()
    for begin in range(0, len(flat), _CHUNK):
        numbers = np.arange(begin, min(begin + _CHUNK, len(flat)))
        voxels = np.stack(np.unravel_index(numbers, shape[::-1])[::-1], axis=1) + lower
        flat[numbers] = _nearest(source, _apply(to_voxels, back.points(_apply(target_grid, voxels))))
        if time.monotonic() - begun > _PIECE:
            yield Step(begin / len(flat), what)
            begun = time.monotonic()
    return Box((int(lower[0]), int(lower[1]), int(lower[2])), flat.reshape(shape[::-1]))


def _nearest(source: Box, voxels: np.ndarray) -> np.ndarray:
    # The small addend: what lies half-way between two voxels goes the same way everywhere.
    index = np.floor(voxels - source.first + 0.5 + 1e-6).astype(np.int64)
    inside = ((index >= 0) & (index < source.values.shape[::-1])).all(axis=1)
    found = np.zeros(len(voxels), source.values.dtype)
    i, j, k = index[inside].T
    found[inside] = source.values[k, j, i]
    return found


def _lattice(box: Box) -> np.ndarray:
    """(N, 3) points all over a box of voxels, its outer edges among them."""
    sides = [
        np.linspace(first - 0.5, first + count - 0.5, _SAMPLES)
        for first, count in zip(box.first, box.values.shape[::-1])
    ]
    return np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 3)


def _reach(voxels: np.ndarray, limits: Any) -> tuple[np.ndarray, np.ndarray]:
    """First voxel, and first one behind, of the box around points; wider, for a warp bulges between them."""
    low, high = voxels.min(axis=0), voxels.max(axis=0)
    spare = 1 + (high - low) / _SAMPLES
    lower, upper = np.floor(low - spare).astype(int), np.ceil(high + spare).astype(int) + 1
    if limits is not None:
        lower, upper = np.maximum(lower, 0), np.minimum(upper, limits)
    return lower, upper


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _matrix_between(source: Node | None, target: Node | None) -> np.ndarray | None:
    general = _general(source, target)
    if not slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(general):
        return None
    matrix = vtk.vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(source, target, matrix)
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def _general(source: Node | None, target: Node | None) -> Any:
    general = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, general)
    return general


def _there_and_back(points: np.ndarray, transform: Node | None) -> np.ndarray:
    return _moved(_moved(points, _general(transform, None)), _general(None, transform)) - points


def _moved(points: np.ndarray, transform: Any) -> np.ndarray:
    before, after = vtk.vtkPoints(), vtk.vtkPoints()
    before.SetData(numpy_to_vtk(np.ascontiguousarray(points, dtype=float), deep=True))
    after.SetDataTypeToDouble()
    transform.TransformPoints(before, after)
    return vtk_to_numpy(after.GetData()).copy()
