"""``slicer.qMRMLWidget`` and ``slicer.qMRMLNodeComboBox`` over the real scene."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import shiboken6
import slicer
import vtk
from PySide6.QtCore import Property, Qt, Signal
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QSizePolicy, QWidget

from SlicerHost.ui_files import register

_ID = Qt.ItemDataRole.UserRole
_ACTION = Qt.ItemDataRole.UserRole + 1


@register
class qMRMLWidget(QWidget):
    """The root of a module's .ui file: it tells its children which scene there is."""

    SIGNATURES: ClassVar[dict[str, str]] = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}
    mrmlSceneChanged = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        # Slicer tells even of the same scene again: a .ui's connections are made after the first time.
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)


class Observations:
    """Observers of the scene that are silent once the widget is gone, as connections of Qt are."""

    def __init__(self, widget: QWidget) -> None:
        self._widget = weakref.ref(widget)
        self._tags: list[tuple[Any, int]] = []

    def add(self, target: Any, event: int, method: str, with_node: bool = False) -> None:
        widget = self._widget

        def tell(caller: Any, event_name: str, node: Any = None) -> None:
            alive = widget()
            if alive is not None and shiboken6.isValid(alive):
                getattr(alive, method)(*((node,) if with_node else (caller,)))

        if with_node:
            tell.CallDataType = vtk.VTK_OBJECT  # type: ignore[attr-defined]
        self._tags.append((target, target.AddObserver(event, tell)))

    def clear(self, target: Any = None) -> None:
        for entry in [entry for entry in self._tags if target is None or entry[0] is target]:
            self._tags.remove(entry)
            entry[0].RemoveObserver(entry[1])


_FLAGS = {
    "noneEnabled": False,
    "addEnabled": True,
    "removeEnabled": True,
    "renameEnabled": False,
    "editEnabled": False,
    "showHidden": False,
    "showChildNodeTypes": True,
    "selectNodeUponCreation": True,
}


def _flag(name: str) -> tuple[Any, Callable[[Any, Any], None]]:
    """A property of yes or no, and its setter."""

    def write(self: Any, value: Any) -> None:
        if self._flags[name] != bool(value):
            self._flags[name] = bool(value)
            self._rebuild()

    return Property(bool, lambda self: self._flags[name], write), write


