"""A whole study, small: its cells in this process, one of them in a process of its own as users have it."""

from __future__ import annotations

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from small_runs import TINY, KeptLog, write_blobs

from HybridMIMLib import study
from HybridMIMLib.cli import main
from HybridMIMLib.config import from_dict, make_run
from HybridMIMLib.data.layouts import open_dataset
from HybridMIMLib.data.scans import read_label_map, write_label_map
from HybridMIMLib.errors import HybridMIMError, RunError, SettingsError
from HybridMIMLib.evaluation.measuring import measure_case
from HybridMIMLib.files import read_json, write_json
from HybridMIMLib.report import report
from HybridMIMLib.studies import jobs
from HybridMIMLib.studies.cell import work
from HybridMIMLib.studies.estimate import Estimate, Pace
from HybridMIMLib.studies.jobs import Job
from HybridMIMLib.studies.protocol import Protocol
from HybridMIMLib.studies.run import _Study

STUDIES = Path(__file__).resolve().parents[2] / "Benchmarks" / "studies"


PROCESS = jobs.Process


class Inside:
    """A job in this process, in place of one of its own; keeps what was done, in order."""

    done: list[str] = []
    broken: tuple[str, ...] = ()

    def __init__(self, job: Job, folder: Path, threads: int) -> None:
        self.job, self.failure, self.has_ended = job, "", True
        write_json(folder / f"{job.id}.json", job.spec)
        Inside.done.append(job.id)
        try:
            if job.id in Inside.broken:
                raise RunError("the loss is not finite", cure="Lower the learning rate.")
            work(json.loads(json.dumps(job.spec)))
        except HybridMIMError as error:
            self.failure = str(error)

    def share(self) -> float:
        return 0.0


