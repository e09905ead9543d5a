"""What a device can do: the decisions on devices that are made up, the bench on the CPU that is there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from HybridMIMLib import machine_notes
from HybridMIMLib.inference import capability as capability_module
from HybridMIMLib.inference.capability import (
    BATCHES,
    Capability,
    DeviceBench,
    Trial,
    capability_of,
    decide,
    inference_device,
    probe,
    relative_difference,
)
from HybridMIMLib.inference.torch_engine import TorchEngine
from HybridMIMLib.machine_notes import NAME, recall, remember

CPU = torch.device("cpu")
HALF = torch.float16


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "workspace"
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(folder))
    return folder


class MadeUp:
    """A device: times follow from factors, all trials are noted."""

    def __init__(
        self,
        half: float = 1.0,
        channels_last: float = 1.0,
        batches: tuple[float, float, float] = (1.0, 1.0, 1.0),
        plain_difference: float = 1e-5,
        half_difference: float = 1e-3,
    ) -> None:
        self.half, self.channels_last, self.batches = half, channels_last, dict(zip(BATCHES, batches))
        self.differences = {torch.float32: plain_difference, HALF: half_difference}
        self.trials: list[Trial] = []

    def seconds(self, trial: Trial) -> float:
        self.trials.append(trial)
        half = self.half if trial.precision == HALF else 1.0
        return half * (self.channels_last if trial.channels_last else 1.0) * self.batches[trial.batch]

    def difference(self, precision: torch.dtype) -> float:
        return self.differences[precision]


def test_a_plain_device_is_used_plainly() -> None:
    assert decide(MadeUp(), HALF) == Capability(True, torch.float32, False, 1)


def test_a_fast_gpu_is_used_to_the_full() -> None:
    assert decide(MadeUp(0.4, 0.7, (1.0, 0.9, 0.8)), HALF) == Capability(True, HALF, True, 4)


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        (MadeUp(half=0.79), HALF),
        (MadeUp(half=0.85), torch.float32),  # too little gain
        (MadeUp(half=0.3, half_difference=0.006), torch.float32),  # fast and wrong
        (MadeUp(half=0.3, half_difference=math.nan), torch.float32),
        (MadeUp(half=math.inf), torch.float32),  # not there
    ],
)
def test_half_precision_must_pay_and_agree(device: MadeUp, precision: torch.dtype) -> None:
    assert decide(device, HALF).precision == precision


def test_hopeless_half_precision_is_tried_on_a_tiny_window_alone() -> None:
    device = MadeUp(half=450)
    assert decide(device, HALF).precision == torch.float32
    assert {trial.tiny for trial in device.trials if trial.precision == HALF} == {True}
    slower = MadeUp(half=2)
    decide(slower, HALF)
    assert {trial.tiny for trial in slower.trials if trial.precision == HALF} == {True, False}


@pytest.mark.parametrize("difference", [0.02, math.inf, math.nan])
def test_a_device_that_computes_something_else_is_not_trusted(difference: float) -> None:
    device = MadeUp(half=0.1, plain_difference=difference)
    assert decide(device, HALF) == Capability(trusted=False)
    assert device.trials == []


@given(st.tuples(*[st.floats(0.1, 10)] * 3))
@settings(deadline=None, max_examples=100)
def test_the_batch_is_the_smallest_that_is_as_good_as_the_best(times: tuple[float, float, float]) -> None:
    best = min(times)
    assert decide(MadeUp(batches=times), HALF).batch == min(
        batch for batch, seconds in zip(BATCHES, times) if seconds <= 1.05 * best
    )


@pytest.mark.parametrize("precision", [torch.float32, HALF, torch.bfloat16])
def test_what_is_kept_comes_back(precision: torch.dtype) -> None:
    capability = Capability(False, precision, True, 4)
    assert Capability.from_json(json.loads(json.dumps(capability.to_json()))) == capability


GOOD = Capability().to_json()


@pytest.mark.parametrize(
    "content",
    [None, 3, [], {}, *({**GOOD, name: value} for name in GOOD for value in ("yes", 3, None, [], {}))],
)
def test_what_is_damaged_does_not(content: object) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Capability.from_json(content)


class Counting:
    """A probe that answers the same and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, device: torch.device) -> Capability:
        self.calls += 1
        return Capability(True, HALF, True, 2)


def test_a_device_is_probed_once_on_a_machine(workspace: Path) -> None:
    counting = Counting()
    found = [capability_of(CPU, counting) for _ in range(3)]
    assert found == [Capability(True, HALF, True, 2)] * 3 and counting.calls == 1
    assert [file.name for file in workspace.iterdir()] == [NAME]


def test_another_pytorch_or_machine_is_probed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting()
    capability_of(CPU, counting)
    monkeypatch.setattr(torch, "__version__", "99.0")
    capability_of(CPU, counting)
    monkeypatch.setattr(capability_module.platform, "node", lambda: "elsewhere")
    capability_of(CPU, counting)
    monkeypatch.undo()
    assert counting.calls == 3


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "null", '{"devices": 3}', '{"format": "another", "devices": {}}', "[" * 100_000, "\udcff"],
)
def test_a_file_that_is_damaged_or_foreign_is_replaced(workspace: Path, text: str) -> None:
    workspace.mkdir()
    (workspace / NAME).write_bytes(text.encode("utf-8", "surrogateescape"))
    counting = Counting()
    capability_of(CPU, counting)
    capability_of(CPU, counting)
    assert counting.calls == 1


