"""Loading .ui files with Slicer's own widget classes, and refusing whatever in them would be dropped silently."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

from . import pythonqt

WIDGETS: dict[str, type] = {}
"""Class name in .ui files to Python class, for what is not Qt's own."""

_LAYOUT_MARGINS = {"leftMargin", "topMargin", "rightMargin", "bottomMargin", "horizontalSpacing", "verticalSpacing"}
"""What Designer writes for every layout, Qt's property being one ``contentsMargins``."""

_NOT_READ_BACK = {"visible", "enabled", "html", "markdown"}
"""The first two also depend on the parent, the others come back in other words."""

_SPACER = {"orientation", "sizeHint", "sizeType"}
_LINE = {"orientation"}


def register(widget: type) -> type:
    """Make a Python class known to .ui files under its own name; usable as a decorator."""
    WIDGETS[widget.__name__] = pythonqt.strict(widget)
    return widget


class UiLoader(QtUiTools.QUiLoader):
    """``qt.QUiLoader``."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._errors: list[Exception] = []
        # Widgets whose parent Python does not own yet would lose their Python half.
        self._made: list[Any] = []

    def createWidget(self, class_name: str, parent: Any = None, name: str = "") -> Any:
        """Called by Qt for each widget; an exception would be lost there, so it is kept for later."""
        try:
            widget = WIDGETS[class_name](parent) if class_name in WIDGETS else None
        except Exception as error:
            self._errors.append(error)
            return QtWidgets.QWidget(parent)
        if widget is None:
            return super().createWidget(class_name, parent, name)
        widget.setObjectName(name)
        self._made.append(widget)
        return widget

    def load(self, device: Any, parent: Any = None) -> Any:
        """The root widget of the file.

        Raises:
            ValueError: the file has a widget class, property, signal or slot that does not exist.
        """
        text = bytes(device.readAll().data()).decode("utf-8")
        root = ElementTree.fromstring(text)
        _check(root, set(self.availableWidgets()))
        ours = _take_properties_of_ours(root)
        connections = _take_connections(root)
        self._errors, self._made = [], []
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(root, encoding="utf-8"))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        with pythonqt.free_attributes():
            widget = super().load(buffer, parent)
        if self._errors:
            raise self._errors[0]
        if widget is None:
            raise ValueError(f"the .ui file was not loaded: {self.errorString()}")
        _forget_children_as_attributes(widget)
        _check_taken(root, widget)
        for name, property_name, value in ours:
            setattr(_named(widget, name), property_name, value)
        for sender, signal, receiver, slot in connections:
            pythonqt.connect(_named(widget, sender), signal, _named(widget, receiver), slot)
        return widget


def _check(root: ElementTree.Element, native: set[str]) -> None:
    names = [element.get("name", "") for element in root.iter("widget")]
    if bad := {name for name in names if not name or names.count(name) > 1}:
        raise ValueError(f"the .ui file has widgets without a name of their own: {', '.join(sorted(bad))}")
    for element in root.iter("widget"):
        class_name = element.get("class", "")
        if class_name not in native | set(WIDGETS) | {"Line"}:
            raise ValueError(f"the .ui file has a widget class that the stand-in lacks: {class_name}")
        _check_properties(element, class_name, _LINE if class_name == "Line" else set())
    for element in root.iter("layout"):
        _check_properties(element, element.get("class", ""), _LAYOUT_MARGINS)
    for element in root.iter("spacer"):
        _check_properties(element, "", _SPACER)
    for element in root.iter("action"):
        _check_properties(element, "QAction", set())


def _check_properties(element: ElementTree.Element, class_name: str, others: set[str]) -> None:
    known = pythonqt.qt_properties(_class(class_name)) if class_name else {}
    where = f"{class_name or 'spacer'} {element.get('name')}"
    for one in element.findall("property"):
        name = one.get("name", "")
        if name in others or one.get("stdset") == "0":
            continue
        if name not in known:
            raise ValueError(f"the .ui file sets a property that {where} does not have: {name}")
        is_enum = one[0].tag in ("enum", "set")
        if is_enum != known[name] and class_name not in WIDGETS:
            raise ValueError(f"the .ui file gives {where} a <{one[0].tag}> for the property {name}")


def _check_taken(root: ElementTree.Element, widget: Any) -> None:
    """Whether each plain value arrived: a spin box, for one, drops a value outside of the range it has by then."""
    for element in root.iter("widget"):
        for one in element.findall("property"):
            name, tag = one.get("name", ""), one[0].tag
            if tag not in ("bool", "number", "double", "string") or name in _NOT_READ_BACK:
                continue
            wanted, found = _value(one[0], None), _named(widget, element.get("name", "")).property(name)
            if isinstance(found, bool | int | float | str) and found != wanted:
                raise ValueError(f"the .ui file sets {element.get('name')}.{name} to {wanted!r}; it became {found!r}")


def _class(name: str) -> Any:
    found = WIDGETS.get(name) or getattr(QtWidgets, name, None) or getattr(QtGui, name, None)
    return QtWidgets.QFrame if name == "Line" else found


def _take_properties_of_ours(root: ElementTree.Element) -> list[tuple[str, str, Any]]:
    """Take the Python properties out of the tree, to be set afterwards: Qt cannot read their enumerations."""
    taken = []
    for element in root.iter("widget"):
        widget_class: Any = WIDGETS.get(element.get("class", ""))
        for one in element.findall("property") if widget_class else ():
            name = one.get("name", "")
            if isinstance(_static(widget_class, name), QtCore.Property):
                taken.append((element.get("name", ""), name, _value(one[0], widget_class)))
                element.remove(one)
    return taken


def _static(widget_class: type, name: str) -> Any:
    return next((one.__dict__[name] for one in widget_class.__mro__ if name in one.__dict__), None)


def _value(element: ElementTree.Element, widget_class: Any) -> Any:
    text = element.text or ""
    if element.tag in ("string", "cstring"):
        return text
    if element.tag == "bool":
        return text == "true"
    if element.tag == "number":
        return int(text)
    if element.tag == "double":
        return float(text)
    if element.tag == "stringlist":
        return [one.text or "" for one in element.findall("string")]
    if element.tag in ("enum", "set"):
        names = [one.rsplit("::", 1)[-1] for one in text.split("|") if one]
        values = [getattr(widget_class, one) for one in names]
        total = values[0] if values else 0
        for one in values[1:]:
            total |= one
        return total
    raise ValueError(f"the .ui file has a value that the stand-in cannot read: <{element.tag}>")


def _take_connections(root: ElementTree.Element) -> list[tuple[str, str, str, str]]:
    """Take them out of the tree: Qt knows nothing of signals and slots of Python classes."""
    element = root.find("connections")
    if element is None:
        return []
    root.remove(element)
    parts = ("sender", "signal", "receiver", "slot")
    rows = [[one.findtext(part, "") for part in parts] for one in element.findall("connection")]
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def _named(root: Any, name: str) -> Any:
    found = root if root.objectName == name else root.findChild(QtCore.QObject, name)
    if found is None:
        raise ValueError(f"the .ui file names an object that it does not have: {name}")
    return found


def _forget_children_as_attributes(root: Any) -> None:
    """PySide6 makes each child an attribute of the root, which PythonQt does not."""
    for name, value in list(vars(root).items()):
        if isinstance(value, QtCore.QObject) and value is not root and value.objectName == name:
            delattr(root, name)
