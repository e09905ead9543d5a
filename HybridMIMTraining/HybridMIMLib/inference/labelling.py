"""From class scores at the plan's spacing to labels on the scan's own grid, slab by slab.

Scores are interpolated linearly and compared in each voxel of the scan; comparing first and interpolating labels
would leave jagged edges. All classes on a whole fine grid can be many gigabytes, so a slab of planes is worked on as
soon as it comes, one class after the other, each only where it can win: between coarse voxels at which its score is
nowhere above that of the background it is nowhere so either. The result is that of the full computation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from HybridMIMLib.data.resampling import interpolation, resampling_matrix
from HybridMIMLib.inference.sliding import Slab
from HybridMIMLib.inference.windows import Triple, Windows

ROWS = 16
"""Planes of the scan that are worked on at once."""

Part = tuple[slice, slice]


@dataclass(frozen=True)
class Layout:
    """Where the box lies between the plan's grid and the scan's.

    Attributes:
        coarse: shape of the scan at the plan's spacing.
        fine: shape of the scan along R, A, S, as it came.
        lower: first coarse voxel of the box.
        box: its size.
        axis: along which slabs come.
    """

    coarse: Triple
    fine: Triple
    lower: Triple
    box: Triple
    axis: int

    @classmethod
    def of(cls, windows: Windows, coarse: Triple, fine: Triple) -> Layout:
        """The layout for the windows of a scan."""
        return cls(coarse, fine, windows.lower, windows.box, windows.axis)


class _Axis:
    """One axis: which voxels of the scan see which coarse voxels of the box, and how much of each."""

    def __init__(self, layout: Layout, axis: int, device: torch.device) -> None:
        coarse, fine, lower, size = (part[axis] for part in (layout.coarse, layout.fine, layout.lower, layout.box))
        self._size = size
        below, _ = interpolation(coarse, fine)
        # Counted in the box; above the last voxel of the scan there is none, and it is seen alone.
        self._below = below - lower
        self._above = self._below if coarse == fine else np.minimum(below + 1, coarse - 1) - lower
        matrix = resampling_matrix(coarse, fine, sigma=0.0)[:, lower : lower + size]
        self._matrix = None if coarse == fine else torch.from_numpy(matrix).float().to(device)

    def touched(self, places: npt.NDArray[np.bool_]) -> slice | None:
        """The voxels of the scan that may see one of the coarse voxels ``places`` (size); None for none."""
        coarse = np.flatnonzero(places)
        if len(coarse) == 0:
            return None
        start, stop = np.searchsorted(self._above, coarse[0]), np.searchsorted(self._below, coarse[-1], side="right")
        return slice(int(start), int(stop)) if start < stop else None

    def sources(self, span: slice) -> slice:
        """The coarse voxels that some voxels of the scan see."""
        return slice(max(int(self._below[span.start]), 0), min(int(self._above[span.stop - 1]) + 1, self._size))

    def interpolated(self, x: Tensor, span: slice, sources: slice) -> Tensor:
        """Coarse voxels (…, sources) → voxels of the scan (…, span)."""
        return x if self._matrix is None else torch.matmul(x, self._matrix[span, sources].T)


class _Planes:
    """Turns coarse planes of the box, as they come, into planes of the scan; outside the box all scores are 0."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        axis = layout.axis
        self._end = layout.box[axis]
        a, b = (_Axis(layout, other, device) for other in range(3) if other != axis)
        self.axes = (a, b)
        below, share = interpolation(layout.coarse[axis], layout.fine[axis])
        # Numbers of coarse planes, counted in the box.
        self._below = below - layout.lower[axis]
        self._share = torch.from_numpy(share).float().to(device)
        self._next = int(np.searchsorted(self._below, -1))
        self._last: Tensor | None = None

    def ready(self, first: int, planes: Tensor) -> Iterator[tuple[slice, _Mixed]]:
        """The planes of the scan that are complete once the coarse planes (K, n, a, b) from ``first`` on came."""
        end = first + planes.shape[1]
        # In front of the box all scores are 0; where it begins with the scan, nobody looks there.
        last = torch.zeros_like(planes[:, :1]) if self._last is None else self._last
        parts = [last, planes]
        if end == self._end:
            # The same behind it; where it ends with the scan, nothing of that plane is taken.
            parts.append(torch.zeros_like(planes[:, -1:]))
            end += 1
        known = torch.cat(parts, dim=1)
        self._last = planes[:, -1:].clone()
        # A plane of the scan needs the coarse ones below and above it.
        stop = int(np.searchsorted(self._below, end - 1))
        while self._next < stop:
            rows = slice(self._next, min(self._next + ROWS, stop))
            below = self._below[rows] - (first - 1)
            seen = known[:, below[0] : below[-1] + 2]
            places = torch.from_numpy(below - below[0]).to(known.device)
            yield rows, _Mixed(seen, places, self._share[rows], self.axes)
            self._next = rows.stop


