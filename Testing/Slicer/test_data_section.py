"""The section Data: real folders, a real check in a process of its own, scans and segmentations in a real scene."""

from __future__ import annotations

import gc
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ctk
import numpy as np
import pytest
import qt
import slicer
import small_scenes as small
from PIL import Image
from SlicerHost import Host, dialogs
from small_runs import UNICODE_NAME, has_ended, write_blobs

from HybridMIMLib.data.layouts import open_dataset
from HybridMIMLib.slicer_side.child import Child
from HybridMIMLib.slicer_side.data_check import DataCheck, FolderCheck, ScanRow
from HybridMIMLib.slicer_side.segments import segmentation_node

UI = Path(__file__).resolve().parents[2] / "HybridMIMTraining" / "Resources" / "UI" / "Data.ui"


@pytest.fixture
def panel(host: Host, workspace: Path) -> Iterator[Any]:
    """The section in a window of its own; ``changes`` counts what the rest of the panel is told."""
    from HybridMIMLib.slicer_side.panels.data_section import DataSection

    whole, section = qt.QWidget(), ctk.ctkCollapsibleButton("1. Data")
    section.setObjectName("dataSection")
    qt.QVBoxLayout(whole).addWidget(section)
    qt.QVBoxLayout(section).addWidget(slicer.util.loadUI(str(UI)))
    host.window.contents.layout().addWidget(whole)
    ui = slicer.util.childWidgetVariables(whole)
    made = SimpleNamespace(ui=ui, whole=whole, changes=[])
    made.section = DataSection(ui, lambda: made.changes.append(time.monotonic()))
    made.section.update("")
    whole.show()
    yield made
    made.section.close()


@pytest.fixture
def look(host: Host, panel: Any, pictures: Path) -> Callable[[str], None]:
    """Save the section as a picture; it must be as narrow as Slicer's panel."""

    def save(name: str) -> None:
        file = host.picture(pictures / f"{name}.png", panel.whole)
        pixels = np.asarray(Image.open(file).convert("L"))
        assert pixels.shape[1] <= 440 and len(np.unique(pixels)) > 10

    return save


def choose(panel: Any, unlabelled: Path | str = "", labelled: Path | str = "") -> None:
    panel.ui.dataUnlabelledPathLineEdit.currentPath = str(unlabelled)
    panel.ui.dataLabelledPathLineEdit.currentPath = str(labelled)


def check(host: Host, panel: Any, seconds: float = 60) -> None:
    assert panel.ui.dataCheckButton.enabled, panel.ui.dataHintLabel.text
    panel.ui.dataCheckButton.click()
    settle(host, panel, seconds)


def settle(host: Host, panel: Any, seconds: float = 60) -> None:
    section = panel.section
    host.wait_until(
        lambda: (
            not section.busy and not section._reading.busy and not section.lookups.busy and section._table.is_complete
        ),
        seconds,
        "the end of the work",
    )
    host.process_events(0.05)


def rows(panel: Any) -> list[list[str]]:
    """What can be seen in the table, hidden columns left out."""
    table = panel.ui.dataTable
    columns = [number for number in range(table.columnCount) if not table.isColumnHidden(number)]
    return [[table.item(row, column).text() for column in columns] for row in range(table.rowCount)]


def volumes() -> list[Any]:
    return slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")


def segmentations() -> list[Any]:
    return slicer.util.getNodesByClass("vtkMRMLSegmentationNode")


