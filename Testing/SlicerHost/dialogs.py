"""Modal dialogs: a test announces its answers; a dialog that nobody announced raises instead of hanging.

So does a folder or a page that is opened in another program.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from PySide6 import QtGui, QtWidgets

from . import problems

KINDS = ("message", "dialog", "folder", "open file", "open files", "save file", "desktop")

_QBox = QtWidgets.QMessageBox
_QDialog = QtWidgets.QDialog
_QFiles = QtWidgets.QFileDialog


_NOT_THERE: dict[type, tuple[str, ...]] = {
    _QBox: ("about", "aboutQt"),
    QtWidgets.QInputDialog: ("getText", "getInt", "getDouble", "getItem", "getMultiLineText"),
    QtWidgets.QColorDialog: ("getColor",),
    QtWidgets.QFontDialog: ("getFont",),
    _QFiles: ("getExistingDirectoryUrl", "getOpenFileUrl", "getOpenFileUrls", "getSaveFileUrl"),
}
"""Static functions that open a dialog nobody has needed so far."""


class Announced(NamedTuple):
    """A dialog that is to come, and what the user will do in it."""

    kind: str
    answer: Any


_announced: list[Announced] = []
_shown: list[str] = []
_show = QtWidgets.QWidget.show


def announce(kind: str, answer: object) -> None:
    """The next dialog, after those announced before it, will be of this kind and get this answer.

    Args:
        kind: "message" (QMessageBox), "dialog" (any other QDialog), "folder", "open file", "open files", "save file",
            "desktop" (QDesktopServices.openUrl).
        answer: for a message, the text of the button to click, or a standard button; for a dialog, a function that
            gets it and acts as the user, closing it at the end; for files the path or paths, "" for Cancel; for the
            desktop, whether it can open that.
    """
    if kind not in KINDS:
        raise ValueError(f"no kind of dialog: {kind!r}; there are {', '.join(KINDS)}")
    _announced.append(Announced(kind, answer))


def unanswered() -> list[Announced]:
    """What was announced and did not come."""
    return list(_announced)


def shown() -> list[str]:
    """The texts of the dialogs that appeared, announced or not."""
    return list(_shown)


def forget() -> None:
    """Forget what was announced and shown, between two tests."""
    _announced.clear()
    _shown.clear()


def install() -> None:
    """Replace the ways in which Qt opens modal dialogs."""
    for one in {getattr(QtWidgets, name) for name in dir(QtWidgets) if name.endswith(("Dialog", "Box", "Wizard"))}:
        for name in ("exec", "exec_", "open"):
            if one is not _QDialog and issubclass(one, _QDialog) and name in one.__dict__:
                setattr(one, name, _refuse(f"{one.__name__}.{name}"))
    for name in ("exec", "exec_"):
        setattr(_QDialog, name, _exec_dialog)
        setattr(_QBox, name, _exec_message)
        setattr(_QFiles, name, _refuse(f"QFileDialog.{name}"))
        setattr(QtWidgets.QMenu, name, _refuse(f"QMenu.{name}"))
    _QDialog.open = _refuse("QDialog.open")
    _QDialog.show = _show_dialog
    for name in ("question", "information", "warning", "critical"):
        setattr(_QBox, name, staticmethod(_static_message(_QBox.Icon[name.capitalize()])))
    _QFiles.getExistingDirectory = staticmethod(_browser("folder", "Find Directory"))
    _QFiles.getOpenFileName = staticmethod(_browser("open file", "Open"))
    _QFiles.getOpenFileNames = staticmethod(_browser("open files", "Open"))
    _QFiles.getSaveFileName = staticmethod(_browser("save file", "Save As"))
    QtGui.QDesktopServices.openUrl = staticmethod(_open_url)  # type: ignore[method-assign, assignment]
    for one, names in _NOT_THERE.items():
        for name in names:
            setattr(one, name, staticmethod(_refuse(f"{one.__name__}.{name}")))


def _next(kind: str, text: str) -> Any:
    _shown.append(text)
    if not _announced:
        _fail(f"a dialog that the test did not announce ({kind}): {text}")
    if _announced[0].kind != kind:
        _fail(f"the test announced another dialog ({_announced[0].kind}) before this one ({kind}): {text}")
    return _announced.pop(0).answer


def _fail(text: str) -> None:
    # Recorded as well, because code under test may catch the exception.
    problems.record("dialog", text)
    raise AssertionError(text)


def _refuse(name: str) -> Any:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        _shown.append(name)
        _fail(f"{name}: the stand-in has no such dialog")

    return refuse


def _exec_message(box: Any) -> int:
    text = "\n".join(part for part in (box.text, box.informativeText) if part)
    answer = _next("message", text)
    button = _button(box, answer, text)
    # Clicked at once instead of in an event loop of the dialog: what called deleteLater() on the box beforehand, as
    # slicer.util does, would delete it as soon as such a loop runs without the application's own around it.
    _show(box)
    button.click()
    return box.result()


def _button(box: Any, answer: Any, text: str) -> Any:
    texts = [one.text.replace("&", "") for one in box.buttons()]
    if not texts:
        # As QMessageBox does itself when it is shown without a button.
        box.addButton(_QBox.StandardButton.Ok)
        texts = [one.text.replace("&", "") for one in box.buttons()]
    if isinstance(answer, str):
        found = [one for one in box.buttons() if one.text.replace("&", "") == answer]
    else:
        found = [one for one in (box.button(_QBox.StandardButton(answer)),) if one is not None]
    if not found or not found[0].enabled:
        _fail(f"the message has no button {answer!r} to click, only {texts}: {text}")
    return found[0]


def _exec_dialog(dialog: Any) -> int:
    title = dialog.windowTitle or dialog.objectName or type(dialog).__name__
    act = _next("dialog", title)
    _show(dialog)
    act(dialog)
    if dialog.visible:
        _fail(f"the test's answer left the dialog open: {title}")
    return dialog.result()


def _show_dialog(dialog: Any) -> None:
    if dialog.isModal():
        _shown.append(dialog.windowTitle)
        _fail(f"a modal dialog is shown without exec(), which the stand-in cannot answer: {dialog.windowTitle}")
    _show(dialog)


def _static_message(icon: Any) -> Any:
    kinds = _QBox.StandardButton
    usual = kinds.Yes | kinds.No if icon == _QBox.Icon.Question else kinds.Ok

    def ask(parent: Any, title: str, text: str, buttons: Any = None, default: Any = None) -> Any:
        box = _QBox(parent)
        box.icon, box.windowTitle, box.text = icon, title, text
        box.standardButtons = buttons or usual
        if default is not None:
            box.setDefaultButton(default)
        return kinds(_exec_message(box))

    return ask


def _browser(kind: str, usual_caption: str) -> Any:
    def browse(_parent: Any = None, caption: str = "", _folder: str = "", *_rest: Any, **_options: Any) -> Any:
        text = caption or usual_caption
        answer = _next(kind, text)
        paths = [str(one) for one in (answer if kind == "open files" else [answer]) if str(one)]
        for path in paths:
            _check_choice(kind, Path(path), text)
        # PythonQt leaves out the chosen filter, which PySide6 returns as the second part of a tuple.
        return tuple(paths) if kind == "open files" else "".join(paths)

    return browse


def _open_url(url: Any) -> bool:
    text = url.toLocalFile() or url.toString()
    is_gone = url.isLocalFile() and not Path(text).exists()
    if is_gone:
        _fail(f"no program could open {text}: it is not there")
    return bool(_next("desktop", text))


def _check_choice(kind: str, path: Path, text: str) -> None:
    if kind == "folder":
        is_possible = path.is_dir()
    elif kind == "save file":
        is_possible = path.parent.is_dir()
    else:
        is_possible = path.is_file()
    if not is_possible:
        _fail(f"nobody could choose {path} in this dialog ({kind}), it is not there: {text}")
