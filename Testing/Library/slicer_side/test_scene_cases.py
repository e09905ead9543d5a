"""Checked scans come into the scene with their labels, and segmentations of the scene become cases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

import slicer
import small_scenes as small
from small_runs import write_blobs

from HybridMIMLib.data import labelled_job
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.layouts import open_dataset
from HybridMIMLib.data.scans import read_label_map, read_scan, write_image, write_nifti
from HybridMIMLib.errors import DataError, ScanError
from HybridMIMLib.slicer_side import correcting, scene_cases
from HybridMIMLib.slicer_side.correcting import SOURCE, volume_of
from HybridMIMLib.slicer_side.data_check import ScanRow
from HybridMIMLib.slicer_side.results import BACKUP_OF
from HybridMIMLib.slicer_side.scene import HeadlessScene, headless_scene
from HybridMIMLib.slicer_side.scene_cases import (
    SceneCase,
    describe_loaded,
    describe_saved,
    load_scan,
    save_cases,
    segmentations_in,
)
from HybridMIMLib.slicer_side.segments import ijk_to_ras, image_array, label_array, segmentation_node, volume_node
from HybridMIMLib.slicer_side.steps import Step, Steps, finish

BRIGHT, DARK = LabelClass(1, "Bright", (1, 0, 0)), LabelClass(2, "Dark", (0, 0, 1))
CLASSES = (LabelClass(2, "Liver", (1, 0, 0), small.LIVER), LabelClass(7, "Spleen", (0, 0, 1), small.SPLEEN))


@pytest.fixture
def held() -> HeadlessScene:
    return headless_scene()


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process of its own does is done in this one, which takes less time."""

    def do(module: str, job: Mapping[str, Any], folder: Path, text: str) -> Steps[dict[str, Any]]:
        assert module == "HybridMIMLib.data.labelled_job"
        (folder / "job.json").write_text(json.dumps(job))
        yield Step(0.0, text)
        read = labelled_job._read_job(folder / "job.json")
        return json.loads(json.dumps(labelled_job.do_job(read, folder)))

    for where in (correcting, scene_cases):
        monkeypatch.setattr(where, "in_child", do)


@pytest.fixture
def cases(unicode_folder: Path) -> Path:
    return write_blobs(unicode_folder / "cases", 2, labelled=True)


def row(cases: Path, number: int = 0, label: bool = True, images: tuple[Path, ...] = ()) -> ScanRow:
    """As a check tells it."""
    name = f"blob_{number}.nii.gz"
    files = images or (cases / "images" / name,)
    labels = str(cases / "labels" / name) if label else ""
    return ScanRow("good", f"blob_{number}", "", "", "", "1", "", "", tuple(map(str, files)), labels, (1, 2))


def contents(held: HeadlessScene) -> list[str]:
    return [held.scene.GetNthNode(number).GetID() for number in range(held.scene.GetNumberOfNodes())]


def tree_items(held: HeadlessScene) -> int:
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(held.scene)
    return int(tree.GetNumberOfItems()) if tree is not None else 0


# --- loading ------------------------------------------------------------------------------------------------


def test_a_scan_comes_with_its_labels_as_they_are_in_the_file(held: HeadlessScene, cases: Path) -> None:
    loaded = finish(load_scan(row(cases), [DARK, BRIGHT], held.scene))
    [volume], node = loaded.volumes, loaded.segmentation
    scan, label = (read_scan(cases / "images" / "blob_0.nii.gz"), read_label_map(cases / "labels" / "blob_0.nii.gz"))
    np.testing.assert_array_equal(image_array(volume.GetImageData()), scan.array[0])
    np.testing.assert_allclose(ijk_to_ras(volume), scan.grid.affine)
    np.testing.assert_array_equal(label_array(node, volume, (BRIGHT, DARK)), label.array)
    segments = node.GetSegmentation()
    assert [segments.GetNthSegment(n).GetName() for n in range(2)] == ["Bright", "Dark"]
    assert segments.GetNthSegment(1).GetColor() == (0, 0, 1)
    assert volume_of(node) is volume and volume.GetName() == "blob_0"
    assert volume.GetAttribute(SOURCE) == str(cases / "images" / "blob_0.nii.gz")
    assert describe_loaded("blob_0", loaded) == "Loaded blob_0 with its labels: Bright, Dark."


