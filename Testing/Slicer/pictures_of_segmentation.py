"""Pictures of the panel HybridMIM Segmentation in its states, and of the views with a result, on a real scan.

    python Testing/Slicer/pictures_of_segmentation.py SCAN MODEL [LABELS]

``MODEL`` is a package (a folder), ``LABELS`` a label map to compare with. The pictures go to ``build/pictures``, and
the longest look at the job, in the processor time of the window's thread, is printed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTING = Path(__file__).resolve().parents[1]
REPOSITORY = TESTING.parent
sys.path[:0] = [str(TESTING), str(REPOSITORY / "HybridMIMTraining")]

import slicer  # noqa: E402
from SlicerHost import Host, dialogs, problems, start, views  # noqa: E402

from HybridMIMLib.data.model_description import read_description  # noqa: E402
from HybridMIMLib.data.scans import read_label_map, read_scan  # noqa: E402
from HybridMIMLib.slicer_side.segments import segmentation_node  # noqa: E402
from HybridMIMLib.slicer_side.warm_worker import warm_worker  # noqa: E402

MODULES = ("HybridMIMTraining", "HybridMIMSegmentation")


class Show:
    """The panel, step by step, with a picture after each."""

    def __init__(self, host: Host, folder: Path, prefix: str) -> None:
        self.host, self.folder, self.prefix = host, folder, prefix
        for name in MODULES:
            host.load_module(REPOSITORY / name / f"{name}.py")
        self.panel: Any = host.open_module(MODULES[1])
        self.longest = 0.0

    def picture(self, name: str) -> None:
        """Of the panel as it is now."""
        print(self.host.picture(self.folder / f"{self.prefix} {name}.png"))

    def wait(self, condition: Any = None, seconds: float = 300) -> None:
        """Until the condition holds, or else what is at work has ended."""
        self.host.wait_until(condition or (lambda: not self.panel.content.jobs.busy), seconds, "the end")

    def watch_looks(self) -> None:
        """Measure what each look at a job takes from now on."""
        jobs = self.panel.content.jobs
        timer, look = jobs._timer, jobs._look

        def measured() -> None:
            begin = time.thread_time()
            look()
            self.longest = max(self.longest, time.thread_time() - begin)

        timer.disconnect("timeout()")
        timer.connect("timeout()", measured)

    def without_input(self) -> None:
        self.picture("nothing chosen")

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
            self.panel.ui.referenceSelector.setCurrentNode(self.reference(volume, scan, labels))
        self.panel.ui.optionsSection.collapsed = False
        self.picture("options")
        self.panel.ui.optionsSection.collapsed = True

    def reference(self, volume: Any, scan: Path, labels: Path) -> Any:
        classes = read_description(Path(self.panel.content.parameters.node.model)).classes
        array = read_label_map(labels, read_scan(scan).grid, scan_path=scan).array
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
        self.watch_looks()
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
        self.picture("done")
        ui.show3DButton.click()
        self.wait()
        ui.madeByButton.click()
        self.picture("what made it")
        ui.madeByButton.click()
        print(f"longest look at a job: {1000 * self.longest:.0f} ms of processor time")
        node = ui.resultSelector.currentNode()
        by_hand = slicer.util.getFirstNodeByName("By hand", "vtkMRMLSegmentationNode")
        if by_hand is not None:
            # The picture is of the last segmentation of the scene.
            slicer.mrmlScene.RemoveNode(by_hand)
        print(views.scene_picture(self.host.scene, self.folder / f"{self.prefix} views.png", title=node.GetName()))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("scan", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("labels", type=Path, nargs="?")
    parser.add_argument("--name", default="segmentation real", help="how the names of the pictures begin")
    given = parser.parse_args()
    folder = REPOSITORY / "build" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as workspace:
        os.environ["HYBRIDMIM_WORKSPACE"] = workspace
        host = start()
        try:
            show = Show(host, folder, given.name)
            show.without_input()
            show.with_model(given.model)
            show.with_scan(given.scan, given.labels)
            show.stopped()
            show.failed()
            show.done()
        finally:
            host.close()
            warm_worker().close()
    for one in problems.take():
        print(f"{one.kind}: {one.text}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
