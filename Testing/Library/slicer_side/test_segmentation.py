"""A volume of a scene becomes a segmentation: real child process, a model whose answer is known, no GUI."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

pytest.importorskip("slicer", reason="needs slicer-core")

import slicer
import vtk
import vtk.util.numpy_support
from small_runs import UNICODE_NAME, finish, save_threshold_model

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.model_description import ModelDescription, read_description
from HybridMIMLib.errors import DataError, LabelError, ModelError, RunError
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED, STOPPED, Job
from HybridMIMLib.slicer_side.scene import HeadlessScene, headless_scene
from HybridMIMLib.slicer_side.segmentation import SegmentationJob, read_labels, segment, why_not
from HybridMIMLib.slicer_side.segments import label_array, volume_node

SHAPE = (20, 24, 22)
BOX = (slice(5, 12), slice(6, 15), slice(4, 18))
AFFINES = {
    "straight": np.diag([1.0, 1.0, 1.0, 1.0]),
    "oblique, flipped": np.array([[-0.9, 0.1, 0, 31.123], [-0.1, 1.1, 0.2, 4], [0, 0.3, 1.2, -5.5], [0, 0, 0, 1.0]]),
    "sheared": np.array([[1.0, 0, 0.3, 1], [0, 1, 0, 2], [0, 0, 1.1, 3], [0, 0, 0, 1.0]]),
    "axes swapped": np.array([[0, 0, 1.1, 3.0], [1.0, 0, 0, 5], [0, -1.0, 0, 7], [0, 0, 0, 1.0]]),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelDescription:
    folder = tmp_path_factory.mktemp(UNICODE_NAME) / "model"
    return read_description(save_threshold_model(folder, "Threshold 数"))


@pytest.fixture
def held() -> HeadlessScene:
    return headless_scene()


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go; with a name that is hard on programs."""
    folder = tmp_path / UNICODE_NAME
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def bright_box() -> np.ndarray:
    array = np.zeros(SHAPE, dtype=np.int16)
    array[BOX] = 400
    return array


def add_volume(held: HeadlessScene, affine: np.ndarray | None = None, name: str = "Box / 数") -> object:
    return volume_node(held.scene, bright_box(), AFFINES["straight"] if affine is None else affine, name)


def contents(scene: object) -> list[str]:
    return sorted(scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes()))


def leftovers(folder: Path) -> list[str]:
    """What jobs left; a scene keeps a folder of its own as long as it lives."""
    return [one.name for one in folder.iterdir() if not one.name.startswith("hybridmim-scene")]


@pytest.mark.parametrize("kind", AFFINES)
def test_the_segments_are_where_the_voxels_are(
    held: HeadlessScene, model: ModelDescription, temporary: Path, kind: str
) -> None:
    volume = add_volume(held, AFFINES[kind])
    node = segment(volume, model.path)
    found = label_array(node, volume, model.classes)
    assert (found[BOX] == 3).mean() > 0.9
    outside = np.ones(SHAPE, bool)
    outside[BOX] = False
    assert (found[outside] != 0).mean() < 0.02
    image_to_world = vtk.vtkMatrix4x4()
    node.GetSegmentation().GetNthSegment(0).GetRepresentation("Binary labelmap").GetImageToWorldMatrix(image_to_world)
    there = np.array([image_to_world.GetElement(r, c) for r in range(4) for c in range(4)]).reshape(4, 4)
    np.testing.assert_allclose(there, AFFINES[kind], atol=1e-9)
    names = [node.GetSegmentation().GetNthSegment(i).GetName() for i in range(2)]
    assert names == ["Bright", "Never"]
    assert leftovers(temporary) == []


def test_a_transformed_volume_gives_a_segmentation_under_its_transform(
    held: HeadlessScene, model: ModelDescription
) -> None:
    volume = add_volume(held, AFFINES["oblique, flipped"])
    transform = held.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 7.0)
    transform.SetMatrixTransformToParent(matrix)
    volume.SetAndObserveTransformNodeID(transform.GetID())
    node = segment(volume, model.path)
    assert node.GetTransformNodeID() == transform.GetID()
    assert (label_array(node, volume, model.classes)[BOX] == 3).mean() > 0.9


