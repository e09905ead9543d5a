"""The table of volumes and Dice, and what is kept about who made a segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

import small_scenes as small
from hypothesis import given, settings
from hypothesis import strategies as st

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.errors import RunError
from HybridMIMLib.slicer_side.placement import Box, segment_box
from HybridMIMLib.slicer_side.provenance import MadeBy, keep_made_by, made_by
from HybridMIMLib.slicer_side.results import Output, put_in_scene
from HybridMIMLib.slicer_side.scene import HeadlessScene, headless_scene, read_scene, write_scene
from HybridMIMLib.slicer_side.segment_table import dice, measure, tables_of
from HybridMIMLib.slicer_side.segments import image_array, segmentation_node
from HybridMIMLib.slicer_side.steps import finish
from HybridMIMLib.slicer_side.surfaces import CLOSED_SURFACE, show_in_3d


@pytest.fixture
def held() -> HeadlessScene:
    return headless_scene()


def as_text(table: Any) -> list[list[str]]:
    content = table.GetTable()
    columns = range(content.GetNumberOfColumns())
    rows = [[content.GetValue(row, c).ToString() for c in columns] for row in range(content.GetNumberOfRows())]
    return [[content.GetColumnName(c) for c in columns], *rows]


def shifted(labels: np.ndarray) -> np.ndarray:
    return np.roll(labels, 1, axis=0)


def plain_dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_volumes_and_empty_classes(held: HeadlessScene) -> None:
    volume = small.volume(held.scene, small.AFFINES["sheared"])
    # Moved and enlarged by a registration: what was measured stays.
    small.put_under(volume, small.transform(held.scene, "thin plate"))
    result = finish(put_in_scene(volume, small.labels(), small.model(), Output(), {}))
    count, ml = int((small.labels() == 7).sum()), 5 * 0.94 / 1000
    assert as_text(result.table)[0] == ["Segment", "Volume [ml]", "Voxels", "Note"]
    assert as_text(result.table)[2] == ["Nothing", "0", "0", "empty: not found"]
    row = as_text(result.table)[3]
    assert (row[0], float(row[1]), row[2:]) == ("Spleen", pytest.approx(count * ml, rel=1e-5), [str(count), ""])
    assert tables_of(held.scene, result.segmentation) == [result.table]
    assert finish(measure(result.segmentation, volume)) == result.rows


@pytest.mark.parametrize("parent", ["none", "linear", "grid"])
def test_dice_with_a_reference_anywhere(held: HeadlessScene, parent: str) -> None:
    """On another grid, under another transform, with names in other letters."""
    grid = small.AFFINES["oblique"]
    volume = small.volume(held.scene, grid)
    small.put_under(volume, small.transform(held.scene, parent))
    other = small.volume(held.scene, grid @ np.diag([-1.0, 1, 1, 1]) @ np.array(
        [[1, 0, 0, 1 - small.SHAPE[0]], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "mirrored grid")  # fmt: skip
    names = [LabelClass(7, " SPLEEN", (1, 0, 0)), LabelClass(2, "something else", (0, 1, 0))]
    small.put_under(other, volume.GetParentTransformNode())
    reference = segmentation_node(held.scene, other, shifted(small.labels())[::-1], names, "reference")
    result = finish(put_in_scene(volume, small.labels(), small.model(), Output(reference=reference), {}))
    wanted = plain_dice(small.labels() == 7, shifted(small.labels()) == 7)
    found = {row.name: row.dice for row in result.rows}
    assert found == {"Foie gauché": None, "Nothing": None, "Spleen": pytest.approx(wanted)}
    assert as_text(result.table)[0][3] == "Dice"
    assert [row.dice for row in finish(measure(result.segmentation, volume, reference))] == [
        None, None, pytest.approx(wanted)]  # fmt: skip


def test_one_segment_each_is_compared_whatever_they_are_called(held: HeadlessScene) -> None:
    volume = small.volume(held.scene)
    labels = np.zeros(small.SHAPE, np.uint8)
    labels[1:-1, 1:-1, 1:-1] = 7
    hand = [LabelClass(1, "Segment_1", (1, 0, 0))]
    reference = segmentation_node(held.scene, volume, labels // 7, hand, "hand")
    output = Output(classes=["Spleen"], reference=reference)
    assert finish(put_in_scene(volume, labels, small.model(), output, {})).rows[0].dice == 1.0
    reference.CreateClosedSurfaceRepresentation()
    reference.SetSourceRepresentationToClosedSurface()
    reference.GetSegmentation().RemoveRepresentation("Binary labelmap")
    again = finish(put_in_scene(volume, labels, small.model(), output, {}))
    # Slicer rounds the corners of surfaces.
    assert 0.9 < (again.rows[0].dice or 0) < 1.0
    assert reference.GetSegmentation().GetNthSegment(0).GetRepresentation("Binary labelmap") is None


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_dice_of_boxes_is_that_of_the_whole_grids(data: st.DataObject) -> None:
    whole, boxes = [], []
    for _ in range(2):
        first = data.draw(st.tuples(*[st.integers(0, 3)] * 3))
        shape = data.draw(st.tuples(*[st.integers(1, 3)] * 3))
        bits = data.draw(st.lists(st.booleans(), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
        values = np.array(bits, np.uint8).reshape(shape)
        grid = np.zeros((6, 6, 6), bool)
        grid[tuple(slice(a, a + n) for a, n in zip(first[::-1], shape))] = values
        whole.append(grid)
        boxes.append(Box(first, values))
    total = whole[0].sum() + whole[1].sum()
    assert dice(*boxes) == (pytest.approx(plain_dice(*whole)) if total else None)


def test_a_segment_edited_meanwhile_is_noticed(held: HeadlessScene, monkeypatch: pytest.MonkeyPatch) -> None:
    from HybridMIMLib.slicer_side import placement

    monkeypatch.setattr(placement, "_PIECE", -1.0)
    volume = small.volume(held.scene)
    node = segmentation_node(held.scene, volume, small.labels(), small.CLASSES, "by hand")
    steps = segment_box(node, "class_7", "looking")
    next(steps)
    node.GetSegmentation().GetSegment("class_7").GetRepresentation("Binary labelmap").Modified()
    with pytest.raises(RunError, match="changed"):
        finish(steps)


def test_surfaces_lie_around_their_voxels_and_are_slicers_own(held: HeadlessScene) -> None:
    volume = small.volume(held.scene)
    node, twin = (segmentation_node(held.scene, volume, small.labels(), small.CLASSES, name) for name in ("a", "b"))
    finish(show_in_3d(node))
    twin.CreateClosedSurfaceRepresentation()
    for one in ("class_2", "class_7"):
        ours, slicers = (x.GetSegmentation().GetSegment(one).GetRepresentation(CLOSED_SURFACE) for x in (node, twin))
        assert ours.GetNumberOfPoints() == slicers.GetNumberOfPoints() > 0
        assert np.allclose(ours.GetBounds(), slicers.GetBounds(), atol=0.2)
    assert node.GetSegmentation().GetSegment("class_5").GetRepresentation(CLOSED_SURFACE).GetNumberOfPoints() == 0
    image = node.GetSegmentation().GetSegment("class_2").GetRepresentation("Binary labelmap")
    assert image_array(image).max() == 7 and node.GetSegmentation().GetNumberOfLayers() == 1, "still shared"


def test_provenance_goes_with_the_scene(held: HeadlessScene, tmp_path: Path) -> None:
    volume = small.volume(held.scene, name='sc"an; a:b <数>')
    settings_ = {"device": "cpu", "folder": Path("Lékař ünï 数 a b"), "clean": {"smallest": [1, 2.5]}, "none": None}
    first = finish(put_in_scene(volume, small.labels(), small.model(), Output(), {"digest": "ab" * 32, **settings_}))
    output = Output("append", first.segmentation, ["Spleen"])
    finish(put_in_scene(volume, small.labels(), small.model(name="other; <&>"), output, {}))
    write_scene(held.scene, tmp_path / "scene.mrb")
    again = read_scene(tmp_path / "scene.mrb")
    node = again.scene.GetFirstNodeByName(first.segmentation.GetName())
    one, two = made_by(node)
    assert (one.model, one.hash, one.trained, one.library) == (
        "organs",
        "ab" * 32,
        "2026-03-01T10:00:00+00:00",
        "0.1.0",
    )
    assert one.settings == {**settings_, "folder": str(settings_["folder"])}
    assert one.segments == {2: "class_2", 5: "class_5", 7: "class_7"} and one.volume == volume.GetName()
    assert (two.model, two.segments, two.hash) == ("other; <&>", {7: "class_7_2"}, "")
    assert one.describe().startswith("organs (abababababab), 20")
    assert node.GetSegmentation().GetSegment("class_7").HasTag("HybridMIM.Model")


def test_what_is_no_provenance_is_none(held: HeadlessScene) -> None:
    node = held.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "x")
    assert made_by(node) == []
    for text in ("", "{", "[1]", '{"a": 1}', '[{"model": 1}]', '[{"model": "a", "segments": {"b": "c"}}]'):
        node.SetAttribute("HybridMIM.MadeBy", text)
        assert made_by(node) == []
    keep_made_by(node, [MadeBy("m")])
    assert made_by(node) == [MadeBy("m")]
    keep_made_by(node, [])
    assert node.GetAttribute("HybridMIM.MadeBy") is None
