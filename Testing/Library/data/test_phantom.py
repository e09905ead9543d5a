"""The synthetic scans of the demo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from HybridMIMLib.data.layouts import open_dataset
from HybridMIMLib.data.phantom import CLASSES, Phantom, make_phantom, write_phantoms
from HybridMIMLib.data.scans import read_label_map, read_scan


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(7, "labelled", index) for index in range(12)]


def center(phantom: Phantom, label: int) -> np.ndarray:
    """The mean RAS position of a class in mm."""
    voxels = np.argwhere(phantom.labels == label).mean(axis=0)
    return (phantom.grid.affine @ np.append(voxels, 1))[:3]


def test_every_class_is_in_every_case(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        counts = np.bincount(phantom.labels.ravel(), minlength=5)
        assert counts.size == 5
        assert counts[1:].min() > 300


def test_left_and_right_follow_the_world_not_the_voxels(phantoms: list[Phantom]) -> None:
    assert len({phantom.grid.axis_codes for phantom in phantoms}) > 2
    for phantom in phantoms:
        liver, spleen = center(phantom, 1), center(phantom, 2)
        assert liver[0] > 15 > -30 > spleen[0]
        assert center(phantom, 4)[1] < liver[1]


def test_looks_like_ct(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert phantom.image.dtype == np.int16
        assert phantom.labels.dtype == np.uint8
        assert phantom.image.min() >= -1024
        assert np.median(phantom.image[phantom.labels == 1]) == pytest.approx(95, abs=50)
        assert 0.2 < (phantom.image > -500).mean() < 0.8


def test_no_threshold_finds_the_liver(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        liver = phantom.labels == 1
        low, high = np.percentile(phantom.image[liver], [5, 95])
        found = (phantom.image > low) & (phantom.image < high)
        dice = 2 * (found & liver).sum() / (found.sum() + liver.sum())
        assert dice < 0.8


def test_grids_vary(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        sizes = sorted(phantom.grid.shape)
        assert 36 <= sizes[0] <= 48 < 56 <= sizes[1] <= sizes[2] <= 80
        assert max(phantom.grid.spacing) > 1.1 * min(phantom.grid.spacing)
    assert len({phantom.grid.spacing for phantom in phantoms}) == len(phantoms)


def test_same_seed_same_voxels() -> None:
    first, again, other = (make_phantom(seed, "unseen", 0) for seed in (1, 1, 2))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.labels.tobytes() == again.labels.tobytes()
    assert np.array_equal(first.grid.affine, again.grid.affine)
    assert not np.array_equal(first.grid.affine, other.grid.affine)


def test_groups_do_not_share_cases() -> None:
    affines = [make_phantom(1, group, 0).grid.affine for group in ("unlabelled", "labelled", "unseen")]
    assert not np.array_equal(affines[0], affines[1])
    assert not np.array_equal(affines[1], affines[2])


def test_written_set_can_be_opened(unicode_folder: Path) -> None:
    written = write_phantoms(unicode_folder, seed=5, unlabelled=2, labelled=1, unseen=1)
    assert len(open_dataset(written.unlabelled, labelled=False).cases) == 2
    for folder, group in ((written.labelled, "labelled"), (written.unseen, "unseen")):
        dataset = open_dataset(folder, labelled=True)
        assert dataset.classes == CLASSES
        case = dataset.cases[0]
        scan = read_scan(case.images[0])
        assert case.label is not None
        labels = read_label_map(case.label, scan.grid, highest=len(CLASSES))
        phantom = make_phantom(5, group, 0)
        assert np.array_equal(scan.array[0], phantom.image)
        assert np.array_equal(labels.array, phantom.labels)
        assert scan.grid.same_as(phantom.grid, 1e-3)
        assert scan.warnings == ()
