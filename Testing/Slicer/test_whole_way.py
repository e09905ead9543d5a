"""The whole way by clicking, on real scans: check, pre-train across a restart, fine-tune, package, segment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
import vtk
from SlicerHost import Host, dialogs, start, views

from HybridMIMLib.data.model_description import read_description
from HybridMIMLib.data.scans import read_label_map, read_scan
from HybridMIMLib.evaluation.dice import dice_by_class
from HybridMIMLib.slicer_side.segments import label_array, segment_id

CLASSES = {"1": "Anterior", "2": "Posterior"}


@pytest.fixture
def hippocampus(shared_data: Path, tmp_path: Path) -> dict[str, Any]:
    """Folders of links to 12 unlabelled and 10 labelled scans, and 2 unseen ones with their labels."""
    source = shared_data / "hippocampus_mr"
    cases = [
        (Path(one["image"]), Path(one["label"]))
        for one in json.loads((source / "dataset.json").read_text())["training"]
    ]
    found = [(source / image, source / label) for image, label in cases if (source / image).is_file()]
    unlabelled, labelled = tmp_path / "without labels", tmp_path / "with labels"
    for folder in (unlabelled, labelled / "images", labelled / "labels"):
        folder.mkdir(parents=True)
    for image, _ in found[:12]:
        (unlabelled / image.name).symlink_to(image)
    for image, label in found[12:22]:
        (labelled / "images" / image.name).symlink_to(image)
        (labelled / "labels" / image.name).symlink_to(label)
    (labelled / "classes.json").write_text(json.dumps(CLASSES))
    return {"unlabelled": unlabelled, "labelled": labelled, "unseen": found[22:24]}


def world_of_voxels(node: Any, identifier: str) -> np.ndarray:
    """World position (N, 3), mm, RAS, of every voxel of a segment, by the segment's own geometry and the parents."""
    image = node.GetSegmentation().GetSegment(identifier).GetRepresentation("Binary labelmap")
    value = node.GetSegmentation().GetSegment(identifier).GetLabelValue()
    scalars = vtk.util.numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    extent = image.GetExtent()
    shape = [extent[2 * axis + 1] - extent[2 * axis] + 1 for axis in range(3)]
    places = np.argwhere(scalars.reshape(shape[::-1]).transpose(2, 1, 0) == value) + extent[::2]
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    to_world = np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])
    positions = places @ to_world[:3, :3].T + to_world[:3, 3]
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(node.GetParentTransformNode(), None, transform)
    return np.array([transform.TransformPoint(place) for place in positions])


def test_from_a_folder_of_scans_to_segments_through_both_panels(
    slicer_with_modules: Host,
    hippocampus: dict[str, Any],
    load_modules: Callable[[Host], Host],
    tmp_path: Path,
    pictures: Path,
) -> None:
    host = slicer_with_modules
    training = host.open_module("HybridMIMTraining")
    check_data(host, training, hippocampus)
    host.picture(pictures / "whole way, data.png")
    pretrained = pretrain_across_a_restart(host, training, load_modules, pictures)
    host = start()
    training = slicer.util.getModuleWidget("HybridMIMTraining")
    assert training.ui.startFromComboBox.currentText == pretrained.name
    finetune(host, training, hippocampus)
    host.picture(pictures / "whole way, trained.png")
    package = make_package(host, training, tmp_path)
    training.ui.runsUseButton.click()
    assert host.opened == "HybridMIMSegmentation"
    segmentation = slicer.util.getModuleWidget("HybridMIMSegmentation")
    assert segmentation.content.models.chooser.model.name == "Hippocampus"
    assert read_description(package).classes == segmentation.content.models.chooser.model.classes
    for image, label in hippocampus["unseen"]:
        segment_and_compare(host, segmentation, image, label)
    host.picture(pictures / "whole way, segmented.png")
    views.scene_picture(host.scene, pictures / "whole way, views.png", title="Hippocampus")


def check_data(host: Host, panel: Any, folders: dict[str, Any]) -> None:
    """Choose the folders and press Check: every scan is good."""
    panel.ui.dataUnlabelledPathLineEdit.currentPath = str(folders["unlabelled"])
    panel.ui.dataLabelledPathLineEdit.currentPath = str(folders["labelled"])
    panel.ui.dataCheckButton.click()
    host.wait_until(lambda: not panel.content.data.busy and panel.content.data.checked, 120, "the check")
    assert [len(folder.rows) for folder in panel.content.data.checked.folders.values()] == [12, 10]


