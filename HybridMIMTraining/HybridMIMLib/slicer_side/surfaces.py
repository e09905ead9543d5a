"""Surfaces of segments, one at a time: VTK makes them in the window's thread, and all at once take it seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slicer
import vtk

from HybridMIMLib.errors import RunError
from HybridMIMLib.slicer_side.label_layers import vtk_scalars
from HybridMIMLib.slicer_side.placement import Box, grid_of, image_box
from HybridMIMLib.slicer_side.segments import BINARY_LABELMAP, Node, oriented_image
from HybridMIMLib.slicer_side.steps import Step, Steps, part

CLOSED_SURFACE = "Closed surface"


def show_in_3d(node: Node) -> Steps[None]:
    """Make the surfaces that a segmentation lacks, and show it in 3D views.

    The longest piece is the surface of the largest segment. Closed early, no surface was added.

    Raises:
        RunError: a segment was added, removed or changed meanwhile.
    """
    segmentation = node.GetSegmentation()
    segments = [segmentation.GetNthSegment(number) for number in range(segmentation.GetNumberOfSegments())]
    before = _stamps(segmentation)
    made = yield from make_surfaces(segments, segmentation)
    if node.GetSegmentation() is not segmentation or _stamps(segmentation) != before:
        raise RunError(f"{node.GetName()} was changed while its surfaces were made", cure="Show it in 3D again.")
    for segment, surface in zip(segments, made):
        segment.AddRepresentation(CLOSED_SURFACE, surface)
    segmentation.InvokeEvent(slicer.vtkSegmentation.ContainedRepresentationNamesModified)
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetPreferredDisplayRepresentationName3D(CLOSED_SURFACE)
    display.SetVisibility3D(True)
    display.SetVisibility(True)


def _stamps(segmentation: Any) -> list[tuple[str, int]]:
    """Changes when a segment comes or goes, or its voxels change."""
    found = []
    for identifier in segmentation.GetSegmentIDs():
        image = segmentation.GetSegment(identifier).GetRepresentation(BINARY_LABELMAP)
        found.append((identifier, image.GetMTime() if image is not None else 0))
    return found


def has_surfaces(segmentation: Any) -> bool:
    """Whether it has surfaces, and so new segments of it need one too."""
    count = segmentation.GetNumberOfSegments()
    return count > 0 and segmentation.GetNthSegment(0).GetRepresentation(CLOSED_SURFACE) is not None


def make_surfaces(segments: Sequence[Any], like: Any) -> Steps[list[Any]]:
    """``vtkPolyData`` of each ``vtkSegment``; the one that it has, or a new one.

    Each is made from the segment's own box: from the image that segments share, it would take as long as that is
    large.

    Args:
        like: the ``vtkSegmentation`` that says how smooth they are to be.
    """
    made, count = [], len(segments)
    for number, segment in enumerate(segments):
        surface = segment.GetRepresentation(CLOSED_SURFACE)
        if surface is None:
            text = f"Making the surface of {segment.GetName()} ({number + 1} of {count})"
            image = segment.GetRepresentation(BINARY_LABELMAP)
            cut = image_box(image, segment.GetLabelValue(), "The segmentation", text)
            box = yield from part(cut, number / count, (number + 0.5) / count)
            yield Step((number + 0.5) / count, text)
            surface = _surface(image, box, like)
        made.append(surface)
    return made


def _surface(image: Any, box: Box, like: Any) -> Any:
    """``vtkPolyData`` of a segment by itself, made as a segmentation does."""
    if not box.values.size:
        return vtk.vtkPolyData()
    alone = slicer.vtkSegmentation()
    alone.SetSourceRepresentationName(BINARY_LABELMAP)
    alone.CopyConversionParameters(like)
    segment = slicer.vtkSegment()
    segment.SetLabelValue(1)
    scalars = vtk_scalars(box.values)[0]
    segment.AddRepresentation(BINARY_LABELMAP, oriented_image(box.first, box.values.shape, scalars, grid_of(image)))
    alone.AddSegment(segment, "alone")
    alone.CreateRepresentation(CLOSED_SURFACE)
    return segment.GetRepresentation(CLOSED_SURFACE) or vtk.vtkPolyData()
