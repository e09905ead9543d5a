"""How many crops fit a device: an estimate of what a training step holds in memory, and the batch that follows.

A step holds, besides the weights, what the backward pass needs. For a U-Net with ``f`` channels and ``v`` voxels at a
level (``v`` an eighth of the level above), in numbers of 4 bytes for each crop:

=============  ======================================================================================
encoder        4 f v a level (two convolutions and their norms), and the copy that dropout makes
decoder        5 f v a level below the bottleneck (cut to the box, upsampled and joined, convolved, normalised),
               over the voxels that are decoded
head, losses   8 a decoded voxel and output
backward       3 f v of the finest level, for gradients on their way
crop           8 v of the finest level: image, label map, mask, and their copies
=============  ======================================================================================

Measured on the CPU (peak of the process's memory above what it held before the step), the estimate was 0.9 to 1.1
times that for fine-tuning and 0.75 to 0.95 times for pre-training, over two networks and crops of 48 and 64 voxels;
``Testing/Library/networks/test_memory.py`` repeats the measurement. On GPUs it was not measured.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch

from HybridMIMLib.events import EventLog
from HybridMIMLib.files import read_json, write_json

FEWEST_TO_CONTRAST, MOST = 4, 16
"""Crops of a batch that is fitted: the contrast needs others to compare with, and more than 16 teach little more."""
_WHERE_UNKNOWN = 4
GPU_SHARE = 0.5
"""Of a GPU's free memory; the rest is for weights, the optimizer, and what cuDNN takes to work in."""
RAM_SHARE = 0.25
"""Of the machine's memory where the CPU computes: it has other things to do."""
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def activation_bytes(
    features: Sequence[int],
    crop: Sequence[int],
    outputs: int,
    decoded: float = 1.0,
    again_from: int | None = None,
) -> int:
    """Bytes that one crop takes in a training step of a U-Net.

    Args:
        features: channels of each level.
        crop: voxels along each axis.
        outputs: channels of the head, background included.
        decoded: share of the voxels that the decoder works on.
        again_from: the level at which a second pass enters the encoder; None: there is none.
    """
    voxels = [prod(crop) / 8**level for level in range(len(features))]
    sizes = [f * v for f, v in zip(features, voxels)]
    # Dropout copies what enters a level; at the finest, what lies between its two convolutions.
    encoder = [4 * size + copied for size, copied in zip(sizes, [sizes[0], *sizes[:-1]])]
    numbers = sum(encoder) + 5 * decoded * sum(sizes[:-1]) + 3 * sizes[0]
    numbers += 8 * (1 + outputs * decoded) * voxels[0]
    if again_from is not None:
        numbers += sum(encoder[again_from:])
    return round(4 * numbers)


def settle_batch(
    given: int, crop_bytes: int, device: torch.device, folder: Path, events: EventLog, fewest: int = 1
) -> int:
    """The batch as set, or for 0 one that fits the device; a run that goes on keeps the one it began with.

    Args:
        given: as in the settings.
        crop_bytes: of one crop, from :func:`activation_bytes`.
        device: where to compute.
        folder: of the stage; a fitted batch is kept there in ``batch.json``.
        events: where to tell.
        fewest: crops that are needed whatever fits.
    """
    if given:
        return given
    file = folder / "batch.json"
    kept = _kept(file) if (folder / "checkpoint.pt").exists() else None
    batch = kept or fitted_batch(crop_bytes, device, events, fewest)
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
