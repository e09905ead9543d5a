"""The table of a batch in a window: a ``QTableWidget`` that follows a :class:`~.batch.BatchTable`.

>>> view = BatchView(ui.batchTable, on_open=lambda row: print(row.scan))                   # doctest: +SKIP
>>> view.show(batch.table)                    # now, and after each look at the batch       # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
from slicer.i18n import tr as _

from HybridMIMLib.slicer_side.batch import BatchTable, CaseRow

_ROWS = 150
"""Rows that are drawn in one look: some milliseconds."""


class BatchView:
    """Draws rows that have changed, and of very many some at each look.

    Args:
        widget: a ``QTableWidget``; its columns are made here.
        on_open: called with the row that the user double-clicks, to load its scan and result for example.
    """

    def __init__(self, widget: Any, on_open: Callable[[CaseRow], None] | None = None) -> None:
        self._widget, self._on_open = widget, on_open
        self._table: BatchTable | None = None
        self._lists = 0
        self._waiting: list[int] = []
        titles = {"Scan": _("Scan"), "State": _("State"), "Reason": _("Reason")}
        widget.setColumnCount(len(BatchTable.COLUMNS))
        widget.setHorizontalHeaderLabels([titles[name] for name in BatchTable.COLUMNS])
        widget.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
        widget.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
        widget.verticalHeader().visible = False
        widget.horizontalHeader().setStretchLastSection(True)
        widget.connect("cellDoubleClicked(int,int)", self._open)

    @property
    def is_complete(self) -> bool:
        """Whether all that was to be drawn has been."""
        return not self._waiting

    def show(self, table: BatchTable) -> None:
        """Draw what has changed, at most some rows of it; the others follow with the next calls."""
        if table is not self._table or table.lists != self._lists:
            self._table, self._lists = table, table.lists
            table.take_changes()
            self._widget.setRowCount(len(table.rows))
            self._waiting = list(range(len(table.rows)))
        changed = table.take_changes()
        # What is at work is what people look at; the rest of a long list comes after it.
        self._waiting = [*changed, *(row for row in self._waiting if row not in set(changed))]
        now, self._waiting = self._waiting[:_ROWS], self._waiting[_ROWS:]
        for row in now:
            self._draw(table, row)

    def _draw(self, table: BatchTable, row: int) -> None:
        for column in range(len(BatchTable.COLUMNS)):
            item = self._widget.item(row, column)
            if item is None:
                item = qt.QTableWidgetItem()
                self._widget.setItem(row, column, item)
            text = table.text(row, column)
            item.setText(text)
            item.setToolTip(table.rows[row].scan if column == 0 else text)

    def _open(self, row: int, _column: int) -> None:
        if self._table is not None and self._on_open is not None and row < len(self._table.rows):
            self._on_open(self._table.rows[row])
