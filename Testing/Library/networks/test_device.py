"""Which device a name means."""

from __future__ import annotations

import pytest
import torch

from HybridMIMLib.errors import SettingsError
from HybridMIMLib.networks.device import choose_device, device_in_words


def machine_with(monkeypatch: pytest.MonkeyPatch, *, gpus: int = 0, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("gpus", "mps", "in_training", "in_inference"),
    [(0, False, "cpu", "cpu"), (0, True, "cpu", "mps"), (2, False, "cuda", "cuda"), (1, True, "cuda", "cuda")],
)
def test_auto_takes_cuda_then_mps_where_that_is_wanted_then_the_cpu(
    monkeypatch: pytest.MonkeyPatch, gpus: int, mps: bool, in_training: str, in_inference: str
) -> None:
    machine_with(monkeypatch, gpus=gpus, mps=mps)
    assert choose_device("auto").type == in_training
    assert choose_device("auto", mps=True).type == in_inference


def test_a_named_device_is_taken_if_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(monkeypatch, gpus=2, mps=True)
    for name in ("cpu", "cuda", "cuda:1", "mps"):
        assert choose_device(name) == torch.device(name)
    with pytest.raises(SettingsError, match="cuda:2 is not there.*finds 2"):
        choose_device("cuda:2")
    machine_with(monkeypatch)
    for name in ("cuda", "mps"):
        with pytest.raises(SettingsError, match="is not there.*--device auto"):
            choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "", "meta", "cuda:x", "xpu"])
def test_what_is_no_device_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match="there is no device"):
        choose_device(name)


def test_devices_have_names_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")
    words = [device_in_words(torch.device(name)) for name in ("cpu", "mps", "cuda:1")]
    assert words == ["the CPU", "the Apple GPU", "the GPU (Card 1)"]
