"""The list of the scene's segmentations, and what makes labelled cases of them; a part of the section Data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from HybridMIMLib.config import user_path
from HybridMIMLib.errors import HybridMIMError
from HybridMIMLib.slicer_side.correcting import volume_of
from HybridMIMLib.slicer_side.environment import ensure_packages
from HybridMIMLib.slicer_side.panel import JobPanel
from HybridMIMLib.slicer_side.panels.parts import job_widgets
from HybridMIMLib.slicer_side.panels.scan_table import ROW_HEIGHT, fit_height
from HybridMIMLib.slicer_side.panels.widgets import allow, say, show
from HybridMIMLib.slicer_side.scene_cases import (
    SavedCase,
    SceneCase,
    describe_saved,
    save_cases,
    segmentations_in,
)
from HybridMIMLib.slicer_side.segments import Node
from HybridMIMLib.slicer_side.step_work import StepWork

_PIECES_EVERY = 30
"""Milliseconds."""
_CASES_AT_ONCE = 6
"""Rows that need no scrolling."""
_ANY_FOLDER = "folder"
"""Stands for one where it is asked whether a case fits apart from that."""


class SceneCasesPart(VTKObservationMixin):  # type: ignore[misc]
    """Binds ``dataSceneSection`` of ``Data.ui``.

    Args:
        ui: the widgets.
        folder: gives the labelled folder that is chosen, or nothing.
        on_saved: called with the folder to which cases were added.
        on_change: called when something begins and when it has ended.

    Attributes:
        jobs: follows what is being saved.
    """

    def __init__(
        self,
        ui: Any,
        folder: Callable[[], str],
        on_saved: Callable[[Path], None],
        on_change: Callable[[], None],
    ) -> None:
        super().__init__()
        self._ui, self._folder, self._on_saved = ui, folder, on_saved
        self._elsewhere = ""
        self._cases: list[SceneCase] = []
        self._volumes: dict[str, str] = {}
        self._left_out: set[str] = set()
        self._is_waiting = self._is_closed = self._is_filling = False
        self.jobs = JobPanel(job_widgets(ui, "dataSave"), lambda work: work.message, on_change, _PIECES_EVERY)
        ui.dataCasesTable.verticalHeader().visible = False
        ui.dataCasesTable.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        ui.dataCasesTable.horizontalHeader().setHighlightSections(False)
        ui.dataCasesTable.setHorizontalHeaderLabels([_("Segmentation"), _("Volume")])
        ui.dataCasesTable.horizontalHeader().setSectionResizeMode(qt.QHeaderView.Stretch)
        ui.dataCasesTable.connect("itemChanged(QTableWidgetItem*)", self._ticked)
        ui.dataCasesTable.connect("itemSelectionChanged()", self._marked)
        ui.dataVolumeSelector.setMRMLScene(slicer.mrmlScene)
        ui.dataVolumeSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._picked)
        ui.dataSaveButton.connect("clicked(bool)", lambda _checked: self._save(self._wanted()))
        ui.dataSceneSection.connect("contentsCollapsed(bool)", lambda _collapsed: self.refresh())
        show(False, ui.dataSaveLogTextEdit)
        scene = slicer.mrmlScene
        ends = (scene.EndImportEvent, scene.EndBatchProcessEvent)
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, *ends):
            self.addObserver(scene, event, lambda caller, event: self._refresh_later())
        self.addObserver(scene, scene.EndCloseEvent, lambda caller, event: self._forget())
        self.refresh()

    @property
    def busy(self) -> bool:
        """Whether cases are being saved."""
        return self.jobs.busy

    def refresh(self) -> None:
        """List what is in the scene now."""
        self._is_waiting = False
        if self._is_closed or self._ui.dataSceneSection.collapsed or slicer.mrmlScene.IsBatchProcessing():
            return
        self._cases = [SceneCase(node, self._volume_for(node)) for node in segmentations_in(slicer.mrmlScene)]
        self._fill()
        self.show(self._elsewhere)

    def show(self, elsewhere: str) -> None:
        """Enable what can be done.

        Args:
            elsewhere: why nothing can be begun now; empty if it can.
        """
        self._elsewhere, ui = elsewhere, self._ui
        wanted = self._wanted()
        busy = _("Wait until the cases are saved, or press Cancel.") if self.busy else ""
        reason = self._why_not(wanted)
        several = _("Save {count} labelled cases").format(count=len(wanted))
        ui.dataSaveButton.text = several if len(wanted) > 1 else _("Save as labelled case")
        tip = _("Check scans and segmentations, and copy both into the labelled folder. The scene is not changed.")
        allow(ui.dataSaveButton, busy or elsewhere or reason, tip)
        say(ui.dataSaveHintLabel, "" if busy else elsewhere or reason)
        show(bool(self._cases), ui.dataCasesTable)
        show(self.busy, ui.dataSaveCancelButton)

    def close(self) -> None:
        """The panel is closed: the case that is being saved is given up."""
        self._is_closed = True
        self.removeObservers()
        self.jobs.close(stop_job=True)

    # --- the list ---------------------------------------------------------------------------------------------

    def _refresh_later(self) -> None:
        """Once, after a burst of changes of the scene, and not among them."""
        if not self._is_waiting and not self._is_closed:
            self._is_waiting = True
            qt.QTimer.singleShot(0, self.refresh)

    def _forget(self) -> None:
        """The scene was closed: another one has the same ids for other nodes."""
        self._volumes.clear()
        self._left_out.clear()
        self._refresh_later()

    def _volume_for(self, segmentation: Node) -> Node | None:
        chosen = self._volumes.get(segmentation.GetID())
        node = slicer.mrmlScene.GetNodeByID(chosen) if chosen else None
        return node if node is not None else volume_of(segmentation)

    def _fill(self) -> None:
        table = self._ui.dataCasesTable
        marked = self._marked_case()
        self._is_filling = True
        table.setRowCount(len(self._cases))
        for number, case in enumerate(self._cases):
            reason = case.why_not(_ANY_FOLDER)
            name = qt.QTableWidgetItem(case.segmentation.GetName())
            name.setCheckState(qt.Qt.Unchecked if self._is_left_out(case) else qt.Qt.Checked)
            volume = qt.QTableWidgetItem(case.volume.GetName() if case.volume is not None else _("choose one below"))
            for column, item in enumerate((name, volume)):
                item.setToolTip(reason or item.text())
                if reason:
                    item.setForeground(qt.QBrush(qt.QColor("#d64541")))
                table.setItem(number, column, item)
        fit_height(table, _CASES_AT_ONCE)
        self._is_filling = False
        ids = [case.segmentation.GetID() for case in self._cases]
        if marked is not None and marked.segmentation.GetID() in ids:
            table.selectRow(ids.index(marked.segmentation.GetID()))
        elif len(self._cases) == 1:
            table.selectRow(0)
        self._marked()

    def _is_left_out(self, case: SceneCase) -> bool:
        return case.segmentation.GetID() in self._left_out or bool(case.why_not(_ANY_FOLDER))

    def _ticked(self, item: Any) -> None:
        if self._is_filling or item.column() != 0 or item.row() >= len(self._cases):
            return
        identifier = self._cases[item.row()].segmentation.GetID()
        if item.checkState() == qt.Qt.Checked:
            self._left_out.discard(identifier)
        else:
            self._left_out.add(identifier)
        self.show(self._elsewhere)

    def _marked_case(self) -> SceneCase | None:
        rows = {item.row() for item in self._ui.dataCasesTable.selectedItems()}
        number = min(rows) if rows else -1
        return self._cases[number] if 0 <= number < len(self._cases) else None

    def _marked(self) -> None:
        """Offer the volume of the marked segmentation to be changed."""
        case, selector = self._marked_case(), self._ui.dataVolumeSelector
        was_blocked = selector.blockSignals(True)
        selector.setCurrentNode(case.volume if case is not None else None)
        selector.blockSignals(was_blocked)
        show(case is not None, selector, self._ui.dataVolumeLabel)

    def _picked(self, node: Node | None) -> None:
        case = self._marked_case()
        if case is not None and node is not None and node is not case.volume:
            self._volumes[case.segmentation.GetID()] = node.GetID()
            self._left_out.discard(case.segmentation.GetID())
            self._refresh_later()

    # --- saving -----------------------------------------------------------------------------------------------

    def _wanted(self) -> list[SceneCase]:
        return [case for case in self._cases if not self._is_left_out(case)]

    def _why_not(self, wanted: Sequence[SceneCase]) -> str:
        if not self._cases:
            return _("The scene has no segmentation. Load a scan, label it in the module Segment Editor, come back.")
        if not self._folder():
            return _("No labelled folder is chosen; choose one above, which may be new.")
        if not wanted:
            reason = next((case.why_not(_ANY_FOLDER) for case in self._cases if case.why_not(_ANY_FOLDER)), "")
            return reason or _("Nothing is ticked; tick the segmentations to save.")
        return ""

    def _save(self, wanted: list[SceneCase], replace: bool = False, before: Sequence[SavedCase] = ()) -> None:
        """Save cases; ``before``: what has become of others just now, to be told too."""
        folder = Path(self._folder())
        self._ui.dataSaveButton.enabled = False
        self.jobs.say("")
        try:
            folder = user_path(str(folder))
            ensure_packages()
            is_new = bool(self._ui.dataNewClassesCheckBox.checked)
            steps = save_cases(wanted, folder, replace, is_new)
            self.jobs.follow(StepWork(steps, lambda saved: self._saved(folder, [*before, *saved])))
        except HybridMIMError as error:
            self.jobs.say(str(error), is_error=True)
        finally:
            self.show(self._elsewhere)

    def _saved(self, folder: Path, saved: list[SavedCase]) -> str:
        self._on_saved(folder)
        if any(one.must_ask for one in saved):
            # Once the panel has shown the end of this work.
            qt.QTimer.singleShot(0, lambda: self._ask_to_replace(saved))
        return describe_saved([one for one in saved if not one.must_ask])

    def _ask_to_replace(self, saved: list[SavedCase]) -> None:
        if self._is_closed:
            return
        asked = [one for one in saved if one.must_ask]
        names = ", ".join(one.added.name for one in asked if one.added is not None)
        text = _(
            "The labelled folder has other labels of these scans: {names}.\n\n"
            "Replace them by those of the scene? The earlier ones are kept in the folder .replaced."
        )
        if slicer.util.confirmOkCancelDisplay(text.format(names=names), windowTitle=_("Save as labelled cases")):
            self._save([one.case for one in asked], True, [one for one in saved if not one.must_ask])
        else:
            self.jobs.say(describe_saved(saved))
