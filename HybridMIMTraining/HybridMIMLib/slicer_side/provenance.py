"""What made a segmentation: kept on its node, saved with the scene, and in short on each segment, saved with files.

>>> for made in made_by(segmentation_node):                                               # doctest: +SKIP
...     print(made.describe())
hippocampus (a1b2c3d4e5f6), 2026-03-01T10:00:00+00:00, HybridMIM 0.1.0
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

import vtk

from HybridMIMLib import __version__
from HybridMIMLib.data.model_description import ModelDescription
from HybridMIMLib.slicer_side.segments import Node

ATTRIBUTE = "HybridMIM.MadeBy"
"""Of a segmentation node: JSON, a list with an entry for each result that was put in."""
LABEL_TAG, MODEL_TAG, VOXELS_TAG = "HybridMIM.Label", "HybridMIM.Model", "HybridMIM.Voxels"
"""Of a segment: the label of its class in the model, the model's name with the first digits of its hash, and how many
voxels it was given: other ones by now, and somebody has corrected it."""

_DIGITS = 12


@dataclass(frozen=True)
class MadeBy:
    """What made some of the segments of a node.

    Attributes:
        model: its name.
        hash: SHA-256 of the model package; empty where it is not known.
        trained: when, ISO 8601, or None.
        library: version of HybridMIM.
        made: when the result was put into the scene, ISO 8601 with zone.
        volume: name of what was segmented.
        settings: and whatever else whoever asked for it told, such as the device.
        segments: id of the segment, by label of the model.
    """

    model: str
    hash: str = ""
    trained: str | None = None
    library: str = __version__
    made: str = ""
    volume: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    segments: Mapping[int, str] = field(default_factory=dict)

    @property
    def short_hash(self) -> str:
        """The first digits."""
        return self.hash[:_DIGITS]

    def model_and_hash(self) -> str:
        """In a few words."""
        return f"{self.model} ({self.short_hash})" if self.hash else self.model

    def describe(self) -> str:
        """One line for people."""
        return f"{self.model_and_hash()}, {self.made}, HybridMIM {self.library}"


def made_with_model(
    model: ModelDescription, volume: Node, segments: Mapping[int, str], made_with: Mapping[str, Any]
) -> MadeBy:
    """The entry for a result of now.

    Args:
        made_with: ``hash`` or ``digest`` of the model package; the rest becomes ``settings``.
    """
    rest = dict(made_with)
    digest = rest.pop("hash", None) or rest.pop("digest", None) or ""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    settings = json.loads(json.dumps(rest, default=str))
    return MadeBy(
        model.name, str(digest), model.trained, __version__, now, volume.GetName() or "", settings, dict(segments)
    )


def keep_made_by(node: Node, entries: list[MadeBy]) -> None:
    """Write the entries on a node, in place of those that it has; none takes the attribute away."""
    content = [{**asdict(one), "segments": {str(k): v for k, v in one.segments.items()}} for one in entries]
    if content:
        node.SetAttribute(ATTRIBUTE, json.dumps(content, ensure_ascii=True))
    else:
        node.RemoveAttribute(ATTRIBUTE)


def made_by(node: Node) -> list[MadeBy]:
    """What made the segments of a node, oldest first; none where it was not HybridMIM, or cannot be read."""
    try:
        content = json.loads(node.GetAttribute(ATTRIBUTE) or "[]")
        return [_entry(one) for one in content]
    except (ValueError, TypeError, AttributeError, LookupError):
        return []


def _entry(content: Mapping[str, Any]) -> MadeBy:
    return MadeBy(**{**content, "segments": {int(k): str(v) for k, v in content["segments"].items()}})


def tag_of(segment: Any, name: str) -> str:
    """A tag of a ``vtkSegment``; empty where it has none."""
    value = vtk.reference("")
    return str(value.get()) if segment.GetTag(name, value) else ""
