"""Which device to compute on, and what people call it."""

from __future__ import annotations

import torch

from HybridMIMLib.errors import SettingsError

KINDS = ("cpu", "cuda", "mps")


def choose_device(name: str, mps: bool = False) -> torch.device:
    """The device called ``name``; ``auto`` takes CUDA where there is one, else the CPU.

    Args:
        name: auto, cpu, cuda, cuda:1 or mps.
        mps: let ``auto`` take an Apple GPU before the CPU. Training does not: their 3D operations differ too much
            between macOS versions. Inference does, and compares it with the CPU first.

    Raises:
        SettingsError: there is no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if mps and torch.backends.mps.is_available() else "cpu")
    device = _named(name)
    count = torch.cuda.device_count() if device.type == "cuda" else int(torch.backends.mps.is_available())
    if device.type != "cpu" and (device.index or 0) >= count:
        raise SettingsError(
            f"device {name} is not there: PyTorch {torch.__version__} finds {count} of its kind",
            cure="Use --device auto, or install a PyTorch build for this device.",
        )
    return device


def _named(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in KINDS:
        raise SettingsError(f"there is no device {name!r}", cure="Use --device auto, cpu, cuda, cuda:1 or mps.")
    return device


def device_in_words(device: torch.device) -> str:
    """What a device is called in a sentence."""
    if device.type == "cuda":
        return f"the GPU ({torch.cuda.get_device_name(device)})"
    return {"cpu": "the CPU", "mps": "the Apple GPU"}.get(device.type, str(device))


def wait_for(device: torch.device) -> None:
    """Return when the device has done all it was given; a GPU works while Python goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def empty_cache(device: torch.device) -> None:
    """Hand back what PyTorch holds of a GPU's memory without using it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
