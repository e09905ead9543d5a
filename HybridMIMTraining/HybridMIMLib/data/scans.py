"""Finding, reading and verifying scans and label maps.

NIfTI is read through nibabel, which keeps sheared affines; the file is unpacked whole first, so that a
truncated or damaged one is an error and not a volume with empty slices. The other formats are read through
SimpleITK.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK

from HybridMIMLib.data.grid import Affine, Array, Grid
from HybridMIMLib.errors import DataError, LabelError, ScanError
from HybridMIMLib.files import atomic_path

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
"""The file formats that are read, in lower case."""

_DOUBLE_SUFFIXES = (".seg.nrrd", ".nii.gz")
_WRITABLE = (".nii", ".nii.gz", ".nrrd", ".mha")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

_FEW_VOXELS = 8
_ZOOM_TOLERANCE = 1e-3
_GRID_TOLERANCE = 0.05
_RIGHT_ANGLE_TOLERANCE = 1e-3
_INTEGER_TOLERANCE = 1e-4

_AGAIN = "Copy or download the file again, or remove it from the folder."
_ONE_LAYER = (
    "Save one 3D label map, for example with Slicer's Segmentations module, Export to new labelmap; segments "
    "that overlap have to be parted first."
)
_SPLIT = (
    "4D is not supported yet: split it into 3D files, for example with nibabel.four_to_three or Slicer's "
    "Sequences module, and keep those that you need."
)


@dataclass(frozen=True, eq=False)
class Scan:
    """One image, verified.

    Attributes:
        path: the file it was read from.
        array: (C, D, H, W), integers as they are in the file, other numbers as float32; all finite.
        grid: its place in the world.
        warnings: what is odd about the file though it can be used; one line each, without the file's name.
    """

    path: Path
    array: Array
    grid: Grid
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class LabelMap:
    """One label map, verified.

    Attributes:
        path: the file it was read from.
        array: (D, H, W), uint8, or uint16 where a label is above 255.
        grid: its place in the world.
        warnings: as in :class:`Scan`.
    """

    path: Path
    array: Array
    grid: Grid
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Volume:
    """What a file holds, before it is known whether that can be used.

    ``stacked`` says that the first axis of the array (C, D, H, W) counts volumes (time points, layers), not
    channels.
    """

    array: Array
    affine: Affine
    stacked: bool
    warnings: tuple[str, ...] = ()


def scan_name(path: Path) -> str:
    """The file name without its suffix: ``a.b`` for ``a.b.nii.gz``, ``c`` for ``c.nrrd``, ``c.seg.nrrd``."""
    for suffix in (*_DOUBLE_SUFFIXES, *SUFFIXES):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def find_scans(folder: Path) -> list[Path]:
    """All files of a readable format in a folder and its subfolders, naturally sorted (2 before 10).

    Folders that are links are followed, each folder once. Hidden and temporary files are passed over.

    Raises:
        DataError: the folder does not exist, may not be read, or holds no scan.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder", cure="Check the path, or choose another folder.")
    found = [path for path in _walk(folder) if _is_scan(path)]
    if not found:
        raise DataError(
            f"no scan found in {folder}: formats are {', '.join(SUFFIXES)}",
            cure="Choose the folder with the scans, or convert them (Slicer loads DICOM and saves NRRD).",
        )
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder).as_posix()))


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers by value, and otherwise by letters whatever their case."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    key = [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part.casefold()) for part in parts]
    return [*key, (2, 0, text)]


def read_scan(path: Path) -> Scan:
    """Read one image and verify that it can be trained on.

    Returns:
        The scan, (C, D, H, W) on its own grid; what is odd but usable is in its ``warnings``.

    Raises:
        ScanError: the file is missing, empty, a git-LFS pointer, truncated, damaged or of no known format;
            holds colours, complex numbers, several volumes (4D) or a single slice; has a singular affine;
            or its voxels are not all finite or are all the same.
    """
    volume = _read_volume(path)
    if volume.stacked:
        raise ScanError(f"{path}: holds {len(volume.array)} volumes (4D)", cure=_SPLIT)
    grid = _grid_of(path, volume)
    array = _with_plain_type(volume.array)
    _check_voxels(path, array)
    return Scan(path, array, grid, (*volume.warnings, *_grid_warnings(grid)))


