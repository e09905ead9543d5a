"""The list of runs: every state, whatever is in the folders, and 500 of them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path

import pytest
from small_run_folders import make_dead, make_finished, make_run, start_at_work, trained
from small_runs import UNICODE_NAME

from HybridMIMLib.errors import RunError
from HybridMIMLib.events import EventLog
from HybridMIMLib.runs import RunFolder
from HybridMIMLib.slicer_side import run_list
from HybridMIMLib.slicer_side.run_list import RunInfo, RunList, forget, read_run, remember, remembered
from HybridMIMLib.slicer_side.run_log import RunLog


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of runs of a workspace."""
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path / UNICODE_NAME))
    folder = tmp_path / UNICODE_NAME / "runs"
    folder.mkdir(parents=True)
    return folder


def listed(runs: RunList | None = None) -> dict[str, RunInfo]:
    """All runs by name."""
    runs = runs or RunList()
    while not runs.look():
        pass
    return {run.name: run for run in runs.found}


def age(folder: Path, seconds: float) -> None:
    """Make files of a folder older."""
    for file in folder.iterdir():
        os.utime(file, (time.time() - seconds,) * 2)


def test_every_state_is_told_apart(runs: Path) -> None:
    make_finished(runs / "finished", 0.8)
    make_run(runs / "stopped")
    make_run(runs / "failed", error=RunError("the loss is not finite", cure="Lower the rate."))
    make_dead(runs / "died")
    (runs / "empty").mkdir()
    (runs / "a file").write_text("")
    (runs / ".tmp-deleted-1-a").mkdir()
    (runs / ".tmp-deleted-1-a" / "run.yaml").write_text("")
    found = listed()
    assert {name: run.state for name, run in found.items()} == {
        "finished": "finished", "stopped": "stopped", "failed": "failed", "died": "died",
    }  # fmt: skip
    assert found["failed"].reason == "the loss is not finite. Lower the rate."
    assert "killed" in found["died"].reason and "last sign of life" in found["died"].reason
    assert found["died"].progress_in_words == "Pre-training, 7 of 100" and found["died"].kind == "pre-training"
    # The score of the weights that are kept; of what is not finished the best that it told.
    assert found["finished"].dice == 0.8 and found["stopped"].dice == 0.9 and found["died"].dice is None
    assert found["finished"].model == runs / "finished" / "model" and found["stopped"].model is None
    assert found["finished"].host == socket.gethostname() and found["finished"].began


def test_who_works_on_a_run(runs: Path) -> None:
    child, other = start_at_work(runs / "ours"), start_at_work(runs / "session", is_command=False)
    try:
        known = RunList()
        found = listed(known)
        assert found["ours"].state_in_words == f"at work, process {child.pid}" and found["ours"].is_followable
        assert found["session"].state_in_words == f"at work in program {other.pid}"
        assert not found["session"].is_followable and found["session"].is_at_work
        child.kill()
        child.wait()
        assert listed(known)["ours"].state == "died"
        (runs / "session" / "go on").touch()
        other.wait()
        assert listed(known)["session"].is_at_work is False
    finally:
        child.kill()
        other.kill()


