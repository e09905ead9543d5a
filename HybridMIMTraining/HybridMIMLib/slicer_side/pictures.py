"""One PNG that shows a result: three slices with outlines, the surface, and a legend.

The views are drawn by Slicer's own displayable managers, so the picture shows what Slicer would. It needs no
display server: VTK renders off screen, through EGL or in software.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import slicer
import vtk
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from vtk.util.numpy_support import vtk_to_numpy

from HybridMIMLib.files import atomic_path
from HybridMIMLib.slicer_side.segments import Node, Scene, ijk_to_ras, image_array, segment_indices

Color: TypeAlias = tuple[float, float, float]

_VIEW = (594, 456)
_GAP = 6
_TITLE_HEIGHT = 70
_LEGEND_WIDTH = 300
_SIZE = (2 * _VIEW[0] + _GAP + _LEGEND_WIDTH + 6, _TITLE_HEIGHT + 2 * _VIEW[1] + _GAP + 12)
_PAPER, _INK, _FAINT = (24, 26, 30), (240, 240, 240), (165, 170, 178)
_REFERENCE_COLORS: tuple[Color, ...] = ((1, 1, 0), (0, 1, 1), (1, 0, 1), (0, 1, 0), (1, 0.5, 0))
_FAR_ENOUGH = 0.6
"""Distance of two colours in red, green, blue from 0 to 1."""
_MOST_ROWS = 13
_SURROUNDINGS = 2.5
"""How many times the segmented region's size a slice shows at least."""
_SLICE_MANAGERS = ("vtkMRMLSegmentationsDisplayableManager2D",)
_SURFACE_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
)
_ORIENTATIONS = ("Axial", "Sagittal", "Coronal")


@dataclass
class _SliceView:
    """A drawn slice and what its caption says.

    Attributes:
        pixels: (height, width, 3) uint8.
        letters: the directions at the left, right, top and bottom edge, such as ``("R", "L", "A", "P")``.
        mm_per_pixel: the size of one pixel.
    """

    pixels: np.ndarray
    letters: tuple[str, str, str, str]
    mm_per_pixel: float


def result_picture(
    path: Path, volume_node: Node, result_node: Node, reference_node: Node | None = None, title: str = ""
) -> None:
    """Draw a segmentation over its scan and write it as a PNG of about 1500x1000 pixels.

    Axial, sagittal and coronal slices lie along the scan's own axes (oblique scans too) through the middle of
    the segmented region. The result's outlines have the colours of its segments; those of the reference are
    thin and all have one other colour. The scene is left as it was, but for the result's closed surface.

    Args:
        volume_node: the scan.
        result_node: a segmentation as :func:`~HybridMIMLib.slicer_side.segments.segmentation_node` makes it.
        reference_node: the segmentation to compare with, or None.
        title: what stands above the views; empty for the names of result and scan.

    Raises:
        DiskError: the file could not be written.
    """
    scene = volume_node.GetScene()
    nodes = [node for node in (result_node, reference_node) if node is not None]
    result_node.CreateClosedSurfaceRepresentation()
    labels = [segment_indices(node, volume_node, [s.identifier for s in _segments(node)]) for node in nodes]
    segments = _segments(result_node)
    voxels = np.bincount(labels[0].ravel(), minlength=len(segments) + 1)[1:].tolist()
    seen = [segment.color for segment, count in zip(segments, voxels, strict=True) if count]
    reference_color = pick_reference_color(seen)
    region = _region(volume_node, labels)
    with _scene_as_it_was(scene, volume_node), _application(scene) as application:
        _set_window(volume_node)
        _style_result(result_node)
        if reference_node is not None:
            _style_reference(reference_node, reference_color)
        slices = [_draw_slice(scene, application, volume_node, name, region) for name in _ORIENTATIONS]
        surface = _draw_surface(scene, application)
    heading = title or f"{result_node.GetName()} on {volume_node.GetName()}"
    legend = _Legend(segments, voxels, reference_color if reference_node is not None else None)
    _write_png(_compose(slices, surface, legend, heading), path)


def slice_picture(volume_node: Node, orientation: str = "Axial") -> Image.Image:
    """One slice through the middle of a volume, along its own axes, with the window that its display node has.

    Args:
        volume_node: the scan; the scene is left as it was.
        orientation: ``"Axial"``, ``"Sagittal"`` or ``"Coronal"``.
    """
    scene = volume_node.GetScene()
    with _scene_as_it_was(scene, volume_node), _application(scene) as application:
        view = _draw_slice(scene, application, volume_node, orientation, _region(volume_node, []))
    return Image.fromarray(view.pixels)


