"""The part of a volume that a region of interest, the box of a ``vtkMRMLMarkupsROINode``, marks.

The box may be rotated, and box and volume may each lie under transforms, that of the volume a warping one too. Voxels
are (i, j, k) as an array (D, H, W) counts them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from HybridMIMLib.errors import DataError
from HybridMIMLib.slicer_side.segments import Node, ijk_to_ras

Array = npt.NDArray[Any]
Points = npt.NDArray[np.float64]
"""(N, 3)."""
Triple = tuple[int, int, int]

_STRAIGHT, _WARPED = 2, 17
"""Points along an axis at which the place of voxels is asked for; between them it is interpolated, which is exact
unless the volume lies under a warping transform."""

_PLACE = "Move it onto the volume, or go without it."


@dataclass(frozen=True, eq=False)
class Region:
    """A box in a volume.

    Attributes:
        name: of the node.
        lower, upper: first voxel of the smallest part of the volume that holds the box, and first one behind it.
        places: (n, n, n, 3) where a lattice of points, from corner to corner of that part, lies in the box, whose
            sides are at -1 and 1.
    """

    name: str
    lower: Triple
    upper: Triple
    places: npt.NDArray[np.float64]

    def keep(self, labels: Array, lower: Triple, shape: Triple) -> Array:
        """The label map of a whole volume, with 0 outside the box. Slow: not for the GUI's thread.

        Args:
            labels: (D, H, W) of the part of the volume that begins at ``lower``.
            lower: first voxel of that part; it holds this region.
            shape: of the volume.
        """
        # Written as (k, j, i), which is how VTK wants it.
        whole = np.zeros(shape[::-1], labels.dtype)
        weights = [_weights(len(self.places), b - a) for a, b in zip(self.lower, self.upper)]
        i, j = (slice(a, b) for a, b in zip(self.lower[:2], self.upper[:2]))
        own = tuple(slice(a - c, b - c) for a, b, c in zip(self.lower[:2], self.upper[:2], lower[:2]))
        for k in range(self.lower[2], self.upper[2]):
            lattice = np.tensordot(weights[2][k - self.lower[2]], self.places, (0, 2))
            places = np.tensordot(weights[1], np.tensordot(weights[0], lattice, (1, 0)), (1, 1))
            # (j, i, 3)
            is_inside = (np.abs(places) <= 1 + 1e-9).all(axis=-1)
            whole[k, j, i] = np.where(is_inside, labels[own[0], own[1], k - lower[2]].T, 0)
        return whole.T

    def to_json(self) -> dict[str, Any]:
        """What it was, for the provenance of the result."""
        return {"name": self.name, "lower": list(self.lower), "upper": list(self.upper)}

    def with_context(self, margin: Sequence[float], shape: Triple) -> tuple[Triple, Triple]:
        """Bounds of a larger part of the volume: so many voxels more on each side, where there are."""
        wider = [
            (max(a - int(np.ceil(m)), 0), min(b + int(np.ceil(m)), n))
            for a, b, m, n in zip(self.lower, self.upper, margin, shape)
        ]
        (d0, d1), (h0, h1), (w0, w1) = wider
        return (d0, h0, w0), (d1, h1, w1)


def why_no_region(roi: Node) -> str:
    """Why a node cannot be a region of interest, as a sentence; empty if it can."""
    name = roi.GetName()
    if roi.GetClassName() != "vtkMRMLMarkupsROINode":
        return f"{name} is no region of interest but a {roi.GetNodeTagName()}; choose a box of the module Markups."
    if not min(roi.GetSize()) > 0:
        return f"The region of interest {name} has no size; place it in a view, or go without it."
    if roi.GetInsideOut():
        return f"The region of interest {name} is turned inside out; switch that off in the module Markups."
    return ""


def region_of(roi: Node, volume: Node, transform: Node | None = None) -> Region:
    """The part of a volume that a box marks.

    Args:
        roi: a ``vtkMRMLMarkupsROINode``.
        volume: with voxels.
        transform: under which the volume lies, where it is not in the scene itself, as the item of a sequence;
            without: its parent transform.

    Raises:
        DataError: the box has no size, or lies outside the volume.
    """
    reason = why_no_region(roi)
    if reason:
        raise DataError(reason.rstrip("."), cure=_PLACE)
    parent = transform or volume.GetParentTransformNode()
    shape: Triple = volume.GetImageData().GetDimensions()
    to_ras, box_to_world = ijk_to_ras(volume), _box_to_world(roi)
    is_warped = parent is not None and not parent.IsTransformToWorldLinear()
    points = _WARPED if is_warped else _STRAIGHT
    # The surface would do; a lattice is as quick.
    box = _lattice((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), points).reshape(-1, 3)
    local: Points = _moved(_applied(box_to_world, box), None, parent)
    voxels = _applied(np.linalg.inv(to_ras), local)
    # Between the points a warped side may lie further out.
    slack = 2.0 if is_warped else 1e-6
    first = np.maximum(np.ceil(voxels.min(axis=0) - slack), 0).astype(int)
    last = np.minimum(np.floor(voxels.max(axis=0) + slack), np.array(shape) - 1).astype(int)
    if not np.isfinite(voxels).all() or (last < first).any():
        raise DataError(
            f"The region of interest {roi.GetName()} lies outside the volume {volume.GetName()}", cure=_PLACE
        )
    corners = _lattice(first.astype(float), last.astype(float), points)
    world = _moved(_applied(to_ras, corners.reshape(-1, 3)), parent, None)
    places = _applied(np.linalg.inv(box_to_world), world).reshape(corners.shape)
    d0, h0, w0 = (int(n) for n in first)
    d1, h1, w1 = (int(n) + 1 for n in last)
    return Region(str(roi.GetName()), (d0, h0, w0), (d1, h1, w1), places)


def _box_to_world(roi: Node) -> npt.NDArray[np.float64]:
    """4x4: from the box, whose sides are at -1 and 1, to RAS of the world, mm."""
    matrix = roi.GetObjectToWorldMatrix()
    to_world = np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])
    return np.asarray(to_world @ np.diag([*(size / 2 for size in roi.GetSize()), 1.0]))


def _moved(points: Points, source: Node | None, target: Node | None) -> Points:
    """Points that lie under one transform, as seen from under another; None is the world."""
    if source is target:
        return points
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, transform)
    given, moved = vtk.vtkPoints(), vtk.vtkPoints()
    given.SetData(numpy_to_vtk(np.ascontiguousarray(points), deep=True))
    moved.SetDataTypeToDouble()
    transform.TransformPoints(given, moved)
    return np.array(vtk_to_numpy(moved.GetData()), dtype=np.float64)


def _applied(matrix: npt.NDArray[np.floating[Any]], points: Points) -> Points:
    return np.asarray(points @ matrix[:3, :3].T + matrix[:3, 3])


def _lattice(first: Sequence[float] | Points, last: Sequence[float] | Points, count: int) -> npt.NDArray[np.float64]:
    """(count, count, count, 3): points from corner to corner."""
    axes = [np.linspace(a, b, count) for a, b in zip(first, last)]
    return np.array(list(itertools.product(*axes))).reshape(count, count, count, 3)


def _weights(points: int, voxels: int) -> npt.NDArray[np.float64]:
    """(voxels, points): how much each point of the lattice counts for a voxel, when interpolating linearly."""
    at = np.linspace(0, points - 1, voxels) if voxels > 1 else np.zeros(1)
    return np.asarray(np.maximum(1 - np.abs(at[:, np.newaxis] - np.arange(points)), 0))
