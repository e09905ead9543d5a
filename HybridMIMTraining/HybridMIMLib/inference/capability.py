"""What the devices of this machine can do: tried out once, on a small network, and kept.

Whether half precision pays, how weights should lie in memory and how many windows to compute at once depend on the
device and on the build of PyTorch, and no table of devices stays right: half precision on a CPU without instructions
for it is hundreds of times slower, and channels-last layouts are slower on some GPUs because of their norm layers
(pytorch#59168). Apple GPUs have computed wrong 3D convolutions in some versions of macOS, so what a GPU computes is
compared with the CPU before any scan is given to it.

Results are kept by machine, device and version of PyTorch, see :mod:`HybridMIMLib.machine_notes`.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from HybridMIMLib.inference.ladder import is_out_of_memory
from HybridMIMLib.inference.torch_engine import TorchEngine
from HybridMIMLib.machine_notes import recall, remember
from HybridMIMLib.networks import initial_weights
from HybridMIMLib.networks.device import choose_device, device_in_words, wait_for

BATCHES = (1, 2, 4)
WITHIN = 1.05
"""A batch is as good as the best if it takes no longer than so many times its time a window."""
HALF_PAYS, LAYOUT_PAYS = 0.8, 0.9
"""Shares of the time of the plain way below which half precision or channels last are chosen."""
HOPELESS = 3.0
"""Half precision that takes so many times longer on a tiny window is not tried on a larger one."""
AGREES, HALF_AGREES = 0.01, 0.003
"""Largest differences of scores from those of the CPU in float32, as shares of the largest score: of a device at all,
and in half precision. GPUs that round the factors of products to 10 bits (TF32) differ by about 0.001, and so does
float16 (0.0007, measured); wrong kernels by far more. bfloat16 has 7 bits (0.006), which moves labels."""
TINY, SMALL = 8, 16
"""Voxels along a side of the windows on which half precision is tried first, and on which scores are compared."""
_PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Capability:
    """How to compute on a device.

    Attributes:
        trusted: its scores are those of the CPU.
        precision: float32, or a half precision where that is faster and agrees.
        channels_last: whether weights and windows should lie with their channels last.
        batch: windows at once.
    """

    trusted: bool = True
    precision: torch.dtype = torch.float32
    channels_last: bool = False
    batch: int = 1

    @property
    def memory_format(self) -> torch.memory_format:
        """As PyTorch calls it."""
        return torch.channels_last_3d if self.channels_last else torch.contiguous_format

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        precision = str(self.precision).removeprefix("torch.")
        return {**self.__dict__, "precision": precision}

    @staticmethod
    def from_json(content: Any) -> Capability:
        """What :meth:`to_json` made.

        Raises:
            KeyError, TypeError, ValueError: it was not made by that.
        """
        trusted, channels_last, batch = content["trusted"], content["channels_last"], content["batch"]
        if type(trusted) is not bool or type(channels_last) is not bool or batch not in BATCHES:
            raise ValueError(f"no capability: {content}")
        return Capability(trusted, _PRECISIONS[content["precision"]], channels_last, int(batch))


@dataclass(frozen=True)
class Trial:
    """One way to compute, to be timed.

    Attributes:
        precision, channels_last, batch: as in :class:`Capability`.
        tiny: on a tiny window.
    """

    precision: torch.dtype = torch.float32
    channels_last: bool = False
    batch: int = 1
    tiny: bool = False


class Bench(Protocol):
    """Tries a device out."""

    def seconds(self, trial: Trial) -> float:
        """Seconds a window; infinite where it cannot be computed."""

    def difference(self, precision: torch.dtype) -> float:
        """Largest difference of scores from the CPU's in float32, as a share of the largest; NaN or infinite where
        they cannot be compared."""


def decide(bench: Bench, half: torch.dtype) -> Capability:
    """What follows from trying a device out.

    Args:
        bench: tries it.
        half: the half precision that the device may have.
    """
    if not bench.difference(torch.float32) <= AGREES:
        return Capability(trusted=False)
    best = Trial()
    seconds = bench.seconds(best)
    if _half_pays(bench, half, seconds):
        best = replace(best, precision=half)
        seconds = bench.seconds(best)
    last = replace(best, channels_last=True)
    if bench.seconds(last) < LAYOUT_PAYS * seconds:
        best = last
    times = {batch: bench.seconds(replace(best, batch=batch)) for batch in BATCHES}
    batch = next(batch for batch in BATCHES if times[batch] <= WITHIN * min(times.values()))
    return Capability(True, best.precision, best.channels_last, batch)


def _half_pays(bench: Bench, half: torch.dtype, seconds: float) -> bool:
    tiny = Trial(tiny=True)
    if bench.seconds(replace(tiny, precision=half)) > HOPELESS * bench.seconds(tiny):
        return False
    return bench.seconds(Trial(half)) < HALF_PAYS * seconds and bench.difference(half) <= HALF_AGREES


class DeviceBench:
    """Tries a device out with a small network that has the layers of ours.

    Args:
        device: to try.
        width: channels of the network.
        side: voxels along a side of a window.
        repeats: of which the fastest counts: others may be using the machine.
    """

    def __init__(self, device: torch.device, width: int, side: int, repeats: int = 3) -> None:
        self.device, self.side, self.repeats = device, side, repeats
        with initial_weights(0, "probe"):
            self._network = ProbeNetwork(width).eval()
        generator = torch.Generator().manual_seed(0)
        self._window = torch.rand((1, 1, side, side, side), generator=generator)
        self._reference = TorchEngine(self._network, torch.device("cpu"))(self._windows(SMALL))

    def seconds(self, trial: Trial) -> float:
        """See :meth:`Bench.seconds`."""
        try:
            engine = TorchEngine(
                self._network,
                self.device,
                precision=trial.precision,
                memory_format=torch.channels_last_3d if trial.channels_last else torch.contiguous_format,
            )
            side = TINY if trial.tiny else self.side
            windows = self._windows(side, trial.batch).to(self.device)
            # The first call is slow on any device: it chooses kernels.
            return min(self._timed(engine, windows) for _ in range(self.repeats + 1)) / trial.batch
        except RuntimeError as error:  # not implemented there, or too much memory; both are RuntimeErrors
            if trial.batch == 1:
                self._pass_on_full_memory(error)
            return math.inf

    def difference(self, precision: torch.dtype) -> float:
        """See :meth:`Bench.difference`."""
        try:
            engine = TorchEngine(self._network, self.device, precision=precision)
            scores = engine(self._windows(SMALL).to(self.device)).cpu()
        except RuntimeError as error:
            self._pass_on_full_memory(error)
            return math.inf
        return relative_difference(scores, self._reference)

    def _pass_on_full_memory(self, error: RuntimeError) -> None:
        """A GPU that cannot hold even this is in use by somebody else: nothing was learnt about it."""
        if self.device.type != "cpu" and is_out_of_memory(error):
            raise error

    def _windows(self, side: int, batch: int = 1) -> Tensor:
        return self._window[..., :side, :side, :side].repeat(batch, 1, 1, 1, 1)

    def _timed(self, engine: TorchEngine, windows: Tensor) -> float:
        began = time.perf_counter()
        engine(windows)
        wait_for(self.device)
        return time.perf_counter() - began


class ProbeNetwork(nn.Module):
    """A U of two levels: convolutions, instance norm, transposed convolution and interpolation.

    Args:
        width: channels of the upper level.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _block(1, width, stride=1)
        self.down = _block(width, 2 * width, stride=2)
        self.up = nn.ConvTranspose3d(2 * width, width, 2, stride=2)
        self.last = _block(2 * width, width, stride=1)
        self.head = nn.Conv3d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, 3, D, H, W) of windows (B, 1, D, H, W) with even sides."""
        fine = self.first(x)
        coarse = self.down(fine)
        smooth = F.interpolate(coarse[:, : fine.shape[1]], scale_factor=2, mode="trilinear")
        scores: Tensor = self.head(self.last(torch.cat([self.up(coarse) + smooth, fine], dim=1)))
        return scores


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1)
    return nn.Sequential(convolution, nn.InstanceNorm3d(outputs, affine=True), nn.LeakyReLU(0.01))


def relative_difference(scores: Tensor, reference: Tensor) -> float:
    """Largest difference as a share of the largest reference; NaN where either has one."""
    largest = float(reference.abs().max())
    return float((scores - reference).abs().max()) / max(largest, torch.finfo(torch.float32).tiny)


def probe(device: torch.device) -> Capability:
    """Try a device out. It takes under a second on a CPU, and on a GPU as long as that takes to wake up."""
    if device.type == "cpu":
        return decide(DeviceBench(device, width=16, side=24), torch.bfloat16)
    return decide(DeviceBench(device, width=32, side=64), torch.float16)


def capability_of(device: torch.device, probe: Callable[[torch.device], Capability] = probe) -> Capability:
    """What a device can do, as kept in the workspace; it is tried out where nothing is kept.

    Raises:
        RuntimeError: a GPU has too little free memory to be tried out.
    """
    key = _key(device)
    with suppress(KeyError, TypeError, ValueError):
        return Capability.from_json(recall("devices", key))
    found = probe(device)
    remember("devices", key, found.to_json())
    return found


def inference_device(
    name: str,
    tell: Callable[[str], None],
    capability: Callable[[torch.device], Capability] = capability_of,
) -> torch.device:
    """The device called ``name``; ``auto`` takes a GPU whose scores are those of the CPU, else the CPU.

    Args:
        name: as in the settings.
        tell: is given a sentence for the user where a GPU is passed over.
        capability: says what a device can do.

    Raises:
        SettingsError: there is no such device.
    """
    device = choose_device(name, mps=True)
    why = "does not compute the same"
    try:
        if device.type == "cpu" or capability(device).trusted:
            return device
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        why = "has no memory left: other programs use it"
    tell(f"The CPU is used, because {device_in_words(device)} {why}.")
    return torch.device("cpu")


def _key(device: torch.device) -> str:
    """Device, machine and PyTorch; a change of any of them may change what can be done."""
    words = {
        "cuda": device_in_words(device),
        "mps": f"the Apple GPU, macOS {platform.mac_ver()[0]}",
        "cpu": f"the CPU ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)",
    }
    return f"{words[device.type]}, {platform.node()}, PyTorch {torch.__version__}"
