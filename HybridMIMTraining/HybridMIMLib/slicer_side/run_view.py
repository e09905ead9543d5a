"""The table of runs in a window: a ``QTableWidget`` that follows a list of :class:`~.run_list.RunInfo`.

>>> view = RunView(ui.runsTable, on_choice=lambda: print(view.chosen))                      # doctest: +SKIP
>>> view.show(runs.found, sizes)                             # at each look at the runs     # doctest: +SKIP
>>> while not view.draw():                                   # some rows at each call       # doctest: +SKIP
...     pass
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from HybridMIMLib.events import duration
from HybridMIMLib.files import size_in_words
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED
from HybridMIMLib.slicer_side.panels.explained import explain_heads
from HybridMIMLib.slicer_side.run_list import DAMAGED, DIED, MISSING, RunInfo

_ROWS = 25
"""Rows that are drawn in one call: some milliseconds."""

_TROUBLE = (FAILED, DIED, DAMAGED, MISSING)
_RED = "#d64541"
"""Readable on Slicer's light and on its dark style."""

_WIDTHS = (145, 75, 80, 50, 80, 105, 60, 60, 70)
_ROW_HEIGHT = 22
_STATE = 1


class RunView:
    """Draws what has changed, and of very many rows some at each call.

    Args:
        widget: a ``QTableWidget``; its columns are made here.
        on_choice: called when the user chooses other rows.
        on_open: called with the run that the user double-clicks.
    """

    def __init__(self, widget: Any, on_choice: Callable[[], None], on_open: Callable[[Path], None]) -> None:
        self._widget, self._on_choice, self._on_open = widget, on_choice, on_open
        self._is_placing = False
        self._rows: list[Path] = []
        self._drawn: dict[Path, tuple[str, ...]] = {}
        self._wanted: dict[Path, tuple[str, ...]] = {}
        self._tips: dict[Path, str] = {}
        self._in_trouble: set[Path] = set()
        titles = [
            _("Run"),
            _("State"),
            _("Steps"),
            _("Dice"),
            _("Kind"),
            _("Began"),
            _("Work"),
            _("Size"),
            _("Machine"),
        ]
        widget.setColumnCount(len(titles))
        widget.setHorizontalHeaderLabels(titles)
        explain_heads(widget, {_("Dice"): "Dice", _("Steps"): "step"})
        for column, width in enumerate(_WIDTHS):
            widget.setColumnWidth(column, width)
        widget.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
        widget.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
        widget.setSelectionMode(qt.QAbstractItemView.ExtendedSelection)
        widget.setWordWrap(False)
        # Runs of one kind and name differ at their end.
        widget.setTextElideMode(qt.Qt.ElideMiddle)
        widget.verticalHeader().visible = False
        widget.verticalHeader().setDefaultSectionSize(_ROW_HEIGHT)
        widget.connect("itemSelectionChanged()", self._chose)
        widget.connect("cellDoubleClicked(int,int)", self._open)

    @property
    def chosen(self) -> list[Path]:
        """Folders of the runs that are marked, from top to bottom."""
        numbers = sorted(index.row() for index in self._widget.selectionModel().selectedRows())
        return [self._rows[number] for number in numbers if number < len(self._rows)]

    def show(self, runs: Sequence[RunInfo], sizes: Mapping[Path, int]) -> None:
        """Take in what the runs are now; rows that came and went do so at once, their texts with :meth:`draw`.

        Args:
            runs: in the order of the rows.
            sizes: bytes of their folders, as far as they are counted.
        """
        self._is_placing = True
        try:
            self._place([run.folder for run in runs])
        finally:
            self._is_placing = False
        self._wanted = {run.folder: _texts(run, sizes.get(run.folder)) for run in runs}
        self._tips = {run.folder: run.reason or run.state_in_words for run in runs}
        self._in_trouble = {run.folder for run in runs if run.state in _TROUBLE}

    def draw(self) -> bool:
        """Draw some of what has changed; returns whether that was all."""
        changed = [row for row, one in enumerate(self._rows) if self._drawn.get(one) != self._wanted[one]]
        for row in changed[:_ROWS]:
            self._draw(row)
        return len(changed) <= _ROWS

    def choose(self, folder: Path) -> None:
        """Mark the row of a run, and no other."""
        if folder in self._rows:
            self._widget.selectRow(self._rows.index(folder))

    def _place(self, folders: list[Path]) -> None:
        """Give each run a row, and move none that stays: what is marked stays marked."""
        wanted = set(folders)
        for row in reversed([row for row, one in enumerate(self._rows) if one not in wanted]):
            self._remove(row)
        if not self._rows:
            self._widget.setRowCount(len(folders))
            self._rows = list(folders)
            return
        for row, folder in enumerate(folders):
            if row < len(self._rows) and self._rows[row] == folder:
                continue
            if folder in self._rows:
                self._remove(self._rows.index(folder))
            self._widget.insertRow(row)
            self._rows.insert(row, folder)

    def _remove(self, row: int) -> None:
        self._widget.removeRow(row)
        self._drawn.pop(self._rows.pop(row), None)

    def _draw(self, row: int) -> None:
        folder = self._rows[row]
        texts, before = self._wanted[folder], self._drawn.get(folder)
        for column, text in enumerate(texts):
            item = self._widget.item(row, column)
            if item is None:
                item = qt.QTableWidgetItem()
                self._widget.setItem(row, column, item)
            if before is None or before[column] != text:
                item.setText(text)
                tip = self._tips[folder] if column == _STATE and self._tips[folder] else text
                item.setToolTip(html.escape(tip))
            if column == _STATE:
                item.setForeground(qt.QBrush(qt.QColor(_RED)) if folder in self._in_trouble else qt.QBrush())
        self._drawn[folder] = texts

    def _chose(self) -> None:
        # Marks that go with their rows are nobody's choice.
        if not self._is_placing:
            self._on_choice()

    def _open(self, row: int, _column: int) -> None:
        if row < len(self._rows):
            self._on_open(self._rows[row])


def _texts(run: RunInfo, size: int | None) -> tuple[str, ...]:
    """What stands in the cells of a run."""
    steps = f"{run.step} of {run.steps}" if run.steps > 1 else ""
    return (
        run.name,
        run.state if not run.machine else run.state_in_words,
        steps if run.state != FINISHED or run.step < run.steps else str(run.steps) if steps else "",
        "" if run.dice is None else f"{run.dice:.3f}",
        run.kind,
        run.began[:16].replace("T", " "),
        duration(run.seconds) if run.seconds >= 1 else "",
        "" if size is None else size_in_words(size),
        run.machine or run.host,
    )
