"""What a .ui file may hold, and that everything else in one is refused instead of being dropped."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import slicer.util
from PySide6 import QtCore, QtWidgets
from SlicerHost import problems, ui_files

EVERYTHING = """
<widget class="ctkCollapsibleButton" name="inputs">
  <property name="text"><string>Inputs</string></property>
  <property name="collapsed"><bool>true</bool></property>
  <layout class="QFormLayout" name="form">
    <property name="leftMargin"><number>3</number></property>
    <item row="0" column="0"><widget class="QLabel" name="label">
      <property name="text"><string>Folder:</string></property></widget></item>
    <item row="0" column="1"><widget class="ctkPathLineEdit" name="folder">
      <property name="toolTip"><string>Where the scans are</string></property>
      <property name="filters"><set>ctkPathLineEdit::Dirs|ctkPathLineEdit::Writable</set></property>
      <property name="nameFilters"><stringlist><string>A (*.a)</string>
        <string>B (*.b)</string></stringlist></property>
      <property name="SlicerParameterName" stdset="0"><string>scans</string></property>
    </widget></item>
    <item row="1" column="1"><widget class="QSpinBox" name="steps">
      <property name="maximum"><number>1000</number></property>
      <property name="value"><number>7</number></property></widget></item>
  </layout>
</widget>
<widget class="Line" name="line"><property name="orientation"><enum>Qt::Horizontal</enum></property></widget>
<widget class="QCheckBox" name="box"/>
<widget class="QPushButton" name="apply">
  <property name="enabled"><bool>false</bool></property>
  <property name="sizePolicy"><sizepolicy hsizetype="Expanding" vsizetype="Fixed"/></property>
