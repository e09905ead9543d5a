"""Where the result goes, and which classes of it."""

from __future__ import annotations

import json
from typing import Any

import qt

from HybridMIMLib.data.model_description import ModelDescription
from HybridMIMLib.slicer_side.panels.widgets import show
from HybridMIMLib.slicer_side.results import Output, why_no_output
from HybridMIMLib.slicer_side.segments import Node
from HybridMIMLib.slicer_side.sequences import why_no_sequence_output

_ROWS_AT_ONCE = 8


class OutputSection:
    """Binds the widgets of the output, and the list of classes.

    What the parameters keep is which classes are left out: classes that another model adds are then wanted.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them.
    """

    def __init__(self, ui: Any) -> None:
        self._ui = ui
        self._parameters: Any = None
        self._names: list[str] = []
        ui.classesList.connect("itemChanged(QListWidgetItem*)", lambda _item: self._take())
        ui.allClassesButton.connect("clicked(bool)", lambda _checked: self._set_all(True))
        ui.noClassButton.connect("clicked(bool)", lambda _checked: self._set_all(False))

    def show(self, parameters: Any, model: ModelDescription | None) -> None:
        """Show what the parameters have; see :meth:`InputSection.show`."""
        self._parameters = parameters
        is_new = parameters is None or parameters.outputMode.name == "new"
        show(not is_new, self._ui.outputSegmentationLabel, self._ui.outputSegmentationSelector)
        self._names = [one.name for one in model.classes] if model is not None else []
        has_choice = len(self._names) > 1
        show(
            has_choice,
            self._ui.classesLabel,
            self._ui.classesList,
            self._ui.allClassesButton,
            self._ui.noClassButton,
        )
        self._fill(model)

    def output(self) -> Output:
        """What was chosen."""
        node = self._parameters
        mode = node.outputMode.name
        left_out = set(_left_out(node.leftOut)) & set(self._names)
        kept = [name for name in self._names if name not in left_out] if left_out else None
        return Output(mode, None if mode == "new" else node.outputSegmentation, kept, reference=node.reference)

    def why_not(self, sequence: Node | None, model: ModelDescription) -> str:
        """Why the result cannot go there, as a sentence; empty if it can.

        Args:
            sequence: that is segmented, or None for single volumes.
        """
        if sequence is not None:
            return why_no_sequence_output(sequence, self.output(), model)
        return why_no_output(self.output(), model)

    def _fill(self, model: ModelDescription | None) -> None:
        """List the classes of the model, with a tick at those that are wanted."""
        widget = self._ui.classesList
        left_out = _left_out(self._parameters.leftOut) if self._parameters is not None else []
        was_blocked = widget.blockSignals(True)
        if [widget.item(row).text() for row in range(widget.count)] != self._names:
            widget.clear()
            for one in model.classes if model is not None else ():
                item = qt.QListWidgetItem(color_icon(one.color), one.name)
                widget.addItem(item)
        for row, name in enumerate(self._names):
            widget.item(row).setCheckState(qt.Qt.Unchecked if name in left_out else qt.Qt.Checked)
        rows = min(max(len(self._names), 1), _ROWS_AT_ONCE)
        # The last is the frame.
        widget.setFixedHeight(rows * max(widget.sizeHintForRow(0), 16) + 6)
        widget.blockSignals(was_blocked)

    def _take(self) -> None:
        """Keep what the ticks say; what was left out of other models stays so."""
        if self._parameters is None:
            return
        widget = self._ui.classesList
        rows = enumerate(self._names)
        unticked = [name for row, name in rows if widget.item(row).checkState() != qt.Qt.Checked]
        others = [name for name in _left_out(self._parameters.leftOut) if name not in self._names]
        self._parameters.leftOut = json.dumps([*others, *unticked]) if others or unticked else ""

    def _set_all(self, wanted: bool) -> None:
        widget = self._ui.classesList
        was_blocked = widget.blockSignals(True)
        for row in range(widget.count):
            widget.item(row).setCheckState(qt.Qt.Checked if wanted else qt.Qt.Unchecked)
        widget.blockSignals(was_blocked)
        self._take()


def color_icon(color: tuple[float, float, float]) -> Any:
    """A ``QIcon`` of one colour; parts from 0 to 1."""
    pixmap = qt.QPixmap(12, 12)
    pixmap.fill(qt.QColor(*(round(255 * part) for part in color)))
    return qt.QIcon(pixmap)


def _left_out(text: str) -> list[str]:
    """Names, from the parameter; a scene may hold anything."""
    try:
        content = json.loads(text or "[]")
    except ValueError:
        return []
    return [str(one) for one in content] if isinstance(content, list) else []
