"""Label arrays as segment nodes: the right place in the world, the right names, the right values."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

import slicer
import vtk

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.errors import HybridMIMError, LabelError
from HybridMIMLib.slicer_side.scene import HeadlessScene, headless_scene
from HybridMIMLib.slicer_side.segments import (
    ijk_to_ras,
    image_array,
    label_array,
    segment_id,
    segmentation_node,
    volume_node,
)

SHAPE = (12, 15, 9)
TERMINOLOGY = "Anatomy list~SCT^123037004^Structure~SCT^78961009^Spleen~^^~Anatomic codes~^^~^^"
CLASSES = (
    LabelClass(2, "Foie gauché", (0.9, 0.1, 0.2)),
    LabelClass(5, "Nothing", (0.0, 0.6, 0.3)),
    LabelClass(7, "Spleen", (0.1, 0.2, 0.8), TERMINOLOGY),
)


def _rotation(a: float, b: float) -> np.ndarray:
    ca, sa, cb, sb = np.cos(a), np.sin(a), np.cos(b), np.sin(b)
    return np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]]) @ np.array([[cb, -sb, 0], [sb, cb, 0], [0, 0, 1]])


def _affine(directions: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = (-31.25, 17.5, 203.125)
    return affine


AFFINES = {
    "anisotropic": _affine(np.eye(3), (0.7, 1.3, 4.0)),
    "oblique": _affine(_rotation(0.3, -0.5), (0.9, 1.1, 3.0)),
    "flipped": _affine(np.diag([-1.0, 1.0, 1.0]), (1.0, 2.0, 3.0)),
    "oblique left-handed, axes swapped": _affine(_rotation(-0.7, 0.2)[:, [1, 0, 2]], (1.0, 0.8, 2.5)),
    "sheared": _affine(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.33], [0.0, 0.0, 0.94]]), (1.0, 1.0, 5.0)),
}


@pytest.fixture
def held() -> HeadlessScene:
    return headless_scene()


def _labels() -> np.ndarray:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[2:6, 3:9, 1:4] = 2
    labels[8:11, 10:14, 5:8] = 7
    return labels


def _with_parent(held: HeadlessScene, volume: object) -> np.ndarray:
    parent = np.eye(4)
    parent[:3, :3] = _rotation(0.2, 0.4)
    parent[:3, 3] = (7.0, -3.0, 11.0)
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(parent.ravel())
    transform = held.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    transform.SetMatrixTransformToParent(matrix)
    volume.SetAndObserveTransformNodeID(transform.GetID())  # type: ignore[attr-defined]
    return parent


def _world_centres(node: object, identifier: str) -> np.ndarray:
    """(N, 3) world positions of a segment's voxels, worked out from the node alone, in order."""
    image = slicer.vtkOrientedImageData()
    assert node.GetBinaryLabelmapRepresentation(identifier, image)  # type: ignore[attr-defined]
    to_world, parent = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(to_world)
    if node.GetParentTransformNode():  # type: ignore[attr-defined]
        node.GetParentTransformNode().GetMatrixTransformToWorld(parent)  # type: ignore[attr-defined]
    vtk.vtkMatrix4x4.Multiply4x4(parent, to_world, to_world)
    first = np.array(image.GetExtent())[::2]
    voxels = np.argwhere(image_array(image)) + first
    return _sorted([to_world.MultiplyPoint((*map(float, v), 1.0))[:3] for v in voxels])


def _sorted(points: object) -> np.ndarray:
    points = np.round(np.asarray(points, dtype=float).reshape(-1, 3), 4)
    return points[np.lexsort(points.T)]


@pytest.mark.parametrize("moved", [False, True], ids=["free", "under a transform"])
@pytest.mark.parametrize("name", AFFINES)
def test_segments_lie_where_the_grid_says(held: HeadlessScene, name: str, moved: bool) -> None:
    affine, labels = AFFINES[name], _labels()
    volume = volume_node(held.scene, np.zeros(SHAPE, np.float32), affine, "scan")
    world = (_with_parent(held, volume) if moved else np.eye(4)) @ affine
    node = segmentation_node(held.scene, volume, labels, CLASSES, "result")
    assert np.abs(ijk_to_ras(volume) - affine).max() < 1e-9
    for label in (2, 7):
        expected = _sorted(np.argwhere(labels == label) @ world[:3, :3].T + world[:3, 3])
        assert np.abs(_world_centres(node, f"class_{label}") - expected).max() < 1e-3
    assert np.array_equal(label_array(node, volume, CLASSES), labels)


def test_surface_lies_around_the_voxels(held: HeadlessScene) -> None:
    affine, labels = AFFINES["oblique left-handed, axes swapped"], _labels()
    volume = volume_node(held.scene, np.zeros(SHAPE, np.float32), affine, "scan")
    node = segmentation_node(held.scene, volume, labels, CLASSES, "result")
    assert node.CreateClosedSurfaceRepresentation()
    surface = vtk.vtkPolyData()
    node.GetClosedSurfaceRepresentation("class_2", surface)
    middle = np.array(surface.GetCenter())
    expected = np.argwhere(labels == 2).mean(axis=0) @ affine[:3, :3].T + affine[:3, 3]
    assert np.abs(middle - expected).max() < 0.5


