"""Segmenting whole scans, against MONAI's way: time, memory, the same Dice; each line is a row of README.md.

Rows are chosen by name; without names all are measured that fit into ``--minutes``, the quick ones first. Peers take
turns in one run with the same network, windows and overlap. MONAI's way is Spacingd, SlidingWindowInferer with
Gaussian weights, Invertd of all class scores to the scan's grid, argmax; the scores are kept in single precision,
where Invertd's default is double. Needs the public scans of ``shared/data`` (see README.md) but for ``memory``.
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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rows import Result, SkippedError, print_table
from torch import nn

from HybridMIMLib.architectures import settled
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.grid import Grid, to_canonical
from HybridMIMLib.data.normalisation import intensity_range
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.scans import read_label_map, read_scan
from HybridMIMLib.inference.engines import Engine, OpenVINOEngine, TorchEngine
from HybridMIMLib.inference.predictor import Prediction, Predictor
from HybridMIMLib.networks import make_segmentation_network
from HybridMIMLib.settings.inference import InferenceSettings
from HybridMIMLib.settings.network import NetworkSettings

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("HYBRIDMIM_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
CPU = torch.device("cpu")
ORGANS = ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Esophagus", "Larynx", "Mandible")


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        scan: below the folder of public scans; a CT.
        spacing: mm along each axis, of the model for it.
        crop: voxels of a window along a side.
        size: of the U-Net.
        repetitions: of which medians are taken.
        large: voxels of the scan of the memory row; its model has two thirds of them along the first two axes.
        steps: of training, for the Dice.
        keep: folder for the trained models.
        limit: seconds of the monotonic clock at which no further repetition begins.
    """

    scan: str
    spacing: float
    crop: int
    size: str
    repetitions: int
    large: tuple[int, int, int]
    steps: int
    keep: Path
    limit: float

    @property
    def plan(self) -> Plan:
        """Of a model for CT."""
        return Plan(
            1, (self.spacing,) * 3, "window", (-1000.0, 1000.0), (self.crop,) * 3, (self.crop // 4,) * 3, (8,) * 3
        )

    @property
    def windows_shape(self) -> tuple[int, int, int]:
        """Voxels of the large scan at the model's spacing: 340 x 340 x 300 for 512 x 512 x 300."""
        d, h, w = self.large
        return round(d * 340 / 512), round(h * 340 / 512), w


# --- peers ---


def classes_of(names: tuple[str, ...] = ORGANS) -> tuple[LabelClass, ...]:
    """Classes 1, 2, …"""
    return tuple(LabelClass(number, name, (1, 0, 0)) for number, name in enumerate(names, 1))


def unet(sizes: Sizes, seed: int = 0) -> nn.Module:
    """A U-Net for the organs, with random weights."""
    chosen = NetworkSettings(size=sizes.size)  # type: ignore[arg-type]  # one of the choices of --size
    settings = settled(chosen, sizes.plan.spacing)
    return make_segmentation_network(settings, 1, len(ORGANS), sizes.plan.crop, seed).eval()


def ct(sizes: Sizes) -> tuple[np.ndarray, Grid]:
    """The scan, along R, A, S."""
    path = SHARED / sizes.scan
    if not path.is_file():
        raise SkippedError(f"the scan is not at {path}")
    scan = read_scan(path)
    array, grid, _ = to_canonical(scan.array, scan.grid)
    return array, grid


def monais(array: np.ndarray, grid: Grid, plan: Plan, network: nn.Module, overlap: float, batch: int) -> np.ndarray:
    """Numbers of classes (D, H, W) as plain MONAI finds them; the scan is along R, A, S."""
    from monai.data import MetaTensor
    from monai.inferers import SlidingWindowInferer
    from monai.transforms import Invertd, ScaleIntensityRange, Spacingd

    spacing = Spacingd("image", plan.spacing, mode="bilinear", dtype=torch.float32)
    image = MetaTensor(torch.from_numpy(array.astype(np.float32)), affine=torch.from_numpy(grid.affine.copy()))
    data = spacing({"image": image})
    del image
    ((low, high),) = intensity_range(np.asarray(data["image"]), plan)
    data["image"] = ScaleIntensityRange(low, high, 0, 1, clip=True)(data["image"])
    inferer = SlidingWindowInferer(plan.crop, batch, overlap, mode="gaussian")
    with torch.inference_mode():
        data["scores"] = inferer(data["image"][None], network)[0]
        inverse = Invertd("scores", spacing, orig_keys="image", nearest_interp=False)
        scores = inverse(data)["scores"]
        labels: np.ndarray = scores.argmax(dim=0).to(torch.uint8).numpy()
    return labels


def ours(engine: Engine, plan: Plan, classes: tuple[LabelClass, ...], **settings: Any) -> Predictor:
    """A predictor with some settings by name."""
    return Predictor(engine, plan, classes, InferenceSettings(**settings))


def openvino(network: nn.Module, plan: Plan) -> Engine:
    """OpenVINO with one window at a time."""
    try:
        return OpenVINOEngine(network, plan.channels, plan.crop)
    except ImportError as error:
        raise SkippedError("OpenVINO is not installed") from error


def taking_turns(peers: dict[str, Callable[[], Any]], sizes: Sizes, warm_up: bool) -> dict[str, list[float]]:
    """Seconds of each peer, turn by turn."""
    times: dict[str, list[float]] = {name: [] for name in peers}
    if warm_up:
        for work in peers.values():
            work()
    for repetition in range(sizes.repetitions):
        if repetition and time.monotonic() > sizes.limit:
            print(f"time is up after {repetition} of {sizes.repetitions} rounds", file=sys.stderr)
            break
        for name, work in peers.items():
            began = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - began)
    return times


