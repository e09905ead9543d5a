"""Results in the scene: the right place in the world, whole or not at all, and nothing of the user's touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

import slicer
import small_scenes as small
import vtk
from hypothesis import given, settings
from hypothesis import strategies as st

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.errors import HybridMIMError, LabelError, RunError, SettingsError
from HybridMIMLib.slicer_side import results
from HybridMIMLib.slicer_side.placement import segment_box
from HybridMIMLib.slicer_side.provenance import made_by
from HybridMIMLib.slicer_side.results import Output, Result, backups, put_in_scene, restore, why_no_output
from HybridMIMLib.slicer_side.scene import HeadlessScene, headless_scene, write_segmentation
from HybridMIMLib.slicer_side.segments import segmentation_node, volume_node
from HybridMIMLib.slicer_side.steps import Step, finish
from HybridMIMLib.slicer_side.surfaces import CLOSED_SURFACE, has_surfaces, show_in_3d

OWN = LabelClass(1, "drawn by hand", (0.5, 0.5, 0.5))


@pytest.fixture
def held() -> HeadlessScene:
    return headless_scene()


def put(volume: Any, output: Output | None = None, labels: Any = None, **made_with: Any) -> Result:
    labels = small.labels() if labels is None else labels
    return finish(put_in_scene(volume, labels, small.model(), output or Output(), made_with))


def drawn(held: HeadlessScene, volume: Any, parent: Any = None) -> Any:
    """A segmentation of the user's, with the ids and names that a result has too."""
    labels = np.zeros(small.SHAPE, np.uint8)
    labels[0:3, 0:3, 0:3] = 7
    classes = [LabelClass(7, "Spleen", (0.5, 0.5, 0.5))]
    other = volume if volume is not None else small.volume(held.scene, small.AFFINES["axis-aligned"], "other")
    node = segmentation_node(held.scene, other, labels, classes, "by hand")
    small.put_under(node, parent)
    return node


def assert_in_place(
    node: Any, segments: dict[int, str], grid: np.ndarray, parent: Any, tolerance: float = 1e-3
) -> None:
    for label in (2, 7):
        wanted = small.expected(small.labels() == label, grid, parent)
        got = small.found(node, segments[label])
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() < tolerance
    assert len(small.found(node, segments[5])) == 0


@pytest.mark.parametrize("mode", ["new", "replace", "append"])
@pytest.mark.parametrize("parent", small.PARENTS)
@pytest.mark.parametrize("grid", small.AFFINES)
def test_segments_lie_where_the_scan_does(held: HeadlessScene, grid: str, parent: str, mode: str) -> None:
    volume = small.volume(held.scene, small.AFFINES[grid])
    above = small.transform(held.scene, parent)
    small.put_under(volume, above)
    target = drawn(held, volume, above) if mode != "new" else None
    before = small.found(target, "class_7") if target is not None else np.zeros((0, 3))
    result = put(volume, Output(mode, target))  # type: ignore[arg-type]
    assert_in_place(result.segmentation, result.segments, small.AFFINES[grid], above)
    if mode == "append":
        assert np.array_equal(small.found(target, "class_7"), before)
        assert result.segments[7] == "class_7_2"
    if mode == "replace":
        assert result.segmentation is target
        assert np.array_equal(small.found(result.backup, "class_7"), before)
    assert result.segmentation.GetTransformNodeID() == volume.GetTransformNodeID()


def test_a_differing_parent_transform_is_not_applied_twice(held: HeadlessScene) -> None:
    """Slicer's own import of label maps does, and moves what should move by 7 mm by 14."""
    volume = small.volume(held.scene, np.eye(4))
    moved = small.transform(held.scene, "linear")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 7.0)
    moved.SetMatrixTransformToParent(matrix)
    small.put_under(volume, moved)
    target = drawn(held, None)
    result = put(volume, Output("append", target))
    first = small.found(target, result.segments[7])[0]
    assert first.tolist() == [8.0 + 7.0, 10.0, 5.0]
    assert target.GetTransformNodeID() is None


