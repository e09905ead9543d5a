"""The panel HybridMIM Training, by clicking: real .ui, real scene, real child processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import slicer
from SlicerHost import Host, dialogs, packages, start
from small_runs import UNICODE_NAME, save_threshold_model, write_blobs

from HybridMIMLib.runs import living_owner
from HybridMIMLib.slicer_side.models import models


@pytest.fixture
def panel(slicer_with_modules: Host, tiny: None) -> Any:
    return slicer_with_modules.open_module("HybridMIMTraining")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Folders ``unlabelled`` and ``labelled`` in one with an awkward name."""
    folder = tmp_path / f"scans {UNICODE_NAME}"
    write_blobs(folder / "unlabelled", 4, labelled=False, seed=1)
    write_blobs(folder / "labelled", 4, labelled=True, seed=2)
    return folder


def fill_in(panel: Any, scans: Path, pretraining: int = 4, finetuning: int = 4, name: str = "Blobs") -> None:
    panel.ui.unlabelledPathLineEdit.currentPath = str(scans / "unlabelled")
    panel.ui.labelledPathLineEdit.currentPath = str(scans / "labelled")
    panel.ui.modelNameLineEdit.text = name
    panel.ui.pretrainingStepsSpinBox.value = pretraining
    panel.ui.finetuningStepsSpinBox.value = finetuning


def wait_for_step(host: Host, panel: Any, step: int) -> None:
    def is_there() -> bool:
        assert panel.panel.busy, panel.ui.messageLabel.text
        progress = panel.panel.job.progress
        return progress.phase == "pretrain" and progress.step >= step

    host.wait_until(is_there, 60, f"step {step}")


def wait_for_end(host: Host, panel: Any, seconds: float = 90) -> None:
    host.wait_until(lambda: not panel.panel.busy, seconds, "the end of the run")


def test_without_folders_the_button_says_why(
    host: Host, panel: Any, scans: Path, picture: Callable[[str], None]
) -> None:
    ui = panel.ui
    assert not ui.startButton.enabled and "Choose a folder" in ui.hintLabel.text
    picture("training no folder")
    ui.labelledPathLineEdit.currentPath = str(scans / "labelled")
    assert ui.startButton.enabled and not ui.hintLabel.isVisible()
    ui.unlabelledPathLineEdit.currentPath = str(scans / "nothing here")
    assert not ui.startButton.enabled and "nothing here" in ui.hintLabel.text
    picture("training folder not there")
    ui.unlabelledPathLineEdit.currentPath = ""
    assert ui.startButton.enabled, "an emptied line is no folder, and not the one before"
    ui.labelledPathLineEdit.currentPath = ""
    assert not ui.startButton.enabled


def test_a_folder_is_browsed_for(host: Host, panel: Any, scans: Path) -> None:
    dialogs.announce("folder", str(scans / "labelled"))
    panel.ui.labelledPathLineEdit.browse()
    assert panel.parameters.node.labelledFolder == str(scans / "labelled")
    assert panel.ui.startButton.enabled


def test_the_whole_run(host: Host, panel: Any, scans: Path, picture: Callable[[str], None]) -> None:
    fill_in(panel, scans, pretraining=30, finetuning=30, name="Blobs: 数")
    ui, values = panel.ui, []

    def look() -> bool:
        values.append(ui.progressBar.value)
        rows = [ui.valuesTable.item(row, 0).text() for row in range(ui.valuesTable.rowCount)]
        if rows and rows not in tables:
            tables.append(rows)
        return not panel.panel.busy

    tables: list[list[str]] = []
    picture("training ready")
    ui.startButton.click()
    assert not ui.startButton.enabled and ui.cancelButton.enabled and ui.progressBar.isVisible()
    picture("training starting")
    wait_for_step(host, panel, 1)
    picture("training running")
    host.wait_until(look, 90, "the end of the run")
    assert any(0 < value < 1000 for value in values), "the bar has moved"
    assert any("loss: partial" in rows for rows in tables) and any("loss: dice" in rows for rows in tables)
    assert ui.messageLabel.text.startswith("The model Blobs: 数 is ready")
    assert ui.modelsTable.rowCount == 1
    assert ui.modelsTable.item(0, 0).text() == "Blobs: 数"
    assert panel.models.chosen == str(models()[0].path)
    assert ui.useModelButton.enabled and ui.startButton.enabled and not ui.cancelButton.enabled
    picture("training done")