def pretrain_across_a_restart(host: Host, panel: Any, load_modules: Callable[[Host], Host], pictures: Path) -> Path:
    """Start a pre-training, quit Slicer in the middle, start Slicer again and see it to its end; its folder."""
    steps = {"pretraining.steps": 40, "finetuning.steps": 60, "name": "Hippocampus"}
    panel.content.parameters.node.plan = json.dumps({"base": "automatic", "changes": steps})
    panel.ui.workPretrainButton.click()
    host.wait_until(lambda: panel.content.work.job.progress.phase == "pretrain", 120, "the pre-training")
    folder = panel.content.work.job.folder
    host.close()
    again = load_modules(start())
    panel = again.open_module("HybridMIMTraining")
    if panel.content.work.busy:
        assert panel.content.work.job.folder == folder, "the run that went on is attached"
        again.picture(pictures / "whole way, attached.png")
        again.wait_until(lambda: not panel.content.work.busy, 240, "the end of the pre-training")
        assert panel.ui.workMessageLabel.text.startswith("Pre-trained."), panel.ui.workMessageLabel.text
    assert (folder / "result.json").is_file()
    again.wait_until(lambda: not panel.content.lookups.busy, 20, "what there is to start from")
    panel.content.parameters.node.startFrom = str(folder)
    return folder


def finetune(host: Host, panel: Any, folders: dict[str, Any]) -> None:
    """The new scene is empty: choose the labelled folder, and fine-tune from what was learnt."""
    panel.ui.dataLabelledPathLineEdit.currentPath = str(folders["labelled"])
    panel.content.parameters.node.plan = json.dumps(
        {"base": "automatic", "changes": {"finetuning.steps": 60, "name": "Hippocampus"}}
    )
    panel.ui.workFinetuneButton.click()
    host.wait_until(lambda: not panel.content.work.busy, 240, "the end of the fine-tuning")
    assert "The model Hippocampus is ready" in panel.ui.workMessageLabel.text
    assert "from scratch" not in panel.content.work.job.result["loaded"]


def make_package(host: Host, panel: Any, folder: Path) -> Path:
    """Choose the fine-tuning in the list of runs, and make a package of its model."""
    panel.ui.runsSection.collapsed = False
    wanted, runs = panel.content.work.job.folder, panel.content.runs
    host.wait_until(lambda: wanted in runs.runs, 20, "the run in the list")
    runs.choose(wanted)
    host.wait_until(lambda: panel.ui.runsPackageButton.enabled, 20, "what can be done with it")
    dialogs.announce("save file", str(folder / "Hippocampus.zip"))
    panel.ui.runsPackageButton.click()
    host.wait_until(lambda: not runs.busy, 120, "the package")
    assert (folder / "Hippocampus.zip").is_file(), panel.ui.runsMessageLabel.text
    return folder / "Hippocampus.zip"


def segment_and_compare(host: Host, panel: Any, image: Path, label: Path) -> None:
    """Apply; segments lie where the scan's own geometry has them, and agree with the reference."""
    node, volume = segment(host, panel, image)
    scan = read_scan(image)
    reference = read_label_map(label, scan.grid, scan_path=image).array
    classes = panel.content.jobs.job.model.classes
    found = label_array(node, volume, classes)
    dice = dice_by_class(found, reference, classes)
    assert min(dice.values()) > 0.5, dice
    for one in classes:
        expected = scan.grid.affine[:3, :3] @ np.argwhere(found == one.label).T + scan.grid.affine[:3, 3:]
        positions = world_of_voxels(node, segment_id(one))
        order_a, order_b = np.lexsort(positions.T.round(3)), np.lexsort(expected.round(3))
        deviation = np.abs(positions[order_a] - expected.T[order_b]).max()
        print(f"{image.name} {one.name}: Dice {dice[one.name]:.3f}, largest deviation {deviation:.1e} mm")
        assert deviation < 1e-3


def segment(host: Host, panel: Any, image: Path) -> tuple[Any, Any]:
    """Load a scan as a user does, and press Apply; the node that was made, and the volume."""
    for earlier in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        # All scans of this set lie in one place; the picture should show one.
        earlier.GetDisplayNode().SetVisibility(False)
    volume = slicer.util.loadVolume(str(image))
    panel.ui.inputVolumeSelector.setCurrentNode(volume)
    before = set(slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))
    panel.ui.applyButton.click()
    host.wait_until(lambda: not panel.content.jobs.busy, 180, "the segmentation")
    [node] = set(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) - before
    return node, volume
