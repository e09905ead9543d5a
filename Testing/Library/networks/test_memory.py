"""The batch that fits a device: the estimate against what a step really takes, and the limits."""

from __future__ import annotations

import json
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
from HybridMIMLib.networks.memory import activation_bytes, fitted_batch, machine_memory, room_on, settle_batch
from HybridMIMLib.runs import load_settings

CPU = torch.device("cpu")

MEASURE = """
import gc, json, sys
import torch
torch.set_num_threads(1)
from math import prod
from HybridMIMLib.config import NetworkSettings, PretrainingSettings
from HybridMIMLib.finetuning.loss import segmentation_losses
from HybridMIMLib.networks import make_backbone, make_segmentation_network
from HybridMIMLib.networks.dropout import dropout_keys
from HybridMIMLib.networks.interface import Box
from HybridMIMLib.networks.memory import activation_bytes
from HybridMIMLib.pretraining.hybridmim import HybridMIM, MaskedBatch
from HybridMIMLib.pretraining.masking import PatchGrid
from HybridMIMLib.pretraining.run import box_size

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))

kind, features, side, batch = json.loads(sys.argv[1])
settings, stride = NetworkSettings(features=features), 2 ** (len(features) - 1)

def finetune(size, side):
    crop = (side,) * 3
    network = make_segmentation_network(settings, 1, 4).train()
    image, label = torch.rand(size, 1, *crop), torch.randint(0, 5, (size, *crop))
    with dropout_keys(range(size)):
        sum(segmentation_losses(network(image), label).values()).backward()
    return activation_bytes(features, crop, 5)

def pretrain(size, side):
    crop, patches, chosen = (side,) * 3, (side // 8,) * 3, PretrainingSettings()
    grid = PatchGrid(crop, (8, 8, 8), (16, 16, 16))
    objective = HybridMIM(make_backbone(settings, 1), grid, 1, chosen).train()
    box = box_size(grid, chosen, (stride,) * 3)
    batch = MaskedBatch(
        torch.rand(size, 1, *crop), torch.ones(size, *crop, dtype=torch.bool),
        torch.ones(size, *patches, dtype=torch.bool), torch.rand(size, *patches) < 0.4,
        Box(torch.zeros(size, 3, dtype=torch.long), box), tuple(range(size)),
    )
    sum(objective.losses(batch).values()).backward()
    return activation_bytes(features, crop, 1, prod(box) / prod(crop), min(2, len(features) - 1))

step = {"finetune": finetune, "pretrain": pretrain}[kind]
step(2, 16)  # what is loaded at the first step is no activation
gc.collect()
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
guess = step(batch, side)
print(json.dumps({"measured": (status("VmHWM") - before) / batch, "guess": guess}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel does not tell the peak")
@pytest.mark.parametrize("kind", ["finetune", "pretrain"])
@pytest.mark.parametrize(("features", "side"), [([8, 16, 32], 48), ([8, 16, 32], 64), ([16, 32, 64, 128], 48)])
def test_the_estimate_is_close_to_what_a_step_takes(kind: str, side: int, features: list[int]) -> None:
    said = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps([kind, features, side, 4])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(said.stdout)
    print(f"{kind} {features} {side}: {found['measured'] / 1e6:.0f} MB a crop, {found['guess'] / 1e6:.0f} estimated")
    assert 0.5 < found["guess"] / found["measured"] < 2


def test_the_estimate_grows_with_what_it_counts() -> None:
    features, crop = [16, 32, 64], (64, 64, 64)
    usual = activation_bytes(features, crop, 5)
    assert activation_bytes(features, (64, 64, 128), 5) == pytest.approx(2 * usual, rel=1e-6)
    assert activation_bytes([32, 64, 128], crop, 5) < 2 * usual < 2.3 * activation_bytes([32, 64, 128], crop, 5)
    assert activation_bytes(features, crop, 5, decoded=0.3) < usual < activation_bytes(features, crop, 14)
    assert activation_bytes(features, crop, 5, again_from=2) < activation_bytes(features, crop, 5, again_from=0)


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
    assert settle_batch(2, 10**15, CPU, tmp_path, EventLog()) == 2
    assert not list(tmp_path.iterdir())


def test_a_run_that_goes_on_keeps_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def settle(room: int) -> int:
        monkeypatch.setattr(memory, "room_on", lambda device: room)
        return settle_batch(0, 10, CPU, tmp_path, EventLog())

    assert settle(90) == 9 and read_json(tmp_path / "batch.json") == {"batch": 9}
    assert settle(120) == 12, "nothing was learnt yet"
    (tmp_path / "checkpoint.pt").touch()
    assert settle(50) == 12
    (tmp_path / "batch.json").write_text("{}")
    assert settle(50) == 5


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
