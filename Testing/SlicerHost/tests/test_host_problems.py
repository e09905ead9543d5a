"""Whatever goes wrong without an exception reaching the caller is noted."""

from __future__ import annotations

import pytest
import qt
import vtk
from PySide6 import QtCore
from SlicerHost import problems


def test_an_exception_in_a_slot() -> None:
    button = qt.QPushButton()
    button.connect("clicked()", lambda: {}["missing"])
    button.click()
    (problem,) = problems.take()
    assert problem.kind == "slot" and "KeyError: 'missing'" in problem.text and "test_host_problems" in problem.text
    assert problems.take() == []


def test_an_exception_in_a_timer_and_in_a_native_connection() -> None:
    button = qt.QPushButton()
    button.clicked.connect(lambda: 1 / 0)
    button.click()
    qt.QTimer.singleShot(0, lambda: 1 / 0)
    QtCore.QCoreApplication.processEvents()
    assert ["ZeroDivisionError" in one.text for one in problems.take()] == [True, True]


def test_an_exception_in_a_virtual_method() -> None:
    class Broken(qt.QWidget):
        def resizeEvent(self, event: object) -> None:
            raise LookupError("no size")

    # PySide6 hands this one on to whoever made Qt call the method, if that was Python.
    with pytest.raises(LookupError, match="no size"):
        Broken().show()


def test_an_exception_in_an_observer_of_vtk() -> None:
    table = vtk.vtkTable()
    table.AddObserver("ModifiedEvent", lambda caller, event: 1 / 0)
    table.Modified()
    (problem,) = problems.take()
    assert problem.kind == "slot" and "ZeroDivisionError" in problem.text


def test_a_warning_of_qt_but_no_message() -> None:
    QtCore.qDebug("a message")
    QtCore.qWarning("a warning")
    assert problems.take() == [("qt", "a warning")]


def test_a_warning_of_qt_itself() -> None:
    qt.QPixmap().scaled(3, 3)
    (problem,) = problems.take()
    assert problem.kind == "qt" and "null pixmap" in problem.text


def test_errors_and_warnings_of_vtk() -> None:
    reader = vtk.vtkXMLImageDataReader()
    reader.SetFileName("/no/such/file.vti")
    reader.Update()
    found = problems.take()
    assert found and {one.kind for one in found} == {"vtk"} and "/no/such/file.vti" in found[0].text


def test_a_warning_of_a_worker_thread_of_vtk_does_not_stop_everything() -> None:
    image = vtk.vtkImageData()
    image.SetDimensions(40, 40, 40)
    image.AllocateScalars(vtk.VTK_SIGNED_CHAR, 1)
    statistics = vtk.vtkImageHistogramStatistics()
    statistics.SetInputData(image)
    statistics.Update()
    # Whether it warns is VTK's affair; that it comes back is what matters.
    problems.take()


def test_harmless_messages_are_left_out() -> None:
    problems.record("qt", "This plugin does not support propagateSizeHints()")
    problems.record("timer", "something else")
    assert problems.take() == [("timer", "something else")]


def test_starting_again_reports_nothing_twice() -> None:
    problems.start()
    vtk.vtkOutputWindow.GetInstance().DisplayErrorText("once")
    QtCore.qWarning("once")
    assert len(problems.take()) == 2
