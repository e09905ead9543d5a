"""Runs killed for real, in the middle, end with the weights of a run that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import TINY, hybridmim, tiny_options, write_blobs

from HybridMIMLib import finetune, pretrain
from HybridMIMLib.errors import RunError
from HybridMIMLib.events import EventReader
from HybridMIMLib.runs import ask_to_stop
from HybridMIMLib.training import load_checkpoint

# As many threads as a user's machine would take: results must not hang on one thread doing everything.
THREADS = {**os.environ, "OMP_NUM_THREADS": "2"}


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "HybridMIMLib", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=THREADS)


def wait_for_checkpoint(run: Path, child: subprocess.Popen[bytes]) -> None:
    ending = time.monotonic() + 120
    while not (run / "checkpoint.pt").exists():
        assert child.poll() is None and time.monotonic() < ending, "the run ended before its first checkpoint"
        time.sleep(0.002)


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_killed_in_the_middle_and_continued_gives_the_same_weights(blobs: Path, tmp_path: Path, command: str) -> None:
    folder = {"pretrain": "unlabelled", "finetune": "labelled"}[command]
    steps = ["--pretraining.steps=30", "--finetuning.steps=30"]
    common = [command, f"--{folder}", blobs / folder, *tiny_options(), *steps]
    whole = hybridmim(*common, "--output", tmp_path / "whole", env=THREADS)
    assert whole.returncode == 0, whole.stderr
    child = start(*common, "--output", tmp_path / "killed")
    wait_for_checkpoint(tmp_path / "killed", child)
    child.kill()
    child.wait()
    assert not (tmp_path / "killed" / "result.json").exists()
    continued = hybridmim(*common, "--output", tmp_path / "killed", env=THREADS)
    assert continued.returncode == 0, continued.stderr
    messages = [e.get("message", "") for e in EventReader(tmp_path / "killed" / "events.jsonl").read()]
    assert any("continued after step" in text for text in messages)
    made = {"pretrain": "pretrained.safetensors", "finetune": "model/models/model.safetensors"}[command]
    assert (tmp_path / "whole" / made).read_bytes() == (tmp_path / "killed" / made).read_bytes()


@pytest.mark.parametrize(("command", "by_file"), [("pretrain", True), ("finetune", False)])
def test_stopped_before_any_checkpoint_it_saves_the_step_that_it_is_at(
    blobs: Path, tmp_path: Path, command: str, by_file: bool
) -> None:
    """By a file on every system, by a signal where there are any; test_training.py tells that it goes on exactly."""
    folder = {"pretrain": "unlabelled", "finetune": "labelled"}[command]
    stages, never = ("pretraining", "finetuning"), ("steps=100000", "checkpoint_every=99999")
    options = [*tiny_options(), *(f"--{stage}.{name}" for stage in stages for name in never)]
    run = tmp_path / "run"
    child = start(
        command, f"--{folder}", blobs / folder, *options, "--finetuning.validate_every=99999", "--output", run
    )
    log, last = EventReader(run / "events.jsonl"), 0.0
    while child.poll() is None and last < 2:
        last = max([last, *(event.get("step", 0) for event in log.read() if event.get("phase") == command)])
        time.sleep(0.01)
    ask_to_stop(run) if by_file else child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=60) == 130
    told = list(EventReader(run / "events.jsonl").read())
    kept = load_checkpoint(run / "checkpoint.pt")["step"]
    assert kept >= last >= 2 and kept == [event["step"] for event in told if event["kind"] == "progress"][-1]
    assert (told[-1]["kind"], told[-1]["outcome"]) == ("end", "stopped") and not (run / "run.pid").exists()


def test_terminated_says_stopped_and_leaves_no_owner(blobs: Path, tmp_path: Path) -> None:
    options = [*tiny_options(), "--pretraining.steps=100000"]
    child = start("pretrain", "--unlabelled", blobs / "unlabelled", "--output", tmp_path / "run", *options)
    wait_for_checkpoint(tmp_path / "run", child)
    second = hybridmim("pretrain", "--unlabelled", blobs / "unlabelled", "--output", tmp_path / "run", *options)
    assert second.returncode == 1 and f"process {child.pid} is working on this run" in second.stderr
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=60) == 130
    last = list(EventReader(tmp_path / "run" / "events.jsonl").read())[-1]
    assert (last["kind"], last["outcome"]) == ("end", "stopped")
    assert not (tmp_path / "run" / "run.pid").exists()


def test_a_finished_run_is_not_computed_again(blobs: Path, tmp_path: Path) -> None:
    settings = {"unlabelled": str(blobs / "unlabelled"), "output": str(tmp_path / "run"), **TINY}
    first = pretrain(**settings)
    changed = Path(first["weights"]).stat().st_mtime_ns
    assert pretrain(**settings) == first
    assert Path(first["weights"]).stat().st_mtime_ns == changed


def test_other_settings_do_not_continue_a_run(blobs: Path, tmp_path: Path) -> None:
    settings = {"unlabelled": str(blobs / "unlabelled"), "output": str(tmp_path / "run"), **TINY}
    pretrain(**settings)
    with pytest.raises(RunError, match=r"other settings: seed"):
        pretrain(**{**settings, "seed": 1})
    with pytest.raises(RunError, match=r"the command \(pretrain\)"):
        finetune(**{**settings, "labelled": str(blobs / "labelled")})


def test_the_seed_decides(blobs: Path, tmp_path: Path) -> None:
    settings = {"unlabelled": str(blobs / "unlabelled"), **TINY}
    made = [
        Path(pretrain(output=str(tmp_path / name), seed=seed, **settings)["weights"]).read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize(("command", "folder"), [(pretrain, "unlabelled"), (finetune, "labelled")])
def test_a_run_does_not_go_on_with_other_scans(
    tmp_path: Path, command: Callable[..., dict[str, Any]], folder: str
) -> None:
    scans = write_blobs(tmp_path / "scans", 5, labelled=True)
    settings = {folder: str(scans), "output": str(tmp_path / "run"), **TINY}
    command(**settings)
    (tmp_path / "run" / "result.json").unlink()
    write_blobs(scans, 6, labelled=True)
    with pytest.raises(RunError, match="scans have changed"):
        command(**settings)
