"""Stages in folders: done once, continued, and out of the way where they made nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from HybridMIMLib.errors import DataError, RunError
from HybridMIMLib.events import EventLog
from HybridMIMLib.stage_folders import StageFolders


def fails(path: Path) -> dict[str, Any]:
    path.mkdir(parents=True, exist_ok=True)
    (path / "plan.json").write_text("{}")
    raise DataError("x", cure="y.")


def test_a_stage_is_done_once_and_its_warnings_are_told_again(tmp_path: Path) -> None:
    log = EventLog()

    def works(path: Path) -> dict[str, Any]:
        path.mkdir()
        log.warning("odd")
        return {"value": 3}

    first = StageFolders(tmp_path, log).do("one", works)
    assert first["value"] == 3 and first["warnings"] == ["odd"] and first["seconds"] >= 0
    again = StageFolders(tmp_path, EventLog())
    assert again.is_done("one") and not again.is_done("two")
    assert again.do("one", fails) == first
    assert again.events.warnings == ["odd"] and again.seconds == {"one": first["seconds"]}


def test_what_made_nothing_is_removed(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        StageFolders(tmp_path, EventLog()).do("one", fails)
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("kept", ["checkpoint.pt", "folds/2/checkpoint.pt", "folds/1/result.json"])
def test_what_can_be_continued_stays(tmp_path: Path, kept: str) -> None:
    """A stage may have stages of its own."""
    file = tmp_path / "one" / kept
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(DataError):
        StageFolders(tmp_path, EventLog()).do("one", fails)
    assert file.exists()


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_result_that_somebody_spoilt_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "result.json").write_text(content)
    with pytest.raises(RunError, match=r"result\.json: is .* [Rr]emove the file"):
        StageFolders(tmp_path, EventLog()).do("one", fails)