def pick_reference_color(class_colors: Sequence[Color]) -> Color:
    """The colour for the reference's outlines: strong, to show on any grey, and far from the classes'."""
    if not class_colors:
        return _REFERENCE_COLORS[0]
    distances = [np.linalg.norm(np.array(class_colors) - color, axis=1).min() for color in _REFERENCE_COLORS]
    # The first that is far enough, so that it is yellow in most pictures; else the farthest.
    for color, distance in zip(_REFERENCE_COLORS, distances, strict=True):
        if distance > _FAR_ENOUGH:
            return color
    return _REFERENCE_COLORS[int(np.argmax(distances))]


@dataclass(frozen=True)
class _Segment:
    name: str
    color: Color
    identifier: str


@dataclass(frozen=True)
class _Legend:
    """What the legend says: segments, their numbers of voxels, the reference's colour if there is one."""

    segments: list[_Segment]
    voxels: list[int]
    reference_color: Color | None


def _segments(node: Node) -> list[_Segment]:
    segmentation = node.GetSegmentation()
    found = []
    for index in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(index)
        found.append(_Segment(segment.GetName(), segment.GetColor(), segmentation.GetNthSegmentID(index)))
    return found


# ---------------------------------------------------------------- the scene, before and after


@contextmanager
def _scene_as_it_was(scene: Scene, volume: Node) -> Iterator[None]:
    """Remove the views' nodes afterwards and give all display nodes back their looks."""
    before = {scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())}
    displays = [n for n in _all_nodes(scene) if n.IsA("vtkMRMLSegmentationDisplayNode")]
    displays.append(volume.GetDisplayNode())
    copies = []
    for display in displays:
        copy = display.NewInstance()
        copy.UnRegister(None)
        copy.Copy(display)
        copies.append(copy)
    try:
        yield
    finally:
        for node in _all_nodes(scene):
            if node.GetID() not in before:
                scene.RemoveNode(node)
        for display, copy in zip(displays, copies, strict=True):
            display.Copy(copy)


def _all_nodes(scene: Scene) -> list[Node]:
    return [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]


@contextmanager
def _application(scene: Scene) -> Iterator[Any]:
    """An application logic of our own on the two factories, which are singletons of the process."""
    application = slicer.vtkMRMLApplicationLogic()
    application.SetMRMLScene(scene)
    slice_factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
    view_factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()
    before = slice_factory.GetMRMLApplicationLogic(), view_factory.GetMRMLApplicationLogic()
    slice_factory.SetMRMLApplicationLogic(application)
    view_factory.SetMRMLApplicationLogic(application)
    try:
        yield application
    finally:
        slice_factory.SetMRMLApplicationLogic(before[0])
        view_factory.SetMRMLApplicationLogic(before[1])


# ---------------------------------------------------------------- how things look


def _set_window(volume: Node) -> None:
    values = image_array(volume.GetImageData())
    low, high = np.percentile(values[::2, ::2, ::2], [1, 99])
    display = volume.GetDisplayNode()
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(float(low), float(max(high, low + 1e-6)))


def _style_result(node: Node) -> None:
    display = node.GetDisplayNode()
    _style_outlines(display, thickness=3)
    display.SetOpacity2DFill(0.25)
    display.SetPreferredDisplayRepresentationName3D("Closed surface")


def _style_reference(node: Node, color: Color) -> None:
    display = node.GetDisplayNode()
    _style_outlines(display, thickness=1)
    display.SetVisibility2DFill(False)
    display.SetVisibility3D(False)
    for segment in _segments(node):
        display.SetSegmentOverrideColor(segment.identifier, *color)


def _style_outlines(display: Node, thickness: int) -> None:
    display.SetVisibility(True)
    display.SetVisibility2DOutline(True)
    display.SetOpacity2DOutline(1.0)
    display.SetSliceIntersectionThickness(thickness)
    # Voxels in both, because a surface is smoothed: a result and an equal reference would not coincide.
    display.SetPreferredDisplayRepresentationName2D("Binary labelmap")


# ---------------------------------------------------------------- slices


