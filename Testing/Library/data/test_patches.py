"""Crops: the same for the same step whatever was drawn before, from the right places, at the right values."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from HybridMIMLib.data.patches import CropBatch, CropSampler, inside_mask
from HybridMIMLib.data.store import PreparedCase
from HybridMIMLib.files import write_json

CPU = torch.device("cpu")
SHAPE = (20, 18, 16)


def stored(
    folder: Path, name: str = "a", shape: tuple[int, int, int] = SHAPE, label: np.ndarray | None = None
) -> PreparedCase:
    """A case whose voxels hold their own index, so that a crop says where it was cut; 0 and 1 are kept free."""
    (folder / name).mkdir()
    image = np.arange(np.prod(shape), dtype=np.int16).reshape(1, *shape) + 1
    np.save(folder / name / "image.npy", image)
    counts: tuple[int, ...] = ()
    if label is not None:
        places = [np.argwhere(label == n).astype(np.int32) for n in range(1, label.max() + 1)]
        np.save(folder / name / "label.npy", label.astype(np.uint8))
        np.save(folder / name / "foreground.npy", np.concatenate(places))
        counts = tuple(len(p) for p in places)
    content = {"name": name, "shape": shape, "low": [0.0], "high": [float(image.max())], "counts": counts}
    write_json(folder / name / "case.json", content)
    return PreparedCase(folder / name, name, (0.0,), (float(image.max()),), counts)


def many(folder: Path, count: int = 5) -> list[PreparedCase]:
    return [stored(folder, f"case {n}") for n in range(count)]


def corner(batch: CropBatch, sample: int, shape: tuple[int, int, int] = SHAPE) -> tuple[int, ...]:
    """Where the crop begins in its scan."""
    value = batch.image[sample, 0, 0, 0, 0].item() * np.prod(shape) - 1
    return tuple(int(n) for n in np.unravel_index(round(value), shape))


def same(one: CropBatch, other: CropBatch) -> bool:
    return torch.equal(one.image, other.image) and (one.keys, one.cases) == (other.keys, other.cases)


def test_a_step_has_the_same_crops_whatever_was_drawn_before(tmp_path: Path) -> None:
    cases = many(tmp_path)
    first = CropSampler(cases, (8, 8, 8), 3, "train").batch(7, 4, CPU)
    sampler = CropSampler(cases, (8, 8, 8), 3, "train")
    for step in (0, 1, 100):
        sampler.batch(step, 2, CPU)
    torch.manual_seed(5)
    np.random.seed(5)
    assert same(first, sampler.batch(7, 4, CPU))
    assert not same(first, sampler.batch(8, 4, CPU))
    for other in (CropSampler(cases, (8, 8, 8), 4, "train"), CropSampler(cases, (8, 8, 8), 3, "pretrain")):
        assert not same(first, other.batch(7, 4, CPU))


def test_keys_differ_between_samples_and_steps(tmp_path: Path) -> None:
    sampler = CropSampler(many(tmp_path, 2), (8, 8, 8), 0, "train")
    keys = [key for step in range(20) for key in sampler.batch(step, 4, CPU).keys]
    assert len(set(keys)) == 80


def test_cases_of_a_batch_differ_where_there_are_enough(tmp_path: Path) -> None:
    sampler = CropSampler(many(tmp_path), (8, 8, 8), 0, "train")
    counts = Counter(name for step in range(60) for name in sampler.batch(step, 3, CPU).cases)
    assert all(len(set(sampler.batch(step, 5, CPU).cases)) == 5 for step in range(10))
    assert len(counts) == 5 and min(counts.values()) > 20
    assert len(sampler.batch(0, 9, CPU).cases) == 9


def test_a_crop_is_the_scan_where_it_was_cut(tmp_path: Path) -> None:
    case = stored(tmp_path)
    sampler = CropSampler([case], (8, 6, 4), 0, "train")
    for step in range(20):
        batch = sampler.batch(step, 1, CPU)
        z, y, x = corner(batch, 0)
        wanted = case.image[0, z : z + 8, y : y + 6, x : x + 4] / case.high[0]
        assert np.allclose(batch.image[0, 0], wanted, atol=1e-6)
    assert batch.image.dtype == torch.float32 and batch.sizes == ((8, 6, 4),)


def test_crops_reach_every_corner(tmp_path: Path) -> None:
    sampler = CropSampler([stored(tmp_path)], (18, 16, 15), 0, "train")
    seen = {corner(sampler.batch(step, 1, CPU), 0) for step in range(200)}
    assert seen == {(z, y, x) for z in range(3) for y in range(3) for x in range(2)}


def test_a_small_scan_is_padded_at_its_far_end_alone(tmp_path: Path) -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[-1] = label[:, -1] = label[:, :, -1] = 1
    case = stored(tmp_path, label=label)
    sampler = CropSampler([case], (32, 16, 24), 0, "train", foreground_share=1.0)
    batch = sampler.batch(0, 2, CPU, labels=True)
    assert batch.sizes == ((20, 16, 16),) * 2 and batch.label is not None
    for sample in range(2):
        z, y, x = corner(batch, sample)
        assert (z, x) == (0, 0)
        wanted = np.zeros((32, 16, 24))
        wanted[:20, :, :16] = case.image[0, :, y : y + 16] / case.high[0]
        assert np.allclose(batch.image[sample, 0], wanted, atol=1e-6)
        assert not batch.label[sample, 20:].any() and not batch.label[sample, :, :, 16:].any()
        assert np.array_equal(batch.label[sample, :20, :, :16], label[:, y : y + 16])
    assert torch.equal(inside_mask(batch.sizes, (32, 16, 24), CPU), batch.image[:, 0] > 0)


def test_padding_is_zero_even_where_the_range_begins_below_zero(tmp_path: Path) -> None:
    case = stored(tmp_path, shape=(4, 4, 4))
    below = PreparedCase(case.folder, case.name, (-1000.0,), (1000.0,), ())
    batch = CropSampler([below], (8, 8, 8), 0, "train").batch(0, 1, CPU)
    assert (batch.image > 0).sum() == 64 and batch.image[0, 0, :4, :4, :4].min() > 0.5


def test_intensities_are_cut_to_the_range(tmp_path: Path) -> None:
    case = stored(tmp_path)
    narrow = PreparedCase(case.folder, case.name, (1000.0,), (2000.0,), ())
    image = CropSampler([narrow], SHAPE, 0, "train").batch(0, 1, CPU).image
    assert torch.allclose(image[0, 0], torch.from_numpy((case.image[0] - 1000.0) / 1000).clamp(0, 1).float())


def test_each_class_is_the_centre_as_often(tmp_path: Path) -> None:
    """One class is a hundred times as large as the other; a third is missing from this case."""
    label = np.zeros((40, 40, 40), np.uint8)
    label[10:26, 10:26, 10:26] = 1
    label[30, 30, 28:31] = 4
    label[5, 5, 30:32] = 2
    sampler = CropSampler([stored(tmp_path, shape=(40, 40, 40), label=label)], (9, 9, 9), 0, "train", 1.0)
    centres = [sampler.batch(step, 1, CPU, labels=True).label[0, 4, 4, 4].item() for step in range(400)]  # type: ignore[index]
    counts = Counter(centres)
    assert set(counts) == {1, 2, 4} and min(counts.values()) > 100


def test_a_share_of_the_crops_is_centred_on_a_class(tmp_path: Path) -> None:
    label = np.zeros((40, 40, 40), np.uint8)
    label[20, 20, 20] = 1
    cases = [stored(tmp_path, shape=(40, 40, 40), label=label)]
    for share, low, high in ((0.0, 0, 10), (0.67, 170, 235), (1.0, 300, 300)):
        sampler = CropSampler(cases, (5, 5, 5), 0, "train", share)
        hits = sum(bool(sampler.batch(s, 1, CPU, labels=True).label[0, 2, 2, 2]) for s in range(300))  # type: ignore[index]
        assert low <= hits <= high


def test_a_class_at_the_face_of_the_scan_is_in_the_crop(tmp_path: Path) -> None:
    for name, place in (("first", (0, 0, 0)), ("last", (19, 17, 15))):
        label = np.zeros(SHAPE, np.uint8)
        label[place] = 1
        sampler = CropSampler([stored(tmp_path, name, label=label)], (8, 8, 8), 0, "train", 1.0)
        batch = sampler.batch(0, 1, CPU, labels=True)
        assert batch.label is not None and batch.label.sum() == 1


def test_a_case_without_classes_is_cut_anywhere(tmp_path: Path) -> None:
    case = stored(tmp_path, label=np.ones(SHAPE, np.uint8))
    empty = PreparedCase(case.folder, case.name, case.low, case.high, (0, 0))
    sampler = CropSampler([empty], (8, 8, 8), 0, "train", 1.0)
    assert len({corner(sampler.batch(step, 1, CPU), 0) for step in range(20)}) > 10


def test_without_labels_none_are_read(tmp_path: Path) -> None:
    assert CropSampler([stored(tmp_path)], (8, 8, 8), 0, "train", 0.67).batch(0, 2, CPU).label is None


def test_a_crop_as_large_as_the_scan_is_a_copy_of_its_own(tmp_path: Path) -> None:
    case = stored(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CropSampler([case], SHAPE, 0, "train").batch(0, 2, CPU).image.zero_()
    assert case.image[0, 0, 0, 0] == 1


_FEW_FILES = """
import resource, sys
from pathlib import Path
import torch
from HybridMIMLib.data.patches import CropSampler
from HybridMIMLib.data.store import open_case
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
cases = [open_case(folder) for folder in sorted(Path(sys.argv[1]).iterdir())]
print(len(set(CropSampler(cases, (2, 2, 2), 0, "train").batch(0, 100, torch.device("cpu")).cases)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of open files are of Unix")
def test_more_cases_than_files_may_be_open(tmp_path: Path) -> None:
    for number in range(100):
        stored(tmp_path, f"{number:03d}", (3, 3, 3))
    done = subprocess.run([sys.executable, "-c", _FEW_FILES, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.strip() == "100", done.stderr
