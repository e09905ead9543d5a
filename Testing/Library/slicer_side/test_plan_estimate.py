"""An estimate in words, and a trial by a process that leaves nothing behind."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import finish

from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED
from HybridMIMLib.slicer_side.plan_estimate import EstimateJob, time_in_words

SAYS = "import sys, pathlib; (pathlib.Path(sys.argv[-1].split('=', 1)[1]) / 'result.json').write_text({text!r})"


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[list[str]]]:
    """Let trials run a small program; returns what they are asked."""

    def use(program: str) -> list[list[str]]:
        asked: list[list[str]] = []

        def command(name: str, options: list[str]) -> list[str]:
            asked.append([name, *options])
            return [sys.executable, "-c", program, *options]

        monkeypatch.setattr("HybridMIMLib.slicer_side.jobs.library_command", command)
        return asked

    return use


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.01, "1 s"),
        (59.2, "59 s"),
        (60, "1 min"),
        (3540, "59 min"),
        (3600, "1 h"),
        (7800, "2 h 10 min"),
        (86399, "24 h"),
        (86400, "1 day"),
        (100000, "1 day 4 h"),
        (270000, "3 days 3 h"),
    ],
)
def test_times_are_as_exact_as_they_can_be(seconds: float, words: str) -> None:
    assert time_in_words(seconds) == words


@pytest.mark.parametrize("text", ["{}", '{"stages": {"a": {}}, "notes": []}', '{"stages": 3, "notes": []}', "[]"])
def test_an_answer_that_makes_no_sense_is_a_failure(text: str, instead: Callable[[str], list[list[str]]]) -> None:
    asked = instead(SAYS.format(text=text))
    job = finish(EstimateJob({"labelled": "cases", "config": "btcv"}))
    assert job.state == FAILED and job.rows == [] and job.message
    assert asked[0][:4] == ["estimate", "--of=train", "--labelled=cases", "--config=btcv"]


def test_the_answer_is_told_and_its_folder_removed(instead: Callable[[str], list[list[str]]]) -> None:
    stage = {
        "scans": 8, "steps": 100, "batch": 4, "networks": 1, "step_seconds": 12.34, "seconds": 1234.0, "memory": 1e9,
        "gpu_memory": 4e9, "parts": {"steps": 1234.0}, "disk": {"store": 5e5}, "tried": {"scans": 4, "steps": 2},
    }  # fmt: skip
    result = {
        "device": "cuda", "stages": {"pre-training": stage}, "seconds": 1234.0, "memory": 1e9, "memory_total": None,
        "gpu_memory": 4e9, "gpu_memory_total": 80e9, "disk": 5e5, "free": 2e12, "notes": [],
    }  # fmt: skip
    instead(SAYS.format(text=json.dumps(result)))
    job = finish(EstimateJob({"unlabelled": "scans"}))
    assert job.state == FINISHED
    assert job.message == (
        "About 21 min in all, on cuda. Memory: 1.0 GB. Of the GPU: 4.0 GB of 80.0 GB. "
        "Disk: 0.5 MB, of 2000.0 GB that are free."
    )
    assert job.rows[0].cells == ("Pre-training", "100 × 12 s", "21 min", "4.0 GB", "0.5 MB")
    assert "seen in 2 steps on 4 scans" in job.rows[0].details
    folder, end = Path(job.folder), time.monotonic() + 10
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not folder.exists()
