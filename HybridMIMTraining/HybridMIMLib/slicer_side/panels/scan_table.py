"""The table of a check: a row a scan, in words and colour, of thousands of scans too.

>>> table = ScanTable(ui.dataTable, on_open=lambda row: print(row.images), on_choose=print)  # doctest: +SKIP
>>> table.show(folder.rows, {1: "Liver"})                                                   # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import qt
from slicer.i18n import tr as _

from HybridMIMLib.slicer_side.data_check import GOOD, SKIPPED, WARNING, ScanRow

_ROWS = 60
"""That are drawn at once: some milliseconds."""
_EVERY = 15
"""Milliseconds between two such lots."""
ROW_HEIGHT = 22
_FEWEST, _MOST = 3, 8
"""Rows for which there is room."""
_NAME, _VERDICT, _REASON, _SIZE, _SPACING, _MODALITY, _CLASSES = range(7)
_WIDTHS = {_NAME: 125, _VERDICT: 65, _REASON: 190, _SIZE: 100, _SPACING: 120, _MODALITY: 65, _CLASSES: 150}

# Readable on Slicer's light and on its dark style.
COLOURS = {GOOD: "#3a9d5d", WARNING: "#c77f00", SKIPPED: "#d64541"}


class ScanTable:
    """Draws rows in lots, so that the window never waits for it.

    Args:
        widget: a ``QTableWidget``; its columns are made here.
        on_open: called with the row that the user double-clicks.
        on_choose: called with the row that is marked, or None.
    """

    def __init__(
        self, widget: Any, on_open: Callable[[ScanRow], None], on_choose: Callable[[ScanRow | None], None]
    ) -> None:
        self._widget, self._on_open, self._on_choose = widget, on_open, on_choose
        self._rows: Sequence[ScanRow] = ()
        self._names: Mapping[int, str] = {}
        self._drawn = 0
        titles = [_("Scan"), _("Verdict"), _("Reason"), _("Size"), _("Spacing (mm)"), _("Modality"), _("Classes")]
        widget.setColumnCount(len(titles))
        widget.setHorizontalHeaderLabels(titles)
        widget.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
        widget.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
        widget.setSelectionMode(qt.QAbstractItemView.SingleSelection)
        widget.setWordWrap(False)
        widget.verticalHeader().visible = False
        widget.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        for column, width in _WIDTHS.items():
            widget.setColumnWidth(column, width)
        widget.connect("cellDoubleClicked(int,int)", self._open)
        widget.connect("itemSelectionChanged()", self._choose)
        self._timer = qt.QTimer()
        self._timer.interval = _EVERY
        self._timer.connect("timeout()", self._draw_some)

    @property
    def is_complete(self) -> bool:
        """Whether every row has been drawn."""
        return self._drawn == len(self._rows)

    def show(self, rows: Sequence[ScanRow], names: Mapping[int, str]) -> None:
        """Show other rows; the first at once, the others a moment later.

        Args:
            names: of the classes, by label.
        """
        self._rows, self._names, self._drawn = rows, names, 0
        self._widget.clearSelection()
        self._widget.setRowCount(len(rows))
        self._widget.scrollToTop()
        # Two more, for the header and the scroll bar below.
        self._widget.setFixedHeight((min(max(len(rows), _FEWEST), _MOST) + 2) * ROW_HEIGHT)
        for column, text in ((_REASON, "reason"), (_MODALITY, "modality"), (_CLASSES, "labels")):
            self._widget.setColumnHidden(column, not any(getattr(row, text) for row in rows))
        self._draw_some()
        self._timer.start()
        self._choose()

    def close(self) -> None:
        """The panel is closed."""
        self._timer.stop()

    def _draw_some(self) -> None:
        end = min(self._drawn + _ROWS, len(self._rows))
        for number in range(self._drawn, end):
            self._draw(number, self._rows[number])
        self._drawn = end
        if self.is_complete:
            self._timer.stop()

    def _draw(self, number: int, row: ScanRow) -> None:
        classes = ", ".join(self._names.get(label, str(label)) for label in row.labels)
        texts = (row.name, verdict(row.status), row.reason, row.voxels, row.mm, row.modality, classes)
        for column, text in enumerate(texts):
            item = self._widget.item(number, column)
            if item is None:
                item = qt.QTableWidgetItem()
                self._widget.setItem(number, column, item)
            item.setText(text)
            item.setToolTip("\n".join(row.images) if column == _NAME else text)
        self._widget.item(number, _VERDICT).setForeground(qt.QBrush(qt.QColor(COLOURS[row.status])))

    def _open(self, number: int, _column: int) -> None:
        if number < len(self._rows):
            self._on_open(self._rows[number])

    def _choose(self) -> None:
        marked = {item.row() for item in self._widget.selectedItems()}
        number = min(marked) if marked else -1
        self._on_choose(self._rows[number] if 0 <= number < len(self._rows) else None)


def verdict(status: str) -> str:
    """In a word, for the user."""
    return {GOOD: _("OK"), WARNING: _("Warning"), SKIPPED: _("Skipped")}.get(status, status)


def fit_height(table: Any, most: int) -> None:
    """Make a table as high as its rows, up to a number of them; more are scrolled to."""
    rows = min(max(table.rowCount, 1), most)
    # One more for the header, and the frame.
    table.setFixedHeight((rows + 1) * ROW_HEIGHT + 6)
