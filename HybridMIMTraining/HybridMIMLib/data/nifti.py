"""NIfTI, through nibabel, which keeps sheared affines.

The file is unpacked whole first, so that a truncated or damaged one is an error and not a volume with empty slices.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from HybridMIMLib.data.grid import Array, Grid
from HybridMIMLib.data.volume import (
    GRID_TOLERANCE,
    MOST_CHANNELS,
    NO_STEP,
    SPLIT,
    Content,
    Step,
    Volume,
    attempt,
    check_pixel_type,
    largest_shear,
    mm,
    vectors,
)
from HybridMIMLib.errors import ScanError

_ZOOM_TOLERANCE = 1e-3
_VECTOR_INTENTS = range(1004, 1011)
"""Matrices, displacements, vectors, points, triangles, quaternions."""


def is_nifti(path: Path) -> bool:
    """Whether the name says so."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def read_nifti(path: Path, content: Content | None = None) -> Volume:
    """Read a file; its bytes go to ``content`` on the way.

    Raises:
        ScanError: the file is truncated, damaged, no NIfTI, or holds colours or complex numbers.
    """
    image = attempt(path, lambda: _image(path, content))
    check_pixel_type(path, image.get_data_dtype())
    array = attempt(path, lambda: np.asanyarray(image.dataobj))
    if array.ndim > 4 and array.shape[4] > 1 and int(image.header["intent_code"]) in _VECTOR_INTENTS:
        raise vectors(path)
    stack, volumes, channels = _channels_first(path, array)
    affine = np.asarray(image.affine, dtype=np.float64)
    about = _warnings(image), _modality(image)
    return Volume(stack, affine, volumes > 1, *about, channels=channels, step=_step(image))


def save_nifti(path: Path, array: Array, grid: Grid, step: Step = NO_STEP) -> None:
    """Write (D, H, W), or (T, D, H, W) as 4D, with sform and qform; a shear is in the sform alone."""
    image = nibabel.Nifti1Image(array if array.ndim == 3 else np.moveaxis(array, 0, -1), grid.affine)
    image.header.set_xyzt_units("mm", step[1])
    if array.ndim == 4:
        image.header["pixdim"][4] = step[0]
    image.set_qform(grid.affine, code=1, strip_shears=True)
    image.set_sform(grid.affine, code=1)
    nibabel.save(image, path)


def _image(path: Path, content: Content | None) -> Any:
    """Unpack the whole file, to its checksum, before anything is read from it."""
    packed = path.read_bytes()
    if content is not None:
        content.add_bytes(packed)
    unpacked = gzip.decompress(packed) if packed.startswith(b"\x1f\x8b") else packed
    is_second_version = 540 in (int.from_bytes(unpacked[:4], "little"), int.from_bytes(unpacked[:4], "big"))
    kind = nibabel.Nifti2Image if is_second_version else nibabel.Nifti1Image
    return kind.from_bytes(unpacked)


def _channels_first(path: Path, array: Array) -> tuple[Array, int, int]:
    """(T·C, D, H, W), and T volumes of C channels; NIfTI's axes are i, j, k, time, components."""
    shape = array.shape + (1,) * (5 - array.ndim)
    if array.ndim < 2 or math.prod(shape[5:]) != 1:
        raise ScanError(f"{path}: an array of {array.ndim} dimensions is no 3D image", cure=SPLIT)
    times, components = shape[3:5]
    stack = array.reshape(shape[:5]).transpose(3, 4, 0, 1, 2).reshape(times * components, *shape[:3])
    if components > MOST_CHANNELS:
        times, components = times * components, 1
    return stack, times, components


def _step(image: Any) -> Step:
    """Between the volumes of a 4D file."""
    if len(image.shape) < 4 or image.shape[3] < 2:
        return NO_STEP
    size = float(image.header.get_zooms()[3])
    return (size, image.header.get_xyzt_units()[1]) if math.isfinite(size) else NO_STEP


def _modality(image: Any) -> str:
    """dcm2niix and others write the echo time into the description, and only MR has one."""
    return "MR" if b"TE=" in image.header["descrip"].tobytes() else ""


def _warnings(image: Any) -> tuple[str, ...]:
    warnings = (_orientation_warning(image), _zoom_warning(image), _unit_warning(image))
    return tuple(text for text in warnings if text)


def _orientation_warning(image: Any) -> str | None:
    header = image.header
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        return "stores no orientation (sform and qform are unset): left and right may be swapped"
    if header["sform_code"] == 0 or header["qform_code"] == 0 or largest_shear(image.affine):
        return None
    try:
        grids = [Grid(image.shape[:3], affine) for affine in (image.get_sform(), image.get_qform())]
        distance = grids[0].distance(grids[1])
    except Exception:  # a qform that cannot be decoded is one that contradicts
        return "its qform is invalid; its sform is used"
    if distance <= GRID_TOLERANCE:
        return None
    return f"sform and qform contradict each other by up to {distance:.2g} voxels; the sform is used"


def _zoom_warning(image: Any) -> str | None:
    stored = np.asarray(image.header.get_zooms()[:3], dtype=np.float64)
    used = np.linalg.norm(image.affine[:3, :3], axis=0)[: stored.size]
    if np.allclose(stored, used, rtol=_ZOOM_TOLERANCE, atol=0):
        return None
    return f"pixdim says {mm(stored)} but the affine says {mm(used)}; the affine is used"


def _unit_warning(image: Any) -> str | None:
    unit = image.header.get_xyzt_units()[0]
    return f"says that its unit is {unit}; mm is assumed" if unit in ("meter", "micron") else None
