"""``slicer.modules`` and the life of a scripted module, from loading to unloading."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any, ClassVar

import slicer
from PySide6.QtCore import Property, QObject, Signal
from PySide6.QtWidgets import QVBoxLayout

from SlicerHost.qmrml import qMRMLWidget


class Modules:
    """``slicer.modules``: one attribute a module, in lower case, and the Python halves of scripted ones."""

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(sorted(vars(self)))
        raise AttributeError(f"slicer.modules has no {name}; the stand-in has {known}", name=name, obj=self)


class CoreModule:
    """A module of Slicer's own: its logic, and no panel."""

    def __init__(self, name: str, logic: Any) -> None:
        self.name = name
        self._logic = logic

    def logic(self) -> Any:
        return self._logic

    def widgetRepresentation(self) -> Any:
        raise NotImplementedError(f"the stand-in has no panel of Slicer's module {self.name}")


_INFORMATION: dict[str, Any] = {
    "title": "",
    "categories": (),
    "dependencies": (),
    "contributors": (),
    "helpText": "",
    "acknowledgementText": "",
    "icon": None,
    "hidden": False,
    "index": -1,
    "associatedNodeTypes": (),
    "widgetRepresentationCreationEnabled": True,
}
"""What a scripted module may tell of itself."""


class qSlicerScriptedLoadableModule:
    """Slicer's half of a scripted module, ``parent`` of the Python half."""

    name: str
    path: str
    dependencies: Any
    widgetRepresentationCreationEnabled: bool
    _python: Any
    _scene: Any
    _widget: Any

    def __init__(self, file: Path, scene: Any) -> None:
        held = {"name": file.stem, "path": str(file), "_scene": scene, "_python": None, "_widget": None}
        vars(self).update(_INFORMATION | held)

    def __setattr__(self, name: str, value: Any) -> None:
        # In Slicer a misspelt name is an attribute of the wrapper that nobody reads.
        if name not in vars(self):
            raise AttributeError(f"{name} is nothing that a module can tell of itself", name=name, obj=self)
        # Lists come back as tuples: appending to one would be lost in Slicer.
        vars(self)[name] = tuple(value) if isinstance(value, list) else value

    def self(self) -> Any:
        return self._python

    def logic(self) -> Any:
        raise NotImplementedError("the C++ logic of a scripted module is empty; see slicer.util.getModuleLogic")

    def mrmlScene(self) -> Any:
        return self._scene

    def has_widget(self) -> bool:
        return self._widget is not None

    def widgetRepresentation(self) -> Any:
        """The panel; the first time it is made and set up, without being shown or entered."""
        if not self.widgetRepresentationCreationEnabled:
            return None
        if self._widget is None:
            self._widget = qSlicerScriptedLoadableModuleWidget(Path(self.path))
            self._widget.reload()
            # After setup, as in Slicer: widgets must bear that there is no scene yet.
            self._widget.setMRMLScene(self._scene)
        return self._widget

    def forget_widget(self) -> None:
        if self._widget is not None:
            self._widget.setParent(None)
            self._widget.deleteLater()
            self._widget = None


