"""Pictures of the scene."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import slicer
from PIL import Image
from SlicerHost import Host
from SlicerHost.views import scene_picture, slices_picture


def test_the_last_segmentation_is_drawn_over_its_volume(host: Host, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no segmentation"):
        scene_picture(host.scene, tmp_path / "empty.png")
    volume = slicer.util.addVolumeFromArray(np.random.default_rng(0).integers(0, 99, (20, 24, 22)).astype(np.int16))
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Result")
    segmentation.CreateDefaultDisplayNodes()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segment = segmentation.GetSegmentation().AddEmptySegment("a", "Blob", (1.0, 0.0, 0.0))
    mask = np.zeros((20, 24, 22), dtype=np.uint8)
    mask[5:15, 6:18, 6:16] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, segment, volume)
    picture = np.asarray(Image.open(scene_picture(host.scene, tmp_path / "scene.png")).convert("RGB")).astype(int)
    red = (picture[..., 0] > 150) & (picture[..., 1] < 90) & (picture[..., 2] < 90)
    assert red.sum() > 500


def test_a_segmentation_needs_a_volume(host: Host, tmp_path: Path) -> None:
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Alone")
    with pytest.raises(ValueError, match="below the segmentation Alone"):
        scene_picture(host.scene, tmp_path / "scene.png")


def test_slices_of_volumes_lie_side_by_side_each_with_its_own_window(host: Host, tmp_path: Path) -> None:
    half = np.zeros((20, 24, 22), dtype=np.int16)
    half[:, :, 11:] = 100
    dark, bright = (slicer.util.addVolumeFromArray(half, name=name) for name in ("Dark", "Bright"))
    for volume, window in ((dark, (0, 1000)), (bright, (0, 100))):
        volume.GetDisplayNode().AutoWindowLevelOff()
        volume.GetDisplayNode().SetWindowLevelMinMax(*window)
    before = host.scene.GetNumberOfNodes()
    picture = np.asarray(
        Image.open(slices_picture({"One": dark, "Two": bright}, tmp_path / "slices.png")).convert("L")
    )
    below_captions = picture[40:]
    left, right = below_captions[:, : picture.shape[1] // 2 - 10], below_captions[:, picture.shape[1] // 2 + 10 :]
    assert 15 < left.max() < 40 and right.max() > 250 and right.min() < 5
    assert picture[:28].min() < 50, "the captions"
    assert host.scene.GetNumberOfNodes() == before
