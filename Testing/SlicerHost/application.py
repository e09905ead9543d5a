"""``slicer.app``, its main window, and the names that Slicer adds to the module ``slicer``."""

from __future__ import annotations

import sys
import tempfile
import types
from pathlib import Path
from typing import Any, ClassVar

import slicer
import slicer.util
import vtk
from PySide6.QtCore import QObject, QSettings, Signal
from PySide6.QtGui import QFont, QFontDatabase
from PySide6.QtWidgets import QApplication, QMainWindow, QScrollArea, QVBoxLayout, QWidget

from HybridMIMLib.slicer_side.scene import HeadlessScene
from SlicerHost import packages, parameters, qmrml, sample_data, scripted
from SlicerHost.modules import (
    ModuleManager,
    Modules,
    qSlicerScriptedLoadableModule,
    qSlicerScriptedLoadableModuleWidget,
)

PANEL_WIDTH = 420
"""About as wide as Slicer's module panel is at first, in pixels."""


class qSlicerApplication(QApplication):
    """The application; :meth:`begin` gives it the scene and the folder of one run of Slicer."""

    SIGNATURES: ClassVar[dict[str, str]] = {"startupCompleted()": "startupCompleted"}
    startupCompleted = Signal()
    majorVersion, minorVersion = 5, 13
    revision = "0"

    def begin(self, held: HeadlessScene, folder: Path) -> None:
        """Take over scene and folders; the settings stay from run to run if the folder does."""
        self._held, self._folder = held, folder
        for name in ("temporary", "home", "cache"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.temporaryPath, self.slicerHome = str(folder / "temporary"), str(folder / "home")
        self.cachePath = str(folder / "cache")
        self.setOrganizationName("NA-MIC")
        self.setApplicationName("Slicer")
        self.setApplicationVersion("5.13.0-stand-in")
        QSettings.setDefaultFormat(QSettings.Format.IniFormat)
        QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, str(folder / "settings"))
        self._settings = QSettings()
        logics = {name: logic for name, logic in held.logics.items() if name in _MODULE_LOGICS}
        logics["Plots"] = PlotsLogic(held)
        self._modules = ModuleManager(held.scene, logics)
        self._files, self._layouts = IOManager(held), LayoutManager()
        self._paused = 0

    def applicationLogic(self) -> Any:
        return self._held.logics["Application"]

    def mrmlScene(self) -> Any:
        return self._held.scene

    def moduleLogic(self, name: str) -> Any:
        return self._modules.module(name).logic()

    def moduleManager(self) -> ModuleManager:
        return self._modules

    def ioManager(self) -> IOManager:
        return self._files

    def coreIOManager(self) -> IOManager:
        return self._files

    def layoutManager(self) -> LayoutManager:
        return self._layouts

    def settings(self) -> QSettings:
        return self._settings

    def userSettings(self) -> QSettings:
        return self._settings

    def revisionUserSettings(self) -> QSettings:
        return self._settings

    def testingEnabled(self) -> bool:
        """Never: in testing mode Slicer answers its own dialogs, and a test would not see them."""
        return False

    def pauseRender(self) -> None:
        self._paused += 1

    def resumeRender(self) -> None:
        if not self._paused:
            raise RuntimeError("rendering was resumed more often than paused")
        self._paused -= 1

    def isRenderPaused(self) -> bool:
        return self._paused > 0


class PlotsLogic:
    """``slicer.modules.plots.logic()``: there are no layouts with plots; the selection says what one would show."""

    def __init__(self, held: HeadlessScene) -> None:
        self._held = held

    def ShowChartInLayout(self, chart: Any) -> None:
        if chart.GetScene() is not self._held.scene:
            raise ValueError(f"the chart {chart.GetName()} is not in the scene")
        self._held.logics["Application"].GetSelectionNode().SetActivePlotChartID(chart.GetID())


_MODULE_LOGICS = ("Colors", "SubjectHierarchy", "Volumes", "Transforms", "Segmentations")


class MainWindow(QMainWindow):
    """What ``slicer.util.mainWindow()`` finds: status bar, module selector and the panel of the open module."""

    def __init__(self, select: Any) -> None:
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self._selector = ModuleSelector(select)
        self.contents = QWidget()
        QVBoxLayout(self.contents).setContentsMargins(0, 0, 0, 0)
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setWidget(self.contents)
        self.setCentralWidget(scroll)
        self.resize(PANEL_WIDTH + 30, 900)

    def moduleSelector(self) -> ModuleSelector:
        return self._selector


class ModuleSelector(QObject):
    """The list of modules in the tool bar."""

    def __init__(self, select: Any) -> None:
        super().__init__()
        self._select = select
        self.selected = ""

    @property
    def selectedModule(self) -> str:
        return self.selected

    def selectModule(self, name: str) -> None:
        self._select(name)


