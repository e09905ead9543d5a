"""Voxels on their way to a file: values and place are kept to the last digit, whatever their type."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

pytest.importorskip("slicer", reason="needs slicer-core")

import vtk
from hypothesis import given, settings
from hypothesis import strategies as st
from vtk.util.numpy_support import numpy_to_vtk

from HybridMIMLib.data.scans import read_scan
from HybridMIMLib.errors import DiskError, LabelError
from HybridMIMLib.slicer_side import voxels
from HybridMIMLib.slicer_side.scene import headless_scene
from HybridMIMLib.slicer_side.segments import ijk_to_ras, volume_node
from HybridMIMLib.slicer_side.voxels import copy_voxels, new_array, read_labels, stamp, type_of_copy, write_scan

TYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64")
HELD = headless_scene()
AFFINE = np.array([[0.0, -0.96, 1.2, 4.1], [1.1, 0.0, 0.3, -5.0], [0.0, 0.28, 4.1, 6.5], [0, 0, 0, 1]])


def a_volume(shape: tuple[int, int, int], kind: str = "int16") -> tuple[Any, np.ndarray]:
    HELD.scene.Clear(0)
    array = np.random.default_rng(1).integers(0, 100, shape).astype(kind)
    volume = volume_node(HELD.scene, array, AFFINE, "Scan")
    if kind == "int64":
        image = vtk.vtkImageData()
        image.SetDimensions(shape)
        image.GetPointData().SetScalars(numpy_to_vtk(array.T.ravel(), deep=True, array_type=vtk.VTK_LONG_LONG))
        volume.SetAndObserveImageData(image)
    return volume, array


@pytest.mark.parametrize("kind", TYPES)
def test_what_is_read_is_what_the_scene_has(tmp_path: Path, kind: str) -> None:
    volume, array = a_volume((5, 7, 4), kind)
    copy = new_array((5, 7, 4), type_of_copy(volume))
    assert list(copy_voxels(volume, (0, 0, 0), copy))
    write_scan(tmp_path / "scan.nrrd", copy, ijk_to_ras(volume))
    read = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "scan.nrrd")))
    assert (read.transpose(2, 1, 0) == array).all()
    scan = read_scan(tmp_path / "scan.nrrd")
    assert (scan.array[0] == array).all() and np.abs(scan.grid.affine - AFFINE).max() < 1e-12


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    st.integers(1, 300),
)
def test_any_box_in_pieces_of_any_size(shape: tuple[int, int, int], at: tuple[float, ...], piece: int) -> None:
    volume, array = a_volume(shape)
    lower = tuple(int(share * (n - 1)) for share, n in zip(at, shape))
    size = tuple(n - a for a, n in zip(lower, shape))
    copy = new_array(size, np.dtype("int16"))  # type: ignore[arg-type]
    before, voxels.PIECE = voxels.PIECE, piece
    try:
        largest = max(copy[part].nbytes for part in voxels._pieces(copy))
        assert sum(1 for _ in copy_voxels(volume, lower, copy)) == sum(1 for _ in voxels._pieces(copy))  # type: ignore[arg-type]
    finally:
        voxels.PIECE = before
    d, h, w = lower
    assert (array[d:, h:, w:] == copy.T).all()
    assert largest <= max(piece, copy[:1, :1].nbytes)


@pytest.mark.skipif(os.name == "nt", reason="limits of file sizes are of POSIX")
def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        with pytest.raises(DiskError, match=r"scan\.nrrd: the disk is full"):
            write_scan(tmp_path / "scan.nrrd", np.zeros((20, 20, 20), np.int16), np.eye(4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert list(tmp_path.iterdir()) == []


def test_a_result_of_another_shape_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "labels.nrrd"
    labels = np.random.default_rng(0).integers(0, 4, (5, 4, 3)).astype(np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(labels), str(file))
    assert (read_labels(file, (3, 4, 5), "Scan") == labels.T).all()
    with pytest.raises(LabelError, match="Scan: the result has the shape"):
        read_labels(file, (3, 4, 6), "Scan")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(labels.astype(np.float32)), str(file))
    with pytest.raises(LabelError, match="the type float32"):
        read_labels(file, (3, 4, 5), "Scan")
    file.write_bytes(b"NRRD?")
    with pytest.raises(LabelError, match="cannot be read"):
        read_labels(file, (3, 4, 5), "Scan")


def test_a_stamp_changes_with_the_voxels_alone() -> None:
    volume, _ = a_volume((4, 4, 4))
    before = stamp(volume)
    volume.SetOrigin(1, 2, 3)
    volume.SetName("Other")
    volume.CreateDefaultDisplayNodes()
    assert stamp(volume) == before
    volume.GetImageData().GetPointData().GetScalars().Modified()
    assert stamp(volume) != before
    volume.SetAndObserveImageData(None)
    assert stamp(volume) == ()
