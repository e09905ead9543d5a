"""Scenes for the tests of results: volumes and sequences on awkward grids, transforms of all kinds, and where voxels
lie in the world, worked out without the code under test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.model_description import ModelDescription
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.slicer_side.segments import image_array, volume_node

SHAPE = (12, 15, 9)
SPLEEN = "Anatomy list~SCT^123037004^Anatomical Structure~SCT^78961009^Spleen~^^~Anatomic codes~^^~^^"
LIVER = "Anatomy list~SCT^123037004^Anatomical Structure~SCT^10200004^Liver~^^~Anatomic codes~^^~^^"
CLASSES = (
    LabelClass(2, "Foie gauché", (0.9, 0.1, 0.2), LIVER),
    LabelClass(5, "Nothing", (0.0, 0.6, 0.3)),
    LabelClass(7, "Spleen", (0.1, 0.2, 0.8), SPLEEN),
)


def model(classes: tuple[LabelClass, ...] = CLASSES, name: str = "organs") -> ModelDescription:
    """A description of a model that is nowhere."""
    return ModelDescription(Path("nowhere"), name, classes, 1, {}, "2026-03-01T10:00:00+00:00", NetworkSettings(), {})


def rotation(a: float, b: float) -> np.ndarray:
    ca, sa, cb, sb = np.cos(a), np.sin(a), np.cos(b), np.sin(b)
    return np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]]) @ np.array([[cb, -sb, 0], [sb, cb, 0], [0, 0, 1]])


def affine(directions: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    made = np.eye(4)
    made[:3, :3] = directions * spacing
    made[:3, 3] = (-31.25, 17.5, 203.125)
    return made


AFFINES = {
    "axis-aligned": affine(np.eye(3), (0.7, 1.3, 4.0)),
    "oblique": affine(rotation(0.3, -0.5), (0.9, 1.1, 3.0)),
    "flipped": affine(np.diag([-1.0, 1.0, 1.0]), (1.0, 2.0, 3.0)),
    "sheared": affine(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.33], [0.0, 0.0, 0.94]]), (1.0, 1.0, 5.0)),
}
PARENTS = ("none", "linear", "grid", "thin plate")


def labels() -> np.ndarray:
    """(D, H, W): classes 2 and 7, none of 5."""
    made = np.zeros(SHAPE, dtype=np.uint8)
    made[2:6, 3:9, 1:4] = 2
    made[3, 4, 2] = 0
    made[8:11, 10:14, 5:8] = 7
    return made


def volume(scene: Any, grid: np.ndarray | None = None, name: str = "scan") -> Any:
    return volume_node(scene, np.zeros(SHAPE, np.float32), AFFINES["oblique"] if grid is None else grid, name)


def transform(scene: Any, kind: str, strength: float = 1.0) -> Any:
    """A transform node, or None; the warping ones can be undone up to a strength of about 3."""
    if kind == "none":
        return None
    if kind == "linear":
        matrix = np.eye(4)
        matrix[:3, :3] = rotation(0.2 * strength, 0.4 * strength)
        matrix[:3, 3] = np.array([7.0, -3.0, 11.0]) * strength
        node, held = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "linear"), vtk.vtkMatrix4x4()
        held.DeepCopy(matrix.ravel())
        node.SetMatrixTransformToParent(held)
        return node
    if kind == "grid":
        node = scene.AddNewNodeByClass("vtkMRMLGridTransformNode", "grid")
        node.SetAndObserveTransformToParent(_grid_transform(strength))
        return node
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", "thin plate")
    node.SetAndObserveTransformToParent(_thin_plate(strength))
    return node


def _grid_transform(strength: float) -> Any:
    count, spacing, origin = 9, 20.0, np.array([-110.0, -60.0, 130.0])
    ijk = np.stack(np.meshgrid(*[np.arange(count)] * 3, indexing="ij"), axis=-1)
    displaced = strength * np.stack(
        [4 * np.sin(ijk[..., 1] / 2.0), 3 * np.cos(ijk[..., 2] / 1.7), 5 * np.sin(ijk[..., 0] / 2.3 + 1)], axis=-1
    )
    image = vtk.vtkImageData()
    image.SetDimensions(count, count, count)
    image.SetSpacing(spacing, spacing, spacing)
    image.SetOrigin(*origin)
    flat = np.ascontiguousarray(displaced.transpose(2, 1, 0, 3)).reshape(-1, 3)
    image.GetPointData().SetScalars(numpy_to_vtk(flat, deep=True))
    made = slicer.vtkOrientedGridTransform()
    made.SetDisplacementGridData(image)
    made.SetInterpolationModeToLinear()
    return made


def _thin_plate(strength: float) -> Any:
    rng = np.random.default_rng(0)
    before = rng.uniform([-60, -20, 180], [20, 60, 260], (12, 3))
    after = before + rng.normal(0, 2.0 * strength, before.shape)
    made = vtk.vtkThinPlateSplineTransform()
    made.SetSourceLandmarks(_points(before))
    made.SetTargetLandmarks(_points(after))
    made.SetBasisToR()
    return made


def _points(array: np.ndarray) -> Any:
    made = vtk.vtkPoints()
    made.SetData(numpy_to_vtk(np.ascontiguousarray(array, dtype=float), deep=True))
    return made


def put_under(node: Any, parent: Any) -> None:
    node.SetAndObserveTransformNodeID(parent.GetID() if parent is not None else None)


def to_world(points: np.ndarray, parent: Any) -> np.ndarray:
    """Where points below a transform node lie, one by one through VTK's own transform to the world."""
    if parent is None:
        return points
    general = vtk.vtkGeneralTransform()
    parent.GetTransformToWorld(general)
    return np.array([general.TransformPoint(point) for point in points]).reshape(-1, 3)


