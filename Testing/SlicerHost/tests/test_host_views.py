"""Pictures of the scene."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import slicer
from PIL import Image
from SlicerHost import Host
from SlicerHost.views import scene_picture


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
