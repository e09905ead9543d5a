"""What the self-tests of both modules do: the way of a user on sample data, in a running Slicer.

The classes of tests in the module files call this, and those are called by Slicer's button Reload and Test, by CTest
and by Testing/InsideSlicer. Everything is made in a workspace of its own, which is gone at the end with the processes
that worked there; the user's runs, models and settings stay as they are. The scene is cleared, as by any self-test in
Slicer. Where packages are missing, a test is skipped with the reason; Reload and Test shows it as an error.
"""

from __future__ import annotations

import json
import os
import time
import unittest
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import slicer.util
import vtk

from HybridMIMLib.errors import ModelError, SettingsError
from HybridMIMLib.runs import is_alive
from HybridMIMLib.slicer_side.child_steps import in_child
from HybridMIMLib.slicer_side.environment import missing_packages
from HybridMIMLib.slicer_side.job_folder import JobFolder
from HybridMIMLib.slicer_side.jobs import FINISHED
from HybridMIMLib.slicer_side.models import models
from HybridMIMLib.slicer_side.sample_data import get_steps, sample_of
from HybridMIMLib.slicer_side.segments import Node, ijk_to_ras, image_array
from HybridMIMLib.slicer_side.steps import finish
from HybridMIMLib.slicer_side.warm_worker import warm_worker

SAMPLE = "phantoms"
"""The set that is drawn on the computer: no internet is needed."""

STEPS = 3
_PLAN = {
    "name": "Self-test",
    "plan.spacing": [8.0, 8.0, 8.0],
    "plan.crop": [16, 16, 16],
    "plan.patch": [4, 4, 4],
    "plan.region": [8, 8, 8],
    "network.features": [4, 8],
    "pretraining.steps": STEPS,
    "pretraining.batch": 2,
    "finetuning.steps": STEPS,
    "finetuning.batch": 2,
    "finetuning.validation_cases": 1,
}
"""Small: it is tried whether all of it works, not whether anything is learnt."""

_SECONDS = 600.0
"""For each part, on a slow computer."""
_SECONDS_TO_END = 20.0
_COARSE = 9.0
"""mm; a sample scan of that spacing fits into one window of the model whose answer is known."""
_AGREES = 0.935
"""Dice: it is 0.95, at most 0.93 where the result lies two voxels beside, and 0.84 where an axis is reversed."""
_BODY = -500
"""HU: what is above is body, and what is below is air."""
_MOVED = ((0.96, -0.28, 0.0, 31.0), (0.28, 0.96, 0.0, -17.0), (0.0, 0.0, 1.0, 8.5), (0.0, 0.0, 0.0, 1.0))
"""A turn about the axis from feet to head, and a shift in mm."""


def run_all(test: unittest.TestCase) -> None:
    """Run the tests of a class, as Slicer's button asks for.

    Raises:
        SkipTest: one was skipped, and no other failed.
    """
    skipped: unittest.SkipTest | None = None
    for name in unittest.defaultTestLoader.getTestCaseNames(type(test)):
        test.setUp()
        try:
            getattr(test, name)()
        except unittest.SkipTest as reason:
            skipped = reason
        finally:
            test.tearDown()
    if skipped is not None:
        raise skipped


def skip_without_packages(test: unittest.TestCase) -> None:
    """Skip a test that needs the packages of the library, and say which are missing."""
    missing = missing_packages()
    if missing:
        test.skipTest(
            f"NOT TESTED on sample data: these packages are missing: {', '.join(missing)}. Install them in the "
            "section Environment of the panel, then test again."
        )


@contextmanager
def own_workspace() -> Iterator[Path]:
    """A workspace for a test alone: removed at the end, with the process that keeps a model warm; what panels note
    meanwhile in Slicer's settings is undone."""
    before, noted, folder = os.environ.get("HYBRIDMIM_WORKSPACE"), _noted(), JobFolder()
    _end_worker()
    os.environ["HYBRIDMIM_WORKSPACE"] = str(folder.path)
    try:
        yield folder.path
    finally:
        os.environ.pop("HYBRIDMIM_WORKSPACE")
        if before is not None:
            os.environ["HYBRIDMIM_WORKSPACE"] = before
        _end_worker()
        _note_again(noted)
        folder.remove()


