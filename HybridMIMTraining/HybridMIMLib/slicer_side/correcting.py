"""What a user has corrected becomes a case to learn from: scan and segmentation go into a labelled folder.

    >>> steps = add_to_folder(volume, segmentation, Path("cases"))                              # doctest: +SKIP
    >>> added = finish(steps)                                                                   # doctest: +SKIP
    >>> describe(added)                                                                         # doctest: +SKIP
    'Added as case liver_7. …'

A window asks :func:`why_not` first. Where the folder has other labels of this scan, ``added.state`` is ``exists`` and
nothing was done: the window asks the user, and calls again with ``replace=True``; likewise ``strange`` and
``new_classes=True``, where it was None. Voxels are those of the volume
itself: a parent transform, of the volume or of the segmentation, says where they lie in the world and changes nothing
about them, and the segments are brought onto them. What is checked, and how names become labels, is told in
:mod:`~HybridMIMLib.data.adding`, which works in a process of its own.

The longest piece took the window's thread 9 ms for 5 segments at 110x66x106 voxels, and 28 ms for 25 at 512x512x300.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from HybridMIMLib.data.names import SUFFIXES
from HybridMIMLib.errors import DataError, RunError, SettingsError
from HybridMIMLib.slicer_side.child_steps import in_child, with_folder
from HybridMIMLib.slicer_side.placement import Box, Relation, resampled, same_grid, segment_box
from HybridMIMLib.slicer_side.provenance import LABEL_TAG, tag_of
from HybridMIMLib.slicer_side.segments import Node, ijk_to_ras
from HybridMIMLib.slicer_side.steps import Step, Steps, in_thread, part
from HybridMIMLib.slicer_side.voxels import (
    Array,
    copy_voxels,
    is_known_type,
    new_array,
    stamp,
    type_of_copy,
    write_scan,
)

SOURCE = "HybridMIM.Source"
"""Attribute of a volume: the file of the scan that it was loaded from, where no storage node says so."""

_MODULE = "HybridMIMLib.data.labelled_job"
_TERMINOLOGY_TAG = "TerminologyEntry"
_READ, _WRITTEN = 0.6, 0.8
_MOST_SEGMENTS = 65535


@dataclass(frozen=True)
class AddedCase:
    """What has become of a case.

    Attributes:
        state: ``added``; ``replaced``; ``unchanged``: it was there just so; ``exists``: the folder has other labels
            of this scan, and nothing was done; ``strange``: segments are no classes of the folder, and nothing was
            done.
        name: of the case in the folder.
        image, label: its files.
        kept: folder in which the case is kept that was replaced, or None.
        notes: what the user should know.
        strangers: names of the segments that are no classes, where that is the state.
        classes: names of those that the folder has, then.
    """

    state: str
    name: str
    image: Path
    label: Path
    kept: Path | None
    notes: tuple[str, ...]
    strangers: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Segment:
    """What is known of a segment before its voxels are looked at."""

    identifier: str
    name: str
    meaning: str
    label: int

    def to_json(self, value: int) -> dict[str, Any]:
        return {"value": value, "name": self.name, "meaning": self.meaning, "label": self.label}


def why_not(volume: Node | None, segmentation: Node | None, folder: str | Path) -> str:
    """Why this cannot be added, as a sentence; empty if nothing is seen to be in the way."""
    if volume is None or not volume.IsA("vtkMRMLScalarVolumeNode") or volume.IsA("vtkMRMLLabelMapVolumeNode"):
        return "No scan is chosen; choose the volume that was segmented."
    if not stamp(volume):
        return f"The volume {volume.GetName()} holds no voxels; choose another one."
    if volume.GetImageData().GetNumberOfScalarComponents() != 1 or not is_known_type(volume):
        return f"The volume {volume.GetName()} has no single grey values; choose another one."
    if segmentation is None or not segmentation.IsA("vtkMRMLSegmentationNode"):
        return "No segmentation is chosen; choose the one that you corrected."
    count = segmentation.GetSegmentation().GetNumberOfSegments()
    if not 0 < count <= _MOST_SEGMENTS:
        return f"The segmentation {segmentation.GetName()} has {count} segments; choose another one."
    if not str(folder).strip():
        return "No labelled folder is chosen; choose a folder, which may be new."
    return ""


def volume_of(segmentation: Node) -> Node | None:
    """The volume on whose grid a segmentation was made, if it is in the scene: what to offer first."""
    role = segmentation.GetReferenceImageGeometryReferenceRole()
    return segmentation.GetNodeReference(role)


def add_to_folder(
    volume: Node,
    segmentation: Node,
    folder: Path,
    name: str = "",
    segments: Collection[str] | None = None,
    replace: bool = False,
    new_classes: bool | None = False,
) -> Steps[AddedCase]:
    """Add a scan with its segmentation to a labelled folder, in pieces; neither the scene nor the node is changed.

    Args:
        volume: ``vtkMRMLScalarVolumeNode``, in a scene.
        segmentation: its segments become labels: by name, or by what their terminology says they are.
        folder: with ``images/`` and ``labels/``; made if it is not there.
        name: of the case; empty: that of the volume.
        segments: ids of those that are wanted, or None for all.
        replace: put these labels in the place of others of this scan, which are kept.
        new_classes: let segments that the folder has no class for become classes of it; None: where there are such,
            do nothing, and say which they are.

    Returns:
        What has become of it, once the generator is at its end.

    Raises:
        SettingsError: see :func:`why_not`.
        DataError: two segments have voxels in common.
        RunError: volume or segmentation were changed meanwhile; or the folder or the case cannot be used: the message
            is that of :func:`~HybridMIMLib.data.adding.add_case`. The folder is as it was.
    """
    if reason := why_not(volume, segmentation, folder):
        message, _, cure = reason.partition("; ")
        raise SettingsError(message, cure=f"{cure[:1].upper()}{cure[1:]}")
    wanted = _segments(segmentation, segments)
    job: dict[str, Any] = {
        "do": "add",
        "folder": str(Path(folder).expanduser().absolute()),
        "replace": replace,
        "new_classes": new_classes,
        "case": {
            "name": name.strip() or case_name(volume),
            "segments": [one.to_json(value) for value, one in enumerate(wanted, 1)],
            "source": source_of(volume),
        },
    }
    result, outside = yield from with_folder(partial(_hand_over, volume, segmentation, wanted, job))
    kept = Path(result["kept"]) if result["kept"] else None
    notes = (*outside, *map(str, result["notes"]))
    strangers, classes = (tuple(map(str, result[key])) for key in ("strangers", "classes"))
    image, label = Path(result["image"]), Path(result["label"])
    return AddedCase(result["state"], result["name"], image, label, kept, notes, strangers, classes)


def describe(added: AddedCase) -> str:
    """What to tell the user."""
    first = {
        "added": f"Added as case {added.name}.",
        "replaced": f"The labels of case {added.name} were replaced; the earlier ones are in {added.kept}.",
        "unchanged": f"Case {added.name} is in the folder already, with these labels.",
        "exists": f"Case {added.name} is in the folder already, with other labels. Replace them? They are kept.",
        "strange": _strange(added),
    }[added.state]
    return " ".join([first, *(f"Note: {note}." for note in added.notes)])


def _strange(added: AddedCase) -> str:
    """The question what is to become of segments that are no classes."""
    return (
        f"The folder has the classes {', '.join(added.classes)}, and not {', '.join(added.strangers)}. Add what is "
        "new as classes? The cases that are there already have nothing of it, so label it in them as well. If it is "
        "a slip, press Cancel, and rename or remove the segment."
    )


def case_name(volume: Node) -> str:
    """What to call the case of a volume: its name, without what no file name may have."""
    name = unicodedata.normalize("NFC", volume.GetName() or "")
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    kept = re.sub(r"[^\w. ()+-]+", "-", name).strip("-. ")[:60].strip("-. ")
    return re.sub(r"\.(seg|tmp)\b", r"-\1", kept, flags=re.IGNORECASE) or "scan"


def source_of(volume: Node) -> str:
    """The file that a volume was loaded from; empty where nobody knows."""
    known = volume.GetAttribute(SOURCE)
    if known:
        return str(known)
    storage = volume.GetStorageNode()
    path = storage.GetFullNameFromFileName() if storage is not None else None
    return str(path) if path and os.path.isfile(path) else ""


def _hand_over(
    volume: Node, segmentation: Node, wanted: Sequence[_Segment], job: dict[str, Any], place: Path
) -> Steps[tuple[dict[str, Any], list[str]]]:
    """Write scan and labels to a folder, and have the process add them; what it says, and what was left out."""
    scan, labels = place / "scan.nrrd", place / "labels.nrrd"
    array = yield from part(_voxels(volume), 0.0, 0.3)
    boxes = yield from part(_boxes(volume, segmentation, wanted), 0.3, _READ)
    affine, shape = ijk_to_ras(volume), array.shape
    joined = in_thread(lambda: _joined(shape, boxes, wanted), Step(0.5, "Putting the labels together"))
    label_array, outside = yield from part(joined, _READ, 0.7)
    for begin, path, voxels in ((0.7, scan, array), (0.75, labels, label_array)):
        write = in_thread(partial(write_scan, path, voxels, affine), Step(0.5, "Writing the case"))
        yield from part(write, begin, begin + 0.05)
    job["case"].update(scan=str(scan), labels=str(labels))
    return (yield from part(in_child(_MODULE, job, place, "Checking the case"), _WRITTEN, 1.0)), outside


def _segments(segmentation: Node, wanted: Collection[str] | None) -> list[_Segment]:
    content = segmentation.GetSegmentation()
    ids = [one for one in content.GetSegmentIDs() if wanted is None or one in wanted]
    if not ids:
        raise SettingsError(f"{segmentation.GetName()}: no segment is chosen", cure="Choose at least one.")
    found = []
    for one in ids:
        segment = content.GetSegment(one)
        tag = tag_of(segment, LABEL_TAG)
        label = int(tag) if tag.isdecimal() else max(segment.GetLabelValue(), 0)
        found.append(
            _Segment(
                one,
                segment.GetName() or one,
                meaning(tag_of(segment, _TERMINOLOGY_TAG)),
                label,
            )
        )
    return found


def meaning(terminology: str) -> str:
    """What a terminology entry says that a segment is: ``Kidney, Left`` is ``Left Kidney``; empty where nothing."""
    # category-context ~ category ~ type ~ modifier ~ …, and each a triple scheme^code^meaning.
    parts = [part.split("^")[-1].strip() for part in terminology.split("~")]
    kind, modifier = (parts[number] if len(parts) > number else "" for number in (2, 3))
    return f"{modifier} {kind}".strip() if kind else ""


def _voxels(volume: Node) -> Steps[Array]:
    """(k, j, i) a copy of the voxels, made in pieces."""
    before, text = stamp(volume), f"Copying {volume.GetName()}"
    shape, kind = volume.GetImageData().GetDimensions(), type_of_copy(volume)
    array = yield from in_thread(lambda: new_array(shape, kind), Step(0.0, text))
    for _ in copy_voxels(volume, (0, 0, 0), array):
        yield Step(0.5, text)
        if volume.GetScene() is None or stamp(volume) != before:
            raise RunError(f"{volume.GetName()} was changed or removed while it was copied", cure="Add it again.")
    return array


def _boxes(volume: Node, segmentation: Node, wanted: Sequence[_Segment]) -> Steps[list[Box]]:
    """Each segment on the grid of the volume; a box may reach beyond it."""
    boxes = []
    target, relation = ijk_to_ras(volume), None
    shape = volume.GetImageData().GetDimensions()
    for number, one in enumerate(wanted):
        begin, end = number / len(wanted), (number + 1) / len(wanted)
        text = f"Reading the segments ({number + 1} of {len(wanted)}: {one.name})"
        box, grid = yield from part(segment_box(segmentation, one.identifier, text), begin, end)
        relation = relation or Relation(segmentation.GetParentTransformNode(), volume.GetParentTransformNode())
        if relation.matrix is None or not same_grid(relation.matrix @ grid, target, shape):
            box = yield from part(resampled(box, grid, target, relation, None, text), begin, end)
        boxes.append(box)
    return boxes


def _joined(shape: Sequence[int], boxes: Sequence[Box], wanted: Sequence[_Segment]) -> tuple[Array, list[str]]:
    """(k, j, i) segments numbered from 1, and a note of each that reaches out of the scan.

    Raises:
        DataError: two segments have voxels in common.
    """
    labels = np.zeros(tuple(shape), np.uint8 if len(boxes) < 256 else np.uint16)
    notes = []
    for number, (box, one) in enumerate(zip(boxes, wanted), 1):
        # Boxes have their first voxel as (i, j, k), arrays are (k, j, i).
        first = np.array(box.first)[::-1]
        lower, upper = np.maximum(first, 0), np.minimum(first + box.values.shape, shape)
        mask = np.zeros((0, 0, 0), bool)
        if (upper > lower).all():
            mask = box.values[tuple(slice(a, b) for a, b in zip(lower - first, upper - first))] != 0
            there = labels[tuple(slice(a, b) for a, b in zip(lower, upper))]
            _check_overlap(there[mask], wanted, one)
            there[mask] = number
        lost = int(np.count_nonzero(box.values)) - int(np.count_nonzero(mask))
        if lost:
            notes.append(f"{lost} voxels of {one.name} lie outside the scan and were left out")
    return labels, notes


def _check_overlap(values: Array, wanted: Sequence[_Segment], one: _Segment) -> None:
    """``values``: what the label map holds already where a segment is to go."""
    times = np.bincount(values, minlength=1)
    times[0] = 0
    if times.any():
        other = wanted[int(times.argmax()) - 1]
        raise DataError(
            f"the segments {other.name} and {one.name} overlap in {int(times.max())} voxels; a voxel has one label",
            cure="Part them in Segment Editor (effect Logical operators, Subtract), or leave one of them out.",
        )
