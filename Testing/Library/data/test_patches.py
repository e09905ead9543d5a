"""Crops: the same for the same step whatever was drawn before, from the right places, at the right values."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from HybridMIMLib.data.patches import CropBatch, CropSampler, _Cutter, crop_at, inside_mask, keys_on, sizes_on
from HybridMIMLib.data.store import PreparedCase
from HybridMIMLib.errors import DataError

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


@settings(max_examples=40, deadline=None)
@given(scans_of=st.lists(st.integers(1, 4), min_size=1, max_size=6), size=st.integers(1, 9), step=st.integers(0, 99))
def test_crops_of_a_batch_are_of_as_many_patients_as_there_are(
    scans_of: list[int], size: int, step: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Patients with one scan or several: no patient comes a second time before all came once."""
    case = stored(tmp_path_factory.mktemp("scan"), shape=(3, 3, 3))
    cases = [
        replace(case, name=f"{who} {scan}", patient=f"patient {who}")
        for who, scans in enumerate(scans_of)
        for scan in range(scans)
    ]
    sampler = CropSampler(cases, (2, 2, 2), 0, "train")
    batch = sampler.batch(step, size, CPU)
    assert sampler.patients == len(scans_of)
    assert len(set(batch.patients)) == min(size, len(scans_of))
    assert len(set(batch.patients[: len(scans_of)])) == min(size, len(scans_of))
    # And no scan comes a second time before all others of the set came once.
    assert len(set(batch.cases)) == min(size, len(cases))
    for name, number in zip(batch.cases, batch.patients):
        assert int(name.split()[0]) == number, "patients have another number than in other batches"


def test_every_scan_of_a_patient_has_its_turn(tmp_path: Path) -> None:
    cases = [replace(case, patient="one") for case in many(tmp_path, 3)]
    cases.append(replace(stored(tmp_path, "other", (4, 4, 4)), patient="two"))
    sampler = CropSampler(cases, (4, 4, 4), 0, "train")
    counts = Counter(name for step in range(90) for name in sampler.batch(step, 2, CPU).cases)
    assert counts["other"] == 90 and min(counts.values()) > 15


def test_a_patient_is_told_from_a_scan_of_that_name(tmp_path: Path) -> None:
    """Where nobody says who it is, each scan is of another patient, whatever the others are called."""
    one, other, third = many(tmp_path, 3)
    sampler = CropSampler([replace(one, patient="case 1"), other, third], (4, 4, 4), 0, "train")
    assert sampler.patients == 3


def test_parts_of_a_batch_make_up_the_whole(tmp_path: Path) -> None:
    sampler = CropSampler(labelled(tmp_path), (8, 8, 8), 3, "train", 0.5)
    for parts in (1, 2, 4):
        for step in range(3):
            whole = sampler.batch(step, 8, CPU, labels=True)
            cut = [sampler.part(which, parts).batch(step, 8, CPU, labels=True) for which in range(parts)]
            assert torch.equal(torch.cat([part.image for part in cut]), whole.image)
            assert whole.label is not None
            assert torch.equal(torch.cat([part.label for part in cut if part.label is not None]), whole.label)
            for name in ("sizes", "keys", "cases", "patients"):
                assert sum((getattr(part, name) for part in cut), ()) == getattr(whole, name)


def test_keys_and_sizes_keep_every_bit_on_the_device() -> None:
    keys, sizes = (0, 2**63 - 1, 2**53 + 1), ((1, 2, 3), (4, 5, 6))
    assert tuple(keys_on(keys, CPU).tolist()) == keys
    assert sizes_on(sizes, CPU).tolist() == [list(size) for size in sizes]


