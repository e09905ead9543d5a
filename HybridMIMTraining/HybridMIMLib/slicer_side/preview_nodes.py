"""The previews of a pre-training as volumes of the scene: one scan as original, masked, reconstructed, and the error.

    >>> previews = find_previews(run_folder)                                                   # doctest: +SKIP
    >>> previews.steps                                                                         # doctest: +SKIP
    (500, 1000, 1500)
    >>> nodes = finish(load_previews(previews, 1500, slicer.mrmlScene))                        # doctest: +SKIP
    >>> nodes["reconstructed"].GetName()                                                       # doctest: +SKIP
    'Liver reconstructed (step 1500)'

Volumes that were loaded before are changed in place, so that views, windows and the data tree stay as the user set
them up. Files are read in a thread; either all volumes are shown or none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from vtk import vtkDataArray, vtkImageData
from vtk.util.numpy_support import get_vtk_array_type, vtk_to_numpy

from HybridMIMLib.errors import RunError
from HybridMIMLib.slicer_side.segments import Node, Scene, join_subject_hierarchy, vtk_matrix
from HybridMIMLib.slicer_side.steps import Step, Steps, in_thread

PREVIEW = "HybridMIM.Preview"
"""Attribute of a volume: which of the previews it shows."""

_OF = "HybridMIM.PreviewOf"
"""Attribute of a volume: folder of the previews."""

ORIGINAL, ERROR = "original", "error"
_KINDS = (ORIGINAL, "masked", "reconstructed", ERROR)
_PLACES = ("previews", "pre-training/previews", "pre-training/*/previews")
"""In the run folder of a pre-training, of one with fine-tuning, and of a study."""
_FILE = re.compile(
    r"(?:step_(?P<step>\d+)_)?(?P<kind>original|masked|reconstructed|error)(?:_channel_(?P<channel>\d+))?"
)
_WINDOW = (0.5, 99.5)
"""Percentiles of the original that are black and white."""


@dataclass(frozen=True)
class Previews:
    """What a run has written so far.

    Attributes:
        name: of the run.
        folder: of the files.
        steps: of which there are all volumes, rising.
    """

    name: str
    folder: Path
    steps: tuple[int, ...]

    def files(self, step: int) -> dict[str, Path]:
        """The files of a step by what they show: ``original``, ``masked channel 2`` …; original first."""
        found = _files(self.folder)
        names = {name: path for (of, name), path in found.items() if of in (None, step)}
        return {name: names[name] for name in sorted(names, key=lambda one: _KINDS.index(one.split()[0]))}


@dataclass(frozen=True)
class _Read:
    """A volume as it was read.

    Attributes:
        scalars, shape: VTK array, and its shape (k, j, i).
        affine: 4x4, mm, voxel -> RAS.
        window: intensities that are black and white.
    """

    scalars: Any
    shape: tuple[int, ...]
    affine: np.ndarray
    window: tuple[float, float]


def find_previews(run: Path) -> Previews:
    """What previews there are; of a study those of the pre-training that has written last. For a thread."""
    folders = [folder for place in _PLACES for folder in run.glob(place) if folder.is_dir()]
    if not folders:
        return Previews(run.name, run / _PLACES[0], ())
    folder = max(folders, key=lambda one: one.stat().st_mtime)
    found = _files(folder)
    channels = {name for step, name in found if step is None}
    steps = sorted({step for step, _ in found if step is not None})
    wanted = len(channels) * (len(_KINDS) - 1)
    # The last may be in the middle of being written.
    whole = [step for step in steps if sum(of == step for of, _ in found) == wanted and channels]
    return Previews(run.name, folder, tuple(whole))


def load_previews(previews: Previews, step: int, scene: Scene) -> Steps[dict[str, Node]]:
    """Load the volumes of a step, in pieces.

    Returns:
        ``vtkMRMLScalarVolumeNode`` by what it shows.

    Raises:
        RunError: a file is missing or damaged; the scene is as it was.
    """
    text = f"Reading the preview of step {step}"
    read = yield from in_thread(partial(_read_all, previews, step), Step(0.0, text))
    nodes: dict[str, Node] = {}
    # In one piece, so that no view shows the error of one step beside the reconstruction of another.
    for name, one in read.items():
        title = f"{previews.name} {name}" + ("" if name.startswith(ORIGINAL) else f" (step {step})")
        nodes[name] = _shown(scene, name, title, str(previews.folder), one)
    for name in set(shown_previews(scene)) - set(nodes):
        # Of a run with more channels.
        scene.RemoveNode(shown_previews(scene)[name])
    return nodes


def shown_previews(scene: Scene) -> dict[str, Node]:
    """The previews that are in a scene, by what they show."""
    count = scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    nodes = [scene.GetNthNodeByClass(number, "vtkMRMLScalarVolumeNode") for number in range(count)]
    return {node.GetAttribute(PREVIEW): node for node in nodes if node.GetAttribute(PREVIEW)}


def _files(folder: Path) -> dict[tuple[int | None, str], Path]:
    """Files by step (None: of all) and what they show."""
    found = {}
    for path in folder.glob("*.nrrd"):
        match = _FILE.fullmatch(path.stem)
        if match is not None and (match["step"] is None) == (match["kind"] == ORIGINAL):
            name = match["kind"] + (f" channel {match['channel']}" if match["channel"] else "")
            found[int(match["step"]) if match["step"] else None, name] = path
    return found


def _read_all(previews: Previews, step: int) -> dict[str, _Read]:
    """For a thread."""
    files = previews.files(step)
    if len(files) < len(_KINDS):
        raise RunError(
            f"{previews.folder}: there is no whole preview of step {step}",
            cure="Choose another step, or wait for it.",
        )
    read: dict[str, _Read] = {}
    for name, path in files.items():
        kind, _, channel = name.partition(" ")
        original = read.get(f"{ORIGINAL} {channel}".strip())
        read[name] = _read(path, None if kind == ERROR or original is None else original.window)
    return read


def _read(path: Path, window: tuple[float, float] | None) -> _Read:
    # Slicer ships SimpleITK.
    import SimpleITK

    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        raise RunError(
            f"{path}: the preview cannot be read ({str(error).strip().splitlines()[-1]})",
            cure="Choose another step; the run itself is not touched by this.",
        ) from error
    array = SimpleITK.GetArrayViewFromImage(image)
    scalars = vtkDataArray.CreateDataArray(get_vtk_array_type(array.dtype))
    scalars.SetNumberOfTuples(array.size)
    vtk_to_numpy(scalars)[...] = array.ravel()
    low, high = window or (float(end) for end in np.percentile(array, _WINDOW))
    return _Read(scalars, array.shape, _affine(image), (low, high))


def _affine(image: Any) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _shown(scene: Scene, name: str, title: str, of: str, read: _Read) -> Node:
    """The volume that shows it: the one that is there, or a new one."""
    image = vtkImageData()
    image.SetDimensions(read.shape[::-1])
    image.GetPointData().SetScalars(read.scalars)
    node: Node = shown_previews(scene).get(name)
    is_new = node is None
    if is_new:
        node = slicer.vtkMRMLScalarVolumeNode()
        node.SetAttribute(PREVIEW, name)
        scene.AddNode(node)
        node.CreateDefaultDisplayNodes()
    modified = node.StartModify()
    if node.GetAttribute(_OF) != of and node.GetDisplayNode() is not None:
        # Set beforehand, or Slicer would look at every voxel to find one; afterwards it is the user's.
        low, high = read.window
        node.GetDisplayNode().AutoWindowLevelOff()
        node.GetDisplayNode().SetWindowLevelMinMax(low, max(high, low + 1e-3))
    node.SetAttribute(_OF, of)
    node.SetName(title)
    node.SetIJKToRASMatrix(vtk_matrix(read.affine, title))
    node.SetAndObserveImageData(image)
    node.EndModify(modified)
    if is_new:
        join_subject_hierarchy(node, beside=None)
    return node


def in_order(nodes: Mapping[str, Node]) -> list[str]:
    """What nodes show, in the order in which people look at them."""
    return sorted(nodes, key=lambda name: (_KINDS.index(name.split()[0]), name))
