"""Run folders in every state that a list of runs meets, made in milliseconds and without any training."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from HybridMIMLib.config import Run
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import write_json
from HybridMIMLib.runs import RunFolder

Work = Callable[[EventLog], None]

AT_WORK = (
    "import sys, time, pathlib, HybridMIMLib.runs as r\n"
    "from HybridMIMLib.config import Run\n"
    "run = pathlib.Path(sys.argv[1])\n"
    "r._is_command = lambda: {is_command}\n"
    "with r.RunFolder.open('pretrain', Run(unlabelled=sys.argv[2], output=str(run))).at_work() as events:\n"
    "    events.phase('pretrain', 100).progress(7, {{'dice': 0.5}})\n"
    "    print('at work', flush=True)\n"
    "    while not (run / 'go on').exists(): time.sleep(0.01)\n"
)


def trained(events: EventLog) -> None:
    """What a fine-tuning of ten steps tells."""
    phase = events.phase("finetune", 10)
    for step, dice in ((5, 0.7), (8, 0.9), (10, 0.8)):
        phase.progress(step, {"dice": 1 - dice})
        phase.progress(step, metrics={"validation Liver": dice, "validation mean": dice})


def make_run(
    folder: Path,
    command: str = "finetune",
    work: Work = trained,
    result: dict[str, Any] | None = None,
    error: BaseException | None = None,
    **settings: Any,
) -> Path:
    """A run on which nobody works any more.

    Args:
        work: what it told.
        result: what it made; None: it is not finished.
        error: that ended it.
    """
    run = RunFolder.open(command, Run(output=str(folder), **settings))
    with suppress(KeyboardInterrupt, Exception), run.at_work() as events:
        work(events)
        if error is not None:
            raise error
        if result is None:
            raise KeyboardInterrupt
        run.finish(result)
    return folder


def make_finished(folder: Path, dice: float = 0.8, **settings: Any) -> Path:
    """A finished fine-tuning; the model is none that could be used."""
    model = folder / "model"
    make_run(folder, result={"model": str(model), "validation": {"Liver": dice, "mean": dice}}, **settings)
    (model / "configs").mkdir(parents=True)
    write_json(model / "configs" / "metadata.json", {})
    return folder


def make_dead(folder: Path, **settings: Any) -> Path:
    """A run whose process was killed."""
    child = start_at_work(folder, **settings)
    child.kill()
    child.wait()
    return folder


def start_at_work(folder: Path, unlabelled: Path | str = "scans", is_command: bool = True) -> subprocess.Popen[str]:
    """A process that works on a run until there is a file ``go on`` in it; it does when this returns."""
    program = AT_WORK.format(is_command=is_command)
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(folder), str(unlabelled)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "at work\n"
    return child
