"""Which intensities become 0 and 1: against slow obvious code, at the edges, and on real MR."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from HybridMIMLib.data.normalisation import MOST_VOXELS, body_of, intensity_range
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.scans import read_scan

ZSCORE = Plan(1, (1.0, 1.0, 1.0), "zscore", (-1000.0, 1000.0), (16, 16, 16), (8, 8, 8), (16, 16, 16))
PERCENTILES = replace(ZSCORE, normalisation="percentiles")
WINDOW = replace(ZSCORE, normalisation="window", window=(-175.0, 250.0))


def head(seed: int = 0, scale: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """(1, 20, 20, 20): a ball of tissue in dark noise."""
    random = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*[np.arange(20) - 9.5] * 3, indexing="ij"))
    inside = np.linalg.norm(places, axis=0) < 8
    image = np.where(inside, random.normal(100, 15, inside.shape), random.uniform(0, 5, inside.shape))
    return (image[None] * scale + offset).astype(np.float32)


def slow_zscore_range(channel: np.ndarray) -> tuple[float, float]:
    """As the description says it, with sorted lists in place of percentiles."""

    def share(values: list[float], part: float) -> float:
        place = part * (len(values) - 1)
        below, above = values[int(place)], values[min(int(place) + 1, len(values) - 1)]
        return below + (above - below) * (place - int(place))

    everything = sorted(float(v) for v in channel.ravel())
    low, high = share(everything, 0.005), share(everything, 0.995)
    body = [v for v in everything if v > low + 0.1 * (high - low)]
    sigma = (share(body, 0.75) - share(body, 0.25)) / 1.349
    return share(body, 0.5) - 2.5 * sigma, share(body, 0.5) + 3.5 * sigma


def normalised(image: np.ndarray, plan: Plan = ZSCORE) -> np.ndarray:
    ranges = np.array(intensity_range(image, plan))
    low, high = ranges[:, 0, None, None, None], ranges[:, 1, None, None, None]
    return np.clip((image - low) / (high - low), 0, 1)


@pytest.mark.parametrize("seed", range(5))
def test_zscore_is_what_its_description_says(seed: int) -> None:
    image = head(seed)
    assert intensity_range(image, ZSCORE)[0] == pytest.approx(slow_zscore_range(image[0]), rel=1e-4)


@pytest.mark.parametrize(("scale", "offset"), [(0.01, 0), (17_000, 0), (1, -5000), (1e-6, 3), (1e9, 0)])
def test_zscore_does_not_depend_on_the_units(scale: float, offset: float) -> None:
    atol = 1e-3 if scale > 1e-3 else 0.15  # 32 bits are all there is of 3.0001
    assert np.allclose(normalised(head()), normalised(head(scale=scale, offset=offset)), atol=atol)


def test_the_bodys_median_and_spread_have_their_places() -> None:
    image = normalised(head())
    inside = image[head() > 30]
    assert np.median(inside) == pytest.approx(2.5 / 6, abs=0.01)
    assert np.percentile(inside, 84) - np.median(inside) == pytest.approx(1 / 6, abs=0.02)
    assert image.min() == 0 and image[head() < 30].max() == 0


def test_one_metal_voxel_changes_nothing() -> None:
    image, spoilt = head(), head()
    spoilt[0, 0, 0, 0] = 1e8
    assert intensity_range(spoilt, ZSCORE)[0] == pytest.approx(intensity_range(image, ZSCORE)[0], rel=0.02)
    assert normalised(spoilt).max() == 1


def test_muscle_and_fat_both_keep_their_contrast() -> None:
    """A thigh: air, much muscle, bright fat. Otsu's threshold lies between muscle and fat; ours below both."""
    random = np.random.default_rng(0)
    thigh = np.concatenate([random.normal(mean, 30, 4000) for mean in (20, 320, 950)]).astype(np.float32)
    image = normalised(thigh.reshape(1, 20, 20, 30)).ravel()
    air, muscle, fat = image[:4000], image[4000:8000], image[8000:]
    assert 0 < air.mean() < muscle.mean() - 3 * muscle.std() and muscle.mean() < fat.mean() - 3 * fat.std()
    assert fat.max() < 1


