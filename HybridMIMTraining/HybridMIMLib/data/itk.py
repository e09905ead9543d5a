"""NRRD and MetaImage, through SimpleITK."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK

from HybridMIMLib.data.grid import Affine, Array, Grid
from HybridMIMLib.data.itk_headers import TextHeader, check_voxels_are_there, geometry_warnings, read_text_header
from HybridMIMLib.data.volume import (
    LPS_TO_RAS,
    MOST_CHANNELS,
    NO_STEP,
    Content,
    Volume,
    attempt,
    check_pixel_type,
    colours,
    vectors,
)
from HybridMIMLib.errors import ScanError

_VECTORS = {"covariant-vector", "normal", "3-vector", "3-gradient", "3-normal", "4-vector", "quaternion", "point"}


def read_itk(path: Path, content: Content | None = None) -> Volume:
    """Read a file; its bytes, and those of a file that its voxels lie in, go to ``content``.

    Raises:
        ScanError: the file is truncated, damaged, of another format, or holds colours or complex numbers.
    """
    if content is not None:
        # First, so that SimpleITK finds the bytes in the memory of the system: it cannot be handed them.
        for file in files_of_itk(path):
            content.add_file(file)
    header = attempt(path, lambda: read_text_header(path))
    check_voxels_are_there(path, header)
    image = attempt(path, lambda: SimpleITK.ReadImage(str(path)))
    if "complex" in image.GetPixelIDTypeAsString():
        check_pixel_type(path, np.dtype(np.complex64))
    components = image.GetNumberOfComponentsPerPixel()
    _check_components(path, components, image.GetPixelIDTypeAsString(), header)
    is_stack, warnings = components > MOST_CHANNELS or _is_stack(image), _warnings(path, image, header)
    if image.GetDimension() == 2:
        # A volume of one slice, 1 mm thick.
        image = SimpleITK.JoinSeries(image)
    array = _channels_first(SimpleITK.GetArrayFromImage(image), image)
    channels = 1 if is_stack else components
    step = (image.GetSpacing()[3], NO_STEP[1]) if image.GetDimension() > 3 else NO_STEP
    return Volume(array, _affine(image), len(array) > channels, warnings, channels=channels, step=step)


def save_itk(path: Path, array: Array, grid: Grid) -> None:
    """Write (D, H, W), compressed.

    Raises:
        OSError: the disk is full, which the writer does not tell.
    """
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    affine = LPS_TO_RAS @ grid.affine
    image.SetSpacing(grid.spacing)
    image.SetDirection((affine[:3, :3] / np.asarray(grid.spacing)).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    try:
        SimpleITK.WriteImage(image, str(path), True)
        check_voxels_are_there(path, attempt(path, lambda: read_text_header(path)))
    except (ScanError, RuntimeError) as error:
        if not path.exists():
            raise
        # It could be opened and not be filled.
        raise OSError(errno.ENOSPC, "No space left on device", str(path)) from error


def files_of_itk(path: Path) -> tuple[Path, ...]:
    """The file, and the one that its voxels lie in where its header names one."""
    try:
        header = read_text_header(path)
    except (OSError, ScanError):
        return (path,)
    is_other = header.data != path and not header.several and header.data.is_file()
    return (path, header.data) if is_other else (path,)


def _check_components(path: Path, components: int, kind: str, header: TextHeader) -> None:
    """Several numbers in a voxel may be channels, but also colours or the coordinates of a vector."""
    kinds = set(header.fields.get("kinds", "").lower().split())
    if components in (3, 4) and "unsigned" in kind or any("color" in word for word in kinds):
        raise colours(path)
    if kinds & _VECTORS or any("matrix" in word for word in kinds):
        raise vectors(path)


def _warnings(path: Path, image: Any, header: TextHeader) -> tuple[str, ...]:
    warnings = geometry_warnings(path, header)
    if image.GetNumberOfComponentsPerPixel() == 3 and "float" in image.GetPixelIDTypeAsString():
        warnings += ("its 3 numbers a voxel are taken for channels; remove it if they are vectors (a displacement)",)
    return warnings


def _is_stack(image: Any) -> bool:
    """Whether the components of an NRRD are frames of a sequence or layers of a segmentation."""
    keys = (key for key in image.GetMetaDataKeys() if key.startswith("NRRD_kinds"))
    kinds = {image.GetMetaData(key) for key in keys}
    return image.GetNumberOfComponentsPerPixel() > 1 and bool(kinds & {"list", "time"})


def _channels_first(array: Array, image: Any) -> Array:
    """SimpleITK gives ([t,] k, j, i[, c]); we want (t·c, i, j, k)."""
    if image.GetNumberOfComponentsPerPixel() == 1:
        array = array[..., np.newaxis]
    spatial = array.reshape(-1, *array.shape[-4:])
    ordered = spatial.transpose(0, 4, 3, 2, 1)
    return ordered.reshape(-1, *ordered.shape[2:])


def _affine(image: Any) -> Affine:
    dimension = image.GetDimension()
    directions = np.asarray(image.GetDirection(), dtype=np.float64).reshape(dimension, dimension)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = directions * np.asarray(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    return np.asarray(LPS_TO_RAS @ affine)
