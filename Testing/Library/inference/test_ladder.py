"""The way down when memory runs out."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from HybridMIMLib.errors import HybridMIMError
from HybridMIMLib.inference import ladder
from HybridMIMLib.inference.ladder import Rung, is_out_of_memory, next_rung, with_ladder

CPU, GPU, MPS = torch.device("cpu"), torch.device("cuda:1"), torch.device("mps")


@pytest.fixture(autouse=True)
def gpu_with_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test GPU")


def way_down(rung: Rung | None, machine_is_full: bool = False) -> list[Rung]:
    rungs = []
    while rung is not None:
        rungs.append(rung)
        rung = next_rung(rung, machine_is_full)
    return rungs


def test_the_whole_ladder_of_a_gpu() -> None:
    assert way_down(Rung(GPU, 4, GPU)) == [
        Rung(GPU, 4, GPU),
        Rung(GPU, 2, GPU),
        Rung(GPU, 1, GPU),
        Rung(GPU, 1, CPU),
        Rung(CPU, 1, CPU),
    ]


@given(st.sampled_from([CPU, GPU, MPS]), st.integers(1, 99), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_every_ladder_ends_and_never_repeats(device: torch.device, batch: int, on_cpu: bool, full: bool) -> None:
    rungs = way_down(Rung(device, batch, CPU if on_cpu else device), full)
    assert len(set(rungs)) == len(rungs) <= batch.bit_length() + 2
    assert rungs[-1].batch == 1
    # A machine that is full cannot take what a GPU hands it.
    assert rungs[-1].device == (device if full else CPU)
    assert not full or all(rung.accumulate_on == rungs[0].accumulate_on for rung in rungs)


def real_allocation() -> None:
    torch.empty(1 << 58, dtype=torch.uint8)


def numpy_allocation() -> None:
    np.empty(1 << 58, dtype=np.uint8)


@pytest.mark.parametrize("allocate", [real_allocation, numpy_allocation])
def test_a_cpu_that_is_really_out_of_memory_is_recognised(allocate) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB, max allowed: 9.07 GB)"), True),
        (RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' for more"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("shape mismatch; the last allocation was out of memory order"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_only_a_full_memory_counts(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_it_goes_down_until_memory_suffices_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[torch.device] = []
    monkeypatch.setattr(ladder, "empty_cache", emptied.append)
    tried: list[Rung] = []
    told: list[str] = []

    def attempt(rung: Rung) -> str:
        tried.append(rung)
        if rung.device == GPU:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert with_ladder(Rung(GPU, 2, GPU), attempt, told.append) == ("done", Rung(CPU, 1, CPU))
    assert tried == way_down(Rung(GPU, 2, GPU))
    assert emptied == [GPU] * 3
    assert told == [
        "Out of memory on the GPU (Test GPU) with 2 windows at once: going on with 1.",
        "Out of memory on the GPU (Test GPU): the scores are added up on the CPU from now on, which takes longer.",
        "Out of memory on the GPU (Test GPU): the CPU computes from now on, which takes much longer.",
    ]


def test_nothing_is_said_where_memory_suffices() -> None:
    told: list[str] = []
    assert with_ladder(Rung(CPU, 4, CPU), lambda rung: rung.batch, told.append) == (4, Rung(CPU, 4, CPU))
    assert told == []


def test_what_a_failed_attempt_held_is_free_before_the_next() -> None:
    """Not just after the garbage collector happened to pass: a cycle holds it too."""
    held: list[weakref.ref[torch.Tensor]] = []
    gc.disable()

    def attempt(rung: Rung) -> bool:
        if held:
            return held[0]() is None
        big = torch.ones(10)
        cycle: list[object] = [big]
        cycle.append(cycle)
        held.append(weakref.ref(big))
        raise MemoryError

    try:
        assert with_ladder(Rung(CPU, 2, CPU), attempt, lambda text: None)[0]
    finally:
        gc.enable()


def test_an_error_with_a_cure_where_there_is_no_way_left() -> None:
    batches = []

    def attempt(rung: Rung) -> None:
        batches.append(rung.batch)
        raise MemoryError

    with pytest.raises(HybridMIMError, match="out of memory: this machine cannot hold.*Close other programs"):
        with_ladder(Rung(CPU, 5, CPU), attempt, lambda text: None)
    assert batches == [5, 2, 1]


def test_a_full_machine_does_not_send_a_gpus_work_to_the_cpu() -> None:
    tried = []

    def attempt(rung: Rung) -> None:
        tried.append(rung)
        raise MemoryError

    with pytest.raises(HybridMIMError, match="cannot hold"):
        with_ladder(Rung(GPU, 2, CPU), attempt, lambda text: None)
    assert tried == [Rung(GPU, 2, CPU), Rung(GPU, 1, CPU)]


def test_other_errors_pass_through_at_once() -> None:
    calls = []

    def attempt(rung: Rung) -> None:
        calls.append(rung)
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        with_ladder(Rung(GPU, 4, GPU), attempt, lambda text: None)
    assert len(calls) == 1
