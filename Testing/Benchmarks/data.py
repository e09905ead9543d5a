"""Figures of the prepared store: crops, preparation, augmentation, memory, each beside what a peer takes.

Every row is measured in a process of its own, on one core with one thread, on a generated CT-like scan of 512x512x300
voxels or on the public hippocampus set, and is a row of README.md. ``--quick`` takes smaller scans, to see that it
runs; its figures mean nothing. Writes to a temporary folder alone, which needs 3 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before numpy and torch are loaded: they ask once.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ[_name] = "1"

import numpy as np  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("HYBRIDMIM_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
SPACING = (0.75, 0.75, 1.0)
CROP = (96, 96, 96)
Row = dict[str, Any]


def shape_of(quick: bool) -> tuple[int, int, int]:
    """Voxels of the generated scan."""
    return (160, 160, 112) if quick else (512, 512, 300)


def write_scan(folder: Path, quick: bool) -> tuple[Path, Path]:
    """A body of muscle with lungs and bone, noise as a scanner has, and three classes; not compressed."""
    from HybridMIMLib.data.grid import Grid
    from HybridMIMLib.data.scans import write_label_map, write_nifti

    image, label = folder / "images" / "ct.nii", folder / "labels" / "ct.nii"
    if not image.exists():
        shape = shape_of(quick)
        random, (d, h, w) = np.random.default_rng(0), shape
        z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
        radius = (z[:, None, None] / 0.8) ** 2 + (y[None, :, None] / 0.6) ** 2 + 0 * x[None, None, :]
        hounsfield = np.where(radius < 1, 50, -1000).astype(np.float32)
        numbers = np.zeros(shape, np.uint8)
        for number, (place, size, value) in enumerate(
            (((-0.35, 0, 0.3), 0.3, -820), ((0.35, 0, 0.3), 0.3, -810), ((0, -0.4, 0), 0.12, 300)), 1
        ):
            away = [((axis - at) / size) ** 2 for axis, at in zip((z, y, x), place)]
            inside = away[0][:, None, None] + away[1][None, :, None] + away[2][None, None, :] < 1
            hounsfield[inside], numbers[inside] = value, number
        for plane in hounsfield:
            plane += 15 * random.standard_normal((h, w), dtype=np.float32)
        grid = Grid((d, h, w), np.diag([*SPACING, 1.0]))
        for file in (image, label):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_nifti(image, np.rint(hounsfield).astype(np.int16), grid)
        write_label_map(label, numbers, grid)
    return image, label


def private_memory() -> float:
    """MB that are this process's own; what is mapped from files does not count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1000


def peak_memory() -> float:
    """MB, the most that this process ever had."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def per_second(work: Callable[[int], object], count: int, each: int = 1) -> float:
    """How many of something are done a second, the median of five runs."""
    rates = []
    for run in range(5):
        began = time.perf_counter()
        for number in range(count):
            work(run * count + number)
        rates.append(each * count / (time.perf_counter() - began))
    return statistics.median(rates)


def prepared_case(folder: Path, quick: bool, spacing: tuple[float, float, float]) -> tuple[Any, float]:
    """The generated scan in a store at ``spacing``, and the seconds that the store took."""
    from HybridMIMLib.data.classes import LabelClass
    from HybridMIMLib.data.layouts import Case
    from HybridMIMLib.data.plan import Plan
    from HybridMIMLib.data.store import prepare_store
    from HybridMIMLib.data.survey import survey
    from HybridMIMLib.events import EventLog

    image, label = write_scan(folder, quick)
    found = survey([Case("ct", (image,), label)], EventLog())
    classes = [LabelClass(n, f"class {n}", (1, 0, 0)) for n in (1, 2, 3)]
    plan = Plan(1, spacing, "window", (-1000.0, 1000.0), CROP, (16, 16, 16), (32, 32, 32))
    began = time.perf_counter()
    (case,) = prepare_store(found, plan, classes, folder / "store", EventLog())
    return case, time.perf_counter() - began


# --- the rows ---


def crops(folder: Path, quick: bool) -> Row:
    """Random crops from a prepared scan, and the memory they take."""
    import torch

    from HybridMIMLib.data.patches import CropSampler

    case, _ = prepared_case(folder, quick, SPACING)
    sampler, cpu = CropSampler([case], CROP, 0, "benchmark", 0.5), torch.device("cpu")
    _read_through(case)
    sampler.batch(0, 1, cpu, labels=True)
    before, peak = private_memory(), 0.0
    for step in range(50):
        batch = sampler.batch(step, 1, cpu, labels=True)
        peak = max(peak, private_memory())
    assert batch.label is not None
    crop = (batch.image.nbytes + batch.label.nbytes) / 1e6
    count = 20 if quick else 200
    return {
        "image": per_second(lambda step: sampler.batch(step, 1, cpu), count),
        "stored": per_second(lambda step: sampler._cutter.step(step, 1, False), count),
        "labels": per_second(lambda step: sampler.batch(step, 1, cpu, labels=True), count),
        "memory": max(peak - before - crop, 0.0),
    }


def _read_through(case: Any) -> None:
    """Bring the files into the page cache."""
    for name in ("image.npy", "label.npy"):
        (case.folder / name).read_bytes()


def monai_crops(folder: Path, quick: bool) -> Row:
    """The peer: MONAI's usual chain on the same scan, cached on disk by PersistentDataset."""
    from monai.data import PersistentDataset
    from monai.transforms import (
        Compose,
        EnsureChannelFirstd,
        LoadImaged,
        RandCropByPosNegLabeld,
        ScaleIntensityRanged,
        Spacingd,
    )

    image, label = write_scan(folder, quick)
    keys, samples = ["image", "label"], 4
    chain = Compose(
        [
            LoadImaged(keys),
            EnsureChannelFirstd(keys),
            Spacingd(keys, SPACING, mode=("bilinear", "nearest")),
            ScaleIntensityRanged("image", -1000, 1000, 0, 1, clip=True),
            RandCropByPosNegLabeld(keys, "label", CROP, num_samples=samples),
        ]
    )
    chain.set_random_state(0)
    files = [{"image": str(image), "label": str(label)}]
    dataset = PersistentDataset(files, chain, cache_dir=folder / "monai")
    dataset[0]
    before = private_memory()
    began, count = time.perf_counter(), 3
    for _ in range(count):
        dataset[0]
    seconds = (time.perf_counter() - began) / count
    return {"rate": samples / seconds, "scan": seconds, "memory": peak_memory(), "before": before}