@register
class qMRMLNodeComboBox(QWidget):
    """A list of the scene's nodes of some types, to choose one.

    Which node is chosen when rows come and go is left to a real QComboBox, as in Slicer: a new node is not chosen
    while there is a "None" or an entry such as "Create new ...", and when the chosen one goes, the one before it is.
    """

    SIGNATURES: ClassVar[dict[str, str]] = {
        "currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged",
        "currentNodeChanged(bool)": "currentNodeIsValid",
        "currentNodeIDChanged(QString)": "currentNodeIDChanged",
        "nodeActivated(vtkMRMLNode*)": "nodeActivated",
        "nodeAdded(vtkMRMLNode*)": "nodeAdded",
        "nodeAddedByUser(vtkMRMLNode*)": "nodeAddedByUser",
        "nodeAboutToBeRemoved(vtkMRMLNode*)": "nodeAboutToBeRemoved",
    }
    currentNodeChanged = Signal(object)
    currentNodeIsValid = Signal(bool)
    currentNodeIDChanged = Signal(str)
    nodeActivated = Signal(object)
    nodeAdded = Signal(object)
    nodeAddedByUser = Signal(object)
    nodeAboutToBeRemoved = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._requested = ""
        self._types: tuple[str, ...] = ()
        self._base_names: dict[str, str] = {}
        self._none_display = "None"
        self._flags = dict(_FLAGS)
        self._quiet = False
        self._observed = Observations(self)
        self._box = QComboBox(self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        self._box.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        # Long names would make the panel wider than Slicer's.
        self._box.setMinimumContentsLength(6)
        self._box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self._box.currentTextChanged.connect(self._tell)
        self._box.activated.connect(self._on_activated)
        self.setEnabled(False)
        self._rebuild()

    # ------------------------------------------------------------ the scene

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        if scene is self._scene:
            return
        first_time = self.nodeCount() == 0
        wanted = self._requested if first_time else self._id()
        self._observed.clear()
        self._scene, self._requested = scene, ""
        if scene is not None:
            for event, method in _NODE_EVENTS.items():
                self._observed.add(scene, getattr(scene, event), method, with_node=True)
            for event in ("EndCloseEvent", "EndImportEvent"):
                self._observed.add(scene, getattr(scene, event), "_on_new_content")
        self._rebuild()
        # Slicer ends up at the first row: None, or without that the first node.
        row = self._row(wanted) if wanted else 0
        self._box.setCurrentIndex(row if row >= 0 and self.nodeCount() else self._no_row())
        self.setEnabled(scene is not None)

    # ------------------------------------------------------------ the nodes

    def currentNode(self) -> Any:
        return self._node(self._id())

    def setCurrentNode(self, node: Any) -> None:
        if isinstance(node, str):
            raise TypeError("setCurrentNode takes a node; Slicer's form for an ID is deprecated: setCurrentNodeID")
        self.setCurrentNodeID(node.GetID() if node is not None else "")

    def setCurrentNodeID(self, node_id: str) -> None:
        if self._scene is None:
            self._requested = node_id or ""
        row = self._row(node_id) if node_id else -1
        self._box.setCurrentIndex(row if row >= 0 else self._no_row())

    def setCurrentNodeIndex(self, index: int) -> None:
        self._box.setCurrentIndex(index + self._first() if index < self.nodeCount() else self._no_row())

    def nodeCount(self) -> int:
        return sum(bool(self._box.itemData(row, _ID)) for row in range(self._length()))

    def nodeFromIndex(self, index: int) -> Any:
        return self._node(self._box.itemData(index + self._first(), _ID) or "")

    def nodes(self) -> list[Any]:
        return [self.nodeFromIndex(index) for index in range(self.nodeCount())]

    def addNode(self, node_type: str = "") -> Any:
        """What "Create new ..." does."""
        node_type = node_type or self._types[0]
        if node_type not in self._types:
            raise ValueError(f"{node_type} is not among the types of this list: {self._types}")
        name = self._base_names.get(node_type) or self._scene.CreateNodeByClass(node_type).GetNodeTagName()
        node = self._scene.AddNewNodeByClass(node_type, self._scene.GenerateUniqueName(name))
        if self._flags["selectNodeUponCreation"]:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    def removeCurrentNode(self) -> None:
        self._scene.RemoveNode(self.currentNode())

    def renameCurrentNode(self) -> None:
        raise NotImplementedError("the stand-in has no dialog for a node's new name")

    def editCurrentNode(self) -> None:
        raise NotImplementedError("the stand-in cannot open the module that edits a node")

    # ------------------------------------------------------------ settings

    def setNodeTypes(self, types: Sequence[str]) -> None:
        unknown = [name for name in types if name and not hasattr(slicer, name)]
        if unknown:
            raise ValueError(f"no node type {unknown[0]}")
        self._types = tuple(name for name in types if name)
        self._rebuild()

    def setBaseName(self, name: str, node_type: str = "") -> None:
        if not node_type and not self._types:
            raise ValueError("baseName must be set after nodeTypes; Slicer ignores it with a warning")
        self._base_names.update(dict.fromkeys([node_type] if node_type else self._types, name))

    def setNoneDisplay(self, text: str) -> None:
        self._none_display = text
        self._rebuild()

    def comboBox(self) -> QComboBox:
        return self._box

    # ------------------------------------------------------------ rows

    def _length(self) -> int:
        return self._box.model().rowCount()

    def _index(self) -> int:
        return int(self._box.property("currentIndex"))

    def _id(self) -> str:
        return self._box.itemData(self._index(), _ID) or ""

    def _row(self, node_id: str) -> int:
        return next((row for row in range(self._length()) if self._box.itemData(row, _ID) == node_id), -1)

    def _node(self, node_id: str) -> Any:
        return self._scene.GetNodeByID(node_id) if node_id and self._scene is not None else None

    def _first(self) -> int:
        """The row of the first node."""
        return int(self._flags["noneEnabled"])

    def _no_row(self) -> int:
        return 0 if self._flags["noneEnabled"] else -1

    def _accepts(self, node: Any) -> bool:
        if node.GetHideFromEditors() and not self._flags["showHidden"]:
            return False
        children = self._flags["showChildNodeTypes"]
        fits = [node.IsA(name) and (children or node.GetClassName() == name) for name in self._types]
        return any(fits) or not self._types

    def _all_nodes(self) -> list[Any]:
        if self._scene is None:
            return []
        nodes = [self._scene.GetNthNode(index) for index in range(self._scene.GetNumberOfNodes())]
        return [node for node in nodes if self._accepts(node)]

    def _rebuild(self) -> None:
        """All rows anew; what was chosen stays so if it is still there."""
        before = self._id()
        self._quiet = True
        try:
            self._box.clear()
            if self._flags["noneEnabled"]:
                self._box.addItem(self._none_display, "")
            for node in self._all_nodes():
                self._box.addItem(node.GetName() or "", node.GetID())
            self._add_actions()
            row = self._row(before) if before else -1
            self._box.setCurrentIndex(row if row >= 0 else self._no_row())
        finally:
            self._quiet = False
        self._observe_names()
        if self._id() != before:
            self._tell()

    def _add_actions(self) -> None:
        actions = []
        if self._scene is not None:
            labels = {name: self._scene.GetTypeDisplayNameByClassName(name) or "node" for name in self._types}
            label = labels[self._types[0]] if len(self._types) == 1 else "node"
            one = {"renameEnabled": "Rename", "editEnabled": "Edit", "removeEnabled": "Delete"}
            actions = [(f"{verb} current {label}", flag) for flag, verb in one.items() if self._flags[flag]]
            if self._flags["addEnabled"]:
                actions += [(f"Create new {text}", name) for name, text in labels.items()]
        if actions:
            self._box.insertSeparator(self._length())
        for text, action in actions:
            self._box.addItem(text, "")
            self._box.setItemData(self._length() - 1, action, _ACTION)

    def _on_activated(self, row: int) -> None:
        action = self._box.itemData(row, _ACTION)
        if action is None:
            self.nodeActivated.emit(self.currentNode())
            return
        known: dict[str, Callable[[], Any]] = {
            "renameEnabled": self.renameCurrentNode,
            "editEnabled": self.editCurrentNode,
            "removeEnabled": self.removeCurrentNode,
        }
        # By a mouse Slicer never makes such an entry the current one; go back to the node before acting on it.
        self._box.setCurrentIndex(self._row(self._last) if self._last else self._no_row())
        known.get(action, lambda: self.addNode(action))()

    _last = ""

    def _tell(self, *_: Any) -> None:
        if self._quiet or self._box.itemData(self._index(), _ACTION) is not None:
            return
        self._last = self._id()
        node = self.currentNode()
        self.currentNodeChanged.emit(node)
        self.currentNodeIsValid.emit(node is not None)
        self.currentNodeIDChanged.emit(self._last)

    # ------------------------------------------------------------ events of the scene

    def _observe_names(self) -> None:
        for target in {id(entry[0]): entry[0] for entry in self._observed._tags}.values():
            if target is not self._scene:
                self._observed.clear(target)
        if self._scene is not None:
            for index in range(self._scene.GetNumberOfNodes()):
                self._observed.add(self._scene.GetNthNode(index), vtk.vtkCommand.ModifiedEvent, "_on_modified")

    def _on_added(self, node: Any) -> None:
        if self._scene.IsImporting():
            # IDs are not final yet.
            return
        self._observed.add(node, vtk.vtkCommand.ModifiedEvent, "_on_modified")
        if self._accepts(node):
            self._insert(node)
            self.nodeAdded.emit(node)

    def _insert(self, node: Any) -> None:
        self._box.insertItem(self._first() + self.nodeCount(), node.GetName() or "", node.GetID())

    def _on_removed(self, node: Any) -> None:
        if self._scene.IsClosing():
            return
        self._observed.clear(node)
        row = self._row(node.GetID())
        if row >= 0:
            self.nodeAboutToBeRemoved.emit(node)
            self._remove(row)

    def _remove(self, row: int, count: int = 1) -> None:
        self._box.model().removeRows(row, count)
        if not self._id() and self._index() != self._no_row():
            # Qt went on to a separator or an entry such as "Create new ...": Slicer takes the last node instead.
            left = self.nodeCount()
            self._box.setCurrentIndex(self._first() + left - 1 if left else self._no_row())

    def _on_modified(self, node: Any) -> None:
        row, accepted = self._row(node.GetID() or ""), self._accepts(node)
        if row < 0 and accepted and self._scene.IsNodePresent(node):
            self._insert(node)
        elif row >= 0 and not accepted:
            self._remove(row)
        elif row >= 0 and self._box.itemText(row) != (node.GetName() or ""):
            self._box.setItemText(row, node.GetName() or "")

    def _on_new_content(self, scene: Any) -> None:
        """All nodes anew, as Slicer does after closing and importing, and so without what was chosen.

        A node that was set during the import was not in the list yet: nothing is chosen then, either. A module
        disconnects its widgets before an import and connects them afterwards, else its parameters may be lost.
        """
        count = self.nodeCount()
        if count:
            self._remove(self._first(), count)
        for node in self._all_nodes():
            self._insert(node)
        self._observe_names()

    # ------------------------------------------------------------ properties

    currentNodeID = Property(str, _id, setCurrentNodeID)
    nodeTypes = Property("QStringList", lambda self: list(self._types), setNodeTypes)
    noneDisplay = Property(str, lambda self: self._none_display, setNoneDisplay)
    baseName = Property(str, lambda self: self._base_names.get((*self._types, "")[0], ""), setBaseName)
    noneEnabled, setNoneEnabled = _flag("noneEnabled")
    addEnabled, setAddEnabled = _flag("addEnabled")
    removeEnabled, setRemoveEnabled = _flag("removeEnabled")
    renameEnabled, setRenameEnabled = _flag("renameEnabled")
    editEnabled, setEditEnabled = _flag("editEnabled")
    showHidden, setShowHidden = _flag("showHidden")
    showChildNodeTypes, setShowChildNodeTypes = _flag("showChildNodeTypes")
    selectNodeUponCreation, setSelectNodeUponCreation = _flag("selectNodeUponCreation")


_NODE_EVENTS = {"NodeAddedEvent": "_on_added", "NodeAboutToBeRemovedEvent": "_on_removed"}
