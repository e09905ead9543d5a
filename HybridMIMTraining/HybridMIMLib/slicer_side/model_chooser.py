"""The row of a panel in which a model is chosen: a list, and what the chosen one is.

The list holds the models of the workspace, and the chosen one from wherever it is, even if it is gone: a scene that
was saved elsewhere must not silently switch to another model.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

from HybridMIMLib.data.model_description import ModelDescription
from HybridMIMLib.slicer_side.models import age, check_model, model_name, models

_LONGEST_LINE = 240


class ModelChooser:
    """Binds ``modelComboBox`` and ``modelInfoLabel`` of a ``.ui`` file.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them.
        on_chosen: called with the folder when the user has chosen one.

    Attributes:
        chosen: folder of the chosen package; empty for none.
        problem: why it cannot be used; empty if it can.
        model: what it says of itself, or None.
    """

    def __init__(self, ui: Any, on_chosen: Callable[[str], None]) -> None:
        self.chosen, self.problem = "", ""
        self.model: ModelDescription | None = None
        self._ui, self._on_chosen = ui, on_chosen
        ui.modelComboBox.connect("currentIndexChanged(int)", self._picked)

    def show(self, folder: str) -> None:
        """List the models anew with this one chosen; without one, the newest is."""
        found = models()
        names = [one.name for one in found]
        # Two of one name are told apart by when they were made.
        listed = {
            str(one.path): f"{one.name} ({age(one)})" if names.count(one.name) > 1 else one.name for one in found
        }
        if folder and folder not in listed:
            listed[folder] = model_name(folder)
        self.chosen = folder or next(iter(listed), "")
        combo = self._ui.modelComboBox
        was_blocked = combo.blockSignals(True)
        combo.clear()
        for path, name in listed.items():
            combo.addItem(name, path)
        combo.setCurrentIndex(list(listed).index(self.chosen) if self.chosen else -1)
        combo.blockSignals(was_blocked)
        self.model, about, self.problem = check_model(self.chosen)
        self._ui.modelInfoLabel.text = "\n".join(map(_shortened, about.splitlines()))
        self._ui.modelInfoLabel.visible = bool(about)
        combo.toolTip = html.escape(self.chosen)

    def _picked(self, index: int) -> None:
        if index >= 0:
            self._on_chosen(str(self._ui.modelComboBox.itemData(index)))


def _shortened(line: str) -> str:
    """A model may have a hundred classes; the details list them all."""
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE].rpartition(', ')[0]} …"
