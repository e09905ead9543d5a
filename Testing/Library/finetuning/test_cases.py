"""Which labelled cases are trained on, and what is told of classes that too few of them have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_facts import CLASSES, facts
from small_runs import TINY, KeptLog, write_blobs

from HybridMIMLib import finetune
from HybridMIMLib.config import Run
from HybridMIMLib.data.layouts import Dataset
from HybridMIMLib.data.scans import read_label_map, write_label_map
from HybridMIMLib.data.survey import CaseFacts
from HybridMIMLib.events import EventReader
from HybridMIMLib.files import read_json
from HybridMIMLib.finetuning.cases import Chosen, choose_cases, draw_share
from HybridMIMLib.settings.finetuning import FinetuningSettings


def choose(found: Sequence[CaseFacts], seed: int = 0, **changes: Any) -> tuple[Chosen, list[str]]:
    """Who was chosen, and all that was said."""
    log = KeptLog()
    run = Run(labelled="cases", seed=seed, finetuning=FinetuningSettings(**changes))
    dataset = Dataset(Path("cases"), "pairs", [one.case for one in found], CLASSES)
    chosen = choose_cases(run, dataset, found, CLASSES, log)
    return chosen, [event["message"] for event in log.events]


def warnings_of(found: Sequence[CaseFacts], **changes: Any) -> list[str]:
    log = KeptLog()
    run = Run(labelled="cases", finetuning=FinetuningSettings(**changes))
    choose_cases(run, Dataset(Path("cases"), "pairs", [one.case for one in found], CLASSES), found, CLASSES, log)
    return log.warnings


# --- labelled fraction --------------------------------------------------------------------------------------


@st.composite
def cohorts(draw: st.DrawFn) -> list[CaseFacts]:
    count = draw(st.integers(1, 25))
    return [
        facts(f"case_{n}", draw(st.sets(st.integers(1, 4))), draw(st.sampled_from(["", "A", "B", "C"])))
        for n in range(count)
    ]


@given(cohorts(), st.integers(0, 5), st.floats(0.01, 1), st.floats(0.01, 1))
@settings(deadline=None, max_examples=120)
def test_a_smaller_share_is_a_part_of_a_larger_one(found: list[CaseFacts], seed: int, a: float, b: float) -> None:
    few, many = (draw_share(found, share, seed) for share in sorted((a, b)))
    assert few and set(few) <= set(many)
    assert draw_share(found, 1, seed) == [one.case.name for one in found]
    for drawn, share in ((few, min(a, b)), (many, max(a, b))):
        patients = {one.patient for one in found if one.case.name in drawn} - {""}
        assert {one.case.name for one in found if one.patient in patients} <= set(drawn), "patients stay together"
        first = {len([o for o in found if o.patient == one.patient]) if one.patient else 1 for one in found}
        assert len(drawn) <= max(round(share * len(found) + 1e-9) + 1, max(first))


@given(cohorts(), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_the_order_in_which_files_are_found_does_not_matter(found: list[CaseFacts], seed: int) -> None:
    assert set(draw_share(found, 0.4, seed)) == set(draw_share(found[::-1], 0.4, seed))


def test_without_patients_a_share_is_as_large_as_asked() -> None:
    found = [facts(f"case_{n}") for n in range(40)]
    assert [len(draw_share(found, share, 1)) for share in (0.001, 0.05, 0.1, 0.25, 0.5)] == [1, 2, 4, 10, 20]
    draws = {tuple(draw_share(found, 0.05, seed)) for seed in range(6)}
    assert len(draws) > 3, "the seed decides"


def test_a_small_share_has_every_class_where_that_can_be() -> None:
    """Class 2 is in three of forty, and class 3 in two others: by chance most draws of four would miss one."""
    rare = {7: [1, 2], 19: [1, 2], 33: [2], 4: [1, 3], 21: [3]}
    found = [facts(f"case_{n}", rare.get(n, [1])) for n in range(40)]
    for seed in range(20):
        drawn = draw_share(found, 0.1, seed)
        assert len(drawn) == 4
        assert set().union(*(one.labels for one in found if one.case.name in drawn)) == {1, 2, 3}


def test_the_rest_is_left_out_and_told() -> None:
    found = [facts(f"case_{n}") for n in range(12)]
    chosen, said = choose(found, labelled_fraction=0.3, validation_cases=2)
    assert (len(chosen.training), len(chosen.validation), len(chosen.left_out)) == (3, 2, 7)
    assert set(chosen.split["training"]) == set(chosen.training + chosen.left_out)
    assert (
        f"trained on 3 labelled scans of 10 (finetuning.labelled_fraction 0.3): {', '.join(chosen.training)}" in said
    )
    whole, said = choose(found, validation_cases=2)
    assert whole.validation == chosen.validation and len(whole.training) == 10 and not said


def test_a_share_of_a_run_can_be_continued_and_its_split_serves_another(blobs: Path, tmp_path: Path) -> None:
    share = {**TINY, "finetuning": {**TINY["finetuning"], "labelled_fraction": 0.5}}
    result = finetune(labelled=str(blobs / "labelled"), output=str(tmp_path / "a"), **share)
    (tmp_path / "a" / "result.json").unlink()
    assert finetune(labelled=str(blobs / "labelled"), output=str(tmp_path / "a"), **share) == result
    split = read_json(tmp_path / "a" / "split.json")
    assert len(result["trained_on"]) == 2 and set(result["trained_on"]) < set(split["training"])
    assert len(split["training"]) == 4 and len(split["validation"]) == 1
    share["finetuning"].update(split=str(tmp_path / "a" / "split.json"), validation_cases=-1)
    again = finetune(labelled=str(blobs / "labelled"), output=str(tmp_path / "b"), **share)
    assert again["trained_on"] == result["trained_on"]


# --- classes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_who_alone_has_a_class_is_trained_on(seed: int) -> None:
    found = [facts(f"case_{n}", [1, 2] if n == 3 else [1]) for n in range(6)]
    chosen, said = choose(found, seed, validation_cases=3)
    assert "case_3" in chosen.training and len(chosen.validation) == 3
    assert any("class Two (2) is in one label map alone, that of case_3, trained on" in text for text in said)
    of_one = [facts(f"case_{n}", [1, 2] if n in (1, 4) else [1], "A" if n in (1, 4, 5) else "") for n in range(8)]
    chosen, _ = choose(of_one, seed, validation_cases=3)
    assert {"case_1", "case_4", "case_5"} <= set(chosen.training) and len(chosen.validation) == 3


def test_where_everybody_is_needed_somebody_is_held_out_all_the_same() -> None:
    chosen, said = choose([facts("a", [1]), facts("b", [2])], validation_cases=1)
    held = {"a": "One (1)", "b": "Two (2)"}[chosen.validation[0]]
    expected = f"class {held} is in no label map that is trained on, only in {chosen.validation[0]}, held out"
    assert any(expected in text for text in said)


def test_other_draws_are_as_they_were() -> None:
    from HybridMIMLib.data.splits import draw_split

    found = [facts(f"case_{n}", [1, 2] if n % 2 else [1]) for n in range(9)]
    for seed in range(5):
        chosen, _ = choose(found, seed, validation_cases=3)
        assert (chosen.training, chosen.validation) == draw_split({one.case.name: "" for one in found}, 3, seed)


def test_a_class_that_nobody_has_is_told() -> None:
    found = [facts(f"case_{n}", [1]) for n in range(4)]
    assert [text for text in warnings_of(found) if "class Two (2) is in no label map that is used" in text]


def test_classes_that_differ_between_cases_are_told_with_the_cure() -> None:
    found = [facts(f"case_{n}", [1, 2] if n < 2 else [1]) for n in range(5)]
    _, said = choose(found, validation_cases=1)
    assert any("(Two in 2 of 5)" in text and "--missing_labels unannotated" in text for text in said)
    # Where it is known that nobody looked, nothing is missing.
    partly = [facts(f"case_{n}", [1, 2] if n < 2 else [1], annotated=[1, 2] if n < 2 else [1]) for n in range(5)]
    assert not any("missing_labels" in text for text in choose(partly, validation_cases=1)[1])
    assert choose([facts(f"case_{n}") for n in range(5)])[1] == []


def test_a_fine_tuning_tells_of_a_class_of_one_case(tmp_path: Path) -> None:
    cases = write_blobs(tmp_path / "cases", 4, labelled=True)
    for name in ("blob_0", "blob_1", "blob_3"):
        file = cases / "labels" / f"{name}.nii.gz"
        label = read_label_map(file)
        write_label_map(file, np.where(label.array == 2, 0, label.array).astype(np.uint8), label.grid)
    result = finetune(labelled=str(cases), output=str(tmp_path / "run"), **TINY)
    assert "blob_2" in result["trained_on"]
    assert any("class Dark (2) is in one label map alone, that of blob_2" in text for text in result["warnings"])
    messages = [event.get("message", "") for event in EventReader(tmp_path / "run" / "events.jsonl").read()]
    assert any("(Dark in 1 of 4)" in text for text in messages)
    json.dumps(result)
