"""A sequence of scans gets a sequence of segmentations: in place, in step, whole or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

import small_scenes as small

from HybridMIMLib.errors import HybridMIMError, LabelError, RunError, SettingsError
from HybridMIMLib.slicer_side import sequences
from HybridMIMLib.slicer_side.provenance import made_by
from HybridMIMLib.slicer_side.results import Output, Result, browser_of
from HybridMIMLib.slicer_side.scene import HeadlessScene, headless_scene
from HybridMIMLib.slicer_side.segments import image_array
from HybridMIMLib.slicer_side.sequences import put_sequence_in_scene, restore_sequence, why_no_sequence_output
from HybridMIMLib.slicer_side.steps import finish


@pytest.fixture
def held() -> HeadlessScene:
    return headless_scene()


def maps() -> list[np.ndarray]:
    """One an item: as they are, and with the classes exchanged."""
    labels = small.labels()
    return [labels, np.choose(labels, [0, 0, 7, 0, 0, 0, 0, 2]).astype(np.uint8)]


def put(sequence: Any, output: Output | None = None, labels: Any = None) -> Result:
    labels = maps() if labels is None else labels
    return finish(put_sequence_in_scene(sequence, labels, small.model(), output or Output(), {"digest": "a1"}))


def assert_in_place(browser: Any, result: Result, grids: list[np.ndarray], parent: Any) -> None:
    for number, (labels, grid) in enumerate(zip(maps(), grids, strict=True)):
        small.show_item(browser, number)
        for label in (2, 7):
            wanted = small.expected(labels == label, grid, parent)
            got = small.found(result.segmentation, result.segments[label])
            assert got.shape == wanted.shape and np.abs(got - wanted).max() < 1e-3
        assert len(small.found(result.segmentation, result.segments[5])) == 0


@pytest.mark.parametrize("mode", ["new", "replace", "append"])
@pytest.mark.parametrize("parent", small.PARENTS)
@pytest.mark.parametrize("grid", small.AFFINES)
def test_segments_of_each_item_lie_where_it_does(held: HeadlessScene, grid: str, parent: str, mode: str) -> None:
    shifted = small.AFFINES[grid].copy()
    shifted[:3, 3] += (3.0, -7.0, 1.5)
    grids = [small.AFFINES[grid], shifted]
    scans, browser, shown = small.sequence(held.scene, grids)
    above = small.transform(held.scene, parent)
    small.put_under(shown, above)
    target = put(scans, labels=[labels * 0 + 7 for labels in maps()]).segmentation if mode != "new" else None
    result = put(scans, Output(mode, target))  # type: ignore[arg-type]
    assert browser_of(result.segmentation) is browser, "one slider for both"
    assert_in_place(browser, result, grids, above)
    if mode == "append":
        assert len(small.found(target, "class_7")) == np.prod(small.SHAPE) and result.segments[7] == "class_7_2"
    if mode == "replace":
        assert result.segmentation is target and result.backup is not None


def test_appended_under_another_transform(held: HeadlessScene) -> None:
    grids = [small.AFFINES["oblique"]] * 2
    scans, browser, shown = small.sequence(held.scene, grids)
    target = put(scans).segmentation
    above = small.transform(held.scene, "linear")
    small.put_under(shown, above)
    result = put(scans, Output("append", target))
    assert target.GetTransformNodeID() is None
    assert_in_place(browser, result, grids, above)


def test_what_is_corrected_stays_with_its_item(held: HeadlessScene) -> None:
    scans, browser, _ = small.sequence(held.scene, [np.eye(4)] * 2)
    result = put(scans)
    small.show_item(browser, 1)
    image = result.segmentation.GetSegmentation().GetSegment("class_2").GetRepresentation("Binary labelmap")
    image_array(image)[...] = 2
    image.Modified()
    count = len(small.found(result.segmentation, "class_2"))
    small.show_item(browser, 0)
    assert len(small.found(result.segmentation, "class_2")) == (small.labels() == 2).sum()
    small.show_item(browser, 1)
    assert len(small.found(result.segmentation, "class_2")) == count > (maps()[1] == 2).sum()


def test_a_sequence_without_a_browser_gets_one(held: HeadlessScene) -> None:
    scans, browser, shown = small.sequence(held.scene, [np.eye(4)] * 2)
    held.scene.RemoveNode(browser)
    held.scene.RemoveNode(shown)
    result = put(scans)
    made = browser_of(result.segmentation)
    assert made is not None and made.GetMasterSequenceNode() is scans
    assert_in_place(made, result, [np.eye(4)] * 2, None)


def test_names_table_and_provenance(held: HeadlessScene) -> None:
    scans, browser, _ = small.sequence(held.scene, [np.eye(4)] * 2)
    result = put(scans)
    small.show_item(browser, 1)
    sequence = browser.GetSequenceNode(result.segmentation)
    assert (sequence.GetIndexName(), sequence.GetIndexUnit()) == ("time", "s")
    assert [sequence.GetNthIndexValue(one) for one in range(2)] == ["0", "1"]
    assert result.empty == ["Nothing"]
    content = result.table.GetTable()
    assert [content.GetColumnName(one) for one in range(3)] == ["Item", "Segment", "Volume [ml]"]
    assert [content.GetValue(row, 0).ToString() for row in range(6)] == list("111222")
    assert [made_by(node)[0].hash for node in (result.segmentation, sequence)] == ["a1", "a1"]
    assert made_by(result.segmentation)[0].volume == "time series"
    assert result.segmentation.GetSegmentation().GetSegment("class_2").HasTag("HybridMIM.Label")


@pytest.mark.parametrize("mode", ["new", "append", "replace"])
def test_closed_early_or_failed_leaves_all_as_it_was(
    held: HeadlessScene, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, browser, _ = small.sequence(held.scene, [np.eye(4)] * 2)
    target = put(scans).segmentation
    before, count = everything(held, browser), 0
    for count in range(1, 200):
        steps = put_sequence_in_scene(scans, maps(), small.model(), Output(mode, target), {})  # type: ignore[arg-type]
        try:
            for _ in range(count):
                next(steps)
        except StopIteration:
            break
        steps.close()
        assert everything(held, browser) == before, f"closed after {count}"
    assert 4 < count < 199
    before = everything(held, browser)

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(sequences, "add_table", fail)
    with pytest.raises(MemoryError):
        # Other than before, so that nothing that stays looks as if it had been taken back.
        put(scans, Output(mode, target), maps()[::-1])  # type: ignore[arg-type]
    assert everything(held, browser) == before


def everything(held: HeadlessScene, browser: Any) -> list[list[str]]:
    """The scene with each item shown."""
    seen = []
    for number in (1, 0):
        small.show_item(browser, number)
        seen.append(small.fingerprint(held.scene))
    return seen


def test_replaced_and_taken_back(held: HeadlessScene) -> None:
    scans, browser, _ = small.sequence(held.scene, [np.eye(4)] * 2)
    target = put(scans, labels=[np.full(small.SHAPE, 5, np.uint8)] * 2).segmentation
    result = put(scans, Output("replace", target))
    assert len(small.found(target, "class_5")) == 0
    assert len(made_by(target)) == 1
    restore_sequence(result.backup)
    assert made_by(target)[0].segments[5] == "class_5"
    for number in (0, 1):
        assert len(small.found(target, "class_5")) == np.prod(small.SHAPE)
        small.show_item(browser, number)
    with pytest.raises(SettingsError, match="no backup"):
        restore_sequence(scans)


def test_what_does_not_fit_is_named(held: HeadlessScene) -> None:
    scans, _, _ = small.sequence(held.scene, [small.AFFINES["oblique"]] * 2)
    longer, _, _ = small.sequence(held.scene, [np.eye(4)] * 3, "longer")
    target = put(scans).segmentation
    plain = held.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "plain")
    assert "no sequence" in why_no_sequence_output(scans, Output("append", plain))
    assert "other items" in why_no_sequence_output(longer, Output("replace", target))
    assert "Choose the segmentation" in why_no_sequence_output(longer, Output("replace"))
    assert "no class X" in why_no_sequence_output(scans, Output("replace", target, ["X"]), small.model())
    before = small.fingerprint(held.scene)
    with pytest.raises(LabelError, match="3 items, and there are 2"):
        put(longer)
    with pytest.raises(LabelError, match="item 2"):
        put(scans, labels=[maps()[0], maps()[1][1:]])
    with pytest.raises(SettingsError, match="no sequence"):
        put(scans, Output("append", plain))
    small.put_under(target, small.transform(held.scene, "grid", strength=40.0))
    before = small.fingerprint(held.scene)
    with pytest.raises(HybridMIMError, match="cannot be undone"):
        put(scans, Output("append", target))
    assert small.fingerprint(held.scene) == before


@pytest.mark.parametrize("what", ["removed", "moved", "one item more"])
def test_changes_meanwhile_are_noticed(held: HeadlessScene, what: str) -> None:
    scans, _, shown = small.sequence(held.scene, [np.eye(4)] * 2)
    steps = put_sequence_in_scene(scans, maps(), small.model(), Output(), {})
    next(steps)
    if what == "removed":
        held.scene.RemoveNode(scans)
    elif what == "moved":
        small.put_under(shown, small.transform(held.scene, "linear"))
    else:
        scans.SetDataNodeAtValue(scans.GetNthDataNode(0), "9")
    with pytest.raises(RunError, match="changed or removed"):
        finish(steps)
    assert held.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def dice_of(result: Result) -> list[float | None]:
    return [None if row.dice is None else round(row.dice, 6) for row in result.rows]


@pytest.mark.parametrize("parent", ["none", "grid"])
def test_each_item_is_compared_with_that_of_the_reference(held: HeadlessScene, parent: str) -> None:
    scans, _, shown = small.sequence(held.scene, [small.AFFINES["oblique"]] * 2)
    small.put_under(shown, small.transform(held.scene, parent))
    half = maps()[1].copy()
    half[half == 7] = np.arange((half == 7).sum()) % 2 * 7
    by_hand = put(scans, labels=[maps()[0], half]).segmentation
    result = put(scans, Output(reference=by_hand))
    share = 2 * (half == 7).sum() / ((half == 7).sum() + (maps()[1] == 7).sum())
    assert not result.notes and 0.6 < share < 0.7
    # The class Nothing is empty in both, which is no agreement.
    assert dice_of(result) == [1.0, None, 1.0, 1.0, None, round(share, 6)]
    assert "Dice" in [result.table.GetTable().GetColumnName(one) for one in range(5)]


def test_a_reference_that_no_item_can_be_compared_with_is_told(held: HeadlessScene) -> None:
    scans, _, shown = small.sequence(held.scene, [np.eye(4)] * 2)
    single = held.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "one for all")
    result = put(scans, Output(reference=single))
    assert "not compared with one for all: it shows no sequence" in result.notes[0]
    by_hand = put(scans).segmentation
    small.put_under(shown, small.transform(held.scene, "linear"))
    result = put(scans, Output(reference=by_hand))
    assert "it lies under another transform" in result.notes[0] and set(dice_of(result)) == {None}
