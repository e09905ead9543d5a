"""Corrected segmentations on their way into a labelled folder, and the next scan on its way out of the pool."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

import small_scenes as small
from small_runs import write_blobs

from HybridMIMLib.data import labelled_job
from HybridMIMLib.data.check import check_folder
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.layouts import open_dataset
from HybridMIMLib.data.scans import read_label_map, read_scan
from HybridMIMLib.errors import DataError, HybridMIMError, RunError, SettingsError
from HybridMIMLib.slicer_side import correcting, next_scan
from HybridMIMLib.slicer_side.correcting import add_to_folder, case_name, describe, meaning, volume_of, why_not
from HybridMIMLib.slicer_side.next_scan import load_next
from HybridMIMLib.slicer_side.results import Output, put_in_scene
from HybridMIMLib.slicer_side.scene import HeadlessScene, headless_scene
from HybridMIMLib.slicer_side.segments import ijk_to_ras, image_array, segmentation_node, volume_node
from HybridMIMLib.slicer_side.steps import Step, Steps, finish

CLASSES = (LabelClass(2, "Liver", (1, 0, 0), small.LIVER), LabelClass(7, "Spleen", (0, 0, 1), small.SPLEEN))


@pytest.fixture
def held() -> HeadlessScene:
    return headless_scene()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process of its own does is done in this one, which takes less time."""

    def do(module: str, job: Mapping[str, Any], folder: Path, text: str) -> Steps[dict[str, Any]]:
        assert module == "HybridMIMLib.data.labelled_job"
        yield Step(0.0, text)
        # As it is handed over.
        return json.loads(json.dumps(labelled_job.do_job(json.loads(json.dumps(job)), folder)))

    for where in (correcting, next_scan):
        monkeypatch.setattr(where, "in_child", do)


def scan_in(held: HeadlessScene, grid: np.ndarray | None = None, name: str = "scan") -> Any:
    values = np.random.default_rng(0).integers(-1000, 2000, small.SHAPE).astype(np.int16)
    return volume_node(held.scene, values, small.AFFINES["oblique"] if grid is None else grid, name)


def corrected(held: HeadlessScene, volume: Any) -> Any:
    return segmentation_node(held.scene, volume, small.labels(), CLASSES, "result")


