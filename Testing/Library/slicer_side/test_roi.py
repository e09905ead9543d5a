"""Regions of interest: which voxels lie in the box, against what Slicer says of each voxel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

import vtk
from hypothesis import given, settings
from hypothesis import strategies as st

from HybridMIMLib.errors import DataError
from HybridMIMLib.slicer_side.roi import Region, region_of, why_no_region
from HybridMIMLib.slicer_side.scene import HeadlessScene, headless_scene
from HybridMIMLib.slicer_side.segments import ijk_to_ras, volume_node

SHAPE = (9, 12, 10)
HELD = headless_scene()


@pytest.fixture
def held() -> HeadlessScene:
    HELD.scene.Clear(0)
    return HELD


def a_matrix(seed: int, shift: float = 5.0) -> np.ndarray:
    """Rotated, sheared, scaled and flipped at random; not too thin."""
    random = np.random.default_rng(seed)
    matrix = np.eye(4)
    q, _ = np.linalg.qr(random.normal(size=(3, 3)))
    matrix[:3, :3] = q @ (np.diag(random.uniform(0.6, 1.8, 3)) + np.triu(random.uniform(-0.3, 0.3, (3, 3)), 1))
    matrix[:3, 3] = random.uniform(-shift, shift, 3)
    return matrix


def as_vtk(matrix: np.ndarray) -> Any:
    made = vtk.vtkMatrix4x4()
    made.DeepCopy(matrix.ravel())
    return made


def under(held: HeadlessScene, node: Any, matrix: np.ndarray) -> Any:
    transform = held.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(as_vtk(matrix))
    node.SetAndObserveTransformNodeID(transform.GetID())
    return transform


def add_roi(held: HeadlessScene, centre: Any = (0, 0, 0), size: Any = (4, 5, 6)) -> Any:
    roi = held.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    roi.SetCenter(*centre)
    roi.SetSize(*size)
    return roi


def add_volume(held: HeadlessScene, affine: np.ndarray) -> Any:
    return volume_node(held.scene, np.zeros(SHAPE, np.uint8), affine, "Scan")


def kept(region: Region) -> np.ndarray:
    """Which voxels of the whole volume are kept, when only its part is at hand."""
    lower, upper = region.with_context((1, 0.2, 0), SHAPE)
    part = np.ones([b - a for a, b in zip(lower, upper)], np.uint8)
    return region.keep(part, lower, SHAPE) == 1


def by_slicer(roi: Any, volume: Any) -> np.ndarray:
    """Each voxel's place in the world, and whether Slicer says that it lies in the box."""
    found, affine = np.zeros(SHAPE, bool), ijk_to_ras(volume)
    parent = volume.GetParentTransformNode()
    for voxel in np.ndindex(SHAPE):
        place = (affine @ [*voxel, 1])[:3]
        if parent is not None:
            volume.TransformPointToWorld(place, place)
        # Its own function counts the border as outside.
        local = np.linalg.inv(_to_world(roi)) @ [*place, 1]
        found[voxel] = (np.abs(local[:3]) <= np.array(roi.GetSize()) / 2 + 1e-9).all()
    return found


def _to_world(roi: Any) -> np.ndarray:
    matrix = roi.GetObjectToWorldMatrix()
    return np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.booleans())
