"""Runs from a script: started, waited for, paused, resumed, cancelled, and two at once. The processes are real."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import TINY, UNICODE_NAME

from HybridMIMLib.errors import HybridMIMError, RunError, SettingsError
from HybridMIMLib.slicer_side import jobs, training_run
from HybridMIMLib.slicer_side.training_run import (
    TrainingRun,
    continued,
    start_finetuning,
    start_pretraining,
    start_study,
    start_training,
)

FAKE = """
import sys, time, pathlib
import HybridMIMLib.runs as r
from HybridMIMLib.config import Run
from HybridMIMLib.errors import RunError
import signal
def stop(*_): raise KeyboardInterrupt
signal.signal(signal.SIGTERM, stop)
r._is_command = lambda: True
run = pathlib.Path(sys.argv[-1].split('=', 1)[1])
folder = r.RunFolder.open('pretrain', Run(unlabelled='{scans}', output=str(run)))
try:
    with folder.at_work() as events:
        events.message('hello')
        phase = events.phase('pretrain', 4)
        phase.progress(1, {{'pixel': 0.5}})
        while not (run / 'go on').exists(): time.sleep(0.01)
        if (run / 'fail').exists(): raise RunError('the loss is not finite', cure='Lower the learning rate.')
        phase.progress(4, {{'pixel': 0.25}})
        folder.finish({{'weights': 'w'}})
except KeyboardInterrupt:
    sys.exit(130)
except RunError as error:
    print(f'error: {{error}}'); sys.exit(1)
