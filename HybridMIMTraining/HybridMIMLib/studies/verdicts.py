"""What the figures say, in plain words, by rules that were written before any study.

``yes``           the interval of the difference lies above 0, the test says the same (p below 0.05), and every seed
                  of at least two, each with its own training from scratch, has the arm in front
``no``            the same the other way round; or the interval and every seed stay below +1 point, so that whatever
                  gain there may be is smaller than that
``cannot tell``   anything else
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from HybridMIMLib.evaluation.summaries import FEWEST, Comparison
from HybridMIMLib.studies.axes import in_words
from HybridMIMLib.studies.figures import ArmFigures

Answer = Literal["yes", "no", "cannot tell"]

MEANINGFUL = 0.01
"""A difference in Dice below which nobody would care: one point."""
FEWEST_SEEDS = 2


def answer(one: Comparison | None, differences: Sequence[float], independent: int | None = None) -> Answer:
    """Whether the first of a comparison is better.

    Args:
        one: over the test cases, in Dice.
        differences: of each pair of seeds.
        independent: of these, see :class:`ArmFigures`; None: all. Were it one training alone that they are taken
            from, its bad luck would look like a gain in every seed.
    """
    if one is None or one.cases < FEWEST or _seeds(differences, independent) < FEWEST_SEEDS:
        return "cannot tell"
    if one.verdict == "first" and min(differences) > 0:
        return "yes"
    if one.verdict == "second" and max(differences) < 0:
        return "no"
    is_small = math.isfinite(one.high) and one.high < MEANINGFUL and max(differences) < MEANINGFUL
    return "no" if is_small else "cannot tell"


def reply(one: Comparison | None, differences: Sequence[float], expected: int, independent: int | None = None) -> str:
    """The answer with its figures, such as ``yes, by +3.1 points (95 % 1.9 to 4.2) in 3 of 3 seeds``."""
    if one is None or not one.cases or not differences:
        return "cannot tell: nothing to compare was finished"
    told, better = answer(one, differences, independent), sum(value > 0 for value in differences)
    of_seeds = f"in {better} of {len(differences)} seeds"
    missing = f" ({len(differences)} of {expected} seeds were finished)" if len(differences) < expected else ""
    figures = f"{points(one.difference)} points{_between(one)}"
    if told == "yes":
        return f"yes, by {figures} {of_seeds}{missing}"
    if told == "no" and max(differences) < 0 and one.verdict == "second":
        return f"no: it costs Dice, {figures}, better {of_seeds}{missing}"
    if told == "no":
        return f"no: {figures}, better {of_seeds}; if it gains anything, it is less than 1 point{missing}"
    wanted = _what_is_missing(one, _seeds(differences, independent))
    return f"cannot tell: {figures}, better {of_seeds}; {wanted}{missing}"


def verdict(arms: Sequence[ArmFigures], expected: int) -> str:
    """The sentence for a labelled amount, on the pre-training that did best on the validation.

    The test must not choose it: the best of several on the test looks better than it is.

    Args:
        arms: figures of one group on one amount.
        expected: pairs of seeds of an arm.
    """
    learnt = [one for one in arms if not one.arm.is_scratch and math.isfinite(one.validation) and one.summary]
    where = in_words(arms[0].amount) + (f" ({arms[0].arm.group})" if arms[0].arm.group else "")
    if not learnt:
        return f"{where}: cannot tell: no pre-trained arm was finished."
    chosen = max(learnt, key=lambda one: one.validation)
    text = f"{where}: {reply(chosen.overall, chosen.differences, expected, chosen.independent)} ({chosen.arm.name}"
    text += ", the best of them on the validation)." if len(learnt) > 1 else ")."
    double = next((one for one in arms if one.arm.twice and one.overall), None)
    text += _doubled(chosen, double) if double is not None else ""
    scratch = [one for one in arms if one.arm.is_scratch and not one.arm.twice]
    return text + _collapsed([*scratch, chosen])


def points(value: float) -> str:
    """A difference in Dice as points: ``+3.1``."""
    return "–" if not math.isfinite(value) else f"{100 * value:+.1f}"


def _doubled(chosen: ArmFigures, double: ArmFigures) -> str:
    """Whether twice the steps of scratch would have done the same."""
    gain = double.overall
    assert gain is not None
    text = f" Scratch with twice the steps: {points(gain.difference)} points{_between(gain)}"
    told, left = answer(chosen.doubled, chosen.doubled_differences, chosen.doubled_independent), chosen.doubled
    if left is None:
        return f"{text}."
    ahead = f"{points(left.difference)} points{_between(left)}"
    if told == "yes":
        return f"{text}, which does not do the same: the pre-training stays ahead of it by {ahead}."
    if told == "no" or left.difference <= 0:
        return f"{text}, which does at least about the same: the pre-training less that is {ahead}."
    return f"{text}; whether that does the same cannot be told: the pre-training less that is {ahead}."


def _collapsed(arms: Sequence[ArmFigures]) -> str:
    """A class at zero in one seed moves a mean more than any pre-training."""
    parts = [
        f"{', '.join(cell.lost)} in {one.arm.name}, seed {cell.cell.seed}"
        for one in arms
        for cell in one.cells
        if cell.lost
    ]
    return f" Careful: classes that collapsed to zero decide these means ({'; '.join(parts)})." if parts else ""


def _seeds(differences: Sequence[float], independent: int | None) -> int:
    return len(differences) if independent is None else min(len(differences), independent)


def _what_is_missing(one: Comparison, seeds: int) -> str:
    if seeds < FEWEST_SEEDS:
        return "more seeds are needed"
    if one.cases < FEWEST:
        return "more test cases are needed"
    return "more seeds or test cases are needed"


def _between(one: Comparison) -> str:
    if not math.isfinite(one.low):
        return ""
    return f" (95 % {100 * one.low:.1f} to {100 * one.high:.1f})"