</widget>
"""
CONNECTED = """<connection><sender>box</sender><signal>toggled(bool)</signal><receiver>apply</receiver>
<slot>setEnabled(bool)</slot></connection>"""


def _with(class_name: str, property_name: str, value: str) -> str:
    value = f'<property name="{property_name}">{value}</property>' if value else ""
    return f'<widget class="{class_name}" name="one">{value}</widget>'


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """A .ui file with these widgets and connections."""

    def write(widgets: str, connections: str = "", root: str = "QWidget") -> str:
        path = tmp_path / "Panel 数.ui"
        items = "".join(
            f"<item>{ElementTree.tostring(one, encoding='unicode')}</item>"
            for one in ElementTree.fromstring(f"<all>{widgets}</all>")
        )
        path.write_text(
            f'<?xml version="1.0" encoding="UTF-8"?><ui version="4.0"><class>Panel</class>'
            f'<widget class="{root}" name="Panel"><layout class="QVBoxLayout" name="rows">{items}</layout></widget>'
            f"<connections>{connections}</connections></ui>",
            encoding="utf-8",
        )
        return str(path)

    return write


def test_slicers_own_load_ui_reads_a_panel(write: Any) -> None:
    panel = slicer.util.loadUI(write(EVERYTHING))
    ui = slicer.util.childWidgetVariables(panel)
    assert type(panel) is QtWidgets.QWidget and panel.name == "Panel"
    assert type(ui.inputs).__name__ == "ctkCollapsibleButton" and ui.inputs.collapsed and ui.inputs.text == "Inputs"
    assert ui.folder.toolTip == "Where the scans are"
    assert ui.folder.filters == ui.folder.Dirs | ui.folder.Writable
    assert ui.folder.nameFilters == ("A (*.a)", "B (*.b)")
    assert ui.folder.property("SlicerParameterName") == "scans"
    assert ui.steps.value == 7 and not ui.apply.enabled
    assert ui.folder.parent() is ui.inputs
    panel.show()
    assert not ui.steps.visible
    ui.inputs.collapsed = False
    assert ui.steps.visible and ui.folder.visible
    assert problems.take() == []


def test_children_are_no_attributes_of_the_root(write: Any) -> None:
    panel = slicer.util.loadUI(write(EVERYTHING))
    assert not hasattr(panel, "apply") and not hasattr(panel, "folder")


def test_connections_between_widgets_work(write: Any) -> None:
    ui = slicer.util.childWidgetVariables(slicer.util.loadUI(write(EVERYTHING, CONNECTED)))
    ui.box.click()
    assert ui.apply.enabled
    ui.box.click()
    assert not ui.apply.enabled


def test_connections_of_python_classes_work(write: Any) -> None:
    connection = CONNECTED.replace("box", "inputs").replace("toggled(bool)", "contentsCollapsed(bool)")
    ui = slicer.util.childWidgetVariables(slicer.util.loadUI(write(EVERYTHING, connection)))
    ui.inputs.collapsed = False
    ui.inputs.collapsed = True
    assert ui.apply.enabled


def test_a_python_class_can_be_the_root(write: Any) -> None:
    @ui_files.register
    class qTestPanel(QtWidgets.QWidget):
        pass

    panel = slicer.util.loadUI(write('<widget class="QLabel" name="one"/>', root="qTestPanel"))
    assert type(panel) is qTestPanel and [one.name for one in panel.children() if one.name] == ["rows", "one"]
    del ui_files.WIDGETS["qTestPanel"]


@pytest.mark.parametrize(
    ("widgets", "connections", "named"),
    [
        (_with("ctkRangeWidget", "", ""), "", "ctkRangeWidget"),
        (_with("QPushButton", "txt", "<string>a</string>"), "", "txt"),
        (_with("ctkPathLineEdit", "path", "<string/>"), "", "path"),
        (_with("ctkPathLineEdit", "filters", "<set>Dir</set>"), "", "Dir"),
        (_with("QPushButton", "sizePolicy", "<enum>No</enum>"), "", "sizePolicy"),
        (_with("QCheckBox", "checked", "<string>yes</string>"), "", "checked"),
        (_with("QSpinBox", "value", "<number>500</number>"), "", "became 99"),
        (_with("QCheckBox", "", "") * 2, "", "name of their own: one"),
        (EVERYTHING, CONNECTED.replace("toggled(bool)", "toggld(bool)"), "toggld"),
        (EVERYTHING, CONNECTED.replace("setEnabled", "setEnable"), "setEnable"),
        (EVERYTHING, CONNECTED.replace("apply", "nobody"), "nobody"),
    ],
)
def test_what_does_not_exist_is_refused(write: Any, widgets: str, connections: str, named: str) -> None:
    try:
        with pytest.raises((ValueError, AttributeError), match=named):
            slicer.util.loadUI(write(widgets, connections))
    finally:
        problems.take()


def test_values_that_depend_on_the_parent_are_fine(write: Any) -> None:
    inner = _with("QLabel", "enabled", "<bool>true</bool>").replace("one", "inner")
    both = inner.replace("QLabel", "QWidget").replace("true", "false").replace("inner", "outer")
    both = both.replace(
        "</widget>", f'<layout class="QVBoxLayout" name="rows2"><item>{inner}</item></layout></widget>'
    )
    ui = slicer.util.childWidgetVariables(slicer.util.loadUI(write(both)))
    assert not ui.inner.enabled and not ui.outer.enabled


def test_an_exception_in_a_constructor_reaches_the_caller(write: Any) -> None:
    @ui_files.register
    class qTestBroken(QtWidgets.QWidget):
        def __init__(self, parent: QtCore.QObject) -> None:
            super().__init__(parent)
            raise RuntimeError("not today")

    with pytest.raises(RuntimeError, match="not today"):
        slicer.util.loadUI(write('<widget class="qTestBroken" name="one"/>'))
    del ui_files.WIDGETS["qTestBroken"]


def test_what_is_no_ui_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "Panel.ui"
    path.write_text("nothing")
    with pytest.raises(Exception, match="syntax error"):
        slicer.util.loadUI(str(path))
    with pytest.raises(RuntimeError, match="not found"):
        slicer.util.loadUI(str(tmp_path / "missing.ui"))
