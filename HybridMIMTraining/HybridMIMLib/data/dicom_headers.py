"""What the header of a DICOM file says of its image planes; no pixel is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from HybridMIMLib.data.volume import attempt, check_file
from HybridMIMLib.errors import ScanError

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
"""A file of such a name claims to be DICOM; others are looked into."""

VOLUME_TAGS = (
    *("DiffusionBValue", "SequenceName", "EffectiveEchoTime", "EchoTime", "EchoNumbers", "InversionTime"),
    *("TemporalPositionIndex", "TemporalPositionIdentifier", "NominalCardiacTriggerDelayTime", "TriggerTime"),
    *("StackID", "ConvolutionKernel", "RepetitionTime", "KVP", "ComplexImageComponent", "FrameType", "ImageType"),
    *("AcquisitionNumber", "AcquisitionTime"),
)
"""Tags by which the volumes of one series may differ, those that tell most first."""

_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "PatientID"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "ImagePositionPatient"),
    *("PixelSpacing", "ImageOrientationPatient", "SpacingBetweenSlices", "SharedFunctionalGroupsSequence"),
    *("PerFrameFunctionalGroupsSequence", "RescaleSlope", "RescaleIntercept", *VOLUME_TAGS),
]
_PREAMBLE = 132
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")
_LONGEST_FIRST_VALUE = 256
_UNREADABLE = "Export the series again, or remove the file from the folder."

Vector = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Plane:
    """One image plane: a file, or a frame of a multi-frame file; coordinates are LPS, in mm.

    Attributes:
        label: how to name it to people.
        file: name of the file.
        frame: from 0 in a multi-frame file.
        uid: of the instance; two files of one uid are copies.
        size: columns and rows, as along i and j.
        position: of the centre of the first voxel, or None where it is not stored.
        orientation: unit vectors along i and j, one behind the other, or None.
        spacing: along i and j, or None.
        gap: the distance between slices as the header has it, or None.
        rescale: slope and intercept.
        tags: the values of :data:`VOLUME_TAGS`, as text.
    """

    label: str
    file: str
    frame: int
    uid: str
    size: tuple[int, int]
    position: Vector | None
    orientation: Vector | None
    spacing: Vector | None
    gap: float | None
    rescale: tuple[float, float]
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """What a DICOM image file says of itself.

    Attributes:
        file: its name.
        series: the uid of its series.
        number: of the series, as text; ``""`` where there is none.
        modality: as DICOM abbreviates it.
        patient: the patient's identifier.
        multiframe: whether it holds several planes.
        colours: whether a voxel has several samples, or a palette.
        inverted: whether the lowest value is white.
        localizer: whether it is an overview on which scans were planned.
        planes: in the order of the file; empty where no image is in it.
    """

    file: str
    series: str
    number: str
    modality: str
    patient: str
    multiframe: bool
    colours: bool
    inverted: bool
    localizer: bool
    planes: tuple[Plane, ...]


def is_dicom(path: Path) -> bool:
    """Whether a file is, or by its name claims to be, DICOM; with and without preamble. Reads its first bytes."""
    if path.name.lower().endswith(DICOM_SUFFIXES):
        return True
    try:
        with path.open("rb", buffering=0) as handle:
            head = handle.read(_PREAMBLE)
    except OSError:
        return False
    return head[128:] == b"DICM" or _begins_like_data(head)


def read_header(path: Path) -> Header | None:
    """The header of an image, or None of a DICOM file that is none: a report, a plan, a segmentation, an index …

    Raises:
        ScanError: the file is empty, a git-LFS pointer, damaged, or no DICOM at all.
    """
    check_file(path)
    claims = path.name.lower().endswith(DICOM_SUFFIXES)
    try:
        found = attempt(path, lambda: pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS, force=True))
        if _is_image(found):
            return _header(path.name, found)
    except (ScanError, AttributeError, TypeError, ValueError) as error:
        if claims or _has_preamble(path):
            raise ScanError(f"{path}: its header cannot be read ({error})", cure=_UNREADABLE) from error
        return None
    if claims and len(found) == 0 and not _has_preamble(path):
        raise ScanError(f"{path}: the file is no DICOM", cure=_UNREADABLE)
    return None


def _has_preamble(path: Path) -> bool:
    with path.open("rb", buffering=0) as handle:
        return handle.read(_PREAMBLE)[128:] == b"DICM"


def _begins_like_data(head: bytes) -> bool:
    """A data set without preamble begins with a tag of group 2 or 8, and its VR or a short even length."""
    if head[:2] not in _FIRST_GROUPS or len(head) < 16:
        return False
    if head[4:6].decode("latin-1") in pydicom.valuerep.STANDARD_VR:
        return True
    length = int.from_bytes(head[4:8], "little")
    return head[3] == 0 and 0 < length <= _LONGEST_FIRST_VALUE and length % 2 == 0


def _is_image(found: Dataset) -> bool:
    """By its class; segmentations and doses have pixels too, but are no scans."""
    uid = found.get("SOPClassUID") or found.file_meta.get("MediaStorageSOPClassUID")
    return "Image Storage" in pydicom.uid.UID(uid).name if uid else "Rows" in found


def _header(file: str, found: Dataset) -> Header:
    frames = int(found.get("NumberOfFrames") or 1)
    samples, photometric = int(found.get("SamplesPerPixel") or 1), str(found.get("PhotometricInterpretation") or "")
    planes: tuple[Plane, ...] = ()
    if found.get("Rows") and found.get("Columns"):
        enhanced = frames > 1 or bool(found.get("PerFrameFunctionalGroupsSequence"))
        planes = tuple(_frames(file, found, frames)) if enhanced else (_plane(file, found, found),)
    return Header(
        file,
        str(found.get("SeriesInstanceUID") or ""),
        str(found.get("SeriesNumber") or ""),
        str(found.get("Modality") or ""),
        str(found.get("PatientID") or "").strip(),
        frames > 1,
        samples > 1 or photometric not in ("", "MONOCHROME1", "MONOCHROME2"),
        photometric == "MONOCHROME1",
        "LOCALIZER" in (found.get("ImageType") or ()),
        planes,
    )


def _plane(file: str, found: Dataset, values: Any, frame: int | None = None) -> Plane:
    """``values`` are the header, or what the functional groups of a frame say."""
    uid, slope = str(found.get("SOPInstanceUID") or file), _number(values.get("RescaleSlope"))
    return Plane(
        file if frame is None else f"frame {frame + 1} of {file}",
        file,
        frame or 0,
        uid if frame is None else f"{uid} {frame}",
        (int(found.Columns), int(found.Rows)),
        _vector(values.get("ImagePositionPatient"), 3),
        _vector(values.get("ImageOrientationPatient"), 6),
        _spacing(values.get("PixelSpacing")),
        _number(values.get("SpacingBetweenSlices")),
        (1.0 if slope is None else slope, _number(values.get("RescaleIntercept")) or 0.0),
        tuple(_text(values.get(name)) for name in VOLUME_TAGS),
    )


def _frames(file: str, found: Dataset, count: int) -> Iterator[Plane]:
    """The frames of an enhanced file; of an older multi-frame one, whose frames have no places, likewise without."""
    shared = _flat((found.get("SharedFunctionalGroupsSequence") or [Dataset()])[0])
    groups = found.get("PerFrameFunctionalGroupsSequence") or [Dataset()] * count
    # Legacy converted files of one frame have some values outside the groups.
    outside = {one.keyword: one.value for one in found if one.VR != "SQ"} if count == 1 else {}
    for index, group in enumerate(groups[:count]):
        yield _plane(file, found, {**outside, **shared, **_flat(group)}, index if count > 1 else None)


def _flat(group: Dataset) -> dict[str, Any]:
    """The elements of the functional groups of a frame, each of which lies in a sequence of one item."""
    values: dict[str, Any] = {}
    for element in group:
        if element.VR == "SQ" and element.value:
            values |= {inner.keyword: inner.value for inner in element.value[0] if inner.VR != "SQ" and inner.keyword}
    return values


def _vector(values: Any, length: int) -> Vector | None:
    """That many finite numbers, or None."""
    if values is None or isinstance(values, (str, int, float)) or len(values) != length:
        return None
    numbers = tuple(float(value) for value in values)
    return numbers if all(math.isfinite(number) for number in numbers) else None


def _spacing(values: Any) -> Vector | None:
    """DICOM has the distance between rows, which is along j, first."""
    pair = _vector(values, 2)
    return (pair[1], pair[0]) if pair is not None and min(pair) > 0 else None


def _number(value: Any) -> float | None:
    return float(value) if value not in (None, "") and math.isfinite(float(value)) else None


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, (str, int, float)) else "\\".join(str(part) for part in value)
