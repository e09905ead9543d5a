"""The peak of this process's memory, and that it can be forgotten."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from HybridMIMLib.networks import peak
from HybridMIMLib.networks.peak import forget_peak, gpu_memory, peak_gpu_memory, peak_memory

CPU = torch.device("cpu")
LARGE = 200_000_000


def test_what_was_taken_and_given_back_shows_until_it_is_forgotten() -> None:
    forget_peak(CPU)
    before = peak_memory()
    large = np.ones(LARGE, dtype=np.uint8)
    del large
    after = peak_memory()
    assert before is not None and after is not None and after - before > 0.9 * LARGE
    if sys.platform == "linux":
        forget_peak(CPU)
        assert (peak_memory() or 0) < after - 0.9 * LARGE
    assert peak_gpu_memory(CPU) is None and gpu_memory(CPU) is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells it in its own way")
def test_without_the_files_of_linux_it_is_known_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    known = peak_memory() or 0
    monkeypatch.setattr(peak, "_STATUS", peak._STATUS / "nowhere")
    monkeypatch.setattr(peak, "_FORGET", peak._FORGET / "nowhere")
    forget_peak(CPU)
    assert (peak_memory() or 0) >= 0.9 * known