@dataclass(frozen=True)
class _Mixed:
    """Scores of some planes of the scan, interpolated when they are asked for.

    Attributes:
        known: (K, n, a, b) the coarse planes of the box that these see.
        below: (r) which of them lies below each plane of the scan; the next one lies above.
        share: (r) how far it is from the one below to the one above.
        axes: the other two axes.
    """

    known: Tensor
    below: Tensor
    share: Tensor
    axes: tuple[_Axis, _Axis]

    def reach(self, where: Tensor) -> Part | None:
        """The part of the scan's planes that may see the coarse voxels ``where`` (n, a, b); None for none."""
        seen = where.any(dim=0)
        places = (seen.any(dim=1).cpu().numpy(), seen.any(dim=0).cpu().numpy())
        first, second = (axis.touched(one) for axis, one in zip(self.axes, places))
        return None if first is None or second is None else (first, second)

    def scores(self, number: int, part: Part) -> Tensor:
        """(r, A', B') scores of one class on a part of the scan's planes."""
        a, b = (axis.sources(span) for axis, span in zip(self.axes, part))
        coarse = self.known[number, :, a, b]
        mixed = torch.lerp(coarse[self.below], coarse[self.below + 1], self.share[:, None, None])
        rows = self.axes[0].interpolated(mixed.transpose(1, 2), part[0], a)
        return self.axes[1].interpolated(rows.transpose(1, 2), part[1], b)


class ExclusiveLabels:
    """The class with the highest score in each voxel; the first of them where several have it.

    Attributes:
        numbers: (D, H, W) along R, A, S: 0 is background, and so is all outside the box.
    """

    def __init__(self, layout: Layout, device: torch.device, outputs: int) -> None:
        self.numbers = np.zeros(layout.fine, dtype=np.uint8 if outputs <= 256 else np.uint16)
        self._planes, self._axis = _Planes(layout, device), layout.axis

    def add(self, slab: Slab) -> None:
        """Take the next planes."""
        for rows, mixed in self._planes.ready(slab.first, slab.scores):
            found = self._winners(mixed)
            if found is not None:
                part, numbers = found
                np.moveaxis(self.numbers, self._axis, 0)[(rows, *part)] = numbers

    def _winners(self, mixed: _Mixed) -> tuple[Part, npt.NDArray[Any]] | None:
        """The part of the planes in which any class can win, and the winners there."""
        known = mixed.known
        above = [known[number] > known[0] for number in range(1, len(known))]
        reaches = [mixed.reach(where) for where in above]
        spans = [reach for reach in reaches if reach is not None]
        if not spans:
            return None
        part = _around(spans)
        best = mixed.scores(0, part)
        numbers = torch.zeros(best.shape, dtype=torch.int16, device=best.device)
        for number, reach in enumerate(reaches, 1):
            if reach is None:
                continue
            inner = (slice(None), *(_inside(span, outer) for span, outer in zip(reach, part)))
            scores = mixed.scores(number, reach)
            wins = scores > best[inner]
            numbers[inner].masked_fill_(wins, number)
            best[inner] = torch.where(wins, scores, best[inner])
        return part, numbers.cpu().numpy()


class OverlappingLabels:
    """For each class, where its score is above 0: its probability is above a half.

    Attributes:
        layers: (K, D, H, W) bool along R, A, S.
    """

    def __init__(self, layout: Layout, device: torch.device, outputs: int) -> None:
        self.layers = np.zeros((outputs, *layout.fine), dtype=np.bool_)
        self._planes, self._axis = _Planes(layout, device), layout.axis

    def add(self, slab: Slab) -> None:
        """Take the next planes."""
        for rows, mixed in self._planes.ready(slab.first, slab.scores):
            for number, layer in enumerate(self.layers):
                part = mixed.reach(mixed.known[number] > 0)
                if part is not None:
                    found = (mixed.scores(number, part) > 0).cpu().numpy()
                    np.moveaxis(layer, self._axis, 0)[(rows, *part)] = found


class Uncertainty:
    """How uncertain each voxel is, from 0 to 1: the entropy of its probabilities, by the largest there can be.

    Of the mean probabilities over classes (softmax), or the mean over the classes where these overlap (sigmoid).
    Computed at the plan's spacing and interpolated; outside the box nothing is uncertain.

    Attributes:
        entropy: (D, H, W) float32 along R, A, S.
    """

    def __init__(self, layout: Layout, device: torch.device, overlapping: bool) -> None:
        self.entropy = np.zeros(layout.fine, dtype=np.float32)
        self._planes, self._axis = _Planes(layout, device), layout.axis
        self._overlapping = overlapping

    def add(self, slab: Slab) -> None:
        """Take the next planes."""
        for rows, mixed in self._planes.ready(slab.first, relative_entropy(slab.scores, self._overlapping)[None]):
            part = mixed.reach(torch.ones_like(mixed.known[0], dtype=torch.bool))
            if part is not None:
                values = mixed.scores(0, part).clamp(0, 1)
                np.moveaxis(self.entropy, self._axis, 0)[(rows, *part)] = values.cpu().numpy()


def relative_entropy(scores: Tensor, overlapping: bool) -> Tensor:
    """Entropy of the probabilities that follow from scores (K, …), by the largest there can be: (…)."""
    if overlapping:
        return _binary_entropy(scores).mean(dim=0)
    logs = torch.log_softmax(scores, dim=0)
    entropy: Tensor = -(logs.exp() * logs).sum(dim=0) / np.log(len(scores))
    return entropy


def _binary_entropy(scores: Tensor) -> Tensor:
    logs, others = F.logsigmoid(scores), F.logsigmoid(-scores)
    entropy: Tensor = -(logs.exp() * logs + others.exp() * others) / np.log(2)
    return entropy


def _around(parts: list[Part]) -> Part:
    """The smallest part that holds all of them."""
    first, second = (
        slice(min(part[axis].start for part in parts), max(part[axis].stop for part in parts)) for axis in range(2)
    )
    return first, second


def _inside(span: slice, outer: slice) -> slice:
    return slice(span.start - outer.start, span.stop - outer.start)