def read_label_map(
    path: Path,
    scan_grid: Grid | None = None,
    *,
    scan_path: Path | None = None,
    highest: int | None = None,
) -> LabelMap:
    """Read one label map and verify it against its scan.

    Args:
        path: the file.
        scan_grid: the grid of its scan, or None to skip that check.
        scan_path: the file of the scan, for the message.
        highest: the highest label that there is a class for, or None for any.

    Raises:
        LabelError: the file cannot be read, has several layers, values that are no labels, or another grid.
    """
    try:
        volume = _read_volume(path)
        if len(volume.array) > 1:
            raise LabelError(f"{path}: the label map has {len(volume.array)} layers", cure=_ONE_LAYER)
        grid = _grid_of(path, volume)
    except ScanError as error:
        raise LabelError(error.message, cure=error.cure) from error
    labels = _as_labels(path, volume.array[0], highest)
    if scan_grid is not None and not scan_grid.same_as(grid, _GRID_TOLERANCE):
        raise _other_grid(path, grid, scan_path, scan_grid)
    return LabelMap(path, labels, grid, volume.warnings)


def write_label_map(path: Path, labels: Array, grid: Grid) -> None:
    """Write a label map atomically, as uint8, or uint16 where a label is above 255.

    Args:
        path: ends with .nii.gz, .nii, .nrrd or .mha; NIfTI gets sform and qform, a shear is in sform alone.
        labels: (D, H, W), integers from 0.
        grid: the grid of the labels.

    Raises:
        LabelError: another suffix.
        DiskError: the file could not be written; nothing is left behind.
        ValueError: the labels have another shape than the grid, or are no integers from 0 to 65535.
    """
    if not path.name.lower().endswith(_WRITABLE):
        raise LabelError(
            f"{path}: label maps are not written in this format",
            cure=f"Choose one of {', '.join(_WRITABLE)}.",
        )
    compact = _compact_labels(labels)
    if labels.shape != grid.shape:
        raise ValueError(f"labels of shape {labels.shape} do not lie on a grid of shape {grid.shape}")
    write = _write_nifti if _is_nifti(path) else _write_itk
    with atomic_path(path) as temporary:
        write(temporary, compact, grid)


def write_nifti(path: Path, array: Array, grid: Grid) -> None:
    """Write (D, H, W) of any integer or float type as .nii or .nii.gz, atomically, with sform and qform.

    Raises:
        DiskError: the file could not be written; nothing is left behind.
    """
    with atomic_path(path) as temporary:
        _write_nifti(temporary, array, grid)


# --- finding ------------------------------------------------------------------------------------------------


def _walk(folder: Path) -> list[Path]:
    files: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable_folder):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(root, name) for name in names]
    return files


def _unreadable_folder(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: the folder cannot be read ({error.strerror})",
        cure="Ask for the right to read it.",
    ) from error