@pytest.mark.parametrize("lower", [(0, 0, 0), (12, 2, 5), (15, 10, 8)])
def test_a_crop_from_a_place_is_what_training_sees_there(tmp_path: Path, lower: tuple[int, int, int]) -> None:
    case = stored(tmp_path)
    image, size = crop_at(case, lower, (8, 8, 8), CPU)
    d, h, w = (min(8, n - low) for n, low in zip(SHAPE, lower))
    assert size == (d, h, w) and image.shape == (1, 1, 8, 8, 8)
    place = tuple(slice(low, low + 8) for low in lower)
    wanted = np.zeros((8, 8, 8))
    wanted[:d, :h, :w] = case.image[(0, *place)] / case.high[0]
    assert np.allclose(image[0, 0], wanted, atol=1e-6)


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
    assert torch.equal(inside_mask(sizes_on(batch.sizes, CPU), (32, 16, 24)), batch.image[:, 0] > 0)


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
from HybridMIMLib.data.store import PreparedCase
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
cases = [PreparedCase(folder, folder.name, (0,), (1,), ()) for folder in sorted(Path(sys.argv[1]).iterdir())]
print(len(set(CropSampler(cases, (2, 2, 2), 0, "train").batch(0, 100, torch.device("cpu")).cases)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of open files are of Unix")
def test_more_cases_than_files_may_be_open(tmp_path: Path) -> None:
    for number in range(100):
        stored(tmp_path, f"{number:03d}", (3, 3, 3))
    done = subprocess.run([sys.executable, "-c", _FEW_FILES, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.strip() == "100", done.stderr


def labelled(folder: Path, count: int = 3) -> list[PreparedCase]:
    label = np.zeros(SHAPE, np.uint8)
    label[3:6, 4:9, 5:8], label[15, 12, 10] = 1, 3
    return [stored(folder, f"case {n}", label=label) for n in range(count)]


def crop_threads() -> int:
    return sum(thread.name.startswith("crops") for thread in threading.enumerate())


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_crops_are_the_same_whatever_the_number_of_workers(tmp_path: Path, workers: int) -> None:
    cases = labelled(tmp_path)
    alone = CropSampler(cases, (8, 8, 8), 3, "train", 0.5)
    helped = CropSampler(cases, (8, 8, 8), 3, "train", 0.5, workers)
    # In order, from the middle as a continued run, back, far ahead; another size, with and without labels.
    asked = [(step, 4, True) for step in (0, 1, 2, 3, 7, 8, 2, 1000, 1001)] + [(1002, 2, True), (1003, 2, False)]
    for step, size, labels in asked:
        one, other = (sampler.batch(step, size, CPU, labels) for sampler in (alone, helped))
        assert same(one, other) and one.sizes == other.sizes
        assert (one.label is None) == (other.label is None) == (not labels)
        if one.label is not None and other.label is not None:
            assert torch.equal(one.label, other.label)
    helped.close()


def test_workers_cut_ahead_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[tuple[int, str]] = []
    whole = _Cutter.step

    def seen(self: _Cutter, step: int, size: int, labels: bool) -> object:
        cut.append((step, threading.current_thread().name))
        return whole(self, step, size, labels)

    monkeypatch.setattr(_Cutter, "step", seen)
    sampler = CropSampler(many(tmp_path), (8, 8, 8), 0, "train", workers=3)
    for step in range(4):
        sampler.batch(step, 2, CPU)
    while len(cut) < 7:
        time.sleep(0.01)
    sampler.close()
    assert sorted(step for step, _ in cut) == list(range(7))
    assert all(name.startswith("crops") for _, name in cut)


def test_threads_end_with_the_sampler(tmp_path: Path) -> None:
    cases, before = many(tmp_path), crop_threads()
    for ended_by in ("close", "nobody"):
        sampler = CropSampler(cases, (8, 8, 8), 0, "train", workers=2)
        sampler.batch(0, 2, CPU)
        assert crop_threads() > before
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("crops")]
        if ended_by == "close":
            sampler.close()
        del sampler
        for thread in threads:
            thread.join(10)
        assert crop_threads() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_scan_that_went_away_is_named(tmp_path: Path, workers: int) -> None:
    case = stored(tmp_path)
    sampler = CropSampler([case], (8, 8, 8), 0, "train", workers=workers)
    shutil.rmtree(case.folder)
    with pytest.raises(DataError, match="image.npy: the prepared scan cannot be read"):
        sampler.batch(0, 1, CPU)
    sampler.close()


def test_a_batch_says_what_was_annotated_in_each_sample(tmp_path: Path) -> None:
    cases = labelled(tmp_path, 4)
    for index, annotated in enumerate((None, (), (2,), (1, 3))):
        cases[index] = replace(cases[index], annotated=annotated)
    wanted = {"case 0": [1, 1, 1], "case 1": [0, 0, 0], "case 2": [0, 1, 0], "case 3": [1, 0, 1]}
    sampler = CropSampler(cases, (8, 8, 8), 0, "train")
    for step in range(3):
        batch = sampler.batch(step, 4, CPU, labels=True)
        assert batch.annotated is not None and batch.annotated.dtype == torch.bool
        assert batch.annotated.int().tolist() == [wanted[name] for name in batch.cases]
    assert sampler.batch(0, 4, CPU).annotated is None


def test_channels_are_cut_at_the_same_place_and_normalised_each_for_itself(tmp_path: Path) -> None:
    case = stored(tmp_path)
    both = np.concatenate([case.image, 3 * case.image])
    np.save(case.folder / "image.npy", both)
    two = replace(case, low=(0.0, 300.0), high=(case.high[0], 3 * case.high[0]))
    batch = CropSampler([two], (8, 8, 8), 0, "train").batch(5, 2, CPU)
    assert batch.image.shape == (2, 2, 8, 8, 8)
    for sample in range(2):
        z, y, x = corner(batch, sample)
        part = both[:, z : z + 8, y : y + 8, x : x + 8].astype(np.float64)
        wanted = np.clip((part[1] - 300) / (two.high[1] - 300), 0, 1)
        assert np.allclose(batch.image[sample, 1], wanted, atol=1e-6)


def test_crops_leave_no_file_open(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files are counted in /proc")
    sampler = CropSampler(labelled(tmp_path), (8, 8, 8), 0, "train", 0.7)
    before = len(os.listdir("/proc/self/fd"))
    for step in range(20):
        sampler.batch(step, 3, CPU, labels=True)
    assert len(os.listdir("/proc/self/fd")) == before


def private_memory() -> int:
    """Bytes of memory that are this process's own: what is mapped from files does not count."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="private memory is told in /proc")
def test_a_crop_of_a_large_scan_takes_the_memory_of_the_crop(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    shape = (1, 256, 256, 400)
    large = np.lib.format.open_memmap(tmp_path / "large" / "image.npy", "w+", np.int16, shape)
    large[0, ::17] = 7
    large.flush()
    size = large.nbytes
    del large
    sampler = CropSampler([PreparedCase(tmp_path / "large", "large", (0.0,), (7.0,), ())], (64, 64, 64), 0, "train")
    sampler.batch(0, 1, CPU)
    before, peak = private_memory(), 0
    for step in range(50):
        sampler.batch(step, 1, CPU)
        peak = max(peak, private_memory())
    # A crop is 1 MB as float32, the scan 52 MB.
    assert size > 50e6 and peak - before < 8e6
