"""What the user has corrected becomes a case to train with, and the scan that is worth correcting next is loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from HybridMIMLib.config import user_path
from HybridMIMLib.data.model_description import ModelDescription
from HybridMIMLib.errors import HybridMIMError
from HybridMIMLib.slicer_side import next_scan
from HybridMIMLib.slicer_side.correcting import AddedCase, add_to_folder, describe, why_not
from HybridMIMLib.slicer_side.environment import ensure_packages
from HybridMIMLib.slicer_side.jobs import FINISHED, Job, Work, attach_job
from HybridMIMLib.slicer_side.next_scan import NextScan, load_next, start_ranking
from HybridMIMLib.slicer_side.panel import JobPanel
from HybridMIMLib.slicer_side.panels.later import Later
from HybridMIMLib.slicer_side.panels.parts import job_widgets, show_in_slices
from HybridMIMLib.slicer_side.panels.widgets import allow, say, show
from HybridMIMLib.slicer_side.segments import Node
from HybridMIMLib.slicer_side.step_work import StepWork

_PIECES_EVERY = 30
"""Milliseconds."""

_VOLUME, _SEGMENTATION = "learnVolume", "learnSegmentation"
"""Roles of the references of the parameter node, which the scene keeps."""

_RANKING, _RANKED = "HybridMIM/ranking", "HybridMIM/rankedFolder"
"""Settings: run folder of the last ranking, and which scans it is of."""


class LearnSection:
    """Binds the widgets of ``CorrectAndLearn.ui``.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them.
        on_change: called when something begins and when it has ended.
        on_loaded: called with the volume that was loaded to be labelled next.

    Attributes:
        jobs: follows what is added and loaded.
        rankings: follows a ranking, which may take hours.
        lookups: what is asked of the disk.
    """

    def __init__(self, ui: Any, on_change: Callable[[], None], on_loaded: Callable[[Node], None]) -> None:
        self._ui, self._on_change, self._on_loaded = ui, on_change, on_loaded
        self._parameters: Any = None
        self._model: ModelDescription | None = None
        self._elsewhere, self._has_ranking = "", False
        self.lookups = Later()
        self.jobs = JobPanel(job_widgets(ui, "learn"), lambda work: work.message, self._changed, _PIECES_EVERY)
        self.rankings = JobPanel(job_widgets(ui, "rank"), self._ranked, self._changed)
        for selector, role in self._selectors().items():
            selector.setMRMLScene(slicer.mrmlScene)
            selector.connect("currentNodeChanged(vtkMRMLNode*)", lambda node, role=role: self._picked(role, node))
        ui.learnAddButton.connect("clicked(bool)", lambda _checked: self._add())
        ui.rankButton.connect("clicked(bool)", self._rank)
        ui.rankNextButton.connect("clicked(bool)", self._load_next)
        ui.learnSection.connect("contentsCollapsed(bool)", self._opened)
        for widget in (ui.learnFolderPathLineEdit, ui.rankScansPathLineEdit):
            widget.connect("currentPathChanged(QString)", lambda _path: self._show())
            # An emptied line tells this alone.
            widget.connect("validInputChanged(bool)", lambda _valid: self._show())
        show(False, ui.learnLogTextEdit, ui.rankLogTextEdit)

    @property
    def busy(self) -> bool:
        """Whether a process of this section is at work."""
        return self.jobs.busy or self.rankings.busy

    def update(self, parameters: Any, model: ModelDescription | None, elsewhere: str) -> None:
        """Show what the parameters have, and enable what can be done.

        Args:
            parameters: the wrapped parameter node, or None while there is none.
            model: that is chosen, or None.
            elsewhere: why nothing can be begun now; empty if it can.
        """
        # While nothing is bound, the lists of nodes may change, and nothing is taken from them.
        self._parameters = None
        if parameters is not None:
            for selector, role in self._selectors().items():
                selector.setCurrentNode(parameters.parameterNode.GetNodeReference(role))
        self._parameters, self._model, self._elsewhere = parameters, model, elsewhere
        self._show()

    def offer(self, volume: Node, segmentation: Node | None) -> None:
        """Choose a result to be corrected and added."""
        for (selector, role), node in zip(self._selectors().items(), (volume, segmentation)):
            self._picked(role, node)
            selector.setCurrentNode(node)

    def refresh(self) -> None:
        """Look for a ranking of before, and follow it if it is at work."""
        folder = _last_ranking()
        self.lookups.ask(lambda: _look_for_ranking(folder), self._found)

    def close(self) -> None:
        """The panel is closed: what is being added is given up, a ranking goes on."""
        self.lookups.close()
        self.jobs.close(stop_job=True)
        self.rankings.close(stop_job=False)

    # --- looking ----------------------------------------------------------------------------------------------

    def _selectors(self) -> dict[Any, str]:
        return {self._ui.learnVolumeSelector: _VOLUME, self._ui.learnSegmentationSelector: _SEGMENTATION}

    def _picked(self, role: str, node: Node | None) -> None:
        if self._parameters is not None:
            self._parameters.parameterNode.SetNodeReferenceID(role, node.GetID() if node is not None else None)
            self._show()

    def _opened(self, is_collapsed: bool) -> None:
        if not is_collapsed:
            self.refresh()

    def _found(self, found: tuple[bool, Job | None]) -> None:
        self._has_ranking, job = found
        if job is not None and not self.rankings.busy:
            self.rankings.follow(job)
        self._show()

    def _show(self) -> None:
        ui = self._ui
        busy = _("Wait until what is at work has ended, or press Cancel.") if self.jobs.busy else ""
        reason = why_not(self._node(_VOLUME), self._node(_SEGMENTATION), self._folder())
        allow(
            ui.learnAddButton,
            busy or self._elsewhere or reason,
            _("Check scan and segmentation, and copy both into the labelled folder. The scene is not changed."),
        )
        say(ui.learnHintLabel, "" if busy else self._elsewhere or reason)
        ui.rankModelLabel.text = self._model.name if self._model is not None else _("choose one above")
        ranking = _("Wait until the scans are ranked, or press Cancel.") if self.rankings.busy else ""
        why_no_rank = ranking or self._elsewhere or self._why_no_rank()
        allow(ui.rankButton, why_no_rank, _("Segment every scan of the folder to see how certain the model is."))
        why_no_next = busy or ranking or self._elsewhere or self._why_no_next()
        tip = _("Load the scan that the model is least certain about, of those that are not labelled yet.")
        allow(ui.rankNextButton, why_no_next, tip)
        hints = dict.fromkeys(one for one in (why_no_rank, why_no_next) if one)
        say(ui.rankHintLabel, "" if self.rankings.busy or self.jobs.busy else "\n".join(hints))

    def _node(self, role: str) -> Node | None:
        return self._parameters.parameterNode.GetNodeReference(role) if self._parameters is not None else None

    def _folder(self) -> str:
        return str(self._ui.learnFolderPathLineEdit.currentPath).strip()

    def _scans(self) -> str:
        return str(self._ui.rankScansPathLineEdit.currentPath).strip()

    def _why_no_rank(self) -> str:
        if not self._scans():
            return _("No folder of unlabelled scans is chosen; choose one to rank its scans.")
        return "" if self._model is not None else _("No model is chosen; choose one above.")

    def _why_no_next(self) -> str:
        if not self._has_ranking:
            return _("Nothing has been ranked yet: press Rank first.")
        return "" if self._folder() else _("No labelled folder is chosen: it says which scans are labelled already.")

    # --- adding -----------------------------------------------------------------------------------------------

    def _add(self, replace: bool = False, new_classes: bool | None = None) -> None:
        """Add scan and segmentation; what the user has not agreed to is asked first, and then this is called anew."""
        volume, segmentation = self._node(_VOLUME), self._node(_SEGMENTATION)
        if volume is None or segmentation is None:
            return
        folder = Path(user_path(self._folder()))
        self._ui.learnAddButton.enabled = False
        self.jobs.say("")
        try:
            ensure_packages()
            steps = add_to_folder(volume, segmentation, folder, replace=replace, new_classes=new_classes)
            self.jobs.follow(StepWork(steps, partial(self._added, new_classes), [volume, segmentation]))
        except HybridMIMError as error:
            self.jobs.say(str(error), is_error=True)
        finally:
            self._show()

    def _added(self, new_classes: bool | None, added: AddedCase) -> str:
        self._ui.learnFolderPathLineEdit.addCurrentPathToHistory()
        agreed = {"exists": (True, new_classes), "strange": (False, True)}
        if added.state in agreed:
            # Once the panel has shown the end of this work.
            qt.QTimer.singleShot(0, lambda: self._ask(added, *agreed[added.state]))
            return ""
        return describe(added)

    def _ask(self, added: AddedCase, replace: bool, new_classes: bool | None) -> None:
        if slicer.util.confirmOkCancelDisplay(describe(added), windowTitle=_("Add as labelled case")):
            self._add(replace, new_classes)
        elif added.state == "strange":
            self.jobs.say(_("Nothing was added."))
        else:
            self.jobs.say(_("Case {name} was left as it is.").format(name=added.name))

    # --- ranking ----------------------------------------------------------------------------------------------

    def _rank(self) -> None:
        self._ui.rankButton.enabled = False
        self.rankings.say("")
        try:
            ensure_packages()
            # The same scans once more: what has not changed is not looked at again.
            is_same = qt.QSettings().value(_RANKED) == self._scans()
            output = str(_last_ranking()) if is_same and self._has_ranking else ""
            job = start_ranking(self._scans(), str(self._model.path) if self._model is not None else "", output)
            qt.QSettings().setValue(_RANKING, str(job.folder))
            qt.QSettings().setValue(_RANKED, self._scans())
            self._ui.rankScansPathLineEdit.addCurrentPathToHistory()
            self.rankings.follow(job)
        except HybridMIMError as error:
            self.rankings.say(str(error), is_error=True)
        finally:
            self._show()

    def _ranked(self, work: Work) -> str:
        self.refresh()
        if work.state != FINISHED:
            return work.message
        count = len(work.result.get("ranking") or [])
        return _("Ranked {count} scans: press Load next scan.").format(count=count)

    def _load_next(self) -> None:
        folder = _last_ranking()
        if folder is not None:
            steps = load_next(folder, Path(user_path(self._folder())), slicer.mrmlScene)
            self.jobs.follow(StepWork(steps, self._loaded))

    def _loaded(self, found: NextScan) -> str:
        if found.volume is not None:
            show_in_slices(found.volume)
            self._on_loaded(found.volume)
            # The segmentation that was chosen is one of another scan.
            self.offer(found.volume, None)
            after = _("Press Apply, correct the result in Segment Editor, then add it here.")
            return f"{next_scan.describe(found)} {after}"
        return next_scan.describe(found)

    def _changed(self) -> None:
        self._show()
        self._on_change()


def _last_ranking() -> Path | None:
    kept = qt.QSettings().value(_RANKING)
    return Path(str(kept)) if kept else None


def _look_for_ranking(folder: Path | None) -> tuple[bool, Job | None]:
    """Whether a ranking is there, and the job that is at work on it; for a thread."""
    if folder is None:
        return False, None
    return (folder / "ranking.json").is_file(), attach_job(folder)
