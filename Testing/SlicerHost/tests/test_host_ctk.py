"""CTK's widgets, with CTK's oddities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ctk
import pytest
import qt
from PySide6 import QtCore, QtTest
from SlicerHost import dialogs, problems


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path) -> Iterator[None]:
    dialogs.forget()
    application = QtCore.QCoreApplication.instance()
    before = application.organizationName, application.applicationName
    application.organizationName, application.applicationName = "SlicerHostTest", "ctk"
    qt.QSettings().clear()
    yield
    qt.QSettings().clear()
    application.organizationName, application.applicationName = before
    assert problems.take() == []


def _section() -> tuple[Any, Any, Any]:
    section = ctk.ctkCollapsibleButton("Advanced")
    layout = qt.QVBoxLayout(section)
    first, second = qt.QLabel("first"), qt.QLabel("second")
    layout.addWidget(first)
    layout.addWidget(second)
    return section, first, second


def test_names_that_the_stand_in_lacks_are_refused() -> None:
    with pytest.raises(AttributeError, match=r"ctk\.ctkRangeWidget"):
        _ = ctk.ctkRangeWidget
    with pytest.raises(ImportError, match="ctkCheckBox"):
        from ctk import ctkCheckBox  # noqa: F401


def test_unknown_attributes_are_refused() -> None:
    for one in (ctk.ctkCollapsibleButton(), ctk.ctkPathLineEdit()):
        with pytest.raises(AttributeError, match="colapsed"):
            one.colapsed = True


def test_collapsing_hides_the_contents() -> None:
    section, first, second = _section()
    section.show()
    tall = section.sizeHint().height()
    calls: list[bool] = []
    section.connect("contentsCollapsed(bool)", calls.append)
    section.collapsed = True
    assert not first.visible and not second.visible and not section.checked
    assert section.sizeHint().height() < tall and section.maximumHeight < tall
    section.checked = True
    assert first.visible and second.visible and not section.collapsed
    assert calls == [True, False] and section.maximumHeight > tall


def test_collapsed_before_it_is_shown_and_before_it_has_contents() -> None:
    section = ctk.ctkCollapsibleButton()
    section.collapsed = True
    layout, label = qt.QVBoxLayout(section), qt.QLabel("late")
    layout.addWidget(label)
    section.show()
    QtCore.QCoreApplication.processEvents()
    assert not label.visible
    section.collapsed = False
    assert label.visible


def test_what_was_hidden_on_purpose_stays_hidden() -> None:
    section, first, second = _section()
    section.show()
    first.hide()
    section.collapsed = True
    second.visible = False
    section.collapsed = False
    assert not first.visible and not second.visible


def test_what_is_shown_while_collapsed_appears_later() -> None:
    section, first, second = _section()
    section.show()
    first.hide()
    section.collapsed = True
    first.show()
    assert not first.visible
    section.collapsed = False
    assert first.visible and second.visible


def test_only_the_header_takes_clicks() -> None:
    section, _first, second = _section()
    section.show()
    section.resize(200, 200)
    QtTest.QTest.mouseClick(section, qt.Qt.LeftButton, pos=QtCore.QPoint(20, section.height - 2))
    assert not section.collapsed
    QtTest.QTest.mouseClick(section, qt.Qt.LeftButton, pos=QtCore.QPoint(20, 5))
    assert section.collapsed and not second.visible


def test_a_collapsible_button_is_painted() -> None:
    section, _first, _second = _section()
    image = section.grab().toImage()
    colours = {image.pixel(x, y) for x in range(image.width()) for y in range(0, 20)}
    assert len(colours) > 3


def test_a_path_is_typed() -> None:
    edit, paths, valid = ctk.ctkPathLineEdit(), [], []
    edit.connect("currentPathChanged(QString)", paths.append)
    edit.connect("validInputChanged(bool)", valid.append)
    edit.currentPath = "/no/such/path"
    assert edit.currentPath == "/no/such/path" and paths == ["/no/such/path"] and valid == [True]
    # CTK tells nobody of the path when there is none any more.
    edit.currentPath = ""
    assert paths == ["/no/such/path"] and valid == [True, False]
    QtTest.QTest.keyClicks(edit.comboBox().lineEdit(), "/ab")
    assert edit.currentPath == "/ab" and paths[1:] == ["/", "/a", "/ab"]
    with pytest.raises(TypeError):
        edit.currentPath = Path("/a")


def test_name_filters_decide_what_is_valid() -> None:
    edit, valid = ctk.ctkPathLineEdit(), []
    edit.nameFilters = ["Model packages (*.zip *.hmim)"]
    edit.connect("validInputChanged(bool)", valid.append)
    for path in ("/a/b.zip", "/a/b.txt", "/a/b.hmim"):
        edit.currentPath = path
    assert valid == [True, False, True] and edit.nameFilters == ("Model packages (*.zip *.hmim)",)


def _browse(edit: Any) -> None:
    next(one for one in edit.children() if one.inherits("QToolButton")).click()


def test_browsing_opens_what_the_filters_say(tmp_path: Path) -> None:
    edit = ctk.ctkPathLineEdit()
    there = tmp_path / "a.txt"
    there.write_text("")
    dialogs.announce("open file", there)
    _browse(edit)
    assert edit.currentPath == str(there)
    edit.filters = edit.Files | edit.Writable
    dialogs.announce("save file", tmp_path / "new.txt")
    _browse(edit)
    assert edit.currentPath == str(tmp_path / "new.txt")
    edit.filters = ctk.ctkPathLineEdit.Dirs
    dialogs.announce("folder", tmp_path)
    _browse(edit)
    assert edit.currentPath == str(tmp_path)
    dialogs.announce("folder", "")
    _browse(edit)
    assert edit.currentPath == str(tmp_path)


def test_an_unannounced_browser_is_a_problem() -> None:
    _browse(ctk.ctkPathLineEdit())
    assert "dialog" in {one.kind for one in problems.take()}


def test_the_history_is_kept_in_the_settings() -> None:
    edit = ctk.ctkPathLineEdit()
    edit.settingKey = "Test/Folder"
    for path in ("/1", "/2", "/3", "/1", "/4", "/5", "/6"):
        edit.currentPath = path
        edit.addCurrentPathToHistory()
        assert edit.currentPath == path
    other, paths = ctk.ctkPathLineEdit(), []
    other.connect("currentPathChanged(QString)", paths.append)
    other.settingKey = "Test/Folder"
    combo = other.comboBox()
    assert [combo.itemText(index) for index in range(combo.count)] == ["/6", "/5", "/4", "/1", "/3"]
    # The last one appears by itself, and CTK tells nobody.
    assert other.currentPath == "/6" and paths == []
    typed = ctk.ctkPathLineEdit()
    typed.currentPath = "/typed"
    typed.settingKey = "Test/Folder"
    assert typed.currentPath == "/typed"


def test_without_a_history_button_it_is_a_plain_line() -> None:
    edit = ctk.ctkPathLineEdit()
    edit.currentPath = "/a"
    edit.showHistoryButton = False
    paths: list[str] = []
    edit.connect("currentPathChanged(QString)", paths.append)
    assert edit.comboBox() is None and edit.currentPath == "/a"
    edit.currentPath = "/b"
    edit.addCurrentPathToHistory()
    assert paths == ["/b"] and qt.QSettings().allKeys() == []
    edit.showHistoryButton = True
    assert edit.currentPath == "/b"


def test_the_browse_button_can_be_left_out() -> None:
    edit = ctk.ctkPathLineEdit()
    edit.showBrowseButton = False
    edit.show()
    assert not edit.showBrowseButton
    assert not any(one.visible for one in edit.children() if one.inherits("QToolButton"))


def test_a_message_box_cannot_be_silenced() -> None:
    with pytest.raises(NotImplementedError, match="do not show again"):
        ctk.ctkMessageBox().dontShowAgainSettingsKey = "Test/Silent"