@pytest.mark.parametrize("kind", small.AFFINES)
@pytest.mark.parametrize("parent", ["none", "linear", "grid"])
def test_what_is_read_back_is_what_is_in_the_scene(
    held: HeadlessScene, here: None, tmp_path: Path, kind: str, parent: str
) -> None:
    volume = scan_in(held, small.AFFINES[kind])
    small.put_under(volume, small.transform(held.scene, parent))
    result = finish(put_in_scene(volume, small.labels(), small.model(CLASSES), Output(), {}))
    before = small.fingerprint(held.scene)
    added = finish(add_to_folder(volume, result.segmentation, tmp_path / "cases"))
    assert (added.state, added.name) == ("added", "scan")
    scan = read_scan(added.image)
    np.testing.assert_array_equal(scan.array[0], image_array(volume.GetImageData()))
    np.testing.assert_allclose(scan.grid.affine, small.AFFINES[kind], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(read_label_map(added.label, scan.grid).array, small.labels())
    assert [(c.label, c.name) for c in open_dataset(tmp_path / "cases", True).classes] == [
        (2, "Liver"),
        (7, "Spleen"),
    ]
    assert small.fingerprint(held.scene) == before, "the scene is as it was"


@pytest.mark.parametrize("parents", [("none", "linear"), ("linear", "none"), ("grid", "none"), ("linear", "grid")])
def test_under_other_transforms_the_voxels_of_the_volume_count(
    held: HeadlessScene, here: None, tmp_path: Path, parents: tuple[str, str]
) -> None:
    volume, other = scan_in(held), scan_in(held, name="other")
    above, own = (small.transform(held.scene, one, 0.05 if one == "linear" else 1.0) for one in parents)
    node = corrected(held, other)
    small.put_under(volume, above)
    small.put_under(node, own)
    added = finish(add_to_folder(volume, node, tmp_path / "cases"))
    found, grid = read_label_map(added.label).array, small.AFFINES["oblique"]
    # Where each voxel of the volume lies in the world, and which voxel of the segmentation is nearest to it there.
    voxels = np.argwhere(np.ones(small.SHAPE))
    world = small.moved(voxels @ grid[:3, :3].T + grid[:3, 3], above, True)
    inverse = np.linalg.inv(grid)
    there = small.moved(world, own, False) @ inverse[:3, :3].T + inverse[:3, 3]
    nearest = np.rint(there).astype(int)
    inside = ((nearest >= 0) & (nearest < small.SHAPE)).all(axis=1)
    wanted = np.zeros(small.SHAPE, np.uint8)
    wanted[tuple(voxels[inside].T)] = small.labels()[tuple(nearest[inside].T)]
    assert wanted.any()
    # Points half-way between two voxels may go either way.
    close = (np.abs(np.abs(there - nearest) - 0.5) < 1e-3).any(axis=1).reshape(small.SHAPE)
    np.testing.assert_array_equal(np.where(close, 0, found), np.where(close, 0, wanted))


def test_segments_that_were_edited_and_renamed_find_their_class(
    held: HeadlessScene, here: None, tmp_path: Path
) -> None:
    cases = write_blobs(tmp_path / "cases", 2, labelled=True)
    (cases / "classes.json").write_text('{"1": "spleen", "2": "Liver"}')
    volume = scan_in(held)
    node = corrected(held, volume)
    # The user renamed a segment; its terminology still says what it is.
    node.GetSegmentation().GetSegment("class_2").SetName("Segment_1")
    added = finish(add_to_folder(volume, node, cases, name="7"))
    labels = small.labels()
    np.testing.assert_array_equal(read_label_map(added.label).array, 2 * (labels == 2) + (labels == 7))
    assert [one.status for one in check_folder(cases, True)][0] == "good"


def test_segments_that_overlap_are_told(held: HeadlessScene, here: None, tmp_path: Path) -> None:
    volume = scan_in(held)
    node = corrected(held, volume)
    other = corrected(held, volume)
    mask = small.labels() == 2
    mask[3, 4, 3] = False
    third = segmentation_node(held.scene, volume, mask.astype(np.uint8), (LabelClass(1, "Tumour", (1, 1, 0)),), "t")
    node.GetSegmentation().CopySegmentFromSegmentation(third.GetSegmentation(), "class_1")
    with pytest.raises(DataError, match=rf"Liver and Tumour overlap in {mask.sum()} voxels.*Logical operators"):
        finish(add_to_folder(volume, node, tmp_path / "cases"))
    assert not (tmp_path / "cases").exists()
    assert finish(add_to_folder(volume, node, tmp_path / "cases", segments={"class_1", "class_7"})).state == "added"
    assert other.GetSegmentation().GetNumberOfSegments() == 2


def test_what_lies_outside_the_scan_is_left_out_and_told(held: HeadlessScene, here: None, tmp_path: Path) -> None:
    volume = scan_in(held)
    grid = small.AFFINES["oblique"].copy()
    grid[:3, 3] += grid[:3, :3] @ (-4, 0, 2)
    other = volume_node(held.scene, np.zeros(small.SHAPE, np.int16), grid, "other")
    added = finish(add_to_folder(volume, corrected(held, other), tmp_path / "cases"))
    wanted = np.zeros(small.SHAPE, np.uint8)
    wanted[:-4, :, 2:] = small.labels()[4:, :, :-2]
    np.testing.assert_array_equal(read_label_map(added.label).array, wanted)
    lost = {name: int((small.labels() == v).sum() - (wanted == v).sum()) for v, name in ((2, "Liver"), (7, "Spleen"))}
    assert all(lost.values())
    assert added.notes[:2] == tuple(
        f"{n} voxels of {k} lie outside the scan and were left out" for k, n in lost.items()
    )


def test_a_correction_is_offered_and_then_replaces(held: HeadlessScene, here: None, tmp_path: Path) -> None:
    volume = scan_in(held)
    node = corrected(held, volume)
    finish(add_to_folder(volume, node, tmp_path / "cases"))
    assert finish(add_to_folder(volume, node, tmp_path / "cases")).state == "unchanged"
    better = small.labels()
    better[9, 11, 6] = 0
    again = segmentation_node(held.scene, volume, better, CLASSES, "better")
    asked = finish(add_to_folder(volume, again, tmp_path / "cases"))
    assert asked.state == "exists" and "Replace them?" in describe(asked)
    np.testing.assert_array_equal(read_label_map(asked.label).array, small.labels())
    done = finish(add_to_folder(volume, again, tmp_path / "cases", replace=True))
    assert done.state == "replaced" and str(done.kept) in describe(done)
    np.testing.assert_array_equal(read_label_map(done.label).array, better)


def test_a_volume_that_changes_meanwhile_is_not_added(held: HeadlessScene, here: None, tmp_path: Path) -> None:
    volume = scan_in(held)
    steps = add_to_folder(volume, corrected(held, volume), tmp_path / "cases")
    next(steps)
    volume.GetImageData().GetPointData().GetScalars().Modified()
    with pytest.raises(RunError, match="was changed or removed"):
        finish(steps)
    assert not (tmp_path / "cases").exists()


def test_closed_early_it_leaves_nothing(held: HeadlessScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = scan_in(held)
    monkeypatch.setattr("HybridMIMLib.slicer_side.job_folder.temporary_root", lambda: tmp_path)
    for count in (1, 5, 12):
        steps = add_to_folder(volume, corrected(held, volume), tmp_path / "cases")
        for _ in range(count):
            next(steps)
        steps.close()
        end = time.monotonic() + 10
        while list(tmp_path.iterdir()) and time.monotonic() < end:
            time.sleep(0.01)
        assert list(tmp_path.iterdir()) == []


def test_a_process_of_its_own_does_it(held: HeadlessScene, unicode_folder: Path) -> None:
    volume = scan_in(held, small.AFFINES["sheared"])
    node = corrected(held, volume)
    texts = []
    added = finish(add_to_folder(volume, node, unicode_folder / "cases"), lambda step: texts.append(step))
    np.testing.assert_array_equal(read_label_map(added.label).array, small.labels())
    assert all(0 <= step.fraction <= 1 and step.text for step in texts)
    node.GetSegmentation().GetSegment("class_2").SetName("Kidney")
    node.GetSegmentation().GetSegment("class_2").RemoveTag("TerminologyEntry")
    with pytest.raises(RunError, match="the segment.s. Kidney are no classes of .*Rename them after a class"):
        finish(add_to_folder(volume, node, unicode_folder / "cases"))


def test_what_is_missing_is_told_first(held: HeadlessScene, tmp_path: Path) -> None:
    volume = scan_in(held)
    node = corrected(held, volume)
    empty = held.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    nothing = held.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "nothing")
    assert why_not(volume, node, "cases") == ""
    assert "No scan is chosen" in why_not(None, node, "cases")
    assert "holds no voxels" in why_not(empty, node, "cases")
    assert "No segmentation" in why_not(volume, volume, "cases")
    assert "nothing has 0 segments" in why_not(volume, nothing, "cases")
    assert "No labelled folder" in why_not(volume, node, " ")
    with pytest.raises(SettingsError, match="no segment is chosen"):
        next(add_to_folder(volume, node, tmp_path / "cases", segments=set()))
    assert volume_of(node) is volume and volume_of(nothing) is None


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("scan", "scan"),
        ("3: Ax T1 / post", "3- Ax T1 - post"),
        ("liver_7.nii.gz", "liver_7"),
        ("Lékař 数", "Lékař 数"),
        ("..\\..\\x", "x"),
        ("a.seg", "a-seg"),
        ("", "scan"),
        ("???", "scan"),
    ],
)
def test_volumes_give_their_cases_names_that_files_can_have(held: HeadlessScene, given: str, name: str) -> None:
    volume = scan_in(held, name="x")
    volume.SetName(given)
    assert case_name(volume) == name


