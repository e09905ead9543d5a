"""A label map becomes segments in the scene: whole or not at all, and without the window standing still.

    >>> steps = put_in_scene(volume, Path("labels.nrrd"), model, Output(), {"hash": "a1b2c3"})  # doctest: +SKIP
    >>> finish(steps).segmentation                                                            # doctest: +SKIP

Files are read, checked, counted and cropped in a thread. The segments are then made one by one outside the scene,
where nothing watches: all of them share one label image, which VTK takes as it is, so that each costs a fraction of a
millisecond. At the end everything enters the scene in one piece; until then nothing of it has changed, and whoever
closes the generator leaves it so. Longest piece, in processor time (``Testing/Benchmarks/segments.py``): 1.1 ms
for 5 classes at 110x66x106 and 1.0 ms for 25 at 512x512x300; with three slice views looking on 1.9 and 2.4 ms.
Surfaces are longer, and made only where the segmentation has some: 8 ms, and 168 ms for the largest of the 25.

Where segments lie. They keep the grid of the volume, voxel by voxel, and Slicer's import of label maps, which applies
a parent transform twice where the two nodes do not have the same one, is not used. A new or replaced segmentation is
put under the volume's parent transform. One that is appended to stays where it is: where its transform is another one
the grid of the new segments is moved instead, which is exact; only where a transform on the way warps must they be
resampled, on a grid like the volume's, to the nearest voxel. When Slicer saves a segmentation whose segments are on
several grids, it brings them onto one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import slicer

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.model_description import ModelDescription
from HybridMIMLib.errors import HybridMIMError, RunError, SettingsError
from HybridMIMLib.slicer_side.label_layers import LabelLayers, LabelSource, take_apart, vtk_scalars
from HybridMIMLib.slicer_side.placement import Box, Relation, resampled
from HybridMIMLib.slicer_side.provenance import (
    LABEL_TAG,
    MODEL_TAG,
    VOXELS_TAG,
    MadeBy,
    keep_made_by,
    made_by,
    made_with_model,
)
from HybridMIMLib.slicer_side.segment_table import Row, add_table, dice_with, match_names, ml_of_voxel, why_no_dice
from HybridMIMLib.slicer_side.segments import (
    BINARY_LABELMAP,
    Node,
    ijk_to_ras,
    join_subject_hierarchy,
    make_segment,
    oriented_image,
)
from HybridMIMLib.slicer_side.steps import Step, Steps, in_thread, part
from HybridMIMLib.slicer_side.surfaces import CLOSED_SURFACE, has_surfaces, make_surfaces

BACKUP_OF = "HybridMIM.backupOf"
"""Role of the reference from a backup to the segmentation whose earlier state it keeps."""

_GEOMETRY = "referenceImageGeometryRef"
_READ, _MADE, _MEASURED = 0.5, 0.7, 1.0


@dataclass(frozen=True)
class Output:
    """Where a result goes.

    Attributes:
        mode: ``new``; ``replace``: in place of all segments of ``segmentation``, which are kept as a hidden backup;
            ``append``: beside them.
        segmentation: to replace or append to.
        classes: names of those to keep, or None for all.
        name: of a new segmentation; empty for the names of volume and model.
        reference: a segmentation to compare with: the table gets a column with the Dice.
        table: whether a table of volumes is made.
    """

    mode: Literal["new", "replace", "append"] = "new"
    segmentation: Node | None = None
    classes: Collection[str] | None = None
    name: str = ""
    reference: Node | None = None
    table: bool = True

    @classmethod
    def into(
        cls,
        segmentation: Node | None,
        mode: Literal["new", "replace", "append"] | None = None,
        classes: Collection[str] | None = None,
        reference: Node | None = None,
    ) -> Output:
        """As scripts mean it: a segmentation that is given without a mode is one to replace."""
        return cls(mode or ("replace" if segmentation else "new"), segmentation, classes, reference=reference)


@dataclass(frozen=True)
class Result:
    """What was put into the scene.

    Attributes:
        segmentation: the node that holds the new segments.
        segments: id of the segment, by label of the model.
        empty: names of the classes that were not found.
        rows: what was measured, in the order of the classes.
        table: its node, or None.
        backup: node with what was replaced, or None; see :func:`exchange`.
        notes: what the user should know of it, each without a full stop.
    """

    segmentation: Node
    segments: dict[int, str]
    empty: list[str]
    rows: list[Row]
    table: Node | None = None
    backup: Node | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Made:
    """Segments outside a scene.

    Attributes:
        segments: ``vtkSegment`` by label.
        rows: what was measured, in the same order.
        notes: why something was not.
    """

    segments: dict[int, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def why_no_output(output: Output, model: ModelDescription | None = None) -> str:
    """Why a result cannot go there, as a sentence; empty if it can."""
    if output.mode not in ("new", "replace", "append"):
        return f"The output is {output.mode!r}; choose new, replace or append."
    unknown = set(output.classes or ()) - {one.name for one in model.classes} if model is not None else set()
    if unknown and model is not None:
        known = ", ".join(one.name for one in model.classes)
        return f"{model.name} has no class {', '.join(sorted(unknown))}; choose among {known}."
    if output.classes is not None and not output.classes:
        return "No class is to be kept; choose at least one."
    if output.mode == "new":
        return ""
    node = output.segmentation
    if node is None or node.GetScene() is None or not node.IsA("vtkMRMLSegmentationNode"):
        return f"Choose the segmentation to {output.mode.replace('append', 'append to')}, or a new one."
    if browser_of(node) is not None:
        return f"{node.GetName()} shows one item of a sequence; choose a new segmentation."
    content = node.GetSegmentation()
    source = content.GetSourceRepresentationName()
    if output.mode == "append" and content.GetNumberOfSegments() and source != BINARY_LABELMAP:
        return (
            f"The segments of {node.GetName()} are not voxels ({source}), so none can be added; choose a new "
            "segmentation, or make Binary labelmap its source in the module Segmentations."
        )
    return ""


def put_in_scene(
    volume: Node, labels: LabelSource, model: ModelDescription, output: Output, made_with: Mapping[str, Any]
) -> Steps[Result]:
    """Put a result into the scene of its volume, in pieces; see the head of this file.

    Args:
        volume: the scan, in a scene.
        labels: label map on the volume's grid, a file or an array (D, H, W); where the classes of the model overlap,
            a mask a class by its name. Files may go once the generator is at its end, or closed.
        made_with: what else made it, for :mod:`~HybridMIMLib.slicer_side.provenance`: ``hash`` of the package (or
            ``digest``, as the worker calls it) and settings.

    Returns:
        What was put in, once the generator is at its end (:func:`~HybridMIMLib.slicer_side.steps.finish`).

    Raises:
        LabelError: the label map is damaged, or not of this volume.
        SettingsError: the result cannot go where it should; see :func:`why_no_output`.
        RunError: volume or segmentation were changed or removed meanwhile.
        HybridMIMError: a warping transform on the way to the segmentation cannot be undone.
    """
    reason = why_no_output(output, model)
    if reason:
        message, _, cure = reason.partition("; ")
        raise SettingsError(message, cure=f"{cure[:1].upper()}{cure[1:]}" or "Choose another output.")
    keep = classes_to_keep(model, output)
    watched = _Watched(volume, output)
    shape = volume.GetImageData().GetDimensions()
    read = in_thread(
        lambda: take_apart(labels, shape, model.classes, keep, volume.GetName()), Step(0.5, "Reading the result")
    )
    layers = yield from part(read, 0.0, _READ)
    watched.check()
    relation, target = Relation(None, None), output.segmentation
    if output.mode == "append" and target is not None:
        relation = Relation(volume.GetParentTransformNode(), target.GetParentTransformNode())
    made = Made()
    made.segments = yield from part(make_segments(layers, keep, ijk_to_ras(volume), relation), _READ, _MADE)
    measuring = _measured(layers, keep, volume, output.reference, made.notes)
    made.rows = yield from part(measuring, _MADE, 0.9 * _MEASURED)
    if target is not None and output.mode != "new" and has_surfaces(target.GetSegmentation()):
        # Slicer would make them as they are added: all in one go, and each from the whole image.
        segments = list(made.segments.values())
        surfaces = yield from part(make_surfaces(segments, target.GetSegmentation()), 0.9, _MEASURED)
        for segment, surface in zip(segments, surfaces):
            segment.AddRepresentation(CLOSED_SURFACE, surface)
    watched.check()
    yield Step(_MEASURED, "Showing the result")
    watched.check()
    return _put_in(volume, made, model, output, made_with)


def classes_to_keep(model: ModelDescription, output: Output) -> list[LabelClass]:
    """In the model's order."""
    return [one for one in model.classes if output.classes is None or one.name in output.classes]