def test_volume_keeps_values_and_axes(held: HeadlessScene) -> None:
    array = np.arange(np.prod(SHAPE), dtype=">i2").reshape(SHAPE)
    volume = volume_node(held.scene, array, AFFINES["oblique"], "scan")
    assert np.array_equal(image_array(volume.GetImageData()), array)
    assert volume.GetImageData().GetScalarComponentAsDouble(3, 4, 5, 0) == array[3, 4, 5]


def test_names_colours_terminology_and_empty_classes(held: HeadlessScene) -> None:
    volume = volume_node(held.scene, np.zeros(SHAPE, np.float32), np.eye(4), "scan")
    before = held.scene.GetNumberOfNodes()
    node = segmentation_node(held.scene, volume, _labels(), CLASSES, "result")
    segmentation = node.GetSegmentation()
    assert segmentation.GetNumberOfSegments() == 3
    for index, label_class in enumerate(CLASSES):
        segment = segmentation.GetNthSegment(index)
        assert segmentation.GetNthSegmentID(index) == segment_id(label_class)
        assert segment.GetName() == label_class.name
        assert segment.GetColor() == pytest.approx(label_class.color)
    assert segmentation.GetSegment("class_7").GetTerminology() == TERMINOLOGY
    assert len(_world_centres(node, "class_5")) == 0
    assert node.GetDisplayNode() is not None
    assert node.GetStorageNode() is None
    label_array(node, volume, CLASSES)
    assert held.scene.GetNumberOfNodes() == before + 2, "the segmentation and its display node, nothing temporary"


def test_segmentation_is_listed_beside_its_scan(held: HeadlessScene) -> None:
    volume = volume_node(held.scene, np.zeros(SHAPE, np.float32), np.eye(4), "scan")
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(held.scene)
    study = tree.CreateStudyItem(tree.GetSceneItemID(), "study")
    tree.SetItemParent(tree.GetItemByDataNode(volume), study)
    node = segmentation_node(held.scene, volume, _labels(), CLASSES, "result")
    assert tree.GetItemParent(tree.GetItemByDataNode(node)) == study


@pytest.mark.parametrize("empty", [True, False], ids=["no voxel", "no class"])
def test_nothing_found(held: HeadlessScene, empty: bool) -> None:
    volume = volume_node(held.scene, np.zeros(SHAPE, np.float32), np.eye(4), "scan")
    classes = CLASSES if empty else ()
    node = segmentation_node(held.scene, volume, np.zeros(SHAPE, np.uint8), classes, "result")
    assert not label_array(node, volume, classes).any()


def test_what_does_not_fit_is_named(held: HeadlessScene) -> None:
    volume = volume_node(held.scene, np.zeros(SHAPE, np.float32), np.eye(4), "scan")
    with pytest.raises(LabelError, match=r"holds \[7\]"):
        segmentation_node(held.scene, volume, _labels(), CLASSES[:2], "result")
    with pytest.raises(LabelError, match="shape"):
        segmentation_node(held.scene, volume, _labels()[1:], CLASSES, "result")
    with pytest.raises(LabelError, match="distinct"):
        segmentation_node(held.scene, volume, _labels(), CLASSES + CLASSES[:1], "result")
    with pytest.raises(HybridMIMError, match="affine"):
        volume_node(held.scene, np.zeros(SHAPE), np.diag([1.0, 1.0, 0.0, 1.0]), "flat")
    with pytest.raises(HybridMIMError, match="three axes"):
        volume_node(held.scene, np.zeros((1, *SHAPE)), np.eye(4), "channels")


def test_torch_stays_out_and_vtk_has_no_complaint() -> None:
    """In a process of its own, because VTK writes to the process's standard error."""
    code = (
        "import sys, numpy as np\n"
        "import HybridMIMLib.slicer_side.show\n"
        "from HybridMIMLib.slicer_side.scene import headless_scene\n"
        "from HybridMIMLib.slicer_side.segments import volume_node, segmentation_node, label_array\n"
        "from HybridMIMLib.data.classes import LabelClass\n"
        "held = headless_scene()\n"
        "volume = volume_node(held.scene, np.zeros((4, 5, 6)), np.eye(4), 'scan')\n"
        "classes = [LabelClass(3, 'three', (1, 0, 0))]\n"
        "node = segmentation_node(held.scene, volume, np.full((4, 5, 6), 3, np.uint8), classes, 'result')\n"
        "assert label_array(node, volume, classes).all()\n"
        "assert not {'torch', 'monai'} & set(sys.modules), 'torch was imported'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=_environment(), check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"}
