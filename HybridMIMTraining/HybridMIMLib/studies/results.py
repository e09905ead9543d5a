"""What a study leaves: ``study.json``, ``cells.csv``, ``cases.csv``, ``report.html``."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import HybridMIMLib
from HybridMIMLib.config import Run
from HybridMIMLib.evaluation.summaries import Comparison
from HybridMIMLib.files import write_json, write_text
from HybridMIMLib.runs import versions
from HybridMIMLib.studies.axes import Pretraining, in_words, seed_pairs
from HybridMIMLib.studies.figures import ArmFigures, Cell, figures_of
from HybridMIMLib.studies.page import Told, page
from HybridMIMLib.studies.protocol import Protocol
from HybridMIMLib.studies.verdicts import reply, verdict

__all__ = ["Cell", "write_results"]

_CELL = ("arm", "labelled", "cases", "learning_rate", "compared", "pretraining_seed", "seed", "steps", "state",
         "validation_dice", "best_step", "seconds", "test_dice")  # fmt: skip
_CASE = ("arm", "labelled", "pretraining_seed", "seed", "case", "class", "kind", "status", "dice", "hd95_mm",
         "surface_dice", "reference_ml", "prediction_ml")  # fmt: skip


def write_results(
    run: Run,
    protocol: Protocol,
    cells: Sequence[Cell],
    costs: Sequence[tuple[Pretraining, float]],
    failures: Mapping[str, str],
    folder: Path,
) -> dict[str, Any]:
    """Compute all figures, write the files, and return what the command tells.

    Args:
        run: settings of the study.
        protocol: of it.
        cells: every fine-tuning, done or not.
        costs: finished pre-trainings, with the seconds that each took.
        failures: why cells failed, by title.
        folder: of the study.
    """
    steps = run.pretraining.steps
    by_seed = {(one.arm.name, one.seed): (steps, seconds) for one, seconds in costs}
    figures = figures_of(
        protocol.arms, run.study.labelled, cells, by_seed, run.evaluation.resamples, run.seed
    )  # fmt: skip
    expected = {arm.name: len(seed_pairs(run.study, arm)) for arm in protocol.arms}
    verdicts = _verdicts(figures, expected)
    paths = {name: folder / file for name, file in (("json", "study.json"), ("cells", "cells.csv"),
                                                    ("cases", "cases.csv"), ("report", "report.html"))}  # fmt: skip
    spent = [{"arm": one.arm.name, "seed": one.seed, "steps": steps, "seconds": round(seconds, 3)}
             for one, seconds in costs]  # fmt: skip
    result = {
        "verdicts": verdicts,
        "arms": [_arm(one, expected[one.arm.name]) for one in figures],
        "pretrainings": spent,
        "failed": dict(failures),
        "left_out": protocol.refused,
    }
    write_json(paths["json"], {
        **result, "curves": [_curve(cell) for cell in cells if cell.points],
        "test": list(protocol.test), "validation": list(protocol.validation), "pool": list(protocol.pool),
        "kept_out_of_pretraining": protocol.kept_out, "settings": protocol.settings,
        "versions": {"hybridmim": HybridMIMLib.__version__, **versions()},
    })  # fmt: skip
    write_text(paths["cells"], _cells_sheet(cells))
    write_text(paths["cases"], _cases_sheet(cells))
    write_text(paths["report"], page(Told(run, protocol, verdicts, figures, expected, costs, failures)))
    return {**result, **{name: str(path) for name, path in paths.items()}}


def _verdicts(figures: Sequence[ArmFigures], expected: Mapping[str, int]) -> list[str]:
    """A sentence a group and amount, in their order."""
    groups: dict[tuple[str, str], list[ArmFigures]] = {}
    for one in figures:
        groups.setdefault((in_words(one.amount), one.arm.group), []).append(one)
    return [verdict(group, max(expected[one.arm.name] for one in group)) for group in groups.values()]


def _arm(one: ArmFigures, expected: int) -> dict[str, Any]:
    """An arm on an amount for ``study.json``."""
    compared = not one.arm.is_scratch or one.arm.twice
    return {
        "arm": one.arm.name,
        "labelled": in_words(one.amount),
        "learning_rate": one.learning_rate,
        "cells": len([cell for cell in one.cells if cell.rows]),
        "expected": expected,
        "dice": None if one.dice is None else asdict(one.dice),
        "validation_dice": one.validation,
        "seeds": [
            {"pretraining_seed": cell.cell.pretraining_seed, "seed": cell.cell.seed, "dice": cell.dice}
            for cell in one.cells
            if cell.rows
        ],
        "classes": {} if one.summary is None else _by_class(one),
        "collapsed": [
            {"pretraining_seed": cell.cell.pretraining_seed, "seed": cell.cell.seed, "classes": cell.lost}
            for cell in one.cells
            if cell.lost
        ],
        "against_scratch": [asdict(entry) for entry in one.against],
        "differences": list(one.differences),
        "says": reply(one.overall, one.differences, expected, one.independent) if compared else "",
        "against_scratch_twice_the_steps": None if one.doubled is None else asdict(one.doubled),
        "convergence": None if one.convergence is None else asdict(one.convergence),
        "convergence_against_simclr": None if one.convergence_contrast is None else asdict(one.convergence_contrast),
    }


def _by_class(one: ArmFigures) -> dict[str, Any]:
    assert one.summary is not None
    differences: dict[tuple[str, str], Comparison] = {(entry.name, entry.measure): entry for entry in one.against}
    return {
        entry.name: {
            **{name: asdict(figure) for name, figure in entry.figures.items()},
            "difference": _difference(differences.get((entry.name, "dice"))),
        }
        for entry in one.summary.classes
    }


def _difference(one: Comparison | None) -> float | None:
    return None if one is None or not math.isfinite(one.difference) else one.difference


def _curve(cell: Cell) -> dict[str, Any]:
    about = cell.cell
    return {
        "arm": about.arm.name,
        "labelled": in_words(about.amount),
        "learning_rate": about.learning_rate,
        "pretraining_seed": about.pretraining_seed,
        "seed": about.seed,
        "points": [asdict(point) for point in cell.points],
    }


def _cells_sheet(cells: Sequence[Cell]) -> str:
    names = list(dict.fromkeys(row.name for cell in cells for row in cell.rows))
    rows = []
    for cell in cells:
        about, known = cell.cell, bool(cell.points)
        state = "done" if cell.is_done else "not tested" if known else "missing"
        rows.append([
            about.arm.name, in_words(about.amount), cell.cases, about.learning_rate, "yes" if cell.chosen else "no",
            about.pretraining_seed, about.seed, about.steps, state, cell.validation.dice if known else None,
            cell.validation.step if known else None, cell.seconds, cell.dice,
            *(_mean_of(cell, name) for name in names),
        ])  # fmt: skip
    return _sheet((*_CELL, *(f"dice {name}" for name in names)), rows)


def _cases_sheet(cells: Iterable[Cell]) -> str:
    rows = []
    for cell in cells:
        about = cell.cell
        rows += [
            [about.arm.name, in_words(about.amount), about.pretraining_seed, about.seed, row.case, row.name,
             "region" if row.is_region else "class", row.status, row.dice, row.hd95, row.surface_dice,
             row.reference_ml, row.prediction_ml]
            for row in cell.rows
        ]  # fmt: skip
    return _sheet(_CASE, rows)


def _mean_of(cell: Cell, name: str) -> float:
    known = [row.dice for row in cell.rows if row.name == name and math.isfinite(row.dice)]
    return math.fsum(known) / len(known) if known else math.nan


def _sheet(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow([_written(value) for value in row])
    return sheet.getvalue()


def _written(value: Any) -> Any:
    """For a cell of a sheet: empty where there is nothing."""
    if not isinstance(value, float):
        return "" if value is None else value
    return f"{value:.6g}" if math.isfinite(value) else ""
