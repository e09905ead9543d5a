"""A segmentation as DICOM SEG beside the series that its scan came from, with what made it inside.

    >>> finish(write_dicom_seg(segmentation_node, volume_node, Path("liver.dcm")))            # doctest: +SKIP

highdicom writes the file. Slicer ships it; elsewhere it is optional. Segments are brought onto the grid of the scan
as it was loaded, in the patient's space: a parent transform of the scan is no part of the file.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer

from HybridMIMLib import __version__
from HybridMIMLib.errors import DataError, LabelError, SettingsError
from HybridMIMLib.files import atomic_path, disk_errors
from HybridMIMLib.slicer_side.placement import Box, on_volume, segment_box, segment_of
from HybridMIMLib.slicer_side.provenance import MODEL_TAG, VOXELS_TAG, MadeBy, made_by, tag_of
from HybridMIMLib.slicer_side.segments import Node, ijk_to_ras
from HybridMIMLib.slicer_side.steps import Step, Steps, in_thread, part

_UIDS = "DICOM.instanceUIDs"
_LONGEST, _LONGEST_TEXT = 64, 10_000
"""Letters of a name, and of a long text, in DICOM."""
_NEAR = 0.01
"""Voxels by which the grids of volume and series may differ."""
_MOST_BYTES = 2**31
"""Of masks that overlap, which are handed over one beside the other."""
_COPIED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
"""Of patient and study, from the scan into the file."""
_TISSUE = "Segmentation category and type~SCT^85756007^Tissue~SCT^85756007^Tissue~^^~Anatomic codes~^^~^^"
"""For a segment that has no terminology; what Slicer takes itself."""
_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM's patient space to Slicer's."""


@dataclass(frozen=True, eq=False)
class SegSegment:
    """A segment for a file.

    Attributes:
        name, color, terminology: as the segment has them.
        box: where it is on the grid of the scan.
        made_by: what made it, or None where that was done by hand.
        is_corrected: whether somebody has changed what was made.
    """

    name: str
    color: tuple[float, float, float]
    terminology: str
    box: Box
    made_by: MadeBy | None
    is_corrected: bool = False


@dataclass(frozen=True, eq=False)
class SegContent:
    """All that a file is made of, without MRML: it can be written in a thread.

    Attributes:
        name: of the segmentation.
        files: of the series; may hold more than the scan.
        instances: UIDs of the scan's images.
        grid: voxel -> RAS, mm.
        shape: (D, H, W).
        segments: in their order.
    """

    name: str
    files: tuple[Path, ...]
    instances: frozenset[str]
    grid: np.ndarray
    shape: tuple[int, int, int]
    segments: tuple[SegSegment, ...]


def why_no_dicom_seg(volume: Node) -> str:
    """Why nothing of this scan can be written as DICOM SEG, as a sentence; empty if it can."""
    if not (volume.GetAttribute(_UIDS) or "").split():
        return f"{volume.GetName()} was not loaded from DICOM; save the segmentation as .seg.nrrd."
    if not source_files(volume):
        return f"The DICOM files of {volume.GetName()} are not where they were; load the series again."
    return why_no_highdicom()


def why_no_highdicom() -> str:
    """Why DICOM SEG cannot be written at all, as a sentence; empty if it can."""
    # Without importing it, which takes seconds.
    if importlib.util.find_spec("highdicom") is not None:
        return ""
    return "highdicom is not installed; install it with pip, or save the segmentation as .seg.nrrd."


def source_files(volume: Node) -> tuple[Path, ...]:
    """The DICOM files of a volume: from Slicer's database where there is one, or from where it was read."""
    found: list[str] = []
    database = getattr(slicer, "dicomDatabase", None)
    if database is not None:
        uids = (volume.GetAttribute(_UIDS) or "").split()
        found = [name for name in (database.fileForInstance(one) for one in uids) if name]
    storage = volume.GetStorageNode()
    if not found and storage is not None:
        names = {storage.GetFileName()} | {storage.GetNthFileName(n) for n in range(storage.GetNumberOfFileNames())}
        found = sorted(name for name in names if name)
    return tuple(path for path in map(Path, found) if path.is_file())


def write_dicom_seg(segmentation: Node, volume: Node, path: Path) -> Steps[Path]:
    """Write the segments of a segmentation as a DICOM SEG file, in pieces; see :func:`why_no_dicom_seg`.

    Raises:
        SettingsError: the scan is not from DICOM, or highdicom is missing.
        DataError: the series is not on the grid of the scan, or no segment has a voxel.
        DiskError: the file cannot be written; an older one of that name is as it was.
    """
    reason = why_no_dicom_seg(volume)
    if reason:
        message, _, cure = reason.partition("; ")
        raise SettingsError(message, cure=f"{cure[:1].upper()}{cure[1:]}")
    content = yield from part(gather(segmentation, volume), 0.1, 0.6)
    yield from in_thread(lambda: write_content(content, path), Step(0.7, "Writing DICOM SEG"))
    return path


