"""Events as a panel sees them, sound ones and damaged ones."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from HybridMIMLib.events import Event, EventLog, EventReader
from HybridMIMLib.slicer_side.progress import RunProgress


def test_it_takes_in_what_a_run_tells(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.message("16 scans")
    log.warning("skipped: a.nii.gz: truncated")
    phase = log.phase("pretrain", 10)
    phase.progress(2, {"total": 2.0, "partial": 1.0}, {"accuracy": 0.5})
    phase.progress(5, {"total": 1.5}, {"accuracy": 0.75})
    progress = RunProgress()
    for event in EventReader(tmp_path / "events.jsonl").read():
        progress.take(event)
    assert (progress.phase, progress.step, progress.steps, progress.fraction) == ("pretrain", 5, 10, 0.5)
    assert {name: (v.first, v.now) for name, v in progress.values.items()} == {
        "loss: total": (2.0, 1.5),
        "loss: partial": (1.0, 1.0),
        "accuracy": (0.5, 0.75),
    }
    assert progress.lines == ["16 scans", "warning: skipped: a.nii.gz: truncated"]
    assert progress.warnings == ["skipped: a.nii.gz: truncated"]
    assert progress.describe().startswith("Pre-training, step 5 of 10, 0:0")
    assert progress.outcome == ""


def test_a_new_phase_begins_with_new_values() -> None:
    progress = RunProgress()
    progress.take({"kind": "progress", "phase": "pretrain", "step": 1, "steps": 2, "losses": {"total": 3.0}})
    progress.take({"kind": "phase", "phase": "finetune", "step": 0, "steps": 4})
    assert progress.values == {}
    assert progress.describe() == "Fine-tuning, step 0 of 4"


def test_a_run_that_is_continued_has_not_ended() -> None:
    progress = RunProgress()
    progress.take({"kind": "end", "outcome": "stopped", "message": "stopped"})
    assert progress.outcome == "stopped"
    progress.take({"kind": "phase", "phase": "finetune", "step": 3, "steps": 4})
    assert progress.outcome == ""


def test_before_the_first_event_and_in_a_phase_of_one_step_nothing_is_promised() -> None:
    progress = RunProgress()
    assert (progress.describe(), progress.fraction) == ("Starting", None)
    progress.take({"kind": "phase", "phase": "segment", "step": 0, "steps": 1})
    assert (progress.describe(), progress.fraction) == ("Segmenting", None)
    progress.take({"kind": "progress", "phase": "segment", "step": 0.25, "steps": 1})
    assert (progress.describe(), progress.step, progress.fraction) == ("Segmenting", 0, 0.25)
    progress.take({"kind": "progress", "phase": "segment", "step": 1, "steps": 1})
    assert (progress.describe(), progress.step, progress.fraction) == ("Segmenting", 1, 1.0)


def test_a_part_of_a_step_counts() -> None:
    progress = RunProgress()
    progress.take({"kind": "progress", "phase": "segment", "step": 1.5, "steps": 3, "seconds_left": 9})
    assert (progress.describe(), progress.fraction) == ("Segmenting, step 1 of 3, 0:09 left", 0.5)


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"kind": None},
        {"kind": "progress"},
        {"kind": "progress", "phase": "x", "step": "many", "steps": 3},
        {"kind": "progress", "phase": ["x"], "step": 1, "steps": 3},
        {"kind": "progress", "phase": "x", "step": True, "steps": 3},
        {"kind": "progress", "phase": "x", "step": math.nan, "steps": math.inf},
        {"kind": "message"},
        {"kind": "message", "message": ""},
        {"kind": "phase", "phase": None, "step": 1, "steps": 1},
    ],
)
def test_what_is_no_event_is_passed_over(event: Event) -> None:
    progress = RunProgress()
    progress.take(event)
    assert progress == RunProgress()


def test_values_that_are_no_numbers_are_passed_over() -> None:
    progress = RunProgress()
    losses = {"a": None, "b": "x", "c": math.nan, "d": 1, "e": {"f": 1}}
    progress.take({"kind": "progress", "phase": "x", "step": 9, "steps": 3, "losses": losses, "metrics": [1]})
    assert list(progress.values) == ["loss: d"]
    assert progress.fraction == 1.0


def begins(phase: str, steps: int) -> Event:
    return {"kind": "phase", "phase": phase, "step": 0, "steps": steps}


def at(phase: str, step: int, steps: int, left: float) -> Event:
    return {"kind": "progress", "phase": phase, "step": step, "steps": steps, "seconds_left": left}


def test_the_time_of_the_whole_follows_from_the_trainings_to_come() -> None:
    progress = RunProgress()
    progress.take({"kind": "plan", "phases": [["pretrain", 100], ["finetune", 40], ["finetune", 40]]})
    progress.take(at("prepare scans", 1, 5, 10))
    assert progress.seconds_left_in_all is None, "its steps are others"
    progress.take(begins("pretrain", 100))
    assert progress.seconds_left_in_all is None, "no step is done yet"
    progress.take(at("pretrain", 60, 100, 80))
    assert progress.seconds_left_in_all == pytest.approx(80 + 160)
    progress.take(begins("finetune", 40))
    progress.take(at("finetune", 20, 40, 20))
    assert progress.seconds_left_in_all == pytest.approx(20 + 40)
    progress.take(begins("finetune", 40))
    progress.take(at("finetune", 20, 40, 20))
    assert progress.seconds_left_in_all is None, "this is the last, and its own time says all"


def test_a_training_that_is_left_out_is_not_waited_for() -> None:
    progress = RunProgress()
    progress.take({"kind": "plan", "phases": [["pretrain", 100], ["finetune", 40], ["finetune", 40]]})
    progress.take(begins("finetune", 40))
    assert progress.to_come == [("finetune", 40)]
    progress.take({"kind": "plan", "phases": []})
    assert progress.to_come == []


@pytest.mark.parametrize("phases", [None, 3, "ab", [3], [["x"]], [["x", "y"]], [["x", 1, 2]], [[{}, math.inf]]])
def test_a_plan_that_is_none_is_passed_over(phases: object) -> None:
    progress = RunProgress()
    progress.take({"kind": "plan", "phases": phases})
    assert progress == RunProgress()


def test_memory_stays_known_until_it_is_told_anew() -> None:
    progress = RunProgress()
    progress.take({**at("pretrain", 1, 9, 1), "memory": {"process": 5e9, "gpu": None, "x": 10**400}})
    progress.take({**at("pretrain", 2, 9, 1), "memory": "much"})
    assert progress.memory == {"process": 5_000_000_000}


def test_cures_for_a_terminal_are_put_into_words_for_a_window() -> None:
    progress = RunProgress()
    for cure in (
        "Free some space, or choose another folder with --output, and run the command again.",
        "Choose an empty or new folder with --output.",
        "Give the same settings (--config) to continue it, or another --output.",
    ):
        progress.take({"kind": "end", "outcome": "failed", "message": f"it failed. {cure}"})
        assert "--" not in progress.message and "()" not in progress.message and progress.message.endswith(".")
    assert progress.message == "it failed. Give the same settings to continue it, or another output folder."