def test_labels_on_an_oblique_grid_lie_where_they_belong(held: HeadlessScene, tmp_path: Path) -> None:
    """Written by what the tests of results trust, and read back as a case."""
    from HybridMIMLib.data.grid import Grid
    from HybridMIMLib.data.scans import write_label_map

    grid = Grid(small.SHAPE, small.AFFINES["oblique"])
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    write_image(tmp_path / "images" / "blob_0.nrrd", small.labels().astype(np.int16) - 5, grid)
    write_label_map(tmp_path / "labels" / "blob_0.nrrd", small.labels(), grid)
    one = row(tmp_path, images=(tmp_path / "images" / "blob_0.nrrd",), label=False)
    one = ScanRow(**{**one.__dict__, "label": str(tmp_path / "labels" / "blob_0.nrrd")})
    loaded = finish(load_scan(one, CLASSES, held.scene))
    np.testing.assert_array_equal(label_array(loaded.segmentation, loaded.volumes[0], CLASSES), small.labels())
    np.testing.assert_allclose(ijk_to_ras(loaded.volumes[0]), grid.affine, atol=1e-9)


def test_a_scan_without_labels_and_one_of_several_channels(held: HeadlessScene, cases: Path) -> None:
    loaded = finish(load_scan(row(cases, label=False), [], held.scene))
    assert loaded.segmentation is None and describe_loaded("blob_0", loaded) == "Loaded blob_0."
    first = cases / "images" / "blob_0.nii.gz"
    scan = read_scan(first)
    second = cases.parent / "t2.nii.gz"
    write_nifti(second, scan.array[0] + 1, scan.grid)
    loaded = finish(load_scan(row(cases, images=(first, second)), [BRIGHT], held.scene))
    assert [one.GetName() for one in loaded.volumes] == ["blob_0 channel 1", "blob_0 channel 2"]
    assert [one.GetAttribute(SOURCE) for one in loaded.volumes] == [str(first), str(second)]
    np.testing.assert_array_equal(image_array(loaded.volumes[1].GetImageData()), scan.array[0] + 1)
    assert describe_loaded("a", loaded) == "Loaded a (2 channels) with its labels: Bright, class 2.", "one is unnamed"


def test_labels_that_cannot_be_used_are_a_note_and_an_empty_map_is_told(held: HeadlessScene, cases: Path) -> None:
    file = cases / "labels" / "blob_0.nii.gz"
    write_nifti(file, np.zeros_like(read_label_map(file).array), read_label_map(file).grid)
    loaded = finish(load_scan(row(cases), [BRIGHT], held.scene))
    assert describe_loaded("a", loaded).endswith("none, the label map is empty.")
    write_nifti(file, np.arange(9000, dtype=np.uint16).reshape(30, 20, 15), read_label_map(file).grid)
    loaded = finish(load_scan(row(cases), [BRIGHT], held.scene))
    assert loaded.segmentation is None and "does not lie on the grid" in loaded.note
    scan = read_scan(cases / "images" / "blob_0.nii.gz")
    many = np.arange(scan.array[0].size).reshape(scan.array[0].shape) % 300
    write_nifti(file, many.astype(np.uint16), scan.grid)
    loaded = finish(load_scan(row(cases), [BRIGHT], held.scene))
    assert loaded.segmentation is None and "holds 299 labels" in describe_loaded("a", loaded)


def test_a_scan_that_cannot_be_read_leaves_the_scene_as_it_was(held: HeadlessScene, cases: Path) -> None:
    before = contents(held)
    (cases / "images" / "blob_0.nii.gz").write_bytes(b"no scan")
    with pytest.raises(ScanError):
        finish(load_scan(row(cases), [BRIGHT], held.scene))
    with pytest.raises(DataError, match="Check the folder again"):
        finish(load_scan(ScanRow(**{**row(cases).__dict__, "images": ()}), [BRIGHT], held.scene))
    assert contents(held) == before


def test_closed_at_any_piece_it_leaves_nothing(held: HeadlessScene, cases: Path) -> None:
    # The tree, once it has been asked for, has an item for the scene.
    tree_items(held)
    finish(load_scan(row(cases, label=False), [], held.scene))
    before, items, count = contents(held), tree_items(held), 0
    while True:
        steps = load_scan(row(cases), [BRIGHT, DARK], held.scene)
        if len(list(islice(steps, count))) < count:
            break
        steps.close()
        assert (contents(held), tree_items(held)) == (before, items), count
        count += 1
    assert count > 4 and len(contents(held)) > len(before), "the last time it came to its end"


