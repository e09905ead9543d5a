"""The worker of this process: started by the first request, kept warm for the next, started again if it died.

    >>> asked = warm_worker().ask("load", model="/models/liver")                              # doctest: +SKIP
    >>> while asked.open:                                                                     # doctest: +SKIP
    ...     for answer in asked.take():
    ...         print(answer)

There is one for the whole of Slicer, so that a model is on the graphics card once, whoever asks. It frees its device
when nobody asked for a while, and ends with Slicer. Everything here is for the GUI's thread, and nothing blocks it.
"""

from __future__ import annotations

import atexit
import itertools
import os
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from HybridMIMLib.config import workspace
from HybridMIMLib.runs import is_alive
from HybridMIMLib.slicer_side.child import last_lines
from HybridMIMLib.slicer_side.worker_client import Answer, WorkerClient
from HybridMIMLib.worker_protocol import LAST_EVENTS

IDLE_SECONDS = 300.0
"""After so long without a request the device is freed."""

_WITHOUT_PACKAGES = "a package is missing or broken"
"""How the worker says that it could not import what it needs; what is installed later is seen by a new one alone."""


_NUMBERS = itertools.count(1)


class Request:
    """Something that the worker was asked for.

    Attributes:
        id: of the request.
        open: whether its last answer has not been taken yet.
    """

    def __init__(self, session: _Session, id_: int) -> None:
        self.id, self.open = id_, True
        self._session = session
        self._answers: deque[Answer] = deque()

    def take(self) -> list[Answer]:
        """What was answered since the last call; the last answer is one of done, failed, cancelled, refused."""
        self._session.look()
        found = list(self._answers)
        self._answers.clear()
        self.open = self.open and not any(one.get("event") in LAST_EVENTS for one in found)
        return found

    def cancel(self) -> None:
        """Ask for its end; that comes with the next window at the latest."""
        if self.open:
            self._session.client.request("cancel", job=self.id)

    def kill(self) -> None:
        """End the whole worker now, for one that does not obey; whatever else it was asked has failed then."""
        self._session.is_over = True
        # It waits a moment until the process has gone.
        threading.Thread(target=self._session.client.kill, daemon=True, name="kill").start()

    def last_lines(self) -> list[str]:
        """What the worker printed last: no answers, but what libraries say, and what it died of."""
        return last_lines(self._session.client.log, 20)

    def put(self, answer: Answer) -> None:
        """Hand over an answer."""
        self._answers.append(answer)


class _Session:
    """One process of the worker, and what it was asked."""

    def __init__(self, client: WorkerClient) -> None:
        self.client, self.is_over = client, False
        self._requests: dict[int, Request] = {}

    def ask(self, command: str, content: dict[str, Any]) -> Request:
        asked = Request(self, self.client.request(command, **content))
        self._requests[asked.id] = asked
        return asked

    def look(self) -> None:
        """Hand each answer to whom it is for."""
        for answer in self.client.poll():
            id_ = answer.get("id")
            is_last = answer.get("event") in LAST_EVENTS
            asked = self._requests.get(id_) if isinstance(id_, int) else None
            if asked is not None:
                asked.put(answer)
                if is_last:
                    del self._requests[asked.id]
            if is_last and str(answer.get("message", "")).startswith(_WITHOUT_PACKAGES):
                self.is_over = True
                self.client.end()


class WarmWorker:
    """A worker that is there whenever it is asked; see :func:`warm_worker` for the one to use."""

    def __init__(self) -> None:
        self._session: _Session | None = None
        self._log: Path | None = None
        atexit.register(self.close)

    @property
    def running(self) -> bool:
        """Whether it has been started and can be asked."""
        return self._session is not None and not self._session.is_over and self._session.client.running

    @property
    def pid(self) -> int | None:
        """Number of its process, or None while it does not run."""
        return self._session.client.pid if self._session is not None and self.running else None

    def start(self) -> None:
        """Have it start, so that it is ready sooner when it is asked.

        Raises:
            HybridMIMError: it cannot be started.
        """
        self._living()

    def ask(self, command: str, **content: Any) -> Request:
        """Ask for something; see :mod:`HybridMIMLib.worker_protocol`.

        Raises:
            HybridMIMError: it cannot be started.
        """
        return self._living().ask(command, content)

    def close(self) -> None:
        """Have it end, if it runs; nobody waits for that, and the next request starts another one."""
        if self._session is not None:
            self._session.client.end()
            self._session = None
        if self._log is not None:
            with suppress(OSError):
                self._log.unlink()

    def _living(self) -> _Session:
        if self._session is None or not self.running:
            self.close()
            self._log = _new_log()
            self._session = _Session(WorkerClient(self._log, idle_seconds=IDLE_SECONDS))
        return self._session


_shared: WarmWorker | None = None


def warm_worker() -> WarmWorker:
    """The worker of this process."""
    global _shared
    if _shared is None:
        _shared = WarmWorker()
    return _shared


def _log_folder() -> Path:
    return workspace() / "worker"


def _new_log() -> Path:
    """A log of this process; those of processes that were killed are removed."""
    for old in _log_folder().glob("*.log"):
        with suppress(ValueError, OSError):
            if not is_alive(int(old.stem.partition("-")[0])):
                old.unlink()
    return _log_folder() / f"{os.getpid()}-{next(_NUMBERS)}.log"