def _is_scan(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith(SUFFIXES) and not name.startswith(".") and ".tmp." not in name


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


# --- reading ------------------------------------------------------------------------------------------------


def _read_volume(path: Path) -> _Volume:
    if not path.name.lower().endswith(SUFFIXES):
        raise ScanError(f"{path}: not a format that is read", cure=f"Convert it to one of {', '.join(SUFFIXES)}.")
    _check_file(path)
    return _read_nifti(path) if _is_nifti(path) else _read_itk(path)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ScanError(f"{path}: no such file", cure="Check the path, or choose the folder again.")
    try:
        with path.open("rb") as handle:
            head = handle.read(64)
    except OSError as error:
        raise ScanError(
            f"{path}: the file cannot be opened ({error.strerror})", cure="Ask for the right to read it."
        ) from error
    if not head:
        raise ScanError(f"{path}: the file is empty (0 bytes)", cure=_AGAIN)
    if head.startswith(b"version https://git-lfs"):
        raise ScanError(
            f"{path}: a git-LFS pointer, not the scan itself",
            cure="Fetch the scan with git lfs pull in the repository that it came from.",
        )


def _read_nifti(path: Path) -> _Volume:
    image = _attempt(path, lambda: _nifti_image(path))
    _check_pixel_type(path, image.get_data_dtype())
    array = _attempt(path, lambda: np.asanyarray(image.dataobj))
    channels, stacked = _channels_first(path, array)
    affine = np.asarray(image.affine, dtype=np.float64)
    return _Volume(channels, affine, stacked, _nifti_warnings(image))


def _attempt(path: Path, read: Callable[[], Any]) -> Any:
    """Whatever a reader raises is the file's fault: the libraries have no common class of error."""
    try:
        return read()
    except MemoryError as error:
        raise ScanError(f"{path}: too large for the memory", cure="Crop or resample the scan.") from error
    except ScanError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ScanError(f"{path}: the file is truncated or damaged ({error})", cure=_AGAIN) from error
    except Exception as error:
        raise ScanError(f"{path}: the file cannot be read ({_reason(error)})", cure=_AGAIN) from error


def _reason(error: Exception) -> str:
    """The last line of a message: SimpleITK puts the place in its sources first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _nifti_image(path: Path) -> Any:
    """Unpack the whole file, to its checksum, before anything is read from it."""
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    is_second_version = 540 in (int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big"))
    kind = nibabel.Nifti2Image if is_second_version else nibabel.Nifti1Image
    return kind.from_bytes(content)


def _check_pixel_type(path: Path, dtype: np.dtype[Any]) -> None:
    if dtype.names is not None:
        raise _colours(path)
    if dtype.kind == "c":
        raise ScanError(f"{path}: the voxels are complex numbers", cure="Save its magnitude as an image of its own.")


def _colours(path: Path) -> ScanError:
    return ScanError(
        f"{path}: a colour (RGB) image",
        cure="Convert it to grey values, for example with Slicer's Vector to Scalar Volume module.",
    )


def _channels_first(path: Path, array: Array) -> tuple[Array, bool]:
    """(C, D, H, W) and whether C counts volumes; NIfTI's axes are i, j, k, time, components."""
    shape = array.shape + (1,) * (5 - array.ndim)
    if array.ndim < 2 or math.prod(shape[5:]) != 1:
        raise ScanError(f"{path}: an array of {array.ndim} dimensions is no 3D image", cure=_SPLIT)
    times, components = shape[3:5]
    stack = array.reshape(*shape[:3], times * components, order="F")
    return np.moveaxis(stack, -1, 0), times > 1


def _nifti_warnings(image: Any) -> tuple[str, ...]:
    warnings = (_orientation_warning(image), _zoom_warning(image), _unit_warning(image))
    return tuple(text for text in warnings if text)


def _orientation_warning(image: Any) -> str | None:
    header = image.header
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        return "stores no orientation (sform and qform are unset): left and right may be swapped"
    if header["sform_code"] == 0 or header["qform_code"] == 0 or _shear(image.affine):
        return None
    try:
        grids = [Grid(image.shape[:3], affine) for affine in (image.get_sform(), image.get_qform())]
        distance = grids[0].distance(grids[1])
    except Exception:  # a qform that cannot be decoded is one that contradicts
        return "its qform is invalid; its sform is used"
    if distance <= _GRID_TOLERANCE:
        return None
    return f"sform and qform contradict each other by up to {distance:.2g} voxels; the sform is used"


def _zoom_warning(image: Any) -> str | None:
    stored = np.asarray(image.header.get_zooms()[:3], dtype=np.float64)
    used = np.linalg.norm(image.affine[:3, :3], axis=0)[: stored.size]
    if np.allclose(stored, used, rtol=_ZOOM_TOLERANCE, atol=0):
        return None
    return f"pixdim says {_mm(stored)} but the affine says {_mm(used)}; the affine is used"


def _unit_warning(image: Any) -> str | None:
    unit = image.header.get_xyzt_units()[0]
    return f"says that its unit is {unit}; mm is assumed" if unit in ("meter", "micron") else None


def _read_itk(path: Path) -> _Volume:
    image = _attempt(path, lambda: SimpleITK.ReadImage(str(path)))
    if "complex" in image.GetPixelIDTypeAsString():
        _check_pixel_type(path, np.dtype(np.complex64))
    components = image.GetNumberOfComponentsPerPixel()
    if components in (3, 4) and image.GetPixelID() == SimpleITK.sitkVectorUInt8:
        raise _colours(path)
    if image.GetDimension() == 2:
        raise _single_slice(path, image.GetSize())
    array = SimpleITK.GetArrayFromImage(image)
    stacked = _is_stack(image) or (image.GetDimension() > 3 and image.GetSize()[3] > 1)
    return _Volume(_itk_channels_first(array, image), _itk_affine(image), stacked)


def _is_stack(image: Any) -> bool:
    """Whether the components of an NRRD are frames of a sequence or layers of a segmentation."""
    keys = (key for key in image.GetMetaDataKeys() if key.startswith("NRRD_kinds"))
    kinds = {image.GetMetaData(key) for key in keys}
    return image.GetNumberOfComponentsPerPixel() > 1 and bool(kinds & {"list", "time"})


def _itk_channels_first(array: Array, image: Any) -> Array:
    """SimpleITK gives ([t,] k, j, i[, c]); we want (t·c, i, j, k)."""
    if image.GetNumberOfComponentsPerPixel() == 1:
        array = array[..., np.newaxis]
    spatial = array.reshape(-1, *array.shape[-4:])
    ordered = spatial.transpose(0, 4, 3, 2, 1)
    return ordered.reshape(-1, *ordered.shape[2:])


def _itk_affine(image: Any) -> Affine:
    dimension = image.GetDimension()
    directions = np.asarray(image.GetDirection(), dtype=np.float64).reshape(dimension, dimension)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = directions * np.asarray(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    return np.asarray(_LPS_TO_RAS @ affine)


# --- verifying ----------------------------------------------------------------------------------------------


def _grid_of(path: Path, volume: _Volume) -> Grid:
    depth, height, width = volume.array.shape[1:]
    if min(depth, height, width) < 2:
        raise _single_slice(path, (depth, height, width))
    try:
        return Grid((depth, height, width), volume.affine)
    except ScanError as error:
        raise ScanError(f"{path}: {error.message}", cure=error.cure) from error


def _single_slice(path: Path, shape: tuple[int, ...]) -> ScanError:
    return ScanError(
        f"{path}: a single slice ({_times(shape)} voxels), not a volume",
        cure="Join the slices of the scan to one 3D file, or remove it from the folder.",
    )


def _with_plain_type(array: Array) -> Array:
    """Contiguous, in the byte order of the machine; integers as they are, every other number as float32."""
    dtype = array.dtype.newbyteorder("=") if array.dtype.kind in "iu" else np.dtype(np.float32)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=dtype)


def _check_voxels(path: Path, array: Array) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        raise ScanError(
            f"{path}: {count} of {array.size} voxels are NaN or infinite",
            cure="Replace them, for example by the value of air, or remove the scan.",
        )
    if array.min() == array.max():
        raise ScanError(
            f"{path}: every voxel is {array.flat[0]}: the image is constant",
            cure="Export the scan again, or remove it from the folder.",
        )


def _grid_warnings(grid: Grid) -> tuple[str, ...]:
    warnings = []
    if _shear(grid.affine):
        warnings.append("its axes are not at right angles (a tilted gantry?); other programs may drop the shear")
    if min(grid.shape) < _FEW_VOXELS:
        warnings.append(f"only {min(grid.shape)} voxels along its shortest axis (voxels of {_mm(grid.spacing)})")
    return tuple(warnings)


def _shear(affine: Affine) -> bool:
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(unit.T @ unit - np.eye(3)).max() > _RIGHT_ANGLE_TOLERANCE)


