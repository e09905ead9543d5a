"""Whether a training computes in half precision: bfloat16, where the device is faster with it.

Weights, their gradients and the losses stay in float32 (autocast). bfloat16 has the range of float32, so that no
gradient is lost and no loss need be scaled; float16 would need that, and is not used: GPUs that have it alone train
in float32. Whether bfloat16 pays depends on the device and the build of PyTorch: a small network is trained in both
for a few steps.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import torch

from HybridMIMLib.errors import SettingsError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import read_json, write_json
from HybridMIMLib.inference.capability import HALF_PAYS, HOPELESS, ProbeNetwork
from HybridMIMLib.machine_notes import recall, remember
from HybridMIMLib.networks import initial_weights
from HybridMIMLib.networks.device import device_in_words, wait_for

FILE = "precision.json"
"""Where a run keeps its choice, so that it goes on as it began."""
_SECTION = "training in bfloat16"
_SMALLEST_SIDE = 4
"""Voxels along each side of the coarsest feature map: with fewer, PyTorch 2.13 (oneDNN, AVX-512) reads memory that
was never written in the weight gradient of a bfloat16 convolution on the CPU, so that a training may end at any step
in what is no number."""
_TINY = 8
"""Voxels along a side of the crops on which bfloat16 is tried first."""


class Bench(Protocol):
    """Times training steps."""

    def ratio(self, tiny: bool) -> float:
        """Time of a step in bfloat16 as a share of that in float32; infinite where the device cannot do it.

        Args:
            tiny: on tiny crops.
        """


def in_precision(precision: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Let a network compute in it; the backward pass follows by itself."""
    if precision == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=precision)


def settle_precision(
    wanted: str,
    device: torch.device,
    folder: Path,
    events: EventLog,
    side: int,
    pays: Callable[[torch.device], bool] | None = None,
) -> torch.dtype:
    """The precision to train in; a run that goes on keeps the one it began with.

    Args:
        wanted: as in the settings: auto, float32 or half.
        device: that trains.
        folder: of the stage, where the choice is kept.
        events: where to tell.
        side: voxels along the shortest side of the network's coarsest feature map.
        pays: whether a device gains by bfloat16; None: it is tried out, once for each machine.

    Raises:
        SettingsError: half precision was asked for, and the device gains nothing by it, or cannot be trusted with it.
    """
    if wanted == "float32":
        return torch.float32
    if device.type == "cpu" and side < _SMALLEST_SIDE:
        if wanted == "half":
            raise SettingsError(
                f"finetuning.precision is half, and the coarsest feature map has {side} voxel(s) along a side, where "
                "bfloat16 on the CPU gives what is no number",
                cure="Set finetuning.precision to auto, or enlarge plan.crop.",
            )
        return torch.float32
    kept = _kept(folder / FILE) if (folder / "checkpoint.pt").exists() else None
    half = takes_half(wanted, device, pays) if kept is None else kept
    write_json(folder / FILE, {"half": half})
    if half:
        events.message(f"half precision (bfloat16) on {device_in_words(device)}")
    return torch.bfloat16 if half else torch.float32


def takes_half(wanted: str, device: torch.device, pays: Callable[[torch.device], bool] | None = None) -> bool:
    """Whether to train in bfloat16; see :func:`settle_precision`.

    Raises:
        SettingsError: half precision was asked for, and the device gains nothing by it.
    """
    if wanted == "float32":
        return False
    # A GPU that is asked to need not be tried; on a CPU half precision may take hundreds of times longer.
    asked = wanted == "half" and device.type != "cpu"
    half = has_bfloat16(device) if asked else (pays or half_pays)(device)
    if wanted == "half" and not half:
        raise SettingsError(
            f"finetuning.precision is half, and {device_in_words(device)} gains nothing by bfloat16",
            cure="Set finetuning.precision to auto.",
        )
    return half


def half_pays(device: torch.device, bench: Callable[[torch.device], Bench] | None = None) -> bool:
    """Whether a device trains faster in bfloat16, as noted on this machine; where nothing is, it is tried out."""
    if not has_bfloat16(device):
        return False
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    key = f"{device_in_words(device)}{threads}, {platform.node()}, PyTorch {torch.__version__}"
    noted = recall(_SECTION, key)
    if isinstance(noted, bool):
        return noted
    found = is_faster((bench or StepBench)(device))
    remember(_SECTION, key, found)
    return found


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself. Apple GPUs are left out: none could be tried."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu"


def is_faster(bench: Bench) -> bool:
    """Whether steps in bfloat16 take clearly less time; where tiny ones are hopeless, no others are tried."""
    return bench.ratio(tiny=True) <= HOPELESS and bench.ratio(tiny=False) < HALF_PAYS


class StepBench:
    """Times training steps of a small network that has the layers of ours.

    Args:
        device: to try.
        repeats: of which the fastest counts.
    """

    def __init__(self, device: torch.device, repeats: int = 3) -> None:
        self._device, self._repeats = device, repeats
        width, self._side = (16, 24) if device.type == "cpu" else (32, 64)
        with initial_weights(0, "probe"):
            self._network = ProbeNetwork(width).to(device)
        self._crops = torch.rand((2, 1, *(self._side,) * 3), generator=torch.Generator().manual_seed(0)).to(device)

    def ratio(self, tiny: bool) -> float:
        """See :meth:`Bench.ratio`."""
        side = _TINY if tiny else self._side
        crops = self._crops[..., :side, :side, :side].contiguous()
        times: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
        try:
            # In turn, because others may be using the machine. The first step is slow on any device: it chooses
            # kernels.
            for _ in range(self._repeats + 1):
                for precision, seconds in times.items():
                    seconds.append(self._timed(crops, precision))
        except RuntimeError:  # not implemented there, or too much memory; both are RuntimeErrors
            return math.inf
        return min(times[torch.bfloat16]) / min(times[torch.float32])

    def _timed(self, crops: torch.Tensor, precision: torch.dtype) -> float:
        began = time.perf_counter()
        with in_precision(precision, self._device):
            scores = self._network(crops)
        scores.float().square().mean().backward()
        self._network.zero_grad(set_to_none=True)
        wait_for(self._device)
        return time.perf_counter() - began


def _kept(file: Path) -> bool | None:
    try:
        half = read_json(file)["half"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return half if isinstance(half, bool) else None
