"""``slicer.parameterNodeWrapper``: typed parameters in a MRML node, and the widgets that show them.

The subset that our modules use, stored as Slicer stores it (a scene saved here keeps its parameters in Slicer and the
other way round). A type or widget beyond that raises, naming both.
"""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer
import slicer.util
import vtk

__all__ = [
    "Choice",
    "Default",
    "Maximum",
    "Minimum",
    "SlicerParameterNamePropertyName",
    "WithinRange",
    "isParameterNodeWrapper",
    "parameterNodeWrapper",
]

SlicerParameterNamePropertyName = "SlicerParameterName"
_INT_LIMITS = (-(2**31), 2**31 - 1)


# ---------------------------------------------------------------- annotations


@dataclass(frozen=True)
class Default:
    """The value of a field that nobody has set yet; ``field: int = 3`` says the same."""

    value: Any


@dataclass(frozen=True)
class WithinRange:
    minimum: float
    maximum: float

    def validate(self, value: Any) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"{value} is not within [{self.minimum}, {self.maximum}]")


@dataclass(frozen=True)
class Minimum:
    minimum: float

    def validate(self, value: Any) -> None:
        if value < self.minimum:
            raise ValueError(f"{value} is less than {self.minimum}")


@dataclass(frozen=True)
class Maximum:
    maximum: float

    def validate(self, value: Any) -> None:
        if value > self.maximum:
            raise ValueError(f"{value} is greater than {self.maximum}")


@dataclass(frozen=True)
class Choice:
    choices: Any

    def validate(self, value: Any) -> None:
        if value not in self.choices:
            raise ValueError(f"{value!r} is not one of {list(self.choices)}")


_CHECKS = (WithinRange, Minimum, Maximum, Choice)


# ---------------------------------------------------------------- fields


@dataclass(frozen=True)
class _Field:
    """One parameter.

    Attributes:
        kind: its type without Annotated and Optional.
        optional: whether it was Optional[...].
        annotated: the type as written, which ``dataType`` gives back.
        notes: what stood in Annotated behind the type.
        default: the value to begin with.
    """

    name: str
    kind: type
    optional: bool
    annotated: Any
    notes: tuple[Any, ...]
    default: Any

    def note(self, kind: type) -> Any:
        return next((note for note in self.notes if isinstance(note, kind)), None)

    def is_in(self, node: Any) -> bool:
        return any(node.HasParameter(key) for key in self._keys())

    def read(self, node: Any) -> Any:
        if not self.is_in(node):
            self.write(node, self.default)
        if self.optional and not node.HasParameter(self._keys()[0]):
            return None
        return _from_node(node, self._keys()[0], self.kind)

    def write(self, node: Any, value: Any) -> None:
        self.validate(value)
        keys = self._keys()
        with slicer.util.NodeModify(node):
            if self.optional:
                for key in keys:
                    node.UnsetParameter(key)
                node.SetNodeReferenceID(keys[0], None)
            if self.optional and value is None:
                node.SetParameter(keys[1], "True")
            else:
                _to_node(node, keys[0], value)

    def validate(self, value: Any) -> None:
        if value is None:
            if not self.optional and not _is_node(self.kind) and not issubclass(self.kind, enum.Enum):
                raise ValueError(f"{self.name} must not be None")
            if self.optional or _is_node(self.kind):
                return
        # As in Slicer, a whole number will do for a float, and a bool for an int.
        kinds = (int, float) if self.kind is float else self.kind
        if not isinstance(value, kinds):
            raise TypeError(f"{self.name} takes {self.kind.__name__}, not {type(value).__name__} {value!r}")
        for check in self.notes:
            if isinstance(check, _CHECKS):
                check.validate(value)

    def _keys(self) -> tuple[str, ...]:
        # Slicer keeps a value of a union under the name with the number of its type.
        return (f"{self.name}_0", f"{self.name}_1") if self.optional else (self.name,)


def _field(owner: type, name: str, annotated: Any) -> _Field:
    kind, notes = _without_notes(annotated)
    kind, optional = _without_optional(owner, name, kind)
    unknown = [note for note in notes if not isinstance(note, (*_CHECKS, Default))]
    if unknown:
        raise TypeError(f"{owner.__name__}.{name}: the stand-in does not know the annotation {unknown[0]!r}")
    begin = next((note.value for note in notes if isinstance(note, Default)), _first_value(kind, optional))
    return _Field(name, kind, optional, annotated, notes, getattr(owner, name, begin))


def _without_notes(annotated: Any) -> tuple[Any, tuple[Any, ...]]:
    if typing.get_origin(annotated) is typing.Annotated:
        kind, *notes = typing.get_args(annotated)
        return kind, tuple(notes)
    return annotated, ()


