"""PySide6 with the manners of PythonQt, which is how Slicer's Python sees Qt.

PythonQt is not one of the usual bindings: Qt properties are attributes (``label.text``, never ``label.text()``),
signals can be connected by their C++ signature, and a C++ object takes no new attributes. :func:`install` gives
PySide6's classes these manners, for the whole process, and makes the module ``qt``. Where PythonQt would silently do
nothing (a misspelt signal), this raises.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import shiboken6
from PySide6 import QtCore, QtGui, QtWidgets

_MODULES = (QtCore, QtGui, QtWidgets)

_METHODS = {"sizeHint", "minimumSizeHint", "duration", "singleShot"}
"""Qt properties that stay methods: the first three are virtual, and Qt would call whatever replaced them in Python;
``QTimer.singleShot`` is a static function that everybody uses and a property that nobody does."""

_NEW_IN_QT_6 = {"checkStateChanged(Qt::CheckState)"}
"""Signals that the Qt 5 of Slicer's stable releases lacks."""

_PYSIDE_ONLY = {"Signal", "SignalInstance", "Slot", "Property", "ClassInfo", "QEnum", "QFlag", "SIGNAL", "SLOT"}
"""What PySide6 adds to Qt, and not every PythonQt has."""

_native_connect = QtCore.QObject.connect
_native_disconnect = QtCore.QObject.disconnect
# QObject's own slot refuses objects of classes to which a __setattr__ was given; that of its base does not.
_set = shiboken6.Object.__setattr__
_strict: set[type] = set()
_is_free = False

# By class, and those of Qt's classes asked for at once: PySide6's face of a meta-object dies with the first object
# that was asked for its own.
_signals: dict[type, set[str]] = {}
_properties: dict[type, dict[str, bool]] = {}


class NativeProperty:
    """A Qt property as an attribute of the instances; on the class it is still the method of that name."""

    def __init__(self, name: str, on_class: Any, setter: Any, qt_property: QtCore.QMetaProperty) -> None:
        self.name = name
        self.on_class = on_class
        self._getter = on_class if callable(on_class) else None
        self._setter = setter
        self._type = qt_property.typeName()
        self._is_writable = qt_property.isWritable()

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            if self.on_class is None:
                raise AttributeError(f"{owner.__name__}.{self.name} is a property: it has no value without an object")
            return self.on_class
        value = self._read(instance)
        # PythonQt hands out lists of strings as tuples.
        return tuple(value) if self._type == "QStringList" and isinstance(value, list) else value

    def __set__(self, instance: Any, value: Any) -> None:
        if not self._is_writable:
            raise AttributeError(f"{type(instance).__name__}.{self.name} can only be read")
        if self._type == "bool":
            # PythonQt takes any truth value here, PySide6 only bool and int.
            value = bool(value)
        if self._setter is not None:
            self._setter(instance, value)
        elif not QtCore.QObject.setProperty(instance, self.name, value):
            raise TypeError(f"{type(instance).__name__}.{self.name} ({self._type}) does not take {value!r}")

    def _read(self, instance: Any) -> Any:
        if isinstance(self._getter, staticmethod | types.BuiltinFunctionType):
            return self._getter()
        if self._getter is not None:
            return self._getter(instance)
        return QtCore.QObject.property(instance, self.name)


class _Connection(NamedTuple):
    signal: str
    callback: Any
    close: Callable[[], object]


_connections: dict[int, list[_Connection]] = {}
"""What was connected by signature, by the address of the C++ sender: its Python face may come and go."""


