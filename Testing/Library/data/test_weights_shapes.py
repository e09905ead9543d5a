"""What is known of a network's tensors without torch, against those that it has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from small_packages import CLASSES, make_package, rehash

from HybridMIMLib.architectures import settled
from HybridMIMLib.data.model_description import WEIGHTS
from HybridMIMLib.data.model_store import add
from HybridMIMLib.data.weights_shapes import known_shapes, why_not_these
from HybridMIMLib.errors import ModelError
from HybridMIMLib.networks import make_segmentation_network
from HybridMIMLib.settings.network import NetworkSettings

CROP = (64, 64, 64)
NETWORKS = [
    NetworkSettings(architecture=kind, size=size)  # type: ignore[arg-type]
    for kind in ("unet", "resunet", "segresnet", "unetr")
    for size in ("tiny", "small", "base")
]
NETWORKS += [
    NetworkSettings(architecture="swinunetr"),
    NetworkSettings(architecture="swinunetr", size="small", window=4),
    NetworkSettings(architecture="unetr", token=8),
    NetworkSettings(features=[3, 5]),
    NetworkSettings(
        architecture="resunet", features=[6, 6, 4, 4], strides=[[1, 1, 1], [1, 1, 1], [2, 1, 2], [1, 1, 1]]
    ),
]


def shapes_of(settings: NetworkSettings, channels: int, classes: int) -> dict[str, tuple[int, ...]]:
    """What the network has; but for MONAI's SwinUNETR, which cannot, it takes no memory."""
    with torch.device("cpu" if settings.architecture == "swinunetr" else "meta"):
        network = make_segmentation_network(settings, channels, classes, CROP)
    return {name: tuple(tensor.shape) for name, tensor in network.monai_state().items()}


@pytest.mark.parametrize("network", NETWORKS, ids=lambda one: f"{one.architecture}-{one.size}-{one.features}")
def test_what_is_known_is_so(network: NetworkSettings) -> None:
    settings = settled(network, (1.0, 1.0, 3.0))
    shapes = shapes_of(settings, 2, 3)
    known = known_shapes(settings, 2, 4, CROP)
    assert known == {name: shapes.get(name) for name in known}
    if settings.architecture in ("unet", "resunet"):
        assert set(known) == set(shapes)
    assert why_not_these(shapes, settings, 2, 4, CROP) == ""
    for channels, outputs in ((1, 4), (2, 5)):
        assert "and should be" in why_not_these(shapes, settings, channels, outputs, CROP)


@pytest.mark.parametrize("kind", ["unet", "resunet", "segresnet", "unetr", "swinunetr"])
def test_weights_of_another_size_are_seen(kind: str) -> None:
    settings = settled(NetworkSettings(architecture=kind), (1.0, 1.0, 1.0))  # type: ignore[arg-type]
    other = settled(NetworkSettings(architecture=kind, size="small"), (1.0, 1.0, 1.0))  # type: ignore[arg-type]
    assert "and should be" in why_not_these(shapes_of(settings, 1, 2), other, 1, 3, CROP)


def test_a_tensor_too_many_and_one_too_few_are_named() -> None:
    settings = settled(NetworkSettings(features=[3, 5]), (1.0, 1.0, 1.0))
    shapes = shapes_of(settings, 1, 1)
    assert why_not_these({**shapes, "z": (1,)}, settings, 1, 2, CROP) == "z is no part of it"
    del shapes["bottleneck.conv2.conv.weight"]
    assert why_not_these(shapes, settings, 1, 2, CROP) == "bottleneck.conv2.conv.weight is missing"


def test_a_package_with_the_weights_of_another_network_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path / "workspace"))
    package, folder = make_package(), tmp_path / "package"
    package.save(folder)
    replace(package, network=make_package(classes=CLASSES[:1]).network).save(tmp_path / "other")
    (folder / WEIGHTS).write_bytes((tmp_path / "other" / WEIGHTS).read_bytes())
    with pytest.raises(ModelError, match="output_block.conv.conv.weight is 2 x 4 x 1 x 1 x 1, and should be 3 x 4"):
        add(rehash(folder))
    tensors = load_file(tmp_path / "other" / WEIGHTS)
    save_file({**tensors, "input_block.extra": np.zeros(1, np.float32)}, folder / WEIGHTS)
    with pytest.raises(ModelError, match="has other shapes"):
        add(rehash(folder))
    package.save(folder)
    assert add(folder)[1]
