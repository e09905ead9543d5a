"""The jobs of the worker, with tasks that do nothing: their order, their answers, and that nothing ends it early."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from HybridMIMLib import worker_queue
from HybridMIMLib.errors import ScanError
from HybridMIMLib.worker_protocol import LAST_EVENTS, Load, Segment
from HybridMIMLib.worker_queue import Job, Worker

SECONDS = 20
OUTPUT = "/nowhere/label.nii.gz"


class FakeTasks:
    """``scan`` says what comes of a job: /wait until it is cancelled or :attr:`go` is set, /scan-error, /defect …"""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.warm, self.released, self.recovered = False, 0, 0

    def state(self) -> dict[str, Any]:
        return {"model": None, "device": "a fake" if self.warm else None, "warm": self.warm}

    def load(self, request: Load, voice: Job) -> dict[str, Any]:
        voice.phase("load")
        self.warm = True
        return {"loaded": request.model}

    def segment(self, request: Segment, voice: Job) -> dict[str, Any]:
        voice.phase("segment")
        self.warm = True
        kind = request.scan[0].name
        errors: dict[str, Exception] = {
            "scan-error": ScanError("the scan is odd", cure="Take another."),
            "defect": ZeroDivisionError("oh"),
            "memory": torch.OutOfMemoryError("full"),
            "package": ModuleNotFoundError("No module named 'torch'"),
        }
        if kind in errors:
            raise errors[kind]
        end = time.monotonic() + SECONDS
        while kind == "wait" and not self.go.wait(0.005):
            voice.windows(3, 7)
            assert time.monotonic() < end
        return {"kind": kind}

    def release(self) -> None:
        self.warm, self.released = False, self.released + 1

    def recover(self) -> None:
        self.recovered += 1


class Desk:
    """A worker, what it answered so far, and how to ask it."""

    def __init__(self, idle_seconds: float = 1000) -> None:
        self.tasks, self.answers = FakeTasks(), list[dict[str, Any]]()
        self.worker = Worker(self._take, cast(Callable[[], Any], lambda: self.tasks), idle_seconds)
        self.worker.start()

    def _take(self, answer: Mapping[str, Any]) -> None:
        self.answers.append(json.loads(json.dumps(answer)))

    def ask(self, id_: Any, command: str, **content: Any) -> bool:
        return self.worker.take(json.dumps({"id": id_, "command": command, **content}).encode())

    def segment(self, id_: Any, kind: str) -> None:
        self.ask(id_, "segment", scan=f"/{kind}", output=OUTPUT)

    def of(self, id_: Any) -> list[str]:
        return [answer["event"] for answer in list(self.answers) if answer["id"] == id_]

    def last(self, id_: Any) -> dict[str, Any]:
        """The last event of a request, once it is there."""
        self.until(lambda: any(event in LAST_EVENTS for event in self.of(id_)))
        return next(one for one in self.answers if one["id"] == id_ and one["event"] in LAST_EVENTS)

    def until(self, is_so: Callable[[], bool]) -> None:
        end = time.monotonic() + SECONDS
        while not is_so():
            assert time.monotonic() < end, self.answers
            time.sleep(0.002)


@contextmanager
def desk(idle_seconds: float = 1000) -> Iterator[Desk]:
    made = Desk(idle_seconds)
    yield made
    assert made.worker.end()


def test_jobs_are_done_one_after_the_other_and_status_comes_at_once() -> None:
    with desk() as at:
        at.segment(1, "wait")
        at.segment(2, "fine")
        at.ask(3, "load", model="m")
        at.until(lambda: "progress" in at.of(1))
        at.ask("s", "status")
        status = at.last("s")
        assert status["working"]["id"] == 1 and status["working"]["command"] == "segment"
        assert status["waiting"] == [2, 3] and at.of(2) == ["accepted"]
        assert [one["waiting"] for one in at.answers if one["event"] == "accepted"] == [0, 1, 2]
        at.tasks.go.set()
        assert at.last(3)["loaded"] == "m"
        ended = [one["id"] for one in at.answers if one["event"] == "done"]
        assert ended == ["s", 1, 2, 3]
        at.ask("t", "status")
        assert at.last("t")["working"] is None and at.last("t")["warm"] and at.last("t")["device"] == "a fake"


def test_progress_is_told_seldom_and_says_how_long_it_takes() -> None:
    with desk() as at:
        at.segment(1, "wait")
        time.sleep(0.4)
        at.tasks.go.set()
        at.last(1)
        told = [one for one in at.answers if one["event"] == "progress" and "done" in one]
        assert 1 <= len(told) <= 3 and {(one["done"], one["of"]) for one in told} == {(3, 7)}
        assert all(0 <= one["seconds_left"] < SECONDS for one in told)


def test_what_is_at_work_and_what_waits_can_be_cancelled() -> None:
    with desk() as at:
        at.segment("a", "wait")
        at.segment("b", "fine")
        at.segment("c", "fine")
        at.until(lambda: "progress" in at.of("a"))
        at.ask(1, "cancel", job="b")
        assert at.last(1)["was"] == "waiting" and at.of("b") == ["accepted", "cancelled"]
        at.ask(2, "cancel", job="a")
        assert at.last(2)["was"] == "working" and at.last("a")["event"] == "cancelled"
        assert at.last("c")["event"] == "done"
        for job in ("a", "b", "nobody"):
            at.ask(f"again {job}", "cancel", job=job)
            assert at.last(f"again {job}")["event"] == "refused" and job in at.last(f"again {job}")["message"]
        assert at.tasks.recovered == 0


@pytest.mark.parametrize(
    ("kind", "says", "recovered"),
    [
        ("scan-error", "the scan is odd", 0),
        ("defect", "unexpected error: ZeroDivisionError: oh", 1),
        ("memory", "out of memory", 1),
        ("package", "No module named 'torch'", 1),
    ],
)
def test_a_job_that_fails_says_why_and_the_next_is_done(
    kind: str, says: str, recovered: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with desk() as at:
        at.segment(1, kind)
        at.segment(2, "fine")
        assert at.last(1)["event"] == "failed" and says in at.last(1)["message"] and at.last(1)["cure"]
        assert at.last(2)["kind"] == "fine" and at.tasks.recovered == recovered
    # Whoever repairs a defect needs to know where it happened; a user's mistake is no defect.
    assert ("Traceback" in capsys.readouterr().err) == (kind == "defect")


def test_nonsense_is_refused_and_work_goes_on() -> None:
    with desk() as at:
        at.segment(1, "wait")
        for line in (b"{", b"[]", b"", b"  ", None, b'{"id": 5, "command": "dance"}', b"\xff"):
            assert at.worker.take(line)
        assert [one["id"] for one in at.answers if one["event"] == "refused"] == [None, None, None, 5, None]
        at.segment(1, "fine")
        # It must not look as if the first of that id had ended.
        assert at.of(1).count("refused") == 0 and at.answers[-1]["event"] in ("refused", "progress")
        at.tasks.go.set()
        assert at.last(1)["kind"] == "wait"
        at.segment(1, "fine")
        at.until(lambda: at.of(1).count("done") == 2)


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_queue, "MOST_WAITING", 2)
    with desk() as at:
        at.segment(0, "wait")
        at.until(lambda: "progress" in at.of(0))
        for number in (1, 2, 3):
            at.segment(number, "fine")
        assert at.of(2) == ["accepted"] and at.of(3) == ["refused"]


def test_the_device_is_freed_once_when_nobody_asks_and_taken_again() -> None:
    with desk(idle_seconds=0.05) as at:
        time.sleep(0.15)
        # Nothing was loaded: there is nothing to free.
        assert at.tasks.released == 0
        for number in (1, 2):
            at.segment(number, "fine")
            at.until(lambda count=number: at.of(None).count("released") == count)  # type: ignore[misc]
            time.sleep(0.15)
            assert at.tasks.released == number
        at.ask("s", "status")
        assert at.last("s")["warm"] is False


def test_a_device_that_cannot_be_freed_does_not_end_the_worker(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise RuntimeError("the device is lost")

    with desk(idle_seconds=0.05) as at:
        at.tasks.release = at.tasks.recover = refuse  # type: ignore[method-assign]
        at.segment(1, "fine")
        at.until(lambda: "released" in at.of(None))
        at.segment(2, "defect")
        at.segment(3, "fine")
        assert at.last(2)["event"] == "failed" and at.last(3)["event"] == "done"
    assert "the device is lost" in capsys.readouterr().err


def test_quit_cancels_everything_and_answers_last() -> None:
    at = Desk()
    at.segment(1, "wait")
    at.segment(2, "fine")
    at.until(lambda: "progress" in at.of(1))
    assert at.ask("q", "quit") is False
    assert at.worker.end()
    assert at.of(1)[-1] == at.of(2)[-1] == "cancelled" and at.answers[-1] == {"id": "q", "event": "done"}


def test_the_end_does_not_wait_for_a_job_that_hears_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_queue, "SECONDS_TO_END", 0.1)
    at = Desk()
    stuck = threading.Event()

    def hang(request: Segment, voice: Job) -> dict[str, Any]:
        voice.phase("segment")
        stuck.wait(SECONDS)
        return {}

    at.tasks.segment = hang  # type: ignore[method-assign]
    at.segment(1, "fine")
    at.until(lambda: "progress" in at.of(1))
    assert at.worker.end() is False
    stuck.set()
    time.sleep(0.05)
    assert at.of(1).count("cancelled") == 1 and "done" not in at.of(1)


_jobs = st.tuples(st.just("segment"), st.sampled_from(["fine", "scan-error", "memory"]), st.integers(0, 3))
_others = st.tuples(st.sampled_from(["cancel", "status", "load", "nothing"]), st.just(""), st.integers(0, 3))


@settings(deadline=None, max_examples=30)
@given(st.lists(_jobs | _others, max_size=12))
def test_every_request_gets_exactly_one_last_event_and_nothing_after_it(requests: list[tuple[str, str, int]]) -> None:
    at = Desk()
    for number, (command, kind, job) in enumerate(requests):
        if command == "segment":
            at.segment(number, kind)
        elif command == "cancel":
            at.ask(number, command, job=job)
        elif command == "load":
            at.ask(number, command, model="m")
        else:
            at.ask(number, command)
    at.ask("q", "quit")
    assert at.worker.end()
    for id_ in [*range(len(requests)), "q"]:
        events = at.of(id_)
        assert sum(event in LAST_EVENTS for event in events) == 1 and events[-1] in LAST_EVENTS
