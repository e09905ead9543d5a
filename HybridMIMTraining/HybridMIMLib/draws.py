"""Random numbers on the training device, for a whole batch at once, that follow from what each sample is.

Each sample brings a key (:func:`HybridMIMLib.randomness.stream_key`). What is drawn for it follows from its key and
from what it is drawn for, never from what was drawn before, nor from which other samples are in the batch or on which
device. Nothing here waits for the device or walks over samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from HybridMIMLib.randomness import stream_key

# splitmix64 (Steele, Lea and Flood, 2014): state += GAMMA; two rounds of shift, xor, multiply; a last shift and xor.
_GAMMA, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BITS = 24
"""As many as a float32 holds between 0 and 1."""


def uniform(keys: Tensor, purpose: str, *shape: int) -> Tensor:
    """Numbers from 0 to below 1.

    Args:
        keys: (B) int64.
        purpose: tells the streams of a sample apart.
        shape: of the numbers for each sample.

    Returns:
        (B, *shape) float32, on the device of the keys.
    """
    state = _mixed(keys ^ stream_key(purpose))
    steps = torch.arange(1, math.prod(shape) + 1, device=keys.device) * _signed(_GAMMA)
    bits = _shifted(_mixed(state[:, None] + steps), 64 - _BITS)
    return (bits.to(torch.float32) * 2.0**-_BITS).reshape(len(keys), *shape)


def derived_keys(keys: Tensor, purpose: str) -> Tensor:
    """Other keys (B) for the same samples, such as those of a second pass."""
    return _mixed(keys ^ stream_key("keys", purpose))


def ranks(values: Tensor) -> Tensor:
    """The place of each value among those of its row, 0 for the smallest; (B, N) → (B, N)."""
    return values.argsort(dim=1, stable=True).argsort(dim=1)


def _mixed(state: Tensor) -> Tensor:
    """The output function of splitmix64; int64 multiplication wraps around, as it should."""
    state = (state ^ _shifted(state, 30)) * _signed(_FIRST)
    state = (state ^ _shifted(state, 27)) * _signed(_SECOND)
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, by: int) -> Tensor:
    """Shifted to the right with zeros coming in, which >> on signed numbers does not do."""
    return (state >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
