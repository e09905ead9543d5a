"""Models, as panels show them."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import save_threshold_model

from HybridMIMLib.data.model_description import read_description
from HybridMIMLib.data.model_store import add
from HybridMIMLib.errors import ModelError
from HybridMIMLib.runs import runs_folder
from HybridMIMLib.slicer_side.models import check_model, describe, find_model, model_name, models


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
        "Choose a model; if there is none, import one, or train one in the module HybridMIM Training.",
    )
    model, about, problem = check_model(tmp_path / "gone")
    assert model is None and about == "" and "gone: is not a model package" in problem
    assert model_name(tmp_path / "gone") == str(tmp_path / "gone")
    folder = save_threshold_model(tmp_path / "model")
    (folder / "models" / "model.safetensors").unlink()
    assert "model.safetensors" in check_model(folder)[2]


def test_a_model_is_found_by_name_or_path(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no model 'liver'\. None is there yet"):
        find_model("liver")
    trained = save_threshold_model(workspace / "runs" / "a" / "fine-tuning" / "model", "Löffel")
    added, _ = add(save_threshold_model(tmp_path / "given", "Gabel"))
    assert find_model("Löffel").path == find_model("löffel").path == find_model(trained).path == trained
    assert find_model(" gabel ").path == added.path
    assert find_model(str(tmp_path / "given")).name == "Gabel"
    with pytest.raises(ModelError, match=r"Did you mean 'Gabel'\? Models are: Gabel, Löffel"):
        find_model("Gabe")
    with pytest.raises(ModelError, match="no model is named"):
        find_model(" ")
    # A folder of that name, in which Slicer happens to run, is not meant.
    (tmp_path / "Gabel").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model("Gabel").path == added.path
    with pytest.raises(ModelError, match="gone: is not a model package"):
        find_model(tmp_path / "gone")


def test_a_name_of_two_models_is_not_guessed(workspace: Path) -> None:
    folders = [save_threshold_model(workspace / "runs" / run / "model", "Löffel") for run in ("a", "b")]
    with pytest.raises(ModelError, match="2 models are called Löffel") as caught:
        find_model("Löffel")
    assert all(str(folder) in caught.value.message for folder in folders)
    save_threshold_model(workspace / "runs" / "c" / "model", "löffel")
    assert find_model("löffel").path.parent.name == "c", "the exact name counts first"
