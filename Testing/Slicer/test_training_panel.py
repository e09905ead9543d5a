"""The panel HybridMIM Training as a whole, by clicking: real .ui, real scene, real child processes.

Each section by itself is tested in the file of its name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import slicer
from SlicerHost import Host, dialogs, packages, start
from small_runs import TINY, UNICODE_NAME, finish, save_threshold_model, write_blobs

from HybridMIMLib.runs import living_owner
from HybridMIMLib.slicer_side.models import models
from HybridMIMLib.slicer_side.plan_choices import flat


@pytest.fixture
def panel(slicer_with_modules: Host) -> Any:
    return slicer_with_modules.open_module("HybridMIMTraining")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Folders ``unlabelled`` and ``labelled`` in one with an awkward name."""
    folder = tmp_path / f"scans {UNICODE_NAME}"
    write_blobs(folder / "unlabelled", 4, labelled=False, seed=1)
    write_blobs(folder / "labelled", 4, labelled=True, seed=2)
    return folder


def fill_in(panel: Any, scans: Path, pretraining: int = 4, finetuning: int = 4, name: str = "Blobs") -> None:
    """Choose the folders, and a plan of few steps with a network of a few numbers, as a scene would bring it."""
    panel.ui.dataUnlabelledPathLineEdit.currentPath = str(scans / "unlabelled")
    panel.ui.dataLabelledPathLineEdit.currentPath = str(scans / "labelled")
    steps = {"pretraining.steps": pretraining, "finetuning.steps": finetuning, "name": name}
    panel.content.parameters.node.plan = json.dumps({"base": "automatic", "changes": {**flat(TINY), **steps}})


def wait_for_step(host: Host, panel: Any, step: int) -> None:
    def is_there() -> bool:
        assert panel.content.work.busy, panel.ui.workMessageLabel.text
        progress = panel.content.work.job.progress
        return progress.phase == "pretrain" and progress.step >= step

    host.wait_until(is_there, 60, f"step {step}")


def wait_for_end(host: Host, panel: Any, seconds: float = 90) -> None:
    host.wait_until(lambda: not panel.content.work.busy, seconds, "the end of the run")


def pause(host: Host, panel: Any) -> None:
    panel.ui.workPauseButton.click()
    wait_for_end(host, panel, 30)


def wait_for_lookups(host: Host, panel: Any) -> None:
    host.wait_until(lambda: not panel.content.lookups.busy, 20, "what a fine-tuning can start from")


def starts(panel: Any) -> list[str]:
    """What a fine-tuning can start from, as the list has it."""
    combo = panel.ui.startFromComboBox
    return [combo.itemText(number) for number in range(combo.count)]


def test_without_folders_each_button_says_why(
    host: Host, panel: Any, scans: Path, picture: Callable[[str], None]
) -> None:
    ui = panel.ui
    buttons = (ui.workPretrainButton, ui.workFinetuneButton, ui.workTrainButton, ui.workStudyButton)
    assert not any(button.enabled for button in buttons)
    assert all("hoose" in button.toolTip for button in buttons), [button.toolTip for button in buttons]
    assert ui.workHintLabel.isVisible()
    picture("training no folder")
    ui.dataLabelledPathLineEdit.currentPath = str(scans / "labelled")
    assert [button.enabled for button in buttons] == [False, True, False, False]
    ui.dataUnlabelledPathLineEdit.currentPath = str(scans / "nothing here")
    assert not ui.workPretrainButton.enabled and "nothing here" in ui.workPretrainButton.toolTip
    ui.dataUnlabelledPathLineEdit.currentPath = str(scans / "unlabelled")
    assert all(button.enabled for button in buttons) and not ui.workHintLabel.isVisible()
    picture("training ready")


def test_a_wrong_plan_keeps_everything_from_starting(host: Host, panel: Any, scans: Path) -> None:
    fill_in(panel, scans)
    assert panel.ui.workTrainButton.enabled, panel.ui.workTrainButton.toolTip
    node = panel.content.parameters.node
    node.plan = json.dumps({"base": "automatic", "changes": {"pretraining.steps": -3}})
    assert not panel.ui.workTrainButton.enabled
    assert "-3" in panel.ui.workTrainButton.toolTip


