"""The curves of a long run: reading its log, thinning, and drawing, piece by piece as the panel does it.

The log is made up: a pre-training, then a fine-tuning, with the losses and metrics of real ones.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import slicer
from rows import Result, print_table

from HybridMIMLib.files import json_text
from HybridMIMLib.slicer_side.curves import LOSSES, RunCurves
from HybridMIMLib.slicer_side.plots import Chart
from HybridMIMLib.slicer_side.scene import headless_scene

LOSS_NAMES = {
    "pretrain": ("partial", "number", "location", "consistency", "contrast"),
    "finetune": ("dice", "cross_entropy"),
}
METRICS = {
    "pretrain": ("number_accuracy", "number_chance", "location_accuracy", "location_chance", "error_to_patch_mean"),
    "finetune": ("validation Liver", "validation Spleen", "validation mean"),
}


def write_log(folder: Path, events: int) -> Path:
    """A run folder with a log of so many events."""
    rng = random.Random(0)
    with open(folder / "events.jsonl", "w", encoding="utf-8") as handle:
        for phase in LOSS_NAMES:
            for line in _phase(phase, events // 2, rng):
                handle.write(json_text(line) + "\n")
    return folder


def _phase(phase: str, steps: int, rng: random.Random) -> Iterator[Mapping[str, Any]]:
    yield {"time": 1.7e9, "kind": "phase", "phase": phase, "step": 0, "steps": steps}
    for step in range(1, steps):
        event: dict[str, Any] = {
            "time": 1.7e9 + step, "kind": "progress", "phase": phase, "step": step, "steps": steps,
            "seconds_left": round(0.25 * (steps - step), 1),
        }  # fmt: skip
        event["losses"] = {name: math.exp(-step / steps) + rng.gauss(0, 0.1) for name in LOSS_NAMES[phase]}
        if step % 100 == 0:
            event["metrics"] = {name: rng.random() for name in METRICS[phase]}
        # As long as those of a run with more of everything.
        event["memory"] = {"process": 3 * 2**30, "gpu": 2**33, "gpu_used": 2**34, "gpu_total": 2**36}
        yield event


def _read(folder: Path, size: int) -> Iterator[Result]:
    curves, looks, more = RunCurves(folder), [], True
    while more:
        # Other work on the machine does not count.
        look = time.thread_time()
        more = curves.read()
        looks.append(time.thread_time() - look)
    megabytes = (folder / "events.jsonl").stat().st_size / 1e6
    what = f"read {curves.events} events ({megabytes:.0f} MB), 20 ms a look"
    told = f"longest {max(looks) * 1e3:.0f} ms; {len(looks)} looks, {sum(looks):.2f} s in all"
    yield Result(what, "no look over 50 ms", told)
    with open(folder / "events.jsonl", "a", encoding="utf-8") as handle:
        handle.write(json_text({"kind": "progress", "phase": "finetune", "step": size, "steps": size,
                                "losses": {"dice": 0.5}}) + "\n")  # fmt: skip
    look = time.thread_time()
    curves.read()
    yield Result("read one more event", "", f"{(time.thread_time() - look) * 1e3:.2f} ms")


def _draw(folder: Path, size: int) -> Iterator[Result]:
    held = headless_scene()
    slicer.mrmlScene = held.scene
    curves = RunCurves(folder)
    while curves.read():
        pass
    chart = Chart("losses", "step", "loss")
    for what in ("first drawing", "drawing again"):
        began = time.thread_time()
        series = curves.of(LOSSES)
        chart.show(series, "run")
        seconds = time.thread_time() - began
        points = max(len(one) for one in series.values())
        yield Result(f"{what}, {len(series)} curves of {points} points", "< 0.2 s", f"{seconds * 1e3:.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = write_log(Path(name), given.events)
        rows: dict[str, Callable[[int], Iterator[Result]]] = {
            "read": lambda size: _read(folder, size),
            "draw": lambda size: _draw(folder, size),
        }
        print_table(rows, rows, given.events, math.inf)


if __name__ == "__main__":
    main()
