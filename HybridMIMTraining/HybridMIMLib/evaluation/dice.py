"""Dice overlap of label maps, class by class and region by region.

The rule for what is empty is that of every measure, and of the validation in a training; it is written at the top of
:mod:`HybridMIMLib.evaluation.measuring`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from HybridMIMLib.data.classes import LabelClass, Region

Labels = npt.NDArray[Any]


def dice_by_class(
    result: Labels,
    reference: Labels,
    classes: Sequence[LabelClass],
    annotated: Collection[int] | None = None,
) -> dict[str, float]:
    """Dice of each class of two label maps on one grid, background not counted.

    A class that is in neither has no Dice (NaN): calling that 1 would reward sets in which it is rare. A class in
    one of the two alone has 0, unless it was not annotated in the reference: then it has none.

    Args:
        result: label map.
        reference: label map of the same shape.
        classes: to measure.
        annotated: labels that were annotated in the reference; None: all.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(result, reference)
    return {
        one.name: _dice(result == one.label, reference == one.label) if _known({one.label}, annotated) else np.nan
        for one in classes
    }


def dice_by_region(
    result: Labels, reference: Labels, regions: Sequence[Region], annotated: Collection[int] | None = None
) -> dict[str, float]:
    """Dice of each region, the voxels that have any of its labels; NaN as in :func:`dice_by_class`.

    A region has no Dice where one of its labels was not annotated.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(result, reference)
    rows = {}
    for region in regions:
        labels = sorted(region.labels)
        dice = _dice(np.isin(result, labels), np.isin(reference, labels))
        rows[region.name] = dice if _known(region.labels, annotated) else np.nan
    return rows


def mean_dice(rows: Sequence[Mapping[str, float]], regions: Collection[str] = ()) -> dict[str, float]:
    """Mean over cases of each class and region, cases without it left out, and ``mean`` over those that count.

    Each mean is one mean of all its values; means of running means weigh cases unequally.

    Args:
        rows: Dice by name, one a case.
        regions: names that do not count for ``mean``, because their voxels count under other names already.
    """
    means = {name: _mean([row[name] for row in rows]) for name in rows[0]}
    return {**means, "mean": _mean([value for name, value in means.items() if name not in regions])}


def dice_of(both: int, one: int, other: int) -> float:
    """Dice from how many voxels two masks share and have; NaN where both are empty."""
    return 2 * both / (one + other) if one or other else float("nan")


def _check_shapes(result: Labels, reference: Labels) -> None:
    if result.shape != reference.shape:
        raise ValueError(f"label maps of shapes {result.shape} and {reference.shape} cannot be compared")


def _known(labels: Collection[int], annotated: Collection[int] | None) -> bool:
    return annotated is None or set(labels) <= set(annotated)


def _dice(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    return dice_of(int((one & other).sum()), int(one.sum()), int(other.sum()))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
