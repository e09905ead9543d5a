"""Which devices compute here, seen by having each compute: ``python -m HybridMIMLib.inference.probe FOLDER``.

A list of devices says little: a build of PyTorch without kernels for a card lists it all the same, and a driver may
hang when it is asked for the first time. So a small network of the layers of ours is run on each device, and its
scores are compared with those of the CPU. What was found is written to ``result.json`` in the folder. A driver that
ends the process ends this one alone.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from HybridMIMLib.errors import HybridMIMError, SettingsError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import write_json
from HybridMIMLib.inference.capability import AGREES, DeviceBench
from HybridMIMLib.networks.device import choose_device
from HybridMIMLib.runs import versions

Bench = Callable[[torch.device], float]


def probe_devices(names: Sequence[str], bench: Bench, events: EventLog | None = None) -> list[dict[str, Any]]:
    """What was seen of each device; one that fails says why, and the others are tried all the same.

    Args:
        names: cpu, cuda:0 …
        bench: has a device compute; returns the largest difference from the CPU, as a share of the largest score.
        events: where progress goes.

    Returns:
        For each ``device``, what it is called (``name``), whether it ``works``, the ``reason`` if it does not,
        ``seconds`` that it took, ``difference`` from the CPU, and ``memory_total`` and ``memory_free`` in bytes,
        None where that cannot be told.
    """
    phase = (events or EventLog()).phase("Trying devices", len(names))
    found = []
    for done, name in enumerate(names, 1):
        found.append(_probe(name, bench))
        phase.progress(done)
    return found


def device_names() -> list[str]:
    """All that PyTorch lists; the CPU comes last."""
    cards = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [*cards, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def difference_from_cpu(device: torch.device) -> float:
    """Have a device compute, and compare with the CPU."""
    return DeviceBench(device, width=8, side=16).difference(torch.float32)


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe all devices; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if len(arguments) != 1:
            raise SettingsError("no folder is named", cure="Name one for the result.")
        folder = Path(arguments[0])
        events = EventLog(folder / "events.jsonl")
        devices = probe_devices(device_names(), difference_from_cpu, events)
        about = {"devices": devices, "versions": versions(), "cuda": torch.version.cuda or ""}
        write_json(folder / "result.json", about)
    except HybridMIMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _probe(name: str, bench: Bench) -> dict[str, Any]:
    began, works, reason, difference = time.perf_counter(), False, "", None
    try:
        device = choose_device(name)
        difference = bench(device)
        works = difference <= AGREES
        # Not a number where the scores are none.
        reason = "" if works else f"what it computes is not what the CPU computes (difference {difference:.3g})"
    except (RuntimeError, HybridMIMError) as error:
        reason = " ".join(str(error).split())[:300]
    total, free = _memory(name)
    return {
        "device": name,
        "name": _called(name),
        "works": works,
        "reason": reason,
        "seconds": round(time.perf_counter() - began, 2),
        "difference": difference,
        "memory_total": total,
        "memory_free": free,
    }


def _called(name: str) -> str:
    if name.startswith("cuda"):
        with suppress(RuntimeError, AssertionError):
            return torch.cuda.get_device_name(name)
    return {"cpu": f"CPU, {os.cpu_count()} cores", "mps": "Apple GPU"}.get(name, name)


def _memory(name: str) -> tuple[int | None, int | None]:
    """Bytes in all, and free."""
    if name.startswith("cuda"):
        with suppress(RuntimeError, AssertionError):
            free, total = torch.cuda.mem_get_info(name)
            return int(total), int(free)
        return None, None
    with suppress(OSError, ValueError, KeyError):
        lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        kilobytes = {line[0]: int(line[1]) for line in lines if len(line) > 1}
        return 1024 * kilobytes["MemTotal:"], 1024 * kilobytes["MemAvailable:"]
    with suppress(OSError, ValueError, AttributeError):
        # macOS tells how much there is, and not how much is free.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    return None, None


if __name__ == "__main__":
    sys.exit(main())