class LayoutManager(QObject):
    """The views: there are none, but for the names that they have and the layout that was asked for."""

    layout = 3

    def setLayout(self, layout: int) -> None:
        self.layout = int(layout)

    def sliceViewNames(self) -> tuple[str, ...]:
        return ("Red", "Green", "Yellow")

    def resetSliceViews(self) -> None:
        pass

    def resetThreeDViews(self) -> None:
        pass


# ---------------------------------------------------------------- files


class IOManager:
    """Reading and writing for ``slicer.util``: volumes, segmentations and scenes, by Slicer's own storage nodes."""

    def __init__(self, held: HeadlessScene) -> None:
        self._held = held

    def fileType(self, filename: Any) -> str:
        name = str(filename).lower()
        if name.endswith((".mrb", ".mrml")):
            return "SceneFile"
        if name.endswith((".seg.nrrd", ".seg.nhdr")):
            return "SegmentationFile"
        if name.endswith((".nrrd", ".nhdr", ".nii", ".nii.gz", ".mha", ".mhd")):
            return "VolumeFile"
        raise ValueError(f"{filename}: the stand-in does not know files of this type")

    def loadNodes(self, kind: str, properties: dict[str, Any], loaded: Any, messages: Any) -> bool:
        readers = {"VolumeFile": self._load_volume, "SegmentationFile": self._load_segmentation}
        if kind == "SceneFile":
            return read_scene_file(self._held.scene, Path(properties["fileName"]), properties.get("clear", False))
        if kind not in readers:
            raise ValueError(f"the stand-in cannot load {kind}")
        _refuse_unknown(properties, {"fileName", "name", "labelmap", "show"})
        node = readers[kind](properties) if Path(properties["fileName"]).is_file() else None
        if node is not None:
            loaded.AddItem(node)
        return node is not None

    def fileWriterFileType(self, node: Any) -> str:
        return f"{type(node).__name__}File"

    def fileWriterExtensions(self, node: Any) -> tuple[str, ...]:
        types_ = _storage(node).GetSupportedWriteFileTypes()
        return tuple(types_.GetValue(index) for index in range(types_.GetNumberOfValues()))

    def extractKnownExtension(self, filename: str, node: Any) -> str:
        return _storage(node).GetSupportedFileExtension(filename, False, True) or ""

    def exportNodes(
        self, ids: list[str], files: list[str], properties: dict[str, Any], harden: bool, messages: Any
    ) -> bool:
        """Write the nodes; their own storage nodes are left alone."""
        _refuse_unknown(properties, {"fileFormat", "useCompression"})
        if harden:
            raise NotImplementedError("the stand-in cannot export in world coordinates")
        return all(_write(self._held.scene.GetNodeByID(one), file, properties) for one, file in zip(ids, files))

    def saveNodes(self, kind: str, properties: dict[str, Any], messages: Any) -> bool:
        if kind == "SceneFile":
            if not properties["fileName"].endswith(".mrb"):
                raise ValueError(f"{properties['fileName']}: the stand-in saves scenes as .mrb only")
            return bool(self._held.scene.WriteToMRB(properties["fileName"]))
        _refuse_unknown(properties, {"nodeID", "fileName", "useCompression"})
        node = self._held.scene.GetNodeByID(properties["nodeID"])
        if node.GetStorageNode() is None and not node.AddDefaultStorageNode():
            raise ValueError(f"{node.GetName()}: Slicer has no way to store a {node.GetClassName()}")
        storage = node.GetStorageNode()
        storage.SetFileName(str(properties["fileName"]))
        return bool(storage.WriteData(node))

    def _load_volume(self, properties: dict[str, Any]) -> Any:
        path = properties["fileName"]
        options = 1 if properties.get("labelmap") else 0
        return self._held.logics["Volumes"].AddArchetypeVolume(path, properties.get("name") or _stem(path), options)

    def _load_segmentation(self, properties: dict[str, Any]) -> Any:
        path = properties["fileName"]
        logic = self._held.logics["Segmentations"]
        return logic.LoadSegmentationFromFile(path, False, properties.get("name") or _stem(path))


def read_scene_file(scene: Any, path: Path, clear: bool) -> bool:
    """Read a .mrb or .mrml into the scene as "File > Open" (with ``clear``) or "Add data" does."""
    path = path.absolute()
    if not path.is_file():
        return False
    if path.suffix.lower() == ".mrb":
        return bool(scene.ReadFromMRB(str(path), clear))
    scene.SetURL(str(path))
    return bool(scene.Connect() if clear else scene.Import())


def _storage(node: Any) -> Any:
    storage = node.CreateDefaultStorageNode()
    if storage is None:
        raise ValueError(f"{node.GetName()}: Slicer has no way to store a {node.GetClassName()}")
    storage.UnRegister(None)
    # Volumes find the file types that they can be written as through the scene.
    storage.SetScene(node.GetScene())
    return storage


