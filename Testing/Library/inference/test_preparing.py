"""Scans as the network sees them: the same as in training, cut to the body, padded to a window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from HybridMIMLib.data.body import MARGIN
from HybridMIMLib.data.grid import Grid, from_canonical
from HybridMIMLib.data.normalisation import intensity_range
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.resampling import resample_image
from HybridMIMLib.errors import DataError
from HybridMIMLib.inference import preparing
from HybridMIMLib.inference.preparing import prepare_scan, with_padding
from HybridMIMLib.inference.windows import plan_windows

CT = Plan(1, (1.0, 1.0, 1.0), "window", (-1000.0, 1000.0), (8, 8, 8), (4,) * 3, (4,) * 3)
STEP = (4, 4, 4)
PIR = np.array([[0, 0, 1.0, 5], [-1.0, 0, 0, 6], [0, -1.0, 0, 7], [0, 0, 0, 1]])


def noise(shape: tuple[int, ...], low: float = -1500, high: float = 1500) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)


@pytest.mark.parametrize("normalisation", ["window", "zscore", "percentiles"])
@pytest.mark.parametrize("channels", [1, 3])
def test_intensities_are_those_that_training_saw(normalisation: str, channels: int) -> None:
    plan = replace(CT, normalisation=normalisation, channels=channels, spacing=(2.0, 1.0, 0.5))
    array, grid = noise((channels, 18, 12, 10)), Grid((18, 12, 10), np.eye(4))
    scan = prepare_scan(array, grid, plan, STEP, skip_air=False)
    image = resample_image(array, (9, 12, 20))
    for got, channel, (low, high) in zip(scan.box.numpy(), image, intensity_range(image, plan)):
        assert np.abs(got - np.clip((channel - low) / (high - low), 0, 1)).max() < 1e-6
    assert scan.coarse == (9, 12, 20) and scan.body is None


def test_axes_run_along_r_a_s_and_lead_back() -> None:
    grid = Grid((10, 12, 14), PIR)
    scan = prepare_scan(noise((1, 10, 12, 14)), grid, CT, STEP, skip_air=False)
    assert scan.grid.axis_codes == "RAS" and scan.grid.shape == scan.coarse == (14, 10, 12)
    array = noise((1, 10, 12, 14), -900, 900)
    scan = prepare_scan(array, grid, CT, STEP, skip_air=False)
    back = from_canonical(scan.box.numpy(), scan.orientation)
    assert np.abs(back - (array + 1000) / 2000).max() < 1e-6


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int16, np.uint8, np.bool_, ">i2"])
@pytest.mark.parametrize("normalisation", ["window", "zscore", "percentiles"])
def test_the_callers_array_is_never_changed(kind: Any, normalisation: str) -> None:
    """At the plan's own spacing and axes nothing is resampled, and the voxels could be the caller's."""
    array = (
        (noise((1, 12, 12, 12), 0, 200) > 100).astype(kind) if kind is np.bool_ else noise((1, 12, 12, 12), 0, 200)
    )
    array = array.astype(kind)
    before = array.copy()
    array.setflags(write=False)
    plan = replace(CT, normalisation=normalisation)
    scan = prepare_scan(array, Grid((12, 12, 12), np.eye(4)), plan, STEP, skip_air=True)
    assert np.array_equal(array, before)
    assert not np.shares_memory(scan.box.numpy(), array)
    assert float(scan.box.min()) >= 0 and float(scan.box.max()) <= 1


def test_the_box_is_that_of_the_body_and_holds_its_voxels() -> None:
    array = np.full((1, 60, 50, 40), -1000, dtype=np.int16)
    array[0, 20:45, 15:30, 18:40] = np.random.default_rng(0).integers(-400, 900, (25, 15, 22))
    scan = prepare_scan(array, Grid((60, 50, 40), np.eye(4)), CT, STEP, skip_air=True)
    assert scan.body is not None and scan.windows.lower == (20 - MARGIN, 15 - MARGIN, 18 - MARGIN)
    d, h, w = (slice(at, at + n) for at, n in zip(scan.windows.lower, scan.windows.box))
    assert scan.windows.box == (25 + 2 * MARGIN, 15 + 2 * MARGIN, 22 + MARGIN), (
        "the scan ends with the body at the top"
    )
    assert np.abs(scan.box[0].numpy() - (array[0, d, h, w] + 1000.0) / 2000).max() < 1e-6


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[st.integers(1, 12)] * 3), st.tuples(*[st.integers(1, 12)] * 3), st.integers(1, 2))
def test_padding_is_0_on_both_sides(shape: tuple[int, int, int], size: tuple[int, int, int], channels: int) -> None:
    image, windows = noise((channels, *shape), 0.1, 1), plan_windows(shape, size, size, None)
    pads = [((s - n) // 2, s - n - (s - n) // 2) for s, n in zip(windows.shape, shape)]
    assert np.array_equal(with_padding(image, windows).numpy(), np.pad(image, [(0, 0), *pads]))


def test_another_number_of_channels_is_refused_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"2 channel.*trained with 1") as caught:
        prepare_scan(np.zeros((2, 8, 8, 8)), Grid((8, 8, 8), np.eye(4)), CT, STEP, skip_air=True)
    assert "Choose a scan" in caught.value.cure


@pytest.mark.parametrize("size", [100.0, 1e5, 1e20, 1e150])
def test_a_scan_in_another_unit_than_mm_is_refused_before_it_fills_the_memory(
    size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundredfold is still within what Linux gives out, and ends the program later on."""
    monkeypatch.setattr(preparing, "machine_memory", lambda: 4_000_000_000)
    grid = Grid((8, 8, 8), np.diag([size, size, size, 1]))
    with pytest.raises(DataError, match=r"voxels of .* mm.*, and this machine has 4 GB") as caught:
        prepare_scan(noise((1, 8, 8, 8)), grid, CT, STEP, skip_air=True)
    assert f"{size:.5g} x " in caught.value.message and "unit is mm" in caught.value.cure
    monkeypatch.setattr(preparing, "machine_memory", lambda: None)
    if size > 100:
        with pytest.raises(DataError):
            prepare_scan(noise((1, 8, 8, 8)), grid, CT, STEP, skip_air=True)


def test_preparing_is_timed() -> None:
    scan = prepare_scan(noise((1, 30, 30, 30)), Grid((30, 30, 30), np.eye(4)), CT, STEP, skip_air=True)
    assert 0 < scan.seconds < 60
