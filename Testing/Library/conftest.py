"""What every test of the library shares."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.scans import write_label_map, write_nifti

# The networks of the tests are tiny: threads that wait for each other would cost far more than they compute. Child
# processes inherit this; a test that wants more threads says so.
os.environ["OMP_NUM_THREADS"] = "1"

REPOSITORY = Path(__file__).resolve().parents[2]
UNICODE_NAME = "Lékař ünï 数 a b"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans beside the checkout; tests that need it skip, saying why, where it is missing."""
    folder = Path(os.environ.get("HYBRIDMIM_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real scans are not at {folder} (set HYBRIDMIM_SHARED_DATA to their folder)")
    return folder


@pytest.fixture
def unicode_folder(tmp_path: Path) -> Path:
    """A folder whose name has a space, accents and a Chinese character."""
    folder = tmp_path / UNICODE_NAME
    folder.mkdir()
    return folder


TINY: dict[str, dict[str, object]] = {
    "plan": {"crop": [16, 16, 16], "patch": [4, 4, 4], "region": [8, 8, 8]},
    "network": {"features": [4, 8]},
    "pretraining": {"steps": 6, "batch": 3, "projection": 8, "checkpoint_every": 2, "contrast_stage": 1},
    "finetuning": {"steps": 6, "batch": 2, "validate_every": 3, "checkpoint_every": 2, "validation_cases": 1},
}
"""Settings with which a whole run takes a second or two."""


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


@pytest.fixture(scope="session")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``unlabelled`` (5 scans), ``labelled`` (5) and ``new`` (3), to read and not to change."""
    folder = tmp_path_factory.mktemp("blobs")
    write_blobs(folder / "unlabelled", 5, labelled=False, seed=1)
    write_blobs(folder / "labelled", 5, labelled=True, seed=2)
    write_blobs(folder / "new", 3, labelled=False, seed=3)
    return folder


def hybridmim(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``python -m HybridMIMLib`` as a user does, in a process of its own."""
    command = [sys.executable, "-m", "HybridMIMLib", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, **options)


def tiny_options() -> list[str]:
    """:data:`TINY` as options of the command line."""
    return [f"--{name}.{key}={value}" for name, section in TINY.items() for key, value in section.items()]
