"""Pictures of what is in the scene: slices and surface, drawn by Slicer's own displayable managers, and charts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vtk
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from HybridMIMLib.slicer_side.pictures import off_screen_window, result_picture, slice_picture

_CHART_SIZE = (900, 600)
_GAP, _CAPTION, _LETTERS = 6, 30, 20
"""Pixels: between slices, the place for a line of text above each, and the height of its letters."""


def scene_picture(scene: Any, path: Path, title: str = "") -> Path:
    """Three slices and the surface of the scene's last segmentation over the volume that it refers to, as PNG.

    Raises:
        ValueError: the scene has no segmentation, or none of its volumes can lie below it.
    """
    segmentation = _last(scene, "vtkMRMLSegmentationNode")
    if segmentation is None:
        raise ValueError("the scene has no segmentation to draw")
    volume = segmentation.GetNodeReference("referenceImageGeometryRef") or _last(scene, "vtkMRMLScalarVolumeNode")
    if volume is None:
        raise ValueError(f"the scene has no volume below the segmentation {segmentation.GetName()}")
    result_picture(path, volume, segmentation, title=title)
    return path


def slices_picture(volumes: Mapping[str, Any], path: Path) -> Path:
    """One axial slice through the middle of each volume, side by side, as PNG.

    Args:
        volumes: volume nodes by the text to put above each.
    """
    slices = {title: slice_picture(volume) for title, volume in volumes.items()}
    width, height = next(iter(slices.values())).size
    sheet = Image.new("RGB", (len(slices) * (width + _GAP) - _GAP, height + _CAPTION), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.truetype(font_manager.findfont("DejaVu Sans"), _LETTERS)
    for number, (title, one) in enumerate(slices.items()):
        left = number * (width + _GAP)
        draw.text((left + width // 2, _CAPTION // 2), title, "black", font, anchor="mm")
        sheet.paste(one, (left, _CAPTION))
    sheet.save(path)
    return path


def chart_picture(chart: Any, path: Path) -> Path:
    """A chart node as PNG. There is no plot view without Slicer: VTK's chart draws what the nodes say."""
    window, renderer, actor, drawn = off_screen_window(), vtk.vtkRenderer(), vtk.vtkContextActor(), vtk.vtkChartXY()
    window.SetSize(*_CHART_SIZE)
    renderer.SetBackground(1, 1, 1)
    window.AddRenderer(renderer)
    renderer.AddActor(actor)
    actor.GetScene().AddItem(drawn)
    actor.GetScene().SetRenderer(renderer)
    drawn.SetTitle(chart.GetTitle())
    drawn.SetShowLegend(bool(chart.GetLegendVisibility()))
    for axis, title in ((vtk.vtkAxis.BOTTOM, chart.GetXAxisTitle()), (vtk.vtkAxis.LEFT, chart.GetYAxisTitle())):
        drawn.GetAxis(axis).SetTitle(title)
    if not chart.GetYAxisRangeAuto():
        axis = drawn.GetAxis(vtk.vtkAxis.LEFT)
        axis.SetBehavior(vtk.vtkAxis.FIXED)
        axis.SetRange(*chart.GetYAxisRange())
    for number in range(chart.GetNumberOfPlotSeriesNodes()):
        _add_plot(drawn, chart.GetNthPlotSeriesNode(number))
    window.Render()
    image, writer = vtk.vtkWindowToImageFilter(), vtk.vtkPNGWriter()
    image.SetInput(window)
    writer.SetInputConnection(image.GetOutputPort())
    writer.SetFileName(str(path))
    writer.Write()
    return path


def _add_plot(drawn: Any, series: Any) -> None:
    plot = drawn.AddPlot(vtk.vtkChart.LINE)
    plot.SetInputData(series.GetTableNode().GetTable(), series.GetXColumnName(), series.GetYColumnName())
    plot.SetLabel(series.GetName())
    plot.SetColorF(*series.GetColor())
    plot.SetWidth(series.GetLineWidth())
    plot.GetPen().SetLineType(series.GetLineStyle())
    plot.SetMarkerStyle(series.GetMarkerStyle())
    plot.SetMarkerSize(series.GetMarkerSize())


def _last(scene: Any, class_name: str) -> Any:
    count = scene.GetNumberOfNodesByClass(class_name)
    return scene.GetNthNodeByClass(count - 1, class_name) if count else None
