"""What is to be segmented: a volume, a volume a channel, or sequences of them; and why it cannot be.

>>> make_inputs({"T1": t1_node, "T2": t2_node}, model)                                    # doctest: +SKIP
Inputs(nodes=(...), ...)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from HybridMIMLib.data.model_description import ModelDescription
from HybridMIMLib.errors import DataError
from HybridMIMLib.slicer_side.models import channel_names
from HybridMIMLib.slicer_side.roi import why_no_region
from HybridMIMLib.slicer_side.segments import Node, ijk_to_ras
from HybridMIMLib.slicer_side.sequences import proxy_of
from HybridMIMLib.slicer_side.voxels import is_known_type, stamp

Given: TypeAlias = "Node | Sequence[Node] | Mapping[str, Node]"
"""One node, one a channel in the model's order, or one by the name of each channel."""

MOST_SEGMENTS = 255
"""Segments of a scene share one label image of 8 bits."""

_SEQUENCE, _BROWSER, _VOLUME = "vtkMRMLSequenceNode", "vtkMRMLSequenceBrowserNode", "vtkMRMLScalarVolumeNode"
_SAME = 0.05
"""Voxels by which the corners of two channels may differ: more than files round, too little to matter."""


@dataclass(frozen=True)
class Inputs:
    """What is segmented.

    Attributes:
        nodes: a volume a channel, in the model's order; or a sequence a channel.
        is_sequence: whether they are sequences, each item of which is segmented by itself.
    """

    nodes: tuple[Node, ...]
    is_sequence: bool

    @property
    def main(self) -> Node:
        """The first channel: the result lies on its grid and under its transform."""
        return self.nodes[0]

    @property
    def name(self) -> str:
        """Of the first channel."""
        return str(self.main.GetName())

    @property
    def items(self) -> int:
        """How many volumes are segmented one after the other."""
        return int(self.main.GetNumberOfDataNodes()) if self.is_sequence else 1

    def volumes(self, item: int) -> tuple[Node, ...]:
        """The volumes of an item, one a channel; those of a sequence are in no scene."""
        if not self.is_sequence:
            return self.nodes
        return tuple(node.GetNthDataNode(item) for node in self.nodes)

    @property
    def transform(self) -> Node | None:
        """Under which the volumes lie; that of a sequence is told by the node that shows its items."""
        shown = proxy_of(self.main) if self.is_sequence else self.main
        return shown.GetParentTransformNode() if shown is not None else None

    def stamps(self) -> tuple[Any, ...]:
        """Changes when the voxels do."""
        return tuple(stamp(one) for item in range(self.items) for one in self.volumes(item) if one is not None)

    def is_there(self) -> bool:
        """Whether all of it is still in the scene."""
        return all(node.GetScene() is not None for node in self.nodes)

    def to_json(self) -> dict[str, Any]:
        """What it was, for the provenance of the result."""
        return {
            "nodes": [{"id": node.GetID(), "name": node.GetName()} for node in self.nodes],
            "items": self.items if self.is_sequence else None,
        }


def make_inputs(given: Given, model: ModelDescription, roi: Node | None = None) -> Inputs:
    """The inputs that were given.

    Raises:
        DataError: they cannot be segmented with this model; see :func:`why_not`.
    """
    reason = why_not(given, model, roi)
    if reason:
        raise DataError(reason.rstrip("."), cure="Choose another volume.")
    nodes = _nodes(given, model)
    return Inputs(tuple(nodes), nodes[0].GetClassName() == _SEQUENCE)


def why_not(given: Given | None, model: ModelDescription | None = None, roi: Node | None = None) -> str:
    """Why something cannot be segmented, or not with this model, as a sentence; empty if it can.

    Args:
        given: a scalar volume, a sequence of them or its browser; a list with one a channel; or a mapping with one
            by the name of each channel, as :func:`~HybridMIMLib.slicer_side.models.channel_names` has them.
        model: or None, as long as none is chosen.
        roi: region of interest, or None.
    """
    if given is None or (isinstance(given, (Mapping, list, tuple)) and not given):
        return "Choose a volume; if there is none, load one with File > Add Data."
    reason = _why_not_these(given, model)
    if reason:
        return reason
    nodes = _nodes(given, model)
    for node in nodes:
        reason = _why_not_node(node, model if len(nodes) == 1 else None)
        if reason:
            return reason
    reason = _why_not_together(nodes) or _why_not_model(nodes, model)
    return reason or ("" if roi is None else why_no_region(roi))


def _nodes(given: Given, model: ModelDescription | None) -> list[Node]:
    """In the model's order; a browser stands for the sequence that it leads."""
    if isinstance(given, Mapping):
        names = channel_names(model) if model is not None else given
        found = [given[name] for name in names]
    else:
        found = list(given) if isinstance(given, (list, tuple)) else [given]
    return [one.GetMasterSequenceNode() if _is(one, _BROWSER) else one for one in found]


def _why_not_these(given: Given, model: ModelDescription | None) -> str:
    """What is wrong with the names of channels, and with what is no node at all."""
    if isinstance(given, Mapping) and model is not None:
        names = channel_names(model)
        missing = [name for name in names if given.get(name) is None]
        strange = [name for name in given if name not in names]
        if missing:
            return f"Choose a volume for {', '.join(missing)}; the model {model.name} needs {', '.join(names)}."
        if strange:
            return f"The model {model.name} has no channel {', '.join(strange)}; it has {', '.join(names)}."
    values = given.values() if isinstance(given, Mapping) else given if isinstance(given, (list, tuple)) else [given]
    return "" if all(hasattr(one, "GetClassName") for one in values) else "Choose a volume for every channel."


