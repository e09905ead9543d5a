"""The four base classes of scripted modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import slicer
from SlicerHost import Host, scripted


def test_a_star_import_gives_the_four_classes(host: Host) -> None:
    names: dict[str, object] = {}
    exec("from slicer.ScriptedLoadableModule import *", names)
    assert {name for name in names if not name.startswith("__")} == set(scripted.__all__)
    with pytest.raises(ImportError, match="ScriptedLoadableModuleGui"):
        from slicer.ScriptedLoadableModule import ScriptedLoadableModuleGui  # noqa: F401


class SomeLogic(scripted.ScriptedLoadableModuleLogic):
    pass


class ManyLogic(scripted.ScriptedLoadableModuleLogic):
    def __init__(self) -> None:
        super().__init__()
        self.isSingletonParameterNode = False


def test_one_parameter_node_a_scene_that_survives_closing(host: Host) -> None:
    logic = SomeLogic()
    node = logic.getParameterNode()
    assert (node.GetName(), node.GetAttribute("ModuleName"), logic.moduleName) == ("Some", "Some", "Some")
    node.SetParameter("a", "1")
    host.close_scene()
    assert logic.getParameterNode() is node
    assert (node.GetParameter("a"), node.GetAttribute("ModuleName")) == ("", "Some")
    assert logic.getAllParameterNodes() == [node]


def test_many_parameter_nodes(host: Host) -> None:
    logic = ManyLogic()
    node = logic.getParameterNode()
    other = slicer.mrmlScene.AddNode(logic.createParameterNode())
    assert logic.getParameterNode() is node
    assert logic.getAllParameterNodes() == [node, other]
    SomeLogic().getParameterNode()
    assert len(logic.getAllParameterNodes()) == 2


def test_the_panel_knows_its_files(host: Host, blur: Path) -> None:
    host.load_module(blur)
    panel = host.open_module("Blur")
    assert panel.resourcePath("UI/Blur.ui") == str(blur.parent / "Resources" / "UI" / "Blur.ui")
    assert slicer.modules.BlurInstance.resourcePath("a") == str(blur.parent / "Resources" / "a")
    assert slicer.modules.blur.icon is None


class SomeWidget(scripted.ScriptedLoadableModuleWidget):
    def setup(self) -> None:
        super().setup()
        self.was_set_up = True


def test_a_panel_without_a_parent_is_a_window_of_its_own(host: Host) -> None:
    panel = SomeWidget()
    assert (panel.was_set_up, panel.parent.visible, panel.moduleName) == (True, True, "Some")
    assert panel.parent.mrmlScene() is host.scene
    panel.parent.close()


def test_an_icon_is_found_by_the_modules_name(host: Host, blur: Path) -> None:
    (blur.parent / "Resources" / "Icons").mkdir()
    (blur.parent / "Resources" / "Icons" / "Blur.png").write_bytes(b"")
    host.load_module(blur)
    assert slicer.modules.blur.icon is not None


def test_developer_mode_is_refused(host: Host, blur: Path) -> None:
    import qt

    qt.QSettings().setValue("Developer/DeveloperMode", "true")
    host.load_module(blur)
    with pytest.raises(NotImplementedError, match="reload_module"):
        host.open_module("Blur")


def test_missing_self_tests_fail(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "Bare.py"
    file.write_text("from slicer.ScriptedLoadableModule import *\nclass Bare(ScriptedLoadableModule): ...\n", "utf-8")
    host.load_module(file)
    with pytest.raises(AssertionError, match="BareTest"):
        slicer.selfTests["Bare"]()
    with pytest.raises(AssertionError, match="runTest"):
        scripted.ScriptedLoadableModuleTest().runTest()
