"""How long a network computes, without all that is around it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from HybridMIMLib.inference.torch_engine import Engine
from HybridMIMLib.networks.device import wait_for


@dataclass
class NetworkClock:
    """Adds up the seconds of a network, wherever it computes."""

    _seconds: float = 0.0
    _marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    def compute(self, engine: Engine, windows: Tensor) -> Tensor:
        """What the engine makes of the windows."""
        if engine.device.type == "cuda":
            # Marks in the GPU's own queue, so that nobody has to wait for it.
            with torch.cuda.device(engine.device):
                began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                began.record()
                scores = engine(windows)
                ended.record()
            self._marks.append((began, ended))
            return scores
        wait_for(engine.device)
        start = time.perf_counter()
        scores = engine(windows)
        wait_for(engine.device)
        self._seconds += time.perf_counter() - start
        return scores

    def seconds(self) -> float:
        """Since the last call."""
        for began, ended in self._marks:
            ended.synchronize()
            self._seconds += began.elapsed_time(ended) / 1000
        seconds, self._seconds, self._marks = self._seconds, 0.0, []
        return seconds


class ClockedEngine(Engine):
    """Another engine, and a clock that runs while it computes."""

    def __init__(self, engine: Engine, clock: NetworkClock) -> None:
        self.engine, self.clock = engine, clock
        self.device, self.batch, self.name = engine.device, engine.batch, engine.name

    def __call__(self, windows: Tensor) -> Tensor:
        """See :meth:`Engine.__call__`."""
        return self.clock.compute(self.engine, windows)

    def on(self, device: torch.device, batch: int) -> ClockedEngine:
        """See :meth:`Engine.on`."""
        return ClockedEngine(self.engine.on(device, batch), self.clock)

    def close(self) -> None:
        """See :meth:`Engine.close`."""
        self.engine.close()
