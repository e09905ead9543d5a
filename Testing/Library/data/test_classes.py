"""Regions beside classes: which are needed to tell every label, and how they stand in one label map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from HybridMIMLib.data.classes import LabelClass, Region, make_naming, regions_in_label_map, telling_regions
from HybridMIMLib.data.layouts import brats
from HybridMIMLib.errors import SettingsError

BRATS = brats._BY_4


def painted(layers: list[np.ndarray], classes: tuple[LabelClass, ...]) -> np.ndarray:
    """One after the other, as a prediction of overlapping classes is."""
    labels = np.zeros(layers[0].shape, dtype=int)
    for one, layer in zip(classes, layers):
        labels[layer] = one.label
    return labels


def test_the_regions_of_brats_are_enough_and_keep_its_labels() -> None:
    regions = telling_regions(BRATS.classes, BRATS.regions)
    assert regions == BRATS.regions
    classes = regions_in_label_map(BRATS.classes, regions)
    assert [(one.name, one.label) for one in classes] == [("WT", 2), ("TC", 1), ("ET", 4)]
    assert [one.color for one in classes] == [BRATS.classes[number].color for number in (1, 0, 2)]


def test_the_cavity_after_treatment_stands_by_itself() -> None:
    naming = brats._TREATED
    classes = regions_in_label_map(naming.classes, telling_regions(naming.classes, naming.regions))
    assert [(one.name, one.label) for one in classes] == [("WT", 2), ("TC", 1), ("ET", 3), ("RC", 4)]


@pytest.mark.parametrize(
    ("names", "regions", "expected"),
    [
        # As nnU-Net writes it: the innermost is named alone, the others after their numbers.
        ({1: "class 1", 2: "class 2", 3: "ET"}, {"WT": [1, 2, 3], "TC": [2, 3]}, {"WT": 1, "TC": 2, "ET": 3}),
        ({1: "ET", 2: "class 2", 3: "class 3"}, {"WT": [1, 2, 3], "TC": [1, 3]}, {"WT": 2, "TC": 3, "ET": 1}),
        # All named: the first is what is left of the region without the others.
        ({1: "Bright", 2: "Dark"}, {"Either": [1, 2]}, {"Either": 1, "Dark": 2}),
        ({1: "a", 2: "b", 3: "c", 4: "d"}, {"ab": [1, 2]}, {"ab": 1, "b": 2, "c": 3, "d": 4}),
        # Given smallest first.
        ({1: "a", 2: "b"}, {"b's": [2], "all": [1, 2]}, {"all": 1, "b's": 2}),
    ],
)
def test_classes_that_no_region_tells_become_regions(
    names: dict[int, str], regions: dict[str, list[int]], expected: dict[str, int]
) -> None:
    naming = make_naming(names, regions)
    telling = telling_regions(naming.classes, naming.regions)
    classes = regions_in_label_map(naming.classes, telling)
    assert {one.name: one.label for one in classes} == expected
    assert [one.name for one in classes] == [region.name for region in telling]


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({"A": [1, 2], "B": [2, 3]}, "A and B share labels without one being a part of the other"),
        ({"A": [1, 2], "B": [1, 2]}, "A and B share labels"),
        ({"All": [1, 2, 3, 4], "Left": [1, 2], "Right": [3, 4]}, "All is nothing but smaller regions"),
    ],
)
def test_what_no_label_map_can_hold_is_refused(regions: dict[str, list[int]], message: str) -> None:
    naming = make_naming({label: f"part {label}" for label in (1, 2, 3, 4)}, regions)
    with pytest.raises(SettingsError, match=message) as caught:
        regions_in_label_map(naming.classes, telling_regions(naming.classes, naming.regions))
    assert "set finetuning.target to classes" in caught.value.cure


@st.composite
def nested(draw: st.DrawFn) -> tuple[tuple[LabelClass, ...], tuple[Region, ...]]:
    """Labels in any order, and runs of them that hold each other or are apart."""
    labels = draw(st.permutations(list(range(1, 9))))
    found: set[frozenset[int]] = set()

    def cut(first: int, end: int) -> None:
        if end - first > 1 and draw(st.booleans()):
            found.add(frozenset(labels[first:end]))
        if end - first > 1:
            middle = draw(st.integers(first + 1, end - 1))
            cut(first, middle)
            cut(middle, end)

    cut(0, draw(st.integers(2, 8)))
    regions = [Region(f"region {sorted(one)}", one) for one in draw(st.permutations(sorted(found, key=sorted)))]
    return make_naming({label: f"class {label}" for label in labels}).classes, tuple(regions)


@settings(deadline=None, max_examples=100)
@given(nested(), st.integers(0, 2**31))
def test_painted_largest_first_they_give_the_label_map_back(
    naming: tuple[tuple[LabelClass, ...], tuple[Region, ...]], seed: int
) -> None:
    classes, given_regions = naming
    regions = telling_regions(classes, given_regions)
    assert set(given_regions) <= set(regions)
    labels = np.random.default_rng(seed).integers(0, 9, (4, 5, 6))
    try:
        found = regions_in_label_map(classes, regions)
    except SettingsError as error:
        assert "nothing but smaller regions" in error.message
        return
    assert len({one.label for one in found}) == len(found)
    layers = [np.isin(labels, sorted(region.labels)) for region in regions]
    np.testing.assert_array_equal(painted(layers, found), labels)
