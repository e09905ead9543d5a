"""What to do when memory runs out: fewer windows at once → scores added up on the CPU → all of it on the CPU."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from HybridMIMLib.errors import HybridMIMError
from HybridMIMLib.networks.device import device_in_words, empty_cache

T = TypeVar("T")
CPU = torch.device("cpu")
_IN_WORDS = (
    "DefaultCPUAllocator: can't allocate memory",  # Linux, macOS
    "DefaultCPUAllocator: not enough memory",  # Windows
    "MPS backend out of memory",
    "CUDA error: out of memory",  # where another program left no room for the context itself
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""How PyTorch says it where it has no type of its own for it. All other RuntimeErrors are defects."""


@dataclass(frozen=True)
class Rung:
    """A way to compute, and one step of the ladder.

    Attributes:
        device: where the network computes.
        batch: windows that go through it at once.
        accumulate_on: where the scores of the windows are added up.
    """

    device: torch.device
    batch: int
    accumulate_on: torch.device


def next_rung(rung: Rung, machine_is_full: bool = False) -> Rung | None:
    """A way that takes less memory of the device; None where there is none.

    Args:
        rung: the way that took too much.
        machine_is_full: it was the machine's memory that ran out, and not a GPU's: moving to the CPU would take more.
    """
    if rung.batch > 1:
        return replace(rung, batch=rung.batch // 2)
    if rung.device.type == "cpu" or machine_is_full:
        return None
    if rung.accumulate_on.type != "cpu":
        return replace(rung, accumulate_on=CPU)
    return Rung(CPU, 1, CPU)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of a device or of the machine."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _IN_WORDS)


def with_ladder(first: Rung, attempt: Callable[[Rung], T], tell: Callable[[str], None]) -> tuple[T, Rung]:
    """What ``attempt`` returns on the first rung on which memory suffices, and that rung, to begin with next time.

    Args:
        first: how to begin.
        attempt: does the work from its beginning, in the way it is given.
        tell: is given a sentence for the user at every step down.

    Raises:
        HybridMIMError: memory does not suffice on the last rung either.
    """
    rung = first
    while True:
        try:
            return attempt(rung), rung
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            below = next_rung(rung, _is_of_machine(error))
            if below is None:
                raise _nothing_left() from error
        # Outside the except block: while the error lives, its traceback holds the tensors that filled the memory.
        gc.collect()
        empty_cache(rung.device)
        tell(_in_words(rung, below))
        rung = below


def _is_of_machine(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)


def _in_words(above: Rung, below: Rung) -> str:
    place = device_in_words(above.device)
    if below.batch < above.batch:
        return f"Out of memory on {place} with {above.batch} windows at once: going on with {below.batch}."
    if below.device == above.device:
        return f"Out of memory on {place}: the scores are added up on the CPU from now on, which takes longer."
    return f"Out of memory on {place}: the CPU computes from now on, which takes much longer."


def _nothing_left() -> HybridMIMError:
    return HybridMIMError(
        "out of memory: this machine cannot hold this model and this scan, one window at a time either",
        cure="Close other programs, or use a smaller model (fewer features, a smaller crop or a coarser spacing), "
        "or a machine with more memory.",
    )