def test_the_voxels_in_the_box_are_kept(seed: int, rotated: bool, roi_moved: bool, volume_moved: bool) -> None:
    HELD.scene.Clear(0)
    random = np.random.default_rng(seed)
    volume = add_volume(HELD, a_matrix(seed))
    if volume_moved:
        under(HELD, volume, a_matrix(seed + 1))
    centre = ijk_to_ras(volume) @ [*(random.uniform(0.3, 0.7, 3) * SHAPE), 1]
    volume.TransformPointToWorld(centre[:3], centre[:3])
    roi = add_roi(HELD, size=random.uniform(3, 12, 3))
    if rotated:
        rotation = np.eye(4)
        rotation[:3, :3] = np.linalg.qr(random.normal(size=(3, 3)))[0]
        rotation[:3, 0] *= np.sign(np.linalg.det(rotation[:3, :3]))
        roi.SetAndObserveObjectToNodeMatrix(as_vtk(rotation))
    if roi_moved:
        shift = np.eye(4)
        shift[:3, 3] = random.uniform(-5, 5, 3)
        under(HELD, roi, shift)
    roi.SetCenterWorld(*centre[:3])
    expected = by_slicer(roi, volume)
    if not expected.any():
        return
    region = region_of(roi, volume)
    assert (kept(region) == expected).all()
    places = np.argwhere(expected)
    assert (places.min(axis=0) >= region.lower).all() and (places.max(axis=0) < region.upper).all()


def test_slicer_itself_says_the_same_away_from_the_border(held: HeadlessScene) -> None:
    volume = add_volume(held, np.eye(4))
    roi = add_roi(held, (4.2, 5.1, 4.8), (5.1, 6.3, 3.1))
    found = kept(region_of(roi, volume))
    for voxel in np.ndindex(SHAPE):
        assert found[voxel] == roi.IsPointInROIWorld([float(n) for n in voxel])


def test_under_a_warping_transform(held: HeadlessScene) -> None:
    volume = add_volume(held, np.diag([2.0, 2.0, 2.0, 1.0]))
    warp = vtk.vtkThinPlateSplineTransform()
    warp.SetBasisToR()
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for corner in np.ndindex(2, 2, 2):
        source.InsertNextPoint(*(np.array(corner) * 20.0))
        target.InsertNextPoint(*(np.array(corner) * 20.0))
    source.InsertNextPoint(9, 11, 9)
    target.InsertNextPoint(12, 10, 8)
    warp.SetSourceLandmarks(source)
    warp.SetTargetLandmarks(target)
    node = held.scene.AddNewNodeByClass("vtkMRMLTransformNode")
    node.SetAndObserveTransformToParent(warp)
    volume.SetAndObserveTransformNodeID(node.GetID())
    roi = add_roi(held, (11, 10, 9), (8.3, 7.1, 9.7))
    expected, found = by_slicer(roi, volume), kept(region_of(roi, volume))
    assert expected.sum() > 20 and (found != expected).mean() < 0.005
    volume.SetAndObserveTransformNodeID(None)
    assert (by_slicer(roi, volume) != expected).mean() > 0.02, "the transform matters"


def test_an_item_of_a_sequence_lies_under_the_transform_that_is_named(held: HeadlessScene) -> None:
    volume = add_volume(held, np.eye(4))
    shift = np.eye(4)
    shift[0, 3] = 3
    transform = under(held, volume, shift)
    roi = add_roi(held, (6, 5, 5), (4.2, 4.2, 4.2))
    there = region_of(roi, volume)
    volume.SetAndObserveTransformNodeID(None)
    assert region_of(roi, volume, transform).lower == there.lower == (1, 3, 3)
    assert region_of(roi, volume).lower == (4, 3, 3)


def test_context_ends_with_the_volume() -> None:
    region = Region("r", (3, 0, 5), (6, 4, 10), np.zeros((2, 2, 2, 3)))
    assert region.with_context((1.2, 2, 0), (9, 5, 10)) == ((1, 0, 5), (8, 5, 10))


def test_what_is_no_region(held: HeadlessScene) -> None:
    volume = add_volume(held, np.eye(4))
    roi = add_roi(held, size=(0, 4, 4))
    assert "Box has no size" in why_no_region(roi)
    roi.SetSize(3, 3, 3)
    assert why_no_region(roi) == ""
    roi.SetInsideOut(True)
    assert "turned inside out" in why_no_region(roi)
    assert "Scan is no region of interest but a Volume" in why_no_region(volume)
    roi.SetInsideOut(False)
    roi.SetCenter(100, 0, 0)
    with pytest.raises(DataError, match="Box lies outside the volume Scan"):
        region_of(roi, volume)
