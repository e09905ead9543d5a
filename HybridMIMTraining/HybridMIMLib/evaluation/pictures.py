"""Pictures of a report, each as PNG: box plots, volumes, and the slice of a case in which most is wrong.

Axial slices are shown as radiologists look at them: the patient's right is on the left, the face is up.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.grid import Grid, to_canonical
from HybridMIMLib.evaluation.measuring import Row

Slice = npt.NDArray[Any]

TITLES = {"dice": "Dice (1 is perfect)", "hd95": "HD95 in mm (0 is perfect)",
          "surface_dice": "surface Dice (1 is perfect)"}  # fmt: skip
_MARGIN_MM = 15.0
_RUN_COLORS = ("#2a6fb0", "#d9822b")
_MISSED, _TOO_MUCH, _OTHER = (0.90, 0.20, 0.20), (0.20, 0.45, 0.95), (0.95, 0.75, 0.10)
_DARK = 0.35
"""Brightness of the scan below the colours of what differs."""


@dataclass(frozen=True, eq=False)
class Shown:
    """One axial slice of a case; arrays are (up, across), the patient's right on the left.

    Attributes:
        case: its name.
        dice: mean over its classes.
        reference, prediction: labels; those that are not measured are 0.
        scan: intensities, or None.
        aspect: height of a pixel divided by its width.
        place: which slice of how many, from the feet up.
    """

    case: str
    dice: float
    reference: Slice
    prediction: Slice
    scan: Slice | None
    aspect: float
    place: tuple[int, int]


def worst_slice(
    case: str, dice: float, reference: Slice, prediction: Slice, scan: Slice | None, grid: Grid, labels: Sequence[int]
) -> Shown:
    """The axial slice in which most voxels differ, cut to what is labelled.

    Args:
        case, dice: as in :class:`Shown`.
        reference, prediction: (D, H, W) labels on ``grid``.
        scan: (D, H, W) on the same grid, or None.
        grid: of all.
        labels: that are measured.
    """
    kept = [np.where(np.isin(one, list(labels)), one, 0) for one in (reference, prediction)]
    parts = [to_canonical(one, grid)[0] for one in kept]
    turned = to_canonical(reference, grid)[1]
    at = int((parts[0] != parts[1]).sum(axis=(0, 1)).argmax())
    planes = [part[:, :, at] for part in parts]
    if scan is not None:
        planes.append(to_canonical(scan, grid)[0][:, :, at])
    box = _box((planes[0] > 0) | (planes[1] > 0), turned.spacing)
    # Rows from the back to the face; columns from R to L, because the first axis runs to R.
    drawn = [plane[box].T[:, ::-1] for plane in planes]
    aspect = turned.spacing[1] / turned.spacing[0]
    shown = drawn[2] if scan is not None else None
    return Shown(case, dice, drawn[0], drawn[1], shown, aspect, (at + 1, turned.shape[2]))


def draw_slice(shown: Shown, classes: Sequence[LabelClass]) -> bytes:
    """Reference, prediction and where they differ, side by side."""
    figure = _figure(10.5, 10.5 / 3 * min(max(shown.aspect * _ratio(shown.reference), 0.4), 1.6) + 0.3)
    table = figure.subplots(1, 3)
    for axes, labels, title in zip(table, (shown.reference, shown.prediction), ("reference", "prediction")):
        axes.imshow(_grey(shown, 1.0), **_look(shown))
        _outline(axes, labels, classes)
        axes.set_title(title)
    table[2].imshow(_differences(shown), **_look(shown))
    table[2].set_title("red: missed, blue: too much, yellow: another class", fontsize="small")
    for axes in table:
        axes.set(xticks=[], yticks=[])
    for x, side in ((0.02, "R"), (0.95, "L")):
        table[0].text(x, 0.5, side, transform=table[0].transAxes, color="#f2c14e",
                      bbox={"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.5})  # fmt: skip
    return _png(figure)


def draw_boxes(runs: Mapping[str, Sequence[Row]], names: Sequence[str], measure: str) -> bytes:
    """A box a class and run: the middle half of the cases, their median, and every case as a dot."""
    count = len(runs)
    figure = _figure(8.5, 1.1 + 0.32 * len(names) * count + 0.1 * len(names))
    axes = figure.subplots()
    random = np.random.default_rng(0)
    for number, rows in enumerate(runs.values()):
        values = [_values(rows, name, measure) for name in names]
        heights = [index + (number - (count - 1) / 2) * 0.8 / count for index in range(len(names))]
        color = _RUN_COLORS[number % len(_RUN_COLORS)]
        axes.boxplot(
            values, positions=heights, orientation="horizontal", widths=0.6 / count, showfliers=False,
            patch_artist=True, boxprops={"facecolor": color, "alpha": 0.35}, medianprops={"color": "black"},
        )  # fmt: skip
        for height, known in zip(heights, values):
            spread = height + random.uniform(-0.15, 0.15, len(known)) / count
            axes.plot(known, spread, ".", color=color, markersize=3, alpha=0.7)
    axes.set_yticks(range(len(names)), [_plain(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel(TITLES[measure])
    if measure != "hd95":
        axes.set_xlim(-0.02, 1.02)
    everything = [value for rows in runs.values() for name in names for value in _values(rows, name, measure)]
    middle = float(np.median(everything)) if everything else 0.0
    if measure == "hd95" and max(everything, default=0) > 10 * max(middle, 1):
        # Classes that were missed would press all others against the axis.
        axes.set_xscale("symlog", linthresh=2 * max(middle, 1))
    axes.grid(axis="x", alpha=0.3)
    return _png(figure)


def draw_volumes(rows: Sequence[Row], classes: Sequence[LabelClass]) -> bytes:
    """Volume of the prediction over that of the reference, and their difference over their mean."""
    figure = _figure(10.5, 4.2)
    left, right = figure.subplots(1, 2)
    highest = max((max(row.reference_ml, row.prediction_ml) for row in rows if row.counts), default=1.0)
    known = [row for row in rows if row.counts and row.reference_ml > 0 and row.prediction_ml > 0]
    lowest = min((min(row.reference_ml, row.prediction_ml) for row in known), default=highest)
    for one in classes:
        own = [row for row in rows if row.counts and row.name == one.name]
        reference, prediction = ([getattr(row, key) for row in own] for key in ("reference_ml", "prediction_ml"))
        look = {"color": one.color, "markersize": 4, "alpha": 0.8, "label": _plain(one.name)}
        left.plot(reference, prediction, "o", **look)
        means = [(a + b) / 2 for a, b in zip(reference, prediction)]
        right.plot(means, [row.difference_ml for row in own], "o", **look)
    left.plot([0, highest], [0, highest], "-", color="0.6", linewidth=1)
    right.axhline(0, color="0.6", linewidth=1)
    if highest > 20 * lowest:
        for axes in (left, right):
            axes.set_xscale("symlog", linthresh=lowest)
        left.set_yscale("symlog", linthresh=lowest)
    left.set(xlabel="reference, ml", ylabel="prediction, ml")
    right.set(xlabel="mean of both, ml", ylabel="prediction less reference, ml")
    if len(classes) <= 12:
        right.legend(fontsize="x-small")
    return _png(figure)


def _values(rows: Sequence[Row], name: str, measure: str) -> list[float]:
    found = [getattr(row, measure) for row in rows if row.name == name]
    return [value for value in found if math.isfinite(value)]


def _box(labelled: npt.NDArray[np.bool_], spacing: tuple[float, float, float]) -> tuple[slice, slice]:
    """Of a slice (R, A): what is labelled and a margin around it; all of it where nothing is."""
    if not labelled.any():
        return slice(None), slice(None)
    ends = []
    for axis in (0, 1):
        places = np.flatnonzero(labelled.any(axis=1 - axis))
        margin = math.ceil(_MARGIN_MM / spacing[axis])
        ends.append(slice(max(int(places[0]) - margin, 0), int(places[-1]) + margin + 1))
    return ends[0], ends[1]


def _ratio(plane: Slice) -> float:
    return plane.shape[0] / plane.shape[1]


def _look(shown: Shown) -> dict[str, Any]:
    return {"origin": "lower", "aspect": shown.aspect, "interpolation": "nearest"}


def _grey(shown: Shown, brightness: float) -> npt.NDArray[np.float64]:
    """(up, across, 3) the scan, or black."""
    if shown.scan is None:
        return np.zeros((*shown.reference.shape, 3))
    low, high = np.percentile(shown.scan, (1, 99))
    grey = np.clip((shown.scan.astype(np.float64) - low) / max(high - low, 1e-9), 0, 1) * brightness
    return np.repeat(grey[..., None], 3, axis=2)


def _differences(shown: Shown) -> npt.NDArray[np.float64]:
    picture = _grey(shown, _DARK if shown.scan is not None else 1.0)
    reference, prediction = shown.reference, shown.prediction
    if shown.scan is None:
        picture[(reference > 0) & (reference == prediction)] = 0.3
    picture[(reference > 0) & (prediction == 0)] = _MISSED
    picture[(reference == 0) & (prediction > 0)] = _TOO_MUCH
    picture[(reference > 0) & (prediction > 0) & (reference != prediction)] = _OTHER
    return picture


def _outline(axes: Any, labels: Slice, classes: Sequence[LabelClass]) -> None:
    """A line around each class, along the edges of the voxels, and its colour thinly over it."""
    tint = np.zeros((*labels.shape, 4))
    extent = (-0.5, labels.shape[1] - 0.5, -0.5, labels.shape[0] - 0.5)
    for one in classes:
        mask = labels == one.label
        if mask.any():
            tint[mask] = (*one.color, 0.25)
            fine = np.repeat(np.repeat(mask, 6, axis=0), 6, axis=1).astype(np.float32)
            axes.contour(fine, levels=[0.5], extent=extent, colors=[one.color], linewidths=1.2)
    axes.imshow(tint, origin="lower", interpolation="nearest", aspect=axes.get_aspect())


def _figure(width: float, height: float) -> Any:
    # Imported late: it takes a second. Its object interface alone, because pyplot holds state of a whole program.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    with warnings.catch_warnings():
        # A name in letters that the font has not is a box in the picture; it stands beside it in full.
        warnings.filterwarnings("ignore", message=".*missing from.*font.*")
        # A class that fills the slice has no outline.
        warnings.filterwarnings("ignore", message="No contour levels were found")
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=100)
    return content.getvalue()


def _plain(name: str) -> str:
    """A name that matplotlib takes for no formula, and that does not fill the picture."""
    short = name if len(name) <= 32 else f"{name[:31]}…"
    return short.replace("$", r"\$")