def test_an_entry_that_is_damaged_is_probed_anew(workspace: Path) -> None:
    counting = Counting()
    capability_of(CPU, counting)
    content = json.loads((workspace / NAME).read_text())
    for key in content["devices"]:
        content["devices"][key]["precision"] = "float8"
    (workspace / NAME).write_text(json.dumps(content))
    assert capability_of(CPU, counting) == Capability(True, HALF, True, 2) and counting.calls == 2


def test_without_a_workspace_it_goes_on(workspace: Path) -> None:
    workspace.write_text("a file where the folder should be")
    counting = Counting()
    assert [capability_of(CPU, counting).batch for _ in range(2)] == [2, 2] and counting.calls == 2


def test_notes_of_different_kinds_keep_beside_each_other() -> None:
    remember("devices", "a", {"x": 1})
    remember("engines", "a", "faster")
    remember("devices", "b", [2])
    assert (recall("devices", "a"), recall("devices", "b"), recall("engines", "a")) == ({"x": 1}, [2], "faster")
    assert recall("engines", "b") is None and recall("nothing", "a") is None


def test_the_oldest_notes_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_notes, "MOST", 2)
    for key in ("a", "b", "a", "c"):
        remember("engines", key, key)
    assert [recall("engines", key) for key in ("a", "b", "c")] == ["a", None, "c"]


def device_called(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(capability_module, "choose_device", lambda name, mps: torch.device(device if mps else "cpu"))


@pytest.mark.parametrize(("trusted", "expected"), [(True, "mps"), (False, "cpu")])
def test_an_apple_gpu_is_used_if_it_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, trusted: bool, expected: str
) -> None:
    device_called(monkeypatch, "mps")
    told: list[str] = []
    found = inference_device("auto", told.append, lambda device: Capability(trusted=trusted))
    assert found == torch.device(expected)
    assert told == ([] if trusted else ["The CPU is used, because the Apple GPU does not compute the same."])


def test_a_gpu_whose_memory_is_full_is_probed_again_another_time(
    monkeypatch: pytest.MonkeyPatch, workspace: Path
) -> None:
    device_called(monkeypatch, "mps")
    told: list[str] = []

    def full(device: torch.device) -> Capability:
        bench = DeviceBench(CPU, width=4, side=16, repeats=1)
        bench.device = device
        # The network cannot be brought there either; that it is here is of no matter to the error.
        monkeypatch.setattr(capability_module, "TorchEngine", _full_memory)
        return decide(bench, HALF)

    assert inference_device("auto", told.append, lambda device: capability_of(device, full)) == CPU
    assert told == ["The CPU is used, because the Apple GPU has no memory left: other programs use it."]
    good = Counting()
    assert inference_device("auto", told.append, lambda device: capability_of(device, good)).type == "mps"
    assert good.calls == 1 and len(told) == 1


def _full_memory(*_: object, **__: object) -> TorchEngine:
    raise torch.OutOfMemoryError("MPS backend out of memory")


def test_the_cpu_need_not_be_probed() -> None:
    def never(device: torch.device) -> Capability:
        raise AssertionError("probed")

    assert inference_device("cpu", print, never) == CPU


def test_the_probe_of_this_cpu_is_quick_and_leaves_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    found = probe(CPU)
    assert torch.equal(torch.rand(3), expected)
    assert found.trusted and found.precision == torch.float32 and found.batch in BATCHES


def test_the_bench_times_what_it_is_told() -> None:
    bench = DeviceBench(CPU, width=4, side=24, repeats=2)
    assert 0 < bench.seconds(Trial(tiny=True)) < bench.seconds(Trial()) < 5
    assert bench.difference(torch.float32) == 0
    assert 0 < bench.difference(torch.bfloat16) < 0.2
    plain = Trial()
    for trial in (replace(plain, channels_last=True), replace(plain, batch=2)):
        assert math.isfinite(bench.seconds(trial))


@pytest.mark.parametrize(
    ("name", "breaks"),
    [
        ("a wrong convolution", lambda bench: bench._network.down[0].register_forward_hook(lambda *a: a[2].flip(4))),
        ("numbers that are none", lambda bench: bench._network.up.register_forward_hook(lambda *a: a[2] / 0)),
        ("not implemented", lambda bench: bench._network.up.register_forward_hook(_not_implemented)),
    ],
)
def test_the_bench_finds_a_device_that_computes_wrongly(name: str, breaks: Callable[[DeviceBench], None]) -> None:
    bench = DeviceBench(CPU, width=4, side=16, repeats=1)
    assert bench.difference(torch.float32) == 0
    breaks(bench)
    assert not decide(bench, torch.bfloat16).trusted


def _not_implemented(*_: object) -> None:
    raise NotImplementedError("The operator 'aten::slow_conv_transpose3d' is not implemented for this device")


def test_what_cannot_be_computed_takes_for_ever() -> None:
    bench = DeviceBench(CPU, width=4, side=16, repeats=1)
    bench._network.up.register_forward_hook(_not_implemented)
    assert bench.seconds(Trial()) == math.inf


def test_relative_difference() -> None:
    reference = torch.tensor([0.0, -4.0, 2.0])
    assert relative_difference(reference, reference) == 0
    assert relative_difference(reference + torch.tensor([0, 0, 0.4]), reference) == pytest.approx(0.1)
    assert math.isnan(relative_difference(torch.tensor([math.nan, 0, 0]), reference))
    assert relative_difference(torch.zeros(3), torch.zeros(3)) == 0
    assert relative_difference(torch.ones(3), torch.zeros(3)) > 1e30