def make_segments(
    layers: LabelLayers, classes: Sequence[LabelClass], grid: np.ndarray, relation: Relation
) -> Steps[dict[int, Any]]:
    """``vtkSegment`` by label, outside any scene, each in a piece of its own.

    Args:
        grid: of the layers, voxel -> mm of the space of the volume.
        relation: from there into the space of the segmentation.
    """
    images = []
    for number, layer in enumerate(layers.layers):
        box, scalars, place = Box(layer.first, layer.values), layer.scalars, grid
        if relation.matrix is not None:
            place = relation.matrix @ grid
        else:
            move = resampled(box, grid, grid, relation, None, "Bringing the result under the other transform")
            box = yield from part(move, number / len(layers.layers), (number + 1) / len(layers.layers))
            scalars = vtk_scalars(box.values)[0]
        images.append(oriented_image(box.first, box.values.shape, scalars, place))
    segments: dict[int, Any] = {}
    for number, one in enumerate(classes):
        yield Step(number / len(classes), f"Making the segments ({number + 1} of {len(classes)}: {one.name})")
        value = layers.of(one.label).value_of[one.label]
        segments[one.label] = make_segment(one, images[layers.layer_of[one.label]], value)
    return segments


def backups(segmentation: Node) -> list[Node]:
    """The backups of a segmentation, newest last."""
    scene = segmentation.GetScene()
    count = scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
    nodes = [scene.GetNthNodeByClass(number, "vtkMRMLSegmentationNode") for number in range(count)]
    return [node for node in nodes if node.GetNodeReferenceID(BACKUP_OF) == segmentation.GetID()]


