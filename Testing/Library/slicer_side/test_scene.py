"""Files of segmentations and scenes: what is read back is what was written, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

import slicer

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.errors import DiskError
from HybridMIMLib.slicer_side.scene import (
    HeadlessScene,
    headless_scene,
    read_scene,
    show_in_slice_views,
    write_scene,
    write_segmentation,
)
from HybridMIMLib.slicer_side.segments import (
    ijk_to_ras,
    image_array,
    label_array,
    segmentation_node,
    volume_node,
)

CLASSES = (
    LabelClass(2, "Léber", (0.9, 0.1, 0.2), "List~SCT^123037004^Organ~SCT^10200004^Liver~^^~Codes~^^~^^"),
    LabelClass(5, "Nothing", (0.0, 0.6, 0.3)),
    LabelClass(7, "脾", (0.1, 0.2, 0.8)),
)
AFFINE = np.array([[0.0, -0.96, 1.2, 4.0], [1.1, 0.0, 0.0, -5.0], [0.0, 0.28, 4.1, 6.5], [0, 0, 0, 1]])
SHAPE = (11, 14, 8)


def _array() -> np.ndarray:
    return np.random.default_rng(3).normal(size=SHAPE).astype(np.float32)


def _labels() -> np.ndarray:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[1:5, 3:9, 1:4] = 2
    labels[7:9, 9:12, 4:7] = 7
    return labels


@pytest.fixture
def held() -> HeadlessScene:
    held = headless_scene()
    volume = volume_node(held.scene, _array(), AFFINE, "scan")
    segmentation_node(held.scene, volume, _labels(), CLASSES, "result")
    return held


def _check_segments(node: object, volume: object) -> None:
    segmentation = node.GetSegmentation()  # type: ignore[attr-defined]
    assert np.array_equal(label_array(node, volume, CLASSES), _labels())
    for entry in CLASSES:
        segment = segmentation.GetSegment(f"class_{entry.label}")
        assert segment.GetName() == entry.name
        assert segment.GetColor() == pytest.approx(entry.color, abs=1e-5)
    assert segmentation.GetSegment("class_2").GetTerminology() == CLASSES[0].terminology


def test_segmentation_file_round_trip(held: HeadlessScene, unicode_folder: Path) -> None:
    node = held.scene.GetFirstNodeByName("result")
    path = unicode_folder / "résultat 数.seg.nrrd"
    before = held.scene.GetNumberOfNodes()
    write_segmentation(node, path)
    assert [p.name for p in unicode_folder.iterdir()] == [path.name]
    assert node.GetStorageNode() is None
    assert held.scene.GetNumberOfNodes() == before

    other = headless_scene()
    volume = volume_node(other.scene, np.zeros(SHAPE, np.float32), AFFINE, "same grid")
    read = other.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "read")
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(path))
    assert storage.ReadData(read)
    _check_segments(read, volume)


def test_scene_file_round_trip(held: HeadlessScene, unicode_folder: Path) -> None:
    path = unicode_folder / "scène 数.mrb"
    before = held.scene.GetNumberOfNodes()
    write_scene(held.scene, path)
    assert [p.name for p in unicode_folder.iterdir()] == [path.name]
    assert held.scene.GetNumberOfNodes() == before
    assert held.scene.GetFirstNodeByName("result").GetStorageNode() is None
    assert ".tmp-" not in (held.scene.GetURL() or "") + (held.scene.GetRootDirectory() or "")

    read = read_scene(path)
    volume = read.scene.GetFirstNodeByName("scan")
    assert np.array_equal(image_array(volume.GetImageData()), _array())
    assert np.abs(ijk_to_ras(volume) - AFFINE).max() < 1e-6
    _check_segments(read.scene.GetFirstNodeByName("result"), volume)


def test_scene_file_shows_the_scan_in_the_slice_views(held: HeadlessScene, tmp_path: Path) -> None:
    show_in_slice_views(held.scene, held.scene.GetFirstNodeByName("scan"))
    write_scene(held.scene, tmp_path / "scene.mrb")
    read = read_scene(tmp_path / "scene.mrb")
    for name in ("Red", "Yellow", "Green"):
        composite = read.scene.GetNodeByID(f"vtkMRMLSliceCompositeNode{name}")
        assert composite.GetBackgroundVolumeID() == read.scene.GetFirstNodeByName("scan").GetID()


def test_writing_again_replaces_the_file(held: HeadlessScene, tmp_path: Path) -> None:
    path = tmp_path / "scene.mrb"
    path.write_text("older")
    write_scene(held.scene, path)
    write_scene(held.scene, path)
    assert read_scene(path).scene.GetFirstNodeByName("result") is not None


def test_a_failed_write_names_the_file_and_keeps_the_old_one(
    held: HeadlessScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.seg.nrrd"
    path.write_text("older")

    class Broken:
        def SetFileName(self, name: str) -> None:  # noqa: N802
            Path(name).write_text("half")

        def WriteData(self, node: object) -> int:  # noqa: N802
            return 0

    monkeypatch.setattr(slicer, "vtkMRMLSegmentationStorageNode", Broken)
    with pytest.raises(DiskError, match="result.seg.nrrd"):
        write_segmentation(held.scene.GetFirstNodeByName("result"), path)
    assert path.read_text() == "older"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_wrong_names_and_missing_files(held: HeadlessScene, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"\.seg\.nrrd"):
        write_segmentation(held.scene.GetFirstNodeByName("result"), tmp_path / "result.nii.gz")
    with pytest.raises(DiskError, match=r"\.mrb"):
        write_scene(held.scene, tmp_path / "scene.zip")
    with pytest.raises(DiskError, match=r"none\.mrb"):
        read_scene(tmp_path / "none.mrb")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiskError, match="file: is a file where a folder has to be"):
        write_scene(held.scene, tmp_path / "file" / "scene.mrb")


def test_relative_paths_are_where_the_user_is(
    held: HeadlessScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    write_scene(held.scene, Path("below") / "scene.mrb")
    write_segmentation(held.scene.GetFirstNodeByName("result"), Path("result.seg.nrrd"))
    assert (tmp_path / "result.seg.nrrd").stat().st_size > 0
    read = read_scene(Path("below") / "scene.mrb")
    _check_segments(read.scene.GetFirstNodeByName("result"), read.scene.GetFirstNodeByName("scan"))