# --- the rows ---


def window(sizes: Sizes) -> list[Result]:
    """One window with OpenVINO and with PyTorch."""
    network = unet(sizes)
    engines = {"torch": TorchEngine(network, CPU, 1), "openvino": openvino(network, sizes.plan)}
    crop = torch.rand(1, 1, *sizes.plan.crop)
    scores = [engine(crop) for engine in engines.values()]
    difference = float((scores[0] - scores[1]).abs().max())
    found = taking_turns({name: partial(engine, crop) for name, engine in engines.items()}, sizes, warm_up=True)
    torch_s, openvino_s = (statistics.median(found[name]) for name in engines)
    return [
        Result(
            f"a window of {sizes.crop}³, U-Net {sizes.size}: PyTorch against OpenVINO",
            "≥ 1.5×",
            f"{torch_s / openvino_s:.2f}× ({torch_s:.2f} s, {openvino_s:.2f} s; scores differ by {difference:.1g})",
        )
    ]


def scan(sizes: Sizes) -> list[Result]:
    """A whole scan to labels on its own grid; same network, same overlap."""
    array, grid = ct(sizes)
    network, plan, overlap = unet(sizes), sizes.plan, 0.5
    engines: dict[str, Engine] = {"PyTorch": TorchEngine(network, CPU, 4)}
    try:
        engines["OpenVINO"] = openvino(network, plan)
    except SkippedError as reason:
        print(reason, file=sys.stderr)
    ways: dict[str, dict[str, Any]] = {
        "air skipped": {},
        "following the body": {"follow_body": True},
        "all of the scan": {"skip_air": False},
    }
    predictors = {
        f"{engine}, {way}": ours(engines[engine], plan, classes_of(), overlap=overlap, **settings)
        for engine in engines
        for way, settings in ways.items()
        if engine == "PyTorch" or way != "all of the scan"
    }
    made: dict[str, Prediction] = {}
    labels: dict[str, np.ndarray] = {}

    def predict(name: str) -> None:
        made[name] = predictors[name].predict(array, grid)

    peers: dict[str, Callable[[], Any]] = {
        "MONAI": lambda: labels.update(MONAI=monais(array, grid, plan, network, overlap, 4)),
        **{name: partial(predict, name) for name in predictors},
    }
    found = {name: statistics.median(times) for name, times in taking_turns(peers, sizes, warm_up=False).items()}
    shape = "×".join(map(str, grid.shape))
    same = float((made["PyTorch, all of the scan"].labels == labels["MONAI"]).mean())
    rows = [
        Result(
            f"CT of {shape} at {sizes.spacing:g} mm, windows of {sizes.crop}³, U-Net {sizes.size}: MONAI against "
            f"{name}, {made[name].windows} windows",
            "" if name.endswith("all of the scan") else "≥ 2×",
            f"{found['MONAI'] / found[name]:.2f}× ({found['MONAI']:.1f} s, {found[name]:.1f} s)",
        )
        for name in predictors
    ]
    return [*rows, Result("voxels with MONAI's label, all of the scan, random weights", "", f"{100 * same:.2f} %")]


