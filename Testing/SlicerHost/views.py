"""A picture of what is in the scene: slices and surface, drawn by Slicer's own displayable managers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from HybridMIMLib.slicer_side.pictures import result_picture


def scene_picture(scene: Any, path: Path, title: str = "") -> Path:
    """Three slices and the surface of the scene's last segmentation over the volume that it refers to, as PNG.

    Raises:
        ValueError: the scene has no segmentation, or none of its volumes can lie below it.
    """
    segmentation = _last(scene, "vtkMRMLSegmentationNode")
    if segmentation is None:
        raise ValueError("the scene has no segmentation to draw")
    volume = segmentation.GetNodeReference("referenceImageGeometryRef") or _last(scene, "vtkMRMLScalarVolumeNode")
    if volume is None:
        raise ValueError(f"the scene has no volume below the segmentation {segmentation.GetName()}")
    result_picture(path, volume, segmentation, title=title)
    return path


def _last(scene: Any, class_name: str) -> Any:
    count = scene.GetNumberOfNodesByClass(class_name)
    return scene.GetNthNodeByClass(count - 1, class_name) if count else None
