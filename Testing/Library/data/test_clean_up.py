"""The description of a clean-up: what settings change of it, and what it looks like in a file."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.clean_up import CleanUp
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.settings.inference import InferenceSettings

CLASSES = tuple(LabelClass(label, name, (1, 0, 0)) for label, name in ((2, "Liver"), (5, "Kidney=left"), (9, "all2")))
STORED = CleanUp(frozenset({2}), frozenset({5}), {2: 20.0})
LABELS = st.integers(1, 65535)


@given(st.frozensets(LABELS), st.frozensets(LABELS), st.dictionaries(LABELS, st.floats(1e-6, 1e6)))
def test_it_returns_from_json_as_it_was(largest: Any, holes: Any, volumes: Any) -> None:
    one = CleanUp(largest, holes, volumes)
    assert CleanUp.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert bool(one) == bool(largest or holes or volumes)


@pytest.mark.parametrize(
    "change",
    [
        {"largest": None},
        {"largest": "12"},
        {"largest": [0]},
        {"largest": [1.0]},
        {"largest": [True]},
        {"fill_holes": [65536]},
        {"fill_holes": {"1": 1}},
        {"smallest_ml": [[1, 2]]},
        {"smallest_ml": {"liver": 2}},
        {"smallest_ml": {"1": 0}},
        {"smallest_ml": {"1": float("nan")}},
        {"smallest_ml": {"1": "2"}},
        {"smallest_ml": {"0": 2}},
    ],
)
def test_damaged_json_is_told(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        CleanUp.from_json({**STORED.to_json(), **change})


def test_a_part_that_is_missing_is_told() -> None:
    for name in STORED.to_json():
        with pytest.raises(KeyError):
            CleanUp.from_json({key: value for key, value in STORED.to_json().items() if key != name})


def changed(**settings: Any) -> CleanUp:
    return STORED.with_settings(InferenceSettings(**settings), CLASSES)


def test_what_settings_leave_open_stays() -> None:
    assert changed() == STORED
    assert changed(largest=[]) == CleanUp(frozenset(), STORED.fill_holes, STORED.smallest_ml)
    assert not changed(largest=[], fill_holes=[], smallest_ml=[])
    assert changed(fill_holes=["Liver", "all2"]).fill_holes == {2, 9}
    assert changed(largest=["all"]).largest == {2, 5, 9}


def test_what_is_said_of_one_class_counts_more_than_of_all() -> None:
    assert changed(smallest_ml=["Kidney=left=3", "all=1.5"]).smallest_ml == {2: 1.5, 5: 3.0, 9: 1.5}


@pytest.mark.parametrize("setting", ["largest", "fill_holes", "smallest_ml"])
def test_a_class_that_is_not_there_is_named_with_the_nearest(setting: str) -> None:
    with pytest.raises(SettingsError) as caught:
        changed(**{setting: ["liwer=3" if setting == "smallest_ml" else "liwer"]})
    assert f"inference.{setting}" in caught.value.message and "'liwer'" in caught.value.message
    assert "Did you mean 'Liver'?" in caught.value.cure and "Kidney=left" in caught.value.cure