def test_pretrain_then_finetune_from_it_in_two_clicks(
    host: Host, panel: Any, scans: Path, picture: Callable[[str], None]
) -> None:
    fill_in(panel, scans, name="Blobs: 数")
    ui = panel.ui
    ui.workPretrainButton.click()
    wait_for_end(host, panel)
    assert ui.workMessageLabel.text.startswith("Pre-trained."), ui.workMessageLabel.text
    pretrained = panel.content.work.job.folder
    wait_for_lookups(host, panel)
    assert starts(panel) == ["Nothing: from scratch", pretrained.name]
    assert ui.startFromComboBox.currentText == pretrained.name, "what was just learnt is chosen by itself"
    assert panel.content.parameters.node.startFrom == str(pretrained)
    picture("training pre-trained")
    ui.workFinetuneButton.click()
    wait_for_end(host, panel)
    assert ui.workMessageLabel.text.startswith("The model Blobs: 数 is ready"), ui.workMessageLabel.text
    job = panel.content.work.job
    assert "from scratch" not in job.result["loaded"] and job.result["model"] == str(models()[0].path)
    ui.startFromComboBox.setCurrentIndex(0)
    ui.startFromComboBox.activated.emit(0)
    assert panel.content.parameters.node.startFrom == ""
    ui.workFinetuneButton.click()
    wait_for_end(host, panel)
    assert panel.content.work.job.result["loaded"] == "from scratch"


def test_both_at_once_make_a_model_that_goes_to_the_other_module(host: Host, panel: Any, scans: Path) -> None:
    other = save_threshold_model(scans / "another model", "Other")
    fill_in(panel, scans)
    panel.ui.workTrainButton.click()
    assert not panel.ui.workTrainButton.enabled and panel.ui.workPauseButton.enabled
    wait_for_end(host, panel)
    [made] = models()
    panel.content._use_model(made.path)
    assert host.opened == "HybridMIMSegmentation"
    segmentation = slicer.util.getModuleWidget("HybridMIMSegmentation")
    assert segmentation.content.parameters.node.model == str(made.path) != str(other)


def test_a_paused_run_is_resumed_where_it_was(host: Host, panel: Any, scans: Path) -> None:
    fill_in(panel, scans, pretraining=100_000)
    panel.ui.workPretrainButton.click()
    wait_for_step(host, panel, 4)
    job = panel.content.work.job
    pause(host, panel)
    reached = job.progress.step
    assert not job._process.running and living_owner(job.folder) is None
    panel.ui.workResumeButton.click()
    host.wait_until(lambda: panel.content.work.jobs.busy, 30, "the run goes on")
    assert panel.content.work.job.folder == job.folder
    wait_for_step(host, panel, reached + 1)
    pause(host, panel)


def test_a_killed_run_is_told_and_can_be_resumed(host: Host, panel: Any, scans: Path) -> None:
    fill_in(panel, scans, pretraining=100_000)
    panel.ui.workPretrainButton.click()
    wait_for_step(host, panel, 3)
    os.kill(panel.content.work.job._process.pid, 9)
    wait_for_end(host, panel, 20)
    assert "memory ran out" in panel.ui.workMessageLabel.text
    assert panel.ui.workResumeButton.enabled


def test_an_error_of_the_data_is_told_with_its_cure(
    host: Host, panel: Any, scans: Path, picture: Callable[[str], None]
) -> None:
    for file in (scans / "labelled" / "labels").iterdir():
        file.write_bytes(b"not an image")
    fill_in(panel, scans)
    panel.ui.workFinetuneButton.click()
    wait_for_end(host, panel)
    assert "labelled" in panel.ui.workMessageLabel.text
    assert "error: " in panel.ui.workLogTextEdit.toPlainText()
    picture("training failed")


def test_a_run_goes_on_through_closed_scenes_and_other_modules(host: Host, panel: Any, scans: Path) -> None:
    fill_in(panel, scans, pretraining=100_000)
    panel.ui.workPretrainButton.click()
    wait_for_step(host, panel, 1)
    host.close_scene()
    assert panel.content.work.busy and panel.ui.dataUnlabelledPathLineEdit.currentPath == ""
    host.open_module("HybridMIMSegmentation")
    wait_for_step(host, panel, panel.content.work.job.progress.step + 1)
    pause(host, panel)


