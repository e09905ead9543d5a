"""The classes of a label map: what a number means, what it is called and how it is drawn."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from HybridMIMLib.errors import SettingsError


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


def telling_regions(classes: Sequence[LabelClass], regions: Sequence[Region]) -> tuple[Region, ...]:
    """The regions, largest first, and as many classes beside them as are needed to tell every label.

    A label is told by the regions that hold it. Where several labels are held by the same ones, or by none, all but
    one of them (in none: all) become regions of their own. The one that does not is what is left of the region
    without the others: a label called after its number, which nobody cared to name, or else the first.

    Args:
        classes: all of them.
        regions: groups of their labels.
    """
    alike: dict[frozenset[str], list[LabelClass]] = {}
    for one in classes:
        alike.setdefault(frozenset(r.name for r in regions if one.label in r.labels), []).append(one)
    own: list[Region] = []
    for holders, group in alike.items():
        rest = next((one for one in group if one.name == _number_name(one.label)), group[0]) if holders else None
        own += [Region(one.name, frozenset({one.label})) for one in group if one is not rest]
    return tuple(sorted([*regions, *own], key=lambda region: -len(region.labels)))


def regions_in_label_map(classes: Sequence[LabelClass], regions: Sequence[Region]) -> tuple[LabelClass, ...]:
    """How regions stand in one label map with the labels of the classes: one class a region, called as the region.

    Painted one after the other, largest first, each with the label that is in no smaller one, they give the label map
    from which they were made: BraTS's WT, TC and ET are painted as edema, necrosis and enhancing tumour.

    Args:
        classes: all of them.
        regions: as :func:`telling_regions` gives them.

    Raises:
        SettingsError: two of them overlap, or one is the others together: a label map cannot say so.
    """
    for one, other in combinations(regions, 2):
        if one.labels & other.labels and not other.labels < one.labels:
            raise SettingsError(
                f"finetuning.target is regions, and {one.name} and {other.name} share labels without one being a "
                "part of the other, so that no label map can hold both",
                cure="Change or remove one of them in classes.json or dataset.json, or set finetuning.target to "
                "classes.",
            )
    by_label = {one.label: one for one in classes}
    painted = []
    for region in regions:
        inner = frozenset().union(*(other.labels for other in regions if other.labels < region.labels))
        if not region.labels - inner:
            raise SettingsError(
                f"finetuning.target is regions, and {region.name} is nothing but smaller regions together, so that "
                "no label is left for it in a label map",
                cure="Remove it, or one of these, in classes.json or dataset.json, or set finetuning.target to "
                "classes: it is measured all the same.",
            )
        like = by_label[min(region.labels - inner)]
        terminology = like.terminology if len(region.labels) == 1 else None
        painted.append(LabelClass(like.label, region.name, like.color, terminology))
    return tuple(painted)


def _number_name(label: int) -> str:
    return f"class {label}"