def restore(backup: Node) -> Node:
    """Give a segmentation back what its backup keeps; the backup keeps what it had until now, so nothing is lost.

    Returns:
        The segmentation.

    Raises:
        SettingsError: the node is no backup, or its segmentation is gone.
    """
    node = backup.GetNodeReference(BACKUP_OF)
    if node is None:
        raise SettingsError(
            f"{backup.GetName()} is no backup of a segmentation in this scene", cure="Show it as it is."
        )
    exchange(node, backup)
    backup.SetName(backup.GetScene().GenerateUniqueName(f"{node.GetName()} (taken back)"))
    return node


def exchange(one: Node, other: Node) -> None:
    """Two segmentations change contents: segments, transform, reference geometry, looks, what made them.

    Nothing is copied. Names, files, places in the data tree and visibility stay.
    """
    contents = [_Content(node) for node in (one, other)]
    for node, content in zip((one, other), reversed(contents)):
        content.give_to(node)


def browser_of(node: Node) -> Node | None:
    """The ``vtkMRMLSequenceBrowserNode`` whose current item a node shows, or None."""
    scene = node.GetScene()
    count = scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode") if scene is not None else 0
    browsers = (scene.GetNthNodeByClass(number, "vtkMRMLSequenceBrowserNode") for number in range(count))
    return next((one for one in browsers if one.IsProxyNode(node.GetID())), None)


class _Content:
    """What :func:`exchange` moves."""

    def __init__(self, node: Node) -> None:
        self._segmentation = node.GetSegmentation()
        self._transform, self._geometry = node.GetTransformNodeID(), node.GetNodeReferenceID(_GEOMETRY)
        self._made_by = made_by(node)
        self._display = slicer.vtkMRMLSegmentationDisplayNode()
        self._display.CopyContent(node.GetDisplayNode())

    def give_to(self, node: Node) -> None:
        display = node.GetDisplayNode()
        shown = display.GetVisibility()
        node.SetAndObserveSegmentation(self._segmentation)
        node.SetAndObserveTransformNodeID(self._transform)
        node.SetNodeReferenceID(_GEOMETRY, self._geometry)
        keep_made_by(node, self._made_by)
        display.CopyContent(self._display)
        display.SetVisibility(shown)
        _announce(node)


