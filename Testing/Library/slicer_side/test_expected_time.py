"""What is said of the time of a segmentation: from what the last one took, and nothing where nothing is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import save_threshold_model

from HybridMIMLib.data.model_description import ModelDescription, read_description
from HybridMIMLib.machine_notes import remember
from HybridMIMLib.slicer_side.expected_time import TimeTaken, in_words, note_time, time_taken

ANSWER: dict[str, Any] = {
    "seconds": {"load": 2.0, "segment": 4.0, "total": 7.0},
    "presets": {"fast": 3.0, "balanced": 5.0, "best": 20.0},
}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelDescription:
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path / "workspace"))
    return read_description(save_threshold_model(tmp_path / "model"))


def test_what_was_noted_is_known_and_both_beginnings_are_kept(model: ModelDescription) -> None:
    assert time_taken(model, "auto") is None
    note_time(model, "auto", 100.0, [ANSWER], seconds=12.0, was_warm=False)
    assert time_taken(model, "auto") == TimeTaken(100.0, ANSWER["presets"], cold=7.0, warm=None)
    note_time(model, "auto", 200.0, [ANSWER, ANSWER], seconds=10.5, was_warm=True)
    doubled = {name: 2 * one for name, one in ANSWER["presets"].items()}
    assert time_taken(model, "auto") == TimeTaken(200.0, doubled, cold=7.0, warm=0.5)
    assert time_taken(model, "cuda") is None
    assert time_taken(replace(model, trained="2030-01-01T00:00:00+00:00"), "auto") is None, "trained anew"


def test_a_larger_scan_takes_longer_and_one_of_another_kind_is_not_judged() -> None:
    taken = TimeTaken(100.0, {"fast": 3.0, "best": 20.0}, cold=7.0)
    assert taken.expected(100.0, is_warm=False) == {"fast": 10.0, "best": 27.0}
    assert taken.expected(200.0, is_warm=True) == {"fast": 6.0, "best": 40.0}
    assert taken.expected(401.0, is_warm=True) == taken.expected(24.0, is_warm=True) == {}
    both = TimeTaken(100.0, {"fast": 3.0}, cold=7.0, warm=1.0)
    assert [both.expected(100.0, is_warm)["fast"] for is_warm in (False, True)] == [10.0, 4.0]
    assert TimeTaken(100.0, {"fast": 3.0}, warm=1.0).expected(100.0, is_warm=False) == {"fast": 4.0}


@pytest.mark.parametrize("answer", [{}, {**ANSWER, "presets": None}])
def test_a_worker_that_does_not_say_leaves_no_note(model: ModelDescription, answer: dict[str, Any]) -> None:
    note_time(model, "auto", 100.0, [ANSWER, answer], seconds=12.0, was_warm=False)
    assert time_taken(model, "auto") is None


@pytest.mark.parametrize("note", [3, {}, {"ml": 0, "presets": {}, "cold": None, "warm": None}, {"ml": "x"}, []])
def test_a_note_that_is_none_counts_for_nothing(model: ModelDescription, note: Any) -> None:
    remember("segmentation times", f"{model.path.absolute()} {model.trained} auto", note)
    assert time_taken(model, "auto") is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (9.4, "9 s"), (12.6, "15 s"), (61, "1 min"), (200, "3.5 min"), (5400, "1.5 h")],
)
def test_predictions_are_rounded(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
