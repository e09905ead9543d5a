"""Random numbers that follow from what they are for, not from what was drawn before.

A stream is named by (seed, step, sample, purpose …). Whoever draws for step 17 gets the same numbers whether the
run went there in one go, was stopped and continued, or was spread over several workers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def stream_key(*path: int | str) -> int:
    """A 63-bit number that is the same for the same path on every machine and in every process."""
    # int(): numpy's whole numbers are the same numbers.
    text = "\x1f".join(f"str:{part}" if isinstance(part, str) else f"int:{int(part)}" for part in path)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def random_stream(*path: int | str) -> np.random.Generator:
    """A generator of its own for ``path``, such as ``(seed, step, sample, "crop")``."""
    import numpy as np

    return np.random.Generator(np.random.Philox(stream_key(*path)))
