"""What went wrong without an exception reaching the caller: exceptions in slots, Qt's warnings, VTK's errors."""

from __future__ import annotations

import re
import sys
import traceback
from types import TracebackType
from typing import NamedTuple

import vtk
from PySide6 import QtCore


class Problem(NamedTuple):
    """One thing that went wrong; ``kind`` is "slot", "qt", "vtk", "dialog" or what the caller of record chose."""

    kind: str
    text: str


ALLOWED: tuple[str, ...] = (
    # The offscreen platform has no windows, so it cannot hand on their size limits.
    r"This plugin does not support (propagateSizeHints|raise)\(\)",
    # PySide6's wheels carry no fonts; the host adds one itself.
    r"QFontDatabase: Cannot find font directory",
    r"Note that Qt no longer ships fonts",
)
"""Regular expressions of harmless messages."""

_problems: list[Problem] = []


def start() -> None:
    """Listen to Python's, Qt's and VTK's ways of reporting; once a process."""
    # PySide6 calls this for an exception in a slot, and VTK for one in an observer; both go on.
    sys.excepthook = _on_exception
    QtCore.qInstallMessageHandler(_on_qt_message)
    if not isinstance(vtk.vtkOutputWindow.GetInstance(), vtk.vtkStringOutputWindow):
        _collect_vtk()


def record(kind: str, text: str) -> None:
    """Note a problem, unless it is one of the harmless ones."""
    if not any(re.search(pattern, text) for pattern in ALLOWED):
        _problems.append(Problem(kind, text.strip()))


def take() -> list[Problem]:
    """What was noted since the last time."""
    _take_from_vtk()
    taken, _problems[:] = _problems[:], []
    return taken


def _on_exception(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    record("slot", "".join(traceback.format_exception(kind, error, where)))
    # Also printed, as an exception that ends the process must be.
    sys.__excepthook__(kind, error, where)


def _on_qt_message(kind: QtCore.QtMsgType, _context: QtCore.QMessageLogContext, text: str) -> None:
    if kind not in (QtCore.QtMsgType.QtDebugMsg, QtCore.QtMsgType.QtInfoMsg):
        record("qt", text)


def _collect_vtk() -> None:
    """Let VTK write its messages into a text that nobody hears of before it is asked for.

    An observer would be called at once, also from VTK's worker threads, which would wait for the interpreter while
    the interpreter waits for them.
    """
    vtk.vtkOutputWindow.SetInstance(vtk.vtkStringOutputWindow())


def _take_from_vtk() -> None:
    window = vtk.vtkOutputWindow.GetInstance()
    text = window.GetOutput() if isinstance(window, vtk.vtkStringOutputWindow) else ""
    if text.strip():
        _collect_vtk()
    for message in re.split(r"(?m)^(?=(?:ERROR|Error|Warning|Generic Warning): In )", text):
        if message.strip():
            record("vtk", message)
