"""Grids: same places whatever the order of the axes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from HybridMIMLib.data.grid import Grid, from_canonical, to_canonical
from HybridMIMLib.errors import ScanError


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Any rotation, axis order, flips, spacings from 0.3 to 40 mm, and some shear."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.tuples(*[st.integers(2, 7)] * 3))
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    permutation = np.eye(3)[draw(st.permutations(range(3)))]
    matrix = rotation if draw(st.booleans()) else permutation
    signs = draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    shear = np.eye(3)
    shear[0, 2] = draw(st.sampled_from([0.0, 0.2, -0.3]))
    affine = np.eye(4)
    affine[:3, :3] = shear @ matrix * signs * np.exp(rng.uniform(np.log(0.3), np.log(40), 3))
    affine[:3, 3] = rng.uniform(-500, 500, 3)
    return Grid(shape, affine)


def positions(grid: Grid) -> np.ndarray:
    """(3, D, H, W): where each voxel lies."""
    moved = np.tensordot(grid.affine[:3, :3], np.indices(grid.shape), axes=1)
    return moved + grid.affine[:3, 3][:, None, None, None]


@settings(max_examples=80, deadline=None)
@given(grids())
def test_canonical_keeps_every_voxel_at_its_place(grid: Grid) -> None:
    where = positions(grid)
    turned, turned_grid, orientation = to_canonical(where, grid)
    assert np.allclose(turned, positions(turned_grid), atol=1e-6)
    assert np.array_equal(from_canonical(turned, orientation), where)


@settings(max_examples=40, deadline=None)
@given(grids())
def test_canonical_is_reached_and_stays(grid: Grid) -> None:
    array = np.arange(np.prod(grid.shape)).reshape(grid.shape)
    turned, turned_grid, _ = to_canonical(array, grid)
    assert turned_grid.axis_codes == "RAS"
    again, again_grid, _ = to_canonical(turned, turned_grid)
    assert np.array_equal(again, turned)
    assert again_grid.same_as(turned_grid, 1e-9)


def test_channels_stay_first() -> None:
    grid = Grid((2, 3, 4), np.array([[0, 0, -2, 9], [-3, 0, 0, 8], [0, 4, 0, 7], [0, 0, 0, 1]]))
    array = np.arange(2 * 24).reshape(2, 2, 3, 4)
    turned, turned_grid, orientation = to_canonical(array, grid)
    assert turned.shape == (2, 4, 2, 3)
    assert turned.flags["C_CONTIGUOUS"]
    assert turned_grid.spacing == (2.0, 3.0, 4.0)
    assert np.array_equal(turned[1], to_canonical(array[1], grid)[0])
    assert np.array_equal(from_canonical(turned, orientation), array)


def test_array_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="does not lie on a grid"):
        to_canonical(np.zeros((2, 3, 5)), Grid((2, 3, 4), np.eye(4)))


def test_spacing_and_axis_codes() -> None:
    grid = Grid((5, 6, 7), np.diag([-0.5, -0.75, 3.0, 1.0]))
    assert grid.spacing == (0.5, 0.75, 3.0)
    assert grid.axis_codes == "LPS"


def test_affine_is_copied_and_read_only() -> None:
    affine = np.eye(4)
    grid = Grid((2, 2, 2), affine)
    affine[0, 0] = 5
    assert grid.spacing == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 5


def test_same_as_allows_rounding_and_no_more() -> None:
    affine = np.diag([0.785156, 0.785156, 7.5, 1.0])
    grid = Grid((512, 512, 32), affine)
    assert grid.same_as(Grid(grid.shape, affine.astype(np.float32)))
    shifted = affine.copy()
    shifted[2, 3] += 0.5 * 7.5
    scaled = affine @ np.diag([1.003, 1, 1, 1])
    assert not grid.same_as(Grid(grid.shape, shifted))
    assert not grid.same_as(Grid(grid.shape, scaled))
    assert not grid.same_as(Grid((512, 512, 31), affine))


def test_same_as_measures_in_voxels_along_each_axis() -> None:
    grid = Grid((4, 4, 4), np.diag([0.5, 0.5, 10.0, 1.0]))
    along_slice, across_slices = grid.affine.copy(), grid.affine.copy()
    along_slice[0, 3] = across_slices[2, 3] = 0.3
    assert not grid.same_as(Grid(grid.shape, along_slice))
    assert grid.same_as(Grid(grid.shape, across_slices))


@pytest.mark.parametrize(
    "affine",
    [
        np.diag([1.0, 1.0, 0.0, 1.0]),
        np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        np.full((4, 4), np.nan),
        np.eye(3),
    ],
)
def test_singular_affine(affine: np.ndarray) -> None:
    with pytest.raises(ScanError, match="affine"):
        Grid((2, 2, 2), affine)
