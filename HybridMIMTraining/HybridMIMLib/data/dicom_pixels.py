"""The pixels of a DICOM file: whether all are there, and decoding them.

GDCM does not say when there are fewer bytes than pixels: it hands on whatever the memory held before. So they are
counted first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from HybridMIMLib.data.grid import Array
from HybridMIMLib.data.volume import AGAIN, attempt, colours
from HybridMIMLib.errors import ScanError

_TAGS = [
    *("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated", "PhotometricInterpretation"),
    "TransferSyntaxUID",
]
_PIXELS = ((0x7FE0, 0x0008), (0x7FE0, 0x0009), (0x7FE0, 0x0010))
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_HEAD = b"\xfe\xff\x00\xe0", 8

Rescale = tuple[float, float]


def decode(path: Path, rescale: Rescale) -> Array:
    """(frames, rows, columns), rescaled.

    Args:
        path: the file.
        rescale: slope and intercept; used for inverted files alone, as GDCM rescales the others by itself.

    Raises:
        ScanError: pixels are missing, damaged, colours, or in an encoding that is not known.
    """
    found = attempt(path, lambda: _checked(path))
    if found.get("PhotometricInterpretation") == "MONOCHROME1":
        return _stored(path, found) * _plain(rescale[0]) + _plain(rescale[1])
    read = attempt(path, lambda: _decoded(path))
    if read.GetNumberOfComponentsPerPixel() > 1:
        raise colours(path)
    array: Array = SimpleITK.GetArrayFromImage(read)
    return array


def _checked(path: Path) -> Dataset:
    """The header of a file in which all pixels are there."""
    with path.open("rb") as handle:
        found = pydicom.dcmread(handle, stop_before_pixels=True, specific_tags=_TAGS, force=True)
        if _syntax(found) == DeflatedExplicitVRLittleEndian:
            there = len(pydicom.dcmread(path).get("PixelData") or b"")
            _check_count(path, there, _bytes_of(found), "bytes")
        else:
            _check_element(path, handle, found)
    return found


def _check_element(path: Path, handle: BinaryIO, found: Dataset) -> None:
    """``handle`` stands where the pixels begin."""
    implicit, little = found.original_encoding
    order = "little" if little else "big"
    head = handle.read(8)
    tag = (_number(head[:2], order), _number(head[2:4], order))
    length = _number(head[4:] if implicit else handle.read(4), order)
    if tag not in _PIXELS:
        raise _unreadable(path, "it holds none")
    left = path.stat().st_size - handle.tell()
    if length == _UNDEFINED:
        _check_fragments(path, handle, int(found.get("NumberOfFrames") or 1))
    else:
        _check_count(path, min(length, left), _bytes_of(found), "bytes")


def _check_fragments(path: Path, handle: BinaryIO, frames: int) -> None:
    """Compressed frames lie in fragments, one or several each; the first item lists where they begin."""
    size, fragments = path.stat().st_size, -1
    while (head := handle.read(_ITEM_HEAD))[:4] == _ITEM:
        end = handle.tell() + _number(head[4:], "little")
        if len(head) < _ITEM_HEAD or end > size:
            raise _unreadable(path, f"it ends within compressed frame {max(fragments + 1, 1)} of {frames}")
        fragments += 1
        handle.seek(end)
    _check_count(path, fragments, frames, "compressed frames")
    if not head and fragments != frames:
        raise _unreadable(path, "the end of its compressed frames is missing")


def _check_count(path: Path, there: int, needed: int, what: str) -> None:
    if there < needed:
        raise _unreadable(path, f"{max(there, 0)} of {needed} {what} are there")


def _unreadable(path: Path, reason: str) -> ScanError:
    return ScanError(f"{path}: its pixels cannot be read: {reason}; the file is truncated or damaged", cure=AGAIN)


def _bytes_of(found: Dataset) -> int:
    bits = int(found.get("BitsAllocated") or 16) * int(found.get("SamplesPerPixel") or 1)
    pixels = int(found.get("Rows") or 0) * int(found.get("Columns") or 0) * int(found.get("NumberOfFrames") or 1)
    return (pixels * bits + 7) // 8


def _number(content: bytes, order: Any) -> int:
    return int.from_bytes(content, order)


def _syntax(found: Dataset) -> str:
    return str(getattr(found, "file_meta", Dataset()).get("TransferSyntaxUID") or "")


def _decoded(path: Path) -> Any:
    try:
        return SimpleITK.ReadImage(str(path), imageIO="GDCMImageIO")
    except RuntimeError as error:
        # What GDCM says names its own objects alone.
        raise ScanError(
            f"{path}: its pixels cannot be read: the file is truncated or damaged, or its encoding is not known",
            cure=AGAIN,
        ) from error


def _stored(path: Path, found: Dataset) -> Array:
    """(frames, rows, columns) of an inverted file as they are stored.

    GDCM turns them over before it rescales them, and Hounsfield units become nonsense. Not every encoding can be read
    without it.
    """
    syntax = _syntax(found)
    if found.file_meta.get("TransferSyntaxUID") and pydicom.uid.UID(syntax).is_compressed and syntax != RLELossless:
        raise ScanError(
            f"{path}: its values are inverted (MONOCHROME1) and compressed ({pydicom.uid.UID(syntax).name}): what "
            "they stand for cannot be told",
            cure="Export the series uncompressed, or as MONOCHROME2.",
        )
    array: Array = attempt(path, lambda: _pixel_array(path))
    return array if array.ndim == 3 else array[np.newaxis]


def _pixel_array(path: Path) -> Array:
    whole = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in whole.file_meta:
        # A file without file meta: how its header was read is how its pixels are stored.
        implicit = whole.original_encoding[0]
        explicit = pydicom.uid.ExplicitVRLittleEndian
        whole.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if implicit else explicit
    array = np.asarray(whole.pixel_array)
    return array.astype(np.int64) if array.dtype.kind in "iu" else array


def _plain(number: float) -> float | int:
    """Integers stay integers."""
    return int(number) if float(number).is_integer() else number
