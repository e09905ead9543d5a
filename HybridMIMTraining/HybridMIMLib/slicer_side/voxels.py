"""The voxels of a volume on their way to the child process, and its labels on their way back.

Copying is done piece by piece in the GUI's thread, for the scene belongs to it; writing and reading files are for
threads (:mod:`~HybridMIMLib.slicer_side.background`). Arrays here are (k, j, i), as VTK, NRRD and SimpleITK have
them, so that nothing has to be turned around in memory; (D, H, W) is the same the other way round.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from HybridMIMLib.errors import LabelError
from HybridMIMLib.files import disk_errors
from HybridMIMLib.slicer_side.segments import Node, image_array

Array = npt.NDArray[Any]
Triple = tuple[int, int, int]

PIECE = 8 * 2**20
"""Bytes that are copied or written in one go: some milliseconds."""

_NRRD_TYPES = {
    "int8": "int8", "uint8": "uint8", "int16": "int16", "uint16": "uint16", "int32": "int32", "uint32": "uint32",
    "float32": "float", "float64": "double", "int64": "double", "uint64": "double",
}  # fmt: skip
"""How NRRD calls the types of voxels; it is not known to everybody with whole numbers of 64 bits."""

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0])


def stamp(volume: Node) -> tuple[Any, ...]:
    """Changes when the voxels do; a volume that is moved, windowed or renamed keeps it. Empty: there are none."""
    image = volume.GetImageData()
    scalars = image.GetPointData().GetScalars() if image is not None else None
    if scalars is None:
        return ()
    return image.GetDimensions(), image.GetMTime(), scalars.GetMTime()


def is_known_type(volume: Node) -> bool:
    """Whether the voxels are of a type that can be written."""
    return image_array(volume.GetImageData()).dtype.name in _NRRD_TYPES


def type_of_copy(volume: Node) -> np.dtype[Any]:
    """What the voxels are written as."""
    name = image_array(volume.GetImageData()).dtype.name
    return np.dtype(np.float64) if name in ("int64", "uint64") else np.dtype(name)


def new_array(shape: Triple, kind: np.dtype[Any]) -> Array:
    """An array (k, j, i) to copy into. Its memory is touched, which takes longer than the copying does."""
    array = np.empty(shape[::-1], kind)
    array.fill(0)
    return array


def copy_voxels(volume: Node, lower: Triple, into: Array) -> Iterator[None]:
    """Copy the box that begins at the voxel ``lower`` (i, j, k) and is as large as ``into``, a piece at a time.

    Args:
        volume: whose voxels are looked up anew for each piece, for they may have been replaced; whether they were
            is for :func:`stamp` to say.
        lower: first voxel (i, j, k).
        into: (k, j, i).
    """
    i, j, k = lower
    for part in _pieces(into):
        source = image_array(volume.GetImageData()).T
        box = source[k : k + into.shape[0], j : j + into.shape[1], i : i + into.shape[2]]
        into[part] = box[part]
        yield


def write_scan(path: Path, array: Array, affine: npt.NDArray[np.float64]) -> None:
    """Write voxels as NRRD, uncompressed: a file to hand on, not to keep.

    Args:
        path: of the file.
        array: (k, j, i).
        affine: 4x4, mm, voxel (i, j, k) -> RAS; shear is kept.

    Raises:
        DiskError: it could not be written; nothing is left of it.
    """
    with disk_errors(path):
        try:
            with open(path, "wb") as handle:
                handle.write(_header(array, affine))
                for part in _pieces(array):
                    handle.write(np.ascontiguousarray(array[part]).data.cast("B"))
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def read_labels(file: Path, shape: Triple, name: str) -> Array:
    """The label map that the child wrote.

    The voxels alone are read: their place is that of the volume, and no file keeps it better.

    Args:
        file: NRRD or NIfTI.
        shape: (D, H, W) that it must have.
        name: of the volume.

    Returns:
        (D, H, W) whole numbers.

    Raises:
        LabelError: it cannot be read, or has another shape.
    """
    # Slicer ships SimpleITK.
    import SimpleITK

    try:
        labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))).transpose(2, 1, 0)
    except (RuntimeError, ValueError) as error:
        raise LabelError(f"{file}: the result cannot be read ({error})", cure="Segment the volume again.") from error
    if labels.shape != shape or labels.dtype.kind not in "iu":
        raise LabelError(
            f"{name}: the result has the shape {labels.shape} and the type {labels.dtype}, the volume {shape}",
            cure="Segment the volume again.",
        )
    return np.asarray(labels)


def _pieces(array: Array) -> Iterator[tuple[slice, ...]]:
    """Parts of an array (k, j, i) that lie in one piece in memory and are not much larger than :data:`PIECE`."""
    slices, rows, _ = array.shape
    row = max(array[:1, :1].nbytes, 1)
    if row * rows <= PIECE:
        step = PIECE // max(row * rows, 1)
        yield from ((slice(k, k + step),) for k in range(0, slices, step))
        return
    step = max(PIECE // row, 1)
    for k in range(slices):
        yield from ((slice(k, k + 1), slice(j, j + step)) for j in range(0, rows, step))


def _header(array: Array, affine: npt.NDArray[np.float64]) -> bytes:
    """Numbers are written so that reading them gives the same ones."""

    def vector(values: npt.NDArray[np.float64]) -> str:
        return f"({','.join(repr(float(value)) for value in values)})"

    columns, origin = _LPS_FROM_RAS @ affine[:3, :3], _LPS_FROM_RAS @ affine[:3, 3]
    lines = [
        "NRRD0004",
        f"type: {_NRRD_TYPES[array.dtype.name]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, array.shape[::-1]))}",
        f"space directions: {' '.join(vector(columns[:, axis]) for axis in range(3))}",
        "kinds: domain domain domain",
        f"endian: {sys.byteorder}",
        "encoding: raw",
        f"space origin: {vector(origin)}",
    ]
    return ("\n".join(lines) + "\n\n").encode("ascii")
