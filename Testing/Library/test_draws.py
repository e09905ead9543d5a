"""Draws on the device: against a slow splitmix64, and that nothing but the sample decides."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode

from HybridMIMLib.draws import derived_keys, ranks, uniform
from HybridMIMLib.randomness import stream_key

ALL = (1 << 64) - 1
key = st.integers(-(1 << 63), (1 << 63) - 1)


def mixed(state: int) -> int:
    """The output function of splitmix64, in whole numbers of any size."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & ALL
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & ALL
    return state ^ (state >> 31)


def splitmix64(state: int) -> Iterator[int]:
    """The generator of Steele, Lea and Flood."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) & ALL
        yield mixed(state)


def keys(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def many(count: int, seed: int = 0) -> Tensor:
    """Keys as a run has them."""
    return keys(*(stream_key(seed, number) for number in range(count)))


def test_the_slow_generator_is_splitmix64() -> None:
    """The first outputs for state 0, as published with the reference implementation."""
    assert list(islice(splitmix64(0), 3)) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@settings(deadline=None, max_examples=200)
@given(st.lists(key, min_size=1, max_size=4), st.text(max_size=8), st.integers(1, 9))
def test_numbers_are_those_of_splitmix64(values: list[int], purpose: str, count: int) -> None:
    found = uniform(keys(*values), purpose, count)
    assert found.shape == (len(values), count) and found.dtype == torch.float32
    for value, row in zip(values, found.tolist()):
        state = mixed((value & ALL) ^ stream_key(purpose))
        assert row == [(n >> 40) / (1 << 24) for n in islice(splitmix64(state), count)]


@settings(deadline=None, max_examples=100)
@given(key, st.text(max_size=8))
def test_derived_keys_are_mixed(value: int, purpose: str) -> None:
    (found,) = derived_keys(keys(value), purpose).tolist()
    assert found & ALL == mixed((value & ALL) ^ stream_key("keys", purpose))


def test_extreme_keys_stay_in_range() -> None:
    found = uniform(keys(0, 1, -1, (1 << 63) - 1, -(1 << 63)), "range", 20_000)
    assert float(found.min()) >= 0 and float(found.max()) < 1
    assert len({row.numpy().tobytes() for row in found}) == 5


def test_shapes() -> None:
    drawn = uniform(many(3), "shape", 2, 3, 4)
    assert drawn.shape == (3, 2, 3, 4) and torch.equal(drawn.flatten(1), uniform(many(3), "shape", 24))
    assert torch.equal(uniform(many(3), "shape"), uniform(many(3), "shape", 1)[:, 0])
    assert uniform(many(0), "shape", 5).shape == (0, 5)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    together = uniform(many(6), "batch", 10)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    assert torch.equal(uniform(many(6)[order], "batch", 10), together[order])
    for sample in range(6):
        assert torch.equal(uniform(many(6)[sample : sample + 1], "batch", 10)[0], together[sample])
    assert torch.equal(derived_keys(many(6)[order], "x"), derived_keys(many(6), "x")[order])


def test_a_longer_draw_begins_with_the_shorter() -> None:
    assert torch.equal(uniform(many(2), "length", 20)[:, :7], uniform(many(2), "length", 7))


def test_no_global_stream_is_used_or_moved() -> None:
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    one = uniform(many(2), "stream", 5)
    torch.manual_seed(99)
    other = uniform(many(2), "stream", 5)
    torch.set_rng_state(before[0])
    assert torch.equal(one, other)
    uniform(many(2), "stream", 5)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), repr(np.random.get_state()))


def test_nothing_waits_for_the_device() -> None:
    with FakeTensorMode():
        drawn = uniform(derived_keys(torch.zeros(3, dtype=torch.int64), "one"), "two", 4)
        assert ranks(drawn).shape == (3, 4)


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


@pytest.mark.parametrize("values", [many(200), torch.arange(200)], ids=["keys of a run", "neighbouring keys"])
def test_numbers_are_even_and_unrelated(values: Tensor) -> None:
    """Within five standard errors of what independent even draws would give."""
    drawn = uniform(values, "even", 500).to(torch.float64)
    error = 5 / drawn.numel() ** 0.5
    assert abs(float(drawn.mean()) - 1 / 2) < error * 12**-0.5
    assert abs(float(drawn.var()) - 1 / 12) < error * 180**-0.5
    counts = torch.histc(drawn.to(torch.float32), 64, 0, 1)
    assert float(((counts - counts.mean()) ** 2 / counts.mean()).sum()) < 63 + 5 * (2 * 63) ** 0.5
    others = {
        "the next number": (drawn[:, :-1], drawn[:, 1:]),
        "the next sample": (drawn[:-1], drawn[1:]),
        "another purpose": (drawn, uniform(values, "other", 500).to(torch.float64)),
        "derived keys": (drawn, uniform(derived_keys(values, "again"), "even", 500).to(torch.float64)),
        "other derived keys": (
            uniform(derived_keys(values, "a"), "even", 500).to(torch.float64),
            uniform(derived_keys(values, "b"), "even", 500).to(torch.float64),
        ),
    }
    for name, (one, other) in others.items():
        assert abs(correlation(one, other)) < 1.01 * error, name


def test_keys_and_derived_keys_do_not_meet() -> None:
    values = many(5000)
    seen = torch.cat([values, derived_keys(values, "first pass"), derived_keys(values, "second pass")])
    assert len(seen.unique()) == 15_000


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 5), st.integers(0, 999))
def test_ranks_count_what_comes_before(rows: int, length: int, different: int, seed: int) -> None:
    """The slow way; of equal values the first comes first."""
    values = torch.randint(0, different, (rows, length), generator=torch.Generator().manual_seed(seed))
    found = ranks(values.float())
    for row, places in zip(values.tolist(), found.tolist()):
        for index, place in enumerate(places):
            assert place == sum(v < row[index] or (v == row[index] and n < index) for n, v in enumerate(row))
