"""Weights on disk: safetensors, with a description in the header; strict on the way in.

A safetensors file holds numbers and text alone, so that opening one from a stranger runs nothing. What was trained by
a run and goes on is put back whole (:func:`restore`); to begin from a pre-training, see
:mod:`HybridMIMLib.transfer`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from HybridMIMLib.errors import ModelError
from HybridMIMLib.files import atomic_path

_KEY = "hybridmim"


def save_weights(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and a description that JSON can hold.

    Raises:
        DiskError: the file could not be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata={_KEY: json.dumps(description)})


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description that :func:`save_weights` wrote.

    Raises:
        ModelError: the file is missing, damaged, or was written by something else.
    """
    check_there(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        description = json.loads(header[_KEY])
        if not isinstance(description, dict):
            raise ValueError("the description is no section")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ModelError(
            f"{path}: is not a weights file of HybridMIM, or is damaged",
            cure="Give a file that a HybridMIM run wrote.",
        ) from error
    return tensors, description


def check_there(path: Path) -> None:
    """See whether there is such a file.

    Raises:
        ModelError: there is none.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file", cure="Check the path.")


def restore(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Put tensors into a module; every name and every shape must fit.

    Raises:
        ModelError: names or shapes differ; nothing was copied.
    """
    own = module.state_dict()
    missing, unknown = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    other_shape = sorted(n for n in set(own) & set(tensors) if own[n].shape != tensors[n].shape)
    for problem, names in (("lacks", missing), ("has unknown", unknown), ("has other shapes for", other_shape)):
        if names:
            raise ModelError(
                f"{source}: {problem} {len(names)} tensor(s), the first is {names[0]}",
                cure="Use the network settings with which the weights were trained.",
            )
    module.load_state_dict(dict(tensors))
