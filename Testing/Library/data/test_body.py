"""Where the body is, against slow obvious code."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from HybridMIMLib.data.body import BLOCK, MARGIN, air_level, find_body
from HybridMIMLib.data.plan import Plan

CT = Plan(1, (1.0, 1.0, 1.0), "window", (-1000.0, 1000.0), (16,) * 3, (8,) * 3, (8,) * 3)
SHAPES = st.tuples(*[st.integers(1, 25)] * 3)
OUTSIDE, INSIDE = 0.1, 0.9


@pytest.mark.parametrize(
    ("window", "level"), [((-1000, 1000), 0.25), ((-600, 400), 0.1), ((-500, 300), 0), ((-200, 300), 0), ((0, 1), 0)]
)
def test_air_is_below_minus_500_hu_where_intensities_are_hu(window: tuple[float, float], level: float) -> None:
    assert air_level(replace(CT, window=window)) == pytest.approx(level)


@pytest.mark.parametrize("normalisation", ["zscore", "percentiles"])
def test_elsewhere_air_is_the_darkest_twentieth(normalisation: str) -> None:
    assert air_level(replace(CT, normalisation=normalisation)) == 0.05


def test_a_window_that_ends_below_air_still_shows_a_body() -> None:
    """All that is solid is 1 there, and so would be a level that follows from HU alone."""
    lungs = np.zeros((1, 8, 8, 8), dtype=np.float32)
    lungs[0, 4:] = 1
    assert find_body(lungs, air_level(replace(CT, window=(-1000.0, -600.0)))).cells.any()


def slow_box(solid: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    voxels = [voxel for voxel in product(*map(range, solid.shape)) if solid[voxel]]
    if not voxels:
        return (0, 0, 0), solid.shape
    lower = [max(0, min(column) - MARGIN) for column in zip(*voxels)]
    upper = [min(n, max(column) + 1 + MARGIN) for column, n in zip(zip(*voxels), solid.shape)]
    return tuple(lower), tuple(b - a for a, b in zip(lower, upper))


def slow_cells(solid: np.ndarray) -> np.ndarray:
    """Cells with a solid voxel, and those that no way over faces leads out of, in a slice along S."""
    shape = tuple(-(-n // BLOCK) for n in solid.shape)
    cells = np.zeros(shape, dtype=bool)
    for cell in product(*map(range, shape)):
        cells[cell] = solid[tuple(slice(BLOCK * at, BLOCK * at + BLOCK) for at in cell)].any()
    for k in range(shape[2]):
        air = {(i, j) for i, j in product(range(shape[0]), range(shape[1])) if not cells[i, j, k]}
        waiting = deque((i, j) for i, j in air if i in (0, shape[0] - 1) or j in (0, shape[1] - 1))
        outside = set(waiting)
        while waiting:
            i, j = waiting.popleft()
            for near in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if near in air and near not in outside:
                    outside.add(near)
                    waiting.append(near)
        for i, j in air - outside:
            cells[i, j, k] = True
    return cells


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.integers(1, 2), st.sampled_from([0.0, 0.002, 0.02, 0.2]), st.integers(0, 10**6))
def test_box_and_cells_are_those_of_slow_obvious_code(
    shape: tuple[int, int, int], channels: int, share: float, seed: int
) -> None:
    image = (np.random.default_rng(seed).random((channels, *shape)) < share).astype(np.float32)
    body = find_body(image, 0.5)
    solid = image.max(axis=0) > 0.5
    assert (body.lower, body.size) == slow_box(solid)
    assert np.array_equal(body.cells, slow_cells(solid))


def test_lungs_are_of_the_body_and_what_a_slice_does_not_enclose_is_not() -> None:
    image = np.full((1, 48, 48, 24), OUTSIDE, dtype=np.float32)
    image[0, 8:40, 8:40] = INSIDE
    image[0, 16:32, 16:32] = OUTSIDE
    cells = find_body(image, 0.25).cells
    assert cells[2:10, 2:10].all() and not cells[:2].any() and not cells[10:].any()
    image[0, 16:32, 32:] = OUTSIDE  # open to one side
    assert not find_body(image, 0.25).cells[4:8, 4:].any()


def test_a_channel_that_is_bright_is_enough() -> None:
    image = np.zeros((2, 40, 40, 40), dtype=np.float32)
    image[0, 15, 20, 20], image[1, 20, 15, 20] = 1, 1
    body = find_body(image, 0.05)
    assert body.lower == (15 - MARGIN, 15 - MARGIN, 20 - MARGIN)
    assert body.size == (6 + 2 * MARGIN, 6 + 2 * MARGIN, 1 + 2 * MARGIN)
    assert body.cells.sum() == 2


def test_a_scan_of_air_has_a_box_and_no_body() -> None:
    body = find_body(np.full((1, 9, 5, 1), 0.25, dtype=np.float32), 0.25)
    assert (body.lower, body.size) == ((0, 0, 0), (9, 5, 1)) and not body.cells.any()