@pytest.mark.parametrize("mode", ["append", "replace"])
@pytest.mark.parametrize("of_target", ["none", "linear", "grid"])
@pytest.mark.parametrize("of_volume", small.PARENTS)
def test_into_a_segmentation_elsewhere(held: HeadlessScene, of_volume: str, of_target: str, mode: str) -> None:
    """Under another transform and on another grid."""
    grid = small.AFFINES["sheared"]
    volume = small.volume(held.scene, grid)
    above = small.transform(held.scene, of_volume)
    small.put_under(volume, above)
    other = small.transform(held.scene, of_target, strength=-0.7)
    target = drawn(held, None, other)
    before = small.found(target, "class_7")
    result = put(volume, Output(mode, target))  # type: ignore[arg-type]
    if mode == "replace":
        assert_in_place(target, result.segments, grid, above)
        assert np.array_equal(small.found(result.backup, "class_7"), before)
        assert restore(result.backup) is target
    elif {of_volume, of_target} <= {"none", "linear"}:
        assert_in_place(target, result.segments, grid, above)
    else:
        for label in (2, 7):
            wanted = small.nearest(small.labels() == label, grid, above, other)
            got = small.found(target, result.segments[label])
            assert got.shape == wanted.shape
            assert np.abs(got - wanted).max() < 1e-3
            # No farther off than half the diagonal of a voxel, which the warp may stretch.
            reach = 1.3 * np.linalg.norm(np.abs(grid[:3, :3]).sum(axis=1)) / 2
            distances = np.linalg.norm(
                got[:, None] - small.expected(small.labels() == label, grid, above)[None], axis=-1
            )
            assert max(distances.min(axis=1).max(), distances.min(axis=0).max()) < reach
    assert np.array_equal(small.found(target, "class_7"), before)


def test_a_warp_that_cannot_be_undone_is_refused(held: HeadlessScene) -> None:
    volume = small.volume(held.scene)
    target = drawn(held, None, small.transform(held.scene, "grid", strength=40.0))
    before = small.fingerprint(held.scene)
    with pytest.raises(HybridMIMError, match="cannot be undone"):
        put(volume, Output("append", target))
    assert small.fingerprint(held.scene) == before
    small.put_under(volume, target.GetParentTransformNode())
    result = put(volume, Output("append", target))
    assert_in_place(target, result.segments, small.AFFINES["oblique"], target.GetParentTransformNode())


def test_looks_and_place(held: HeadlessScene) -> None:
    volume = small.volume(held.scene)
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(held.scene)
    study = tree.CreateStudyItem(tree.GetSceneItemID(), "study")
    tree.SetItemParent(tree.GetItemByDataNode(volume), study)
    result = put(volume)
    content = result.segmentation.GetSegmentation()
    assert list(content.GetSegmentIDs()) == ["class_2", "class_5", "class_7"]
    for one in small.CLASSES:
        segment = content.GetSegment(f"class_{one.label}")
        assert segment.GetName() == one.name and segment.GetColor() == pytest.approx(one.color)
        assert segment.GetLabelValue() == one.label
        assert not one.terminology or segment.GetTerminology() == one.terminology
    assert result.segmentation.GetName() == "scan organs" and result.empty == ["Nothing"]
    for node in (result.segmentation, result.table):
        assert tree.GetItemParent(tree.GetItemByDataNode(node)) == study
    display = result.segmentation.GetDisplayNode()
    assert display.GetVisibility() and display.GetVisibility2DFill() and display.GetVisibility3D()
    assert content.GetSegment("class_2").GetRepresentation(CLOSED_SURFACE) is None, "surfaces only when asked for"
    assert content.GetNumberOfLayers() == 1, "one image for all"
    assert result.segmentation.GetNodeReference("referenceImageGeometryRef") is volume
    assert put(volume).segmentation.GetName() != result.segmentation.GetName()