"""
"""A pre-training that waits for a file, and fails if there is another."""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / UNICODE_NAME
    folder.mkdir()
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(folder))
    return folder


@pytest.fixture
def started(workspace: Path, blobs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], TrainingRun]:
    """Start a run of :data:`FAKE`, and wait until it is at work."""
    program = FAKE.format(scans=blobs / "unlabelled")
    monkeypatch.setattr(jobs, "library_command", lambda _, options: [sys.executable, "-c", program, *options])

    def start() -> TrainingRun:
        run = start_pretraining(blobs / "unlabelled")
        until(lambda: run.state == "running" and run.job.progress.step == 1)
        return run

    return start


def until(condition: Callable[[], bool], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def test_two_real_runs_at_once_the_second_from_the_first(
    workspace: Path, blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    window: list[str] = []
    monkeypatch.setattr(training_run, "let_window_live", lambda: window.append("alive"))
    small = {name: TINY[name] for name in ("plan", "network")}
    first = start_pretraining(blobs / "unlabelled", pretraining={**TINY["pretraining"], "steps": 2}, **small)
    other = start_pretraining(
        blobs / "unlabelled", folder=workspace / "other", pretraining={**TINY["pretraining"], "steps": 2}, **small
    )
    assert first.wait(0) == other.wait(0) == "running" and first.folder != other.folder
    assert first.folder.parent == workspace / "runs" and first.folder.name.startswith("pretrain-unlabelled-")
    lines: list[str] = []
    told: list[tuple[float | None, str]] = []
    assert first.wait(180, log=lines.append, progress=lambda share, text: told.append((share, text))) == "finished"
    assert other.wait(180) == "finished"
    assert lines and told[-1] == (1.0, "Done.") and first.result["losses"]
    assert window, "Slicer's window answers meanwhile"
    assert first.model is None and (first.folder / "pretrained.safetensors").is_file()
    tuned = start_finetuning(
        blobs / "labelled", weights=first, name="Blöbs", finetuning={**TINY["finetuning"], "steps": 2}, **small
    )
    assert tuned.wait(180) == "finished"
    assert tuned.model == tuned.folder / "model" and "loaded" in tuned.result
    assert tuned.folder.name.startswith("finetune-Blöbs-")


def test_events_are_handed_out_once(started: Callable[[], TrainingRun]) -> None:
    run = started()
    first = list(run.events())
    assert [event["kind"] for event in first] == ["message", "phase", "progress"]
    assert list(run.events()) == []
    with open(run.folder / "events.jsonl", "a") as file:
        file.write("{no json\n")
    (run.folder / "go on").touch()
    assert run.wait(20) == "finished"
    rest = list(run.events())
    assert rest[-1]["kind"] == "end" and rest[0]["losses"] == {"pixel": 0.25}


def test_paused_resumed_and_cancelled(started: Callable[[], TrainingRun]) -> None:
    run = started()
    assert run.pause() == "stopped" == run.state
    assert not (run.folder / "run.pid").exists(), "its process is gone"
    assert run.wait() == "stopped", "which is no error"
    run.resume()
    until(lambda: run.job.progress.step == 1 or not run.job.update())
    with pytest.raises(RunError, match="is at work"):
        run.resume()
    assert len([event for event in run.events() if event["kind"] == "message"]) == 2, "both attempts"
    run.cancel()
    assert run.wait(20) == "stopped"
    run.resume()
    (run.folder / "go on").touch()
    assert run.wait(20) == "finished" and run.result["weights"] == "w"
    with pytest.raises(RunError, match="is finished"):
        run.resume()


def test_waiting_has_an_end(started: Callable[[], TrainingRun]) -> None:
    run = started()
    began = time.monotonic()
    assert run.wait(0.3) == "running"
    assert 0.3 <= time.monotonic() - began < 3
    run.cancel()
    assert run.wait(20) == "stopped"


def test_a_failure_is_raised_with_its_cure(started: Callable[[], TrainingRun]) -> None:
    run = started()
    (run.folder / "fail").touch()
    (run.folder / "go on").touch()
    with pytest.raises(RunError, match="the loss is not finite. Lower the learning rate"):
        run.wait(20)
    assert run.state == "failed" and run.result == {}
    (run.folder / "fail").unlink()
    run.resume()
    assert run.wait(20) == "finished"


def test_a_later_program_goes_on_with_what_an_earlier_one_began(started: Callable[[], TrainingRun]) -> None:
    run = started()
    later = continued(run.folder)
    assert later.state == "running"
    (run.folder / "go on").touch()
    assert later.wait(20) == "finished" == run.wait(20)
    with pytest.raises(RunError, match="finished"):
        continued(run.folder)
    with pytest.raises(HybridMIMError):
        continued(run.folder.parent / "none")


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (lambda blobs: start_pretraining(blobs / "nowhere"), "unlabelled scans are not there"),
        (lambda blobs: start_pretraining(blobs / "unlabelled", pretraining={"steps": 0}), "pretraining.steps is 0"),
        (lambda blobs: start_pretraining(blobs / "unlabelled", steps=5), "there is no setting steps"),
        (lambda blobs: start_training(blobs / "unlabelled", config="no such"), "no such file, preset or recipe"),
        (lambda blobs: start_study(blobs / "unlabelled", blobs / "x"), "labelled scans are not there"),
        (lambda blobs: start_finetuning(blobs / "labelled", weights=blobs / "x"), "weights to start from are not"),
    ],
)
def test_what_cannot_work_is_told_before_anything_starts(
    workspace: Path, blobs: Path, start: Callable[[Path], TrainingRun], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        start(blobs)
    assert list(workspace.iterdir()) == []


def test_settings_reach_the_command_as_they_were_given(
    workspace: Path, blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    def note(command: str, options: dict[str, object], folder: Path) -> jobs.Job:
        given.append((command, options, folder))
        raise RunError("enough", cure="None.")

    monkeypatch.setattr(training_run, "start_job", note)
    with pytest.raises(RunError, match="enough"):
        start_study(
            blobs / "unlabelled", blobs / "labelled", config="CT-Abdomen", resample_labels=True,
            study={"preset": "quick", "objectives": ["scratch", "simmim"]}, folder=workspace / "s",
        )  # fmt: skip
    [(command, options, folder)] = given  # type: ignore[misc]
    assert command == "study" and folder == workspace / "s"
    from HybridMIMLib.cli import parse

    run = parse("study", [f"--{name}={value}" for name, value in options.items()])
    assert run.study.objectives == ["scratch", "simmim"] and run.study.preset == "quick" and run.resample_labels
    assert run.plan.normalisation == "window" and run.labelled == str(blobs / "labelled")


def test_without_the_packages_nothing_starts(workspace: Path, blobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_run, "missing_packages", lambda: ["torch>=2.6"])
    with pytest.raises(RunError, match=r"missing: torch>=2.6. Install them"):
        start_pretraining(blobs / "unlabelled")