def forecast(sizes: Sizes) -> list[Result]:
    """What was foretold, and what it took."""
    array, grid = ct(sizes)
    network, told = unet(sizes), []
    for preset in ("fast", "balanced", "best"):
        one = Predictor(
            TorchEngine(network, CPU, 1),
            sizes.plan,
            classes_of(),
            InferenceSettings(preset=preset),
            flip_axes=(0,),
        )
        expected = one.forecast(array, grid)[preset]
        began = time.perf_counter()
        one.predict(array, grid)
        seconds = time.perf_counter() - began
        told.append(f"{preset} {100 * (expected / seconds - 1):+.0f} % ({expected:.1f} s, took {seconds:.1f} s)")
    return [Result("predicted time of the presets, from one window", "within 25 %", ", ".join(told))]


def memory(sizes: Sizes) -> list[Result]:
    """The most that 25 classes on a large scan take above the state before."""
    mine = in_own_process("ours", sizes)
    what = (
        f"25 classes on {'×'.join(map(str, sizes.large))}, {'×'.join(map(str, sizes.windows_shape))} for the network"
    )
    told = f"{mine['peak']:.2f} GB ({mine['seconds']:.0f} s)"
    peer = in_own_process("monai", sizes)
    if "peak" in peer:
        share = f"{100 * mine['peak'] / peer['peak']:.0f} % (MONAI: {peer['peak']:.2f} GB, {peer['seconds']:.0f} s)"
    else:
        least = least_of_monai(sizes)
        share = f"{100 * mine['peak'] / least:.0f} % of the {least:.1f} GB that its scores alone are ({peer['why']})"
    return [
        Result(f"memory above the state before: {what}", "≤ 2.5 GB", told),
        Result("the same, as a share of MONAI's", "≤ 25 %", share),
    ]


def least_of_monai(sizes: Sizes) -> float:
    """GB of the class scores at both resolutions, which MONAI's way holds at one time."""
    return 26 * 4 * (np.prod(sizes.windows_shape, dtype=float) + np.prod(sizes.large, dtype=float)) / 1e9


