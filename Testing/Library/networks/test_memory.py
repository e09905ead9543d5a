"""The batch that fits a device: the estimate against what a step really takes, and the limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import TINY

import HybridMIMLib
from HybridMIMLib.config import make_run
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import read_json
from HybridMIMLib.networks import memory
from HybridMIMLib.networks.memory import (
    crop_bytes,
    fitted_batch,
    machine_memory,
    memory_in_use,
    room_on,
    settle_batch,
)
from HybridMIMLib.runs import load_settings

CPU = torch.device("cpu")

STEPS: dict[str, tuple[str, dict[str, object], list[int]]] = {
    "U-Net, fine-tuning": ("finetune", {"features": [8, 16, 32]}, [32, 32, 48]),
    "U-Net, HybridMIM": ("hybridmim", {"features": [8, 16, 32]}, [48, 48, 32]),
    "SwinUNETR, HybridMIM": ("hybridmim", {"architecture": "swinunetr"}, [64, 32, 32]),
    "UNETR, SimMIM": ("simmim", {"architecture": "unetr"}, [64, 64, 64]),
}
"""What is trained, the network, and the crop."""

MEASURE = """
import gc, json, sys
import torch
torch.set_num_threads(1)
from HybridMIMLib.architectures import settled
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.settings.pretraining import PretrainingSettings
from HybridMIMLib.finetuning.loss import segmentation_losses
from HybridMIMLib.networks import make_backbone, make_segmentation_network
from HybridMIMLib.networks.dropout import dropout_keys
from HybridMIMLib.networks.memory import crop_bytes
from HybridMIMLib.pretraining.crops import blank_crops
from HybridMIMLib.pretraining.hybridmim import HybridMIM
from HybridMIMLib.pretraining.masking import PatchGrid
from HybridMIMLib.pretraining.simmim import SimMIM

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))

def finetune(settings, crop):
    network = make_segmentation_network(settings, 1, 4, crop).train()
    def losses(count):
        with dropout_keys(torch.arange(count)):
            scores = network(torch.zeros(count, 1, *crop))
        return segmentation_losses(scores, torch.zeros(count, *crop, dtype=torch.int64))
    return losses

