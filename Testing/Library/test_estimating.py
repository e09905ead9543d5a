"""What a training will take: real trials on small scans, and the arithmetic from fixed ones."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import TINY, KeptLog, tiny_options, write_blobs

from HybridMIMLib import estimate, trial
from HybridMIMLib.cli import main, parse
from HybridMIMLib.config import Run, make_run
from HybridMIMLib.data.layouts import open_dataset
from HybridMIMLib.data.scans import read_scan, write_label_map
from HybridMIMLib.errors import DataError, HybridMIMError, LabelError, SettingsError
from HybridMIMLib.estimating import reckon, saves, turns
from HybridMIMLib.files import read_json
from HybridMIMLib.trial import Sample, StageTrial

FIXED = StageTrial(
    sample=Sample(2, 0.25), steps=20, batch=4, check=1.0, prepare=2.0, around=5.0, step=0.5, look=0.25, save=0.125,
    preview=1.0, store=1000, checkpoint=100, made=30, previews=7, memory=3_000_000_000, gpu_memory=None,
)  # fmt: skip


def files_in(folder: Path) -> set[Path]:
    return {file for file in folder.rglob("*") if file.is_file()}


def settings(**given: Any) -> Run:
    return make_run(make_run(None, TINY), given)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at here is not how exact it is."""
    monkeypatch.setattr(trial, "MOST_STEPS", 4)


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let every trial find :data:`FIXED`."""

    def use(**changes: Any) -> None:
        one = StageTrial(**{**vars(FIXED), **changes})
        stages = {"pre-training": one, "fine-tuning": one}
        monkeypatch.setattr(trial, "measure", lambda *_: stages)

    use()
    return use


@pytest.mark.parametrize("steps", [1, 2, 5, 6, 12, 13])
@pytest.mark.parametrize("every", [0, 1, 2, 3, 5, 50])
def test_how_often_things_are_done_is_counted_as_the_training_does_it(steps: int, every: int) -> None:
    def turn(step: int, every: int) -> bool:
        return step == steps or (every > 0 and step % every == 0)

    assert turns(steps, every) == sum(turn(step, every) for step in range(1, steps + 1))
    both = sum(turn(step, every or 4) or turn(step, 3) for step in range(1, steps + 1))
    assert saves(steps, every or 4, 3) == both and saves(steps, every, 0) == turns(steps, every)


def test_both_stages_are_tried_and_nothing_of_it_is_kept(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path / "workspace"))
    before = files_in(blobs)
    run = settings(unlabelled=str(blobs / "unlabelled"), labelled=str(blobs / "labelled"))
    found = estimate(make_run(run, {"store": str(tmp_path / "theirs")}))
    # PyTorch's own folder aside.
    left = [path.name for path in tmp_path.iterdir() if not path.name.startswith("torchinductor")]
    assert files_in(blobs) == before and not left, "not in the store of the user either"
    first, second = found["stages"]["pre-training"], found["stages"]["fine-tuning"]
    assert (first["scans"], first["steps"], first["batch"]) == (5, 6, 3)
    assert (second["scans"], second["steps"], second["batch"]) == (5, 6, 2)
    for one in (first, second):
        assert one["tried"]["scans"] == 4 and one["tried"]["steps"] in (2, 3, 4)
        # Each part is rounded by itself.
        assert 0 < one["step_seconds"] < one["seconds"]
        assert one["seconds"] == pytest.approx(sum(one["parts"].values()), abs=0.01 * len(one["parts"]))
        assert one["parts"]["validation"] > 0 and one["parts"]["checkpoints"] > 0
        assert one["disk"]["store"] > 5 * 2 * 17**3 and one["disk"]["checkpoints"] > 2000
        assert 50e6 < one["memory"] < found["memory_total"]
    assert first["disk"]["previews"] > 1000 and second["disk"]["previews"] == 0
    assert found["device"] == "cpu" and found["seconds"] == pytest.approx(first["seconds"] + second["seconds"])


def test_with_an_output_the_answer_is_kept_and_progress_told(blobs: Path, tmp_path: Path) -> None:
    run = settings(labelled=str(blobs / "labelled"), of="finetune", output=str(tmp_path / "run"))
    found = estimate(run)
    assert read_json(tmp_path / "run" / "result.json") == found and list(found["stages"]) == ["fine-tuning"]
    assert not (tmp_path / "run" / "probe").exists()
    assert estimate(run) == found, "asked again"
    events = KeptLog()
    reckon(make_run(run, {"finetuning": {"validation_cases": 0}}), tmp_path / "other", events)
    told = [one["step"] for one in events.events if one.get("phase") == "estimate"]
    assert told[-1] == 2 and told == sorted(told), "two times one stage"
    assert {one.get("phase") for one in events.events} == {"estimate"}, (
        "the trial's own messages are nobody's concern"
    )


def test_where_a_few_scans_cannot_be_trained_on_more_are_taken(tmp_path: Path) -> None:
    folder = write_blobs(tmp_path / "cases", 6, labelled=True)
    sample, _ = trial._sample(open_dataset(folder, True), trial.SAMPLE)
    assert len(sample.cases) == 4
    for case in sample.cases:
        assert case.label is not None
        scan = read_scan(case.images[0])
        write_label_map(case.label, np.zeros(scan.grid.shape, np.uint8), scan.grid)
    found = estimate(settings(labelled=str(folder), finetuning={**TINY["finetuning"], "validation_cases": 0}))
    assert found["stages"]["fine-tuning"]["tried"]["scans"] == 6
    for case in open_dataset(folder, True).cases:
        assert case.label is not None
        scan = read_scan(case.images[0])
        write_label_map(case.label, np.zeros(scan.grid.shape, np.uint8), scan.grid)
    with pytest.raises(LabelError, match="background alone"):
        estimate(settings(labelled=str(folder)))


def test_a_sample_goes_from_the_smallest_to_the_largest(tmp_path: Path) -> None:
    write_blobs(tmp_path, 9, labelled=False)
    dataset = open_dataset(tmp_path, False)
    size = {case.name: case.images[0].stat().st_size for case in dataset.cases}
    chosen, sample = trial._sample(dataset, 3)
    ordered = sorted(size, key=lambda name: size[name])
    assert sorted(case.name for case in chosen.cases) == sorted(ordered[n] for n in (1, 4, 7))
    assert sample.share == pytest.approx(sum(size[case.name] for case in chosen.cases) / sum(size.values()))
    everything, all_of_it = trial._sample(dataset, 9)
    assert everything.cases == dataset.cases and all_of_it == Sample(9, 1.0)


def test_what_was_tried_is_multiplied_by_how_often_it_is_done(blobs: Path, tmp_path: Path, fixed: Any) -> None:
    many = {"steps": 100, "measure_every": 20, "preview_every": 40, "checkpoint_every": 30}
    folds = {"steps": 50, "validate_every": 20, "checkpoint_every": 50, "folds": 2, "validation_cases": -1}
    run = settings(
        unlabelled=str(blobs / "unlabelled"),
        labelled=str(blobs / "labelled"),
        pretraining={**TINY["pretraining"], **many},
        finetuning=folds,
    )
    found = reckon(run, tmp_path, KeptLog())
    first, second = (found["stages"][name] for name in ("pre-training", "fine-tuning"))
    assert first["parts"] == {
        "preparing": 12.0,  # a quarter took 1 + 2
        "steps": 50.0,
        "validation": 0.25 * (5 + 16 - 2),  # at 20, 40 … 100, and 16 batches in the end
        "checkpoints": 0.38,  # at 30, 60 and 90; that at 100 is part of the rest
        "previews": 2.0,  # 40, 80 and 100
        "rest": 5.0,
    }
    assert first["disk"] == {"store": 4000, "checkpoints": 100 + 30, "previews": 3 * 7}
    assert second["networks"] == 2 and second["parts"] == {
        "preparing": 16.0,  # checked twice
        "steps": 50.0,
        "validation": 2 * (3 + 1) * 3 * 0.25,  # at 20, 40, 50, and of the fold in the end, each of 3 of 5 cases
        "checkpoints": 0.5,  # at 20 and 40 besides, of two networks
        "previews": 0.0,
        "rest": 10.0,
    }
    assert second["disk"] == {"store": 4000, "checkpoints": 2 * 130, "previews": 0} and found["spare"] == 100
    assert found["seconds"] == first["seconds"] + second["seconds"] and found["memory"] == 3_000_000_000
    one = make_run(run, {"finetuning": {"folds": 2, "fold": 1}})
    assert reckon(one, tmp_path, KeptLog())["stages"]["fine-tuning"]["networks"] == 1


def test_an_objective_that_trains_nothing_takes_no_steps(blobs: Path, tmp_path: Path, fixed: Any) -> None:
    fixed(step=0.0, look=0.0)
    run = settings(
        unlabelled=str(blobs / "unlabelled"), of="pretrain", labelled="not asked about", weights="nor this"
    )
    [one] = reckon(run, tmp_path, KeptLog())["stages"].values()
    assert one["steps"] == 0 and one["seconds"] == 12 + 5


def test_what_does_not_fit_is_warned_of(
    blobs: Path, tmp_path: Path, fixed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed(memory=10**15)
    monkeypatch.setattr("HybridMIMLib.estimating.free_bytes", lambda _: 10)
    run = settings(labelled=str(blobs / "labelled"), finetuning={"patience": 2, "frozen_steps": 5})
    found = reckon(run, tmp_path, KeptLog())
    disk, memory = found["warnings"]
    assert "are free in" in disk and "of memory would be needed" in memory and "smaller batch" in memory
    assert len(found["notes"]) == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "nothing to train on"),
        ({"of": "pretrain", "labelled": "cases"}, "--unlabelled is missing"),
        ({"of": "finetune", "unlabelled": "scans"}, "--labelled is missing"),
        ({"unlabelled": "scans", "weights": "run"}, "both given"),
        ({"labelled": "/nowhere"}, "no such folder"),
        ({"of": "study"}, "of is 'study'"),
    ],
)
def test_what_would_end_the_training_ends_the_question(given: dict[str, Any], words: str) -> None:
    with pytest.raises((SettingsError, DataError), match=words):
        estimate(**given)


def test_more_held_out_than_there_are_is_told_before_anything_is_tried(blobs: Path, fixed: Any) -> None:
    finetuning = {**TINY["finetuning"], "validation_cases": 5}
    with pytest.raises(DataError, match="5 are to be held out"):
        estimate(settings(labelled=str(blobs / "labelled"), finetuning=finetuning))


def test_a_trial_that_fails_leaves_nothing(blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def learn(self: Any, *_: Any) -> None:
        (self.folder / "large").mkdir(parents=True)
        raise SettingsError("it does not fit", cure="Choose less.")

    monkeypatch.setattr(trial._Trial, "learn", learn)
    with pytest.raises(HybridMIMError, match="does not fit"):
        estimate(settings(labelled=str(blobs / "labelled"), output=str(tmp_path / "run")))
    assert not (tmp_path / "run" / "probe").exists()


def test_the_command_prints_one_table(
    blobs: Path, tmp_path: Path, fixed: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folders = [f"--unlabelled={blobs / 'unlabelled'}", f"--labelled={blobs / 'labelled'}"]
    assert main(["estimate", *folders, *tiny_options()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["scans", "steps", "crops"]
    assert lines[2].split()[:5] == ["pre-training", "5", "6", "4", "0.5"] and lines[4].startswith("together")
    assert lines[-1] == "Nothing of the trial was kept." and "free in" in lines[6]
    assert not list(tmp_path.iterdir())
    assert main(["estimate", "--of=finetune"]) == 2
    assert parse("estimate", ["--of", "pretrain"]).of == "pretrain"