def test_terminology_in_words() -> None:
    assert meaning(small.SPLEEN) == "Spleen"
    left = small.SPLEEN.replace("SCT^78961009^Spleen~^^", "SCT^64033007^Kidney~SCT^7771000^Left")
    assert meaning(left) == "Left Kidney"
    assert [meaning(text) for text in ("", "~", "a~b", "~~^^~")] == ["", "", "", ""]


# --- the next scan ------------------------------------------------------------------------------------------


@pytest.fixture
def ranking(tmp_path: Path) -> Path:
    pool = write_blobs(tmp_path / "pool", 3, labelled=False, seed=9) / "images"
    rows = [
        {"rank": rank, "scan": str(pool / f"blob_{number}.nii.gz"), "score": 0.5 / rank, "found": rank < 3}
        for rank, number in enumerate((1, 2, 0), 1)
    ]
    folder = tmp_path / "ranked"
    folder.mkdir()
    (folder / "ranking.json").write_text(json.dumps(rows))
    return folder


def test_scans_are_loaded_in_their_order_until_none_is_left(
    held: HeadlessScene, here: None, tmp_path: Path, ranking: Path
) -> None:
    loaded = []
    while (found := finish(load_next(ranking, tmp_path / "cases", held.scene))).volume is not None:
        loaded.append(found)
    assert [(one.volume.GetName(), one.rank) for one in loaded] == [("blob_1", 1), ("blob_2", 2), ("blob_0", 3)]
    assert "number 1 of the ranking (uncertainty 0.50)." in next_scan.describe(loaded[0])
    assert "the model found nothing in it" in next_scan.describe(loaded[2])
    assert next_scan.describe(found).startswith("No scan is left")
    volume = loaded[0].volume
    scan = read_scan(tmp_path / "pool" / "images" / "blob_1.nii.gz")
    np.testing.assert_array_equal(image_array(volume.GetImageData()), scan.array[0])
    np.testing.assert_allclose(ijk_to_ras(volume), scan.grid.affine, rtol=0, atol=1e-12)
    display = volume.GetDisplayNode()
    assert not display.GetAutoWindowLevel() and display.GetColorNode() is not None
    assert scan.array.min() <= display.GetWindowLevelMin() < display.GetWindowLevelMax() <= scan.array.max()