class _Watched:
    """What must not change between the beginning and the end."""

    def __init__(self, volume: Node, output: Output) -> None:
        self._volume, self._target = volume, output.segmentation if output.mode != "new" else None
        # What is replaced may be moved and edited: its backup keeps it as it is at the end.
        self._stays = self._target if output.mode == "append" else None
        self._before = self._state()

    def check(self) -> None:
        """Raises:
        RunError: it did change.
        """
        for node in (self._volume, self._target):
            if node is not None and node.GetScene() is None:
                raise RunError(
                    f"{node.GetName()} was removed from the scene, so the result has no place",
                    cure="Load it again, then segment again.",
                )
        if self._state() != self._before:
            raise RunError(
                f"{self._volume.GetName()} was moved or changed while its result was put into the scene",
                cure="Segment it again.",
            )

    def _state(self) -> tuple[Any, ...]:
        image = self._volume.GetImageData()
        state: list[Any] = [image.GetDimensions() if image is not None else (), ijk_to_ras(self._volume).tolist()]
        if self._stays is not None:
            state += [_chain(self._volume), _chain(self._stays)]
        return tuple(state)


def _chain(node: Node) -> list[tuple[str, int]]:
    """The transforms above a node, and when they last changed."""
    found = []
    transform = node.GetParentTransformNode()
    while transform is not None:
        found.append((transform.GetID(), transform.GetTransformToWorldMTime()))
        transform = transform.GetParentTransformNode()
    return found


def _measured(
    layers: LabelLayers, classes: Sequence[LabelClass], volume: Node, reference: Node | None, notes: list[str]
) -> Steps[list[Row]]:
    ml, agreement = ml_of_voxel(ijk_to_ras(volume)), dict[int, float | None]()
    if reference is not None:
        try:
            agreement = yield from compared(layers, classes, volume, reference)
        except HybridMIMError as error:
            # The result is there, and does not depend on what it is compared with.
            notes.append(f"the result was not compared with {reference.GetName()}: {error.message}")
    voxels = layers.voxels
    rows = [Row(one.name, voxels[one.label], voxels[one.label] * ml, agreement.get(one.label)) for one in classes]
    if reference is not None and not notes and (reason := why_no_dice(rows, reference)):
        notes.append(reason)
    return rows


def compared(
    layers: LabelLayers, classes: Sequence[LabelClass], volume: Node, reference: Node
) -> Steps[dict[int, float | None]]:
    """Dice by label, of the classes that the reference has, too; for an item of a sequence as well.

    Raises:
        RunError: the reference was changed or removed meanwhile.
        HybridMIMError: it lies under a warping transform that cannot be undone.
    """
    found: dict[int, float | None] = {}
    partners = match_names({str(one.label): one.name for one in classes}, reference)
    for number, one in enumerate(classes):
        partner = partners.get(str(one.label))
        if partner is not None:
            text, layer = f"Comparing {one.name}", layers.of(one.label)
            mask = yield from in_thread(partial(layer.mask, one.label), Step(number / len(classes), text))
            compare = dice_with(Box(layer.first, mask), reference, partner, volume, text)
            found[one.label] = yield from part(compare, number / len(classes), (number + 1) / len(classes))
            if reference.GetScene() is None:
                # Without a scene nobody knows its transform.
                raise RunError(f"{reference.GetName()} was removed from the scene", cure="Measure again.")
    return found


def assembled(segments: Mapping[int, Any]) -> Any:
    """A new ``vtkSegmentation`` of segments by label."""
    segmentation = slicer.vtkSegmentation()
    segmentation.SetSourceRepresentationName(BINARY_LABELMAP)
    for label, segment in segments.items():
        segmentation.AddSegment(segment, f"class_{label}")
    return segmentation


def _put_in(
    volume: Node, made: Made, model: ModelDescription, output: Output, made_with: Mapping[str, Any]
) -> Result:
    """The one piece that changes the scene; what fails in it takes everything back."""
    target: Any = output.segmentation
    taken = set(target.GetSegmentation().GetSegmentIDs()) if output.mode == "append" else set()
    segments = free_ids(made.segments, taken)
    entry = made_with_model(model, volume, segments, made_with)
    tag_segments(made.segments, made.rows, entry)
    with ExitStack() as undo:
        node, backup = target, None
        if output.mode == "append":
            add_segments(node.GetSegmentation(), made.segments, segments, undo)
            node.CreateDefaultDisplayNodes()
        else:
            node = add_segmentation(volume, made.segments, output.name or f"{volume.GetName()} {model.name}", undo)
        before = made_by(node)
        undo.callback(keep_made_by, node, before)
        keep_made_by(node, [*before, entry])
        if output.mode == "replace":
            node, backup = _replace(target, node, model, undo)
        table = None
        if output.table:
            table = add_table(node, made.rows, volume.GetScene().GenerateUniqueName(f"{node.GetName()} volumes"))
            undo.callback(remove_node, table)
        undo.pop_all()
    empty = [row.name for row in made.rows if not row.voxels]
    return Result(node, segments, empty, list(made.rows), table, backup, made.notes)


