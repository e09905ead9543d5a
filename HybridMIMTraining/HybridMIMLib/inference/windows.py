"""Which windows a scan is looked at through, and how much each counts where they overlap.

Windows lie on a lattice over the body box, as those of MONAI's sliding window do over a whole image: a fixed step
from one to the next, the last one moved back to end with the box. A box smaller than a window grows into the scan
around it; where the scan itself is smaller, it is padded with 0 on both sides.

Where windows follow the body (``inference.follow_body``), they are laid anew in each slab along S: around the body
in it, and in each row of such a slab once more. A scan of neck and shoulders then takes about half of the windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from HybridMIMLib.data.body import BLOCK, MARGIN, Body

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
        skipped: how many more there would be on a lattice over the whole box.
    """

    lower: Triple
    box: Triple
    before: Triple
    shape: Triple
    size: Triple
    axis: int
    starts: tuple[Triple, ...]
    skipped: int


def plan_windows(whole: Triple, size: Triple, step: Triple, body: Body | None, follow: bool = False) -> Windows:
    """Lay windows over a scan.

    Args:
        whole: shape of the scan at the plan's spacing.
        size: of a window.
        step: voxels from one to the next; see :func:`step_of`.
        body: where the body is; None looks at everything.
        follow: whether windows follow the body.
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
        corner = _each(n - b for n, b in zip(lower, before))
        if follow:
            kept = sorted(_following(body, corner, shape, size, step), key=lambda start: start[axis])
        else:
            kept = [start for start in every if _sees(body.cells, [c + s for c, s in zip(corner, start)], size)]
    return Windows(lower, box, before, shape, size, axis, tuple(kept), len(every) - len(kept))


def starts_along(length: int, window: int, step: int) -> list[int]:
    """Where windows begin along an axis of ``length`` ≥ ``window`` voxels, so that every voxel is in one."""
    room = length - window
    return [min(number * step, room) for number in range(-(-room // step) + 1)]


def step_of(size: Triple, overlap: float) -> Triple:
    """Voxels from a window to the next for a share by which they overlap."""
    return _each(max(int(n * (1 - overlap)), 1) for n in size)


def _following(body: Body, corner: Triple, shape: Triple, size: Triple, step: Triple) -> Iterator[Triple]:
    """Windows over the body in each slab along S, where bodies change most, and in each row of it.

    Args:
        body: where the body is.
        corner: place in the scan of the first voxel of box and padding.
        shape, size, step: of box and padding, of a window, and from one to the next.
    """
    for s in starts_along(shape[2], size[2], step[2]):
        slab = {2: (s, size[2])}
        across = _places(body, corner, shape, slab, 0)
        for r in _starts_around(across, shape[0], size[0], step[0]):
            row = _places(body, corner, shape, {**slab, 0: (r, size[0])}, 1)
            for a in _starts_around(row, shape[1], size[1], step[1]):
                yield r, a, s


def _places(
    body: Body, corner: Triple, shape: Triple, part: Mapping[int, tuple[int, int]], axis: int
) -> tuple[int, int] | None:
    """First and last + 1 voxel of the body, and its margin, along an axis of a part of the box; None for none."""
    spans = [part.get(other, (0, shape[other])) for other in range(3)]
    cells = body.cells[
        tuple(slice(max(c + at, 0) // BLOCK, -(-max(c + at + n, 0) // BLOCK)) for c, (at, n) in zip(corner, spans))
    ]
    found = np.flatnonzero(cells.any(axis=tuple(other for other in range(3) if other != axis)))
    if len(found) == 0:
        return None
    first = max(corner[axis], 0) // BLOCK
    lower, upper = (first + int(found[0])) * BLOCK - MARGIN, (first + int(found[-1]) + 1) * BLOCK + MARGIN
    return max(lower - corner[axis], 0), min(upper - corner[axis], shape[axis])


def _starts_around(places: tuple[int, int] | None, length: int, window: int, step: int) -> list[int]:
    """Where windows begin so that they cover ``places``, within an axis of ``length`` voxels."""
    if places is None:
        return []
    wanted = max(places[1] - places[0], window)
    first = min(max((places[0] + places[1] - wanted) // 2, 0), length - wanted)
    return [first + start for start in starts_along(wanted, window, step)]


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