def install() -> types.ModuleType:
    """Patch PySide6 once, and return the module ``qt``, which is in ``sys.modules`` from then on."""
    if "qt" in sys.modules:
        return sys.modules["qt"]
    from . import ctk, dialogs, ui_files

    _keep_none_alive()
    for native in _native_classes():
        _make_strict(native)
        if issubclass(native, QtCore.QObject):
            qt_properties(native)
            _add_properties(native)
            # QObject and a few others have getters of their own, which hand out their bound connect() at once.
            if "__getattribute__" in native.__dict__:
                _intercept_connect(native)
    # PythonQt adds these to every object.
    QtCore.QObject.name = _Name()  # type: ignore[attr-defined]
    QtCore.QObject.className = lambda self: self.metaObject().className()  # type: ignore[attr-defined]
    QtCore.QObject.delete = lambda self: shiboken6.delete(self)  # type: ignore[attr-defined]
    dialogs.install()
    ctk.install()
    sys.modules["qt"] = _QtModule({"QUiLoader": ui_files.UiLoader})
    return sys.modules["qt"]


def _keep_none_alive() -> None:
    """Give ``None`` more references than any test can use up.

    PySide6 6.12 hands out None without counting it, which is right from Python 3.12 on, where None is not counted;
    before, each call of a Qt method without a result takes one reference away until the interpreter aborts.
    """
    if sys.version_info < (3, 12):
        ctypes.c_ssize_t.from_address(id(None)).value += 1 << 40


def connect(sender: Any, signal: str, *target: Any) -> bool:
    """``sender.connect('signal(…)', function)`` or ``sender.connect('signal(…)', receiver, 'slot(…)')``.

    The function is kept alive, and gets only as many of the signal's arguments as it takes.

    Raises:
        AttributeError: there is no such signal or slot (PythonQt would return False, which nobody looks at).
    """
    # PySide6's own code comes this way, ``QTimer.singleShot`` for one, and names the sender itself.
    if not isinstance(signal, str):
        return _native_connect(signal, *target)
    if signal.startswith("2"):
        return _native_connect(sender, signal, *target)
    callback = _slot(*target) if len(target) == 2 else target[0]
    if not callable(callback):
        raise TypeError(f"{signal} can be connected to a callable only, not to {callback!r}")
    name = find_signal(sender, signal)
    close = _open(sender, name, functools.partial(_call, callback))
    kept = _connections.get(_address(sender))
    if kept is None:
        kept = _connections[_address(sender)] = []
        forget = functools.partial(_connections.pop, _address(sender), None)
        _native_connect(sender, "2destroyed()", lambda: forget())
    kept.append(_Connection(name, callback, close))
    return True


def disconnect(sender: Any, *signal_and_target: Any) -> bool:
    """``sender.disconnect('signal(…)', function)``, or all Python functions of that signal without one.

    Returns:
        whether there was such a connection, as PythonQt does.
    """
    signal, *target = signal_and_target or (None,)
    if not isinstance(signal, str):
        return _native_disconnect(*signal_and_target)
    if signal.startswith("2"):
        return _native_disconnect(sender, *signal_and_target)
    name = find_signal(sender, signal)
    kept = _connections.get(_address(sender), [])
    callback = _slot(*target) if len(target) == 2 else target[0] if target else None
    found = [one for one in kept if one.signal == name and (not target or one.callback == callback)]
    # A named function goes once for each time that it was connected; no name means all.
    for one in found[:1] if target else found:
        kept.remove(one)
        one.close()
    return bool(found)


def find_signal(sender: Any, signal: str) -> str:
    """The normalised signature, looked up in ``SIGNATURES`` of the Python classes and in Qt's meta-object."""
    name = normalised(signal)
    if type(sender) not in _signals:
        _signals[type(sender)] = _signal_names(sender.metaObject())
    known = {*_signals[type(sender)], *declared_signals(type(sender))}
    if name not in known or name in _NEW_IN_QT_6:
        raise AttributeError(f"{type(sender).__name__} has no signal {signal!r}; it has {', '.join(sorted(known))}")
    return name


def normalised(signature: str) -> str:
    """As Qt writes it: without spaces, ``const`` and ``&``."""
    return bytes(QtCore.QMetaObject.normalizedSignature(signature).data()).decode()


