"""Pictures of the panel HybridMIM Segmentation in its states, and of the views with a result, on a real scan.

    python Testing/Slicer/pictures_of_segmentation.py SCAN MODEL [LABELS] [--name NAME] [--keep [WHICH ...]]

``MODEL`` is a package (a folder), ``LABELS`` a label map to compare with. The pictures go to ``build/pictures``; the
longest look at the job in the processor time of the window's thread, the Dice of each class, and how far the segments
lie from the label map's own grid in mm are printed. With ``--keep`` those of the documentation, or some of them by
name, are written into ``Resources/Pictures`` as well: only for a scan whose licence allows it, see the README there.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTING = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTING), str(TESTING.parent / "HybridMIMTraining")]

import numpy as np  # noqa: E402
import slicer  # noqa: E402
import vtk  # noqa: E402
from panel_pictures import MODULES, Show, slicer_at_work  # noqa: E402
from SlicerHost import Host, dialogs, views  # noqa: E402

from HybridMIMLib.data.model_description import read_description  # noqa: E402
from HybridMIMLib.data.scans import read_scan  # noqa: E402
from HybridMIMLib.slicer_side import environment, repair  # noqa: E402
from HybridMIMLib.slicer_side.segment_table import tables_of  # noqa: E402
from HybridMIMLib.slicer_side.segments import BINARY_LABELMAP, segmentation_node  # noqa: E402
from HybridMIMLib.slicer_side.warm_worker import warm_worker  # noqa: E402

KEPT = {
    "idle": "segmentation-idle",
    "installing": "segmentation-installing",
    "running": "segmentation-running",
    "done": "segmentation-done",
    "failed": "segmentation-failed",
    "correct": "segmentation-correct",
    "views": "segmentation-views",
}
"""Pictures of the documentation, and what they are called there."""

PIP = """
import sys, time
version = sys.argv[-1].split("==")[1]
for line in (f"Collecting einops=={version}", f"  Using cached einops-{version}-py3-none-any.whl (64 kB)",
             "Installing collected packages: einops"):
    print(line, flush=True)
