"""Data to try the module with: made or downloaded, chosen, found and removed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import qt
import slicer.util
from slicer.i18n import tr as _

from HybridMIMLib.errors import HybridMIMError
from HybridMIMLib.files import size_in_words
from HybridMIMLib.slicer_side.environment import ensure_packages
from HybridMIMLib.slicer_side.jobs import Work
from HybridMIMLib.slicer_side.panel import JobPanel
from HybridMIMLib.slicer_side.panels.later import Later
from HybridMIMLib.slicer_side.panels.parts import job_widgets
from HybridMIMLib.slicer_side.panels.widgets import allow, show
from HybridMIMLib.slicer_side.sample_data import SAMPLES, Sample, get_steps, remove, sample_of, size_of
from HybridMIMLib.slicer_side.step_work import StepWork
from HybridMIMLib.slicer_side.steps import Step, Steps, in_thread

_LOOK_EVERY = 30
"""Milliseconds."""


class SamplePart:
    """Binds the widgets of ``Samples.ui``.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them.
        use: gets the folders of unlabelled and of labelled scans of the set that is to be worked on.
        on_change: called when something begins and when it has ended.

    Attributes:
        jobs: follows what is made, downloaded or removed.
        lookups: counts the bytes of a set that is to be removed.
    """

    def __init__(self, ui: Any, use: Callable[[Path, Path], None], on_change: Callable[[], None]) -> None:
        self._ui, self._use, self._on_change = ui, use, on_change
        self._elsewhere = ""
        self.lookups = Later()
        self.jobs = JobPanel(job_widgets(ui, "sample"), self._ended, self._changed, _LOOK_EVERY)
        for sample in SAMPLES:
            ui.sampleSetComboBox.addItem(sample.name, sample.identifier)
        ui.sampleSetComboBox.connect("currentIndexChanged(int)", lambda _index: self._show())
        ui.sampleGetButton.connect("clicked(bool)", lambda _checked: self._get())
        ui.sampleUseButton.connect("clicked(bool)", lambda _checked: self._use(*self._sample().folders))
        ui.sampleOpenButton.connect("clicked(bool)", self._open)
        ui.sampleRemoveButton.connect("clicked(bool)", self._plan_removal)
        show(False, ui.sampleLogTextEdit)
        self._show()

    @property
    def busy(self) -> bool:
        """Whether a set is being made, downloaded or removed."""
        return self.jobs.busy or self.lookups.busy

    def update(self, elsewhere: str) -> None:
        """Enable what can be done.

        Args:
            elsewhere: why nothing can be begun now; empty if it can.
        """
        self._elsewhere = elsewhere
        self._show()

    def get(self, identifier: str) -> None:
        """Get a set, because its button was pressed in Slicer's module Sample Data; one that is there is shown."""
        if self.busy:
            return
        self._ui.sampleSetComboBox.setCurrentIndex([one.identifier for one in SAMPLES].index(identifier))
        self._get()

    def close(self) -> None:
        """The panel is closed; what is half made is removed."""
        self.lookups.close()
        self.jobs.close(stop_job=True)

    def _sample(self) -> Sample:
        return sample_of(str(self._ui.sampleSetComboBox.currentData))

    def _show(self) -> None:
        ui, sample = self._ui, self._sample()
        ui.sampleAboutLabel.text = sample.describe()
        at_work = _("Wait until it is done, or press Cancel.") if self.busy else ""
        there = _("It is there already.") if sample.is_there else ""
        missing = "" if sample.is_there else _("Get it first.")
        allow(ui.sampleSetComboBox, at_work, _("Data to try the module with."))
        allow(
            ui.sampleGetButton,
            at_work or there or self._elsewhere,
            _("Download it.") if sample.url else _("Draw it on this computer."),
        )
        allow(ui.sampleUseButton, at_work or missing, _("Choose its folders as those to learn from."))
        allow(ui.sampleOpenButton, missing, _("Show the folder in which it lies."))
        allow(ui.sampleRemoveButton, at_work or missing, _("Delete it, after a question."))
        show(self.jobs.busy, ui.sampleCancelButton)

    def _get(self) -> None:
        sample = self._sample()
        self._ui.sampleGetButton.enabled = False
        self.jobs.say("")
        try:
            if not sample.is_there and not sample.url:
                # Drawing needs them, a download does not.
                ensure_packages()
            self.jobs.follow(StepWork(get_steps(sample), lambda _folder: _("It is ready: press Use to choose it.")))
        except HybridMIMError as error:
            self.jobs.say(str(error), is_error=True)
        finally:
            self._show()

    def _open(self) -> None:
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(self._sample().folder)))

    def _plan_removal(self) -> None:
        sample = self._sample()
        self.lookups.ask(partial(size_of, sample), partial(self._ask_and_remove, sample))
        self._show()

    def _ask_and_remove(self, sample: Sample, size: int) -> None:
        question = _("Delete {name}?\n\n{path}\n({size})").format(
            name=sample.name, path=sample.folder, size=size_in_words(size)
        )
        if slicer.util.confirmOkCancelDisplay(question, windowTitle="HybridMIM"):
            self.jobs.follow(StepWork(_removal(sample), lambda _nothing: _("It is deleted.")))
        self._show()

    def _ended(self, work: Work) -> str:
        return work.message

    def _changed(self) -> None:
        self._show()
        self._on_change()


def _removal(sample: Sample) -> Steps[None]:
    yield Step(0.0, "Deleting")
    yield from in_thread(lambda: remove(sample), Step(0.5, "Deleting"))
