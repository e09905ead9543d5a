"""What is measured of a scan, against slow, obvious code."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from HybridMIMLib.data.measuring import body_percentiles, looks_like_ct, otsu_threshold, voxel_hash


def noise(shape: tuple[int, ...] = (1, 7, 8, 9), low: int = -1000, high: int = 1000) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, shape).astype(np.int16)


# --- voxels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int16", "int32", "int64", "float32", "float64"])
def test_whole_numbers_have_one_hash_whatever_their_type(kind: str) -> None:
    expected = hashlib.sha256(b"(1, 7, 8, 9) <i2")
    expected.update(noise().tobytes())
    assert voxel_hash(noise().astype(kind)) == voxel_hash(noise()) == expected.hexdigest()
    assert voxel_hash(np.asfortranarray(noise().astype(kind))) == voxel_hash(noise())


def test_large_integers_and_fractions() -> None:
    large = noise().astype(np.int32) * 1000
    assert voxel_hash(large) == voxel_hash(large.astype(np.float64)) != voxel_hash(noise())
    half = noise().astype(np.float32) / 2
    assert voxel_hash(half) == voxel_hash(half.astype(np.float64))
    negative = np.where(noise() == 0, -0.0, noise())
    assert voxel_hash(negative + 0.5) != voxel_hash(negative) == voxel_hash(noise().astype(np.float32))


def test_shape_and_every_voxel_count() -> None:
    other = noise()
    other[0, 6, 7, 8] += 1
    hashes = {voxel_hash(array) for array in (noise(), other, noise().reshape(1, 8, 7, 9), noise()[:, ::-1])}
    assert len(hashes) == 4
    assert len({voxel_hash(noise((2, 3, 4, 5))), voxel_hash(noise((1, 6, 4, 5)))}) == 2


# --- body ---------------------------------------------------------------------------------------------------


def slow_otsu(sample: np.ndarray) -> float:
    low, high = np.percentile(sample, (0.5, 99.5))
    counts, edges = np.histogram(sample, 256, (low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    best, place = -1.0, -np.inf
    for index in range(1, 256):
        below, above = counts[:index].sum(), counts[index:].sum()
        if below and above:
            means = [np.average(centres[part], weights=counts[part]) for part in (slice(index), slice(index, None))]
            score = below * above * (means[0] - means[1]) ** 2
            if score > best * (1 + 1e-12):
                best, place = score, edges[index]
    return float(place)


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_otsus(seed: int) -> None:
    random = np.random.default_rng(seed)
    sample = np.concatenate([random.normal(0, 1 + seed, 3000), random.normal(30, 4, 500 * (seed + 1))])
    sample = sample.astype(np.float32)
    assert otsu_threshold(sample) == pytest.approx(slow_otsu(sample))


def test_one_hot_voxel_does_not_move_it() -> None:
    random = np.random.default_rng(0)
    sample = np.concatenate([random.normal(0, 1, 3000), random.normal(30, 4, 2000)]).astype(np.float32)
    usual = otsu_threshold(sample)
    sample[7] = 1.7e6
    assert otsu_threshold(sample) == pytest.approx(usual, abs=1)
    assert otsu_threshold(np.full(50, 3, np.float32)) == -np.inf


def test_the_body_lies_above_the_air() -> None:
    random = np.random.default_rng(0)
    scan = random.normal(-1000, 5, (2, 30, 30, 30)).astype(np.float32)
    tissue = random.normal(40, 20, (10, 20, 20)).astype(np.float32)
    scan[0, 10:20, 5:25, 5:25] = tissue
    scan[1] = 7
    values = body_percentiles(scan)
    assert values[:5] == pytest.approx(np.percentile(tissue, (0.5, 25, 50, 75, 99.5)))
    assert values[5:] == (7, 7, 7, 7, 7), "a constant channel is its own body"


def test_next_to_nothing_above_the_threshold_is_no_body() -> None:
    scan = np.zeros((1, 30, 30, 30), np.float32)
    scan[0, 3, 3, 3:8] = 900
    assert body_percentiles(scan) == pytest.approx(np.percentile(scan, (0.5, 25, 50, 75, 99.5)))


def test_a_large_scan_is_sampled_evenly() -> None:
    scan = np.random.default_rng(0).normal(100, 10, (1, 128, 128, 128)).astype(np.float32)
    scan[0, :, :64] = 0
    whole = np.percentile(scan[0, :, 64:], (0.5, 25, 50, 75, 99.5))
    assert body_percentiles(scan) == pytest.approx(whole, rel=0.01)


# --- modality -----------------------------------------------------------------------------------------------


def test_ct_is_told_by_its_values() -> None:
    random = np.random.default_rng(0)
    head = np.where(random.random((1, 20, 20, 20)) < 0.5, random.normal(-1000, 20, (1, 20, 20, 20)), 40)
    assert looks_like_ct(head) and looks_like_ct(np.where(head > 0, 60, -700))
    padded = head.copy()
    padded[0, :6] = -3024
    assert looks_like_ct(padded)
    assert not looks_like_ct(head + 1024), "moved to values from 0"
    assert not looks_like_ct(np.clip(head, -150, 250)), "cut to a window"
    assert not looks_like_ct(np.concatenate([head, head])), "channels are of MR"


def test_mr_phase_is_no_ct() -> None:
    assert not looks_like_ct(noise((1, 30, 30, 30), -4096, 4096))
    assert not looks_like_ct(noise((1, 30, 30, 30), 0, 1000))
