"""Dialogs get the announced answers through their real buttons; others raise instead of hanging."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ctk
import pytest
import qt
import slicer.util
from SlicerHost import dialogs, problems


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    dialogs.forget()
    problems.take()
    yield
    dialogs.forget()
    problems.take()


def _box(*buttons: Any) -> Any:
    box = qt.QMessageBox()
    box.text, box.informativeText = "Go on?", "It takes long."
    for one in buttons:
        box.addButton(*one) if isinstance(one, tuple) else box.addButton(one)
    return box


@pytest.mark.parametrize("name", ["exec", "exec_"])
def test_a_message_is_answered_by_the_text_of_a_button(name: str) -> None:
    box = _box(qt.QMessageBox.Ok, qt.QMessageBox.Cancel)
    dialogs.announce("message", "Cancel")
    assert getattr(box, name)() == qt.QMessageBox.Cancel
    assert dialogs.shown() == ["Go on?\nIt takes long."] and dialogs.unanswered() == []
    assert not box.visible


def test_a_message_is_answered_by_a_standard_button() -> None:
    dialogs.announce("message", qt.QMessageBox.Yes)
    assert qt.QMessageBox.question(None, "Title", "Sure?") == qt.QMessageBox.Yes
    dialogs.announce("message", "OK")
    assert qt.QMessageBox.warning(None, "Title", "Careful!") == qt.QMessageBox.Ok
    assert dialogs.shown() == ["Sure?", "Careful!"]


def test_buttons_of_one_s_own_can_be_told_apart() -> None:
    box = _box(("&Repair", qt.QMessageBox.AcceptRole), ("Remove", qt.QMessageBox.DestructiveRole))
    dialogs.announce("message", "Repair")
    box.exec_()
    assert box.clickedButton().text == "&Repair"


def test_a_message_without_buttons_has_an_ok() -> None:
    dialogs.announce("message", "OK")
    assert _box().exec_() == qt.QMessageBox.Ok


def test_a_message_that_is_to_be_deleted_later_is_still_answered() -> None:
    box = ctk.ctkMessageBox(None)
    box.text = "Go on?"
    box.standardButtons = qt.QMessageBox.Ok | qt.QMessageBox.Cancel
    box.deleteLater()
    dialogs.announce("message", "OK")
    assert box.exec_() == qt.QMessageBox.Ok


def test_a_button_that_is_not_there_cannot_be_clicked() -> None:
    dialogs.announce("message", "Maybe")
    with pytest.raises(AssertionError, match=r"no button 'Maybe'.*OK"):
        _box(qt.QMessageBox.Ok).exec_()
    box = _box(qt.QMessageBox.Ok)
    box.button(qt.QMessageBox.Ok).enabled = False
    dialogs.announce("message", "OK")
    with pytest.raises(AssertionError, match="no button 'OK'"):
        box.exec_()


def test_an_unannounced_message_raises_and_is_a_problem() -> None:
    with pytest.raises(AssertionError, match="Go on?"):
        _box(qt.QMessageBox.Ok).exec_()
    (problem,) = problems.take()
    assert problem.kind == "dialog" and "Go on?" in problem.text
    assert dialogs.shown() == ["Go on?\nIt takes long."]


def test_an_unannounced_message_in_a_slot_is_a_problem() -> None:
    button = qt.QPushButton()
    button.connect("clicked()", lambda: qt.QMessageBox.critical(None, "Title", "Broken"))
    button.click()
    assert "dialog" in {one.kind for one in problems.take()}


def test_answers_come_in_the_order_of_their_announcement(tmp_path: Path) -> None:
    dialogs.announce("message", "OK")
    dialogs.announce("folder", tmp_path)
    with pytest.raises(AssertionError, match="another dialog"):
        qt.QFileDialog.getExistingDirectory(None, "Folder?")
    assert [one.kind for one in dialogs.unanswered()] == ["message", "folder"]


def test_kinds_that_do_not_exist_cannot_be_announced() -> None:
    with pytest.raises(ValueError, match="massage"):
        dialogs.announce("massage", "OK")


def test_file_browsers_give_what_was_announced(tmp_path: Path) -> None:
    there = tmp_path / "a ř.txt"
    there.write_text("")
    for kind, answer in (("folder", tmp_path), ("open file", there), ("open files", [there]), ("folder", ""),
                         ("save file", tmp_path / "new.txt")):  # fmt: skip
        dialogs.announce(kind, answer)
    assert qt.QFileDialog.getExistingDirectory() == str(tmp_path)
    assert qt.QFileDialog.getOpenFileName(None, "Open", "", "Text (*.txt)") == str(there)
    assert qt.QFileDialog.getOpenFileNames(None, "Open") == (str(there),)
    assert qt.QFileDialog.getExistingDirectory(None, "Folder", "/") == ""
    assert qt.QFileDialog.getSaveFileName(None, "Save") == str(tmp_path / "new.txt")


@pytest.mark.parametrize(
    ("kind", "name"),
    [("folder", "getExistingDirectory"), ("open file", "getOpenFileName"), ("save file", "getSaveFileName")],
)
def test_nobody_chooses_what_is_not_there(tmp_path: Path, kind: str, name: str) -> None:
    dialogs.announce(kind, tmp_path / "missing" / "file")
    with pytest.raises(AssertionError, match="not there"):
        getattr(qt.QFileDialog, name)(None, "Choose")
    with pytest.raises(AssertionError, match="Choose"):
        getattr(qt.QFileDialog, name)(None, "Choose")


def test_what_is_opened_on_the_desktop_is_announced_too(tmp_path: Path) -> None:
    dialogs.announce("desktop", True)
    assert qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(tmp_path))) is True
    assert dialogs.shown() == [str(tmp_path)]
    with pytest.raises(AssertionError, match="did not announce"):
        qt.QDesktopServices.openUrl(qt.QUrl("https://example.org/page"))
    dialogs.announce("desktop", True)
    with pytest.raises(AssertionError, match="not there"):
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(tmp_path / "gone")))


def test_a_dialog_of_one_s_own_is_used_by_the_test() -> None:
    dialog = qt.QDialog()
    dialog.windowTitle = "Settings"
    line = qt.QLineEdit(dialog)

    def act(shown: Any) -> None:
        assert shown.visible
        line.text = "typed"
        shown.accept()

    dialogs.announce("dialog", act)
    assert dialog.exec_() == qt.QDialog.Accepted and line.text == "typed"
    dialogs.announce("dialog", lambda shown: None)
    with pytest.raises(AssertionError, match="left the dialog open"):
        dialog.exec_()
    dialog.close()


def test_questions_of_slicers_own(host: Any) -> None:
    dialogs.announce("message", "OK")
    dialogs.announce("message", "Cancel")
    assert slicer.util.confirmOkCancelDisplay("Sure?") is True
    assert slicer.util.confirmOkCancelDisplay("Really?", windowTitle="Delete") is False
    dialogs.announce("message", "OK")
    slicer.util.errorDisplay("It broke.", detailedText="Here and there.")
    assert dialogs.shown() == ["Sure?", "Really?", "It broke."]
    with pytest.raises(AssertionError, match="Unasked"):
        slicer.util.confirmOkCancelDisplay("Unasked")
    assert problems.take()


@pytest.mark.parametrize(
    "use",
    [
        lambda: qt.QDialog().exec_(),
        lambda: qt.QDialog().open(),
        lambda: qt.QMessageBox().open(),
        lambda: qt.QFileDialog().exec_(),
        lambda: qt.QInputDialog.getText(None, "Name", "Name:"),
        lambda: qt.QColorDialog.getColor(),
        lambda: qt.QMessageBox.about(None, "About", "us"),
        lambda: qt.QMenu().exec_(),
        lambda: qt.QProgressDialog().exec_(),
    ],
)
def test_every_other_way_of_opening_one_raises(use: Any) -> None:
    with pytest.raises(AssertionError):
        use()
    assert problems.take()


def test_a_modal_dialog_that_is_only_shown_raises_and_another_does_not() -> None:
    dialog = qt.QDialog()
    dialog.show()
    assert dialog.visible
    dialog.close()
    dialog.modal = True
    with pytest.raises(AssertionError, match="modal"):
        dialog.show()
