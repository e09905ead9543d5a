"""Splits: nobody on both sides, nobody lost, and a file that says otherwise is checked name by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from HybridMIMLib.data.splits import draw_cases, draw_folds, draw_split, read_split, shared_patients
from HybridMIMLib.errors import DataError
from HybridMIMLib.randomness import random_stream

ALONE = {f"case {n}": "" for n in range(7)}
GROUPED = {f"case {n}": f"patient {n // 3}" for n in range(12)}


@pytest.mark.parametrize("held_out", [0, 1, 3, 6])
def test_a_split_follows_from_the_seed_and_loses_nobody(held_out: int) -> None:
    kept, out = draw_split(ALONE, held_out, seed=3)
    assert (kept, out) == draw_split(ALONE, held_out, seed=3)
    assert sorted(kept + out) == list(ALONE) and len(out) == held_out
    assert kept == sorted(kept) and out == sorted(out)


def test_seeds_differ() -> None:
    assert len({tuple(draw_split(ALONE, 3, seed)[1]) for seed in range(20)}) > 5


@pytest.mark.parametrize("seed", range(20))
def test_without_patients_it_is_the_first_of_a_permutation(seed: int) -> None:
    """As every earlier version drew it, so that figures of before can be repeated."""
    names = list(ALONE)
    chosen = set(random_stream(seed, "validation split").permutation(7)[:3].tolist())
    assert draw_split(ALONE, 3, seed)[1] == [names[index] for index in sorted(chosen)]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("held_out", range(1, 12))
def test_no_patient_is_on_both_sides(seed: int, held_out: int) -> None:
    kept, out = draw_split(GROUPED, held_out, seed)
    assert kept and out and sorted(kept + out) == sorted(GROUPED)
    assert not {GROUPED[name] for name in kept} & {GROUPED[name] for name in out}
    assert len(out) == max(held_out // 3 * 3, 3), "three cases each: the nearest number below, but somebody"


def test_against_obvious_code_on_random_groups() -> None:
    random = np.random.default_rng(0)
    for trial in range(200):
        count = int(random.integers(2, 15))
        patients = {f"c{n}": f"p{random.integers(4)}" if random.random() < 0.7 else "" for n in range(count)}
        groups: dict[str, list[str]] = {}
        for name, patient in patients.items():
            groups.setdefault(patient or f"alone {name}", []).append(name)
        if len(groups) == 1:
            continue
        wanted = int(random.integers(1, count))
        kept, out = draw_split(patients, wanted, trial)
        assert all(set(group) <= set(out) or not set(group) & set(out) for group in groups.values())
        assert sorted(kept + out) == sorted(patients) and kept
        smallest = min(map(len, groups.values()))
        assert len(out) <= max(wanted, smallest)
        left = wanted - len(out)
        assert not any(set(group) <= set(kept) and len(group) <= left for group in groups.values()), "who fits is in"


def test_a_patient_with_many_scans_is_passed_over() -> None:
    patients = {**{f"a{n}": "many" for n in range(9)}, "b": "one", "c": ""}
    for seed in range(10):
        assert draw_split(patients, 2, seed)[1] == ["b", "c"]


def test_a_case_without_patient_is_not_the_patient_of_that_name() -> None:
    assert [len(side) for side in draw_split({"a": "", "b": "a"}, 1, 0)] == [1, 1]


def test_one_patient_alone_cannot_be_split() -> None:
    with pytest.raises(DataError, match="all 2 labelled scans are of one patient, Anna"):
        draw_split({"a": "Anna", "b": "Anna"}, 1, 0)
    assert draw_split({"a": "Anna", "b": "Anna"}, 0, 0) == (["a", "b"], [])


def test_the_order_of_the_draw_is_kept() -> None:
    others, drawn = draw_cases(ALONE, 3, random_stream(1, "x"))
    names = list(ALONE)
    assert drawn + others == [names[index] for index in random_stream(1, "x").permutation(7)]


# --- given --------------------------------------------------------------------------------------------------


def given(folder: Path, content: Any) -> Path:
    (folder / "split.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "split.json"


def test_a_file_says_it(unicode_folder: Path) -> None:
    file = given(unicode_folder, {"training": ["c", "á"], "validation": ["b"]})
    assert read_split(file, ["á", "b", "c"]) == (["á", "c"], ["b"])


def test_the_split_that_a_run_wrote_is_read_back(tmp_path: Path) -> None:
    file = given(tmp_path, {"training": {"a": "hash", "c": "hash"}, "validation": {"b": "hash"}})
    assert read_split(file, ["a", "b", "c"]) == (["a", "c"], ["b"])


def test_nobody_may_be_held_out_but_somebody_must_be_trained_on(tmp_path: Path) -> None:
    assert read_split(given(tmp_path, {"training": ["a"], "validation": []}), ["a"]) == (["a"], [])
    with pytest.raises(DataError, match="no scan is left to train on"):
        read_split(given(tmp_path, {"training": [], "validation": ["a"]}), ["a"])


def test_a_scan_that_cannot_be_used_is_left_out(tmp_path: Path) -> None:
    file = given(tmp_path, {"training": ["a", "broken"], "validation": ["b"]})
    assert read_split(file, ["a", "b"], unusable=["broken"]) == (["a"], ["b"])
    with pytest.raises(DataError, match="broken is named, but no labelled scan is called so"):
        read_split(file, ["a", "b"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"training": ["a", "x"], "validation": ["b"]}, "x is named, but"),
        ({"training": ["a"], "validation": []}, "b is named in neither list"),
        ({"training": ["a", "b"], "validation": ["b"]}, "b is named twice"),
        ({"training": ["a", "a"], "validation": ["b"]}, "a is named twice"),
        ({"training": ["a", *"vwxyz"], "validation": ["b"]}, "v, w, x and 2 more are named, but"),
        ({"training": ["a", "b"]}, "the two lists"),
        ({"training": ["a"], "validation": ["b"], "test": []}, "the two lists"),
        ({"training": "a", "validation": ["b"]}, "not lists of names"),
        ({"training": [1], "validation": ["b"]}, "not lists of names"),
        (["a", "b"], "the two lists"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_split(given(tmp_path, content), ["a", "b"])
    assert "split.json" in str(caught.value)


def test_a_file_that_is_missing_or_no_json(tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text("{")
    for name in ("split.json", "nothing.json"):
        with pytest.raises(DataError, match="the split cannot be read"):
            read_split(tmp_path / name, ["a"])


def test_patients_on_both_sides_are_found() -> None:
    assert shared_patients((["case 0", "case 5"], ["case 1", "case 9"]), GROUPED) == ["patient 0"]
    assert shared_patients((["case 0"], ["case 1"]), ALONE) == []


# --- folds ----------------------------------------------------------------------------------------------------------


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[dict[str, str], dict[str, set[int]]]:
    count = draw(st.integers(2, 25))
    patients = {f"case {n}": draw(st.sampled_from(["", "", "A", "B", "C", "D"])) for n in range(count)}
    return patients, {name: draw(st.sets(st.integers(1, 4))) for name in patients}


def groups_of(patients: dict[str, str]) -> list[set[str]]:
    """The cases that must stay together."""
    known = sorted({patient for patient in patients.values() if patient})
    alone = [{name} for name, patient in patients.items() if not patient]
    return [*alone, *({name for name in patients if patients[name] == patient} for patient in known)]


@hypothesis.given(cohorts(), st.integers(2, 6), st.integers(0, 5))
@hypothesis.settings(deadline=None, max_examples=60)
def test_folds_are_a_division_by_patient_into_nearly_equal_parts(
    cohort: tuple[dict[str, str], dict[str, set[int]]], count: int, seed: int
) -> None:
    patients, labels = cohort
    groups = groups_of(patients)
    if len(groups) < count:
        with pytest.raises(DataError, match=f"of {len(groups)} patient.*into {count} folds"):
            draw_folds(patients, labels, count, seed)
        return
    folds = draw_folds(patients, labels, count, seed)
    assert len(folds) == count and sorted(name for fold in folds for name in fold) == sorted(patients)
    assert all(any(group <= set(fold) for fold in folds) for group in groups), "patients stay together"
    sizes = [len(fold) for fold in folds]
    assert min(sizes) > 0 and max(sizes) - min(sizes) <= max(map(len, groups))
    assert all(fold == [name for name in patients if name in fold] for fold in folds), "in the order they came"
    turned = draw_folds(dict(reversed(patients.items())), labels, count, seed)
    assert [set(fold) for fold in turned] == [set(fold) for fold in folds], "the order of files does not matter"


def test_the_seed_decides_who_is_in_which_fold() -> None:
    draws = {tuple(map(tuple, draw_folds(ALONE, dict.fromkeys(ALONE, set()), 3, seed))) for seed in range(10)}
    assert len(draws) > 6


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("seed", range(8))
def test_the_few_who_have_a_class_are_in_different_folds(count: int, seed: int) -> None:
    """Three classes with two holders each: with two folds, by chance, seven draws of eight would fail one of them."""
    labels: dict[str, set[int]] = {f"case {n}": {1} for n in range(12)}
    for number, name in enumerate(["case 0", "case 3", "case 4", "case 7", "case 8", "case 11"]):
        labels[name] = {1, 2 + number // 2}
    folds = draw_folds(dict.fromkeys(labels, ""), labels, count, seed)
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    for label in (2, 3, 4):
        assert sum(any(label in labels[name] for name in fold) for fold in folds) == 2
