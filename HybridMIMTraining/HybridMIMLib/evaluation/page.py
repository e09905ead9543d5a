"""The report of an evaluation: one HTML file that opens without a network, pictures inside."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from HybridMIMLib.evaluation.summaries import (
    ALL_CLASSES,
    COMPARED,
    FEWEST,
    ClassSummary,
    Comparison,
    Figure,
    Summary,
)

NAMES = {"dice": "Dice", "hd95": "HD95 (mm)", "surface_dice": "surface Dice"}
"""What measures are called in tables."""

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;background:#fff;max-width:1080px;margin:2em auto;padding:0 1.2em}
h1{font-size:1.6em}h2{font-size:1.25em;margin-top:2em;border-bottom:1px solid #ccc}
table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums;font-size:.93em}
th,td{padding:.25em .7em;text-align:right;border-bottom:1px solid #e4e4e4;vertical-align:top}
th{background:#f4f4f4}th:first-child,td:first-child{text-align:left}
tr.all td{font-weight:bold;border-bottom:2px solid #999}
.scroll{overflow-x:auto}img{max-width:100%;height:auto}small,.quiet{color:#666}
.warning{background:#fff6df;border-left:4px solid #e0a800;padding:.4em .9em;margin:.5em 0}
figure{margin:1em 0}figcaption{font-size:.93em}dt{font-weight:bold;margin-top:.6em}
.swatch{display:inline-block;width:.8em;height:.8em;margin-right:.35em;border:1px solid #888}
"""


@dataclass(frozen=True)
class Picture:
    """A PNG and the words for it.

    Attributes:
        png: the file.
        text: what there is to see, as plain text.
    """

    png: bytes
    text: str


@dataclass(frozen=True)
class Content:
    """What a report tells.

    Attributes:
        facts: what was compared: (what, value).
        warnings: what its reader has to know first.
        runs: title and figures of each run, that which is judged first.
        tolerances: of the surface Dice, in words.
        boxes, volumes, worst: pictures.
        comparison: of the two runs; empty for one.
        legend: name and colour (red, green, blue, each 0 to 1) of each class.
        resamples: draws of the bootstrap.
        versions: of what it was computed with.
    """

    facts: Sequence[tuple[str, str]]
    warnings: Sequence[str]
    runs: Sequence[tuple[str, Summary]]
    tolerances: str
    boxes: Sequence[Picture]
    volumes: Sequence[Picture]
    worst: Sequence[Picture]
    comparison: Sequence[Comparison]
    legend: Sequence[tuple[str, tuple[float, float, float]]]
    resamples: int
    versions: str


def page(content: Content) -> str:
    """The HTML of a report; every name in it is escaped."""
    parts = [
        "<h1>How good are these segmentations?</h1>",
        html_table(("", ""), [(escape(what), escape(value)) for what, value in content.facts]),
        *(f'<p class="warning">{escape(text)}</p>' for text in content.warnings),
        _answer(content.runs[0][1]),
        *([_comparison(content)] if content.comparison else []),
        *(part for title, summary in content.runs for part in _run(title, summary, len(content.runs) > 1)),
        "<h2>Every case</h2><p>Each dot is a case. A box holds the middle half of the cases, the line in it is their "
        "median. Classes stand in the order of the table.</p>",
        *map(html_figure, content.boxes),
        "<h2>Volumes</h2><p>Left: on the grey line the prediction has the volume of the reference. Right: above 0 it "
        "is too large, below too small; a cloud that rises or falls says that this depends on the size.</p>",
        *map(html_figure, content.volumes),
        *([_worst(content)] if content.worst else []),
        _definitions(content),
    ]
    return document("Evaluation of segmentations", parts)


