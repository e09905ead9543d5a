"""A folder of scans in, a folder of label maps out, with a table of what has become of each.

The work outlives Slicer. What an earlier Slicer began is listed, and shown when the user chooses it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from HybridMIMLib.config import user_path
from HybridMIMLib.data.model_description import ModelDescription
from HybridMIMLib.errors import HybridMIMError
from HybridMIMLib.events import FAILED, SKIPPED, WAITING, WORKING
from HybridMIMLib.runs import living_owner
from HybridMIMLib.slicer_side.batch import (
    Batch,
    BatchNote,
    BatchSettings,
    BatchTable,
    CaseRow,
    attach_batch,
    read_table,
    recent_batches,
    start_batch,
)
from HybridMIMLib.slicer_side.batch_case import LoadedCase, describe, load_case
from HybridMIMLib.slicer_side.batch_view import BatchView
from HybridMIMLib.slicer_side.environment import ensure_packages
from HybridMIMLib.slicer_side.jobs import FAILED as JOB_FAILED
from HybridMIMLib.slicer_side.jobs import Work
from HybridMIMLib.slicer_side.panel import JobPanel
from HybridMIMLib.slicer_side.panels.later import Later
from HybridMIMLib.slicer_side.panels.parts import job_widgets, show_in_slices
from HybridMIMLib.slicer_side.panels.widgets import allow, say, show
from HybridMIMLib.slicer_side.step_work import StepWork

_ROW_HEIGHT = 22
_DRAW_EVERY = 200
_LOAD_EVERY = 30
"""Milliseconds."""


class BatchSection:
    """Binds the widgets of ``FolderOfScans.ui``.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them.
        on_change: called when a batch begins and when it has ended.

    Attributes:
        jobs: follows the batch.
        loads: follows the loading of a scan.
        lookups: looks for batches of before.
    """

    def __init__(self, ui: Any, on_change: Callable[[], None]) -> None:
        self._ui, self._on_change = ui, on_change
        self._model: ModelDescription | None = None
        self._preset, self._elsewhere = "balanced", ""
        self._notes: list[BatchNote] = []
        self._shown: BatchSettings | None = None
        self._table = BatchTable()
        self._checked: tuple[BatchSettings, str] | None = None
        self._view = BatchView(ui.batchTable, self._open)
        self.lookups, self._reading = Later(), Later()
        self.jobs = JobPanel(job_widgets(ui, "batch"), self._ended, self._changed)
        self.loads = JobPanel(job_widgets(ui, "batchLoad"), self._loaded, self._show, _LOAD_EVERY)
        self._timer = qt.QTimer()
        self._timer.interval = _DRAW_EVERY
        self._timer.connect("timeout()", self._draw)
        ui.batchStartButton.connect("clicked(bool)", self._start)
        ui.batchRetryButton.connect("clicked(bool)", self._retry)
        ui.batchOpenButton.connect("clicked(bool)", self._open_folder)
        ui.batchLogButton.connect("toggled(bool)", lambda _checked: self._show())
        ui.batchEarlierComboBox.connect("activated(int)", self._choose)
        ui.batchTable.connect("cellClicked(int,int)", lambda number, _column: self._show_reason(number))
        ui.batchTable.setColumnWidth(0, 110)
        ui.batchTable.setColumnWidth(1, 70)
        ui.batchTable.setWordWrap(False)
        ui.batchTable.verticalHeader().setDefaultSectionSize(_ROW_HEIGHT)
        ui.batchSection.connect("contentsCollapsed(bool)", self._opened)
        for widget in (ui.batchScansPathLineEdit, ui.batchOutputPathLineEdit):
            widget.connect("currentPathChanged(QString)", lambda _path: self._show())
            # An emptied line tells this alone.
            widget.connect("validInputChanged(bool)", lambda _valid: self._show())
        show(False, ui.batchLoadLogTextEdit)
        self._list([])

    @property
    def busy(self) -> bool:
        """Whether scans are being segmented or loaded."""
        return self.jobs.busy or self.loads.busy

    def update(self, model: ModelDescription | None, preset: str, elsewhere: str) -> None:
        """Enable what can be done.

        Args:
            model: that is chosen, or None.
            preset: of the section inference.
            elsewhere: why nothing can be begun now; empty if it can.
        """
        self._model, self._preset, self._elsewhere = model, preset, elsewhere
        self._show()

    def refresh(self) -> None:
        """Look for batches of before, and whether what stood in the way of a new one has gone."""
        self._checked = None
        self.lookups.ask(_look_for_batches, self._list)
        self._show()

    def close(self) -> None:
        """The panel is closed: a batch goes on without it."""
        self._timer.stop()
        self.lookups.close()
        self._reading.close()
        self.loads.close(stop_job=True)
        self.jobs.close(stop_job=False)

    # --- looking ----------------------------------------------------------------------------------------------

    def _opened(self, is_collapsed: bool) -> None:
        if not is_collapsed:
            self.refresh()

    def _list(self, found: list[tuple[BatchNote, bool]]) -> None:
        """List batches of before: each with whether it is at work."""
        combo = self._ui.batchEarlierComboBox
        self._notes = [note for note, _is_at_work in found]
        combo.clear()
        for note, is_at_work in found:
            state = _("at work") if is_at_work else note.began[:16].replace("T", " ")
            combo.addItem(f"{note.folder.name} ({state})")
            combo.setItemData(combo.count - 1, str(note.folder), qt.Qt.ToolTipRole)
        combo.setCurrentIndex(-1)
        show(bool(found), combo, self._ui.batchEarlierLabel)
        at_work = [note.folder.name for note, is_at_work in found if is_at_work]
        if at_work and not self.jobs.busy:
            text = _("{name} is still being segmented: choose it under Earlier to follow it.")
            self.jobs.say(text.format(name=at_work[0]))

    def _choose(self, number: int) -> None:
        """Show a batch of before; whether it is at work is seen now."""
        if not 0 <= number < len(self._notes) or self.jobs.busy:
            return
        settings, folder = self._notes[number].settings, self._notes[number].folder
        self._ui.batchScansPathLineEdit.currentPath = settings.scans
        self._ui.batchOutputPathLineEdit.currentPath = settings.output
        self.jobs.say(_("Reading what has become of it…"))
        self._reading.ask(lambda: attach_batch(folder) or read_table(folder), partial(self._attach, settings))

    def _attach(self, settings: BatchSettings, found: Batch | BatchTable) -> None:
        self.jobs.say("")
        if isinstance(found, Batch):
            self._follow(settings, found)
            return
        self._shown, self._table = settings, found
        self.jobs.say(found.describe() or _("Nothing is known of its scans: press Start to go on with it."))
        self._timer.start()
        self._show()

    def _draw(self) -> None:
        """Bring the table up to date; of very many rows some at each look."""
        self._view.show(self._table)
        self._show_table()
        if self._view.is_complete and not self.jobs.busy:
            self._timer.stop()

    def _show(self) -> None:
        ui = self._ui
        ui.batchModelLabel.text = self._model.name if self._model is not None else _("choose one above")
        at_work = _("Wait until the scans are segmented, or press Cancel.") if self.jobs.busy else ""
        reason = self._why_not()
        allow(
            ui.batchStartButton,
            at_work or self._elsewhere or reason,
            _("Segment every scan, in a process that goes on when Slicer closes. What is done is passed over."),
        )
        say(ui.batchHintLabel, "" if at_work else self._elsewhere or reason)
        allow(
            ui.batchRetryButton,
            at_work or self._elsewhere or self._why_no_retry(),
            _("Try again what failed, was skipped or still waits; what is done stays."),
        )
        nothing = "" if self._shown is not None else _("Start a batch first, or choose an earlier one.")
        allow(ui.batchOpenButton, nothing, _("Show the folder with the results."))
        allow(ui.batchEarlierComboBox, at_work, _("Batches of before: look at one, or go on with it."))
        for widget in (ui.batchScansPathLineEdit, ui.batchOutputPathLineEdit):
            widget.enabled = not at_work
        self._show_table()
        show(self.loads.busy, ui.batchLoadCancelButton)
        show(bool(ui.batchLogButton.checked), ui.batchLogTextEdit)

    def _show_table(self) -> None:
        show(bool(self._table.rows), self._ui.batchTable, self._ui.batchOpenHintLabel)
        self._show_reason(int(self._ui.batchTable.currentRow()))

    def _show_reason(self, number: int) -> None:
        """Show in full why the scan of a row failed; a cell has no room for it."""
        row = self._table.rows[number] if 0 <= number < len(self._table.rows) else None
        say(self._ui.batchReasonLabel, f"{row.name}: {row.reason}" if row is not None and row.reason else "")

    def _settings(self) -> BatchSettings:
        """What a new batch would do."""
        model = str(self._model.path) if self._model is not None else ""
        paths = (self._ui.batchScansPathLineEdit.currentPath, self._ui.batchOutputPathLineEdit.currentPath)
        scans, output = (str(path).strip() for path in paths)
        return BatchSettings(scans, model, output, inference={"preset": self._preset})

    def _why_not(self) -> str:
        """Why no batch can be started; the disk is asked once for the same settings, and only while this is open."""
        settings = self._settings()
        if self._ui.batchSection.collapsed:
            return ""
        if self._checked is None or self._checked[0] != settings:
            self._checked = settings, settings.why_not()
        return self._checked[1]

    def _why_no_retry(self) -> str:
        if self._shown is None:
            return _("Start a batch first, or choose an earlier one.")
        counts = self._table.counts()
        if self._table.rows and not any(counts[state] for state in (FAILED, SKIPPED, WAITING, WORKING)):
            return _("All scans of this batch are done.")
        return ""

    # --- segmenting -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._begin(self._settings())
        for widget in (self._ui.batchScansPathLineEdit, self._ui.batchOutputPathLineEdit):
            widget.addCurrentPathToHistory()

    def _retry(self) -> None:
        if self._shown is not None:
            self._begin(self._shown)

    def _begin(self, settings: BatchSettings) -> None:
        # While packages are installed the button could be pressed once more.
        self._ui.batchStartButton.enabled = self._ui.batchRetryButton.enabled = False
        # What was asked for before this is not wanted any more.
        self._reading.close()
        self.jobs.say("")
        try:
            ensure_packages()
            self._follow(settings, start_batch(settings))
        except HybridMIMError as error:
            self.jobs.say(str(error), is_error=True)
        finally:
            self._checked = None
            self._show()

    def _follow(self, settings: BatchSettings, batch: Batch) -> None:
        before = self._table if self._shown is not None and self._shown.output == settings.output else None
        if before is not None and not batch.table.rows:
            # What is known stays in sight until the process has listed the scans anew.
            batch.progress.table = before
        self._shown, self._table = settings, batch.table
        self._timer.start()
        self.jobs.follow(batch)

    def _ended(self, work: Work) -> str:
        if work.state == JOB_FAILED and work.said:
            self._ui.batchLogButton.checked = True
        self._checked = None
        self.lookups.ask(_look_for_batches, self._list)
        rest = self._table.describe() if self._table.rows and work.message == "Stopped." else ""
        return f"{work.message} {rest}".strip()

    def _changed(self) -> None:
        self._show()
        self._on_change()

    def _open_folder(self) -> None:
        if self._shown is not None:
            folder = user_path(self._shown.output)
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(folder)))

    # --- loading ----------------------------------------------------------------------------------------------

    def _open(self, row: CaseRow) -> None:
        """Load a scan and its result, because the user double-clicked it."""
        if self._shown is None or self.loads.busy:
            return
        self.loads.follow(StepWork(load_case(self._shown, row, slicer.mrmlScene), self._take))

    def _take(self, loaded: LoadedCase) -> str:
        show_in_slices(loaded.volume)
        return describe(loaded)

    def _loaded(self, work: Work) -> str:
        return work.message


def _look_for_batches() -> list[tuple[BatchNote, bool]]:
    """Batches of before, and whether each is at work; for a thread."""
    return [(note, living_owner(note.folder) is not None) for note in recent_batches()]
