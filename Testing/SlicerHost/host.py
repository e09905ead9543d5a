"""A Slicer to test scripted modules in: ``start()``, load, open, click, save, reload, quit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import slicer
from PySide6.QtCore import QCoreApplication, QEvent, QSize

from HybridMIMLib.slicer_side.scene import headless_scene
from SlicerHost import dialogs, packages, problems, pythonqt
from SlicerHost.application import (
    PANEL_WIDTH,
    MainWindow,
    SubjectHierarchy,
    add_font,
    install_names,
    qSlicerApplication,
    read_scene_file,
    remove_names,
    temporary_folder,
)
from SlicerHost.modules import qSlicerScriptedLoadableModule

_running: Host | None = None


def start(profile: Path | None = None) -> Host:
    """The Slicer of this process; after :meth:`Host.close` a new one with an empty scene.

    Args:
        profile: folder for settings and temporary files, to start again with what an earlier Slicer left there;
            a new temporary one by default.
    """
    global _running
    if _running is not None:
        if profile is not None:
            raise RuntimeError("Slicer runs already: close it before it starts with another profile")
        return _running
    problems.start()
    pythonqt.install()
    app = qSlicerApplication.instance() or qSlicerApplication(["Slicer"])
    if not isinstance(app, qSlicerApplication):
        raise RuntimeError(f"this process has another QApplication already: {app}")
    app.setQuitOnLastWindowClosed(False)
    add_font(app)
    _running = Host(app, profile)
    return _running


class Host:
    """One run of Slicer.

    Attributes:
        scene: the real ``vtkMRMLScene``, also ``slicer.mrmlScene``.
        window: the main window.
    """

    def __init__(self, app: qSlicerApplication, profile: Path | None) -> None:
        self._temporary = temporary_folder()
        self._held = headless_scene()
        self.scene = self._held.scene
        install_names(app, self.scene)
        app.begin(self._held, profile or Path(self._temporary.name))
        self._app = app
        self._tree = SubjectHierarchy(self.scene)
        _add_slice_views(self.scene)
        self.window = MainWindow(self.open_module)
        self.window.show()
        self._open: str | None = None

    # ------------------------------------------------------------ modules

    def load_module(self, file: Path) -> Any:
        """Load a scripted module as Slicer does with the file's folder as additional module path.

        Returns:
            Slicer's half of it, which is ``slicer.modules.<name in lower case>`` from now on.
        """
        return self._app.moduleManager().load(Path(file))

    def complete_startup(self) -> None:
        """Slicer has loaded all its modules, and says so."""
        self._app.startupCompleted.emit()
        self.process_events()

    def open_module(self, name: str) -> Any:
        """Choose a module in the list: the open one is left, the panel is made the first time, and entered.

        Returns:
            the module's Python widget.
        """
        panel = self._module(name).widgetRepresentation()
        if panel is None:
            raise ValueError(f"{name} has no class {name}Widget, and so no panel")
        if self._open != name:
            self._leave()
            self._show(name, panel)
            panel.enter()
        self.process_events()
        return panel.self()

    def reload_module(self, name: str) -> Any:
        """The Reload button: cleanup, the file read anew, setup. Like Slicer it does not call enter."""
        slicer.util.reloadScriptedModule(name)
        self.process_events()
        return self._module(name).widgetRepresentation().self()

    def unload(self, name: str) -> None:
        """Leave the module if it is open, tell it that it is about to be unloaded, and forget it."""
        self._module(name)
        if self._open == name:
            self._leave()
        self._app.moduleManager().unload(name)
        self.process_events()

    @property
    def opened(self) -> str | None:
        """The name of the open module."""
        return self._open

    # ------------------------------------------------------------ the scene

    def close_scene(self) -> None:
        """File > Close Scene."""
        self.scene.Clear(0)
        self.process_events()

    def save_scene(self, path: Path) -> None:
        """Save as .mrb."""
        if not slicer.util.saveScene(str(Path(path).absolute()), {}):
            raise AssertionError(f"the scene was not written to {path}: {problems.take()}")

    def load_scene(self, path: Path) -> None:
        """File > Open of a .mrb: what was in the scene before is gone."""
        if not read_scene_file(self.scene, Path(path), clear=True):
            raise AssertionError(f"no scene was read from {path}: {problems.take()}")
        self.process_events()

    # ------------------------------------------------------------ time

    def process_events(self, seconds: float = 0.0) -> None:
        """Let Qt work, for so long at least."""
        end = time.monotonic() + seconds
        while True:
            self._app.processEvents()
            QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
            if time.monotonic() >= end:
                return
            time.sleep(0.005)

    def wait_until(self, condition: Callable[[], Any], seconds: float = 60, what: str = "the condition") -> Any:
        """Let Qt work until the condition holds.

        Returns:
            what the condition returned.

        Raises:
            AssertionError: it did not in time; the message has the problems so far.
        """
        end = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() >= end:
                found = "".join(f"\n{one.kind}: {one.text}" for one in problems.take())
                raise AssertionError(f"waited {seconds:g} s in vain for {what}{found}")
            self.process_events(0.01)
        return value

    # ------------------------------------------------------------ pictures, the end

    def picture(self, path: Path, widget: Any = None) -> Path:
        """The open module's panel (or a widget) as PNG: as wide as Slicer's panel, as high as its content.

        A panel that cannot be as narrow as that comes out wider, as it would in Slicer.
        """
        target = widget if widget is not None else self._panel()
        self.process_events()
        before = target.size
        width = max(PANEL_WIDTH, target.minimumSizeHint().width())
        height = target.heightForWidth(width) if target.hasHeightForWidth() else target.sizeHint().height()
        target.resize(QSize(width, height))
        self._app.processEvents()
        target.resize(QSize(width, height))
        image = target.grab()
        target.resize(before)
        if not image.save(str(path), "PNG"):
            raise OSError(f"{path}: the picture could not be written")
        return Path(path)

    def close(self) -> None:
        """Quit: the open module is left, every module is unloaded, the scene is gone."""
        global _running
        if _running is not self:
            return
        try:
            self._leave()
            for name in reversed(self._app.moduleManager().scripted()):
                self.unload(name)
        finally:
            self.window.close()
            self.window.deleteLater()
            self._tree.close()
            self.scene.Clear(1)
            # Else the last reference to go would call functions that Python's garbage collector has emptied already.
            self.scene.RemoveAllObservers()
            self._app.moduleManager().forget_paths()
            # Qt allows one application a process: the next start has it anew, with nobody waiting for it.
            if self._app.receivers("2startupCompleted()"):
                self._app.startupCompleted.disconnect()
            self._app.settings().sync()
            self.process_events()
            remove_names()
            self._temporary.cleanup()
            _running = None

    # ------------------------------------------------------------ inside

    def _module(self, name: str) -> qSlicerScriptedLoadableModule:
        module = self._app.moduleManager().module(name)
        if not isinstance(module, qSlicerScriptedLoadableModule):
            known = ", ".join(self._app.moduleManager().scripted()) or "none"
            raise ValueError(f"no scripted module {name} is loaded; loaded: {known}")
        return module

    def _panel(self) -> Any:
        if self._open is None:
            raise ValueError("no module is open")
        return self._module(self._open).widgetRepresentation()

    def _show(self, name: str, panel: Any) -> None:
        layout: Any = self.window.contents.layout()
        if layout.indexOf(panel) < 0:
            layout.addWidget(panel)
        panel.show()
        self._open = self.window.moduleSelector().selected = name

    def _leave(self) -> None:
        if self._open is None:
            return
        panel = self._panel()
        self._open, self.window.moduleSelector().selected = None, ""
        panel.exit()
        panel.hide()


def _add_slice_views(scene: Any) -> None:
    """The nodes of Slicer's three slice views: without them ``setSliceViewerLayers`` does nothing."""
    for name in ("Red", "Green", "Yellow"):
        node = slicer.vtkMRMLSliceCompositeNode()
        node.SetSingletonTag(name)
        node.SetLayoutName(name)
        node.SetName(name)
        scene.AddNode(node)


__all__ = ["Host", "dialogs", "packages", "problems", "start"]
