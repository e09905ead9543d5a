"""A segmentation after it was made: its volumes, what was not found, surfaces, what made it, backup, DICOM SEG.

All of it is read from the scene, so it is there again when the scene is loaded.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from HybridMIMLib.errors import HybridMIMError
from HybridMIMLib.slicer_side.correcting import volume_of
from HybridMIMLib.slicer_side.dicom_seg import why_no_dicom_seg, write_dicom_seg
from HybridMIMLib.slicer_side.jobs import Work
from HybridMIMLib.slicer_side.panels.explained import explain_heads
from HybridMIMLib.slicer_side.panels.output_section import color_icon
from HybridMIMLib.slicer_side.panels.widgets import allow, say, show
from HybridMIMLib.slicer_side.provenance import MadeBy, made_by
from HybridMIMLib.slicer_side.results import BACKUP_OF, backups, browser_of, restore
from HybridMIMLib.slicer_side.segment_table import add_table, measure, tables_of, why_no_dice
from HybridMIMLib.slicer_side.segments import Node
from HybridMIMLib.slicer_side.sequences import restore_sequence
from HybridMIMLib.slicer_side.step_work import StepWork
from HybridMIMLib.slicer_side.steps import Steps
from HybridMIMLib.slicer_side.surfaces import show_in_3d

_MOST_ROWS = 300
"""Of a table that are shown; the table node has all."""
_ROWS_AT_ONCE = 10
_SEQUENCE = "vtkMRMLSequenceNode"


@dataclass(frozen=True)
class TableText:
    """A table node in words.

    Attributes:
        titles: of the columns.
        rows: what stands in the cells.
        more: rows that were left out.
        empty: names of the segments without a voxel, in any item.
    """

    titles: list[str]
    rows: list[list[str]]
    more: int
    empty: list[str]


class ResultSection:
    """Binds the widgets of ``resultSection``.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them.
        follow: shows work that takes a while.
        tell: shows a sentence to the user; the second argument says whether it is an error.
        on_change: called when the segmentation has become another one.
    """

    def __init__(
        self,
        ui: Any,
        follow: Callable[[Work], None],
        tell: Callable[[str, bool], None],
        on_change: Callable[[], None],
    ) -> None:
        self._ui, self._follow, self._tell, self._on_change = ui, follow, tell, on_change
        self._node: Node | None = None
        self._reference: Node | None = None
        self._shown: tuple[Any, ...] = ()
        self._dicom_of: Node | None = None
        self._why_no_dicom = ""
        ui.show3DButton.connect("clicked(bool)", self._show_in_3d)
        ui.measureButton.connect("clicked(bool)", lambda _checked: self._measure())
        ui.restoreButton.connect("clicked(bool)", self._restore)
        ui.dicomButton.connect("clicked(bool)", self._export)
        ui.madeByButton.connect("toggled(bool)", lambda _checked: self._show_made_by())
        ui.resultTable.verticalHeader().setVisible(False)

    def show(self, node: Node | None, reference: Node | None) -> None:
        """Show a segmentation, or that none is chosen.

        Args:
            reference: to compare with when it is measured again, or None.
        """
        self._node, self._reference = node, reference if reference is not node else None
        if node is None:
            text = _("No segmentation is chosen: press Apply to make one, or choose one above.")
        elif not tables_of(node.GetScene(), node):
            text = _("Not measured yet: press Measure again.") if made_by(node) else _("Not made by HybridMIM.")
        else:
            text = ""
        say(self._ui.resultHintLabel, text)
        shown = _state(node)
        if shown != self._shown:
            self._shown = shown
            self._show_table()
            self._show_made_by()
        volume = volume_of(node) if node is not None else None
        if volume is not self._dicom_of or volume is None:
            # It looks for hundreds of files: once a scan, and not at each change of a parameter.
            self._dicom_of, self._why_no_dicom = volume, _why_no_dicom(volume)

    def update(self, busy: str) -> None:
        """Enable what can be done; see :meth:`ModelSection.update`."""
        node, ui = self._node, self._ui
        nothing = busy or ("" if node is not None else _("Choose a segmentation first."))
        no_volume = "" if node is None or volume_of(node) is not None else _("The scan of this segmentation is gone.")
        has_backup = node is not None and newest_backup(node) is not None
        no_backup = "" if has_backup else _("Nothing of this segmentation was replaced.")
        unknown = (
            "" if node is None or made_by(node) else _("It was not made by HybridMIM, or that was not recorded.")
        )
        allow(
            ui.show3DButton, nothing, _("Make the surfaces, which may take a while, and show them in the 3D views.")
        )
        tip = _("Measure the segments as they are now, after you corrected them, say; into a new table.")
        allow(ui.measureButton, nothing or no_volume, tip)
        tip = _("Take back the segments that were replaced; those of now are kept in their place.")
        allow(ui.restoreButton, nothing or no_backup, tip)
        tip = _("Write a DICOM SEG file that belongs to the series of the scan, with what made it inside.")
        allow(ui.dicomButton, nothing or self._why_no_dicom, tip)
        allow(
            ui.madeByButton, nothing or unknown, _("Model, version, settings and hash of what made these segments.")
        )

    # --- the table ------------------------------------------------------------------------------------------

    def _show_table(self) -> None:
        node, table = self._node, self._ui.resultTable
        found = tables_of(node.GetScene(), node) if node is not None else []
        show(bool(found), table)
        if not found or node is None:
            say(self._ui.emptyLabel, "")
            return
        content = read_table(found[-1])
        colors = _colors(node)
        table.setColumnCount(len(content.titles))
        table.setHorizontalHeaderLabels(content.titles)
        explain_heads(table, {"Dice": "Dice"})
        table.setRowCount(len(content.rows))
        name_column = content.titles.index("Segment") if "Segment" in content.titles else 0
        for row, cells in enumerate(content.rows):
            for column, text in enumerate(cells):
                item = qt.QTableWidgetItem(text)
                if column == name_column and text in colors:
                    item.setIcon(color_icon(colors[text]))
                elif column != name_column:
                    item.setTextAlignment(int(qt.Qt.AlignRight) | int(qt.Qt.AlignVCenter))
                table.setItem(row, column, item)
        _fit(table, name_column)
        texts = [_("Not found in the scan: {names}.").format(names=", ".join(content.empty))] if content.empty else []
        if content.more:
            texts.append(_("{count} more rows are in the table of the scene.").format(count=content.more))
        say(self._ui.emptyLabel, " ".join(texts))

    def _show_made_by(self) -> None:
        entries = made_by(self._node) if self._node is not None else []
        is_shown = bool(self._ui.madeByButton.checked) and bool(entries)
        if is_shown:
            self._ui.madeByBrowser.setHtml("<hr>".join(made_by_page(one) for one in entries))
        show(is_shown, self._ui.madeByBrowser)

    # --- doing ----------------------------------------------------------------------------------------------

    def _show_in_3d(self) -> None:
        node = self._node
        if node is not None:
            done = _("{name} is shown in the 3D views.").format(name=node.GetName())
            self._follow(StepWork(show_in_3d(node), lambda _nothing: done, [node]))

    def _measure(self, before: str = "") -> None:
        """Measure the segments.

        Args:
            before: what to tell the user first.
        """
        node, reference = self._node, self._reference
        volume = volume_of(node) if node is not None else None
        if node is None or volume is None:
            return
        done = _("Measured; the table is called {name}.")
        needs = [one for one in (node, volume, reference) if one is not None]

        def told(made: tuple[Node, str]) -> str:
            table, why_not_compared = made
            warning = _("Warning: {text}.").format(text=why_not_compared) if why_not_compared else ""
            return f"{before} {done.format(name=table.GetName())}\n{warning}".strip()

        self._follow(StepWork(_measured(node, volume, reference), told, needs))

    def _restore(self) -> None:
        node = self._node
        if node is None:
            return
        backup = newest_backup(node)
        if backup is None:
            # It was removed since the button was enabled.
            self._on_change()
            return
        try:
            take_back(backup)
        except HybridMIMError as error:
            self._tell(str(error), True)
            return
        text = _("Took back the segments of {name}; those that were there are kept in {backup}.")
        told = text.format(name=node.GetName(), backup=backup.GetName())
        self._tell(told, False)
        self._on_change()
        # The volumes are others now.
        self._measure(told)

    def _export(self) -> None:
        node = self._node
        volume = volume_of(node) if node is not None else None
        if node is None or volume is None:
            return
        title, kinds = _("Export DICOM SEG"), _("DICOM files (*.dcm)")
        begin = str(Path.home() / f"{_as_file(node.GetName())}.dcm")
        chosen = str(qt.QFileDialog.getSaveFileName(self._ui.dicomButton, title, begin, kinds) or "")
        if chosen:
            path = Path(chosen) if Path(chosen).suffix else Path(f"{chosen}.dcm")
            steps = write_dicom_seg(node, volume, path)
            self._follow(StepWork(steps, lambda file: _("Wrote {file}.").format(file=file), [node, volume]))


def newest_backup(segmentation: Node) -> Node | None:
    """What keeps the segments that were replaced last, for :func:`take_back`: a segmentation, or a sequence of them
    where the segmentation shows the items of one."""
    browser, scene = browser_of(segmentation), segmentation.GetScene()
    if browser is None:
        return next(reversed(backups(segmentation)), None)
    identifier = browser.GetSequenceNode(segmentation).GetID()
    count = scene.GetNumberOfNodesByClass(_SEQUENCE)
    sequences = (scene.GetNthNodeByClass(number, _SEQUENCE) for number in reversed(range(count)))
    return next((one for one in sequences if one.GetNodeReferenceID(BACKUP_OF) == identifier), None)


def take_back(backup: Node) -> None:
    """Give back what a backup keeps, which keeps what there was until now.

    Raises:
        SettingsError: it is no backup, or what it is of is gone.
    """
    if backup.IsA(_SEQUENCE):
        restore_sequence(backup)
    else:
        restore(backup)


def read_table(table: Node) -> TableText:
    """What the panel shows of a table of volumes."""
    content = table.GetTable()
    found = [content.GetColumn(number) for number in range(content.GetNumberOfColumns())]
    # The note says which are empty; the panel has a line for that, and no room for the column.
    columns = {str(column.GetName()): column for column in found if column.GetName() != "Note"}
    count = content.GetNumberOfRows()
    shown = min(count, _MOST_ROWS)
    texts = [_texts(title, column, shown) for title, column in columns.items()]
    return TableText(list(columns), [list(row) for row in zip(*texts)], count - shown, _empty(columns, count))


def made_by_page(made: MadeBy) -> str:
    """What made some segments, as HTML."""
    facts = {
        _("Model"): made.model,
        _("Hash"): made.hash or _("not known"),
        _("Trained"): (made.trained or _("not known"))[:16].replace("T", " "),
        _("Program"): f"HybridMIM {made.library}",
        _("Made"): made.made.replace("T", " "),
        _("Scan"): made.volume,
        **{
            str(name).capitalize(): _setting(value)
            for name, value in made.settings.items()
            if value not in (None, {})
        },
    }
    rows = (
        f"<tr><td><b>{html.escape(name)}</b>&nbsp;</td><td>{_breakable(value)}</td></tr>"
        for name, value in facts.items()
    )
    return f"<table cellpadding='1'>{''.join(rows)}</table>"


def _measured(node: Node, volume: Node, reference: Node | None) -> Steps[tuple[Node, str]]:
    """The table, and why nothing could be compared, if that is so."""
    rows = yield from measure(node, volume, reference)
    name = node.GetScene().GenerateUniqueName(f"{node.GetName()} volumes")
    return add_table(node, rows, name), why_no_dice(rows, reference) if reference is not None else ""


def _texts(title: str, column: Any, count: int) -> list[str]:
    """The first cells of a column, with equal digits."""
    values = [column.GetValue(row) for row in range(count)]
    if not values or not isinstance(values[0], float):
        return [str(value) for value in values]
    digits = 3 if title == "Dice" or max(values) < 10 else 1
    return ["–" if math.isnan(value) else f"{value:.{digits}f}" for value in values]


def _empty(columns: dict[str, Any], count: int) -> list[str]:
    """Segments without a voxel, in any row: a sequence has a row an item."""
    if not {"Segment", "Voxels"} <= set(columns):
        return []
    voxels: dict[str, int] = {}
    for row in range(count):
        name = str(columns["Segment"].GetValue(row))
        voxels[name] = voxels.get(name, 0) + int(columns["Voxels"].GetValue(row))
    return [name for name, total in voxels.items() if not total]


def _colors(node: Node) -> dict[str, tuple[float, float, float]]:
    content = node.GetSegmentation()
    segments = (content.GetNthSegment(number) for number in range(content.GetNumberOfSegments()))
    return {one.GetName(): one.GetColor() for one in segments}


def _fit(table: Any, name_column: int) -> None:
    """As wide as the panel, and as high as its rows, up to some."""
    header = table.horizontalHeader()
    header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
    header.setSectionResizeMode(name_column, qt.QHeaderView.Stretch)
    rows = min(max(int(table.rowCount), 1), _ROWS_AT_ONCE)
    # One more for the header.
    table.setFixedHeight((rows + 1) * table.verticalHeader().defaultSectionSize)


def _state(node: Node | None) -> tuple[Any, ...]:
    """Changes when what is shown of a segmentation has to."""
    if node is None:
        return (None,)
    tables = [(one.GetID(), one.GetMTime()) for one in tables_of(node.GetScene(), node)]
    return node.GetID(), node.GetMTime(), node.GetSegmentation().GetMTime(), tables


def _why_no_dicom(volume: Node | None) -> str:
    return why_no_dicom_seg(volume) if volume is not None else _("The scan of this segmentation is gone.")


def _setting(value: Any) -> str:
    """A setting in words: of nodes the names, of sections what is set."""
    if isinstance(value, Mapping):
        if "id" in value and "name" in value:
            return str(value["name"])
        return "; ".join(f"{name}: {_setting(one)}" for name, one in value.items() if one is not None)
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _breakable(text: str) -> str:
    """Escaped, and with places where long words, hashes and paths, may be broken."""
    pieces = [text[begin : begin + 16] for begin in range(0, len(text), 16)]
    return "&#8203;".join(html.escape(piece) for piece in pieces)


def _as_file(name: str) -> str:
    return "".join("_" if letter in '<>:"/\\|?*' or not letter.isprintable() else letter for letter in name)
