"""The terminal's bar: what it draws follows from ``events.jsonl`` alone."""

from __future__ import annotations

import io
import time
from pathlib import Path

from HybridMIMLib.events import EventLog
from HybridMIMLib.terminal import TerminalBar, describe_progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_in_words() -> None:
    line = describe_progress(
        {
            "phase": "pretrain",
            "step": 5,
            "steps": 10,
            "seconds_left": 75,
            "losses": {"a": 0.5},
            "metrics": {"b": None},
        }
    )
    assert line == f"pretrain       [{'#' * 12}{'.' * 12}] 5/10  1:15 left  a 0.500"


def test_the_bar_moves_within_a_long_step() -> None:
    line = describe_progress({"phase": "segment", "step": 1.5, "steps": 2, "seconds_left": 5})
    assert line == f"segment        [{'#' * 18}{'.' * 6}] 1/2  0:05 left"


def test_log_gets_each_tenth_of_a_long_step_once(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = EventLog(tmp_path / "events.jsonl")
    with TerminalBar(tmp_path / "events.jsonl", stream):
        for step in (0, 0.06, 0.12, 0.15, 0.95, 1):
            log.write("progress", phase="segment", step=step, steps=1)
    filled = [line.count("#") for line in stream.getvalue().splitlines()]
    assert filled == [0, 2, 22, 24]


def test_no_division_by_zero_without_steps() -> None:
    assert "0/1" in describe_progress({"phase": "x", "step": 0, "steps": 0})


def test_log_gets_each_tenth_once_and_every_message(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = EventLog(tmp_path / "events.jsonl")
    with TerminalBar(tmp_path / "events.jsonl", stream):
        log.write("phase", phase="train", step=0, steps=100)
        for step in range(1, 101):
            log.write("progress", phase="train", step=step, steps=100)
        log.warning("a scan was skipped")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 12 and lines[-1] == "warning: a scan was skipped"
    assert [line.split("] ")[1] for line in lines[:-1]] == [f"{10 * n}/100" for n in range(11)]


def test_terminal_draws_over_one_line_and_ends_it(tmp_path: Path) -> None:
    stream = Terminal()
    log = EventLog(tmp_path / "events.jsonl")
    with TerminalBar(tmp_path / "events.jsonl", stream):
        for step in (1, 2):
            log.write("progress", phase="train", step=step, steps=3)
        log.message("half way")
    text = stream.getvalue()
    assert text.count("\r\x1b[K") == 3 and "half way\n" in text and text.endswith("\n")


def test_bar_follows_while_the_job_works_and_ignores_what_was_before(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.message("of an earlier run")
    stream = io.StringIO()
    with TerminalBar(tmp_path / "events.jsonl", stream):
        log.message("now")
        ending = time.monotonic() + 5
        while "now" not in stream.getvalue():
            assert time.monotonic() < ending, "the bar did not follow"
            time.sleep(0.02)
    assert "earlier" not in stream.getvalue()
