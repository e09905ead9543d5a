"""From rows to figures of a whole set: means with their intervals, and whether one run is better than another.

Intervals are 95 % bootstrap intervals of the mean (percentile method, Efron and Tibshirani, An Introduction to the
Bootstrap, 1993): the cases are drawn again and again, with replacement, and 95 % of the means of these draws lie in
the interval. It says how much the mean depends on which cases are in the set, and knows nothing of seeds of a
training. Of fewer than about ten cases it is too narrow, and of one there is none.

Two runs are compared case by case with the Wilcoxon signed-rank test, two-sided, which asks for no normal
distribution. p is the chance of differences like these if neither run were better. Cases without a difference are
left out of it. With fewer than :data:`FEWEST` that differ p cannot be below 0.05, whatever they say. No p is
corrected for how many are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from HybridMIMLib.evaluation.measuring import NAN, Row, Status

RESAMPLES = 2000
MEASURES = ("dice", "hd95", "surface_dice", "difference_ml", "difference_percent")
"""Of which there are figures."""
COMPARED = ("dice", "hd95", "surface_dice")
"""Of which runs are compared, and of which there is a mean over all classes."""
HIGHER_IS_BETTER = {"dice": True, "hd95": False, "surface_dice": True}
ALL_CLASSES = "mean"
"""Stands for the mean over all classes; no class may be called so."""
FEWEST = 6
SIGNIFICANT = 0.05

_ENDS = (2.5, 97.5)
_BLOCK = 4_000_000
"""Numbers that are drawn at once."""

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """What a measure is over the cases.

    Attributes:
        cases: that have it.
        mean, median: NaN where none has.
        low, high: ends of the interval of the mean; NaN below two cases.
        spread: standard deviation over the cases (n - 1); NaN below two.
    """

    cases: int
    mean: float
    median: float
    low: float
    high: float
    spread: float


@dataclass(frozen=True)
class ClassSummary:
    """The figures of a class or region.

    Attributes:
        name: of it.
        is_region: whether it is a region, which does not count for the mean over all classes.
        counts: in how many cases it was found by both, missed, invented, …
        figures: by measure.
    """

    name: str
    is_region: bool
    counts: dict[str, int]
    figures: dict[str, Figure]


@dataclass(frozen=True)
class Summary:
    """The figures of a set.

    Attributes:
        cases: how many there are.
        classes: each class, then each region.
        mean: over all classes, by measure: the mean of their means. Its median is that of the means of each case.
    """

    cases: int
    classes: tuple[ClassSummary, ...]
    mean: dict[str, Figure]

    def to_json(self) -> dict[str, Any]:
        """As dictionaries of plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Two runs, one measure, one class.

    Attributes:
        name: of the class, or :data:`ALL_CLASSES`.
        measure: as in :data:`COMPARED`.
        cases: that have it in both runs.
        left_out: that have it in one alone.
        first, second: means over these cases.
        difference: mean of first less second; ``low`` and ``high`` the ends of its interval.
        p: of the Wilcoxon test; 1 where all cases are equal, NaN without a case.
        ties: cases in which both are equal.
        verdict: ``"first"`` or ``"second"`` is better: p is below 0.05, and the interval of the difference holds no 0
            and lies on the side of most cases; ``"mixed"``: only p is; ``"none"`` is shown to be better; ``"few"``
            cases to tell.
    """

    name: str
    measure: str
    cases: int
    left_out: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    ties: int
    verdict: str


def summarise(rows: Sequence[Row], resamples: int = RESAMPLES, seed: int = 0) -> Summary:
    """Figures of a set from the rows of its cases.

    Args:
        rows: of all cases.
        resamples: draws of the bootstrap.
        seed: of these draws.
    """
    names = _names(rows)
    cases = sorted({row.case for row in rows})
    summaries = []
    for name, is_region in names.items():
        own = [row for row in rows if row.name == name]
        counts: dict[Status, int] = {"both": 0, "missed": 0, "invented": 0, "absent": 0, "not annotated": 0}
        for row in own:
            counts[row.status] += 1
        figures = {one: figure([getattr(row, one) for row in own], resamples, seed) for one in MEASURES}
        summaries.append(ClassSummary(name, is_region, {str(k): v for k, v in counts.items()}, figures))
    classes = [name for name, is_region in names.items() if not is_region]
    means = {one: _mean_figure(table(rows, cases, classes, one), resamples, seed) for one in COMPARED}
    return Summary(len(cases), tuple(summaries), means)


def compare(
    first: Sequence[Row], second: Sequence[Row], resamples: int = RESAMPLES, seed: int = 0
) -> list[Comparison]:
    """Compare two runs on the same cases, class by class and over all classes, which come first.

    A case counts where both runs have a figure. For the mean over all classes it is the mean of those classes of
    which both have one.
    """
    names = [*_names([*first, *second])]
    classes = [name for name, is_region in _names([*first, *second]).items() if not is_region]
    cases = sorted({row.case for row in first} | {row.case for row in second})
    found = []
    for measure in COMPARED:
        pair = (table(first, cases, classes, measure), table(second, cases, classes, measure))
        known = np.isfinite(pair[0]) & np.isfinite(pair[1])
        means = [_row_means(np.where(known, one, NAN)) for one in pair]
        beside = sum(bool((np.isfinite(a) ^ np.isfinite(b)).any()) for a, b in zip(*pair))
        found.append(paired(ALL_CLASSES, measure, means[0], means[1], resamples, seed, beside))
    for name in names:
        for measure in COMPARED:
            a, b = (table(rows, cases, [name], measure)[:, 0] for rows in (first, second))
            found.append(paired(name, measure, a, b, resamples, seed))
    return found


def paired(
    name: str,
    measure: str,
    first: Numbers,
    second: Numbers,
    resamples: int = RESAMPLES,
    seed: int = 0,
    left_out: int | None = None,
) -> Comparison:
    """Compare two runs in one measure.

    Args:
        name, measure: what it is of.
        first, second: (cases,) values in the same order of cases; NaN where there is none.
        resamples, seed: of the bootstrap.
        left_out: cases that are not fully compared; None: those with a value in one run alone.
    """
    known = np.isfinite(first) & np.isfinite(second)
    beside = int((np.isfinite(first) ^ np.isfinite(second)).sum()) if left_out is None else left_out
    if not known.any():
        return Comparison(name, measure, 0, beside, NAN, NAN, NAN, NAN, NAN, NAN, 0, "few")
    a, b = first[known], second[known]
    difference = a - b
    about = figure(difference.tolist(), resamples, seed)
    ties = int((difference == 0).sum())
    p = wilcoxon_p(difference)
    verdict = _verdict(measure, difference, about, p)
    return Comparison(
        name, measure, len(a), beside, float(a.mean()), float(b.mean()), about.mean, about.low, about.high, p, ties,
        verdict,
    )  # fmt: skip


def wilcoxon_p(difference: Numbers) -> float:
    """p of the two-sided signed-rank test of differences; 1 where there are none but zeros."""
    from scipy.stats import wilcoxon

    if not difference.any():
        return 1.0
    return float(wilcoxon(difference[difference != 0]).pvalue)


def figure(values: Iterable[float], resamples: int = RESAMPLES, seed: int = 0) -> Figure:
    """Mean, median and interval of values, those that are NaN left out."""
    known = np.array([value for value in values if math.isfinite(value)])
    if not len(known):
        return Figure(0, NAN, NAN, NAN, NAN, NAN)
    low, high = _interval(known[:, None], resamples, seed)
    spread = float(known.std(ddof=1)) if len(known) > 1 else NAN
    return Figure(len(known), float(known.mean()), float(np.median(known)), low, high, spread)


def table(rows: Iterable[Row], cases: Sequence[str], names: Sequence[str], measure: str) -> Numbers:
    """(cases, names) the values of a measure; NaN where there is none."""
    place = {case: index for index, case in enumerate(cases)}
    column = {name: index for index, name in enumerate(names)}
    values = np.full((len(cases), len(names)), NAN)
    for row in rows:
        if row.name in column:
            values[place[row.case], column[row.name]] = getattr(row, measure)
    return values


def _names(rows: Iterable[Row]) -> dict[str, bool]:
    """Names of classes and regions in their order, and which are regions."""
    return {row.name: row.is_region for row in rows}


def _mean_figure(values: Numbers, resamples: int, seed: int) -> Figure:
    """Of (cases, classes): the mean of the means of the classes."""
    cases = _row_means(values)
    known = cases[np.isfinite(cases)]
    if not len(known):
        return Figure(0, NAN, NAN, NAN, NAN, NAN)
    means = _row_means(values.T)
    low, high = _interval(values[np.isfinite(cases)], resamples, seed)
    spread = float(known.std(ddof=1)) if len(known) > 1 else NAN
    return Figure(len(known), float(np.nanmean(means)), float(np.median(known)), low, high, spread)


def _interval(values: Numbers, resamples: int, seed: int) -> tuple[float, float]:
    """The interval of the mean over the classes of the means over the cases of (cases, classes)."""
    cases = len(values)
    if cases < 2:
        return NAN, NAN
    random = np.random.default_rng(seed)
    known = np.isfinite(values).astype(np.float64)
    filled = np.nan_to_num(values)
    means = []
    for block in np.array_split(np.arange(resamples), max(resamples * cases // _BLOCK, 1)):
        drawn = random.integers(cases, size=(len(block), cases))
        # How often each case was drawn: sums over draws are products with that.
        times = np.zeros((len(block), cases))
        np.add.at(times, (np.arange(len(block))[:, None], drawn), 1)
        with np.errstate(invalid="ignore"):
            # A class that none of the drawn cases has does not count in that draw.
            means.append(_row_means((times @ filled) / (times @ known)))
    low, high = np.percentile(np.concatenate(means), _ENDS)
    return float(low), float(high)


def _row_means(values: Numbers) -> Numbers:
    """The mean of each row without what is NaN; NaN where all is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0).sum(axis=1) / known.sum(axis=1))


def _verdict(measure: str, difference: Numbers, about: Figure, p: float) -> str:
    from scipy.stats import rankdata

    if np.count_nonzero(difference) < FEWEST:
        return "few"
    if p >= SIGNIFICANT:
        return "none"
    ranks = float((np.sign(difference) * rankdata(np.abs(difference))).sum())
    # Many small gains and one great loss: the test and the mean do not say the same, so nothing is claimed.
    if not (about.low > 0 and ranks > 0 or about.high < 0 and ranks < 0):
        return "mixed"
    return "first" if (ranks > 0) == HIGHER_IS_BETTER[measure] else "second"
