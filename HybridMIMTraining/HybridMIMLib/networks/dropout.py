"""Dropout whose draws follow from what the sample is, not from what was drawn before.

torch's own dropout takes its numbers from one global stream, so that a run that was stopped, or spread over several
devices, drops other channels. Here each sample of a batch brings a key; the channels that a layer drops follow from
(key, stage of the layer).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn

from HybridMIMLib.draws import uniform

_KEYS: ContextVar[tuple[Tensor, int] | None] = ContextVar("dropout keys", default=None)


@contextmanager
def dropout_keys(keys: Tensor, from_stage: int = 0) -> Iterator[None]:
    """Let every :class:`SampleDropout` inside the block draw from these keys (B), one a sample of the batch.

    Args:
        keys: int64, on the device of the network.
        from_stage: layers of earlier stages of the encoder drop nothing.
    """
    token = _KEYS.set((keys, from_stage))
    try:
        yield
    finally:
        _KEYS.reset(token)


class SampleDropout(nn.Module):
    """Drops whole channels while training, as ``torch.nn.Dropout3d``, with draws from :func:`dropout_keys`.

    Args:
        share: probability with which a channel is dropped.
        stage: of the encoder that the layer belongs to; no two layers of a network have the same.
        axis: which one the channels lie along, the last for tokens.
    """

    def __init__(self, share: float, stage: int, axis: int = 1) -> None:
        super().__init__()
        self.share, self.stage, self.axis = share, stage, axis

    def forward(self, x: Tensor) -> Tensor:
        """``x``, such as (B, C, D, H, W), with channels set to 0 and the others scaled by 1 / (1 - share).

        Raises:
            RuntimeError: in training mode outside of :func:`dropout_keys`, or with another number of keys.
        """
        if not self.training or self.share == 0:
            return x
        drawn = _KEYS.get()
        if drawn is None or len(drawn[0]) != len(x):
            raise RuntimeError(f"SampleDropout needs one key a sample: {len(x)} samples, keys {drawn}")
        keys, from_stage = drawn
        if self.stage < from_stage:
            return x
        shape = [1] * (x.ndim - 1)
        shape[self.axis - 1] = x.shape[self.axis]
        kept = uniform(keys, f"dropout of stage {self.stage}", *shape) >= self.share
        return x * (kept.to(x.dtype) / (1 - self.share))

    def extra_repr(self) -> str:
        """Shown by ``print(network)``."""
        return f"share={self.share}, stage={self.stage}"
