"""Masking: against loops over voxels, on grids whose axes all differ."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from HybridMIMLib.errors import SettingsError
from HybridMIMLib.pretraining.masking import (
    PatchGrid,
    Triple,
    by_region,
    draw_box,
    draw_mask,
    to_voxels,
    whole_patches,
)

GRID = PatchGrid((12, 8, 12), (2, 4, 1), (4, 8, 3))
SHARES = st.floats(0.01, 1.0)


def triples(largest: int) -> st.SearchStrategy[Triple]:
    """Three numbers, each from 1."""
    return st.tuples(*[st.integers(1, largest)] * 3)


@st.composite
def grids(draw: st.DrawFn) -> PatchGrid:
    """Grids with another patch, region and crop along each axis."""
    patch, inner, outer = draw(triples(3)), draw(triples(2)), draw(triples(3))
    region = (patch[0] * inner[0], patch[1] * inner[1], patch[2] * inner[2])
    return PatchGrid((region[0] * outer[0], region[1] * outer[1], region[2] * outer[2]), patch, region)


@st.composite
def scans(draw: st.DrawFn) -> tuple[PatchGrid, Triple]:
    """A grid and how many voxels of its crop hold scan."""
    grid = draw(grids())
    d, h, w = (draw(st.integers(1, length)) for length in grid.crop)
    return grid, (d, h, w)


def voxels(size: Triple) -> Iterator[Triple]:
    """All places of a box at the origin."""
    yield from product(range(size[0]), range(size[1]), range(size[2]))


def patch_of(voxel: Triple, grid: PatchGrid) -> Triple:
    """The patch that holds a voxel."""
    d, h, w = (v // p for v, p in zip(voxel, grid.patch))
    return d, h, w


def region_of(voxel: Triple, grid: PatchGrid) -> tuple[int, int]:
    """Number of the region that holds a voxel, and number of its patch within that region."""
    region, inside = 0, 0
    for v, r, p, c in zip(voxel, grid.region, grid.patch, grid.crop):
        region = region * (c // r) + v // r
        inside = inside * (r // p) + v % r // p
    return region, inside


def split(patches: np.ndarray, grid: PatchGrid) -> np.ndarray:
    """(regions, patches of a region) of one sample, by loops over the voxels."""
    shape = (int(np.prod(grid.regions)), int(np.prod(grid.per_region)))
    result = np.zeros(shape, dtype=patches.dtype)
    for voxel in voxels(grid.crop):
        result[region_of(voxel, grid)] = patches[patch_of(voxel, grid)]
    return result


@settings(max_examples=25, deadline=None)
@given(grids(), st.integers(0, 99))
def test_regions_and_voxels_follow_their_place_in_space(grid: PatchGrid, seed: int) -> None:
    values = np.random.default_rng(seed).permutation(int(np.prod(grid.patches))).reshape(grid.patches)
    batch = torch.from_numpy(np.stack([values, -values]))
    assert np.array_equal(by_region(batch, grid)[0].numpy(), split(values, grid))
    assert np.array_equal(by_region(batch, grid)[1].numpy(), -split(values, grid))
    painted = to_voxels(batch, grid.patch)
    assert painted.shape == (2, *grid.crop)
    assert all(painted[0][voxel] == values[patch_of(voxel, grid)] for voxel in voxels(grid.crop))


def test_runs_of_the_flat_list_are_other_regions() -> None:
    """The mistake of the published code shows with its own sizes."""
    grid = PatchGrid((96, 96, 96), (16, 16, 16), (32, 32, 32))
    number = torch.arange(216).reshape(1, 6, 6, 6)
    regions = by_region(number, grid)
    assert regions.shape == (1, 27, 8)
    assert regions[0, 0].tolist() == [0, 1, 6, 7, 36, 37, 42, 43]
    assert (regions != number.reshape(1, 27, 8)).float().mean() > 0.9


@pytest.mark.parametrize(
    "crop, patch, region", [((8, 8, 9), (2, 2, 2), (4, 4, 4)), ((8, 8, 8), (2, 3, 2), (4, 4, 4))]
)
def test_sizes_that_do_not_divide_are_named(crop: Triple, patch: Triple, region: Triple) -> None:
    with pytest.raises(SettingsError, match="is not a multiple of"):
        PatchGrid(crop, patch, region)


@settings(max_examples=40, deadline=None)
@given(scans())
def test_patches_are_whole_where_every_voxel_is_scan(case: tuple[PatchGrid, Triple]) -> None:
    grid, size = case
    expected = np.ones(grid.patches, dtype=bool)
    for voxel in voxels(grid.crop):
        if any(v >= n for v, n in zip(voxel, size)):
            expected[patch_of(voxel, grid)] = False
    assert np.array_equal(whole_patches(size, grid), expected)


@settings(max_examples=150, deadline=None)
@given(scans(), SHARES, SHARES, st.integers(0, 2**32))
def test_masks_keep_both_shares(case: tuple[PatchGrid, Triple], ratio: float, regions: float, seed: int) -> None:
    grid, size = case
    whole = whole_patches(size, grid)
    mask = draw_mask(np.random.default_rng(seed), grid, whole, ratio, regions)
    assert mask.shape == grid.patches and mask.dtype == np.bool_
    assert not (mask & ~whole).any(), "padding is masked"
    total, masked = int(whole.sum()), int(mask.sum())
    assert masked == min(total, max(1, round(ratio * total)))
    room, held = split(whole, grid).sum(axis=1), split(mask, grid).sum(axis=1)
    touched, usable = int((held > 0).sum()), int((room > 0).sum())
    wanted = min(max(1, round(regions * usable)), usable, masked)
    assert touched >= wanted
    if touched > wanted:
        # More are touched only where, without one of them, the masked patches find no room.
        assert room[held > 0].sum() - room[held > 0].max() < masked


@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.25, 0.4, 0.5, 0.75, 0.99, 1.0])
@pytest.mark.parametrize("regions", [0.01, 0.5, 0.75, 1.0])
def test_shares_on_a_whole_crop(ratio: float, regions: float) -> None:
    grid = PatchGrid((48, 48, 48), (8, 8, 8), (16, 16, 16))
    mask = draw_mask(np.random.default_rng(3), grid, whole_patches(grid.crop, grid), ratio, regions)
    masked = max(1, round(ratio * 216))
    assert int(mask.sum()) == masked
    touched = int((split(mask, grid).sum(axis=1) > 0).sum())
    assert touched == max(min(max(1, round(regions * 27)), masked), -(-masked // 8))


def test_untouched_regions_hold_no_masked_patch() -> None:
    mask = draw_mask(np.random.default_rng(0), GRID, whole_patches(GRID.crop, GRID), 0.2, 0.25)
    held = split(mask, GRID).sum(axis=1)
    assert held.tolist().count(0) == 9
    assert held.sum() == round(0.2 * 144)


def test_every_patch_is_masked_as_often() -> None:
    grid = PatchGrid((8, 12, 4), (2, 2, 2), (4, 6, 4))
    whole, draws = whole_patches(grid.crop, grid), 1500
    random = np.random.default_rng(5)
    often = sum(draw_mask(random, grid, whole, 0.4, 0.6).astype(float) for _ in range(draws)) / draws
    share = round(0.4 * whole.sum()) / whole.sum()
    assert np.abs(often - share).max() < 5 * np.sqrt(share * (1 - share) / draws)


def test_masks_of_a_region_differ_in_count_and_place() -> None:
    """Level 2 is a draw of its own: neither the count in a region nor the patches are fixed."""
    random, whole = np.random.default_rng(6), whole_patches(GRID.crop, GRID)
    drawn = [split(draw_mask(random, GRID, whole, 0.4, 0.75), GRID)[0] for _ in range(60)]
    assert len({int(region.sum()) for region in drawn}) >= 3
    assert len({region.tobytes() for region in drawn}) > 20


def test_draws_follow_from_the_generator_alone() -> None:
    whole = whole_patches((11, 8, 9), GRID)
    before, outer = whole.copy(), np.random.get_state()[1].copy()  # type: ignore[union-attr, index]
    one, other = (draw_mask(np.random.default_rng(9), GRID, whole, 0.5, 0.5) for _ in range(2))
    assert np.array_equal(one, other) and np.array_equal(whole, before)
    assert np.array_equal(outer, np.random.get_state()[1])  # type: ignore[index]


@pytest.mark.parametrize("size", [(1, 8, 12), (12, 3, 12), (1, 1, 12)])
def test_a_scan_thinner_than_a_patch_has_nothing_to_mask(size: Triple) -> None:
    whole = whole_patches(size, GRID)
    assert not whole.any()
    assert not draw_mask(np.random.default_rng(0), GRID, whole, 0.4, 0.75).any()
    lower = draw_box(np.random.default_rng(0), GRID, whole, (8, 4, 4), (4, 4, 4))
    assert all(v % 4 == 0 and v + s <= c for v, s, c in zip(lower, (8, 4, 4), GRID.crop))


def test_a_single_whole_patch_is_masked() -> None:
    whole = whole_patches(GRID.patch, GRID)
    assert whole.sum() == 1
    assert np.array_equal(draw_mask(np.random.default_rng(0), GRID, whole, 0.01, 0.01), whole)


def test_one_patch_is_region_and_crop() -> None:
    grid = PatchGrid((4, 6, 8), (4, 6, 8), (4, 6, 8))
    whole = whole_patches(grid.crop, grid)
    assert draw_mask(np.random.default_rng(0), grid, whole, 0.1, 0.1).all()
    assert draw_box(np.random.default_rng(0), grid, whole, (4, 6, 8), (2, 2, 2)) == (0, 0, 0)


def whole_voxels(lower: Triple, size: Triple, grid: PatchGrid, whole: np.ndarray) -> int:
    """How many voxels of a box lie in whole patches."""
    places = (tuple(a + b for a, b in zip(lower, voxel)) for voxel in voxels(size))
    return sum(bool(whole[patch_of((d, h, w), grid)]) for d, h, w in places)


@settings(max_examples=25, deadline=None)
@given(scans(), triples(4), st.data())
def test_boxes_reach_every_place_with_the_least_padding(
    case: tuple[PatchGrid, Triple], step: Triple, data: st.DataObject
) -> None:
    grid, filled = case
    whole = whole_patches(filled, grid)
    d, h, w = (data.draw(st.integers(1, min(c, 5))) for c in grid.crop)
    starts = product(*(range(0, c - s + 1, t) for c, s, t in zip(grid.crop, (d, h, w), step)))
    held = {(i, j, k): whole_voxels((i, j, k), (d, h, w), grid, whole) for i, j, k in starts}
    best = {place for place, count in held.items() if count == max(held.values())}
    random = np.random.default_rng(len(held))
    drawn = {
        draw_box(random, grid, whole, (d, h, w), step) for _ in range(20 + 8 * len(best) if len(best) < 40 else 40)
    }
    assert drawn <= best
    # A place is missed by all of n draws among m with probability (1 - 1/m)^n; small sets must be seen whole.
    if len(best) <= 2:
        assert drawn == best


def test_all_places_are_drawn_as_often() -> None:
    grid = PatchGrid((24, 16, 16), (8, 4, 4), (8, 8, 8))
    random, whole = np.random.default_rng(1), whole_patches((24, 13, 16), grid)
    drawn = [draw_box(random, grid, whole, (8, 8, 8), (4, 4, 8)) for _ in range(1500)]
    # Along the second axis 12 of 13 voxels lie in whole patches: the box begins at 0 or 4.
    places = set(product((0, 4, 8, 12, 16), (0, 4), (0, 8)))
    assert set(drawn) == places
    counts = np.array([drawn.count(place) for place in places])
    assert np.abs(counts / 1500 - 1 / 20).max() < 5 * np.sqrt(0.05 * 0.95 / 1500)


def test_a_box_larger_than_the_scan_begins_at_its_corner() -> None:
    grid = PatchGrid((16, 16, 16), (4, 4, 4), (8, 8, 8))
    whole = whole_patches((5, 16, 16), grid)
    drawn = {draw_box(np.random.default_rng(n), grid, whole, (8, 8, 16), (4, 4, 4)) for n in range(60)}
    assert drawn == {(0, 0, 0), (0, 4, 0), (0, 8, 0)}
