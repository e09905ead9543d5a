"""Every run of the workspace: what it is and how far, and what can be done with it.

The runs are read in a thread while the section is open and in sight, their sizes one after the other in another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import qt
import slicer.util
from slicer.i18n import tr as _

from HybridMIMLib.data.package_files import file_name
from HybridMIMLib.errors import HybridMIMError
from HybridMIMLib.files import size_in_words
from HybridMIMLib.runs import runs_folder
from HybridMIMLib.slicer_side.background import Background
from HybridMIMLib.slicer_side.curves import RunCurves
from HybridMIMLib.slicer_side.disk_use import bytes_in
from HybridMIMLib.slicer_side.environment import ensure_packages
from HybridMIMLib.slicer_side.jobs import FAILED, Work
from HybridMIMLib.slicer_side.models import model_name
from HybridMIMLib.slicer_side.panel import JobPanel
from HybridMIMLib.slicer_side.panels.later import Later
from HybridMIMLib.slicer_side.panels.parts import job_widgets
from HybridMIMLib.slicer_side.panels.widgets import allow, say, show
from HybridMIMLib.slicer_side.plots import Chart
from HybridMIMLib.slicer_side.run_actions import (
    Packing,
    RunDetails,
    delete_run,
    describe,
    look_closer,
    remove_leftovers,
    why_not_attach,
    why_not_delete,
    why_not_resume,
)
from HybridMIMLib.slicer_side.run_list import DIED, MISSING, RunInfo, RunList, forget, remember
from HybridMIMLib.slicer_side.run_log import SCORE
from HybridMIMLib.slicer_side.run_view import RunView

_DRAW_EVERY = 100
"""Milliseconds."""

_NAMES = 3
_COLOURS = 10
_LOOK_EVERY = 2.0
_LOOK_CLOSER_EVERY = 10.0
_COUNT_EVERY = 60.0
"""Seconds; the latter two of a run at work."""


class RunsSection:
    """Binds the widgets of ``Runs.ui``.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them; ``runsSection`` holds them.
        attach: follows the run at work in a folder.
        resume: goes on with the run in a folder and follows it.
        use_model: goes to the other module with a model package.
        on_change: called when something begins and when it has ended.

    Attributes:
        jobs: follows a package that is being made.
        runs: that are known, by folder.
    """

    def __init__(
        self,
        ui: Any,
        attach: Callable[[Path], None],
        resume: Callable[[Path], None],
        use_model: Callable[[Path], None],
        on_change: Callable[[], None],
    ) -> None:
        self._ui, self._attach, self._resume, self._use_model = ui, attach, resume, use_model
        self._on_change = on_change
        self.runs: dict[Path, RunInfo] = {}
        self._list, self._is_complete, self._looked_at = RunList(), False, 0.0
        self._details: tuple[RunInfo, RunDetails] | None = None
        self._asked, self._asked_at = (Path(), ""), 0.0
        self._sizes: dict[Path, tuple[int, str, float]] = {}
        self._curves: dict[str, RunCurves] = {}
        self._chart = Chart(_("HybridMIM runs"), _("step"), "")
        self._elsewhere, self._has_log = "", False
        self._followed: Path | None = None
        self._stop = threading.Event()
        self._looks, self._closer, self._sizing, self._deleting, self._reading = (Later() for _one in range(5))
        self._view = RunView(ui.runsTable, self._chose, self._double_clicked)
        self.jobs = JobPanel(job_widgets(ui, "runs"), self._ended, self._changed)
        for name, do in (
            ("Attach", self._do_attach),
            ("Resume", self._do_resume),
            ("Compare", self._compare),
            ("Report", self._open_report),
            ("Package", self._make_package),
            ("Use", self._use),
            ("Open", self._open_folder),
            ("Delete", self._delete),
            ("Add", self._add),
            ("Forget", self._forget),
        ):
            getattr(ui, f"runs{name}Button").connect("clicked(bool)", lambda _checked, do=do: do())
        ui.runsCurveComboBox.connect("activated(int)", lambda _number: self._draw_chart())
        ui.runsSection.connect("contentsCollapsed(bool)", self._opened)
        self._timer = qt.QTimer()
        self._timer.interval = _DRAW_EVERY
        self._timer.connect("timeout()", self._tick)
        self._timer.start()
        self._show()

    @property
    def busy(self) -> bool:
        """Whether a package is being made, or a run deleted."""
        return self.jobs.busy or self._deleting.busy

    def update(self, elsewhere: str, followed: Path | None = None) -> None:
        """Enable what can be done.

        Args:
            elsewhere: why nothing can be begun now; empty if it can.
            followed: folder of the run that the panel shows at work, or None.
        """
        self._elsewhere, self._followed = elsewhere, followed
        self._show()

    def refresh(self) -> None:
        """Look at the runs now."""
        self._looked_at = time.monotonic()
        self._looks.ask(self._list.look, self._found)

    def choose(self, folder: Path) -> None:
        """Mark a run in the list."""
        self._view.choose(folder)

    def close(self) -> None:
        """The panel is closed: what is being deleted is deleted, a package is given up."""
        self._timer.stop()
        self._stop.set()
        for later in (self._looks, self._closer, self._sizing, self._deleting, self._reading):
            later.close()
        self.jobs.close(stop_job=True)

    # --- looking ----------------------------------------------------------------------------------------------

    def _opened(self, is_collapsed: bool) -> None:
        if not is_collapsed:
            self.refresh()

    def _tick(self) -> None:
        """Several times a second; in a panel that nobody sees nothing is done."""
        if not self._ui.runsSection.visible or self._ui.runsSection.collapsed:
            return
        self._view.draw()
        if not self._looks.busy and time.monotonic() - self._looked_at > _LOOK_EVERY:
            self.refresh()
        if self._is_complete and not self._sizing.busy:
            self._count_next()

    def _found(self, is_complete: bool) -> None:
        self.runs = {run.folder: run for run in self._list.found}
        self._sizes = {folder: one for folder, one in self._sizes.items() if folder in self.runs}
        if is_complete and not self._is_complete:
            self._is_complete = True
            Background(remove_leftovers)
        self._view.show(self._list.found, {folder: size for folder, (size, _state, _when) in self._sizes.items()})
        self._view.draw()
        self._look_closer()
        self._show()
        if is_complete:
            # A slow drive is left in peace for a while, however long this took.
            self._looked_at = time.monotonic()
        else:
            self.refresh()

    def _chose(self) -> None:
        if not self.busy:
            # What was said was said of another.
            self.jobs.say("")
            self._has_log = False
        self._look_closer()
        self._show()

    def _look_closer(self) -> None:
        """Look up the details of the one run that is chosen: once for what it is now, or again while it works."""
        run, now = self._one(), time.monotonic()
        if run is None:
            return
        is_old = run.is_at_work and now - self._asked_at > _LOOK_CLOSER_EVERY
        if self._asked != (run.folder, run.state) or is_old:
            self._asked, self._asked_at = (run.folder, run.state), now
            self._closer.ask(partial(look_closer, run), partial(self._take_details, run))

    def _take_details(self, run: RunInfo, details: RunDetails) -> None:
        self._details = run, details
        self._show()

    def _count_next(self) -> None:
        """Count the size of a run: of one that is chosen first, then from the top."""
        now = time.monotonic()
        for folder in [*self._view.chosen, *self.runs]:
            run = self.runs.get(folder)
            if run is None or run.state == MISSING:
                continue
            _size, state, when = self._sizes.get(folder, (0, "", 0.0))
            if state != run.state or (run.is_at_work and now - when > _COUNT_EVERY):
                self._sizing.ask(partial(bytes_in, folder, self._stop), partial(self._counted, run))
                return

    def _counted(self, run: RunInfo, size: int) -> None:
        self._sizes[run.folder] = size, run.state, time.monotonic()
        self._view.show(self._list.found, {folder: one[0] for folder, one in self._sizes.items()})
        if run.folder in self._view.chosen:
            self._show()

    # --- showing ----------------------------------------------------------------------------------------------

    def _chosen(self) -> list[RunInfo]:
        return [self.runs[folder] for folder in self._view.chosen if folder in self.runs]

    def _one(self) -> RunInfo | None:
        chosen = self._chosen()
        return chosen[0] if len(chosen) == 1 else None

    def _details_of(self, run: RunInfo | None) -> RunDetails | None:
        """What was looked up of a run; None while that is still at work."""
        known = self._details
        return known[1] if known is not None and run is not None and known[0].folder == run.folder else None

    def _show(self) -> None:
        ui, run = self._ui, self._one()
        say(ui.runsHintLabel, self._hint())
        show(bool(self.runs), ui.runsTable, ui.runsDetailsTextEdit)
        size = self._sizes.get(run.folder) if run is not None else None
        about = describe(run, self._details_of(run), size[0] if size else None) if run is not None else ""
        if about != str(ui.runsDetailsTextEdit.toPlainText()):
            # Written anew it would scroll back, and lose what the user has marked in it.
            ui.runsDetailsTextEdit.setPlainText(about)
        show(bool(self._curves), ui.runsCurveLabel, ui.runsCurveComboBox)
        show(self.jobs.busy, ui.runsCancelButton)
        show(self._has_log, ui.runsLogTextEdit)
        self._show_buttons(run)

    def _hint(self) -> str:
        if not self._is_complete and not self.runs:
            return _("Looking for runs…")
        if not self.runs:
            return _("No run is in {folder} yet: start one above.").format(folder=runs_folder())
        at_work = self._names(lambda run: not why_not_attach(run) and run.folder != self._followed)
        if at_work:
            return _("At work: {names}. Choose one and press Attach to follow it.").format(names=at_work)
        died = self._names(lambda run: run.state == DIED)
        text = _("Did not come to an end: {names}. Choose one and press Resume to go on with it.")
        return text.format(names=died) if died else ""

    def _names(self, is_meant: Callable[[RunInfo], bool]) -> str:
        """The first of the runs that are meant, by their names."""
        names = [run.name for run in self.runs.values() if is_meant(run)]
        return ", ".join([*names[:_NAMES], *(["…"] if len(names) > _NAMES else [])])

    def _show_buttons(self, run: RunInfo | None) -> None:
        ui = self._ui
        nothing = "" if self._chosen() else _("Choose a run in the list first.")
        one = nothing or ("" if run is not None else _("Choose one run only."))
        busy = _("Wait until the package is made, or press Cancel.") if self.jobs.busy else ""
        tip = _("Follow this run: progress, curves, log; it can be stopped there, too.")
        allow(ui.runsAttachButton, one or self._why_no_attach(run), tip)
        tip = _("Go on with this run where it was, with the settings it began with.")
        allow(ui.runsResumeButton, one or self._why_no_resume(run), tip)
        tip = _("Show a loss or a score of each chosen run in one chart. Ctrl or Shift chooses several.")
        reading = _("Reading the curves…") if self._reading.busy else ""
        many = _("Choose at most {count} runs: a chart has no more colours.").format(count=_COLOURS)
        too_many = many if len(self._chosen()) > _COLOURS else ""
        allow(ui.runsCompareButton, nothing or too_many or reading, tip)
        allow(ui.runsReportButton, one or self._why_no_report(run), _("Open its report, or its latest picture."))
        no_model = "" if run is None or run.model is not None else _("It has made no model.")
        tip = _("Write its model into one file (.zip), to hand on.")
        allow(ui.runsPackageButton, one or no_model or busy or self._elsewhere, tip)
        allow(ui.runsUseButton, one or no_model, _("Segment with its model, in the module HybridMIM Segmentation."))
        gone = _("Its folder is not there.") if run is not None and run.state == MISSING else ""
        allow(ui.runsOpenButton, one or gone, _("Show the files of this run."))
        tip = _("Delete the chosen runs with all their files; asks first.")
        allow(ui.runsDeleteButton, nothing or self._why_no_deletion(), tip)
        show(run is not None and run.is_elsewhere, ui.runsForgetButton)

    def _why_no_attach(self, run: RunInfo | None) -> str:
        if run is None:
            return ""
        if run.folder == self._followed:
            return _("It is shown above already.")
        return why_not_attach(run) or self._elsewhere

    def _why_no_resume(self, run: RunInfo | None) -> str:
        if run is None:
            return ""
        details = self._details_of(run)
        looking = "" if details is not None else _("Looking whether all is there that it needs…")
        followed = _("It is shown at work above.") if run.folder == self._followed else ""
        return why_not_resume(run, details) or followed or self._elsewhere or looking

    def _why_no_report(self, run: RunInfo | None) -> str:
        details = self._details_of(run)
        return "" if details is not None and details.report is not None else _("It has no report and no picture.")

    def _why_no_deletion(self) -> str:
        if self._deleting.busy:
            return _("Wait until the others are deleted.")
        for run in self._chosen():
            reason = why_not_delete(run, self._details_of(run))
            if run.folder == self._followed and not reason:
                reason = _("It is shown at work above.")
            if reason:
                return reason if self._one() else f"{run.name}: {reason}"
        return ""

    # --- doing ------------------------------------------------------------------------------------------------

    def _double_clicked(self, folder: Path) -> None:
        run = self.runs.get(folder)
        if run is not None and not self._why_no_attach(run):
            self._tell_errors(partial(self._attach, folder))

    def _do_attach(self) -> None:
        run = self._one()
        if run is not None:
            self._tell_errors(partial(self._attach, run.folder))

    def _do_resume(self) -> None:
        run = self._one()
        if run is not None:
            self._ui.runsResumeButton.enabled = False
            self._tell_errors(partial(self._resume, run.folder))

    def _use(self) -> None:
        run = self._one()
        if run is not None and run.model is not None:
            self._use_model(run.model)

    def _tell_errors(self, do: Callable[[], object]) -> None:
        """Do something at once, say what is in the way of it, and look what has become of the runs."""
        self.jobs.say("")
        try:
            do()
        except HybridMIMError as error:
            self.jobs.say(str(error), is_error=True)
        self.refresh()
        self._show()

    def _open_folder(self) -> None:
        run = self._one()
        if run is not None:
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(run.folder)))

    def _open_report(self) -> None:
        details = self._details_of(self._one())
        if details is not None and details.report is not None:
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(details.report)))

    def _add(self) -> None:
        title = _("Folder of a run")
        folder = str(qt.QFileDialog.getExistingDirectory(self._ui.runsAddButton, title, str(Path.home())) or "")
        if folder:
            self._tell_errors(lambda: remember(Path(folder)))

    def _forget(self) -> None:
        run = self._one()
        if run is not None:
            self._tell_errors(partial(forget, run.folder))

    # --- packages ---------------------------------------------------------------------------------------------

    def _make_package(self) -> None:
        run = self._one()
        if run is None or run.model is None:
            return
        begin = Path.home() / f"{file_name(model_name(run.model))}.zip"
        kinds, title = _("Model packages (*.zip)"), _("Package to write")
        chosen = str(qt.QFileDialog.getSaveFileName(self._ui.runsPackageButton, title, str(begin), kinds) or "")
        if not chosen:
            return
        target = Path(chosen)
        if target.suffix.lower() != ".zip":
            target = target.with_name(f"{target.name}.zip")
            if target.exists():
                # Whether this one may be replaced, nobody was asked.
                text = _("{file} is there already. Choose it by its whole name to replace it.")
                self.jobs.say(text.format(file=target), is_error=True)
                return
        self.jobs.say("")
        self._has_log = False
        self._ui.runsPackageButton.enabled = False
        try:
            ensure_packages()
            self.jobs.follow(Packing(run.model, target))
        except HybridMIMError as error:
            self.jobs.say(str(error), is_error=True)
        self._show()

    def _ended(self, work: Work) -> str:
        self._has_log = work.state == FAILED and bool(work.said)
        return work.message

    def _changed(self) -> None:
        self._show()
        self._on_change()

    # --- deleting ---------------------------------------------------------------------------------------------

    def _delete(self) -> None:
        runs = self._chosen()
        if runs and slicer.util.confirmOkCancelDisplay(self._question(runs), windowTitle=_("Delete runs")):
            names = ", ".join(run.name for run in runs)
            self.jobs.say(_("Deleting {names}…").format(names=names))
            self._deleting.ask(partial(_delete_all, [run.folder for run in runs]), self._deleted)
            self._changed()

    def _question(self, runs: Sequence[RunInfo]) -> str:
        lines = [f"{run.place} ({self._size_in_words(run)})" for run in runs]
        parts = [_("Delete these folders with all that is in them? This cannot be undone."), "\n".join(lines)]
        if any(run.model is not None for run in runs):
            parts.append(
                _("The models that were made there go with them. Make a package first of what you want to keep.")
            )
        details = self._details_of(runs[0]) if len(runs) == 1 else None
        if details is not None and details.used_by:
            parts.append(_("Other runs use it: {names}.").format(names=", ".join(details.used_by)))
        return "\n\n".join(parts)

    def _size_in_words(self, run: RunInfo) -> str:
        known = self._sizes.get(run.folder)
        return size_in_words(known[0]) if known is not None else _("size not counted yet")

    def _deleted(self, told: tuple[str, bool]) -> None:
        text, is_error = told
        self.jobs.say(text, is_error=is_error)
        self.refresh()
        self._changed()

    # --- curves -----------------------------------------------------------------------------------------------

    def _compare(self) -> None:
        runs = self._chosen()
        if runs:
            self._reading.ask(partial(_read_curves, _titles(runs), self._stop), self._show_curves)
            self._show()

    def _show_curves(self, curves: dict[str, RunCurves]) -> None:
        names = list(dict.fromkeys(name for one in curves.values() for name in one.series))
        self._curves = curves if names else {}
        combo = self._ui.runsCurveComboBox
        before = str(combo.currentText)
        combo.clear()
        for name in names:
            combo.addItem(name)
        wanted = before if before in names else SCORE
        combo.setCurrentIndex(names.index(wanted) if wanted in names else 0)
        if names:
            self._draw_chart()
        else:
            self.jobs.say(_("These runs have told no loss and no score yet."))
        self._show()

    def _draw_chart(self) -> None:
        name = str(self._ui.runsCurveComboBox.currentText)
        series = {title: one.series[name] for title, one in self._curves.items() if name in one.series}
        self._chart.show(series, name)
        self._chart.bring_up()
        without = [title for title, one in self._curves.items() if name not in one.series]
        told = _("{curve} of {count} run(s) is drawn.").format(curve=name, count=len(series))
        if without:
            told += " " + _("Not known of: {names}.").format(names=", ".join(without))
        self.jobs.say(told)


def _titles(runs: Sequence[RunInfo]) -> dict[str, Path]:
    """What to call each run in a chart; two of one name are told apart by the folders in which they are."""
    names = [run.name for run in runs]
    return {run.name if names.count(run.name) == 1 else run.place: run.folder for run in runs}


def _read_curves(runs: dict[str, Path], stop: threading.Event) -> dict[str, RunCurves]:
    """For a thread."""
    found = {}
    for title, folder in runs.items():
        curves = found[title] = RunCurves(folder)
        while curves.read() and not stop.is_set():
            pass
    return found


def _delete_all(folders: Sequence[Path]) -> tuple[str, bool]:
    """What to tell the user, and whether something was in the way; for a thread."""
    told, is_error = [], False
    for folder in folders:
        try:
            told.append(delete_run(folder))
        except HybridMIMError as error:
            told.append(str(error))
            is_error = True
    return "\n".join(told), is_error