def test_a_run_outlives_reload_and_slicer_and_is_found_again(
    host: Host, panel: Any, scans: Path, load_modules: Callable[[Host], Host]
) -> None:
    fill_in(panel, scans, pretraining=100_000)
    panel.ui.workPretrainButton.click()
    wait_for_step(host, panel, 1)
    folder, pid = panel.content.work.job.folder, panel.content.work.job._process.pid
    again = host.reload_module("HybridMIMTraining")
    assert again.content.work.busy and again.content.work.job.folder == folder
    wait_for_step(host, again, again.content.work.job.progress.step + 1)
    host.close()
    assert living_owner(folder) == pid
    later = load_modules(start())
    third = later.open_module("HybridMIMTraining")
    assert third.content.work.busy and third.content.work.job.folder == folder
    wait_for_step(later, third, 2)
    pause(later, third)
    assert living_owner(folder) is None


def test_a_run_that_was_begun_just_before_a_reload_is_found(host: Host, panel: Any, scans: Path) -> None:
    fill_in(panel, scans, pretraining=100_000)
    panel.ui.workPretrainButton.click()
    folder = panel.content.work.job.folder
    again = host.reload_module("HybridMIMTraining")
    assert not again.content.work.busy, "it has not said yet that it is at work"
    host.wait_until(lambda: again.content.work.busy, 60, "the run is followed")
    assert again.content.work.job.folder == folder
    pause(host, again)


def test_a_run_that_was_cancelled_before_it_had_begun_is_not_offered_for_resuming(
    host: Host, panel: Any, scans: Path
) -> None:
    fill_in(panel, scans)
    panel.ui.workPretrainButton.click()
    dialogs.announce("message", "OK")
    panel.ui.workCancelButton.click()
    wait_for_end(host, panel, 30)
    assert panel.ui.workMessageLabel.text == "Stopped before it had begun."
    assert not panel.ui.workResumeButton.enabled and panel.ui.workPretrainButton.enabled


def test_a_finetuning_from_what_is_not_there_does_not_start(host: Host, panel: Any, scans: Path) -> None:
    fill_in(panel, scans)
    node, ui = panel.content.parameters.node, panel.ui
    node.startFrom = str(scans / "gone")
    assert not ui.workFinetuneButton.enabled and str(scans / "gone") in ui.workFinetuneButton.toolTip
    assert ui.workPretrainButton.enabled and ui.workTrainButton.enabled and ui.workStudyButton.enabled
    node.startFrom = ""
    assert ui.workFinetuneButton.enabled
    (scans / "published.safetensors").touch()
    weights = {**flat(TINY), "weights": str(scans / "published.safetensors")}
    node.plan = json.dumps({"base": "automatic", "changes": weights})
    assert ui.workFinetuneButton.enabled and ui.workPretrainButton.enabled, ui.workFinetuneButton.toolTip
    assert not ui.workTrainButton.enabled and "Weights" in ui.workTrainButton.toolTip
    assert starts(panel) == [f"Weights of the plan: {scans / 'published.safetensors'}"]


def test_a_pretraining_that_was_deleted_is_offered_no_more(host: Host, panel: Any, scans: Path) -> None:
    fill_in(panel, scans)
    panel.ui.workPretrainButton.click()
    wait_for_end(host, panel)
    wait_for_lookups(host, panel)
    folder, runs = panel.content.work.job.folder, panel.content.runs
    panel.ui.runsSection.collapsed = False
    host.wait_until(lambda: folder in runs.runs, 20, "the run in the list")
    runs.choose(folder)
    host.wait_until(lambda: panel.ui.runsDeleteButton.enabled, 20, "what can be done with it")
    dialogs.announce("message", "OK")
    panel.ui.runsDeleteButton.click()
    host.wait_until(lambda: not runs.busy, 20, "the deletion")
    wait_for_lookups(host, panel)
    assert starts(panel) == ["Nothing: from scratch", f"{folder} (not found in the workspace)"]
    assert not panel.ui.workFinetuneButton.enabled and "is not there" in panel.ui.workFinetuneButton.toolTip


