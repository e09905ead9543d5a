"""Something in a scene becomes a segmentation: real worker process, a model whose answer is known, no GUI."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

import slicer
import vtk
import vtk.util.numpy_support
from small_runs import UNICODE_NAME, has_ended, save_threshold_model

from HybridMIMLib.data.model_description import ModelDescription, read_description
from HybridMIMLib.errors import DataError, HybridMIMError, ModelError, RunError, SettingsError
from HybridMIMLib.slicer_side import segmentation, voxels, worker_client
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED, RUNNING, STOPPED, STOPPING
from HybridMIMLib.slicer_side.provenance import made_by
from HybridMIMLib.slicer_side.scene import HeadlessScene, headless_scene
from HybridMIMLib.slicer_side.segmentation import Output, SegmentationJob, segment
from HybridMIMLib.slicer_side.segments import label_array, volume_node
from HybridMIMLib.slicer_side.warm_worker import WarmWorker, warm_worker

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


@pytest.fixture
def fake_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Have a small program in place of the worker: ``take()`` gives it a request, ``say(...)`` answers."""
    begin = (
        "import json, os, sys, time\n"
        "def take(): return json.loads(sys.stdin.readline())\n"
        "def say(**answer): print(json.dumps(answer), flush=True)\n"
    )

    def use(program: str) -> None:
        monkeypatch.setattr(worker_client, "library_command", lambda *_: [sys.executable, "-c", begin + program])

    # One of its own: the shared one stays warm.
    own = WarmWorker()
    monkeypatch.setattr(segmentation, "warm_worker", lambda: own)
    yield use
    own.close()


@pytest.fixture
def piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """One piece of work a look."""
    monkeypatch.setattr(segmentation, "_BUDGET", 0)


def bright_box() -> np.ndarray:
    array = np.zeros(SHAPE, dtype=np.int16)
    array[BOX] = 400
    return array


def add_volume(held: HeadlessScene, affine: np.ndarray | None = None, name: str = "Box / 数") -> Any:
    return volume_node(held.scene, bright_box(), AFFINES["straight"] if affine is None else affine, name)


def contents(scene: Any) -> list[str]:
    return sorted(scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes()))


def leftovers(folder: Path) -> list[str]:
    """What jobs left; a scene keeps a folder of its own as long as it lives."""
    return [one.name for one in folder.iterdir() if not one.name.startswith("hybridmim-scene")]


def finish(job: SegmentationJob, seconds: float = 60) -> SegmentationJob:
    end = time.monotonic() + seconds
    while job.update():
        assert time.monotonic() < end, "the job does not end"
        time.sleep(0.005)
    return job


