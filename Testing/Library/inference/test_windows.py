"""Windows lie where MONAI's do, cover every voxel, and are left out for air alone."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import dense_patch_slices
from monai.inferers.utils import _get_scan_interval

from HybridMIMLib.data.body import BLOCK, Body, find_body
from HybridMIMLib.inference.windows import Windows, plan_windows, starts_along, step_of

Triple = tuple[int, int, int]
SHAPES = st.tuples(*[st.integers(1, 30)] * 3)
SIZES = st.tuples(*[st.integers(1, 20)] * 3)
OVERLAPS = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.625, 0.75, 0.99])


@settings(deadline=None, max_examples=50)
@given(SHAPES, SIZES, OVERLAPS)
def test_the_lattice_is_monais(whole: Triple, size: Triple, overlap: float) -> None:
    size = tuple(max(n, 4) for n in size) if overlap > 0.8 else size  # else there are thousands of windows
    got = plan_windows(whole, size, step_of(size, overlap), None)
    padded = tuple(max(n, w) for n, w in zip(whole, size))
    slices = dense_patch_slices(padded, size, _get_scan_interval(padded, size, 3, (overlap,) * 3))
    assert got.shape == padded and (got.lower, got.box, got.size) == ((0, 0, 0), whole, size)
    assert set(got.starts) == {tuple(part.start for part in one) for one in slices}
    assert len(got.starts) == len(slices) and got.skipped == 0


@given(st.integers(1, 60), st.integers(1, 30), st.integers(1, 30))
def test_every_voxel_is_in_a_window(length: int, window: int, step: int) -> None:
    length, step = max(length, window), min(step, window)
    starts = starts_along(length, window, step)
    assert {voxel for start in starts for voxel in range(start, start + window)} == set(range(length))
    assert starts == sorted(set(starts))


@given(SIZES, OVERLAPS)
def test_a_step_is_at_least_a_voxel(size: Triple, overlap: float) -> None:
    assert step_of(size, overlap) == tuple(max(int(n * (1 - overlap)), 1) for n in size)
    assert step_of((1, 2, 3), 0.9) == (1, 1, 1)


def place(windows: Windows, start: Triple) -> list[range]:
    """The voxels of the scan that a window holds, along each axis; the padding has none."""
    first = [lower - before + at for lower, before, at in zip(windows.lower, windows.before, start)]
    return [range(max(at, 0), at + size) for at, size in zip(first, windows.size)]


@settings(deadline=None, max_examples=80)
@given(SHAPES, SIZES, st.sampled_from([0.0, 0.5]), st.sampled_from([0.0, 0.001, 0.01]), st.integers(0, 10**6))
def test_windows_are_kept_that_hold_a_cell_of_the_body(
    whole: Triple, size: Triple, overlap: float, share: float, seed: int
) -> None:
    size = tuple(max(n, 5) for n in size)
    image = (np.random.default_rng(seed).random((1, *whole)) < share).astype(np.float32)
    body = find_body(image, 0.5)
    got = plan_windows(whole, size, step_of(size, overlap), body)
    full = plan_windows(got.box, size, step_of(size, overlap), None)
    cells = {cell for cell in product(*map(range, body.cells.shape)) if body.cells[cell]}
    expected = {
        start
        for start in full.starts
        if any(cell in cells for cell in product(*({at // BLOCK for at in side} for side in place(got, start))))
    }
    assert set(got.starts) == expected and len(got.starts) == len(expected)
    assert got.skipped == len(full.starts) - len(expected)
    solid = set(map(tuple, np.argwhere(image[0]).tolist()))
    seen = {voxel for start in got.starts for voxel in solid if all(v in s for v, s in zip(voxel, place(got, start)))}
    assert seen == solid


@settings(deadline=None, max_examples=80)
@given(SHAPES, SIZES, st.data())
def test_a_small_body_box_grows_into_the_scan_before_it_is_padded(
    whole: Triple, size: Triple, data: st.DataObject
) -> None:
    lower = tuple(data.draw(st.integers(0, n - 1)) for n in whole)
    box = tuple(data.draw(st.integers(1, n - at)) for n, at in zip(whole, lower))
    got = plan_windows(whole, size, size, Body(lower, box, np.ones([-(-n // BLOCK) for n in whole], dtype=bool)))
    for axis in range(3):
        first, last = got.lower[axis], got.lower[axis] + got.box[axis]
        assert 0 <= first <= lower[axis] and lower[axis] + box[axis] <= last <= whole[axis]
        assert got.box[axis] == max(box[axis], min(size[axis], whole[axis]))
        assert got.shape[axis] == max(got.box[axis], size[axis])
        assert got.shape[axis] == got.box[axis] or got.box[axis] == whole[axis]


@given(SHAPES, SIZES, OVERLAPS)
def test_windows_come_in_the_order_of_an_axis_along_which_the_least_is_kept(
    whole: Triple, size: Triple, overlap: float
) -> None:
    size = tuple(max(n, 4) for n in size) if overlap > 0.8 else size
    got = plan_windows(whole, size, step_of(size, overlap), None)
    along = [start[got.axis] for start in got.starts]
    assert along == sorted(along)
    kept = [size[axis] * np.prod(got.shape) / got.shape[axis] for axis in range(3)]
    assert kept[got.axis] == pytest.approx(min(kept))


@settings(deadline=None, max_examples=60)
@given(
    whole=st.tuples(*[st.integers(1, 90)] * 3),
    size=st.tuples(*[st.sampled_from([8, 16, 24])] * 3),
    overlap=st.sampled_from([0.25, 0.5, 0.625]),
    seed=st.integers(0, 1000),
)
def test_windows_that_follow_the_body_cover_it_with_its_margin(
    whole: tuple[int, int, int], size: tuple[int, int, int], overlap: float, seed: int
) -> None:
    """Against every voxel of the body: seen, and never by more windows than a lattice over the whole scan has."""
    image = np.zeros((1, *whole), dtype=np.float32)
    random = np.random.default_rng(seed)
    for _ in range(3):
        at = [int(random.integers(n)) for n in whole]
        image[0, at[0] : at[0] + 20, at[1] : at[1] + 10, at[2] : at[2] + 30] = 1
    step = step_of(size, overlap)
    got = plan_windows(whole, size, step, find_body(image, 0.5), follow=True)
    seen = np.zeros(got.shape, dtype=bool)
    for start in got.starts:
        assert all(0 <= s <= n - w for s, n, w in zip(start, got.shape, size))
        seen[tuple(slice(s, s + w) for s, w in zip(start, size))] = True
    box = tuple(slice(b, b + n) for b, n in zip(got.before, got.box))
    inside = image[0][tuple(slice(at, at + n) for at, n in zip(got.lower, got.box))] > 0
    assert inside.sum() == (image > 0).sum() and seen[box][inside].all()
    assert [s[got.axis] for s in got.starts] == sorted(s[got.axis] for s in got.starts)
    assert got.skipped >= 0 and len(set(got.starts)) == len(got.starts)


def test_neck_and_shoulders_take_half_of_the_windows() -> None:
    image = np.zeros((1, 96, 96, 96), dtype=np.float32)
    image[0, 40:56, 40:56] = 1  # the neck
    image[0, 4:92, 24:72, :24] = 1  # the shoulders
    body = find_body(image, 0.5)
    all_over = plan_windows((96, 96, 96), (32, 32, 32), (16, 16, 16), body)
    follows = plan_windows((96, 96, 96), (32, 32, 32), (16, 16, 16), body, follow=True)
    assert len(follows.starts) < 0.6 * len(all_over.starts)
