"""Curves as Slicer's own plots: a chart, a series for each curve, and one table of all their points.

    >>> chart = Chart("HybridMIM losses", "step", "loss")                                      # doctest: +SKIP
    >>> chart.show(curves.of(LOSSES))                    # as often as there is more to show     # doctest: +SKIP
    >>> chart.bring_up()                                                                       # doctest: +SKIP

The nodes are made with the first curves, and changed in place from then on. They are found again in a scene that was
saved with them, and after a module was reloaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import slicer
import slicer.util
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from HybridMIMLib.slicer_side.curves import Series
from HybridMIMLib.slicer_side.progress import LOSS
from HybridMIMLib.slicer_side.segments import Node

CHART = "HybridMIM.Chart"
"""Attribute of a chart and of its series: which chart it is."""
_TABLE = "HybridMIM.Table"
"""Role of the table among the references of a chart."""

_COLORS = (
    (0.12, 0.47, 0.71), (1.00, 0.50, 0.05), (0.17, 0.63, 0.17), (0.84, 0.15, 0.16), (0.58, 0.40, 0.74),
    (0.55, 0.34, 0.29), (0.89, 0.47, 0.76), (0.50, 0.50, 0.50), (0.74, 0.74, 0.13), (0.09, 0.75, 0.81),
)  # fmt: skip
"""Told apart by most people, on a light ground."""

_FLOOR, _HEAD = "_chance", "_accuracy"
_FEW = 30
"""Points of a series that are drawn as points, too: one single point has no line."""


class Chart:
    """A chart of the scene ``slicer.mrmlScene``.

    Args:
        title: names the chart and its nodes; there is one of each title.
        x_title, y_title: of the axes.
        y_range: ends of the vertical axis, where they are the same for every run; None: they follow the curves.
    """

    def __init__(self, title: str, x_title: str, y_title: str, y_range: tuple[float, float] | None = None) -> None:
        self.title = title
        self._axes, self._range = (x_title, y_title), y_range

    @property
    def node(self) -> Node | None:
        """The ``vtkMRMLPlotChartNode``; None where there is none (any more)."""
        count = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLPlotChartNode")
        nodes = (slicer.mrmlScene.GetNthNodeByClass(number, "vtkMRMLPlotChartNode") for number in range(count))
        return next((node for node in nodes if node.GetAttribute(CHART) == self.title), None)

    def show(self, series: Mapping[str, Series], of: str = "") -> None:
        """Show these curves, and none that were shown before; while a scene is closed or read, nothing is done.

        Args:
            series: by the names for the legend.
            of: what they are of, for the title.
        """
        if slicer.mrmlScene.IsBatchProcessing():
            return
        shown = {name: one.points() for name, one in series.items() if one.last is not None}
        chart = self.node or self._new_chart()
        table = self._table(chart)
        modified = chart.StartModify()
        chart.SetTitle(f"{self.title}: {of}" if of else self.title)
        mine = _series_of(chart)
        for name in [name for name in mine if name not in shown]:
            slicer.mrmlScene.RemoveNode(mine.pop(name))
        table.SetAndObserveTable(_vtk_table(shown))
        for number, (name, (steps, _)) in enumerate(shown.items()):
            node = mine.get(name) or _new_series(chart, name)
            # The user may have deleted the table of before.
            node.SetAndObserveTableNodeID(table.GetID())
            _style(node, _COLORS[_color_of(name, list(shown), number)], is_floor=name.endswith(_FLOOR))
            node.SetMarkerStyle(node.MarkerStyleCircle if len(steps) < _FEW else node.MarkerStyleNone)
        # A view may not look at nodes that were changed alone.
        chart.Modified()
        chart.EndModify(modified)

    def bring_up(self) -> None:
        """Show it in a layout with a plot; without curves there is nothing to bring up."""
        if self.node is not None:
            slicer.modules.plots.logic().ShowChartInLayout(self.node)

    def remove(self) -> None:
        """Take it out of the scene, with all that it is made of."""
        chart = self.node
        if chart is None:
            return
        table = self._table(chart)
        for node in (*_series_of(chart).values(), chart, table):
            slicer.mrmlScene.RemoveNode(node)

    def _new_chart(self) -> Node:
        # Whole before it is in the scene, where others look at it.
        chart = slicer.vtkMRMLPlotChartNode()
        chart.SetName(self.title)
        chart.SetAttribute(CHART, self.title)
        chart.SetXAxisTitle(self._axes[0])
        chart.SetYAxisTitle(self._axes[1])
        if self._range is not None:
            chart.SetYAxisRangeAuto(False)
            chart.SetYAxisRange(*self._range)
        return slicer.mrmlScene.AddNode(chart)

    def _table(self, chart: Node) -> Node:
        table = chart.GetNodeReference(_TABLE)
        if table is None:
            table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", f"{self.title} table")
            chart.SetNodeReferenceID(_TABLE, table.GetID())
        return table


def _series_of(chart: Node) -> dict[str, Node]:
    """The series that were made here, by the names of their curves; others the user has added."""
    nodes = [chart.GetNthPlotSeriesNode(number) for number in range(chart.GetNumberOfPlotSeriesNodes())]
    mine = [node for node in nodes if node is not None and node.GetAttribute(CHART) == chart.GetAttribute(CHART)]
    return {node.GetYColumnName(): node for node in mine}


def _new_series(chart: Node, name: str) -> Node:
    node = slicer.vtkMRMLPlotSeriesNode()
    node.SetName(_legend(name))
    node.SetAttribute(CHART, chart.GetAttribute(CHART))
    node.SetPlotType(node.PlotTypeScatter)
    node.SetXColumnName(_steps(name))
    node.SetYColumnName(name)
    node = slicer.mrmlScene.AddNode(node)
    chart.AddAndObservePlotSeriesNodeID(node.GetID())
    return node


def _style(node: Node, color: Sequence[float], is_floor: bool) -> None:
    node.SetColor(*color)
    node.SetLineWidth(2)
    node.SetMarkerSize(6)
    node.SetLineStyle(node.LineStyleDash if is_floor else node.LineStyleSolid)


def _color_of(name: str, names: Sequence[str], number: int) -> int:
    """A chance floor has the colour of what it is the floor of."""
    head = f"{name.removesuffix(_FLOOR)}{_HEAD}"
    return (names.index(head) if name.endswith(_FLOOR) and head in names else number) % len(_COLORS)


def _vtk_table(shown: Mapping[str, tuple[list[float], list[float]]]) -> vtk.vtkTable:
    """Two columns a curve; where one has fewer points than others, its last is there several times."""
    table = vtk.vtkTable()
    rows = max((len(steps) for steps, _ in shown.values()), default=0)
    for name, columns in shown.items():
        for title, numbers in zip((_steps(name), name), columns):
            values = np.full(rows, numbers[-1])
            values[: len(numbers)] = numbers
            column = numpy_to_vtk(values, deep=True)
            column.SetName(title)
            table.AddColumn(column)
    return table


def _legend(name: str) -> str:
    """What the legend says; the chart is that of the losses, or of the Dice, already."""
    text = name.removeprefix(LOSS).removeprefix("validation ")
    for end, words in ((_HEAD, "right"), (_FLOOR, "right by guessing")):
        text = f"{text.removesuffix(end)}: {words}" if text.endswith(end) else text
    return text


def _steps(name: str) -> str:
    """What the column of a curve's steps is called."""
    return f"{name}: step"
