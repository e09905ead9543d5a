"""A model that stays loaded: when it is loaded anew, and that its device is freed and taken again."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_packages import make_package
from torch import Tensor

from HybridMIMLib.data.grid import Grid
from HybridMIMLib.errors import HybridMIMError, ModelError
from HybridMIMLib.inference import warm_model
from HybridMIMLib.inference.clocked_engine import ClockedEngine, NetworkClock
from HybridMIMLib.inference.predictor import make_predictor
from HybridMIMLib.inference.torch_engine import Engine, TorchEngine
from HybridMIMLib.inference.warm_model import WarmModel
from HybridMIMLib.settings.inference import InferenceSettings

TORCH = InferenceSettings(engine="torch", window_batch=2)
CPU = torch.device("cpu")
GRID = Grid((20, 18, 16), np.diag([1.0, 1.5, 2.0, 1.0]))
SCAN = np.random.default_rng(3).normal(100, 30, (1, *GRID.shape)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def own_workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path_factory.mktemp("workspace")))
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "model"
    make_package().save(folder)
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "Lékař 数" / "model"))


def labels_with(warm: WarmModel, settings: InferenceSettings = TORCH) -> Any:
    with warm.predictor(settings, "cpu", lambda text: None) as predictor:
        return predictor.predict(SCAN, GRID).labels


def test_a_warm_model_finds_what_a_cold_one_finds(model: Path) -> None:
    warm = WarmModel()
    package = warm.load(model)
    expected = make_predictor(package, TORCH, "cpu").predict(SCAN, GRID).labels
    assert len(np.unique(expected)) > 1
    for _ in range(2):
        np.testing.assert_array_equal(labels_with(warm), expected)
    warm.release()
    assert warm.device is None
    np.testing.assert_array_equal(labels_with(warm), expected)
    assert warm.device is not None and "CPU" in warm.device


def test_a_package_is_read_again_only_when_it_has_changed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warm = WarmModel()
    first = warm.load(model)
    hashed: list[Path] = []
    check = warm_model.check_package
    monkeypatch.setattr(warm_model, "check_package", lambda path: [hashed.append(path), check(path)][1])
    assert warm.load(model) is first and not hashed
    # Touched, and the same: looked at to the last byte, and kept.
    os.utime(model / "models" / "model.safetensors")
    assert warm.load(str(model)) is first and len(hashed) == 1
    assert warm.load(model) is first and len(hashed) == 1
    copy = Path(shutil.copytree(model, model.with_name("copy")))
    assert warm.load(copy) is first and warm.path == copy
    shutil.rmtree(model)
    make_package(name="another").save(model)
    assert warm.load(model).name == "another"
    assert (warm.load(copy).name, warm.load(model).name) == ("Léber und Milz", "another")


def test_a_package_that_is_damaged_later_is_not_taken_for_the_loaded_one(model: Path) -> None:
    warm = WarmModel()
    warm.load(model)
    labels_with(warm)
    weights = model / "models" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="changed or damaged"):
        warm.load(model)
    # The earlier model must not stand in for it.
    assert warm.package is None and warm.device is None
    with pytest.raises(ModelError, match="no model is loaded"):
        labels_with(warm)


def test_after_a_reset_the_model_comes_back_by_itself(model: Path) -> None:
    warm = WarmModel()
    warm.load(model)
    before = labels_with(warm)
    network = weakref.ref(warm.package.network if warm.package else None)
    warm.reset()
    gc.collect()
    assert network() is None
    np.testing.assert_array_equal(labels_with(warm), before)


def test_settings_that_do_not_concern_the_engine_keep_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warm, made, choose = WarmModel(), list[Engine](), warm_model.choose_engine

    def counted(*given: Any) -> Engine:
        made.append(choose(*given))
        return made[-1]

    monkeypatch.setattr(warm_model, "choose_engine", counted)
    warm.load(model)
    plain = labels_with(warm)
    other = labels_with(
        warm, InferenceSettings(engine="torch", window_batch=2, preset="fast", overlap=0.0, flips=[0])
    )
    assert len(made) == 1 and (plain != other).any()
    np.testing.assert_array_equal(labels_with(warm), plain)
    labels_with(warm, InferenceSettings(engine="torch", window_batch=1))
    assert len(made) == 2 and made[-1].batch == 1


class NarrowEngine(TorchEngine):
    """Has no memory for more than one window at once."""

    def __call__(self, windows: Tensor) -> Tensor:
        if self.batch > 1:
            raise torch.OutOfMemoryError("no memory left")
        return super().__call__(windows)

    def on(self, device: torch.device, batch: int) -> TorchEngine:
        return NarrowEngine(self.network, device, batch)


def test_a_smaller_batch_is_kept_for_the_next_scan(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_model, "choose_engine", lambda network, *_: NarrowEngine(network, CPU, 4))
    warm = WarmModel()
    warm.load(model)
    told: list[str] = []
    with warm.predictor(TORCH, "cpu", told.append) as predictor:
        predictor.predict(SCAN, GRID)
    assert len(told) == 2 and all("Out of memory" in text for text in told)
    told.clear()
    with warm.predictor(TORCH, "cpu", told.append) as predictor:
        assert predictor.engine.batch == 1
        predictor.predict(SCAN, GRID)
    assert not told


class OnPaper(Engine):
    """An engine elsewhere; its scores are of no interest."""

    def __init__(self, name: str, closed: list[str]) -> None:
        self.device, self.batch, self.name, self.closed = torch.device(name), 1, name, closed

    def __call__(self, windows: Tensor) -> Tensor:
        return windows

    def on(self, device: torch.device, batch: int) -> OnPaper:
        self.closed.append(self.name)
        return OnPaper(device.type, self.closed)

    def close(self) -> None:
        self.closed.append(self.name)


def test_what_went_to_the_cpu_for_one_scan_comes_back_for_the_next(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(warm_model, "choose_engine", lambda *_: OnPaper("meta", closed))
    warm = WarmModel()
    warm.load(model)
    with warm.predictor(TORCH, "cpu", lambda text: None) as predictor:
        # What the ladder does.
        predictor.engine = predictor.engine.on(CPU, 1)
    assert closed == ["meta", "cpu"] and warm.device is None
    with warm.predictor(TORCH, "cpu", lambda text: None) as predictor:
        assert predictor.engine.device.type == "meta"
    assert warm.device == "meta"


def test_a_device_that_cannot_be_freed_costs_the_package(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OnPaper("meta", [])
    monkeypatch.setattr(engine, "close", lambda: 1 / 0)
    monkeypatch.setattr(warm_model, "choose_engine", lambda *_: engine)
    warm = WarmModel()
    warm.load(model)
    with warm.predictor(TORCH, "cpu", lambda text: None):
        pass
    warm.release()
    assert warm.package is None and warm.path == model


def test_an_error_in_the_block_comes_out_and_the_model_stays(model: Path) -> None:
    warm = WarmModel()
    warm.load(model)
    with pytest.raises(HybridMIMError, match="channel"), warm.predictor(TORCH, "cpu", lambda text: None) as predictor:
        predictor.predict(np.concatenate([SCAN, SCAN]), GRID)
    assert warm.device is not None and labels_with(warm).shape == GRID.shape


def test_the_clock_counts_the_network_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("HybridMIMLib.inference.clocked_engine.time.perf_counter", lambda: now[0])

    class Slow(OnPaper):
        def __call__(self, windows: Tensor) -> Tensor:
            now[0] += 2.0
            return windows

    clock = NetworkClock()
    engine = ClockedEngine(Slow("cpu", []), clock)
    for _ in range(3):
        engine(torch.zeros(1))
        now[0] += 100.0
    assert clock.seconds() == 6.0 and clock.seconds() == 0.0
