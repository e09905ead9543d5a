"""From cells to figures: each arm on each labelled amount, against scratch on the same cases with the same seeds.

Over the seeds values are averaged within a test case, so that intervals and tests are over cases; how far the seeds
agree is told beside them. Every comparison is paired: the same test cases, the same seeds, and so the same labelled
cases to learn from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from HybridMIMLib.evaluation.measuring import NAN, Row
from HybridMIMLib.evaluation.summaries import ALL_CLASSES, Comparison, Figure, Summary, compare, summarise
from HybridMIMLib.files import read_json
from HybridMIMLib.studies.axes import Amount, Arm, Finetuning
from HybridMIMLib.studies.cell import TEST
from HybridMIMLib.studies.curves import Point, best, reached, trace

_AVERAGED = ("dice", "hd95", "surface_dice", "prediction_ml", "difference_ml", "difference_percent")
_FEW = 100
"""Draws of a bootstrap whose interval nobody looks at."""


@dataclass(frozen=True)
class Cell:
    """A fine-tuning and what came of it.

    Attributes:
        cell: what it was.
        cases: it learnt from.
        chosen: whether its learning rate is the arm's; others were tried on the validation alone.
        points: of its validation.
        seconds: of training.
        rows: of the test cases; empty where it was not tested.
    """

    cell: Finetuning
    cases: int
    chosen: bool
    points: tuple[Point, ...] = ()
    seconds: float = NAN
    rows: tuple[Row, ...] = ()

    @classmethod
    def read(cls, cell: Finetuning, folder: Path, cases: int, chosen: bool) -> Cell:
        """What its run folder tells."""
        if not (folder / "result.json").exists():
            return cls(cell, cases, chosen)
        found = trace(folder / "events.jsonl", "finetune")
        rows: tuple[Row, ...] = ()
        if chosen and (folder / TEST).exists():
            rows = tuple(_row(one) for one in read_json(folder / TEST)["rows"])
        return cls(cell, cases, chosen, found.points, found.seconds, rows)

    @property
    def is_done(self) -> bool:
        """Whether it was trained and, if it is compared, tested."""
        return bool(self.points) and (bool(self.rows) or not self.chosen)

    @property
    def validation(self) -> Point:
        """The best one."""
        return best(self.points)

    @property
    def dice(self) -> float:
        """Mean over the classes of the means over the test cases."""
        return summarise(self.rows, _FEW).mean["dice"].mean if self.rows else NAN

    @property
    def lost(self) -> list[str]:
        """Classes that are in a test case and were found right in none: collapsed."""
        names = dict.fromkeys(row.name for row in self.rows if not row.is_region and row.status in ("both", "missed"))
        return [name for name in names if all(row.dice == 0 for row in self.rows if row.name == name and row.counts)]


@dataclass(frozen=True)
class Convergence:
    """How fast an arm reaches the best validation Dice of another, over its seeds.

    Attributes:
        seeds: that were looked at; ``reached``: in which it gets there.
        steps, seconds: of the arm until there, medians over the seeds in which it gets there.
        other_steps, other_seconds: of the other until there, medians over all.
        ratio, ratio_seconds: other by arm, medians over the seeds; one that does not get there counts as 0.
        ratio_all, ratio_all_seconds: the same with the arm's pre-training counted.
    """

    seeds: int
    reached: int
    steps: float
    seconds: float
    other_steps: float
    other_seconds: float
    ratio: float
    ratio_seconds: float
    ratio_all: float
    ratio_all_seconds: float


@dataclass(frozen=True)
class ArmFigures:
    """An arm on a labelled amount.

    Attributes:
        arm, amount: which.
        cells: those that are compared, done or not.
        summary: over the test cases, seeds averaged within a case; None where none was tested.
        learning_rate: that was chosen.
        against: the comparison with scratch, overall and by class; empty for scratch itself.
        differences: less scratch, of each pair of seeds, in Dice.
        independent: of these pairs; those that share a training from scratch, or a pre-training, count once.
        doubled: the comparison with scratch for twice the steps, overall; None without. ``doubled_differences`` and
            ``doubled_independent``: as above.
        convergence: against scratch; ``convergence_contrast``: against SimCLR; None without.
    """

    arm: Arm
    amount: Amount
    cells: tuple[Cell, ...]
    summary: Summary | None
    learning_rate: float
    against: tuple[Comparison, ...] = ()
    differences: tuple[float, ...] = ()
    independent: int = 0
    doubled: Comparison | None = None
    doubled_differences: tuple[float, ...] = ()
    doubled_independent: int = 0
    convergence: Convergence | None = None
    convergence_contrast: Convergence | None = None

    @property
    def dice(self) -> Figure | None:
        """Mean over the classes."""
        return None if self.summary is None else self.summary.mean["dice"]

    @property
    def overall(self) -> Comparison | None:
        """The comparison with scratch in the mean Dice."""
        return main_of(self.against)

    @property
    def validation(self) -> float:
        """Mean over the seeds of the best validation Dice."""
        known = [cell.validation.dice for cell in self.cells if cell.points]
        return fmean(known) if known else NAN


def main_of(comparisons: Iterable[Comparison]) -> Comparison | None:
    """The mean Dice among comparisons."""
    return next((one for one in comparisons if one.name == ALL_CLASSES and one.measure == "dice"), None)


def figures_of(
    arms: Sequence[Arm],
    amounts: Sequence[Amount],
    cells: Sequence[Cell],
    costs: Mapping[tuple[str, int], tuple[int, float]],
    resamples: int,
    seed: int,
) -> list[ArmFigures]:
    """Figures of every arm on every amount.

    Args:
        arms, amounts: of the study.
        cells: all of them.
        costs: (steps, seconds) of a pre-training by name of the arm and seed.
        resamples, seed: of the bootstrap.
    """
    found = []
    for amount in amounts:
        own = {
            arm.name: tuple(
                cell for cell in cells if cell.chosen and cell.cell.arm == arm and cell.cell.amount == amount
            )
            for arm in arms
        }
        for arm in arms:
            group = [other for other in arms if other.group == arm.group]
            scratch = own[next(other for other in group if other.is_scratch and not other.twice).name]
            double = next((own[other.name] for other in group if other.twice), ())
            contrast = next((own[other.name] for other in group if other.family == "simclr"), ())
            found.append(_figures(arm, amount, own[arm.name], scratch, double, contrast, costs, resamples, seed))
    return found


def _figures(
    arm: Arm,
    amount: Amount,
    cells: tuple[Cell, ...],
    scratch: tuple[Cell, ...],
    double: tuple[Cell, ...],
    contrast: tuple[Cell, ...],
    costs: Mapping[tuple[str, int], tuple[int, float]],
    resamples: int,
    seed: int,
) -> ArmFigures:
    tested = [cell for cell in cells if cell.rows]
    summary = summarise(averaged([cell.rows for cell in tested]), resamples, seed) if tested else None
    rate = cells[0].cell.learning_rate if cells else NAN
    figures = ArmFigures(arm, amount, cells, summary, rate)
    if not tested or (arm.is_scratch and not arm.twice):
        return figures
    pairs = _side_by_side(tested, scratch)
    figures = replace(
        figures,
        against=_compared(pairs, resamples, seed),
        differences=tuple(a.dice - b.dice for a, b in pairs),
        independent=_independent(pairs),
        convergence=_convergence(cells, scratch, costs),
    )
    if arm.is_scratch:
        return figures
    twice = _side_by_side(tested, double)
    return replace(
        figures,
        doubled=main_of(_compared(twice, resamples, seed)),
        doubled_differences=tuple(a.dice - b.dice for a, b in twice),
        doubled_independent=_independent(twice),
        convergence_contrast=None if arm.family == "simclr" else _convergence(cells, contrast, costs),
    )


def averaged(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """One row a case and class: the mean over runs of what is known; its status is that of the first that counts."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for rows in runs:
        for row in rows:
            groups.setdefault((row.case, row.name), []).append(row)
    found = []
    for group in groups.values():
        first = next((row for row in group if row.counts), group[0])
        means: dict[str, Any] = {name: _mean(getattr(row, name) for row in group) for name in _AVERAGED}
        found.append(replace(first, **means))
    return found