class qSlicerScriptedLoadableModuleWidget(qMRMLWidget):
    """The panel as Slicer sees it, ``parent`` of the module's Python widget."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        QVBoxLayout(self)
        self._file = file
        self._python: Any = None
        self._entered = False

    isEntered = Property(bool, lambda self: self._entered)

    def self(self) -> Any:
        return self._python

    def reload(self) -> None:
        """Make the Python half from the class as it is now, and set it up; it is not entered, nor is it in Slicer."""
        name = f"{self._file.stem}Widget"
        self.setObjectName(name)
        self._python = getattr(sys.modules[self._file.stem], name)(self)
        setattr(slicer.modules, name, self._python)
        self._python.setup()

    def enter(self) -> None:
        self._entered = True
        self._call("enter")

    def exit(self) -> None:
        self._entered = False
        self._call("exit")

    def _call(self, method: str) -> None:
        # Both are optional.
        getattr(self._python, method, lambda: None)()


class ModuleManager(QObject):
    """``slicer.app.moduleManager()``."""

    SIGNATURES: ClassVar[dict[str, str]] = {
        "moduleLoaded(QString)": "moduleLoaded",
        "moduleAboutToBeUnloaded(QString)": "moduleAboutToBeUnloaded",
        "moduleUnloaded(QString)": "moduleUnloaded",
    }
    moduleLoaded = Signal(str)
    moduleAboutToBeUnloaded = Signal(str)
    moduleUnloaded = Signal(str)

    def __init__(self, scene: Any, logics: dict[str, Any]) -> None:
        super().__init__()
        self._scene = scene
        self._modules: dict[str, Any] = {}
        self._paths: list[str] = []
        for name, logic in logics.items():
            self._add(CoreModule(name, logic))

    def module(self, name: str) -> Any:
        return self._modules.get(name)

    def modulesNames(self) -> tuple[str, ...]:
        return tuple(self._modules)

    def factoryManager(self) -> Any:
        return self

    def loadedModuleNames(self) -> tuple[str, ...]:
        return self.modulesNames()

    def scripted(self) -> list[str]:
        return [name for name, module in self._modules.items() if isinstance(module, qSlicerScriptedLoadableModule)]

    def load(self, file: Path) -> qSlicerScriptedLoadableModule:
        """Load a scripted module as if its folder were one of Slicer's additional module paths."""
        name, file = file.stem, file.resolve()
        if name in self._modules:
            raise ValueError(f"the module {name} is loaded already")
        folder = str(file.parent)
        if folder not in sys.path:
            sys.path.append(folder)
            self._paths.append(folder)
        _import(name, file)
        try:
            module = self._instantiate(name, file)
        except BaseException:
            del sys.modules[name]
            raise
        self._add(module)
        self.moduleLoaded.emit(name)
        return module

    def unload(self, name: str) -> None:
        module = self._modules[name]
        if not isinstance(module, qSlicerScriptedLoadableModule):
            raise ValueError(f"{name} is a module of Slicer's own")
        self.moduleAboutToBeUnloaded.emit(name)
        module.forget_widget()
        del self._modules[name]
        for attribute in (name.lower(), f"{name}Instance", f"{name}Widget"):
            vars(slicer.modules).pop(attribute, None)
        slicer.selfTests.pop(name, None)
        sys.modules.pop(name, None)
        self.moduleUnloaded.emit(name)

    def forget_paths(self) -> None:
        """Leave ``sys.path`` as it was before any module was loaded."""
        for folder in self._paths:
            sys.path.remove(folder)
        self._paths.clear()

    def _instantiate(self, name: str, file: Path) -> qSlicerScriptedLoadableModule:
        source = sys.modules[name]
        if not hasattr(source, name):
            raise AttributeError(f"{file} has no class {name}: Slicer would not load it as a module")
        module = qSlicerScriptedLoadableModule(file, self._scene)
        module.widgetRepresentationCreationEnabled = hasattr(source, f"{name}Widget")
        module._python = getattr(source, name)(module)
        missing = [needed for needed in module.dependencies if needed not in self._modules]
        if missing:
            raise LookupError(f"{name} depends on {', '.join(missing)}: not loaded (or not in the stand-in)")
        setattr(slicer.modules, f"{name}Instance", module._python)
        getattr(module._python, "setup", lambda: None)()
        return module

    def _add(self, module: Any) -> None:
        self._modules[module.name] = module
        setattr(slicer.modules, module.name.lower(), module)


def _import(name: str, file: Path) -> None:
    if name in sys.modules:
        raise ImportError(f"a Python module {name} is imported already: {sys.modules[name]}")
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise FileNotFoundError(f"no module at {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
