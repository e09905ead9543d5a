"""Published checkpoints: tensors alone are read, their names brought to ours, and nothing in them runs."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import filter_swinunetr
from monai.networks.utils import copy_model_state
from torch import Tensor

from HybridMIMLib.architectures import settled
from HybridMIMLib.checkpoints import own_names, read_checkpoint
from HybridMIMLib.errors import ModelError
from HybridMIMLib.networks import EncoderDecoder, make_backbone
from HybridMIMLib.pretrained import load_pretrained
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.transfer import transfer

CROP = (64, 64, 64)


def backbone_of(architecture: str, **settings: Any) -> EncoderDecoder:
    network = settled(NetworkSettings(architecture=architecture, **settings), (1.0, 1.0, 1.0))  # type: ignore[arg-type]
    return make_backbone(network, 1, CROP)


# --- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "network_weights", "model", None])
def test_weights_are_found_where_they_are_nested_and_the_rest_is_told(unicode_folder: Path, name: str | None) -> None:
    weights = {"a.weight": torch.randn(2, 3), "a.bias": torch.nn.Parameter(torch.randn(2))}
    beside = {
        "epoch": 7,
        "best": np.float64(0.8),
        "args": argparse.Namespace(rate=0.1, seed=np.int64(3)),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(9)}}},
    }
    torch.save({**beside, **({name: weights} if name else weights)}, unicode_folder / "w.pt")
    found = read_checkpoint(unicode_folder / "w.pt")
    assert set(found.tensors) == set(weights) and sorted(found.beside) == sorted(beside)
    assert all(torch.equal(found.tensors[key], weights[key]) for key in weights)
    assert not any(tensor.requires_grad for tensor in found.tensors.values())


def test_weights_nested_twice_and_saved_the_old_way_are_found(tmp_path: Path) -> None:
    content = {"model": {"state_dict": {"a": torch.ones(1)}, "step": 3}, "epoch": 1}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    found = read_checkpoint(tmp_path / "w.pth")
    assert list(found.tensors) == ["a"] and found.beside == ["epoch", "step"]


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.file}'",)


@pytest.mark.parametrize("new", [True, False])
def test_code_in_a_file_is_named_and_not_run(tmp_path: Path, new: bool) -> None:
    file, trace = tmp_path / "w.pt", tmp_path / "it ran"
    content = {"state_dict": {"a": torch.zeros(1)}, "x": Malicious(trace)}
    torch.save(content, file, _use_new_zipfile_serialization=new)
    with pytest.raises(ModelError, match=r"w\.pt: holds more than tensors \(\w+\.system\).* nothing of the file was"):
        read_checkpoint(file)
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists(), "the file would have done it"


def test_a_plain_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "it ran"), protocol=2))
    with pytest.raises(ModelError, match=r"w\.pt"):
        read_checkpoint(tmp_path / "w.pt")
    assert not (tmp_path / "it ran").exists()


def test_a_whole_module_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"model": subprocess.PIPE, "net": torch.nn.Linear(2, 2)}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=re.escape("(torch.nn.modules.linear.Linear), which could run code")):
        read_checkpoint(tmp_path / "w.pt")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:-900])
    (tmp_path / "text.pt").write_text("not weights")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("cut", "text", "empty"):
        with pytest.raises(ModelError, match=rf"{name}\.pt: is no checkpoint that torch saved, or is damaged"):
            read_checkpoint(tmp_path / f"{name}.pt")
    with pytest.raises(ModelError, match=r"missing\.pt: no such file"):
        read_checkpoint(tmp_path / "missing.pt")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.zeros(1)], torch.zeros(1), {"state_dict": {"a": 1}}])
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="holds no tensors by name.*state_dict"):
        read_checkpoint(tmp_path / "w.pt")


# --- names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap", ["", "module.", "model.", "net.", "backbone.", "module.model.", "module.net.module."]
)
@pytest.mark.parametrize("architecture", ["unet", "swinunetr", "unetr", "segresnet"])
def test_wrappers_are_taken_off(architecture: str, wrap: str) -> None:
    backbone = backbone_of(architecture)
    names = [f"{wrap}{name}" for name in backbone.state_dict()]
    assert own_names(names, backbone) == dict(zip(names, backbone.state_dict()))


@pytest.mark.parametrize(("architecture", "part"), [("swinunetr", "swinViT"), ("unetr", "vit")])
@pytest.mark.parametrize("wrap", ["", "module.", "encoder.", "module.backbone.", "twice"])
def test_the_encoders_name_may_be_missing_or_doubled(architecture: str, part: str, wrap: str) -> None:
    backbone = backbone_of(architecture)
    encoder = [name for name in backbone.state_dict() if backbone.is_of_encoder(name)]
    names = [f"{part}.{name}" if wrap == "twice" else wrap + name.removeprefix(f"{part}.") for name in encoder]
    assert own_names(names, backbone) == dict(zip(names, encoder))


def test_names_of_something_else_find_nothing() -> None:
    """A U-Net's encoder is of several modules: no name in front is guessed."""
    foreign = [
        "head.weight",
        "conv1.conv.weight",
        "input_block",
        "module.",
        "",
        "student.input_block.conv1.conv.weight",
    ]
    assert own_names(foreign, backbone_of("unet")) == {}


