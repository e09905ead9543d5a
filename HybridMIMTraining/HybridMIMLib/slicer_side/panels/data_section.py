"""The folders to learn from: chosen, checked scan by scan, and filled from the scene.

The check is a process of its own, and what it finds is read in a thread: a folder may hold thousands of scans.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from HybridMIMLib.errors import HybridMIMError
from HybridMIMLib.slicer_side.data_check import (
    LABELLED,
    NEEDS,
    SKIPPED,
    UNLABELLED,
    CheckJob,
    DataCheck,
    FolderCheck,
    ScanRow,
    changed_since,
    describe,
    describe_notes,
    describe_problems,
    problems_first,
    start_check,
    why_no_folder,
    why_not,
)
from HybridMIMLib.slicer_side.environment import ensure_packages
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED, Work
from HybridMIMLib.slicer_side.panel import JobPanel
from HybridMIMLib.slicer_side.panels.later import Later
from HybridMIMLib.slicer_side.panels.output_section import color_icon
from HybridMIMLib.slicer_side.panels.parts import job_widgets, show_in_slices
from HybridMIMLib.slicer_side.panels.scan_table import COLOURS, ROW_HEIGHT, ScanTable, fit_height, verdict
from HybridMIMLib.slicer_side.panels.scene_cases_part import SceneCasesPart
from HybridMIMLib.slicer_side.panels.widgets import allow, say, show
from HybridMIMLib.slicer_side.scene_cases import LoadedScan, describe_loaded, load_scan
from HybridMIMLib.slicer_side.step_work import StepWork

_PIECES_EVERY = 30
"""Milliseconds."""

_LOOK_AGAIN = 5.0
"""Seconds after which a folder may be looked at again, whether it has changed since it was checked."""

_CLASSES_AT_ONCE = 6
"""Rows of the table of classes that need no scrolling."""


class DataSection:
    """Binds the widgets of ``Data.ui``.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them.
        on_change: called when the user has chosen another folder, and when something begins or has ended.

    Attributes:
        jobs: follows the check.
        loads: follows the loading of a scan.
        scene_cases: saves segmentations of the scene as cases.
        lookups: what is asked of the disk.
    """

    def __init__(self, ui: Any, on_change: Callable[[], None]) -> None:
        self._ui, self._on_change = ui, on_change
        self._elsewhere = ""
        self._found: DataCheck | None = None
        self._changed: frozenset[str] = frozenset()
        self._looked = 0.0
        self._there: dict[tuple[str, str], str] = {}
        self._rows: tuple[ScanRow, ...] = ()
        self._is_filtered = False
        self.lookups, self._reading = Later(), Later()
        self.jobs = JobPanel(job_widgets(ui, "data"), self._checked_all, self._job_changed)
        self.loads = JobPanel(
            job_widgets(ui, "dataLoad"), lambda work: work.message, self._job_changed, _PIECES_EVERY
        )
        self.scene_cases = SceneCasesPart(ui, lambda: self.labelled, self._saved, self._job_changed)
        self._table = ScanTable(ui.dataTable, self._open, self._show_row)
        ui.dataClassesTable.verticalHeader().visible = False
        ui.dataClassesTable.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        ui.dataClassesTable.setHorizontalHeaderLabels([_("Class"), _("Label"), _("Scans with it")])
        ui.dataClassesTable.horizontalHeader().setSectionResizeMode(0, qt.QHeaderView.Stretch)
        ui.dataCheckButton.connect("clicked(bool)", self._check)
        ui.dataFolderComboBox.connect("activated(int)", lambda _number: self._show_folder())
        ui.dataProblemsCheckBox.connect("toggled(bool)", lambda _checked: self._show_folder())
        ui.dataSection.connect("contentsCollapsed(bool)", self._opened)
        for widget in self._lines().values():
            widget.connect("currentPathChanged(QString)", self._chosen)
            # An emptied line tells this alone.
            widget.connect("validInputChanged(bool)", self._chosen)
        ui.dataProblemLabel.styleSheet = f"color: {COLOURS[SKIPPED]};"
        show(False, ui.dataLogTextEdit, ui.dataLoadLogTextEdit, ui.dataLoadCancelButton)
        self._list_folders()

    # --- what others ask --------------------------------------------------------------------------------------

    @property
    def unlabelled(self) -> str:
        """The folder of unlabelled scans, or empty."""
        return self._path(UNLABELLED)

    @property
    def labelled(self) -> str:
        """The folder of labelled scans, or empty."""
        return self._path(LABELLED)

    @property
    def busy(self) -> bool:
        """Whether scans are being checked, loaded or saved."""
        return self.jobs.busy or self.loads.busy or self.scene_cases.busy

    @property
    def checked(self) -> DataCheck | None:
        """What was found in the folders that are chosen now; None where none of them was checked."""
        folders = self._folders()
        if self._found is None or not folders:
            return None
        return DataCheck(folders, self._found.in_both if len(folders) == len(self._lines()) else ())

    def set_folders(self, unlabelled: str, labelled: str) -> None:
        """Choose folders, as the scene has them; nobody is told."""
        wanted = {UNLABELLED: unlabelled.strip(), LABELLED: labelled.strip()}
        changed = [name for name, path in wanted.items() if self._path(name) != path]
        for name in changed:
            widget = self._lines()[name]
            was_blocked = widget.blockSignals(True)
            widget.currentPath = wanted[name]
            widget.blockSignals(was_blocked)
        if changed:
            self._list_folders()

    def why_not(self, command: str) -> str:
        """Why a command would fail on these folders; empty if they fit, and where they were not checked.

        Args:
            command: pretrain, finetune, train or study.
        """
        for name in NEEDS[command]:
            if reason := self._why_no_folder(name):
                return reason
        if self._changed.intersection(NEEDS[command]):
            # What was found may not hold any more, for better or worse.
            return ""
        return why_not(self._found, command, self.unlabelled, self.labelled)

    def update(self, elsewhere: str) -> None:
        """Enable what can be done.

        Args:
            elsewhere: why nothing can be begun now; empty if it can.
        """
        self._elsewhere = elsewhere
        if time.monotonic() - self._looked > _LOOK_AGAIN:
            self._look_for_changes()
        self._show()

    def refresh(self) -> None:
        """Look whether the folders are there, and whether they are as they were when they were checked."""
        self._there.clear()
        self._look_for_changes()
        self.scene_cases.refresh()
        self._show()

    def close(self) -> None:
        """The panel is closed: a check is ended, and what is being loaded or saved is given up."""
        self._table.close()
        self.lookups.close()
        self._reading.close()
        self.scene_cases.close()
        self.loads.close(stop_job=True)
        self.jobs.close(stop_job=True)

    # --- looking ----------------------------------------------------------------------------------------------

    def _opened(self, is_collapsed: bool) -> None:
        if not is_collapsed:
            self.refresh()

    def _lines(self) -> dict[str, Any]:
        return {UNLABELLED: self._ui.dataUnlabelledPathLineEdit, LABELLED: self._ui.dataLabelledPathLineEdit}

    def _path(self, name: str) -> str:
        return str(self._lines()[name].currentPath).strip()

    def _folders(self) -> dict[str, FolderCheck]:
        """What was found in the folders that are chosen now."""
        if self._found is None:
            return {}
        found = {name: self._found.of(name, self._path(name)) for name in self._lines()}
        return {name: one for name, one in found.items() if one is not None}

    def _why_no_folder(self, name: str) -> str:
        """Asked of the disk once for a path, until the panel is looked at again."""
        key = name, self._path(name)
        if key not in self._there:
            self._there[key] = why_no_folder(*key)
        return self._there[key]

    def _chosen(self, _path_or_valid: Any) -> None:
        self._there.clear()
        self._list_folders()
        self.scene_cases.show(self._elsewhere)
        self._on_change()

    def _look_for_changes(self) -> None:
        found = self._found
        if found is not None and not self.jobs.busy and not self._reading.busy and not self.lookups.busy:
            self._looked = time.monotonic()
            self.lookups.ask(lambda: changed_since(found), self._take_changes)

    def _take_changes(self, changed: frozenset[str]) -> None:
        if changed != self._changed:
            self._changed = changed
            self._show()
            self._on_change()

    def _job_changed(self) -> None:
        self._show()
        self._on_change()

    def _show(self) -> None:
        ui = self._ui
        at_work = _("Wait until the scans are checked, or press Cancel.") if self.jobs.busy else ""
        nothing = "" if self._to_check() else self._why_no_check()
        allow(
            ui.dataCheckButton,
            at_work or self._elsewhere or nothing,
            _("Read every scan once and say whether it can be used. Nothing in the folders is changed."),
        )
        say(ui.dataHintLabel, "" if at_work else self._hint())
        is_known = bool(self._to_check()) and set(self._to_check()) <= set(self._folders())
        ui.dataCheckButton.text = _("Check again") if is_known else _("Check")
        for widget in self._lines().values():
            widget.enabled = not self.jobs.busy
        show(self.loads.busy, ui.dataLoadCancelButton)
        self.scene_cases.show(self._elsewhere)

    def _hint(self) -> str:
        """What to do next, or what is in the way."""
        folders = self._folders()
        if reason := self._elsewhere or self._why_no_check():
            return reason
        if unknown := [name for name in self._to_check() if name not in folders]:
            text = _("Press Check to see whether the {names} scans can be used.")
            return text.format(names=_(" and the ").join(unknown))
        if changed := [name for name in folders if name in self._changed]:
            text = _("The {names} scans have changed since they were checked: press Check again.")
            return text.format(names=_(" and the ").join(changed))
        return ""

    def _to_check(self) -> list[str]:
        """The folders that are chosen and there."""
        return [name for name in self._lines() if self._path(name) and not self._why_no_folder(name)]

    def _why_no_check(self) -> str:
        chosen = [name for name in self._lines() if self._path(name)]
        if not chosen:
            return _("Choose a folder of unlabelled scans, a folder of labelled scans, or both.")
        return next((reason for name in chosen if (reason := self._why_no_folder(name))), "")

    # --- checking ---------------------------------------------------------------------------------------------

    def _check(self) -> None:
        # While packages are installed the button could be pressed once more.
        self._ui.dataCheckButton.enabled = False
        self._there.clear()
        show(False, self._ui.dataLogTextEdit)
        self._reading.close()
        self.lookups.close()
        self.jobs.say("")
        try:
            ensure_packages()
            chosen = {name: self._path(name) if name in self._to_check() else "" for name in self._lines()}
            self.jobs.follow(start_check(chosen[UNLABELLED], chosen[LABELLED]))
            for name in self._to_check():
                self._lines()[name].addCurrentPathToHistory()
        except HybridMIMError as error:
            self.jobs.say(str(error), is_error=True)
        finally:
            self._show()

    def _checked_all(self, work: Work) -> str:
        if work.state == FINISHED and isinstance(work, CheckJob):
            self._reading.ask(partial(_taken, work), self._take_found)
            return _("Reading what was found…")
        show(work.state == FAILED and bool(work.said), self._ui.dataLogTextEdit)
        return work.message

    def _take_found(self, found: DataCheck | HybridMIMError) -> None:
        if isinstance(found, HybridMIMError):
            self.jobs.say(str(found), is_error=True)
            return
        self.jobs.say("")
        self._found, self._changed, self._looked = found, frozenset(), time.monotonic()
        self._list_folders()
        self._on_change()

    # --- what was found ---------------------------------------------------------------------------------------

    def _list_folders(self) -> None:
        """List the folders that were checked; what has a problem is shown first."""
        combo, folders = self._ui.dataFolderComboBox, self._folders()
        before = combo.currentData if combo.count else None
        titles = {UNLABELLED: _("Unlabelled scans ({count})"), LABELLED: _("Labelled scans ({count})")}
        combo.clear()
        for name, folder in folders.items():
            combo.addItem(titles[name].format(count=len(folder.rows)), name)
        names = list(folders)
        bad = [name for name, folder in folders.items() if folder.error or folder.problems or folder.training]
        wanted = before if before in names else next(iter([*bad, *reversed(names)]), None)
        combo.setCurrentIndex(names.index(wanted) if wanted in names else -1)
        self._show_folder()
        self._show()

    def _show_folder(self) -> None:
        ui, folders = self._ui, self._folders()
        shown = str(ui.dataFolderComboBox.currentData) if ui.dataFolderComboBox.count else ""
        folder = folders.get(shown)
        show(len(folders) > 1, ui.dataFolderComboBox, ui.dataFolderLabel)
        say(ui.dataSummaryLabel, describe(shown, folder) if folder is not None and not folder.error else "")
        wrong = (folder.error or describe_problems(folder)) if folder is not None else ""
        say(ui.dataProblemLabel, wrong)
        known = self.checked
        say(ui.dataNoteLabel, describe_notes(known, folder) if folder is not None and known is not None else "")
        self._show_classes(folder)
        self._show_rows(folder)

    def _show_rows(self, folder: FolderCheck | None) -> None:
        ui = self._ui
        rows = folder.rows if folder is not None else ()
        problems = problems_first(rows)
        ui.dataProblemsCheckBox.text = _("Only problems ({count})").format(count=len(problems))
        is_filtered = bool(ui.dataProblemsCheckBox.checked) and bool(problems)
        show(bool(rows), ui.dataTable, ui.dataOpenHintLabel)
        show(bool(problems), ui.dataProblemsCheckBox)
        with_labels = any(row.label for row in rows)
        ui.dataOpenHintLabel.text = (
            _("Double-click a scan to load it with its labels.")
            if with_labels
            else _("Double-click a scan to load it.")
        )
        shown = problems if is_filtered else rows
        # Not drawn anew for each click elsewhere: the marked row would be lost.
        if rows is not self._rows or is_filtered is not self._is_filtered:
            self._rows, self._is_filtered = rows, is_filtered
            self._table.show(shown, {one.label: one.name for one in folder.looks} if folder is not None else {})

    def _show_classes(self, folder: FolderCheck | None) -> None:
        table, classes = self._ui.dataClassesTable, folder.classes if folder is not None else ()
        show(bool(classes), table)
        table.setRowCount(len(classes))
        usable = folder.usable if folder is not None else 0
        for number, one in enumerate(classes):
            texts = (one.look.name, str(one.look.label), _of(one.cases, one.annotated, usable))
            for column, text in enumerate(texts):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(text)
                if column == 0:
                    item.setIcon(color_icon(one.look.color))
                table.setItem(number, column, item)
        fit_height(table, _CLASSES_AT_ONCE)

    def _show_row(self, row: ScanRow | None) -> None:
        """Say in full what a cell has no room for."""
        if row is None or not row.reason:
            say(self._ui.dataReasonLabel, "")
            return
        text = f"{row.name} ({verdict(row.status)}): {row.reason}"
        say(self._ui.dataReasonLabel, f"{text}. {row.cure}" if row.cure else text)

    # --- loading, saving --------------------------------------------------------------------------------------

    def _open(self, row: ScanRow) -> None:
        """Load a scan with its labels, because the user double-clicked it."""
        if self.loads.busy:
            return
        folder = self._folders().get(str(self._ui.dataFolderComboBox.currentData))
        steps = load_scan(row, folder.looks if folder is not None else (), slicer.mrmlScene)
        self.loads.follow(StepWork(steps, partial(self._loaded, row.name)))

    def _loaded(self, name: str, loaded: LoadedScan) -> str:
        show_in_slices(loaded.volumes[0])
        self.scene_cases.refresh()
        return describe_loaded(name, loaded)

    def _saved(self, folder: Path) -> None:
        """Cases were added to a folder."""
        if os.path.abspath(folder) == os.path.abspath(os.path.expanduser(self.labelled)):
            self._there.clear()
            self._lines()[LABELLED].addCurrentPathToHistory()
        self._looked = 0.0
        self._look_for_changes()


def _taken(job: CheckJob) -> DataCheck | HybridMIMError:
    """For a thread, which is not to end in an error that nobody sees."""
    try:
        return job.take()
    except HybridMIMError as error:
        return error


def _of(cases: int, annotated: int, usable: int) -> str:
    """``3 of 10``, and what is known of where nobody looked."""
    text = _("{cases} of {usable}").format(cases=cases, usable=usable)
    return text if annotated == usable else _("{text} (looked for in {count})").format(text=text, count=annotated)
