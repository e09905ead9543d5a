"""One picture of what an objective makes of a crop: slices as original, masked, reconstructed, and the error.

Slices are turned as radiologists look at them: the patient's right is on the left of axial and coronal slices, and
the face is on the left of sagittal ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from HybridMIMLib.data.grid import Grid

LARGEST_ERROR = 0.25
"""Share of the intensities shown at which the colours of the error end: the same in every sheet of a run."""
MOST_CHANNELS = 8
_COLUMNS = ("original", "masked", "reconstructed", "error")
_HEADINGS = {
    "masked": "masked (blue: hidden)",
    "reconstructed": "reconstructed (outlined)",
    "error": "error (grey: not hidden)",
}
_SIDE = 3.0
"""Inches of the longer side of a slice."""
_NOT_HIDDEN, _HIDDEN, _OUTLINE = (0.25, 0.25, 0.25), (0.16, 0.32, 0.55), (0.40, 0.62, 0.90)
_PLANES = {0: ("sagittal", "A", "P", 1, 2), 1: ("coronal", "R", "L", 0, 2), 2: ("axial", "R", "L", 0, 1)}
"""By the axis that a slice is taken along: its name, what is at its left and right, the axes across and up."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sheet:
    """What is drawn; arrays are (C, D, H, W) intensities of the scan along R, A, S.

    Attributes:
        title: first line above the slices.
        original, masked, reconstructed: the columns; the reconstruction is the original where nothing is hidden.
        hidden: (D, H, W) True for hidden voxels.
        ends: for each channel the intensities shown black and white.
        grid: where the voxels lie.
        error_to_patch_mean: squared error of the whole crop, decoded at once, as a share of what the true mean of
            each patch would give; None where hidden voxels do not vary.
    """

    title: str
    original: Array
    masked: Array
    reconstructed: Array
    hidden: npt.NDArray[np.bool_]
    ends: tuple[tuple[float, float], ...]
    grid: Grid
    error_to_patch_mean: float | None

    @property
    def error(self) -> Array:
        """How far the reconstruction is off, without the sign."""
        return np.abs(self.reconstructed - self.original)

    @property
    def rows(self) -> list[tuple[int, int]]:
        """(channel, axis) of each row: three planes of the one channel, or the axial plane of each channel."""
        channels = min(len(self.original), MOST_CHANNELS)
        return [(0, 2), (0, 1), (0, 0)] if channels == 1 else [(channel, 2) for channel in range(channels)]


def slice_to_show(sheet: Sheet, axis: int) -> int:
    """The slice across ``axis`` in which the most contrast is hidden: hidden air would show nothing."""
    low, high = np.array(sheet.ends, dtype=np.float32).T[..., None, None, None]
    original = ((sheet.original - low) / (high - low)).mean(axis=0)
    contrast = np.where(sheet.hidden, (original - original.mean()) ** 2, 0.0)
    others = tuple(other for other in range(3) if other != axis)
    return int(contrast.sum(axis=others).argmax())


def draw_sheet(path: Path, sheet: Sheet) -> None:
    """Write a sheet as PNG."""
    # Imported late: it takes a second. Its object interface alone, because pyplot holds state of a whole program.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_SIDE * len(_COLUMNS) + 1.2, sum(_heights(sheet)) + 1.1), layout="constrained")
    FigureCanvasAgg(figure)
    table = figure.subplots(len(sheet.rows), len(_COLUMNS), height_ratios=_heights(sheet), squeeze=False)
    for axes, (channel, axis) in zip(table, sheet.rows):
        _draw_row(figure, axes, sheet, channel, axis)
    for axes, name in zip(table[0], _COLUMNS):
        axes.set_title(_HEADINGS.get(name, name))
    figure.suptitle(f"{sheet.title}\n{_figures(sheet)}", fontsize="medium")
    figure.savefig(path, dpi=100)


def _draw_row(figure: Any, table: Any, sheet: Sheet, channel: int, axis: int) -> None:
    from matplotlib.colors import ListedColormap

    at = slice_to_show(sheet, axis)
    name, left, right, across, up = _PLANES[axis]
    aspect = sheet.grid.spacing[up] / sheet.grid.spacing[across]
    hidden = _turned(sheet.hidden, axis, at)
    low, high = sheet.ends[channel]
    look = {"origin": "lower", "aspect": aspect, "interpolation": "nearest"}
    grey = {**look, "cmap": "gray", "vmin": low, "vmax": high}
    for axes, kind in zip(table[:3], _COLUMNS):
        axes.imshow(_turned(getattr(sheet, kind)[channel], axis, at), **grey)
    # Voxel by voxel, so that the line runs along the edges of the patches.
    fine = np.repeat(np.repeat(hidden, 8, axis=0), 8, axis=1).astype(np.float32)
    extent = (-0.5, hidden.shape[1] - 0.5, -0.5, hidden.shape[0] - 0.5)
    if hidden.any() and not hidden.all():
        table[2].contour(fine, levels=[0.5], extent=extent, colors=[_OUTLINE], linewidths=0.8)
    table[1].imshow(np.ma.masked_where(~hidden, hidden), **look, cmap=ListedColormap([_HIDDEN]))
    error = np.ma.masked_where(~hidden, _turned(sheet.error[channel], axis, at))
    table[3].set_facecolor(_NOT_HIDDEN)
    shown = table[3].imshow(error, **look, cmap="inferno", vmin=0, vmax=LARGEST_ERROR * (high - low))
    figure.colorbar(shown, ax=table[3], extend="max", shrink=0.9, label="in intensities of the scan")
    for axes in table:
        axes.set(xticks=[], yticks=[])
        for x, side in ((0.02, left), (0.98, right)):
            axes.text(x, 0.5, side, transform=axes.transAxes, ha="left" if x < 0.5 else "right", color="#f2c14e")
    of = f"channel {channel + 1}\n" if len(sheet.original) > 1 else ""
    table[0].set_ylabel(f"{of}{name}\nblack {low:.4g}, white {high:.4g}")


def _heights(sheet: Sheet) -> list[float]:
    """Inches of each row."""
    extent = np.multiply(sheet.hidden.shape, sheet.grid.spacing)
    planes = [_PLANES[axis] for _, axis in sheet.rows]
    return [_SIDE * min(max(extent[up] / extent[across], 0.25), 1.5) for *_, across, up in planes]


def _turned(volume: npt.NDArray[Any], axis: int, at: int) -> npt.NDArray[Any]:
    """(up, across) a slice of a volume along R, A, S, its first row the lowest."""
    # What lies across is A or R, and the patient's front, or right, belongs on the left.
    return np.take(volume, at, axis=axis).T[:, ::-1]


def _figures(sheet: Sheet) -> str:
    """How good the reconstruction is, in words."""
    if not sheet.hidden.any():
        return "nothing is hidden"
    widths = np.array([high - low for low, high in sheet.ends])
    means = sheet.error[:, sheet.hidden].mean(axis=1)
    size = f"{means[0]:.4g} on average, " if len(means) == 1 else ""
    share = 100 * float(np.mean(means / widths))
    text = f"hidden voxels are off by {size}{share:.1f} % of the range from black to white"
    if sheet.error_to_patch_mean is None:
        return text
    return f"{text}; squared error {sheet.error_to_patch_mean:.2f} of what the true mean of each patch would give"
