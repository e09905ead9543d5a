"""Pictures of results and the command that makes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

from PIL import Image

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.scans import write_label_map, write_nifti
from HybridMIMLib.slicer_side.pictures import pick_reference_color, result_picture
from HybridMIMLib.slicer_side.scene import headless_scene, read_scene
from HybridMIMLib.slicer_side.segments import label_array, segmentation_node, volume_node

CLASSES = (LabelClass(2, "First", (0.9, 0.2, 0.1)), LabelClass(7, "Second", (0.2, 0.3, 0.9)))
SHAPE = (30, 36, 24)
OBLIQUE = np.array([[0.92, -0.39, 0.0, 5.0], [0.36, 0.85, -0.78, 9.0], [0.15, 0.36, 1.84, 0.0], [0, 0, 0, 1]])
VIEWS = (slice(100, 980), slice(10, 1190))
"""Rows and columns of the four views, below the title and left of the legend."""
SLICES = (slice(100, 520), slice(10, 1190))


def _scan() -> np.ndarray:
    grid = np.indices(SHAPE).sum(axis=0)
    return (100 + 40 * np.sin(grid / 5)).astype(np.float32)


def _labels() -> np.ndarray:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[8:16, 10:26, 8:17] = 2
    labels[16:22, 10:26, 8:17] = 7
    return labels


def _count(pixels: np.ndarray, color: tuple[float, float, float]) -> int:
    return int((np.abs(pixels.astype(int) - np.round(255 * np.array(color))).max(axis=-1) <= 6).sum())


def _picture(path: Path, labels: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    held = headless_scene()
    volume = volume_node(held.scene, _scan(), OBLIQUE, "scan")
    result = segmentation_node(held.scene, volume, labels, CLASSES, "result")
    other = None
    if reference is not None:
        other = segmentation_node(held.scene, volume, reference, CLASSES, "reference")
    before = held.scene.GetNumberOfNodes()
    thickness = result.GetDisplayNode().GetSliceIntersectionThickness()
    result_picture(path, volume, result, other, title="A title")
    assert held.scene.GetNumberOfNodes() == before
    assert result.GetDisplayNode().GetSliceIntersectionThickness() == thickness
    assert np.array_equal(label_array(result, volume, CLASSES), labels)
    return np.asarray(Image.open(path).convert("RGB"))


def test_outlines_of_result_and_reference(unicode_folder: Path) -> None:
    labels = _labels()
    color = pick_reference_color([c.color for c in CLASSES])
    bare = _picture(unicode_folder / "bare.png", np.zeros_like(labels))
    alone = _picture(unicode_folder / "alone.png", labels)
    both = _picture(unicode_folder / "both 数.png", labels, np.roll(labels, 3, axis=1))
    assert bare.shape[1] == pytest.approx(1500, abs=20) and bare.shape[0] == pytest.approx(1000, abs=20)
    assert len(np.unique(bare[SLICES])) > 60, "the scan itself must be seen"
    for entry in CLASSES:
        assert _count(bare[SLICES], entry.color) == 0
        assert _count(alone[SLICES], entry.color) > 300
        assert _count(both[SLICES], entry.color) > 300
    assert _count(alone[VIEWS], color) == 0
    assert _count(both[SLICES], color) > 300
    surface = (slice(560, 980), slice(640, 1180))
    assert np.abs(alone[surface].astype(int) - bare[surface]).max(axis=-1).mean() > 10


def test_reference_colour_is_far_from_the_classes() -> None:
    assert pick_reference_color([]) == (1, 1, 0)
    for taken in [(1.0, 1.0, 0.0), (0.0, 1.0, 1.0), (0.9, 0.9, 0.2)]:
        assert np.linalg.norm(np.subtract(pick_reference_color([taken]), taken)) > 0.6


def _job(folder: Path, labels: np.ndarray) -> Path:
    grid = Grid(SHAPE, OBLIQUE)
    write_nifti(folder / "scan.nii.gz", _scan(), grid)
    write_label_map(folder / "labels.nii.gz", labels, grid)
    content = {
        "scan": str(folder / "scan.nii.gz"),
        "labels": str(folder / "labels.nii.gz"),
        "reference": str(folder / "labels.nii.gz"),
        "classes": [entry.to_json() for entry in CLASSES],
        "name": "Případ 数",
        "segmentation": str(folder / "out" / "result.seg.nrrd"),
        "scene": str(folder / "out" / "result.mrb"),
        "picture": str(folder / "out" / "result.png"),
    }
    (folder / "job.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder / "job.json"


def _show(job: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "HybridMIMLib.slicer_side.show", str(job)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_show_writes_three_files_and_one_line(unicode_folder: Path) -> None:
    done = _show(_job(unicode_folder, _labels()))
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert report["segments"] == ["First", "Second"]
    assert report["voxels"] == {"2": int((_labels() == 2).sum()), "7": int((_labels() == 7).sum())}
    assert sorted(p.name for p in (unicode_folder / "out").iterdir()) == [
        "result.mrb",
        "result.png",
        "result.seg.nrrd",
    ]
    scene = read_scene(Path(report["scene"])).scene
    node, volume = scene.GetFirstNodeByName("Případ 数"), scene.GetFirstNodeByName("scan")
    assert np.array_equal(label_array(node, volume, CLASSES), _labels())


def test_show_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    done = _show(_job(tmp_path, np.full(SHAPE, 3, np.uint8)))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    missing = _show(tmp_path / "none.json")
    assert missing.returncode == 1 and "none.json" in missing.stderr