def _write(node: Any, file: str, properties: dict[str, Any]) -> bool:
    storage = _storage(node)
    storage.SetFileName(file)
    storage.SetUseCompression(int(properties.get("useCompression", True)))
    return bool(storage.WriteData(node))


def _stem(path: str) -> str:
    return Path(path).name.split(".")[0]


def _refuse_unknown(properties: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(properties) - known)
    if unknown:
        # Slicer's functions share their default: a call without ``properties`` may carry what an earlier one left.
        raise ValueError(f"the stand-in does not know the properties {unknown} here")


# ---------------------------------------------------------------- subject hierarchy


class SubjectHierarchy:
    """Adds and removes the items of the data tree, which in Slicer is work of Qt plugins."""

    def __init__(self, scene: Any) -> None:
        self._scene = scene
        self._tags = [
            scene.AddObserver(scene.NodeAddedEvent, self._on_added),
            scene.AddObserver(scene.NodeAboutToBeRemovedEvent, self._on_removed),
        ]

    def close(self) -> None:
        for tag in self._tags:
            self._scene.RemoveObserver(tag)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_added(self, scene: Any, event: str, node: Any) -> None:
        # A scene from a file brings its items along.
        if not scene.IsImporting():
            self._add(node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_removed(self, scene: Any, event: str, node: Any) -> None:
        if scene.IsClosing() or not _is_data(node):
            return
        tree = scene.GetSubjectHierarchyNode()
        item = tree.GetItemByDataNode(node)
        if item:
            tree.RemoveItem(item, False, False)

    def _add(self, node: Any) -> None:
        tree = self._scene.GetSubjectHierarchyNode()
        if tree is not None and _is_data(node) and not tree.GetItemByDataNode(node):
            tree.CreateItem(tree.GetSceneItemID(), node)


def _is_data(node: Any) -> bool:
    return (node.IsA("vtkMRMLDisplayableNode") or node.IsA("vtkMRMLTableNode")) and not node.GetHideFromEditors()


# ---------------------------------------------------------------- the names in ``slicer``


def install_names(app: qSlicerApplication, scene: Any) -> None:
    """Put in place what scripts find in ``slicer`` in the application and not in slicer-core."""
    slicer.app, slicer.mrmlScene, slicer.selfTests = app, scene, {}
    slicer.modules = Modules()
    slicer.modules.sampleDataSources = {}
    sys.modules["SampleData"] = sample_data.module()
    slicer.qMRMLWidget, slicer.qMRMLNodeComboBox = qmrml.qMRMLWidget, qmrml.qMRMLNodeComboBox
    slicer.qSlicerScriptedLoadableModule = qSlicerScriptedLoadableModule
    slicer.qSlicerScriptedLoadableModuleWidget = qSlicerScriptedLoadableModuleWidget
    _expose("slicer.ScriptedLoadableModule", {name: getattr(scripted, name) for name in scripted.__all__})
    _expose("slicer.parameterNodeWrapper", {name: getattr(parameters, name) for name in parameters.__all__})
    _expose("slicer.packaging", vars(packages.PACKAGING))
    _expose("slicer.i18n", vars(packages.I18N))


def remove_names() -> None:
    """Leave ``slicer`` as slicer-core has it, for tests of what runs without the application."""
    sys.modules.pop("SampleData", None)
    for name in _NAMES:
        delattr(slicer, name)
        sys.modules.pop(f"slicer.{name}", None)


_NAMES = (
    "app",
    "mrmlScene",
    "modules",
    "selfTests",
    "qMRMLWidget",
    "qMRMLNodeComboBox",
    "qSlicerScriptedLoadableModule",
    "qSlicerScriptedLoadableModuleWidget",
    "ScriptedLoadableModule",
    "parameterNodeWrapper",
    "packaging",
    "i18n",
)


def _expose(name: str, contents: dict[str, Any]) -> None:
    """Make an importable module of these names only, so that an unknown one raises and says where it is missing."""
    module = types.ModuleType(name, "of the stand-in")
    vars(module).update(contents, __all__=list(contents))

    def missing(attribute: str) -> Any:
        raise AttributeError(f"the stand-in has no {name}.{attribute}")

    module.__getattr__ = missing  # type: ignore[method-assign]
    sys.modules[name] = module
    setattr(slicer, name.rpartition(".")[2], module)


def add_font(app: QApplication) -> None:
    """PySide6's wheels carry no fonts, and a bare machine has none: texts would have no size."""
    if not QFontDatabase.families():
        import matplotlib

        fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf"):
            QFontDatabase.addApplicationFont(str(fonts / name))
        app.setFont(QFont("DejaVu Sans", 9))


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="slicer-host-", ignore_cleanup_errors=True)
