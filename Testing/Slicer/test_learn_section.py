"""The section Correct and learn: real buttons, a real labelled folder, and the scan to label next."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
from SlicerHost import Host, dialogs
from small_panel import BOX, SHAPE, add_box, choose, contents, model, panel
from small_runs import write_blobs

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.layouts import open_dataset
from HybridMIMLib.data.scans import read_label_map, read_scan
from HybridMIMLib.slicer_side.segments import segmentation_node

__all__ = ["model", "panel"]

CLASSES = (LabelClass(1, "Bright", (1, 0, 0)),)

RANKING = (
    "import sys, json, time, pathlib\nimport HybridMIMLib.runs as r\nfrom HybridMIMLib.config import Run\n"
    "r._is_command = lambda: True\nrun = pathlib.Path(sys.argv[-1].split('=', 1)[1])\n"
    "scans = next(pathlib.Path(one.split('=', 1)[1]) for one in sys.argv if one.startswith('--scans='))\n"
    "with r.RunFolder.open('rank', Run(output=str(run))).at_work() as events:\n"
    "    while (scans / 'wait').exists(): time.sleep(0.01)\n"
    "    rows = [{'rank': n, 'scan': str(path), 'score': 1 / n, 'found': True}\n"
    "            for n, path in enumerate(sorted(scans.glob('*.nii.gz'), reverse=True), 1)]\n"
    "    (run / 'ranking.json').write_text(json.dumps(rows))\n"
    "    (run / 'result.json').write_text(json.dumps({'ranking': rows}))\n"
)
"""Ranks scans by their names, the last first; waits as long as there is a file of the name wait."""


@pytest.fixture
def ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rankings are done by a small program."""
    monkeypatch.setattr(
        "HybridMIMLib.slicer_side.jobs.library_command",
        lambda _, options: [sys.executable, "-c", RANKING, *options],
    )