def document(title: str, parts: Iterable[str]) -> str:
    """A page of parts that are HTML already; the title is plain text."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def number(value: float, digits: int = 3) -> str:
    """For a table; a dash where there is none."""
    return "–" if not math.isfinite(value) else f"{value:.{digits}f}"


def verdict(one: Comparison) -> str:
    """What a comparison says, in words."""
    if one.cases == 0:
        return "no case has both"
    few = f"fewer than {FEWEST} cases differ: too few to tell"
    words = {"first": "A is better", "second": "B is better", "none": "no difference shown", "few": few,
             "mixed": "mixed: most cases differ one way, the mean does not"}  # fmt: skip
    return words[one.verdict]


def p_value(value: float) -> str:
    """As it is written."""
    return "–" if not math.isfinite(value) else "below 0.001" if value < 0.001 else f"{value:.3f}"


def _answer(summary: Summary) -> str:
    dice = summary.mean["dice"]
    if not dice.cases:
        return "<p>Nothing could be measured: no class is in any case.</p>"
    weakest = min(
        (one for one in summary.classes if one.figures["dice"].cases and not one.is_region),
        key=lambda one: one.figures["dice"].mean,
    )
    missed = sum(one.counts["missed"] for one in summary.classes if not one.is_region)
    between = f" (95 % interval {_ends(dice, 3)})" if math.isfinite(dice.low) else ""
    text = (
        f"On average a Dice of <b>{number(dice.mean)}</b>{between} over {dice.cases} case(s). The weakest class is "
        f"<b>{escape(weakest.name)}</b> with {number(weakest.figures['dice'].mean)}."
    )
    if missed:
        text += f" {missed} time(s) a class that is there was not found at all."
    return f"<p>{text}</p>"


def _run(title: str, summary: Summary, several: bool) -> list[str]:
    """Two tables: overlap and distances, then volumes."""
    head = ("class", "cases", "missed", "invented",
            *(f"{NAMES[one]}<br><small>{part}</small>" for one in COMPARED for part in ("mean (95 % interval)",
                                                                                       "median")))  # fmt: skip
    rows = [_means(summary), *(_class_row(one) for one in summary.classes)]
    heading = f"Figures of {escape(title)}" if several else "Figures"
    volumes = [_volume_row(one) for one in summary.classes]
    return [
        f"<h2>{heading}</h2>",
        html_table(head, rows, first_is_all=True),
        html_table(
            ("class", "cases", "difference of volume, ml<br><small>mean (95 % interval)</small>",
             "95 % of cases lie between, ml<br><small>mean ± 1.96 standard deviations</small>",
             "difference, %<br><small>mean</small>", "<br><small>median</small>"),
            volumes,
        ),
    ]  # fmt: skip


def _means(summary: Summary) -> tuple[str, ...]:
    cells = [part for one in COMPARED for part in _cells(summary.mean[one], one)]
    return ("mean of all classes", str(summary.mean["dice"].cases), "", "", *cells)


def _class_row(one: ClassSummary) -> tuple[str, ...]:
    cells = [part for measure in COMPARED for part in _cells(one.figures[measure], measure)]
    name = escape(one.name) + (" <small>(region)</small>" if one.is_region else "")
    return (name, str(one.figures["dice"].cases), str(one.counts["missed"]), str(one.counts["invented"]), *cells)


def _volume_row(one: ClassSummary) -> tuple[str, ...]:
    ml, percent = one.figures["difference_ml"], one.figures["difference_percent"]
    between = (
        f"{number(ml.mean - 1.96 * ml.spread, 2)} to {number(ml.mean + 1.96 * ml.spread, 2)}"
        if math.isfinite(ml.spread)
        else "–"
    )
    return (escape(one.name), str(ml.cases), _with_interval(ml, 2), between,
            number(percent.mean, 1), number(percent.median, 1))  # fmt: skip


def _cells(figure: Figure, measure: str) -> tuple[str, str]:
    digits = 2 if measure == "hd95" else 3
    return _with_interval(figure, digits), number(figure.median, digits)


def _with_interval(figure: Figure, digits: int) -> str:
    ends = f" <small>({_ends(figure, digits)})</small>" if math.isfinite(figure.low) else ""
    return number(figure.mean, digits) + ends


def _ends(figure: Figure, digits: int) -> str:
    return f"{number(figure.low, digits)} to {number(figure.high, digits)}"


def _comparison(content: Content) -> str:
    (first, _), (second, _) = content.runs
    head = ("class", "measure", "cases", "equal", "left out", "A", "B", "A less B<br><small>(95 % interval)</small>",
            "p", "")  # fmt: skip
    rows = []
    for one in content.comparison:
        digits = 2 if one.measure == "hd95" else 3
        name = "mean of all classes" if one.name == ALL_CLASSES else one.name
        ends = f" <small>({number(one.low, digits)} to {number(one.high, digits)})</small>"
        rows.append((
            escape(name), NAMES[one.measure], str(one.cases), str(one.ties), str(one.left_out),
            number(one.first, digits), number(one.second, digits),
            number(one.difference, digits) + (ends if math.isfinite(one.low) else ""), p_value(one.p), verdict(one),
        ))  # fmt: skip
    main = next(one for one in content.comparison if one.name == ALL_CLASSES and one.measure == "dice")
    return (
        f"<h2>A against B</h2><p>{escape(first)}, and {escape(second)}, case by case on the same scans. Of the "
        f"mean Dice: <b>{verdict(main)}</b>, A less B is {number(main.difference)} over {main.cases} case(s).</p>"
        "<p>p (Wilcoxon signed-rank test, two-sided) is how often chance alone would make a difference like this if "
        "neither were better. A run is called better where p is below 0.05 and the interval of the mean holds no 0. "
        "No p is corrected for how many there are: of twenty rows without any difference one is below 0.05 on "
        "average, so look at the first row, or at one that was chosen beforehand. "
        "Left out are cases of which only one of both has a figure.</p>"
    ) + html_table(head, rows)


def _worst(content: Content) -> str:
    legend = "".join(
        f'<span class="swatch" style="background:rgb({",".join(str(round(255 * part)) for part in color)})"></span>'
        f"{escape(name)} &nbsp; "
        for name, color in content.legend
    )
    return (
        "<h2>The cases with the lowest Dice</h2><p>The axial slice of each in which most voxels differ. The "
        f"patient's right (R) is on the left.</p><p>{legend}</p>" + "".join(map(html_figure, content.worst))
    )


def _definitions(content: Content) -> str:
    terms = (
        ("Dice", "How much reference and prediction overlap: twice the voxels that both share, divided by the voxels "
         "of both. 0 is no overlap, 1 is perfect. Small structures lose more "
         "by an error of one voxel than large ones."),
        ("HD95", "How far the two surfaces are apart where they fit badly, in mm: 95 % of the area of either is at "
         "most that far from the other. 0 is perfect. The worst 5 % are left out, "
         "because a single stray voxel would decide."),
        ("surface Dice", "Or normalised surface distance (NSD): the share of both surfaces that is no further from "
         f"the other than a tolerance. 1 is perfect. Tolerance: {content.tolerances}."),
        ("volumes", "The difference is the volume of the prediction less that of the reference, in ml, and in % of "
         "the reference."),
        ("What is empty", "A class that neither reference nor prediction has gives no figure and does not count. One "
         "that only the reference has (missed), or only the prediction (invented), has a Dice and a surface Dice of "
         "0, and as HD95 the diagonal of the scan. A class that was not annotated in a reference does not count "
         "there. A reference without a prediction counts as one in which nothing was found, unless "
         "it was asked to leave it out."),
        ("mean of all classes", "The mean of the means of the classes; regions, several classes as one, do not "
         "count. Its median is that of the means of the cases."),
        ("95 % interval", f"Of the mean: cases were drawn anew {content.resamples} times (bootstrap, percentiles), "
         "and 95 % of the means lie in it. It says how much the mean depends on which cases are in the set. Of fewer "
         "than about ten cases it is too narrow."),
    )  # fmt: skip
    text = "".join(f"<dt>{escape(term)}</dt><dd>{escape(words)}</dd>" for term, words in terms)
    return f'<h2>What the numbers mean</h2><dl>{text}</dl><p class="quiet">{escape(content.versions)}</p>'


def html_figure(picture: Picture) -> str:
    """A picture inside the page, its words above it."""
    data = base64.b64encode(picture.png).decode("ascii")
    words = escape(picture.text)
    return f'<figure><figcaption>{words}</figcaption><img alt="{words}" src="data:image/png;base64,{data}"></figure>'


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], first_is_all: bool = False) -> str:
    """A table; cells are HTML already; without words in ``head`` there is no head."""
    lines = [_cells_of("th", head)] if any(head) else []
    lines += [_cells_of("td", row, first_is_all and number == 0) for number, row in enumerate(rows)]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _cells_of(kind: str, cells: Iterable[str], is_all: bool = False) -> str:
    mark = ' class="all"' if is_all else ""
    return f"<tr{mark}>" + "".join(f"<{kind}>{cell}</{kind}>" for cell in cells) + "</tr>"