def until(job: SegmentationJob, is_so: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert job.update() and time.monotonic() < end, job.message
        time.sleep(0.002)


def asked(job: SegmentationJob) -> bool:
    return job._is_open


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
    assert job.state == FINISHED, job.message
    assert job.empty == ["Never"]
    name = job.segmentation.GetName()
    assert name.startswith("Box / 数 Threshold 数")
    assert job.message == f"Made the segmentation {name}. Not found: Never."
    assert any("Bright" in line and " ml" in line for line in job.progress.lines)
    (made,) = made_by(job.segmentation)
    assert made.model == "Threshold 数" and len(made.hash) == 64
    assert made.settings["inputs"]["nodes"][0]["name"] == "Box / 数" and made.settings["device"]
    assert str(job.folder) not in str(made.settings)
    pid = warm_worker().pid
    again = finish(SegmentationJob(job.volume, model))
    assert again.segmentation.GetName() != name
    assert warm_worker().pid == pid, "the model stays loaded"


def test_two_at_once_get_each_its_own(held: HeadlessScene, model: ModelDescription) -> None:
    first = SegmentationJob(add_volume(held, name="First"), model)
    second = SegmentationJob(add_volume(held, AFFINES["sheared"], name="Second"), model)
    while first.update() | second.update():
        time.sleep(0.005)
    assert [one.segmentation.GetName() for one in (first, second)] == ["First Threshold 数", "Second Threshold 数"]
    for one in (first, second):
        assert (label_array(one.segmentation, one.volume, model.classes)[BOX] == 3).mean() > 0.9


def test_an_empty_result_is_told_and_has_its_segments(held: HeadlessScene, model: ModelDescription) -> None:
    # Hardly anything is brighter than the mean.
    array = np.full(SHAPE, 400, np.int16)
    array[0, 0, :3] = 0
    job = finish(SegmentationJob(volume_node(held.scene, array, np.eye(4), "Flat"), model))
    assert job.state == FINISHED
    assert job.message.endswith("Not found: Bright, Never.")
    assert job.segmentation.GetSegmentation().GetNumberOfSegments() == 2
    assert any("nothing was found" in line for line in job.progress.lines)


@pytest.mark.parametrize("normalisation", ["percentiles", "window"])
def test_a_region_of_interest_is_all_that_is_segmented(
    held: HeadlessScene, tmp_path: Path, normalisation: str
) -> None:
    model = read_description(save_threshold_model(tmp_path / "model", normalisation=normalisation))
    array = np.zeros((90, 24, 22), np.int16)
    array[5:12, 6:15, 4:18] = array[70:77, 6:15, 4:18] = 400
    affine = np.array([[-1.0, 0, 0, 30], [0, 0, 1.0, 4], [0, 1.0, 0, -5], [0, 0, 0, 1.0]])
    volume = volume_node(held.scene, array, affine, "Two")
    roi = held.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Half")
    roi.SetCenter(*(affine @ [8, 9, 11, 1])[:3])
    roi.SetSize(10, 30, 9)
    job = SegmentationJob(volume, model, roi=roi)
    held.scene.RemoveNode(roi)
    assert finish(job).state == FINISHED, job.message
    found = label_array(job.segmentation, volume, model.classes)
    # 4.5 voxels to each side of the centre along j, in this affine the third axis of the world.
    assert (found[5:12, 6:14, 4:18] == 3).mean() > 0.9
    found[3:14, 5:14] = 0
    assert not found.any()
    (made,) = made_by(job.segmentation)
    assert made.settings["region"] == {"name": "Half", "lower": [3, 5, 0], "upper": [14, 14, 22]}


def test_channels_are_given_by_name(held: HeadlessScene, tmp_path: Path) -> None:
    model = read_description(save_threshold_model(tmp_path / "model", channels=2))
    dark = volume_node(held.scene, np.random.default_rng(0).normal(size=SHAPE), np.eye(4), "Dark")
    bright = add_volume(held)
    node = segment({"channel 1": dark, "channel 0": bright}, model.path)
    assert (label_array(node, bright, model.classes)[BOX] == 3).mean() > 0.9
    swapped = segment([dark, bright], model.path)
    assert (label_array(swapped, bright, model.classes)[BOX] == 3).mean() < 0.5, "the order counts"
    moved = add_volume(held, np.diag([1.0, 1.0, 1.5, 1.0]), "Other")
    with pytest.raises(DataError, match="The voxels of Other lie up to 11 mm away from those of Box"):
        segment([bright, moved], model.path)


def test_each_item_of_a_sequence_is_segmented(held: HeadlessScene, model: ModelDescription, temporary: Path) -> None:
    boxes = [BOX, (slice(9, 16), slice(6, 15), slice(4, 18))]
    sequence = held.scene.AddNewNodeByClass("vtkMRMLSequenceNode", "Heart")
    for item, box in enumerate(boxes):
        array = np.zeros(SHAPE, np.int16)
        array[box] = 400
        volume = volume_node(held.scene, array, AFFINES["oblique, flipped"], "item")
        sequence.SetDataNodeAtValue(volume, str(item))
        held.scene.RemoveNode(volume)
    job = SegmentationJob(sequence, model)
    assert finish(job).state == FINISHED, job.message
    assert len(job.answers) == 2 and job.empty == ["Never"]
    found = held.scene.GetFirstNodeByName("Heart")
    assert found is sequence and job.segmentation.GetSegmentation().GetNumberOfSegments() == 2
    (results,) = [
        node
        for node in (held.scene.GetNthNodeByClass(n, "vtkMRMLSequenceNode") for n in range(2))
        if node is not sequence
    ]
    for item, box in enumerate(boxes):
        segment_of = results.GetNthDataNode(item).GetSegmentation().GetNthSegment(0)
        image = segment_of.GetRepresentation("Binary labelmap")
        extent = image.GetExtent()
        assert abs(extent[0] - box[0].start) <= 1 and abs(extent[1] + 1 - box[0].stop) <= 1
    assert leftovers(temporary) == []


def test_chosen_classes_alone_are_kept_and_others_replaced(held: HeadlessScene, model: ModelDescription) -> None:
    volume = add_volume(held)
    node = segment(volume, model.path, output=Output(classes=["Bright"]))
    assert [node.GetSegmentation().GetNthSegment(0).GetName()] == ["Bright"]
    assert node.GetSegmentation().GetNumberOfSegments() == 1
    again = segment(volume, model.path, output=Output("replace", node))
    assert again is node and node.GetSegmentation().GetNumberOfSegments() == 2
    with pytest.raises(SettingsError, match="has no class Liver"):
        segment(volume, model.path, output=Output(classes=["Liver"]))


def test_a_volume_that_was_moved_while_it_was_segmented_takes_its_segments_along(
    held: HeadlessScene, model: ModelDescription
) -> None:
    volume = add_volume(held)
    job = SegmentationJob(volume, model)
    volume.SetOrigin(100, 0, 0)
    volume.SetName("Moved")
    assert finish(job).state == FINISHED, job.message
    assert (label_array(job.segmentation, volume, model.classes)[BOX] == 3).mean() > 0.9


@pytest.mark.parametrize("when", ["at once", "while it is segmented", "replaced by nothing"])
def test_voxels_that_were_changed_meanwhile_get_no_segments(
    held: HeadlessScene, model: ModelDescription, temporary: Path, when: str
) -> None:
    volume = add_volume(held)
    job = SegmentationJob(volume, model)
    if when == "while it is segmented":
        until(job, lambda: asked(job))
    if when == "replaced by nothing":
        volume.SetAndObserveImageData(vtk.vtkImageData())
    else:
        slicer.util.arrayFromVolume(volume)[:] = 7
        slicer.util.arrayFromVolumeModified(volume)
    before = contents(held.scene)
    assert finish(job).state == FAILED
    assert "were changed while they were segmented. Segment it again." in job.message
    assert contents(held.scene) == before and leftovers(temporary) == []


@pytest.mark.usefixtures("piece_by_piece")
@pytest.mark.parametrize("how", ["removed", "scene closed"])
@pytest.mark.parametrize("when", ["at once", "while it is segmented", "while segments are made"])
def test_a_volume_that_has_gone_stops_the_job(
    held: HeadlessScene, model: ModelDescription, temporary: Path, how: str, when: str
) -> None:
    volume = add_volume(held)
    job = SegmentationJob(volume, model)
    if when == "while it is segmented":
        until(job, lambda: asked(job))
    if when == "while segments are made":
        until(job, lambda: len(job.answers) > 0)
    held.scene.RemoveNode(volume) if how == "removed" else held.scene.Clear(0)
    assert finish(job).state == FAILED
    assert "Box / 数 was removed from the scene" in job.message and "Load it again" in job.message
    assert held.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    assert leftovers(temporary) == []


@pytest.mark.parametrize("mode", ["replace", "append"])
def test_a_segmentation_to_replace_that_goes_meanwhile(
    held: HeadlessScene, model: ModelDescription, mode: Any
) -> None:
    volume = add_volume(held)
    node = segment(volume, model.path)
    job = SegmentationJob(volume, model, output=Output(mode, node))
    until(job, lambda: asked(job))
    held.scene.RemoveNode(node)
    before = contents(held.scene)
    assert finish(job).state == FAILED and contents(held.scene) == before
    assert f"The segmentation {node.GetName()}," in job.message and "was removed from the scene" in job.message
    assert not job.answers, "nobody waits for a result that has no place to go"


@pytest.mark.usefixtures("piece_by_piece")
@pytest.mark.parametrize("when", ["at once", "while it is segmented", "while segments are made"])
def test_cancelled_it_leaves_nothing(
    held: HeadlessScene, model: ModelDescription, temporary: Path, when: str
) -> None:
    volume = add_volume(held)
    before = contents(held.scene)
    job = SegmentationJob(volume, model)
    if when == "while it is segmented":
        until(job, lambda: asked(job))
    if when == "while segments are made":
        until(job, lambda: len(job.answers) > 0)
    began = time.monotonic()
    job.cancel()
    assert job.state == STOPPING and time.monotonic() - began < 0.2
    assert finish(job, 10).state == STOPPED
    assert job.message == "Stopped." and contents(held.scene) == before and leftovers(temporary) == []
    assert finish(SegmentationJob(volume, model)).state == FINISHED, "and the worker goes on"


def test_a_worker_that_does_not_obey_is_killed(
    held: HeadlessScene, model: ModelDescription, temporary: Path, fake_worker: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fake_worker(
        "import signal, subprocess; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "r = take(); say(id=r['id'], event='message', message=str(p.pid)); time.sleep(60)"
    )
    monkeypatch.setattr(SegmentationJob, "SECONDS_TO_END", 0.3)
    job = SegmentationJob(add_volume(held), model)
    pid = segmentation.warm_worker().pid
    until(job, lambda: len(job.progress.lines) > 0)
    child = int(job.progress.lines[0])
    began = time.monotonic()
    job.cancel()
    longest = 0.0
    while not job.ended:
        look = time.monotonic()
        job.update()
        longest = max(longest, time.monotonic() - look)
        time.sleep(0.01)
    assert job.state == STOPPED and 0.25 < time.monotonic() - began < 4 and longest < 0.2
    assert pid is not None and has_ended(pid, 5) and has_ended(child, 5) and leftovers(temporary) == []


def test_killed_it_is_over_at_once(held: HeadlessScene, model: ModelDescription, temporary: Path) -> None:
    job = SegmentationJob(add_volume(held), model)
    until(job, lambda: asked(job))
    began = time.monotonic()
    job.kill()
    assert job.state == STOPPED and time.monotonic() - began < 3 and leftovers(temporary) == []


def test_a_killed_worker_is_told_and_started_again(
    held: HeadlessScene, model: ModelDescription, temporary: Path, fake_worker: Callable[[str], None]
) -> None:
    fake_worker("r = take(); time.sleep(60)")
    volume = add_volume(held)
    before = contents(held.scene)
    job = SegmentationJob(volume, model)
    until(job, lambda: asked(job))
    os.kill(segmentation.warm_worker().pid or 0, 9)
    assert finish(job).state == FAILED
    assert "was killed by the system, most often because memory ran out. Close other programs" in job.message
    assert contents(held.scene) == before and leftovers(temporary) == []
    # One that died while nobody asked is not even noticed.
    segmentation.warm_worker().start()
    pid = segmentation.warm_worker().pid
    assert pid is not None
    os.kill(pid, 9)
    assert has_ended(pid)
    fake_worker(
        "import SimpleITK\nr = take(); SimpleITK.WriteImage(SimpleITK.Cast(SimpleITK.ReadImage(r['scan'][0]) > 0, "
        "SimpleITK.sitkUInt8) * 3, r['output']); say(id=r['id'], event='done'); take()"
    )
    job = finish(SegmentationJob(volume, model))
    assert job.state == FINISHED, job.message
    assert (label_array(job.segmentation, volume, model.classes)[BOX] == 3).all()


def test_garbage_from_the_worker_does_not_hurt(
    held: HeadlessScene, model: ModelDescription, temporary: Path, fake_worker: Callable[[str], None]
) -> None:
    fake_worker(
        "r = take()\n"
        'os.write(1, os.urandom(3 * 2**20) + b\'\\n[[[\\nnull\\n{"id": [1], "event": {}}\\n\')\n'
        "say(id=r['id'], event='progress', phase=[], done='x', of=None, seconds_left='soon')\n"
        "say(id=r['id'], event='message', message=7); say(id='other', event='done'); sys.exit(0)"
    )
    volume = add_volume(held)
    before = contents(held.scene)
    job = finish(SegmentationJob(volume, model))
    assert job.state == FAILED and "ended with exit code 0 and no result" in job.message
    assert contents(held.scene) == before and leftovers(temporary) == []


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("open(r['output'], 'wb').write(b'NRRD?')", "the result cannot be read"),
        ("pass", "the result cannot be read"),
        ("SimpleITK.WriteImage(SimpleITK.Image(3, 4, 5, SimpleITK.sitkUInt8), r['output'])", "shape"),
        ("SimpleITK.WriteImage(SimpleITK.Image(20, 24, 22, SimpleITK.sitkUInt8) + 9, r['output'])", "holds [9]"),
    ],
)
def test_a_damaged_result_changes_nothing(
    held: HeadlessScene, model: ModelDescription, temporary: Path, fake_worker: Callable[[str], None],
    written: str, said: str,
) -> None:  # fmt: skip
    fake_worker(f"import SimpleITK\nr = take(); {written}\nsay(id=r['id'], event='done'); take()")
    volume = add_volume(held)
    before = contents(held.scene)
    job = finish(SegmentationJob(volume, model))
    assert job.state == FAILED and said in job.message
    assert str(job.folder) not in job.message
    assert contents(held.scene) == before and leftovers(temporary) == []


