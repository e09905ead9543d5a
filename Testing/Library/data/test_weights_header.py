"""Headers of safetensors files: those that the library itself writes, and those that lie."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from HybridMIMLib.data.weights_header import LONGEST_HEADER, WeightsHeader, read_header


def read(content: bytes) -> WeightsHeader:
    return read_header(io.BytesIO(content).read, len(content))


def file_of(header: Any, numbers: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + numbers


def tensor(shape: list[Any], first: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, end]}


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(st.text(min_size=1, max_size=5), st.lists(st.integers(0, 4), max_size=4), max_size=5),
       st.sampled_from([torch.float32, torch.int64, torch.float16, torch.bool]))  # fmt: skip
def test_what_safetensors_writes_is_read(shapes: dict[str, list[int]], dtype: torch.dtype) -> None:
    found = read(save({name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}, {"a": "b"}))
    assert dict(found.shapes) == {name: tuple(shape) for name, shape in shapes.items()}
    assert dict(found.description) == {"a": "b"}


LIES = {
    "empty": b"",
    "no header": b"\x05",
    "header longer than the file": (1 << 60).to_bytes(8, "little") + b"{}",
    "header of a gigabyte": (LONGEST_HEADER + 1).to_bytes(8, "little") + b"{" + b" " * LONGEST_HEADER + b"}",
    "no JSON": file_of(b"{]"),
    "no UTF-8": file_of(b'{"\xff": 1}'),
    "nested without end": file_of(b"[" * 100_000 + b"]" * 100_000),
    "a list": file_of([1, 2]),
    "a tensor that is a number": file_of({"a": 3}),
    "unknown type": file_of({"a": tensor([1], 0, 4, "PICKLE")}, bytes(4)),
    "type is a list": file_of({"a": {**tensor([1], 0, 4), "dtype": ["F32"]}}, bytes(4)),
    "negative side": file_of({"a": tensor([-1], 0, 4)}, bytes(4)),
    "side as text": file_of({"a": tensor(["1"], 0, 4)}, bytes(4)),
    "side is true": file_of({"a": tensor([True], 0, 4)}, bytes(4)),
    "larger than the file": file_of({"a": tensor([2**33], 0, 2**35)}, bytes(4)),
    "larger than its place": file_of({"a": tensor([2], 0, 4)}, bytes(4)),
    "backwards": file_of({"a": tensor([1], 4, 0)}, bytes(4)),
    "two at one place": file_of({"a": tensor([1], 0, 4), "b": tensor([1], 0, 4)}, bytes(4)),
    "a gap": file_of({"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, bytes(12)),
    "bytes behind the last": file_of({"a": tensor([1], 0, 4)}, bytes(8)),
    "bytes before the first": file_of({"a": tensor([1], 4, 8)}, bytes(8)),
    "twins": file_of(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": 1}', bytes(4)),
    "description of numbers": file_of({"__metadata__": {"a": 1}}),
    "more than a tensor": file_of({"a": {**tensor([1], 0, 4), "code": "x"}}, bytes(4)),
    "nine axes": file_of({"a": tensor([1] * 9, 0, 4)}, bytes(4)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_does_not_describe_its_file_is_refused(lie: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(LIES[lie])


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200), st.integers(0, 60))
def test_whatever_bytes_come_it_is_an_answer_or_a_value_error(noise: bytes, at: int) -> None:
    sound = save({"a": torch.zeros(2), "b": torch.zeros(1, 2)})
    for content in (noise, sound[:at] + noise + sound[at + len(noise) :]):
        try:
            read(content)
        except ValueError:
            continue
