"""Labels from slabs of scores are those of the full computation: everything interpolated, then compared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from HybridMIMLib.inference.labelling import (
    ExclusiveLabels,
    Layout,
    OverlappingLabels,
    Uncertainty,
    relative_entropy,
)
from HybridMIMLib.inference.sliding import Slab, scores_of_air

CPU = torch.device("cpu")
NEAR = 1e-4
"""Scores that differ by less may be told either way."""


class Taker(Protocol):
    def add(self, slab: Slab) -> None: ...


@dataclass(frozen=True)
class Scores:
    """Scores (K, d, h, w) of a box, and how they come."""

    layout: Layout
    box: Tensor
    cuts: tuple[int, ...]

    def slabs(self) -> Iterator[Slab]:
        """Slabs of as many planes as the cuts say, again and again."""
        planes, first, number = self.box.movedim(self.layout.axis + 1, 1), 0, 0
        while first < planes.shape[1]:
            end = first + self.cuts[number % len(self.cuts)]
            yield Slab(first, planes[:, first:end].clone())
            first, number = end, number + 1

    def give(self, taker: Taker) -> None:
        for slab in self.slabs():
            taker.add(slab)

    def full(self, box: Tensor | None = None) -> np.ndarray:
        """The box, or values (K, d, h, w) for it, among zeros on the plan's grid, interpolated to the scan's."""
        box = self.box if box is None else box
        whole = torch.zeros((len(box), *self.layout.coarse), dtype=torch.float64)
        d, h, w = (slice(at, at + n) for at, n in zip(self.layout.lower, self.layout.box))
        whole[:, d, h, w] = box.double()
        return F.interpolate(whole[None], self.layout.fine, mode="trilinear", align_corners=False)[0].numpy()


@st.composite
def scores(draw: st.DrawFn, fewest: int = 2) -> Scores:
    """Any box in any scan, along any axis; few classes or many that win in some places, everywhere or nowhere."""
    coarse = draw(st.tuples(*[st.integers(1, 9)] * 3))
    fine = draw(st.tuples(*[st.integers(1, 21)] * 3))
    fine = draw(st.sampled_from([fine, coarse, (coarse[0], *fine[1:]), (*fine[:2], coarse[2])]))
    lower = tuple(draw(st.integers(0, n - 1)) for n in coarse)
    size = tuple(draw(st.integers(1, n - at)) for n, at in zip(coarse, lower))
    lower, size = draw(st.sampled_from([(lower, size), ((0, 0, 0), coarse)]))
    outputs, random = draw(st.integers(fewest, 5)), np.random.default_rng(draw(st.integers(0, 10**6)))
    box = random.normal(size=(outputs, *size))
    box[0] += draw(st.sampled_from([-2, 0, 1, 2, 4, 9]))
    layout = Layout(coarse, fine, lower, size, draw(st.integers(0, 2)))
    cuts = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    return Scores(layout, torch.from_numpy(box.astype(np.float32)), cuts)


@settings(deadline=None, max_examples=100)
@given(scores())
def test_exclusive_labels_are_those_of_the_full_computation(given: Scores) -> None:
    taker = ExclusiveLabels(given.layout, CPU, len(given.box))
    given.give(taker)
    full = given.full()
    best, second = -np.sort(-full, axis=0)[:2]
    # Outside the box all scores are 0, and the first of equal ones wins there too.
    clear = (best - second > NEAR) | (full == 0).all(axis=0)
    assert taker.numbers.shape == given.layout.fine and taker.numbers.dtype == np.uint8
    assert np.array_equal(taker.numbers[clear], full.argmax(axis=0)[clear])


@settings(deadline=None, max_examples=80)
@given(
    st.tuples(*[st.integers(1, 5)] * 3),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 2),
    st.integers(1, 6),
    st.integers(2, 4),
    st.integers(0, 10**6),
)
def test_of_equal_scores_the_first_wins(
    coarse: tuple[int, int, int], factor: int, axis: int, cut: int, outputs: int, seed: int
) -> None:
    """Small whole numbers, interpolated by powers of two without rounding: there are ties everywhere."""
    box = np.random.default_rng(seed).integers(0, 3, (outputs, *coarse)).astype(np.float32)
    fine = (coarse[0] * factor, coarse[1] * factor, coarse[2] * factor)
    given = Scores(Layout(coarse, fine, (0, 0, 0), coarse, axis), torch.from_numpy(box), (cut,))
    taker = ExclusiveLabels(given.layout, CPU, outputs)
    given.give(taker)
    assert np.array_equal(taker.numbers, given.full().argmax(axis=0))


@settings(deadline=None, max_examples=120)
@given(scores(fewest=1))
def test_overlapping_classes_are_where_their_interpolated_scores_are_above_0(given: Scores) -> None:
    taker = OverlappingLabels(given.layout, CPU, len(given.box))
    given.give(taker)
    full = given.full()
    clear = (abs(full) > NEAR) | (full == 0)
    assert taker.layers.shape == full.shape and taker.layers.dtype == np.bool_
    assert np.array_equal(taker.layers[clear], (full > 0)[clear])


def entropy(scores: list[float], overlapping: bool) -> float:
    """By the largest there can be, one voxel at a time."""
    if overlapping:
        shares = [1 / (1 + math.exp(-score)) for score in scores]
        return sum(-p * math.log2(p) - (1 - p) * math.log2(1 - p) for p in shares) / len(scores)
    exponentials = [math.exp(score) for score in scores]
    return -sum(e / sum(exponentials) * math.log(e / sum(exponentials)) for e in exponentials) / math.log(len(scores))


@pytest.mark.parametrize("overlapping", [False, True])
@settings(deadline=None, max_examples=40)
@given(given=scores())
def test_uncertainty_is_the_interpolated_entropy(given: Scores, overlapping: bool) -> None:
    taker = Uncertainty(given.layout, CPU, overlapping)
    given.give(taker)
    slowly = torch.zeros((1, *given.layout.box))
    for i, j, k in product(*map(range, given.layout.box)):
        slowly[0, i, j, k] = entropy(given.box[:, i, j, k].tolist(), overlapping)
    assert taker.entropy.dtype == np.float32 and taker.entropy.shape == given.layout.fine
    assert np.abs(taker.entropy - given.full(slowly)[0]).max() < 1e-5
    assert taker.entropy.min() >= 0 and taker.entropy.max() <= 1


@pytest.mark.parametrize("overlapping", [False, True])
def test_entropy_goes_from_0_to_1_and_air_has_none(overlapping: bool) -> None:
    undecided = torch.zeros((4, 1, 1, 1))
    assert relative_entropy(undecided, overlapping).item() == pytest.approx(1)
    air = scores_of_air(4, overlapping)[:, None, None, None]
    assert relative_entropy(air, overlapping).item() == pytest.approx(0, abs=1e-6)
    extreme = relative_entropy(undecided + torch.tensor([1e4, -1e4, 0, 0])[:, None, None, None], overlapping)
    assert torch.isfinite(extreme).all()


def test_one_class_of_many_that_wins_in_one_voxel_is_found() -> None:
    """Classes are looked at only where they can win: here in a corner of a box in the middle."""
    layout = Layout((9, 10, 11), (23, 27, 31), (2, 3, 4), (5, 5, 5), 1)
    box = torch.zeros((300, 5, 5, 5))
    box[0] = 1
    box[299, 4, 0, 4] = 9
    given = Scores(layout, box, (2,))
    taker = ExclusiveLabels(layout, CPU, 300)
    given.give(taker)
    assert taker.numbers.dtype == np.uint16 and set(np.unique(taker.numbers)) == {0, 299}
    assert np.array_equal(taker.numbers, given.full().argmax(axis=0))
