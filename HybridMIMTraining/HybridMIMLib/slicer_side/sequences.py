"""The result of a sequence of scans: a sequence of segmentations that moves with it.

The browser of the scans shows the segmentations too: one slider for both, and what is corrected in Segment Editor is
kept for the item that is shown. As with a single scan, all is made outside the scene and enters it in one piece.

    >>> steps = put_sequence_in_scene(sequence_node, ["1.nrrd", "2.nrrd"], model, Output(), {})  # doctest: +SKIP
    >>> finish(steps).segmentation                                                            # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import slicer

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.model_description import ModelDescription
from HybridMIMLib.errors import HybridMIMError, LabelError, RunError, SettingsError
from HybridMIMLib.slicer_side.label_layers import LabelSource, take_apart
from HybridMIMLib.slicer_side.placement import Relation
from HybridMIMLib.slicer_side.provenance import MadeBy, keep_made_by, made_by, made_with_model
from HybridMIMLib.slicer_side.results import (
    BACKUP_OF,
    Output,
    Result,
    add_segments,
    assembled,
    browser_of,
    classes_to_keep,
    compared,
    free_ids,
    make_segments,
    remove_node,
    tag_segments,
    why_no_output,
)
from HybridMIMLib.slicer_side.segment_table import Row, add_table, ml_of_voxel, why_no_dice
from HybridMIMLib.slicer_side.segments import Node, ijk_to_ras, join_subject_hierarchy
from HybridMIMLib.slicer_side.steps import Step, Steps, in_thread, part


def put_sequence_in_scene(
    sequence: Node,
    labels: Sequence[LabelSource],
    model: ModelDescription,
    output: Output,
    made_with: Mapping[str, Any],
) -> Steps[Result]:
    """Put the results of all items of a sequence into its scene, in pieces.

    Args:
        sequence: ``vtkMRMLSequenceNode`` of the scans, in a scene.
        labels: for each item, as for :func:`~HybridMIMLib.slicer_side.results.put_in_scene`.
        output: to replace or append to: the node that shows the items of a sequence of segmentations with the same
            index values. A reference is compared with where it shows such a sequence, too, item by item.
        made_with: as for ``put_in_scene``.

    Returns:
        ``segmentation`` is the node that shows the current item; ``rows`` are of all items, one after the other.

    Raises:
        LabelError: there is not one label map an item, or one is damaged or not of its item.
        SettingsError: the result cannot go where it should; see :func:`why_no_sequence_output`.
        RunError: sequence or segmentation were changed or removed meanwhile.
        HybridMIMError: a warping transform on the way to the segmentation cannot be undone.
    """
    reason = why_no_sequence_output(sequence, output, model)
    if reason:
        message, _, cure = reason.partition("; ")
        raise SettingsError(message, cure=f"{cure[:1].upper()}{cure[1:]}" or "Choose another output.")
    count = sequence.GetNumberOfDataNodes()
    if len(labels) != count:
        raise LabelError(
            f"{sequence.GetName()} has {count} items, and there are {len(labels)} label maps",
            cure="Segment it again.",
        )
    watched = _Watched(sequence, output.segmentation)
    relation = Relation(None, None)
    if output.mode == "append" and output.segmentation is not None:
        shown = proxy_of(sequence)
        above = shown.GetParentTransformNode() if shown is not None else None
        relation = Relation(above, output.segmentation.GetParentTransformNode())
    items: list[dict[int, Any]] = []
    rows: list[list[Row]] = []
    references, notes = _references(sequence, output.reference)
    for number, one in enumerate(labels):
        made = _item(
            sequence, number, one, model, classes_to_keep(model, output), relation, references[number], notes
        )
        segments, measured = yield from part(made, number / count, (number + 1) / count)
        items.append(segments)
        rows.append(measured)
    watched.check()
    yield Step(1.0, "Showing the result")
    watched.check()
    if output.reference is not None and not notes:
        nothing = why_no_dice([row for measured in rows for row in measured], references[0])
        notes += [nothing] if nothing else []
    return _put_in(sequence, items, rows, model, output, made_with, notes)


def why_no_sequence_output(sequence: Node, output: Output, model: ModelDescription | None = None) -> str:
    """Why the results of a sequence cannot go there, as a sentence; empty if they can."""
    if output.mode == "new" or output.segmentation is None or output.segmentation.GetScene() is None:
        return why_no_output(output, model)
    node = output.segmentation
    reason = why_no_output(replace(output, mode="new"), model)
    if reason:
        return reason
    target = _sequence_of(node)
    if target is None or not node.IsA("vtkMRMLSegmentationNode"):
        return f"{node.GetName()} shows no sequence of segmentations; choose a new segmentation."
    if _values(target) != _values(sequence):
        return f"{node.GetName()} has other items than {sequence.GetName()}; choose a new segmentation."
    return ""


def proxy_of(sequence: Node) -> Node | None:
    """The node that shows the current item of a sequence, or None."""
    browser = _browser_with(sequence)
    return browser.GetProxyNode(sequence) if browser is not None else None


def _item(
    sequence: Node,
    number: int,
    labels: LabelSource,
    model: ModelDescription,
    keep: list[LabelClass],
    relation: Relation,
    reference: Node | None,
    notes: list[str],
) -> Steps[tuple[dict[int, Any], list[Row]]]:
    """The segments of an item, and what was measured of them.

    Args:
        reference: item to compare with, or None.
        notes: get what the user should know.
    """
    volume = sequence.GetNthDataNode(number)
    name, shape = f"{sequence.GetName()}, item {number + 1}", volume.GetImageData().GetDimensions()
    text = f"Reading the result of item {number + 1} of {sequence.GetNumberOfDataNodes()}"
    layers = yield from part(
        in_thread(lambda: take_apart(labels, shape, model.classes, keep, name), Step(0.5, text)), 0.0, 0.7
    )
    segments = yield from part(make_segments(layers, keep, ijk_to_ras(volume), relation), 0.7, 1.0)
    agreement: dict[int, float | None] = {}
    if reference is not None:
        try:
            agreement = yield from part(compared(layers, keep, volume, reference), 1.0, 1.0)
        except HybridMIMError as error:
            # The result is there, and does not depend on what it is compared with.
            notes.append(f"item {number + 1} was not compared: {error.message}")
    ml, voxels = ml_of_voxel(ijk_to_ras(volume)), layers.voxels
    return segments, [Row(o.name, voxels[o.label], voxels[o.label] * ml, agreement.get(o.label)) for o in keep]


def _references(sequence: Node, reference: Node | None) -> tuple[list[Node | None], list[str]]:
    """For each item what it is compared with, and why it is compared with nothing, if that was wanted."""
    count = sequence.GetNumberOfDataNodes()
    if reference is None:
        return [None] * count, []
    theirs, shown = _sequence_of(reference), proxy_of(sequence)
    above = shown.GetTransformNodeID() if shown is not None else None
    reason = ""
    if theirs is None or _values(theirs) != _values(sequence):
        reason = f"it shows no sequence with the items of {sequence.GetName()}"
    elif reference.GetTransformNodeID() != above:
        reason = "it lies under another transform"
    if theirs is None or reason:
        return [None] * count, [f"the result was not compared with {reference.GetName()}: {reason}"]
    return [theirs.GetNthDataNode(number) for number in range(count)], []


def _put_in(
    sequence: Node,
    items: list[dict[int, Any]],
    rows: list[list[Row]],
    model: ModelDescription,
    output: Output,
    made_with: Mapping[str, Any],
    notes: list[str],
) -> Result:
    """The one piece that changes the scene; what fails in it takes everything back."""
    scene, target, backup = sequence.GetScene(), output.segmentation, None
    result = _sequence_of(target) if target is not None and output.mode != "new" else None
    taken = _ids(result) if output.mode == "append" else set()
    entry = made_with_model(model, sequence, free_ids(items[0] if items else [], taken), made_with)
    for segments, measured in zip(items, rows, strict=True):
        tag_segments(segments, measured, entry)
    with ExitStack() as undo:
        if result is None:
            name = output.name or f"{sequence.GetName()} {model.name}"
            result = _new_sequence(sequence, items, scene.GenerateUniqueName(name))
            _sign(result, None, entry, undo)
            undo.callback(remove_node, scene.AddNode(result))
            node = _show(sequence, result, undo)
        else:
            node = target
            undo.callback(refresh, node)
            if output.mode == "append":
                for number, segments in enumerate(items):
                    add_segments(result.GetNthDataNode(number).GetSegmentation(), segments, entry.segments, undo)
            else:
                backup = _replace(sequence, result, items, model, undo)
            _sign(result, node, entry, undo)
        refresh(node)
        table = None
        if output.table:
            named = [(f"{number + 1}", row) for number, measured in enumerate(rows) for row in measured]
            table = add_table(node, [row for _, row in named], scene.GenerateUniqueName(f"{node.GetName()} volumes"),
                              items=[item for item, _ in named])  # fmt: skip
            undo.callback(remove_node, table)
        undo.pop_all()
    found = {row.name for measured in rows for row in measured if row.voxels}
    empty = [row.name for row in rows[0] if row.name not in found] if rows else []
    every = [row for measured in rows for row in measured]
    return Result(node, dict(entry.segments), empty, every, table, backup, notes)


def _new_sequence(sequence: Node, items: Sequence[dict[int, Any]], name: str) -> Node:
    """A ``vtkMRMLSequenceNode`` outside any scene, with the index of another one."""
    contents = []
    for number, segments in enumerate(items):
        content = assembled(segments)
        # The reference geometry is that of the item, in the space of the node that shows it.
        volume = sequence.GetNthDataNode(number)
        content.SetConversionParameter(
            slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName(), _geometry(volume)
        )
        contents.append(content)
    return _sequence_with(sequence, contents, name)


def _sequence_with(like: Node, contents: Sequence[Any], name: str) -> Node:
    made = slicer.vtkMRMLSequenceNode()
    made.SetName(name)
    made.SetIndexName(like.GetIndexName())
    made.SetIndexUnit(like.GetIndexUnit())
    made.SetIndexType(like.GetIndexType())
    for number, content in enumerate(contents):
        # A sequence copies what it is given: an empty node, and what it is to hold afterwards.
        value = like.GetNthIndexValue(number)
        made.SetDataNodeAtValue(slicer.vtkMRMLSegmentationNode(), value).SetAndObserveSegmentation(content)
    return made


def _show(sequence: Node, result: Node, undo: ExitStack) -> Node:
    """A node for the current item, in the browser of the scans, or in a new one."""
    scene, browser = sequence.GetScene(), _browser_with(sequence)
    if browser is None:
        browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", f"{sequence.GetName()} browser")
        undo.callback(remove_node, browser)
        browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
        browser.SetSelectedItemNumber(0)
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", result.GetName())
    undo.callback(remove_node, node)
    shown = browser.GetProxyNode(sequence)
    if shown is not None:
        node.SetAndObserveTransformNodeID(shown.GetTransformNodeID())
    node.CreateDefaultDisplayNodes()
    browser.AddProxyNode(node, result, False)
    undo.callback(browser.RemoveSynchronizedSequenceNode, result.GetID())
    # Corrections stay with their item; and Slicer hands items on instead of copying them.
    browser.SetSaveChanges(result, True)
    join_subject_hierarchy(node, beside=shown)
    if shown is not None:
        node.SetNodeReferenceID("referenceImageGeometryRef", shown.GetID())
    return node


def _ids(sequence: Node) -> set[str]:
    """Of the segments of all items."""
    items = (sequence.GetNthDataNode(number) for number in range(sequence.GetNumberOfDataNodes()))
    return {one for item in items for one in item.GetSegmentation().GetSegmentIDs()}


def _replace(
    sequence: Node, target: Node, items: Sequence[dict[int, Any]], model: ModelDescription, undo: ExitStack
) -> Node:
    """The fresh sequence and the other change contents, so that the fresh one becomes the backup."""
    scene = target.GetScene()
    backup = _new_sequence(sequence, items, scene.GenerateUniqueName(f"{target.GetName()} (before {model.name})"))
    undo.callback(remove_node, scene.AddNode(backup))
    exchange_sequences(target, backup)
    undo.callback(exchange_sequences, target, backup)
    backup.SetNodeReferenceID(BACKUP_OF, target.GetID())
    return backup


def restore_sequence(backup: Node) -> Node:
    """Give a sequence back what its backup keeps, which keeps what it had until now; returns the sequence.

    Raises:
        SettingsError: the node is no backup, or its sequence is gone.
    """
    target = backup.GetNodeReference(BACKUP_OF)
    if target is None:
        raise SettingsError(f"{backup.GetName()} is no backup of a sequence in this scene", cure="Show it as it is.")
    exchange_sequences(target, backup)
    backup.SetName(backup.GetScene().GenerateUniqueName(f"{target.GetName()} (taken back)"))
    shown = proxy_of(target)
    if shown is not None:
        refresh(shown)
    return target


def exchange_sequences(one: Node, other: Node) -> None:
    """Two sequences with the same items change their segmentations; nothing is copied."""
    for number in range(one.GetNumberOfDataNodes()):
        a, b = one.GetNthDataNode(number), other.GetNthDataNode(number)
        of_a, of_b = a.GetSegmentation(), b.GetSegmentation()
        a.SetAndObserveSegmentation(of_b)
        b.SetAndObserveSegmentation(of_a)
        _exchange_made_by(a, b)
    _exchange_made_by(one, other)
    for node in (one, other):
        node.Modified()
        node.StorableModified()


def _exchange_made_by(one: Node, other: Node) -> None:
    mine, others = made_by(one), made_by(other)
    keep_made_by(one, others)
    keep_made_by(other, mine)


def refresh(shown: Node) -> None:
    """Have the node that shows an item of a sequence show it as it is now."""
    browser, sequence = browser_of(shown), _sequence_of(shown)
    if browser is None or sequence is None:
        return
    master, number = browser.GetMasterSequenceNode(), max(browser.GetSelectedItemNumber(), 0)
    item = sequence.GetDataNodeAtValue(master.GetNthIndexValue(number), False)
    if item is not None:
        shown.CopyContent(item, not browser.GetSaveChanges(sequence))
        shown.InvokeCustomModifiedEvent(slicer.vtkSegmentation.SegmentAdded)
        shown.Modified()


def _sign(result: Node, shown: Node | None, entry: MadeBy, undo: ExitStack) -> None:
    """Keep the entry on a sequence, and on its items and the node that shows them: these two follow each other."""
    items = [result.GetNthDataNode(number) for number in range(result.GetNumberOfDataNodes())]
    for one in (result, *items, *([shown] if shown is not None else [])):
        before = made_by(one)
        # On the shown item it may be already, by way of the node that shows it.
        if entry not in before:
            undo.callback(keep_made_by, one, before)
            keep_made_by(one, [*before, entry])


class _Watched:
    """What must not change between the beginning and the end."""

    def __init__(self, sequence: Node, target: Node | None) -> None:
        self._sequence, self._target = sequence, target
        self._before = self._state()

    def check(self) -> None:
        """Raises:
        RunError: it did change.
        """
        gone = any(node is not None and node.GetScene() is None for node in (self._sequence, self._target))
        if gone or self._state() != self._before:
            raise RunError(
                f"{self._sequence.GetName()} or its segmentation was changed or removed while the result was put in",
                cure="Segment it again.",
            )

    def _state(self) -> list[Any]:
        shown = proxy_of(self._sequence) if self._sequence.GetScene() is not None else None
        items = [self._sequence.GetNthDataNode(one) for one in range(self._sequence.GetNumberOfDataNodes())]
        return [
            _values(self._sequence),
            [ijk_to_ras(one).tolist() for one in items],
            shown.GetTransformNodeID() if shown is not None else None,
            self._target.GetTransformNodeID() if self._target is not None else None,
        ]


def _values(sequence: Node) -> list[str]:
    return [sequence.GetNthIndexValue(number) for number in range(sequence.GetNumberOfDataNodes())]


def _sequence_of(shown: Node) -> Node | None:
    """The sequence whose items a node shows."""
    browser = browser_of(shown)
    return browser.GetSequenceNode(shown) if browser is not None else None


def _browser_with(sequence: Node) -> Node | None:
    scene = sequence.GetScene()
    count = scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")
    browsers = (scene.GetNthNodeByClass(number, "vtkMRMLSequenceBrowserNode") for number in range(count))
    return next((one for one in browsers if one.IsSynchronizedSequenceNode(sequence, True)), None)


def _geometry(volume: Node) -> str:
    """A volume's grid, as segmentations keep it."""
    helper = slicer.vtkMRMLSegmentationNode()
    helper.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    name = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    text: str = helper.GetSegmentation().GetConversionParameter(name)
    return text
