"""Dice overlap of label maps, class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from HybridMIMLib.data.classes import LabelClass

Labels = npt.NDArray[Any]


def dice_by_class(result: Labels, reference: Labels, classes: Sequence[LabelClass]) -> dict[str, float]:
    """Dice of each class of two label maps on one grid, background not counted.

    A class that is in neither has no Dice (NaN): calling that 1 would reward sets in which it is rare. A class in
    one of the two alone has 0.

    Raises:
        ValueError: the shapes differ.
    """
    if result.shape != reference.shape:
        raise ValueError(f"label maps of shapes {result.shape} and {reference.shape} cannot be compared")
    return {one.name: _dice(result == one.label, reference == one.label) for one in classes}


def mean_dice(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over cases of each class, cases without it left out, and ``mean`` over those means.

    Each mean is one mean of all its values; means of running means weigh cases unequally.
    """
    names = list(rows[0])
    means = {name: _mean([row[name] for row in rows]) for name in names}
    return {**means, "mean": _mean(list(means.values()))}


def _dice(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else float("nan")


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
