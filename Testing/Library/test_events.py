"""Events: what is written comes back, whole lines only, and not too often."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from small_runs import KeptLog

from HybridMIMLib.events import Event, EventLog, EventReader, Phase, duration


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("HybridMIMLib.events.time.monotonic", lambda: self.now)


def collect() -> tuple[EventLog, list[Event]]:
    log = KeptLog()
    return log, log.events


def test_events_come_back_in_order(unicode_folder: Path) -> None:
    log = EventLog(unicode_folder / "events.jsonl")
    log.message("část 数")
    log.warning("two\nlines")
    log.write("end", outcome="finished")
    found = list(EventReader(unicode_folder / "events.jsonl").read())
    assert [e["kind"] for e in found] == ["message", "message", "end"]
    assert [e.get("message") for e in found] == ["část 数", "two\nlines", None]
    assert log.warnings == ["two\nlines"]
    assert "část 数" in (unicode_folder / "events.jsonl").read_text(encoding="utf-8")


def test_a_reader_gives_each_event_once_and_waits_for_the_rest_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    assert list(reader.read()) == []
    path.write_bytes(b'{"kind": "a"}\n{"kind": "\xc3')
    assert [e["kind"] for e in reader.read()] == ["a"]
    assert list(reader.read()) == []
    with path.open("ab") as handle:
        handle.write(b'\xa9"}\n{"kind": "c"}\n')
    assert [e["kind"] for e in reader.read()] == ["é", "c"]


def test_lines_that_are_no_event_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind": "a"}\n{"ki\n\n[1]\n3\n\xff\xfe\n\x00\x00\n{"kind": "b"}\n')
    assert [e["kind"] for e in EventReader(path).read()] == ["a", "b"]


def test_the_first_event_after_a_torn_line_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).message("before")
    with path.open("ab") as handle:
        handle.write(b'{"time": 1, "kind": "prog')
    log = EventLog(path)
    log.message("after")
    log.message("later")
    assert [e["message"] for e in EventReader(path).read()] == ["before", "after", "later"]


def test_a_reader_from_the_end_gives_new_events_only(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.message("old")
    reader = EventReader(tmp_path / "events.jsonl", from_end=True)
    log.message("new")
    assert [e["message"] for e in reader.read()] == ["new"]


def test_a_file_name_that_is_no_utf8_does_not_end_the_run(tmp_path: Path) -> None:
    name = b"L\xe9ka\xf8.nii.gz".decode("utf-8", "surrogateescape")
    log = EventLog(tmp_path / "events.jsonl")
    log.warning(name)
    (found,) = EventReader(tmp_path / "events.jsonl").read()
    assert found["message"] == name


def test_a_number_that_is_none_becomes_null(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.phase("train", 1).progress(1, {"loss": float("nan")}, {"dice": float("inf")})
    text = (tmp_path / "events.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text.splitlines()[1])["losses"] == {"loss": None}


def test_threads_do_not_tear_each_others_lines(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")

    def many_messages() -> None:
        for _ in range(20):
            log.message("x" * 5000)

    threads = [threading.Thread(target=many_messages) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(EventReader(tmp_path / "events.jsonl").read())) == 80


def test_progress_is_written_at_most_four_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    log, events = collect()
    phase = log.phase("train", 100)
    for step in range(1, 101):
        clock.now += 0.05
        phase.progress(step)
    steps = [e["step"] for e in events if e["kind"] == "progress"]
    assert steps[0] == 1 and steps[-1] == 100
    assert len(steps) <= 5 / Phase.SECONDS_BETWEEN + 2


def test_the_longer_a_phase_lasts_the_rarer_it_writes_but_never_a_watcher_waits_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    log, events = collect()
    phase = log.phase("study", 10**9)
    written = []
    for step in range(1, 100_001):
        clock.now += 0.1
        phase.progress(step)
        if events[-1].get("step") == step:
            written.append(clock.now)
    waits = [later - earlier for earlier, later in zip(written, written[1:])]
    assert waits[:100] == pytest.approx([0.3] * 100), "at first as often as a window wants to look"
    assert max(waits) <= Phase.SECONDS_BETWEEN * Phase.MOST_TIMES_RARER + 0.1 + 1e-6
    assert waits[-1] == pytest.approx(2.0, abs=0.11), "10,000 seconds later"


def test_the_last_step_and_metrics_are_always_written(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    log, events = collect()
    phase = log.phase("train", 3)
    phase.progress(1)
    assert not phase.due(2) and phase.due(3)
    phase.progress(2)
    phase.progress(2, metrics={"dice": 0.5})
    phase.progress(3, {"loss": 1})
    assert [e["step"] for e in events if e["kind"] == "progress"] == [1, 2, 3]
    assert events[2]["metrics"] == {"dice": 0.5} and events[3]["losses"] == {"loss": 1.0}


def test_seconds_left_follow_from_the_pace_of_this_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    log, events = collect()
    phase = log.phase("train", 100, done=60)
    clock.now += 20
    phase.progress(70)
    assert events[0]["step"] == 60 and events[-1]["seconds_left"] == pytest.approx(60)
    clock.now += 60
    phase.progress(100)
    assert events[-1]["seconds_left"] == 0


def test_no_time_left_is_claimed_before_a_step_was_done() -> None:
    log, events = collect()
    log.phase("train", 10, done=4).progress(4)
    assert "seconds_left" not in events[-1]


def test_a_phase_without_steps_does_no_harm() -> None:
    log, events = collect()
    log.phase("nothing", 0).progress(0)
    assert events[-1]["steps"] == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0:00"), (0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (90061, "25:01:01")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_file_that_was_cut_short_or_replaced_is_read_anew(tmp_path: Path) -> None:
    path, other = tmp_path / "events.jsonl", tmp_path / "other"
    path.write_text('{"kind": "a"}\n{"kind": "b"}\n')
    reader = EventReader(path)
    assert len(list(reader.read())) == 2 and reader.beginnings == 0
    path.write_text('{"kind": "c"}\n')
    assert [e["kind"] for e in reader.read()] == ["c"] and reader.beginnings == 1
    other.write_text('{"kind": "d"}\n' * 3)
    other.replace(path)
    assert [e["kind"] for e in reader.read()] == ["d"] * 3 and reader.beginnings == 2


def test_who_takes_some_events_gets_the_others_later(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("".join(f'{{"kind": "{n}"}}\n' for n in range(5)))
    reader = EventReader(path)
    for event in reader.read():
        if event["kind"] == "2":
            break
    assert [e["kind"] for e in reader.read()] == ["3", "4"]


def test_plan_and_memory_are_told() -> None:
    log, events = collect()
    log.plan([("pretrain", 5), ("finetune", 3)])
    phase = log.phase("pretrain", 5)
    phase.progress(1, {"a": 1}, memory={"process": 7})
    phase.progress(2)
    phase.progress(2, always=True)
    assert events[0] == {"kind": "plan", "phases": [["pretrain", 5], ["finetune", 3]]}
    assert [e.get("memory") for e in events[1:]] == [None, {"process": 7}, None] and events[-1]["step"] == 2
