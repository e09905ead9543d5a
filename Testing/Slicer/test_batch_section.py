"""The section Folder of scans: real buttons, and processes that segment, fail, are killed and outlive Slicer."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
from SlicerHost import Host, dialogs, start
from small_panel import model, panel, segmentations
from small_runs import write_blobs

from HybridMIMLib.slicer_side.batch import BatchSettings, recent_batches, start_batch
from HybridMIMLib.slicer_side.provenance import made_by
from HybridMIMLib.slicer_side.segments import ijk_to_ras, image_array, label_array

__all__ = ["model", "panel"]

BEGIN = (
    "import sys, time, os, pathlib, HybridMIMLib.runs as r\nfrom HybridMIMLib.config import Run\n"
    "r._is_command = lambda: True\nrun = pathlib.Path(sys.argv[-1].split('=', 1)[1])\n"
)
SLOW = (
    "with r.RunFolder.open('segment', Run(output=str(run))).at_work() as events:\n"
    "    events.cases([('a', 'a.nrrd', 'done'), ('b', 'b.nrrd', 'waiting')])\n"
    "    events.case('b', 'working')\n"
    "    while not (run / 'go on').exists(): time.sleep(0.01)\n"
    "    events.case('b', 'done')\n"
    "(run / 'result.json').write_text('{}')"
)
KILLED = SLOW.replace("while not (run / 'go on').exists(): time.sleep(0.01)", "os.kill(os.getpid(), 9)")


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let batches run a small program in place of the library; it finds its run folder in ``run``."""

    def use(program: str) -> None:
        command = [sys.executable, "-c", BEGIN + program]
        monkeypatch.setattr("HybridMIMLib.slicer_side.jobs.library_command", lambda _, options: [*command, *options])

    return use


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder of scans, the second of which is damaged."""
    folder = write_blobs(tmp_path / "scans ů", 2, labelled=False) / "images"
    whole = (folder / "blob_1.nii.gz").read_bytes()
    (folder / "blob_1.nii.gz").write_bytes(whole[: len(whole) // 2])
    return folder


def opened(panel: Any, scans: Path | str = "", output: Path | str = "") -> Any:
    """The section, open, with these folders."""
    panel.ui.modelSection.collapsed = panel.ui.inputSection.collapsed = True
    panel.ui.batchSection.collapsed = False
    panel.ui.batchScansPathLineEdit.currentPath = str(scans)
    panel.ui.batchOutputPathLineEdit.currentPath = str(output)
    return panel.content.batch


def rows(panel: Any) -> list[list[str]]:
    table = panel.ui.batchTable
    return [[table.item(row, column).text() for column in range(3)] for row in range(table.rowCount)]


def states(panel: Any) -> dict[str, str]:
    return {name: state for name, state, _reason in rows(panel)}


def wait(host: Host, panel: Any, seconds: float = 60) -> None:
    """Until the batch has ended and the table shows it."""
    section = panel.content.batch
    host.wait_until(lambda: not section.jobs.busy and not section._timer.isActive(), seconds, "the end of the batch")


def volumes() -> list[Any]:
    return slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")


def test_a_folder_with_a_damaged_scan_is_segmented_and_looked_at(
    host: Host, panel: Any, scans: Path, tmp_path: Path, picture: Callable[[str], None]
) -> None:
    out = tmp_path / "out"
    section = opened(panel, scans, out)
    picture("batch idle")
    assert not panel.ui.batchTable.isVisible() and not out.exists()
    panel.ui.batchStartButton.click()
    assert not panel.ui.batchStartButton.enabled and "press Cancel" in panel.ui.batchStartButton.toolTip
    assert panel.ui.batchCancelButton.enabled
    wait(host, panel)
    assert states(panel) == {"blob_0": "done", "blob_1": "skipped"}
    assert rows(panel)[1][2].startswith("the file is truncated or damaged"), "which file is said by the row"
    panel.ui.batchTable.cellClicked.emit(1, 0)
    assert panel.ui.batchReasonLabel.text.endswith(panel.content.batch._table.rows[1].reason)
    assert panel.ui.batchMessageLabel.text.startswith("1 of 2 done, 1 skipped. The label maps are in")
    picture("batch done")
    # A double-click on what is done, and one on what has no result and no scan that could be read.
    panel.ui.batchTable.cellDoubleClicked.emit(0, 1)
    host.wait_until(lambda: not section.loads.busy, 30, "the scan")
    assert panel.ui.batchLoadMessageLabel.text.startswith("Loaded blob_0 with its segmentation")
    [volume], [node] = volumes(), segmentations()
    found = label_array(node, volume, panel.content.models.chooser.model.classes)
    bright = image_array(volume.GetImageData()) > 150
    assert found.shape == bright.shape and (found[bright] == 3).mean() > 0.9
    np.testing.assert_allclose(np.abs(np.diag(ijk_to_ras(volume))), [1, 1, 1.2, 1])
    assert made_by(node)[0].hash, "what made it is known"
    panel.ui.batchTable.cellDoubleClicked.emit(1, 0)
    host.wait_until(lambda: not section.loads.busy, 30, "the damaged scan")
    assert "truncated or damaged" in panel.ui.batchLoadMessageLabel.text
    assert (volumes(), segmentations()) == ([volume], [node])
    picture("batch scan loaded")
    assert panel.ui.batchRetryButton.enabled
    dialogs.announce("desktop", True)
    panel.ui.batchOpenButton.click()
    assert dialogs.shown()[-1] == str(out)


def test_a_result_that_does_not_fit_leaves_the_scene_as_it_was(host: Host, panel: Any, scans: Path) -> None:
    from HybridMIMLib.slicer_side.batch import CaseRow

    out = scans.parent / "out"
    (out / "labels").mkdir(parents=True)
    other = write_blobs(scans.parent / "others", 1, labelled=True, seed=1) / "labels" / "blob_0.nii.gz"
    (out / "labels" / "blob_0.nii.gz").write_bytes(other.read_bytes())
    section = opened(panel, scans, out)
    section._shown = BatchSettings(str(scans), str(panel.content.models.chooser.model.path), str(out))
    section._open(CaseRow("blob_0", str(scans / "blob_0.nii.gz"), "done"))
    host.wait_until(lambda: not section.loads.busy, 30, "the scan")
    assert "the label map has the shape" in panel.ui.batchLoadMessageLabel.text
    assert volumes() == [] and segmentations() == []


def test_why_it_cannot_start_is_said(host: Host, panel: Any, tmp_path: Path, scans: Path) -> None:
    def hint() -> str:
        assert not panel.ui.batchStartButton.enabled
        assert panel.ui.batchStartButton.toolTip == panel.ui.batchHintLabel.text
        return str(panel.ui.batchHintLabel.text)

    opened(panel)
    assert "No folder of scans" in hint()
    opened(panel, tmp_path / "nowhere", tmp_path / "out")
    assert "is not there" in hint()
    opened(panel, scans, tmp_path)
    assert "is not empty" in hint()
    opened(panel, scans, tmp_path / "out")
    assert panel.ui.batchStartButton.enabled and not panel.ui.batchHintLabel.isVisible()
    panel.selectModel(tmp_path / "no model")
    assert "No model" in hint()


def test_cancel_keeps_what_is_done(
    host: Host, panel: Any, scans: Path, tmp_path: Path, instead: Any, picture: Callable[[str], None]
) -> None:
    instead(SLOW)
    opened(panel, scans, tmp_path / "out")
    panel.ui.batchStartButton.click()
    host.wait_until(lambda: states(panel) == {"a": "done", "b": "working"}, 20, "the table")
    assert not panel.ui.environmentRepairButton.enabled, "packages stay as they are meanwhile"
    picture("batch working")
    panel.ui.batchCancelButton.click()
    wait(host, panel)
    assert panel.ui.batchMessageLabel.text == "Stopped. 1 of 2 done"
    assert states(panel) == {"a": "done", "b": "waiting"}
    assert panel.ui.batchRetryButton.enabled


def test_a_killed_process_is_told_and_blames_its_scan(
    host: Host, panel: Any, scans: Path, tmp_path: Path, instead: Any, picture: Callable[[str], None]
) -> None:
    instead(KILLED)
    opened(panel, scans, tmp_path / "out")
    panel.ui.batchStartButton.click()
    wait(host, panel)
    assert "memory ran out" in panel.ui.batchMessageLabel.text and "color" in panel.ui.batchMessageLabel.styleSheet
    assert states(panel)["b"] == "failed" and "memory ran out" in rows(panel)[1][2]
    picture("batch failed")
    instead(SLOW)
    panel.ui.batchRetryButton.click()
    (tmp_path / "out" / "go on").touch()
    wait(host, panel)
    assert set(states(panel).values()) == {"done"}
    assert not panel.ui.batchRetryButton.enabled and "are done" in panel.ui.batchRetryButton.toolTip


def test_a_batch_outlives_slicer_and_is_offered_to_the_next(
    host: Host,
    panel: Any,
    scans: Path,
    tmp_path: Path,
    instead: Any,
    load_modules: Callable[[Host], Host],
    pictures: Path,
) -> None:
    instead(SLOW)
    out = tmp_path / "out"
    opened(panel, scans, out)
    assert not panel.ui.batchEarlierComboBox.isVisible()
    panel.ui.batchStartButton.click()
    host.wait_until(lambda: "working" in states(panel).values(), 20, "the table")
    host.close()
    again = load_modules(start()).open_module("HybridMIMSegmentation")
    try:
        fresh = opened(again)
        from SlicerHost import host as host_module

        now = host_module._running
        assert now is not None
        now.wait_until(lambda: again.ui.batchEarlierComboBox.count, 20, "the list of batches")
        assert "out is still being segmented" in again.ui.batchMessageLabel.text
        assert not fresh.jobs.busy and again.ui.batchScansPathLineEdit.currentPath == "", "offered, not forced"
        assert again.ui.batchEarlierComboBox.itemText(0) == "out (at work)"
        now.picture(pictures / "batch offered.png")
        again.ui.batchEarlierComboBox.activated.emit(0)
        now.wait_until(lambda: states(again) == {"a": "done", "b": "working"}, 20, "the table")
        assert fresh.jobs.busy and again.ui.batchOutputPathLineEdit.currentPath == str(out)
        (out / "go on").touch()
        wait(now, again)
        assert states(again) == {"a": "done", "b": "done"}
        now.wait_until(lambda: "at work" not in again.ui.batchEarlierComboBox.itemText(0), 20, "its end in the list")
        # And one that is over is shown as it was.
        again.ui.batchTable.setRowCount(0)
        fresh._view._table = None
        again.ui.batchEarlierComboBox.activated.emit(0)
        wait(now, again)
        now.wait_until(lambda: states(again) == {"a": "done", "b": "done"}, 20, "the table")
        assert again.ui.batchMessageLabel.text == "2 of 2 done"
    finally:
        (out / "go on").touch()


def test_a_long_log_of_an_earlier_batch_does_not_hold_the_window_up(
    host: Host, panel: Any, scans: Path, tmp_path: Path, instead: Any
) -> None:
    instead(
        "with r.RunFolder.open('segment', Run(output=str(run))).at_work() as events:\n"
        "    events.cases([(f'c{n}', 's', 'waiting') for n in range(3000)])\n"
        "    for n in range(3000): events.case(f'c{n}', 'done')\n"
        "(run / 'result.json').write_text('{}')"
    )
    batch = start_batch(BatchSettings(str(scans), "m", str(tmp_path / "out")))
    batch.wait()
    section = opened(panel)
    host.wait_until(lambda: recent_batches() and section._notes, 20, "the list")
    panel.ui.batchEarlierComboBox.activated.emit(0)
    longest = 0.0
    while not (panel.ui.batchTable.rowCount == 3000 and not section._timer.isActive()):
        began = time.thread_time()
        host.process_events()
        longest = max(longest, time.thread_time() - began)
        time.sleep(0.005)
    assert rows(panel)[2999] == ["c2999", "done", ""]
    assert longest < 0.1, "it is 0.01; machines are slow at times"