def _why_not_node(node: Node | None, model: ModelDescription | None) -> str:
    if node is None:
        return "The sequence browser leads no sequence; choose a volume."
    if not _is(node, _SEQUENCE):
        return _why_not_volume(node, node.GetName(), model)
    if node.GetNumberOfDataNodes() == 0:
        return f"Sequence {node.GetName()} is empty; choose another one."
    items = ((index, node.GetNthDataNode(index)) for index in range(node.GetNumberOfDataNodes()))
    reasons = (_why_not_volume(one, f"{index + 1} of the sequence {node.GetName()}", model) for index, one in items)
    return next(filter(None, reasons), "")


def _why_not_volume(volume: Node, name: str, model: ModelDescription | None) -> str:
    image = volume.GetImageData()
    if not _is(volume, _VOLUME):
        return f"Volume {name} is no scalar volume but a {volume.GetNodeTagName()}; choose another one."
    if image is None or image.GetNumberOfPoints() == 0 or image.GetPointData().GetScalars() is None:
        return f"Volume {name} holds no voxels; choose another one."
    if min(image.GetDimensions()) < 2:
        return f"Volume {name} is a single slice; choose one with several."
    channels = image.GetNumberOfScalarComponents()
    if model is not None and channels != model.channels and channels != 1:
        return f"Volume {name} has {channels} channel(s), and the model {model.name} needs {model.channels}."
    if channels != 1:
        return f"Volume {name} has {channels} channels; choose one with grey values."
    if not is_known_type(volume):
        return (
            f"The voxels of {name} are of a type that cannot be segmented; convert them (module Cast Scalar Volume)."
        )
    return ""


def _why_not_together(nodes: list[Node]) -> str:
    first, *others = nodes
    for other in others:
        if _is(first, _SEQUENCE) != _is(other, _SEQUENCE):
            return f"{first.GetName()} and {other.GetName()} are not both sequences; choose volumes of one kind."
        if not _is(first, _SEQUENCE):
            difference = _difference(first, other, first.GetName(), other.GetName())
        elif first.GetNumberOfDataNodes() != other.GetNumberOfDataNodes():
            counts = f"{other.GetNumberOfDataNodes()} items, {first.GetName()} has {first.GetNumberOfDataNodes()}"
            difference = f"Sequence {other.GetName()} has {counts}"
        else:
            items = range(first.GetNumberOfDataNodes())
            pairs = ((i + 1, first.GetNthDataNode(i), other.GetNthDataNode(i)) for i in items)
            names = (f"of {first.GetName()}", f"of {other.GetName()}")
            found = (_difference(a, b, f"{i} {names[0]}", f"{i} {names[1]}") for i, a, b in pairs)
            difference = next(filter(None, found), "")
        if difference:
            return (
                f"{difference}. The channels of a scan lie on one grid: resample one onto the other first "
                "(module Resample Scalar/Vector/DWI Volume)."
            )
    return ""


def _difference(first: Node, other: Node, name: str, other_name: str) -> str:
    """In what the grids of two volumes differ, without a full stop; empty if in nothing."""
    shape, other_shape = first.GetImageData().GetDimensions(), other.GetImageData().GetDimensions()
    if shape != other_shape:
        by = " x ".join(map(str, other_shape)), " x ".join(map(str, shape))
        return f"Volume {other_name} has {by[0]} voxels, {name} has {by[1]}"
    if first.GetTransformNodeID() != other.GetTransformNodeID():
        transforms = [node.GetParentTransformNode() for node in (other, first)]
        under = [f"the transform {one.GetName()}" if one is not None else "no transform" for one in transforms]
        return f"Volume {other_name} lies under {under[0]}, {name} under {under[1]}"
    corners = np.array([[x, y, z, 1.0] for x in (0, shape[0]) for y in (0, shape[1]) for z in (0, shape[2])])
    affine, other_affine = ijk_to_ras(first), ijk_to_ras(other)
    shift = corners @ (other_affine - affine).T
    voxels = np.abs(np.linalg.solve(affine, shift.T)).max()
    if voxels > _SAME:
        return f"The voxels of {other_name} lie up to {np.abs(shift).max():.2g} mm away from those of {name}"
    return ""


def _why_not_model(nodes: list[Node], model: ModelDescription | None) -> str:
    if model is None:
        return ""
    if len(nodes) != model.channels:
        names = ", ".join(channel_names(model))
        given = (
            f"Volume {nodes[0].GetName()} has 1 channel(s)"
            if len(nodes) == 1
            else f"{len(nodes)} volumes were chosen"
        )
        return f"{given}, and the model {model.name} needs {model.channels} ({names}): one volume for each."
    if len({node.GetID() for node in nodes}) < len(nodes):
        return "One volume was chosen for two channels; choose one for each."
    if max(one.label for one in model.classes) > MOST_SEGMENTS:
        return f"The model {model.name} has labels above {MOST_SEGMENTS}, which segments cannot have."
    return ""


def _is(node: Node, class_name: str) -> bool:
    return node is not None and bool(node.GetClassName() == class_name)
