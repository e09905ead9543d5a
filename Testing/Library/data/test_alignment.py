"""Label maps on the grids of their scans, against slow obvious code."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from small_runs import TINY, write_blobs

from HybridMIMLib import prepare
from HybridMIMLib.data.alignment import align_labels
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.scans import LabelMap, read_label_map, write_label_map
from HybridMIMLib.errors import LabelError

TURN = np.array([[0.9, 0.3, 0, 1.5], [-0.3, 0.9, 0.1, -2], [0, 0, 1.2, 0.5], [0, 0, 0, 1.0]])

FLIPPED = np.array([[1.0, 0, 0, 0.2], [0, -1, 0, 7.3], [0, 0, 1, 0.1], [0, 0, 0, 1]])


def label_map(array: np.ndarray, affine: np.ndarray) -> LabelMap:
    return LabelMap(Path("a.nii"), array, Grid(array.shape, affine))


@pytest.mark.parametrize("affine", [TURN, np.diag([-2.0, 0.5, 1.3, 1.0]), FLIPPED])
def test_each_voxel_takes_the_label_at_its_centre(affine: np.ndarray) -> None:
    labels = np.random.default_rng(0).integers(0, 4, (9, 8, 7)).astype(np.uint8)
    target = Grid((6, 10, 5), affine)
    moved = align_labels(label_map(labels, np.eye(4)), target)
    for voxel in product(*(range(n) for n in target.shape)):
        place = (affine @ [*voxel, 1])[:3]
        nearest = np.round(place)
        if np.any(np.abs(np.abs(place - nearest) - 0.5) < 1e-6):
            continue  # between two voxels, either may win
        inside = np.all(nearest >= 0) and np.all(nearest < labels.shape)
        assert moved.array[voxel] == (labels[tuple(nearest.astype(int))] if inside else 0)
    assert moved.array.dtype == np.uint8 and moved.grid is target
    assert "was resampled onto the scan" in moved.warnings[0]


def test_one_on_the_same_grid_comes_back_as_it_is() -> None:
    label = label_map(np.ones((3, 4, 5), np.uint8), TURN)
    assert align_labels(label, Grid((3, 4, 5), TURN)) is label


def test_a_label_that_is_lost_is_an_error_and_half_of_one_a_warning() -> None:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[4, 4, 4], labels[5, 5, 5] = 2, 5
    # Every second voxel, from the first on: 2 is met, 5 is not.
    with pytest.raises(LabelError, match="nothing is left of label 5"):
        align_labels(label_map(labels, np.eye(4)), Grid((4, 4, 4), np.diag([2.0, 2, 2, 1])))
    labels = np.ones((8, 8, 8), np.uint8)
    moved = align_labels(label_map(labels, np.eye(4)), Grid((4, 8, 8), np.eye(4)))
    assert "50 % of the labelled volume lies outside" in moved.warnings[-1]
    moved = align_labels(label_map(labels, np.eye(4)), Grid((4, 4, 4), np.diag([2.0, 2, 2, 1])))
    assert "lies outside" not in moved.warnings[-1]


def test_they_are_resampled_only_when_asked(tmp_path: Path) -> None:
    folder = write_blobs(tmp_path / "cases", 3, labelled=True)
    file = folder / "labels" / "blob_1.nii.gz"
    label = read_label_map(file)
    coarse = Grid(tuple(-(-n // 2) for n in label.grid.shape), label.grid.affine @ np.diag([2.0, 2, 2, 1]))
    write_label_map(file, align_labels(label, coarse).array, coarse)
    settings = {"labelled": str(folder), "output": str(tmp_path / "run"), **TINY}
    with pytest.raises(LabelError, match="does not lie on the grid"):
        prepare(**settings)
    result = prepare(**settings, resample_labels=True)
    assert result["cases"] == {"labelled": 3}
    assert any("was resampled onto the scan" in text for text in result["warnings"])
