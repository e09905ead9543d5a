"""The manners of PythonQt, each at its edges."""

from __future__ import annotations

import gc
import time
import weakref
from typing import Any, ClassVar

import pytest
import qt
import shiboken6
from PySide6 import QtCore, QtWidgets
from SlicerHost import problems, pythonqt


class Light(QtWidgets.QWidget):
    """A Python widget as ctk.py and qmrml.py declare them."""

    switched = QtCore.Signal(object)
    SIGNATURES: ClassVar[dict[str, str]] = {"switched( vtkMRMLNode * )": "switched"}

    def __init__(self) -> None:
        super().__init__()
        self._power = 1

    def setPower(self, power: int) -> None:
        self._power = power

    power = QtCore.Property(int, lambda self: self._power, setPower)
    volts = QtCore.Property(int, lambda self: 230)


class Bulb(Light):
    """Inherits what Light declares."""


def test_installing_twice_changes_nothing() -> None:
    assert pythonqt.install() is pythonqt.install() is qt


def test_qt_holds_the_three_modules_and_no_more() -> None:
    assert qt.QTimer and qt.QIcon and qt.QLabel and qt.Qt.AlignLeft and qt.QUiLoader
    for name in ("QRegExp", "Signal", "QWebEngineView"):
        with pytest.raises(AttributeError, match=rf"qt\.{name}"):
            getattr(qt, name)


def test_properties_are_attributes() -> None:
    label = qt.QLabel("one")
    label.text = "two"
    label.name = "label"
    label.enabled = []
    assert (label.text, label.objectName, label.enabled, label.isEnabled()) == ("two", "label", False, False)
    assert label.className() == "QLabel" and label.inherits("QFrame")
    with pytest.raises(TypeError, match="not callable"):
        label.text()


def test_properties_without_a_method_of_their_name() -> None:
    box = qt.QCheckBox()
    box.checked = 1
    text = qt.QPlainTextEdit()
    text.plainText = "many\nlines"
    assert box.checked is True and text.toPlainText() == "many\nlines" and not qt.QTimer().active


def test_sizes_and_single_shot_stay_methods() -> None:
    assert qt.QLabel("one").sizeHint().isValid()
    done: list[int] = []
    for delay in (0, 1):
        qt.QTimer.singleShot(delay, lambda: done.append(1))
    deadline = time.monotonic() + 5
    while len(done) < 2 and time.monotonic() < deadline:
        QtCore.QCoreApplication.processEvents()
    assert done == [1, 1]


def test_objects_can_be_deleted() -> None:
    parent = qt.QWidget()
    label = qt.QLabel("one", parent)
    label.delete()
    assert not shiboken6.isValid(label) and parent.children() == []


def test_static_properties_are_both() -> None:
    application: Any = QtWidgets.QApplication.instance()
    before = application.applicationName
    application.applicationName = "Test"
    assert application.applicationName == qt.QApplication.applicationName() == "Test"
    application.applicationName = before


def test_lists_of_strings_are_tuples() -> None:
    browser = qt.QTextBrowser()
    browser.searchPaths = ["/a", "/b"]
    assert browser.searchPaths == ("/a", "/b")


def test_read_only_properties_cannot_be_set() -> None:
    with pytest.raises(AttributeError, match=r"QLabel\.focus"):
        qt.QLabel().focus = True
    light = Light()
    with pytest.raises(AttributeError, match=r"Light\.volts"):
        light.volts = 110


def test_python_properties_behave_like_native_ones() -> None:
    bulb = Bulb()
    bulb.power = 5
    assert bulb.power == 5 and bulb.property("power") == 5 and "power" not in vars(bulb)


@pytest.mark.parametrize("make", [qt.QPushButton, qt.QWidget, qt.QTimer, qt.QMenu, qt.QVBoxLayout, qt.QComboBox])
def test_native_objects_take_no_new_attributes(make: Any) -> None:
    thing = make()
    with pytest.raises(AttributeError, match="'colour' of Q.* does not exist"):
        thing.colour = "red"
    with pytest.raises(AttributeError, match="_colour"):
        thing._colour = "red"
    with pytest.raises(AttributeError, match="is a method"):
        thing.setProperty = None
    with pytest.raises(AttributeError, match="colour"):
        _ = thing.colour


def test_rows_of_lists_take_none_either() -> None:
    for one in (qt.QListWidgetItem("a"), qt.QTableWidgetItem("a"), qt.QIcon()):
        with pytest.raises(AttributeError, match="colour"):
            one.colour = "red"


