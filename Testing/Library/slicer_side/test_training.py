"""Training from Slicer: settings, runs that are continued, and runs that outlive who started them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import TINY, UNICODE_NAME, finish

from HybridMIMLib.errors import SettingsError
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED, STOPPED, Job
from HybridMIMLib.slicer_side.models import models
from HybridMIMLib.slicer_side.training import Trainer, TrainingSettings, training_at_work


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / UNICODE_NAME
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of a few numbers; the panels have no settings for that."""
    whole = TrainingSettings.options
    small = {f"{part}.{k}": v for part, values in TINY.items() for k, v in values.items() if k != "steps"}
    monkeypatch.setattr(TrainingSettings, "options", lambda self: {**small, **whole(self)})


def work_until_step(job: Job, step: int) -> int:
    """Wait until the pre-training has come so far; returns how far it has."""
    end = time.monotonic() + 60
    while job.progress.phase != "pretrain" or job.progress.step < step:
        assert job.update(), job.message
        assert time.monotonic() < end, "the pre-training does not begin"
        time.sleep(0.02)
    return job.progress.step


def settings_of(blobs: Path, **others: object) -> TrainingSettings:
    given = {"pretraining_steps": 4, "finetuning_steps": 4, "name": "Blobs: 数 [2]", **others}
    return TrainingSettings(str(blobs / "unlabelled"), str(blobs / "labelled"), **given)


def test_why_training_cannot_start(tmp_path: Path) -> None:
    assert "Choose a folder" in TrainingSettings().why_not()
    assert "unlabelled scans is not there" in TrainingSettings(unlabelled=str(tmp_path / "a")).why_not()
    assert "labelled scans is not there" in TrainingSettings(labelled=str(tmp_path / "a")).why_not()
    assert TrainingSettings(labelled=str(tmp_path)).why_not() == ""
    assert TrainingSettings(labelled="~").why_not() == ""
    assert "is not there" in TrainingSettings(labelled="x" * 5000).why_not()
    with pytest.raises(SettingsError, match="Choose a folder"):
        Trainer().start(TrainingSettings())


def test_the_whole_way_to_a_model(blobs: Path, workspace: Path) -> None:
    trainer = Trainer()
    job = finish(trainer.start(settings_of(blobs)))
    assert job.state == FINISHED, job.message
    assert [one.name for one in models()] == ["Blobs: 数 [2]"]
    assert str(models()[0].path) == job.result["model"]
    assert job.folder.parent == workspace / "runs"
    assert trainer.take_end(job).startswith("The model Blobs: 数 [2] is ready")


def test_pretraining_alone_says_what_is_missing_for_a_model(blobs: Path) -> None:
    trainer = Trainer()
    job = finish(trainer.start(TrainingSettings(unlabelled=str(blobs / "unlabelled"), pretraining_steps=3)))
    assert job.state == FINISHED, job.message
    assert "Choose labelled scans too" in trainer.take_end(job)
    assert models() == []


@pytest.mark.parametrize("end", ["cancelled", "killed"])
def test_one_that_did_not_end_is_continued_by_the_same_settings(blobs: Path, end: str) -> None:
    trainer, settings = Trainer(), settings_of(blobs, pretraining_steps=100_000)
    job = trainer.start(settings)
    work_until_step(job, 6)
    if end == "cancelled":
        job.cancel()
    else:
        os.kill(job._process.pid, 9)
    assert finish(job, 20).state == (STOPPED if end == "cancelled" else FAILED)
    assert ("Start continues it." in trainer.take_end(job)) == (end == "cancelled")
    again = trainer.start(settings)
    assert again.folder == job.folder
    # A checkpoint is written every second step.
    assert work_until_step(again, 0) >= 4
    again.kill()
    assert again.state == STOPPED
    other = trainer.start(settings_of(blobs, pretraining_steps=100_001))
    assert other.folder != job.folder
    other.kill()


def test_one_that_fails_again_is_begun_anew(tmp_path: Path) -> None:
    trainer, settings = Trainer(), TrainingSettings(labelled=str(tmp_path))
    first = finish(trainer.start(settings))
    assert first.state == FAILED
    trainer.take_end(first)
    second = finish(trainer.start(settings))
    assert (second.state, second.folder) == (FAILED, first.folder)
    assert trainer.take_end(second) == second.message
    third = trainer.start(settings)
    assert third.folder != first.folder
    third.kill()


def test_a_run_outlives_who_started_it_and_is_found_again(blobs: Path) -> None:
    assert training_at_work() is None
    program = (
        "import sys\n"
        "from HybridMIMLib.slicer_side.training import Trainer, TrainingSettings\n"
        "whole = TrainingSettings.options\n"
        f"small = { ({f'{p}.{k}': v for p, values in TINY.items() for k, v in values.items() if k != 'steps'})!r}\n"
        "TrainingSettings.options = lambda self: {**small, **whole(self)}\n"
        "job = Trainer().start(TrainingSettings(sys.argv[1], pretraining_steps=100000))\n"
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
    assert Trainer().take_end(job) == "Stopped."
