"""Means, intervals and comparisons: by hand, against slow obvious code, and against SciPy on known data."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from HybridMIMLib.evaluation.measuring import NAN, Row
from HybridMIMLib.evaluation.summaries import compare, figure, paired, summarise, wilcoxon_p

DARWIN = [6.125, -8.375, 1.0, 2.0, 0.75, 2.875, 3.5, 5.125, 1.75, 3.625, 7.0, 3.0, 9.375, 7.5, -6.0]
"""Differences of Darwin's fifteen pairs of plants (The Effects of Cross and Self Fertilisation, 1876), in inches."""


def row(case: str, name: str, dice: float, status: str = "both", is_region: bool = False) -> Row:
    values = {"dice": dice, "hd95": 10 * (1 - dice), "surface_dice": dice, "difference_ml": dice - 1}
    return Row(case, name, is_region, status, **values)  # type: ignore[arg-type]


ROWS = [
    row("a", "liver", 0.9), row("a", "spleen", 0.5), row("a", "both", 0.1, is_region=True),
    row("b", "liver", 0.7), row("b", "spleen", NAN, "absent"), row("b", "both", 0.3, is_region=True),
    row("c", "liver", 0.0, "missed"), row("c", "spleen", NAN, "not annotated"), row("c", "both", 0.2, is_region=True),
]  # fmt: skip


def test_figures_by_hand() -> None:
    found = summarise(ROWS)
    liver, spleen, both = found.classes
    assert (liver.name, spleen.name, both.name) == ("liver", "spleen", "both") and both.is_region
    assert liver.figures["dice"].mean == pytest.approx(1.6 / 3) and liver.figures["dice"].median == 0.7
    assert liver.counts == {"both": 2, "missed": 1, "invented": 0, "absent": 0, "not annotated": 0}
    assert spleen.figures["dice"].cases == 1 and spleen.counts["absent"] == spleen.counts["not annotated"] == 1
    assert math.isnan(spleen.figures["dice"].low), "one case has no interval"
    assert found.cases == 3 and found.mean["dice"].cases == 3
    assert found.mean["dice"].mean == pytest.approx((1.6 / 3 + 0.5) / 2), "mean of the classes, regions apart"
    assert found.mean["dice"].median == pytest.approx(0.7), "of the means of the cases: 0.7, 0.7 and 0"
    assert found.mean["hd95"].mean == pytest.approx(10 - 10 * found.mean["dice"].mean)


def test_nothing_that_counts_has_no_figure() -> None:
    found = summarise([row("a", "liver", NAN, "absent")])
    assert found.mean["dice"].cases == 0 and math.isnan(found.mean["dice"].mean)
    assert summarise([]).classes == ()


def test_the_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).beta(8, 2, 40)
    ours = figure(values, resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.002)
    assert ours.mean == pytest.approx(values.mean()) and ours.spread == pytest.approx(values.std(ddof=1))


