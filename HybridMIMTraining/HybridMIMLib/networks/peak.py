"""The most memory that this process has taken, of the machine and of a GPU."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_ANEW = "5"


def forget_peak(device: torch.device) -> None:
    """Count anew from here; on systems other than Linux the machine's memory is counted from the start."""
    # A container may forbid it; the peak is then that since the process began, which is no less.
    with suppress(OSError):
        _FORGET.write_text(_ANEW)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory() -> int | None:
    """Bytes of the machine's memory, or None where the system does not tell."""
    with suppress(OSError, ValueError, StopIteration):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return _peak_on_windows() if sys.platform == "win32" else _peak_on_unix()


def peak_gpu_memory(device: torch.device) -> int | None:
    """Bytes of a GPU's memory that PyTorch has taken hold of; None where no GPU of that kind computes."""
    return int(torch.cuda.max_memory_reserved(device)) if device.type == "cuda" else None


def gpu_memory(device: torch.device) -> int | None:
    """All bytes that a GPU has, or None as in :func:`peak_gpu_memory`."""
    return int(torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else None


def _peak_on_unix() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _peak_on_windows() -> int | None:
    import ctypes

    class Counters(ctypes.Structure):
        """PROCESS_MEMORY_COUNTERS."""

        _fields_ = [
            ("size", ctypes.c_ulong),
            ("page_faults", ctypes.c_ulong),
            ("peak", ctypes.c_size_t),
            ("others", ctypes.c_size_t * 7),
        ]

    counters = Counters(size=ctypes.sizeof(Counters))
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    own = ctypes.c_void_p(kernel.GetCurrentProcess())
    told = kernel.K32GetProcessMemoryInfo(own, ctypes.byref(counters), counters.size)
    return int(counters.peak) if told else None