def test_a_job_tells_what_it_made_and_what_it_did_not_find(held: HeadlessScene, model: ModelDescription) -> None:
    job = finish(SegmentationJob(add_volume(held), model))
    assert job.state == FINISHED
    assert job.empty == ["Never"]
    name = job.segmentation.GetName()
    assert name.startswith("Box / 数 Threshold 数")
    assert job.message == f"Made the segmentation {name}. Not found: Never."
    again = finish(SegmentationJob(job.volume, model))
    assert again.segmentation.GetName() != name


def test_a_volume_that_was_moved_while_it_was_segmented_takes_its_segments_along(
    held: HeadlessScene, model: ModelDescription
) -> None:
    volume = add_volume(held)
    job = SegmentationJob(volume, model)
    volume.SetOrigin(100, 0, 0)
    volume.SetName("Moved")
    assert finish(job).state == FINISHED, job.message
    assert (label_array(job.segmentation, volume, model.classes)[BOX] == 3).mean() > 0.9


def test_voxels_that_were_changed_meanwhile_get_no_segments(held: HeadlessScene, model: ModelDescription) -> None:
    volume = add_volume(held)
    job = SegmentationJob(volume, model)
    slicer.util.arrayFromVolume(volume)[:] = 7
    slicer.util.arrayFromVolumeModified(volume)
    before = contents(held.scene)
    assert finish(job).state == FAILED
    assert "were changed while they were segmented. Segment it again." in job.message
    assert contents(held.scene) == before


@pytest.mark.parametrize("how", ["removed", "scene closed"])
def test_a_volume_that_has_gone_stops_the_job(
    held: HeadlessScene, model: ModelDescription, temporary: Path, how: str
) -> None:
    volume = add_volume(held)
    job = SegmentationJob(volume, model)
    assert job.update()
    held.scene.RemoveNode(volume) if how == "removed" else held.scene.Clear(0)
    assert not job.update(), "at the next look"
    assert job.state == FAILED
    assert "Box / 数 was removed from the scene" in job.message and "Load it again" in job.message
    assert held.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    assert not job._process.running
    assert leftovers(temporary) == []


def test_cancelled_it_leaves_nothing(held: HeadlessScene, model: ModelDescription, temporary: Path) -> None:
    volume = add_volume(held)
    before = contents(held.scene)
    job = SegmentationJob(volume, model)
    job.cancel()
    assert finish(job, 20).state == STOPPED
    assert contents(held.scene) == before
    assert leftovers(temporary) == []


def test_a_killed_process_is_told_and_the_scene_as_it_was(held: HeadlessScene, model: ModelDescription) -> None:
    volume = add_volume(held)
    before = contents(held.scene)
    job = SegmentationJob(volume, model)
    os.kill(job._process.pid, 9)
    assert finish(job).state == FAILED
    assert "memory ran out" in job.message
    assert contents(held.scene) == before


def test_an_error_names_the_volume_and_not_a_temporary_file(held: HeadlessScene, model: ModelDescription) -> None:
    volume = volume_node(held.scene, np.full(SHAPE, np.nan, np.float32), np.eye(4), "All nothing")
    job = finish(SegmentationJob(volume, model))
    assert job.state == FAILED
    assert "olume All nothing: " in job.message and "NaN or infinite" in job.message
    assert "hybridmim-" not in job.message and "scan.nrrd" not in job.message
    assert not any("hybridmim-" in text for text in (*job.progress.lines, *job.said))