def gather(segmentation: Node, volume: Node) -> Steps[SegContent]:
    """What is in the scene, copied piece by piece."""
    content, entries = segmentation.GetSegmentation(), made_by(segmentation)
    of_segment = {identifier: one for one in entries for identifier in one.segments.values()}
    ids, segments = list(content.GetSegmentIDs()), []
    for number, identifier in enumerate(ids):
        segment, text = segment_of(segmentation, identifier), f"Reading segment {number + 1} of {len(ids)}"
        begin, end = number / len(ids), (number + 1) / len(ids)
        box, grid = yield from part(segment_box(segmentation, identifier, text), begin, end)
        count = int(np.count_nonzero(box.values))
        box = yield from part(on_volume(segmentation, box, grid, volume, text), begin, end)
        is_ours = segment.HasTag(MODEL_TAG)
        segments.append(
            SegSegment(
                segment.GetName(),
                tuple(segment.GetColor()),
                segment.GetTerminology() or "",
                box,
                of_segment.get(identifier) if is_ours else None,
                is_ours and tag_of(segment, VOXELS_TAG) not in ("", str(count)),
            )
        )
    uids = frozenset((volume.GetAttribute(_UIDS) or "").split())
    shape = volume.GetImageData().GetDimensions()
    return SegContent(segmentation.GetName(), source_files(volume), uids, ijk_to_ras(volume), shape, tuple(segments))


def write_content(content: SegContent, path: Path) -> None:
    """Write the file; for a thread."""
    if not any(one.box.values.any() for one in content.segments):
        raise DataError(
            f"{content.name} has no voxel in any segment, and DICOM SEG cannot be empty",
            cure="Save it as .seg.nrrd, or segment the scan again.",
        )
    images = [(image, _place(image, content)) for image in _source_images(content)]
    masks = [(image, _planes(content, place)) for image, place in images]
    # Images without a segment are left out of the file, and so need not be handed over.
    used = [(image, planes) for image, planes in masks if planes.any()]
    if not used:
        raise DataError(f"{content.name} does not meet the images of its series", cure="Load the series again.")
    dataset = _segmentation([image for image, _ in used], np.stack([planes for _, planes in used]), content)
    with disk_errors(path), atomic_path(path) as temporary:
        dataset.save_as(temporary)


def parse_terminology(entry: str) -> dict[str, tuple[str, str, str]]:
    """The codes of a Slicer terminology entry, (scheme, value, meaning) each: category, type, modifier, region,
    region_modifier; those that are empty are left out."""
    parts = entry.split("~")
    places = {"category": 1, "type": 2, "modifier": 3, "region": 5, "region_modifier": 6}
    codes = {name: tuple(parts[place].split("^")) for name, place in places.items() if place < len(parts)}
    return {name: (c[0], c[1], c[2]) for name, c in codes.items() if len(c) == 3 and all(c)}


def _source_images(content: SegContent) -> list[Any]:
    import pydicom

    images = []
    for file in content.files:
        try:
            image = pydicom.dcmread(file, stop_before_pixels=True)
        except (OSError, pydicom.errors.InvalidDicomError) as error:
            raise DataError(f"{file}: cannot be read as DICOM ({error})", cure="Load the series again.") from error
        if image.get("SOPInstanceUID") in content.instances:
            for name in _COPIED:
                # Anonymised series lack some; highdicom asks for all.
                image.setdefault(name, "")
            images.append(image)
    if any(int(image.get("NumberOfFrames", 1)) > 1 or "ImagePositionPatient" not in image for image in images):
        raise DataError(
            f"The series of {content.name} has files of many images", cure="Save the segmentation as .seg.nrrd."
        )
    missing = len(content.instances) - len(images)
    if missing:
        raise DataError(
            f"{missing} of the {len(content.instances)} images of the series were not found",
            cure="Load the series again.",
        )
    return images


def _place(image: Any, content: SegContent) -> np.ndarray:
    """(4, 3): from (column, row, 1) of an image to (i, j, k), whole numbers.

    Raises:
        DataError: the image is not one of the planes of the scan's grid.
    """
    row, column = (np.array(image.ImageOrientationPatient[part], float) for part in (slice(0, 3), slice(3, 6)))
    down, right = (float(one) for one in image.PixelSpacing)
    plane = np.zeros((4, 3))
    plane[:3, 0], plane[:3, 1], plane[:3, 2] = row * right, column * down, image.ImagePositionPatient
    plane[3, 2] = 1.0
    place = (np.linalg.inv(content.grid) @ _RAS @ plane)[:3]
    corners = np.array([(c, r, 1) for c in (0, image.Columns - 1) for r in (0, image.Rows - 1)], float)
    exact = place @ corners.T
    near = np.rint(place)
    near[:, 2] = np.rint(place[:, 2])
    voxels = near @ corners.T
    inside = voxels.min() >= 0 and (voxels.max(axis=1) < content.shape).all()
    if np.abs(exact - voxels).max() > _NEAR or not inside:
        raise DataError(
            f"{content.name}: the scan is not on the grid of its DICOM images, so it was resampled or moved",
            cure="Segment the series as it was loaded, or save the segmentation as .seg.nrrd.",
        )
    return near.astype(int)