def corrected(volume: Any, grow: int = 0) -> Any:
    """A segmentation of the box, as by hand."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[tuple(slice(one.start - grow, one.stop) for one in BOX)] = 1
    return segmentation_node(slicer.mrmlScene, volume, labels, CLASSES, f"By hand {grow}")


def opened(panel: Any, folder: Path | str = "", scans: Path | str = "") -> Any:
    """The section, open, with these folders."""
    panel.ui.modelSection.collapsed = panel.ui.inputSection.collapsed = True
    panel.ui.learnSection.collapsed = False
    panel.ui.learnFolderPathLineEdit.currentPath = str(folder)
    panel.ui.rankScansPathLineEdit.currentPath = str(scans)
    return panel.content.learn


def wait(host: Host, panel: Any, seconds: float = 40) -> None:
    section = panel.content.learn
    host.wait_until(lambda: not section.busy and not section.lookups.busy, seconds, "the end of the work")
    host.process_events(0.05)


def labels_in(folder: Path) -> np.ndarray:
    [case] = open_dataset(folder, labelled=True).cases
    assert case.label is not None
    scan = read_scan(case.images[0])
    return np.asarray(read_label_map(case.label, scan.grid).array)


def test_a_correction_becomes_a_case_and_is_replaced_after_a_question(
    host: Host, panel: Any, tmp_path: Path, picture: Callable[[str], None]
) -> None:
    folder = tmp_path / "cases ů"
    volume = add_box()
    node = corrected(volume)
    opened(panel, folder)
    assert "No scan is chosen" in panel.ui.learnHintLabel.text == panel.ui.learnAddButton.toolTip
    panel.ui.learnVolumeSelector.setCurrentNode(volume)
    assert "No segmentation is chosen" in panel.ui.learnAddButton.toolTip
    panel.ui.learnSegmentationSelector.setCurrentNode(node)
    picture("learn idle")
    before = contents()
    panel.ui.learnAddButton.click()
    assert not panel.ui.learnAddButton.enabled and panel.ui.learnCancelButton.enabled
    host.wait_until(lambda: "Checking" in panel.ui.learnStatusLabel.text, 20, "the check")
    picture("learn working")
    wait(host, panel)
    assert panel.ui.learnMessageLabel.text.startswith("Added as case Scan 1.")
    picture("learn done")
    assert (labels_in(folder)[BOX] == 1).all() and labels_in(folder).sum() == labels_in(folder)[BOX].size
    assert contents() == before, "the scene is as it was"
    # Other labels of the same scan: the user says no, and then yes.
    panel.ui.learnSegmentationSelector.setCurrentNode(corrected(volume, grow=1))
    dialogs.announce("message", "Cancel")
    panel.ui.learnAddButton.click()
    wait(host, panel)
    host.wait_until(lambda: "left as it is" in panel.ui.learnMessageLabel.text, 20, "the answer")
    assert "Replace them?" in dialogs.shown()[-1]
    assert labels_in(folder).sum() == labels_in(folder)[BOX].size
    dialogs.announce("message", "OK")
    panel.ui.learnAddButton.click()
    host.wait_until(lambda: "were replaced" in panel.ui.learnMessageLabel.text, 40, "the second time")
    assert labels_in(folder).sum() > labels_in(folder)[BOX].size


def test_a_segment_that_is_no_class_becomes_one_after_a_question(host: Host, panel: Any, tmp_path: Path) -> None:
    folder = write_blobs(tmp_path / "cases", 1, labelled=True)
    before = sorted(folder.rglob("*"))
    volume = add_box()
    node = corrected(volume)
    node.GetSegmentation().GetNthSegment(0).SetName("Spleen")
    opened(panel, folder)
    panel.content.learn.offer(volume, node)
    dialogs.announce("message", "Cancel")
    panel.ui.learnAddButton.click()
    host.wait_until(lambda: "Nothing was added" in panel.ui.learnMessageLabel.text, 40, "the answer")
    assert "the classes Bright, Dark, and not Spleen. Add what is new" in dialogs.shown()[-1]
    assert sorted(folder.rglob("*")) == before
    dialogs.announce("message", "OK")
    panel.ui.learnAddButton.click()
    host.wait_until(lambda: "Added as case Scan 1" in panel.ui.learnMessageLabel.text, 40, "the second time")
    assert [one.name for one in open_dataset(folder, labelled=True).classes] == ["Bright", "Dark", "Spleen"]
    # Another name for the same scan: both questions, and what was agreed to first is not asked again.
    node.GetSegmentation().GetNthSegment(0).SetName("Liver")
    dialogs.announce("message", "OK")
    dialogs.announce("message", "OK")
    panel.ui.learnAddButton.click()
    host.wait_until(lambda: "were replaced" in panel.ui.learnMessageLabel.text, 40, "the third time")
    assert [one.name for one in open_dataset(folder, labelled=True).classes][-1] == "Liver"


def test_a_folder_that_cannot_be_used_is_named(
    host: Host, panel: Any, tmp_path: Path, picture: Callable[[str], None]
) -> None:
    (tmp_path / "file").write_text("no folder")
    volume = add_box()
    opened(panel, tmp_path / "file")
    panel.ui.learnVolumeSelector.setCurrentNode(volume)
    panel.ui.learnSegmentationSelector.setCurrentNode(corrected(volume))
    panel.ui.learnAddButton.click()
    wait(host, panel)
    assert str(tmp_path / "file") in panel.ui.learnMessageLabel.text
    assert "color" in panel.ui.learnMessageLabel.styleSheet and panel.ui.learnAddButton.enabled
    picture("learn failed")


def test_cancel_adds_nothing(host: Host, panel: Any, tmp_path: Path) -> None:
    volume = add_box()
    opened(panel, tmp_path / "cases")
    panel.content.learn.offer(volume, corrected(volume))
    panel.ui.learnAddButton.click()
    host.process_events(0.1)
    panel.ui.learnCancelButton.click()
    wait(host, panel)
    assert panel.ui.learnMessageLabel.text == "Stopped." and not (tmp_path / "cases").exists()


def test_a_result_is_offered_and_the_scene_keeps_what_was_chosen(host: Host, panel: Any, tmp_path: Path) -> None:
    from small_panel import apply_and_wait

    volume = add_box("Chosen")
    choose(panel, volume)
    apply_and_wait(host, panel)
    opened(panel, tmp_path / "cases")
    made = panel.content.parameters.node.resultSegmentation
    assert panel.ui.learnVolumeSelector.currentNode() is volume
    assert panel.ui.learnSegmentationSelector.currentNode() is made
    assert panel.ui.learnAddButton.enabled
    add_box("Another")
    host.save_scene(tmp_path / "scene.mrb")
    host.close_scene()
    assert panel.ui.learnVolumeSelector.currentNode() is None and not panel.ui.learnAddButton.enabled
    host.load_scene(tmp_path / "scene.mrb")
    assert panel.ui.learnVolumeSelector.currentNode().GetName() == "Chosen"
    assert panel.ui.learnSegmentationSelector.currentNode() is not None


def test_scans_are_ranked_and_the_next_one_is_loaded(
    host: Host, panel: Any, tmp_path: Path, ranking: None, picture: Callable[[str], None]
) -> None:
    scans = write_blobs(tmp_path / "pool", 2, labelled=False) / "images"
    opened(panel)
    assert "No folder of unlabelled scans" in panel.ui.rankButton.toolTip
    assert "press Rank first" in panel.ui.rankNextButton.toolTip
    opened(panel, tmp_path / "cases", scans)
    panel.ui.rankButton.click()
    assert "Wait until the scans are ranked" in panel.ui.rankButton.toolTip == panel.ui.rankNextButton.toolTip
    wait(host, panel)
    assert panel.ui.rankMessageLabel.text == "Ranked 2 scans: press Load next scan."
    names = []
    for _ in range(2):
        panel.ui.rankNextButton.click()
        wait(host, panel)
        names.append(panel.ui.inputVolumeSelector.currentNode().GetName())
        assert "of the ranking (uncertainty" in panel.ui.learnMessageLabel.text
    assert names == ["blob_1", "blob_0"], "the first, and then the one that is not open already"
    picture("learn next scan")
    panel.ui.rankNextButton.click()
    wait(host, panel)
    assert "No scan is left" in panel.ui.learnMessageLabel.text


def test_a_ranking_outlives_the_panel(host: Host, panel: Any, tmp_path: Path, ranking: None) -> None:
    scans = write_blobs(tmp_path / "pool", 1, labelled=False) / "images"
    (scans / "wait").touch()
    opened(panel, tmp_path / "cases", scans)
    panel.ui.rankButton.click()
    job = panel.content.learn.rankings.job
    host.wait_until(lambda: (job.folder / "run.yaml").exists(), 20, "its start")
    again = host.reload_module("HybridMIMSegmentation")
    opened(again, tmp_path / "cases", scans)
    host.wait_until(lambda: again.content.learn.rankings.busy, 20, "the ranking that is at work")
    assert again.content.learn.rankings.job.folder == job.folder
    (scans / "wait").unlink()
    wait(host, again)
    assert again.ui.rankMessageLabel.text == "Ranked 1 scans: press Load next scan."
    assert len(json.loads((job.folder / "ranking.json").read_text())) == 1
    assert again.ui.rankNextButton.enabled


def test_a_ranking_is_stopped_with_cancel(host: Host, panel: Any, tmp_path: Path, ranking: None) -> None:
    scans = write_blobs(tmp_path / "pool", 1, labelled=False) / "images"
    (scans / "wait").touch()
    opened(panel, tmp_path / "cases", scans)
    panel.ui.rankButton.click()
    host.wait_until(lambda: panel.content.learn.rankings.job.progress.phase or True, 5, "a look")
    panel.ui.rankCancelButton.click()
    wait(host, panel)
    assert panel.ui.rankMessageLabel.text == "Stopped." and panel.ui.rankButton.enabled