@pytest.mark.parametrize("mode", ["new", "append", "replace"])
def test_closed_early_or_failed_leaves_all_as_it_was(
    held: HeadlessScene, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = small.volume(held.scene)
    small.put_under(volume, small.transform(held.scene, "linear"))
    target = drawn(held, volume)
    finish(show_in_3d(target))
    before, count = small.fingerprint(held.scene), 0
    output = Output(mode, target, reference=target)  # type: ignore[arg-type]
    for count in range(1, 200):
        steps = put_in_scene(volume, small.labels(), small.model(), output, {})
        try:
            for _ in range(count):
                next(steps)
        except StopIteration:
            break
        steps.close()
        assert small.fingerprint(held.scene) == before, f"closed after {count}"
    assert 4 < count < 199
    assert small.fingerprint(held.scene) != before, "the last one went through"
    before = small.fingerprint(held.scene)

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(results, "add_table", fail)
    with pytest.raises(MemoryError):
        # Other than before, so that nothing that stays looks as if it had been taken back.
        put(volume, output, small.labels()[::-1])
    assert small.fingerprint(held.scene) == before


def test_an_exception_of_the_caller_ends_it(held: HeadlessScene) -> None:
    volume = small.volume(held.scene)
    before = small.fingerprint(held.scene)

    def stop(step: Step) -> None:
        if step.fraction > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(put_in_scene(volume, small.labels(), small.model(), Output(), {}), stop)
    assert small.fingerprint(held.scene) == before


@pytest.mark.parametrize("what", ["removed", "moved", "re-oriented", "target removed", "scene closed"])
def test_changes_meanwhile_are_noticed(held: HeadlessScene, what: str) -> None:
    volume = small.volume(held.scene)
    target = drawn(held, volume)
    steps = put_in_scene(volume, small.labels(), small.model(), Output("append", target), {})
    next(steps)
    if what == "removed":
        held.scene.RemoveNode(volume)
    elif what == "moved":
        small.put_under(volume, small.transform(held.scene, "linear"))
    elif what == "re-oriented":
        volume.SetSpacing(1, 2, 3)
    elif what == "target removed":
        held.scene.RemoveNode(target)
    else:
        held.scene.Clear(False)
    with pytest.raises(RunError):
        finish(steps)
    assert target.GetSegmentation().GetNumberOfSegments() == 1
    assert held.scene.GetNumberOfNodesByClass("vtkMRMLTableNode") == 0


@pytest.mark.parametrize("mode", ["replace", "append"])
def test_a_target_that_goes_at_the_last_moment(held: HeadlessScene, mode: Any) -> None:
    volume = small.volume(held.scene)
    target = drawn(held, volume)
    steps = put_in_scene(volume, small.labels(), small.model(), Output(mode, target), {})
    while next(steps).text != "Showing the result":
        pass
    held.scene.RemoveNode(target)
    before = small.fingerprint(held.scene)
    with pytest.raises(RunError, match="removed from the scene"):
        finish(steps)
    assert small.fingerprint(held.scene) == before and target.GetSegmentation().GetNumberOfSegments() == 1


def test_what_was_exchanged_is_to_be_saved_again(held: HeadlessScene, tmp_path: Path) -> None:
    volume = small.volume(held.scene)
    target = drawn(held, volume)
    backup = put(volume, Output("replace", target)).backup
    for node in (target, backup):
        node.AddDefaultStorageNode()
        node.GetStorageNode().SetFileName(str(tmp_path / f"{node.GetID()}.seg.nrrd"))
        assert node.GetStorageNode().WriteData(node) and not node.GetModifiedSinceRead()
    restore(backup)
    assert target.GetModifiedSinceRead() and backup.GetModifiedSinceRead(), "or Slicer would not offer to save them"


def test_a_reference_that_cannot_be_compared_with_costs_no_result(held: HeadlessScene) -> None:
    volume = small.volume(held.scene)
    other = finish(put_in_scene(volume, small.labels(), small.model(), Output(), {})).segmentation
    small.put_under(other, small.transform(held.scene, "grid", strength=40.0))
    result = put(volume, Output(reference=other))
    assert "was not compared" in result.notes[0] and "cannot be undone" in result.notes[0]
    assert result.segmentation.GetSegmentation().GetNumberOfSegments() == 3
    assert all(row.dice is None for row in result.rows)


def test_a_reference_with_other_names_is_told(held: HeadlessScene) -> None:
    volume = small.volume(held.scene)
    reference = put(volume).segmentation
    assert put(volume, Output(reference=reference)).notes == []
    content = reference.GetSegmentation()
    for number in range(content.GetNumberOfSegments()):
        content.GetNthSegment(number).SetName(f"Struct {number}")
    [note] = put(volume, Output(reference=reference)).notes
    assert note.startswith(f"nothing could be compared with {reference.GetName()}") and "Struct 1" in note


def test_surfaces_of_what_was_changed_meanwhile_are_not_shown(held: HeadlessScene) -> None:
    node = put(small.volume(held.scene)).segmentation
    steps = show_in_3d(node)
    next(steps)
    node.GetSegmentation().AddEmptySegment("new")
    with pytest.raises(RunError, match="changed while its surfaces were made"):
        finish(steps)
    assert not has_surfaces(node.GetSegmentation())


def test_a_segment_that_goes_while_others_are_measured(held: HeadlessScene) -> None:
    volume = small.volume(held.scene)
    target = drawn(held, volume)
    # Those that are added have an image of their own, so that of the first stays as it was.
    segments = put(volume, Output("append", target)).segments
    steps = segment_box(target, segments[7], "Measuring")
    target.GetSegmentation().RemoveSegment(segments[7])
    with pytest.raises(RunError, match="lost the segment"):
        finish(steps)


def test_replaced_and_taken_back(held: HeadlessScene) -> None:
    volume = small.volume(held.scene)
    target = drawn(held, None, small.transform(held.scene, "linear"))
    target.GetDisplayNode().SetOpacity2DFill(0.123)
    original = small.fingerprint(held.scene)
    looks = [line for line in original if "by hand" in line or line.startswith("  ")]
    result = put(volume, Output("replace", target), digest="a1b2")
    assert backups(target) == [result.backup] and result.backup.GetName() == "by hand (before organs)"
    assert not result.backup.GetDisplayNode().GetVisibility() and target.GetDisplayNode().GetVisibility()
    assert result.backup.GetDisplayNode().GetOpacity2DFill() == pytest.approx(0.123)
    assert made_by(target)[0].hash == "a1b2" and not made_by(result.backup)
    second = put(volume, Output("replace", target))
    assert backups(target) == [result.backup, second.backup]
    assert restore(result.backup) is target
    now = small.fingerprint(held.scene)
    assert [line for line in now if line in looks] == looks
    assert target.GetDisplayNode().GetOpacity2DFill() == pytest.approx(0.123)
    assert not made_by(target) and made_by(result.backup)
    with pytest.raises(SettingsError, match="no backup"):
        restore(target)


def test_surfaces_that_were_shown_are_made_for_what_is_added(held: HeadlessScene) -> None:
    volume = small.volume(held.scene)
    for mode in ("append", "replace"):
        target = drawn(held, volume)
        finish(show_in_3d(target))
        result = put(volume, Output(mode, target))  # type: ignore[arg-type]
        for label, identifier in result.segments.items():
            surface = target.GetSegmentation().GetSegment(identifier).GetRepresentation(CLOSED_SURFACE)
            assert (surface.GetNumberOfPoints() > 0) == (label != 5)


def test_classes_to_keep(held: HeadlessScene) -> None:
    volume = small.volume(held.scene)
    result = put(volume, Output(classes=["Spleen"]))
    assert result.segments == {7: "class_7"} and not result.empty
    image = result.segmentation.GetSegmentation().GetSegment("class_7").GetRepresentation("Binary labelmap")
    assert image.GetScalarRange() == (0, 7) or image.GetScalarRange() == (7, 7)
    assert [row.name for row in result.rows] == ["Spleen"]
    assert "no class Kidney" in why_no_output(Output(classes=["Kidney"]), small.model())
    assert "at least one" in why_no_output(Output(classes=[]), small.model())


def test_overlapping_classes_have_a_mask_each(held: HeadlessScene, tmp_path: Path) -> None:
    import SimpleITK

    volume, labels = small.volume(held.scene), small.labels()
    whole = labels > 0
    SimpleITK.WriteImage(
        SimpleITK.GetImageFromArray(whole.astype(np.uint8).transpose(2, 1, 0)), str(tmp_path / "whole.nrrd")
    )
    layers = {"Spleen": (labels == 7).astype(np.uint8), "Foie gauché": tmp_path / "whole.nrrd"}
    result = put(volume, labels=layers)
    for identifier, mask in (("class_7", labels == 7), ("class_2", whole)):
        wanted = small.expected(mask, small.AFFINES["oblique"], None)
        assert np.abs(small.found(result.segmentation, identifier) - wanted).max() < 1e-3
    assert result.empty == ["Nothing"]


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_every_label_map_comes_out_as_it_went_in(data: st.DataObject) -> None:
    """Also labels above 255, which segments cannot have, and classes that are not kept."""
    held = headless_scene()
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=3, max_size=3)))
    known = data.draw(st.lists(st.integers(1, 1000), min_size=1, max_size=5, unique=True))
    values = st.lists(st.sampled_from([0, *known]), min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))
    labels = np.array(data.draw(values), dtype=data.draw(st.sampled_from(["u2", "i4", ">i2"]))).reshape(shape)
    classes = tuple(LabelClass(one, f"c{one}", (1.0, 0.0, 0.0)) for one in known)
    keep = data.draw(st.one_of(st.none(), st.lists(st.sampled_from([c.name for c in classes]), min_size=1)))
    volume = volume_node(held.scene, np.zeros(shape), np.eye(4), "scan")
    result = finish(put_in_scene(volume, labels, small.model(classes), Output(classes=keep), {}))
    assert set(result.segments) == {c.label for c in classes if keep is None or c.name in keep}
    for label, identifier in result.segments.items():
        assert np.array_equal(
            small.found(result.segmentation, identifier), small.sort_points(np.argwhere(labels == label))
        )


