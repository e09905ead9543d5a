"""Which windows a scan is looked at through, and how much each counts where they overlap.

Windows lie on a lattice over the body box, as those of MONAI's sliding window do over a whole image: a fixed step
from one to the next, the last one moved back to end with the box. A box smaller than a window grows into the scan
around it; where the scan itself is smaller, it is padded with 0 on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from HybridMIMLib.data.body import BLOCK, Body

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Windows:
    """The windows of one scan.

    Attributes:
        lower: first voxel of the box in the scan.
        box: its size.
        before: voxels of padding in front of the box along each axis.
        shape: of box and padding together; at least a window along each axis.
        size: of a window.
        axis: along which the box is longest, in windows. These come in its order, so that what lies behind them is
            finished, and a window's depth is the smallest part of the box.
        starts: first voxels of the windows, in box and padding, ordered along ``axis``.
        skipped: how many more there would be, which hold nothing but air.
    """

    lower: Triple
    box: Triple
    before: Triple
    shape: Triple
    size: Triple
    axis: int
    starts: tuple[Triple, ...]
    skipped: int


def plan_windows(whole: Triple, size: Triple, step: Triple, body: Body | None) -> Windows:
    """Lay windows over a scan.

    Args:
        whole: shape of the scan at the plan's spacing.
        size: of a window.
        step: voxels from one to the next; see :func:`step_of`.
        body: where the body is; None looks at everything.
    """
    lower, box = ((0, 0, 0), whole) if body is None else _grown(body, whole, size)
    shape = _each(max(n, w) for n, w in zip(box, size))
    before = _each((s - n) // 2 for s, n in zip(shape, box))
    axis = int(np.argmax(np.divide(shape, size)))
    along = (starts_along(n, w, s) for n, w, s in zip(shape, size, step))
    every = [_each(start) for start in product(*along)]
    every.sort(key=lambda start: start[axis])
    kept = every
    if body is not None:
        corner = [n - b for n, b in zip(lower, before)]
        kept = [start for start in every if _sees(body.cells, [c + s for c, s in zip(corner, start)], size)]
    return Windows(lower, box, before, shape, size, axis, tuple(kept), len(every) - len(kept))


def starts_along(length: int, window: int, step: int) -> list[int]:
    """Where windows begin along an axis of ``length`` ≥ ``window`` voxels, so that every voxel is in one."""
    room = length - window
    return [min(number * step, room) for number in range(-(-room // step) + 1)]


def step_of(size: Triple, overlap: float) -> Triple:
    """Voxels from a window to the next for a share by which they overlap."""
    return _each(max(int(n * (1 - overlap)), 1) for n in size)


def _grown(body: Body, whole: Triple, size: Triple) -> tuple[Triple, Triple]:
    """The body box, at least as large as a window or the scan: the network knows the scan better than padding."""
    box = _each(max(n, min(w, total)) for n, w, total in zip(body.size, size, whole))
    wanted = (at - (n - old) // 2 for at, n, old in zip(body.lower, box, body.size))
    lower = _each(min(max(at, 0), total - n) for at, n, total in zip(wanted, box, whole))
    return lower, box


def _sees(cells: npt.NDArray[np.bool_], start: Sequence[int], size: Triple) -> bool:
    """Whether a window, which may begin in the padding, holds a cell of the body."""
    part = tuple(slice(max(at, 0) // BLOCK, -(-(at + n) // BLOCK)) for at, n in zip(start, size))
    return bool(cells[part].any())


def _each(values: Iterable[int]) -> Triple:
    d, h, w = values
    return (d, h, w)
