"""Pictures of the panel HybridMIM Training at work: each section in use, on the synthetic set that it draws itself.

    python Testing/Slicer/pictures_of_training.py [--name NAME] [--keep]

Everything is done by clicking in the real panel, with real child processes, in a workspace of its own; it takes a few
minutes on two cores. The pictures go to ``build/pictures``; what is printed besides is how each run ended, and the
longest look at one. With ``--keep`` those of the documentation are written into ``Resources/Pictures`` as well.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TESTING = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTING), str(TESTING.parent / "HybridMIMTraining")]

import slicer  # noqa: E402
from panel_pictures import MODULES, Show, slicer_at_work  # noqa: E402
from SlicerHost import Host, dialogs, views  # noqa: E402

from HybridMIMLib.slicer_side.preview_nodes import shown_previews  # noqa: E402

KEPT = {
    "samples": "training-samples",
    "data": "training-data",
    "plan": "training-plan",
    "pre-training": "training-pretraining",
    "losses": "training-losses",
    "previews": "training-previews",
    "model ready": "training-model",
    "runs": "training-runs",
    "compared": "training-compared",
    "elsewhere": "training-elsewhere",
    "failed": "training-failed",
}
"""Pictures of the documentation, and what they are called there."""

SECTIONS = ("samples", "data", "plan", "work", "runs", "elsewhere", "environment")
PRESET = "ct-abdomen"
CHANGES = {
    "name": "Phantoms",
    "plan.crop": "48 32 32",
    "plan.region": "16",
    "plan.spacing": "",
    "plan.window": "-300 400",
    "pretraining.steps": "80",
    "finetuning.steps": "150",
    "pretraining.measure_every": "10",
    "pretraining.preview_every": "40",
    "finetuning.batch": "2",
    "finetuning.validate_every": "50",
}
"""What is typed into the plan: small enough for two cores, and yet something is learnt."""


class TrainingShow(Show):
    """The panel, from the first look to several runs that are compared."""

    def __init__(self, host: Host, prefix: str) -> None:
        super().__init__(host, MODULES[0], prefix)
        self.content = self.panel.content
        self.watch_looks(self.content.work.jobs)

    def open(self, section: str) -> None:
        """Unfold one section, and fold the others."""
        for name in SECTIONS:
            getattr(self.ui, f"{name}Section").collapsed = name != section

    def press(self, button: str) -> None:
        """A button that can be pressed."""
        widget = getattr(self.ui, button)
        assert widget.enabled, f"{button}: {widget.toolTip}"
        widget.click()

    def wait_for(self, part: Any) -> None:
        """Until nothing is at work in a part of the panel."""
        self.wait(lambda: not part.busy)

    def first_look(self) -> None:
        self.picture("first look")

    def samples(self) -> None:
        self.open("samples")
        self.press("sampleGetButton")
        self.wait_for(self.content.samples)
        self.picture("samples")
        self.press("sampleUseButton")

    def data(self) -> None:
        self.open("data")
        self.press("dataCheckButton")
        self.wait_for(self.content.data)
        self.wait(lambda: self.content.data.checked is not None)
        self.ui.dataTable.cellDoubleClicked.emit(0, 0)
        self.wait_for(self.content.data)
        self.picture("data")
        for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
            # Another scan is shown later.
            node.GetDisplayNode().SetVisibility(False)

    def plan(self) -> None:
        ui = self.ui
        self.open("plan")
        number = next(n for n in range(ui.planPresetComboBox.count) if PRESET in ui.planPresetComboBox.itemText(n))
        ui.planPresetComboBox.setCurrentIndex(number)
        ui.planPresetComboBox.activated.emit(number)
        ui.planAdvancedSection.collapsed = False
        for name, text in CHANGES.items():
            line = next(rows.editors[name] for rows in self.content.plan._rows if name in rows.editors)
            line.text = text
            line.textEdited.emit(text)
        self.picture("plan, advanced")
        ui.planAdvancedSection.collapsed = True
        self.press("planEstimateButton")
        self.wait_for(self.content.plan)
        self.picture("plan")

    def pretrain(self) -> Path:
        """Returns the run."""
        self.open("work")
        self.picture("ready")
        self.press("workPretrainButton")
        self.curves("losses", at_once=False)
        self.wait_for_step("pretrain", 55)
        self.picture("pre-training")
        folder = self.wait_for_end()
        self.picture("pre-trained")
        self.curves("losses")
        self.curves("heads")
        self.previews()
        return folder

    def curves(self, group: str, at_once: bool = True) -> None:
        """Show a chart by its button, and draw what it has."""
        combo, section = self.ui.workCurvesComboBox, self.content.work
        number = next(n for n in range(combo.count) if group in combo.itemText(n).lower())
        combo.setCurrentIndex(number)
        combo.activated.emit(number)
        self.press("workCurvesButton")
        if at_once:
            self.wait(lambda: not section._wanted)
            views.chart_picture(section._charts[section._group()].node, self.path(group))

    def previews(self) -> None:
        self.press("workPreviewButton")
        self.wait_for(self.content.work.loads)
        self.picture("preview loaded")
        shown = shown_previews(slicer.mrmlScene)
        wanted = {name.capitalize(): shown[name] for name in ("original", "masked", "reconstructed")}
        views.slices_picture(wanted, self.path("previews"))

    def finetune(self) -> Path:
        """From what was learnt; returns the run."""
        self.wait_for(self.content.lookups)
        self.press("workFinetuneButton")
        self.wait_for_step("finetune", 60)
        self.picture("fine-tuning")
        folder = self.wait_for_end()
        self.picture("model ready")
        self.curves("dice")
        return folder

    def from_scratch(self) -> Path:
        """Without what was learnt; returns the run."""
        self.ui.startFromComboBox.setCurrentIndex(0)
        self.ui.startFromComboBox.activated.emit(0)
        self.press("workFinetuneButton")
        return self.wait_for_end()

    def failed(self) -> None:
        """The run is killed, as by a system without memory."""
        self.press("workTrainButton")
        self.wait_for_step("pretrain", 5)
        os.kill(self.content.work.job._process.pid, 9)
        self.wait_for_end()
        self.picture("failed")
        self.ui.workLogButton.checked = False

    def runs(self, compared: Sequence[Path]) -> None:
        """Compare runs, while another one is at work, which is paused then."""
        self.press("workPretrainButton")
        self.wait_for_step("pretrain", 5)
        self.open("runs")
        runs, table = self.content.runs, self.ui.runsTable
        self.wait(lambda: set(compared) <= set(runs.runs) and len(runs._sizes) == len(runs.runs))
        runs.choose(compared[0])
        self.wait(lambda: runs._details is not None and not runs._closer.busy)
        self.picture("runs, one chosen")
        # What asks for Qt can be imported once the stand-in is there.
        import qt

        mode = qt.QItemSelectionModel.Select | qt.QItemSelectionModel.Rows
        row = list(runs._view._rows).index(compared[1])
        table.selectionModel().select(table.model().index(row, 0), mode)
        self.press("runsCompareButton")
        self.wait(lambda: runs._chart.node is not None and not runs._reading.busy)
        self.picture("runs")
        views.chart_picture(runs._chart.node, self.path("compared"))
        self.open("work")
        self.press("workPauseButton")
        self.wait_for_end()
        self.picture("paused")

    def elsewhere(self, target: Path) -> None:
        self.open("elsewhere")
        self.ui.elsewhereFolderPathLineEdit.currentPath = str(target)
        self.picture("elsewhere, before")
        self.press("elsewhereExportButton")
        self.wait_for(self.content.elsewhere)
        self.picture("elsewhere")

    def environment(self) -> None:
        self.open("environment")
        self.wait(lambda: not self.content.environment.lookups.busy)
        self.picture("environment")

    def wait_for_step(self, phase: str, step: int) -> None:
        """Until the run that is followed has done so many steps."""

        def is_there() -> bool:
            assert self.content.work.busy, self.ui.workMessageLabel.text
            progress = self.content.work.job.progress
            return progress.phase == phase and progress.step >= step

        self.wait(is_there)

    def wait_for_end(self) -> Path:
        """Until the run has ended; returns its folder."""
        self.wait_for(self.content.work)
        print(self.ui.workMessageLabel.text, flush=True)
        return self.content.work.job.folder


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--name", default="training phantoms", help="how the names of the pictures begin")
    parser.add_argument("--keep", action="store_true", help="write those of the documentation, too")
    given = parser.parse_args()
    with slicer_at_work() as (host, workspace):
        show = TrainingShow(host, given.name)
        show.first_look()
        show.samples()
        show.data()
        show.plan()
        show.pretrain()
        tuned = show.finetune()
        untaught = show.from_scratch()
        show.failed()
        show.runs([tuned, untaught])
        show.elsewhere(workspace / "for the workstation")
        show.environment()
        show.tell_looks()
        assert not dialogs.unanswered()
        if given.keep:
            show.keep(KEPT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
