"""Curves of a run: thinned without losing peaks, read a little at a time, whatever is in the log."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from HybridMIMLib.events import EventLog
from HybridMIMLib.slicer_side.curves import DICE, HEADS, LOSSES, OTHERS, RunCurves, Series, group_of

MOST = 1000


def filled(values: list[float]) -> Series:
    series = Series("pretrain")
    for step, value in enumerate(values, 1):
        series.add(step, value)
    return series


def add(folder: Path, *events: dict[str, Any]) -> None:
    with open(folder / "events.jsonl", "a", encoding="utf-8") as handle:
        handle.writelines(json.dumps(one) + "\n" for one in events)


def progress(step: float, phase: str = "pretrain", **content: Any) -> dict[str, Any]:
    return {"kind": "progress", "phase": phase, "step": step, "steps": 100, **content}


def read_all(curves: RunCurves) -> RunCurves:
    while curves.read():
        pass
    return curves


# --- thinning -----------------------------------------------------------------------------------------------


def test_few_points_are_all_kept() -> None:
    values = [float(n % 7) for n in range(400)]
    assert filled(values).points() == ([float(n) for n in range(1, 401)], values)
    assert Series().points() == ([], []) and Series().last is None


@pytest.mark.parametrize("count", [500, 999, 1000, 1001, 30_000])
def test_many_points_become_few_and_no_peak_is_lost(count: int) -> None:
    rng = random.Random(count)
    values = [rng.random() for _ in range(count)]
    low, high = rng.sample(range(count), 2)
    values[low], values[high] = -5.0, 5.0
    steps, kept = filled(values).points()
    assert len(steps) <= MOST + 1 and len(steps) >= min(count, 400)
    assert steps == sorted(set(steps)) and (steps[0], steps[-1]) == (1, count)
    assert all(values[int(step) - 1] == value for step, value in zip(steps, kept)), "points are real ones"
    assert (low + 1, -5.0) in zip(steps, kept) and (high + 1, 5.0) in zip(steps, kept)


def test_every_part_of_a_long_series_keeps_its_own_lowest_and_highest() -> None:
    """Not the peaks of the whole alone: an envelope."""
    values = [(1 if n % 2 else -1) * (1 + n / 10_000) for n in range(20_000)]
    steps, kept = filled(values).points()
    for begin in range(0, 20_000, 200):
        part = [value for step, value in zip(steps, kept) if begin < step <= begin + 200]
        assert min(part) < -1 - begin / 10_000 + 0.001 and max(part) > 1 + begin / 10_000 - 0.001


def test_a_run_that_goes_on_replaces_what_it_does_again() -> None:
    series = filled([1.0] * 10)
    series.add(6, 2.0)
    assert series.points() == ([1, 2, 3, 4, 5, 6], [1.0] * 5 + [2.0]) and series.last == (6, 2.0)
    series.cut(1)
    assert series.points() == ([], []) and series.last is None
    series.add(3, 1.0)
    assert series.points() == ([3], [1.0])


def test_what_is_cut_of_a_thinned_series_leaves_points_that_were_there() -> None:
    values = [float(random.Random(n).random()) for n in range(5000)]
    series = filled(values)
    series.cut(2500.5)
    steps, kept = series.points()
    assert 2400 < steps[-1] <= 2500 and all(values[int(s) - 1] == v for s, v in zip(steps, kept))
    assert series.last == (steps[-1], kept[-1])


# --- reading ------------------------------------------------------------------------------------------------


def test_losses_and_metrics_come_by_name_and_group(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.message("hello")
    log.phase("pretrain", 4)
    add(
        tmp_path,
        progress(1, losses={"partial": 1.0}),
        progress(2, losses={"partial": 0.5}),
        progress(2, metrics={"number_accuracy": 0.4, "number_chance": 0.1, "error_to_patch_mean": 0.9}),
        progress(3, "finetune", losses={"dice": 0.7}, metrics={"validation mean": 0.3}),
    )
    curves = read_all(RunCurves(tmp_path))
    assert curves.series["loss: partial"].points() == ([1, 2], [1.0, 0.5])
    assert curves.series["loss: partial"].phase == "pretrain"
    assert list(curves.of(LOSSES)) == ["loss: partial", "loss: dice"]
    assert list(curves.of(DICE)) == ["validation mean"] and list(curves.of(OTHERS)) == ["error_to_patch_mean"]
    assert list(curves.of(HEADS)) == ["number_accuracy", "number_chance"]
    assert curves.events == 6


def test_the_same_name_in_two_phases_is_two_series(tmp_path: Path) -> None:
    add(tmp_path, progress(9, losses={"dice": 1}), progress(1, "finetune", losses={"dice": 2}))
    curves = read_all(RunCurves(tmp_path))
    assert curves.series["loss: dice"].points() == ([9], [1])
    assert curves.series["loss: dice (Fine-tuning)"].points() == ([1], [2])
    assert group_of("loss: dice (Fine-tuning)") == LOSSES


def test_only_what_is_new_is_read_and_changes_are_told(tmp_path: Path) -> None:
    curves = RunCurves(tmp_path)
    assert not curves.read() and curves.changes == 0, "there is no log yet"
    add(tmp_path, progress(1, losses={"a": 1}))
    assert not curves.read()
    changes = curves.changes
    assert changes and not curves.read() and curves.changes == changes
    with open(tmp_path / "events.jsonl", "a", encoding="utf-8") as handle:
        handle.write('{"kind": "progress", "phase": "pretrain", "step": 2, "st')
    assert not curves.read() and curves.changes == changes, "half a line waits"
    with open(tmp_path / "events.jsonl", "a", encoding="utf-8") as handle:
        handle.write('eps": 9, "losses": {"a": 3}}\n')
    curves.read()
    assert curves.series["loss: a"].points() == ([1, 2], [1, 3])


def test_corrupt_lines_and_strange_content_are_passed_over(tmp_path: Path) -> None:
    lines: list[Any] = [
        b"\xff\xfe\x00 no text", b"{", b"[1, 2]", b"null", b"[" * 100_000, b"\x00" * 500,
        progress(1, losses={"a": "high"}), progress(1, losses=[1]), progress("one", losses={"a": 1}),
        {**progress(1, losses={"a": 1}), "phase": ["x"]}, progress(1, losses={"a": None, "b": True}),
        progress(1, losses={"a": 10**400}), {"kind": "progress"}, {"kind": ["phase"], "phase": {}, "step": 1},
        progress(float("nan"), losses={"a": 1}), progress(2, losses={"a": 7}, metrics={"validation x": float("inf")}),
    ]  # fmt: skip
    text = b"\n".join(one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines)
    (tmp_path / "events.jsonl").write_bytes(text + b"\n")
    curves = read_all(RunCurves(tmp_path))
    assert {name: one.points() for name, one in curves.series.items()} == {"loss: a": ([2], [7])}


def test_a_log_that_is_cut_short_is_read_anew(tmp_path: Path) -> None:
    add(tmp_path, *(progress(step, losses={"old": step}) for step in range(1, 9)))
    curves = read_all(RunCurves(tmp_path))
    (tmp_path / "events.jsonl").write_text("")
    assert not curves.read() and curves.series == {}
    add(tmp_path, progress(1, losses={"new": 1}))
    assert list(read_all(curves).series) == ["loss: new"]


def test_a_log_that_is_replaced_by_a_longer_one_is_read_anew(tmp_path: Path) -> None:
    add(tmp_path, progress(1, losses={"old": 1}))
    curves = read_all(RunCurves(tmp_path))
    (tmp_path / "other").mkdir()
    add(tmp_path / "other", *(progress(step, losses={"new": step}) for step in range(1, 9)))
    os.replace(tmp_path / "other" / "events.jsonl", tmp_path / "events.jsonl")
    assert list(read_all(curves).series) == ["loss: new"] and curves.events == 8


def test_a_phase_that_begins_again_forgets_what_was_done_after_its_checkpoint(tmp_path: Path) -> None:
    add(tmp_path, *(progress(step, losses={"a": 1}) for step in (1, 2, 3, 4)))
    add(tmp_path, progress(2, "finetune", losses={"b": 1}))
    add(tmp_path, {"kind": "phase", "phase": "pretrain", "step": 2, "steps": 100})
    curves = read_all(RunCurves(tmp_path))
    assert curves.series["loss: a"].points()[0] == [1, 2], "the step of the checkpoint itself stays"
    assert curves.series["loss: b"].points()[0] == [2]


def test_a_long_log_is_read_over_several_calls_of_bounded_length(tmp_path: Path) -> None:
    add(tmp_path, *(progress(step, losses={"a": step, "b": 1}) for step in range(1, 20_001)))
    curves, looks, longest, more = RunCurves(tmp_path), 0, 0.0, True
    while more:
        began = time.thread_time()
        more = curves.read(seconds=0.005)
        longest, looks = max(longest, time.thread_time() - began), looks + 1
    assert curves.events == 20_000 and curves.series["loss: a"].last == (20_000, 20_000)
    assert looks > 5 and longest < 0.05, "it is 0.006; machines are slow at times"


def test_a_drive_that_is_gone_for_a_moment_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path, progress(1, losses={"a": 1}))
    curves = RunCurves(tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("gone")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        assert not curves.read() and curves.series == {}
    assert list(read_all(curves).series) == ["loss: a"]
