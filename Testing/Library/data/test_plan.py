"""The plan that follows from the scans, and the one that the settings force."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from HybridMIMLib.config import PlanSettings
from HybridMIMLib.data.layouts import Case
from HybridMIMLib.data.plan import Plan, make_plan
from HybridMIMLib.data.survey import CaseFacts
from HybridMIMLib.errors import SettingsError


def facts(
    shape: tuple[int, int, int] = (100, 100, 60),
    spacing: tuple[float, float, float] = (1.0, 1.0, 2.0),
    low: float = 0.0,
    channels: int = 1,
) -> CaseFacts:
    return CaseFacts(Case("a", (Path("a.nii"),), None), "0", channels, shape, spacing, low, 100.0, frozenset())


def plan(found: list[CaseFacts] | None = None, stride: int = 8, **settings: Any) -> Plan:
    return make_plan(found or [facts()], PlanSettings(**settings), stride)


def test_spacing_is_the_median_of_each_axis() -> None:
    found = [facts(spacing=(1, 2, 3)), facts(spacing=(2, 1, 5)), facts(spacing=(9, 9, 4))]
    assert plan(found).spacing == (2, 2, 4)
    assert plan(found, spacing=[1, 1.5, 2]).spacing == (1, 1.5, 2)


def test_the_crop_fits_the_median_scan_in_whole_regions() -> None:
    made = plan([facts((100, 70, 30), (1, 1, 1))])
    assert made.patch == (16, 8, 8) and made.region == (32, 16, 16) and made.crop == (96, 64, 16)


def test_a_scan_smaller_than_a_region_still_gets_one() -> None:
    made = plan([facts((5, 10, 20), (1, 1, 1))])
    assert made.patch == (4, 8, 8) and made.crop == made.region == (8, 16, 16)


def test_a_coarser_spacing_makes_the_crop_smaller() -> None:
    assert plan([facts((96, 96, 96), (1, 1, 1))], spacing=[3, 3, 3]).crop == (32, 32, 32)


@pytest.mark.parametrize("stride", [2, 8, 16, 32, 64])
def test_every_size_suits_the_network(stride: int) -> None:
    made = plan([facts((90, 40, 10), (1, 1, 1))], stride)
    for small, large in ((made.patch, made.region), (made.region, made.crop), ((stride,) * 3, made.region)):
        assert all(b % a == 0 for a, b in zip(small, large))


@pytest.mark.parametrize(
    ("sizes", "word"),
    [
        ({"crop": [40, 40, 40]}, "plan.crop"),
        ({"region": [24, 24, 24]}, "plan.region"),
        ({"patch": [4, 4, 4], "region": [4, 4, 4], "crop": [12, 12, 12]}, "stride 8"),
        ({"patch": [4, 4, 4], "region": [8, 8, 8], "crop": [8, 8, 8]}, "a single voxel"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(sizes: dict[str, Any], word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        make_plan([facts()], PlanSettings(**sizes), stride=8)


@pytest.mark.parametrize(
    ("lows", "expected"),
    [([-1000, -1024, 0], "window"), ([0, 0, -1024], "percentiles"), ([-100], "percentiles"), ([-500], "window")],
)
def test_ct_is_recognised_by_air_in_most_scans(lows: list[float], expected: str) -> None:
    found = [facts(low=low) for low in lows]
    assert plan(found).normalisation == expected
    assert plan(found, normalisation="percentiles").normalisation == "percentiles"


def test_a_plan_survives_json() -> None:
    made = plan(window=[-160, 240], normalisation="window")
    assert Plan.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize("spoil", [{}, {"crop": [1, 2]}, {"spacing": None}, {"channels": "many"}])
def test_a_plan_that_is_not_ours_is_refused(spoil: dict[str, Any]) -> None:
    content = {**plan().to_json(), **spoil} if spoil else {}
    with pytest.raises((KeyError, TypeError, ValueError)):
        Plan.from_json(content)


def test_the_crop_does_not_decide_what_a_prepared_scan_looks_like() -> None:
    assert plan().preparation == plan(crop=[32, 32, 16], region=[32, 32, 16], patch=[16, 16, 8]).preparation
    assert plan().preparation != plan(spacing=[1, 1, 1]).preparation