def test_python_subclasses_take_new_attributes_unless_they_stand_for_native_ones() -> None:
    light = Light()
    light.colour = "red"
    del light.colour
    assert not hasattr(light, "colour")

    @pythonqt.strict
    class Strict(Light):
        pass

    with pytest.raises(AttributeError, match="colour"):
        Strict().colour = "red"
    Strict()._colour = "red"
    Strict().power = 3


def test_functions_get_as_many_arguments_as_they_take() -> None:
    button, calls = qt.QPushButton(), []
    button.checkable = True
    button.connect("clicked(bool)", lambda: calls.append("none"))
    button.connect("clicked( bool )", lambda on: calls.append(on))
    button.connect("clicked(bool)", lambda *all_of_them: calls.append(all_of_them))
    button.connect("clicked(bool)", calls.append)
    button.connect("clicked()", lambda: calls.append("bare"))
    button.click()
    assert calls == ["none", True, (True,), True, "bare"]


def test_a_function_that_takes_more_is_a_problem() -> None:
    button = qt.QPushButton()
    button.connect("clicked()", lambda one: None)
    button.click()
    (problem,) = problems.take()
    assert problem.kind == "slot" and "missing 1 required positional argument" in problem.text


def test_connections_keep_methods_alive() -> None:
    class Listener:
        calls = 0

        def hear(self) -> None:
            Listener.calls += 1

    button = qt.QPushButton()
    button.connect("clicked()", Listener().hear)
    gc.collect()
    button.click()
    assert Listener.calls == 1


def test_what_a_destroyed_sender_kept_is_let_go() -> None:
    class Listener:
        def hear(self) -> None:
            pass

    button, listener = qt.QPushButton(), Listener()
    button.connect("clicked()", listener.hear)
    kept = weakref.ref(listener)
    del listener
    shiboken6.delete(button)
    gc.collect()
    assert kept() is None


def test_disconnecting() -> None:
    button, calls = qt.QPushButton(), []

    def hear() -> None:
        calls.append(1)

    button.connect("clicked()", hear)
    button.connect("clicked()", hear)
    button.connect("pressed()", hear)
    assert button.disconnect("clicked()", hear)
    button.click()
    assert len(calls) == 2
    assert button.disconnect("clicked()") and not button.disconnect("clicked()", hear)
    button.click()
    assert len(calls) == 3
    with pytest.raises(AttributeError, match="clickd"):
        button.disconnect("clickd()", hear)


@pytest.mark.parametrize(
    ("make", "signal"),
    [
        (qt.QPushButton, "clickd()"),
        (qt.QPushButton, "clicked"),
        (qt.QPushButton, "clicked(int)"),
        (qt.QComboBox, "currentIndexChanged(QString)"),
        (qt.QCheckBox, "checkStateChanged(Qt::CheckState)"),
        (qt.QMenu, "triggerd(QAction*)"),
        (qt.QProcess, "finish(int)"),
        (qt.QFile, "red()"),
        (qt.QLibrary, "loaded()"),
        (qt.QObject, "gone()"),
        (Light, "switched(bool)"),
        (Light, "switched(PyObject)"),
    ],
)
def test_signals_that_do_not_exist_are_refused(make: Any, signal: str) -> None:
    with pytest.raises(AttributeError, match="has no signal"):
        make().connect(signal, print)


def test_only_callables_and_slots_can_be_connected() -> None:
    with pytest.raises(TypeError, match="callable"):
        qt.QPushButton().connect("clicked()", None)
    with pytest.raises(AttributeError, match="no slot"):
        qt.QPushButton().connect("clicked()", qt.QLabel(), "cler()")


def test_a_slot_by_its_name() -> None:
    line, label = qt.QLineEdit(), qt.QLabel("old")
    line.connect("textChanged(QString)", label, "setText(QString)")
    line.text = "new"
    assert label.text == "new"
    assert line.disconnect("textChanged(QString)", label, "setText(QString)")
    line.text = "newer"
    assert label.text == "new"


def test_signals_of_python_classes() -> None:
    bulb, calls = Bulb(), []
    bulb.connect("switched(vtkMRMLNode*)", calls.append)
    bulb.switched.emit("node")
    assert bulb.disconnect("switched(vtkMRMLNode*)", calls.append)
    bulb.switched.emit("node")
    bulb.connect("windowTitleChanged(QString)", calls.append)
    bulb.windowTitle = "title"
    assert calls == ["node", "title"]


def test_signals_as_attributes_are_pyside_s_own() -> None:
    button, calls = qt.QPushButton(), []
    button.clicked.connect(lambda: calls.append(1))
    button.click()
    assert calls == [1]
