"""Between labelled folders and the scene: a checked scan is loaded, and segmentations become labelled cases.

    >>> loaded = finish(load_scan(row, folder.looks, slicer.mrmlScene))                         # doctest: +SKIP
    >>> pairs = [SceneCase(node, volume_of(node)) for node in segmentations_in(slicer.mrmlScene)]  # doctest: +SKIP
    >>> describe_saved(finish(save_cases(pairs, Path("cases"))))                               # doctest: +SKIP
    'Saved 2 cases: liver_1, liver_2.'

Scans are read by a process of its own, as a training reads them; what is loaded enters the scene whole, or not at
all.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from HybridMIMLib.data.classes import LabelClass, default_color
from HybridMIMLib.errors import DataError, HybridMIMError, RunError
from HybridMIMLib.slicer_side.batch_case import remove_volume
from HybridMIMLib.slicer_side.child_steps import in_child, with_folder
from HybridMIMLib.slicer_side.correcting import AddedCase, add_to_folder, why_not
from HybridMIMLib.slicer_side.data_check import ScanRow
from HybridMIMLib.slicer_side.label_layers import LabelLayers, take_apart
from HybridMIMLib.slicer_side.next_scan import add_volume, read_voxels
from HybridMIMLib.slicer_side.placement import Relation
from HybridMIMLib.slicer_side.results import BACKUP_OF, add_segmentation, make_segments
from HybridMIMLib.slicer_side.segments import Node, Scene
from HybridMIMLib.slicer_side.steps import Step, Steps, in_thread, part

_MODULE = "HybridMIMLib.data.labelled_job"
_MOST_CLASSES = 255
"""That segments which share one image can show."""


# --- from a folder into the scene ------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedScan:
    """What is in the scene now.

    Attributes:
        volumes: ``vtkMRMLScalarVolumeNode``, one a channel.
        segmentation: ``vtkMRMLSegmentationNode`` of its label map, or None.
        note: why there is none though the scan has a label map; empty otherwise.
    """

    volumes: tuple[Node, ...]
    segmentation: Node | None
    note: str = ""


@dataclass(frozen=True)
class _Channel:
    """A channel, ready for the scene: what is known of it, its voxels as VTK has them, and their shape (k, j, i)."""

    about: dict[str, Any]
    scalars: Any
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Labels:
    """A label map, taken apart, with the classes that it holds."""

    layers: LabelLayers
    classes: list[LabelClass]


def load_scan(row: ScanRow, classes: Sequence[LabelClass], scene: Scene) -> Steps[LoadedScan]:
    """Load a scan, with its label map as a segmentation where it has one, in pieces.

    Args:
        row: of a check.
        classes: what the labels of its folder mean; a label that is none of them is called after its number.
        scene: gets them.

    Raises:
        RunError: the scan cannot be read; the scene is as it was. A label map that cannot be used is a note.
    """
    channels, labels, note = yield from part(with_folder(partial(_read, row, classes)), 0.0, 0.8)
    segments: dict[int, Any] = {}
    if labels is not None:
        grid = np.array(channels[0].about["affine"])
        made = make_segments(labels.layers, labels.classes, grid, Relation(None, None))
        segments = yield from part(made, 0.8, 1.0)
    yield Step(1.0, f"Showing {row.name}")
    return _show(row.name, channels, segments if labels is not None else None, note, scene)


def describe_loaded(name: str, loaded: LoadedScan) -> str:
    """What to tell the user."""
    several = f" ({len(loaded.volumes)} channels)" if len(loaded.volumes) > 1 else ""
    if loaded.note:
        return f"Loaded {name}{several} without its labels: {loaded.note}"
    if loaded.segmentation is None:
        return f"Loaded {name}{several}."
    content = loaded.segmentation.GetSegmentation()
    names = [content.GetSegment(one).GetName() for one in content.GetSegmentIDs()]
    return f"Loaded {name}{several} with its labels: {', '.join(names) or 'none, the label map is empty'}."


def _read(
    row: ScanRow, classes: Sequence[LabelClass], folder: Path
) -> Steps[tuple[list[_Channel], _Labels | None, str]]:
    text = f"Reading {row.name}"
    if not row.images:
        raise DataError(f"{row.name}: its files are not known", cure="Check the folder again.")
    job = {
        "do": "case",
        "name": row.name,
        "images": list(row.images),
        "label": row.label,
        "folder": str(Path(row.images[0]).parent),
    }
    about = yield from part(in_child(_MODULE, job, folder, text), 0.0, 0.6)
    channels = []
    for number, one in enumerate(about["volumes"]):
        read = in_thread(partial(read_voxels, Path(one["voxels"])), Step(0.5, text))
        scalars, shape = yield from part(read, 0.6 + 0.2 * number / len(about["volumes"]), 0.8)
        suffix = f" channel {number + 1}" if len(about["volumes"]) > 1 else ""
        channels.append(_Channel({**one, "name": f"{row.name}{suffix}"}, scalars, shape))
    if about["labels"] is None:
        return channels, None, str(about["note"])
    met = _met(about["values"], classes)
    if len(met) > _MOST_CLASSES:
        return channels, None, f"its label map holds {len(met)} labels, more than can be shown ({_MOST_CLASSES})."
    take = partial(_take_apart, Path(about["labels"]), channels[0].shape, met, row.name)
    layers = yield from part(in_thread(take, Step(0.5, text)), 0.8, 1.0)
    return channels, _Labels(layers, met), ""


def _met(values: Sequence[int], classes: Sequence[LabelClass]) -> list[LabelClass]:
    known = {one.label: one for one in classes}
    return [known.get(value) or LabelClass(value, f"class {value}", default_color(value)) for value in values]


def _take_apart(file: Path, shape: Sequence[int], classes: list[LabelClass], name: str) -> LabelLayers:
    """For a thread; the file has the label map as (k, j, i)."""
    k, j, i = shape
    return take_apart(np.load(file, allow_pickle=False).T, (i, j, k), classes, classes, name)


def _show(
    name: str, channels: Sequence[_Channel], segments: dict[int, Any] | None, note: str, scene: Scene
) -> LoadedScan:
    """The one piece that changes the scene; what fails in it takes everything back."""
    with ExitStack() as undo:
        volumes = []
        for one in channels:
            volumes.append(add_volume(scene, one.about, one.scalars, one.shape))
            undo.callback(remove_volume, volumes[-1], scene)
        segmentation = None
        if segments is not None:
            segmentation = add_segmentation(volumes[0], segments, f"{name} labels", undo)
        undo.pop_all()
    return LoadedScan(tuple(volumes), segmentation, note)


# --- from the scene into a folder ------------------------------------------------------------------------------


@dataclass(frozen=True)
class SceneCase:
    """What may become a labelled case.

    Attributes:
        segmentation: ``vtkMRMLSegmentationNode``.
        volume: ``vtkMRMLScalarVolumeNode`` that was segmented, or None where nobody has said so yet.
    """

    segmentation: Node
    volume: Node | None

    def why_not(self, folder: str) -> str:
        """Why it cannot be saved, as a sentence; empty if nothing is seen to be in the way."""
        return why_not(self.volume, self.segmentation, folder)


@dataclass(frozen=True)
class SavedCase:
    """What has become of one.

    Attributes:
        case: which it is.
        added: what the folder has now, or None.
        error: why it was not saved, with the cure.
    """

    case: SceneCase
    added: AddedCase | None
    error: str = ""

    @property
    def must_ask(self) -> bool:
        """Whether the folder has other labels of this scan, and the user has to say what is to become of them."""
        return self.added is not None and self.added.state == "exists"


def segmentations_in(scene: Scene) -> list[Node]:
    """The segmentations of a scene in their order, without backups of others."""
    count = scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
    nodes = (scene.GetNthNodeByClass(number, "vtkMRMLSegmentationNode") for number in range(count))
    return [node for node in nodes if not node.GetNodeReferenceID(BACKUP_OF) and not node.GetHideFromEditors()]


def save_cases(
    cases: Sequence[SceneCase], folder: Path, replace: bool = False, new_classes: bool = False
) -> Steps[list[SavedCase]]:
    """Save segmentations with their scans as cases of a labelled folder, one after the other, in pieces.

    One that cannot be saved does not keep the others from it. Closed early, those that are whole stay.

    Args:
        cases: each with its volume.
        folder: made if it is not there.
        replace: put the labels in the place of others of the same scan, which are kept.
        new_classes: let segments that the folder has no class for become classes of it.
    """
    done = []
    for number, case in enumerate(cases):
        steps = _save(case, folder, replace, new_classes)
        done.append((yield from part(steps, number / len(cases), (number + 1) / len(cases))))
    return done


def describe_saved(saved: Sequence[SavedCase]) -> str:
    """What to tell the user, a line a kind of outcome."""
    lines = []
    words = {
        "added": "Saved {}: {}.",
        "replaced": "Replaced the labels of {}: {}. The earlier ones are kept in the folder .replaced.",
        "unchanged": "{} with these labels in the folder already: {}.",
        "exists": "{} left with the labels that the folder has: {}.",
    }
    for state, text in words.items():
        names = [one.added.name for one in saved if one.added is not None and one.added.state == state]
        if names:
            lines.append(text.format(f"{len(names)} case" + ("" if len(names) == 1 else "s"), ", ".join(names)))
    for one in saved:
        if one.added is not None:
            lines += [f"Note, {one.added.name}: {note}." for note in one.added.notes]
        else:
            lines.append(f"Not saved, {one.case.segmentation.GetName()}: {one.error}")
    return "\n".join(lines)


def _save(case: SceneCase, folder: Path, replace: bool, new_classes: bool) -> Steps[SavedCase]:
    try:
        for node in (case.segmentation, case.volume):
            if node is not None and node.GetScene() is None:
                raise RunError(f"{node.GetName()} was removed from the scene", cure="Load it again.")
        if reason := case.why_not(str(folder)):
            message, _, cure = reason.partition("; ")
            raise DataError(message, cure=f"{cure[:1].upper()}{cure[1:]}")
        steps = add_to_folder(case.volume, case.segmentation, folder, replace=replace, new_classes=new_classes)
        return SavedCase(case, (yield from steps))
    except HybridMIMError as error:
        return SavedCase(case, None, str(error))
