"""One worker for everybody: started when it is asked, started again when it died, ended with the process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

from HybridMIMLib.errors import RunError
from HybridMIMLib.slicer_side import worker_client
from HybridMIMLib.slicer_side.warm_worker import Request, WarmWorker, warm_worker

ECHO = "import sys, json\nfor line in sys.stdin:\n r = json.loads(line)\n "
SAY = "print(json.dumps({'id': r['id'], 'event': 'done', 'command': r['command']}), flush=True)"


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path / "ws"))
    return tmp_path / "ws"


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., WarmWorker]]:
    """A worker whose process is a small program."""
    made: list[WarmWorker] = []

    def make(program: str = ECHO + SAY) -> WarmWorker:
        monkeypatch.setattr(worker_client, "library_command", lambda *_: [sys.executable, "-c", program])
        made.append(WarmWorker())
        return made[-1]

    yield make
    for one in made:
        one.close()


def answers(asked: Request) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    end = time.monotonic() + 20
    while asked.open:
        assert time.monotonic() < end
        found += asked.take()
        time.sleep(0.005)
    return found


def test_each_gets_its_own_answers_from_one_process(worker: Callable[..., WarmWorker]) -> None:
    one = worker()
    assert not one.running and one.pid is None
    first, second = one.ask("status"), one.ask("load", model="m")
    pid = one.pid
    # Who looks first also hears for the other.
    assert answers(second)[0]["command"] == "load"
    assert answers(first)[0]["command"] == "status"
    assert one.running and one.pid == pid
    assert first.take() == []


def test_one_that_died_is_started_again(worker: Callable[..., WarmWorker], workspace: Path) -> None:
    one = worker()
    answers(one.ask("status"))
    pid = one.pid
    assert pid is not None
    os.kill(pid, 9)
    end = time.monotonic() + 10
    while one.running and time.monotonic() < end:
        time.sleep(0.01)
    assert answers(one.ask("status"))[-1]["event"] == "done" and one.pid != pid
    assert len(list((workspace / "worker").iterdir())) == 1
    one.close()
    assert not one.running and list((workspace / "worker").iterdir()) == []


def test_one_that_is_killed_fails_all_that_it_was_asked(worker: Callable[..., WarmWorker]) -> None:
    one = worker("import sys, time; sys.stdin.readline(); time.sleep(60)")
    first, second = one.ask("segment"), one.ask("segment")
    began = time.monotonic()
    first.kill()
    assert time.monotonic() - began < 0.2 and not one.running
    assert [answers(asked)[-1]["event"] for asked in (first, second)] == ["failed", "failed"]
    first.cancel()
    assert not first.open


def test_without_packages_the_next_request_goes_to_a_new_one(worker: Callable[..., WarmWorker]) -> None:
    broken = "{'id': r['id'], 'event': 'failed', 'message': 'a package is missing or broken (torch)', 'cure': '.'}"
    one = worker(f"{ECHO}print(json.dumps({broken}), flush=True)")
    assert answers(one.ask("load", model="m"))[-1]["event"] == "failed"
    assert not one.running


def test_what_cannot_be_started_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(worker_client, "library_command", lambda *_: [str(tmp_path / "no-python")])
    with pytest.raises(RunError, match="no-python"):
        WarmWorker().start()


def test_logs_of_processes_that_were_killed_are_removed(worker: Callable[..., WarmWorker], workspace: Path) -> None:
    logs = workspace / "worker"
    logs.mkdir(parents=True)
    for name in ("999999999-1.log", f"{os.getppid()}-1.log", "mine.log"):
        (logs / name).touch()
    worker().start()
    left = {one.name for one in logs.iterdir()}
    assert "999999999-1.log" not in left and {f"{os.getppid()}-1.log", "mine.log"} < left


def test_there_is_one_for_all() -> None:
    assert warm_worker() is warm_worker()