def test_another_machine_on_the_same_drive(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_dead(runs / "cluster")
    monkeypatch.setattr(socket, "gethostname", lambda: "another one")
    run = read_run(folder)
    assert run.is_at_work and run.state_in_words.startswith("at work on ") and run.owner is None
    with pytest.raises(RunError, match="the machine .* is working on this run"):
        RunFolder.open("pretrain", make_settings(folder))
    age(folder, 120)
    assert read_run(folder).state == "died"


def make_settings(folder: Path) -> object:
    from HybridMIMLib.config import Run

    return Run(unlabelled="scans", output=str(folder))


def test_a_run_that_was_resumed_is_judged_by_its_last_attempt(runs: Path) -> None:
    folder = make_run(runs / "run", "pretrain", error=RunError("no room", cure="Make some."), unlabelled="scans")
    assert read_run(folder).state == "failed"
    make_dead(folder)
    assert read_run(folder).state == "died", "what an earlier attempt told is no news"


def test_before_a_run_has_begun(runs: Path) -> None:
    logs = {
        "starting": "",
        "no torch": "Traceback …\nModuleNotFoundError: No module named 'torch'\n",
        "wrong": "error: seed is -1. Give a positive one.\n",
        "long gone": "something\n",
    }
    for name, text in logs.items():
        (runs / name).mkdir()
        (runs / name / "log.txt").write_text(text)
    age(runs / "long gone", 3600)
    found = listed()
    assert found["starting"].state == "starting" and found["starting"].is_at_work
    assert found["no torch"].reason == "ModuleNotFoundError: No module named 'torch'"
    assert found["wrong"].state == "failed" and found["wrong"].reason == "seed is -1. Give a positive one."
    assert (found["long gone"].state, found["long gone"].reason) == ("failed", "something")


@pytest.mark.parametrize(
    ("file", "content", "state"),
    [
        ("about.json", b"{", "damaged"),
        ("about.json", b"[" * 100_000, "damaged"),
        ("about.json", b'"text"', "damaged"),
        ("about.json", b'{"command": 7, "began": [], "host": null}', "damaged"),
        ("result.json", b"\xff\xfe", "damaged"),
        ("result.json", b"[]", "damaged"),
        ("result.json", b'{"validation": 3, "dice": {"mean": "x"}, "arms": {}}', "finished"),
        (
            "events.jsonl",
            b'{"kind": "end"\n\0\0\0\nnull\n{"kind": "progress", "step": "x", "metrics": []}',
            "stopped",
        ),
    ],
)
def test_damaged_files_of_one_run_hide_no_other(runs: Path, file: str, content: bytes, state: str) -> None:
    make_finished(runs / "sound")
    folder = make_run(runs / "hurt")
    if file == "events.jsonl":
        content = (folder / file).read_bytes() + content
    (folder / file).write_bytes(content)
    found = listed()
    assert found["hurt"].state == state and found["sound"].state == "finished"
    assert file in found["hurt"].reason or state != "damaged"


def test_a_locked_folder_and_one_that_vanishes(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_finished(runs / "locked")
    make_finished(runs / "gone")
    known, look = RunList(), os.listdir
    listed(known)

    def refuse(path: Path) -> list[str]:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return look(path)

    monkeypatch.setattr(run_list.os, "listdir", refuse)
    shutil.rmtree(runs / "gone")
    [run] = listed(known).values()
    assert run.state == "damaged" and "Permission denied" in run.reason and run.command == "finetune"


def test_runs_elsewhere_are_remembered(runs: Path, tmp_path: Path) -> None:
    folder = make_finished(tmp_path / "élsewhere 数" / "Liver")
    remember(folder)
    remember(folder)
    remember(make_finished(runs / "here"))
    assert remembered() == [folder], "those of the workspace need no note"
    found = listed()
    assert found["Liver"].is_elsewhere and not found["here"].is_elsewhere and len(found) == 2
    shutil.move(folder, tmp_path / "moved")
    assert listed()["Liver"].state == "not found" and "drive" in listed()["Liver"].reason
    forget(folder)
    assert list(listed()) == ["here"]
    with pytest.raises(RunError, match="there is no run in this folder"):
        remember(tmp_path)
    with pytest.raises(RunError, match="cannot be looked into"):
        remember(tmp_path / "nowhere")
    (runs.parent / "runs_elsewhere.json").write_text("[1, null, ")
    assert remembered() == [] and list(listed()) == ["here"]


def test_a_workspace_that_was_moved(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_finished(runs / "Liver")
    moved = tmp_path / "other drive"
    shutil.move(runs.parent, moved)
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(moved))
    run = listed()["Liver"]
    assert run.state == "finished" and run.folder == moved / "runs" / "Liver"
    assert run.model == run.folder / "model", "not where the result says that it was"


def test_scores_of_every_kind_of_run(runs: Path) -> None:
    figure = {"cases": 3, "mean": 0.7, "low": None}
    make_run(runs / "demo", "demo", result={"dice": {"Liver": 0.1, "mean": 0.6}})
    make_run(runs / "evaluate", "evaluate", result={"mean": {"dice": figure, "hd95": {"mean": 9.0}}})
    arms = [{"dice": None}, {"dice": figure}, {"dice": {**figure, "mean": 0.75}}]
    make_run(runs / "study", "study", result={"arms": arms})
    assert {name: run.dice for name, run in listed().items()} == {"demo": 0.6, "evaluate": 0.7, "study": 0.75}


def test_a_log_is_read_on_and_not_anew(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    log, events = RunLog(file), EventLog(file)
    log.read()
    assert log.progress.phase == "" and log.last == 0
    trained(events)
    log.read()
    assert (log.progress.step, log.progress.steps, log.dice) == (10, 10, 0.9)
    with open(file, "ab") as handle:
        handle.write(b'{"time": 1, "kind": "prog')
    log.read()
    events.phase("pretrain", 5)
    log.read()
    assert log.progress.phase == "pretrain" and log.dice == 0.9, "the torn line is passed over"
    file.write_bytes(b"")
    events.phase("finetune", 3).progress(3, metrics={"validation mean": 0.2})
    log.read()
    assert (log.progress.steps, log.dice) == (3, 0.2), "another run has taken its place"
    # A line without an end: nothing of it is believed, nor kept in memory.
    file.write_bytes(b"x" * 3_000_000)
    log.read()
    events.phase("study", 4)
    log.read()
    assert log.progress.phase == "study"


def test_work_is_counted_without_pauses(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    told = [(100, "phase"), (110, "progress"), (115, "end"), (5000, "phase"), (5020, "progress"), (90000, "progress")]
    lines = [json.dumps({"time": time, "kind": kind, "phase": "x", "step": 0, "steps": 1}) for time, kind in told]
    file.write_text("\n".join(lines) + "\n")
    log = RunLog(file)
    log.read()
    assert log.seconds == 15 + 20


def test_a_hundred_thousand_events_and_five_hundred_runs(runs: Path) -> None:
    make_run(runs / "0")
    with open(runs / "0" / "events.jsonl", "a") as handle:
        for step in range(100_000):
            line = {"time": 2e9 + step, "kind": "progress", "phase": "finetune", "step": step, "steps": 10**6}
            handle.write(json.dumps(line) + "\n")
    for number in range(1, 500):
        shutil.copytree(runs / "0", runs / str(number), ignore=shutil.ignore_patterns("events.jsonl"))
        (runs / str(number) / "events.jsonl").write_text("")
    known = RunList()
    began = time.thread_time()
    found = listed(known)
    first, began = time.thread_time() - began, time.thread_time()
    assert len(found) == 500 and found["0"].step == 99_999
    listed(known)
    again = time.thread_time() - began
    print(f"first {first:.2f} s, again {again:.3f} s")
    assert first < 3 and again < 0.5, "it is 0.5 and 0.08"
    began = time.monotonic()
    assert not RunList().look(0.05)
    assert time.monotonic() - began < 1, "a look ends in time"
