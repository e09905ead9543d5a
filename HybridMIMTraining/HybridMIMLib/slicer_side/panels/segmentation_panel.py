"""The panel HybridMIM Segmentation: joins its sections, the parameters in the scene and the job at work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from HybridMIMLib.errors import HybridMIMError
from HybridMIMLib.slicer_side.environment import ensure_packages
from HybridMIMLib.slicer_side.inputs import why_not
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED, Work
from HybridMIMLib.slicer_side.panel import JobPanel
from HybridMIMLib.slicer_side.panels.batch_section import BatchSection
from HybridMIMLib.slicer_side.panels.environment_section import EnvironmentSection
from HybridMIMLib.slicer_side.panels.explained import explain
from HybridMIMLib.slicer_side.panels.input_section import InputSection
from HybridMIMLib.slicer_side.panels.learn_section import LearnSection
from HybridMIMLib.slicer_side.panels.model_section import ModelSection
from HybridMIMLib.slicer_side.panels.output_section import OutputSection
from HybridMIMLib.slicer_side.panels.result_section import ResultSection
from HybridMIMLib.slicer_side.panels.time_line import TimeLine
from HybridMIMLib.slicer_side.panels.whole_panel import WholePanel
from HybridMIMLib.slicer_side.panels.widgets import allow, say
from HybridMIMLib.slicer_side.scene_parameters import SceneParameters
from HybridMIMLib.slicer_side.segmentation import SegmentationJob
from HybridMIMLib.slicer_side.segments import Node

_LOOKS_EVERY = 30
"""Milliseconds: each look does a piece of the work."""


class SegmentationPanel(WholePanel):
    """All of the panel.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them.
        logic: ``HybridMIMSegmentationLogic``, which starts jobs and has the parameters.

    Attributes:
        jobs: the job at work, if there is one.
        parameters: bound to the scene.
        models, inputs, output, time, results, batch, learn, environment: the sections.
    """

    def __init__(self, ui: Any, logic: Any) -> None:
        self._ui, self._logic = ui, logic
        explain(ui)
        self.jobs = JobPanel(ui, self._ended, self.update, _LOOKS_EVERY)
        self.models = ModelSection(ui, self.select_model, self.jobs.follow)
        self.inputs = InputSection(ui, self.update)
        self.output = OutputSection(ui)
        self.time = TimeLine(ui)
        self.results = ResultSection(ui, self.jobs.follow, self.jobs.say, self.update)
        self.batch = BatchSection(ui, self.update)
        self.learn = LearnSection(ui, self.update, self._loaded)
        self.environment = EnvironmentSection(ui, self.update)
        ui.applyButton.connect("clicked(bool)", self.apply)
        self.parameters = SceneParameters(logic.getParameterNode, ui, self._bound, self.update)
        self.parameters.bind()

    def enter(self) -> None:
        """The panel is shown: models may have come, and gone, while another module was."""
        self._bound()
        self.update()

    def close(self) -> None:
        """The module is reloaded, or Slicer quits: nobody would take the result of a job."""
        self.jobs.close(stop_job=True)
        for section in (self.time, self.batch, self.learn, self.environment):
            section.close()
        self.parameters.close()

    def select_model(self, folder: str | Path) -> None:
        """Choose a model package."""
        if self.parameters.node is not None:
            self.parameters.node.model = str(folder)
        # The package of that folder may be another one now.
        self.models.show(str(folder))
        self.update()

    def apply(self) -> None:
        """Start; whatever is in the way is told in the panel."""
        # While packages are installed the button could be pressed once more.
        self._ui.applyButton.enabled = False
        self.jobs.say("")
        try:
            ensure_packages()
            self.jobs.follow(self._start())
        except HybridMIMError as error:
            self.jobs.say(str(error), is_error=True)
            self.models.show(self.parameters.node.model)
        finally:
            self.update()

    def _update(self) -> None:
        node, ui = self.parameters.node, self._ui
        if node is not None and node.model != self.models.chooser.chosen:
            self.models.show(node.model)
        model = self.models.chooser.model
        self.inputs.show(node, model)
        self.output.show(node, model)
        shown = (node.resultSegmentation, node.reference) if node is not None else (None, None)
        self.results.show(*shown)
        busy = _("Wait until what is at work has ended, or press Cancel.") if self.jobs.busy else ""
        packages = self.environment.changes
        reason = packages or self._why_not()
        allow(ui.applyButton, busy or reason, _("Segment the volume in a process of its own."))
        say(ui.hintLabel, "" if busy else reason)
        can_start = node is not None and not busy and not reason
        quality = node.quality.name if node is not None else "balanced"
        given = self.inputs.given() if can_start else None
        self.time.show(given, model, quality, node is not None and node.region is not None)
        self.models.update(busy)
        self.results.update(busy)
        self.batch.update(model, quality, packages)
        self.learn.update(node, model, packages)
        others = self.batch.busy or self.learn.busy
        self.environment.update(busy or (_("Wait until the other sections have ended.") if others else ""))

    def _why_not(self) -> str:
        """Why Apply cannot be pressed, as a sentence; empty if it can."""
        node, model = self.parameters.node, self.models.chooser.model
        region = node.region if node is not None else None
        # A newcomer lacks both, and is told so at once.
        reasons = [why_not(self.inputs.given(), model, region), self.models.chooser.problem]
        if model is not None and not any(reasons):
            reasons = [self.output.why_not(self.inputs.sequence, model)]
        return "\n".join(one for one in reasons if one)

    def _start(self) -> SegmentationJob:
        node, output = self.parameters.node, self.output.output()
        job: SegmentationJob = self._logic.start(
            self.inputs.given(),
            node.model,
            roiNode=node.region,
            outputSegmentationNode=output.segmentation,
            outputMode=output.mode,
            classes=output.classes,
            inference={"preset": node.quality.name},
            referenceNode=output.reference,
        )
        return job

    def _ended(self, work: Work) -> str:
        """What to tell the user of what has ended."""
        if work.state == FAILED:
            self._ui.logSection.collapsed = self._ui.logSection.collapsed and not work.said
        if work.state != FINISHED or not isinstance(work, SegmentationJob):
            return work.message
        self.time.refresh()
        if self.parameters.node is not None:
            self.parameters.node.resultSegmentation = work.segmentation
            self.learn.offer(work.volume, work.segmentation)
        self._ui.resultSection.collapsed = False
        backup = work.made.backup if work.made is not None else None
        if backup is None:
            return work.message
        kept = _("What was there before is kept in {name}; Restore takes it back.").format(name=backup.GetName())
        return f"{work.message} {kept}"

    def _loaded(self, volume: Node) -> None:
        """A scan was loaded to be labelled: it is segmented next."""
        if self.parameters.node is not None:
            self.parameters.node.inputVolume = volume

    def _bound(self) -> None:
        """The first volume and the newest model are chosen where none is."""
        node = self.parameters.node
        if not node.inputVolume:
            # As the list has them: without hidden ones, label maps and other kinds of volumes.
            node.inputVolume = self._ui.inputVolumeSelector.nodeFromIndex(0)
        self.models.show(node.model)
        node.model = self.models.chooser.chosen