def test_a_model_that_has_gone(held: HeadlessScene, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a model package"):
        segment(add_volume(held), tmp_path / "nothing")


def test_a_model_that_goes_while_it_is_loaded(held: HeadlessScene, tmp_path: Path) -> None:
    description = read_description(save_threshold_model(tmp_path / "model"))
    (tmp_path / "model" / "models" / "model.safetensors").write_bytes(b"damaged")
    job = finish(SegmentationJob(add_volume(held), description))
    assert job.state == FAILED and "model.safetensors" in job.message


def test_what_cannot_be_segmented(held: HeadlessScene, model: ModelDescription, temporary: Path) -> None:
    add = held.scene.AddNewNodeByClass
    empty, labels = add("vtkMRMLScalarVolumeNode", "Empty"), add("vtkMRMLLabelMapVolumeNode", "Labels")
    flat = volume_node(held.scene, np.zeros((9, 9, 1), np.int16), np.eye(4), "Flat")
    hollow, colours = add("vtkMRMLScalarVolumeNode", "Hollow"), add("vtkMRMLScalarVolumeNode", "Colours")
    image = vtk.vtkImageData()
    image.SetDimensions(4, 4, 4)
    hollow.SetAndObserveImageData(image)
    image = vtk.vtkImageData()
    image.SetDimensions(4, 4, 4)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    colours.SetAndObserveImageData(image)
    assert "Choose a volume" in why_not(None)
    assert "Labels is no scalar volume" in why_not(labels)
    assert "Empty holds no voxels" in why_not(empty) and "Hollow holds no voxels" in why_not(hollow)
    assert "Flat is a single slice" in why_not(flat)
    assert "Colours has 3 channels" in why_not(colours)
    assert why_not(colours, model) == "Volume Colours has 3 channel(s), and the model Threshold 数 needs 1."
    two = replace(model, channels=2)
    assert "and the model Threshold 数 needs 2" in why_not(add_volume(held), two)
    high = replace(model, classes=(LabelClass(300, "High", (1, 0, 0)),))
    assert "labels above 255" in why_not(add_volume(held), high)
    with pytest.raises(DataError, match="Empty holds no voxels"):
        SegmentationJob(empty, model)
    assert leftovers(temporary) == []


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint8, np.float64])
def test_voxels_of_any_type_are_segmented(held: HeadlessScene, model: ModelDescription, kind: type) -> None:
    volume = add_volume(held)
    image = vtk.vtkImageData()
    scalars = vtk.util.numpy_support.numpy_to_vtk(
        (bright_box() // 4).T.astype(kind).ravel(),
        deep=True,
        array_type=vtk.VTK_LONG_LONG if kind is np.int64 else None,
    )
    image.SetDimensions(SHAPE)
    image.GetPointData().SetScalars(scalars)
    volume.SetAndObserveImageData(image)
    job = finish(SegmentationJob(volume, model))
    assert job.state == FINISHED, job.message
    assert (label_array(job.segmentation, volume, model.classes)[BOX] == 3).mean() > 0.9


def test_an_image_that_lost_its_voxels_meanwhile(held: HeadlessScene, model: ModelDescription) -> None:
    volume = add_volume(held)
    job = SegmentationJob(volume, model)
    volume.SetAndObserveImageData(vtk.vtkImageData())
    assert finish(job).state == FAILED
    assert "were changed while they were segmented" in job.message


def test_a_result_of_another_shape_is_refused(held: HeadlessScene, tmp_path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((3, 4, 5), np.uint8)), str(tmp_path / "labels.nrrd"))
    with pytest.raises(LabelError, match="the result has the shape"):
        read_labels(tmp_path / "labels.nrrd", add_volume(held))
    (tmp_path / "labels.nrrd").write_bytes(b"NRRD?")
    with pytest.raises(LabelError, match="cannot be read"):
        read_labels(tmp_path / "labels.nrrd", add_volume(held))


def test_an_exception_of_the_caller_ends_the_process(held: HeadlessScene, model: ModelDescription) -> None:
    jobs = []

    def fail(job: Job) -> None:
        jobs.append(job)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment(add_volume(held), model.path, on_update=fail)
    assert not jobs[0]._process.running


def test_a_script_may_cancel(held: HeadlessScene, model: ModelDescription) -> None:
    with pytest.raises(RunError, match="Stopped"):
        segment(add_volume(held), model.path, on_update=lambda job: job.cancel())


def test_slicers_process_loads_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from HybridMIMLib.slicer_side import segmentation, training, jobs, models, environment\n"
        "environment.missing_packages(); models.models()\n"
        "print(*sorted({'torch', 'monai', 'ignite', 'nibabel', 'jsonargparse'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