@pytest.fixture(autouse=True)
def inside(monkeypatch: pytest.MonkeyPatch) -> type[Inside]:
    monkeypatch.setattr(jobs, "Process", Inside)
    monkeypatch.setattr(Inside, "done", [])
    monkeypatch.setattr(Inside, "broken", ())
    return Inside


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 labelled cases, and 3 unlabelled scans of others besides copies of all labelled ones."""
    folder = tmp_path_factory.mktemp("study")
    write_blobs(folder / "labelled", 13, labelled=True, seed=2)
    write_blobs(folder / "unlabelled", 3, labelled=False, seed=1)
    images = folder / "unlabelled" / "images"
    for file in sorted(images.iterdir()):
        file.rename(file.with_name(f"other_{file.name}"))
    for file in (folder / "labelled" / "images").iterdir():
        shutil.copy(file, images / f"again_{file.name}")
    return folder


def settings(scans: Path, output: Path, **study_settings: Any) -> dict[str, Any]:
    own = {
        "objectives": ["scratch", "simmim"], "labelled": [3], "seeds": [0, 1], "validations": 2, "test_cases": 6,
        "validation_cases": 2, "scratch_double": False, **study_settings,
    }  # fmt: skip
    return {
        **TINY, "finetuning": {**TINY["finetuning"], "steps": 4, "validation_cases": -1, "learning_rate": 0.01},
        "pretraining": {**TINY["pretraining"], "steps": 3}, "evaluation": {"resamples": 200},
        "unlabelled": str(scans / "unlabelled"), "labelled": str(scans / "labelled"), "output": str(output),
        "study": own,
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    """A study with two learning rates and scratch at double length: folder, result, and the jobs in order."""
    output = tmp_path_factory.mktemp("finished") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "Process", Inside)
        patch.setattr(Inside, "done", [])
        patch.setattr(Inside, "broken", ())
        result = study(
            **settings(scans, output, learning_rates=[1e-4, 0.01], rate_seeds="first", scratch_double=True)
        )
        return output, result, list(Inside.done)


def test_no_test_case_is_in_anything_that_is_learnt_or_chosen_from(finished: tuple[Path, Any, Any]) -> None:
    folder, _, _ = finished
    protocol = read_json(folder / "protocol.json")
    test = set(protocol["test"])
    assert len(test) == 6 and set(protocol["kept_out"]) == {f"again_{name}" for name in test}
    for scans_file in (folder / "pre-training").glob("*/scans.json"):
        assert {name.removeprefix("again_") for name in read_json(scans_file)}.isdisjoint(test)
    splits = [read_json(file) for file in (folder / "fine-tuning").glob("*/split.json")]
    assert len(splits) == 3 * 3, "two rates with the first seed, one with the second, of three arms"
    for split in splits:
        assert test.isdisjoint({*split["training"], *split["validation"]})
        assert set(split["validation"]) == set(protocol["validation"]) and len(split["training"]) == 3


def test_arms_learn_from_the_same_cases_seed_by_seed(finished: tuple[Path, Any, Any]) -> None:
    folder, _, _ = finished
    by_seed: dict[str, set[str]] = {}
    for file in (folder / "fine-tuning").glob("*/split.json"):
        seed = re.findall(r"seed-(\d)", file.parent.name)[0]
        by_seed.setdefault(seed, set()).add(str(sorted(read_json(file)["training"].items())))
    assert {seed: len(sides) for seed, sides in by_seed.items()} == {"0": 1, "1": 1}


def test_rates_are_chosen_on_the_validation_before_anything_is_tested(finished: tuple[Path, Any, Any]) -> None:
    folder, result, order = finished
    chosen = read_json(folder / "rates.json")
    sheet = list(csv.DictReader((folder / "cells.csv").open(encoding="utf-8")))
    for arm in ("scratch", "simmim", "scratch, twice the steps"):
        scores = {
            float(row["learning_rate"]): float(row["validation_dice"])
            for row in sheet
            if row["arm"] == arm and row["seed"] == "0"
        }
        assert len(scores) == 2 and chosen[arm]["3 labelled"] == max(scores, key=lambda rate: scores[rate])
    # The test of the first seed is a visit of its own, after all were trained.
    trained = [place for place, name in enumerate(order) if "seed-0" in name and "lr" in name]
    again = [place for place in trained if order[place] in order[:place]]
    assert len(trained) == 9 and len(again) == 3 and min(again) > max(set(trained) - set(again))
    tested = {file.parent.name for file in (folder / "fine-tuning").glob("*/test.json")}
    assert len(tested) == 6 and {row["arm"] for row in sheet if row["compared"] == "no"} == set(chosen)
    assert all(not row["test_dice"] for row in sheet if row["compared"] == "no")


def test_figures_are_those_of_the_kept_models_on_the_scans_own_grids(finished: tuple[Path, Any, Any]) -> None:
    """Against segmenting and measuring once more by the public commands."""
    from HybridMIMLib import segment

    folder, result, _ = finished
    cell = next(
        path for path in sorted((folder / "fine-tuning").glob("simmim*seed-1*")) if (path / "test.json").exists()
    )
    rows = read_json(cell / "test.json")["rows"]
    labelled = open_dataset(Path(read_json(folder / "protocol.json")["settings"]["labelled"]), labelled=True)
    case = next(one for one in labelled.cases if one.name == rows[0]["case"])
    segmented = segment(scans=str(case.images[0]), model=str(cell / "model"), output=str(folder.parent / "segmented"))
    found = read_label_map(Path(next(iter(segmented["labels"].values()))))
    reference = read_label_map(case.label)
    own = measure_case(reference.array, found.array, reference.grid, labelled.classes)
    for row in own:
        kept = next(one for one in rows if (one["case"], one["name"]) == (case.name, row.name))
        assert kept["dice"] == pytest.approx(row.dice, abs=1e-6)
    arm = next(one for one in result["arms"] if one["arm"] == "simmim")
    dice = [np.mean([r["dice"] for r in rows if r["name"] == name]) for name in ("Bright", "Dark")]
    assert arm["seeds"][1]["dice"] == pytest.approx(np.mean(dice))


def test_scratch_at_double_length_takes_twice_the_steps(finished: tuple[Path, Any, Any]) -> None:
    folder, _, _ = finished
    steps = {
        file.parent.name: yaml.safe_load(file.read_text(encoding="utf-8"))["finetuning"]
        for file in (folder / "fine-tuning").glob("*/run.yaml")
    }
    assert {("twice" in name, one["steps"], one["validate_every"]) for name, one in steps.items()} == {
        (False, 4, 2), (True, 8, 2)
    }  # fmt: skip


class Page(HTMLParser):
    """Text of a page, and whether its tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text, self.sources = "", [""]
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_tells_it_all_and_opens_offline(finished: tuple[Path, Any, Any]) -> None:
    folder, result, _ = finished
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert not page.open and page.sources == [""]
    assert len(result["verdicts"]) == 1 and result["verdicts"][0] in page.text
    assert "nan" not in page.text.lower().replace("finance", "")
    for words in ("simmim", "scratch, twice the steps", "Bright", "How fast", "What the pre-trainings cost"):
        assert words in page.text
    assert "<svg" in (folder / "report.html").read_text(encoding="utf-8")
    told = report("study", result)
    assert result["verdicts"][0] in told and str(folder / "report.html") in told
    content = read_json(folder / "study.json")
    assert {one["arm"] for one in content["curves"]} == {"scratch", "simmim", "scratch, twice the steps"}
    assert [one["steps"] for one in content["pretrainings"]] == [3, 3]
    assert all(one["seconds"] > 0 for one in content["pretrainings"])
    sheet = list(csv.DictReader((folder / "cases.csv").open(encoding="utf-8")))
    assert len(sheet) == 6 * 6 * 2 and {row["class"] for row in sheet} == {"Bright", "Dark"}


