"""Weights on disk: what is strict about them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from HybridMIMLib.errors import ModelError
from HybridMIMLib.weights import load_weights, restore, save_weights


def test_round_trip_keeps_numbers_and_description(unicode_folder: Path) -> None:
    tensors = {"a": torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d), "b": torch.arange(3)}
    save_weights(unicode_folder / "w.safetensors", tensors, {"plan": [1, 2], "name": "ünï"})
    loaded, description = load_weights(unicode_folder / "w.safetensors")
    assert description == {"plan": [1, 2], "name": "ünï"}
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_what_is_put_back_is_whole(tmp_path: Path) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    restore(target, source.state_dict(), tmp_path / "w")
    assert torch.equal(source.weight, target.weight) and torch.equal(source.bias, target.bias)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("bias"), "lacks 1"),
        (lambda t: t.update({"module.weight": t["weight"]}), "has unknown 1"),
        (lambda t: t.update({"weight": torch.zeros(5, 5)}), "has other shapes for 1"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_copied(tmp_path: Path, change: object, words: str) -> None:
    target = nn.Linear(3, 2)
    before = target.weight.detach().clone()
    tensors = dict(nn.Linear(3, 2).state_dict())
    change(tensors)  # type: ignore[operator]
    with pytest.raises(ModelError, match=words):
        restore(target, tensors, tmp_path / "w")
    assert torch.equal(before, target.weight)


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "list.safetensors", metadata={"hybridmim": "[]"})
    (tmp_path / "text.safetensors").write_text("not weights")
    save_weights(tmp_path / "cut.safetensors", {"a": torch.zeros(100)}, {})
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-8])
    for name in ("foreign", "list", "text", "cut", "missing"):
        with pytest.raises(ModelError, match=f"{name}.safetensors"):
            load_weights(tmp_path / f"{name}.safetensors")
