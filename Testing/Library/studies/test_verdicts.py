"""Figures against slow obvious code, and the words that follow from them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from HybridMIMLib.evaluation.measuring import NAN, Row
from HybridMIMLib.evaluation.summaries import Comparison
from HybridMIMLib.studies.axes import Arm, Finetuning
from HybridMIMLib.studies.curves import Point
from HybridMIMLib.studies.drawing import draw_curves, mean_curve
from HybridMIMLib.studies.figures import Cell, averaged, figures_of
from HybridMIMLib.studies.verdicts import answer, reply, verdict

SCRATCH, DOUBLE = Arm("scratch", "", "scratch"), Arm("scratch, twice the steps", "", "scratch", twice=True)
MASKED, CONTRAST = Arm("simmim", "", "simmim"), Arm("simclr", "", "simclr")
CASES = 12


def rows(level: float, seed: int, classes: tuple[str, ...] = ("A", "B"), spread: float = 0.01) -> tuple[Row, ...]:
    """Test cases that are as difficult in every cell, around a level."""
    hard = np.random.default_rng(0).normal(0, 0.05, CASES)
    noise = np.random.default_rng([1, seed, int(1000 * level)]).normal(0, spread, (CASES, len(classes)))
    return tuple(
        Row(f"case {i}", name, False, "both", dice=float(level + hard[i] + noise[i, j]), hd95=1.0, surface_dice=0.9)
        for i in range(CASES)
        for j, name in enumerate(classes)
    )


def cell(arm: Arm, level: float, seed: int, points: list[tuple[int, float]] | None = None, **others: Any) -> Cell:
    first = None if arm.is_scratch else seed
    about = Finetuning(arm, 2.0, 200 if arm.twice else 100, 1e-3, seed, first)
    curve = tuple(Point(step, float(step), dice) for step, dice in points or [(50, level - 0.1), (100, level)])
    return replace(Cell(about, 2, True, curve, 100.0, rows(level, seed)), **others)


def figures(cells: list[Cell], costs: dict[tuple[str, int], tuple[int, float]] | None = None) -> dict[str, Any]:
    arms = list(dict.fromkeys(one.cell.arm for one in cells))
    return {one.arm.name: one for one in figures_of(arms, [2.0], cells, costs or {}, 500, 0)}


def three(arm: Arm, *levels: float) -> list[Cell]:
    return [cell(arm, level, seed) for seed, level in enumerate(levels)]


# --- words --------------------------------------------------------------------------------------------------------


def test_a_gain_in_every_seed_is_a_yes_with_its_figures() -> None:
    found = figures([*three(SCRATCH, 0.80, 0.81, 0.79), *three(MASKED, 0.83, 0.84, 0.82)])
    one = found["simmim"]
    text = reply(one.overall, one.differences, 3)
    assert text.startswith("yes, by +3.") and "(95 % " in text and text.endswith("in 3 of 3 seeds")
    assert one.overall.difference == pytest.approx(np.mean(one.differences)) == pytest.approx(0.03, abs=0.01)


def test_a_mean_gain_that_one_seed_makes_alone_cannot_tell() -> None:
    """The interval over cases knows nothing of seeds: a class that collapses in one must not look like a gain."""
    found = figures([*three(SCRATCH, 0.80, 0.80, 0.50), *three(MASKED, 0.79, 0.79, 0.80)])
    one = found["simmim"]
    assert one.overall.low > 0 and one.overall.p < 0.05
    assert answer(one.overall, one.differences) == "cannot tell"
    assert "better in 1 of 3 seeds; more seeds or test cases are needed" in reply(one.overall, one.differences, 3)


def test_no_difference_worth_having_is_a_no_and_so_is_a_loss() -> None:
    same = figures([*three(SCRATCH, 0.80, 0.80), *three(MASKED, 0.802, 0.799)])["simmim"]
    assert reply(same.overall, same.differences, 2).startswith("no: ")
    assert "less than 1 point" in reply(same.overall, same.differences, 2)
    worse = figures([*three(SCRATCH, 0.80, 0.80), *three(MASKED, 0.75, 0.75)])["simmim"]
    assert reply(worse.overall, worse.differences, 2).startswith("no: it costs Dice, -5")


def test_one_seed_or_few_cases_are_never_enough() -> None:
    one = figures([*three(SCRATCH, 0.6), *three(MASKED, 0.9)])["simmim"]
    assert reply(one.overall, one.differences, 1).endswith("more seeds are needed")
    small = [replace(c, rows=c.rows[:8]) for c in (*three(SCRATCH, 0.6, 0.6), *three(MASKED, 0.9, 0.9))]
    few = figures(small)["simmim"]
    assert reply(few.overall, few.differences, 2).endswith("more test cases are needed")
    missing = figures([*three(SCRATCH, 0.6, 0.6, 0.6), *three(MASKED, 0.9, 0.9)])["simmim"]
    assert "(2 of 3 seeds were finished)" in reply(missing.overall, missing.differences, 3)
    assert reply(None, (), 3).startswith("cannot tell: nothing")


def test_many_pretrainings_against_one_training_from_scratch_are_never_enough() -> None:
    """It may have had bad luck, which would look like a gain in each of them."""
    masked = [cell(MASKED, level, 0) for level in (0.85, 0.86, 0.87)]
    several = [replace(one, cell=replace(one.cell, pretraining_seed=seed)) for seed, one in enumerate(masked)]
    found = figures([cell(SCRATCH, 0.6, 0), cell(DOUBLE, 0.6, 0), *several])
    one = found["simmim"]
    assert len(one.differences) == 3 and min(one.differences) > 0.2 and one.overall.verdict == "first"
    text = verdict(list(found.values()), 3)
    assert "cannot tell: +2" in text and "more seeds are needed" in text
    assert "whether that does the same cannot be told" in text


def test_one_pretraining_under_many_seeds_is_never_enough() -> None:
    """It may have had good luck, which would look like a gain in each of them."""
    shared = [replace(one, cell=replace(one.cell, pretraining_seed=0)) for one in three(MASKED, 0.85, 0.86, 0.87)]
    found = figures([*three(SCRATCH, 0.6, 0.61, 0.62), *shared])
    assert "more seeds are needed" in verdict(list(found.values()), 3)
    own = figures([*three(SCRATCH, 0.6, 0.61, 0.62), *three(MASKED, 0.85, 0.86, 0.87)])
    assert "yes, by +2" in verdict(list(own.values()), 3)


@settings(deadline=None, max_examples=100)
@given(
    st.floats(-0.2, 0.2), st.floats(0, 0.05), st.sampled_from(["first", "second", "none", "few", "mixed"]),
    st.lists(st.floats(-0.2, 0.2), max_size=4), st.integers(0, 20),
)  # fmt: skip
def test_yes_and_no_never_contradict_what_they_stand_on(
    difference: float, half: float, found: str, seeds: list[float], cases: int
) -> None:
    one = Comparison(
        "mean", "dice", cases, 0, 0.8, 0.8, difference, difference - half, difference + half, 0.01, 0, found
    )
    told = answer(one, seeds)
    if told == "yes":
        assert found == "first" and len(seeds) >= 2 and min(seeds) > 0 and cases >= 6
    if told == "no":
        assert len(seeds) >= 2 and cases >= 6 and max(seeds) < 0.01
        assert one.high < 0.01 or (found == "second" and max(seeds) < 0)
    assert reply(one, seeds, 3).startswith(told)


def test_the_sentence_tells_of_the_best_on_the_validation_and_not_on_the_test() -> None:
    good = [replace(one, points=(Point(100, 1, 0.5),)) for one in three(MASKED, 0.90, 0.90)]
    trusted = [replace(one, points=(Point(100, 1, 0.7),)) for one in three(CONTRAST, 0.83, 0.83)]
    found = figures([*three(SCRATCH, 0.80, 0.80), *good, *trusted])
    text = verdict(list(found.values()), 2)
    assert text.startswith("2 labelled: yes, by +2") and "(simclr, the best of them on the validation)" in text


@pytest.mark.parametrize(
    ("double", "words"),
    [
        (0.80, "does not do the same: the pre-training stays ahead of it by +2"),
        (0.835, "does at least about the same"),
    ],
)
def test_the_sentence_tells_whether_longer_training_would_have_done(double: float, words: str) -> None:
    found = figures([*three(SCRATCH, 0.80, 0.80), *three(DOUBLE, double, double), *three(MASKED, 0.83, 0.83)])
    assert words in verdict(list(found.values()), 2)


def test_a_collapsed_class_is_named_beside_the_verdict() -> None:
    cells = [*three(SCRATCH, 0.80, 0.80), *three(MASKED, 0.83, 0.83)]
    cells[1] = replace(cells[1], rows=tuple(replace(r, dice=0.0) if r.name == "B" else r for r in cells[1].rows))
    found = figures(cells)
    assert [one.lost for one in found["scratch"].cells] == [[], ["B"]]
    assert "Careful: classes that collapsed to zero decide these means (B in scratch, seed 1)" in verdict(
        list(found.values()), 2
    )


# --- figures ------------------------------------------------------------------------------------------------------


def test_seeds_are_averaged_within_a_case() -> None:
    first = [Row("a", "A", False, "missed", dice=0.0), Row("b", "A", False, "absent")]
    second = [Row("a", "A", False, "both", dice=0.5, hd95=2.0), Row("b", "A", False, "invented", dice=0.0)]
    a, b = averaged([first, second])
    assert (a.case, a.dice, a.hd95) == ("a", 0.25, 2.0) and (b.dice, b.status) == (0.0, "invented")
    assert math.isnan(b.surface_dice)


def test_only_seeds_that_both_have_are_compared() -> None:
    """With a seed more on one side the labelled cases would differ too."""
    found = figures([*three(SCRATCH, 0.80, 0.80), *three(MASKED, 0.83, 0.83, 0.20)])["simmim"]
    assert len(found.differences) == 2 and found.overall.difference == pytest.approx(0.03, abs=0.01)
    assert len([one for one in found.cells if one.rows]) == 3


def test_all_pairs_of_seeds_are_compared_with_the_scratch_of_their_seed() -> None:
    pairs = [
        replace(one, cell=replace(one.cell, pretraining_seed=first))
        for first in (0, 1)
        for one in three(MASKED, 0.83, 0.73)
    ]
    found = figures([*three(SCRATCH, 0.80, 0.70), *pairs])["simmim"]
    assert found.differences == pytest.approx([0.03] * 4, abs=0.01)


def test_figures_against_slow_obvious_code() -> None:
    cells = [*three(SCRATCH, 0.8, 0.7), *three(MASKED, 0.9, 0.6)]
    one = figures(cells)["simmim"]
    table = {(c.cell.arm.name, c.cell.seed, r.case, r.name): r.dice for c in cells for r in c.rows}

    def mean(arm: str, case: str) -> float:
        return float(np.mean([table[arm, seed, case, name] for seed in (0, 1) for name in "AB"]))

    differences = [mean("simmim", f"case {i}") - mean("scratch", f"case {i}") for i in range(CASES)]
    assert one.overall.difference == pytest.approx(np.mean(differences))
    assert one.dice.mean == pytest.approx(np.mean([mean("simmim", f"case {i}") for i in range(CASES)]))
    by_class = next(c for c in one.against if c.name == "A" and c.measure == "dice")
    assert by_class.first == pytest.approx(
        np.mean([table["simmim", s, f"case {i}", "A"] for s in (0, 1) for i in range(CASES)])
    )


def test_cells_that_only_tried_a_learning_rate_are_not_compared() -> None:
    tried = replace(cell(MASKED, 0.99, 0), chosen=False, rows=())
    found = figures([*three(SCRATCH, 0.80, 0.80), *three(MASKED, 0.83, 0.83), tried])["simmim"]
    assert len(found.cells) == 2 and found.validation == pytest.approx(0.83)


# --- how fast -----------------------------------------------------------------------------------------------------


def test_convergence_is_steps_to_the_best_of_scratch_with_and_without_the_pretraining() -> None:
    slow, fast = [(20, 0.5), (80, 0.8), (100, 0.7)], [(20, 0.75), (40, 0.81), (100, 0.9)]
    cells = [cell(SCRATCH, 0.8, 0, slow), cell(MASKED, 0.9, 0, fast)]
    found = figures(cells, {("simmim", 0): (120, 60.0)})["simmim"].convergence
    assert (found.reached, found.seeds, found.steps, found.other_steps) == (1, 1, 40, 80)
    assert found.ratio == 2.0 and found.ratio_all == pytest.approx(80 / 160)
    assert found.ratio_seconds == 2.0 and found.ratio_all_seconds == pytest.approx(80 / 100)


def test_a_seed_that_never_gets_there_counts_as_endless() -> None:
    never, there = [(50, 0.3), (100, 0.4)], [(50, 0.8), (100, 0.9)]
    cells = [cell(SCRATCH, 0.8, s, [(50, 0.5), (100, 0.8)]) for s in range(3)]
    cells += [cell(MASKED, 0.8, s, points) for s, points in enumerate([never, never, there])]
    found = figures(cells)["simmim"].convergence
    assert (found.reached, found.seeds, found.ratio) == (1, 3, 0.0)


def test_simclr_is_the_other_that_is_raced_where_it_is_in_the_study() -> None:
    cells = [cell(SCRATCH, 0.8, 0, [(100, 0.8)]), cell(CONTRAST, 0.7, 0, [(60, 0.6), (100, 0.5)]),
             cell(MASKED, 0.9, 0, [(30, 0.6), (100, 0.9)])]  # fmt: skip
    costs = {("simmim", 0): (10, 10.0), ("simclr", 0): (20, 20.0)}
    found = figures(cells, costs)
    assert found["simmim"].convergence_contrast.ratio == 2.0
    assert found["simmim"].convergence_contrast.ratio_all == pytest.approx(80 / 40)
    assert found["simclr"].convergence_contrast is None and found["scratch"].convergence is None


def test_curves_are_drawn_and_names_are_escaped() -> None:
    runs = {"<b>": [[Point(1, 1, 0.2), Point(2, 2, 0.6)], [Point(2, 2, 0.4)]], "other": [[Point(1, 1, 0.5)]]}
    drawn = draw_curves(runs)
    assert drawn.startswith("<svg") and "&lt;b&gt;" in drawn and "<b>" not in drawn and "nan" not in drawn.lower()
    assert mean_curve(runs["<b>"]) == [(2, pytest.approx(0.5))] and draw_curves({"a": []}) == ""


def test_nothing_measured_is_no_figure() -> None:
    blank = replace(cell(MASKED, 0.8, 0), rows=tuple(Row("a", "A", False, "absent") for _ in range(1)))
    found = figures([*three(SCRATCH, 0.8), blank])["simmim"]
    assert found.overall.cases == 0 and reply(found.overall, found.differences, 1).startswith("cannot tell")
    assert blank.lost == [] and math.isnan(NAN)
