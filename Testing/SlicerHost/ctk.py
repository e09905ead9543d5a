"""The module ``ctk``: the widgets of CTK that our panels use, with CTK's own names."""

from __future__ import annotations

import re
import sys
import types
from typing import Any, ClassVar

from PySide6 import QtCore, QtGui, QtWidgets

from .pythonqt import strict
from .ui_files import register

_HISTORY = 5
_ON_PURPOSE = QtCore.Qt.WidgetAttribute.WA_WState_ExplicitShowHide


def install() -> types.ModuleType:
    """Make ``import ctk`` work."""
    if "ctk" not in sys.modules:
        sys.modules["ctk"] = _CtkModule()
    return sys.modules["ctk"]


class _CtkModule(types.ModuleType):
    def __init__(self) -> None:
        super().__init__("ctk", "The widgets of CTK that the stand-in has")
        self.__dict__.update({one.__name__: one for one in (ctkCollapsibleButton, ctkPathLineEdit, ctkMessageBox)})

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"ctk.{name}: the stand-in has no such name")


@register
class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    """A header that shows and hides what is below it; being checked and being collapsed are opposites."""

    contentsCollapsed = QtCore.Signal(bool)
    SIGNATURES: ClassVar[dict[str, str]] = {"contentsCollapsed(bool)": "contentsCollapsed"}

    def __init__(self, text: Any = "", parent: Any = None) -> None:
        if not isinstance(text, str):
            text, parent = "", text
        super().__init__(parent)
        self._hidden_by_us: list[Any] = []
        self._collapsed_height = 10
        self._height_when_open = self.maximumHeight
        self.setText(text)
        self.setCheckable(True)
        self.setChecked(True)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Minimum, QtWidgets.QSizePolicy.Policy.Preferred)
        self.setContentsMargins(0, self._header().height(), 0, 0)
        self.toggled.connect(self._on_toggled)

    def setCollapsed(self, collapsed: bool) -> None:
        """Hide or show the contents."""
        self.setChecked(not collapsed)

    def setCollapsedHeight(self, height: int) -> None:
        """How much space stays below the header of a collapsed one."""
        self._collapsed_height = height
        self.updateGeometry()

    collapsed = QtCore.Property(bool, lambda self: not self.isChecked(), setCollapsed)
    collapsedHeight = QtCore.Property(int, lambda self: self._collapsed_height, setCollapsedHeight)

    def sizeHint(self) -> QtCore.QSize:
        """The header, and what is below it unless collapsed."""
        closed = self._header() + QtCore.QSize(0, self._collapsed_height)
        return closed if self.collapsed else super().sizeHint().expandedTo(closed)

    def minimumSizeHint(self) -> QtCore.QSize:
        """What the contents need at least."""
        if self.collapsed:
            return self.sizeHint()
        return super().minimumSizeHint().expandedTo(self._header())

    def hitButton(self, position: QtCore.QPoint) -> bool:
        """Only the header takes clicks."""
        return self.rect.contains(position) and position.y() < self._header().height()

    def childEvent(self, event: QtCore.QChildEvent) -> None:
        """Watch the contents, because some may be added or shown while they are collapsed."""
        if event.added() and event.child().isWidgetType():
            event.child().installEventFilter(self)
        super().childEvent(event)

    def eventFilter(self, watched: QtCore.QObject, event: QtCore.QEvent) -> bool:
        """What is shown while collapsed stays hidden until the contents come back."""
        if event.type() == QtCore.QEvent.Type.ShowToParent and self.collapsed:
            self._hide(watched)
        return False

    def paintEvent(self, _event: QtGui.QPaintEvent) -> None:
        """The header with its arrow."""
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        height = self._header().height()
        option.rect = QtCore.QRect(0, 0, self.width, height)
        painter = QtGui.QPainter(self)
        self.style().drawControl(QtWidgets.QStyle.ControlElement.CE_PushButtonBevel, option, painter, self)
        alignment = QtCore.Qt.AlignmentFlag.AlignVCenter | QtCore.Qt.AlignmentFlag.AlignLeft
        painter.drawText(option.rect.adjusted(height, 0, -4, 0), alignment, self.text)
        arrows = QtWidgets.QStyle.PrimitiveElement
        arrow = arrows.PE_IndicatorArrowRight if self.collapsed else arrows.PE_IndicatorArrowDown
        option.rect = QtCore.QRect(height // 4, height // 4, height // 2, height // 2)
        self.style().drawPrimitive(arrow, option, painter, self)
        painter.end()

    def _header(self) -> QtCore.QSize:
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        text = self.fontMetrics().size(QtCore.Qt.TextFlag.TextShowMnemonic, self.text or "X")
        text += QtCore.QSize(text.height(), 0)
        return self.style().sizeFromContents(QtWidgets.QStyle.ContentsType.CT_PushButton, option, text, self)

    def _on_toggled(self, is_open: bool) -> None:
        if is_open:
            self.setMaximumHeight(self._height_when_open)
            self._show_contents()
        else:
            # As CTK does, whatever the size policy: nothing stretches a closed one.
            self._height_when_open = self.maximumHeight
            self.setMaximumHeight(self.sizeHint().height())
            for child in self._contents():
                # What somebody hid on purpose stays hidden when the contents come back.
                if not (child.isHidden() and child.testAttribute(_ON_PURPOSE)):
                    self._hide(child)
        self.updateGeometry()
        self.contentsCollapsed.emit(not is_open)

    def _contents(self) -> list[Any]:
        return [one for one in self.children() if one.isWidgetType() and not one.isWindow()]

    def _hide(self, child: Any) -> None:
        child.hide()
        # Without this mark, somebody's hiding it while it is collapsed can be told from this hiding.
        child.setAttribute(_ON_PURPOSE, False)
        if child not in self._hidden_by_us:
            self._hidden_by_us.append(child)

    def _show_contents(self) -> None:
        hidden, self._hidden_by_us = self._hidden_by_us, []
        present = self._contents()
        for child in hidden:
            if child in present and not child.testAttribute(_ON_PURPOSE):
                child.show()
                child.setAttribute(_ON_PURPOSE, False)


@register
class ctkPathLineEdit(QtWidgets.QWidget):
    """A path to type or to browse for, with the last ones in a list."""

    currentPathChanged = QtCore.Signal(str)
    validInputChanged = QtCore.Signal(bool)
    SIGNATURES: ClassVar[dict[str, str]] = {
        "currentPathChanged(QString)": "currentPathChanged",
        "validInputChanged(bool)": "validInputChanged",
    }

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        kinds = QtCore.QDir.Filter
        self._filters = (kinds.AllEntries | kinds.NoDotAndDotDot | kinds.Readable | kinds.Executable).value
        self._name_filters: list[str] = []
        self._setting_key = ""
        self._label = ""
        self._is_valid = False
        self._combo: Any = None
        self._line: Any = None
        self._validator = QtGui.QRegularExpressionValidator(self)
        self._browse_button = QtWidgets.QToolButton(self)
        self._browse_button.setText("...")
        self._browse_button.setToolTip("Open a dialog")
        self._browse_button.clicked.connect(self.browse)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self._browse_button)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)
        self.setNameFilters([])
        self.setShowHistoryButton(True)

    def setShowHistoryButton(self, is_shown: bool) -> None:
        """Whether there is a list of the last paths; another line to type in is made for that."""
        path = self._line.text if self._line else ""
        if self._line:
            old = self._combo or self._line
            self.layout().removeWidget(old)
            old.deleteLater()
            old.hide()
        self._combo = QtWidgets.QComboBox(self) if is_shown else None
        if self._combo:
            self._combo.setEditable(True)
            self._combo.setInsertPolicy(QtWidgets.QComboBox.InsertPolicy.NoInsert)
        self._line = self._combo.lineEdit() if self._combo else QtWidgets.QLineEdit(self)
        self._line.setValidator(self._validator)
        self.layout().insertWidget(0, self._combo or self._line, 1)
        self._retrieve_history()
        self._line.setText(path)
        self._line.textChanged.connect(self._on_text)

    def setCurrentPath(self, path: str) -> None:
        """Show a path; it need not exist."""
        self._line.setText(path)

    def browse(self) -> None:
        """Let the user choose, as the button does; the label does not appear there."""
        path, files = self.currentPath, QtWidgets.QFileDialog
        if not self._filters & self.Files:
            chosen = files.getExistingDirectory(self, "Select a directory...", path)
        elif self._filters & self.Writable:
            chosen = files.getSaveFileName(self, "Select a file to save ", path, ";;".join(self._name_filters))
        else:
            chosen = files.getOpenFileName(self, "Open a file", path, ";;".join(self._name_filters))
        if chosen:
            self.setCurrentPath(chosen)

    def addCurrentPathToHistory(self) -> None:
        """Put the path on top of the list that the settings keep."""
        path = self.currentPath
        if self._combo is None or not path:
            return
        QtCore.QSettings().setValue(self._key(), [path, *(one for one in self._stored() if one != path)])
        # Removed and put back like this, the path changes in between, and so say the signals: CTK's do, too.
        if (index := self._combo.findText(path)) >= 0:
            self._combo.removeItem(index)
        while self._combo.count >= _HISTORY:
            self._combo.removeItem(self._combo.count - 1)
        self._combo.insertItem(0, path)
        self._combo.setCurrentIndex(0)

    def setFilters(self, filters: int) -> None:
        """Whether files or folders are meant: it decides what Browse opens, and nothing else."""
        self._filters = int(filters)

    def setNameFilters(self, filters: Any) -> None:
        """Like "Model packages (*.zip)"; a path that fits none of them is not valid."""
        self._name_filters = list(filters)
        endings = [one for text in filters for one in re.findall(r"\*\.(\w+)", text)]
        # Only the first part of a double ending counts, so "*.nii.gz" takes no "a.nii.gz": CTK's manner. Without
        # filters anything but nothing is valid, and whether it exists is never asked.
        pattern = "|".join(f".*\\.{one}?$" for one in endings)
        self._validator.setRegularExpression(QtCore.QRegularExpression(f"({pattern})" if endings else ".+"))

    def setSettingKey(self, key: str) -> None:
        """Under which name the settings keep the list; its first path appears where there was none."""
        self._setting_key = key
        self._retrieve_history()

    def setLabel(self, label: str) -> None:
        self._label = label

    def setShowBrowseButton(self, is_shown: bool) -> None:
        self._browse_button.setVisible(is_shown)

    def comboBox(self) -> Any:
        """The list of the last paths, None when there is none."""
        return self._combo

    currentPath = QtCore.Property(str, lambda self: self._line.text, setCurrentPath)
    filters = QtCore.Property(int, lambda self: self._filters, setFilters)
    nameFilters = QtCore.Property("QStringList", lambda self: tuple(self._name_filters), setNameFilters)
    settingKey = QtCore.Property(str, lambda self: self._setting_key, setSettingKey)
    label = QtCore.Property(str, lambda self: self._label, setLabel)
    showBrowseButton = QtCore.Property(bool, lambda self: not self._browse_button.isHidden(), setShowBrowseButton)
    showHistoryButton = QtCore.Property(bool, lambda self: self._combo is not None, setShowHistoryButton)

    def _key(self) -> str:
        return f"ctkPathLineEdit/{self._setting_key or self.objectName}"

    def _stored(self) -> list[str]:
        stored = QtCore.QSettings().value(self._key())
        # Settings files give back a list of one as that one.
        return [stored] if isinstance(stored, str) else list(stored or [])

    def _retrieve_history(self) -> None:
        if self._combo is None:
            return
        path = self._line.text
        # Nobody is told of the path that appears with the list: it is there as soon as the first row is.
        self.blockSignals(True)
        self._combo.clear()
        self._combo.addItems(self._stored()[:_HISTORY])
        if path:
            self._line.setText(path)
        self.blockSignals(False)

    def _on_text(self, path: str) -> None:
        was_valid, self._is_valid = self._is_valid, self._line.hasAcceptableInput()
        # Nothing is told of a path that is not valid, so emptying the line tells validInputChanged(bool) only.
        if self._is_valid:
            self.currentPathChanged.emit(path)
        if self._is_valid != was_valid:
            self.validInputChanged.emit(self._is_valid)


for _name, _kind in QtCore.QDir.Filter.__members__.items():
    # CTK repeats QDir's names and numbers: ctkPathLineEdit.Dirs and so on.
    setattr(ctkPathLineEdit, _name, _kind.value)


@strict
class ctkMessageBox(QtWidgets.QMessageBox):
    """What ``slicer.util`` shows messages with."""

    def _cannot(self, value: object) -> None:
        raise NotImplementedError("ctkMessageBox: the stand-in lacks its 'do not show again'")

    dontShowAgainSettingsKey = QtCore.Property(str, lambda self: "", _cannot)
    dontShowAgainVisible = QtCore.Property(bool, lambda self: False, _cannot)