def _side_by_side(cells: Sequence[Cell], scratch: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    """Tested cells of one seed of the fine-tuning: they learnt from the same labelled cases."""
    return [(a, b) for a in cells for b in scratch if a.rows and b.rows and a.cell.seed == b.cell.seed]


def _independent(pairs: Sequence[tuple[Cell, Cell]]) -> int:
    """How many of them are independent at best: trainings or pre-trainings that are shared lend them one luck."""
    begun = {a.cell.pretraining_seed for a, _ in pairs} - {None}
    against = len({b.cell.seed for _, b in pairs})
    return min(against, len(begun)) if begun else against


def _compared(pairs: Sequence[tuple[Cell, Cell]], resamples: int, seed: int) -> tuple[Comparison, ...]:
    if not pairs:
        return ()
    first, second = ([pair[side].rows for pair in pairs] for side in (0, 1))
    return tuple(compare(averaged(first), averaged(second), resamples, seed))


def _convergence(
    cells: Sequence[Cell], others: Sequence[Cell], costs: Mapping[tuple[str, int], tuple[int, float]]
) -> Convergence | None:
    """See :class:`Convergence`; None where there is nothing to compare with."""
    rows = []
    for cell in cells:
        other = next((o for o in others if o.points and o.cell.seed == cell.cell.seed), None)
        if other is None or not cell.points:
            continue
        target = other.validation
        rows.append((target, reached(cell.points, target.dice), _cost(cell, costs), _cost(other, costs)))
    if not rows:
        return None
    there = [(point, own) for _, point, own, _ in rows if point is not None]

    def ratio(name: str, counted: bool) -> float:
        index = 0 if name == "step" else 1
        values = [
            0.0
            if point is None
            else (getattr(target, name) + counted * theirs[index])
            / max(getattr(point, name) + counted * own[index], 1e-9)
            for target, point, own, theirs in rows
        ]
        return median(values)

    return Convergence(
        len(rows),
        len(there),
        median(point.step for point, _ in there) if there else NAN,
        median(point.seconds for point, _ in there) if there else NAN,
        median(target.step for target, *_ in rows),
        median(target.seconds for target, *_ in rows),
        ratio("step", False),
        ratio("seconds", False),
        ratio("step", True),
        ratio("seconds", True),
    )


def _cost(cell: Cell, costs: Mapping[tuple[str, int], tuple[int, float]]) -> tuple[int, float]:
    first = cell.cell.pretraining_seed
    return (0, 0.0) if first is None else costs.get((cell.cell.arm.name, first), (0, 0.0))


def _row(content: Mapping[str, Any]) -> Row:
    """A row of ``test.json``, in which a figure that there is not is null."""
    known: dict[str, Any] = {name: NAN if value is None else value for name, value in content.items()}
    return Row(**known)


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return fmean(known) if known else NAN
