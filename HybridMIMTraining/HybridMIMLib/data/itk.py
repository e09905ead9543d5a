"""NRRD and MetaImage, through SimpleITK."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK

from HybridMIMLib.data.grid import Affine, Array, Grid
from HybridMIMLib.data.volume import LPS_TO_RAS, Content, Volume, attempt, check_pixel_type, colours, single_slice

_DETACHED = {".nhdr": rb"data ?file:\s*(.+)", ".mhd": rb"ElementDataFile\s*=\s*(.+)"}
_LARGEST_HEADER = 1 << 16


def read_itk(path: Path, content: Content | None = None) -> Volume:
    """Read a file; its bytes, and those of a file that its voxels lie in, go to ``content``.

    Raises:
        ScanError: the file is truncated, damaged, of another format, holds colours, complex numbers or 2D.
    """
    if content is not None:
        # First, so that SimpleITK finds the bytes in the memory of the system: it cannot be handed them.
        for file in files_of_itk(path):
            content.add_file(file)
    image = attempt(path, lambda: SimpleITK.ReadImage(str(path)))
    if "complex" in image.GetPixelIDTypeAsString():
        check_pixel_type(path, np.dtype(np.complex64))
    components = image.GetNumberOfComponentsPerPixel()
    if components in (3, 4) and image.GetPixelID() == SimpleITK.sitkVectorUInt8:
        raise colours(path)
    if image.GetDimension() == 2:
        raise single_slice(path, image.GetSize())
    array = SimpleITK.GetArrayFromImage(image)
    stacked = _is_stack(image) or (image.GetDimension() > 3 and image.GetSize()[3] > 1)
    return Volume(_channels_first(array, image), _affine(image), stacked)


def save_itk(path: Path, array: Array, grid: Grid) -> None:
    """Write (D, H, W), compressed."""
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    affine = LPS_TO_RAS @ grid.affine
    image.SetSpacing(grid.spacing)
    image.SetDirection((affine[:3, :3] / np.asarray(grid.spacing)).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(path), True)


def files_of_itk(path: Path) -> tuple[Path, ...]:
    """The file, and the one that its voxels lie in where its header names one."""
    pattern = _DETACHED.get(path.suffix.lower())
    if pattern is None:
        return (path,)
    try:
        with path.open("rb") as handle:
            found = re.search(pattern, handle.read(_LARGEST_HEADER), re.IGNORECASE)
    except OSError:
        return (path,)
    data = path.parent / found[1].decode("utf-8", "surrogateescape").strip() if found else path
    # A header may say LOCAL or LIST, or name its slices by a pattern; these are no files.
    return (path, data) if data != path and data.is_file() else (path,)


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
