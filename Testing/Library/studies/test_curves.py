"""What events tell of a training, also of one that was stopped and went on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from HybridMIMLib.studies.curves import Point, best, reached, trace


def write(file: Path, events: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps({"steps": 8, **event}) + "\n" for event in events))
    return file


def phase(time: float, step: int = 0) -> dict[str, Any]:
    return {"kind": "phase", "phase": "finetune", "time": time, "step": step}


def progress(time: float, step: int, dice: float | None = None) -> dict[str, Any]:
    numbers = {"losses": {"dice": 0.1}} if dice is None else {"metrics": {"validation mean": dice}}
    return {"kind": "progress", "phase": "finetune", "time": time, "step": step, **numbers}


STRAIGHT = [phase(100), progress(102, 2), progress(104, 4), progress(109, 4, 0.5), progress(113, 8),
            progress(118, 8, 0.7)]  # fmt: skip


def test_a_training_in_one_go(tmp_path: Path) -> None:
    other = {"kind": "progress", "phase": "prepare scans", "time": 150, "step": 1}
    found = trace(write(tmp_path / "events.jsonl", [other, *STRAIGHT, other]), "finetune")
    assert found.points == (Point(4, 4.0, 0.5), Point(8, 13.0, 0.7))
    assert found.seconds == 18 and found.step_seconds == 1.0 and found.validation_seconds == 5


def test_a_pause_does_not_count_and_steps_done_twice_count_once(tmp_path: Path) -> None:
    # Stopped after step 6, continued an hour later from the checkpoint of step 4.
    events = [*STRAIGHT[:4], progress(111, 6), phase(5000, 4), progress(5004, 8), progress(5009, 8, 0.7)]
    found = trace(write(tmp_path / "events.jsonl", events), "finetune")
    assert found.points == (Point(4, 4.0, 0.5), Point(8, 13.0, 0.7)) and found.seconds == 18


def test_a_validation_that_is_repeated_counts_once(tmp_path: Path) -> None:
    events = [*STRAIGHT, phase(5000, 4), progress(5004, 8), progress(5009, 8, 0.6)]
    assert trace(write(tmp_path / "events.jsonl", events), "finetune").points[-1] == Point(8, 13.0, 0.6)


def test_nothing_measured_is_zero_and_no_file_is_nothing(tmp_path: Path) -> None:
    events = [phase(0), {**progress(3, 8, 0.0), "metrics": {"validation mean": None}}]
    assert trace(write(tmp_path / "events.jsonl", events), "finetune").points == (Point(8, 0.0, 0.0),)
    empty = trace(tmp_path / "none.jsonl", "finetune")
    assert empty.points == () and empty.seconds == 0 and empty.step_seconds == 0


def test_a_real_run_is_traced(blobs: Path, tmp_path: Path) -> None:
    from small_runs import TINY

    from HybridMIMLib import finetune

    result = finetune(labelled=str(blobs / "labelled"), output=str(tmp_path / "run"), **TINY)
    found = trace(tmp_path / "run" / "events.jsonl", "finetune")
    assert [point.step for point in found.points] == [3, 6]
    assert best(found.points).dice == pytest.approx(result["validation"]["mean"])
    assert 0 < found.seconds <= result["seconds"] + 1


def test_best_and_reached() -> None:
    points = [Point(1, 1, 0.2), Point(2, 2, 0.5), Point(3, 3, 0.5), Point(4, 4, 0.4)]
    assert best(points).step == 2 and reached(points, 0.2) == points[0] and reached(points, 0.51) is None
    assert reached(points, 0.45) == points[1]
