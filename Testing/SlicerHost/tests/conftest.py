"""A small scripted module to load into the stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest
from SlicerHost import problems
from SlicerHost.fixtures import host

__all__ = ["host"]


@pytest.fixture(autouse=True)
def no_problems_of_before() -> None:
    """What tests of other files in this process met is not this one's fault."""
    problems.take()


SOURCE = """
import enum
from pathlib import Path
from typing import Annotated, Optional

import ctk
import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import Default, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin

VERSION = 1


class Blur(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Blur")
        self.parent.categories = ["Segmentation"]


@parameterNodeWrapper
class BlurParameterNode:
    inputVolume: slicer.vtkMRMLScalarVolumeNode
    steps: Annotated[int, WithinRange(1, 9)] = 3
    title: str


class BlurWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.calls = []
        self.logic = None
        self._parameterNode = None
        self._tag = None

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        widget = slicer.util.loadUI(self.resourcePath("UI/Blur.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = BlurLogic()
        self.ui.applyButton.connect("clicked(bool)", self.onApply)
        scene = slicer.mrmlScene
        for event in (scene.StartCloseEvent, scene.StartImportEvent):
            self.addObserver(scene, event, self.onStart)
        for event in (scene.EndCloseEvent, scene.EndImportEvent):
            self.addObserver(scene, event, self.onEnd)
        self.initialize()
        self.calls.append("setup")

    def enter(self):
        self.calls.append("enter")
        self.initialize()

    def exit(self):
        self.calls.append("exit")
        self.use(None)

    def cleanup(self):
        self.calls.append("cleanup")
        self.removeObservers()

    def onStart(self, caller, event):
        self.calls.append("scene")
        self.use(None)

    def onEnd(self, caller, event):
        if self.parent.isEntered:
            self.initialize()

    def initialize(self):
        self.use(self.logic.getParameterNode())

    def use(self, node):
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._tag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.check)
        self._parameterNode = node
        if node:
            self._tag = node.connectGui(self.ui)
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self.check)
            self.check()

    def check(self, caller=None, event=None):
        self.ui.applyButton.enabled = bool(self._parameterNode and self._parameterNode.inputVolume)

    def onApply(self):
        with slicer.util.tryWithErrorDisplay(_("It failed."), waitCursor=True):
            if slicer.util.confirmOkCancelDisplay(_("Blur it?"), windowTitle="Blur"):
                self.logic.run(self._parameterNode.inputVolume, self._parameterNode.steps)


class BlurLogic(ScriptedLoadableModuleLogic):
    def getParameterNode(self):
        return BlurParameterNode(super().getParameterNode())

    def run(self, volume, steps):
        if steps == 9:
            raise ValueError("nine is too many")
        array = slicer.util.arrayFromVolume(volume)
        with slicer.util.NodeModify(volume):
            array += steps
            slicer.util.arrayFromVolumeModified(volume)


class BlurTest(ScriptedLoadableModuleTest):
    def runTest(self):
        self.delayDisplay("ran")
        slicer.selfTests["ran"] = True
"""

UI = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0">
 <class>Blur</class>
 <widget class="qMRMLWidget" name="Blur">
  <layout class="QFormLayout" name="form">
   <item row="0" column="0"><widget class="QLabel" name="label">
     <property name="text"><string>Input:</string></property>
   </widget></item>
   <item row="0" column="1"><widget class="qMRMLNodeComboBox" name="inputSelector">
     <property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
     <property name="noneEnabled"><bool>true</bool></property>
     <property name="addEnabled"><bool>false</bool></property>
     <property name="removeEnabled"><bool>false</bool></property>
     <property name="SlicerParameterName" stdset="0"><string>inputVolume</string></property>
   </widget></item>
   <item row="1" column="1"><widget class="QSpinBox" name="stepsBox">
     <property name="SlicerParameterName" stdset="0"><string>steps</string></property>
   </widget></item>
   <item row="2" column="1"><widget class="QLineEdit" name="titleEdit">
     <property name="SlicerParameterName" stdset="0"><string>title</string></property>
   </widget></item>
   <item row="3" column="0" colspan="2"><widget class="QPushButton" name="applyButton">
     <property name="text"><string>Apply</string></property>
     <property name="enabled"><bool>false</bool></property>
   </widget></item>
  </layout>
 </widget>
 <customwidgets>
  <customwidget>
   <class>qMRMLNodeComboBox</class><extends>QWidget</extends><header>qMRMLNodeComboBox.h</header>
  </customwidget>
  <customwidget><class>qMRMLWidget</class><extends>QWidget</extends><header>qMRMLWidget.h</header></customwidget>
 </customwidgets>
 <resources/>
 <connections>
  <connection>
   <sender>Blur</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
   <receiver>inputSelector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot>
  </connection>
 </connections>
</ui>
"""


@pytest.fixture
def blur(tmp_path: Path) -> Path:
    """The file of a module Blur with a node list, a spin box, a line edit and a button."""
    folder = tmp_path / "Blur"
    (folder / "Resources" / "UI").mkdir(parents=True)
    (folder / "Blur.py").write_text(SOURCE, encoding="utf-8")
    (folder / "Resources" / "UI" / "Blur.ui").write_text(UI, encoding="utf-8")
    return folder / "Blur.py"