def prepare(folder: Path, quick: bool) -> Row:
    """One CT and its label map to 1.5 mm."""
    case, seconds = prepared_case(folder, quick, (1.5, 1.5, 1.5))
    file = case.folder / "image.npy"
    return {
        "seconds": seconds,
        "memory": peak_memory(),
        "ratio": file.stat().st_size / (4 * case.image.size),
        "shape": list(case.image.shape),
    }


def resample(folder: Path, quick: bool) -> Row:
    """The resampling alone, and what scipy takes for it without a low pass."""
    from scipy import ndimage

    from HybridMIMLib.data.resampling import resample_image

    shape = shape_of(quick)
    target = (shape[0] // 2, shape[1] // 2, round(shape[2] / 1.5))
    array = np.random.default_rng(0).integers(-1024, 2000, (1, *shape), dtype=np.int16)
    seconds = {}
    for name, work in (
        ("ours", lambda: resample_image(array, target)),
        ("linear", lambda: ndimage.zoom(array[0].astype(np.float32), np.divide(target, shape), order=1)),
        ("cubic", lambda: ndimage.zoom(array[0].astype(np.float32), np.divide(target, shape), order=3)),
    ):
        began = time.perf_counter()
        work()
        seconds[name] = time.perf_counter() - began
    return seconds


def hippocampus(folder: Path, quick: bool) -> Row:
    """Check, plan and prepare scans of the public set."""
    from HybridMIMLib.config import make_run
    from HybridMIMLib.data.layouts import open_dataset
    from HybridMIMLib.data.prepare import prepare_folder
    from HybridMIMLib.events import EventLog

    source = SHARED / "hippocampus_mr"
    if not source.is_dir():
        return {"skipped": f"the set is not at {source}"}
    from dataclasses import replace

    dataset = open_dataset(source, labelled=True)
    dataset = replace(dataset, cases=dataset.cases[: 10 if quick else 100])
    run = make_run(None, {"labelled": str(source)})
    began = time.perf_counter()
    prepared = prepare_folder(run, "labelled", folder, EventLog(), dataset=dataset)
    seconds = time.perf_counter() - began
    images = [case.folder / "image.npy" for case in prepared.cases]
    floats = sum(4 * case.image.size for case in prepared.cases)
    ratio = sum(file.stat().st_size for file in images) / floats
    return {"seconds": seconds, "scans": len(images), "ratio": ratio}


def monai_hippocampus(folder: Path, quick: bool) -> Row:
    """The peer: the same scans into PersistentDataset's cache, which checks nothing."""
    from monai.data import PersistentDataset
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, ScaleIntensityRangePercentilesd, Spacingd

    from HybridMIMLib.data.layouts import open_dataset

    source = SHARED / "hippocampus_mr"
    if not source.is_dir():
        return {"skipped": f"the set is not at {source}"}
    keys = ["image", "label"]
    chain = Compose(
        [
            LoadImaged(keys),
            EnsureChannelFirstd(keys),
            Spacingd(keys, (1, 1, 1), mode=("bilinear", "nearest")),
            ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0, 1, clip=True),
        ]
    )
    cases = open_dataset(source, labelled=True).cases[: 10 if quick else 100]
    files = [{"image": str(case.images[0]), "label": str(case.label)} for case in cases]
    dataset = PersistentDataset(files, chain, cache_dir=folder / "monai-hippocampus")
    began = time.perf_counter()
    for index in range(len(files)):
        dataset[index]
    return {"seconds": time.perf_counter() - began}