def test_what_the_worker_says_of_memory_reaches_the_user(
    held: HeadlessScene, model: ModelDescription, fake_worker: Callable[[str], None]
) -> None:
    fake_worker(
        "r = take(); say(id=r['id'], event='failed', message='out of memory', cure='Close programs.'); take()"
    )
    job = finish(SegmentationJob(add_volume(held), model))
    assert job.state == FAILED and job.message == "out of memory. Close programs."


def test_a_device_that_is_gone_is_named(held: HeadlessScene, model: ModelDescription) -> None:
    job = finish(SegmentationJob(add_volume(held), model, "cuda:7"))
    assert job.state == FAILED and "cuda:7" in job.message


def test_broken_packages_of_python_are_named(
    held: HeadlessScene, model: ModelDescription, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.13: cannot open')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    own = WarmWorker()
    monkeypatch.setattr(segmentation, "warm_worker", lambda: own)
    job = finish(SegmentationJob(add_volume(held), model))
    assert job.state == FAILED and "a package is missing or broken (libcudart.so.13" in job.message
    assert not own.running, "what was repaired is seen by a new one alone"


def test_missing_packages_are_named_before_anything_is_done(
    held: HeadlessScene, model: ModelDescription, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation, "missing_packages", lambda: ["monai>=1.5"])
    with pytest.raises(SettingsError, match=r"missing: monai>=1\.5"):
        segment(add_volume(held), model.path)


@pytest.mark.skipif(os.name == "nt", reason="limits of file sizes are of POSIX")
@pytest.mark.parametrize("whose", ["scan", "result"])
def test_a_full_disk_is_told_in_slicers_words(
    held: HeadlessScene, model: ModelDescription, temporary: Path, fake_worker: Callable[[str], None], whose: str
) -> None:
    import resource

    fake_worker(
        "from pathlib import Path\n"
        "from HybridMIMLib.files import disk_errors\n"
        "r = take()\n"
        "try:\n with disk_errors(Path(r['output'])): raise OSError(28, 'No space left on device')\n"
        "except Exception as e: say(id=r['id'], event='failed', message=e.message, cure=e.cure); take()"
    )
    volume = add_volume(held)
    before = contents(held.scene)
    segmentation.warm_worker().start()
    if whose == "scan":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    try:
        job = finish(SegmentationJob(volume, model))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert job.state == FAILED
    assert "the disk is full or a size limit was reached" in job.message
    assert "choose another temporary folder" in job.message and "--output" not in job.message
    assert contents(held.scene) == before and leftovers(temporary) == []


def test_no_place_for_temporary_files(
    held: HeadlessScene, model: ModelDescription, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(HybridMIMError, match="no folder can be made there"):
        SegmentationJob(add_volume(held), model)


def test_an_error_names_the_volume_and_not_a_temporary_file(held: HeadlessScene, model: ModelDescription) -> None:
    volume = volume_node(held.scene, np.full(SHAPE, np.nan, np.float32), np.eye(4), "All nothing")
    job = finish(SegmentationJob(volume, model))
    assert job.state == FAILED
    assert "olume All nothing: " in job.message and "NaN or infinite" in job.message
    assert "hybridmim-" not in job.message and "scan-0" not in job.message
    assert not any("hybridmim-" in text for text in (*job.progress.lines, *job.said))


def test_a_model_that_has_gone(held: HeadlessScene, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a model package"):
        segment(add_volume(held), tmp_path / "nothing")


def test_a_model_that_goes_while_it_is_loaded(held: HeadlessScene, tmp_path: Path) -> None:
    description = read_description(save_threshold_model(tmp_path / "model"))
    (tmp_path / "model" / "models" / "model.safetensors").write_bytes(b"damaged")
    job = finish(SegmentationJob(add_volume(held), description))
    assert job.state == FAILED and "model.safetensors" in job.message


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


def test_a_script_hears_what_happens(
    held: HeadlessScene, model: ModelDescription, monkeypatch: pytest.MonkeyPatch
) -> None:
    window: list[str] = []
    monkeypatch.setattr(segmentation, "let_window_live", lambda: window.append("alive"))
    lines: list[str] = []
    told: list[tuple[float | None, str]] = []
    looks: list[str] = []
    segment(
        add_volume(held),
        model.path,
        on_update=lambda job: looks.append(job.state),
        on_log=lines.append,
        on_progress=lambda fraction, text: told.append((fraction, text)),
        is_cancelled=lambda: False,
    )
    assert looks[0] == RUNNING and looks[-1] == FINISHED and len(window) == len(looks)
    assert len(lines) == 1 and lines[0].startswith("Segmented in ")
    # Which pieces are seen at work depends on how fast the worker answers.
    assert told[-1][0] == 1.0 and told[0][0] != 1.0 and len({text for _, text in told}) > 1


def test_a_script_may_cancel(held: HeadlessScene, model: ModelDescription) -> None:
    for how in ({"on_update": lambda job: job.cancel()}, {"is_cancelled": lambda: True}):
        with pytest.raises(RunError, match="Stopped"):
            segment(add_volume(held), model.path, **how)


def test_an_exception_of_the_caller_ends_the_job(
    held: HeadlessScene, model: ModelDescription, temporary: Path
) -> None:
    jobs = []

    def fail(job: SegmentationJob) -> None:
        jobs.append(job)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment(add_volume(held), model.path, on_update=fail)
    assert jobs[0].state == STOPPED and leftovers(temporary) == []


def test_a_defect_of_ours_is_told_once_and_leaves_nothing(
    held: HeadlessScene, model: ModelDescription, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a defect of ours")

    monkeypatch.setattr(segmentation, "write_scan", fail)
    job = SegmentationJob(add_volume(held), model)
    with pytest.raises(RuntimeError, match="a defect of ours"):
        finish(job)
    assert job.state == FAILED and job.message == "Unexpected error: RuntimeError: a defect of ours"
    assert not job.update() and leftovers(temporary) == []


def test_a_look_at_a_large_scan_is_short(
    held: HeadlessScene, model: ModelDescription, fake_worker: Callable[[str], None]
) -> None:
    fake_worker("r = take(); say(id=r['id'], event='failed', message='enough', cure='None.'); take()")
    volume = volume_node(held.scene, np.zeros((256, 256, 200), np.int16), np.eye(4), "Large")
    job = SegmentationJob(volume, model)
    pieces: list[float] = []
    original = voxels.copy_voxels

    def timed(*given: Any) -> Iterator[None]:
        work = original(*given)
        while True:
            began = time.thread_time()
            try:
                next(work)
            except StopIteration:
                return
            pieces.append(time.thread_time() - began)
            yield

    segmentation.copy_voxels = timed  # type: ignore[assignment]
    try:
        finish(job)
    finally:
        segmentation.copy_voxels = original
    assert job.message == "enough. None."
    assert len(pieces) == 4 and max(pieces) < 0.05


def test_only_what_was_asked_for_is_in_the_folder_of_the_library(
    held: HeadlessScene, model: ModelDescription
) -> None:
    library = Path(segmentation.__file__).parents[1]

    def state() -> dict[str, int]:
        files = (one for one in library.rglob("*") if "__pycache__" not in one.parts and one.is_file())
        return {str(one): one.stat().st_mtime_ns for one in files}

    before = state()
    segment(add_volume(held), model.path)
    assert state() == before, "an extension's folder may be read-only"


def test_the_worker_ends_with_the_process_and_leaves_nothing(tmp_path: Path, model: ModelDescription) -> None:
    program = (
        "import sys, os, numpy as np\n"
        "from pathlib import Path\n"
        "from HybridMIMLib.slicer_side.scene import headless_scene\n"
        "from HybridMIMLib.slicer_side.segments import volume_node\n"
        "from HybridMIMLib.slicer_side.models import find_model\n"
        "from HybridMIMLib.slicer_side.segmentation import SegmentationJob\n"
        "from HybridMIMLib.slicer_side.warm_worker import warm_worker\n"
        "held = headless_scene()\n"
        "volume = volume_node(held.scene, np.arange(4096, dtype=np.int16).reshape(16, 16, 16), np.eye(4), 'v')\n"
        "job = SegmentationJob(volume, find_model(sys.argv[1]))\n"
        "while not job._is_open: job.update()\n"
        "print(warm_worker().pid, sorted({'torch', 'monai', 'nibabel'} & set(sys.modules)), flush=True)\n"
        "if sys.argv[2] == 'killed': os.kill(os.getpid(), 9)\n"
    )
    workspace = tmp_path / "workspace"
    environ = {**os.environ, "TMPDIR": str(tmp_path / UNICODE_NAME), "HYBRIDMIM_WORKSPACE": str(workspace)}
    for how in ("killed", "ended"):
        command = [sys.executable, "-c", program, str(model.path), how]
        done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
        pid, _, loaded = done.stdout.strip().partition(" ")
        assert loaded == "[]", done.stderr
        assert has_ended(int(pid), 5)
    # What the killed one left was removed by the next.
    assert [one for one in (tmp_path / UNICODE_NAME).iterdir() if "scene" not in one.name] == []
    assert list((workspace / "worker").iterdir()) == []


def test_slicers_process_loads_no_torch() -> None:
    program = (
        "import sys\n"
        "from HybridMIMLib.slicer_side import segmentation, training, jobs, models, environment\n"
        "environment.missing_packages(); models.models()\n"
        "print(*sorted({'torch', 'monai', 'ignite', 'nibabel', 'jsonargparse'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