def _without_optional(owner: type, name: str, kind: Any) -> tuple[type, bool]:
    where = f"{owner.__name__}.{name}"
    if isinstance(kind, types.UnionType):
        # Slicer's first versions of this module compare with typing.Union, which X | None is not.
        raise TypeError(f"{where}: not every Slicer can store {kind}; write Optional[...]")
    optional = typing.get_origin(kind) is typing.Union
    if optional:
        inner = typing.get_args(kind)
        if len(inner) != 2 or inner[1] is not type(None):
            raise TypeError(f"{where}: of unions the stand-in knows Optional only, not {kind}")
        kind = _without_notes(inner[0])[0]
    known = isinstance(kind, type) and (kind in (str, int, float, bool, Path) or issubclass(kind, enum.Enum))
    if not known and not _is_node(kind):
        raise TypeError(f"{where}: the stand-in does not know parameters of type {kind}")
    return kind, optional


def _is_node(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode)


def _first_value(kind: Any, optional: bool) -> Any:
    if optional or _is_node(kind):
        return None
    return next(iter(kind)) if issubclass(kind, enum.Enum) else kind()


def _to_node(node: Any, key: str, value: Any) -> None:
    is_reference = value is None or isinstance(value, slicer.vtkMRMLNode)
    if is_reference:
        # The empty parameter tells "set to None" from "never set".
        node.SetParameter(key, "")
        node.SetNodeReferenceID(key, value.GetID() if value is not None else None)
    elif isinstance(value, enum.Enum):
        node.SetParameter(key, value.name)
    else:
        node.SetParameter(key, str(value))


def _from_node(node: Any, key: str, kind: type) -> Any:
    if _is_node(kind):
        return node.GetNodeReference(key)
    text = node.GetParameter(key)
    if kind is bool:
        return text == "True"
    if issubclass(kind, enum.Enum):
        if text not in kind.__members__:
            raise ValueError(f"the parameter node has {text!r} for {key}, which is no {kind.__name__}")
        return kind[text]
    return kind(text)


# ---------------------------------------------------------------- widgets


@dataclass
class _Binding:
    """A widget, how its value is read and written, and the signal of a change."""

    read: Callable[[], Any]
    write: Callable[[Any], None]
    changed: Any
    slot: Callable[..., None] | None = None

    def connect(self, slot: Callable[..., None]) -> None:
        self.slot = slot
        self.changed.connect(slot)

    def disconnect(self) -> None:
        self.changed.disconnect(self.slot)


def _binding(widget: Any, field: _Field) -> _Binding:
    # The exact class, as in Slicer: a subclass of QLineEdit is refused there, too.
    name = widget.metaObject().className()
    for kinds, maker in _MAKERS.get(name, ()):
        if kinds(field):
            return maker(widget, field)
    raise RuntimeError(
        f"no connection between the parameter {field.name!r} ({field.annotated}) and a {name}"
        f" ({widget.property('objectName')!r})"
    )


def _bind_property(name: str, signal: str, convert: Callable[[Any], Any]) -> Callable[[Any, _Field], _Binding]:
    def make(widget: Any, field: _Field) -> _Binding:
        def write(value: Any) -> None:
            # Slicer hands a Path over as text, so that an empty one shows as "."
            widget.setProperty(name, str(value) if isinstance(value, Path) else value)

        return _Binding(lambda: convert(widget.property(name)), write, getattr(widget, signal))

    return make


def _bind_number(limits: tuple[float, float], kind: type) -> Callable[[Any, _Field], _Binding]:
    def make(widget: Any, field: _Field) -> _Binding:
        within = field.note(WithinRange)
        low, high = field.note(Minimum) or within, field.note(Maximum) or within
        # As in Slicer the field's range replaces the .ui's, even by no range at all.
        widget.setRange(low.minimum if low else limits[0], high.maximum if high else limits[1])
        return _bind_property("value", "valueChanged", kind)(widget, field)

    return make


def _bind_choices(widget: Any, field: _Field) -> _Binding:
    if issubclass(field.kind, enum.Enum):
        label = getattr(field.kind, "label", lambda member: member.name)
        values = list(field.kind)
        texts = [label(member) for member in values]
    else:
        choice = field.note(Choice)
        if choice is None:
            raise RuntimeError(f"the parameter {field.name!r} needs the annotation Choice to be shown in a QComboBox")
        values = list(choice.choices)
        texts = [str(value) for value in values]
    widget.clear()
    widget.addItems(texts)

    def write(value: Any) -> None:
        widget.setCurrentIndex(values.index(value))

    return _Binding(lambda: values[widget.property("currentIndex")], write, widget.currentIndexChanged)


def _bind_node(widget: Any, field: _Field) -> _Binding:
    widget.setNodeTypes([field.kind().GetClassName()])
    return _Binding(widget.currentNode, widget.setCurrentNode, widget.currentNodeChanged)


def _of(*kinds: type) -> Callable[[_Field], bool]:
    return lambda field: field.kind in kinds and not field.optional


_MAKERS: dict[str, tuple[tuple[Callable[[_Field], bool], Callable[[Any, _Field], _Binding]], ...]] = {
    "QLineEdit": ((_of(str), _bind_property("text", "textChanged", str)),),
    "QSpinBox": ((_of(int), _bind_number(_INT_LIMITS, int)),),
    "QDoubleSpinBox": ((_of(float), _bind_number((float("-inf"), float("inf")), float)),),
    "QCheckBox": ((_of(bool), _bind_property("checked", "stateChanged", bool)),),
    "QComboBox": (
        (_of(int, float, str, bool), _bind_choices),
        (lambda field: issubclass(field.kind, enum.Enum) and not field.optional, _bind_choices),
    ),
    "ctkPathLineEdit": ((_of(Path), _bind_property("currentPath", "currentPathChanged", Path)),),
    # Optional[node] is the one union that Slicer connects.
    "qMRMLNodeComboBox": ((lambda field: _is_node(field.kind), _bind_node),),
}


