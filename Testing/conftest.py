"""What every test shares: the real scans, a folder with an awkward name, small scans."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import UNICODE_NAME, write_blobs

# The networks of the tests are tiny: threads that wait for each other would cost far more than they compute. Child
# processes inherit this; a test that wants more threads says so.
os.environ["OMP_NUM_THREADS"] = "1"

# What a machine can do is noted in the workspace, and models are kept there: the tests have one of their own.
os.environ["HYBRIDMIM_WORKSPACE"] = tempfile.mkdtemp(prefix="hybridmim-tests-")
atexit.register(shutil.rmtree, os.environ["HYBRIDMIM_WORKSPACE"], ignore_errors=True)

REPOSITORY = Path(__file__).resolve().parents[1]


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


@pytest.fixture(scope="session")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``unlabelled`` (5 scans), ``labelled`` (5) and ``new`` (3), to read and not to change."""
    folder = tmp_path_factory.mktemp("blobs")
    write_blobs(folder / "unlabelled", 5, labelled=False, seed=1)
    write_blobs(folder / "labelled", 5, labelled=True, seed=2)
    write_blobs(folder / "new", 3, labelled=False, seed=3)
    return folder


@pytest.fixture
def terminable() -> Iterator[None]:
    """SIGTERM and Ctrl+C end Python, as in the commands; a background job of a shell ignores the latter."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
