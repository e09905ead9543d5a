"""slicer.parameterNodeWrapper: what is stored, what is refused, what widgets do."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import pytest
import slicer
from SlicerHost import Host, problems
from SlicerHost.parameters import Choice, Default, Maximum, Minimum, WithinRange, parameterNodeWrapper


class Side(enum.Enum):
    LEFT = "l"
    RIGHT = "r"

    def label(self) -> str:
        return self.name.title()


@parameterNodeWrapper
class Every:
    volume: slicer.vtkMRMLScalarVolumeNode
    model: Optional[slicer.vtkMRMLModelNode]
    text: str = "begin"
    count: Annotated[int, WithinRange(1, 9)] = 2
    low: Annotated[int, Minimum(5)] = 5
    share: Annotated[float, Maximum(1.0), Default(0.5)]
    flag: bool = True
    folder: Path
    side: Side = Side.RIGHT
    mode: Annotated[str, Choice(["fast", "good"])] = "good"
    maybe: Optional[int]


def _node(scene: Any) -> Any:
    return scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "Parameters")


@pytest.fixture
def every(host: Host) -> Any:
    return Every(_node(host.scene))


def test_fields_begin_with_their_defaults(every: Any) -> None:
    values = [getattr(every, name) for name in Every.allParameters]
    assert values == [None, None, "begin", 2, 5, 0.5, True, Path(), Side.RIGHT, "good", None]
    assert every.default("count").value == 2


def test_values_are_kept_in_the_node_as_slicer_keeps_them(host: Host, every: Any) -> None:
    volume = host.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    model = host.scene.AddNewNodeByClass("vtkMRMLModelNode", "M")
    every.volume, every.model, every.text, every.count, every.share = volume, model, "ü", 9, 1
    every.flag, every.folder, every.side, every.maybe = False, Path("/a b"), Side.LEFT, 3
    node = every.parameterNode
    stored = {name: node.GetParameter(name) for name in node.GetParameterNames()}
    assert stored == {
        "volume": "", "model_0": "", "text": "ü", "count": "9", "low": "5", "share": "1", "flag": "False",
        "folder": "/a b", "side": "LEFT", "mode": "good", "maybe_0": "3",
    }  # fmt: skip
    again = Every(node)
    assert (again.volume, again.model, again.folder, again.maybe) == (volume, model, Path("/a b"), 3)
    every.model = every.maybe = None
    assert (again.model, again.maybe) == (None, None)
    host.scene.RemoveNode(volume)
    assert again.volume is None


def test_a_saved_scene_keeps_them(host: Host, every: Any, tmp_path: Path) -> None:
    every.volume = slicer.util.addVolumeFromArray(np.zeros((2, 2, 2)), name="CT")
    every.side, every.maybe = Side.LEFT, 4
    host.save_scene(tmp_path / "a.mrb")
    host.load_scene(tmp_path / "a.mrb")
    again = Every(slicer.util.getNode("Parameters"))
    assert (again.volume.GetName(), again.side, again.maybe) == ("CT", Side.LEFT, 4)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("count", 10, ValueError),
        ("count", 2.5, TypeError),
        ("count", None, ValueError),
        ("low", 4, ValueError),
        ("share", 1.5, ValueError),
        ("share", "1", TypeError),
        ("text", None, ValueError),
        ("text", Path("a"), TypeError),
        ("folder", "a", TypeError),
        ("mode", "best", ValueError),
        ("side", "l", TypeError),
        ("volume", "vtkMRMLScalarVolumeNode1", TypeError),
        ("maybe", "3", TypeError),
    ],
)
def test_wrong_values_are_refused_and_the_old_ones_stay(every: Any, name: str, value: Any, error: type) -> None:
    before = getattr(every, name)
    with pytest.raises(error):
        setattr(every, name, value)
    assert getattr(every, name) == before


def test_a_node_of_another_type_is_refused(host: Host, every: Any) -> None:
    with pytest.raises(TypeError, match="vtkMRMLScalarVolumeNode, not vtkMRMLModelNode"):
        every.volume = host.scene.AddNewNodeByClass("vtkMRMLModelNode", "M")


@pytest.mark.parametrize("kind", [list[int], dict, bytes, int | None, Optional[list[int]], Annotated[int, "what"]])
def test_other_types_are_refused_by_name(host: Host, kind: Any) -> None:
    with pytest.raises(TypeError, match=r"Bad\.odd"):
        parameterNodeWrapper(type("Bad", (), {"__annotations__": {"odd": kind}}))


def test_reserved_names_are_refused(host: Host) -> None:
    with pytest.raises(ValueError, match="Modified"):
        parameterNodeWrapper(type("Bad", (), {"__annotations__": {"Modified": int}}))


def test_a_default_out_of_range_is_refused_when_it_is_used(host: Host) -> None:
    bad = parameterNodeWrapper(type("Bad", (), {"__annotations__": {"count": Annotated[int, WithinRange(1, 2)]}}))
    with pytest.raises(ValueError, match="0 is not within"):
        bad(_node(host.scene))


def test_an_unknown_parameter_is_named(every: Any) -> None:
    for action in (every.getValue, every.dataType, every.default):
        with pytest.raises(ValueError, match="'steps'"):
            action("steps")


def _gui(host: Host, **widgets: str) -> Any:
    """Widgets by parameter name and class."""
    import ctk
    import qt

    class Gui:
        pass

    gui = Gui()
    for name, class_name in widgets.items():
        owner = next(one for one in (qt, ctk, slicer) if hasattr(one, class_name))
        widget = getattr(owner, class_name)()
        if class_name == "qMRMLNodeComboBox":
            widget.setMRMLScene(host.scene)
            widget.noneEnabled = True
        widget.setProperty("SlicerParameterName", name)
        setattr(gui, name, widget)
    return gui


ALL = {
    "volume": "qMRMLNodeComboBox", "model": "qMRMLNodeComboBox", "text": "QLineEdit", "count": "QSpinBox",
    "low": "QSpinBox", "share": "QDoubleSpinBox", "flag": "QCheckBox", "folder": "ctkPathLineEdit",
    "side": "QComboBox", "mode": "QComboBox",
}  # fmt: skip


def test_widgets_show_the_values(host: Host, every: Any) -> None:
    gui = _gui(host, **ALL)
    every.connectGui(gui)
    assert gui.volume.nodeTypes == ["vtkMRMLScalarVolumeNode"]
    assert gui.model.nodeTypes == ["vtkMRMLModelNode"]
    assert (gui.count.minimum, gui.count.maximum, gui.count.value) == (1, 9, 2)
    assert (gui.low.minimum, gui.low.maximum) == (5, 2**31 - 1)
    assert (gui.share.maximum, gui.share.value) == (1.0, 0.5)
    assert (gui.text.text, gui.flag.checked, gui.mode.currentText, gui.side.currentText) == (
        "begin", True, "good", "Right",
    )  # fmt: skip
    assert gui.folder.currentPath == ".", "Slicer's oddity: an empty Path shows as a dot"


def test_widgets_change_the_values_and_the_other_way_round(host: Host, every: Any) -> None:
    gui = _gui(host, **ALL)
    every.connectGui(gui)
    volume = host.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    gui.volume.setCurrentNode(volume)
    gui.text.text, gui.count.value, gui.share.value, gui.flag.checked = "new", 7, 0.25, False
    gui.folder.currentPath = "/a/b"
    gui.side.currentIndex, gui.mode.currentText = 0, "fast"
    values = [getattr(every, name) for name in ("volume", "text", "count", "share", "flag", "folder", "side", "mode")]
    assert values == [volume, "new", 7, 0.25, False, Path("/a/b"), Side.LEFT, "fast"]
    with slicer.util.NodeModify(every):
        every.text, every.count, every.volume, every.mode = "back", 1, None, "good"
        assert gui.text.text == "new"
    assert (gui.text.text, gui.count.value, gui.mode.currentText) == ("back", 1, "good")
    assert gui.volume.currentNode() is None


def test_a_disconnected_widget_changes_nothing(host: Host, every: Any) -> None:
    gui = _gui(host, text="QLineEdit")
    tag = every.connectGui(gui)
    every.disconnectGui(None)
    gui.text.text = "connected"
    every.disconnectGui(tag)
    gui.text.text = "free"
    assert every.text == "connected"
    every.text = "other"
    assert gui.text.text == "free"
    with pytest.raises(ValueError, match="under the tag"):
        every.disconnectGui(tag)


def test_an_import_unsets_what_is_connected(host: Host, every: Any, tmp_path: Path) -> None:
    """The node list is filled anew; a module disconnects it at StartImportEvent."""
    volume = slicer.util.addVolumeFromArray(np.zeros((2, 2, 2)), name="CT")
    host.save_scene(tmp_path / "a.mrb")
    gui = _gui(host, volume="qMRMLNodeComboBox")
    tag = every.connectGui(gui)
    every.volume = volume
    slicer.util.loadScene(str(tmp_path / "a.mrb"), {})
    assert every.volume is None
    every.disconnectGui(tag)
    every.volume = volume
    slicer.util.loadScene(str(tmp_path / "a.mrb"), {})
    every.connectGui(gui)
    assert gui.volume.currentNode() is every.volume is volume


@pytest.mark.parametrize(
    ("parameter", "widget"),
    [("count", "QLineEdit"), ("text", "QSpinBox"), ("count", "QComboBox"), ("folder", "QLineEdit"),
     ("share", "QSpinBox"), ("maybe", "QSpinBox"), ("text", "QPlainTextEdit"), ("flag", "QPushButton")],
)  # fmt: skip
def test_a_widget_that_does_not_fit_is_named(host: Host, every: Any, parameter: str, widget: str) -> None:
    gui = _gui(host, **{parameter: widget})
    with pytest.raises(RuntimeError, match=parameter):
        every.connectGui(gui)


def test_a_widget_of_an_unknown_parameter_is_named(host: Host, every: Any) -> None:
    gui = _gui(host, nonsense="QLineEdit")
    with pytest.raises(ValueError, match="nonsense"):
        every.connectGui(gui)


def test_a_wrong_value_in_a_widget_is_a_problem(host: Host, every: Any) -> None:
    gui = _gui(host, count="QSpinBox")
    every.connectGui(gui)
    gui.count.setRange(0, 99)
    gui.count.value = 50
    (problem,) = problems.take()
    assert "50 is not within" in problem.text
    assert every.count == 2


def test_observers_hear_of_changes(every: Any) -> None:
    import vtk

    heard: list[Any] = []
    tag = every.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda caller, event: heard.append(event))
    every.count = 3
    every.count = 3
    assert len(heard) == 1
    every.RemoveObserver(tag)
    every.count = 4
    every.Modified()
    assert len(heard) == 1
