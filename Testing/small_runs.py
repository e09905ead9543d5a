"""Small scans and settings with which a whole run takes a second or two; shared by all tests."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.scans import write_label_map, write_nifti
from HybridMIMLib.events import Event, EventLog
from HybridMIMLib.runs import is_alive
from HybridMIMLib.slicer_side.jobs import Job

UNICODE_NAME = "Lékař ünï 数 a b"

TINY: dict[str, dict[str, object]] = {
    "plan": {"crop": [16, 16, 16], "patch": [4, 4, 4], "region": [8, 8, 8]},
    "network": {"features": [4, 8]},
    "pretraining": {"steps": 6, "batch": 3, "projection": 8, "checkpoint_every": 2, "contrast_stage": 1},
    "finetuning": {
        "steps": 6,
        "batch": 2,
        "validate_every": 3,
        "checkpoint_every": 2,
        "validation_cases": 1,
        "precision": "float32",
    },
}
"""Settings of a tiny run."""


def write_blobs(folder: Path, count: int, labelled: bool, seed: int = 0) -> Path:
    """Small scans of noise with a bright and a dark blob; labelled ones as images/ + labels/ with classes.json."""
    for index in range(count):
        random = np.random.default_rng([seed, index])
        shape = tuple(int(n) for n in random.integers(17, 24, 3))
        places = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
        label = np.zeros(shape, dtype=np.uint8)
        for number, share in ((1, 0.3), (2, 0.7)):
            centre = np.array(shape) * share + random.uniform(-1, 1, 3)
            label[np.linalg.norm(places - centre, axis=-1) < random.uniform(4, 5)] = number
        image = np.array([100.0, 180.0, 30.0])[label] + random.normal(0, 10, shape)
        grid = Grid((shape[0], shape[1], shape[2]), np.diag([1.0, 1.0, 1.2, 1.0]))
        (folder / "images").mkdir(parents=True, exist_ok=True)
        write_nifti(folder / "images" / f"blob_{index}.nii.gz", image.astype(np.float32), grid)
        if labelled:
            (folder / "labels").mkdir(parents=True, exist_ok=True)
            write_label_map(folder / "labels" / f"blob_{index}.nii.gz", label, grid)
    if labelled:
        (folder / "classes.json").write_text('{"1": "Bright", "2": "Dark"}')
    return folder


def hybridmim(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``python -m HybridMIMLib`` as a user does, in a process of its own."""
    command = [sys.executable, "-m", "HybridMIMLib", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, **options)


def tiny_options() -> list[str]:
    """:data:`TINY` as options of the command line."""
    return [f"--{name}.{key}={value}" for name, section in TINY.items() for key, value in section.items()]


class KeptLog(EventLog):
    """Keeps the events in ``events`` in place of a file, and shows each to a function."""

    def __init__(self, on_event: Callable[[Event], None] | None = None) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._on_event = on_event

    def write(self, kind: str, **content: object) -> None:
        event: Event = {"kind": kind, **content}
        self.events.append(event)
        if self._on_event is not None:
            self._on_event(event)


def finish(job: Job, seconds: float = 120) -> Job:
    """Update a job until it has ended."""
    end = time.monotonic() + seconds
    while job.update():
        assert time.monotonic() < end, "the job does not end"
        time.sleep(0.02)
    return job


def save_threshold_model(
    folder: Path, name: str = "Threshold", channels: int = 1, normalisation: str = "percentiles"
) -> Path:
    """A model package whose answer is known: class Bright is where a scan is much brighter than its mean.

    It holds for a scan that fits into one window of 32 voxels. The second class, Never, is never found. Of several
    channels the first counts.
    """
    from HybridMIMLib.known_model import save_known_model

    return save_known_model(folder, name, channels=channels, normalisation=normalisation)


def has_ended(pid: int, seconds: float = 2) -> bool:
    """Whether a process is gone within so many seconds: a killed one takes a moment."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not is_alive(pid):
            return True
        time.sleep(0.01)
    return False