def expected(mask: np.ndarray, grid: np.ndarray, parent: Any) -> np.ndarray:
    """(N, 3) where the voxels of a mask (D, H, W) on a volume's grid lie in the world, sorted."""
    points = np.argwhere(mask) @ grid[:3, :3].T + grid[:3, 3]
    return sort_points(to_world(points, parent))


def found(node: Any, identifier: str, parent: Any = "own") -> np.ndarray:
    """(N, 3) where the voxels of a segment lie in the world, from the node alone, sorted."""
    image = slicer.vtkOrientedImageData()
    assert node.GetBinaryLabelmapRepresentation(identifier, image)
    scalars = image.GetPointData().GetScalars()
    if scalars is None or not image.GetNumberOfPoints():
        return np.zeros((0, 3))
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    voxels = np.argwhere(image_array(image)) + np.array(image.GetExtent())[::2]
    points = np.array([matrix.MultiplyPoint((*map(float, one), 1.0))[:3] for one in voxels]).reshape(-1, 3)
    return sort_points(to_world(points, node.GetParentTransformNode() if parent == "own" else parent))


def nearest(mask: np.ndarray, grid: np.ndarray, above: Any, other: Any) -> np.ndarray:
    """(N, 3) in the world: the points below ``other``, on a grid like the volume's but without an end, whose nearest
    voxel in the volume below ``above`` is in the mask."""
    inverse, points = np.linalg.inv(grid), []
    around = moved(expected(mask, grid, above), other, False) @ inverse[:3, :3].T + inverse[:3, 3]
    lower, upper = np.floor(around.min(axis=0)).astype(int) - 3, np.ceil(around.max(axis=0)).astype(int) + 4
    lattice = np.argwhere(np.ones(upper - lower)) + lower
    world = moved(lattice @ grid[:3, :3].T + grid[:3, 3], other, True)
    voxels = np.rint(moved(world, above, False) @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
    for place, (i, j, k) in zip(world, voxels, strict=True):
        if 0 <= i < SHAPE[0] and 0 <= j < SHAPE[1] and 0 <= k < SHAPE[2] and mask[i, j, k]:
            points.append(place)
    return sort_points(np.array(points))


def moved(points: np.ndarray, transform_node: Any, up: bool) -> np.ndarray:
    """Points below a transform node in the world, or those of the world below it."""
    if transform_node is None:
        return points
    general, after = vtk.vtkGeneralTransform(), vtk.vtkPoints()
    (transform_node.GetTransformToWorld if up else transform_node.GetTransformFromWorld)(general)
    after.SetDataTypeToDouble()
    general.TransformPoints(_points(points), after)
    return vtk_to_numpy(after.GetData()).copy()


def sort_points(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, dtype=float).reshape(-1, 3)
    return points[np.lexsort(np.round(points, 3).T)]


def sequence(scene: Any, grids: list[np.ndarray], name: str = "time series") -> tuple[Any, Any, Any]:
    """A sequence of volumes, its browser, and the node that shows the current item."""
    made = scene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
    made.SetIndexName("time")
    made.SetIndexUnit("s")
    for number, grid in enumerate(grids):
        item = slicer.vtkMRMLScalarVolumeNode()
        matrix = vtk.vtkMatrix4x4()
        matrix.DeepCopy(grid.ravel())
        item.SetIJKToRASMatrix(matrix)
        image = vtk.vtkImageData()
        image.SetDimensions(SHAPE)
        image.AllocateScalars(vtk.VTK_SHORT, 1)
        vtk_to_numpy(image.GetPointData().GetScalars())[:] = number
        item.SetAndObserveImageData(image)
        made.SetDataNodeAtValue(item, str(number))
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", f"{name} browser")
    browser.SetAndObserveMasterSequenceNodeID(made.GetID())
    shown = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    shown.CreateDefaultDisplayNodes()
    browser.AddProxyNode(shown, made, False)
    browser.SetSelectedItemNumber(0)
    show_item(browser, 0)
    return made, browser, shown


def show_item(browser: Any, number: int) -> None:
    """What Slicer does when the slider is moved."""
    browser.SetSelectedItemNumber(number)
    slicer.vtkSlicerSequencesLogic().UpdateProxyNodesFromSequences(browser)


def fingerprint(scene: Any) -> list[str]:
    """All that a test can see of a scene: nodes with what they refer to, and the segments with their voxels."""
    lines = []
    for number in range(scene.GetNumberOfNodes()):
        node = scene.GetNthNode(number)
        roles: list[str] = []
        node.GetNodeReferenceRoles(roles)
        # Asking for a role makes it known, so those without a node do not count.
        references = [(role, node.GetNodeReferenceID(role)) for role in roles if node.GetNodeReferenceID(role)]
        attributes = [(one, node.GetAttribute(one)) for one in node.GetAttributeNames()]
        lines.append(f"{node.GetID()} {node.GetName()} {references} {attributes}")
        if node.IsA("vtkMRMLSegmentationNode"):
            content = node.GetSegmentation()
            for one in content.GetSegmentIDs():
                segment = content.GetSegment(one)
                points = found(node, one)
                lines.append(f"  {one} {segment.GetName()} {segment.GetColor()} {len(points)} {points.sum():.6f}")
    return lines
