"""Which scan to label next: a folder is ranked by how uncertain a model is, and its scans are loaded one by one.

    >>> ranking = start_ranking("unlabelled", "liver", device="auto")    # a job, to be followed    # doctest: +SKIP
    >>> ranking.wait()                                                                         # doctest: +SKIP
    >>> found = finish(load_next(ranking.folder, Path("cases"), slicer.mrmlScene))             # doctest: +SKIP
    >>> found.volume, describe(found)                                                          # doctest: +SKIP

A scan that is in the labelled folder, or in the scene, is passed over. Voxels are read by a process of its own,
whatever their format; the window gets them as they are laid out in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from vtk import vtkDataArray, vtkImageData
from vtk.util.numpy_support import get_vtk_array_type, vtk_to_numpy

from HybridMIMLib.config import user_path
from HybridMIMLib.errors import RunError, SettingsError
from HybridMIMLib.runs import new_path
from HybridMIMLib.slicer_side.child_steps import in_child, with_folder
from HybridMIMLib.slicer_side.correcting import SOURCE, source_of
from HybridMIMLib.slicer_side.jobs import Job, start_job
from HybridMIMLib.slicer_side.segments import Node, Scene, join_subject_hierarchy, vtk_matrix
from HybridMIMLib.slicer_side.steps import Step, Steps, in_thread, part

COMMAND = "rank"
SCORE = "HybridMIM.Uncertainty"
"""Attribute of a volume: how uncertain the model is about it, from 0 to 1."""

_MODULE = "HybridMIMLib.data.labelled_job"
_RANKING = "ranking.json"


@dataclass(frozen=True)
class NextScan:
    """What was loaded.

    Attributes:
        volume: ``vtkMRMLScalarVolumeNode`` in the scene, or None: no scan is left.
        rank: its place in the ranking, from 1.
        score: how uncertain the model is about it, from 0 to 1.
        found: whether the model found any class in it.
        labelled: how many scans before it are labelled already.
        notes: a line for each scan that cannot be used.
    """

    volume: Node | None
    rank: int = 0
    score: float = 0.0
    found: bool = True
    labelled: int = 0
    notes: tuple[str, ...] = ()


def start_ranking(scans: str, model: str, output: str = "", device: str = "auto") -> Job:
    """Start the ranking of a folder, in a process of its own that outlives Slicer.

    Args:
        scans: folder.
        model: folder, ``.zip`` or name of a model package.
        output: run folder of an earlier ranking, to rank what has changed since; empty for a new one.
        device: auto, cpu, cuda, cuda:1, mps.

    Raises:
        SettingsError: something is not chosen, or not there.
        HybridMIMError: the process cannot be started.
    """
    for text, what in ((scans, "folder of scans"), (model, "model")):
        if not text.strip():
            raise SettingsError(f"No {what} is chosen", cure="Choose one.")
    if not user_path(scans).is_dir():
        raise SettingsError(f"The folder of scans is not there: {scans}", cure="Choose another.")
    folder = user_path(output) if output else new_path(COMMAND)
    return start_job(COMMAND, {"scans": scans, "model": model, "device": device}, folder)


def load_next(ranking: Path, labelled: Path, scene: Scene) -> Steps[NextScan]:
    """Load the first scan of a ranking that is neither in the labelled folder nor in the scene, in pieces.

    Args:
        ranking: run folder of :func:`start_ranking`.
        labelled: the labelled folder; it may not be there yet.
        scene: gets the volume, whole and at the end.

    Raises:
        RunError: there is no ranking, or the labelled folder cannot be used; the message says why.
    """
    if not (ranking / _RANKING).is_file():
        raise RunError(f"{ranking}: holds no ranking", cure="Rank the scans first.")
    job = {
        "do": "next",
        "ranking": str(ranking / _RANKING),
        "folder": str(labelled.expanduser().absolute()),
        "passed": sources_in(scene),
    }
    result, scalars, shape = yield from with_folder(partial(_look, job))
    told = int(result["labelled"]), tuple(map(str, result["notes"]))
    if "scan" not in result:
        return NextScan(None, labelled=told[0], notes=told[1])
    yield Step(0.9, f"Showing {result['name']}")
    row = result["row"]
    volume = add_volume(scene, result, scalars, shape)
    volume.SetAttribute(SCORE, repr(float(row["score"])))
    return NextScan(volume, int(row["rank"]), float(row["score"]), bool(row["found"]), *told)


def describe(found: NextScan) -> str:
    """What to tell the user."""
    if found.volume is None:
        text = (
            f"No scan is left: {found.labelled} of the ranking are labelled, the others are open or cannot be used."
        )
    else:
        nothing = "" if found.found else ", and the model found nothing in it"
        name = found.volume.GetName()
        text = f"{name} is number {found.rank} of the ranking (uncertainty {found.score:.2f}){nothing}."
    return " ".join([text, *(f"Passed over: {note}" for note in found.notes)])


def sources_in(scene: Scene) -> list[str]:
    """The files of the volumes of a scene, where they are known."""
    count = scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    nodes = (scene.GetNthNodeByClass(number, "vtkMRMLScalarVolumeNode") for number in range(count))
    return [source for node in nodes if (source := source_of(node))]


def _look(job: dict[str, Any], folder: Path) -> Steps[tuple[dict[str, Any], Any, tuple[int, ...]]]:
    """What the process found, with the voxels as VTK has them, and their shape (k, j, i)."""
    result = yield from part(in_child(_MODULE, job, folder, "Looking for the next scan"), 0.0, 0.7)
    if "scan" not in result:
        return result, None, ()
    read = in_thread(lambda: read_voxels(Path(result["voxels"])), Step(0.5, f"Reading {result['name']}"))
    scalars, shape = yield from part(read, 0.7, 0.9)
    return result, scalars, shape


def read_voxels(file: Path) -> tuple[Any, tuple[int, ...]]:
    """A VTK array with the voxels, and their shape (k, j, i); work for a thread."""
    array = np.load(file, allow_pickle=False)
    scalars = vtkDataArray.CreateDataArray(get_vtk_array_type(array.dtype))
    scalars.SetNumberOfTuples(array.size)
    vtk_to_numpy(scalars)[...] = array.ravel()
    return scalars, array.shape


def add_volume(scene: Scene, about: dict[str, Any], scalars: Any, shape: tuple[int, ...]) -> Node:
    """Put a volume into a scene.

    Args:
        about: what :func:`~HybridMIMLib.data.next_scan.write_for_window` returned.
        scalars, shape: from :func:`read_voxels`.
    """
    image = vtkImageData()
    image.SetDimensions(shape[::-1])
    image.GetPointData().SetScalars(scalars)
    node = slicer.vtkMRMLScalarVolumeNode()
    node.SetName(scene.GenerateUniqueName(about["name"]))
    node.SetAttribute(SOURCE, about["scan"])
    node.SetIJKToRASMatrix(vtk_matrix(np.array(about["affine"]), about["name"]))
    scene.AddNode(node)
    node.CreateDefaultDisplayNodes()
    # Set beforehand, or Slicer would look at every voxel to find one.
    display, (low, high) = node.GetDisplayNode(), about["window"]
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(low, max(high, low + 1e-3))
    node.SetAndObserveImageData(image)
    join_subject_hierarchy(node, beside=None)
    return node
