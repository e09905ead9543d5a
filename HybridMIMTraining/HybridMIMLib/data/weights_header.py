"""What a safetensors file says it holds, checked before the file is read, and without torch.

The format (huggingface/safetensors): 8 bytes with the length of a header, the header as JSON with the type, the shape
and the place of each tensor, and the numbers, without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Of a number of each type that may be in a file."""
LONGEST_HEADER = 4 * 2**20
_DESCRIPTION = "__metadata__"


@dataclass(frozen=True)
class WeightsHeader:
    """What is in a file of weights.

    Attributes:
        shapes: of each tensor, by name.
        description: texts that were stored with it.
    """

    shapes: Mapping[str, tuple[int, ...]]
    description: Mapping[str, str]


def read_header(read: Callable[[int], bytes], size: int) -> WeightsHeader:
    """Read and check a header.

    Args:
        read: the next bytes of the file, from its first on, as many as asked for.
        size: bytes of the whole file.

    Raises:
        ValueError: it is no safetensors file, or its header does not describe it to the last byte.
    """
    length = int.from_bytes(read(8), "little")
    if not 2 <= length <= min(LONGEST_HEADER, size - 8):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    try:
        content = json.loads(read(length).decode("utf-8"), object_pairs_hook=_without_twins)
    except RecursionError as error:
        raise ValueError("the header is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("the header is no section")
    description = content.pop(_DESCRIPTION, {})
    if not isinstance(description, dict) or not all(isinstance(text, str) for text in description.values()):
        raise ValueError("the description is no section of texts")
    places = sorted(_place(name, tensor) for name, tensor in content.items())
    ends = [0, *(end for _, end in places)]
    if any(first != end for (first, _), end in zip(places, ends)) or ends[-1] != size - 8 - length:
        raise ValueError("its tensors have gaps, or do not fill the file")
    return WeightsHeader({name: tuple(tensor["shape"]) for name, tensor in content.items()}, description)


def _place(name: str, tensor: Any) -> tuple[int, int]:
    """First byte of a tensor, and the one behind its last."""
    if not isinstance(tensor, dict) or set(tensor) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} is no tensor")
    is_known = isinstance(tensor["dtype"], str) and tensor["dtype"] in BYTES
    if not is_known or not _are_sizes(tensor["shape"]) or not _are_sizes(tensor["data_offsets"]):
        raise ValueError(f"{name} has a type, a shape or a place that no tensor has")
    if len(tensor["shape"]) > 8 or len(tensor["data_offsets"]) != 2:
        raise ValueError(f"{name} has too many axes, or no place")
    first, end = tensor["data_offsets"]
    if end - first != BYTES[tensor["dtype"]] * prod(tensor["shape"]):
        raise ValueError(f"{name} has another size than its shape says")
    return first, end


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**40 for value in values)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("two tensors have one name")
    return content
