"""What is done to the classes of a label map after the network: a description, which a model package can hold.

It is carried out in :mod:`HybridMIMLib.inference.cleaning`, where the rules are told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.settings.checks import named_amount
from HybridMIMLib.settings.inference import InferenceSettings

ALL = "all"
"""In settings: every class."""

_HIGHEST = 65535


@dataclass(frozen=True)
class CleanUp:
    """What is done to which class; classes are named by their label. By itself it does nothing, and is false.

    Attributes:
        largest: classes of which only the largest component is kept.
        fill_holes: classes whose holes are filled.
        smallest_ml: label → ml; components of the class that are smaller are removed.
    """

    largest: frozenset[int] = frozenset()
    fill_holes: frozenset[int] = frozenset()
    smallest_ml: Mapping[int, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.largest or self.fill_holes or self.smallest_ml)

    def to_json(self) -> dict[str, Any]:
        """A dictionary that JSON can hold."""
        return {
            "largest": sorted(self.largest),
            "fill_holes": sorted(self.fill_holes),
            "smallest_ml": {str(label): ml for label, ml in sorted(self.smallest_ml.items())},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CleanUp:
        """The description that :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: the dictionary is not one of ours.
        """
        if not isinstance(content["smallest_ml"], Mapping):
            raise TypeError(f"the smallest volumes are {content['smallest_ml']!r}, no section")
        volumes = {_label(int(text)): _volume(ml) for text, ml in content["smallest_ml"].items()}
        return cls(_labels(content["largest"]), _labels(content["fill_holes"]), volumes)

    def with_settings(self, settings: InferenceSettings, classes: Sequence[LabelClass]) -> CleanUp:
        """The same, but for what the settings say otherwise; what they leave open (None) stays.

        Args:
            settings: name classes by their names, or ``all``; an empty list is none.
            classes: of the model.

        Raises:
            SettingsError: there is no class of such a name; the cure names the nearest.
        """
        largest, holes, volumes = settings.largest, settings.fill_holes, settings.smallest_ml
        return CleanUp(
            self.largest if largest is None else _all_named(largest, classes, "inference.largest"),
            self.fill_holes if holes is None else _all_named(holes, classes, "inference.fill_holes"),
            self.smallest_ml if volumes is None else _volumes(volumes, classes),
        )


def _all_named(names: Iterable[str], classes: Sequence[LabelClass], setting: str) -> frozenset[int]:
    return frozenset(label for name in names for label in _named(name, classes, setting))


def _volumes(texts: Iterable[str], classes: Sequence[LabelClass]) -> dict[int, float]:
    """From ``CLASS=ML``; what is said of one class counts more than what is said of all."""
    pairs = sorted(map(named_amount, texts), key=lambda pair: pair[0] != ALL)
    return {label: ml for name, ml in pairs for label in sorted(_named(name, classes, "inference.smallest_ml"))}


def _named(name: str, classes: Sequence[LabelClass], setting: str) -> frozenset[int]:
    """The labels of the classes of a name: one, or all."""
    if name == ALL:
        return frozenset(one.label for one in classes)
    labels = frozenset(one.label for one in classes if one.name == name)
    if labels:
        return labels
    names = [one.name for one in classes]
    lower = {one.lower(): one for one in reversed(names)}
    near = [lower[text] for text in get_close_matches(name.lower(), list(lower), n=1)]
    cure = f"Did you mean {near[0]!r}? " if near else ""
    raise SettingsError(
        f"{setting} names the class {name!r}, which the model does not have",
        cure=f"{cure}Its classes are: {', '.join(names)}; {ALL} stands for every one.",
    )


def _labels(content: Any) -> frozenset[int]:
    if not isinstance(content, list):
        raise TypeError(f"the labels {content!r} are no list")
    return frozenset(_label(one) for one in content)


def _label(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"the label {value!r} is no whole number")
    if not 1 <= value <= _HIGHEST:
        raise ValueError(f"the label {value} is not from 1 to {_HIGHEST}")
    return value


def _volume(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"the volume {value!r} is no number")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"the volume {value} is not above 0")
    return float(value)
