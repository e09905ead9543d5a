"""Training at work: begun, paused, resumed and stopped, with its curves as plots and its previews as volumes.

The work is done by a process that outlives Slicer. A pause saves the step that it is at and ends the process, so that
memory is free and the machine may be switched off; what is resumed goes on exactly there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from HybridMIMLib.errors import HybridMIMError
from HybridMIMLib.events import duration
from HybridMIMLib.files import size_in_words
from HybridMIMLib.measures import in_words
from HybridMIMLib.slicer_side.curves import DICE, HEADS, LOSSES, OTHERS, RunCurves, group_of
from HybridMIMLib.slicer_side.environment import ensure_packages
from HybridMIMLib.slicer_side.jobs import FAILED, STOPPED, STOPPING, Job, Work
from HybridMIMLib.slicer_side.panel import JobPanel
from HybridMIMLib.slicer_side.panels.later import Later
from HybridMIMLib.slicer_side.panels.parts import job_widgets, show_in_slices
from HybridMIMLib.slicer_side.panels.widgets import allow, say, show
from HybridMIMLib.slicer_side.plan_choices import for_user
from HybridMIMLib.slicer_side.plots import Chart
from HybridMIMLib.slicer_side.preview_nodes import Previews, find_previews, in_order, load_previews, shown_previews
from HybridMIMLib.slicer_side.progress import RunProgress, Value
from HybridMIMLib.slicer_side.run_actions import resume_run
from HybridMIMLib.slicer_side.segments import Node
from HybridMIMLib.slicer_side.step_work import StepWork

_READ_EVERY, _LOOK_EVERY, _PIECES_EVERY = 60, 3000, 30
"""Milliseconds: between two looks at the log for the curves, at the folder of previews, and two pieces of loading."""
_SECONDS_BETWEEN_DRAWINGS = 1.0

_SHARES = (0, 1.02)
"""Ends of the axis of what is 1 at most; a curve at 1 is not to lie on the frame."""

_TRAININGS = ("pretrain", "finetune")
"""Phases whose steps the plan counts."""

_PAUSED = "HybridMIM/pausedRun"
"""Setting: folder of the run that can be resumed here."""

_FIRST_SHOWN = "reconstructed"
_ROWS_AT_ONCE, _ROW_HEIGHT = 7, 24
"""Of the table of losses, in pixels."""
_ANEW = -1
"""Stands for how many changes a chart shows, where it is to be drawn whatever is in it."""


class WorkSection:
    """Binds the widgets of ``Work.ui``.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them.
        start: starts a command (pretrain, finetune, train or study) with what is chosen above.
        on_change: called when a run begins and when it has ended.
        on_end: called with a run that has ended; says what to tell the user of one that has finished or failed.

    Attributes:
        jobs: follows the run.
        loads: follows the loading of a preview.
        lookups: what is asked of the disk.
    """

    def __init__(
        self, ui: Any, start: Callable[[str], Job], on_change: Callable[[], None], on_end: Callable[[Job], str]
    ) -> None:
        self._ui, self._start, self._on_change, self._on_end = ui, start, on_change, on_end
        self._reasons: Mapping[str, str] = {}
        self._folder: Path | None = None
        self._resumable: Path | None = None
        self._curves: RunCurves | None = None
        self._charts = {
            LOSSES: Chart("HybridMIM losses", _("step"), _("loss")),
            DICE: Chart("HybridMIM Dice", _("step"), _("Dice on the validation scans"), _SHARES),
            HEADS: Chart("HybridMIM heads", _("step"), _("share of right answers"), _SHARES),
            OTHERS: Chart("HybridMIM measures", _("step"), _("value")),
        }
        self._drawn: dict[str, int] = {}
        self._wanted = ""
        self._drawn_at = 0.0
        self._previews: Previews | None = None
        self.lookups, self._resuming = Later(), Later()
        self.jobs = _RunPanel(_run_widgets(ui), self._ended, self._changed, self._looked)
        self.loads = JobPanel(job_widgets(ui, "workPreview"), lambda work: work.message, self._show, _PIECES_EVERY)
        for command, button in self._buttons().items():
            button.connect("clicked(bool)", lambda _checked, command=command: self._begin(command))
        ui.workPauseButton.connect("clicked(bool)", lambda _checked: self._pause())
        ui.workResumeButton.connect("clicked(bool)", lambda _checked: self._resume())
        ui.workCurvesButton.connect("clicked(bool)", lambda _checked: self._show_curves())
        ui.workCurvesComboBox.connect("activated(int)", lambda _number: self._chart_chosen())
        ui.workPreviewButton.connect("clicked(bool)", lambda _checked: self._load_preview())
        ui.workPreviewShowComboBox.connect("activated(int)", lambda _number: self._show_preview())
        ui.workValuesTable.verticalHeader().setDefaultSectionSize(_ROW_HEIGHT)
        ui.workLogButton.connect("toggled(bool)", lambda _checked: self._show())
        show(False, ui.workPreviewLogTextEdit)
        self._reader, self._looker = qt.QTimer(), qt.QTimer()
        self._reader.interval, self._looker.interval = _READ_EVERY, _LOOK_EVERY
        self._reader.connect("timeout()", self._read)
        self._looker.connect("timeout()", self._look_for_previews)
        scene = slicer.mrmlScene
        self._observed = scene, scene.AddObserver(scene.EndCloseEvent, lambda _scene, _event: self._scene_closed())
        self.lookups.ask(partial(_look_for_paused, qt.QSettings().value(_PAUSED)), self._found_paused)
        self._show_look(RunProgress())
        say(ui.workCurvesHintLabel, "")
        self._show()

    @property
    def busy(self) -> bool:
        """Whether a run is at work here."""
        return self.jobs.busy or self._resuming.busy

    @property
    def job(self) -> Job | None:
        """The run that is shown, at work or not."""
        job = self.jobs.job
        return job if isinstance(job, Job) else None

    def update(self, reasons: Mapping[str, str]) -> None:
        """Enable what can be done.

        Args:
            reasons: why each command cannot be started; empty or missing where it can.
        """
        self._reasons = dict(reasons)
        if self._resumable is not None and not (self._resumable / "run.yaml").is_file():
            # It was deleted, or its drive is gone.
            self._resumable = None
        self._show()

    def follow(self, job: Job) -> None:
        """Show a run, whoever started it."""
        if job.folder != self._folder:
            self._folder, self._curves, self._previews = job.folder, None, None
            # Charts that are there show this run from now on.
            self._drawn = {group: _ANEW for group in self._drawn if self._charts[group].node is not None}
        self._resumable = None
        self._looker.start()
        if self._is_drawing:
            self._reader.start()
        self.jobs.follow(job)
        self._look_for_previews()

    def resume(self, folder: Path) -> None:
        """Go on with a run that was paused, stopped or failed."""
        if self.busy:
            return
        self.jobs.say("")
        try:
            ensure_packages()
        except HybridMIMError as error:
            self.jobs.say(str(error), is_error=True)
            return
        self._resuming.ask(partial(_resumed, folder), self._take_resumed)
        self._changed()

    def close(self) -> None:
        """The panel is closed: the run goes on without it."""
        scene, tag = self._observed
        scene.RemoveObserver(tag)
        for one in (self._reader, self._looker):
            one.stop()
        for later in (self.lookups, self._resuming):
            later.close()
        self.loads.close(stop_job=True)
        self.jobs.close(stop_job=False)

    # --- beginning and ending ---------------------------------------------------------------------------------

    def _buttons(self) -> dict[str, Any]:
        ui = self._ui
        return {
            "pretrain": ui.workPretrainButton,
            "finetune": ui.workFinetuneButton,
            "train": ui.workTrainButton,
            "study": ui.workStudyButton,
        }

    def _begin(self, command: str) -> None:
        # While packages are installed a button could be pressed once more.
        for button in self._buttons().values():
            button.enabled = False
        self.jobs.say("")
        try:
            ensure_packages()
            self.follow(self._start(command))
        except HybridMIMError as error:
            self.jobs.say(str(error), is_error=True)
        finally:
            self._show()

    def _pause(self) -> None:
        if self.job is not None:
            self.job.pause()
            self._show()

    def _resume(self) -> None:
        if self._resumable is not None:
            self.resume(self._resumable)

    def _take_resumed(self, found: Job | HybridMIMError) -> None:
        if isinstance(found, HybridMIMError):
            self.jobs.say(str(found), is_error=True)
        else:
            self.follow(found)
        self._changed()

    def _found_paused(self, folder: Path | None) -> None:
        if folder is not None and self._folder is None:
            self._resumable = self._folder = folder
            self._look_for_previews()
            self._show()

    def _ended(self, work: Work) -> str:
        assert isinstance(work, Job)
        text = self._on_end(work)
        self._show_look(work.progress)
        self._looker.stop()
        self._look_for_previews()
        # One that ended before it wrote down what it was to do can only be started anew.
        has_begun = (work.folder / "run.yaml").is_file()
        self._resumable = work.folder if work.state in (STOPPED, FAILED) and has_begun else None
        qt.QSettings().setValue(_PAUSED, str(self._resumable or ""))
        if work.state == FAILED and work.said:
            self._ui.workLogButton.checked = True
        return _how_it_ended(work, text or work.message, has_begun)

    # --- looking ----------------------------------------------------------------------------------------------

    def _looked(self, work: Work) -> None:
        self._show_look(work.progress)
        if isinstance(work, Job) and work.pausing and work.state == STOPPING:
            self._ui.workStatusLabel.text = _("Pausing: it finishes the step that it is at, and saves it…")
        self._show_control()

    def _show_look(self, progress: RunProgress) -> None:
        ui, left = self._ui, progress.seconds_left_in_all
        whole = _("All that is to come, this included: about {time} left.")
        say(ui.workWholeLabel, whole.format(time=duration(left)) if left is not None and self.jobs.busy else "")
        say(ui.workMemoryLabel, _memory_in_words(progress.memory) if self.jobs.busy else "")
        heads = in_words({name: value.now for name, value in progress.values.items()})
        lines = [_("What the network can tell by now:"), *(f"\u2022 {one}" for one in heads)]
        say(ui.workHeadsLabel, "\n".join(lines) if heads else "")

    def _show(self) -> None:
        ui = self._ui
        at_work = _("A run is at work: pause or cancel it first.") if self.busy else ""
        for command, button in self._buttons().items():
            allow(button, at_work or self._reasons.get(command, ""), _tips()[command])
        say(ui.workHintLabel, "" if at_work else self._why_nothing_starts())
        text = _("Run: {name}").format(name=self._folder.name) if self._folder is not None else ""
        say(ui.workRunLabel, text)
        self._show_control()
        nothing = "" if self._folder is not None else _("Start a run first, or attach one in Runs.")
        allow(ui.workCurvesButton, nothing, _("Show a chart that follows the run, in a layout with a plot."))
        self._show_previews(nothing)
        show(bool(ui.workLogButton.checked), ui.workLogTextEdit)
        show(self.loads.busy, ui.workPreviewCancelButton)

    def _show_control(self) -> None:
        job = self.job
        stopping = _("It is stopping already.") if job is not None and job.state == STOPPING else ""
        idle = "" if self.jobs.busy else _("Nothing is at work.")
        pause = _("Save the step that it is at and end: memory is free then, and Slicer and the machine may be off.")
        allow(self._ui.workPauseButton, idle or stopping, pause)
        at_work = _("It is at work.") if self.busy else ""
        nothing = "" if self._resumable is not None else _("Nothing was paused here; others are resumed in Runs.")
        name = self._resumable.name if self._resumable is not None else ""
        tip = _("Go on with {name} exactly where it was saved.").format(name=name)
        allow(self._ui.workResumeButton, at_work or nothing, tip)

    def _why_nothing_starts(self) -> str:
        """The reasons, each once, with the buttons that it holds for."""
        names: dict[str, list[str]] = {}
        for command, button in self._buttons().items():
            if self._reasons.get(command):
                names.setdefault(self._reasons[command], []).append(f"\u201c{button.text}\u201d")
        if len(names) == 1 and len(next(iter(names.values()))) == len(self._buttons()):
            return next(iter(names))
        return "\n".join(f"{', '.join(those)}: {reason}" for reason, those in names.items())

    def _changed(self) -> None:
        self._show()
        self._on_change()

    # --- curves -----------------------------------------------------------------------------------------------

    @property
    def _is_drawing(self) -> bool:
        """Whether a chart is in the scene that the user has asked for."""
        return any(self._charts[group].node is not None for group in self._drawn)

    def _group(self) -> str:
        return (LOSSES, DICE, HEADS, OTHERS)[int(self._ui.workCurvesComboBox.currentIndex)]

    def _show_curves(self) -> None:
        self._wanted = self._group()
        self._drawn[self._wanted] = _ANEW
        self._drawn_at = 0.0
        say(self._ui.workCurvesHintLabel, _("Reading the log of the run…"))
        self._reader.start()

    def _chart_chosen(self) -> None:
        """Another chart is wanted, where one is looked at already."""
        say(self._ui.workCurvesHintLabel, "")
        if self._is_drawing:
            self._show_curves()

    def _read(self) -> None:
        """Read a little of the log, and draw now and then."""
        if self._folder is None:
            self._reader.stop()
            return
        if self._curves is None:
            self._curves = RunCurves(self._folder)
        has_more = self._curves.read()
        if not has_more and time.monotonic() - self._drawn_at > _SECONDS_BETWEEN_DRAWINGS:
            self._draw(self._curves, self._folder.name)
        if not has_more and not self.jobs.busy:
            self._draw(self._curves, self._folder.name)
            self._reader.stop()

    def _draw(self, curves: RunCurves, name: str) -> None:
        """Bring the charts up to date that the user has asked for and that are there still."""
        self._drawn_at = time.monotonic()
        for group, drawn in list(self._drawn.items()):
            chart, series = self._charts[group], curves.of(group)
            if drawn != _ANEW and chart.node is None:
                # It was deleted, or the scene was closed: it does not come back by itself.
                del self._drawn[group]
            elif drawn != curves.changes and series:
                chart.show(series, name)
                self._drawn[group] = curves.changes
        if not self._drawn:
            self._reader.stop()
        if self._wanted and self._charts[self._wanted].node is not None:
            self._charts[self._wanted].bring_up()
            self._wanted = ""
            say(self._ui.workCurvesHintLabel, "")
        elif self._wanted:
            say(self._ui.workCurvesHintLabel, _why_no_curves(self._wanted))

    def _scene_closed(self) -> None:
        self._drawn, self._wanted = {}, ""
        self._reader.stop()
        say(self._ui.workCurvesHintLabel, "")
        self._show()

    # --- previews ---------------------------------------------------------------------------------------------

    def _look_for_previews(self) -> None:
        if self._folder is not None and not self.lookups.busy:
            self.lookups.ask(partial(_previews_of, self._folder), self._found_previews)

    def _found_previews(self, found: Previews | None) -> None:
        combo, before = self._ui.workPreviewComboBox, self._previews
        if found is None or found == before:
            return
        wants_newest = combo.currentIndex == combo.count - 1
        chosen, self._previews = combo.currentText, found
        combo.clear()
        for step in found.steps:
            combo.addItem(_("step {step}").format(step=step))
        kept = combo.findText(chosen) if chosen and not wants_newest else -1
        combo.setCurrentIndex(kept if kept >= 0 else len(found.steps) - 1)
        self._show()

    def _show_previews(self, nothing: str) -> None:
        ui, steps = self._ui, self._previews.steps if self._previews is not None else ()
        none = "" if steps else _("There is no preview yet: a pre-training that reconstructs writes them.")
        loading = _("Wait until the preview is loaded.") if self.loads.busy else ""
        tip = _("Load original, masked, reconstructed and error as volumes; those of before are replaced.")
        allow(ui.workPreviewButton, nothing or none or loading, tip)
        ui.workPreviewComboBox.enabled = bool(steps)
        names = in_order(shown_previews(slicer.mrmlScene))
        combo = ui.workPreviewShowComboBox
        if [combo.itemText(number) for number in range(combo.count)] != names:
            chosen = combo.currentText
            combo.clear()
            for name in names:
                combo.addItem(name)
            combo.setCurrentIndex(max(combo.findText(chosen or _FIRST_SHOWN), 0))
        show(bool(names), ui.workPreviewShowLabel, combo)

    def _load_preview(self) -> None:
        number = int(self._ui.workPreviewComboBox.currentIndex)
        if self._previews is None or self.loads.busy or not 0 <= number < len(self._previews.steps):
            return
        steps = load_previews(self._previews, self._previews.steps[number], slicer.mrmlScene)
        self.loads.follow(StepWork(steps, partial(self._loaded, not shown_previews(slicer.mrmlScene))))

    def _loaded(self, is_first: bool, nodes: dict[str, Node]) -> str:
        self._show()
        self._show_preview(is_first)
        return _("Loaded {names}.").format(names=", ".join(nodes))

    def _show_preview(self, is_first: bool = False) -> None:
        """Show a preview in the slice views, where the user stands; the first one whole."""
        node = shown_previews(slicer.mrmlScene).get(str(self._ui.workPreviewShowComboBox.currentText))
        if node is None:
            self._show()
        elif is_first:
            show_in_slices(node)
        else:
            slicer.util.setSliceViewerLayers(background=node)


class _RunPanel(JobPanel):
    """Asks before it cancels, and tells of each look."""

    def __init__(
        self,
        ui: Any,
        on_end: Callable[[Any], str],
        on_change: Callable[[], None],
        on_look: Callable[[Work], None],
    ) -> None:
        self._on_look = on_look
        super().__init__(ui, on_end, on_change)

    def say(self, text: str, is_error: bool = False) -> None:
        """Show a sentence, with settings called as in the panel."""
        super().say(for_user(text), is_error)

    def _cancel(self) -> None:
        job = self.job
        if job is None or job.ended:
            return
        question = _(
            "Stop the run {name}?\n\nWhat it has done is kept: it stays in Runs, where it can be resumed or deleted."
        )
        # It may have ended while the question was open.
        if slicer.util.confirmOkCancelDisplay(
            question.format(name=job.folder.name), windowTitle=_("Cancel")
        ) and self._is_at_work(job):
            super()._cancel()

    def _is_at_work(self, job: Work) -> bool:
        return job is self.job and not job.ended

    def _show(self, job: Work) -> None:
        super()._show(job)
        self._on_look(job)

    def _values(self, job: Work) -> dict[str, Value]:
        # The heads are told of in words, beside what guessing would reach.
        return {name: value for name, value in job.progress.values.items() if group_of(name) != HEADS}

    def _show_values(self, job: Work) -> None:
        super()._show_values(job)
        table, meanings = self._ui.valuesTable, _meanings()
        for row, name in enumerate(self._values(job)):
            table.item(row, 0).setText(name.replace("_", " "))
            table.item(row, 0).setToolTip(meanings.get(name, name))
        rows = min(max(table.rowCount, 1), _ROWS_AT_ONCE)
        table.setFixedHeight((rows + 1) * _ROW_HEIGHT + 6)


def _meanings() -> dict[str, str]:
    """What the names of losses and scores stand for."""
    return {
        "loss: partial": _("How far hidden voxels are from what the network makes of them."),
        "loss: reconstruction": _("How far hidden voxels are from what the network makes of them."),
        "loss: number": _("How wrong it is about how many patches of a region are hidden."),
        "loss: location": _("How wrong it is about which patches are hidden."),
        "loss: consistency": _("How far the answers on number and place contradict each other."),
        "loss: contrast": _("How hard it finds it to tell a crop that it sees again from those of others."),
        "loss: dice": _("1 minus the overlap with the labels, of the crops of a step."),
        "loss: cross_entropy": _("How little it trusts the right class, voxel by voxel."),
        "validation mean": _("Dice on whole validation scans, mean over the classes; 1 is perfect."),
        "hidden_error": _("Mean squared error of hidden voxels."),
        "patch_mean_error": _(
            "What that error would be if the network knew the true mean of each patch, and no more."
        ),
        "error_to_patch_mean": _("Squared error of hidden voxels, of what the true mean of each patch would give."),
    }


def _run_widgets(ui: Any) -> SimpleNamespace:
    widgets = job_widgets(ui, "work")
    widgets.valuesTable = ui.workValuesTable
    return widgets


def _tips() -> dict[str, str]:
    return {
        "pretrain": _("Learn from the unlabelled scans alone; a fine-tuning can start from what was learnt."),
        "finetune": _("Learn to segment from the labelled scans; makes a model."),
        "train": _("Pre-train on the unlabelled scans, then fine-tune on the labelled ones; makes a model."),
        "study": _(
            "See whether pre-training helps on these scans: trains several times with and without it. Takes long."
        ),
    }


def _memory_in_words(memory: Mapping[str, int]) -> str:
    parts = []
    if "process" in memory:
        parts.append(_("Memory of the run: {size}.").format(size=size_in_words(memory["process"])))
    if {"gpu", "gpu_used", "gpu_total"} <= set(memory):
        text = _("GPU: {own} by the run, {used} of {total} by all programs.")
        own, used, total = (size_in_words(memory[name]) for name in ("gpu", "gpu_used", "gpu_total"))
        parts.append(text.format(own=own, used=used, total=total))
    return " ".join(parts)


def _how_it_ended(job: Job, text: str, has_begun: bool) -> str:
    """What to tell of a run; ``text`` of one that was not stopped; ``has_begun``: whether it can be resumed."""
    if not has_begun:
        return _("Stopped before it had begun.") if job.state == STOPPED else text
    if job.state == FAILED:
        return _("{text} When the cause is gone, Resume goes on from what is kept.").format(text=text)
    if job.state != STOPPED:
        return text
    progress = job.progress
    at = (
        _(" at step {step} of {steps}").format(step=progress.step, steps=progress.steps)
        # Scans that are prepared are no steps to anybody who set a number of steps.
        if progress.steps > 1 and progress.phase in _TRAININGS
        else ""
    )
    if job.pausing:
        return _("Paused{at}. Resume goes on there, also after Slicer or the machine was off.").format(at=at)
    return _("Stopped. The run is kept in Runs; Resume goes on with it.")


def _why_no_curves(group: str) -> str:
    return {
        LOSSES: _("There are no losses yet: they come with the first steps of a training."),
        DICE: _("There is no Dice yet: it is measured in a fine-tuning, now and then, on validation scans."),
        HEADS: _("There is nothing of the heads yet: they are measured in a pre-training, now and then."),
        OTHERS: _("There are no other measures yet."),
    }[group]


def _look_for_paused(kept: Any) -> Path | None:
    """The run that was paused, if it is there still and did not go on; for a thread."""
    folder = Path(str(kept)) if kept else None
    is_there = folder is not None and (folder / "run.yaml").is_file() and not (folder / "result.json").exists()
    return folder if is_there else None


def _resumed(folder: Path) -> Job | HybridMIMError:
    """For a thread."""
    try:
        return resume_run(folder)
    except HybridMIMError as error:
        return error


def _previews_of(folder: Path) -> Previews | None:
    """What can be seen of them now; None where the drive is gone for a moment. For a thread."""
    with suppress(OSError):
        return find_previews(folder)
    return None
