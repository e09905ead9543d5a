"""Dropout whose draws follow from what the sample is, not from what was drawn before.

torch's own dropout takes its numbers from one global stream, so that a run that was stopped, or spread over several
devices, drops other channels. Here each sample of a batch brings a key; the channels that a layer drops follow from
(key, name of the layer).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor, nn

from HybridMIMLib.randomness import random_stream

_KEYS: ContextVar[tuple[int, ...] | None] = ContextVar("dropout keys", default=None)


@contextmanager
def dropout_keys(keys: Sequence[int]) -> Iterator[None]:
    """Let every :class:`SampleDropout` inside the block draw from these keys, one a sample of the batch."""
    token = _KEYS.set(tuple(keys))
    try:
        yield
    finally:
        _KEYS.reset(token)


class SampleDropout(nn.Module):
    """Drops whole channels while training, as ``torch.nn.Dropout3d``, with draws from :func:`dropout_keys`.

    Args:
        share: probability with which a channel is dropped.
        name: tells the layers of a network apart.
    """

    def __init__(self, share: float, name: str) -> None:
        super().__init__()
        self.share, self.name = share, name

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, D, H, W) with channels set to 0 and the others scaled by 1 / (1 - share).

        Raises:
            RuntimeError: in training mode outside of :func:`dropout_keys`, or with another number of keys.
        """
        if not self.training or self.share == 0:
            return x
        keys = _KEYS.get()
        if keys is None or len(keys) != len(x):
            raise RuntimeError(f"SampleDropout needs one key a sample: {len(x)} samples, keys {keys}")
        kept = np.stack([random_stream(key, self.name).random(x.shape[1]) >= self.share for key in keys])
        factor = torch.from_numpy(kept.astype(np.float32) / (1 - self.share)).to(x.device, x.dtype)
        return x * factor[:, :, None, None, None]

    def extra_repr(self) -> str:
        """Shown by ``print(network)``."""
        return f"share={self.share}, name={self.name}"