def augment(folder: Path, quick: bool) -> Row:
    """A batch of four crops with its label maps: as drawn in training, and every part in every sample."""
    import torch

    from HybridMIMLib.data import augmentation

    shape = (4, 32, 32, 32) if quick else (4, *CROP)
    image, label = torch.rand(shape)[:, None], torch.randint(0, 5, shape)

    def apply(step: int) -> None:
        keys = range(4 * step, 4 * step + 4)
        augmentation.apply_augmentation(image, label, augmentation.draw_augmentation(keys, (1, 1, 1), [0]))

    drawn = 1000 / per_second(apply, 6)
    for name, part in augmentation.PARTS.items():
        augmentation.PARTS[name] = part._replace(probability=1.0)
    return {"drawn": drawn, "all": 1000 / per_second(apply, 4)}


def monai_augment(folder: Path, quick: bool) -> Row:
    """The peer: the same parts, all of them in every sample, sample by sample."""
    import torch
    from monai.transforms import (
        Compose,
        RandAdjustContrastd,
        RandAffined,
        RandFlipd,
        RandGaussianNoised,
        RandGaussianSmoothd,
        RandScaleIntensityd,
        RandShiftIntensityd,
        RandSimulateLowResolutiond,
    )

    shape = (4, 1, 32, 32, 32) if quick else (4, 1, *CROP)
    image, label = torch.rand(shape), torch.randint(0, 5, shape)
    keys, angle = ["image", "label"], np.deg2rad(15)
    chain = Compose(
        [
            RandFlipd(keys, prob=0.5, spatial_axis=0),
            RandAffined(
                keys,
                prob=1,
                rotate_range=[angle] * 3,
                scale_range=[0.17] * 3,
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            RandGaussianSmoothd("image", (0.5, 1), (0.5, 1), (0.5, 1), prob=1),
            RandSimulateLowResolutiond("image", prob=1, zoom_range=(0.5, 1)),
            RandAdjustContrastd("image", prob=1, gamma=(0.75, 1.35)),
            RandScaleIntensityd("image", factors=0.25, prob=1),
            RandShiftIntensityd("image", offsets=0.1, prob=1),
            RandGaussianNoised("image", prob=1, std=0.05),
        ]
    )

    def apply(_: int) -> None:
        for sample in range(4):
            chain({"image": image[sample], "label": label[sample]})

    return {"all": 1000 / per_second(apply, 2)}


def table(folder: Path, quick: bool) -> Row:
    """The facts of many scans in memory: as many small files, checked as a folder is."""
    from HybridMIMLib.data.grid import Grid
    from HybridMIMLib.data.layouts import open_dataset
    from HybridMIMLib.data.scans import write_nifti
    from HybridMIMLib.data.survey import survey
    from HybridMIMLib.events import EventLog

    count, scans = 300 if quick else 10_000, folder / "many"
    grid = Grid((8, 8, 8), np.eye(4))
    for number in range(count):
        (scans / f"hospital {number // 100:03d}").mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(number).integers(-1000, 1000, (8, 8, 8), dtype=np.int16)
        path = scans / f"hospital {number // 100:03d}" / f"patient with a long name {number:06d}.nii"
        with path.open("wb") as handle:
            handle.write(_nifti_bytes(image, grid, folder, write_nifti))
    before, began = private_memory(), time.perf_counter()
    found = survey(open_dataset(scans, labelled=False).cases, EventLog())
    return {"scans": len(found), "memory": private_memory() - before, "seconds": time.perf_counter() - began}


def _nifti_bytes(image: Any, grid: Any, folder: Path, write: Callable[..., object]) -> bytes:
    """A NIfTI file of which only the voxels change: writing 10,000 of them safely would take minutes."""
    model = folder / "model.nii"
    if not model.exists():
        write(model, image, grid)
    return model.read_bytes()[: -image.nbytes] + image.tobytes(order="F")


ROWS = (crops, monai_crops, prepare, resample, hippocampus, monai_hippocampus, augment, monai_augment, table)


def in_own_process(row: Callable[..., Row], folder: Path, quick: bool) -> Row:
    """Measure a row in a new process, so that memory is its own."""
    command = [sys.executable, __file__, "--row", row.__name__, "--folder", str(folder), *["--quick"] * quick]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"skipped": (done.stderr.strip().splitlines() or ["ended without a word"])[-1]}
    result: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def on_one_core() -> None:
    """Pin this process to one core, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import torch

    torch.set_num_threads(1)


def lines(r: dict[str, Row], quick: bool) -> list[tuple[str, str, Callable[[], str]]]:
    """What, target, and how to say what was measured; the last raises KeyError where a row was skipped."""
    scan = "x".join(map(str, shape_of(quick)))
    return [
        (
            f"random 96³ crops a second from a prepared {scan} CT, normalised, float32",
            "≥ 500",
            lambda: (
                f"{r['crops']['image']:.0f} ({r['crops']['stored']:.0f} as stored, for a GPU that normalises; "
                f"{r['crops']['labels']:.0f} with label map, half of them centred on a class)"
            ),
        ),
        (
            "the same against MONAI's chain with PersistentDataset",
            "≥ 50×",
            lambda: (
                f"{r['crops']['labels'] / r['monai_crops']['rate']:.0f}× "
                f"({r['monai_crops']['rate']:.1f} crops a second, four a scan, {r['monai_crops']['memory']:.0f} MB)"
            ),
        ),
        ("private memory above the crop while cropping", "≤ 64 MB", lambda: f"{r['crops']['memory']:.0f} MB"),
        (
            f"{scan} CT with label map to 1.5 mm in the store, not compressed",
            "≤ 4 s",
            lambda: (
                f"{r['prepare']['seconds']:.1f} s (resampling of the image {r['resample']['ours']:.2f} s; "
                f"scipy.ndimage.zoom, no low pass: linear {r['resample']['linear']:.1f} s, "
                f"cubic {r['resample']['cubic']:.1f} s)"
            ),
        ),
        ("peak memory of it, checking included", "≤ 1.5 GB", lambda: f"{r['prepare']['memory'] / 1000:.2f} GB"),
        (
            f"{r['hippocampus'].get('scans', 100)} hippocampus scans checked and prepared",
            "≤ 10 s",
            lambda: (
                f"{r['hippocampus']['seconds']:.1f} s (MONAI, into PersistentDataset's cache without a check: "
                f"{r['monai_hippocampus']['seconds']:.1f} s)"
            ),
        ),
        (
            "images in the store, of their size as float32",
            "≤ 0.51",
            lambda: f"{max(r['prepare']['ratio'], r['hippocampus']['ratio']):.3f}",
        ),
        (
            "augmentation of 4 × 96³ crops with label maps",
            "less than MONAI",
            lambda: (
                f"{r['augment']['drawn']:.0f} ms as drawn; every part in every sample: {r['augment']['all']:.0f} ms "
                f"against {r['monai_augment']['all']:.0f} ms with MONAI"
            ),
        ),
        (
            f"private memory for the facts of {r['table'].get('scans', 10_000)} checked scans",
            "≤ 300 MB",
            lambda: f"{r['table']['memory']:.0f} MB ({r['table']['seconds']:.0f} s)",
        ),
    ]


def main() -> None:
    """Measure every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small scans, to see that it runs")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    by_name = {row.__name__: row for row in ROWS}
    if chosen.row:
        on_one_core()
        print(json.dumps(by_name[chosen.row](chosen.folder, chosen.quick)))
        return
    if hasattr(os, "getloadavg"):
        # Others on the machine count: on a busy one every figure is too high.
        print(f"load of the last minute before the start: {os.getloadavg()[0]:.1f}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as temporary:
        results = {}
        for name, row in by_name.items():
            results[name] = in_own_process(row, Path(temporary), chosen.quick)
            print(f"{name}: {json.dumps(results[name])}", file=sys.stderr, flush=True)
    print("| what | target | measured |\n|---|---|---|")
    for what, target, say in lines(results, chosen.quick):
        try:
            measured = say()
        except KeyError:
            measured = "skipped: " + "; ".join(row["skipped"] for row in results.values() if "skipped" in row)
        print(f"| {what} | {target} | {measured} |")


if __name__ == "__main__":
    main()
