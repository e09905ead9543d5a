"""The list of trained models in a panel."""

from __future__ import annotations

import html
from typing import Any

import qt

from HybridMIMLib.slicer_side.models import describe, mean_dice, models


class ModelTable:
    """Shows the models of the workspace in ``modelsTable`` and enables ``useModelButton`` when one is marked.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them.
    """

    def __init__(self, ui: Any) -> None:
        self._table, self._use = ui.modelsTable, ui.useModelButton
        self._folders: list[str] = []
        self._table.horizontalHeader().setSectionResizeMode(0, qt.QHeaderView.Stretch)
        self._table.connect("itemSelectionChanged()", self._enable)
        self.show()

    @property
    def chosen(self) -> str:
        """Folder of the model that is marked; empty for none."""
        row = self._table.currentRow()
        return self._folders[row] if 0 <= row < len(self._folders) else ""

    def show(self, folder: str | None = None) -> None:
        """List the models anew, newest first, and mark one; without a folder the one that was marked before."""
        wanted = str(folder or self.chosen)
        found = models()
        self._folders = [str(one.path) for one in found]
        self._table.setRowCount(len(found))
        for row, model in enumerate(found):
            dice = mean_dice(model)
            cells = (model.name, (model.trained or "")[:10], "" if dice is None else f"{dice:.3f}")
            for column, text in enumerate(cells):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(html.escape(f"{describe(model)}\n{model.path}"))
                self._table.setItem(row, column, item)
        self._table.setCurrentCell(self._folders.index(wanted) if wanted in self._folders else -1, 0)
        self._enable()

    def _enable(self) -> None:
        self._use.enabled = bool(self.chosen)
