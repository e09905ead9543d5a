"""Reading and verifying scans and label maps, whatever their format, and writing label maps.

Each format has a reader (:mod:`~HybridMIMLib.data.nifti`, :mod:`~HybridMIMLib.data.itk`,
:mod:`~HybridMIMLib.data.dicom`) that hands on what the file holds; whether that can be used is decided here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from HybridMIMLib.data.dicom import read_dicom
from HybridMIMLib.data.dicom_headers import is_dicom
from HybridMIMLib.data.finding import files_of, find_scans, scan_name
from HybridMIMLib.data.grid import Array, Grid
from HybridMIMLib.data.itk import read_itk, save_itk
from HybridMIMLib.data.names import SUFFIXES, has_scan_suffix, natural_key
from HybridMIMLib.data.nifti import is_nifti, read_nifti, save_nifti
from HybridMIMLib.data.volume import (
    GRID_TOLERANCE,
    NO_STEP,
    SPLIT,
    Content,
    Step,
    Volume,
    check_file,
    largest_shear,
    mm,
    single_slice,
    times,
    with_thickness,
)
from HybridMIMLib.errors import LabelError, ScanError
from HybridMIMLib.files import atomic_path

__all__ = [
    "SUFFIXES", "LabelMap", "Scan", "ScanItems", "files_of", "find_scans", "natural_key", "read_items",
    "read_label_map", "read_scan", "scan_name", "write_image", "write_label_map", "write_nifti",
]  # fmt: skip

_WRITABLE = (".nii", ".nii.gz", ".nrrd", ".mha")
_FEW_VOXELS = 8
_USUAL_SPACING = (0.05, 50.0)
_INTEGER_TOLERANCE = 1e-4
_ONE_LAYER = (
    "Save one 3D label map, for example with Slicer's Segmentations module, Export to new labelmap; segments "
    "that overlap have to be parted first."
)


@dataclass(frozen=True, eq=False)
class Scan:
    """One image, verified.

    Attributes:
        path: the file it was read from; of a DICOM series the first.
        array: (C, D, H, W), integers as they are in the file, other numbers as float32; all finite.
        grid: its place in the world.
        warnings: what is odd about the file though it can be used; one line each, without the file's name.
        modality: ``"CT"``, ``"MR"``, or ``""`` where the header does not say.
        patient: as the header names the patient; ``""`` where it does not.
    """

    path: Path
    array: Array
    grid: Grid
    warnings: tuple[str, ...] = ()
    modality: str = ""
    patient: str = ""


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
class ScanItems:
    """What there is to segment in a file: one volume, or several on one grid (4D), each by itself.

    Iterating gives the volumes, (C, D, H, W) and of the types that :class:`Scan` has, one after the other.

    Attributes:
        path: the file.
        arrays: (T, C, D, H, W) T volumes, of any type; all finite.
        grid: of every volume.
        is_4d: whether what is made of it has to have a time axis too.
        step: from one volume to the next.
        warnings: as in :class:`Scan`.
    """

    path: Path
    arrays: Array
    grid: Grid
    is_4d: bool = False
    step: Step = NO_STEP
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.arrays)

    def __iter__(self) -> Iterator[Array]:
        return (_with_plain_type(array) for array in self.arrays)


def read_items(path: Path, channels: int) -> ScanItems:
    """Read what a model can segment: what :func:`read_scan` takes, and of NIfTI, NRRD and MetaImage 4D and slices.

    In a 4D file each volume is an item. Formats do not tell time from channels: where the volumes have one channel,
    and the model takes as many channels as there are volumes, they are its channels. A single slice is as thick as
    its header says, or 1 mm.

    Args:
        path: the file, or any file of a DICOM series.
        channels: that the model takes.

    Raises:
        ScanError: as :func:`read_scan`; the volumes of a 4D file have another number of channels than the model.
    """
    volume = _read_volume(path, None)
    grid = _grid_of(path, volume, may_be_flat=True)
    number = len(volume.array) // volume.channels if volume.stacked else 1
    is_4d = volume.stacked and not (volume.channels == 1 and number == channels)
    if is_4d and volume.channels != channels:
        raise ScanError(
            f"{path}: holds {number} volumes (4D) of {volume.channels} channel(s), and the model takes {channels}",
            cure="Save the channels of each volume as 4D files of their own, or choose another model.",
        )
    arrays = volume.array.reshape(number if is_4d else 1, -1, *grid.shape)
    for index, array in enumerate(arrays, 1):
        _check_voxels(f"{path}: volume {index} of {number}" if is_4d else str(path), _with_plain_type(array))
    warnings = (*volume.warnings, *_grid_warnings(grid))
    return ScanItems(path, arrays, grid, is_4d, volume.step, warnings)


def read_scan(path: Path, content: Content | None = None) -> Scan:
    """Read one image and verify that it can be trained on.

    Args:
        path: the file, or any file of a DICOM series.
        content: gets the bytes of all its files.

    Returns:
        The scan, (C, D, H, W) on its own grid; what is odd but usable is in its ``warnings``.

    Raises:
        ScanError: the file is missing, empty, a git-LFS pointer, truncated, damaged or of no known format;
            holds colours, complex numbers, several volumes (4D) or a single slice; has a singular affine;
            its voxels are not all finite or are all the same; or the slices of a series do not make one volume.
    """
    volume = _read_volume(path, content)
    if volume.stacked:
        raise ScanError(f"{path}: holds {len(volume.array) // volume.channels} volumes (4D)", cure=SPLIT)
    grid = _grid_of(path, volume)
    array = _with_plain_type(volume.array)
    _check_voxels(str(path), array)
    warnings = (*volume.warnings, *_grid_warnings(grid))
    return Scan(path, array, grid, warnings, volume.modality, volume.patient)


def read_label_map(
    path: Path,
    scan_grid: Grid | None = None,
    *,
    scan_path: Path | None = None,
    highest: int | None = None,
    content: Content | None = None,
) -> LabelMap:
    """Read one label map and verify it against its scan.

    Args:
        path: the file.
        scan_grid: the grid of its scan, or None to skip that check.
        scan_path: the file of the scan, for the message.
        highest: the highest label that there is a class for, or None for any.
        content: gets the bytes of the file.

    Raises:
        LabelError: the file cannot be read, has several layers, values that are no labels, or another grid.
    """
    try:
        volume = _read_volume(path, content)
        if len(volume.array) > 1:
            raise LabelError(f"{path}: the label map has {len(volume.array)} layers", cure=_ONE_LAYER)
        grid = _grid_of(path, volume)
    except ScanError as error:
        raise LabelError(error.message, cure=error.cure) from error
    labels = _as_labels(path, volume.array[0], highest)
    if scan_grid is not None and not scan_grid.same_as(grid, GRID_TOLERANCE):
        raise _other_grid(path, grid, scan_path, scan_grid)
    return LabelMap(path, labels, grid, volume.warnings)


def write_label_map(path: Path, labels: Array, grid: Grid, step: Step = NO_STEP) -> None:
    """Write a label map atomically, as uint8, or uint16 where a label is above 255.

    Args:
        path: ends with .nii.gz, .nii, .nrrd or .mha; NIfTI gets sform and qform, a shear is in sform alone.
        labels: (D, H, W), integers from 0; (T, D, H, W) as NIfTI alone, which becomes 4D.
        grid: the grid of the labels.
        step: between the volumes of 4D.

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
    write_image(path, _compact_labels(labels), grid, step)


