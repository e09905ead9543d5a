"""``plan.yaml`` beside the run's other files: written, told, read back, and in nobody's way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_runs import TINY

from HybridMIMLib import finetune, prepare, pretrain
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.errors import DiskError
from HybridMIMLib.files import read_json
from HybridMIMLib.report import report
from HybridMIMLib.runs import load_settings


def test_every_stage_writes_its_plan_for_people_too(blobs: Path, tmp_path: Path) -> None:
    result = prepare(unlabelled=str(blobs / "unlabelled"), output=str(tmp_path / "p"), **TINY)
    finetune(labelled=str(blobs / "labelled"), output=str(tmp_path / "f"), **TINY)
    for folder in ("p", "f"):
        settings = load_settings(tmp_path / folder / "plan.yaml").plan
        plan = Plan.from_json(read_json(tmp_path / folder / "plan.json"))
        assert settings.spacing == list(plan.spacing) and settings.normalisation == plan.normalisation == "zscore"
        assert "treated as MR" in (tmp_path / folder / "events.jsonl").read_text(encoding="utf-8")
    assert Path(result["plan"]).is_file()


def test_an_attempt_that_failed_after_its_plan_was_written_is_not_in_the_way(blobs: Path, tmp_path: Path) -> None:
    """The store could not be written, after the plan was settled."""
    (tmp_path / "store").write_text("a file where a folder should be")
    call: dict[str, Any] = {"unlabelled": str(blobs / "unlabelled"), "output": str(tmp_path / "run")}
    fitted = {**TINY, "pretraining": {**TINY["pretraining"], "batch": 0, "steps": 2}}
    with pytest.raises(DiskError, match="store"):
        pretrain(**call, **fitted, store=str(tmp_path / "store"))
    assert (tmp_path / "run" / "plan.yaml").exists()
    assert Path(pretrain(**call, **fitted)["weights"]).is_file()


def test_info_lists_presets_and_recipes() -> None:
    from HybridMIMLib import info

    text = report("info", info())
    assert "btcv" in text and "CT of the chest" in text
