"""Dice: by hand, and the rule for empty classes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.evaluation.dice import dice_by_class, mean_dice

CLASSES = [LabelClass(1, "one", (1, 0, 0)), LabelClass(5, "five", (0, 1, 0))]


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


def test_mean_leaves_missing_classes_out() -> None:
    means = mean_dice([{"one": 1.0, "five": float("nan")}, {"one": 0.5, "five": 0.2}])
    assert means == {"one": 0.75, "five": 0.2, "mean": pytest.approx(0.475)}


def test_other_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        dice_by_class(volume(1), volume(1, 0), CLASSES)
