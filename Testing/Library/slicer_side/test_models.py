"""Models, as panels show them."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import save_threshold_model

from HybridMIMLib.data.model_description import read_description
from HybridMIMLib.data.model_store import add
from HybridMIMLib.runs import runs_folder
from HybridMIMLib.slicer_side.models import check_model, describe, model_name, models


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path / "ws"))
    return tmp_path / "ws"


def test_models_of_the_workspace(workspace: Path) -> None:
    assert models() == []
    folder = save_threshold_model(workspace / "runs" / "a" / "fine-tuning" / "model", "Löffel")
    assert [(one.path, one.name) for one in models()] == [(folder, "Löffel")]
    added, _ = add(save_threshold_model(workspace.parent / "given", "Gabel"))
    assert {(one.path, one.name) for one in models()} == {(folder, "Löffel"), (added.path, "Gabel")}
    assert check_model(added.path)[2] == ""
    assert runs_folder() == workspace / "runs"
    assert model_name(folder) == "Löffel"


def test_a_model_in_words(tmp_path: Path) -> None:
    folder = save_threshold_model(tmp_path / "model")
    model, text, problem = check_model(folder)
    assert problem == "" and model == read_description(folder)
    assert text == describe(read_description(folder))
    assert text == "Finds Bright, Never.\nTrained 2026-01-02, on 4 labelled scans, validation Dice 0.50."


def test_what_cannot_be_used_says_why(tmp_path: Path) -> None:
    assert check_model("") == (
        None,
        "",
        "Choose a model; if there is none, train one in the module HybridMIM Training.",
    )
    model, about, problem = check_model(tmp_path / "gone")
    assert model is None and about == "" and "gone: is not a model package" in problem
    assert model_name(tmp_path / "gone") == str(tmp_path / "gone")
    folder = save_threshold_model(tmp_path / "model")
    (folder / "models" / "model.safetensors").unlink()
    assert "model.safetensors" in check_model(folder)[2]
