"""Resampling keeps the box of space and what lies in it, against slow obvious code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.resampling import labels_from_scores, resample_image, resample_labels, resampled_grid

OBLIQUE = np.array([[0.72, -0.66, 0, -40], [0.54, 0.88, 0, 12.5], [0, 0, 3, 7], [0, 0, 0, 1.0]])
SHAPES = st.tuples(*[st.integers(1, 9)] * 3)


def outer_corners(grid: Grid) -> np.ndarray:
    """The two opposite corners of the box, at the outer faces of the first and the last voxel."""
    ends = np.array([[-0.5] * 3, np.array(grid.shape) - 0.5])
    return ends @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def world(grid: Grid) -> np.ndarray:
    voxels = np.moveaxis(np.indices(grid.shape), 0, -1)
    return voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]


@given(
    shape=st.tuples(*[st.integers(1, 60)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 20)] * 3),
)
@settings(max_examples=60, deadline=None)
def test_the_box_of_space_is_kept(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
    grid = Grid(shape, OBLIQUE)
    target = resampled_grid(grid, spacing)
    assert np.allclose(outer_corners(grid), outer_corners(target), atol=1e-6)
    wanted = np.multiply(grid.shape, grid.spacing) / spacing
    assert all(n == max(round(w), 1) or abs(n - w) <= 0.5 + 1e-9 for n, w in zip(target.shape, wanted))


def test_the_same_spacing_changes_nothing() -> None:
    grid = Grid((5, 6, 7), OBLIQUE)
    same = resampled_grid(grid, grid.spacing)
    array = np.random.default_rng(0).normal(size=(2, 5, 6, 7)).astype(np.float32)
    assert same.shape == grid.shape and np.allclose(same.affine, grid.affine)
    assert np.array_equal(resample_image(array, same.shape), array)


@pytest.mark.parametrize("spacing", [(0.5, 0.7, 1.1), (1.4, 1.3, 4.0), (2.0, 3.0, 7.0), (0.5, 3.0, 3.0)])
def test_a_ramp_keeps_its_values_in_the_world(spacing: tuple[float, float, float]) -> None:
    grid = Grid((40, 36, 30), OBLIQUE)
    slope = np.array([3.0, -2.0, 5.0])
    target = resampled_grid(grid, spacing)
    got = resample_image((world(grid) @ slope)[None].astype(np.float32), target.shape)[0]
    inner = tuple(slice(n // 4, n - n // 4) for n in target.shape)
    assert np.allclose(got[inner], (world(target) @ slope)[inner], atol=0.05)


def test_a_fine_pattern_is_averaged_not_sampled() -> None:
    """Without the low pass every second pair of slices would be all that is seen."""
    comb = np.zeros((1, 64, 8, 8), dtype=np.float32)
    comb[0, 1::4] = comb[0, 2::4] = 1
    assert np.abs(resample_image(comb, (16, 8, 8))[0, 2:-2] - 0.5).max() < 0.1


def test_a_constant_stays_constant_up_to_the_faces() -> None:
    array = np.full((2, 7, 5, 9), 42.5, dtype=np.float32)
    for shape in ((20, 3, 9), (1, 1, 1), (2, 11, 40)):
        assert np.allclose(resample_image(array, shape), 42.5)


@given(old=SHAPES, new=SHAPES)
@settings(max_examples=40, deadline=None)
def test_each_voxel_takes_the_label_at_its_centre(old: tuple[int, int, int], new: tuple[int, int, int]) -> None:
    labels = np.random.default_rng(sum(old)).integers(0, 255, old).astype(np.uint8)
    rows = [[(2 * i + 1) * n // (2 * m) for i in range(m)] for n, m in zip(old, new)]
    assert np.array_equal(resample_labels(labels, new), labels[np.ix_(*rows)])


@pytest.mark.parametrize("factor", [2, 3])
def test_labels_come_back_from_a_finer_grid(factor: int) -> None:
    labels = np.random.default_rng(1).integers(0, 5, (6, 7, 8)).astype(np.uint8)
    fine = resample_labels(labels, (6 * factor, 7 * factor, 8 * factor))
    assert np.array_equal(resample_labels(fine, labels.shape), labels)


def test_a_smooth_image_comes_back_from_another_grid_where_it_was() -> None:
    z, y, x = np.indices((30, 32, 34), dtype=np.float32)
    image = np.sin(z / 5) * np.cos(y / 6) * np.sin(x / 7)
    back = resample_image(resample_image(image[None], (41, 27, 50)), image.shape)[0]
    inner = (slice(3, -3),) * 3
    assert np.abs(back - image)[inner].max() < 0.06
    for axis in range(3):
        assert np.corrcoef(back[inner].ravel(), image[inner].ravel())[0, 1] > max(
            np.corrcoef(back[inner].ravel(), np.roll(image, shift, axis)[inner].ravel())[0, 1] for shift in (-1, 1)
        )


@given(old=SHAPES, new=SHAPES, slab=st.integers(1, 10))
@settings(max_examples=60, deadline=None)
def test_slabs_give_the_labels_of_the_whole(old: tuple[int, int, int], new: tuple[int, int, int], slab: int) -> None:
    scores = torch.from_numpy(np.random.default_rng(sum(old) + slab).normal(size=(4, *old)).astype(np.float32))
    whole = F.interpolate(scores[None], new, mode="trilinear", align_corners=False)[0]
    first, second = whole.topk(2, dim=0).values
    clear = ((first - second) > 1e-4).numpy()
    got = labels_from_scores(scores, new, slab)
    assert got.shape == new and got.dtype == np.uint8
    assert np.array_equal(got[clear], whole.argmax(0).numpy()[clear]) and clear.mean() > 0.9


def test_one_class_is_that_class_everywhere() -> None:
    assert not labels_from_scores(torch.randn(1, 3, 4, 5), (7, 8, 9)).any()