def test_what_does_not_fit_is_named(held: HeadlessScene, tmp_path: Path) -> None:
    volume = small.volume(held.scene)
    before = small.fingerprint(held.scene)
    stranger = small.labels()
    stranger[0, 0, 0] = 9
    (tmp_path / "garbage.nrrd").write_bytes(b"NRRD0004\ngarbage")
    for labels, text in (
        (stranger, r"holds \[9\]"),
        (small.labels()[1:], "shape"),
        (small.labels().astype(np.float32), "whole numbers"),
        (tmp_path / "garbage.nrrd", "cannot be read"),
        (tmp_path / "Lékař ünï 数 a b.nrrd", "cannot be read"),
    ):
        with pytest.raises(LabelError, match=text):
            put(volume, labels=labels)
    assert small.fingerprint(held.scene) == before


def test_where_a_result_cannot_go(held: HeadlessScene) -> None:
    volume = small.volume(held.scene)
    node = drawn(held, volume)
    assert not why_no_output(Output("append", node)) and not why_no_output(Output())
    assert "Choose the segmentation" in why_no_output(Output("append"))
    assert "Choose the segmentation" in why_no_output(Output("replace", volume))
    node.CreateClosedSurfaceRepresentation()
    node.SetSourceRepresentationToClosedSurface()
    assert "not voxels" in why_no_output(Output("append", node))
    with pytest.raises(SettingsError, match="not voxels"):
        put(volume, Output("append", node))
    result = put(volume, Output("replace", node))
    assert_in_place(node, result.segments, small.AFFINES["oblique"], None)
    _, browser, _ = small.sequence(held.scene, [np.eye(4), np.eye(4)])
    contents = held.scene.AddNewNodeByClass("vtkMRMLSequenceNode", "contents")
    for number in range(2):
        contents.SetDataNodeAtValue(drawn(held, volume), str(number))
    shown = drawn(held, volume)
    browser.AddProxyNode(shown, contents, False)
    assert "sequence" in why_no_output(Output("append", shown))


