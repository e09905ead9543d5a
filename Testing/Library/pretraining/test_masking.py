"""Masking: against loops over voxels, patches and regions, and against the laws that the draws should follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, multivariate_hypergeom
from torch import Tensor

from HybridMIMLib.errors import SettingsError
from HybridMIMLib.pretraining import masking
from HybridMIMLib.pretraining.masking import (
    PatchGrid,
    Triple,
    by_region,
    draw_box,
    draw_mask,
    draw_patches,
    draw_share,
    to_patches,
    to_voxels,
    whole_patches,
)
from HybridMIMLib.settings.pretraining import Share

SHARES = st.floats(0.01, 1.0) | st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)).map(sorted)
PUBLISHED = [
    ((96, 96, 96), (16, 16, 16), (32, 32, 32)),
    ((96, 96, 96), (8, 8, 8), (32, 32, 32)),
    ((128, 128, 128), (32, 32, 32), (64, 64, 64)),
    ((128, 128, 128), (16, 16, 16), (64, 64, 64)),
]
"""Crop, patch, region."""
UNEQUAL = [
    ((96, 96, 32), (16, 16, 8), (32, 32, 16)),
    ((96, 96, 32), (16, 16, 8), (16, 32, 32)),
    ((48, 64, 48), (8, 8, 8), (16, 16, 16)),
    ((64, 96, 16), (8, 16, 4), (32, 32, 8)),
    ((32, 32, 32), (32, 32, 32), (32, 32, 32)),
]
RARE = 1e-4
"""A right draw is taken for a wrong one as often; keys are fixed, so that a test does it always or never."""


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
def batches(draw: st.DrawFn) -> tuple[PatchGrid, Tensor]:
    """A grid, and how many voxels of the crop hold scan in each of a few samples."""
    grid = draw(grids())
    size = st.tuples(*(st.integers(1, length) for length in grid.crop))
    return grid, torch.tensor(draw(st.lists(size, min_size=1, max_size=4)))


def voxels(size: Triple) -> Iterator[Triple]:
    """All places of a box at the origin."""
    yield from product(range(size[0]), range(size[1]), range(size[2]))


def patch_of(voxel: Triple, grid: PatchGrid) -> Triple:
    """The patch that holds a voxel."""
    d, h, w = (v // p for v, p in zip(voxel, grid.patch))
    return d, h, w


def split(patches: np.ndarray, grid: PatchGrid) -> list[np.ndarray]:
    """The patches of each region of one sample, cut out as slices."""
    found = []
    for corner in voxels(grid.regions):
        place = tuple(slice(c * n, (c + 1) * n) for c, n in zip(corner, grid.per_region))
        found.append(patches[place].flatten())
    return found


def filled(grid: PatchGrid, samples: int) -> Tensor:
    """Which patches are whole where scans fill the crop."""
    return torch.ones(samples, *grid.patches, dtype=torch.bool)


def keys(count: int, start: int = 0) -> Tensor:
    """Keys as samples have them: any numbers."""
    return torch.arange(start, start + count) * 7919 + 13


def share_of(ratio: Share, sample: Tensor, purpose: str) -> float:
    """The share that a sample has, in range."""
    low, high = ratio if isinstance(ratio, list) else (ratio, ratio)
    found = draw_share(sample, purpose, ratio).item()
    assert low - 1e-6 <= found <= high + 1e-6
    return found


def is_share(count: int, share: float, of: int) -> bool:
    """Whether a count is the share of a number to one half, but one at least where there is one."""
    return abs(count - share * of) <= 0.5 + 1e-3 or (count == min(1, of) and share * of < 1)


def is_hidden(count: int, share: float, of: int) -> bool:
    """The same for hidden patches, of which one is left to see where there are two or more."""
    leaves_one = count == of - 1 and count >= 1 and share * of >= of - 0.5 - 1e-3
    return leaves_one or (is_share(count, share, of) and (count < of or of < 2))


# --- places -------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(grids(), st.integers(0, 99))
def test_regions_and_voxels_follow_their_place_in_space(grid: PatchGrid, seed: int) -> None:
    values = np.random.default_rng(seed).permutation(int(np.prod(grid.patches))).reshape(grid.patches)
    batch = torch.from_numpy(np.stack([values, -values]))
    regions = by_region(batch, grid)
    for sample, sign in zip(regions.numpy(), (1, -1)):
        assert np.array_equal(sample, sign * np.stack(split(values, grid)))
    assert torch.equal(to_patches(regions, grid), batch)
    painted = to_voxels(batch, grid.patch)
    assert painted.shape == (2, *grid.crop)
    assert all(painted[0][voxel] == values[patch_of(voxel, grid)] for voxel in voxels(grid.crop))


def test_runs_of_the_flat_list_are_other_regions() -> None:
    """The mistake of the published code shows with its own sizes."""
    grid = PatchGrid(*PUBLISHED[0])
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
@given(batches())
def test_patches_are_whole_where_every_voxel_is_scan(case: tuple[PatchGrid, Tensor]) -> None:
    grid, sizes = case
    expected = np.ones((len(sizes), *grid.patches), dtype=bool)
    for sample, size in zip(expected, sizes.tolist()):
        for voxel in voxels(grid.crop):
            if any(v >= n for v, n in zip(voxel, size)):
                sample[patch_of(voxel, grid)] = False
    assert np.array_equal(whole_patches(sizes, grid).numpy(), expected)


# --- masks --------------------------------------------------------------------


def check_mask(mask: np.ndarray, whole: np.ndarray, grid: PatchGrid, share: float, region_share: float) -> None:
    """What a two-level mask of one sample must be, region by region."""
    assert not (mask & ~whole).any(), "padding is masked"
    total, masked = int(whole.sum()), int(mask.sum())
    assert masked <= total and is_hidden(masked, share, total)
    room = np.array([region.sum() for region in split(whole, grid)])
    held = np.array([region.sum() for region in split(mask, grid)])
    touched, usable = int((held > 0).sum()), int((room > 0).sum())
    if is_share(touched, region_share, usable):
        return
    if touched < region_share * usable:
        assert touched == masked, "fewer regions are touched than there are patches for"
    else:
        # Without one of them, the masked patches would find no room.
        assert room[held > 0].sum() - room[held > 0].max() < masked


@settings(max_examples=100, deadline=None)
@given(batches(), SHARES, SHARES, st.integers(0, 2**62))
def test_masks_keep_both_shares(
    case: tuple[PatchGrid, Tensor], ratio: Share, region_ratio: Share, start: int
) -> None:
    grid, sizes = case
    whole, drawn_for = whole_patches(sizes, grid), keys(len(sizes), start)
    masks = draw_mask(drawn_for, grid, whole, ratio, region_ratio)
    assert masks.shape == whole.shape and masks.dtype == torch.bool
    for sample in range(len(sizes)):
        key = drawn_for[sample : sample + 1]
        shares = share_of(ratio, key, "mask ratio"), share_of(region_ratio, key, "region ratio")
        check_mask(masks[sample].numpy(), whole[sample].numpy(), grid, *shares)
        alone = draw_mask(key, grid, whole[sample : sample + 1], ratio, region_ratio)
        assert torch.equal(alone[0], masks[sample]), "a mask depends on the other samples of the batch"


@pytest.mark.parametrize("sizes", PUBLISHED + UNEQUAL)
@pytest.mark.parametrize("ratio, region_ratio", [(0.4, 0.75), ([0.4, 0.7], [0.5, 1.0]), (0.001, 1.0), (1.0, 0.1)])
def test_masks_of_all_sizes(sizes: tuple[Triple, Triple, Triple], ratio: Share, region_ratio: Share) -> None:
    grid, drawn_for = PatchGrid(*sizes), keys(3)
    d, h, w = grid.crop
    whole = whole_patches(torch.tensor([grid.crop, (d, h // 2 + 3, w - 1), (d - 1, h - 1, w)]), grid)
    masks = draw_mask(drawn_for, grid, whole, ratio, region_ratio)
    for sample in range(3):
        key = drawn_for[sample : sample + 1]
        shares = share_of(ratio, key, "mask ratio"), share_of(region_ratio, key, "region ratio")
        check_mask(masks[sample].numpy(), whole[sample].numpy(), grid, *shares)


@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.25, 0.4, 0.5, 0.75, 0.99, 1.0])
@pytest.mark.parametrize("regions", [0.01, 0.5, 0.75, 1.0])
def test_how_many_are_touched_on_a_whole_crop(ratio: float, regions: float) -> None:
    """In numbers: as many as asked for, fewer for want of patches, more for want of room."""
    grid = PatchGrid((48, 48, 48), (8, 8, 8), (16, 16, 16))
    masked = min(max(1, round(ratio * 216)), 215)
    for mask in draw_mask(keys(4), grid, filled(grid, 4), ratio, regions).numpy():
        assert mask.sum() == masked
        touched = sum(bool(region.any()) for region in split(mask, grid))
        assert touched == max(min(max(1, round(regions * 27)), masked), -(-masked // 8))


def test_ratios_of_a_range_are_drawn_for_each_sample() -> None:
    grid = PatchGrid((40, 40, 40), (4, 4, 4), (8, 8, 8))
    masks = draw_mask(keys(200), grid, filled(grid, 200), [0.2, 0.6], [0.5, 0.9])
    shares = np.sort(masks.float().mean(dim=(1, 2, 3)).numpy())
    assert np.abs(shares - np.linspace(0.2, 0.6, 200)).max() < 0.06
    touched = np.sort(by_region(masks, grid).any(dim=2).float().mean(dim=1).numpy())
    assert np.abs(touched - np.linspace(0.5, 0.9, 200)).max() < 0.06
    assert (
        abs(np.corrcoef(masks.float().mean(dim=(1, 2, 3)), by_region(masks, grid).any(2).float().mean(1))[0, 1]) < 0.3
    )


def frequencies_fit(seen: Counter[tuple[int, ...]], chances: dict[tuple[int, ...], float]) -> bool:
    """Whether things were seen about as often as they should be; rare ones are counted together."""
    assert set(seen) <= {key for key, chance in chances.items() if chance > 0}, "what cannot happen was seen"
    total, common = sum(seen.values()), [key for key, chance in chances.items() if chance * sum(seen.values()) >= 5]
    expected = [chances[key] * total for key in common]
    observed = [seen[key] for key in common]
    if total - sum(expected) > 1:
        expected.append(total - sum(expected))
        observed.append(total - sum(observed))
    return bool(chisquare(observed, np.array(expected) * total / sum(expected)).pvalue > RARE)


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_counts_of_regions_follow_the_multivariate_hypergeometric_law(ratio: float) -> None:
    """Of regions with 8, 8 and 4 whole patches: beyond the first of each, all patches are as likely."""
    grid = PatchGrid((12, 4, 4), (2, 2, 2), (4, 4, 4))
    whole = whole_patches(torch.tensor([[10, 4, 4]]), grid).expand(4000, -1, -1, -1)
    counts = by_region(draw_mask(keys(4000), grid, whole, ratio, 1.0), grid).sum(dim=2)
    left = round(ratio * 20) - 3
    law = multivariate_hypergeom(m=[7, 7, 3], n=left)
    chances = {
        (a + 1, b + 1, left - a - b + 1): float(law.pmf([a, b, left - a - b]))
        for a, b in product(range(8), range(8))
        if 0 <= left - a - b <= 3
    }
    a, b, c = counts.T.tolist()
    assert frequencies_fit(Counter(zip(a, b, c)), chances)
    numpys = np.random.default_rng(0).multivariate_hypergeometric([7, 7, 3], left, 4000) + 1
    assert np.abs(np.cov(numpys.T) - np.cov(counts.numpy().T)).max() < 0.1


def test_each_region_is_touched_as_often_and_each_patch_masked_as_often() -> None:
    grid, draws = PatchGrid((8, 18, 8), (2, 3, 2), (4, 6, 4)), 3000
    masks = draw_mask(keys(draws), grid, filled(grid, draws), 0.4, 0.6)
    touched = by_region(masks, grid).any(dim=2).sum(dim=0)
    assert touched.sum() == draws * round(0.6 * 12)
    assert chisquare(touched.tolist()).pvalue > RARE
    masked = masks.sum(dim=0).flatten()
    assert masked.sum() == draws * round(0.4 * 96)
    assert chisquare(masked.tolist()).pvalue > RARE


def test_pairs_of_regions_are_touched_as_often() -> None:
    """A draw without a bias for neighbours."""
    grid = PatchGrid((16, 8, 4), (4, 4, 2), (4, 4, 4))
    touched = by_region(draw_mask(keys(3000), grid, filled(grid, 3000), 0.2, 0.25), grid).any(dim=2)
    pairs = Counter(tuple(row.nonzero().flatten().tolist()) for row in touched)
    chances = {(a, b): 1 / 28 for a in range(8) for b in range(a + 1, 8)}
    assert frequencies_fit(pairs, chances)


@settings(max_examples=60, deadline=None)
@given(batches(), SHARES, st.integers(0, 2**62))
def test_patches_of_one_level_keep_their_share(case: tuple[PatchGrid, Tensor], ratio: Share, start: int) -> None:
    grid, sizes = case
    whole, drawn_for = whole_patches(sizes, grid), keys(len(sizes), start)
    masks = draw_patches(drawn_for, whole, ratio)
    assert masks.shape == whole.shape and not (masks & ~whole).any()
    for sample in range(len(sizes)):
        key, total = drawn_for[sample : sample + 1], int(whole[sample].sum())
        assert is_hidden(int(masks[sample].sum()), share_of(ratio, key, "mask ratio"), total)
        assert torch.equal(draw_patches(key, whole[sample : sample + 1], ratio)[0], masks[sample])


def test_sets_of_patches_of_one_level_are_as_likely() -> None:
    grid = PatchGrid((4, 6, 2), (2, 2, 2), (2, 2, 2))
    masks = draw_patches(keys(3000), filled(grid, 3000), 0.5).flatten(1)
    sets = Counter(tuple(row.nonzero().flatten().tolist()) for row in masks)
    assert len(sets) == 20 and chisquare(list(sets.values())).pvalue > RARE


@pytest.mark.parametrize("size", [(1, 8, 12), (12, 3, 12), (1, 1, 12)])
def test_a_scan_thinner_than_a_patch_has_nothing_to_mask(size: Triple) -> None:
    grid = PatchGrid((12, 8, 12), (2, 4, 1), (4, 8, 3))
    whole = whole_patches(torch.tensor([size, grid.crop]), grid)
    assert not whole[0].any()
    for masks in (draw_mask(keys(2), grid, whole, 0.4, 0.75), draw_patches(keys(2), whole, 0.4)):
        assert masks.flatten(1).any(dim=1).tolist() == [False, True]
    lower = draw_box(keys(2), grid, whole, (8, 4, 4), (4, 4, 4)).lower
    assert all(v % 4 == 0 and v + s <= c for row in lower.tolist() for v, s, c in zip(row, (8, 4, 4), grid.crop))


def test_draws_leave_the_global_stream_and_what_they_are_given() -> None:
    grid = PatchGrid((12, 8, 12), (2, 4, 1), (4, 8, 3))
    whole, drawn_for, content = whole_patches(torch.tensor([[11, 8, 9]]), grid), keys(1), torch.rand(1, 12, 8, 12)
    copies, state = [x.clone() for x in (whole, drawn_for, content)], torch.get_rng_state()
    draw_mask(drawn_for, grid, whole, [0.2, 0.5], 0.5)
    draw_patches(drawn_for, whole, [0.2, 0.5])
    draw_box(drawn_for, grid, whole, (8, 4, 4), (4, 4, 4), content)
    assert all(torch.equal(x, copy) for x, copy in zip((whole, drawn_for, content), copies))
    assert torch.equal(torch.get_rng_state(), state)


# --- boxes --------------------------------------------------------------------


@st.composite
def boxes(draw: st.DrawFn) -> tuple[PatchGrid, Tensor, Triple, Triple]:
    """A grid of even crops, sizes of scans, a box, and the stride of a network."""
    step = tuple(draw(st.sampled_from([1, 2, 4])) for _ in range(3))
    patch = tuple(draw(st.sampled_from([1, 2, 4])) for _ in range(3))
    crop = tuple(4 * draw(st.integers(1, 3)) for _ in range(3))
    size = tuple(draw(st.integers(1, c // s)) * s for c, s in zip(crop, step))
    scan = st.tuples(*(st.integers(1, c) for c in crop))
    sizes = torch.tensor(draw(st.lists(scan, min_size=1, max_size=3)))
    return PatchGrid(crop, patch, patch), sizes, size, step  # type: ignore[arg-type]


def places_of(grid: PatchGrid, size: Triple, step: Triple) -> list[Triple]:
    """All places that a box may have."""
    starts = [range(0, c - s + 1, t) for c, s, t in zip(grid.crop, size, step)]
    return [(i, j, k) for i, j, k in product(*starts)]


def inside_box(volume: np.ndarray, lower: Triple, size: Triple) -> np.ndarray:
    """What lies in the box."""
    d, h, w = (slice(a, a + n) for a, n in zip(lower, size))
    return volume[d, h, w]


def allowed_places(grid: PatchGrid, whole: Tensor, size: Triple, step: Triple) -> list[Triple]:
    """Places with the most voxels of whole patches, counted one by one."""
    painted = np.zeros(grid.crop, dtype=int)
    for voxel in voxels(grid.crop):
        painted[voxel] = whole[patch_of(voxel, grid)]
    held = {place: int(inside_box(painted, place, size).sum()) for place in places_of(grid, size, step)}
    return [place for place, count in held.items() if count == max(held.values())]


@settings(max_examples=30, deadline=None)
@given(boxes(), st.booleans(), st.integers(0, 2**62))
def test_boxes_lie_at_the_stride_with_the_least_padding(
    case: tuple[PatchGrid, Tensor, Triple, Triple], by_content: bool, start: int
) -> None:
    grid, sizes, size, step = case
    whole, drawn_for = whole_patches(sizes, grid), keys(len(sizes), start)
    content = torch.rand(len(sizes), *grid.crop, generator=torch.Generator().manual_seed(1)) if by_content else None
    box = draw_box(drawn_for, grid, whole, size, step, content)
    assert box.size == size and box.lower.shape == (len(sizes), 3) and box.lower.dtype == torch.int64
    for sample, lower in enumerate(box.lower.tolist()):
        assert tuple(lower) in allowed_places(grid, whole[sample], size, step)
        one = slice(sample, sample + 1)
        alone = draw_box(drawn_for[one], grid, whole[one], size, step, None if content is None else content[one])
        assert alone.lower.tolist() == [lower]


@pytest.mark.parametrize(
    "scan, places", [((24, 16, 16), 5 * 3 * 2), ((24, 13, 16), 5 * 2 * 2), ((23, 16, 11), 3 * 3 * 1)]
)
def test_all_places_are_drawn_as_often(scan: Triple, places: int) -> None:
    """A patch with padding is kept out of the box: of 13 voxels along the second axis, 12 are used."""
    grid = PatchGrid((24, 16, 16), (8, 4, 4), (8, 8, 8))
    whole = whole_patches(torch.tensor([scan]), grid)
    expected = allowed_places(grid, whole[0], (8, 8, 8), (4, 4, 8))
    assert len(expected) == places
    drawn = draw_box(keys(2000), grid, whole.expand(2000, -1, -1, -1), (8, 8, 8), (4, 4, 8)).lower
    seen = Counter((d, h, w) for d, h, w in drawn.tolist())
    assert frequencies_fit(seen, dict.fromkeys(expected, 1 / places))


def test_a_patch_more_or_less_counts_in_a_large_box() -> None:
    """Tiny patches in a large box: a tolerance for the rounding of shares would not tell the places apart."""
    grid = PatchGrid((66, 64, 64), (2, 2, 2), (2, 2, 2))
    whole = whole_patches(torch.tensor([[64, 64, 64]] * 40), grid)
    drawn = draw_box(keys(40), grid, whole, (64, 64, 64), (2, 2, 2)).lower
    assert drawn.tolist() == [[0, 0, 0]] * 40


def test_a_box_larger_than_the_scan_begins_at_its_corner() -> None:
    grid = PatchGrid((16, 16, 16), (4, 4, 4), (8, 8, 8))
    whole = whole_patches(torch.tensor([[5, 16, 16]]), grid).expand(60, -1, -1, -1)
    drawn = draw_box(keys(60), grid, whole, (8, 8, 16), (4, 4, 4)).lower.tolist()
    assert {tuple(row) for row in drawn} == {(0, 0, 0), (0, 4, 0), (0, 8, 0)}


@pytest.mark.parametrize("scan", [(12, 8, 8), (12, 8, 5)])
def test_boxes_follow_content(scan: Triple) -> None:
    """As likely as the box has content, never where it has none, and never with padding for its content."""
    grid, size, step = PatchGrid((12, 8, 8), (4, 4, 4), (4, 4, 4)), (4, 4, 4), (2, 4, 4)
    content = torch.zeros(1, 12, 8, 8)
    content[0, 0, 0, 0], content[0, 5, 1, 2], content[0, 5, 7, 1], content[0, 11, 7, 7] = 1.0, 2.0, 0.5, 3.0
    whole = whole_patches(torch.tensor([scan]), grid)
    amounts = {
        place: float(inside_box(content[0].numpy(), place, size).sum())
        for place in allowed_places(grid, whole[0], size, step)
    }
    chances: dict[tuple[int, ...], float] = {
        place: amount / sum(amounts.values()) for place, amount in amounts.items()
    }
    assert sum(chance == 0 for chance in chances.values()) >= 4
    many = torch.ones(3000, 1, 1, 1)
    drawn = draw_box(keys(3000), grid, whole & many.bool(), size, step, content * many).lower
    seen = Counter((d, h, w) for d, h, w in drawn.tolist())
    assert frequencies_fit(seen, chances)


def test_without_any_content_all_places_are_as_likely() -> None:
    grid = PatchGrid((12, 8, 8), (4, 4, 4), (4, 4, 4))
    content = torch.zeros(1000, 12, 8, 8)
    drawn = draw_box(keys(1000), grid, filled(grid, 1000), (4, 4, 4), (4, 4, 4), content).lower
    seen = Counter((d, h, w) for d, h, w in drawn.tolist())
    assert len(seen) == 12 and chisquare(list(seen.values())).pvalue > RARE


def test_no_draw_however_rare_falls_where_there_is_no_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a 0, once in 16 million draws, everywhere at once."""
    grid, content = PatchGrid((12, 8, 8), (4, 4, 4), (4, 4, 4)), torch.zeros(1, 12, 8, 8)
    content[0, 9, 5, 1] = 1e-6
    for drawn in (0.0, 1 - 2.0**-24):
        monkeypatch.setattr(masking, "uniform", lambda keys, _, *shape, u=drawn: torch.full((len(keys), *shape), u))
        box = draw_box(keys(1), grid, filled(grid, 1), (4, 4, 4), (4, 4, 4), content)
        assert box.lower.tolist() == [[8, 4, 0]]
