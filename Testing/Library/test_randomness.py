"""Random streams follow from their names alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from HybridMIMLib.randomness import random_stream, stream_key


def test_the_same_name_gives_the_same_numbers_whatever_was_drawn_before() -> None:
    first = random_stream(3, "crop", 7).random(5)
    random_stream(3, "crop", 6).random(1000)
    np.random.default_rng(0).random(10)
    assert np.array_equal(first, random_stream(3, "crop", 7).random(5))


def test_different_names_give_different_keys() -> None:
    paths: list[tuple[int | str, ...]] = [
        (),
        (0,),
        ("0",),
        (0, 0),
        (0, 1),
        (1, 0),
        (-1,),
        (10, 1),
        (1, 1),
        ("a", "b"),
        ("ab",),
    ]
    paths += [("a",), ("", "a"), (12, 3), (1, 23), (123,), (2**70,), ("数",)]
    assert len({stream_key(*path) for path in paths}) == len(paths)


def test_whole_numbers_of_numpy_are_the_same_numbers() -> None:
    assert stream_key(np.int64(3), np.uint8(4)) == stream_key(3, 4)  # type: ignore[arg-type]


def test_keys_fit_into_63_bits() -> None:
    keys = [stream_key(n) for n in range(200)]
    assert all(0 <= key < 2**63 for key in keys) and max(keys) > 2**61


def test_another_process_draws_the_same() -> None:
    program = "from HybridMIMLib.randomness import stream_key; print(stream_key(5, 'x', 17))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == stream_key(5, "x", 17)


def test_streams_are_spread_evenly_and_independent() -> None:
    first = np.array([random_stream(0, step).random() for step in range(2000)])
    assert abs(first.mean() - 0.5) < 0.03 and abs(first.std() - 12**-0.5) < 0.02
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.08
