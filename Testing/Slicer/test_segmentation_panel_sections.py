"""The sections of the panel HybridMIM Segmentation: channels, sequences, outputs, options, results, models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
from SlicerHost import Host, dialogs
from small_packages import edit_json, entries_of, rehash, write_zip
from small_panel import (
    BOX,
    SHAPE,
    add_box,
    apply_and_wait,
    choose,
    contents,
    import_entry,
    model,
    panel,
    segmentations,
    wait,
)
from small_runs import save_threshold_model

from HybridMIMLib.data.model_description import METADATA, read_description
from HybridMIMLib.errors import DiskError
from HybridMIMLib.slicer_side.provenance import made_by
from HybridMIMLib.slicer_side.results import backups
from HybridMIMLib.slicer_side.segment_table import tables_of
from HybridMIMLib.slicer_side.segments import label_array
from HybridMIMLib.slicer_side.steps import Step
from HybridMIMLib.slicer_side.surfaces import has_surfaces

__all__ = ["model", "panel"]


def hint(panel: Any) -> str:
    """Why Apply cannot be pressed; it must be on the button, too."""
    assert not panel.ui.applyButton.enabled and panel.ui.hintLabel.isVisible()
    assert panel.ui.applyButton.toolTip == panel.ui.hintLabel.text
    return str(panel.ui.hintLabel.text)


def set_mode(panel: Any, name: str) -> None:
    modes = [one.name for one in type(panel.content.parameters.node.outputMode)]
    panel.ui.outputModeComboBox.setCurrentIndex(modes.index(name))


def cells(panel: Any) -> list[list[str]]:
    table = panel.ui.resultTable
    return [[table.item(row, column).text() for column in range(table.columnCount)] for row in range(table.rowCount)]


def titles(panel: Any) -> list[str]:
    table = panel.ui.resultTable
    return [table.horizontalHeaderItem(column).text() for column in range(table.columnCount)]


def set_class(panel: Any, name: str, wanted: bool) -> None:
    import qt

    widget = panel.ui.classesList
    [item] = [one for one in (widget.item(row) for row in range(widget.count)) if one.text() == name]
    item.setCheckState(qt.Qt.Checked if wanted else qt.Qt.Unchecked)


def zipped(folder: Path, file: Path) -> Path:
    return write_zip(file, entries_of(folder))


# --- what is segmented ---------------------------------------------------------------------------------------------


def test_as_many_volumes_as_the_model_has_channels(
    host: Host, panel: Any, workspace: Path, tmp_path: Path, picture: Callable[[str], None]
) -> None:
    two = save_threshold_model(workspace / "runs" / "Two" / "fine-tuning" / "model", "Two", channels=2)
    edit_json(
        two / METADATA,
        lambda content: content["network_data_format"]["inputs"]["image"].update(
            channel_def={"0": "T1", "1": "contrast <b>"}
        ),
    )
    rehash(two)
    assert not panel.ui.channelsWidget.isVisible()
    first, second = add_box("First"), add_box("Second")
    choose(panel, first)
    panel.selectModel(two)
    assert panel.ui.inputVolumeLabel.text == "T1:" and panel.ui.channelsWidget.isVisible()
    assert "Choose a volume for contrast <b>" in hint(panel)
    [(label, selector)] = panel.content.inputs._rows
    assert label.text == "contrast <b>:" and label.textFormat == panel.ui.hintLabel.textFormat, "plain"
    selector.setCurrentNode(first)
    assert "One volume was chosen for two channels" in hint(panel)
    selector.setCurrentNode(second)
    picture("segmentation two channels")
    host.save_scene(tmp_path / "scene.mrb")
    host.close_scene()
    assert selector.currentNode() is None
    host.load_scene(tmp_path / "scene.mrb")
    assert selector.currentNode().GetName() == "Second", "the scene keeps it"
    apply_and_wait(host, panel)
    [node] = segmentations()
    assert [one["name"] for one in made_by(node)[0].settings["inputs"]["nodes"]] == ["First", "Second"]
    panel.ui.modelComboBox.setCurrentIndex(panel.ui.modelComboBox.findText("Box 数"))
    assert panel.ui.inputVolumeLabel.text == "Volume:" and not panel.ui.channelsWidget.isVisible()


def add_sequence(items: int) -> tuple[Any, Any]:
    """A sequence of boxes, and the volume that shows one of its items."""
    scene = slicer.mrmlScene
    made = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "Beats")
    for number in range(items):
        item = add_box(f"item {number}")
        made.SetDataNodeAtValue(item, str(number))
        scene.RemoveNode(item)
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Beats browser")
    browser.SetAndObserveMasterSequenceNodeID(made.GetID())
    shown = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Beats")
    browser.AddProxyNode(shown, made, False)
    browser.SetSelectedItemNumber(0)
    slicer.vtkSlicerSequencesLogic().UpdateProxyNodesFromSequences(browser)
    return made, shown


def test_a_sequence_is_segmented_item_by_item_or_as_it_is_shown(
    host: Host, panel: Any, picture: Callable[[str], None]
) -> None:
    choose(panel, add_box())
    assert not panel.ui.wholeSequenceCheckBox.isVisible()
    _, shown = add_sequence(2)
    choose(panel, shown)
    assert panel.ui.wholeSequenceCheckBox.text == "All 2 items of the sequence Beats"
    picture("segmentation sequence")
    apply_and_wait(host, panel)
    assert len(slicer.util.getNodesByClass("vtkMRMLSequenceNode")) == 2
    assert titles(panel)[0] == "Item" and [row[:2] for row in cells(panel)] == [
        ["1", "Bright"],
        ["1", "Never"],
        ["2", "Bright"],
        ["2", "Never"],
    ]
    assert panel.ui.emptyLabel.text == "Not found in the scan: Never."
    [node] = segmentations()
    node.GetSegmentation().GetNthSegment(0).SetName("by hand")
    set_mode(panel, "replace")
    panel.ui.outputSegmentationSelector.setCurrentNode(node)
    apply_and_wait(host, panel)
    assert node.GetSegmentation().GetNthSegment(0).GetName() == "Bright"
    panel.ui.restoreButton.click()
    wait(host, panel)
    assert node.GetSegmentation().GetNthSegment(0).GetName() == "by hand"
    set_mode(panel, "new")
    panel.ui.wholeSequenceCheckBox.checked = False
    apply_and_wait(host, panel)
    assert len(slicer.util.getNodesByClass("vtkMRMLSequenceNode")) == 3, "scans, result, backup"
    assert len(segmentations()) == 2


def test_a_region_of_interest(host: Host, panel: Any) -> None:
    volume = add_box()
    choose(panel, volume)
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Half")
    panel.ui.regionSelector.setCurrentNode(roi)
    assert "has no size" in hint(panel)
    # Of the bright box, RAS 5..11 along the first axis, what is left of 8.5.
    roi.SetCenter(0, 12, 12)
    roi.SetSize(17, 40, 40)
    panel.content.update()
    apply_and_wait(host, panel)
    [node] = segmentations()
    found = label_array(node, volume, read_description(Path(panel.content.parameters.node.model)).classes)
    assert found[:9].any() and not found[9:].any()


# --- where it goes -------------------------------------------------------------------------------------------------


def test_replace_keeps_a_backup_and_restore_takes_it_back(
    host: Host, panel: Any, picture: Callable[[str], None]
) -> None:
    choose(panel, add_box())
    assert not panel.ui.outputSegmentationSelector.isVisible()
    set_mode(panel, "replace")
    assert panel.ui.outputSegmentationSelector.isVisible()
    assert "Choose the segmentation to replace" in hint(panel)
    set_mode(panel, "new")
    apply_and_wait(host, panel)
    [node] = segmentations()
    assert not panel.ui.restoreButton.enabled and "was replaced" in panel.ui.restoreButton.toolTip
    node.GetSegmentation().GetNthSegment(0).SetName("by hand")
    set_mode(panel, "replace")
    panel.ui.outputSegmentationSelector.setCurrentNode(node)
    apply_and_wait(host, panel)
    assert node.GetSegmentation().GetNthSegment(0).GetName() == "Bright"
    [backup] = backups(node)
    assert f"kept in {backup.GetName()}; Restore takes it back." in panel.ui.messageLabel.text
    picture("segmentation replaced")
    panel.ui.restoreButton.click()
    wait(host, panel)
    assert node.GetSegmentation().GetNthSegment(0).GetName() == "by hand"
    assert "Took back the segments of" in panel.ui.messageLabel.text
    assert cells(panel)[0][0] == "by hand", "the table is of what is there now"
    panel.ui.restoreButton.click()
    wait(host, panel)
    assert node.GetSegmentation().GetNthSegment(0).GetName() == "Bright", "and back again"
    slicer.mrmlScene.RemoveNode(backup)
    panel.ui.restoreButton.click()
    assert not panel.ui.restoreButton.enabled and node.GetSegmentation().GetNthSegment(0).GetName() == "Bright"


def test_append_adds_to_what_is_there(host: Host, panel: Any) -> None:
    choose(panel, add_box())
    apply_and_wait(host, panel)
    [node] = segmentations()
    set_mode(panel, "append")
    panel.ui.outputSegmentationSelector.setCurrentNode(node)
    apply_and_wait(host, panel)
    assert segmentations() == [node] and node.GetSegmentation().GetNumberOfSegments() == 4
    slicer.mrmlScene.RemoveNode(node)
    assert "Choose the segmentation to append to" in hint(panel), "and not silently another one"


def test_classes_to_keep(host: Host, panel: Any, tmp_path: Path, picture: Callable[[str], None]) -> None:
    choose(panel, add_box())
    panel.ui.optionsSection.collapsed = False
    set_class(panel, "Never", False)
    picture("segmentation options")
    apply_and_wait(host, panel)
    [node] = segmentations()
    assert list(node.GetSegmentation().GetSegmentIDs()) == ["class_3"]
    assert panel.ui.emptyLabel.text == ""
    panel.ui.noClassButton.click()
    assert "No class is to be kept" in hint(panel)
    host.save_scene(tmp_path / "scene.mrb")
    panel.ui.allClassesButton.click()
    assert panel.ui.applyButton.enabled
    host.close_scene()
    host.load_scene(tmp_path / "scene.mrb")
    assert "No class is to be kept" in hint(panel), "the scene keeps it"


def test_the_quality_is_handed_to_the_worker(host: Host, panel: Any) -> None:
    choose(panel, add_box())
    assert panel.ui.qualityComboBox.currentText == "Balanced"
    panel.ui.qualityComboBox.setCurrentIndex(0)
    apply_and_wait(host, panel)
    assert made_by(segmentations()[0])[0].settings["inference"] == {"preset": "fast"}


# --- afterwards ----------------------------------------------------------------------------------------------------


def test_volumes_and_dice_are_shown_and_measured_again(
    host: Host, panel: Any, picture: Callable[[str], None]
) -> None:
    volume = add_box()
    choose(panel, volume)
    apply_and_wait(host, panel)
    [reference] = segmentations()
    assert titles(panel) == ["Segment", "Volume [ml]", "Voxels"]
    panel.ui.referenceSelector.setCurrentNode(reference)
    apply_and_wait(host, panel)
    node = panel.ui.resultSelector.currentNode()
    assert node is not reference and panel.content.parameters.node.resultSegmentation is node
    voxels = int((label_array(node, volume, read_description_of(panel)) == 3).sum())
    # Voxels of 1 mm.
    assert cells(panel) == [
        ["Bright", f"{voxels / 1000:.3f}", str(voxels), "1.000"],
        ["Never", "0.000", "0", "–"],
    ]
    assert titles(panel)[-1] == "Dice"
    # A correction by hand: all of the scan is bright.
    everything = np.ones(SHAPE[::-1], np.uint8)
    slicer.util.updateSegmentBinaryLabelmapFromArray(everything, node, "class_3", volume)
    panel.ui.measureButton.click()
    wait(host, panel)
    assert panel.ui.messageLabel.text.startswith("Measured; the table is called ")
    expected = 2 * voxels / (voxels + everything.size)
    assert cells(panel)[0] == ["Bright", f"{everything.size / 1000:.1f}", str(everything.size), f"{expected:.3f}"]
    assert len(tables_of(slicer.mrmlScene, node)) == 2, "what was measured before is kept"
    picture("segmentation measured")
    panel.ui.resultSelector.setCurrentNode(reference)
    assert titles(panel) == ["Segment", "Volume [ml]", "Voxels"]


def test_why_nothing_was_compared_is_told(host: Host, panel: Any) -> None:
    choose(panel, add_box())
    apply_and_wait(host, panel)
    [reference] = segmentations()
    for number in range(2):
        reference.GetSegmentation().GetNthSegment(number).SetName(f"Struct {number}")
    panel.ui.referenceSelector.setCurrentNode(reference)
    apply_and_wait(host, panel)
    assert "Warning: nothing could be compared with" in panel.ui.messageLabel.text
    panel.ui.measureButton.click()
    wait(host, panel)
    assert "Warning: nothing could be compared with" in panel.ui.messageLabel.text
    assert titles(panel)[-1] == "Voxels" and len(segmentations()) == 2


def read_description_of(panel: Any) -> Any:
    return read_description(Path(panel.content.parameters.node.model)).classes


def test_surfaces_are_made_when_they_are_asked_for(host: Host, panel: Any) -> None:
    choose(panel, add_box())
    apply_and_wait(host, panel)
    [node] = segmentations()
    assert not has_surfaces(node.GetSegmentation())
    panel.ui.show3DButton.click()
    assert panel.content.jobs.busy and panel.ui.cancelButton.enabled
    wait(host, panel)
    assert has_surfaces(node.GetSegmentation()) and "is shown in the 3D views" in panel.ui.messageLabel.text


def test_surfaces_of_a_segmentation_that_goes_meanwhile(host: Host, panel: Any) -> None:
    choose(panel, add_box())
    apply_and_wait(host, panel)
    [node] = segmentations()
    panel.ui.show3DButton.click()
    slicer.mrmlScene.RemoveNode(node)
    wait(host, panel)
    assert "was removed from the scene" in panel.ui.messageLabel.text
    assert not panel.ui.show3DButton.enabled and "Choose a segmentation" in panel.ui.show3DButton.toolTip


def test_what_made_it_is_shown_on_request(host: Host, panel: Any, picture: Callable[[str], None]) -> None:
    choose(panel, add_box("<i>Scan</i>"))
    apply_and_wait(host, panel)
    assert not panel.ui.madeByBrowser.isVisible()
    panel.ui.madeByButton.click()
    text = panel.ui.madeByBrowser.toPlainText().replace("\u200b", "")
    [entry] = made_by(segmentations()[0])
    assert len(entry.hash) == 64 and entry.hash in text
    assert "Box 数" in text and "2026-01-02 03:04" in text and "<i>Scan</i>" in text and "balanced" in text
    picture("segmentation what made it")
    by_hand = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "By hand")
    panel.ui.resultSelector.setCurrentNode(by_hand)
    assert not panel.ui.madeByBrowser.isVisible() and not panel.ui.madeByButton.enabled
    assert panel.ui.resultHintLabel.text == "Not made by HybridMIM."


def test_the_result_is_there_again_when_the_scene_is_loaded(host: Host, panel: Any, tmp_path: Path) -> None:
    choose(panel, add_box())
    apply_and_wait(host, panel)
    before = cells(panel)
    host.save_scene(tmp_path / "scene.mrb")
    host.close_scene()
    assert not panel.ui.resultTable.isVisible() and "No segmentation is chosen" in panel.ui.resultHintLabel.text
    host.load_scene(tmp_path / "scene.mrb")
    assert cells(panel) == before and panel.ui.resultTable.isVisible()
    again = host.reload_module("HybridMIMSegmentation")
    assert cells(again) == before


def test_dicom_seg(host: Host, panel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from HybridMIMLib.slicer_side.panels import result_section

    choose(panel, add_box())
    apply_and_wait(host, panel)
    assert not panel.ui.dicomButton.enabled
    assert panel.ui.dicomButton.toolTip.startswith("Scan 1 was not loaded from DICOM")
    asked: list[Any] = []

    def write(node: Any, volume: Any, path: Path) -> Any:
        asked.append((node, volume, path))
        yield Step(0.5, "Writing")
        if len(asked) > 1:
            raise DiskError("the disk is full", cure="Make room.")
        return path

    monkeypatch.setattr(result_section, "why_no_dicom_seg", lambda volume: "")
    monkeypatch.setattr(result_section, "write_dicom_seg", write)
    panel.content.results._dicom_of = None
    panel.content.update()
    dialogs.announce("save file", "")
    panel.ui.dicomButton.click()
    assert asked == [], "a cancelled dialog does nothing"
    dialogs.announce("save file", str(tmp_path / "liver"))
    panel.ui.dicomButton.click()
    wait(host, panel)
    assert asked[0][2] == tmp_path / "liver.dcm" and "Wrote" in panel.ui.messageLabel.text
    dialogs.announce("save file", str(tmp_path / "liver.dcm"))
    panel.ui.dicomButton.click()
    wait(host, panel)
    assert (
        panel.ui.messageLabel.text == "the disk is full. Make room." and "color" in panel.ui.messageLabel.styleSheet
    )


# --- models --------------------------------------------------------------------------------------------------------


def test_a_model_is_imported_looked_at_and_removed(
    host: Host, panel: Any, tmp_path: Path, picture: Callable[[str], None]
) -> None:
    assert "Only imported models" in panel.ui.removeButton.toolTip and not panel.ui.removeButton.enabled
    folder = save_threshold_model(tmp_path / "theirs", "<Given> & taken", normalisation="window")
    file = zipped(folder, tmp_path / "given.zip")
    dialogs.announce("open file", "")
    import_entry(panel, "A package").trigger()
    assert not panel.content.jobs.busy, "a cancelled dialog does nothing"
    dialogs.announce("open file", str(file))
    import_entry(panel, "A package").trigger()
    wait(host, panel)
    assert panel.ui.messageLabel.text == "Imported the model <Given> & taken."
    assert panel.ui.modelComboBox.currentText == "<Given> & taken" and panel.ui.modelComboBox.count == 2
    shutil.rmtree(folder)
    file.unlink()
    panel.ui.detailsButton.click()
    page = panel.ui.modelDetailsBrowser.toPlainText()
    assert "<Given> & taken" in page and "Bright" in page and "from -1000 to 1000" in page and "Not stated" in page
    assert panel.ui.modelDetailsBrowser.isVisible() and not panel.ui.modelInfoLabel.isVisible()
    picture("segmentation model details")
    kept = Path(panel.content.parameters.node.model)
    dialogs.announce("desktop", True)
    panel.ui.openFolderButton.click()
    assert dialogs.shown()[-1] == str(kept)
    dialogs.announce("message", "Cancel")
    panel.ui.removeButton.click()
    assert kept.is_dir() and str(kept) in dialogs.shown()[-1]
    dialogs.announce("message", "OK")
    panel.ui.removeButton.click()
    wait(host, panel)
    assert not kept.exists() and panel.ui.modelComboBox.currentText == "Box 数"
    assert panel.content.parameters.node.model.endswith("model")
    assert "percentiles" not in panel.ui.modelDetailsBrowser.toPlainText()
    assert "Box 数" in panel.ui.modelDetailsBrowser.toPlainText(), "the page follows the choice"


def test_what_is_wrong_with_a_package_is_told(host: Host, panel: Any, tmp_path: Path) -> None:
    folder = save_threshold_model(tmp_path / "one", "Given")
    dialogs.announce("folder", str(folder))
    import_entry(panel, "A folder").trigger()
    wait(host, panel)
    edit_json(folder / METADATA, lambda content: content.update(license="MIT"))
    dialogs.announce("folder", str(folder))
    import_entry(panel, "A folder").trigger()
    wait(host, panel)
    damaged = panel.ui.messageLabel.text
    rehash(folder)
    dialogs.announce("folder", str(folder))
    import_entry(panel, "A folder").trigger()
    wait(host, panel)
    same_name = panel.ui.messageLabel.text
    (tmp_path / "empty").mkdir()
    dialogs.announce("folder", str(tmp_path / "empty"))
    import_entry(panel, "A folder").trigger()
    wait(host, panel)
    assert "metadata.json" in damaged and "color" in panel.ui.messageLabel.styleSheet
    assert "another model is called 'Given' already" in same_name and "Remove that one first" in same_name
    assert "is not a model package" in panel.ui.messageLabel.text
    assert panel.ui.modelComboBox.count == 2 and panel.ui.modelComboBox.currentText == "Given"


# --- all of it -----------------------------------------------------------------------------------------------------


def test_every_button_that_cannot_be_pressed_says_why(host: Host, panel: Any) -> None:
    def check() -> None:
        buttons = [one for name, one in vars(panel.ui).items() if name.endswith("Button")]
        assert len(buttons) > 10
        silent = [one.objectName for one in buttons if not one.enabled and not one.toolTip]
        assert silent == []

    check()
    choose(panel, add_box())
    check()
    panel.ui.applyButton.click()
    check()
    assert panel.ui.importButton.toolTip == panel.ui.show3DButton.toolTip
    assert "press Cancel" in panel.ui.importButton.toolTip
    panel.ui.cancelButton.click()
    assert panel.ui.cancelButton.toolTip == "It is stopping already."
    wait(host, panel)
    check()
    assert panel.ui.cancelButton.toolTip == "Nothing is at work."


def test_nothing_is_changed_by_looking_at_the_panel(host: Host, panel: Any) -> None:
    add_box()
    host.open_module("HybridMIMTraining")
    host.open_module("HybridMIMSegmentation")
    before, stamps = contents(), slicer.mrmlScene.GetMTime()
    for name in ("modelSection", "inputSection", "optionsSection", "resultSection", "logSection"):
        section = getattr(panel.ui, name)
        section.collapsed = not section.collapsed
    panel.ui.detailsButton.click()
    host.process_events(0.05)
    assert contents() == before and slicer.mrmlScene.GetMTime() == stamps


def test_the_box_is_found_where_it_is(host: Host, panel: Any) -> None:
    volume = add_box()
    choose(panel, volume)
    set_class(panel, "Never", False)
    apply_and_wait(host, panel)
    found = label_array(segmentations()[0], volume, read_description_of(panel)[:1])
    assert (found[BOX] != 0).mean() > 0.9
