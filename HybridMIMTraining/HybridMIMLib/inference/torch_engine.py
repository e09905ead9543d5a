"""What computes a network on windows, and the one that always can: PyTorch itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from HybridMIMLib.networks.device import device_in_words, empty_cache


class Engine(ABC):
    """Computes a network on windows of one size.

    Attributes:
        device: where windows are wanted and scores come back.
        batch: windows at once.
        name: what computes, for people.
    """

    device: torch.device
    batch: int
    name: str

    @abstractmethod
    def __call__(self, windows: Tensor) -> Tensor:
        """Scores (B, outputs, D, H, W) float32 of windows (B, C, D, H, W) float32, both on the device.

        The network computes in eval mode and is given back as it was. The scores have no gradients; PyTorch lets
        nobody change them in place outside ``torch.inference_mode``.
        """

    @abstractmethod
    def on(self, device: torch.device, batch: int) -> Engine:
        """An engine for the same network in another place, in place of this one, which is to be used no more."""

    @abstractmethod
    def close(self) -> None:
        """Free the device. :meth:`on` makes an engine again."""


class TorchEngine(Engine):
    """PyTorch, on any device.

    It computes with the weights that the network has at the time: nothing is copied or frozen, so that a network can
    be looked at while it is trained.

    Args:
        network: (B, C, D, H, W) → scores (B, outputs, D, H, W); it is moved to the device.
        device: where to compute.
        batch: windows at once.
        precision: of convolutions and products; the others choose for themselves (autocast).
        memory_format: how weights and windows lie in memory.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        batch: int = 4,
        precision: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.network = _brought(network, device, memory_format)
        self.device, self.batch = device, batch
        self.precision, self.memory_format = precision, memory_format
        self.name = self._name()

    def __call__(self, windows: Tensor) -> Tensor:
        """See :meth:`Engine.__call__`.

        Half precision ends at 65504. A network that goes beyond has no scores there, which would count as background:
        from then on it is computed in float32.
        """
        scores = self._computed(windows)
        if self.precision != torch.float32 and not bool(scores.sum().isfinite()):
            self.precision = torch.float32
            self.name = self._name()
            scores = self._computed(windows)
        return scores

    def _computed(self, windows: Tensor) -> Tensor:
        with in_eval_mode(self.network), torch.inference_mode(), self._autocast():
            scores: Tensor = self.network(windows.contiguous(memory_format=self.memory_format))
        return scores.float()

    def _name(self) -> str:
        half = "" if self.precision == torch.float32 else ", half precision"
        return f"PyTorch on {device_in_words(self.device)}{half}"

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def on(self, device: torch.device, batch: int) -> TorchEngine:
        """See :meth:`Engine.on`; what suits this device need not suit another, so there it is plain float32."""
        if device == self.device:
            return TorchEngine(self.network, device, batch, self.precision, self.memory_format)
        before, engine = self.device, TorchEngine(self.network, device, batch)
        empty_cache(before)
        return engine

    def close(self) -> None:
        """See :meth:`Engine.close`; the network waits in the machine's memory."""
        self.network.to("cpu")
        empty_cache(self.device)


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Let a network compute as after training; afterwards each of its parts is in the mode it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _brought(network: nn.Module, device: torch.device, memory_format: torch.memory_format) -> nn.Module:
    """The network itself, its 3D weights in the memory format."""
    network.to(device)
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=_of_weights(memory_format))
    return network


def _of_weights(memory_format: torch.memory_format) -> torch.memory_format:
    return torch.channels_last_3d if memory_format == torch.channels_last_3d else torch.contiguous_format
