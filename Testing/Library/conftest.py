"""What every test of the library shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