def test_the_interval_of_all_classes_against_loops() -> None:
    """Cases are drawn, not values: a case takes its classes along, and those that it lacks do not count."""
    random = np.random.default_rng(2)
    table = np.where(random.random((12, 3)) < 0.3, np.nan, random.random((12, 3)))
    table[:, 0] = random.random(12)
    rows = [
        row(f"c{i}", f"k{k}", value, "both" if value == value else "absent")
        for i, values in enumerate(table)
        for k, value in enumerate(values.tolist())
    ]
    draws = np.random.default_rng(0).integers(12, size=(500, 12))
    ours = summarise(sorted(rows, key=lambda one: one.case), resamples=500).mean["dice"]
    order = sorted(range(12), key=lambda i: f"c{i}")
    means = [np.nanmean([np.nanmean(table[order][drawn, k]) for k in range(3)]) for drawn in draws]
    assert (ours.low, ours.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_the_seed_decides_and_nothing_else() -> None:
    values = np.random.default_rng(5).random(30)
    assert figure(values, seed=3) == figure(values, seed=3) != figure(values, seed=4)


def test_an_interval_of_a_bootstrap_holds_the_mean_mostly() -> None:
    """Of 200 samples of 30 from a known distribution, nearly 95 % of the intervals hold its mean."""
    random = np.random.default_rng(1)
    found = [figure(random.beta(5, 2, 30), resamples=300) for _ in range(200)]
    assert 0.89 <= np.mean([one.low <= 5 / 7 <= one.high for one in found]) <= 0.99


def test_wilcoxon_on_known_data() -> None:
    """W = 24 of 15 pairs, p = 0.0413 (exact, two-sided), as in the literature on these data."""
    assert wilcoxon_p(np.array(DARWIN)) == pytest.approx(0.0413, abs=5e-5)
    assert wilcoxon_p(np.array([*DARWIN, 0.0, 0.0])) == pytest.approx(0.0413, abs=5e-5), "ties are left out"
    assert wilcoxon_p(np.zeros(9)) == 1


def test_paired_by_hand() -> None:
    second = np.linspace(0.3, 0.8, 10)
    first = second + np.array([0.05, 0.04, 0.03, 0.06, 0.02, 0.01, 0.07, 0.08, 0.0, 0.0])
    first, second = np.append(first, [NAN, 0.3, NAN]), np.append(second, [0.4, NAN, NAN])
    found = paired("liver", "dice", first, second)
    assert (found.cases, found.left_out, found.ties) == (10, 2, 2)
    assert found.difference == pytest.approx(0.036) and found.low < 0.036 < found.high
    assert found.p == pytest.approx(2 / 2**8), "all eight that differ have one sign"
    assert found.verdict == "first"
    assert paired("liver", "dice", second, first).verdict == "second"
    assert paired("liver", "hd95", first, second).verdict == "second", "a smaller distance is better"


def test_few_cases_prove_nothing() -> None:
    assert paired("liver", "dice", np.full(5, 0.9), np.linspace(0.1, 0.2, 5)).verdict == "few"
    six = paired("liver", "dice", np.full(6, 0.9), np.linspace(0.1, 0.2, 6))
    assert six.verdict == "first" and six.p == pytest.approx(2 / 2**6)
    assert paired("liver", "dice", np.append(np.full(5, 0.9), 0.5), np.append(np.full(5, 0.1), 0.5)).verdict == "few"
    nothing = paired("liver", "dice", np.array([NAN]), np.array([0.5]))
    assert nothing.cases == 0 and nothing.verdict == "few" and math.isnan(nothing.p)


def test_many_small_gains_and_one_great_loss_are_mixed() -> None:
    second = np.linspace(0.7, 0.8, 20)
    first = second + 0.02 + np.arange(20) / 1e4
    first[0] = 0.0
    found = paired("liver", "dice", first, second)
    assert found.p < 0.05 and found.verdict == "mixed"
    assert paired("liver", "dice", second, second).verdict == "few", "cases that are all equal"


def test_runs_are_compared_where_both_have_figures() -> None:
    """Case c was not measured in the second run, and class spleen of case b in neither."""
    better = [replace(one, dice=one.dice + 0.05) for one in ROWS]
    found = {(one.name, one.measure): one for one in compare(better, ROWS[:6])}
    assert list(found)[:3] == [("mean", "dice"), ("mean", "hd95"), ("mean", "surface_dice")]
    liver, mean = found["liver", "dice"], found["mean", "dice"]
    assert (liver.cases, liver.left_out) == (2, 1) and liver.difference == pytest.approx(0.05)
    assert (mean.cases, mean.left_out) == (2, 1) and mean.first == pytest.approx((0.75 + 0.75) / 2)
    assert found["both", "dice"].cases == 2 and found["spleen", "dice"].cases == 1
    assert found["liver", "hd95"].ties == 2
