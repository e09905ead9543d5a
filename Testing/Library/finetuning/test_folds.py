"""Cross-validation: who is in which fold, each case by the network that did not see it, and one model of all."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_facts import CLASSES, facts
from small_runs import TINY, KeptLog, write_blobs

from HybridMIMLib import finetune, segment, train
from HybridMIMLib.config import Run
from HybridMIMLib.data.layouts import Dataset
from HybridMIMLib.data.model_description import find_models, read_description, weights_files
from HybridMIMLib.data.scans import read_label_map, read_scan, write_label_map
from HybridMIMLib.data.survey import CaseFacts
from HybridMIMLib.errors import DataError, LabelError, RunError, SettingsError
from HybridMIMLib.events import EventReader
from HybridMIMLib.files import read_json
from HybridMIMLib.finetuning import folds as module
from HybridMIMLib.finetuning.cases import Chosen
from HybridMIMLib.finetuning.folds import choose
from HybridMIMLib.finetuning.targets import ClassTarget
from HybridMIMLib.model_package import load_model
from HybridMIMLib.report import report
from HybridMIMLib.settings.finetuning import FinetuningSettings


def chosen_of(found: Sequence[CaseFacts], folds: int, seed: int = 0, **changes: Any) -> tuple[list[Chosen], KeptLog]:
    log = KeptLog()
    run = Run(labelled="cases", seed=seed, finetuning=FinetuningSettings(folds=folds, **changes))
    dataset = Dataset(tuple(one.case for one in found), CLASSES, "pairs", Path("cases"))
    return choose(run, dataset, found, CLASSES, ClassTarget(CLASSES), log), log


# --- who is in which fold -------------------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from(["", "", "A", "B", "C"]), min_size=4, max_size=20), st.integers(2, 4), st.integers(0, 3)
)
@settings(deadline=None, max_examples=40)
def test_everybody_is_held_out_once_and_never_trained_on_there(patients: list[str], count: int, seed: int) -> None:
    found = [facts(f"case {n}", patient=patient) for n, patient in enumerate(patients)]
    if len(set(patients) - {""}) + patients.count("") < count:
        with pytest.raises(DataError, match="cannot be divided"):
            chosen_of(found, count, seed)
        return
    chosen, _ = chosen_of(found, count, seed)
    assert len(chosen) == count
    assert sorted(name for one in chosen for name in one.validation) == sorted(one.case.name for one in found)
    whose = {one.case.name: one.patient for one in found}
    for one in chosen:
        assert sorted(one.training + one.validation) == sorted(whose)
        assert not {whose[name] for name in one.training} & {whose[name] for name in one.validation} - {""}


def test_who_alone_has_a_class_is_trained_on_in_every_fold_and_told() -> None:
    found = [facts(f"case {n}", [1, 2] if n in (3, 4) else [1], "X" if n in (3, 4) else "") for n in range(9)]
    chosen, log = chosen_of(found, 3)
    assert all({"case 3", "case 4"} <= set(one.training) for one in chosen)
    assert sorted(name for one in chosen for name in one.validation) == [f"case {n}" for n in (0, 1, 2, 5, 6, 7, 8)]
    said = [event["message"] for event in log.events]
    assert any("in every fold" in text and "case 3, case 4" in text for text in said)
    # What every fold has to say of classes is said once.
    assert len(said) == len(set(said)) and sum("not every label map has every class" in text for text in said) == 1


def test_where_too_few_are_left_nobody_is_kept_out_of_the_folds() -> None:
    found = [facts("a", [1]), facts("b", [2]), facts("c", [1])]
    chosen, log = chosen_of(found, 3)
    assert sorted(name for one in chosen for name in one.validation) == ["a", "b", "c"]
    assert any("Two (2) is in no label map that is trained on" in text for text in log.warnings)


def test_who_alone_was_looked_at_for_a_class_is_trained_on_too() -> None:
    """Nobody has class 2, and only one was looked at for it: a fold without that one could not be trained."""
    found = [facts(f"case {n}", [1], annotated=[1, 2] if n == 2 else [1]) for n in range(6)]
    chosen, _ = chosen_of(found, 2)
    assert all("case 2" in one.training for one in chosen)
    with pytest.raises(LabelError, match="class Two"):
        chosen_of([facts(f"case {n}", [1], annotated=[1, 2] if n == 2 else [1]) for n in (1, 2)], 2)


def test_a_share_is_that_of_each_networks_own_side() -> None:
    found = [facts(f"case {n}") for n in range(20)]
    chosen, _ = chosen_of(found, 4, labelled_fraction=0.2)
    assert [(len(one.training), len(one.validation), len(one.left_out)) for one in chosen] == [(3, 5, 12)] * 4
    whole, _ = chosen_of(found, 4)
    assert [one.validation for one in whole] == [one.validation for one in chosen]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"folds": 1}, "folds is 1"),
        ({"folds": -1}, "folds is -1"),
        ({"folds": 21}, "from 2 to 20"),
        ({"fold": 1}, r"fold is 1, and finetuning\.folds is 0.*Set finetuning\.folds too"),
        ({"folds": 3, "fold": 4}, "from 1 to 3"),
        ({"folds": 3, "split": "s.json"}, r"finetuning\.folds and finetuning\.split both say who is held out"),
        ({"folds": 3, "validation_cases": 2}, r"finetuning\.folds and finetuning\.validation_cases both"),
        ({"folds": 3, "validation_cases": 0}, r"finetuning\.folds and finetuning\.validation_cases both"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        FinetuningSettings(**changes)


# --- whole runs -----------------------------------------------------------------------------------------------------


def in_folds(folds: int = 3, **changes: Any) -> dict[str, Any]:
    """Settings of a tiny fine-tuning in folds, long enough to find something."""
    own = {
        **TINY["finetuning"],
        "validation_cases": -1,
        "folds": folds,
        "steps": 12,
        "learning_rate": 0.02,
        **changes,
    }
    return {**TINY, "finetuning": own}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("folds") / "Blöbs", 7, labelled=True, seed=4)


@pytest.fixture(scope="module")
def whole(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, finetune(labelled=str(cases), output=str(run), **in_folds())


def slow_dice(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any], label: int) -> float:
    a, b = one == label, other == label
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def test_each_case_is_measured_by_the_network_that_did_not_see_it(
    whole: tuple[Path, dict[str, Any]], cases: Path, tmp_path: Path
) -> None:
    run, result = whole
    dice: dict[str, list[float]] = {"Bright": [], "Dark": []}
    with open(result["csv"], newline="") as file:
        rows = {(row["case"], row["class"]): float(row["dice"]) for row in csv.DictReader(file)}
    assert [len(one["held_out"]) for one in result["folds"]] in ([3, 2, 2], [2, 3, 2], [2, 2, 3])
    for number, fold in enumerate(result["folds"], 1):
        split = read_json(run / "folds" / f"{number}" / "split.json")
        assert set(split["validation"]) == set(fold["held_out"]) and not set(split["training"]) & set(
            fold["held_out"]
        )
        own: dict[str, list[float]] = {"Bright": [], "Dark": []}
        for name in fold["held_out"]:
            scan = cases / "images" / f"{name}.nii.gz"
            out = tmp_path / name
            segment(scans=str(scan), model=str(run / "folds" / f"{number}" / "model"), output=str(out))
            grid = read_scan(scan).grid
            found = read_label_map(out / "labels" / f"{name}.nii.gz", grid).array
            truth = read_label_map(cases / "labels" / f"{name}.nii.gz", grid).array
            kept = read_label_map(run / "cross-validation" / "labels" / f"{name}.nii.gz", grid).array
            assert (kept == found).all()
            for label, one in ((1, "Bright"), (2, "Dark")):
                own[one].append(slow_dice(found, truth, label))
                assert rows[name, one] == pytest.approx(own[one][-1], abs=1e-5)
        assert fold["validation"]["Bright"] == pytest.approx(np.mean(own["Bright"]), abs=1e-6)
        assert fold["validation"]["mean"] == pytest.approx(np.mean([*own["Bright"], *own["Dark"]]), abs=1e-6)
        dice = {name: [*dice[name], *own[name]] for name in dice}
    assert result["validation"]["mean"] > 0.1, "otherwise this says little"
    assert result["validation"] == pytest.approx(
        {
            **{name: np.mean(values) for name, values in dice.items()},
            "mean": np.mean([*dice["Bright"], *dice["Dark"]]),
        },
        abs=1e-6,
    )
    summary = read_json(Path(result["json"]))
    assert summary["mean"]["dice"]["mean"] == pytest.approx(result["validation"]["mean"], abs=1e-6)
    assert Path(result["report"]).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_the_model_is_that_of_all_folds(whole: tuple[Path, dict[str, Any]]) -> None:
    run, result = whole
    (model,) = find_models(run.parent)
    assert str(model.path) == result["model"] == str(run / "model")
    assert (model.members, model.name, model.provenance["folds"]) == (3, "Blöbs", 3)
    assert model.provenance["validation_dice"] == pytest.approx(result["validation"])
    assert model.provenance["labelled_scans"] == 7 and len(model.provenance["members"]) == 3
    for number, file in enumerate(weights_files(3), 1):
        alone = run / "folds" / f"{number}" / "model"
        own, kept = load_file(alone / weights_files(1)[0]), load_file(model.path / file)
        assert own.keys() == kept.keys() and all((own[name] == kept[name]).all() for name in own)
        assert read_description(alone).members == 1
    assert load_model(model.path).plan == load_model(run / "folds" / "1" / "model").plan
    assert result["trained_on"] == [f"blob_{n}" for n in range(7)] and result["steps"] == 36
    assert not (run / "folds" / "1" / "store").exists(), "the folds share what is prepared"


def test_what_is_told_at_the_end(whole: tuple[Path, dict[str, Any]]) -> None:
    lines = report("finetune", whole[1]).splitlines()
    assert any(line.split() == ["fold", "scans", "Bright", "Dark", "mean"] for line in lines)
    (last,) = [line.split() for line in lines if line.startswith("all ")]
    assert last == ["all", "7", *(f"{value:.3f}" for value in whole[1]["validation"].values())]
    assert any(line.endswith(whole[1]["report"]) for line in lines)


def test_a_label_map_that_is_gone_is_told_and_can_be_made_again(
    whole: tuple[Path, dict[str, Any]], cases: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(whole[0], tmp_path / "run")
    call = {"labelled": str(cases), "output": str(run), **in_folds()}
    (name, *_) = whole[1]["folds"][1]["held_out"]
    assert not any("not in the figures" in text for text in whole[1]["warnings"])
    (run / "result.json").unlink()
    (run / "cross-validation" / "labels" / f"{name}.nii.gz").unlink()
    (told,) = [text for text in finetune(**call)["warnings"] if "not in the figures" in text]
    assert told.startswith(f"{name}: ")
    for file in (run / "result.json", run / "folds" / "2" / "result.json"):
        file.unlink()
    again = finetune(**call)
    assert again["validation"] == whole[1]["validation"]
    assert not any("not in the figures" in text for text in again["warnings"])


def test_one_fold_alone_is_the_same_as_among_all(
    whole: tuple[Path, dict[str, Any]], cases: Path, tmp_path: Path
) -> None:
    result = finetune(labelled=str(cases), output=str(tmp_path / "run"), **in_folds(fold=2))
    assert read_description(Path(result["model"])).members == 1 and "folds" not in result
    file = weights_files(1)[0]
    among = whole[0] / "folds" / "2" / "model"
    assert (tmp_path / "run" / "model" / file).read_bytes() == (among / file).read_bytes()
    assert read_json(tmp_path / "run" / "folds.json") == read_json(whole[0] / "folds.json")


def test_stopped_in_a_fold_and_continued_gives_the_same(
    whole: tuple[Path, dict[str, Any]], cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once while the second fold is segmented, once while all are measured: what is finished is not done again."""
    call = {"labelled": str(cases), "output": str(tmp_path / "run"), **in_folds()}

    def stop(*_: object) -> Any:
        raise KeyboardInterrupt

    real, loads = module.load_model, []

    def stop_at_the_second(path: Path) -> Any:
        loads.append(path)
        return stop() if len(loads) == 2 else real(path)

    monkeypatch.setattr(module, "load_model", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        finetune(**call)
    assert (tmp_path / "run" / "folds" / "1" / "result.json").exists()
    assert not (tmp_path / "run" / "folds" / "2" / "result.json").exists()
    monkeypatch.setattr(module, "load_model", real)
    monkeypatch.setattr(module, "judge", stop)
    with pytest.raises(KeyboardInterrupt):
        finetune(**call)
    monkeypatch.undo()
    result = finetune(**call)
    said = [event.get("message", "") for event in EventReader(tmp_path / "run" / "events.jsonl").read()]
    assert [sum(text.startswith(f"fold {n} of 3") for text in said) for n in (1, 2, 3)] == [1, 2, 1]
    assert "finetune: continued after step 12" in said
    for file in weights_files(3):
        assert (tmp_path / "run" / "model" / file).read_bytes() == (whole[0] / "model" / file).read_bytes()
    assert result["validation"] == pytest.approx(whole[1]["validation"])
    assert finetune(**call) == result


def test_a_scan_that_was_added_later_is_told(tmp_path: Path) -> None:
    cases, run = write_blobs(tmp_path / "cases", 4, labelled=True), tmp_path / "run"
    call = {"labelled": str(cases), "output": str(run), **in_folds(2, steps=1, fold=1)}
    finetune(**call)
    (run / "result.json").unlink()
    write_blobs(cases, 5, labelled=True)
    with pytest.raises(RunError, match="the scans have changed"):
        finetune(**call)


def test_what_is_wrong_is_told_at_once_and_is_not_in_the_way_afterwards(cases: Path, tmp_path: Path) -> None:
    call = {"labelled": str(cases), "output": str(tmp_path / "run")}
    with pytest.raises(DataError, match=r"7 labelled scan\(s\) of 7 patient\(s\) cannot be divided into 8 folds"):
        finetune(**call, **in_folds(8))
    with pytest.raises(SettingsError, match="Nothing"):
        finetune(**call, **in_folds(2, steps=2), inference={"largest": ["Nothing"]})
    assert finetune(**call, **in_folds(2, steps=2))["model"]


def test_one_pretraining_and_then_the_folds(blobs: Path, cases: Path, tmp_path: Path) -> None:
    call = {"unlabelled": str(blobs / "unlabelled"), "labelled": str(cases), "output": str(tmp_path / "run")}
    with pytest.raises(DataError, match="into 9 folds"):
        train(**call, **in_folds(9))
    phases = [event["phase"] for event in EventReader(tmp_path / "run" / "events.jsonl").read() if "phase" in event]
    assert "pretrain" not in phases, "it is told before the hours of the pre-training"
    result = train(**call, **in_folds(2, steps=3))
    place = tmp_path / "run" / "fine-tuning"
    assert read_description(Path(result["model"])).members == 2 and result["model"] == str(place / "model")
    assert [model.path for model in find_models(tmp_path)] == [place / "model"]
    assert result["loaded"].startswith("loaded") and len(result["folds"]) == 2
    assert Path(result["report"]) == place / "cross-validation" / "report.html" and Path(result["report"]).is_file()
    assert list(result["seconds"]) == ["pre-training", "fine-tuning"]
    assert sorted(path.name for path in place.iterdir()) == sorted(
        ["cross-validation", "folds", "folds.json", "model", "plan.json", "plan.yaml", "result.json"]
    )
    assert "Dice of the cross-validation" in report("train", result)


def test_what_nobody_looked_for_is_not_measured(tmp_path: Path) -> None:
    """Two of the scans alone were looked at for the second class: its figures are of these, one in each fold."""
    cases = write_blobs(tmp_path / "cases", 5, labelled=True)
    (cases / "classes.json").unlink()
    for n in range(2, 5):
        file, grid = cases / "labels" / f"blob_{n}.nii.gz", read_scan(cases / "images" / f"blob_{n}.nii.gz").grid
        labels = read_label_map(file, grid).array
        write_label_map(file, np.where(labels == 2, 0, labels), grid)
    rows = [f"images/blob_{n}.nii.gz,labels/blob_{n}.nii.gz,{'1' if n > 1 else '1;2'}" for n in range(5)]
    (cases / "partial.csv").write_text("\n".join(["image,label,annotated", *rows]))
    result = finetune(labelled=str(cases / "partial.csv"), output=str(tmp_path / "run"), **in_folds(2, steps=2))
    with open(result["csv"], newline="") as table:
        known = [row for row in csv.DictReader(table) if row["status"] != "not annotated"]
    assert sorted({row["case"] for row in known if row["class"] == "class 2"}) == ["blob_0", "blob_1"]
    assert all(math.isfinite(one["validation"]["class 2"]) for one in result["folds"]), "one of the two in each fold"
    assert read_json(Path(result["json"]))["cases"] == 5
