"""The warm worker: one process that keeps a model on its device and segments one scan after the other.

What is said to it and what it answers is told in :mod:`HybridMIMLib.worker_protocol`. The main thread waits for a
reason to end; others listen and work (:mod:`HybridMIMLib.worker_queue`). Importing this loads no torch: the worker
says that it is ready before the seconds that torch takes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING

import HybridMIMLib
from HybridMIMLib.config import make_run
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.parents import when_gone
from HybridMIMLib.runs import is_alive
from HybridMIMLib.worker_pipes import Pipes
from HybridMIMLib.worker_protocol import PROTOCOL
from HybridMIMLib.worker_queue import SECONDS_TO_END, SECONDS_TO_WRITE, Worker

if TYPE_CHECKING:
    from HybridMIMLib.worker_tasks import Tasks

STOPPED = 130
"""Exit code after SIGTERM or Ctrl+C."""
_SECONDS_BETWEEN_LOOKS = 0.5


def serve(device: str = "auto", idle_seconds: float = 300, parent: int | None = None) -> int:
    """Speak on standard input and output until it is time to end; returns the exit code.

    Args:
        device: auto, cpu, cuda, cuda:1, mps; for requests that name none.
        idle_seconds: after so long without a job the device is freed; the next job takes it again.
        parent: number of a process without which there is nothing to work for, besides that which started this one.

    Raises:
        SettingsError: a value cannot work, or there is no standard input or output.
    """
    _check(device, idle_seconds, parent)
    enough = threading.Event()
    # Before anything is said: who hears it may end at once, or want this to end.
    when_gone(parent, enough.set)
    pipes = Pipes(on_broken=enough.set)
    worker = Worker(pipes.send, lambda: _tasks(device), idle_seconds)
    try:
        signal.signal(signal.SIGTERM, _stop)
        about = {"protocol": PROTOCOL, "version": HybridMIMLib.__version__, "pid": os.getpid()}
        pipes.send({"id": None, "event": "ready", **about})
        worker.start()
        threading.Thread(target=_listen, args=(pipes, worker, enough), daemon=True, name="requests").start()
        # With a limit, because Windows hands on Ctrl+C only between waits.
        while not enough.wait(_SECONDS_BETWEEN_LOOKS):
            pass
        code = 0
    except KeyboardInterrupt:
        code = STOPPED
    for number in (signal.SIGTERM, signal.SIGINT):
        # It ends already.
        signal.signal(number, signal.SIG_IGN)
    # Whatever hangs, be it a pipe that is full and that nobody empties.
    last = threading.Timer(SECONDS_TO_END + SECONDS_TO_WRITE, os._exit, (code,))
    last.daemon = True
    last.start()
    if not worker.end():
        # A window that takes minutes, or a driver that hangs. What is written is written under another name first.
        sys.stderr.flush()
        os._exit(code)
    return code


def _listen(pipes: Pipes, worker: Worker, enough: threading.Event) -> None:
    for line in pipes.lines():
        if not worker.take(line):
            break
    enough.set()


def _tasks(device: str) -> Tasks:
    """Loads torch."""
    from HybridMIMLib.worker_tasks import Tasks

    return Tasks(device)


def _check(device: str, idle_seconds: float, parent: int | None) -> None:
    make_run(None, {"device": device})
    # A year; what the system can wait for is not much more.
    if not 0 < idle_seconds <= 365 * 86400:
        raise SettingsError(f"idle_seconds is {idle_seconds}", cure="Give a number of seconds above 0.")
    if parent is not None and not (0 < parent < 2**31 and is_alive(parent)):
        raise SettingsError(f"parent is {parent}, and there is no such process", cure="Give one that runs, or none.")


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
