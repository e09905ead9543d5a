"""The panel HybridMIM Training: joins its sections, in the order of the work, and the parameters in the scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt
import slicer.util
from slicer.i18n import tr as _

from HybridMIMLib.runs import command_of
from HybridMIMLib.slicer_side.jobs import FINISHED, Job, attach_job
from HybridMIMLib.slicer_side.panels.data_section import DataSection
from HybridMIMLib.slicer_side.panels.elsewhere_section import ElsewhereSection
from HybridMIMLib.slicer_side.panels.environment_section import EnvironmentSection
from HybridMIMLib.slicer_side.panels.explained import explain
from HybridMIMLib.slicer_side.panels.later import Later
from HybridMIMLib.slicer_side.panels.plan_section import PlanSection
from HybridMIMLib.slicer_side.panels.runs_section import RunsSection
from HybridMIMLib.slicer_side.panels.sample_part import SamplePart
from HybridMIMLib.slicer_side.panels.whole_panel import WholePanel
from HybridMIMLib.slicer_side.panels.work_section import WorkSection
from HybridMIMLib.slicer_side.scene_parameters import SceneParameters
from HybridMIMLib.slicer_side.training import (
    TRAININGS,
    Pretraining,
    finished_pretrainings,
    options_of,
    start_training,
    training_at_work,
    what_was_made,
    why_no_weights,
)

_LOOK_EVERY, _LOOKS = 2000, 30
"""Milliseconds between two looks for a run that has begun before this panel, and how many there are: it takes its
time until it says in its folder that it is at work."""


class TrainingPanel(WholePanel):
    """All of the panel.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them.
        logic: ``HybridMIMTrainingLogic``, which has the parameters.

    Attributes:
        parameters: bound to the scene.
        samples, data, plan, work, runs, elsewhere, environment: the sections.
        lookups: looks for what a fine-tuning can start from.
        finding: looks for a run at work.
    """

    def __init__(self, ui: Any, logic: Any) -> None:
        self._ui = ui
        explain(ui)
        self._pretrainings: list[Pretraining] = []
        self._just_made: Path | None = None
        self._why_no_weights: dict[str, str] = {}
        self.lookups, self.finding = Later(), Later()
        self._looks_left, self._finder = 0, qt.QTimer()
        self._finder.interval = _LOOK_EVERY
        self._finder.connect("timeout()", self._look_for_run)
        # Sections ask for what the scene has while they are made.
        self.parameters = SceneParameters(logic.getParameterNode, ui, self._bound, self.update)
        self.data = DataSection(ui, self._data_changed)
        self.samples = SamplePart(ui, self._use_folders, self.update)
        self.plan = PlanSection(ui, self._plan_changed)
        self.work = WorkSection(ui, self._start, self.update, self._ended)
        self.runs = RunsSection(ui, self._attach, self._resume, self._use_model, self._runs_changed)
        self.elsewhere = ElsewhereSection(ui, self._options, self.update, self._imported)
        self.environment = EnvironmentSection(ui, self.update)
        ui.startFromComboBox.connect("activated(int)", self._start_chosen)
        self.parameters.bind()
        self.enter()

    def enter(self) -> None:
        """The panel is shown: runs may have come, and gone, while another module was, and files have changed."""
        self.data.refresh()
        self._look_for_pretrainings()
        if not self.work.busy:
            job = training_at_work()
            if job is not None:
                self.work.follow(job)
        self._looks_left = _LOOKS
        self._finder.start()
        self.update()

    def close(self) -> None:
        """The module is reloaded, or Slicer quits: a run goes on, and is found again."""
        self._finder.stop()
        self.lookups.close()
        self.finding.close()
        for section in (self.samples, self.data, self.plan, self.work, self.runs, self.elsewhere, self.environment):
            section.close()
        self.parameters.close()

    def get_sample(self, identifier: str) -> None:
        """Make or download a set of sample data."""
        self._ui.samplesSection.collapsed = False
        self.samples.get(identifier)

    def _update(self) -> None:
        node, packages = self.parameters.node, self.environment.changes
        if node is not None:
            self.data.set_folders(node.unlabelledFolder, node.labelledFolder)
            self.plan.load(node.plan)
        self._show_start()
        self.samples.update(packages)
        self.data.update(packages)
        self.plan.update(self.data.unlabelled, self.data.labelled, packages)
        self.work.update({command: self._why_not(command) for command in TRAININGS})
        followed = self.work.job.folder if self.work.busy and self.work.job is not None else None
        self.runs.update(packages, followed)
        self.elsewhere.update(packages)
        sections = (self.samples, self.data, self.plan, self.work, self.runs, self.elsewhere)
        busy = any(section.busy for section in sections)
        self.environment.update(_("Wait until the other sections have ended.") if busy else "")

    def _why_not(self, command: str) -> str:
        """Why a command cannot be started, as a sentence; empty if it can."""
        if self.parameters.node is None:
            return _("The scene is being changed.")
        reason = self.environment.changes or self.data.why_not(command) or self.plan.why_not(command)
        return reason or (self._why_no_start() if command == "finetune" else "")

    def _why_no_start(self) -> str:
        """Asked of the disk once for a path, until runs have changed or the panel is looked at again."""
        path = str(self._options("finetune").get("weights", ""))
        if path not in self._why_no_weights:
            self._why_no_weights[path] = why_no_weights(path)
        return self._why_no_weights[path]

    # --- what a run is started with -------------------------------------------------------------------------------

    def _options(self, command: str) -> dict[str, object]:
        node = self.parameters.node
        start = node.startFrom if node is not None else ""
        return options_of(command, self.data.unlabelled, self.data.labelled, self.plan.options(), start)

    def _start(self, command: str) -> Job:
        return start_training(command, self._options(command))

    def _use_folders(self, unlabelled: Path, labelled: Path) -> None:
        """Take the folders of a set of sample data."""
        if self.parameters.node is not None:
            with slicer.util.NodeModify(self.parameters.node):
                self.parameters.node.unlabelledFolder = str(unlabelled)
                self.parameters.node.labelledFolder = str(labelled)

    def _data_changed(self) -> None:
        node = self.parameters.node
        if node is not None and not self._updating:
            with slicer.util.NodeModify(node):
                node.unlabelledFolder, node.labelledFolder = self.data.unlabelled, self.data.labelled
        self.update()

    def _plan_changed(self) -> None:
        if self.parameters.node is not None and not self._updating:
            self.parameters.node.plan = self.plan.dump()
        self.update()

    def _bound(self) -> None:
        """A scene has come: what it keeps is shown by the update that follows."""

    # --- what a fine-tuning starts from ---------------------------------------------------------------------------

    def _look_for_pretrainings(self, chosen: Path | None = None) -> None:
        """List what there is to start from.

        Args:
            chosen: the one that is meant from now on; None: as it was.
        """
        # Whoever asks once more before the answer has come means the same.
        self._just_made = chosen or self._just_made

        def found(pretrainings: list[Pretraining]) -> None:
            self._pretrainings, made, self._just_made = pretrainings, self._just_made, None
            self._why_no_weights.clear()
            if made is not None and self.parameters.node is not None:
                self.parameters.node.startFrom = str(made)
            self.update()

        self.lookups.ask(finished_pretrainings, found)

    def _show_start(self) -> None:
        node, combo = self.parameters.node, self._ui.startFromComboBox
        chosen = node.startFrom if node is not None else ""
        weights = str(self.plan.options().get("weights", ""))
        nothing = _("Weights of the plan: {path}").format(path=weights) if weights else _("Nothing: from scratch")
        entries = [(nothing, "")]
        entries += [(one.name, str(one.folder)) for one in self._pretrainings]
        if chosen not in [path for _name, path in entries]:
            entries.append((_("{path} (not found in the workspace)").format(path=chosen), chosen))
        there = [(combo.itemText(number), combo.itemData(number)) for number in range(combo.count)]
        if there != entries:
            combo.clear()
            for name, path in entries:
                combo.addItem(name, path)
        combo.setCurrentIndex([path for _name, path in entries].index(chosen))

    def _start_chosen(self, number: int) -> None:
        if self.parameters.node is not None:
            self.parameters.node.startFrom = str(self._ui.startFromComboBox.itemData(number) or "")

    # --- a run that has begun before --------------------------------------------------------------------------------

    def _look_for_run(self) -> None:
        """Find the run that was begun just before the module was reloaded, or by another Slicer."""
        self._looks_left -= 1
        if self.work.busy or self._looks_left < 0:
            self._finder.stop()
        elif not self.finding.busy:
            self.finding.ask(training_at_work, self._found_run)

    def _found_run(self, job: Job | None) -> None:
        if job is not None and not self.work.busy:
            self.work.follow(job)

    # --- what becomes of runs -------------------------------------------------------------------------------------

    def _ended(self, job: Job) -> str:
        """What to tell the user of a run that has ended."""
        self.runs.refresh()
        is_pretraining = job.state == FINISHED and command_of(job.folder) == "pretrain"
        self._look_for_pretrainings(job.folder if is_pretraining else None)
        return what_was_made(job)

    def _runs_changed(self) -> None:
        """A package was made, or runs were deleted, from which a fine-tuning could have started."""
        self._look_for_pretrainings()
        self.update()

    def _attach(self, folder: Path) -> None:
        job = attach_job(folder)
        if job is not None:
            self.work.follow(job)
            self._ui.workSection.collapsed = False

    def _resume(self, folder: Path) -> None:
        self._ui.workSection.collapsed = False
        if self.work.busy:
            self.work.jobs.say(
                _("Pause or cancel the run that is at work, then resume the other one."), is_error=True
            )
        else:
            self.work.resume(folder)

    def _use_model(self, folder: Path) -> None:
        """Go to the other module with a model package."""
        slicer.util.selectModule("HybridMIMSegmentation")
        slicer.util.getModuleWidget("HybridMIMSegmentation").selectModel(folder)

    def _imported(self, folder: Path) -> None:
        """A run has come back, into the workspace."""
        self.runs.refresh()
        self._look_for_pretrainings()
