"""Curves as plot nodes: made once, changed in place, found again, and gone without a trace."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
import vtk
from PIL import Image
from SlicerHost.views import chart_picture
from vtk.util.numpy_support import vtk_to_numpy

from HybridMIMLib.slicer_side.curves import Series
from HybridMIMLib.slicer_side.plots import Chart
from HybridMIMLib.slicer_side.scene import HeadlessScene, headless_scene, read_scene, write_scene

KINDS = ("vtkMRMLPlotChartNode", "vtkMRMLPlotSeriesNode", "vtkMRMLTableNode")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeadlessScene]:
    found = headless_scene()
    monkeypatch.setattr(slicer, "mrmlScene", found.scene, raising=False)
    yield found


@pytest.fixture
def chart() -> Chart:
    return Chart("losses", "step", "loss")


def line(*values: float, phase: str = "pretrain") -> Series:
    series = Series(phase)
    for step, value in enumerate(values, 1):
        series.add(step, value)
    return series


def counts(scene: Any) -> tuple[int, ...]:
    return tuple(scene.GetNumberOfNodesByClass(kind) for kind in KINDS)


def shown(chart: Chart) -> dict[str, tuple[list[float], list[float]]]:
    """What a plot view would draw, by legend."""
    found = {}
    for number in range(chart.node.GetNumberOfPlotSeriesNodes()):
        one = chart.node.GetNthPlotSeriesNode(number)
        table = one.GetTableNode().GetTable()
        columns = [table.GetColumnByName(name) for name in (one.GetXColumnName(), one.GetYColumnName())]
        x, y = (vtk_to_numpy(column).tolist() for column in columns)
        found[one.GetName()] = x, y
    return found


def test_curves_become_a_chart_with_a_table(held: HeadlessScene, chart: Chart) -> None:
    assert chart.node is None
    chart.show({"loss: a": line(3, 2, 1), "loss: b": line(1)}, "Liver")
    assert counts(held.scene) == (1, 2, 1)
    assert shown(chart)["a"] == ([1, 2, 3], [3, 2, 1])
    assert shown(chart)["b"] == ([1, 1, 1], [1, 1, 1]), "a shorter one ends with its last point"
    assert chart.node.GetTitle() == "losses: Liver"
    assert (chart.node.GetXAxisTitle(), chart.node.GetYAxisTitle()) == ("step", "loss")


def test_later_points_change_the_same_nodes(held: HeadlessScene, chart: Chart) -> None:
    chart.show({"loss: a": line(3), "loss: b": line(1)})
    first = chart.node.GetNthPlotSeriesNode(0)
    first.SetName("renamed by the user")
    events: list[str] = []
    chart.node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda _node, event: events.append(event))
    chart.show({"loss: a": line(3, 2), "loss: c": line(5)})
    assert counts(held.scene) == (1, 2, 1), "what is not shown any more is gone"
    assert chart.node.GetNthPlotSeriesNode(0) is first and first.GetName() == "renamed by the user"
    assert shown(chart) == {"renamed by the user": ([1, 2], [3, 2]), "c": ([1, 1], [5, 5])}
    assert len(events) == 1, "a view draws once"


def test_a_series_of_the_users_in_the_chart_stays(held: HeadlessScene, chart: Chart) -> None:
    chart.show({"loss: a": line(3)})
    table = held.scene.AddNewNodeByClass("vtkMRMLTableNode", "theirs")
    theirs = held.scene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", "theirs")
    theirs.SetAndObserveTableNodeID(table.GetID())
    chart.node.AddAndObservePlotSeriesNodeID(theirs.GetID())
    chart.show({})
    assert chart.node.GetNumberOfPlotSeriesNodes() == 1 and chart.node.GetNthPlotSeriesNode(0) is theirs
    chart.remove()
    assert theirs.GetScene() is held.scene and chart.node is None


def test_a_head_and_its_chance_have_one_colour_and_two_strokes(held: HeadlessScene, chart: Chart) -> None:
    chart.show({"number_accuracy": line(0.5), "location_accuracy": line(0.7), "number_chance": line(0.1)})
    found = [chart.node.GetNthPlotSeriesNode(n) for n in range(3)]
    assert [one.GetName() for one in found] == ["number: right", "location: right", "number: right by guessing"]
    assert found[0].GetColor() == found[2].GetColor() != found[1].GetColor()
    assert found[0].GetLineStyle() == found[0].LineStyleSolid and found[2].GetLineStyle() == found[0].LineStyleDash


def test_a_single_point_can_be_seen(held: HeadlessScene, chart: Chart) -> None:
    chart.show({"loss: a": line(3), "loss: b": line(*range(100))})
    one, many = (chart.node.GetNthPlotSeriesNode(n) for n in range(2))
    assert one.GetMarkerStyle() == one.MarkerStyleCircle and many.GetMarkerStyle() == one.MarkerStyleNone


def test_a_closed_scene_has_no_chart_until_it_is_shown_again(held: HeadlessScene, chart: Chart) -> None:
    chart.show({"loss: a": line(3)})
    held.scene.Clear(0)
    assert chart.node is None
    chart.remove()
    chart.show({"loss: a": line(4)})
    assert counts(held.scene) == (1, 1, 1) and shown(chart) == {"a": ([1], [4])}


def test_nothing_is_made_while_a_scene_is_closed_or_read(held: HeadlessScene, chart: Chart) -> None:
    held.scene.StartState(held.scene.ImportState)
    chart.show({"loss: a": line(3)})
    held.scene.EndState(held.scene.ImportState)
    assert counts(held.scene) == (0, 0, 0)


def test_a_chart_of_a_saved_scene_is_gone_on_with(
    held: HeadlessScene, chart: Chart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chart.show({"loss: a": line(3, 2)})
    write_scene(held.scene, tmp_path / "scene.mrb")
    again = read_scene(tmp_path / "scene.mrb")
    monkeypatch.setattr(slicer, "mrmlScene", again.scene)
    assert shown(chart) == {"a": ([1, 2], [3, 2])}
    chart.show({"loss: a": line(3, 2, 1)})
    assert counts(again.scene) == (1, 1, 1) and shown(chart)["a"][1] == [3, 2, 1]


def test_what_the_user_deleted_of_it_is_made_anew(held: HeadlessScene, chart: Chart) -> None:
    chart.show({"loss: a": line(3), "loss: b": line(1)})
    held.scene.RemoveNode(held.scene.GetFirstNodeByClass("vtkMRMLTableNode"))
    chart.show({"loss: a": line(3), "loss: b": line(2)})
    assert shown(chart)["b"] == ([1], [2]) and counts(held.scene)[2] == 1


def test_two_charts_do_not_mix(held: HeadlessScene, chart: Chart) -> None:
    other = Chart("Dice", "step", "Dice")
    chart.show({"loss: a": line(3)})
    other.show({"validation mean": line(0.5)})
    assert shown(chart) == {"a": ([1], [3])} and shown(other) == {"mean": ([1], [0.5])}
    other.remove()
    assert counts(held.scene) == (1, 1, 1) and shown(chart) == {"a": ([1], [3])}


def test_a_picture_of_a_chart_has_its_curves(held: HeadlessScene, chart: Chart, tmp_path: Path) -> None:
    chart.show({"loss: a": line(*(math.exp(-n / 50) for n in range(300)))}, "Liver")
    pixels = np.asarray(Image.open(chart_picture(chart.node, tmp_path / "chart.png")).convert("RGB")).astype(int)
    blue = (pixels[..., 2] - pixels[..., 0]) > 80
    assert blue.sum() > 300, "a line of the first colour"
