"""The panel HybridMIM Training: joins its sections, in the order of the work, and the parameters in the scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer.util
from slicer.i18n import tr as _

from HybridMIMLib.runs import command_of
from HybridMIMLib.slicer_side.jobs import FINISHED, Job, attach_job
from HybridMIMLib.slicer_side.panels.data_section import DataSection
from HybridMIMLib.slicer_side.panels.elsewhere_section import ElsewhereSection
from HybridMIMLib.slicer_side.panels.environment_section import EnvironmentSection
from HybridMIMLib.slicer_side.panels.later import Later
from HybridMIMLib.slicer_side.panels.plan_section import PlanSection
from HybridMIMLib.slicer_side.panels.runs_section import RunsSection
from HybridMIMLib.slicer_side.panels.sample_part import SamplePart
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
)


class TrainingPanel:
    """All of the panel.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them.
        logic: ``HybridMIMTrainingLogic``, which has the parameters.

    Attributes:
        parameters: bound to the scene.
        samples, data, plan, work, runs, elsewhere, environment: the sections.
        lookups: looks for what a fine-tuning can start from.
    """

    def __init__(self, ui: Any, logic: Any) -> None:
        self._ui, self._updating = ui, False
        self._pretrainings: list[Pretraining] = []
        self.lookups = Later()
        # Sections ask for what the scene has while they are made.
        self.parameters = SceneParameters(logic.getParameterNode, ui, self._bound, self.update)
        self.data = DataSection(ui, self._data_changed)
        self.samples = SamplePart(ui, self._use_folders, self.update)
        self.plan = PlanSection(ui, self._plan_changed)
        self.work = WorkSection(ui, self._start, self.update, self._ended)
        self.runs = RunsSection(ui, self._attach, self._resume, self._use_model, self.update)
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
        self.update()

    def close(self) -> None:
        """The module is reloaded, or Slicer quits: a run goes on, and is found again."""
        self.lookups.close()
        for section in (self.samples, self.data, self.plan, self.work, self.runs, self.elsewhere, self.environment):
            section.close()
        self.parameters.close()

    def get_sample(self, identifier: str) -> None:
        """Make or download a set of sample data."""
        self._ui.samplesSection.collapsed = False
        self.samples.get(identifier)

    def update(self) -> None:
        """Show what the parameters have, and enable what can be done."""
        if self._updating:
            # Showing folders in lists changes parameters, which asks for the same again.
            return
        self._updating = True
        try:
            self._update()
        finally:
            self._updating = False

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
        return self.environment.changes or self.data.why_not(command) or self.plan.why_not()

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

        def found(pretrainings: list[Pretraining]) -> None:
            self._pretrainings = pretrainings
            if chosen is not None and self.parameters.node is not None:
                self.parameters.node.startFrom = str(chosen)
            self.update()

        self.lookups.ask(finished_pretrainings, found)

    def _show_start(self) -> None:
        node, combo = self.parameters.node, self._ui.startFromComboBox
        chosen = node.startFrom if node is not None else ""
        entries = [(_("Nothing: from scratch"), "")]
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

    # --- what becomes of runs -------------------------------------------------------------------------------------

    def _ended(self, job: Job) -> str:
        """What to tell the user of a run that has ended."""
        self.runs.refresh()
        is_pretraining = job.state == FINISHED and command_of(job.folder) == "pretrain"
        self._look_for_pretrainings(job.folder if is_pretraining else None)
        return what_was_made(job)

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