def test_channels_are_normalised_apart() -> None:
    ranges = intensity_range(np.concatenate([head(), head(scale=1000)]), ZSCORE)
    assert ranges[1] == pytest.approx(tuple(1000 * value for value in ranges[0]), rel=1e-3)


@pytest.mark.parametrize("plan", [ZSCORE, PERCENTILES])
@pytest.mark.parametrize("value", [0.0, -5.0, 1e-20, 1e8, 3e38, -3e38])
def test_a_constant_channel_has_a_range_too(value: float, plan: Plan) -> None:
    ((low, high),) = intensity_range(np.full((1, 3, 3, 3), value, np.float32), plan)
    assert low < high and np.isfinite([low, high]).all()


@pytest.mark.parametrize("body", [1, 40, 500, 4000])
def test_a_constant_body_in_a_constant_background(body: int) -> None:
    """A binary mask taken for a scan; 1, 40: so small that the percentiles do not see it."""
    image = np.zeros((1, 20, 20, 20), np.float32)
    image.ravel()[:body] = 7.0
    (low, high) = intensity_range(image, ZSCORE)[0]
    assert low < high and np.unique(normalised(image)).size == 2


def test_a_skull_stripped_scan_counts_the_brain_alone() -> None:
    image = head()
    image[image < 30] = 0
    body = body_of(image[0])
    assert len(body) == np.count_nonzero(image) and intensity_range(image, ZSCORE)[0][0] > 0
    assert normalised(image)[image == 0].max() == 0


def test_a_scan_without_background_is_all_body() -> None:
    image = np.random.default_rng(0).normal(1000, 30, (1, 20, 20, 20)).astype(np.float32)
    assert len(body_of(image[0])) > 0.9 * image.size


def test_large_scans_are_thinned_evenly_and_come_to_the_same() -> None:
    random = np.random.default_rng(0)
    large = random.normal(500, 50, (160, 160, 160)).astype(np.float32)
    assert large.size > MOST_VOXELS and len(body_of(large)) < MOST_VOXELS
    assert intensity_range(large[None], ZSCORE)[0] == pytest.approx(slow_zscore_range(large), abs=2)


def test_window_and_percentiles_are_what_they_were() -> None:
    image = head()
    assert intensity_range(np.concatenate([image, image]), WINDOW) == [(-175.0, 250.0)] * 2
    assert intensity_range(image, PERCENTILES)[0] == pytest.approx(np.percentile(image, (0.5, 99.5)))


def test_real_mr_from_112_to_over_a_million_comes_to_one_scale(shared_data: Path) -> None:
    """156 hippocampus scans: means of the organ and medians of the body, spread over scans by contrast within one."""
    files = sorted((shared_data / "hippocampus_mr" / "imagesTr").glob("*.nii*"))
    assert len(files) == 156
    maxima, rows = [], []
    for file in files:
        image = read_scan(file).array.astype(np.float32)
        organ = read_scan(file.parents[1] / "labelsTr" / file.name).array > 0
        maxima.append(image.max())
        ours, minmax = normalised(image), (image - image.min()) / np.ptp(image)
        rows.append([
            (np.median(one), one[organ].mean(), one.std(), (one[organ] >= 1).mean() + (one[organ] <= 0).mean())
            for one in (ours, minmax)
        ])  # fmt: skip
    assert min(maxima) < 120 and max(maxima) > 1.5e6
    table = np.array(rows)
    spread = table[:, :, :2].std(axis=0) / table[:, :, 2].mean(axis=0)[:, None]
    (median_ours, organ_ours), (median_minmax, organ_minmax) = spread
    assert median_ours < 0.05 and organ_ours < 0.15, (
        f"spread of medians {median_ours:.3f}, of organs {organ_ours:.3f}"
    )
    assert median_minmax > 0.6 and organ_minmax > 0.5, "min-max is no worse: this test shows nothing"
    assert table[:, 0, 3].max() < 0.001, "voxels of the organ were clipped"


def test_real_thighs_lose_no_muscle(shared_data: Path) -> None:
    for file in sorted((shared_data / "sarcoma_ct_mr" / "MR_T1" / "images").glob("*.nii*")):
        image = normalised(read_scan(file).array.astype(np.float32))
        assert ((image <= 0) | (image >= 1)).mean() < 0.001, f"{file.name}: much of it was clipped"
