"""The packages that the library needs, and the devices that it can compute on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import qt
import slicer.util
from slicer.i18n import tr as _

from HybridMIMLib.errors import HybridMIMError
from HybridMIMLib.slicer_side import installed
from HybridMIMLib.slicer_side.device_probe import DeviceProbe
from HybridMIMLib.slicer_side.environment import MISSING, READY, Package, install_packages, missing_packages, packages
from HybridMIMLib.slicer_side.jobs import FINISHED, Work
from HybridMIMLib.slicer_side.panel import JobPanel
from HybridMIMLib.slicer_side.panels.later import Later
from HybridMIMLib.slicer_side.panels.parts import job_widgets
from HybridMIMLib.slicer_side.panels.widgets import allow, say, show
from HybridMIMLib.slicer_side.repair import PackageCheck, PipWork, Removal, plan_removal, remove, repair
from HybridMIMLib.slicer_side.step_work import StepWork
from HybridMIMLib.slicer_side.steps import Step, in_thread
from HybridMIMLib.slicer_side.warm_worker import warm_worker

_ROWS_AT_ONCE = 13
_ROW_HEIGHT = 22


@dataclass(frozen=True)
class Facts:
    """What is installed.

    Attributes:
        packages: that the library needs.
        ours: versions of what this program has brought, by name.
        log: the last lines of what was done with packages.
    """

    packages: list[Package]
    ours: dict[str, str]
    log: list[str]


class EnvironmentSection:
    """Binds the widgets of ``Environment.ui``.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them.
        on_change: called when something begins and when it has ended.

    Attributes:
        jobs: follows what is at work.
        lookups: what is asked of Python's folders.
    """

    def __init__(self, ui: Any, on_change: Callable[[], None]) -> None:
        self._ui, self._on_change = ui, on_change
        self._facts: Facts | None = None
        self._broken: dict[str, str] = {}
        self._elsewhere, self._is_closed = "", False
        self.lookups = Later()
        self.jobs = JobPanel(job_widgets(ui, "environment"), self._ended, self._changed)
        ui.environmentTable.setColumnCount(3)
        ui.environmentTable.setHorizontalHeaderLabels([_("Package"), _("Installed"), _("Wanted")])
        ui.environmentTable.verticalHeader().visible = False
        ui.environmentTable.verticalHeader().setDefaultSectionSize(_ROW_HEIGHT)
        ui.environmentTable.horizontalHeader().setStretchLastSection(True)
        ui.environmentDeviceLabel.text = _("Devices: press Test device to see what can be computed on.")
        ui.environmentTestButton.connect("clicked(bool)", self._test)
        ui.environmentInstallButton.connect("clicked(bool)", self._install)
        ui.environmentRepairButton.connect("clicked(bool)", self._check)
        ui.environmentRemoveButton.connect("clicked(bool)", self._plan_removal)
        ui.environmentLogButton.connect("toggled(bool)", lambda _checked: self._show())
        ui.environmentSection.connect("contentsCollapsed(bool)", self._opened)

    @property
    def changes(self) -> str:
        """Why nothing that needs the packages can be begun now, as a sentence; empty if it can."""
        if self.jobs.busy and not isinstance(self.jobs.job, DeviceProbe):
            return _("Wait until the packages have been looked after, see Environment.")
        return ""

    def update(self, elsewhere: str) -> None:
        """Enable what can be done.

        Args:
            elsewhere: why packages cannot be changed now; empty if they can.
        """
        self._elsewhere = elsewhere
        self._show()

    def refresh(self) -> None:
        """Look at what is installed; nothing is imported for that."""
        self.lookups.ask(_look, self._found)

    def close(self) -> None:
        """The panel is closed."""
        self._is_closed = True
        self.lookups.close()
        self.jobs.close(stop_job=True)

    # --- looking ----------------------------------------------------------------------------------------------

    def _opened(self, is_collapsed: bool) -> None:
        if not is_collapsed:
            self.refresh()

    def _found(self, facts: Facts) -> None:
        self._facts = facts
        if not self.jobs.busy:
            self._ui.environmentLogTextEdit.setPlainText("\n".join(facts.log))
        self._fill(facts)
        self._show()
        self._on_change()

    def _fill(self, facts: Facts) -> None:
        table = self._ui.environmentTable
        table.setRowCount(len(facts.packages))
        for row, one in enumerate(facts.packages):
            broken = self._broken.get(one.name, "")
            found = _("{version}, broken").format(version=one.found) if broken else one.found or _("missing")
            tip = broken or (_("Installed by HybridMIM.") if one.ours else "")
            for column, text in enumerate((one.name, found, one.wanted or _("any"))):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(tip)
                if column == 1 and (broken or one.state != READY):
                    item.setForeground(qt.QBrush(qt.QColor("#d64541")))
                table.setItem(row, column, item)
        table.resizeColumnsToContents()
        rows = min(max(len(facts.packages), 1), _ROWS_AT_ONCE)
        table.setFixedHeight((rows + 1) * table.verticalHeader().defaultSectionSize + 6)

    def _missing(self) -> list[Package]:
        return [one for one in self._facts.packages if one.state != READY] if self._facts is not None else []

    def _show(self) -> None:
        ui, facts = self._ui, self._facts
        unknown = "" if facts is not None else _("Looking at what is installed…")
        busy = _("Wait until what is at work has ended, or press Cancel.") if self.jobs.busy else ""
        missing = self._missing()
        say(ui.environmentSummaryLabel, unknown or _summary(missing, self._broken))
        show(facts is not None, ui.environmentTable)
        has_torch = not any(one.name == "torch" and one.state == MISSING for one in missing)
        no_torch = "" if has_torch else _("PyTorch is missing: press Install first.")
        tip = _("Compute a little on each device, in a process of its own, and see how much memory is free.")
        allow(ui.environmentTestButton, busy or unknown or no_torch, tip)
        complete = "" if missing else _("Everything is installed.")
        wait = busy or self._elsewhere or unknown
        allow(ui.environmentInstallButton, wait or complete, _("Install what is missing; asks first."))
        nothing = _("Nothing is installed yet that could be broken.")
        has_any = facts is not None and any(one.found for one in facts.packages)
        tip = _("Try every package, and offer to install anew what is broken.")
        allow(ui.environmentRepairButton, wait or ("" if has_any else nothing), tip)
        none_ours = _("HybridMIM has installed nothing that could be removed.")
        has_ours = facts is not None and bool(facts.ours)
        tip = _("Remove the packages that HybridMIM has installed; asks first. Models and runs stay.")
        allow(ui.environmentRemoveButton, wait or ("" if has_ours else none_ours), tip)
        show(bool(ui.environmentLogButton.checked), ui.environmentLogTextEdit)

    # --- doing ------------------------------------------------------------------------------------------------

    def _begin(self, make: Callable[[], Work]) -> None:
        """Start something and follow it."""
        self.jobs.say("")
        try:
            self.jobs.follow(make())
        except HybridMIMError as error:
            self.jobs.say(str(error), is_error=True)
        self._show()

    def _test(self) -> None:
        self._begin(DeviceProbe)

    def _install(self) -> None:
        # While packages are installed the button could be pressed once more.
        self._ui.environmentInstallButton.enabled = False
        self.jobs.say("")
        try:
            install_packages(missing_packages())
            self.jobs.say(_("Installed. If Slicer asked to be restarted, do that first."))
        except HybridMIMError as error:
            self.jobs.say(str(error), is_error=True)
        finally:
            self._forget_worker()
            self.refresh()

    def _check(self) -> None:
        self._begin(PackageCheck)

    def _ask_to_repair(self) -> None:
        if self._is_closed:
            return
        listed = "\n".join(f"{name}: {reason}" for name, reason in self._broken.items())
        question = _("These packages cannot be used:\n\n{listed}\n\nInstall them anew, in the same versions?")
        if slicer.util.confirmOkCancelDisplay(question.format(listed=listed), windowTitle=_("Repair")):
            self._forget_worker()
            self._begin(lambda: repair(self._broken))

    def _plan_removal(self) -> None:
        self._begin(lambda: StepWork(in_thread(plan_removal, Step(0.0, _("Looking at the packages"))), self._planned))

    def _planned(self, removal: Removal) -> str:
        if not removal.packages:
            kept = " ".join(f"{name} stays: {reason}." for name, reason in sorted(removal.kept.items()))
            return _("Nothing can be removed. {kept}").format(kept=kept).strip()
        # Once the panel has shown the end of this work.
        qt.QTimer.singleShot(0, lambda: self._ask_to_remove(removal))
        return ""

    def _ask_to_remove(self, removal: Removal) -> None:
        if self._is_closed:
            return
        if slicer.util.confirmOkCancelDisplay(removal.question(), windowTitle=_("Remove")):
            self._forget_worker()
            self._begin(lambda: remove(removal))
        else:
            self.jobs.say(_("Nothing was removed."))

    def _forget_worker(self) -> None:
        """It holds files of the packages open, and knows those of before."""
        warm_worker().close()

    def _ended(self, work: Work) -> str:
        self.refresh()
        if isinstance(work, DeviceProbe):
            lines = [f"{one.describe()}." for one in work.devices]
            self._ui.environmentDeviceLabel.text = "\n".join(lines or [_("Devices: not known.")])
            return "" if work.state == FINISHED else work.message
        if isinstance(work, PackageCheck) and work.state == FINISHED:
            self._broken = dict(work.broken)
            if self._broken:
                # Once the panel has shown the end of this work.
                qt.QTimer.singleShot(0, self._ask_to_repair)
                return ""
        if isinstance(work, PipWork) and work.state == FINISHED:
            self._broken = {}
        return work.message

    def _changed(self) -> None:
        self._show()
        self._on_change()


def _look() -> Facts:
    """For a thread."""
    return Facts(packages(), installed.ours(), installed.log_lines())


def _summary(missing: list[Package], broken: dict[str, str]) -> str:
    if broken:
        return _("Broken: {names}. Press Repair.").format(names=", ".join(sorted(broken)))
    if missing:
        return _("Not ready: {names}. Press Install.").format(names=", ".join(one.name for one in missing))
    return _("All packages that HybridMIM needs are installed.")
