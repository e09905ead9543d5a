"""Runs in two real processes end as they do in one; what goes wrong in one of them ends both, with its reason."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_processes import Together
from small_runs import tiny_options

from HybridMIMLib import distributed
from HybridMIMLib.data.patches import CropSampler
from HybridMIMLib.data.store import PreparedCase
from HybridMIMLib.distributed import by_first, check_batch, own_device
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.events import Event, EventReader
from HybridMIMLib.files import read_json

WEIGHTS = "pretrained.safetensors"
KILL = 9
"""signal.SIGKILL; Windows has no such name."""


def pretrain(blobs: Path, run: Path, count: int, *options: str, spoilt: int | None = None) -> Together:
    common = ("pretrain", "--unlabelled", blobs / "unlabelled", "--output", run, *tiny_options(), "--device=cpu")
    return Together(run.with_name(f"{run.name} said"), (*common, "--pretraining.batch=4", *options), count, spoilt)


def last_event(run: Path) -> Event:
    return list(EventReader(run / "events.jsonl").read())[-1]


def wait_for(file: Path) -> None:
    ending = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < ending, f"there is no {file}"
        time.sleep(0.002)


def assert_alike(one: Path, other: Path) -> None:
    first, second = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    a, b = read_json(one / "result.json"), read_json(other / "result.json")
    for kind in ("losses", "accuracies"):
        assert a[kind] == pytest.approx(b[kind], abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        # Few patients to a batch, so a queue; the counts that losses divide by differ from process to process.
        ("--pretraining.contrast_queue=6", "--pretraining.mask_ratio=[0.1, 0.9]"),
        ("--pretraining.objective=simmim",),
    ],
)
def test_two_processes_end_with_the_weights_of_one(blobs: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    for count in (1, 2):
        for one in pretrain(blobs, tmp_path / str(count), count, *options).end():
            assert one.code == 0, one.errors
    assert_alike(tmp_path / "1", tmp_path / "2")


def test_two_processes_continue_in_the_middle_what_one_began(blobs: Path, tmp_path: Path) -> None:
    for one in pretrain(blobs, tmp_path / "whole", 1).end():
        assert one.code == 0, one.errors
    begun = pretrain(blobs, tmp_path / "begun", 1)
    wait_for(tmp_path / "begun" / "checkpoint.pt")
    begun.processes[0].kill()
    begun.end()
    first, second = pretrain(blobs, tmp_path / "begun", 2).end()
    assert first.code == second.code == 0, first.errors + second.errors
    assert first.output and not second.output + second.errors, "one process talks"
    messages = [event.get("message", "") for event in EventReader(tmp_path / "begun" / "events.jsonl").read()]
    assert sum("continued after step" in text for text in messages) == 1, "one process writes"
    assert_alike(tmp_path / "whole", tmp_path / "begun")


def test_a_process_that_fails_ends_the_run_with_its_reason(blobs: Path, tmp_path: Path) -> None:
    first, second = pretrain(blobs, tmp_path / "run", 2, spoilt=1).end()
    assert first.code == second.code == 1
    assert first.errors.splitlines()[-1] == second.errors.splitlines()[-1] == "error: no such shelf. Put it back."
    assert last_event(tmp_path / "run")["outcome"] == "failed"
    assert last_event(tmp_path / "run")["message"] == "no such shelf. Put it back."


def test_what_fails_in_the_first_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    first, second = pretrain(tmp_path, tmp_path / "run", 2, f"--unlabelled={tmp_path / 'empty'}").end()
    assert first.code == second.code == 1
    assert f"{tmp_path / 'empty'}" in first.errors and second.errors == ""
    assert last_event(tmp_path / "run")["outcome"] == "failed"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(("how", "outcome"), [(KILL, "failed"), (signal.SIGTERM, "stopped")])
def test_the_run_does_not_wait_for_a_process_that_is_gone(
    blobs: Path, tmp_path: Path, how: int, outcome: str
) -> None:
    together = pretrain(blobs, tmp_path / "run", 2, "--pretraining.steps=100000")
    wait_for(tmp_path / "run" / "checkpoint.pt")
    pid = together.processes[1].pid
    assert pid is not None
    os.kill(pid, how)
    first, _ = together.end()
    assert last_event(tmp_path / "run")["outcome"] == outcome, first.errors
    assert first.code == {"failed": 1, "stopped": 130}[outcome] and "Traceback" not in first.errors
    assert not (tmp_path / "run" / "run.pid").exists()


@pytest.mark.parametrize("command", ["finetune", "segment", "train"])
def test_other_commands_say_that_they_work_in_one_process(blobs: Path, tmp_path: Path, command: str) -> None:
    options = {
        "finetune": ("--labelled", blobs / "labelled"),
        "train": ("--labelled", blobs / "labelled"),
        "segment": ("--scans", blobs / "new", "--model", tmp_path),
    }[command]
    for one in Together(tmp_path / "said", (command, *options, "--output", tmp_path / "run"), 2).end():
        assert one.code == 2
    said = (tmp_path / "said" / "0.err").read_text(encoding="utf-8")
    assert f"{command} was started in 2 processes and works in one. Start it without torchrun" in said
    assert not (tmp_path / "run").exists()


def test_the_batch_must_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    check_batch("pretraining.batch", 5)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    for fine in (0, 4, 8):
        check_batch("pretraining.batch", fine)
    with pytest.raises(SettingsError, match=r"pretraining.batch 6 does not divide among 4 .* 4 or 8\."):
        check_batch("pretraining.batch", 6)
    with pytest.raises(SettingsError, match=r"nearest that do: 4\."):
        check_batch("pretraining.batch", 3)


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu, chosen = torch.device("cuda"), torch.device("cpu"), []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert own_device(cuda) == cuda
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert own_device(cpu) == cpu and own_device(cuda) == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")]
    with pytest.raises(SettingsError, match="GPU of its own"):
        own_device(torch.device("cuda:0"))
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(SettingsError, match=r"finds 2.*--nproc_per_node 2"):
        own_device(cuda)


def test_the_parts_of_a_batch_are_the_whole_batch(tmp_path: Path) -> None:
    cases = []
    for index in range(3):
        folder = tmp_path / str(index)
        folder.mkdir()
        shape = (1, 12 + index, 9, 14)
        np.save(folder / "image.npy", np.random.default_rng(index).integers(0, 99, shape, dtype=np.int16))
        cases.append(PreparedCase(folder, str(index), (0.0,), (99.0,), ()))
    whole = CropSampler(cases, (8, 10, 8), 7, "pretrain")
    expected = whole.batch(3, 6, torch.device("cpu"))
    for workers in (0, 2):
        sampler = CropSampler(cases, (8, 10, 8), 7, "pretrain", workers=workers)
        parts = [sampler.part(which, 3).batch(3, 6, torch.device("cpu")) for which in range(3)]
        assert torch.equal(torch.cat([part.image for part in parts]), expected.image)
        for name in ("sizes", "keys", "cases", "patients"):
            assert sum((getattr(part, name) for part in parts), ()) == getattr(expected, name)


def test_alone_everything_is_done_here() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert by_first(lambda: 3) == 3
    assert distributed.gathered(x) is x and distributed.averaged(x) is x
    assert (distributed.together(), distributed.place(), distributed.is_first()) == (1, 0, True)
