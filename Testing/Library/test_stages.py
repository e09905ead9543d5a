"""Training in stages: every combination of folders, one log, one model, continued where it stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from small_runs import TINY, hybridmim, tiny_options, write_blobs

from HybridMIMLib import finetune, pretrain, segment, train
from HybridMIMLib.data.model_description import find_models, read_description
from HybridMIMLib.errors import DataError, HybridMIMError, LabelError, RunError, SettingsError
from HybridMIMLib.events import EventLog, EventReader
from HybridMIMLib.files import read_json
from HybridMIMLib.report import report
from HybridMIMLib.stages import Stages

WEIGHTS = "fine-tuning/model/models/model.safetensors"


def both(blobs: Path, output: Path, **others: Any) -> dict[str, Any]:
    folders = {"unlabelled": str(blobs / "unlabelled"), "labelled": str(blobs / "labelled")}
    return {**folders, "output": str(output), **TINY, **others}


def events_of(run: Path) -> list[dict[str, Any]]:
    return list(EventReader(run / "events.jsonl").read())


def phases_of(run: Path) -> list[str]:
    return [event["phase"] for event in events_of(run) if event["kind"] == "phase"]


def wait_for(file: Path, child: subprocess.Popen[Any]) -> None:
    ending = time.monotonic() + 120
    while not file.exists():
        assert child.poll() is None and time.monotonic() < ending, f"the run ended before it wrote {file}"
        time.sleep(0.002)


def test_both_folders_give_a_named_model_that_segments(blobs: Path, unicode_folder: Path) -> None:
    before = datetime.now().astimezone().replace(microsecond=0)
    run = unicode_folder / "run"
    result = train(**both(blobs, run, name="Blöbs 数"))
    assert result["model"] == str(run / "fine-tuning" / "model") and result["weights"] == str(run / "pre-training")
    assert set(result["validation"]) == {"Bright", "Dark", "mean"} and "partial" in result["losses"]
    assert result["loaded"].startswith("loaded 19 of 19 tensors")
    assert list(result["seconds"]) == ["pre-training", "fine-tuning"]
    assert read_json(run / "result.json") == result
    assert all((run / stage / "result.json").is_file() for stage in result["seconds"])
    (model,) = find_models(unicode_folder)
    assert model == read_description(Path(result["model"])) and model.name == "Blöbs 数"
    assert model.trained is not None and datetime.fromisoformat(model.trained) >= before
    assert json.loads((Path(result["model"]) / "configs" / "metadata.json").read_text("utf-8"))["name"] == model.name
    labels = segment(scans=str(blobs / "new"), model=result["model"], output=str(unicode_folder / "out"))["labels"]
    assert len(labels) == 3
    text = report("train", result)
    assert all(word in text for word in ("partial", "loaded 19", "Bright", result["model"]))


def test_all_stages_report_to_the_one_log(blobs: Path, tmp_path: Path) -> None:
    train(**both(blobs, tmp_path / "run"))
    assert phases_of(tmp_path / "run") == ["check scans", "prepare scans", "pretrain", "check scans",
                                           "prepare scans", "finetune"]  # fmt: skip
    ends = [event for event in events_of(tmp_path / "run") if event["kind"] == "end"]
    assert [end["outcome"] for end in ends] == ["finished"]
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("events.jsonl")] == [Path("run/events.jsonl")]
    assert not list(tmp_path.rglob("*/store/store")) and not (tmp_path / "run" / "pre-training" / "store").exists()


def test_it_is_what_the_two_commands_give(blobs: Path, tmp_path: Path) -> None:
    train(**both(blobs, tmp_path / "run"))
    pretrain(unlabelled=str(blobs / "unlabelled"), output=str(tmp_path / "pre"), **TINY)
    finetune(labelled=str(blobs / "labelled"), weights=str(tmp_path / "pre"), output=str(tmp_path / "fine"), **TINY)
    one, two = tmp_path / "run" / WEIGHTS, tmp_path / "fine" / "model" / "models" / "model.safetensors"
    assert one.read_bytes() == two.read_bytes()


def test_labelled_alone_starts_from_scratch_or_from_the_weights_given(blobs: Path, tmp_path: Path) -> None:
    call = {"labelled": str(blobs / "labelled"), **TINY}
    scratch = train(**call, output=str(tmp_path / "scratch"))
    assert (scratch["loaded"], scratch["weights"], scratch["losses"]) == ("from scratch", None, {})
    assert not (tmp_path / "scratch" / "pre-training").exists()
    assert read_description(Path(scratch["model"])).name == "labelled", "the folder's name"
    assert "from scratch" in report("train", scratch) and "losses" not in report("train", scratch)
    pretrain(unlabelled=str(blobs / "unlabelled"), output=str(tmp_path / "pre"), **TINY)
    started = train(**call, output=str(tmp_path / "started"), weights=str(tmp_path / "pre"))
    assert started["loaded"].startswith("loaded 19 of 19") and started["weights"] == str(tmp_path / "pre")


def test_unlabelled_alone_gives_weights_to_start_from(blobs: Path, tmp_path: Path) -> None:
    result = train(unlabelled=str(blobs / "unlabelled"), output=str(tmp_path / "run"), **TINY)
    assert (result["model"], result["loaded"], result["validation"]) == (None, None, {})
    assert result["weights"] == str(tmp_path / "run" / "pre-training") and "partial" in result["losses"]
    assert f"--weights {result['weights']}" in report("train", result)
    tuned = train(labelled=str(blobs / "labelled"), weights=result["weights"], output=str(tmp_path / "fine"), **TINY)
    assert tuned["loaded"].startswith("loaded 19 of 19")


def test_one_folder_serves_both_stages(tmp_path: Path) -> None:
    scans = write_blobs(tmp_path / "scans", 4, labelled=True)
    result = train(unlabelled=str(scans), labelled=str(scans), output=str(tmp_path / "run"), **TINY)
    assert result["loaded"].startswith("loaded 19 of 19") and len(result["validation"]) == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "nothing to train on"),
        ({"weights": "w"}, "nothing to train on"),
        ({"unlabelled": "u", "weights": "w"}, "--unlabelled and --weights"),
        ({"unlabelled": "u", "labelled": "l", "weights": "w"}, "--unlabelled and --weights"),
        ({"labelled": "l", "name": " "}, "name is"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_a_folder_is_made(
    tmp_path: Path, settings: dict[str, str], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        train(output=str(tmp_path / "run"), **settings)
    assert not (tmp_path / "run").exists()


def test_a_stage_that_is_finished_is_not_done_again(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "blobs"
    shutil.copytree(blobs, folder)
    (folder / "unlabelled" / "images" / "broken.nii.gz").write_bytes(b"")
    call = both(folder, tmp_path / "run")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("HybridMIMLib.finetuning.run.run_finetuning", stopped)
        train(**call)
    assert events_of(tmp_path / "run")[-1]["outcome"] == "stopped"
    pretrained = tmp_path / "run" / "pre-training" / "pretrained.safetensors"
    changed = pretrained.stat().st_mtime_ns
    result = train(**call)
    assert phases_of(tmp_path / "run").count("pretrain") == 1 and pretrained.stat().st_mtime_ns == changed
    assert any("broken.nii.gz" in text for text in result["warnings"]), "of the stage that was done before"
    assert list(result["seconds"]) == ["pre-training", "fine-tuning"] and "partial" in result["losses"]
    assert train(**call) == result
    assert phases_of(tmp_path / "run").count("finetune") == 1


def test_a_finished_run_that_was_moved_between_stages_names_its_new_place(blobs: Path, tmp_path: Path) -> None:
    train(**both(blobs, tmp_path / "run"))
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run").rename(tmp_path / "moved")
    result = train(**both(blobs, tmp_path / "moved"))
    assert result["model"] == str(tmp_path / "moved" / "fine-tuning" / "model")


def test_killed_in_each_stage_and_continued_gives_the_same_model(blobs: Path, tmp_path: Path) -> None:
    common = ["train", "--unlabelled", blobs / "unlabelled", "--labelled", blobs / "labelled", *tiny_options(),
              "--pretraining.steps=30", "--finetuning.steps=30"]  # fmt: skip
    whole = hybridmim(*common, "--output", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    killed = [*common, "--output", tmp_path / "killed"]
    for stage in ("pre-training", "fine-tuning"):
        child = subprocess.Popen([sys.executable, "-m", "HybridMIMLib", *map(str, killed)], stderr=subprocess.DEVNULL)
        wait_for(tmp_path / "killed" / stage / "checkpoint.pt", child)
        child.kill()
        child.wait()
        assert not (tmp_path / "killed" / stage / "result.json").exists()
    continued = hybridmim(*killed)
    assert continued.returncode == 0, continued.stderr
    messages = [event.get("message", "") for event in events_of(tmp_path / "killed")]
    assert sum("continued after step" in text for text in messages) == 2
    assert (tmp_path / "whole" / WEIGHTS).read_bytes() == (tmp_path / "killed" / WEIGHTS).read_bytes()


def test_it_outlives_the_program_that_started_it_and_leaves_its_log_alone(blobs: Path, tmp_path: Path) -> None:
    """As a panel starts it: the log is opened first, the starter ends while the child works."""
    run = tmp_path / "run"
    run.mkdir()
    command = ["train", "--unlabelled", blobs / "unlabelled", "--labelled", blobs / "labelled", "--output", run]
    starter = (
        "import subprocess, sys; log = open(sys.argv[1], 'w'); "
        "subprocess.Popen([sys.executable, '-m', 'HybridMIMLib', *sys.argv[2:]], stdout=log, stderr=log,"
        " stdin=subprocess.DEVNULL, start_new_session=True)"
    )
    arguments = map(str, [run / "log.txt", *command, *tiny_options()])
    subprocess.run([sys.executable, "-c", starter, *arguments], check=True)
    ending = time.monotonic() + 120
    while not (run / "result.json").exists():
        assert time.monotonic() < ending, (run / "log.txt").read_text()
        time.sleep(0.05)
    assert read_json(run / "result.json")["model"] == str(run / "fine-tuning" / "model")
    while (run / "run.pid").exists():
        assert time.monotonic() < ending
        time.sleep(0.05)


def test_a_stopped_run_says_how_to_go_on(blobs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["train", "--unlabelled", blobs / "unlabelled", "--labelled", blobs / "labelled", "--output", run]
    child = subprocess.Popen(
        [sys.executable, "-m", "HybridMIMLib", *map(str, command), *tiny_options(), "--pretraining.steps=100000"],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(run / "pre-training" / "checkpoint.pt", child)
    child.send_signal(signal.SIGTERM)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 130 and said.splitlines()[-1].startswith("error: stopped.")
    assert events_of(run)[-1]["outcome"] == "stopped"


@pytest.mark.parametrize("folder", ["unlabelled", "labelled"])
def test_a_wrong_folder_is_told_before_training_and_the_right_one_is_taken_afterwards(
    blobs: Path, tmp_path: Path, folder: str
) -> None:
    call = both(blobs, tmp_path / "run")
    with pytest.raises(DataError, match="no such folder"):
        train(**{**call, folder: str(tmp_path / "nowhere")})
    last = events_of(tmp_path / "run")[-1]
    assert (last["kind"], last["outcome"]) == ("end", "failed") and "nowhere" in last["message"]
    assert phases_of(tmp_path / "run") == []
    assert train(**call)["model"]


def test_a_wrong_label_map_is_told_before_the_pretraining(blobs: Path, tmp_path: Path) -> None:
    labelled = write_blobs(tmp_path / "labelled", 3, labelled=True)
    (labelled / "classes.json").write_text('{"1": "Bright"}')
    call = {**both(blobs, tmp_path / "run"), "labelled": str(labelled)}
    with pytest.raises(LabelError, match="holds label 2"):
        train(**call)
    assert "pretrain" not in phases_of(tmp_path / "run")
    (labelled / "classes.json").unlink()
    assert train(**call)["model"]


def test_too_few_labelled_scans_are_told_before_the_pretraining(blobs: Path, tmp_path: Path) -> None:
    labelled = write_blobs(tmp_path / "labelled", 1, labelled=True)
    with pytest.raises(DataError, match="1 labelled scans, of which 1 are to be held out"):
        train(**{**both(blobs, tmp_path / "run"), "labelled": str(labelled)})
    assert "pretrain" not in phases_of(tmp_path / "run")


def test_a_stage_that_failed_at_once_is_not_in_the_way_of_other_settings(blobs: Path, tmp_path: Path) -> None:
    call = both(blobs, tmp_path / "run")
    with pytest.raises(SettingsError, match=r"pretraining\.batch is 1"):
        train(**{**call, "pretraining": {**TINY["pretraining"], "batch": 1, "contrast_queue": 0}})
    assert train(**call)["model"]
    with pytest.raises(RunError, match=r"pretraining\.steps"):
        train(**{**call, "pretraining": {**TINY["pretraining"], "steps": 7}})


def test_a_stage_that_fails_after_its_checkpoint_keeps_it(tmp_path: Path) -> None:
    stages = Stages(tmp_path, EventLog())

    def fails(path: Path) -> dict[str, Any]:
        path.mkdir()
        (path / "checkpoint.pt").write_bytes(b"x")
        raise DataError("x", cure="y.")

    with pytest.raises(HybridMIMError):
        stages.do("one", fails)
    assert (tmp_path / "one" / "checkpoint.pt").exists() and stages.seconds == {}


@pytest.mark.parametrize(
    ("options", "code", "words", "has_run"),
    [
        (["--labelled", "nowhere"], 1, "no such folder", True),
        (["--labelled", "CASES", "--weights", "nowhere"], 1, "nowhere", True),
        (["--labelled", "CASES", "--finetuning.validation_cases=9"], 1, "held out", True),
        (
            ["--unlabelled", "CASES", "--pretraining.batch=1", "--pretraining.contrast_queue=0"],
            2,
            "pretraining.batch is 1",
            True,
        ),
        (["--labelled", "CASES", "--name", " "], 2, "name is ' '", False),
        ([], 2, "nothing to train on", False),
    ],
)
def test_an_error_is_the_last_event_and_one_line_for_the_starter(
    blobs: Path, tmp_path: Path, options: list[str], code: int, words: str, has_run: bool
) -> None:
    given = [str(blobs / "labelled") if option == "CASES" else option for option in options]
    run = tmp_path / "run"
    said = hybridmim("train", *tiny_options(), *given, "--output", run, cwd=tmp_path)
    errors = [line for line in said.stderr.splitlines() if line.startswith("error: ")]
    assert said.returncode == code and len(errors) == 1 and said.stderr.endswith(errors[0] + "\n")
    assert words in errors[0] and "Traceback" not in said.stderr and run.exists() == has_run
    if has_run:
        last = events_of(run)[-1]
        assert (last["kind"], last["outcome"]) == ("end", "failed")
        assert errors[0] == f"error: {last['message']}"


def test_a_folder_without_a_name_of_its_own_still_names_the_model(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = tmp_path / "Leber  und\nMilz"
    shutil.copytree(blobs / "labelled", cases)
    monkeypatch.chdir(cases)
    result = finetune(labelled=os.curdir, output=str(tmp_path / "run"), **TINY)
    assert read_description(Path(result["model"])).name == "Leber und Milz"
