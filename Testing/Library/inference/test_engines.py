"""Engines: what comes out, which one is chosen, and what is left as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from HybridMIMLib.architectures import settled
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.inference import capability, engines
from HybridMIMLib.inference.capability import Capability, relative_difference
from HybridMIMLib.inference.engines import Engine, OpenVINOEngine, TorchEngine, choose_engine
from HybridMIMLib.inference.openvino_engine import is_installed
from HybridMIMLib.networks import SegmentationNetwork, initial_weights, make_segmentation_network
from HybridMIMLib.settings.inference import InferenceSettings
from HybridMIMLib.settings.network import NetworkSettings

CPU = torch.device("cpu")
CROP = (16, 24, 16)
needs_openvino = pytest.mark.skipif(not is_installed(), reason="openvino is not installed")


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path))
    monkeypatch.setattr(capability, "probe", lambda device: Capability(batch=2))
    monkeypatch.setattr(engines, "capability_of", lambda device: Capability(batch=2))
    return tmp_path


class Small(nn.Module):
    """Two convolutions with a norm and a dropout between."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm3d(8)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Conv3d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.dropout(self.norm(self.convolution(x)).relu()))
        return scores


def small() -> Small:
    with initial_weights(0, "small"):
        return Small()


def windows(count: int, channels: int = 2, crop: tuple[int, int, int] = CROP) -> Tensor:
    return torch.rand((count, channels, *crop), generator=torch.Generator().manual_seed(count))


def plain(network: nn.Module, x: Tensor) -> Tensor:
    """What a network says of each window by itself, as anyone would compute it."""
    network.eval()
    with torch.no_grad():
        return torch.cat([network(one[None]) for one in x])


def tiny(architecture: Any, crop: tuple[int, int, int]) -> SegmentationNetwork:
    settings = settled(NetworkSettings(architecture=architecture, size="tiny"), (1, 1, 1))
    return make_segmentation_network(settings, 1, 2, crop)


# PyTorch


def test_torch_computes_the_network_in_eval_mode_without_gradients() -> None:
    network, x = small(), windows(3)
    scores = TorchEngine(network.train(), CPU)(x)
    assert not scores.requires_grad and scores.dtype == torch.float32
    assert torch.allclose(scores, plain(network, x), atol=1e-6)


def test_each_part_of_the_network_keeps_its_mode_also_after_an_error() -> None:
    network = small().train()
    network.norm.eval()  # as someone may who fine-tunes with its statistics frozen
    engine, before = TorchEngine(network, CPU), {name: m.training for name, m in network.named_modules()}
    statistics = network.norm.running_mean.clone() if network.norm.running_mean is not None else None
    engine(windows(1))
    assert {name: m.training for name, m in network.named_modules()} == before
    with pytest.raises(RuntimeError):
        engine(windows(1, channels=5))
    assert {name: m.training for name, m in network.named_modules()} == before
    assert statistics is not None and torch.equal(statistics, network.norm.running_mean)


def test_torch_follows_the_weights_while_they_are_trained() -> None:
    network, x = small(), windows(1)
    parameters = list(network.parameters())
    engine = TorchEngine(network, CPU)
    before = engine(x)
    assert all(one is other for one, other in zip(parameters, network.parameters()))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    network.train()(x).square().sum().backward()
    optimizer.step()
    after = engine(x)
    assert not torch.allclose(after, before)
    assert torch.allclose(after, plain(network, x), atol=1e-6)


def test_half_precision_is_that_of_the_network_and_not_of_the_scores() -> None:
    network, x = small(), windows(2)
    scores = TorchEngine(network, CPU, precision=torch.bfloat16)(x)
    difference = relative_difference(scores, plain(network, x))
    assert scores.dtype == torch.float32 and 1e-5 < difference < 0.05
    assert network.head.weight.dtype == torch.float32


def test_a_network_that_half_precision_cannot_hold_is_computed_in_float32() -> None:
    network = nn.Sequential(nn.Conv3d(2, 2, 1, bias=False), nn.InstanceNorm3d(2), nn.Conv3d(2, 3, 1)).eval()
    x = windows(1)
    engine = TorchEngine(network, CPU, precision=torch.float16)
    assert engine(x).dtype == torch.float32 and engine.precision == torch.float16
    with torch.no_grad():
        network[0].weight *= 1e6
    assert torch.equal(engine(x), plain(network, x))
    assert engine.precision == torch.float32 and "half" not in engine.name


