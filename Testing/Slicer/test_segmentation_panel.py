"""The panel HybridMIM Segmentation, by clicking: real .ui, real scene, real child processes."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qt
import slicer
from SlicerHost import Host, dialogs, packages
from small_panel import (
    BOX,
    add_box,
    apply_and_wait,
    choose,
    contents,
    import_entry,
    model,
    panel,
    segmentations,
)
from small_runs import save_threshold_model

from HybridMIMLib.data.model_description import read_description
from HybridMIMLib.slicer_side.segments import ijk_to_ras, label_array
from HybridMIMLib.slicer_side.warm_worker import warm_worker

__all__ = ["model", "panel"]


def test_without_input_the_button_says_why(host: Host, panel: Any, picture: Callable[[str], None]) -> None:
    assert not panel.ui.applyButton.enabled
    assert "Choose a volume" in panel.ui.hintLabel.text and panel.ui.hintLabel.isVisible()
    assert panel.ui.applyButton.toolTip == panel.ui.hintLabel.text
    picture("segmentation no volume")
    choose(panel, add_box())
    assert panel.ui.applyButton.enabled and not panel.ui.hintLabel.isVisible()
    picture("segmentation ready")


def test_without_a_model_the_button_says_why(slicer_with_modules: Host, picture: Callable[[str], None]) -> None:
    add_box()
    panel = slicer_with_modules.open_module("HybridMIMSegmentation")
    assert panel.ui.inputVolumeSelector.currentNode().GetName() == "Scan 1", "the only volume is chosen"
    assert not panel.ui.applyButton.enabled
    assert "train one in the module HybridMIM Training" in panel.ui.hintLabel.text
    picture("segmentation no model")


def test_a_volume_becomes_a_segmentation(host: Host, panel: Any, model: Path, picture: Callable[[str], None]) -> None:
    volume = add_box()
    choose(panel, volume)
    assert panel.ui.modelComboBox.currentText == "Box 数"
    assert "Finds Bright, Never." in panel.ui.modelInfoLabel.text
    panel.ui.applyButton.click()
    assert not panel.ui.applyButton.enabled and panel.ui.cancelButton.enabled
    assert panel.ui.progressBar.isVisible()
    picture("segmentation running")
    host.wait_until(lambda: not panel.content.jobs.busy, 60, "the segmentation")
    assert panel.ui.messageLabel.text == "Made the segmentation Scan 1 Box 数. Not found: Never."
    assert panel.ui.applyButton.enabled and not panel.ui.cancelButton.enabled
    picture("segmentation done")
    [node] = segmentations()
    classes = read_description(model).classes
    found = label_array(node, volume, classes)
    assert (found[BOX] == 3).mean() > 0.9 and (found != 0).sum() < 1.1 * (found[BOX] != 0).size
    segment = node.GetSegmentation().GetNthSegment(0)
    assert segment.GetName() == "Bright"
    assert segment.GetColor() == pytest.approx((0.9, 0.2, 0.1))
    assert node.GetDisplayNode() is not None
    assert [type(one).__name__ for one in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")] == [
        "vtkMRMLScalarVolumeNode"
    ]


def test_two_segmentations_after_another(host: Host, panel: Any) -> None:
    first, second = add_box("Scan 1"), add_box("Scan 2")
    for volume in (first, second, second):
        choose(panel, volume)
        apply_and_wait(host, panel)
    names = [node.GetName() for node in segmentations()]
    assert len(set(names)) == 3 and names[0].startswith("Scan 1") and names[1].startswith("Scan 2")


def test_cancel_leaves_the_scene_as_it_was_and_no_process(
    host: Host, panel: Any, picture: Callable[[str], None]
) -> None:
    choose(panel, add_box())
    before = contents()
    panel.ui.applyButton.click()
    panel.ui.cancelButton.click()
    assert not panel.ui.cancelButton.enabled and panel.ui.statusLabel.text == "Stopping…"
    host.wait_until(lambda: not panel.content.jobs.busy, 20, "the end")
    assert panel.ui.messageLabel.text == "Stopped."
    assert contents() == before
    picture("segmentation stopped")
    apply_and_wait(host, panel)
    assert len(segmentations()) == 1


def test_a_killed_process_is_told(host: Host, panel: Any, picture: Callable[[str], None]) -> None:
    choose(panel, add_box())
    before = contents()
    panel.ui.applyButton.click()
    host.wait_until(lambda: panel.content.jobs.job._is_open, 20, "the worker to be asked")
    os.kill(warm_worker().pid, 9)
    host.wait_until(lambda: not panel.content.jobs.busy, 20, "the end")
    assert "memory ran out" in panel.ui.messageLabel.text and "Close other programs" in panel.ui.messageLabel.text
    assert "color" in panel.ui.messageLabel.styleSheet
    assert contents() == before
    picture("segmentation failed")


def test_garbage_from_the_process_does_not_hurt(host: Host, panel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from HybridMIMLib.slicer_side import worker_client

    program = "import os, sys; sys.stdin.readline(); os.write(1, os.urandom(5000) + b'\\n[[\\n'); sys.exit(0)"
    warm_worker().close()
    monkeypatch.setattr(worker_client, "library_command", lambda *_: [sys.executable, "-c", program])
    choose(panel, add_box())
    before = contents()
    apply_and_wait(host, panel, 20)
    assert "exit code 0 and no result" in panel.ui.messageLabel.text
    assert contents() == before


def test_a_model_that_has_gone_is_named(host: Host, panel: Any, model: Path, picture: Callable[[str], None]) -> None:
    choose(panel, add_box())
    shutil.rmtree(model)
    panel.ui.applyButton.click()
    assert "is not a model package" in panel.ui.messageLabel.text and str(model) in panel.ui.messageLabel.text
    assert not panel.content.jobs.busy
    picture("segmentation model gone")
    host.open_module("HybridMIMTraining")
    host.open_module("HybridMIMSegmentation")
    assert not panel.ui.applyButton.enabled and "is not a model package" in panel.ui.hintLabel.text


@pytest.mark.parametrize("how", ["deleted", "scene closed"])
def test_an_input_that_goes_while_it_runs(host: Host, panel: Any, how: str) -> None:
    volume = add_box()
    choose(panel, volume)
    panel.ui.applyButton.click()
    slicer.mrmlScene.RemoveNode(volume) if how == "deleted" else host.close_scene()
    host.wait_until(lambda: not panel.content.jobs.busy, 20, "the end")
    assert "was removed from the scene" in panel.ui.messageLabel.text
    assert "Load it again" in panel.ui.messageLabel.text
    assert segmentations() == []
    choose(panel, add_box("Another"))
    apply_and_wait(host, panel)
    assert len(segmentations()) == 1


def test_a_result_arrives_while_another_module_is_shown(host: Host, panel: Any) -> None:
    choose(panel, add_box())
    panel.ui.applyButton.click()
    host.open_module("HybridMIMTraining")
    host.wait_until(lambda: not panel.content.jobs.busy, 60, "the segmentation")
    assert len(segmentations()) == 1


def test_a_model_from_elsewhere(host: Host, panel: Any, tmp_path: Path) -> None:
    choose(panel, add_box())
    folder = save_threshold_model(tmp_path / "elsewhere" / "model", "From a colleague")
    dialogs.announce("folder", str(folder))
    import_entry(panel, "Use a folder").trigger()
    assert panel.ui.modelComboBox.currentText == "From a colleague"
    assert panel.ui.modelComboBox.count == 2
    dialogs.announce("folder", "")
    import_entry(panel, "Use a folder").trigger()
    assert panel.ui.modelComboBox.currentText == "From a colleague", "a cancelled dialog changes nothing"
    dialogs.announce("folder", str(tmp_path))
    import_entry(panel, "Use a folder").trigger()
    assert "is not a HybridMIM model package" in panel.ui.hintLabel.text
    panel.ui.modelComboBox.setCurrentIndex(0)
    assert panel.ui.modelComboBox.currentText == "Box 数"


def test_the_scene_keeps_volume_and_model(host: Host, panel: Any, tmp_path: Path) -> None:
    folder = save_threshold_model(tmp_path / "elsewhere" / "model", "From a colleague")
    choose(panel, add_box("Other"))
    choose(panel, add_box("Chosen"))
    panel.selectModel(folder)
    host.save_scene(tmp_path / "scene.mrb")
    host.close_scene()
    assert panel.ui.inputVolumeSelector.currentNode() is None
    assert panel.ui.modelComboBox.currentText == "Box 数", "a new scene begins with the newest model"
    host.load_scene(tmp_path / "scene.mrb")
    assert panel.ui.inputVolumeSelector.currentNode().GetName() == "Chosen"
    assert panel.ui.modelComboBox.currentText == "From a colleague"
    assert panel.ui.applyButton.enabled
    host.close_scene()
    shutil.rmtree(folder)
    host.load_scene(tmp_path / "scene.mrb")
    assert "is not a model package" in panel.ui.hintLabel.text, "and not silently another model"


def test_reloading_the_module_ends_a_job_and_starts_afresh(host: Host, panel: Any) -> None:
    choose(panel, add_box())
    panel.ui.applyButton.click()
    job = panel.content.jobs.job
    again = host.reload_module("HybridMIMSegmentation")
    assert job.ended
    assert again is not panel
    assert again.ui.inputVolumeSelector.currentNode().GetName() == "Scan 1"
    apply_and_wait(host, again)
    assert len(segmentations()) == 1


def test_quitting_ends_a_job(host: Host, panel: Any) -> None:
    choose(panel, add_box())
    panel.ui.applyButton.click()
    job = panel.content.jobs.job
    host.close()
    assert job.ended


def test_missing_packages_are_installed_only_after_a_question(
    host: Host, panel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from HybridMIMLib.slicer_side import environment

    choose(panel, add_box())
    monkeypatch.setattr(environment, "missing_packages", lambda: ["monai>=1.5", "einops"])
    packages.pretend_missing("monai", "einops")
    dialogs.announce("message", "Cancel")
    panel.ui.applyButton.click()
    assert "monai>=1.5" in dialogs.shown()[-1]
    assert "These packages are missing: monai>=1.5, einops." in panel.ui.messageLabel.text
    assert packages.calls() == [] and not panel.content.jobs.busy
    dialogs.announce("message", "OK")
    packages.announce("installed")
    apply_and_wait(host, panel)
    assert len(packages.calls()) == 1 and len(segmentations()) == 1


def test_only_volumes_of_the_list_are_chosen_by_themselves(slicer_with_modules: Host, model: Path) -> None:
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Labels")
    hidden = add_box("Hidden")
    hidden.SetHideFromEditors(True)
    panel = slicer_with_modules.open_module("HybridMIMSegmentation")
    assert panel.content.parameters.node.inputVolume is None and not panel.ui.applyButton.enabled
    panel.content.parameters.node.inputVolume = labels
    assert not panel.ui.applyButton.enabled, "as a scene from elsewhere might have it"


def test_an_error_in_a_look_ends_the_job_and_not_the_panel(
    host: Host, panel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from HybridMIMLib.slicer_side import segmentation

    def fail(*_: object) -> None:
        raise RuntimeError("a defect of ours")

    choose(panel, add_box())
    monkeypatch.setattr(segmentation, "put_in_scene", fail)
    apply_and_wait(host, panel)
    assert "Unexpected error: RuntimeError: a defect of ours" in panel.ui.messageLabel.text
    assert segmentations() == []
    monkeypatch.undo()
    apply_and_wait(host, panel)
    assert len(segmentations()) == 1


def test_names_are_shown_as_they_are(host: Host, panel: Any) -> None:
    choose(panel, add_box('<h1>Big</h1> & "quoted"'))
    panel.ui.applyButton.click()
    panel.ui.cancelButton.click()
    host.wait_until(lambda: not panel.content.jobs.busy, 20, "the end")
    for label in (panel.ui.messageLabel, panel.ui.hintLabel, panel.ui.modelInfoLabel, panel.ui.statusLabel):
        assert label.textFormat == qt.Qt.PlainText


def test_two_models_of_one_name_are_told_apart(host: Host, panel: Any, workspace: Path) -> None:
    save_threshold_model(workspace / "runs" / "Later" / "fine-tuning" / "model", "Box 数")
    host.open_module("HybridMIMTraining")
    host.open_module("HybridMIMSegmentation")
    texts = {panel.ui.modelComboBox.itemText(index) for index in range(2)}
    assert texts == {"Box 数 (2026-01-02 03:04)"} and panel.ui.modelComboBox.count == 2


def test_the_logic_works_from_the_python_console(host: Host, panel: Any, model: Path) -> None:
    volume = add_box()
    lines = []
    logic = slicer.util.getModuleLogic("HybridMIMSegmentation")
    node = logic.segment(volume, model="box 数", classes=["Bright"], onLog=lines.append)
    assert node.GetSegmentation().GetNumberOfSegments() == 1 and lines[-1].startswith("Segmented in ")
    assert logic.segment(volume, model, outputSegmentationNode=node) is node, "replaced"
    assert node.GetScene() is slicer.mrmlScene
    assert node.GetSegmentation().GetNumberOfSegments() == 2
    np.testing.assert_allclose(ijk_to_ras(volume), np.eye(4))
