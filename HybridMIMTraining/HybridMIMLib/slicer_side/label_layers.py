"""A label map, from a file or an array, as small images that VTK can take as they are: work for a thread, no MRML.

Arrays that are handed in are (D, H, W); inside, they are (K, J, I), which is (W, H, D), with i running fastest, as
VTK and files lay out voxels: nothing is turned around on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, Union

import numpy as np
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.errors import LabelError

Image: TypeAlias = Union[Path, np.ndarray]
"""A file, or an array (D, H, W)."""
LabelSource: TypeAlias = Union[Image, Mapping[str, Image]]
"""A label map; or, where classes overlap, a mask a class, by its name."""

_MOST = 255
"""Highest value in a layer."""


@dataclass(frozen=True, eq=False)
class Layer:
    """Voxels of classes that do not overlap, cropped to the box in which there are any.

    Attributes:
        first: voxel (i, j, k) of the grid at which it begins.
        scalars: ``vtkUnsignedCharArray``, i running fastest.
        values: (K, J, I) uint8 view of ``scalars``.
        value_of: what stands for a label.
    """

    first: tuple[int, int, int]
    scalars: Any
    values: np.ndarray
    value_of: dict[int, int]

    def mask(self, label: int) -> np.ndarray:
        """(K, J, I) bool."""
        return self.values == self.value_of[label]


@dataclass(frozen=True, eq=False)
class LabelLayers:
    """A label map taken apart.

    Attributes:
        layers: as few as hold all classes.
        layer_of: the index of its layer, by label.
        voxels: how many each class has, by label; in the order of the classes.
    """

    layers: list[Layer]
    layer_of: dict[int, int]
    voxels: dict[int, int]

    def of(self, label: int) -> Layer:
        """The layer that holds a class."""
        return self.layers[self.layer_of[label]]


def take_apart(
    labels: LabelSource,
    shape: tuple[int, int, int],
    classes: Sequence[LabelClass],
    keep: Sequence[LabelClass],
    name: str,
) -> LabelLayers:
    """Read, check and crop a label map. Takes seconds for a large one: not for the thread of the window.

    Args:
        labels: a label map, or masks by the names of classes; a class without a mask is empty.
        shape: (D, H, W) of the scan.
        classes: that the label map may hold; 0 is background.
        keep: those of them that are wanted; the voxels of others become background.
        name: of the scan, for messages.

    Raises:
        LabelError: a file cannot be read, is of another shape, or holds a value that is no class.
    """
    if not isinstance(labels, Mapping):
        values = {one.label: number + 1 for number, one in enumerate(keep)}
        if all(one.label <= _MOST for one in keep):
            # So that a file that Slicer writes has the labels of the model.
            values = {one.label: one.label for one in keep}
        layer, counts = _layer(_kji(labels, shape, name), values, {one.label for one in classes}, name)
        voxels = {one.label: counts.get(one.label, 0) for one in keep}
        return LabelLayers([layer], {one.label: 0 for one in keep}, voxels)
    layers, voxels = [], {}
    for one in keep:
        mask = _kji(labels[one.name], shape, name) if one.name in labels else np.zeros((0, 0, 0), np.uint8)
        layer, counts = _layer((mask != 0).view(np.uint8), {1: 1}, {1}, name)
        layers.append(Layer(layer.first, layer.scalars, layer.values, {one.label: 1}))
        voxels[one.label] = counts.get(1, 0)
    return LabelLayers(layers, {one.label: number for number, one in enumerate(keep)}, voxels)


def read_image(path: Path) -> np.ndarray:
    """The voxels of a label file, (K, J, I); their place is that of the scan, and no file keeps it better.

    Raises:
        LabelError: it cannot be read.
    """
    # Slicer ships SimpleITK.
    import SimpleITK

    try:
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    except (RuntimeError, ValueError) as error:
        raise LabelError(f"{path}: the result cannot be read ({error})", cure="Segment the volume again.") from error


def vtk_scalars(values: np.ndarray, table: np.ndarray | None = None) -> tuple[Any, np.ndarray]:
    """A ``vtkUnsignedCharArray`` with a copy of values (K, J, I), which VTK owns, and a view of it in their shape.

    Args:
        table: (N) uint8, what stands for each value; without, the values themselves.
    """
    scalars = vtk.vtkUnsignedCharArray()
    scalars.SetNumberOfTuples(values.size)
    view = vtk_to_numpy(scalars).reshape(values.shape) if values.size else np.zeros(values.shape, np.uint8)
    # Plane by plane: looking up keeps Python's lock, which the window's thread waits for.
    for plane, filled in zip(values, view):
        filled[...] = plane if table is None else table[plane]
    return scalars, view


def _kji(image: Image, shape: tuple[int, int, int], name: str) -> np.ndarray:
    array = image.transpose() if isinstance(image, np.ndarray) else read_image(image)
    if array.shape != shape[::-1]:
        raise LabelError(
            f"{name}: the label map has the shape {array.shape[::-1]}, its scan {shape}",
            cure="Use the label map that was made for this scan.",
        )
    if array.dtype.kind not in "iub":
        raise LabelError(f"{name}: the label map holds {array.dtype}, no whole numbers", cure="Segment it again.")
    if array.dtype == bool:
        array = array.view(np.uint8)
    return np.ascontiguousarray(array)


def _layer(array: np.ndarray, values: Mapping[int, int], known: set[int], name: str) -> tuple[Layer, dict[int, int]]:
    """The layer of an array (K, J, I), and how many voxels each label has."""
    counts: dict[int, int] = {}
    box: list[tuple[int, int, int, int, int]] = []
    # Plane by plane: nothing of the size of the scan is made, and the window gets its turn.
    for k, plane in enumerate(array):
        if not plane.any():
            continue
        for label, count in _count(plane):
            counts[label] = counts.get(label, 0) + count
        rows, columns = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))
        box.append((k, int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])))
    strangers = sorted(set(counts) - known - {0})
    if strangers:
        raise LabelError(
            f"{name}: the label map holds {strangers}, but the classes are {sorted(known)}",
            cure="Add these values to the list of classes, or correct the label map.",
        )
    if not box:
        return Layer((0, 0, 0), *vtk_scalars(np.zeros((0, 0, 0), np.uint8)), dict(values)), counts
    low, high = np.min(box, axis=0).tolist(), np.max(box, axis=0).tolist()
    first = (low[3], low[1], low[0])
    crop = array[low[0] : high[0] + 1, low[1] : high[2] + 1, low[3] : high[4] + 1]
    wanted = {label: value for label, value in values.items() if label in counts}
    if any(label != value for label, value in wanted.items()) or set(counts) - {0} - set(wanted):
        table = np.zeros(max(counts) + 1, np.uint8)
        for label, value in wanted.items():
            table[label] = value
        return Layer(first, *vtk_scalars(crop, table), dict(values)), counts
    return Layer(first, *vtk_scalars(crop), dict(values)), counts


def _count(plane: np.ndarray) -> list[tuple[int, int]]:
    """Each value and how often it is there."""
    if plane.dtype.itemsize < 3 and plane.dtype.kind == "u":
        times = np.bincount(plane.ravel())
        return [(int(value), int(times[value])) for value in np.flatnonzero(times)]
    found, times = np.unique(plane, return_counts=True)
    return list(zip(found.tolist(), times.tolist()))
