"""Resampling keeps the box of space and what lies in it, against slow obvious code."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.resampling import (
    LOW_PASS_FROM,
    resample_image,
    resample_labels,
    resampled_grid,
    resampling_matrix,
)

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


def slowly_resampled(array: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Axis by axis, cell by cell: blur where the axis shrinks much, then between the two nearest cells."""
    result = array.astype(np.float64)
    for axis, new in enumerate(shape, 1):
        old = result.shape[axis]
        if old / new > LOW_PASS_FROM:
            result = ndimage.gaussian_filter1d(result, old / new / 2, axis=axis, mode="nearest")
        rows = []
        for cell in range(new):
            at = min(max((cell + 0.5) * old / new - 0.5, 0), old - 1)
            below = int(at)
            above = min(below + 1, old - 1)
            rows.append(result.take(below, axis) * (below + 1 - at) + result.take(above, axis) * (at - below))
        result = np.stack(rows, axis)
    return result


@given(old=SHAPES, new=SHAPES, dtype=st.sampled_from(["uint8", "int16", "uint16", "float32", "float64"]))
@settings(max_examples=60, deadline=None)
def test_an_image_is_resampled_as_cell_by_cell(
    old: tuple[int, int, int], new: tuple[int, int, int], dtype: str
) -> None:
    array = np.random.default_rng(sum(old)).integers(0, 255, (2, *old)).astype(dtype)
    got = resample_image(array, new)
    assert got.shape == (2, *new) and got.dtype == np.float32
    assert np.allclose(got, slowly_resampled(array, new), atol=1e-3)
    # No overshoot: the numbers stay those of the scan.
    assert got.min() >= array.min() - 1e-3 and got.max() <= array.max() + 1e-3


@pytest.mark.parametrize("new", [(13, 40, 9), (31, 7, 20), (70, 12, 12), (20, 12, 12)])
def test_slabs_leave_no_trace(new: tuple[int, int, int]) -> None:
    array = np.random.default_rng(0).integers(-1024, 3000, (2, 61, 12, 12), dtype=np.int16)
    assert np.allclose(resample_image(array, new), slowly_resampled(array, new), atol=0.01)


def test_an_axis_that_stays_is_not_touched() -> None:
    array = np.random.default_rng(0).integers(-1024, 3000, (1, 20, 9, 8), dtype=np.int16)
    assert np.array_equal(resample_image(array, (20, 9, 8)), array)
    got = resample_image(array, (20, 18, 8))
    assert np.allclose(got[0, 3], slowly_resampled(array[:, 3:4], (1, 18, 8))[0, 0], atol=0.01)


