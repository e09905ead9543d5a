"""OpenVINO: computes a network on a CPU, faster than PyTorch on most. Optional, found at run time.

The network is traced and translated, its weights frozen, for windows of one size and number.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from HybridMIMLib.inference.torch_engine import Engine, in_eval_mode

CPU = torch.device("cpu")
Triple = tuple[int, int, int]


def is_installed() -> bool:
    """Whether there is an OpenVINO; it is not loaded."""
    return importlib.util.find_spec("openvino") is not None


def load_openvino() -> Any:
    """The module, kept from telling its makers about its use.

    On import it sends a notice, without asking, through the package openvino-telemetry; where that is missing it
    goes without.

    Raises:
        ImportError: it is not installed, or broken.
    """
    # None makes an import fail as if the package were not there.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


class OpenVINOEngine(Engine):
    """OpenVINO on the CPU, in float32, with as many threads as PyTorch.

    Args:
        network: (B, C, D, H, W) → scores (B, outputs, D, H, W). Its weights are those of this moment.
        channels: of a window.
        crop: voxels of a window along each axis.
        batch: windows at once. Fewer are filled up, more are computed in turns.

    Raises:
        ImportError: there is no OpenVINO.
        Exception: of whatever kind OpenVINO raises where it cannot translate the network.
    """

    device = CPU

    def __init__(self, network: nn.Module, channels: int, crop: Triple, batch: int = 1) -> None:
        self.network, self.channels, self.crop, self.batch = network.to(CPU), channels, crop, batch
        self.name = f"OpenVINO {load_openvino().__version__.partition('-')[0]} on the CPU"
        self._request = self._made()

    def _made(self) -> Any:
        shape = (self.batch, self.channels, *self.crop)
        return _compiled(load_openvino(), self.network, shape).create_infer_request()

    def __call__(self, windows: Tensor) -> Tensor:
        """See :meth:`Engine.__call__`."""
        with _memory_errors():
            if self._request is None:
                self._request = self._made()
            return torch.cat([self._computed(part) for part in windows.split(self.batch)])

    def _computed(self, windows: Tensor) -> Tensor:
        count = len(windows)
        if count < self.batch:
            windows = torch.cat([windows, windows.new_zeros((self.batch - count, *windows.shape[1:]))])
        results = self._request.infer([windows.contiguous().numpy()], share_inputs=True, share_outputs=True)
        # A copy: the next windows' scores are written to the same place.
        return torch.from_numpy(results[0][:count]).clone()

    def on(self, device: torch.device, batch: int) -> Engine:
        """See :meth:`Engine.on`.

        Raises:
            ValueError: the device is not the CPU.
        """
        if device.type != "cpu":
            raise ValueError(f"OpenVINO computes on the CPU, not on {device}")
        self.close()
        return OpenVINOEngine(self.network, self.channels, self.crop, batch)

    def close(self) -> None:
        """See :meth:`Engine.close`; a later call makes it anew."""
        self._request = None


def _compiled(openvino: Any, network: nn.Module, shape: tuple[int, ...]) -> Any:
    with in_eval_mode(network), torch.no_grad(), warnings.catch_warnings():
        # Tracing warns of every size that it takes for a constant; that is what is wanted here.
        warnings.simplefilter("ignore")
        # Traced here, because OpenVINO would trace it twice, to compare; frozen, because it gets the sizes of
        # SwinUNETR's windows wrong where they are not constants.
        traced = torch.jit.freeze(torch.jit.trace(network, torch.zeros(shape), check_trace=False))
        model = openvino.convert_model(traced, input=[(list(shape), openvino.Type.f32)])
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # it would take bfloat16 by itself on CPUs that are fast with it
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # two programs would be pinned to the same cores
    }
    return openvino.Core().compile_model(model, "CPU", settings)


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Raise a full memory as what it is; OpenVINO wraps it."""
    try:
        yield
    except RuntimeError as error:
        if "bad_alloc" in str(error):
            raise MemoryError(str(error)) from error
        raise