def _planes(content: SegContent, place: np.ndarray) -> np.ndarray:
    """(rows, columns, segments) bool of an image."""
    # Rows and columns of the image run along two of the axes of the grid, in either direction.
    (right,), (down,) = (np.flatnonzero(place[:, axis]) for axis in (0, 1))
    (through,) = {0, 1, 2} - {int(right), int(down)}
    rows, columns = content.shape[down], content.shape[right]
    planes = np.zeros((rows, columns, len(content.segments)), bool)
    for number, segment in enumerate(content.segments):
        array, first = segment.box.values.transpose(), np.array(segment.box.first)
        index = place[through, 2] - first[through]
        if not 0 <= index < array.shape[through]:
            continue
        cut = np.take(array, index, axis=through)
        cut = cut if down < right else cut.T
        whole = np.zeros((rows, columns), bool)
        whole[first[down] : first[down] + cut.shape[0], first[right] : first[right] + cut.shape[1]] = cut
        planes[..., number] = whole[:: place[down, 1], :: place[right, 0]]
    return planes


def _segmentation(images: Sequence[Any], planes: np.ndarray, content: SegContent) -> Any:
    import highdicom

    overlap = (planes.sum(axis=-1) > 1).any()
    if overlap and planes.nbytes > _MOST_BYTES:
        raise LabelError(
            f"{content.name}: the overlapping segments are too large for one DICOM SEG file",
            cure="Save the segmentation as .seg.nrrd.",
        )
    # Numbers of segments where none overlaps, else a mask each.
    pixels = planes if overlap else (planes * np.arange(1, planes.shape[-1] + 1, dtype=np.uint16)).sum(axis=-1)
    makers = [one.made_by for one in content.segments if one.made_by is not None]
    return highdicom.seg.Segmentation(
        source_images=list(images),
        pixel_array=pixels.astype(np.uint8 if overlap else np.uint16),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(number + 1, one) for number, one in enumerate(content.segments)],
        series_instance_uid=highdicom.UID(),
        series_number=1000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="HybridMIM",
        manufacturer_model_name=_text(makers[-1].model if makers else "by hand"),
        software_versions=__version__,
        device_serial_number=_text(makers[-1].short_hash if makers and makers[-1].hash else "none"),
        content_label="SEGMENTATION",
        content_description=_text(content.name),
        series_description=_text(content.name),
    )


def _description(number: int, segment: SegSegment) -> Any:
    import highdicom

    codes = parse_terminology(segment.terminology)
    if not {"category", "type"} <= set(codes):
        codes = parse_terminology(_TISSUE)
    made = segment.made_by
    description = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=_text(segment.name),
        segmented_property_category=_code(codes["category"]),
        segmented_property_type=_code(codes["type"]),
        algorithm_type="MANUAL" if made is None else "SEMIAUTOMATIC" if segment.is_corrected else "AUTOMATIC",
        algorithm_identification=None if made is None else _algorithm(made),
        anatomic_regions=[_code(codes["region"])] if "region" in codes else None,
    )
    if "modifier" in codes:
        # Which side, mostly.
        modifier = [_code(codes["modifier"])]
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = modifier
    if "region" in codes and "region_modifier" in codes:
        description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [_code(codes["region_modifier"])]
    color = getattr(highdicom.color.CIELabColor, "from_rgb", None)
    if color is not None:
        description.RecommendedDisplayCIELabValue = list(color(*(round(255 * one) for one in segment.color)).value)
    return description


def _algorithm(made: MadeBy) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    return highdicom.AlgorithmIdentificationSequence(
        name=_text(made.model),
        family=codes.DCM.ArtificialIntelligence,
        version=_text(made.short_hash or made.trained or "unknown"),
        source=_text(f"HybridMIM {made.library}"),
        parameters=_parameters(made),
    )


def _parameters(made: MadeBy) -> dict[str, str]:
    settings: Mapping[str, Any] = made.settings
    facts = {
        "sha256": made.hash or "unknown",
        "trained": made.trained or "unknown",
        "library": f"HybridMIM {made.library}",
        "made": made.made,
        "settings": json.dumps(settings, ensure_ascii=False, default=str),
    }
    return {name: text.replace("\\", "/")[:_LONGEST_TEXT] for name, text in facts.items()}


def _code(code: tuple[str, str, str]) -> Any:
    import highdicom

    scheme, value, meaning = code
    return highdicom.sr.CodedConcept(value=value, scheme_designator=scheme, meaning=_text(meaning))


def _text(text: str) -> str:
    """As DICOM takes it: a backslash would part it in two."""
    return " ".join(text.replace("\\", "/").split())[:_LONGEST] or "unnamed"
