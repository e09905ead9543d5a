"""A scan of a batch with its result, loaded into the scene.

    >>> steps = load_case(settings, row, slicer.mrmlScene)                                     # doctest: +SKIP
    >>> loaded = finish(steps)                                                                 # doctest: +SKIP
    >>> describe(loaded)                                                                       # doctest: +SKIP
    'Loaded liver_7 with its segmentation liver_7 Liver model.'

The scan is read by a process of its own, whatever its format; both come into the scene, or neither does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import slicer

from HybridMIMLib.config import user_path
from HybridMIMLib.data.model_description import ModelDescription
from HybridMIMLib.data.package_files import digest_of, open_package, read_hashes
from HybridMIMLib.errors import DataError, HybridMIMError
from HybridMIMLib.files import read_json
from HybridMIMLib.slicer_side.batch import BatchSettings, CaseRow, label_file
from HybridMIMLib.slicer_side.child_steps import in_child, with_folder
from HybridMIMLib.slicer_side.label_layers import Image, LabelSource
from HybridMIMLib.slicer_side.models import find_model
from HybridMIMLib.slicer_side.next_scan import add_volume, read_voxels
from HybridMIMLib.slicer_side.results import Output, put_in_scene
from HybridMIMLib.slicer_side.segments import Node, Scene
from HybridMIMLib.slicer_side.steps import Step, Steps, in_thread, part

_MODULE = "HybridMIMLib.data.labelled_job"


@dataclass(frozen=True)
class LoadedCase:
    """What is in the scene now.

    Attributes:
        volume: ``vtkMRMLScalarVolumeNode``.
        segmentation: ``vtkMRMLSegmentationNode``, or None where the scan has no result (yet).
    """

    volume: Node
    segmentation: Node | None


def load_case(batch: BatchSettings, row: CaseRow, scene: Scene) -> Steps[LoadedCase]:
    """Load a scan, and its result where there is one, in pieces.

    Args:
        batch: to which it belongs.
        row: of its table.
        scene: gets both.

    Raises:
        DataError: nobody knows where the scan is.
        HybridMIMError: scan, label map or model cannot be read, or the model is not the one that made the label map;
            the scene is as it was.
    """
    if not row.scan:
        raise DataError(f"{row.name}: its file is not known", cure="Start the batch again, which lists it anew.")
    folder, text = user_path(batch.output), f"Reading {row.name}"
    about, scalars, shape = yield from part(with_folder(partial(_read, row, folder)), 0.0, 0.6)
    labels, model, digest = yield from in_thread(partial(_result_of, batch, folder, row.name), Step(0.6, text))
    volume = add_volume(scene, about, scalars, shape)
    if labels is None:
        return LoadedCase(volume, None)
    made_with = {"digest": digest, "package": str(model.path), "inference": dict(batch.inference)}
    try:
        steps = put_in_scene(volume, labels, model, Output(table=False), made_with)
        made = yield from part(steps, 0.6, 1.0)
    except BaseException:
        remove_volume(volume, scene)
        raise
    return LoadedCase(volume, made.segmentation)


def describe(loaded: LoadedCase) -> str:
    """What to tell the user."""
    name = loaded.volume.GetName()
    if loaded.segmentation is None:
        return f"Loaded {name}; it has no result."
    return f"Loaded {name} with its segmentation {loaded.segmentation.GetName()}."


def _read(row: CaseRow, batch: Path, folder: Path) -> Steps[tuple[dict[str, Any], Any, tuple[int, ...]]]:
    """What is known of the scan, its voxels as VTK has them, and their shape (k, j, i)."""
    job, text = {"do": "read", "scan": row.scan, "folder": str(batch)}, f"Reading {row.name}"
    about = yield from part(in_child(_MODULE, job, folder, text), 0.0, 0.7)
    scalars, shape = yield from part(in_thread(lambda: read_voxels(Path(about["voxels"])), Step(0.5, text)), 0.7, 1.0)
    return about, scalars, shape


def _result_of(batch: BatchSettings, folder: Path, name: str) -> tuple[LabelSource | None, Any, str]:
    """The label map (or masks), the model that made it, and the hash of that; for a thread."""
    labels = label_file(folder, name)
    if labels is None:
        return None, None, ""
    try:
        model = find_model(batch.model)
    except HybridMIMError as error:
        raise DataError(
            f"the model that made this result cannot be read ({error.message})",
            cure=f"Import it again, or load the label map {labels} by hand.",
        ) from error
    digest = _digest(folder)
    if digest and digest != _digest_of(model):
        # Its classes may be others, and so would be the names of the segments.
        raise DataError(
            f"the results in {folder} were made by another model than {model.name} is now",
            cure=f"Choose the model that made them and start the batch again, or load {labels} by hand.",
        )
    return (_masks(folder, name, model) or labels) if model.overlapping else labels, model, digest


def _digest_of(model: ModelDescription) -> str:
    with open_package(model.path) as files:
        return digest_of(read_hashes(files))


def _masks(folder: Path, name: str, model: ModelDescription) -> dict[str, Image]:
    """A mask a class, by its name, where classes overlap."""
    found = {one.name: sorted((folder / "layers" / name).glob(f"{one.label}-*")) for one in model.classes}
    return {name: paths[0] for name, paths in found.items() if paths}


def remove_volume(volume: Node, scene: Scene) -> None:
    """Take a volume back, with what came with it; the user may have removed it already."""
    if volume.GetScene() is not scene:
        return
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = tree.GetItemByDataNode(volume) if tree is not None else 0
    if item:
        # Without window nobody else does it.
        tree.RemoveItem(item, False, False)
    display = volume.GetDisplayNode()
    scene.RemoveNode(volume)
    if display is not None:
        scene.RemoveNode(display)


def _digest(folder: Path) -> str:
    """Of the model, as the batch wrote it down; empty where it cannot be read."""
    try:
        return str(read_json(folder / "segmented.json")["made_with"]["model"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
