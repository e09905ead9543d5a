"""What is to be segmented: a volume, one a channel of the model, or all items of the sequences that they show.

The first volume is a parameter with a widget of its own. How many more there are depends on the model, so they are
kept as node references of the parameter node, by the number of the channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from HybridMIMLib.data.model_description import ModelDescription
from HybridMIMLib.slicer_side.inputs import Given
from HybridMIMLib.slicer_side.models import channel_names
from HybridMIMLib.slicer_side.panels.widgets import show
from HybridMIMLib.slicer_side.results import browser_of
from HybridMIMLib.slicer_side.segments import Node

_ROLE = "inputChannel{}"
"""Of the reference to the volume of a channel; the first channel is the parameter ``inputVolume``."""


class InputSection:
    """Binds the widgets of the inputs.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them.
        on_change: called when the user has chosen another volume for a channel.
    """

    def __init__(self, ui: Any, on_change: Callable[[], None]) -> None:
        self._ui, self._on_change = ui, on_change
        self._parameters: Any = None
        self._names: tuple[str, ...] = ()
        self._rows: list[tuple[Any, Any]] = []
        show(False, ui.channelsWidget)

    def show(self, parameters: Any, model: ModelDescription | None) -> None:
        """Show what the parameters have.

        Args:
            parameters: the wrapped parameter node, or None while there is none.
            model: whose channels are asked for.
        """
        # While nothing is bound, the lists of nodes may change, and nothing is taken from them.
        self._parameters = None
        names = channel_names(model) if model is not None and model.channels > 1 else ()
        self._ui.inputVolumeLabel.text = f"{names[0]}:" if names else _("Volume:")
        while len(self._rows) < len(names) - 1:
            self._add_row()
        for number, (label, selector) in enumerate(self._rows, start=1):
            if number < len(names):
                label.text = f"{names[number]}:"
                selector.toolTip = _("The volume with the channel {name}.").format(name=names[number])
            show(number < len(names), label, selector)
            if parameters is not None:
                selector.setCurrentNode(parameters.parameterNode.GetNodeReference(_ROLE.format(number)))
        show(len(names) > 1, self._ui.channelsWidget)
        self._names, self._parameters = names, parameters
        self._show_sequence()

    def given(self) -> Given | None:
        """What was chosen, for :func:`~HybridMIMLib.slicer_side.inputs.why_not`; None for nothing."""
        if self._parameters is None:
            return None
        volumes, sequences = self._volumes(), self._sequences()
        chosen = sequences if sequences and self._parameters.wholeSequence else volumes
        return dict(zip(self._names, chosen)) if self._names else chosen[0]

    @property
    def sequence(self) -> Node | None:
        """The sequence all items of which are to be segmented (that of the first channel), or None."""
        is_wanted = self._parameters is not None and self._parameters.wholeSequence
        return next(iter(self._sequences()), None) if is_wanted else None

    def _volumes(self) -> list[Node | None]:
        """One a channel."""
        node = self._parameters
        others = range(1, len(self._names))
        return [node.inputVolume, *(node.parameterNode.GetNodeReference(_ROLE.format(n)) for n in others)]

    def _sequences(self) -> list[Node]:
        """The sequences whose items the volumes show; none unless all do."""
        volumes = [one for one in self._volumes() if one is not None]
        found = [_sequence_of(one) for one in volumes]
        whole = [one for one in found if one is not None]
        return whole if whole and len(whole) == max(len(self._names), 1) else []

    def _show_sequence(self) -> None:
        sequences = self._sequences() if self._parameters is not None else []
        show(bool(sequences), self._ui.wholeSequenceCheckBox)
        if sequences:
            count, name = sequences[0].GetNumberOfDataNodes(), sequences[0].GetName()
            self._ui.wholeSequenceCheckBox.text = _("All {count} items of the sequence {name}").format(
                # Qt would take one as the mark of a shortcut.
                count=count,
                name=name.replace("&", "&&"),
            )

    def _add_row(self) -> None:
        label, selector = qt.QLabel(), slicer.qMRMLNodeComboBox()
        label.textFormat = qt.Qt.PlainText
        number = len(self._rows) + 1
        selector.objectName = f"channelSelector{number}"
        selector.setNodeTypes(["vtkMRMLScalarVolumeNode"])
        selector.showChildNodeTypes = selector.addEnabled = selector.removeEnabled = False
        selector.noneEnabled = True
        selector.noneDisplay = _("Choose a volume")
        selector.setMRMLScene(slicer.mrmlScene)
        selector.connect("currentNodeChanged(vtkMRMLNode*)", lambda node: self._picked(number, node))
        self._ui.channelsLayout.addRow(label, selector)
        self._rows.append((label, selector))

    def _picked(self, number: int, node: Node | None) -> None:
        if self._parameters is not None:
            identifier = node.GetID() if node is not None else None
            self._parameters.parameterNode.SetNodeReferenceID(_ROLE.format(number), identifier)
            self._on_change()


def _sequence_of(volume: Node) -> Node | None:
    """The ``vtkMRMLSequenceNode`` one of whose items a volume shows, or None."""
    browser = browser_of(volume)
    return browser.GetSequenceNode(volume) if browser is not None else None
