"""The whole way by clicking, on real scans: train a tiny model in one panel, segment an unseen scan in the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
import vtk
from SlicerHost import Host, views

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


def test_train_in_one_panel_and_segment_in_the_other(
    slicer_with_modules: Host,
    hippocampus: dict[str, Any],
    picture: Callable[[str], None],
    pictures: Path,
) -> None:
    host = slicer_with_modules
    training = host.open_module("HybridMIMTraining")
    training.ui.unlabelledPathLineEdit.currentPath = str(hippocampus["unlabelled"])
    training.ui.labelledPathLineEdit.currentPath = str(hippocampus["labelled"])
    training.ui.modelNameLineEdit.text = "Hippocampus"
    training.ui.pretrainingStepsSpinBox.value = 10
    training.ui.finetuningStepsSpinBox.value = 60
    training.ui.startButton.click()
    host.wait_until(lambda: training.panel.job.progress.phase == "finetune", 120, "the fine-tuning")
    picture("whole way, fine-tuning")
    host.wait_until(lambda: not training.panel.busy, 240, "the end of the training")
    assert "The model Hippocampus is ready" in training.ui.messageLabel.text
    picture("whole way, trained")
    training.ui.useModelButton.click()
    segmentation = slicer.util.getModuleWidget("HybridMIMSegmentation")
    for image, label in hippocampus["unseen"]:
        node, volume = segment(host, segmentation, image)
        scan = read_scan(image)
        reference = read_label_map(label, scan.grid, scan_path=image).array
        classes = segmentation.content.jobs.job.model.classes
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
    picture("whole way, segmented")
    views.scene_picture(host.scene, pictures / "whole way, views.png", title="Hippocampus")


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
