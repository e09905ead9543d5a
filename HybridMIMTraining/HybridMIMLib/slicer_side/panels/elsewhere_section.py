"""A run for another machine: written as a folder, and taken back when it was computed there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from HybridMIMLib.errors import HybridMIMError
from HybridMIMLib.slicer_side.elsewhere import (
    COMMANDS,
    Exported,
    ExportSettings,
    TakenBack,
    export_steps,
    import_steps,
    unfinished_runs,
)
from HybridMIMLib.slicer_side.environment import ensure_packages
from HybridMIMLib.slicer_side.jobs import Work
from HybridMIMLib.slicer_side.panel import JobPanel
from HybridMIMLib.slicer_side.panels.later import Later
from HybridMIMLib.slicer_side.panels.parts import job_widgets
from HybridMIMLib.slicer_side.panels.widgets import allow, say, show
from HybridMIMLib.slicer_side.step_work import StepWork

_LOOK_EVERY = 30
"""Milliseconds."""
_COPY, _LIST = range(2)


class ElsewhereSection:
    """Binds the widgets of ``Elsewhere.ui``.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them.
        settings: the options of a command as this panel would start it, without the dashes.
        on_change: called when something begins and when it has ended.
        imported: gets the folder of a run that has come back.

    Attributes:
        jobs: follows what is being copied.
        lookups: looks for runs that could be continued.
    """

    def __init__(
        self,
        ui: Any,
        settings: Callable[[str], Mapping[str, object]],
        on_change: Callable[[], None],
        imported: Callable[[Path], None],
    ) -> None:
        self._ui, self._settings, self._on_change, self._imported = ui, settings, on_change, imported
        self._elsewhere, self._exported = "", Path()
        self._runs: list[Path] = []
        self._checked: tuple[ExportSettings, str] | None = None
        self.lookups = Later()
        self.jobs = JobPanel(job_widgets(ui, "elsewhere"), self._ended, self._changed, _LOOK_EVERY)
        for command, name in COMMANDS.items():
            ui.elsewhereWhatComboBox.addItem(_("{name}, as set above").format(name=_(name)), command)
        ui.elsewhereWhatComboBox.addItem(_("Continue a run that is not finished"), "")
        ui.elsewhereWhatComboBox.setCurrentIndex(list(COMMANDS).index("train"))
        ui.elsewhereScansComboBox.addItem(_("Copy them"))
        ui.elsewhereScansComboBox.addItem(_("List their paths alone"))
        for combo in (ui.elsewhereWhatComboBox, ui.elsewhereRunComboBox, ui.elsewhereScansComboBox):
            combo.connect("currentIndexChanged(int)", lambda _index: self._show())
        ui.elsewhereStoreCheckBox.connect("toggled(bool)", lambda _checked: self._show())
        ui.elsewhereFolderPathLineEdit.connect("currentPathChanged(QString)", lambda _path: self._show())
        # An emptied line tells this alone.
        ui.elsewhereFolderPathLineEdit.connect("validInputChanged(bool)", lambda _valid: self._show())
        ui.elsewhereExportButton.connect("clicked(bool)", self._export)
        ui.elsewhereOpenButton.connect("clicked(bool)", self._open)
        menu = qt.QMenu(ui.elsewhereImportButton)
        for text, ask in ((_("A folder…"), self._import_folder), (_("A .zip…"), self._import_file)):
            menu.addAction(text).connect("triggered(bool)", ask)
        ui.elsewhereImportButton.setMenu(menu)
        ui.elsewhereSection.connect("contentsCollapsed(bool)", self._opened)
        show(False, ui.elsewhereLogTextEdit)
        self._show()

    @property
    def busy(self) -> bool:
        """Whether something is being copied."""
        return self.jobs.busy

    def update(self, elsewhere: str) -> None:
        """Enable what can be done.

        Args:
            elsewhere: why nothing can be begun now; empty if it can.
        """
        self._elsewhere, self._checked = elsewhere, None
        self._show()

    def refresh(self) -> None:
        """Look for runs that could be continued elsewhere, and at the disk."""
        self._checked = None
        self.lookups.ask(unfinished_runs, self._list)
        self._show()

    def close(self) -> None:
        """The panel is closed; what is half copied is removed."""
        self.lookups.close()
        self.jobs.close(stop_job=True)

    # --- looking ----------------------------------------------------------------------------------------------

    def _opened(self, is_collapsed: bool) -> None:
        if not is_collapsed:
            self.refresh()

    def _list(self, runs: list[Path]) -> None:
        combo, chosen = self._ui.elsewhereRunComboBox, self._run()
        was_blocked = combo.blockSignals(True)
        self._runs = runs
        combo.clear()
        for run in runs:
            combo.addItem(run.name)
        combo.setCurrentIndex(runs.index(chosen) if chosen in runs else min(len(runs), 1) - 1)
        combo.blockSignals(was_blocked)
        self._show()

    def _run(self) -> Path | None:
        number = int(self._ui.elsewhereRunComboBox.currentIndex)
        return self._runs[number] if 0 <= number < len(self._runs) else None

    def _command(self) -> str:
        """That is chosen; empty: a run is to be continued."""
        return str(self._ui.elsewhereWhatComboBox.currentData or "")

    def _show(self) -> None:
        ui, command = self._ui, self._command()
        at_work = _("Wait until it is copied, or press Cancel.") if self.jobs.busy else ""
        show(not command, ui.elsewhereRunLabel, ui.elsewhereRunComboBox)
        reason = "" if at_work else self._elsewhere or self._why_not()
        allow(
            ui.elsewhereExportButton,
            at_work or reason,
            _("Write the folder. It can be moved, and says how to start."),
        )
        say(ui.elsewhereHintLabel, reason)
        nothing = "" if self._exported.name else _("Export first.")
        allow(ui.elsewhereOpenButton, nothing, _("Show the exported folder."))
        allow(
            ui.elsewhereImportButton,
            at_work or self._elsewhere,
            _("Check what came back, and make it a run of this workspace. What is imported is only read."),
        )
        no_run = "" if command or self._runs else _("No run of the workspace can be continued.")
        allow(ui.elsewhereRunComboBox, at_work or no_run, _("The run that the other machine goes on with."))
        allow(
            ui.elsewhereWhatComboBox, at_work, _("A new run with the settings of this panel, or one to go on with.")
        )
        allow(
            ui.elsewhereScansComboBox,
            at_work,
            _("Copy the scans, or list their paths alone, for a machine that sees the same disks."),
        )
        is_new = command and not self._settings(command).get("store")
        nothing = _("A new run has no prepared scans yet.") if is_new else ""
        allow(
            ui.elsewhereStoreCheckBox,
            at_work or nothing,
            _("Copy the scans as they were prepared here, too; it need not be done again there."),
        )
        ui.elsewhereFolderPathLineEdit.enabled = not at_work
        show(self.jobs.busy, ui.elsewhereCancelButton)

    def _chosen(self) -> ExportSettings:
        ui, command = self._ui, self._command()
        return ExportSettings(
            str(ui.elsewhereFolderPathLineEdit.currentPath),
            command,
            dict(self._settings(command)) if command else {},
            None if command else self._run(),
            int(ui.elsewhereScansComboBox.currentIndex) == _COPY,
            bool(ui.elsewhereStoreCheckBox.checked and ui.elsewhereStoreCheckBox.enabled),
        )

    def _why_not(self) -> str:
        """Why nothing can be exported; the disk is asked once for the same settings, and only while this is open."""
        if self._ui.elsewhereSection.collapsed:
            return ""
        if not self._command() and self._run() is None:
            return _("No run of the workspace can be continued: all are finished, or at work. Choose a new run.")
        settings = self._chosen()
        if self._exported.name and Path(settings.target) == self._exported:
            return _("This is exported. Choose another folder to export once more.")
        if self._checked is None or self._checked[0] != settings:
            self._checked = settings, settings.why_not()
        return self._checked[1]

    # --- working ----------------------------------------------------------------------------------------------

    def _export(self) -> None:
        self._begin(lambda: StepWork(export_steps(self._chosen()), self._written))
        self._ui.elsewhereFolderPathLineEdit.addCurrentPathToHistory()

    def _import_folder(self) -> None:
        title = _("Folder with the run that came back")
        begin = str(self._exported.parent if self._exported.name else Path.home())
        self._import(str(qt.QFileDialog.getExistingDirectory(self._ui.elsewhereImportButton, title, begin) or ""))

    def _import_file(self) -> None:
        title, kinds = _("The run that came back"), _("Packed folders (*.zip)")
        button = self._ui.elsewhereImportButton
        self._import(str(qt.QFileDialog.getOpenFileName(button, title, str(Path.home()), kinds) or ""))

    def _import(self, path: str) -> None:
        if path:
            self._begin(lambda: StepWork(import_steps(Path(path)), self._taken))

    def _begin(self, work: Callable[[], StepWork[Any]]) -> None:
        # While packages are installed the buttons could be pressed once more.
        self._ui.elsewhereExportButton.enabled = self._ui.elsewhereImportButton.enabled = False
        self.jobs.say("")
        try:
            ensure_packages()
            self.jobs.follow(work())
        except HybridMIMError as error:
            self.jobs.say(str(error), is_error=True)
        finally:
            self._show()

    def _written(self, made: Exported) -> str:
        self._exported = made.folder
        return made.describe()

    def _taken(self, back: TakenBack) -> str:
        self._imported(back.run)
        return back.describe()

    def _ended(self, work: Work) -> str:
        self._checked = None
        return work.message

    def _changed(self) -> None:
        self._show()
        if not self.jobs.busy:
            self.lookups.ask(unfinished_runs, self._list)
        self._on_change()

    def _open(self) -> None:
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(self._exported)))