def _signal_names(meta: QtCore.QMetaObject) -> set[str]:
    """The signatures of Qt's signals; those of PySide6 ``Signal`` attributes are among them."""
    methods = (meta.method(index) for index in range(meta.methodCount()))
    return {
        bytes(one.methodSignature().data()).decode()
        for one in methods
        if one.methodType() == QtCore.QMetaMethod.MethodType.Signal
        # PySide6's name for any object; the C++ class has another, which SIGNATURES tells.
        and b"PyObject" not in one.methodSignature().data()
    }


def qt_properties(widget_class: Any) -> dict[str, bool]:
    """The Qt properties of a class, and whether each is an enumeration."""
    if widget_class not in _properties:
        meta = widget_class.staticMetaObject
        properties = [meta.property(index) for index in range(meta.propertyCount())]
        _properties[widget_class] = {one.name(): one.isEnumType() for one in properties}
    return _properties[widget_class]


def declared_signals(widget_class: type) -> dict[str, str]:
    """``SIGNATURES`` of the class and its bases, normalised: C++ signature to name of the Signal attribute."""
    found: dict[str, str] = {}
    for one in reversed(widget_class.__mro__):
        for signature, attribute in one.__dict__.get("SIGNATURES", {}).items():
            found[normalised(signature)] = attribute
    return found


def strict(widget_class: type) -> type:
    """Let a Python class that stands for one of Slicer's C++ classes refuse unknown attributes like those do.

    Names with a leading underscore stay free, for its own use.
    """
    _strict.add(widget_class)
    qt_properties(widget_class)
    return widget_class


@contextmanager
def free_attributes() -> Iterator[None]:
    """For PySide6's own code, which puts attributes on objects."""
    global _is_free
    _is_free = True
    try:
        yield
    finally:
        _is_free = False


def _native_classes() -> Iterable[type]:
    """All C++ classes of PySide6, bases first."""
    # By dir() and not vars(): PySide6 makes its classes when they are first asked for.
    found = {getattr(module, name) for module in _MODULES for name in dir(module) if name[0] == "Q"}
    cpp_class = type(QtCore.QObject)
    return sorted((one for one in found if isinstance(one, cpp_class)), key=lambda one: len(one.__mro__))


def _make_strict(native: type) -> None:
    _strict.add(native)
    native.__setattr__ = _set_attribute  # type: ignore[assignment]
    native.__delattr__ = shiboken6.Object.__delattr__  # type: ignore[assignment]


def _set_attribute(self: Any, name: str, value: Any) -> None:
    found = next((one.__dict__[name] for one in type(self).__mro__ if name in one.__dict__), None)
    if isinstance(found, QtCore.Property):
        # No data descriptor: PySide6 knows it in the slot that this function replaces.
        if found.fset is None:
            raise AttributeError(f"{type(self).__name__}.{name} can only be read")
        found.fset(self, value)
    elif _is_refused(self, name, value, found):
        what = "does not exist" if found is None else "is a method and cannot be replaced"
        raise AttributeError(f"attribute {name!r} of {type(self).__name__} {what}: a C++ object takes no new ones")
    else:
        _set(self, name, value)


def _is_refused(instance: Any, name: str, value: Any, found: Any) -> bool:
    is_native = type(instance).__module__.startswith("PySide6.")
    if type(instance) not in _strict or _is_free or (name.startswith("_") and not is_native):
        return False
    # PySide6 itself keeps a signal, once asked for, as an attribute of the object.
    return not hasattr(type(found), "__set__") and not isinstance(value, QtCore.SignalInstance)


