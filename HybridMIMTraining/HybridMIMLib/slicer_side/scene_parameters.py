"""Keeps a panel bound to its module's parameters in the scene, while scenes are closed and loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
import vtk
from slicer.util import VTKObservationMixin


class SceneParameters(VTKObservationMixin):  # type: ignore[misc]
    """The parameters of a module, bound to its panel.

    Args:
        get_node: gives the wrapped parameter node of the scene, which is made if it is not there.
        ui: widgets, some of them with the property ``SlicerParameterName``.
        on_bound: called after the panel was bound, e.g. to choose a first volume.
        on_change: called when a parameter has changed, and when there are none for the moment.

    Attributes:
        node: the wrapped parameter node; None while the scene is closed or loaded.
    """

    def __init__(
        self, get_node: Callable[[], Any], ui: Any, on_bound: Callable[[], None], on_change: Callable[[], None]
    ) -> None:
        super().__init__()
        self.node: Any = None
        self._get_node, self._ui, self._on_bound, self._on_change = get_node, ui, on_bound, on_change
        self._tag: int | None = None
        scene = slicer.mrmlScene
        # While a scene changes, Slicer fills its node lists anew, which chooses nothing: a parameter that is still
        # connected would be unset by that. Bound again at once and not only when the panel is entered, because a
        # job may be at work behind another module. Before all node lists, and after them, also those that the panel
        # made later than this: a list that is filled after it was bound would unset what the new scene has.
        for event in (scene.StartCloseEvent, scene.StartImportEvent):
            self.addObserver(scene, event, lambda caller, event: self.release(), priority=1.0)
        for event in (scene.EndCloseEvent, scene.EndImportEvent):
            self.addObserver(scene, event, lambda caller, event: self.bind(), priority=-1.0)

    def bind(self) -> None:
        """Bind the panel to the parameters of the scene as it is now."""
        self._let_go()
        self.node = self._get_node()
        # Not connectGui, which gives no tag back in some versions of Slicer: nothing could be disconnected then.
        self._tag = self.node.connectParametersToGui(self._widgets())
        self.addObserver(self.node, vtk.vtkCommand.ModifiedEvent, self._changed)
        self._on_bound()
        self._on_change()

    def release(self) -> None:
        """Let go of the parameters."""
        self._let_go()
        self._on_change()

    def close(self) -> None:
        """The panel is closed: let go of the scene too."""
        self._let_go()
        self.removeObservers()

    def _widgets(self) -> dict[str, Any]:
        """Widgets by the parameter that they show."""
        named = ((widget.property("SlicerParameterName"), widget) for widget in vars(self._ui).values())
        return {str(name): widget for name, widget in named if name}

    def _let_go(self) -> None:
        if self.node is not None:
            self.node.disconnectGui(self._tag)
            self.removeObserver(self.node, vtk.vtkCommand.ModifiedEvent, self._changed)
        self.node = None

    def _changed(self, caller: Any, event: str) -> None:
        self._on_change()
