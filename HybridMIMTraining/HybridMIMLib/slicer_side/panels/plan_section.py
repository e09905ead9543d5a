"""What to train and for how long: a preset, settings that differ from it, and what all of it will take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctk
import qt
from slicer.i18n import tr as _

from HybridMIMLib.errors import HybridMIMError
from HybridMIMLib.runs import settings_text
from HybridMIMLib.slicer_side.environment import ensure_packages
from HybridMIMLib.slicer_side.jobs import FINISHED
from HybridMIMLib.slicer_side.panel import ERROR_STYLE, JobPanel
from HybridMIMLib.slicer_side.panels.later import Later
from HybridMIMLib.slicer_side.panels.parts import job_widgets
from HybridMIMLib.slicer_side.panels.setting_rows import SettingRows
from HybridMIMLib.slicer_side.panels.widgets import allow, say, show
from HybridMIMLib.slicer_side.plan_choices import (
    AUTOMATIC,
    MAIN,
    OWN,
    SETTINGS,
    Base,
    PlanChoices,
    Setting,
    bases,
    for_user,
    groups,
    read_own,
    read_preset,
    title_of,
)
from HybridMIMLib.slicer_side.plan_estimate import EstimateJob

_NAMED = 4
"""Changed settings that are listed by name."""
_ROW_HEIGHT = 22

_Asked = tuple[dict[str, object], tuple[str, str]]
"""Options and folders, of which an estimate is."""


class PlanSection:
    """Binds the widgets of ``Plan.ui``.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them.
        on_change: called when settings were changed, and when an estimate begins or has ended.

    Attributes:
        jobs: follows the estimate.
    """

    def __init__(self, ui: Any, on_change: Callable[[], None]) -> None:
        self._ui, self._on_change = ui, on_change
        self._choices = PlanChoices()
        self._bases: dict[str, Base] = {base.key: base for base in bases()}
        self._presets: dict[str, dict[str, Any] | None] = {}
        self._folders, self._elsewhere, self._wrong_file = ("", ""), "", ""
        self._asking: _Asked | None = None
        self._estimated: _Asked | None = None
        self._reading, self._opening, self._writing = Later(), Later(), Later()
        self._rows = [SettingRows(ui.planMainWidget, [SETTINGS[name] for name in MAIN], "plan", self._edited)]
        self.jobs = JobPanel(job_widgets(ui, "planEstimate"), self._ended, self._changed)
        self._connect()
        self._fill()
        self._read_presets()
        self._show_all()

    @property
    def busy(self) -> bool:
        """Whether an estimate is made."""
        return self.jobs.busy

    def options(self) -> dict[str, object]:
        """Options of the command line, ``config`` with the name of the preset among them."""
        return self._choices.options()

    def why_not(self, command: str = "train") -> str:
        """Why a training cannot begin with these settings, as a sentence; empty if it can.

        Args:
            command: pretrain, finetune, train or study.
        """
        if self._wrong_file:
            return self._wrong_file
        if self._choices.base == OWN and not self._choices.values_of_base:
            return _("No file of settings is chosen; choose one, or another preset.")
        return self._choices.why_not(*self._folders, command)

    def update(self, unlabelled: str, labelled: str, elsewhere: str) -> None:
        """Enable what can be done.

        Args:
            unlabelled, labelled: the folders that are chosen, or empty.
            elsewhere: why nothing can be begun now; empty if it can.
        """
        self._folders, self._elsewhere = (unlabelled, labelled), elsewhere
        self._show()

    def dump(self) -> str:
        """All of it as text, for the scene."""
        return self._choices.dump()

    def load(self, text: str) -> None:
        """What :meth:`dump` gave, or anything else, of which nothing is taken; nobody is told of the change."""
        if text == self.dump():
            return
        self._choices, self._wrong_file = PlanChoices.load(text), ""
        self._opening.close()
        if self._choices.base not in (AUTOMATIC, OWN):
            self._choices.take_base(self._choices.base, self._presets.get(self._choices.base))
        self._show_all()

    def close(self) -> None:
        """The panel is closed; nobody wants to know any more what a training takes."""
        for one in (self._reading, self._opening, self._writing):
            one.close()
        self.jobs.close(stop_job=True)

    # --- looking ----------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        ui = self._ui
        ui.planPresetComboBox.connect("activated(int)", self._choose)
        ui.planFilePathLineEdit.connect("currentPathChanged(QString)", self._choose_file)
        ui.planResetButton.connect("clicked(bool)", self._reset)
        ui.planAdvancedSection.connect("contentsCollapsed(bool)", self._unfold)
        ui.planTextButton.connect("toggled(bool)", lambda _checked: self._show())
        ui.planCopyButton.connect("clicked(bool)", self._copy)
        ui.planEstimateButton.connect("clicked(bool)", self._estimate)

    def _fill(self) -> None:
        ui = self._ui
        for number, base in enumerate(self._bases.values()):
            ui.planPresetComboBox.addItem(_(base.title))
            ui.planPresetComboBox.setItemData(number, _(base.summary), qt.Qt.ToolTipRole)
        table, heads = ui.planEstimateTable, (_("Stage"), _("Steps"), _("Time"), _("Memory"), _("Disk"))
        table.setColumnCount(len(heads))
        table.setHorizontalHeaderLabels(list(heads))
        table.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
        table.setWordWrap(False)
        table.verticalHeader().visible = False
        table.verticalHeader().setDefaultSectionSize(_ROW_HEIGHT)
        table.horizontalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        table.horizontalHeader().setStretchLastSection(True)
        show(False, table, ui.planEstimateLogTextEdit, ui.planStaleLabel)
        ui.planHintLabel.styleSheet = ERROR_STYLE

    def _read_presets(self) -> None:
        names = [key for key in self._bases if key not in (AUTOMATIC, OWN)]
        self._reading.ask(lambda: {name: read_preset(name) for name in names}, self._take_presets)

    def _take_presets(self, found: dict[str, dict[str, Any] | None]) -> None:
        self._presets = found
        if self._choices.base in found:
            self._choices.take_base(self._choices.base, found[self._choices.base])
            self._show_all()
            self._on_change()

    def _unfold(self, is_collapsed: bool) -> None:
        """Make the groups when they are wanted for the first time."""
        if is_collapsed or len(self._rows) > 1:
            return
        for title, settings in groups().items():
            group = ctk.ctkCollapsibleButton()
            group.text = _(title)
            # By itself it would never be narrower than its longest line of help.
            group.setSizePolicy(qt.QSizePolicy.Preferred, qt.QSizePolicy.Preferred)
            group.objectName = f"planAdvanced{title.replace('-', '')}Section"
            qt.QVBoxLayout(group)
            self._ui.planAdvancedSection.layout().addWidget(group)
            self._rows.append(SettingRows(group, settings, "plan", self._edited))
            # Folded once its rows are there, which are hidden with it.
            group.collapsed = True
        self._show_all()

    def _show_all(self) -> None:
        """Show the base and all values, because they have been replaced."""
        ui, path = self._ui, self._ui.planFilePathLineEdit
        ui.planPresetComboBox.setCurrentIndex(list(self._bases).index(self._choices.base))
        if path.currentPath != self._choices.file:
            was_blocked = path.blockSignals(True)
            path.currentPath = self._choices.file
            path.blockSignals(was_blocked)
        for rows in self._rows:
            rows.show(self._choices.value)
        self._show()

    def _show(self) -> None:
        ui, choices = self._ui, self._choices
        show(choices.base == OWN, ui.planFileLabel, ui.planFilePathLineEdit)
        say(ui.planSummaryLabel, self._summary())
        for rows in self._rows:
            rows.mark(lambda name: name in choices.changes, choices.of_base)
        ui.planChangesLabel.text = self._changes()
        none = "" if choices.changes else _("Nothing was changed.")
        allow(ui.planResetButton, none, _("Take back what was changed: everything as in the preset again."))
        reason = self.why_not()
        say(ui.planHintLabel, reason)
        self._show_text()
        self._show_estimate(reason)

    def _summary(self) -> str:
        base = self._bases[self._choices.base]
        if self._presets.get(base.key, {}) is None:
            return _(
                "{summary} Its values can be shown once the packages are installed (section Environment)."
            ).format(summary=_(base.summary))
        return _(base.summary)

    def _changes(self) -> str:
        names = [_(title_of(name)) for name in self._choices.changes]
        if not names:
            return _("No setting changed.")
        more = _(", …") if len(names) > _NAMED else ""
        text = _("1 setting changed: {names}") if len(names) == 1 else _("{count} settings changed: {names}")
        return text.format(count=len(names), names=", ".join(names[:_NAMED]) + more)

    def _show_text(self) -> None:
        ui = self._ui
        wanted = bool(ui.planTextButton.checked)
        show(wanted, ui.planTextEdit, ui.planCopyButton)
        if wanted:
            choices, folders = PlanChoices.load(self._choices.dump()), self._folders
            choices.values_of_base = dict(self._choices.values_of_base)
            self._writing.ask(lambda: _as_yaml(choices, folders), self._show_yaml)

    def _show_yaml(self, text: str) -> None:
        if self._ui.planTextEdit.plainText != text:
            self._ui.planTextEdit.plainText = text

    # --- changing ---------------------------------------------------------------------------------------------

    def _choose(self, number: int) -> None:
        key = list(self._bases)[number]
        if key == self._choices.base:
            return
        self._wrong_file = ""
        if key == OWN:
            self._choices.take_base(OWN, None)
        elif key == AUTOMATIC:
            self._choices.take_base(AUTOMATIC, None)
        else:
            self._choices.take_base(key, self._presets.get(key))
            if self._presets.get(key) is None:
                self._read_presets()
        self._show_all()
        self._on_change()

    def _choose_file(self, path: str) -> None:
        """Read a file of settings, because the user named it."""
        name = str(path).strip()
        self._choices.take_base(OWN, None, name)
        self._wrong_file = _("Reading {file}…").format(file=name) if name else ""
        self._opening.ask(lambda: _own(name), self._take_own)
        self._show()

    def _take_own(self, found: dict[str, Any] | str) -> None:
        if isinstance(found, str):
            self._wrong_file = found
        else:
            self._wrong_file = ""
            self._choices.take_base(OWN, found, self._choices.file)
            self._ui.planFilePathLineEdit.addCurrentPathToHistory()
        self._show_all()
        self._on_change()

    def _edited(self, setting: Setting, text: str) -> None:
        self._choices.set(setting.name, text)
        self._show()
        self._on_change()

    def _reset(self) -> None:
        self._choices.reset()
        self._show_all()
        self._on_change()

    def _copy(self) -> None:
        qt.QApplication.clipboard().setText(self._ui.planTextEdit.plainText)

    # --- estimating -------------------------------------------------------------------------------------------

    def _asked(self) -> _Asked:
        """What an estimate would be of; the name of the model takes no time."""
        return {name: value for name, value in self.options().items() if name != "name"}, self._folders

    def _show_estimate(self, reason: str) -> None:
        ui = self._ui
        nothing = "" if any(self._folders) else _("No scans are chosen; choose them above, then estimate.")
        at_work = _("Wait for the estimate, or press Cancel.") if self.busy else ""
        allow(
            ui.planEstimateButton,
            at_work or self._elsewhere or nothing or reason,
            _("Try a few real steps on some of your scans, and tell time, memory and disk. It takes a minute or so."),
        )
        show(self.busy, ui.planEstimateCancelButton)
        is_stale = self._estimated is not None and self._estimated != self._asked()
        stale = _("Settings or scans have changed since this estimate. Estimate once more.")
        say(ui.planStaleLabel, stale if is_stale and not self.busy else "")
        ui.planEstimateTable.enabled = ui.planEstimateMessageLabel.enabled = not is_stale

    def _estimate(self) -> None:
        self._ui.planEstimateButton.enabled = False
        self.jobs.say("")
        self._estimated = None
        show(False, self._ui.planEstimateTable)
        try:
            ensure_packages()
            options, (unlabelled, labelled) = self._asked()
            self._asking = self._asked()
            self.jobs.follow(EstimateJob({**options, "unlabelled": unlabelled, "labelled": labelled}))
            self._on_change()
        except HybridMIMError as error:
            self.jobs.say(str(error), is_error=True)
        finally:
            self._show()

    def _ended(self, job: EstimateJob) -> str:
        if job.state != FINISHED:
            return for_user(job.message)
        self._estimated = self._asking
        self._show_rows(job)
        return "\n".join([job.message, *map(for_user, job.notes)])

    def _show_rows(self, job: EstimateJob) -> None:
        table = self._ui.planEstimateTable
        table.setRowCount(len(job.rows))
        for number, row in enumerate(job.rows):
            for column, text in enumerate(row.cells):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(row.details)
                table.setItem(number, column, item)
        show(True, table)

    def _changed(self) -> None:
        self._show()
        self._on_change()


def _own(name: str) -> dict[str, Any] | str:
    """The values of a file, or why they cannot be had; for a thread."""
    if not name:
        return {}
    try:
        return read_own(Path(name).expanduser())
    except HybridMIMError as error:
        return str(error)


def _as_yaml(choices: PlanChoices, folders: tuple[str, str]) -> str:
    """All settings as a run keeps them, or why there are none; for a thread."""
    try:
        return settings_text(choices.run(*folders))
    except HybridMIMError as error:
        return for_user(str(error))
    except ImportError:
        return _("The text can be shown once the packages are installed (section Environment).")