def add_segmentation(volume: Node, segments: Mapping[int, Any], name: str, undo: ExitStack) -> Node:
    """A new segmentation of a volume, beside it in the data tree and under its transform.

    Args:
        segments: ``vtkSegment`` by label, as :func:`make_segments` gives them.
        name: with a number behind it where it is taken.
        undo: gets how to take it back.
    """
    scene = volume.GetScene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", scene.GenerateUniqueName(name))
    undo.callback(remove_node, node)
    # The parent comes first: the reference geometry is stored relative to it.
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    node.SetAndObserveSegmentation(assembled(segments))
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    node.CreateDefaultDisplayNodes()
    join_subject_hierarchy(node, beside=volume)
    _announce(node)
    return node


def free_ids(labels: Iterable[int], taken: Collection[str]) -> dict[int, str]:
    """The id of the segment of each label, such as ``class_3``, or ``class_3_2`` where that is taken."""
    return {label: unique(f"class_{label}", taken, "{}_{}") for label in labels}


def add_segments(segmentation: Any, segments: Mapping[int, Any], ids: Mapping[int, str], undo: ExitStack) -> None:
    """Add segments to a ``vtkSegmentation`` that has others; names that are taken get a number.

    Raises:
        HybridMIMError: Slicer refused one.
    """
    if not segmentation.GetNumberOfSegments():
        segmentation.SetSourceRepresentationName(BINARY_LABELMAP)
    names = {segmentation.GetSegment(one).GetName() for one in segmentation.GetSegmentIDs()}
    for label, segment in segments.items():
        segment.SetName(unique(segment.GetName(), names))
        names.add(segment.GetName())
        if not segmentation.AddSegment(segment, ids[label]):
            raise HybridMIMError(
                f"Slicer could not add the segment {segment.GetName()}", cure="Choose a new segmentation as output."
            )
        undo.callback(segmentation.RemoveSegment, ids[label])


def _replace(node: Node, fresh: Node, model: ModelDescription, undo: ExitStack) -> tuple[Node, Node]:
    """The fresh node takes over what the other has, and becomes its backup."""
    node.CreateDefaultDisplayNodes()
    backup, scene = fresh, fresh.GetScene()
    backup.GetDisplayNode().SetVisibility(False)
    exchange(node, backup)
    undo.callback(exchange, node, backup)
    backup.SetName(scene.GenerateUniqueName(f"{node.GetName()} (before {model.name})"))
    backup.SetNodeReferenceID(BACKUP_OF, node.GetID())
    join_subject_hierarchy(backup, beside=node)
    return node, backup


def tag_segments(segments: Mapping[int, Any], rows: Sequence[Row], entry: MadeBy) -> None:
    """Note on ``vtkSegment`` by label what it is and what made it: files keep that, other than what nodes have.

    Args:
        rows: what was measured of them, in the same order.
    """
    for (label, segment), row in zip(segments.items(), rows, strict=True):
        segment.SetTag(LABEL_TAG, str(label))
        segment.SetTag(MODEL_TAG, entry.model_and_hash())
        segment.SetTag(VOXELS_TAG, str(row.voxels))


def _announce(node: Node) -> None:
    """Tell who lists segments that they are others now: without an id this event means all of them."""
    node.InvokeCustomModifiedEvent(slicer.vtkSegmentation.SegmentAdded)
    node.Modified()
    # Segments that come from another node may be older than the file: Slicer would not save them.
    node.StorableModified()


def remove_node(node: Node) -> None:
    """Take a node that was made here out of its scene, with its display node."""
    scene = node.GetScene()
    for child in (node.GetDisplayNode() if node.IsA("vtkMRMLDisplayableNode") else None, node):
        if child is not None and scene is not None:
            scene.RemoveNode(child)


def unique(name: str, taken: Collection[str], way: str = "{} ({})") -> str:
    """The name, or with the first number from 2 on with which it is not taken."""
    number, free = 2, name
    while free in taken:
        free, number = way.format(name, number), number + 1
    return free
