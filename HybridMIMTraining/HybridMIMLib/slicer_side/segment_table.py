"""How much of each class there is, and how well it agrees with a reference: a table in the scene.

Volumes are those of the scan's own grid, in ml: a parent transform, as it comes from a registration, moves a result
and does not change what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import vtk

from HybridMIMLib.slicer_side.placement import Box, on_volume, segment_box, segment_of
from HybridMIMLib.slicer_side.segments import Node, Scene, join_subject_hierarchy
from HybridMIMLib.slicer_side.steps import Step, Steps, in_thread, part

TABLE_OF = "HybridMIM.segmentation"
"""Role of the reference from the table to its segmentation."""


@dataclass(frozen=True)
class Row:
    """What was measured of a segment.

    Attributes:
        name: of the segment.
        voxels: of it, on the grid of its own image.
        ml: its volume.
        dice: with the segment of the reference of the same name, 0 to 1; None without such a one, and where both are
            empty, as in an evaluation.
    """

    name: str
    voxels: int
    ml: float
    dice: float | None = None


def ml_of_voxel(grid: np.ndarray) -> float:
    """From a 4x4 matrix in mm."""
    return float(abs(np.linalg.det(grid[:3, :3]))) / 1000.0


def measure(segmentation: Node, volume: Node, reference: Node | None = None) -> Steps[list[Row]]:
    """Measure the segments of any segmentation of a volume, such as one that was corrected.

    Args:
        reference: another segmentation, on whatever grid and under whatever transform.

    Raises:
        RunError: a segment was changed or removed meanwhile.
        HybridMIMError: the reference lies under a warping transform that cannot be undone.
    """
    content = segmentation.GetSegmentation()
    ids = list(content.GetSegmentIDs())
    partners = matches(segmentation, ids, reference) if reference is not None else {}
    rows = []
    for number, identifier in enumerate(ids):
        name, text = segment_of(segmentation, identifier).GetName(), f"Measuring ({number + 1} of {len(ids)})"
        begin, end = number / len(ids), (number + 1) / len(ids)
        box, grid = yield from part(segment_box(segmentation, identifier, text), begin, end)
        voxels = int(np.count_nonzero(box.values))
        dice: float | None = None
        if identifier in partners and reference is not None:
            own = yield from part(on_volume(segmentation, box, grid, volume, text), begin, end)
            dice = yield from part(dice_with(own, reference, partners[identifier], volume, text), begin, end)
        rows.append(Row(name, voxels, voxels * ml_of_voxel(grid), dice))
    return rows


def matches(segmentation: Node, ids: Sequence[str], reference: Node) -> dict[str, str]:
    """Which segment of the reference each segment is compared with: by name, or the only one with the only one."""
    content = segmentation.GetSegmentation()
    return match_names({one: content.GetSegment(one).GetName() for one in ids}, reference)


def match_names(names: dict[str, str], reference: Node) -> dict[str, str]:
    """As :func:`matches`, with names by whatever stands for a segment."""
    other = reference.GetSegmentation()
    by_name = {_plain(other.GetSegment(one).GetName()): one for one in reversed(list(other.GetSegmentIDs()))}
    if len(names) == 1 == len(by_name):
        return {one: next(iter(by_name.values())) for one in names}
    return {one: by_name[_plain(name)] for one, name in names.items() if _plain(name) in by_name}


def why_no_dice(rows: Sequence[Row], reference: Node) -> str:
    """Why no row could be compared with a reference, without a full stop; empty if one could."""
    if not rows or any(row.dice is not None for row in rows):
        return ""
    content = reference.GetSegmentation()
    theirs = ", ".join(content.GetNthSegment(number).GetName() for number in range(content.GetNumberOfSegments()))
    mine = ", ".join(row.name for row in rows)
    return (
        f"nothing could be compared with {reference.GetName()}: segments are compared with those of their name, here "
        f"{mine}, and it has {theirs or 'none'}"
    )


def dice_with(
    own: Box, reference: Node, identifier: str, volume: Node, text: str = "Measuring"
) -> Steps[float | None]:
    """Dice of a mask on the volume's grid with a segment of another segmentation; None where both are empty."""
    other, grid = yield from segment_box(reference, identifier, text)
    other = yield from on_volume(reference, other, grid, volume, text)
    return (yield from in_thread(lambda: dice(own, other), Step(0.5, text)))


def dice(a: Box, b: Box) -> float | None:
    """2 |a and b| / (|a| + |b|) of two masks of one grid; None where both are empty."""
    total = int(np.count_nonzero(a.values)) + int(np.count_nonzero(b.values))
    if not total:
        return None
    lower = np.maximum(a.first, b.first)
    upper = np.minimum(np.add(a.first, a.values.shape[::-1]), np.add(b.first, b.values.shape[::-1]))
    if (upper <= lower).any():
        return 0.0
    both = np.logical_and(*(_cut(box, lower, upper) for box in (a, b)))
    return 2.0 * int(np.count_nonzero(both)) / total


def add_table(segmentation: Node, rows: Sequence[Row], name: str, items: Sequence[str] = ()) -> Node:
    """Put the rows into the scene of a segmentation, beside it in the data tree; a ``vtkMRMLTableNode``.

    Args:
        items: for each row the item of a sequence that it is of, or nothing.
    """
    table = segmentation.GetScene().AddNewNodeByClass("vtkMRMLTableNode", name)
    columns: list[tuple[str, type, Callable[[Row], str | float | int]]] = [
        ("Segment", vtk.vtkStringArray, lambda row: row.name),
        ("Volume [ml]", vtk.vtkDoubleArray, lambda row: row.ml),
        ("Voxels", vtk.vtkLongLongArray, lambda row: row.voxels),
        ("Note", vtk.vtkStringArray, lambda row: "" if row.voxels else "empty: not found"),
    ]
    if any(row.dice is not None for row in rows):
        columns.insert(3, ("Dice", vtk.vtkDoubleArray, lambda row: float("nan") if row.dice is None else row.dice))
    if items:
        table.AddColumn(_column("Item", vtk.vtkStringArray, items))
    for title, kind, value in columns:
        table.AddColumn(_column(title, kind, [value(row) for row in rows]))
    # Slicer 5.10 and 5.12 call it the name, later ones the title.
    name_them = getattr(table, "SetUseColumnTitleAsColumnHeader", None) or table.SetUseColumnNameAsColumnHeader
    name_them(True)
    table.SetLocked(True)
    table.SetNodeReferenceID(TABLE_OF, segmentation.GetID())
    join_subject_hierarchy(table, beside=segmentation)
    return table


def _column(title: str, kind: type, values: Sequence[str | float | int]) -> Any:
    array = kind()
    array.SetName(title)
    for value in values:
        array.InsertNextValue(value)
    return array


def tables_of(scene: Scene, segmentation: Node) -> list[Node]:
    """The tables that were made for a segmentation."""
    count = scene.GetNumberOfNodesByClass("vtkMRMLTableNode")
    nodes = [scene.GetNthNodeByClass(number, "vtkMRMLTableNode") for number in range(count)]
    return [node for node in nodes if node.GetNodeReferenceID(TABLE_OF) == segmentation.GetID()]


def _cut(box: Box, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    (i0, j0, k0), (i1, j1, k1) = lower - box.first, upper - box.first
    return box.values[k0:k1, j0:j1, i0:i1] != 0


def _plain(name: str) -> str:
    return " ".join(name.split()).casefold()
