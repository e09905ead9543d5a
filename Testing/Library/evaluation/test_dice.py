"""Dice: by hand, the rule for empty classes and for those that were not annotated, and regions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from HybridMIMLib.data.classes import LabelClass, Region
from HybridMIMLib.evaluation.dice import dice_by_class, dice_by_region, mean_dice

CLASSES = [LabelClass(1, "one", (1, 0, 0)), LabelClass(5, "five", (0, 1, 0))]
REGIONS = [Region("both", frozenset({1, 5})), Region("last", frozenset({5}))]


def volume(*labels: int) -> np.ndarray:
    return np.array(labels, dtype=np.uint8).reshape(1, 1, -1)


def test_by_hand() -> None:
    dice = dice_by_class(volume(1, 1, 1, 0, 5, 0), volume(1, 1, 0, 0, 5, 5), CLASSES)
    assert dice == {"one": pytest.approx(4 / 5), "five": pytest.approx(2 / 3)}


def test_background_does_not_count() -> None:
    assert dice_by_class(volume(*[0] * 99, 1), volume(*[0] * 98, 1, 0), CLASSES[:1]) == {"one": 0.0}


def test_class_in_neither_has_no_dice_and_in_one_has_zero() -> None:
    dice = dice_by_class(volume(1, 0), volume(1, 5), CLASSES)
    assert dice == {"one": 1.0, "five": 0.0}
    assert math.isnan(dice_by_class(volume(1, 0), volume(1, 0), CLASSES)["five"])


def test_a_class_that_was_not_annotated_has_no_dice_though_it_was_found() -> None:
    found, reference = volume(1, 5, 5), volume(1, 0, 0)
    assert dice_by_class(found, reference, CLASSES) == {"one": 1.0, "five": 0.0}
    partial = dice_by_class(found, reference, CLASSES, annotated={1})
    assert partial["one"] == 1.0 and math.isnan(partial["five"])
    assert dice_by_class(found, reference, CLASSES, annotated={1, 5}) == {"one": 1.0, "five": 0.0}
    assert all(math.isnan(value) for value in dice_by_class(found, reference, CLASSES, annotated=()).values())


def test_regions_by_hand() -> None:
    found, reference = volume(1, 5, 5, 0, 2), volume(5, 1, 0, 1, 2)
    assert dice_by_region(found, reference, REGIONS) == {"both": pytest.approx(4 / 6), "last": 0.0}
    assert math.isnan(dice_by_region(volume(2), volume(2), REGIONS)["both"])
    assert dice_by_region(found, reference, []) == {}


def test_regions_against_loops() -> None:
    random = np.random.default_rng(0)
    found, reference = random.choice([0, 1, 3, 5], (2, 4, 5, 6)).astype(np.uint16)
    pairs = list(zip(found.ravel().tolist(), reference.ravel().tolist()))
    both = sum(a in (1, 5) and b in (1, 5) for a, b in pairs)
    each = sum((a in (1, 5)) + (b in (1, 5)) for a, b in pairs)
    assert dice_by_region(found, reference, REGIONS)["both"] == pytest.approx(2 * both / each)


def test_a_region_with_a_label_that_was_not_annotated_has_no_dice() -> None:
    rows = dice_by_region(volume(1, 5), volume(0, 5), REGIONS, annotated={5})
    assert math.isnan(rows["both"]) and rows["last"] == 1.0


def test_mean_leaves_missing_classes_out() -> None:
    means = mean_dice([{"one": 1.0, "five": float("nan")}, {"one": 0.5, "five": 0.2}])
    assert means == {"one": 0.75, "five": 0.2, "mean": pytest.approx(0.475)}


def test_mean_is_that_of_the_classes_and_regions_stand_beside_it() -> None:
    rows = [{"one": 1.0, "five": 0.5, "both": 0.1}, {"one": 0.0, "five": 0.5, "both": 0.3}]
    assert mean_dice(rows, ["both"]) == {"one": 0.5, "five": 0.5, "both": pytest.approx(0.2), "mean": 0.5}


@pytest.mark.parametrize("measure", [dice_by_class, dice_by_region])
def test_other_shape_is_refused(measure: object) -> None:
    assert callable(measure)
    with pytest.raises(ValueError, match="cannot be compared"):
        measure(volume(1), volume(1, 0), [])