def _as_labels(path: Path, array: Array, highest: int | None) -> Array:
    if array.dtype.kind not in "iub":
        array = _rounded(path, array)
    lowest, top = int(array.min()), int(array.max())
    if lowest < 0:
        raise LabelError(
            f"{path}: has the negative label {lowest}",
            cure="Number the classes from 1, and the background 0.",
        )
    limit = 65535 if highest is None else highest
    if top > limit:
        raise LabelError(
            f"{path}: has the label {top}, above the highest class, {limit}",
            cure="Check that this is a label map of these classes, and renumber its labels.",
        )
    return _compact_labels(array)


def _rounded(path: Path, array: Array) -> Array:
    whole = np.rint(array)
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(array - whole) <= _INTEGER_TOLERANCE)
    if wrong.any():
        raise LabelError(
            f"{path}: the value {float(array[wrong][0]):.6g} is no label: labels are whole numbers",
            cure="Choose the label map, not the image; if it was resampled, use nearest neighbour.",
        )
    return np.asarray(np.clip(whole, -(2**62), 2**62).astype(np.int64))


def _other_grid(path: Path, grid: Grid, scan_path: Path | None, scan_grid: Grid) -> LabelError:
    scan = scan_path if scan_path is not None else "its scan"
    return LabelError(
        f"{path}: the label map ({_words(grid)}) does not lie on the grid of {scan} ({_words(scan_grid)})",
        cure="Resample the labels onto the scan (nearest neighbour), or export them with it as reference.",
    )


def _words(grid: Grid) -> str:
    corner = ", ".join(f"{value:.1f}" for value in grid.affine[:3, 3])
    return f"{_times(grid.shape)} voxels of {_mm(grid.spacing)}, {grid.axis_codes}, first voxel at {corner}"


def _mm(sizes: Any) -> str:
    return " x ".join(f"{size:.5g}" for size in sizes) + " mm"


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)


# --- writing ------------------------------------------------------------------------------------------------


def _compact_labels(labels: Array) -> Array:
    if labels.dtype.kind not in "iub" or labels.min() < 0 or labels.max() > 65535:
        raise ValueError("labels are integers from 0 to 65535")
    return np.ascontiguousarray(labels, dtype=np.uint8 if labels.max() <= 255 else np.uint16)


def _write_nifti(path: Path, array: Array, grid: Grid) -> None:
    image = nibabel.Nifti1Image(array, grid.affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(grid.affine, code=1, strip_shears=True)
    image.set_sform(grid.affine, code=1)
    nibabel.save(image, path)


def _write_itk(path: Path, array: Array, grid: Grid) -> None:
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    affine = _LPS_TO_RAS @ grid.affine
    image.SetSpacing(grid.spacing)
    image.SetDirection((affine[:3, :3] / np.asarray(grid.spacing)).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(path), True)
