"""The worker as a panel asks it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from HybridMIMLib.errors import RunError
from HybridMIMLib.slicer_side import worker_client
from HybridMIMLib.slicer_side.worker_client import WorkerClient

SECONDS = 30


def until(client: WorkerClient, is_there: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """The answers up to the one that was waited for."""
    found: list[dict[str, Any]] = []
    end = time.monotonic() + SECONDS
    while not is_there(found):
        assert time.monotonic() < end, found
        found += client.poll()
        time.sleep(0.01)
    return found


def test_it_is_asked_and_answers_and_ends(unicode_folder: Path) -> None:
    client = WorkerClient(unicode_folder / "log.txt", device="cpu")
    began = time.monotonic()
    ids = [client.request("status"), client.request("dance", model="数")]
    assert client.poll() is not None and time.monotonic() - began < 0.5 and client.open == set(ids)
    found = until(client, lambda _: not client.open)
    assert [one["event"] for one in found] == ["ready", "done", "refused"]
    assert [one["id"] for one in found] == [None, *ids] and "'dance'" in found[-1]["message"]
    client.close()
    assert not client.running and (unicode_folder / "log.txt").read_text() == ""


def test_a_worker_that_dies_fails_what_it_was_asked_and_will_be_asked(tmp_path: Path) -> None:
    client = WorkerClient(tmp_path / "log.txt", device="cpu")
    until(client, lambda found: len(found) > 0)
    client._child._process.kill()
    client._child._process.wait()
    (tmp_path / "log.txt").write_text("the last words\n")
    id_ = client.request("status")
    (answer,) = until(client, lambda found: len(found) > 0)
    assert (answer["id"], answer["event"]) == (id_, "failed")
    assert "was killed by the system, most often because memory ran out" in answer["message"]
    again = client.request("status")
    assert [one["id"] for one in until(client, lambda found: len(found) > 0)] == [again]
    assert not client.open and not client.running
    client.close()


def test_the_last_words_of_a_worker_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys; print('the last words', file=sys.stderr); sys.exit(5)"
    monkeypatch.setattr(worker_client, "library_command", lambda *_: [sys.executable, "-c", program])
    client = WorkerClient(tmp_path / "log.txt")
    client.request("status")
    (answer,) = until(client, lambda found: len(found) > 0)
    assert "exit code 5" in answer["message"] and "the last words" in answer["message"]
    assert str(tmp_path / "log.txt") in answer["cure"]
    client.close()


def test_a_worker_that_cannot_start_says_why_in_its_answer(tmp_path: Path) -> None:
    client = WorkerClient(tmp_path / "log.txt", device="gpu")
    id_ = client.request("load", model="m")
    (answer,) = until(client, lambda found: len(found) > 0)
    assert answer["id"] == id_ and "device is 'gpu'" in answer["message"]
    client.close()


def test_a_python_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_client, "library_command", lambda *_: [str(tmp_path / "no-python")])
    with pytest.raises(RunError, match="no-python"):
        WorkerClient(tmp_path / "log.txt")