def write_image(path: Path, array: Array, grid: Grid, step: Step = NO_STEP) -> None:
    """Write numbers of any integer or float type atomically; arguments as for :func:`write_label_map`.

    Raises:
        DiskError: the file could not be written; nothing is left behind.
        ValueError: the array has another shape than the grid, or is 4D and the path is not that of a NIfTI.
    """
    if array.shape[-3:] != grid.shape or array.ndim > 3 + is_nifti(path):
        raise ValueError(f"voxels or labels of shape {array.shape} do not lie on a grid of shape {grid.shape}")
    with atomic_path(path) as temporary:
        if is_nifti(path):
            save_nifti(temporary, array, grid, step)
        else:
            save_itk(temporary, array, grid)


def write_nifti(path: Path, array: Array, grid: Grid) -> None:
    """Write (D, H, W) of any integer or float type as .nii or .nii.gz, atomically, with sform and qform.

    Raises:
        DiskError: the file could not be written; nothing is left behind.
    """
    with atomic_path(path) as temporary:
        save_nifti(temporary, array, grid)


# --- reading ------------------------------------------------------------------------------------------------


def _read_volume(path: Path, content: Content | None) -> Volume:
    if has_scan_suffix(path.name):
        check_file(path)
        return (read_nifti if is_nifti(path) else read_itk)(path, content)
    if not path.is_file():
        check_file(path)
    if not is_dicom(path):
        raise ScanError(
            f"{path}: not a format that is read", cure=f"Convert it to one of {', '.join(SUFFIXES)}, or DICOM."
        )
    return read_dicom(path, content)