# ---------------------------------------------------------------- the wrapper


class _Wrapper:
    """What the decorator adds to a class of annotated fields."""

    allParameters: typing.ClassVar[dict[str, _Field]]
    _is_parameter_node_wrapper = True

    def __init__(self, parameterNode: Any) -> None:
        self.parameterNode = parameterNode
        self._bindings: dict[int, dict[str, _Binding]] = {}
        self._next_tag = 0
        self._showing = False
        for field in self.allParameters.values():
            if not field.is_in(parameterNode):
                field.write(parameterNode, field.default)

    def getValue(self, name: str) -> Any:
        return self._parameter(name).read(self.parameterNode)

    def setValue(self, name: str, value: Any) -> None:
        self._parameter(name).write(self.parameterNode, value)

    def default(self, name: str) -> Default:
        return Default(self._parameter(name).default)

    @classmethod
    def dataType(cls, name: str) -> Any:
        return cls._parameter(name).annotated

    def connectGui(self, gui: Any) -> int:
        """Connect every widget that has the property SlicerParameterName; the result is for ``disconnectGui``.

        Slicer before 5.10 forgot to return the tag; ``disconnectGui(None)`` does nothing there and here.
        """
        is_widget = getattr(gui, "isWidgetType", lambda: False)()
        widgets = _descendants(gui) if is_widget else vars(gui).values()
        return self.connectParametersToGui(dict(_named_widgets(widgets)))

    def connectParametersToGui(self, mapping: dict[str, Any]) -> int:
        bindings = {name: _binding(widget, self._parameter(name)) for name, widget in mapping.items()}
        tag = self._next_tag
        self._next_tag += 1
        self._bindings[tag] = bindings
        for name, binding in bindings.items():
            binding.write(self.getValue(name))
            binding.connect(self._slot(name, binding))
        # Slicer never removes this observer, either.
        self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda caller, event: self._show())
        return tag

    def disconnectGui(self, tag: int | None) -> None:
        if tag is not None and tag not in self._bindings:
            raise ValueError(f"no widgets are connected under the tag {tag!r}")
        for binding in self._bindings.pop(tag, {}).values():  # type: ignore[arg-type]
            binding.disconnect()

    def StartModify(self) -> Any:
        return self.parameterNode.StartModify()

    def EndModify(self, previous: int) -> None:
        self.parameterNode.EndModify(previous)

    def AddObserver(self, event: Any, callback: Callable[..., None], priority: float = 0.0) -> Any:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)

    def Modified(self) -> None:
        self.parameterNode.Modified()

    @classmethod
    def _parameter(cls, name: str) -> _Field:
        if name not in cls.allParameters:
            raise ValueError(f"{cls.__name__} has no parameter {name!r}, but {', '.join(cls.allParameters)}")
        return cls.allParameters[name]

    def _slot(self, name: str, binding: _Binding) -> Callable[..., None]:
        def changed(*_: Any) -> None:
            if not self._showing:
                with slicer.util.NodeModify(self):
                    self.setValue(name, binding.read())

        return changed

    def _show(self) -> None:
        if self._showing:
            return
        self._showing = True
        try:
            with slicer.util.NodeModify(self):
                for bindings in list(self._bindings.values()):
                    for name, binding in bindings.items():
                        binding.write(self.getValue(name))
        finally:
            self._showing = False


def _descendants(widget: Any) -> Iterable[Any]:
    for child in widget.children():
        yield child
        yield from _descendants(child)


def _named_widgets(widgets: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    for widget in widgets:
        name = widget.property(SlicerParameterNamePropertyName)
        if name:
            yield name, widget


def parameterNodeWrapper(decorated: type | None = None) -> Any:
    """Decorator that gives a class of annotated fields properties that live in a parameter node."""
    return _wrap if decorated is None else _wrap(decorated)


def _wrap(decorated: type) -> type:
    hints = typing.get_type_hints(decorated, include_extras=True)
    fields = {name: _field(decorated, name, annotated) for name, annotated in hints.items()}
    taken = [name for name in fields if hasattr(_Wrapper, name)]
    if taken:
        raise ValueError(f"{decorated.__name__}: {taken[0]!r} is a reserved name in a parameterNodeWrapper")
    namespace: dict[str, Any] = {"allParameters": fields, "__module__": decorated.__module__}
    namespace.update({name: _property(name) for name in fields})
    return type(decorated.__name__, (_Wrapper, decorated), namespace)


def _property(name: str) -> property:
    return property(lambda self: self.getValue(name), lambda self, value: self.setValue(name, value))


def isParameterNodeWrapper(candidate: Any) -> bool:
    return getattr(candidate, "_is_parameter_node_wrapper", False)
