"""What the Training panel starts and tells of: options of each command, pre-trainings to start from, runs at work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import TINY, UNICODE_NAME, finish

from HybridMIMLib.files import write_json
from HybridMIMLib.slicer_side.jobs import FINISHED, STOPPED
from HybridMIMLib.slicer_side.models import models
from HybridMIMLib.slicer_side.plan_choices import flat
from HybridMIMLib.slicer_side.training import (
    WEIGHTS,
    finished_pretrainings,
    options_of,
    start_training,
    training_at_work,
    what_was_made,
    why_no_weights,
)

SMALL = {name: value for name, value in flat(TINY).items() if not name.endswith("steps")}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / UNICODE_NAME
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(folder))
    return folder


def test_each_command_gets_the_options_that_it_knows() -> None:
    plan = {"config": "ct-abdomen", "plan.crop": "[64, 64, 64]", "pretraining.steps": 5, "finetuning.steps": 6}
    common = {"config": "ct-abdomen", "plan.crop": "[64, 64, 64]"}
    assert options_of("pretrain", "u", "l", plan, "w") == {"unlabelled": "u", **common, "pretraining.steps": 5}
    assert options_of("finetune", "u", "l", plan, "w") == {
        "labelled": "l",
        **common,
        "finetuning.steps": 6,
        "weights": "w",
    }
    assert options_of("train", "u", "l", plan, "w") == {"unlabelled": "u", "labelled": "l", **plan}
    assert "weights" not in options_of("finetune", "u", "l", plan)
    assert options_of("finetune", "", "l", {"weights": "typed"}, "")["weights"] == "typed"


def test_pretraining_then_finetuning_from_it(blobs: Path, workspace: Path) -> None:
    unlabelled, labelled = str(blobs / "unlabelled"), str(blobs / "labelled")
    plan = {**SMALL, "pretraining.steps": 3, "finetuning.steps": 3, "name": "Blobs: 数 [2]"}
    first = finish(start_training("pretrain", options_of("pretrain", unlabelled, labelled, plan)))
    assert first.state == FINISHED, first.message
    assert first.folder.parent == workspace / "runs"
    assert what_was_made(first).startswith("Pre-trained.")
    [found] = finished_pretrainings()
    assert (found.folder, found.name) == (first.folder, first.folder.name)
    options = options_of("finetune", unlabelled, labelled, plan, str(found.folder))
    second = finish(start_training("finetune", options))
    assert second.state == FINISHED, second.message
    assert what_was_made(second).startswith("The model Blobs: 数 [2] is ready")
    assert [one.name for one in models()] == ["Blobs: 数 [2]"]
    assert "from scratch" not in second.result["loaded"]


def test_finished_pretrainings_are_listed_the_latest_first(workspace: Path) -> None:
    assert finished_pretrainings() == []
    for number, place in enumerate(("alone", "both/pre-training", "unfinished", "no weights")):
        folder = workspace / "runs" / place
        folder.mkdir(parents=True)
        if place != "no weights":
            (folder / WEIGHTS).write_bytes(b"")
        if place != "unfinished":
            write_json(folder / "result.json", {})
            stamp = 1_000_000 + number
            os.utime(folder / "result.json", (stamp, stamp))
    assert [one.name for one in finished_pretrainings()] == ["both", "alone"]
    assert finished_pretrainings()[0].folder == workspace / "runs" / "both" / "pre-training"


def test_what_a_finetuning_cannot_start_from_is_told_before_it_starts(tmp_path: Path) -> None:
    assert why_no_weights("") == ""
    reason = why_no_weights(str(tmp_path / "gone"))
    assert "is not there" in reason and str(tmp_path / "gone") in reason and reason.endswith("or nothing.")
    assert "no pre-trained weights" in why_no_weights(str(tmp_path))
    (tmp_path / WEIGHTS).touch()
    assert why_no_weights(str(tmp_path)) == why_no_weights(str(tmp_path / WEIGHTS)) == ""


def test_a_run_outlives_who_started_it_and_is_found_again(blobs: Path) -> None:
    assert training_at_work() is None
    program = (
        "import sys\n"
        "from HybridMIMLib.slicer_side.training import options_of, start_training\n"
        f"plan = { ({**SMALL, 'pretraining.steps': 100_000})!r}\n"
        "job = start_training('pretrain', options_of('pretrain', sys.argv[1], '', plan))\n"
        "print(job._process.pid)"
    )
    arguments = [sys.executable, "-c", program, str(blobs / "unlabelled")]
    started = subprocess.run(arguments, capture_output=True, text=True, check=True)
    limit = time.monotonic() + 60
    job = None
    while (job is None or job.progress.step < 3) and time.monotonic() < limit:
        job = job or training_at_work()
        if job is not None:
            assert job.update(), job.message
        time.sleep(0.05)
    assert job is not None and job.progress.step >= 3
    assert job._process.pid == int(started.stdout)
    job.cancel()
    assert finish(job, 20).state == STOPPED
    assert training_at_work() is None
    assert what_was_made(job) == job.message
