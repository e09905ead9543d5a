"""What the worker does with a request, in this process: overlapping classes, 4D, several files, lost memory."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_packages import CLASSES, SMALL_PLAN, make_package
from torch import Tensor

from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.scans import read_items, read_label_map, write_image, write_nifti
from HybridMIMLib.errors import DiskError, LabelError, SettingsError
from HybridMIMLib.inference import warm_model
from HybridMIMLib.inference.torch_engine import TorchEngine
from HybridMIMLib.worker_protocol import LAST_EVENTS, Load, Segment
from HybridMIMLib.worker_queue import Cancelled, Worker
from HybridMIMLib.worker_tasks import Tasks, explain

TORCH: Mapping[str, Any] = {"engine": "torch"}
GRID = Grid((20, 18, 16), np.diag([2.0, 1.5, 1.0, 1.0]))


class Notes:
    """Writes down what a task tells."""

    def __init__(self) -> None:
        self.phases, self.counts, self.messages = list[str](), list[tuple[int, int]](), list[str]()

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def windows(self, done: int, of: int) -> None:
        self.counts.append((done, of))

    def message(self, text: str, level: str = "info") -> None:
        self.messages.append(f"{level}: {text}")


@pytest.fixture(scope="module", autouse=True)
def own_workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path_factory.mktemp("workspace")))
        yield


def request(folder: Path, scan: Path, model: Path, **others: Any) -> Segment:
    given = {"output": folder / "label.nii.gz", "uncertainty": None, "layers": None, "device": "cpu"}
    return Segment(1, (scan,), model=str(model), inference=TORCH, **{**given, **others})


def write_scan(path: Path, volumes: int = 0) -> Path:
    array = (
        np.random.default_rng(4).normal(100, 30, (*([volumes] if volumes else []), *GRID.shape)).astype(np.float32)
    )
    write_image(path, array, GRID, (2.5, "sec"))
    return path


def test_where_classes_overlap_each_has_a_mask_and_its_own_volume(tmp_path: Path) -> None:
    make_package(overlapping=True).save(tmp_path / "model")
    scan = write_scan(tmp_path / "scan.nii.gz")
    answer = Tasks("cpu").segment(request(tmp_path, scan, tmp_path / "model", layers=tmp_path / "masks"), Notes())
    labels, both = read_label_map(tmp_path / "label.nii.gz", GRID).array, np.ones(GRID.shape, dtype=bool)
    for one, told in zip(CLASSES, answer["classes"]):
        mask = read_label_map(Path(answer["layers"][one.name]), GRID).array > 0
        both &= mask
        assert told == {"name": one.name, "label": one.label, "ml": pytest.approx(mask.sum() * 3e-3)}
        assert (mask | (labels != one.label)).all()
    # They do overlap, so that the label map alone would not tell.
    assert both.any() and answer["empty"] == []
    assert answer["layers"]["Léber"] == str(tmp_path / "masks" / "2-Léber.nii.gz")


def test_each_volume_of_a_4d_scan_is_segmented(tmp_path: Path) -> None:
    make_package().save(tmp_path / "model")
    scan, notes = write_scan(tmp_path / "scan.nii.gz", volumes=3), Notes()
    answer = Tasks("cpu").segment(request(tmp_path, scan, tmp_path / "model"), notes)
    items = read_items(tmp_path / "label.nii.gz", 1)
    assert items.is_4d and len(items) == 3 and items.step == (2.5, "sec")
    found = {one["label"]: one["ml"] for one in answer["classes"]}
    for label, ml in found.items():
        # On average over the volumes.
        assert ml == pytest.approx((items.arrays == label).sum() * 3e-3 / 3, abs=1e-4)
    assert found.keys() == {2, 7}
    done, of = zip(*notes.counts)
    assert list(done) == sorted(done) and set(of) == {done[-1]} and answer["windows"] == done[-1]
    for kind in ("output", "uncertainty"):
        wrong = request(tmp_path, scan, tmp_path / "model", **{kind: tmp_path / "a.nrrd"})
        # Before anything is computed.
        notes = Notes()
        with pytest.raises(LabelError, match="3 volumes"):
            Tasks("cpu").segment(wrong, notes)
        assert not (tmp_path / "a.nrrd").exists() and notes.counts == []


def test_a_place_for_masks_that_is_a_file_is_refused_before_the_work(tmp_path: Path) -> None:
    make_package(overlapping=True).save(tmp_path / "model")
    (tmp_path / "masks").write_text("notes")
    wrong, notes = request(tmp_path, tmp_path / "scan.nii.gz", tmp_path / "model", layers=tmp_path / "masks"), Notes()
    write_scan(tmp_path / "scan.nii.gz")
    with pytest.raises(DiskError, match="masks: is a file"):
        Tasks("cpu").segment(wrong, notes)
    assert notes.phases == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    make_package().save(tmp_path / "model")
    scan, long = write_scan(tmp_path / "scan.nii.gz"), tmp_path / f"{'x' * 300}.nii.gz"
    with pytest.raises(OSError) as caught:
        Tasks("cpu").segment(request(tmp_path, scan, tmp_path / "model", output=long), Notes())
    told = explain(caught.value)
    assert isinstance(told, DiskError) and str(long) in told.message and "shorter name" in told.cure


def test_a_file_a_channel_is_one_scan(tmp_path: Path) -> None:
    plan = Plan(2, *(getattr(SMALL_PLAN, name) for name in ("spacing", "normalisation", "window", "crop", "patch",
                                                            "region")))  # fmt: skip
    make_package(plan=plan).save(tmp_path / "model")
    for index in (0, 1):
        array = np.random.default_rng(index).normal(100, 30, GRID.shape).astype(np.float32)
        write_nifti(tmp_path / f"{index}.nii.gz", array, GRID)
    one = request(tmp_path, tmp_path / "0.nii.gz", tmp_path / "model")
    both = Segment(1, (tmp_path / "0.nii.gz", tmp_path / "1.nii.gz"), one.output, None, None, one.model, "cpu", TORCH)
    assert Tasks("cpu").segment(both, Notes())["windows"] > 0


def test_what_each_preset_would_take_is_told(tmp_path: Path) -> None:
    make_package(flip_axes=(0,)).save(tmp_path / "model")
    scan, tasks = write_scan(tmp_path / "scan.nii.gz"), Tasks("cpu")
    told = {}
    for preset in ("balanced", "best"):
        one = Segment(1, (scan,), tmp_path / "label.nii.gz", None, None, str(tmp_path / "model"), "cpu",
                      {**TORCH, "preset": preset})  # fmt: skip
        told[preset] = tasks.segment(one, Notes())
        seconds, presets = told[preset]["seconds"], told[preset]["presets"]
        assert presets[preset] == pytest.approx(seconds["total"] - seconds["load"], abs=0.01)
        assert presets["fast"] < presets["balanced"] < presets["best"]
    # The windows of the one are told by the other too: twice as many, for the flip.
    balanced, best = told["balanced"], told["best"]
    shares = [
        (one["presets"]["best"] - one["presets"]["balanced"]) / one["seconds"]["network"] for one in (balanced, best)
    ]
    count = 2 * best["windows"] / balanced["windows"]
    assert shares == pytest.approx([count - 1, 1 - 1 / count], rel=0.05)


def test_settings_of_a_load_hold_until_the_next(tmp_path: Path) -> None:
    make_package().save(tmp_path / "model")
    scan, tasks = write_scan(tmp_path / "scan.nii.gz"), Tasks("cpu")

    def windows(**inference: Any) -> int:
        plain = Segment(1, (scan,), tmp_path / "label.nii.gz", None, None, None, None, inference)
        return int(tasks.segment(plain, Notes())["windows"])

    tasks.load(Load(1, str(tmp_path / "model"), None, {**TORCH, "overlap": 0.0}), Notes())
    few = windows()
    many = windows(overlap=0.75)
    assert many > few == windows()
    tasks.load(Load(2, str(tmp_path / "model"), None, {**TORCH, "overlap": 0.75}), Notes())
    assert windows() == many
    with pytest.raises(SettingsError, match="spleen"):
        tasks.load(Load(3, str(tmp_path / "model"), None, {"largest": ["spleen"]}), Notes())
    # Neither the model nor the settings of before stand in for what could not be loaded.
    assert tasks.state() == {"model": None, "device": None, "warm": False}


@pytest.mark.parametrize("when", [1, 2, 3])
def test_a_load_that_is_cancelled_on_its_way_ends_so(tmp_path: Path, when: int) -> None:
    make_package().save(tmp_path / "model")
    tasks, notes = Tasks("cpu"), Notes()

    def cancel(name: str) -> None:
        notes.phases.append(name)
        if len(notes.phases) == when:
            raise Cancelled

    notes.phase = cancel  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        tasks.load(Load(1, str(tmp_path / "model"), None, TORCH), notes)
    assert tasks.state() == {"model": None, "device": None, "warm": False}


def test_a_full_disk_leaves_no_label_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_package().save(tmp_path / "model")
    scan = write_scan(tmp_path / "scan.nii.gz")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("HybridMIMLib.data.nifti.nibabel.save", full)
    with pytest.raises(DiskError, match="disk is full"):
        Tasks("cpu").segment(request(tmp_path, scan, tmp_path / "model"), Notes())
    assert {path.name for path in tmp_path.iterdir()} == {"model", "scan.nii.gz"}


class Exhausted(TorchEngine):
    """Fails as long as :attr:`error` says how."""

    error: Exception | None = None

    def __call__(self, windows: Tensor) -> Tensor:
        if Exhausted.error is not None:
            raise Exhausted.error
        return super().__call__(windows)

    def on(self, device: torch.device, batch: int) -> TorchEngine:
        return Exhausted(self.network, device, batch)


@pytest.mark.parametrize(
    ("error", "says"),
    [(torch.OutOfMemoryError("full"), "out of memory"), (RuntimeError("the kernel is lost"), "the kernel is lost")],
)
def test_after_an_error_of_the_network_the_next_scan_is_segmented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    make_package().save(tmp_path / "model")
    scan, tasks, answers = write_scan(tmp_path / "scan.nii.gz"), Tasks("cpu"), list[Mapping[str, Any]]()
    monkeypatch.setattr(warm_model, "choose_engine", lambda network, *_: Exhausted(network, torch.device("cpu"), 4))
    worker = Worker(answers.append, lambda: tasks, 1000)
    worker.start()
    places = {"model": str(tmp_path / "model"), "scan": str(scan), "output": str(tmp_path / "label.nii.gz")}
    for id_, wrong in ((1, error), (2, None)):
        monkeypatch.setattr(Exhausted, "error", wrong)
        worker.take(json.dumps({"id": id_, "command": "segment", **places}).encode())
        _until_ended(answers, id_)
    assert worker.end()
    last = {answer["id"]: answer for answer in answers}
    assert last[1]["event"] == "failed" and says in last[1]["message"] and last[1]["cure"]
    assert last[2]["event"] == "done" and (tmp_path / "label.nii.gz").exists()


def _until_ended(answers: list[Mapping[str, Any]], id_: int) -> None:
    end = time.monotonic() + 20
    while not any(one["id"] == id_ and one["event"] in LAST_EVENTS for one in answers):
        assert time.monotonic() < end, answers
        time.sleep(0.005)
