"""Published checkpoints (``.pt``, ``.pth``, ``.ckpt``): read as tensors alone, their names brought to ours.

Such a file is a pickle, which could run anything. It is read with torch's ``weights_only``, which makes tensors,
containers and plain values and refuses all else; what people often keep beside their weights (numpy's numbers, the
options of a command line) is passed over without being made.

Networks here have the names of MONAI's classes. Others differ by wrappers in front (``module.`` of several GPUs), by
the encoder's name in front, left out or added (``swinViT.``), and by two spellings within:

- ``mlp.fc1``, ``mlp.fc2`` in MONAI's self-supervised weights of SwinUNETR (``model_swinvit.pt``, Tang et al.,
  arXiv:2111.14791), ours ``mlp.linear1``, ``mlp.linear2``; what is mapped is what ``SwinUNETR.load_from`` reads.
- ``encoder.layers1.0.0`` in those of Disruptive Autoencoders (arXiv:2307.16896), ours ``swinViT.layers1.0``, as in
  ``monai.networks.nets.swin_unetr.filter_swinunetr``.

Neither mapping was tried on the published files themselves, but on files made with their names.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from HybridMIMLib.errors import ModelError
from HybridMIMLib.networks.interface import EncoderDecoder
from HybridMIMLib.weights import check_there

_NESTED = ("state_dict", "model_state_dict", "network_weights", "model_state", "model", "network", "net", "module")
"""Under which of its names a checkpoint may hold the weights; the last is that of our own."""
WRAPPERS = ("module", "model", "net", "network", "backbone", "encoder", "_orig_mod")
"""First parts of names that wrap a network, in any number."""
_SPELLINGS = (
    (re.compile(r"\bmlp\.fc([12])\."), r"mlp.linear\1."),
    (re.compile(r"\b(layers\d\.0)\.0\."), r"\1."),
)
_PASSED_OVER = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "argparse.Namespace",
)


@dataclass(frozen=True)
class Checkpoint:
    """What was found in a file.

    Attributes:
        tensors: by their names in the file, on the CPU.
        beside: names of what else the file holds, which is not used.
    """

    tensors: dict[str, Tensor]
    beside: list[str]


class _Ignored:
    """Stands for what is passed over; takes whatever the original was made of, and keeps nothing."""

    def __new__(cls, *_: object) -> _Ignored:
        return object.__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def read_checkpoint(path: Path) -> Checkpoint:
    """The weights in a file that torch saved.

    Raises:
        ModelError: the file is missing, damaged, is no checkpoint, or holds more than tensors and plain values.
    """
    check_there(path)
    try:
        with safe_globals([(_Ignored, name) for name in _PASSED_OVER]), warnings.catch_warnings():
            # torch asks its users to report pickles of other protocols; what is wrong is said below.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle may raise anything
        raise _refusal(path, error) from error
    beside = []
    while isinstance(content, Mapping) and (found := _nested(content)):
        beside += [str(name) for name in content if name != found]
        content = content[found]
    named = dict(content) if isinstance(content, Mapping) else {}
    tensors = {name: one.detach() for name, one in named.items() if isinstance(name, str) and _is_plain(one)}
    if not tensors:
        raise ModelError(
            f"{path}: holds no tensors by name",
            cure=f"Give a file that holds a state dict, at its top or under one of: {', '.join(_NESTED)}.",
        )
    return Checkpoint(tensors, [*beside, *(str(name) for name in named if name not in tensors)])


def own_names(names: Iterable[str], backbone: EncoderDecoder) -> dict[str, str]:
    """For names in a file the name that the network has for each; those that it does not know are left out."""
    own = set(backbone.state_dict())
    # Only an encoder that is one module may have been saved without its name.
    inner = backbone.encoder_parts if len(backbone.encoder_parts) == 1 else ()
    found = {name: _own_name(name, own, inner) for name in names}
    return {name: one for name, one in found.items() if one is not None}


def _own_name(name: str, own: set[str], inner: tuple[str, ...]) -> str | None:
    for spelling, ours in _SPELLINGS:
        name = spelling.sub(ours, name)
    while name:
        for candidate in (name, *(f"{part}.{name}" for part in inner)):
            if candidate in own:
                return candidate
        first, _, name = name.partition(".")
        if first not in (*WRAPPERS, *inner):
            return None
    return None


def _nested(content: Mapping[Any, Any]) -> str | None:
    return next((name for name in _NESTED if isinstance(content.get(name), Mapping)), None)


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def _refusal(path: Path, error: Exception) -> ModelError:
    if refused := re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error)):
        return ModelError(
            f"{path}: holds more than tensors ({refused[1]}), which could run code when it is opened",
            cure="Ask its makers for the state dict alone, or for safetensors; nothing of the file was run.",
        )
    return ModelError(
        f"{path}: is no checkpoint that torch saved, or is damaged",
        cure="Get the file again, or give the run folder of a pre-training.",
    )