def test_what_was_labelled_is_not_offered_again(
    held: HeadlessScene, here: None, tmp_path: Path, ranking: Path
) -> None:
    first = finish(load_next(ranking, tmp_path / "cases", held.scene))
    labels = np.zeros(first.volume.GetImageData().GetDimensions(), np.uint8)
    labels[3:5] = 1
    node = segmentation_node(held.scene, first.volume, labels, (LabelClass(1, "Bright", (1, 0, 0)),), "mine")
    finish(add_to_folder(first.volume, node, tmp_path / "cases", name="renamed"))
    held.scene.RemoveNode(first.volume)
    second = finish(load_next(ranking, tmp_path / "cases", held.scene))
    assert (second.volume.GetName(), second.rank, second.labelled) == ("blob_2", 2, 1)


def test_without_a_ranking_nothing_is_loaded(held: HeadlessScene, here: None, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no ranking. Rank the scans first"):
        finish(load_next(tmp_path, tmp_path / "cases", held.scene))
    (tmp_path / "ranking.json").write_text("[1]")
    with pytest.raises(HybridMIMError, match="is no ranking"):
        finish(load_next(tmp_path, tmp_path / "cases", held.scene))
    with pytest.raises(SettingsError, match="No model is chosen"):
        next_scan.start_ranking(str(tmp_path), "")
    with pytest.raises(SettingsError, match="not there"):
        next_scan.start_ranking(str(tmp_path / "no"), "m")


def test_no_piece_of_loading_takes_long(held: HeadlessScene, here: None, tmp_path: Path) -> None:
    """The last piece, which puts the volume into the scene; with 20 million voxels."""
    shape = (256, 256, 300)
    scalars, got = next_scan.read_voxels(_saved(tmp_path, np.ones(shape[::-1], np.int16)))
    about = {"name": "large", "scan": "x", "affine": np.eye(4).tolist(), "window": [0.0, 1.0]}
    began = time.perf_counter()
    node = next_scan.add_volume(held.scene, about, scalars, got)
    assert time.perf_counter() - began < 0.2
    assert node.GetImageData().GetDimensions() == shape


def _saved(folder: Path, array: np.ndarray) -> Path:
    np.save(folder / "voxels.npy", array)
    return folder / "voxels.npy"


def test_a_real_scan_comes_back_as_it_was(held: HeadlessScene, here: None, tmp_path: Path, shared_data: Path) -> None:
    image = sorted((shared_data / "hippocampus_mr" / "imagesTr").glob("*.nii.gz"))[0]
    scan = read_scan(image)
    labels = read_label_map(shared_data / "hippocampus_mr" / "labelsTr" / image.name).array
    classes = (LabelClass(1, "Anterior", (1, 0, 0)), LabelClass(2, "Posterior", (0, 1, 0)))
    volume = volume_node(held.scene, scan.array[0], scan.grid.affine, image.name)
    node = segmentation_node(held.scene, volume, labels, classes, "corrected")
    added = finish(add_to_folder(volume, node, tmp_path / "cases"))
    back = read_scan(added.image)
    np.testing.assert_array_equal(back.array, scan.array)
    assert back.grid.same_as(scan.grid, 1e-9) and back.array.dtype == scan.array.dtype
    np.testing.assert_array_equal(read_label_map(added.label, back.grid).array, labels)
    assert added.name == image.name.removesuffix(".nii.gz")


def test_the_window_never_loads_what_reads_scans() -> None:
    modules = "batch, correcting, next_scan, repair, environment, device_probe, installed, child_steps"
    program = (
        f"import sys; from HybridMIMLib.slicer_side import {modules}; "
        "print(*{'torch', 'monai', 'nibabel', 'pydicom', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