def test_cancel_leaves_no_process_and_start_continues(
    host: Host, panel: Any, scans: Path, picture: Callable[[str], None]
) -> None:
    fill_in(panel, scans, pretraining=100_000)
    panel.ui.startButton.click()
    wait_for_step(host, panel, 4)
    job = panel.panel.job
    panel.ui.cancelButton.click()
    wait_for_end(host, panel, 20)
    assert panel.ui.messageLabel.text == "Stopped. Start continues it."
    assert not job._process.running and living_owner(job.folder) is None
    picture("training stopped")
    assert slicer.app.userSettings().value("ctkPathLineEdit/HybridMIM/labelledPathLineEdit")
    panel.ui.startButton.click()
    assert panel.panel.job.folder == job.folder
    wait_for_step(host, panel, 4)
    panel.ui.cancelButton.click()
    wait_for_end(host, panel, 20)


def test_a_killed_run_is_told(host: Host, panel: Any, scans: Path, picture: Callable[[str], None]) -> None:
    fill_in(panel, scans, pretraining=100_000)
    panel.ui.startButton.click()
    wait_for_step(host, panel, 1)
    os.kill(panel.panel.job._process.pid, 9)
    wait_for_end(host, panel, 20)
    assert "memory ran out" in panel.ui.messageLabel.text and "start it again" in panel.ui.messageLabel.text
    picture("training killed")


def test_an_error_of_the_data_is_told_with_its_cure(
    host: Host, panel: Any, scans: Path, picture: Callable[[str], None]
) -> None:
    for file in (scans / "labelled" / "labels").iterdir():
        file.write_bytes(b"not an image")
    fill_in(panel, scans)
    panel.ui.startButton.click()
    wait_for_end(host, panel)
    assert "labelled" in panel.ui.messageLabel.text
    assert panel.ui.startButton.enabled
    assert "error: " in panel.ui.logTextEdit.toPlainText()
    picture("training failed")


def test_a_run_goes_on_through_closed_scenes_and_other_modules(host: Host, panel: Any, scans: Path) -> None:
    fill_in(panel, scans, pretraining=100_000)
    panel.ui.startButton.click()
    wait_for_step(host, panel, 1)
    host.close_scene()
    assert panel.panel.busy and panel.ui.unlabelledPathLineEdit.currentPath == ""
    host.open_module("HybridMIMSegmentation")
    before = panel.panel.job.progress.step
    wait_for_step(host, panel, before + 1)
    panel.ui.cancelButton.click()
    wait_for_end(host, panel, 20)


def test_a_run_outlives_reload_and_slicer_and_is_found_again(
    host: Host, panel: Any, scans: Path, load_modules: Callable[[Host], Host]
) -> None:
    fill_in(panel, scans, pretraining=100_000)
    panel.ui.startButton.click()
    wait_for_step(host, panel, 1)
    folder, pid = panel.panel.job.folder, panel.panel.job._process.pid
    again = host.reload_module("HybridMIMTraining")
    assert again.panel.busy and again.panel.job.folder == folder
    wait_for_step(host, again, again.panel.job.progress.step + 1)
    host.close()
    assert living_owner(folder) == pid
    later = load_modules(start())
    third = later.open_module("HybridMIMTraining")
    assert third.panel.busy and third.panel.job.folder == folder
    wait_for_step(later, third, 2)
    assert third.ui.valuesTable.rowCount > 0, "what was told before is there again"
    third.ui.cancelButton.click()
    wait_for_end(later, third, 20)
    assert living_owner(folder) is None
    assert third.ui.messageLabel.text == "Stopped."