def test_a_paused_run_that_was_deleted_is_not_offered_for_resuming(host: Host, panel: Any, scans: Path) -> None:
    fill_in(panel, scans, pretraining=100_000)
    panel.ui.workPretrainButton.click()
    wait_for_step(host, panel, 1)
    pause(host, panel)
    assert panel.ui.workResumeButton.enabled
    shutil.rmtree(panel.content.work.job.folder)
    panel.content.enter()
    assert not panel.ui.workResumeButton.enabled and "Nothing was paused" in panel.ui.workResumeButton.toolTip


def test_a_run_that_another_slicer_started_is_found_on_entering(host: Host, panel: Any, scans: Path) -> None:
    host.open_module("HybridMIMSegmentation")
    run = slicer.util.getModuleLogic("HybridMIMTraining").pretrain(
        str(scans / "unlabelled"), **{**small(), "pretraining": {**TINY["pretraining"], "steps": 100_000}}
    )
    host.wait_until(lambda: living_owner(run.folder), 30, "the other run")
    host.open_module("HybridMIMTraining")
    assert panel.content.work.busy and panel.content.work.job.folder == run.folder
    pause(host, panel)
    assert run.wait(20) == "stopped"


def test_the_scene_keeps_what_was_chosen(host: Host, panel: Any, scans: Path, tmp_path: Path) -> None:
    fill_in(panel, scans, pretraining=77, finetuning=66, name="Löffel")
    panel.content.parameters.node.startFrom = str(scans / "a pre-training")
    host.save_scene(tmp_path / "scene.mrb")
    host.close_scene()
    content = panel.content
    assert (content.data.unlabelled, content.data.labelled, content.plan.options()) == ("", "", {})
    assert not panel.ui.workTrainButton.enabled
    host.load_scene(tmp_path / "scene.mrb")
    assert (content.data.unlabelled, content.data.labelled) == (str(scans / "unlabelled"), str(scans / "labelled"))
    options = content.plan.options()
    assert options["name"] == "Löffel" and str(options["pretraining.steps"]) == "77"
    assert panel.ui.workTrainButton.enabled
    assert panel.ui.startFromComboBox.currentText.endswith("(not found in the workspace)")


def test_what_is_typed_into_the_plan_goes_into_the_scene_and_the_run(host: Host, panel: Any, scans: Path) -> None:
    fill_in(panel, scans)
    before = panel.content.parameters.node.plan
    panel.content.plan._choices.set("seed", "7")
    panel.content._plan_changed()
    assert panel.content.parameters.node.plan != before
    panel.ui.workPretrainButton.click()
    wait_for_end(host, panel)
    settings = (panel.content.work.job.folder / "run.yaml").read_text()
    assert "seed: 7" in settings and "- 16" in settings


def test_missing_packages_are_asked_for_at_start_and_never_before(
    host: Host, panel: Any, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from HybridMIMLib.slicer_side import environment

    monkeypatch.setattr(environment, "missing_packages", lambda: ["monai>=1.5"])
    fill_in(panel, scans)
    assert dialogs.shown() == []
    dialogs.announce("message", "Cancel")
    panel.ui.workTrainButton.click()
    assert "These packages are missing: monai>=1.5." in panel.ui.workMessageLabel.text
    assert packages.calls() == [] and not panel.content.work.busy


def small() -> dict[str, Any]:
    """Settings of a tiny network, for the console."""
    return {name: dict(section) for name, section in TINY.items() if name in ("plan", "network")}


def test_the_logic_works_from_the_python_console(host: Host, panel: Any, scans: Path) -> None:
    logic = slicer.util.getModuleLogic("HybridMIMTraining")
    first = logic.pretrain(scans / "unlabelled", pretraining=dict(TINY["pretraining"]), **small())
    assert first.wait(90) == "finished"
    second = logic.finetune(
        str(scans / "labelled"),
        weights=first,
        name="From the console",
        finetuning=dict(TINY["finetuning"]),
        **small(),
    )
    second.wait(90)
    assert second.model == models()[0].path and models()[0].name == "From the console"
    assert any(event["kind"] == "progress" for event in second.events())
    assert finish(second.job).result["loaded"] != "from scratch"