# --- verifying ----------------------------------------------------------------------------------------------


def _grid_of(path: Path, volume: Volume, may_be_flat: bool = False) -> Grid:
    depth, height, width = shape = volume.array.shape[1:]
    flat = [axis for axis in range(3) if shape[axis] < 2]
    if len(flat) > may_be_flat:
        raise single_slice(path, (depth, height, width))
    affine = with_thickness(volume.affine, flat[0]) if flat else volume.affine
    try:
        return Grid((depth, height, width), affine)
    except ScanError as error:
        raise ScanError(f"{path}: {error.message}", cure=error.cure) from error


def _with_plain_type(array: Array) -> Array:
    """Contiguous, in the byte order of the machine; integers as they are, every other number as float32."""
    dtype = array.dtype.newbyteorder("=") if array.dtype.kind in "iu" else np.dtype(np.float32)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=dtype)


def _check_voxels(what: str, array: Array) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        raise ScanError(
            f"{what}: {count} of {array.size} voxels are NaN or infinite",
            cure="Replace them, for example by the value of air, or remove the scan.",
        )
    if array.min() == array.max():
        raise ScanError(
            f"{what}: every voxel is {array.flat[0]}: the image is constant",
            cure="Export the scan again, or remove it from the folder.",
        )


def _grid_warnings(grid: Grid) -> tuple[str, ...]:
    warnings = []
    if shear := largest_shear(grid.affine):
        warnings.append(
            f"its axes are not at right angles, by {shear:.3g} degrees (a tilted gantry?); other programs may drop "
            "the shear"
        )
    smallest, largest = min(grid.spacing), max(grid.spacing)
    if smallest < _USUAL_SPACING[0] or largest > _USUAL_SPACING[1]:
        warnings.append(f"its voxels of {mm(grid.spacing)} are hardly true; is the unit mm?")
    if min(grid.shape) == 1:
        warnings.append("a single slice, in which nothing is seen of what lies above and below")
    elif min(grid.shape) < _FEW_VOXELS:
        warnings.append(f"only {min(grid.shape)} voxels along its shortest axis (voxels of {mm(grid.spacing)})")
    return tuple(warnings)


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
    return f"{times(grid.shape)} voxels of {mm(grid.spacing)}, {grid.axis_codes}, first voxel at {corner}"


def _compact_labels(labels: Array) -> Array:
    if labels.dtype.kind not in "iub" or labels.min() < 0 or labels.max() > 65535:
        raise ValueError("labels are integers from 0 to 65535")
    return np.ascontiguousarray(labels, dtype=np.uint8 if labels.max() <= 255 else np.uint16)