def in_own_process(who: str, sizes: Sizes) -> dict[str, Any]:
    """Measure the memory of one peer in a new process."""
    shape = [str(n) for n in sizes.large]
    command = [sys.executable, __file__, "--peer", who, "--large", *shape, "--crop", str(sizes.crop)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"why": lines[-1] if lines else f"it ended with {done.returncode}, as for want of memory"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


class Stub(nn.Module):
    """A single convolution of one voxel: the scores of all classes, at next to no cost."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv3d(1, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, D, H, W) → (B, outputs, D, H, W)."""
        scores: torch.Tensor = self.layer(x)
        return scores


def memory_of(who: str, sizes: Sizes) -> dict[str, float]:
    """GB of this process's memory above what it has before the scan is segmented."""
    # Where memory runs out, it is this process that is to end, and no other.
    Path("/proc/self/oom_score_adj").write_text("1000")
    shape, coarse = sizes.large, sizes.windows_shape
    spacing = [1.5 * small / large for small, large in zip(coarse, shape)]
    grid = Grid(shape, np.diag([*spacing, 1.0]))
    random = np.random.default_rng(0)
    array = np.empty((1, *shape), dtype=np.int16)
    for plane in array[0]:
        plane[...] = random.integers(-200, 900, plane.shape, dtype=np.int16)  # Nothing of it is air.
    plan = Plan(1, (1.5,) * 3, "window", (-1000.0, 1000.0), (sizes.crop,) * 3, (16,) * 3, (32,) * 3)
    network, classes = Stub(26).eval(), classes_of(tuple(f"class {number}" for number in range(1, 26)))
    one = ours(TorchEngine(network, CPU, 1), plan, classes, overlap=0.5)
    small = (slice(None), *(slice(0, sizes.crop),) * 3)
    for warm_up in (True, False):
        # What is loaded at the first use is no memory of the scan.
        part = np.ascontiguousarray(array[small]) if warm_up else array
        there = Grid((part.shape[1], part.shape[2], part.shape[3]), grid.affine)
        before, began = forget_peak(), time.perf_counter()
        labels = one.predict(part, there).labels if who == "ours" else monais(part, there, plan, network, 0.5, 1)
        seconds = time.perf_counter() - began
        assert labels.shape == there.shape
        del labels
    return {"peak": peak_memory() - before, "seconds": seconds}


def forget_peak() -> float:
    """GB that this process has now; its peak is counted anew from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return of_status("VmRSS")


def peak_memory() -> float:
    """GB, the most since :func:`forget_peak`."""
    return of_status("VmHWM")


def of_status(name: str) -> float:
    """GB that Linux tells under a name."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1e6


# --- Dice of trained models ---


class Set(NamedTuple):
    """A public set: where images and labels are, which cases, and how many of them are to train on."""

    images: str
    labels: str
    cases: list[str]
    training: int
    options: tuple[str, ...]


def hippocampus() -> Set:
    """20 cases to train on, 30 to measure."""
    folder = SHARED / "hippocampus_mr"
    names = sorted(path.name for path in (folder / "labelsTr").glob("*.nii*"))[:50]
    return Set("hippocampus_mr/imagesTr", "hippocampus_mr/labelsTr", names, 20, ())


def headneck() -> Set:
    """Those cases in which all seven organs were contoured: 20 to train on, 10 to measure."""
    described = SHARED / "headneck_ct" / "cases.json"
    found = json.loads(described.read_text(encoding="utf-8"))["cases"] if described.is_file() else {}
    names = [f"{name}.nii.gz" for name, case in found.items() if all(case["voxels"].get(one) for one in ORGANS)]
    return Set("headneck_ct/images", "headneck_ct/labels_oar", names, 20, ("--plan.crop=[48,48,48]",))


SETS: dict[str, Callable[[], Set]] = {"hippocampus_mr": hippocampus, "headneck_ct": headneck}


def trained(name: str, chosen: Set, sizes: Sizes) -> Path:
    """The model of a set, trained now if it is not there."""
    output = sizes.keep / f"{name}-{sizes.steps}"
    if not (output / "model").is_dir():
        cases = sizes.keep / f"{name}-cases"
        for kind, source in (("images", chosen.images), ("labels", chosen.labels)):
            (cases / kind).mkdir(parents=True, exist_ok=True)
            for case in chosen.cases[: chosen.training]:
                if not (cases / kind / case).exists():
                    (cases / kind / case).symlink_to(SHARED / source / case)
        options = [
            f"--labelled={cases}", f"--output={output}", "--network.size=tiny", f"--finetuning.steps={sizes.steps}",
            "--finetuning.batch=2", "--finetuning.validation_cases=0", *chosen.options,
        ]  # fmt: skip
        command = [sys.executable, "-m", "HybridMIMLib", "finetune", *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return output / "model"


def dice(sizes: Sizes) -> list[Result]:
    """Mean Dice of trained models, ours and MONAI's way, on scans that they have not seen."""
    if not SHARED.is_dir():
        raise SkippedError(f"the sets are not at {SHARED}")
    return [dice_of(name, make(), sizes) for name, make in SETS.items()]


def dice_of(name: str, chosen: Set, sizes: Sizes) -> Result:
    """See :func:`dice`."""
    from HybridMIMLib.evaluation.dice import dice_by_class
    from HybridMIMLib.model_package import load_model

    what, target = f"{name}: mean Dice, ours less MONAI's way, balanced", "within 0.001"
    if not chosen.cases:
        return Result(what, target, "skipped: the set is not there")
    package = load_model(trained(name, chosen, sizes))
    network = package.network.eval()
    one = ours(TorchEngine(network, CPU, 4), package.plan, package.classes)
    numbers = np.array([0, *(c.label for c in package.classes)], dtype=np.uint8)
    rows: dict[str, list[dict[str, float]]] = {"ours": [], "MONAI": [], "between": []}
    for case in chosen.cases[chosen.training :]:
        scan, label = read_scan(SHARED / chosen.images / case), read_label_map(SHARED / chosen.labels / case)
        array, grid, _ = to_canonical(scan.array, scan.grid)
        reference = to_canonical(label.array, label.grid)[0]
        peers = {
            "ours": one.predict(array, grid).labels,
            "MONAI": numbers[monais(array, grid, package.plan, network, 0.5, 4)],
        }
        for peer, labels in peers.items():
            rows[peer].append(dice_by_class(labels, reference, package.classes))
        rows["between"].append(dice_by_class(peers["ours"], peers["MONAI"], package.classes))
    means = {peer: float(np.nanmean([list(row.values()) for row in found])) for peer, found in rows.items()}
    told = (
        f"{means['ours'] - means['MONAI']:+.4f} ({means['ours']:.4f}, {means['MONAI']:.4f}; {len(rows['ours'])} scans"
    )
    return Result(what, target, f"{told}, {sizes.steps} steps; Dice between the two {means['between']:.4f})")


ROWS: dict[str, Callable[[Sizes], list[Result]]] = {
    "window": window,
    "scan": scan,
    "forecast": forecast,
    "memory": memory,
    "dice": dice,
}
"""The quick ones first."""


def main() -> None:
    """Measure the rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help=f"which of {', '.join(ROWS)}; default: all")
    parser.add_argument("--scan", default="headneck_ct/images/pt_100.nii.gz", help="below the folder of public scans")
    parser.add_argument("--spacing", type=float, default=1.5, help="mm, of the model for it")
    parser.add_argument("--crop", type=int, default=96, help="voxels along a side of a window")
    parser.add_argument("--size", default="tiny", choices=["tiny", "small", "base"], help="of the U-Net")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--large", type=int, nargs=3, default=[512, 512, 300], help="voxels of the row memory")
    parser.add_argument("--steps", type=int, default=300, help="of training for the row dice")
    parser.add_argument("--keep", type=Path, help="folder for the models of the row dice; default: a temporary one")
    parser.add_argument("--minutes", type=float, default=20.0, help="after which no further row or round begins")
    parser.add_argument("--peer", choices=["ours", "monai"], help=argparse.SUPPRESS)
    chosen = vars(parser.parse_args())
    names, peer = chosen.pop("rows") or list(ROWS), chosen.pop("peer")
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"there is no row {unknown[0]!r}; rows are {', '.join(ROWS)}")
    d, h, w = chosen.pop("large")
    limit = time.monotonic() + 60 * chosen.pop("minutes")
    with tempfile.TemporaryDirectory() as temporary:
        keep = (chosen.pop("keep") or Path(temporary)).resolve()
        sizes = Sizes(large=(d, h, w), keep=keep, limit=limit, **chosen)
        if peer:
            print(json.dumps(memory_of(peer, sizes)))
        else:
            print_table(names, ROWS, sizes, limit)


if __name__ == "__main__":
    main()
