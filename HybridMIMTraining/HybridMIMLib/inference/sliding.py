"""The sliding window: class scores of a whole scan, a slab of planes at a time.

Windows overlap, and a voxel's scores are the mean over the windows that hold it, each weighted by a Gaussian around
its middle (nnU-Net, Isensee et al., arXiv:1904.08128). Windows come ordered along one axis, so that planes which no
later window reaches are finished: they are handed on and forgotten. The sums live in a ring of as many planes as a
window is deep, so memory grows with classes × height × width × depth of a window, not with the scan's length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from monai.data.utils import compute_importance_map
from torch import Tensor

from HybridMIMLib.inference.windows import Triple, Windows

Forward = Callable[[Tensor], Tensor]
Watch = Callable[[int, int], None]

PLANES = 16
"""Finished planes handed on at once; all classes of them are held a second time."""


@dataclass(frozen=True)
class Slab:
    """Finished planes of the box.

    Attributes:
        first: number of the first plane along the axis of the windows, in the box without padding.
        scores: (K, n, a, b) mean scores, of the box without padding; the two other axes in their order. Where no
            window was, because there is nothing but air, they are those of :func:`scores_of_air`.
    """

    first: int
    scores: Tensor


@dataclass(frozen=True)
class Computing:
    """What windows go through, and where.

    Attributes:
        forward: (B, C, d, h, w) float32 → scores (B, K, d, h, w) float32, both on ``device``.
        device: of the network.
        batch: windows at once.
        sums_on: where scores are summed up.
        outputs: K.
        overlapping: whether classes are told apart by themselves (sigmoid) and not against each other (softmax).
        flips: axes along which each window is flipped too, in every combination.
    """

    forward: Forward
    device: torch.device
    batch: int
    sums_on: torch.device
    outputs: int
    overlapping: bool = False
    flips: tuple[int, ...] = ()


def scores_of_air(outputs: int, overlapping: bool) -> Tensor:
    """(K): background for certain, or none of the overlapping classes."""
    scores = torch.full((outputs,), -_CERTAIN if overlapping else 0.0)
    if not overlapping:
        scores[0] = _CERTAIN
    return scores


_CERTAIN = 20.0
"""A score whose softmax or sigmoid is 1 in single precision."""


def sliding_scores(image: Tensor, windows: Windows, how: Computing, watch: Watch | None = None) -> Iterator[Slab]:
    """Scores of the box, plane after plane; all planes of the box are handed on, in order.

    Args:
        image: (C, D, H, W) the box with its padding, of shape ``windows.shape``, float32 on the CPU.
        windows: where to look.
        how: what computes.
        watch: called with the number of windows done, and of all; what it raises ends the work.
    """
    ring = _Ring(windows, how)
    for first in range(0, len(windows.starts), how.batch):
        batch = windows.starts[first : first + how.batch]
        crops = torch.stack([_window(image, one, windows.size) for one in batch]).to(how.device)
        for one, scores in zip(batch, _with_flips(crops, how)):
            yield from ring.finished_before(one[windows.axis])
            ring.add(one, scores)
        if watch is not None:
            watch(first + len(batch), len(windows.starts))
    yield from ring.finished_before(windows.shape[windows.axis])


def _window(image: Tensor, start: Triple, size: Triple) -> Tensor:
    d, h, w = (slice(at, at + n) for at, n in zip(start, size))
    return image[:, d, h, w]


def _with_flips(crops: Tensor, how: Computing) -> Tensor:
    """Mean scores (B, K, d, h, w) over the crops (B, C, d, h, w) as they are, and flipped in every combination."""
    scores = how.forward(crops)
    ways = [axes for count in range(1, len(how.flips) + 1) for axes in combinations(how.flips, count)]
    for way in ways:
        axes = [axis + 2 for axis in way]
        scores = scores + how.forward(crops.flip(axes)).flip(axes)
    return scores / (len(ways) + 1)


class _Ring:
    """Sums of as many planes as a window is deep: plane ``p`` lies in row ``p % depth``."""

    def __init__(self, windows: Windows, how: Computing) -> None:
        self.windows, self.how = windows, how
        self.axis, self.depth = windows.axis, windows.size[windows.axis]
        self.others = [axis for axis in range(3) if axis != self.axis]
        sides = [windows.shape[axis] for axis in self.others]
        self.sums = torch.zeros((how.outputs, self.depth, *sides), device=how.sums_on)
        self.weights = torch.zeros((self.depth, *sides), device=how.sums_on)
        gaussian = compute_importance_map(windows.size, mode="gaussian", sigma_scale=0.125)
        self.importance = self._axis_first(gaussian).to(how.sums_on)
        self.air = scores_of_air(how.outputs, how.overlapping).to(how.sums_on)[:, None, None, None]
        self.next = 0

    def add(self, start: Triple, scores: Tensor) -> None:
        """Add the scores (K, d, h, w) of the window that begins at ``start``."""
        scores = self._axis_first(scores).to(self.how.sums_on)
        a, b = (slice(start[axis], start[axis] + self.windows.size[axis]) for axis in self.others)
        # A window is as deep as the ring is long: it wraps around at most once.
        wrap = self.depth - start[self.axis] % self.depth
        for planes, rows in ((slice(0, wrap), slice(self.depth - wrap, None)), (slice(wrap, None), slice(0, -wrap))):
            weights = self.importance[planes]
            if len(weights):
                self.sums[:, rows, a, b].addcmul_(scores[:, planes], weights)
                self.weights[rows, a, b] += weights

    def finished_before(self, plane: int) -> Iterator[Slab]:
        """Hand on the planes before ``plane`` that were not yet, without the padding, and forget them."""
        while self.next < plane:
            # Rows of a slab lie beside each other in the ring.
            end = min(plane, self.next + PLANES, self.next - self.next % self.depth + self.depth)
            rows = slice(self.next % self.depth, self.next % self.depth + end - self.next)
            if (slab := self._without_padding(rows, self.next, end)) is not None:
                yield slab
            self.sums[:, rows] = 0
            self.weights[rows] = 0
            self.next = end

    def _without_padding(self, rows: slice, first: int, end: int) -> Slab | None:
        before, box = self.windows.before, self.windows.box
        lower = max(first, before[self.axis])
        upper = min(end, before[self.axis] + box[self.axis])
        if lower >= upper:
            return None
        planes = slice(rows.start + lower - first, rows.start + upper - first)
        a, b = (slice(before[axis], before[axis] + box[axis]) for axis in self.others)
        weights = self.weights[planes, a, b]
        scores = self.sums[:, planes, a, b] / weights
        if bool((weights == 0).any()):
            scores = torch.where(weights > 0, scores, self.air)
        return Slab(lower - before[self.axis], scores)

    def _axis_first(self, x: Tensor) -> Tensor:
        """The last three axes of ``x`` with that of the windows first."""
        lead = x.ndim - 3
        return x.permute(*range(lead), *(lead + axis for axis in (self.axis, *self.others)))