time.sleep(600)
"""
"""Stands for pip, which says these things, so that nothing is installed for a picture."""


class SegmentationShow(Show):
    """The panel, from nothing chosen to a result."""

    def __init__(self, host: Host, prefix: str) -> None:
        super().__init__(host, MODULES[1], prefix)

    def wait(self, condition: Callable[[], Any] | None = None, seconds: float = 300) -> None:
        """Until the condition holds, or else what is at work has ended."""
        super().wait(condition or (lambda: not self.panel.content.jobs.busy), seconds)

    def without_input(self) -> None:
        self.picture("nothing chosen")

    def installing(self) -> None:
        """Packages that are missing, and one that is being installed anew."""
        ui, section = self.panel.ui, self.panel.content.environment
        whole = environment.REQUIREMENTS
        with tempfile.TemporaryDirectory() as folder:
            environment.REQUIREMENTS = Path(folder) / "requirements.txt"
            environment.REQUIREMENTS.write_text("einops\nnot-there>=2\n", encoding="utf-8")
            ui.modelSection.collapsed = ui.inputSection.collapsed = True
            ui.environmentSection.collapsed = False
            self.wait(lambda: not section.lookups.busy)
            self.picture("packages missing")
        environment.REQUIREMENTS = whole
        section.refresh()
        self.wait(lambda: not section.lookups.busy)
        repair.pip_command = lambda: [sys.executable, "-c", PIP]
        section.jobs.follow(repair.repair({"einops": "one of its files is missing"}))
        ui.environmentLogButton.checked = True
        self.wait(lambda: "Installing collected" in ui.environmentLogTextEdit.plainText)
        self.picture("installing")
        ui.environmentCancelButton.click()
        self.wait(lambda: not section.jobs.busy)
        ui.environmentLogButton.checked = False
        ui.environmentSection.collapsed = True
        ui.modelSection.collapsed = ui.inputSection.collapsed = False

    def with_model(self, model: Path) -> None:
        dialogs.announce("folder", str(model))
        self.entry("A folder").trigger()
        self.wait()
        self.picture("model imported")
        self.panel.ui.detailsButton.click()
        self.picture("model details")
        self.panel.ui.detailsButton.click()
        self.panel.content.jobs.say("")

    def entry(self, begin: str) -> Any:
        """Of the button Import."""
        return next(one for one in self.panel.ui.importButton.menu().actions() if one.text.startswith(begin))

    def with_scan(self, scan: Path, labels: Path | None) -> None:
        volume = slicer.util.loadVolume(str(scan))
        self.panel.ui.inputVolumeSelector.setCurrentNode(volume)
        self.picture("idle")
        if labels is not None:
            self.panel.ui.referenceSelector.setCurrentNode(self.reference(volume, labels))
        self.panel.ui.optionsSection.collapsed = False
        self.picture("options")
        self.panel.ui.optionsSection.collapsed = True

    def reference(self, volume: Any, labels: Path) -> Any:
        classes = read_description(Path(self.panel.content.parameters.node.model)).classes
        # As Slicer lays out both: it turns a left-handed grid of a file into a right-handed one.
        loaded = slicer.util.loadLabelVolume(str(labels))
        array = slicer.util.arrayFromVolume(loaded).transpose()
        slicer.mrmlScene.RemoveNode(loaded)
        node = segmentation_node(slicer.mrmlScene, volume, array, classes, "By hand")
        node.GetDisplayNode().SetVisibility(False)
        return node

    def failed(self) -> None:
        """The worker is killed, as by a system without memory."""
        ui, jobs = self.panel.ui, self.panel.content.jobs
        ui.applyButton.click()
        self.wait(lambda: jobs.job._is_open)
        os.kill(warm_worker().pid or 0, 9)
        self.wait()
        self.picture("failed")
        ui.logSection.collapsed = True

    def stopped(self) -> None:
        self.panel.ui.applyButton.click()
        self.panel.ui.cancelButton.click()
        self.wait()
        self.picture("stopped")

    def done(self) -> None:
        ui, jobs = self.panel.ui, self.panel.content.jobs
        self.watch_looks(jobs)
        # The one of which most is to be seen.
        ui.qualityComboBox.setCurrentIndex(2)
        begin = time.thread_time()
        ui.applyButton.click()
        print(f"Apply: {1000 * (time.thread_time() - begin):.0f} ms of processor time")
        self.wait(lambda: not jobs.busy or (jobs.job.progress.step and jobs.job.progress.phase == "Segmenting"))
        if jobs.busy:
            ui.logSection.collapsed = False
            self.picture("running")
            ui.logSection.collapsed = True
        self.wait()
        self.wait(lambda: not self.panel.content.time.lookup.busy)
        self.picture("done")
        ui.show3DButton.click()
        self.wait()
        ui.madeByButton.click()
        self.picture("what made it")
        ui.madeByButton.click()
        self.tell_looks()
        node = ui.resultSelector.currentNode()
        by_hand = slicer.util.getFirstNodeByName("By hand", "vtkMRMLSegmentationNode")
        if by_hand is not None:
            # The picture is of the last segmentation of the scene.
            slicer.mrmlScene.RemoveNode(by_hand)
        print(views.scene_picture(self.host.scene, self.path("views"), title=node.GetName()))

    def correct(self, scan: Path, folder: Path) -> None:
        """The result becomes a labelled case in a new folder, as after a correction."""
        ui, learn = self.panel.ui, self.panel.content.learn
        ui.modelSection.collapsed = ui.inputSection.collapsed = ui.resultSection.collapsed = True
        ui.learnSection.collapsed = False
        ui.learnVolumeSelector.setCurrentNode(ui.inputVolumeSelector.currentNode())
        ui.learnSegmentationSelector.setCurrentNode(ui.resultSelector.currentNode())
        ui.learnFolderPathLineEdit.currentPath = str(folder)
        ui.rankScansPathLineEdit.currentPath = str(scan.parent)
        self.wait(lambda: not learn.lookups.busy)
        ui.learnAddButton.click()
        self.wait(lambda: not learn.busy and not learn.lookups.busy)
        self.picture("correct")
        ui.learnSection.collapsed = True

    def figures(self, labels: Path | None) -> None:
        """How good the result is, and whether it lies where the label map does."""
        # What asks for Qt can be imported once the stand-in is there.
        from HybridMIMLib.slicer_side.panels.result_section import read_table

        node = self.panel.ui.resultSelector.currentNode()
        table = read_table(tables_of(slicer.mrmlScene, node)[0])
        print(table.titles, *table.rows, sep="\n")
        if labels is not None:
            print(f"farthest from the label map's own grid: {shift_in_mm(node, labels):.2g} mm")


def shift_in_mm(node: Any, labels: Path) -> float:
    """How far the voxels of a segmentation's segments lie in the world from the nearest ones of a label map, at most;
    the map's place is read from its file, and not by Slicer."""
    file = read_scan(labels).grid
    shifts = []
    for one in range(node.GetSegmentation().GetNumberOfSegments()):
        image = node.GetSegmentation().GetNthSegment(one).GetRepresentation(BINARY_LABELMAP)
        extent = image.GetExtent()
        if extent[1] < extent[0]:
            # Nothing was found.
            continue
        corners = np.array([[i, j, k, 1] for i in extent[:2] for j in extent[2:4] for k in extent[4:]]).T
        own, above = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(own)
        if node.GetParentTransformNode() is not None:
            node.GetParentTransformNode().GetMatrixTransformToWorld(above)
        world = numbers(above) @ numbers(own) @ corners
        nearest = np.round(np.linalg.solve(file.affine, world)[:3])
        assert (nearest >= 0).all() and (nearest < np.reshape(file.shape, (3, 1))).all(), "outside the label map"
        shifts.append(np.abs(file.affine[:3, :3] @ nearest + file.affine[:3, 3:] - world[:3]).max())
    return float(max(shifts, default=0.0))


def numbers(matrix: Any) -> np.ndarray:
    """A ``vtkMatrix4x4``."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("scan", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("labels", type=Path, nargs="?")
    parser.add_argument("--name", default="segmentation real", help="how the names of the pictures begin")
    parser.add_argument(
        "--keep", nargs="*", choices=list(KEPT), help="write those of the documentation, too, or some of them"
    )
    given = parser.parse_args()
    with slicer_at_work() as (host, workspace):
        try:
            show = SegmentationShow(host, given.name)
            show.without_input()
            show.installing()
            show.with_model(given.model)
            show.with_scan(given.scan, given.labels)
            show.stopped()
            show.failed()
            show.done()
            show.figures(given.labels)
            show.correct(given.scan, workspace / "labelled")
            if given.keep is not None:
                show.keep({name: kept for name, kept in KEPT.items() if name in given.keep or not given.keep})
        finally:
            warm_worker().close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