# --- MONAI's self-supervised SwinUNETR ----------------------------------------------------------------------


def published_swin(network: SwinUNETR, fc: bool, root: str) -> dict[str, Tensor]:
    """Random numbers under the names of the published weights, as MONAI's own readers expect them."""
    torch.manual_seed(3)
    tensors = {}
    for name, tensor in network.swinViT.state_dict().items():
        name = re.sub(r"mlp\.linear([12])", r"mlp.fc\1", name) if fc else re.sub(r"^(layers\d\.0)", r"\1.0", name)
        tensors[root + name] = torch.randn(tensor.shape) if tensor.is_floating_point() else tensor
    heads = {"module.rotation_head.weight": torch.randn(4, 192), "module.norm.weight": torch.randn(192)}
    return {**tensors, **(heads if fc else {"encoder.mask_token": torch.zeros(1, 12, 1, 1, 1)})}


def monai_swin(**settings: Any) -> SwinUNETR:
    """MONAI's own network, of the size of our ``small``: two blocks a stage."""
    return SwinUNETR(in_channels=1, out_channels=2, feature_size=24, depths=(2, 2, 2, 2), **settings)


def test_the_names_of_the_published_swin_give_what_monai_makes_of_them(tmp_path: Path) -> None:
    theirs, ours = monai_swin(), backbone_of("swinunetr", size="small")
    tensors = published_swin(theirs, fc=True, root="module.")
    torch.save({"epoch": 100, "state_dict": tensors, "optimizer": {}}, tmp_path / "model_swinvit.pt")
    theirs.load_from({"state_dict": tensors})
    account = transfer(ours, load_pretrained(tmp_path / "model_swinvit.pt"))
    own = ours.state_dict()
    for name, tensor in theirs.swinViT.state_dict().items():
        assert torch.equal(own[f"swinViT.{name}"], tensor), name
    assert account.parts[0].share == 1 and account.parts[1].loaded == 0
    assert set(account.left_out) == {"module.rotation_head.weight", "module.norm.weight"}
    assert any("epoch" in line and "optimizer" in line for line in account.lines())


def test_the_names_of_disruptive_autoencoders_give_what_monai_makes_of_them(tmp_path: Path) -> None:
    theirs, ours = monai_swin(), backbone_of("swinunetr", size="small")
    tensors = published_swin(theirs, fc=False, root="encoder.")
    torch.save({"model": tensors}, tmp_path / "ssl.pth")
    _, changed, _ = copy_model_state(theirs, tensors, filter_func=filter_swinunetr)
    account = transfer(ours, load_pretrained(tmp_path / "ssl.pth"))
    assert len(changed) > 90 and list(account.left_out) == ["encoder.mask_token"]
    own = ours.state_dict()
    for name, tensor in theirs.swinViT.state_dict().items():
        assert torch.equal(own[f"swinViT.{name}"], tensor), name
