"""Rows in which settings are changed: a title, something to type in or to choose from, and a line of help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import qt
from slicer.i18n import tr as _

from HybridMIMLib.glossary import TERMS
from HybridMIMLib.slicer_side.panels.explained import explain_choices, explained_setting
from HybridMIMLib.slicer_side.plan_choices import Setting

# Readable on Slicer's light and on its dark style.
_HELP_STYLE, _CHANGED_STYLE = "color: #808080;", "font-weight: bold;"
_TITLE_WIDTH = 130


class SettingRows:
    """Rows of a widget, two lines each.

    Args:
        parent: the widget, with a layout to which the rows are added.
        settings: one a row.
        prefix: of the names of the widgets.
        on_edit: called with a setting and the text that somebody typed or chose, and not when a value is shown.

    Attributes:
        editors: widgets by name of the setting.
        titles: labels by name of the setting; bold where a value was changed.
    """

    def __init__(
        self, parent: Any, settings: Sequence[Setting], prefix: str, on_edit: Callable[[Setting, str], None]
    ) -> None:
        self._settings, self._on_edit = settings, on_edit
        self.editors: dict[str, Any] = {}
        self.titles: dict[str, Any] = {}
        self._grid = qt.QGridLayout()
        self._grid.setColumnMinimumWidth(0, _TITLE_WIDTH)
        self._grid.setColumnStretch(1, 1)
        parent.layout().addLayout(self._grid)
        for number, one in enumerate(settings):
            self._add(2 * number, one, f"{prefix}{''.join(p.capitalize() for p in one.name.split('.'))}")

    def show(self, value_of: Callable[[str], Any]) -> None:
        """Show values; ``value_of`` gives that of a setting by its name."""
        for one in self._settings:
            self._show(one, value_of(one.name))

    def mark(self, is_changed: Callable[[str], bool], before: Callable[[str], Any]) -> None:
        """Show which values were changed, and what they were before."""
        for one in self._settings:
            style = _CHANGED_STYLE if is_changed(one.name) else ""
            if self.titles[one.name].styleSheet != style:
                self.titles[one.name].styleSheet = style
            text = one.show(before(one.name)) or _("automatic")
            changed, name = (
                _("Changed; it was: {value}").format(value=text),
                _("Setting {name}").format(name=one.name),
            )
            self.titles[one.name].toolTip = explained_setting(changed if style else name, one.name)

    def _add(self, row: int, one: Setting, name: str) -> None:
        title, text = qt.QLabel(_(one.title) + ":"), qt.QLabel(_(one.help))
        title.objectName, text.objectName = f"{name}Title", f"{name}Help"
        text.setWordWrap(True)
        text.setTextFormat(qt.Qt.PlainText)
        text.setStyleSheet(_HELP_STYLE)
        editor = _MAKERS[one.kind](one, partial(self._on_edit, one))
        editor.objectName = name
        editor.setToolTip(explained_setting(_(one.help), one.name))
        self._grid.addWidget(title, row, 0)
        self._grid.addWidget(editor, row, 1)
        self._grid.addWidget(text, row + 1, 0, 1, 2)
        self.editors[one.name], self.titles[one.name] = editor, title

    def _show(self, one: Setting, value: Any) -> None:
        editor = self.editors[one.name]
        if one.kind == "switch":
            editor.checked = bool(value)
        elif one.kind == "choice":
            editor.setCurrentIndex(_choices(one).index(value) if value in _choices(one) else -1)
        else:
            editor.text = one.show(value)


def _choices(one: Setting) -> list[str | None]:
    return [None, *one.choices] if one.optional else list(one.choices)


def _choice(one: Setting, on_edit: Callable[[str], None]) -> Any:
    combo = qt.QComboBox()
    for choice in _choices(one):
        combo.addItem(choice if choice is not None else _("automatic"))
    explain_choices(combo, [choice if choice in TERMS else None for choice in _choices(one)])
    combo.connect("activated(int)", lambda number: on_edit(_choices(one)[number] or ""))
    return combo


def _switch(one: Setting, on_edit: Callable[[str], None]) -> Any:
    box = qt.QCheckBox()
    box.connect("clicked(bool)", lambda is_on: on_edit("true" if is_on else "false"))
    return box


def _line(one: Setting, on_edit: Callable[[str], None]) -> Any:
    line = qt.QLineEdit()
    line.placeholderText = _("automatic") if one.optional else ""
    line.connect("textEdited(QString)", on_edit)
    return line


_MAKERS: dict[str, Callable[[Setting, Callable[[str], None]], Any]] = {
    "choice": _choice,
    "switch": _switch,
    "text": _line,
}