def hybridmim(settings, crop):
    backbone, chosen = make_backbone(settings, 1, crop), PretrainingSettings()
    region = tuple(max(16, step) for step in backbone.strides[-1])
    box = crop if crop[2] == region[2] else (*crop[:2], crop[2] // 2)
    made = HybridMIM(backbone, PatchGrid(crop, (8, 8, 8), region), box, 1, chosen).train()
    return lambda count: made(blank_crops(count, 1, crop))

def simmim(settings, crop):
    grid = PatchGrid(crop, (16, 16, 16), (32, 32, 32))
    made = SimMIM(make_backbone(settings, 1, crop), grid, 1, PretrainingSettings(objective="simmim")).train()
    return lambda count: made(blank_crops(count, 1, crop))

batch, found = 2, {}
for name, (kind, network, crop) in json.loads(sys.argv[1]).items():
    made = globals()[kind], settled(NetworkSettings(**network), (1, 1, 1)), tuple(crop)
    counted, step = crop_bytes(made[0](*made[1:])), made[0](*made[1:])
    sum(step(1).values()).backward()  # what is loaded at the first step is no activation
    gc.collect()
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    sum(step(batch).values()).backward()
    found[name] = [(status("VmHWM") - before) / batch, counted]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def measured() -> dict[str, tuple[float, int]]:
    """Bytes a crop of each step as measured, in a process of their own, and as counted."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the kernel does not tell the peak")
    # What is freed must go back to the kernel, or the next step could use it unseen.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
    command = [sys.executable, "-c", MEASURE, json.dumps(STEPS)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, tuple[float, int]] = json.loads(said.stdout)
    return found


@pytest.mark.parametrize("step", STEPS)
def test_what_is_counted_is_what_a_step_takes(step: str, measured: dict[str, tuple[float, int]]) -> None:
    really, counted = measured[step]
    print(f"{step}: {really / 1e6:.1f} MB a crop, {counted / 1e6:.1f} counted")
    assert 0.75 < counted / really < 1.25


def test_what_is_counted_follows_from_what_is_kept_and_takes_no_memory() -> None:
    """A step of which everything is known: 1 GB a crop for x and its square, another for the gradient on its way."""
    weight = torch.nn.Parameter(torch.ones(1))

    def losses(count: int) -> dict[str, torch.Tensor]:
        x = torch.zeros(count, 1 << 28)
        return {"loss": (x * weight).square().sum()}

    before = peak_memory()
    counted = crop_bytes(losses)
    assert peak_memory() - before < 1 << 28
    assert 3 << 30 <= counted <= 5 << 30


def peak_memory() -> int:
    """Bytes, the most that this process ever had."""
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize(
    ("room", "crop_bytes", "expected", "warns"),
    [
        (10_000, 1_000, 10, False),
        (4_000, 1_000, 4, False),
        (3_999, 1_000, 4, True),
        (0, 1_000, 4, True),
        (10**12, 1_000, 16, False),
        (None, 1_000, 4, False),
    ],
)
def test_the_batch_is_what_fits_from_the_fewest_to_16(
    room: int | None, crop_bytes: int, expected: int, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "room_on", lambda device: room)
    events = EventLog()
    assert fitted_batch(crop_bytes, CPU, events, 4) == expected
    assert bool(events.warnings) == warns and all("plan.crop" in text for text in events.warnings)


def test_the_room_is_a_quarter_of_the_machine_or_half_of_what_the_gpu_has_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "machine_memory", lambda: 8_000)
    assert room_on(CPU) == room_on(torch.device("mps")) == 2_000
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6_000, 10_000))
    assert room_on(torch.device("cuda:0")) == 3_000


def test_the_memory_of_a_container_is_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, limited in (("123456789\n", True), ("max\n", False), ("9223372036854771712", False)):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(memory, "_CGROUP_LIMITS", (str(tmp_path / "memory.max"), str(tmp_path / "none")))
        found = machine_memory()
        assert found is not None and (found == 123456789) == limited


def test_a_machine_that_does_not_tell_gets_the_fewest(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr("os.sysconf", refuse)
    assert machine_memory() is None and room_on(CPU) is None
    assert fitted_batch(1, CPU, EventLog()) == 4


def test_fine_tuning_takes_fewer_where_fewer_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "room_on", lambda device: 2_500)
    assert fitted_batch(1_000, CPU, EventLog()) == 2
    events = EventLog()
    assert fitted_batch(9_000, CPU, events) == 1 and len(events.warnings) == 1


def test_a_given_batch_stays(tmp_path: Path) -> None:
    assert settle_batch(2, lambda: 10**15, CPU, tmp_path, EventLog()) == 2
    assert not list(tmp_path.iterdir())


def test_a_run_that_goes_on_keeps_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def settle(room: int) -> int:
        monkeypatch.setattr(memory, "room_on", lambda device: room)
        return settle_batch(0, lambda: 10, CPU, tmp_path, EventLog())

    assert settle(90) == 9 and read_json(tmp_path / "batch.json") == {"batch": 9}
    assert settle(120) == 12, "nothing was learnt yet"
    (tmp_path / "checkpoint.pt").touch()
    assert settle(50) == 12
    (tmp_path / "batch.json").write_text("{}")
    assert settle(50) == 5


def test_several_devices_share_a_batch_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for room, expected in ((20, 6), (10, 6), (50, 15)):
        monkeypatch.setattr(memory, "room_on", lambda device, room=room: room)
        assert settle_batch(0, lambda: 10, CPU, tmp_path, EventLog(), fewest=4, devices=3) == expected


@pytest.mark.parametrize(("command", "section"), [("pretrain", "pretraining"), ("finetune", "finetuning")])
def test_training_with_batch_0_fits_the_device_and_says_so(
    command: str, section: str, blobs: Path, tmp_path: Path
) -> None:
    folder = {"pretrain": {"unlabelled": blobs / "unlabelled"}, "finetune": {"labelled": blobs / "labelled"}}[command]
    settings = {**TINY, section: {**TINY[section], "batch": 0, "steps": 2}}
    getattr(HybridMIMLib, command)(**folder, output=tmp_path / "run", **settings)
    assert read_json(tmp_path / "run" / "batch.json") == {"batch": 16}
    assert "batch of 16 crops" in (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8")
    assert load_settings(tmp_path / "run" / "run.yaml") == make_run(
        None, {**settings, **folder, "output": tmp_path / "run"}
    ), "what the user said stays as it is"


def test_memory_in_use_is_that_of_this_process() -> None:
    before = memory_in_use(torch.device("cpu"))
    held = torch.ones(50_000_000)
    after = memory_in_use(torch.device("cpu"))
    assert set(before) == {"process"} and 150e6 < after["process"] - before["process"] < 300e6
    assert len(held)


def test_a_gpu_tells_what_the_run_and_all_programs_have_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (30, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 50)
    found = memory_in_use(torch.device("cuda"))
    assert {name: size for name, size in found.items() if name != "process"} == {
        "gpu": 50,
        "gpu_used": 70,
        "gpu_total": 100,
    }