@given(old=st.integers(1, 60), new=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_a_row_of_the_matrix_is_a_mean_of_what_is_near(old: int, new: int) -> None:
    matrix = resampling_matrix(old, new)
    assert matrix.shape == (new, old) and np.allclose(matrix.sum(axis=1), 1) and matrix.min() >= 0
    centres = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    # Four standard deviations of half the factor, and the cell beside.
    assert np.abs(np.arange(old) - centres)[matrix > 0].max() <= 2 * max(old / new, 1) + 1.5


def test_as_little_as_1_5_is_not_low_passed() -> None:
    assert (resampling_matrix(300, 200) > 0).sum(axis=1).max() == 2
    assert (resampling_matrix(303, 200) > 0).sum(axis=1).max() > 2


@pytest.mark.parametrize("sigma", [0.3, 0.9, 2.5])
def test_a_blur_may_be_asked_for(sigma: float) -> None:
    line = np.random.default_rng(0).normal(size=17)
    assert np.allclose(
        resampling_matrix(17, 17, sigma) @ line, ndimage.gaussian_filter1d(line, sigma, mode="nearest")
    )


# --- label maps ---


def cell_of(voxel: tuple[int, ...], old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...]:
    return tuple((2 * v + 1) * m // (2 * n) for v, n, m in zip(voxel, old, new))


def at_centres(labels: np.ndarray, new: tuple[int, int, int]) -> np.ndarray:
    rows = [[(2 * i + 1) * n // (2 * m) for i in range(m)] for n, m in zip(labels.shape, new)]
    return np.asarray(labels[np.ix_(*rows)])


def around(labels: np.ndarray, cell: tuple[int, ...]) -> np.ndarray:
    """The cell and those beside it."""
    return np.asarray(labels[tuple(slice(max(c - 1, 0), c + 2) for c in cell)])


def slowly_kept(labels: np.ndarray, new: tuple[int, int, int]) -> np.ndarray:
    """The rule voxel by voxel, but for classes that would vanish in the quarrel about a cell."""
    nearest = at_centres(labels, new)
    result, lost = nearest.copy(), []
    for voxel in np.ndindex(labels.shape):
        cell = cell_of(voxel, labels.shape, new)
        if labels[voxel] and labels[voxel] not in around(nearest, cell):
            lost.append((cell, labels[voxel]))
    for cell, value in sorted(lost, key=lambda one: -int((labels == one[1]).sum())):
        result[cell] = value
    return result


@given(old=SHAPES, factors=st.tuples(*[st.integers(1, 4)] * 3))
@settings(max_examples=40, deadline=None)
def test_each_voxel_of_a_finer_grid_takes_the_label_at_its_centre(
    old: tuple[int, int, int], factors: tuple[int, int, int]
) -> None:
    labels = np.random.default_rng(sum(old)).integers(0, 255, old).astype(np.uint8)
    new = (old[0] * factors[0], old[1] + factors[1], old[2])
    assert np.array_equal(resample_labels(labels, new), at_centres(labels, new))


@given(old=SHAPES, new=SHAPES, dense=st.booleans())
@settings(max_examples=80, deadline=None)
def test_labels_are_kept_as_voxel_by_voxel(old: tuple[int, int, int], new: tuple[int, int, int], dense: bool) -> None:
    random = np.random.default_rng(sum(old))
    labels = random.integers(0, 4, old).astype(np.uint8) * (random.random(old) < (0.9 if dense else 0.1))
    got, wanted = resample_labels(labels.astype(np.uint8), new), slowly_kept(labels.astype(np.uint8), new)
    classes = set(np.unique(labels)) - {0}
    if classes <= set(np.unique(wanted)):
        assert np.array_equal(got, wanted)
    else:
        # One more cell for each class that had none.
        assert (got != wanted).sum() <= 2 * len(classes)


@given(old=SHAPES, new=SHAPES, count=st.integers(1, 30))
@settings(max_examples=80, deadline=None)
def test_no_class_vanishes_while_there_are_cells(
    old: tuple[int, int, int], new: tuple[int, int, int], count: int
) -> None:
    labels = np.random.default_rng(count).integers(0, count + 1, old).astype(np.uint8)
    classes, kept = set(np.unique(labels)) - {0}, set(np.unique(resample_labels(labels, new))) - {0}
    assert kept <= classes and (kept == classes or len(kept) == np.prod(new))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("factor", [1.3, 1.7, 2.0, 2.5, 3.0, 5.0])
def test_a_thin_sheet_stays_a_sheet_without_holes(axis: int, factor: float) -> None:
    shape = (30, 32, 34)
    new = tuple(round(n / factor) for n in shape)
    for place in range(shape[axis]):
        labels = np.zeros(shape, np.uint8)
        labels[(slice(None),) * axis + (place,)] = 9
        got = resample_labels(labels, (new[0], new[1], new[2]))
        planes = got.any(axis=tuple(n for n in range(3) if n != axis))
        assert planes.sum() == 1 and (got.take(int(planes.argmax()), axis) == 9).all()
        assert abs((planes.argmax() + 0.5) / new[axis] - (place + 0.5) / shape[axis]) <= 1 / new[axis]


@pytest.mark.parametrize("factor", [2.0, 2.7, 4.0])
def test_a_crooked_line_has_its_class_within_a_cell(factor: float) -> None:
    labels = np.zeros((40, 40, 40), np.uint8)
    random = np.random.default_rng(0)
    y, z = 20, 20
    for x in range(40):
        y, z = (int(np.clip(v + random.integers(-1, 2), 0, 39)) for v in (y, z))
        labels[x, y, z] = 3
    new = (round(40 / factor),) * 3
    got = resample_labels(labels, new)
    assert all(3 in around(got, cell_of(voxel, labels.shape, new)) for voxel in np.argwhere(labels))
    assert np.argwhere(got).min(axis=0)[0] == 0 and np.argwhere(got).max(axis=0)[0] == new[0] - 1


def test_a_single_voxel_stays_wherever_it_is() -> None:
    for place in product(range(0, 12, 3), range(1, 12, 3), range(2, 12, 3)):
        labels = np.zeros((12, 12, 12), np.uint8)
        labels[place] = 200
        got = resample_labels(labels, (4, 5, 12))
        assert (got == 200).sum() == 1 and got[cell_of(place, labels.shape, (4, 5, 12))] == 200


def test_a_small_class_inside_a_large_one_stays() -> None:
    labels = np.ones((20, 20, 20), np.uint8)
    labels[10, 10, 10] = 2
    got = resample_labels(labels, (7, 7, 7))
    assert (got == 2).sum() == 1 and (got == 1).sum() == 7**3 - 1


def test_classes_that_share_a_cell_all_stay() -> None:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:4, 2:4, 2:4] = np.arange(1, 9).reshape(2, 2, 2)
    got = resample_labels(labels, (4, 4, 4))
    assert sorted(got[got > 0]) == list(range(1, 9))
    assert np.abs(np.argwhere(got) - 1).max() <= 2


def test_more_classes_than_cells_are_no_trouble() -> None:
    labels = np.arange(1, 28, dtype=np.uint8).reshape(3, 3, 3)
    assert len(np.unique(resample_labels(labels, (2, 2, 1)))) == 4


@pytest.mark.parametrize("factor", [1.5, 2.0, 3.0])
def test_what_is_large_does_not_grow(factor: float) -> None:
    places = np.stack(np.meshgrid(*[np.arange(72)] * 3, indexing="ij"), axis=-1)
    ball = (np.linalg.norm(places - 36, axis=-1) < 25).astype(np.uint8)
    box = np.zeros((72, 72, 72), np.uint8)
    box[11:50, 20:61, 5:40] = 1
    for labels in (ball, box):
        new = (round(72 / factor),) * 3
        got = resample_labels(labels, new)
        assert np.array_equal(got, at_centres(labels, new))
    assert resample_labels(ball, new).sum() * factor**3 == pytest.approx(ball.sum(), rel=0.03)


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
