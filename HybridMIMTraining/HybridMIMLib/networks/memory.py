"""How many crops fit a device: what a training step holds in memory, and the batch that follows.

A step, forward and backward, is run once on tensors without data (torch's ``FakeTensorMode``): nothing is computed
and no memory taken, but every tensor that would be there is known with its size. The most bytes that are there at one
time, counted for one crop and for two, say what a further crop takes, for any network and any objective.

Measured on the CPU (peak of the process's memory above what it held before the step), the figure was 0.9 to 1.05
times that for U-Net, SwinUNETR, UNETR and SegResNet on crops of 48 and 64 voxels, and 0.85 to 1.3 times on smaller
ones; ``Testing/Library/networks/test_memory.py`` repeats a part of it. On GPUs it was not measured. What a kernel
takes to work in (cuDNN, oneDNN) is not seen, which is one reason to leave room free.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from HybridMIMLib.events import EventLog
from HybridMIMLib.files import read_json, write_json
from HybridMIMLib.networks.peak import peak_memory

FEWEST_TO_CONTRAST, MOST = 4, 16
"""Crops of a batch that is fitted: the contrast needs others to compare with, and more than 16 a device teach little
more."""
_WHERE_UNKNOWN = 4
GPU_SHARE = 0.5
"""Of a GPU's free memory; the rest is for weights, the optimizer, and what cuDNN takes to work in."""
RAM_SHARE = 0.25
"""Of the machine's memory where the CPU computes: it has other things to do."""
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def crop_bytes(losses: Callable[[int], Mapping[str, Tensor]]) -> int:
    """Bytes that a further crop takes at the height of a training step.

    Args:
        losses: number of crops → losses of a step on that many, which it makes itself, on the CPU. What it trains is
            left with gradients and buffers that hold no data, so it must be made for this alone.
    """
    one, two = (_height(losses, count) for count in (1, 2))
    return max(two - one, 1)


def _height(losses: Callable[[int], Mapping[str, Tensor]], count: int) -> int:
    """The most bytes of tensors at one time, in a step of ``count`` crops."""
    # The weights are real; they become fake where they are used.
    with FakeTensorMode(allow_non_fake_inputs=True), _Held() as held:
        torch.stack(list(losses(count).values())).sum().backward()
    return held.most


class _Held(TorchDispatchMode):
    """Counts the bytes of what operations make, each storage once, until it is let go.

    Attributes:
        most: bytes at the height.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor):
                self._count(one.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place not in self._known:
            self._known.add(place)
            self._now += size
            self.most = max(self.most, self._now)
            weakref.finalize(storage, self._let_go, place, size).atexit = False

    def _let_go(self, place: int, size: int) -> None:
        self._known.discard(place)
        self._now -= size


def settle_batch(
    given: int,
    bytes_of_crop: Callable[[], int],
    device: torch.device,
    folder: Path,
    events: EventLog,
    fewest: int = 1,
    devices: int = 1,
) -> int:
    """The batch as set, or for 0 one that fits the device; a run that goes on keeps the one it began with.

    Args:
        given: as in the settings.
        bytes_of_crop: says what a crop takes, see :func:`crop_bytes`; asked where it matters alone.
        device: where to compute.
        folder: of the stage; a fitted batch is kept there in ``batch.json``.
        events: where to tell.
        fewest: crops that are needed whatever fits.
        devices: like this one, which share the batch evenly.
    """
    if given:
        return given
    file = folder / "batch.json"
    kept = _kept(file) if (folder / "checkpoint.pt").exists() else None
    batch = kept or devices * fitted_batch(bytes_of_crop(), device, events, -(-fewest // devices))
    write_json(file, {"batch": batch})
    return batch


def fitted_batch(crop_bytes: int, device: torch.device, events: EventLog, fewest: int = 1) -> int:
    """As many crops as fit the device, from ``fewest`` to 16; a warning where even the fewest may be too many."""
    room = room_on(device)
    # Where nobody can tell how much there is, few are the safest.
    fits = room // crop_bytes if room is not None else max(fewest, _WHERE_UNKNOWN)
    batch = min(max(fits, fewest), MOST)
    told = "unknown" if room is None else f"{room / 1e9:.1f} GB"
    text = f"batch of {batch} crops: about {crop_bytes / 1e9:.2f} GB each, room on {device}: {told}"
    if fits < fewest:
        events.warning(f"{text}. It may not fit: choose a smaller plan.crop, or fewer network.features.")
    else:
        events.message(text)
    return batch


def room_on(device: torch.device) -> int | None:
    """Bytes that activations may take on a device; None where the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(GPU_SHARE * free)
    # An Apple GPU (mps) shares the machine's memory.
    memory = machine_memory()
    return None if memory is None else int(RAM_SHARE * memory)


def memory_in_use(device: torch.device) -> dict[str, int]:
    """Bytes in use now, without a wait for the device.

    Returns:
        ``process``: of the machine's memory, by this process (where only the most that it ever was is known, that);
        left out where nothing is. Of a GPU of CUDA also ``gpu``, by this process, ``gpu_used``, by all programs, and
        ``gpu_total``.
    """
    own = process_memory()
    found = {} if own is None else {"process": own}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found |= {"gpu": torch.cuda.memory_reserved(device), "gpu_used": total - free, "gpu_total": total}
    return found


def process_memory() -> int | None:
    """Bytes of the machine's memory that this process holds, or the most that it held; None where nobody tells."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError, IndexError):
        return peak_memory()


def machine_memory() -> int | None:
    """Bytes of memory of this machine, or of the container that it is; None where the system does not tell."""
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return None
    return min([whole, *(limit for name in _CGROUP_LIMITS if (limit := _limit(Path(name))) is not None)])


def _limit(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _kept(file: Path) -> int | None:
    try:
        return int(read_json(file)["batch"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