def test_a_run_that_another_slicer_started_is_found_on_entering(
    host: Host, panel: Any, scans: Path, tiny: None
) -> None:
    from HybridMIMLib.slicer_side.training import Trainer, TrainingSettings

    host.open_module("HybridMIMSegmentation")
    job = Trainer().start(TrainingSettings(str(scans / "unlabelled"), pretraining_steps=100_000))
    host.wait_until(lambda: living_owner(job.folder), 30, "the other run")
    host.open_module("HybridMIMTraining")
    assert panel.panel.busy and panel.panel.job.folder == job.folder
    panel.ui.cancelButton.click()
    wait_for_end(host, panel, 20)
    job.kill()


def test_many_warnings_do_not_fill_the_panel(host: Host, panel: Any, scans: Path) -> None:
    for index in range(5):
        (scans / "unlabelled" / "images" / f"bad_{index}.nii.gz").write_bytes(b"nothing")
    fill_in(panel, scans)
    panel.ui.startButton.click()
    wait_for_end(host, panel)
    lines = panel.ui.messageLabel.text.splitlines()
    assert lines[0].startswith("The model Blobs is ready")
    assert len([line for line in lines if line.startswith("Warning: skipped")]) == 3
    assert "more, see the log." in lines[-1]
    assert panel.ui.logTextEdit.toPlainText().count("skipped") >= 5


def test_the_scene_keeps_the_inputs(host: Host, panel: Any, scans: Path, tmp_path: Path) -> None:
    fill_in(panel, scans, pretraining=77, finetuning=66, name="Löffel")
    host.save_scene(tmp_path / "scene.mrb")
    host.close_scene()
    ui = panel.ui
    assert (ui.unlabelledPathLineEdit.currentPath, ui.modelNameLineEdit.text) == ("", "")
    assert (ui.pretrainingStepsSpinBox.value, ui.finetuningStepsSpinBox.value) == (2000, 1000)
    assert not ui.startButton.enabled
    host.load_scene(tmp_path / "scene.mrb")
    assert ui.unlabelledPathLineEdit.currentPath == str(scans / "unlabelled")
    assert ui.labelledPathLineEdit.currentPath == str(scans / "labelled")
    assert ui.modelNameLineEdit.text == "Löffel"
    assert (ui.pretrainingStepsSpinBox.value, ui.finetuningStepsSpinBox.value) == (77, 66)
    assert ui.startButton.enabled


def test_a_model_goes_to_the_other_module(host: Host, panel: Any, workspace: Path) -> None:
    save_threshold_model(workspace / "runs" / "a" / "fine-tuning" / "model", "One")
    other = save_threshold_model(workspace / "runs" / "b" / "fine-tuning" / "model", "Two")
    panel.models.show()
    assert not panel.ui.useModelButton.enabled
    names = [panel.ui.modelsTable.item(row, 0).text() for row in range(2)]
    panel.ui.modelsTable.setCurrentCell(names.index("Two"), 0)
    assert panel.ui.useModelButton.enabled
    panel.ui.useModelButton.click()
    assert host.opened == "HybridMIMSegmentation"
    segmentation = slicer.util.getModuleWidget("HybridMIMSegmentation")
    assert segmentation.ui.modelComboBox.currentText == "Two"
    assert segmentation.content.parameters.node.model == str(other)


def test_missing_packages_are_asked_for_at_start_and_never_before(
    host: Host, panel: Any, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from HybridMIMLib.slicer_side import environment

    monkeypatch.setattr(environment, "missing_packages", lambda: ["monai>=1.5"])
    fill_in(panel, scans)
    assert dialogs.shown() == []
    dialogs.announce("message", "Cancel")
    panel.ui.startButton.click()
    assert "These packages are missing: monai>=1.5." in panel.ui.messageLabel.text
    assert packages.calls() == [] and not panel.panel.busy


def test_the_logic_works_from_the_python_console(host: Host, panel: Any, scans: Path) -> None:
    job = slicer.util.getModuleLogic("HybridMIMTraining").train(
        labelled=str(scans / "labelled"), name="From the console", finetuning_steps=3
    )
    assert job.wait()["model"] == str(models()[0].path)
    assert models()[0].name == "From the console"


def test_the_self_test_of_the_module_runs(host: Host, panel: Any) -> None:
    slicer.selfTests["HybridMIMTraining"]()