def test_what_is_done_is_not_done_again_and_other_settings_are_refused(
    finished: tuple[Path, Any, Any], scans: Path, inside: type[Inside]
) -> None:
    folder, result, _ = finished
    same: dict[str, Any] = {"learning_rates": [1e-4, 0.01], "rate_seeds": "first", "scratch_double": True}
    given = settings(scans, folder, jobs=2, **same)
    again = study(**given)
    assert inside.done == [] and again["arms"] == result["arms"]
    with pytest.raises(RunError, match=r"study.seeds \(was \[0, 1\], is \[0, 1, 2\]\).*another --output"):
        study(**settings(scans, folder, seeds=[0, 1, 2], **same))
    assert study(**given)["verdicts"] == result["verdicts"], "the refusal left everything as it was"
    lost = next((folder / "fine-tuning").glob("scratch-3-lr-*-seed-1"))
    shutil.rmtree(lost)
    assert study(**given)["arms"][0]["seeds"] == result["arms"][0]["seeds"], "the same again, to the last digit"
    assert inside.done == [lost.name]


def test_a_failed_cell_stops_no_other_and_is_tried_again(
    scans: Path, tmp_path: Path, inside: type[Inside], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(scans, tmp_path / "study")
    monkeypatch.setattr(inside, "broken", ("simmim-seed-1",))
    first = study(**given)
    assert set(first["failed"]) == {
        "pre-training simmim, seed 1",
        "simmim, 3 labelled, learning rate 0.01, seed 1 from pre-training 1",
    }
    assert any(text.startswith("skipped: pre-training simmim, seed 1 failed") for text in first["warnings"])
    assert "(1 of 2 seeds were finished)" in first["verdicts"][0]
    assert "Not finished" in (tmp_path / "study" / "report.html").read_text(encoding="utf-8")
    monkeypatch.setattr(inside, "broken", ())
    monkeypatch.setattr(inside, "done", [])
    second = study(**given)
    assert not second["failed"] and inside.done == ["simmim-seed-1", "simmim-3-lr-0.01-seed-1-from-1"]
    assert not second["warnings"]


def test_a_rate_is_chosen_by_the_mean_over_the_seeds(scans: Path, tmp_path: Path, inside: type[Inside]) -> None:
    given = settings(scans, tmp_path / "study", objectives=["scratch", "hybridmim"], learning_rates=[1e-4, 0.01])
    result = study(**given)
    assert sum("-lr-" in name for name in inside.done) == 2 * 2 * 2 + 4, "each rate, arm and seed; four are tested"
    sheet = list(csv.DictReader((tmp_path / "study" / "cells.csv").open(encoding="utf-8")))
    for arm in result["arms"]:
        scores: dict[float, list[float]] = {}
        for row in sheet:
            if row["arm"] == arm["arm"]:
                scores.setdefault(float(row["learning_rate"]), []).append(float(row["validation_dice"]))
        assert [len(found) for found in scores.values()] == [2, 2]
        assert arm["learning_rate"] == max(scores, key=lambda rate: sum(scores[rate]))


def test_a_pretraining_that_failed_costs_its_arm_that_seed_alone(
    scans: Path, tmp_path: Path, inside: type[Inside], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inside, "broken", ("simmim-seed-1",))
    result = study(**settings(scans, tmp_path / "study", learning_rates=[1e-4, 0.01]))
    assert [(one["arm"], len(one["seeds"])) for one in result["arms"]] == [("scratch", 2), ("simmim", 1)]
    assert any(
        "simmim, 3 labelled: no learning rate is settled yet: 2 of 4 train" in text for text in result["warnings"]
    )
    assert set(read_json(tmp_path / "study" / "rates.json")) == {"scratch"}, "tried again at the next start"


@pytest.mark.parametrize(("rate_seeds", "trained"), [("first", 3 * 3), ("all", 3 * 4)])
def test_work_is_counted_once(finished: tuple[Path, Any, Any], scans: Path, rate_seeds: str, trained: int) -> None:
    """Three arms, two rates, two seeds; six are tested, whatever was tried before."""
    folder, _, _ = finished
    own = {"learning_rates": [1e-4, 0.01], "rate_seeds": rate_seeds, "scratch_double": True}
    work = _Study(make_run(None, settings(scans, folder, **own)), folder, KeptLog())
    pace = Pace(start=1000.0, step=0.0, test=1.0)
    protocol, paces = Protocol.load(folder / "protocol.json"), {"scratch | ": pace, "simmim | ": Pace(1e6, 0.0)}
    parts = work._parts(protocol, Estimate(paces, 3, 2, 2, 6))
    assert sum(part.seconds for part in parts) == 2 * 1e6 + trained * 1000 + 6 * 6
    undone = [part for part in parts if not any(file.exists() for file in part.files)]
    assert len(undone) == trained - 3 * 3, "what the folder holds was tried with the first seed alone"


def test_a_cell_that_was_stopped_goes_on_with_more_jobs_at_once(
    scans: Path, tmp_path: Path, inside: type[Inside], monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedAtTheTest(Inside):
        def __init__(self, job: Job, folder: Path, threads: int) -> None:
            super().__init__(job, folder, threads)
            if job.id == "scratch-3-lr-0.01-seed-1":
                for name in ("test.json", "result.json"):
                    (job.folder / name).unlink()
                raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "Process", StoppedAtTheTest)
    with pytest.raises(KeyboardInterrupt):
        study(**settings(scans, tmp_path / "study"))
    monkeypatch.setattr(jobs, "Process", Inside)
    again = study(**settings(scans, tmp_path / "study", jobs=2))
    assert not again["failed"] and again["arms"][0]["seeds"]


def test_a_rate_whose_training_failed_is_not_lost_for_ever(
    scans: Path, tmp_path: Path, inside: type[Inside], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory may have run out once, in one arm; the arms must not be compared at unlike choices for that."""
    given = settings(scans, tmp_path / "study", learning_rates=[1e-4, 0.01], seeds=[0], test_cases=1)
    monkeypatch.setattr(inside, "broken", ("scratch-3-lr-0.01-seed-0",))
    first = study(**given)
    assert [one["learning_rate"] for one in first["arms"]] == [1e-4, 0.01]
    assert set(first["failed"]) == {"scratch, 3 labelled, learning rate 0.01, seed 0"}
    monkeypatch.setattr(inside, "broken", ())
    second = study(**given)
    assert [one["learning_rate"] for one in second["arms"]] == [0.01, 0.01] and not second["failed"]
    assert read_json(tmp_path / "study" / "rates.json")["scratch"] == {"3 labelled": 0.01}


def test_trying_does_not_lack_a_class_that_few_cases_have(scans: Path, tmp_path: Path) -> None:
    """Of partial labels, where all cases together have what the first few have not."""
    for part in ("images", "labels"):
        shutil.copytree(scans / "labelled" / part, tmp_path / "labelled" / part)
    shutil.copy(scans / "labelled" / "classes.json", tmp_path / "labelled")
    for index in range(9):
        file = tmp_path / "labelled" / "labels" / f"blob_{index}.nii.gz"
        label = read_label_map(file)
        write_label_map(file, np.where(label.array == 2, 0, label.array).astype(np.uint8), label.grid)
    given = settings(scans, tmp_path / "study", labelled=["all"], test_cases=-1, test=["blob_0", "blob_9"],
                     estimate_only=True)  # fmt: skip
    assert study(**{**given, "labelled": str(tmp_path / "labelled"), "missing_labels": "unannotated"})["seconds"] > 0


def test_only_the_estimate_fixes_nothing(scans: Path, tmp_path: Path, inside: type[Inside]) -> None:
    output = tmp_path / "study"
    told = study(**settings(scans, output, estimate_only=True))
    assert re.search(
        r"2 arms, 2 pre-trainings and 4 fine-tunings with 6 test and 2 validation cases", told["estimate"]
    )
    assert told["seconds"] > 0 and "Nothing was begun" in report("study", told)
    assert not (output / "protocol.json").exists() and len(inside.done) == 2
    # Other settings on the same folder are fine then.
    other = study(**settings(scans, output, estimate_only=True, labelled=[2, 3]))
    assert "8 fine-tunings" in other["estimate"]
    assert len(inside.done) == 4
    assert study(**settings(scans, output, estimate_only=True, labelled=[2, 3]))["estimate"] == other["estimate"]
    assert len(inside.done) == 4, "what is known is not tried again"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labelled": None}, "--labelled is missing"),
        ({"unlabelled": None}, "--unlabelled is missing"),
        ({"weights": "somewhere"}, "weights is somewhere"),
        ({"finetuning": {"folds": 5}}, "finetuning.folds is 5"),
        ({"finetuning": {"labelled_fraction": 0.5}}, "finetuning.labelled_fraction is 0.5"),
        ({"study": {"objectives": ["scratch", "nothing"]}}, "'nothing'"),
    ],
)
def test_what_contradicts_a_study_is_said_at_once(
    scans: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    given = {**settings(scans, tmp_path / "study"), **changes}
    with pytest.raises(SettingsError, match=words):
        study(**given)
    assert not (tmp_path / "study").exists()


def test_a_folder_in_use_is_refused(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("HybridMIMLib.runs.living_owner", lambda path: 4321)
    with pytest.raises(RunError, match="process 4321 is working on this run"):
        study(**settings(scans, tmp_path / "study"))


def test_the_command_says_what_is_wrong(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", f"--labelled={scans / 'labelled'}"]) == 2
    assert (
        capsys.readouterr().err
        == "error: --unlabelled is missing: a study needs unlabelled scans. Add --unlabelled PATH.\n"
    )
    assert main(["study", "--study.preset=fast"]) == 2
    assert "quick, paper" in capsys.readouterr().err.replace("'", "")


@pytest.mark.parametrize("name", ["hippocampus_mr", "headneck_ct"])
def test_protocols_are_settings_and_name_scans_that_there_are(name: str, shared_data: Path) -> None:
    run = from_dict(yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8")))
    tests = run.study.test or []
    assert len(set(tests)) == {"hippocampus_mr": 36, "headneck_ct": 20}[name]
    assert run.study.labelled == [2, 6, 20, "all"] and len(run.study.seeds) == 3 and run.study.scratch_double
    assert run.study.objectives == ["scratch", "simmim", "hybridmim", "simclr"]
    if name == "hippocampus_mr":
        assert {case.name for case in open_dataset(shared_data / name, labelled=True).cases} >= set(tests)
        return
    cases = read_json(shared_data / name / "cases.json")["cases"]
    organs = {"Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Mandible"}
    assert all(organs <= set(cases[one]["voxels"]) for one in tests)


@pytest.mark.parametrize(
    "reduced, whole",
    [
        ("hippocampus_mr_cpu", "hippocampus_mr"),
        ("hippocampus_mr_cpu_many", "hippocampus_mr"),
        ("headneck_ct_cpu", "headneck_ct"),
    ],
)
def test_a_reduced_protocol_tests_on_the_same_cases_and_asks_nothing_else(reduced: str, whole: str) -> None:
    few, all_of_it = (
        from_dict(yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))).study
        for name in (reduced, whole)
    )
    assert few.test == all_of_it.test and few.seeds == all_of_it.seeds
    assert few.pretraining_seeds == all_of_it.pretraining_seeds
    assert set(few.objectives) <= set(all_of_it.objectives) and "scratch" in few.objectives
    assert set(few.labelled) <= set(all_of_it.labelled)


def test_a_cell_in_a_process_of_its_own_comes_to_the_same(
    finished: tuple[Path, Any, Any], scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As users call it, from the command line, with one test to be done again."""
    folder, result, _ = finished
    monkeypatch.setattr(jobs, "Process", PROCESS)
    lost = next((folder / "fine-tuning").glob("simmim-3-lr-*-seed-1-from-1")) / "test.json"
    before = read_json(lost)["rows"]
    lost.unlink()
    given = settings(scans, folder, learning_rates=[1e-4, 0.01], rate_seeds="first", scratch_double=True)
    (folder.parent / "study.yaml").write_text(yaml.safe_dump(given))
    assert main(["study", "--config", str(folder.parent / "study.yaml")]) == 0
    assert read_json(lost)["rows"] == before
    said = capsys.readouterr()
    assert result["verdicts"][0] in said.out and "study          [" in said.err
