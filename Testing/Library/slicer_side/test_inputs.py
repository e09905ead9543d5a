"""What can be segmented, and the reasons why something cannot, in the words of a user."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

import vtk
from small_runs import save_threshold_model

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.model_description import ModelDescription, read_description
from HybridMIMLib.errors import DataError
from HybridMIMLib.slicer_side.inputs import make_inputs, why_not
from HybridMIMLib.slicer_side.models import channel_names
from HybridMIMLib.slicer_side.scene import HeadlessScene, headless_scene
from HybridMIMLib.slicer_side.segments import volume_node

SHAPE = (6, 7, 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelDescription:
    return read_description(save_threshold_model(tmp_path_factory.mktemp("model") / "model", "Threshold"))


@pytest.fixture
def two(model: ModelDescription) -> ModelDescription:
    return replace(model, channels=2, channel_names=("T1", "T2"))


@pytest.fixture
def held() -> HeadlessScene:
    return headless_scene()


def add(held: HeadlessScene, name: str, shape: tuple[int, int, int] = SHAPE, affine: Any = None) -> Any:
    return volume_node(held.scene, np.zeros(shape, np.int16), np.eye(4) if affine is None else affine, name)


def add_sequence(held: HeadlessScene, name: str, items: int, affine: Any = None) -> Any:
    node = held.scene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
    for item in range(items):
        volume = add(held, f"{name} {item}", affine=affine)
        node.SetDataNodeAtValue(volume, str(item))
        held.scene.RemoveNode(volume)
    return node


def test_what_cannot_be_segmented(held: HeadlessScene, model: ModelDescription, two: ModelDescription) -> None:
    new = held.scene.AddNewNodeByClass
    empty, labels = new("vtkMRMLScalarVolumeNode", "Empty"), new("vtkMRMLLabelMapVolumeNode", "Labels")
    hollow, colours = new("vtkMRMLScalarVolumeNode", "Hollow"), new("vtkMRMLScalarVolumeNode", "Colours")
    image = vtk.vtkImageData()
    image.SetDimensions(4, 4, 4)
    hollow.SetAndObserveImageData(image)
    image = vtk.vtkImageData()
    image.SetDimensions(4, 4, 4)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    colours.SetAndObserveImageData(image)
    assert "Choose a volume" in why_not(None) and "Choose a volume" in why_not([]) and "Choose" in why_not({})
    assert why_not([None]) == "Choose a volume for every channel."
    assert "Labels is no scalar volume" in why_not(labels)
    assert "Empty holds no voxels" in why_not(empty) and "Hollow holds no voxels" in why_not(hollow)
    assert "Flat is a single slice" in why_not(add(held, "Flat", (9, 9, 1)))
    assert "Colours has 3 channels" in why_not(colours)
    assert why_not(colours, model) == "Volume Colours has 3 channel(s), and the model Threshold needs 1."
    scan = add(held, "Scan")
    assert why_not(scan) == "" and why_not(scan, model) == "" and why_not([scan], model) == ""
    assert "Scan has 1 channel(s), and the model Threshold needs 2 (T1, T2)" in why_not(scan, two)
    assert "2 volumes were chosen, and the model Threshold needs 1" in why_not([scan, add(held, "Other")], model)
    assert "One volume was chosen for two channels" in why_not([scan, scan], two)
    high = replace(model, classes=(LabelClass(300, "High", (1, 0, 0)),))
    assert "labels above 255" in why_not(scan, high)
    with pytest.raises(DataError, match="Empty holds no voxels"):
        make_inputs(empty, model)


def test_channels_go_by_their_names(held: HeadlessScene, two: ModelDescription, model: ModelDescription) -> None:
    t1, t2 = add(held, "One"), add(held, "Two")
    assert make_inputs({"T2": t2, "T1": t1}, two).nodes == (t1, t2)
    assert make_inputs((t2, t1), two).nodes == (t2, t1)
    assert "Choose a volume for T2" in why_not({"T1": t1}, two)
    assert "Choose a volume for T2" in why_not({"T1": t1, "T2": None}, two)
    assert "no channel FLAIR; it has T1, T2" in why_not({"T1": t1, "T2": t2, "FLAIR": t2}, two)
    assert channel_names(two) == ("T1", "T2")
    assert channel_names(replace(two, channel_names=("T1", "T1"))) == ("channel 0", "channel 1")
    assert channel_names(replace(two, channel_names=())) == ("channel 0", "channel 1")
    assert channel_names(model) == ("channel 0",)


def test_channels_lie_on_one_grid_or_are_told_apart(held: HeadlessScene, two: ModelDescription) -> None:
    first = add(held, "First")
    assert "Other has 6 x 7 x 9 voxels, First has 6 x 7 x 8" in why_not([first, add(held, "Other", (6, 7, 9))], two)
    near, far = np.eye(4), np.eye(4)
    near[0, 3], far[1, 3] = 0.04, 3.2
    assert why_not([first, add(held, "Near", affine=near)], two) == ""
    reason = why_not([first, add(held, "Far", affine=far)], two)
    assert "The voxels of Far lie up to 3.2 mm away from those of First" in reason and "resample" in reason
    turned = add(held, "Turned", affine=np.diag([1.0, 1.0, 1.05, 1.0]))
    assert "Turned lie up to 0.4 mm away" in why_not([first, turned], two)
    moved = add(held, "Moved")
    transform = held.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Shift")
    moved.SetAndObserveTransformNodeID(transform.GetID())
    assert "Moved lies under the transform Shift, First under no transform" in why_not([first, moved], two)
    first.SetAndObserveTransformNodeID(transform.GetID())
    assert why_not([first, moved], two) == ""


def test_sequences(held: HeadlessScene, model: ModelDescription, two: ModelDescription) -> None:
    one, other = add_sequence(held, "S", 3), add_sequence(held, "R", 3)
    inputs = make_inputs(one, model)
    assert inputs.is_sequence and inputs.items == 3 and inputs.name == "S" and inputs.transform is None
    assert inputs.volumes(2)[0] is one.GetNthDataNode(2)
    assert inputs.is_there() and len(inputs.stamps()) == 3
    assert make_inputs([one, other], two).volumes(1) == (one.GetNthDataNode(1), other.GetNthDataNode(1))
    assert "Sequence None is empty" in why_not(add_sequence(held, "None", 0))
    assert "are not both sequences" in why_not([one, add(held, "V")], two)
    assert "Sequence Long has 4 items, S has 3" in why_not([one, add_sequence(held, "Long", 4)], two)
    wide = add_sequence(held, "Wide", 3, np.diag([2.0, 1, 1, 1]))
    assert "The voxels of 1 of Wide lie up to 6 mm away from those of 1 of S" in why_not([one, wide], two)
    browser = held.scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Browser")
    assert "leads no sequence" in why_not(browser)
    browser.SetAndObserveMasterSequenceNodeID(one.GetID())
    assert make_inputs(browser, model).main is one
    other.GetNthDataNode(1).SetAndObserveImageData(None)
    assert "Volume 2 of the sequence R holds no voxels" in why_not(other)
    held.scene.RemoveNode(one)
    assert not inputs.is_there()


def test_names_of_channels_come_from_the_package(tmp_path: Path) -> None:
    import json

    folder = save_threshold_model(tmp_path / "model", channels=2)
    file = folder / "configs" / "metadata.json"
    content = json.loads(file.read_text())
    for names, expected in (
        ({"0": "T1", "1": "T2"}, ("T1", "T2")),
        ({"0": "T1"}, ()),
        ({"0": "T1", "1": 2}, ()),
        ("T1", ()),
        (None, ()),
    ):
        content["network_data_format"]["inputs"]["image"]["channel_def"] = names
        file.write_text(json.dumps(content))
        assert read_description(folder).channel_names == expected
    del content["network_data_format"]
    file.write_text(json.dumps(content))
    assert read_description(folder).channel_names == ()