def instead(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let a small program check in place of the library; it finds the job's file in ``job``."""
    from HybridMIMLib.slicer_side import data_check

    begin = "import sys, time, os, json, pathlib; job = pathlib.Path(sys.argv[-1])\n"
    monkeypatch.setattr(
        data_check, "Child", lambda command, log: Child([sys.executable, "-c", begin + program, command[-1]], log)
    )


SLOW = (
    "from HybridMIMLib.events import EventLog\n"
    "phase = EventLog(job.parent / 'events.jsonl').phase('check scans', 4)\n"
    "phase.progress(1)\ntime.sleep(60)"
)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three scans in a folder with a name that is hard on programs; the last is damaged."""
    folder = write_blobs(tmp_path / UNICODE_NAME / "scans", 3, labelled=False, seed=1) / "images"
    whole = (folder / "blob_2.nii.gz").read_bytes()
    (folder / "blob_2.nii.gz").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """Three labelled cases beside them."""
    return write_blobs(tmp_path / UNICODE_NAME / "cases", 3, labelled=True, seed=2)


# --- checking -----------------------------------------------------------------------------------------------


def test_folders_are_checked_looked_at_and_a_scan_is_loaded(
    host: Host, panel: Any, look: Callable[[str], None], scans: Path, cases: Path
) -> None:
    ui, section = panel.ui, panel.section
    look("data empty")
    assert not ui.dataCheckButton.enabled and "Choose a folder" in ui.dataHintLabel.text
    assert not ui.dataTable.isVisible() and section.checked is None
    choose(panel, scans, cases)
    look("data chosen")
    assert "unlabelled and the labelled scans can be used" in ui.dataHintLabel.text
    assert [section.why_not(one) for one in ("pretrain", "finetune", "train", "study")] == [""] * 4
    ui.dataCheckButton.click()
    assert section.busy and not ui.dataCheckButton.enabled and "Cancel" in ui.dataCheckButton.toolTip
    assert not ui.dataLabelledPathLineEdit.enabled
    settle(host, panel)
    # Labelled scans first, as they are what people look for; then the others.
    assert ui.dataFolderComboBox.currentText == "Labelled scans (3)" and ui.dataCheckButton.text == "Check again"
    assert rows(panel)[0][:2] == ["blob_0", "OK"] and rows(panel)[0][-1] == "Bright, Dark"
    assert ui.dataSummaryLabel.text.startswith("Labelled: 3 scans in images/ and labels/, all can be used.")
    classes = [[ui.dataClassesTable.item(row, column).text() for column in range(3)] for row in range(2)]
    assert classes == [["Bright", "1", "3 of 3"], ["Dark", "2", "3 of 3"]]
    assert not ui.dataClassesTable.item(0, 0).icon().isNull()
    assert not ui.dataHintLabel.isVisible() and not ui.dataMessageLabel.isVisible()
    assert not ui.dataProblemsCheckBox.isVisible(), "there is none"
    look("data checked labelled")
    ui.dataFolderComboBox.setCurrentIndex(0)
    ui.dataFolderComboBox.activated.emit(0)
    settle(host, panel)
    assert [row[1] for row in rows(panel)] == ["OK", "OK", "Skipped"]
    colours = {ui.dataTable.item(row, 1).foreground().color().name() for row in range(3)}
    assert len(colours) == 2
    ui.dataTable.selectRow(2)
    assert ui.dataReasonLabel.text.startswith("blob_2 (Skipped): the file is truncated or damaged")
    assert "download the file again" in ui.dataReasonLabel.text, "the cure too"
    look("data checked unlabelled")
    ui.dataProblemsCheckBox.checked = True
    settle(host, panel)
    assert [row[0] for row in rows(panel)] == ["blob_2"] and ui.dataProblemsCheckBox.text == "Only problems (1)"
    look("data only problems")
    # A scan that cannot be read is told; then one with its labels.
    ui.dataTable.cellDoubleClicked.emit(0, 0)
    settle(host, panel)
    assert "truncated or damaged" in ui.dataLoadMessageLabel.text and volumes() == []
    ui.dataFolderComboBox.setCurrentIndex(1)
    ui.dataFolderComboBox.activated.emit(1)
    ui.dataTable.cellDoubleClicked.emit(1, 3)
    assert section.loads.busy
    host.process_events(0.1)
    look("data loading")
    settle(host, panel)
    assert ui.dataLoadMessageLabel.text == "Loaded blob_1 with its labels: Bright, Dark."
    [volume], [node] = volumes(), segmentations()
    assert node.GetSegmentation().GetNumberOfSegments() == 2 and volume.GetName() == "blob_1"
    look("data loaded")
    found = section.checked
    assert found is not None and {name: one.usable for name, one in found.folders.items()} == {
        "unlabelled": 2, "labelled": 3,
    }  # fmt: skip


def folder_check(path: Path, **found: Any) -> FolderCheck:
    """What a check may have found in a folder."""
    facts = {"modalities": (("CT", 2),), "spacings": ((0.7, 0.9),) * 3, "patients": 9999, "channels": 1}
    return FolderCheck(str(path), **{"layout": "folder", **facts, **found})


def found_in(section: Any, unlabelled: FolderCheck | None = None, labelled: FolderCheck | None = None) -> None:
    """As if a check had found this."""
    folders = {"unlabelled": unlabelled, "labelled": labelled}
    section._take_found(DataCheck({name: one for name, one in folders.items() if one is not None}))


def small_rows(count: int, **others: Any) -> tuple[ScanRow, ...]:
    facts = {"voxels": "512 x 512 x 300", "mm": "0.7 x 0.7 x 1", "modality": "CT", "channels": "1", "cure": ""}
    return tuple(
        ScanRow(
            **{
                **facts,
                "status": "warning" if n % 10 == 7 else "good",
                "reason": "only 2 voxels thick" if n % 10 == 7 else "",
                "name": f"scan_{n}",
                "images": (f"/s/scan_{n}.nii.gz",),
                "label": f"/s/label_{n}.nii.gz",
                "labels": (1, 2),
                **others,
            }
        )
        for n in range(count)
    )


def test_what_would_fail_keeps_commands_from_starting(
    host: Host, panel: Any, look: Callable[[str], None], scans: Path, cases: Path
) -> None:
    section, ui = panel.section, panel.ui
    assert "No folder of unlabelled" in section.why_not("pretrain")
    choose(panel, scans, scans.parent / "gone")
    assert section.why_not("pretrain") == "" and "is not there" in section.why_not("finetune")
    assert ui.dataCheckButton.enabled and "save cases into it" in ui.dataHintLabel.text, "the other can be checked"
    choose(panel, scans, cases)
    wrong = "2 label map(s) are wrong, the first: labels/a.nii.gz: holds label 7, but only [1, 2] are named"
    weak = ("class Dark is in one label map alone, that of scan_1: no other scan can tell how well it is found",)
    rows = small_rows(3, status="skipped", reason="holds label 7", labels=())
    found_in(
        section,
        folder_check(scans, rows=small_rows(2)),
        folder_check(cases, layout="nnunet", rows=rows, problems=(wrong,), weak=weak, others=2),
    )
    assert section.why_not("pretrain") == ""
    for command in ("finetune", "train", "study"):
        assert "holds label 7" in section.why_not(command)
    assert ui.dataFolderComboBox.currentText.startswith("Labelled"), "what has a problem is shown"
    assert ui.dataProblemLabel.text.startswith("A training would stop: 2 label map(s)")
    assert "color" in ui.dataProblemLabel.styleSheet and "one label map alone" in ui.dataNoteLabel.text
    look("data problems")
    choose(panel, scans, cases.parent)
    assert section.why_not("finetune") == "", "nothing is known of this one"
    assert ui.dataFolderComboBox.count == 1 and "labelled scans can be used" in ui.dataHintLabel.text
    choose(panel, scans, cases)
    assert "holds label 7" in section.why_not("finetune"), "the same folder again"
    found_in(section, FolderCheck(str(scans), error=f"no scan found in {scans}: formats are .nii. Choose another."))
    assert "no scan found" in section.why_not("train") and "no scan found" in ui.dataProblemLabel.text
    look("data no scan")


def test_a_folder_that_changed_asks_for_another_check_and_stops_nothing(
    host: Host, panel: Any, look: Callable[[str], None], scans: Path, cases: Path
) -> None:
    from HybridMIMLib.data.walking import folder_stamp

    section, ui = panel.section, panel.ui
    choose(panel, "", cases)
    bad = folder_check(cases, layout="msd", rows=small_rows(1), training=("too few",), stamp=folder_stamp(cases))
    found_in(section, None, bad)
    section.refresh()
    settle(host, panel)
    assert "too few" in section.why_not("finetune") and not ui.dataHintLabel.isVisible()
    told = len(panel.changes)
    write_blobs(cases, 5, labelled=True, seed=2)
    # Folders are not looked at all the time …
    section.update("")
    settle(host, panel)
    assert "too few" in section.why_not("finetune")
    # … but when the section is opened.
    ui.dataSection.collapsed = True
    ui.dataSection.collapsed = False
    settle(host, panel)
    assert section.why_not("finetune") == "" and len(panel.changes) > told
    assert "labelled scans have changed" in ui.dataHintLabel.text
    look("data changed")


def test_cancel_and_a_killed_check_are_told_and_keep_what_was_known(
    host: Host, panel: Any, look: Callable[[str], None], scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section, ui = panel.section, panel.ui
    choose(panel, scans)
    found_in(section, folder_check(scans, rows=small_rows(2)))
    instead(monkeypatch, SLOW)
    ui.dataCheckButton.click()
    host.wait_until(lambda: "step 1 of 4" in ui.dataStatusLabel.text, 30, "the progress")
    look("data checking")
    folder = section.jobs.job.folder
    ui.dataCancelButton.click()
    settle(host, panel)
    assert ui.dataMessageLabel.text == "Stopped." and len(rows(panel)) == 2
    instead(monkeypatch, "print('Traceback: it broke', flush=True); os.kill(os.getpid(), 9)")
    check(host, panel)
    assert "memory ran out" in ui.dataMessageLabel.text and "color" in ui.dataMessageLabel.styleSheet
    assert ui.dataLogTextEdit.isVisible() and "it broke" in ui.dataLogTextEdit.toPlainText()
    look("data check failed")
    host.wait_until(lambda: not folder.exists(), 10, "the end of its folder")
    shutil.rmtree(scans)
    section.refresh()
    assert not ui.dataCheckButton.enabled and "is not there" in ui.dataHintLabel.text


def test_a_check_ends_with_the_panel(host: Host, panel: Any, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, SLOW)
    choose(panel, scans)
    panel.ui.dataCheckButton.click()
    job = panel.section.jobs.job
    panel.section.close()
    assert has_ended(job._process.pid)


def test_while_something_else_is_at_work_nothing_is_begun(host: Host, panel: Any, scans: Path) -> None:
    choose(panel, scans)
    panel.section.update("Packages are being installed.")
    assert (
        not panel.ui.dataCheckButton.enabled and panel.ui.dataCheckButton.toolTip == "Packages are being installed."
    )
    panel.section.update("")
    assert panel.ui.dataCheckButton.enabled


def test_folders_of_the_scene_are_shown_without_telling_it(host: Host, panel: Any, scans: Path, cases: Path) -> None:
    panel.section.set_folders(str(scans), str(cases))
    assert (panel.section.unlabelled, panel.section.labelled) == (str(scans), str(cases)) and panel.changes == []
    panel.ui.dataLabelledPathLineEdit.currentPath = ""
    assert panel.section.labelled == "" and panel.changes
    panel.section.set_folders("", "")
    assert (panel.section.unlabelled, panel.section.labelled) == ("", "")


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What the tests before this left is not tidied up while time is measured."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_thousands_of_rows_do_not_hold_the_window_up(
    host: Host, panel: Any, look: Callable[[str], None], tmp_path: Path, no_collection: None
) -> None:
    section, table = panel.section, panel.ui.dataTable
    choose(panel, tmp_path)
    found = folder_check(tmp_path, rows=small_rows(5000), stamp="x")
    began, lots = time.thread_time(), 0
    found_in(section, found)
    longest = time.thread_time() - began
    while not section._table.is_complete:
        began = time.thread_time()
        host.process_events()
        longest, lots = max(longest, time.thread_time() - began), lots + 1
        time.sleep(0.005)
    assert table.rowCount == 5000 and table.item(4999, 0).text() == "scan_4999"
    assert longest < 0.1 and lots > 20, "it is 0.01; machines are slow at times"
    panel.ui.dataProblemsCheckBox.checked = True
    settle(host, panel)
    assert table.rowCount == 500 and {row[1] for row in rows(panel)} == {"Warning"}
    look("data thousands")


# --- saving -------------------------------------------------------------------------------------------------


def ticked(panel: Any) -> dict[str, bool]:
    table = panel.ui.dataCasesTable
    names = [table.item(row, 0) for row in range(table.rowCount)]
    return {item.text(): item.checkState() == qt.Qt.Checked for item in names}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process of its own does to add a case is done in this one, which takes less time."""
    from HybridMIMLib.data import labelled_job
    from HybridMIMLib.slicer_side import correcting
    from HybridMIMLib.slicer_side.steps import Step, Steps

    def do(module: str, job: Mapping[str, Any], folder: Path, text: str) -> Steps[dict[str, Any]]:
        yield Step(0.0, text)
        return json.loads(json.dumps(labelled_job.do_job(json.loads(json.dumps(job)), folder)))

    monkeypatch.setattr(correcting, "in_child", do)


def test_segmentations_of_the_scene_become_cases(
    host: Host, panel: Any, look: Callable[[str], None], tmp_path: Path, here: None
) -> None:
    ui, section = panel.ui, panel.section
    ui.dataSceneSection.collapsed = False
    assert "no segmentation" in ui.dataSaveHintLabel.text and not ui.dataSaveButton.enabled
    look("data scene empty")
    one, other = small.volume(slicer.mrmlScene, name="one"), small.volume(slicer.mrmlScene, name="other")
    for volume, value in ((one, 1), (other, 2)):
        slicer.util.arrayFromVolume(volume)[0, 0, 0] = value
    node = segmentation_node(slicer.mrmlScene, one, small.labels(), small.CLASSES, "organs")
    loose = segmentation_node(slicer.mrmlScene, other, small.labels(), small.CLASSES, "loose")
    loose.SetNodeReferenceID(loose.GetReferenceImageGeometryReferenceRole(), None)
    host.wait_until(lambda: ui.dataCasesTable.rowCount == 2, 5, "the list")
    host.process_events(0.05)
    assert ticked(panel) == {"organs": True, "loose": False}, "nobody knows the scan of one"
    assert "No labelled folder is chosen" in ui.dataSaveHintLabel.text
    folder = tmp_path / "new cases"
    choose(panel, "", folder)
    assert ui.dataSaveButton.enabled and ui.dataSaveButton.text == "Save as labelled case"
    ui.dataCasesTable.selectRow(1)
    look("data scene without volume")
    ui.dataVolumeSelector.setCurrentNode(other)
    host.wait_until(lambda: ticked(panel)["loose"], 5, "the volume")
    assert ui.dataCasesTable.item(1, 1).text() == "other" and ui.dataSaveButton.text == "Save 2 labelled cases"
    ui.dataCasesTable.item(0, 0).setCheckState(qt.Qt.Unchecked)
    assert ui.dataSaveButton.text == "Save as labelled case"
    ui.dataCasesTable.item(0, 0).setCheckState(qt.Qt.Checked)
    look("data scene")
    ui.dataSaveButton.click()
    assert section.busy
    settle(host, panel)
    assert ui.dataSaveMessageLabel.text.startswith("Saved 2 cases: one, other.")
    assert [case.name for case in open_dataset(folder, True).cases] == ["one", "other"]
    assert section.why_not("finetune") == ""
    look("data saved")
    # Changed, and saved again: the user is asked.
    content = node.GetSegmentation()
    content.RemoveSegment(content.GetNthSegmentID(0))
    ui.dataCasesTable.item(1, 0).setCheckState(qt.Qt.Unchecked)
    dialogs.announce("message", "Cancel")
    ui.dataSaveButton.click()
    settle(host, panel)
    assert "other labels of these scans: one" in dialogs.shown()[-1]
    assert ui.dataSaveMessageLabel.text.startswith("1 case left with the labels that the folder has: one")
    dialogs.announce("message", "OK")
    ui.dataSaveButton.click()
    settle(host, panel)
    host.wait_until(lambda: "Replaced" in ui.dataSaveMessageLabel.text, 30, "the labels in place of the others")
    # Another scene has other nodes of the same ids.
    host.close_scene()
    assert ui.dataCasesTable.rowCount == 0 and not section.scene_cases._left_out
    segmentation_node(slicer.mrmlScene, small.volume(slicer.mrmlScene), small.labels(), small.CLASSES, "third")
    host.wait_until(lambda: ticked(panel) == {"third": True}, 5, "the list")
