"""The folder that holds a patient's scan: it goes, whatever happens."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

import slicer

from HybridMIMLib.errors import DiskError
from HybridMIMLib.slicer_side import job_folder
from HybridMIMLib.slicer_side.job_folder import JobFolder, temporary_root


@pytest.fixture(autouse=True)
def root(unicode_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(unicode_folder))
    return unicode_folder


def test_nobody_else_may_look_into_it_and_it_goes(root: Path) -> None:
    folder = JobFolder()
    assert folder.path.parent == root and folder.path.stat().st_mode & 0o077 == 0
    (folder.path / "below").mkdir()
    (folder.path / "below" / "scan.nrrd").touch()
    end = time.monotonic() + 10
    while not folder.is_removed():
        assert time.monotonic() < end
    assert list(root.iterdir()) == []
    folder.remove()


def test_what_a_killed_process_left_is_removed_by_the_next_job(root: Path) -> None:
    gone, alive = f"{job_folder._PREFIX}999999999-abc", f"{job_folder._PREFIX}{os.getppid()}-abc"
    other, elsewhere = f"{job_folder._PREFIX}x-abc", "hybridmim-another_machine-999999999-abc"
    for name in (gone, alive, other, elsewhere):
        (root / name).mkdir()
        (root / name / "scan.nrrd").touch()
    folder = JobFolder()
    end = time.monotonic() + 10
    while (root / gone).exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert {one.name for one in root.iterdir()} == {alive, other, elsewhere, folder.path.name}
    folder.remove()


def test_without_a_place_the_folder_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(root / "file"))
    with pytest.raises(DiskError, match="no folder can be made there"):
        JobFolder()


def test_it_is_where_the_user_of_slicer_wants_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Application:
        temporaryPath = str(root / "of Slicer")  # noqa: N815

    assert temporary_root() == root
    monkeypatch.setattr(slicer, "app", Application, raising=False)
    assert temporary_root() == root / "of Slicer"
