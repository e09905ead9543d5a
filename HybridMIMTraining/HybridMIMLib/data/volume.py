"""What a reader hands on before it is known whether it can be used, and what all readers share."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from HybridMIMLib.data.grid import Affine, Array
from HybridMIMLib.errors import ScanError

AGAIN = "Copy or download the file again, or remove it from the folder."
SPLIT = (
    "Only segment takes 4D: split it into 3D files, for example with nibabel.four_to_three or Slicer's "
    "Sequences module, and keep those that you need."
)
GRID_TOLERANCE = 0.05
"""How far, in voxels, two grids may lie apart and still be one; see :meth:`Grid.same_as`."""
MOST_CHANNELS = 4
"""More numbers in a voxel are taken for volumes: diffusion or time, which formats do not tell from channels."""
Step = tuple[float, str]
"""How far it is from one volume to the next, and in what, as NIfTI calls it: ``sec``, ``msec`` …, ``unknown``."""
NO_STEP: Step = (1.0, "unknown")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

_BLOCK = 1 << 20
_RIGHT_ANGLE_TOLERANCE = 1e-3
_FLAT = 1e-3
"""Cosine of the angle between the thickness of a slice and its normal; less is no thickness."""


@dataclass(frozen=True, eq=False)
class Volume:
    """What a file, or a DICOM series, holds.

    Attributes:
        array: (C, D, H, W), of any type.
        affine: (4, 4), voxel to RAS in mm; not verified.
        stacked: the first axis of the array counts volumes (time points, layers), not channels; where each has
            several ``channels``, those of the first volume come first.
        warnings: what is odd about the file though it can be read.
        modality: ``"CT"``, ``"MR"``, or ``""`` where the header does not say.
        patient: as the header names the patient; ``""`` where it does not.
        channels: of each volume of a stack.
        step: from one volume of a stack to the next.
    """

    array: Array
    affine: Affine
    stacked: bool
    warnings: tuple[str, ...] = ()
    modality: str = ""
    patient: str = ""
    channels: int = 1
    step: Step = NO_STEP


class Content:
    """SHA-256 over the bytes of files, in their order; readers feed it, so that a check reads a file once."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add_bytes(self, content: bytes) -> None:
        """The whole of one file."""
        self._digest.update(content)
        self._end_file()

    def add_file(self, path: Path) -> None:
        """The bytes of a file; one that cannot be read counts by its path."""
        try:
            with open(path, "rb") as handle:
                for block in iter(lambda: handle.read(_BLOCK), b""):
                    self._digest.update(block)
        except OSError:
            self._digest.update(str(path).encode("utf-8", "surrogateescape"))
        self._end_file()

    def hexdigest(self) -> str:
        """The hash of what was added so far."""
        return self._digest.hexdigest()

    def _end_file(self) -> None:
        # Two files must not count as one that holds the bytes of both.
        self._digest.update(b"\x00file\x00")


def check_file(path: Path) -> None:
    """Refuse what is no scan whatever its format.

    Raises:
        ScanError: there is no such file, it may not be read, is empty, or a git-LFS pointer.
    """
    if not path.is_file():
        raise ScanError(f"{path}: no such file", cure="Check the path, or choose the folder again.")
    try:
        with path.open("rb", buffering=0) as handle:
            head = handle.read(64)
    except OSError as error:
        raise ScanError(
            f"{path}: the file cannot be opened ({error.strerror})", cure="Ask for the right to read it."
        ) from error
    if not head:
        raise ScanError(f"{path}: the file is empty (0 bytes)", cure=AGAIN)
    if head.startswith(b"version https://git-lfs"):
        raise ScanError(
            f"{path}: a git-LFS pointer, not the scan itself",
            cure="Fetch the scan with git lfs pull in the repository that it came from.",
        )


def attempt(path: Path, read: Callable[[], Any]) -> Any:
    """Whatever a reader raises is the file's fault: the libraries have no common class of error.

    Raises:
        ScanError: ``read`` raised something.
    """
    try:
        return read()
    except MemoryError as error:
        raise ScanError(f"{path}: too large for the memory", cure="Crop or resample the scan.") from error
    except ScanError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ScanError(f"{path}: the file is truncated or damaged ({error})", cure=AGAIN) from error
    except Exception as error:
        raise ScanError(f"{path}: the file cannot be read ({_reason(error)})", cure=AGAIN) from error


def check_pixel_type(path: Path, dtype: np.dtype[Any]) -> None:
    """Refuse voxels that are no single real numbers.

    Raises:
        ScanError: they are colours or complex numbers.
    """
    if dtype.names is not None:
        raise colours(path)
    if dtype.kind == "c":
        raise ScanError(f"{path}: the voxels are complex numbers", cure="Save its magnitude as an image of its own.")


def colours(path: Path) -> ScanError:
    """The error of a colour image."""
    return ScanError(
        f"{path}: a colour (RGB) image",
        cure="Convert it to grey values, for example with Slicer's Vector to Scalar Volume module.",
    )


def vectors(path: Path) -> ScanError:
    """The error of a displacement field, or of tensors."""
    return ScanError(
        f"{path}: holds vectors, as a displacement field does, not intensities",
        cure="Remove it from the folder; if they are channels, save them without the intent or kind of a vector.",
    )


def single_slice(path: Path, shape: tuple[int, ...]) -> ScanError:
    """The error of an image that is no volume."""
    return ScanError(
        f"{path}: a single slice ({times(shape)} voxels), not a volume",
        cure="Only segment takes one: join the slices of the scan to one 3D file, or remove it from the folder.",
    )


def largest_shear(affine: Affine) -> float:
    """By how many degrees the angle between two voxel axes differs at most from a right angle; 0 below 0.06."""
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosine = np.abs(unit.T @ unit - np.eye(3)).max()
    return float(np.degrees(np.arcsin(min(cosine, 1.0)))) if cosine > _RIGHT_ANGLE_TOLERANCE else 0.0


def with_thickness(affine: Affine, axis: int) -> Affine:
    """The affine of a single slice; where its header gives no thickness along ``axis``, it is 1 mm."""
    linear = affine[:3, :3]
    with np.errstate(all="ignore"):
        unit = linear / np.linalg.norm(linear, axis=0)
        normal = np.cross(unit[:, axis - 2], unit[:, axis - 1])
        normal /= np.linalg.norm(normal)
        if abs(float(normal @ unit[:, axis])) > _FLAT or not np.isfinite(normal).all():
            return affine
    repaired = affine.copy()
    repaired[:3, axis] = normal
    return repaired


def mm(sizes: Any) -> str:
    """Sizes in words, such as ``1 x 1 x 2.5 mm``."""
    return " x ".join(f"{size:.5g}" for size in sizes) + " mm"


def times(shape: tuple[int, ...]) -> str:
    """A shape in words, such as ``512 x 512 x 300``."""
    return " x ".join(str(size) for size in shape)


def _reason(error: Exception) -> str:
    """The last line of a message: SimpleITK puts the place in its sources first, and addresses in memory into it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"\(0x[0-9a-f]+\)", "", lines[-1]) if lines else type(error).__name__
