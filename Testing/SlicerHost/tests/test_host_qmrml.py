"""The node list and the scene widget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shiboken6
import slicer
from SlicerHost import Host


@pytest.fixture
def box(host: Host) -> Any:
    """A list of volumes with None, and without the entries that add and remove."""
    box = slicer.qMRMLNodeComboBox()
    box.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    box.noneEnabled, box.addEnabled, box.removeEnabled = True, False, False
    box.setMRMLScene(host.scene)
    return box


def _add(name: str, kind: str = "vtkMRMLScalarVolumeNode") -> Any:
    return slicer.mrmlScene.AddNewNodeByClass(kind, name)


def _names(box: Any) -> list[str]:
    return [node.GetName() for node in box.nodes()]


def _heard(box: Any) -> list[Any]:
    heard: list[Any] = []
    box.connect("currentNodeChanged(vtkMRMLNode*)", lambda node: heard.append(node and node.GetName()))
    return heard


def test_nodes_of_the_types_are_listed_as_they_come_and_go(box: Any) -> None:
    first = _add("A")
    _add("M", "vtkMRMLModelNode")
    _add("B")
    _add("L", "vtkMRMLLabelMapVolumeNode")
    assert _names(box) == ["A", "B", "L"], "a label map is a volume, too"
    box.showChildNodeTypes = False
    assert _names(box) == ["A", "B"]
    slicer.mrmlScene.RemoveNode(first)
    assert _names(box) == ["B"]
    assert box.currentNode() is None


def test_a_new_node_is_not_chosen(host: Host, box: Any) -> None:
    heard = _heard(box)
    _add("A")
    assert (box.currentNode(), box.currentNodeID, heard) == (None, "", [])
    plain = slicer.qMRMLNodeComboBox()
    plain.nodeTypes = ["vtkMRMLModelNode"]
    plain.setMRMLScene(host.scene)
    _add("M", "vtkMRMLModelNode")
    assert plain.currentNode() is None, "nor is it beside 'Create new Model'"


def test_a_new_node_is_chosen_where_there_is_nothing_else(host: Host, box: Any) -> None:
    box.noneEnabled = False
    heard = _heard(box)
    _add("A")
    _add("B")
    assert heard == ["A"]


def test_without_none_the_first_node_is_chosen_with_the_scene(host: Host) -> None:
    _add("A"), _add("B")
    box = slicer.qMRMLNodeComboBox()
    box.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    assert not box.enabled
    box.setMRMLScene(host.scene)
    assert box.enabled
    assert box.currentNode().GetName() == "A"


def test_a_node_can_be_asked_for_before_there_is_a_scene(host: Host) -> None:
    _add("A")
    second = _add("B")
    box = slicer.qMRMLNodeComboBox()
    box.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    box.setCurrentNodeID(second.GetID())
    box.setMRMLScene(host.scene)
    assert box.currentNode() is second


def test_choosing_tells_in_three_ways_and_once(box: Any) -> None:
    node = _add("A")
    heard: list[Any] = []
    for signal in ("currentNodeChanged(vtkMRMLNode*)", "currentNodeChanged(bool)", "currentNodeIDChanged(QString)"):
        box.connect(signal, heard.append)
    box.setCurrentNode(node)
    box.setCurrentNode(node)
    box.currentNodeID = ""
    assert heard == [node, True, node.GetID(), None, False, ""]
    with pytest.raises(AttributeError, match="currentNodeSwitched"):
        box.connect("currentNodeSwitched(vtkMRMLNode*)", heard.append)
    with pytest.raises(TypeError, match="setCurrentNodeID"):
        box.setCurrentNode(node.GetID())


def test_when_the_chosen_node_goes_the_one_before_it_is_chosen(box: Any) -> None:
    _add("A")
    second = _add("B")
    box.setCurrentNode(second)
    heard = _heard(box)
    slicer.mrmlScene.RemoveNode(second)
    assert heard == ["A"]


def test_a_node_that_is_not_listed_cannot_be_chosen(box: Any) -> None:
    box.setCurrentNode(_add("A"))
    box.setCurrentNode(_add("M", "vtkMRMLModelNode"))
    assert box.currentNode() is None


def test_hidden_nodes_are_not_listed(box: Any) -> None:
    node = _add("A")
    box.setCurrentNode(node)
    node.SetHideFromEditors(True)
    assert (_names(box), box.currentNode()) == ([], None)
    box.showHidden = True
    assert _names(box) == ["A"]
    box.showHidden = False
    node.SetHideFromEditors(False)
    assert _names(box) == ["A"]


def test_a_new_name_is_shown(box: Any) -> None:
    node = _add("A")
    box.setCurrentNode(node)
    node.SetName("B")
    assert box.comboBox().currentText == "B"


def test_entries_that_make_and_remove_nodes(box: Any) -> None:
    box.addEnabled = box.removeEnabled = True
    box.setBaseName("Result")
    entries = [box.comboBox().itemText(row) for row in range(box.comboBox().count)]
    assert (entries[0], len(entries)) == ("None", 4)
    created, added = entries.index("Create new Volume"), []
    box.connect("nodeAddedByUser(vtkMRMLNode*)", added.append)
    box.comboBox().setCurrentIndex(created)
    box.comboBox().activated.emit(created)
    assert [added[0].GetName(), box.currentNode()] == ["Result", added[0]]
    row = box.comboBox().findText("Delete current Volume")
    box.comboBox().setCurrentIndex(row)
    box.comboBox().activated.emit(row)
    assert (box.nodeCount(), box.currentNode()) == (0, None)


def test_closing_the_scene_empties_it(host: Host, box: Any) -> None:
    box.setCurrentNode(_add("A"))
    heard = _heard(box)
    host.close_scene()
    assert (_names(box), heard, box.comboBox().currentText) == ([], [None], "None")


def test_after_an_import_nothing_is_chosen(host: Host, box: Any, tmp_path: Any) -> None:
    slicer.util.addVolumeFromArray(np.zeros((2, 2, 2)), name="A")
    host.save_scene(tmp_path / "a.mrb")
    box.setCurrentNodeIndex(0)
    heard = _heard(box)
    slicer.util.loadScene(str(tmp_path / "a.mrb"), {})
    assert (_names(box), heard) == (["A", "A"], [None])


def test_what_it_does_not_have_is_refused(box: Any) -> None:
    with pytest.raises(AttributeError, match="noneEnable"):
        box.noneEnable = True
    with pytest.raises(AttributeError, match="sortFilterProxyModel"):
        box.sortFilterProxyModel()
    with pytest.raises(ValueError, match="vtkMRMLScalerVolumeNode"):
        box.nodeTypes = ["vtkMRMLScalerVolumeNode"]
    with pytest.raises(ValueError, match="vtkMRMLModelNode"):
        box.addNode("vtkMRMLModelNode")
    with pytest.raises(ValueError, match="after nodeTypes"):
        slicer.qMRMLNodeComboBox().setBaseName("A")
    with pytest.raises(AttributeError, match="qMRMLSliceWidget"):
        slicer.qMRMLSliceWidget()


def test_a_deleted_list_no_longer_listens(host: Host) -> None:
    box = slicer.qMRMLNodeComboBox()
    box.setMRMLScene(host.scene)
    shiboken6.delete(box)
    _add("A")


def test_the_scene_widget_tells_its_scene(host: Host) -> None:
    widget, heard = slicer.qMRMLWidget(), []
    widget.connect("mrmlSceneChanged(vtkMRMLScene*)", heard.append)
    widget.setMRMLScene(host.scene)
    widget.setMRMLScene(None)
    assert (heard, widget.mrmlScene()) == ([host.scene, None], None)