def test_what_fails_at_the_end_takes_the_volumes_back(
    held: HeadlessScene, cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree_items(held)
    before = contents(held)

    def fail(*_: object) -> None:
        raise DataError("it broke", cure="Mend it.")

    monkeypatch.setattr(scene_cases, "add_segmentation", fail)
    with pytest.raises(DataError, match="it broke"):
        finish(load_scan(row(cases), [BRIGHT, DARK], held.scene))
    assert [one for one in contents(held) if "ColorTable" not in one] == [
        one for one in before if "ColorTable" not in one
    ]


# --- saving -------------------------------------------------------------------------------------------------


def labelled(held: HeadlessScene, name: str, seed: int, classes: tuple[LabelClass, ...] = CLASSES) -> SceneCase:
    values = np.random.default_rng(seed).integers(-1000, 2000, small.SHAPE).astype(np.int16)
    volume = volume_node(held.scene, values, small.AFFINES["oblique"], name)
    labels = np.where(np.isin(small.labels(), [one.label for one in classes]), small.labels(), 0).astype(np.uint8)
    return SceneCase(segmentation_node(held.scene, volume, labels, classes, f"{name} labels"), volume)


def test_several_are_saved_and_one_that_fails_does_not_keep_the_others(held: HeadlessScene, tmp_path: Path) -> None:
    good, alone, last = (
        labelled(held, "a", 1),
        SceneCase(labelled(held, "b", 2).segmentation, None),
        labelled(held, "c", 3),
    )
    gone = labelled(held, "d", 4)
    held.scene.RemoveNode(gone.volume)
    before = small.fingerprint(held.scene)
    saved = finish(save_cases([good, alone, gone, last], tmp_path / "cases"))
    assert [one.added is not None for one in saved] == [True, False, False, True]
    assert [case.name for case in open_dataset(tmp_path / "cases", True).cases] == ["a", "c"]
    told = describe_saved(saved)
    assert "Saved 2 cases: a, c." in told and "b labels: No scan is chosen. Choose the volume" in told
    assert "d labels: d was removed from the scene. Load it again." in told
    assert small.fingerprint(held.scene) == before, "the scene is as it was"


def test_other_labels_of_a_scan_are_asked_about_and_replaced_on_demand(held: HeadlessScene, tmp_path: Path) -> None:
    case = labelled(held, "a", 1)
    finish(save_cases([case], tmp_path / "cases"))
    [same] = finish(save_cases([case], tmp_path / "cases"))
    assert not same.must_ask and describe_saved([same]) == "1 case with these labels in the folder already: a."
    other = SceneCase(labelled(held, "x", 2, CLASSES[:1]).segmentation, case.volume)
    [asked] = finish(save_cases([other], tmp_path / "cases"))
    assert asked.must_ask and "left with the labels that the folder has: a" in describe_saved([asked])
    [replaced] = finish(save_cases([other], tmp_path / "cases", replace=True))
    assert describe_saved([replaced]).startswith("Replaced the labels of 1 case: a.")
    assert replaced.added is not None and replaced.added.kept is not None and replaced.added.kept.is_dir()


def test_segments_that_are_no_classes_are_refused_or_become_some(held: HeadlessScene, tmp_path: Path) -> None:
    finish(save_cases([labelled(held, "a", 1, CLASSES[:1])], tmp_path / "cases"))
    case = labelled(held, "b", 2)
    [refused] = finish(save_cases([case], tmp_path / "cases"))
    assert "Spleen are no classes" in describe_saved([refused])
    [added] = finish(save_cases([case], tmp_path / "cases", new_classes=True))
    assert added.added is not None
    names = [one.name for one in open_dataset(tmp_path / "cases", True).classes]
    assert names == ["Liver", "Spleen"]


def test_what_was_loaded_from_a_folder_is_known_there(held: HeadlessScene, cases: Path) -> None:
    loaded = finish(load_scan(row(cases), [BRIGHT, DARK], held.scene))
    [again] = finish(save_cases([SceneCase(loaded.segmentation, loaded.volumes[0])], cases))
    assert again.added is not None and (again.added.state, again.added.name) == ("unchanged", "blob_0")


def test_the_list_has_no_backups_and_nothing_hidden(held: HeadlessScene) -> None:
    one, backup, hidden = (labelled(held, name, 1).segmentation for name in "abc")
    backup.SetNodeReferenceID(BACKUP_OF, one.GetID())
    hidden.SetHideFromEditors(True)
    assert segmentations_in(held.scene) == [one]