@dataclass(frozen=True)
class _Region:
    """Where the slices go and what they must show, in mm, RAS of the world.

    Attributes:
        middle: (3,) a point that all three slices contain.
        corners: (8, 3) the corners of the box around the labelled voxels, or of the volume.
    """

    middle: np.ndarray
    corners: np.ndarray


def _region(volume: Node, labels: Sequence[np.ndarray]) -> _Region:
    """The region of the first label array that is not empty, or else the volume.

    Its middle lies, along each voxel axis, in the slice with the most labelled voxels, because the centre of
    a bent structure may lie outside it.
    """
    shape = volume.GetImageData().GetDimensions()
    labelled = next((array > 0 for array in labels if array.any()), np.ones(shape, dtype=bool))
    counts = [np.count_nonzero(labelled, axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
    ends = [(np.flatnonzero(count)[0] - 0.5, np.flatnonzero(count)[-1] + 0.5) for count in counts]
    middle = [_middle_of_highest(count) for count in counts]
    points = np.array([middle, *itertools.product(*ends)], dtype=float)
    affine = _voxel_to_world(volume)
    world = points @ affine[:3, :3].T + affine[:3, 3]
    return _Region(world[0], world[1:])


def _middle_of_highest(counts: np.ndarray) -> int:
    """The highest index, and among several the one in their middle."""
    highest = np.flatnonzero(counts == counts.max())
    return int(highest[len(highest) // 2])


def _voxel_to_world(volume: Node) -> np.ndarray:
    parent = vtk.vtkMatrix4x4()
    if volume.GetParentTransformNode() is not None:
        volume.GetParentTransformNode().GetMatrixTransformToWorld(parent)
    return _to_numpy(parent) @ ijk_to_ras(volume)


def _to_numpy(matrix: Any) -> np.ndarray:
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def _draw_slice(scene: Scene, application: Any, volume: Node, orientation: str, region: _Region) -> _SliceView:
    logic = slicer.vtkMRMLSliceLogic()
    logic.SetMRMLApplicationLogic(application)
    logic.SetMRMLScene(scene)
    # The displayable managers find a slice's logic through the application logic, by the slice node.
    logics = vtk.vtkCollection()
    logics.AddItem(logic)
    application.SetSliceLogics(logics)
    node = logic.AddSliceNode(f"HybridMIM{orientation}")
    logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
    _place_slice(logic, node, volume, orientation, region)
    image = vtk.vtkActor2D()
    image.SetMapper(_slice_image_mapper(logic))
    with _managed_view(_slice_factory(), node, before=image) as window:
        pixels = _snapshot(window)
    letters = _edge_letters(_to_numpy(node.GetSliceToRAS()))
    mm_per_pixel = node.GetFieldOfView()[0] / _VIEW[0]
    logic.SetMRMLScene(None)
    return _SliceView(pixels, letters, mm_per_pixel)


def _place_slice(logic: Any, node: Node, volume: Node, orientation: str, region: _Region) -> None:
    logic.ResizeSliceNode(*_VIEW)
    node.SetOrientation(orientation)
    node.RotateToVolumePlane(volume)
    logic.FitSliceToVolume(volume, *_VIEW)
    node.JumpSliceByOffsetting(*region.middle)
    logic.SnapSliceOffsetToIJK()
    _zoom_to(node, region)


def _zoom_to(node: Node, region: _Region) -> None:
    """Show the whole volume, unless the region is too small in it for its outlines to be told apart."""
    to_slice = np.linalg.inv(_to_numpy(node.GetSliceToRAS()))
    corners = (region.corners @ to_slice[:3, :3].T + to_slice[:3, 3])[:, :2]
    field = np.array(node.GetFieldOfView())
    scale = float((_SURROUNDINGS * np.ptp(corners, axis=0) / field[:2]).max())
    if scale >= 1:
        return
    node.SetFieldOfView(field[0] * scale, field[1] * scale, field[2])
    move = np.eye(4)
    move[:2, 3] = (corners.min(axis=0) + corners.max(axis=0)) / 2
    node.GetSliceToRAS().DeepCopy((_to_numpy(node.GetSliceToRAS()) @ move).ravel())
    node.UpdateMatrices()


def _slice_image_mapper(logic: Any) -> Any:
    """Slicer's displayable managers draw all but the image itself, which is its widgets' work."""
    mapper = vtk.vtkImageMapper()
    mapper.SetColorWindow(255)
    mapper.SetColorLevel(127.5)
    mapper.SetInputConnection(logic.GetImageDataConnection())
    return mapper


def _slice_factory() -> Any:
    return _with_managers(slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance(), _SLICE_MANAGERS)


def _with_managers(factory: Any, names: Sequence[str]) -> Any:
    for name in names:
        if not factory.IsDisplayableManagerRegistered(name):
            factory.RegisterDisplayableManager(name)
    return factory


def _edge_letters(slice_to_ras: np.ndarray) -> tuple[str, str, str, str]:
    right, up = slice_to_ras[:3, 0], slice_to_ras[:3, 1]
    return _letter(-right), _letter(right), _letter(up), _letter(-up)


def _letter(direction: np.ndarray) -> str:
    axis = int(np.argmax(np.abs(direction)))
    return ("RL", "AP", "SI")[axis][0 if direction[axis] > 0 else 1]


# ---------------------------------------------------------------- the surface


def _draw_surface(scene: Scene, application: Any) -> np.ndarray:
    """(height, width, 3) uint8, seen from the front, a little from the patient's left and from above."""
    logic = slicer.vtkMRMLViewLogic()
    logic.SetMRMLApplicationLogic(application)
    logic.SetMRMLScene(scene)
    node = logic.AddViewNode("HybridMIMSurface")
    # Box and letters would count as content when the camera is set.
    node.SetBoxVisible(False)
    node.SetAxisLabelsVisible(False)
    node.SetBackgroundColor(0.0, 0.0, 0.0)
    node.SetBackgroundColor2(0.12, 0.13, 0.17)
    factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()
    with _managed_view(_with_managers(factory, _SURFACE_MANAGERS), node) as window:
        window.Render()
        _aim_camera(window.GetRenderers().GetFirstRenderer())
        pixels = _snapshot(window)
    logic.SetMRMLScene(None)
    return pixels


def _aim_camera(renderer: Any) -> None:
    camera = renderer.GetActiveCamera()
    camera.SetFocalPoint(0, 0, 0)
    camera.SetPosition(-0.45, 1.0, 0.4)
    camera.SetViewUp(0, 0, 1)
    renderer.ResetCamera()
    camera.Zoom(1.1)
    renderer.ResetCameraClippingRange()


# ---------------------------------------------------------------- rendering


@contextmanager
def _managed_view(factory: Any, node: Node, before: Any | None = None) -> Iterator[Any]:
    """An off-screen window whose content Slicer's displayable managers draw for a slice or view node."""
    window, renderer = off_screen_window(), vtk.vtkRenderer()
    window.SetMultiSamples(0)
    window.SetSize(*_VIEW)
    window.AddRenderer(renderer)
    if before is not None:
        renderer.AddViewProp(before)
    interactor = vtk.vtkRenderWindowInteractor()
    interactor.SetRenderWindow(window)
    group = slicer.vtkMRMLDisplayableManagerGroup()
    group.Initialize(factory, renderer)
    group.SetMRMLDisplayableNode(node)
    try:
        yield window
    finally:
        group.SetMRMLDisplayableNode(None)
        window.Finalize()


def off_screen_window() -> Any:
    """VTK tries a display server, warns if there is none, and takes EGL or software: no news to users."""
    shown = vtk.vtkObject.GetGlobalWarningDisplay()
    vtk.vtkObject.SetGlobalWarningDisplay(0)
    try:
        window = vtk.vtkRenderWindow()
    finally:
        vtk.vtkObject.SetGlobalWarningDisplay(shown)
    window.SetOffScreenRendering(1)
    return window


def _snapshot(window: Any) -> np.ndarray:
    window.Render()
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.ReadFrontBufferOff()
    grab.Update()
    image = grab.GetOutput()
    width, height, _ = image.GetDimensions()
    # VTK's first row is the lowest.
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)[::-1, :, :3].copy()


# ---------------------------------------------------------------- composing


def _compose(slices: Sequence[_SliceView], surface: np.ndarray, legend: _Legend, title: str) -> Image.Image:
    canvas = Image.new("RGB", _SIZE, _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((16, 18), title, fill=_INK, font=_font(28))
    for index, (name, view) in enumerate(zip(_ORIENTATIONS, slices, strict=True)):
        corner = _corner(index)
        canvas.paste(Image.fromarray(view.pixels), corner)
        _caption(draw, corner, name)
        _draw_letters(draw, corner, view.letters)
        _draw_scale(draw, corner, view.mm_per_pixel)
    canvas.paste(Image.fromarray(surface), _corner(3))
    seen = "Surface of the result, seen from the front"
    _caption(draw, _corner(3), seen if any(legend.voxels) else "The result is empty: no surface")
    _draw_legend(draw, legend)
    return canvas


def _corner(index: int) -> tuple[int, int]:
    row, column = divmod(index, 2)
    return 6 + column * (_VIEW[0] + _GAP), _TITLE_HEIGHT + row * (_VIEW[1] + _GAP)


def _caption(draw: Any, corner: tuple[int, int], text: str) -> None:
    place = (corner[0] + 10, corner[1] + 8)
    draw.text(place, text, _INK, _font(17), stroke_width=2, stroke_fill=(0, 0, 0))


def _draw_letters(draw: Any, corner: tuple[int, int], letters: tuple[str, str, str, str]) -> None:
    (x, y), (width, height) = corner, _VIEW
    places = ((14, height / 2), (width - 14, height / 2), (width / 2, 18), (width / 2, height - 18))
    for letter, (right, down) in zip(letters, places, strict=True):
        place = (x + right, y + down)
        draw.text(place, letter, _FAINT, _font(19), anchor="mm", stroke_width=2, stroke_fill=(0, 0, 0))


def _draw_scale(draw: Any, corner: tuple[int, int], mm_per_pixel: float) -> None:
    """A bar of a round length, about a fifth of the view."""
    wanted = mm_per_pixel * _VIEW[0] / 5
    length = max((m for m in (1, 2, 5, 10, 20, 50, 100, 200) if m <= wanted), default=1)
    left, bottom = corner[0] + 12, corner[1] + _VIEW[1] - 14
    draw.line((left, bottom, left + length / mm_per_pixel, bottom), fill=_INK, width=3)
    place = (left, bottom - 6)
    draw.text(place, f"{length} mm", _INK, _font(15), anchor="lb", stroke_width=2, stroke_fill=(0, 0, 0))


def _draw_legend(draw: Any, legend: _Legend) -> None:
    left, top = _corner(1)[0] + _VIEW[0] + 20, _TITLE_HEIGHT + 4
    draw.text((left, top), "Result", fill=_INK, font=_font(20))
    top = _draw_classes(draw, legend, left, top + 36)
    if legend.reference_color is not None:
        draw.text((left, top + 12), "Reference", fill=_INK, font=_font(20))
        draw.line((left, top + 58, left + 26, top + 58), fill=_bytes(legend.reference_color), width=2)
        draw.text((left + 38, top + 48), "thin outline, all classes", fill=_INK, font=_font(15))
    notes = "R, L: the patient's right, left\nA, P: front, back\nS, I: head, feet"
    draw.multiline_text((left, _SIZE[1] - 90), notes, fill=_FAINT, font=_font(14), spacing=6)


def _draw_classes(draw: Any, legend: _Legend, left: int, top: int) -> int:
    """One row a class; where there are too many, those that have voxels. Returns where the next text goes."""
    rows = list(zip(legend.segments, legend.voxels, strict=True))
    if len(rows) > _MOST_ROWS:
        rows = sorted(rows, key=lambda row: row[1] == 0)[:_MOST_ROWS]
    for segment, voxels in rows:
        draw.rectangle((left, top + 4, left + 26, top + 20), fill=_bytes(segment.color))
        draw.text((left + 38, top), _fitted(segment.name, 230), fill=_INK, font=_font(17))
        count = f"{voxels:,} voxel{'s' * (voxels != 1)}" if voxels else "empty"
        draw.text((left + 38, top + 22), count, fill=_FAINT, font=_font(14))
        top += 50
    if len(rows) < len(legend.segments):
        rest = len(legend.segments) - len(rows)
        draw.text((left + 38, top), f"and {rest} more", fill=_FAINT, font=_font(15))
        top += 26
    return top


def _fitted(text: str, width: int) -> str:
    shown = text
    while len(text) > 1 and _font(17).getlength(shown) > width:
        text = text[:-1]
        shown = text.rstrip() + "…"
    return shown


def _bytes(color: Color) -> tuple[int, int, int]:
    red, green, blue = (round(255 * part) for part in color)
    return red, green, blue


def _font(size: int) -> Any:
    """matplotlib's own font: it comes with accents and needs none installed."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


def _write_png(picture: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
