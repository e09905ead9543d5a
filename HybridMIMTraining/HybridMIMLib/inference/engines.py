"""Which engine computes a network: PyTorch, or OpenVINO where that is installed, right and faster."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from HybridMIMLib.errors import SettingsError
from HybridMIMLib.inference.capability import Capability, capability_of, inference_device, relative_difference
from HybridMIMLib.inference.ladder import is_out_of_memory
from HybridMIMLib.inference.openvino_engine import OpenVINOEngine, is_installed, load_openvino
from HybridMIMLib.inference.torch_engine import Engine, TorchEngine
from HybridMIMLib.machine_notes import recall, remember
from HybridMIMLib.networks.device import device_in_words, empty_cache
from HybridMIMLib.settings.inference import InferenceSettings

__all__ = ["Engine", "OpenVINOEngine", "TorchEngine", "choose_engine"]

Triple = tuple[int, int, int]
Tell = Callable[[str], None]
CPU = torch.device("cpu")
SAME = 1e-3
"""Largest difference of OpenVINO's scores from PyTorch's, as a share of the largest score."""
_SECTION, _VERDICTS = "engines", ("faster", "slower", "wrong")
_LONG_ENOUGH = 0.5
"""Seconds after which a time is believed."""


def choose_engine(
    network: nn.Module, channels: int, crop: Triple, settings: InferenceSettings, device: str, tell: Tell
) -> Engine:
    """The engine that suits the network, the device and the settings.

    OpenVINO is compared with PyTorch on one window before it is trusted, and with ``engine=auto`` used only if it is
    no slower; both are kept for the network on this machine.

    Args:
        network: (B, C, D, H, W) → scores (B, outputs, D, H, W); it is moved to the device.
        channels: of a window.
        crop: voxels of a window along each axis.
        settings: engine, precision and window_batch count.
        device: as in the settings: auto, cpu, cuda, cuda:1, mps.
        tell: is given a sentence for the user where something else is used than what could be expected.

    Raises:
        SettingsError: device, engine or precision cannot be had.
    """
    if settings.engine == "openvino":
        device = _device_for_openvino(device)
    place = inference_device(device, tell)
    if place.type == "cpu" and settings.engine != "torch" and settings.precision != "half" and is_installed():
        engine = _openvino(network, channels, crop, settings, tell)
        if engine is not None:
            return engine
    can = capability_of(place)
    batch, precision = settings.window_batch or can.batch, _precision(settings.precision, place, can)
    try:
        return TorchEngine(network, place, batch, precision, can.memory_format)
    except RuntimeError as error:
        if place.type == "cpu" or not is_out_of_memory(error):
            raise
    # Outside the except block, whose error holds what is on the device already.
    network.to(CPU)
    empty_cache(place)
    tell(f"The CPU is used, because the network does not fit into the memory of {device_in_words(place)}.")
    return choose_engine(network, channels, crop, replace(settings, precision="float32"), "cpu", tell)


def _device_for_openvino(device: str) -> str:
    """The CPU, if nothing else was asked for."""
    if device not in ("auto", "cpu"):
        raise SettingsError(
            f"inference.engine is openvino, which computes on the CPU, and device is {device}",
            cure="Set device to cpu, or inference.engine to auto.",
        )
    if not is_installed():
        raise SettingsError(
            "inference.engine is openvino, and it is not installed",
            cure="Install it with: python -m pip install openvino, or set inference.engine to auto.",
        )
    return "cpu"


def _precision(wanted: Literal["auto", "float32", "half"], place: torch.device, can: Capability) -> torch.dtype:
    if wanted == "float32":
        return torch.float32
    if wanted == "half" and can.precision == torch.float32:
        if place.type == "cpu":
            raise SettingsError(
                "inference.precision is half, which is for GPUs, and the CPU computes",
                cure="Set inference.precision to auto, or choose a GPU with --device.",
            )
        return torch.float16
    return can.precision


def _openvino(
    network: nn.Module, channels: int, crop: Triple, settings: InferenceSettings, tell: Tell
) -> OpenVINOEngine | None:
    """OpenVINO, or None where PyTorch is to be used."""
    # Measured: more windows at once gain nothing, neither with a tiny network nor with a large one.
    batch = settings.window_batch or 1
    try:
        key = _key(network, (batch, channels, *crop))
        engine, verdict = None, recall(_SECTION, key)
        if verdict not in _VERDICTS:
            engine = OpenVINOEngine(network, channels, crop, batch)
            verdict = _compared(engine)
            remember(_SECTION, key, verdict)
        if verdict == "wrong":
            tell("PyTorch computes, because the scores of OpenVINO for this network are not the same.")
        if verdict == "wrong" or (verdict == "slower" and settings.engine == "auto"):
            return None
        return engine or OpenVINOEngine(network, channels, crop, batch)
    except Exception as error:
        # OpenVINO raises whatever comes up in its many parts. Nothing is lost: PyTorch computes the same.
        tell(f"PyTorch computes, because OpenVINO cannot take this network ({_first_line(error)}).")
        return None


def _compared(engine: OpenVINOEngine) -> str:
    """How OpenVINO does beside PyTorch, on one batch of windows: faster, slower or wrong."""
    shape = (engine.batch, engine.channels, *engine.crop)
    windows = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    scores, seconds = _timed(engine, windows)
    reference, of_torch = _timed(TorchEngine(engine.network, CPU, engine.batch), windows)
    if not relative_difference(scores, reference) <= SAME:
        return "wrong"
    return "faster" if seconds <= of_torch else "slower"


def _timed(engine: Engine, windows: Tensor) -> tuple[Tensor, float]:
    """Scores, and the seconds that they took; the fastest of a few times where it is quick."""
    times: list[float] = []
    while sum(times) < _LONG_ENOUGH and len(times) < 4:
        began = time.perf_counter()
        scores = engine(windows)
        times.append(time.perf_counter() - began)
    return scores, min(times)


def _key(network: nn.Module, shape: tuple[int, ...]) -> str:
    """The network to its last weight, the windows, and what computes them."""
    digest = hashlib.blake2b(repr(network).encode(), digest_size=16)
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().to(CPU).contiguous().flatten().view(torch.uint8).numpy())
    versions = f"PyTorch {torch.__version__}, OpenVINO {load_openvino().__version__}"
    return f"{digest.hexdigest()} {shape}, {torch.get_num_threads()} threads, {platform.node()}, {versions}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
