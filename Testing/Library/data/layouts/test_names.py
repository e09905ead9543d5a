"""Names of labels, and regions of several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from HybridMIMLib.data.classes import make_naming
from HybridMIMLib.data.layouts import Dataset, named_for_labels
from HybridMIMLib.data.layouts.names import naming_from
from HybridMIMLib.errors import DataError

FILE = Path("dataset.json")


@pytest.mark.parametrize(
    ("names", "classes", "regions"),
    [
        ({"0": "background", "2": "B", "1": "A"}, {1: "A", 2: "B"}, {}),
        ({"background": 0, "A": 1, "B": "2"}, {1: "A", 2: "B"}, {}),
        ({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "ET": 3},
         {1: "class 1", 2: "class 2", 3: "ET"}, {"whole": {1, 2, 3}, "core": {2, 3}}),
        ({"A": [1], "both": [2, 1]}, {1: "A", 2: "class 2"}, {"both": {1, 2}}),
        ({}, {}, {}),
    ],
)  # fmt: skip
def test_each_way_to_write_them(names: dict[str, Any], classes: dict[int, str], regions: dict[str, set[int]]) -> None:
    naming = naming_from(FILE, names)
    assert [(c.label, c.name) for c in naming.classes] == list(classes.items())
    assert {r.name: set(r.labels) for r in naming.regions} == regions


@pytest.mark.parametrize(
    "names",
    [
        {"one": "Liver"}, {"1": 2.5}, {"A": True}, {"A": -1}, {"A": []}, {"A": [0, 1]}, {"A": ["x"]}, {"1": ["A"]},
        ["Liver"], "Liver", None, {"A": 1, "B": 1}, {"1": "A", "2": "A"}, {"mean": 1}, {"mean": [1, 2]},
        {"1": "A", "A": [1, 2]}, {"class 2": 1, "both": [1, 2]}, {"A": 1, "ignore": 2},
    ],
)  # fmt: skip
def test_what_cannot_be_read_or_means_two_things(names: Any) -> None:
    with pytest.raises(DataError) as caught:
        naming_from(FILE, names)
    assert str(caught.value).startswith("dataset.json: ") and "\n" not in str(caught.value)


def test_customary_names_are_taken_where_they_know_every_label() -> None:
    small, large = make_naming({1: "A"}, {"r": [1]}), make_naming({1: "A", 4: "D"})
    dataset = Dataset((), small.classes, "x", FILE, small.regions, customary=(small, large))
    assert named_for_labels(dataset, [0, 1]) == dataset
    fitting = named_for_labels(dataset, {1, 4})
    assert (fitting.classes, fitting.regions) == (large.classes, ())
    assert named_for_labels(dataset, [5]).classes == () == named_for_labels(dataset, [5]).regions


def test_names_that_are_written_down_stay() -> None:
    written = make_naming({1: "A"})
    dataset = replace(Dataset((), (), "x", FILE), classes=written.classes)
    assert named_for_labels(dataset, [9]) is dataset
