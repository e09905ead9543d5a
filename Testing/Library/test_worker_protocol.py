"""What the worker and its users say to each other, line by line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from HybridMIMLib.worker_protocol import (
    MOST_BYTES,
    Cancel,
    Load,
    Quit,
    RequestError,
    Segment,
    Status,
    encode,
    parse,
    split_lines,
)

HERE = Path(__file__).resolve().parent
SCAN, LABEL = str(HERE / "Lékař 数 a b.nii.gz"), str(HERE / "label.nii.gz")


def line(**content: Any) -> bytes:
    return json.dumps(content).encode()


def blocks_of(data: bytes, sizes: list[int]) -> Callable[[int], bytes]:
    """Reads as a pipe does: whatever has come, and nothing only at the end."""
    waiting = iter(sizes)
    place = 0

    def read(count: int) -> bytes:
        nonlocal place
        size = min(next(waiting, count), count)
        block = data[place : place + size]
        place += size
        return block

    return read


@settings(deadline=None, max_examples=100)
@given(data=st.binary(max_size=300), sizes=st.lists(st.integers(1, 20)))
def test_lines_are_the_same_however_they_come(data: bytes, sizes: list[int]) -> None:
    assert list(split_lines(blocks_of(data, sizes))) == data.split(b"\n")[:-1]


@pytest.mark.parametrize("extra", [1, MOST_BYTES])
def test_a_line_that_is_too_long_is_passed_over_and_the_next_is_not(extra: int) -> None:
    data = b"first\n" + b"x" * (MOST_BYTES + extra) + b"\n" + b"y" * MOST_BYTES + b"\nlast\ntorn"
    assert list(split_lines(blocks_of(data, []))) == [b"first", None, b"y" * MOST_BYTES, b"last"]


def test_requests_become_what_they_say() -> None:
    assert parse(line(id=1, command="load", model="liver")) == Load(1, "liver", None, {})
    assert parse(line(id="a", command="load", model="m.zip", device="cuda:1", inference={"preset": "fast"})) == Load(
        "a", "m.zip", "cuda:1", {"preset": "fast"}
    )
    plain = parse(line(id=2, command="segment", scan=SCAN, output=LABEL))
    assert plain == Segment(2, (Path(SCAN),), Path(LABEL), None, None, None, None, {})
    full = line(id=2, command="segment", scan=[SCAN, f"{SCAN}.nrrd"], output=LABEL, uncertainty=f"{LABEL}.mha",
                layers=str(HERE), model="m", device="cpu", inference={"overlap": 0.3})  # fmt: skip
    assert parse(full) == Segment(2, (Path(SCAN), Path(f"{SCAN}.nrrd")), Path(LABEL), Path(f"{LABEL}.mha"), HERE, "m",
                                  "cpu", {"overlap": 0.3})  # fmt: skip
    assert parse(line(id=3, command="cancel", job="a")) == Cancel(3, "a")
    assert parse(line(id=4, command="status")) == Status(4)
    assert parse(line(id=5, command="quit")) == Quit(5)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"command": "status"}, "id is None"),
        ({"id": True, "command": "status"}, "id is True"),
        ({"id": 1.5, "command": "status"}, "id is 1.5"),
        ({"id": "", "command": "status"}, "id is ''"),
        ({"id": "x" * 1000, "command": "status"}, "id is 'xxx"),
        ({"id": 1}, "no command None"),
        ({"id": 1, "command": ["load"]}, "no command"),
        ({"id": 1, "command": "laod"}, "no command 'laod'"),
        ({"id": 1, "command": "status", "why": 1}, "no field 'why'"),
        ({"id": 1, "command": "segment", "scans": SCAN, "output": LABEL}, "Did you mean 'scan'"),
        ({"id": 1, "command": "load"}, "model is None"),
        ({"id": 1, "command": "load", "model": " "}, "model is ' '"),
        ({"id": 1, "command": "load", "model": "a\0b"}, "model is"),
        ({"id": 1, "command": "load", "model": "m", "device": "gpu"}, "device is 'gpu'"),
        ({"id": 1, "command": "load", "model": "m", "inference": "fast"}, "inference is 'fast'"),
        ({"id": 1, "command": "load", "model": "m", "inference": {"overlap": 2}}, "inference.overlap is 2"),
        ({"id": 1, "command": "load", "model": "m", "inference": {"overlaps": 0.5}}, "no setting inference.overlaps"),
        ({"id": 1, "command": "load", "model": "m", "inference": {"overlap": 10**400}}, "inference.overlap is 1000"),
        ({"id": 1, "command": "segment", "output": LABEL}, "scan is None"),
        ({"id": 1, "command": "segment", "scan": [], "output": LABEL}, "scan is []"),
        ({"id": 1, "command": "segment", "scan": [SCAN, 7], "output": LABEL}, "scan is 7"),
        ({"id": 1, "command": "segment", "scan": "scan.nii.gz", "output": LABEL}, "is relative"),
        ({"id": 1, "command": "segment", "scan": SCAN, "output": "label.nii.gz"}, "is relative"),
        ({"id": 1, "command": "segment", "scan": SCAN, "output": "/a/label.png"}, "no format to write"),
        ({"id": 1, "command": "segment", "scan": SCAN, "output": SCAN}, "are one file"),
        ({"id": 1, "command": "segment", "scan": SCAN, "output": LABEL, "uncertainty": LABEL}, "are one file"),
        ({"id": 1, "command": "segment", "scan": "/a\ud800", "output": LABEL}, "scan is"),
        ({"id": 1, "command": "cancel"}, "which job"),
        ({"id": 1, "command": "cancel", "job": None}, "which job"),
    ],
)
def test_a_request_that_cannot_work_is_refused_with_its_reason(content: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(line(**content))
    assert says in str(caught.value) and len(str(caught.value)) < 500
    assert caught.value.cure
    assert caught.value.id == (1 if content.get("id") == 1 and content["id"] is not True else None)


@pytest.mark.parametrize("text", [b"{", b"null", b"[1]", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b'"a"'])
def test_a_line_that_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(RequestError, match="no JSON"):
        parse(text)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(SCAN) | st.just(LABEL),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_fields = ("id", "command", "model", "scan", "output", "uncertainty", "layers", "device", "inference", "job")


@settings(deadline=None, max_examples=300)
@given(
    content=st.dictionaries(st.sampled_from(_fields), _values),
    command=st.sampled_from(["load", "segment", "cancel", "status", "quit"]),
)
def test_whatever_is_said_is_understood_or_refused(content: dict[str, Any], command: str) -> None:
    content.setdefault("command", command)
    try:
        request = parse(json.dumps(content).encode())
    except RequestError as error:
        assert error.message and error.cure
        # What is refused can be sent back, whatever it quotes.
        assert json.loads(encode({"id": error.id, "message": error.message}))["id"] == error.id
    else:
        assert request.id == content["id"]


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_an_answer_is_one_line_that_reads_back(content: dict[str, Any]) -> None:
    data = encode(content)
    assert data.endswith(b"\n") and data.count(b"\n") == 1
    assert json.loads(data.decode("utf-8")) == content


def test_names_of_files_that_are_no_utf_8_survive() -> None:
    name = b"scan\xff.nii.gz".decode("utf-8", "surrogateescape")
    assert json.loads(encode({"label": name}).decode("utf-8"))["label"] == name