def test_channels_last_computes_the_same_and_is_left_behind_on_another_device() -> None:
    network, x = small(), windows(2)
    engine = TorchEngine(network, CPU, 2, memory_format=torch.channels_last_3d)
    assert network.convolution.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.allclose(engine(x), plain(network, x), atol=1e-6)
    assert engine.on(CPU, 1).memory_format == torch.channels_last_3d
    engine.device = torch.device("cuda")  # as if it had been there
    other = engine.on(CPU, 1)
    assert (other.device, other.batch, other.memory_format) == (CPU, 1, torch.contiguous_format)
    assert other.network is network and network.convolution.weight.is_contiguous()


# OpenVINO


@needs_openvino
@pytest.mark.parametrize(
    ("architecture", "crop"),
    [
        ("unet", CROP),
        ("resunet", CROP),
        ("segresnet", CROP),
        ("unetr", (32, 16, 16)),
        ("swinunetr", (64, 32, 32)),
    ],
)
def test_openvino_computes_what_pytorch_computes(architecture: str, crop: tuple[int, int, int]) -> None:
    network = tiny(architecture, crop).train()
    engine = OpenVINOEngine(network, 1, crop, 1)
    assert network.training and all(module.training for module in network.modules())
    x = windows(1, 1, crop)
    # bfloat16, which OpenVINO takes by itself on some CPUs, would differ by 0.005 and more.
    assert relative_difference(engine(x), TorchEngine(network, CPU)(x)) < 3e-4


@needs_openvino
def test_openvino_takes_any_number_of_windows() -> None:
    network = small()
    engine = OpenVINOEngine(network, 2, CROP, 3)
    for count in (1, 2, 3, 4, 7):
        x = windows(count)
        assert torch.allclose(engine(x), plain(network, x), atol=1e-4)
    turned = windows(3, crop=(16, 24, 16)).flip(2).transpose(2, 4)
    assert not turned.is_contiguous()
    assert torch.allclose(engine(turned), plain(network, turned), atol=1e-4)


@needs_openvino
def test_scores_stay_when_the_next_windows_are_computed() -> None:
    engine = OpenVINOEngine(small(), 2, CROP, 2)
    one = engine(windows(2))
    kept = one.clone()
    engine(windows(2) + 1)
    assert torch.equal(one, kept)
    one += 1  # and they may be changed


@needs_openvino
def test_openvino_with_another_batch_and_nowhere_else() -> None:
    network = small()
    engine = OpenVINOEngine(network, 2, CROP, 4).on(CPU, 2)
    assert engine.batch == 2 and engine.device == CPU and engine.name.startswith("OpenVINO 20")
    assert torch.allclose(engine(windows(2)), plain(network, windows(2)), atol=1e-4)
    engine.close()
    assert torch.allclose(engine(windows(2)), plain(network, windows(2)), atol=1e-4)
    with pytest.raises(ValueError, match="not on cuda"):
        engine.on(torch.device("cuda"), 1)


