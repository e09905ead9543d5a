"""The section in which a model is chosen, looked at, added and removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer.util
from slicer.i18n import tr as _

from HybridMIMLib.data.model_description import ModelDescription
from HybridMIMLib.data.model_store import add, is_added, remove
from HybridMIMLib.errors import ModelError
from HybridMIMLib.runs import runs_folder
from HybridMIMLib.slicer_side.jobs import Work
from HybridMIMLib.slicer_side.model_chooser import ModelChooser
from HybridMIMLib.slicer_side.panels.model_page import model_page
from HybridMIMLib.slicer_side.panels.widgets import allow, show
from HybridMIMLib.slicer_side.step_work import StepWork
from HybridMIMLib.slicer_side.steps import Step, Steps, in_thread


class ModelSection:
    """Binds the widgets of ``modelSection``.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them.
        on_chosen: called with the folder of a model when the user has chosen one.
        follow: shows work that takes a while.

    Attributes:
        chooser: the list; which model is chosen, and why it cannot be used.
    """

    def __init__(self, ui: Any, on_chosen: Callable[[str], None], follow: Callable[[Work], None]) -> None:
        self._ui, self._on_chosen, self._follow = ui, on_chosen, follow
        self._page_of: ModelDescription | None = None
        self.chooser = ModelChooser(ui, on_chosen)
        menu = qt.QMenu(ui.importButton)
        for text, ask in (
            (_("A package (.zip)…"), self._import_file),
            (_("A folder…"), self._import_folder),
            (_("Use a folder where it is…"), self._use_folder),
        ):
            menu.addAction(text).connect("triggered(bool)", ask)
        ui.importButton.setMenu(menu)
        ui.removeButton.connect("clicked(bool)", self._remove)
        ui.openFolderButton.connect("clicked(bool)", self._open_folder)
        ui.detailsButton.connect("toggled(bool)", lambda _checked: self._show_page())
        self._show_page()

    def show(self, folder: str) -> None:
        """List the models anew with this one chosen."""
        self.chooser.show(folder)
        self._show_page()

    def update(self, busy: str) -> None:
        """Enable what can be done.

        Args:
            busy: why nothing can be done now; empty if it can.
        """
        model = self.chooser.model
        nothing = "" if model is not None else _("Choose a model first.")
        is_foreign = model is not None and not is_added(model)
        lies = _("Only imported models are removed here; this one lies in the folder of its training or elsewhere.")
        allow(self._ui.importButton, busy, _("Add a model that somebody gave you."))
        allow(
            self._ui.removeButton,
            busy or nothing or (lies if is_foreign else ""),
            _("Delete this imported model from this computer."),
        )
        allow(self._ui.openFolderButton, nothing, _("Show the files of this model."))
        allow(
            self._ui.detailsButton,
            nothing,
            _("Show all that is known of this model: classes, scans, scores, licence."),
        )

    # --- looking ----------------------------------------------------------------------------------------------

    def _show_page(self) -> None:
        model = self.chooser.model
        is_shown = bool(self._ui.detailsButton.checked) and model is not None
        if is_shown and model is not None and model is not self._page_of:
            self._ui.modelDetailsBrowser.setHtml(model_page(model))
            self._page_of = model
        show(is_shown, self._ui.modelDetailsBrowser)
        # The page says all that these lines say.
        show(bool(self._ui.modelInfoLabel.text) and not is_shown, self._ui.modelInfoLabel)

    def _open_folder(self) -> None:
        model = self.chooser.model
        if model is not None:
            folder = model.path if model.path.is_dir() else model.path.parent
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(folder)))

    # --- adding and removing ----------------------------------------------------------------------------------

    def _import_file(self) -> None:
        kinds = _("Model packages (*.zip)")
        path = qt.QFileDialog.getOpenFileName(self._ui.importButton, _("Model package"), str(Path.home()), kinds)
        self._import(str(path))

    def _import_folder(self) -> None:
        self._import(self._ask_folder(Path.home()))

    def _use_folder(self) -> None:
        folder = self._ask_folder(runs_folder())
        if folder:
            self._on_chosen(folder)

    def _ask_folder(self, begin: Path) -> str:
        title = _("Folder of a model package")
        return str(qt.QFileDialog.getExistingDirectory(self._ui.importButton, title, str(begin)) or "")

    def _import(self, path: str) -> None:
        if path:
            self._follow(StepWork(_added(Path(path)), self._imported))

    def _imported(self, found: tuple[ModelDescription, bool]) -> str:
        model, is_new = found
        self._on_chosen(str(model.path))
        if is_new:
            return _("Imported the model {name}.").format(name=model.name)
        return _("The model {name} was there already.").format(name=model.name)

    def _remove(self) -> None:
        model = self.chooser.model
        if model is None:
            return
        question = _("Delete the model {name} from this computer?\n\n{path}").format(name=model.name, path=model.path)
        if slicer.util.confirmOkCancelDisplay(question, windowTitle=_("Remove a model")):
            self._follow(StepWork(_removed(model.path), self._gone))

    def _gone(self, name: str) -> str:
        # The newest of those that are left.
        self.show("")
        self._on_chosen(self.chooser.chosen)
        return _("Removed the model {name}.").format(name=name)


def _added(path: Path) -> Steps[tuple[ModelDescription, bool]]:
    """Check a package and keep it; reading and hashing hundreds of megabytes takes seconds."""
    text = _("Checking and copying {name}").format(name=path.name)
    try:
        return (yield from in_thread(lambda: add(path), Step(0.0, text)))
    except ModelError as error:
        if "'model remove'" not in error.cure:
            raise
        # That cure is one for the command line.
        raise ModelError(error.message, cure=_("Remove that one first, then import this one again.")) from error


def _removed(path: Path) -> Steps[str]:
    text = _("Removing {name}").format(name=path.name)
    name, _path = yield from in_thread(lambda: remove(path), Step(0.0, text))
    return name
