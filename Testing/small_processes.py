"""Commands in several processes that share a run, as torchrun starts them, without the seconds that it takes.

The processes are forked from one that has loaded the libraries already. As torchrun does, this one keeps the store
through which they find each other. torchrun also ends processes that hang; here one that hangs fails the test.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from torch.distributed import TCPStore

SECONDS = 60


class Ended(NamedTuple):
    """How a process ended."""

    code: int | None
    output: str
    errors: str


class Together:
    """Processes of one command.

    Args:
        folder: for what they print.
        arguments: of the command line.
        count: of processes.
        spoilt: number of the process that cannot read a prepared scan.
    """

    def __init__(self, folder: Path, arguments: tuple[object, ...], count: int, spoilt: int | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["HybridMIMLib.pretraining.run", "HybridMIMLib.cli", "matplotlib.pyplot"])
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.store.port),
            "WORLD_SIZE": str(count),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        texts = [str(one) for one in arguments]
        self.processes: list[BaseProcess] = []
        for rank in range(count):
            environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}
            process = context.Process(target=_run, args=(folder / str(rank), texts, environment, rank == spoilt))
            process.start()
            self.processes.append(process)

    def end(self) -> list[Ended]:
        """Wait for all; one that hangs is killed and has no exit code."""
        ended = []
        for rank, process in enumerate(self.processes):
            process.join(SECONDS)
            code = process.exitcode
            process.kill()
            said = [(self.folder / f"{rank}.{kind}").read_text(encoding="utf-8") for kind in ("out", "err")]
            ended.append(Ended(code, *said))
        return ended


def _run(file: Path, arguments: list[str], environment: Mapping[str, str], spoilt: bool) -> None:
    for stream, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{file}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.update(environment)
    if spoilt:
        _spoil()
    from HybridMIMLib.cli import main

    code = main(arguments)
    sys.stdout.flush()
    raise SystemExit(code)


def _spoil() -> None:
    from HybridMIMLib.data.store import PreparedCase
    from HybridMIMLib.errors import DataError

    def refuse(case: PreparedCase, name: str) -> None:
        raise DataError("no such shelf", cure="Put it back.")

    PreparedCase._mapped = refuse  # type: ignore[method-assign, assignment]