@needs_openvino
def test_a_full_memory_is_told_apart_from_other_errors() -> None:
    class Full:
        def infer(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError(self.words)

        words = "Exception from src/inference/src/cpp/infer_request.cpp:223:\nstd::bad_alloc"

    engine: Any = OpenVINOEngine(small(), 2, CROP)
    engine._request = Full()
    with pytest.raises(MemoryError):
        engine(windows(1))
    engine._request.words = "Check 'shape' failed"
    with pytest.raises(RuntimeError, match="shape"):
        engine(windows(1))


SILENT = """
import socket, sys, threading
reached = []
def refuse(self, address): reached.append(address); raise OSError
socket.socket.connect = socket.socket.connect_ex = refuse
def look_up(*a, **k): reached.append(a); raise socket.gaierror
socket.getaddrinfo = look_up
import torch
from HybridMIMLib.inference.engines import OpenVINOEngine
engine = OpenVINOEngine(torch.nn.Conv3d(1, 2, 1), 1, (8, 8, 8))
engine(torch.zeros(1, 1, 8, 8, 8))
for thread in threading.enumerate():
    if thread is not threading.main_thread() and not thread.daemon: thread.join(5)
assert not reached, reached
assert not [name for name in sys.modules if name.startswith("openvino_telemetry.")]
"""


@needs_openvino
def test_openvino_tells_nobody_of_its_use_and_prints_nothing(tmp_path: Path) -> None:
    ci = ("CI", "TF_BUILD", "JENKINS_URL", "GITHUB_ACTIONS", "TRAVIS")  # where it would be silent by itself
    environment = {name: value for name, value in os.environ.items() if name not in ci}
    environment.update(HOME=str(tmp_path), USERPROFILE=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", SILENT], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "intel").exists()  # where it keeps who one is


# Choosing


class FakeOpenVINO(Engine):
    """PyTorch that says it is OpenVINO; as wrong and slow as wanted, and it counts how often it is made and used."""

    error, extra_calls, made, calls, fails = 0.0, 0, 0, 0, False
    device = CPU

    def __init__(self, network: nn.Module, channels: int, crop: tuple[int, int, int], batch: int = 1) -> None:
        if FakeOpenVINO.fails:
            raise RuntimeError("Check 'x' failed at a.cpp\nmore about it")
        FakeOpenVINO.made += 1
        self.network, self.channels, self.crop, self.batch, self.name = network, channels, crop, batch, "fake"

    def __call__(self, x: Tensor) -> Tensor:
        FakeOpenVINO.calls += 1
        return plain(self.network, x) + FakeOpenVINO.error

    def on(self, device: torch.device, batch: int) -> Engine:
        return FakeOpenVINO(self.network, self.channels, self.crop, batch)

    def close(self) -> None: ...


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeOpenVINO]:
    """OpenVINO is there; it is quicker than PyTorch until ``seconds`` say something else."""

    class Module:
        __version__ = "1.2"

    def timed(engine: Engine, x: Tensor) -> tuple[Tensor, float]:
        return engine(x), 1.0 if isinstance(engine, TorchEngine) else FakeOpenVINO.seconds

    monkeypatch.setattr(FakeOpenVINO, "seconds", 0.5, raising=False)
    for name, value in (("error", 0.0), ("made", 0), ("calls", 0), ("fails", False)):
        monkeypatch.setattr(FakeOpenVINO, name, value)
    monkeypatch.setattr(engines, "OpenVINOEngine", FakeOpenVINO)
    monkeypatch.setattr(engines, "is_installed", lambda: True)
    monkeypatch.setattr(engines, "load_openvino", Module)
    monkeypatch.setattr(engines, "_timed", timed)
    return FakeOpenVINO


def choose(network: nn.Module, told: list[str] | None = None, device: str = "cpu", **settings: Any) -> Engine:
    tell = ([] if told is None else told).append
    return choose_engine(network, 2, CROP, InferenceSettings(**settings), device, tell)


def test_auto_takes_openvino_where_it_is_right_and_faster(fake: type[FakeOpenVINO]) -> None:
    told: list[str] = []
    engine = choose(small(), told)
    assert isinstance(engine, fake) and (engine.batch, told) == (1, [])
    assert choose(small(), window_batch=3).batch == 3


def test_the_verdict_is_kept_for_the_network_as_it_is(fake: type[FakeOpenVINO]) -> None:
    network = small()
    choose(network)
    assert fake.calls == 1
    choose(network)
    assert fake.calls == 1 and fake.made == 2
    with torch.no_grad():
        network.head.bias += 0.5  # type: ignore[operator]
    choose(network)
    assert fake.calls == 2


def test_auto_leaves_openvino_where_it_is_slower_and_does_not_even_make_it_again(fake: type[FakeOpenVINO]) -> None:
    fake.seconds = 1.5  # type: ignore[attr-defined]
    told: list[str] = []
    network = small()
    assert [type(choose(network, told)) for _ in range(3)] == [TorchEngine] * 3
    assert (fake.made, told) == (1, [])
    # Who asks for it gets it, and auto is none the wiser.
    assert isinstance(choose(network, engine="openvino"), fake)
    assert isinstance(choose(network), TorchEngine)


@pytest.mark.parametrize("error", [0.02, float("nan")])
@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_openvino_that_computes_something_else_is_not_used(
    fake: type[FakeOpenVINO], engine: str, error: float
) -> None:
    fake.error = error
    told: list[str] = []
    network = small()
    assert isinstance(choose(network, told, engine=engine), TorchEngine)
    assert told == ["PyTorch computes, because the scores of OpenVINO for this network are not the same."]
    assert isinstance(choose(network, told, engine=engine), TorchEngine) and fake.made == 1


def test_openvino_that_cannot_take_the_network_is_not_used(fake: type[FakeOpenVINO]) -> None:
    fake.fails = True
    told: list[str] = []
    assert isinstance(choose(small(), told), TorchEngine)
    assert told == [
        "PyTorch computes, because OpenVINO cannot take this network (RuntimeError: Check 'x' failed at a.cpp)."
    ]


@needs_openvino
def test_a_network_that_cannot_be_traced_is_computed_by_pytorch() -> None:
    class Stubborn(Small):
        def forward(self, x: Tensor) -> Tensor:
            if torch.jit.is_tracing():
                raise ValueError("not with me")
            return super().forward(x)

    told: list[str] = []
    engine = choose(Stubborn(), told, engine="openvino")
    assert isinstance(engine, TorchEngine) and len(told) == 1 and "not with me" in told[0]
    assert engine(windows(1)).shape == (1, 3, *CROP)


@needs_openvino
def test_the_real_one_is_chosen_for_a_real_network() -> None:
    network = tiny("unet", (32, 32, 32))
    told: list[str] = []
    engine = choose_engine(network, 1, (32, 32, 32), InferenceSettings(engine="openvino"), "auto", told.append)
    assert isinstance(engine, OpenVINOEngine) and told == []


def test_without_openvino_auto_is_pytorch_and_openvino_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "is_installed", lambda: False)
    assert isinstance(choose(small()), TorchEngine)
    for device in ("auto", "cpu"):
        with pytest.raises(SettingsError, match="not installed.*pip install openvino"):
            choose(small(), engine="openvino", device=device)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_openvino_and_a_gpu_exclude_each_other(fake: type[FakeOpenVINO], device: str) -> None:
    with pytest.raises(SettingsError, match=f"device is {device}.*Set device to cpu"):
        choose(small(), engine="openvino", device=device)


