"""The classes of a label map: what a number means, what it is called and how it is drawn."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LabelClass:
    """One class of a label map.

    Attributes:
        label: its value in label maps, from 1 (0 is background).
        name: what people call it.
        color: red, green, blue, each from 0 to 1.
        terminology: a Slicer terminology entry (``category^code^meaning~type^…``), or None.
    """

    label: int
    name: str
    color: tuple[float, float, float]
    terminology: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A dictionary that JSON can hold."""
        return {**asdict(self), "color": list(self.color)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LabelClass:
        """The class that :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: the dictionary is not one of ours.
        """
        red, green, blue = (float(part) for part in content["color"])
        terminology = content.get("terminology")
        return cls(int(content["label"]), str(content["name"]), (red, green, blue), terminology)


@dataclass(frozen=True)
class Region:
    """Several labels measured as one, such as the whole tumour of BraTS.

    Attributes:
        name: what people call it.
        labels: the labels in it, each from 1.
    """

    name: str
    labels: frozenset[int]


@dataclass(frozen=True)
class Naming:
    """What the labels of a data set mean.

    Attributes:
        classes: by label; empty where the labels have no names.
        regions: groups of these labels that are measured as one.
    """

    classes: tuple[LabelClass, ...] = ()
    regions: tuple[Region, ...] = ()


def make_naming(names: Mapping[int, str], regions: Mapping[str, Iterable[int]] | None = None) -> Naming:
    """From names by label and labels by region; classes in the order of their labels."""
    classes = tuple(LabelClass(label, name, default_color(label)) for label, name in sorted(names.items()))
    return Naming(classes, tuple(Region(name, frozenset(labels)) for name, labels in (regions or {}).items()))


def default_color(label: int) -> tuple[float, float, float]:
    """A strong colour for a label; neighbours are far apart because hues step by the golden ratio."""
    hue = (0.02 + (label - 1) * 0.618034) % 1.0
    return colorsys.hsv_to_rgb(hue, 0.75, 0.95)
