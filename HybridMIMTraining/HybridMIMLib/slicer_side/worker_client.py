"""The warm worker as seen from Slicer: asked, and looked at several times a second; nothing here blocks.

    >>> client = WorkerClient(Path("worker.log"))                                             # doctest: +SKIP
    >>> client.request("load", model="model")                                                 # doctest: +SKIP
    1
    >>> client.poll()                                                                         # doctest: +SKIP
    [{'id': None, 'event': 'ready', ...}, {'id': 1, 'event': 'accepted', 'waiting': 0}]

Requests and answers are told in :mod:`HybridMIMLib.worker_protocol`.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from HybridMIMLib.slicer_side.child import Child, last_lines, library_command
from HybridMIMLib.slicer_side.jobs import why_it_died
from HybridMIMLib.worker_protocol import LAST_EVENTS, MOST_BYTES, encode

Answer = dict[str, Any]
_SECONDS_TO_TELL = 0.02


class WorkerClient:
    """A worker of its own, which ends when this process does, or :meth:`close` is called.

    Args:
        log: what it prints goes here.
        device: auto, cpu, cuda, cuda:1, mps.
        idle_seconds: after so long without a request it frees the device.

    Attributes:
        open: ids of the requests that have not got their last answer.

    Raises:
        RunError: it cannot be started.
    """

    SECONDS_TO_END = 8.0
    """How long it may take to end when it is closed, before it is killed."""

    def __init__(self, log: Path, device: str = "auto", idle_seconds: float = 300) -> None:
        options = [f"--device={device}", f"--idle_seconds={idle_seconds}", f"--parent={os.getpid()}"]
        self.log = log
        self.open: set[int] = set()
        self._child = Child(library_command("serve", options), log, pipes=True)
        assert self._child.requests is not None and self._child.answers is not None
        self._requests: IO[bytes] = self._child.requests
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._last_id, self._is_over = 0, False
        threading.Thread(target=_read, args=(self._child.answers, self._lines), daemon=True).start()

    @property
    def running(self) -> bool:
        """Whether it can be asked."""
        return not self._is_over and self._child.running

    @property
    def pid(self) -> int:
        """Number of its process."""
        return self._child.pid

    def request(self, command: str, **content: Any) -> int:
        """Ask for something; returns the id that the answers will have.

        A worker that has ended answers too: :meth:`poll` then tells that it failed, and why.
        """
        self._last_id += 1
        self.open.add(self._last_id)
        with suppress(OSError, ValueError):
            self._requests.write(encode({"id": self._last_id, "command": command, **content}))
            self._requests.flush()
        return self._last_id

    def poll(self) -> list[Answer]:
        """What it answered since the last call, in its order. Every request gets one last answer, sooner or later."""
        found = list(self._answers())
        for answer in found:
            if answer.get("event") in LAST_EVENTS:
                self.open.discard(answer.get("id", 0))
        if self._is_over:
            found += [self._lost(id_) for id_ in sorted(self.open)]
            self.open.clear()
        return found

    def end(self) -> None:
        """Have it end, without waiting; what is at work is cancelled."""
        with suppress(OSError):
            # The end of its standard input is the end of it.
            self._requests.close()

    def kill(self) -> None:
        """End it and all that it started, now; waits a moment for that."""
        self._child.kill()

    def close(self) -> None:
        """End it, and wait for that; what is at work is cancelled."""
        self.end()
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(self.SECONDS_TO_END)
        self._child.kill()

    def _answers(self) -> Iterator[Answer]:
        while not self._lines.empty():
            line = self._lines.get()
            if not line:
                self._is_over = True
                return
            # Whatever is no answer is passed over: what it prints goes to the log, but a library may know better.
            with suppress(ValueError, RecursionError):
                answer = json.loads(line)
                if isinstance(answer, dict):
                    yield answer

    def _lost(self, id_: int) -> Answer:
        # What it printed is read once the pipe is closed, a moment before the system tells how it ended.
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(_SECONDS_TO_TELL)
        said = last_lines(self.log, 4, self._child.log_begins)
        error = why_it_died(self._child.exit_code, said, f"Start it again; {self.log} tells more.")
        return {"id": id_, "event": "failed", "message": error.message, "cure": error.cure}


def _read(answers: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """Lines as they come; an empty one at the end. One that is too long comes in parts, which are no answers."""
    with suppress(OSError, ValueError):
        while line := answers.readline(MOST_BYTES):
            lines.put(line)
    lines.put(b"")
