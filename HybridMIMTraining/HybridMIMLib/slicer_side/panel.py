"""The part of a panel that follows a job: bar, status, values, message, log and Cancel. Both modules have it.

The widgets come from the module's ``.ui`` file, by these names: ``progressBar``, ``statusLabel``, ``messageLabel``,
``logTextEdit``, ``cancelButton`` and, where losses are shown, ``valuesTable``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import qt
from slicer.i18n import tr as _

from HybridMIMLib.slicer_side.jobs import FAILED, STOPPING, Work
from HybridMIMLib.slicer_side.progress import PHASES, Value

_INTERVAL = 200
"""Milliseconds between two looks at a job that a process does."""

_LINES = 500
"""Of the log; more would slow the panel and nobody reads them."""

_WARNINGS = 3

_BAR = re.compile(r"\[#*\.*\] \d+/\d+")
"""A line by which a process tells a terminal how far it is."""

# Readable on Slicer's light and on its dark style.
ERROR_STYLE, _PLAIN_STYLE = "color: #d64541; font-weight: bold;", ""


class JobPanel:
    """Follows one job at a time with a timer.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them.
        on_end: called with the job when it has ended; says what to tell the user.
        on_change: called when a job begins and when it has ended, e.g. to enable buttons.
        interval: milliseconds between two looks; short where each look does a piece of the work.
    """

    def __init__(
        self,
        ui: Any,
        on_end: Callable[[Any], str],
        on_change: Callable[[], None],
        interval: int = _INTERVAL,
    ) -> None:
        self.job: Work | None = None
        self._ui, self._on_end, self._on_change = ui, on_end, on_change
        self._shown, self._phase, self._cancel_tip = 0, "", ui.cancelButton.toolTip
        self._timer = qt.QTimer()
        self._timer.interval = interval
        self._timer.connect("timeout()", self._look)
        ui.cancelButton.connect("clicked(bool)", self._cancel)
        ui.logTextEdit.maximumBlockCount = _LINES
        self._show_idle()
        self.say("")
        if self._has_values:
            # Kept after a job, but an empty table tells nothing before the first.
            ui.valuesTable.visible = False
            ui.valuesTable.horizontalHeader().setSectionResizeMode(0, qt.QHeaderView.Stretch)

    @property
    def _has_values(self) -> bool:
        return hasattr(self._ui, "valuesTable")

    @property
    def busy(self) -> bool:
        """Whether a job is at work."""
        return self.job is not None and not self.job.ended

    def follow(self, job: Work) -> None:
        """Show a job until it ends."""
        self.job, self._shown, self._phase = job, 0, ""
        self._ui.logTextEdit.clear()
        self.say("")
        self._allow_cancel("")
        for widget in (self._ui.statusLabel, self._ui.progressBar):
            widget.visible = True
        self._show(job)
        self._timer.start()
        self._on_change()

    def say(self, text: str, is_error: bool = False) -> None:
        """Show a sentence to the user, or none."""
        self._ui.messageLabel.text = text
        self._ui.messageLabel.styleSheet = ERROR_STYLE if is_error else _PLAIN_STYLE
        self._ui.messageLabel.visible = bool(text)

    def close(self, stop_job: bool) -> None:
        """Let go of everything, because the panel is closed; the job is killed, or left to itself."""
        self._timer.stop()
        if stop_job and self.job is not None:
            self.job.kill()
        self.job = None

    def _look(self) -> None:
        job = self.job
        if job is None:
            self._timer.stop()
            return
        # The timer stops first: whatever goes wrong below happens once and not five times a second.
        self._timer.stop()
        try:
            job.update()
        except Exception:
            # Shown as the job's message; the panel itself must go on.
            logging.exception("HybridMIM: %s", job.folder)
        self._show(job)
        if not job.ended:
            self._timer.start()
        else:
            self._finish(job)

    def _finish(self, job: Work) -> None:
        self._show_idle()
        if job.state == FAILED:
            # What a process printed is for those who look closer; the message has the cause and the cure.
            for line in job.said:
                if line not in job.progress.lines and not _BAR.search(line):
                    self._ui.logTextEdit.appendPlainText(line)
        text = self._on_end(job)
        self.say(_with_warnings(text, job.progress.warnings), is_error=job.state == FAILED)
        self._on_change()

    def _cancel(self) -> None:
        if self.job is not None:
            self.job.cancel()
            self._allow_cancel(_("It is stopping already."))
            self._show(self.job)

    def _show(self, job: Work) -> None:
        progress = job.progress
        self._ui.statusLabel.text = _("Stopping…") if job.state == STOPPING else f"{progress.describe()} …"
        fraction = progress.fraction
        # A range of nothing makes Qt draw a bar that shows work without saying how much is left.
        self._ui.progressBar.setRange(0, 0 if fraction is None else 1000)
        if fraction is not None:
            self._ui.progressBar.value = round(1000 * fraction)
        if progress.phase not in ("", self._phase):
            self._ui.logTextEdit.appendPlainText(PHASES.get(progress.phase, progress.phase))
            self._phase = progress.phase
        for line in progress.lines[self._shown :]:
            self._ui.logTextEdit.appendPlainText(line)
        self._shown = len(progress.lines)
        if self._has_values:
            self._show_values(job)

    def _values(self, job: Work) -> dict[str, Value]:
        """What the table shows; special panels leave something out."""
        return job.progress.values

    def _show_values(self, job: Work) -> None:
        table, values = self._ui.valuesTable, self._values(job)
        table.visible = table.visible or bool(values)
        table.setRowCount(len(values))
        for row, (name, value) in enumerate(values.items()):
            for column, text in enumerate((name, f"{value.first:.4g}", f"{value.now:.4g}")):
                item = table.item(row, column)
                if item is None:
                    item = qt.QTableWidgetItem()
                    table.setItem(row, column, item)
                item.setText(text)

    def _allow_cancel(self, reason: str) -> None:
        """Enable Cancel, or say on it why it cannot be pressed."""
        self._ui.cancelButton.enabled = not reason
        self._ui.cancelButton.toolTip = reason or self._cancel_tip

    def _show_idle(self) -> None:
        self._allow_cancel(_("Nothing is at work."))
        for widget in (self._ui.statusLabel, self._ui.progressBar):
            widget.visible = False


def _with_warnings(text: str, warnings: list[str]) -> str:
    """The message, and the first warnings; a folder may give hundreds, and a log that was gone on with the same."""
    warnings = list(dict.fromkeys(warnings))
    lines = [text, *(_("Warning: {text}").format(text=one) for one in warnings[:_WARNINGS])]
    if len(warnings) > _WARNINGS:
        lines.append(_("… and {count} more, see the log.").format(count=len(warnings) - _WARNINGS))
    return "\n".join(lines)
