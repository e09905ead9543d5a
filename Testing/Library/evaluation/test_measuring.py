"""Measures of a case by hand, and the one rule for what is empty."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from HybridMIMLib.data.classes import LabelClass, Region
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.scans import read_label_map
from HybridMIMLib.evaluation.dice import dice_by_class, dice_by_region
from HybridMIMLib.evaluation.measuring import Row, case_dice, labels_in, measure_case
from HybridMIMLib.evaluation.surfaces import surface_distances

CLASSES = (LabelClass(1, "one", (1, 0, 0)), LabelClass(300, "many", (0, 1, 0)))
REGIONS = (Region("both", frozenset({1, 300})),)
SHEARED = np.array([[1.0, 0.3, 0.2, 5], [0, 2.0, -0.4, 6], [0, 0, 5.0, 7], [0, 0, 0, 1]])
"""Its voxels are of 0.01 ml."""


def grid_of(*shape: int, affine: np.ndarray = SHEARED) -> Grid:
    return Grid((shape[0], shape[1], shape[2]), affine)


def volume(shape: tuple[int, int, int], **boxes: tuple[int, tuple[slice, slice, slice]]) -> np.ndarray:
    labels = np.zeros(shape, dtype=np.uint16)
    for label, place in boxes.values():
        labels[place] = label
    return labels


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


def test_by_hand() -> None:
    reference, prediction = np.zeros((2, 10, 10, 10), dtype=np.uint16)
    reference[2:6, 2:6, 2:6] = 1
    prediction[3:8, 2:6, 2:6] = 1
    rows = by_name(measure_case(reference, prediction, grid_of(10, 10, 10, affine=np.diag([1.5, 2, 5, 1])), CLASSES))
    one = rows["one"]
    assert one.status == "both" and one.dice == pytest.approx(2 * 48 / (64 + 80))
    # The wall on one side is one voxel off, on the other two: 3 mm.
    assert one.hd95 == pytest.approx(3)
    assert (one.reference_ml, one.prediction_ml) == pytest.approx((64 * 0.015, 80 * 0.015))
    assert (one.difference_ml, one.difference_percent) == pytest.approx((0.24, 25))
    assert 0 < one.surface_dice < 1 and one.tolerance == 2


@pytest.mark.parametrize("voxels", [1, 2, 4])
def test_a_box_that_is_moved(voxels: int) -> None:
    reference = np.zeros((20, 12, 12), dtype=np.uint8)
    reference[3:11, 3:9, 3:9] = 1
    prediction = np.roll(reference, voxels, axis=0)
    (row,) = measure_case(
        reference,
        prediction,
        grid_of(20, 12, 12, affine=np.diag([0.8, 3, 3, 1])),
        CLASSES[:1],
        tolerance=0.8 * voxels,
    )
    assert row.dice == pytest.approx((8 - voxels) / 8) and row.hd95 == pytest.approx(0.8 * voxels)
    assert row.surface_dice == 1 and row.difference_ml == 0


EMPTY = np.zeros((3, 4, 5), dtype=np.uint8)
FULL = np.ones((3, 4, 5), dtype=np.uint8)
DIAGONAL = math.sqrt(3**2 * 1 + 4**2 * 4 + 5**2 * 25)


@pytest.mark.parametrize(
    ("reference", "prediction", "status"),
    [(FULL, EMPTY, "missed"), (FULL, None, "missed"), (EMPTY, FULL, "invented")],
)
def test_a_class_that_one_alone_has(reference: np.ndarray, prediction: np.ndarray | None, status: str) -> None:
    (row,) = measure_case(reference, prediction, grid_of(3, 4, 5, affine=np.diag([1.0, 2, 5, 1])), CLASSES[:1])
    assert row.status == status and row.counts
    assert (row.dice, row.surface_dice) == (0, 0) and row.hd95 == pytest.approx(DIAGONAL)
    assert row.reference_ml + row.prediction_ml == pytest.approx(0.6) == abs(row.difference_ml)
    if status == "missed":
        assert row.difference_percent == -100
    else:
        assert math.isnan(row.difference_percent), "there is no percentage of nothing"


@pytest.mark.parametrize("prediction", [EMPTY, None])
def test_a_class_that_neither_has_does_not_count(prediction: np.ndarray | None) -> None:
    (row,) = measure_case(EMPTY, prediction, grid_of(3, 4, 5), CLASSES[:1])
    assert row.status == "absent" and not row.counts
    assert all(math.isnan(value) for value in (row.dice, row.hd95, row.surface_dice, row.difference_percent))
    assert math.isnan(case_dice([row]))


def test_what_was_not_annotated_does_not_count_whatever_was_found() -> None:
    rows = by_name(measure_case(EMPTY, FULL, grid_of(3, 4, 5), CLASSES, REGIONS, annotated={300}))
    assert rows["one"].status == rows["both"].status == "not annotated"
    assert rows["many"].status == "absent"
    assert all(math.isnan(rows[name].dice) and math.isnan(rows[name].difference_ml) for name in ("one", "both"))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_rule_is_that_of_the_validation(seed: int, partial: bool) -> None:
    """And the box around a class changes nothing: distances are those of the whole scan."""
    random = np.random.default_rng(seed)
    shape = (5, 4, 6)
    reference, prediction = (
        random.choice([0, 0, 0, 0, 0, 1, 300, 7], size=shape).astype(np.uint16) * (random.random(shape) < share)
        for share in random.choice([0.0, 0.05, 1.0], 2)
    )
    annotated = {1} if partial else None
    grid = grid_of(*shape)
    rows = by_name(measure_case(reference, prediction, grid, CLASSES, REGIONS, annotated=annotated))
    dice = {
        **dice_by_class(prediction, reference, CLASSES, annotated),
        **dice_by_region(prediction, reference, REGIONS, annotated),
    }
    for name, value in dice.items():
        assert rows[name].dice == pytest.approx(value, nan_ok=True)
    for name, labels in (("one", [1]), ("many", [300]), ("both", [1, 300])):
        if rows[name].status == "both":
            whole = surface_distances(np.isin(prediction, labels), np.isin(reference, labels), grid)
            assert rows[name].hd95 == pytest.approx(whole.hd95, abs=1e-4)
            assert rows[name].surface_dice == pytest.approx(whole.surface_dice(2.0), abs=1e-6)
            assert rows[name].reference_ml == pytest.approx(np.isin(reference, labels).sum() * 0.01)


def test_tolerances_of_single_classes() -> None:
    reference = np.zeros((12, 6, 6), dtype=np.uint16)
    reference[2:5, 1:5, 1:3], reference[2:5, 1:5, 3:5] = 1, 300
    rows = by_name(
        measure_case(
            reference, np.roll(reference, 3, axis=0), grid_of(12, 6, 6, affine=np.eye(4)), CLASSES,
            tolerances={"many": 3.0}, tolerance=1.0,
        )
    )  # fmt: skip
    assert rows["many"].surface_dice == 1 and rows["many"].tolerance == 3
    assert rows["one"].surface_dice < 1 and rows["one"].tolerance == 1


def test_labels_in() -> None:
    assert labels_in(np.array([[[0, 7, 300]]], dtype=np.uint16)) == {7, 300}


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="on a grid of"):
        measure_case(EMPTY, FULL[1:], grid_of(3, 4, 5), CLASSES)


def test_hippocampi_that_are_moved(shared_data) -> None:  # type: ignore[no-untyped-def]
    """Real shapes: HD95 of a shift by k voxels of 1 mm is at most k mm; the volume stays."""
    file = min((shared_data / "hippocampus_mr" / "labelsTr").glob("*.nii.gz"))
    label = read_label_map(file)
    classes = (LabelClass(1, "Anterior", (1, 0, 0)), LabelClass(2, "Posterior", (0, 1, 0)))
    last = measure_case(label.array, label.array, label.grid, classes)
    assert all((row.dice, row.hd95, row.surface_dice) == (1, 0, 1) for row in last)
    for voxels in (1, 2, 3):
        rows = measure_case(label.array, np.roll(label.array, voxels, axis=0), label.grid, classes)
        for one, before in zip(rows, last):
            assert before.hd95 < one.hd95 <= voxels + 1e-5 and one.dice < before.dice
            assert one.difference_ml == 0 and (one.surface_dice == 1) == (voxels <= 2)
        last = rows
