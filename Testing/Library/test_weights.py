"""Weights on disk: what is strict about them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from HybridMIMLib.errors import ModelError
from HybridMIMLib.weights import load_weights, save_weights, transfer


def test_round_trip_keeps_numbers_and_description(unicode_folder: Path) -> None:
    tensors = {"a": torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d), "b": torch.arange(3)}
    save_weights(unicode_folder / "w.safetensors", tensors, {"plan": [1, 2], "name": "ünï"})
    loaded, description = load_weights(unicode_folder / "w.safetensors")
    assert description == {"plan": [1, 2], "name": "ünï"}
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_transfer_copies_everything_and_says_so(tmp_path: Path) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    said = transfer(target, source.state_dict(), tmp_path / "w")
    assert torch.equal(source.weight, target.weight) and "2 of 2 tensors (8 numbers)" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("bias"), "lacks 1"),
        (lambda t: t.update({"module.weight": t["weight"]}), "has unknown 1"),
        (lambda t: t.update({"weight": torch.zeros(5, 5)}), "has other shapes for 1"),
    ],
)
def test_transfer_refuses_what_does_not_fit_and_copies_nothing(tmp_path: Path, change: object, words: str) -> None:
    target = nn.Linear(3, 2)
    before = target.weight.detach().clone()
    tensors = dict(nn.Linear(3, 2).state_dict())
    change(tensors)  # type: ignore[operator]
    with pytest.raises(ModelError, match=words):
        transfer(target, tensors, tmp_path / "w")
    assert torch.equal(before, target.weight)


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    (tmp_path / "text.safetensors").write_text("not weights")
    for name in ("foreign", "text", "missing"):
        with pytest.raises(ModelError, match=f"{name}.safetensors"):
            load_weights(tmp_path / f"{name}.safetensors")
