"""The report of a study: one HTML file that opens without a network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import HybridMIMLib
from HybridMIMLib.config import Run
from HybridMIMLib.evaluation.page import NAMES, document, html_table, number, p_value
from HybridMIMLib.evaluation.summaries import COMPARED, Figure
from HybridMIMLib.events import duration
from HybridMIMLib.runs import versions
from HybridMIMLib.studies.axes import Pretraining, in_words
from HybridMIMLib.studies.drawing import draw_curves
from HybridMIMLib.studies.figures import ArmFigures, Cell, Convergence
from HybridMIMLib.studies.protocol import Protocol
from HybridMIMLib.studies.verdicts import points, reply

_BY_SEEDS = {"all": "in the mean over the seeds", "first": "with the first pair of seeds"}


@dataclass(frozen=True)
class Told:
    """What a report tells.

    Attributes:
        run: the settings.
        protocol: of the study.
        verdicts: a sentence a group and labelled amount.
        figures: of every arm on every amount.
        expected: pairs of seeds by name of the arm.
        costs: finished pre-trainings, with their seconds.
        failures: why cells failed, by title.
    """

    run: Run
    protocol: Protocol
    verdicts: Sequence[str]
    figures: Sequence[ArmFigures]
    expected: Mapping[str, int]
    costs: Sequence[tuple[Pretraining, float]]
    failures: Mapping[str, str]


def page(told: Told) -> str:
    """The HTML of a report; every name in it is escaped."""
    parts = [
        "<h1>Does pre-training help on these scans?</h1>",
        *(f"<p><b>{escape(text)}</b></p>" for text in told.verdicts),
        *(
            f'<p class="warning">Not finished: {escape(title)}: {escape(why)}. The same command tries it again.</p>'
            for title, why in told.failures.items()
        ),
        html_table(("", ""), [(escape(what), escape(value)) for what, value in _facts(told)]),
        *(part for group in _groups(told) for part in _amount(told, group)),
        *_costs(told),
        *_left_out(told),
        _definitions(told),
    ]
    return document("Does pre-training help?", parts)


def _facts(told: Told) -> list[tuple[str, str]]:
    run, protocol = told.run, told.protocol
    kept = f"{len(protocol.pretraining)}"
    if protocol.kept_out:
        kept += (
            f", after {len(protocol.kept_out)} that are test cases, of their patients, or called so, were kept out"
        )
    return [
        ("unlabelled scans", f"{run.unlabelled}: {kept}"),
        ("labelled cases", f"{run.labelled}: {len(protocol.test)} to test, {len(protocol.validation)} to validate, "
                           f"{len(protocol.pool)} to learn from"),
        ("seeds", f"fine-tuning {run.study.seeds}, pre-training {run.study.pretraining_seeds or run.study.seeds}"),
        ("learning rates", ", ".join(f"{rate:g}" for rate in run.study.learning_rates or
                                     [run.finetuning.learning_rate])),
        ("pre-training", f"{run.pretraining.steps} steps"),
    ]  # fmt: skip


def _groups(told: Told) -> Iterator[list[ArmFigures]]:
    groups: dict[tuple[str, str], list[ArmFigures]] = {}
    for one in told.figures:
        groups.setdefault((in_words(one.amount), one.arm.group), []).append(one)
    yield from groups.values()


def _amount(told: Told, group: Sequence[ArmFigures]) -> list[str]:
    """All about one labelled amount, of one network and resolution."""
    first = group[0]
    cases = next((cell.cases for one in group for cell in one.cells), 0)
    title = f"{in_words(first.amount)} ({cases} cases)" + (f", {first.arm.group}" if first.arm.group else "")
    curves = {one.arm.name: [cell.points for cell in one.cells if cell.points] for one in group}
    convergence = [row for one in group for row in _convergence(one)]
    lost = [_lost(one) for one in group if any(cell.lost for cell in one.cells)]
    return [
        f"<h2>{escape(title[0].upper() + title[1:])}</h2>",
        html_table(
            ("arm", "learning rate", "mean Dice<br><small>(95 % interval)</small>", "each seed",
             "less scratch, points<br><small>(95 % interval)</small>", "better in seeds", "p", ""),
            [_row(told, one) for one in group],
        ),
        *(f'<p class="warning">{text}</p>' for text in lost),
        "<h3>By class</h3>",
        html_table(_class_head(group), [row for one in group for row in _class_rows(one)]),
        "<h3>How fast</h3>" if convergence else "",
        html_table(
            ("arm", "reaches the best of", "in seeds", "steps", "against steps", "ratio",
             "ratio in seconds", "with the pre-training counted<br><small>steps, seconds</small>"),
            convergence,
        ) if convergence else "",
        "<h3>Validation Dice by step</h3><figure>" + draw_curves(curves) + "</figure>",
    ]  # fmt: skip


def _row(told: Told, one: ArmFigures) -> tuple[str, ...]:
    seeds = ", ".join(number(cell.dice) for cell in one.cells if cell.rows)
    start = (escape(one.arm.name), f"{one.learning_rate:g}" if math.isfinite(one.learning_rate) else "–",
             _with_interval(one.dice), seeds or "–")  # fmt: skip
    overall = one.overall
    if overall is None:
        return (*start, "", "", "", "" if one.dice is not None else "not finished")
    between = (
        f" <small>({points(overall.low)} to {points(overall.high)})</small>" if overall.low == overall.low else ""
    )
    better = f"{sum(value > 0 for value in one.differences)} of {len(one.differences)}"
    says = reply(overall, one.differences, told.expected[one.arm.name], one.independent)
    return (*start, points(overall.difference) + between, better, p_value(overall.p), escape(says))


def _lost(one: ArmFigures) -> str:
    parts = [f"seed {cell.cell.seed}{_begin(cell)}: {', '.join(cell.lost)}" for cell in one.cells if cell.lost]
    return f"{escape(one.arm.name)}: classes that were found in no test case ({escape('; '.join(parts))})."


def _begin(cell: Cell) -> str:
    first = cell.cell.pretraining_seed
    return "" if first is None else f" from pre-training {first}"


def _class_head(group: Sequence[ArmFigures]) -> tuple[str, ...]:
    return ("arm", "class", "cases", *(f"{NAMES[one]}<br><small>(95 % interval)</small>" for one in COMPARED),
            "Dice less scratch, points<br><small>(95 % interval)</small>", "p")  # fmt: skip


def _class_rows(one: ArmFigures) -> Iterator[tuple[str, ...]]:
    if one.summary is None:
        return
    found = {entry.name: entry for entry in one.against if entry.measure == "dice"}
    for entry in one.summary.classes:
        other = found.get(entry.name)
        between = ""
        if other is not None and math.isfinite(other.low):
            between = f" <small>({points(other.low)} to {points(other.high)})</small>"
        yield (
            escape(one.arm.name),
            escape(entry.name) + (" <small>(region)</small>" if entry.is_region else ""),
            str(entry.figures["dice"].cases),
            *(_with_interval(entry.figures[name], 2 if name == "hd95" else 3) for name in COMPARED),
            "" if other is None else points(other.difference) + between,
            "" if other is None else p_value(other.p),
        )


def _convergence(one: ArmFigures) -> Iterator[tuple[str, ...]]:
    for name, found in (("scratch", one.convergence), ("simclr", one.convergence_contrast)):
        if found is not None:
            yield (escape(one.arm.name), name, f"{found.reached} of {found.seeds}", number(found.steps, 0),
                   number(found.other_steps, 0), _ratio(found.ratio, found), _ratio(found.ratio_seconds, found),
                   f"{_ratio(found.ratio_all, found)}, {_ratio(found.ratio_all_seconds, found)}")  # fmt: skip


def _ratio(value: float, found: Convergence) -> str:
    return f"{value:.2f}" if value > 0 else "not reached"


def _with_interval(figure: Figure | None, digits: int = 3) -> str:
    if figure is None:
        return "–"
    ends = f" <small>({number(figure.low, digits)} to {number(figure.high, digits)})</small>"
    return number(figure.mean, digits) + (ends if math.isfinite(figure.low) else "")


def _costs(told: Told) -> list[str]:
    steps = str(told.run.pretraining.steps)
    rows = [(escape(one.arm.name), str(one.seed), steps, duration(seconds)) for one, seconds in told.costs]
    return (
        ["<h2>What the pre-trainings cost</h2>", html_table(("arm", "seed", "steps", "time"), rows)] if rows else []
    )


def _left_out(told: Told) -> list[str]:
    rows = [(escape(name), escape(why)) for name, why in told.protocol.refused.items()]
    return ["<h2>Left out</h2>", html_table(("arm", "why"), rows)] if rows else []


def _definitions(told: Told) -> str:
    terms = (
        ("Test cases", "Drawn by patient, or named, before the first run. They served nothing else: no pre-training, "
         "no validation, no choice of a checkpoint or learning rate. All arms were measured on the same ones, on "
         "their own grids, with the checkpoint that was best on the validation."),
        ("Same conditions", "On one labelled amount every arm had the same schedule, the same validation cases and, "
         "seed by seed, the same labelled cases, network and crops. Its learning rate is the one with the best "
         f"validation Dice {_BY_SEEDS[told.run.study.rate_seeds]} among those that were tried. Scratch has no frozen "
         "steps and no layer-wise decay, which protect what was learnt."),
        ("Mean Dice", "The mean of the means of the classes, each over the test cases, seeds averaged within a case; "
         "regions do not count. HD95 in mm; surface Dice at the tolerance of evaluation.tolerance."),
        ("95 % interval", f"Test cases were drawn anew {told.run.evaluation.resamples} times (bootstrap, "
         "percentiles). It knows nothing of how seeds scatter: look at each seed too."),
        ("p", "Wilcoxon signed-rank test, two-sided, paired over the test cases. It is not corrected for how many "
         "arms are looked at: of twenty without any difference one is below 0.05 on average."),
        ("yes", "The interval lies above 0, p is below 0.05, and the arm is ahead in every seed of at least two, "
         "each with its own training from scratch. "
         "The sentences at the top tell of the arm that was best on the validation, which the test did not choose."),
        ("no", "The same the other way round; or the interval and every seed stay below +1 point."),
        ("cannot tell", "Anything else. More seeds narrow what chance does in training, more test cases what it does "
         "in the choice of scans."),
        ("How fast", "Steps to the best validation Dice that the other reached with the same seed; ratio: steps of "
         "the other by steps of the arm, above 1 where the arm is faster. Medians over the seeds; a seed that does "
         "not get there counts as 0. Validations come at fixed steps, so steps are no finer than these. Seconds "
         "include validations, and other work on the machine."),
    )  # fmt: skip
    text = "".join(f"<dt>{escape(term)}</dt><dd>{escape(words)}</dd>" for term, words in terms)
    about = versions()
    made = ", ".join(f"{name} {about[name]}" for name in ("torch", "monai", "scipy") if name in about)
    return (
        f"<h2>What the words mean</h2><dl>{text}</dl>"
        f'<p class="quiet">Made with HybridMIM {HybridMIMLib.__version__}, {escape(made)}</p>'
    )