def test_saved_and_read_again(held: HeadlessScene, tmp_path: Path) -> None:
    """The file of a segmentation keeps place, names, labels and the model."""
    volume = small.volume(held.scene, small.AFFINES["flipped"])
    result = put(volume, digest="abcdef0123456789")
    write_segmentation(result.segmentation, tmp_path / "a.seg.nrrd")
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(tmp_path / "a.seg.nrrd"))
    again = held.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "again")
    assert storage.ReadData(again)
    assert_in_place(again, result.segments, small.AFFINES["flipped"], None)
    segment = again.GetSegmentation().GetSegment("class_7")
    assert segment.GetLabelValue() == 7 and segment.GetName() == "Spleen"
    assert segment.GetTerminology() == small.SPLEEN


@pytest.mark.parametrize(
    ("given_mode", "has_target", "mode"),
    [(None, False, "new"), (None, True, "replace"), ("append", True, "append"), ("new", True, "new")],
)
def test_what_scripts_mean(held: HeadlessScene, given_mode: Any, has_target: bool, mode: str) -> None:
    target = held.scene.AddNewNodeByClass("vtkMRMLSegmentationNode") if has_target else None
    assert Output.into(target, given_mode, ["Bright"], held) == Output(mode, target, ["Bright"], reference=held)  # type: ignore[arg-type]