def test_pytorch_where_it_is_asked_for(fake: type[FakeOpenVINO]) -> None:
    engine = choose(small(), engine="torch")
    assert isinstance(engine, TorchEngine) and fake.made == 0
    assert (engine.batch, engine.device, engine.precision) == (2, CPU, torch.float32)
    assert choose(small(), engine="torch", window_batch=5).batch == 5
    with pytest.raises(SettingsError, match="inference.precision is half.*auto"):
        choose(small(), precision="half")


@pytest.mark.parametrize(
    ("wanted", "can", "expected"),
    [
        ("auto", torch.float16, torch.float16),
        ("auto", torch.float32, torch.float32),
        ("float32", torch.float16, torch.float32),
        ("half", torch.float32, torch.float16),
        ("half", torch.float16, torch.float16),
    ],
)
def test_precision_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, wanted: Any, can: torch.dtype, expected: torch.dtype
) -> None:
    gpu = torch.device("cuda")
    made: dict[str, Any] = {}
    monkeypatch.setattr(engines, "inference_device", lambda name, tell: gpu)
    monkeypatch.setattr(engines, "capability_of", lambda device: Capability(True, can, True, 4))
    monkeypatch.setattr(
        engines,
        "TorchEngine",
        lambda network, device, batch, precision, layout: made.update(
            device=device, batch=batch, precision=precision, layout=layout
        ),
    )
    choose(small(), device="auto", precision=wanted)
    assert made == {"device": gpu, "batch": 4, "precision": expected, "layout": torch.channels_last_3d}


def test_a_network_too_large_for_the_gpu_is_computed_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory may run out before the first window: with the weights themselves."""
    gpu, emptied, told = torch.device("cuda"), [], []

    class Full(TorchEngine):
        def __init__(self, network: nn.Module, device: torch.device, *others: Any) -> None:
            if device.type != "cpu":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
            super().__init__(network, device, *others)

    monkeypatch.setattr(engines, "TorchEngine", Full)
    monkeypatch.setattr(engines, "inference_device", lambda name, tell: CPU if name == "cpu" else gpu)
    monkeypatch.setattr(engines, "empty_cache", emptied.append)
    monkeypatch.setattr(engines, "device_in_words", lambda device: "the GPU")
    for precision in ("auto", "half"):
        settings = InferenceSettings(engine="torch", precision=precision)  # type: ignore[arg-type]
        engine = choose_engine(small(), 2, CROP, settings, "auto", told.append)
        assert engine.device == CPU and engine(windows(1)).shape == (1, 3, *CROP)
    assert emptied == [gpu, gpu]
    assert told == ["The CPU is used, because the network does not fit into the memory of the GPU."] * 2


def test_other_errors_of_a_gpu_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> TorchEngine:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engines, "TorchEngine", broken)
    monkeypatch.setattr(engines, "inference_device", lambda name, tell: torch.device("cuda"))
    with pytest.raises(RuntimeError, match="illegal memory"):
        choose(small(), engine="torch")
