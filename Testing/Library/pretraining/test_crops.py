"""Crops of a step as objectives want them: the sampler's, on the device, with nothing lost on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from HybridMIMLib.data.patches import CropSampler
from HybridMIMLib.data.store import PreparedCase
from HybridMIMLib.pretraining.crops import CropSource, blank_crops

CPU = torch.device("cpu")


@pytest.fixture
def cases(tmp_path: Path) -> list[PreparedCase]:
    """Seven scans of five patients, with two channels; each is thinner than the crop along the last axis."""
    found = []
    for number, patient in enumerate(["a", "a", "b", "c", "c", "d", ""]):
        folder = tmp_path / str(number)
        folder.mkdir()
        image = np.random.default_rng(number).integers(0, 100, (2, 12, 11, 7)).astype(np.int16)
        np.save(folder / "image.npy", image)
        found.append(PreparedCase(folder, str(number), (0.0, 0.0), (99.0, 99.0), (), patient=patient))
    return found


def test_crops_are_those_of_the_sampler(cases: list[PreparedCase]) -> None:
    source, sampler = CropSource(cases, (8, 8, 8), 4, 5, CPU), CropSampler(cases, (8, 8, 8), 5, "pretrain")
    for step in (3, 0, 1000):
        crops, expected = source.draw(step), sampler.batch(step, 4, CPU)
        assert torch.equal(crops.image, expected.image) and crops.image.shape == (4, 2, 8, 8, 8)
        assert crops.keys.tolist() == list(expected.keys)
        assert crops.sizes.tolist() == [[8, 8, 7]] * 4
        assert crops.patients.tolist() == list(expected.patients)
        assert crops.keys.dtype == crops.sizes.dtype == crops.patients.dtype == torch.int64


def test_a_patient_has_one_number_in_every_step(cases: list[PreparedCase]) -> None:
    """The queue of the contrast compares crops of different steps."""
    source = CropSource(cases, (8, 8, 8), 4, 0, CPU)
    owners: dict[str, set[int]] = {}
    for step in range(30):
        drawn = source.draw(step).patients.tolist()
        assert len(set(drawn)) == 4
        for name, number in zip(source.sampler.batch(step, 4, CPU).cases, drawn):
            owners.setdefault(cases[int(name)].patient, set()).add(number)
    assert len(owners) == 5 and all(len(numbers) == 1 for numbers in owners.values())


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_processes_share_a_batch_without_gap_or_overlap(cases: list[PreparedCase], parts: int) -> None:
    source = CropSource(cases, (8, 8, 8), 8, 0, CPU)
    whole, cut = source.draw(5), [source.part(which, parts).draw(5) for which in range(parts)]
    for name in ("image", "sizes", "keys", "patients"):
        assert torch.equal(torch.cat([getattr(part, name) for part in cut]), getattr(whole, name))


def test_blank_crops_are_whole_and_of_different_patients() -> None:
    crops = blank_crops(3, 2, (4, 6, 8))
    assert crops.image.shape == (3, 2, 4, 6, 8) and not crops.image.any()
    assert crops.sizes.tolist() == [[4, 6, 8]] * 3
    assert len(set(crops.patients.tolist())) == len(set(crops.keys.tolist())) == 3
