"""The self-tests in the module files, as Slicer's button Reload and Test runs them, and what they leave behind."""

from __future__ import annotations

import os
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qt
import slicer
from SlicerHost import Host

from HybridMIMLib.slicer_side import self_test
from HybridMIMLib.slicer_side.job_folder import temporary_root
from HybridMIMLib.slicer_side.segments import segmentation_node, volume_node
from HybridMIMLib.slicer_side.warm_worker import warm_worker

GRID = np.array([[-4.0, 0.3, 0.0, 40.0], [0.3, 4.0, 0.0, -31.0], [0.0, 0.0, 5.0, 12.0], [0, 0, 0, 1]])
BODY = (slice(2, 8), slice(3, 11), slice(1, 7))


def ours() -> list[str]:
    """Nodes of the scene that are not Slicer's own."""
    kept = ("vtkMRMLView", "vtkMRMLSlice", "vtkMRMLSubjectHierarchy", "vtkMRMLScriptedModule")
    nodes = [slicer.mrmlScene.GetNthNode(index) for index in range(slicer.mrmlScene.GetNumberOfNodes())]
    return [one.GetID() for one in nodes if not one.GetSingletonTag() and not one.GetClassName().startswith(kept)]


def on_disk(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


@pytest.fixture
def kept(slicer_with_modules: Host, workspace: Path) -> Iterator[Host]:
    """A user with a workspace and settings, who finds both as they were."""
    (workspace / "runs" / "mine").mkdir(parents=True)
    settings = qt.QSettings()
    settings.setValue("HybridMIM/pausedRun", "mine")
    before = on_disk(workspace, temporary_root())
    yield slicer_with_modules
    assert on_disk(workspace, temporary_root()) == before
    assert os.environ["HYBRIDMIM_WORKSPACE"] == str(workspace)
    assert {key: settings.value(key) for key in settings.allKeys()} == {"HybridMIM/pausedRun": "mine"}
    assert ours() == [] and not warm_worker().running


def test_of_training(kept: Host) -> None:
    panel = kept.open_module("HybridMIMTraining")
    slicer.selfTests["HybridMIMTraining"]()
    again = slicer.util.getModuleWidget("HybridMIMTraining")
    assert again is not panel and not again.content.work.busy
    assert again.content.parameters.node.unlabelledFolder == ""


def test_of_segmentation(kept: Host) -> None:
    kept.open_module("HybridMIMSegmentation")
    slicer.selfTests["HybridMIMSegmentation"]()


@pytest.mark.parametrize("module", ["HybridMIMTraining", "HybridMIMSegmentation"])
def test_without_packages_they_say_that_nothing_was_tested(
    kept: Host, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_test, "missing_packages", lambda: ["torch>=2.4", "monai"])
    with pytest.raises(unittest.SkipTest, match="NOT TESTED .* missing: torch>=2.4, monai. Install"):
        slicer.selfTests[module]()


def test_a_failure_leaves_nothing_either(kept: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as the training has begun."""
    kept.open_module("HybridMIMTraining")
    whole = self_test.wait_until

    def fail(condition: Any, what: str, seconds: float = 60) -> None:
        if what == "the training":
            slicer.app.processEvents()
            raise AssertionError("on purpose")
        whole(condition, what, seconds)

    monkeypatch.setattr(self_test, "wait_until", fail)
    with pytest.raises(AssertionError, match="on purpose"):
        slicer.selfTests["HybridMIMTraining"]()


def test_all_tests_are_run_and_a_failure_counts_more_than_a_skipped_test() -> None:
    ran = []

    class Both(unittest.TestCase):
        def tearDown(self) -> None:
            ran.append("tearDown")

        def test_a(self) -> None:
            self.skipTest("reason")

        def test_b(self) -> None:
            ran.append("b")

        def runTest(self) -> None:
            self_test.run_all(self)

    with pytest.raises(unittest.SkipTest, match="reason"):
        Both().runTest()
    assert ran == ["tearDown", "b", "tearDown"]
    Both.test_b = lambda self: self.fail("worse")  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="worse"):
        Both().runTest()


def test_what_does_not_come_is_named(host: Host) -> None:
    with pytest.raises(AssertionError, match="the thing took longer than 0 seconds"):
        self_test.wait_until(lambda: False, "the thing", 0.05)


# ---------------------------------------------------------------- the place of segments


def scan(shift: tuple[int, int, int] = (0, 0, 0)) -> tuple[Any, Any]:
    """A CT with a body in it, below a transform, and its segmentation, which may be wrong by so many voxels."""
    array, labels = np.full((12, 15, 9), -1000, np.int16), np.zeros((12, 15, 9), np.uint8)
    array[BODY], labels[BODY] = 40, 3
    volume = volume_node(slicer.mrmlScene, array, GRID, "scan")
    volume.SetAndObserveTransformNodeID(self_test._moved_by().GetID())
    found = np.roll(labels, shift, (0, 1, 2))
    return volume, segmentation_node(slicer.mrmlScene, volume, found, known_classes(), "result")


def known_classes() -> Any:
    from HybridMIMLib.known_model import CLASSES

    return CLASSES


def places(node: Any) -> np.ndarray:
    return self_test._world_places(node, node.GetSegmentation().GetSegmentIDs()[0])


def test_segments_in_their_place_agree(host: Host) -> None:
    volume, node = scan()
    assert self_test.agreement(places(node), volume) == 1.0


def test_segments_a_voxel_beside_agree_less(host: Host) -> None:
    volume, node = scan(shift=(0, 2, 0))
    assert self_test.agreement(places(node), volume) == pytest.approx(0.75)


@pytest.mark.parametrize("moved", ["the scan", "the segmentation"])
def test_segments_below_another_transform_are_in_a_wrong_place(host: Host, moved: str) -> None:
    volume, node = scan()
    (volume if moved == "the scan" else node).SetAndObserveTransformNodeID(None)
    with pytest.raises(AssertionError, match="not those of the scan"):
        self_test.agreement(places(node), volume)


def test_a_mirrored_scan_is_noticed(host: Host) -> None:
    volume, node = scan()
    array = slicer.util.arrayFromVolume(volume)
    slicer.util.updateVolumeFromArray(volume, array[:, :, ::-1].copy())
    assert self_test.agreement(places(node), volume) < 0.9