def _add_properties(native: Any) -> None:
    meta = native.staticMetaObject
    for index in range(meta.propertyOffset(), meta.propertyCount()):
        qt_property = meta.property(index)
        name = qt_property.name()
        on_class = inspect.getattr_static(native, name, None)
        # QGraphicsObject declares parent() and others that are methods everywhere else.
        if name in _METHODS or native is QtWidgets.QGraphicsObject:
            continue
        if isinstance(on_class, NativeProperty):
            # Declared again, as QDialog does with "modal" to make it writable.
            on_class = on_class.on_class
        if isinstance(on_class, staticmethod):
            on_class = getattr(native, name)
        setter = getattr(native, f"set{name[0].upper()}{name[1:]}", None)
        if isinstance(setter, types.BuiltinFunctionType):
            setter = functools.partial(_without_object, setter)
        setattr(native, name, NativeProperty(name, on_class, setter, qt_property))


def _without_object(static_setter: Callable[[Any], object], _instance: Any, value: Any) -> None:
    static_setter(value)


def _intercept_connect(native: Any) -> None:
    get = native.__getattribute__

    def get_attribute(self: Any, name: str) -> Any:
        if name in ("connect", "disconnect"):
            return functools.partial(connect if name == "connect" else disconnect, self)
        return get(self, name)

    native.__getattribute__ = get_attribute


class _Name:
    """PythonQt's other name of ``objectName``."""

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else instance.objectName

    def __set__(self, instance: Any, value: str) -> None:
        instance.objectName = value


class _QtModule(types.ModuleType):
    """All of QtCore, QtGui and QtWidgets under one name, as PythonQt has it."""

    def __init__(self, others: dict[str, Any]) -> None:
        super().__init__("qt", "Qt as Slicer's Python sees it")
        self.__dict__.update(others)

    def __getattr__(self, name: str) -> Any:
        for module in _MODULES:
            if hasattr(module, name) and name not in _PYSIDE_ONLY and not name.startswith("__"):
                return getattr(module, name)
        raise AttributeError(f"qt.{name}: not in QtCore, QtGui or QtWidgets of Qt 6")


def _open(sender: Any, name: str, callback: Callable[..., object]) -> Callable[[], object]:
    """Connect, and return what undoes it."""
    attribute = declared_signals(type(sender)).get(name)

    # A function of its own for each connection: PySide6 tells connections apart by the function.
    def call(*arguments: Any) -> None:
        callback(*arguments)

    if attribute is not None:
        signal = getattr(sender, attribute)
        signal.connect(call)
        return lambda: signal.disconnect(call)
    connection = _native_connect(sender, f"2{name}", call)
    return lambda: _native_disconnect(connection)


def _call(callback: Callable[..., object], *arguments: Any) -> None:
    callback(*arguments[: _arguments_taken(callback)])


def _arguments_taken(callback: Any) -> int | None:
    """How many arguments of a signal the callback gets: PythonQt looks at functions and bound methods only."""
    function = getattr(callback, "__func__", callback)
    if not isinstance(function, types.FunctionType) or function.__code__.co_flags & inspect.CO_VARARGS:
        return None
    return function.__code__.co_argcount - (1 if inspect.ismethod(callback) else 0)


def _slot(receiver: Any, slot: str) -> Callable[..., object]:
    """The method behind a slot's signature, to be called with the arguments that the signature names."""
    signature = normalised(slot)
    name, _, rest = signature.partition("(")
    method = getattr(receiver, name, None)
    if not callable(method) or not rest.endswith(")"):
        raise AttributeError(f"{type(receiver).__name__} has no slot {slot!r}")
    return _Slot(method, signature, len([one for one in rest[:-1].split(",") if one]))


class _Slot:
    def __init__(self, method: Callable[..., object], signature: str, count: int) -> None:
        self._method = method
        self._count = count
        self._key = (id(getattr(method, "__self__", None)), signature)

    def __call__(self, *arguments: Any) -> None:
        self._method(*arguments[: self._count])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Slot) and other._key == self._key

    def __hash__(self) -> int:
        return hash(self._key)


def _address(sender: Any) -> int:
    return shiboken6.getCppPointer(sender)[0]