def wait_until(condition: Callable[[], Any], what: str, seconds: float = _SECONDS) -> None:
    """Let Slicer live until something is so.

    Raises:
        AssertionError: it did not come.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what} took longer than {seconds:.0f} seconds")
        slicer.app.processEvents()
        time.sleep(0.02)


# --- training -----------------------------------------------------------------------------------------------------


def refuse_without_scans(test: unittest.TestCase, logic: Any) -> None:
    """Nothing is started for a folder that is not there."""
    with test.assertRaises(SettingsError):
        logic.finetune("no such folder")


def train_on_sample_data(test: unittest.TestCase, module: str) -> None:
    """Get the sample data, check it, and train for a few steps, all by pressing the buttons of the panel.

    Args:
        test: whose assertions are used.
        module: the name of the module; its panel is a fresh one at the end.
    """
    skip_without_packages(test)
    panel = slicer.util.getModuleWidget(module)
    test.assertFalse(panel.content.work.busy, "A run is at work in this panel: wait for its end, then test again.")
    try:
        with own_workspace():
            try:
                _get_sample(test, panel)
                _check_sample(test, panel)
                _train(test, panel)
            finally:
                _end_run(panel)
    finally:
        # That one shows a run which is no more.
        slicer.util.reloadScriptedModule(module)


def _get_sample(test: unittest.TestCase, panel: Any) -> None:
    ui, samples = panel.ui, panel.content.samples
    panel.getSample(SAMPLE)
    wait_until(lambda: not samples.busy, "drawing the sample data")
    test.assertTrue(sample_of(SAMPLE).is_there, ui.sampleMessageLabel.text)
    ui.sampleUseButton.click()
    chosen = (ui.dataUnlabelledPathLineEdit.currentPath, ui.dataLabelledPathLineEdit.currentPath)
    test.assertEqual([Path(path) for path in chosen], list(sample_of(SAMPLE).folders))


def _check_sample(test: unittest.TestCase, panel: Any) -> None:
    data = panel.content.data
    panel.ui.dataCheckButton.click()
    wait_until(lambda: not data.busy, "checking the sample data")
    test.assertEqual(data.jobs.job.state, FINISHED, panel.ui.dataMessageLabel.text)
    wait_until(lambda: data.checked is not None, "reading what was found", _SECONDS_TO_END)
    folders = list(data.checked.folders.values())
    test.assertEqual([folder.usable for folder in folders], [16, 12])
    names = [one.name for one in folders[1].looks]
    test.assertEqual(names, ["Liver", "Spleen", "Kidneys", "Spine"])


def _train(test: unittest.TestCase, panel: Any) -> None:
    work = panel.content.work
    panel.content.parameters.node.plan = json.dumps({"base": "automatic", "changes": _PLAN})
    test.assertTrue(panel.ui.workTrainButton.enabled, panel.ui.workTrainButton.toolTip)
    panel.ui.workTrainButton.click()
    test.assertIsNotNone(work.job, panel.ui.workMessageLabel.text)
    wait_until(lambda: not work.busy, "the training")
    test.assertEqual(work.job.state, FINISHED, panel.ui.workMessageLabel.text)
    [made] = models()
    test.assertEqual(made.name, _PLAN["name"])
    test.assertEqual([one.name for one in made.classes], ["Liver", "Spleen", "Kidneys", "Spine"])


def _end_run(panel: Any) -> None:
    """After a failure a run may be at work, in a folder that is about to go."""
    if panel.content.work.busy:
        panel.content.work.job.kill()
        wait_until(lambda: not panel.content.work.busy, "the end of the run", _SECONDS_TO_END)


# --- segmenting ---------------------------------------------------------------------------------------------------


def refuse_without_model(test: unittest.TestCase, logic: Any) -> None:
    """Without a model nothing is segmented, and nothing comes into the scene."""
    volume = slicer.util.addVolumeFromArray(np.zeros((8, 8, 8), dtype=np.int16), name="Zeros")
    with test.assertRaises(ModelError):
        logic.start(volume, Path(slicer.app.temporaryPath) / "no model")
    test.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"), 0)


def segment_sample_data(test: unittest.TestCase, logic: Any) -> None:
    """Segment a sample scan, which lies under a transform, with a model whose answer is known; the segments must lie
    where the scan is bright.

    Args:
        test: whose assertions are used.
        logic: of the module HybridMIM Segmentation.
    """
    skip_without_packages(test)
    with own_workspace() as folder:
        volume = slicer.util.loadVolume(str(_sample_scan()))
        volume.SetAndObserveTransformNodeID(_moved_by().GetID())
        node = logic.segment(volume, _make_model(folder))
        test.assertEqual(_names(node), ["Bright", "Never"])
        test.assertEqual(node.GetNodeReferenceID("referenceImageGeometryRef"), volume.GetID())
        bright, never = (_world_places(node, identifier) for identifier in node.GetSegmentation().GetSegmentIDs())
        test.assertEqual(len(never), 0, "a class was found that this model never finds")
        test.assertGreater(agreement(bright, volume), _AGREES, "the segment does not lie where the scan is bright")


def agreement(places: np.ndarray, volume: Node) -> float:
    """How well the voxels of a segment and the body in a CT agree: Dice.

    Args:
        places: (N, 3) centres of the voxels in the world, mm, RAS.
        volume: the CT, which may be below a linear transform.

    Raises:
        AssertionError: they are no voxels of the volume.
    """
    body = slicer.util.arrayFromVolume(volume).transpose(2, 1, 0) > _BODY
    to_voxels = np.linalg.inv(_to_world(volume) @ ijk_to_ras(volume))
    voxels = places @ to_voxels[:3, :3].T + to_voxels[:3, 3]
    nearest = np.rint(voxels).astype(int)
    inside = len(places) and ((nearest >= 0) & (nearest < body.shape)).all()
    if not inside or np.abs(voxels - nearest).max() > 0.01:
        raise AssertionError("the voxels of the segment are not those of the scan")
    found = np.zeros_like(body)
    found[tuple(nearest.T)] = True
    return float(2 * (found & body).sum() / (found.sum() + body.sum()))


def _sample_scan() -> Path:
    folder = finish(get_steps(sample_of(SAMPLE))) / sample_of(SAMPLE).labelled / "images"
    return next(path for path in sorted(folder.iterdir()) if path.name.endswith(".nii.gz"))


def _make_model(folder: Path) -> Path:
    """Written by a process of its own: no torch is loaded here."""
    job = {"folder": str(folder / "known"), "name": "Known", "spacing": [_COARSE] * 3, "threshold": 0}
    return Path(finish(in_child("HybridMIMLib.known_model", job, folder, "Writing a model"))["model"])


def _moved_by() -> Node:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Moved")
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy([number for row in _MOVED for number in row])
    node.SetMatrixTransformToParent(matrix)
    return node


def _names(node: Node) -> list[str]:
    segmentation = node.GetSegmentation()
    return [segmentation.GetSegment(one).GetName() for one in segmentation.GetSegmentIDs()]


def _world_places(node: Node, identifier: str) -> np.ndarray:
    """(N, 3) centres of the voxels of a segment in the world, by the segment's own geometry and its transform."""
    image = slicer.vtkOrientedImageData()
    node.GetBinaryLabelmapRepresentation(identifier, image)
    if image.GetPointData().GetScalars() is None:
        return np.zeros((0, 3))
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    to_world = _to_world(node) @ slicer.util.arrayFromVTKMatrix(matrix)
    voxels = np.argwhere(image_array(image)) + np.array(image.GetExtent())[::2]
    return np.asarray(voxels @ to_world[:3, :3].T + to_world[:3, 3])


def _to_world(node: Node) -> np.ndarray:
    """What the transform above a node does, 4x4."""
    matrix, parent = vtk.vtkMatrix4x4(), node.GetParentTransformNode()
    if parent is not None:
        parent.GetMatrixTransformToWorld(matrix)
    return np.asarray(slicer.util.arrayFromVTKMatrix(matrix))


def _end_worker() -> None:
    """Its log lies in the workspace that it was started in."""
    pid = warm_worker().pid
    warm_worker().close()
    if pid is not None:
        wait_until(lambda: not is_alive(pid), "the end of the worker", _SECONDS_TO_END)


def _noted() -> dict[str, Any]:
    """What panels have noted in Slicer's settings: folders that were used, and the run that was paused."""
    settings = slicer.app.userSettings()
    return {key: settings.value(key) for key in settings.allKeys() if "HybridMIM" in key}


def _note_again(noted: Mapping[str, Any]) -> None:
    settings, now = slicer.app.userSettings(), _noted()
    for key in now.keys() - noted.keys():
        settings.remove(key)
    for key, value in noted.items():
        if now.get(key) != value:
            settings.setValue(key, value)
