"""How a fine-tuning starts: what it takes, what is frozen, and how fast each layer learns, for every network."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import TINY, KeptLog
from torch import Tensor

from HybridMIMLib import finetune, pretrain
from HybridMIMLib.architectures import settled
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.events import EventLog, EventReader
from HybridMIMLib.finetuning.run import _Finetuning
from HybridMIMLib.finetuning.start import Freezer, begin_with, paces
from HybridMIMLib.networks import SegmentationNetwork, make_segmentation_network
from HybridMIMLib.networks.dropout import dropout_keys
from HybridMIMLib.pretrained import load_pretrained
from HybridMIMLib.settings.finetuning import FinetuningSettings
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.training import Schedule, TrainingLoop, load_checkpoint

ALL = ("unet", "resunet", "swinunetr", "unetr", "segresnet")
CROPS = {"swinunetr": (64, 32, 32), "unetr": (32, 32, 32)}


def crop_of(architecture: str) -> tuple[int, int, int]:
    return CROPS.get(architecture, (16, 16, 16))


def network_of(architecture: Any, token: int = 16, seed: int = 0) -> SegmentationNetwork:
    features = [4, 8, 8] if architecture in ("unet", "resunet") else None
    settings = settled(NetworkSettings(architecture=architecture, token=token, features=features), (1.0, 1.0, 1.0))
    return make_segmentation_network(settings, 1, 2, crop_of(architecture), seed)


# --- layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "token"), [*((name, 16) for name in ALL), ("unetr", 8)])
def test_every_tensor_of_the_encoder_is_in_one_layer_and_no_other_is_in_any(architecture: str, token: int) -> None:
    backbone = network_of(architecture, token).backbone
    found = {name: backbone.layers_below_decoder(name) for name in backbone.state_dict()}
    for name, layer in found.items():
        parts = [parts for parts in backbone.encoder_layers if any(f"{name}.".startswith(f"{p}.") for p in parts)]
        assert len(parts) == (1 if backbone.is_of_encoder(name) else 0), name
        assert (layer > 0) == backbone.is_of_encoder(name), name
    assert set(found.values()) == set(range(len(backbone.encoder_layers) + 1))


@pytest.mark.parametrize("architecture", ALL)
def test_layers_stand_in_the_order_in_which_they_compute(architecture: str) -> None:
    """A hook on each layer's first module with weights tells when it ran."""
    network = network_of(architecture).eval()
    ran: list[int] = []
    for name, module in network.backbone.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            layer = network.backbone.layers_below_decoder(f"{name}.weight")
            module.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    with torch.no_grad():
        network.backbone.encode(torch.rand(1, 1, *crop_of(architecture)))
    encoder = [layer for layer in ran if layer > 0]
    # A residual block looks at its entry again, but never at an earlier layer's.
    assert encoder == sorted(encoder, reverse=True) and encoder[0] == len(network.backbone.encoder_layers)


def test_depth_counts_from_the_decoder_to_the_stem() -> None:
    backbone = network_of("unetr").backbone
    names = {
        "vit.patch_embedding.position_embeddings": 13,
        "vit.blocks.0.attn.qkv.weight": 12,
        "vit.blocks.1.attn.qkv.weight": 11,
        "vit.blocks.10.attn.qkv.weight": 2,
        "vit.blocks.11.attn.qkv.weight": 1,
        "vit.norm.weight": 1,
        "decoder2.conv_block.conv1.conv.weight": 0,
    }
    assert {name: backbone.layers_below_decoder(name) for name in names} == names


def test_the_rate_falls_by_a_factor_a_layer_and_the_decoder_learns_at_full_rate() -> None:
    network = network_of("unet")
    pace = paces(network.backbone, FinetuningSettings(layer_decay=0.5, frozen_steps=7))
    shares = {name: pace(name).share for name, _ in network.named_parameters()}
    expected = {"input_block": 0.125, "downsamples.0": 0.25, "bottleneck": 0.5, "upsamples": 1.0}
    for name, share in shares.items():
        part = next((part for part in expected if name.startswith(f"backbone.{part}.")), None)
        assert share == (expected[part] if part else 1.0), name
        assert pace(name).after == (7 if share < 1 else 0)
    assert paces(network.backbone, FinetuningSettings(frozen_steps=-1))("backbone.bottleneck.x").after == math.inf


# --- frozen -------------------------------------------------------------------------------------------------


def loop_of(
    folder: Path, settings: FinetuningSettings, architecture: str = "unet", stop_at: int = -1
) -> TrainingLoop:
    network = network_of(architecture)
    freezer = Freezer(network.backbone, settings.frozen_steps)

    def losses(step: int) -> dict[str, Tensor]:
        if step == stop_at:
            raise KeyboardInterrupt
        freezer.at(step)
        image = torch.rand((1, 1, *crop_of(architecture)), generator=torch.Generator().manual_seed(step))
        with dropout_keys(torch.tensor([step])):
            return {"square": (network(image) - 1).square().mean()}

    folder.mkdir(exist_ok=True)
    return TrainingLoop(
        "finetune", network, losses, Schedule(settings.steps, 0.01, 1, 0.01), folder / "checkpoint.pt", 2, EventLog(),
        paces=paces(network.backbone, settings),
    )  # fmt: skip


def tensors(loop: TrainingLoop) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in loop.module.state_dict().items()}


@pytest.mark.parametrize("architecture", ALL)
def test_a_frozen_encoder_stays_and_has_no_state_until_it_thaws(tmp_path: Path, architecture: str) -> None:
    loop = loop_of(tmp_path, FinetuningSettings(steps=2, frozen_steps=2), architecture)
    before = tensors(loop)
    loop.run()
    module = loop.module
    assert isinstance(module, SegmentationNetwork)
    encoder = {name for name in before if module.backbone.is_of_encoder(name.removeprefix("backbone."))}
    changed = {name for name, tensor in tensors(loop).items() if not torch.equal(tensor, before[name])}
    assert changed and not changed & encoder
    known = len(load_checkpoint(loop.checkpoint)["optimizer"]["state"])
    assert known == sum(name not in encoder for name, _ in module.named_parameters())


def test_a_thawed_encoder_learns_what_can_learn() -> None:
    network = network_of("unetr")
    can = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    freezer = Freezer(network.backbone, 1)
    freezer.at(1)
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert all(network.backbone.is_of_encoder(name.removeprefix("backbone.")) for name in frozen)
    freezer.at(2)
    assert {name for name, parameter in network.named_parameters() if parameter.requires_grad} == can
    assert len(can) < len(dict(network.named_parameters())), "some of MONAI's tensors never learn"


@pytest.mark.parametrize("architecture", ALL)
def test_a_frozen_encoder_computes_as_in_the_finished_model(architecture: str) -> None:
    network = network_of(architecture).train()
    image = torch.rand(1, 1, *crop_of(architecture))
    with dropout_keys(torch.tensor([5])):
        dropped = network.backbone.encode(image)
        Freezer(network.backbone, -1).at(10**9)
        frozen = network.backbone.encode(image)
    assert not any(level.requires_grad for level in frozen)
    finished = network.eval().backbone.encode(image)
    assert all(torch.equal(a, b) for a, b in zip(frozen, finished))
    assert not torch.equal(dropped[-1], frozen[-1])


@pytest.mark.parametrize("stop_at", [2, 3, 4, 5, 6])
def test_killed_around_the_thaw_it_ends_with_the_same_weights(tmp_path: Path, stop_at: int) -> None:
    """Frozen in three steps, with checkpoints after 2, 4 and 6."""
    settings = FinetuningSettings(steps=6, frozen_steps=3, layer_decay=0.7)
    whole = loop_of(tmp_path / "whole", settings)
    whole.run()
    with pytest.raises(KeyboardInterrupt):
        loop_of(tmp_path / "killed", settings, stop_at=stop_at).run()
    again = loop_of(tmp_path / "killed", settings)
    again.run()
    there = tensors(again)
    assert all(torch.equal(tensor, there[name]) for name, tensor in tensors(whole).items())


# --- whole runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    return Path(pretrain(unlabelled=str(blobs / "unlabelled"), output=str(folder / "run"), **TINY)["weights"])


def tuned(**changes: Any) -> dict[str, Any]:
    return {**TINY, "finetuning": {**TINY["finetuning"], **changes}}


def test_the_encoder_alone_can_be_taken(weights: Path) -> None:
    given, log = load_pretrained(weights), KeptLog()
    assert given.origin is not None
    own, plan = given.origin.network, given.origin.plan
    network, fresh = (make_segmentation_network(own, 1, 2, plan.crop, seed=9) for _ in range(2))
    said = begin_with(network.backbone, given, False, log, encoder_alone=True)
    for name, tensor in network.backbone.state_dict().items():
        source = given.tensors if network.backbone.is_of_encoder(name) else fresh.backbone.state_dict()
        assert torch.equal(tensor, source[name]), name
    assert "100 % of the encoder's numbers, 0 % of the decoder's" in said and "left out" not in said
    assert any("decoder of the weights is left out" in event["message"] for event in log.events)


def test_a_run_with_its_encoder_frozen_throughout_keeps_it(blobs: Path, weights: Path, tmp_path: Path) -> None:
    settings = tuned(frozen_steps=-1, start="encoder", layer_decay=0.5, schedule="poly")
    result = finetune(labelled=str(blobs / "labelled"), weights=str(weights), output=str(tmp_path), **settings)
    before, after = load_file(weights), load_file(Path(result["model"]) / "models" / "model.safetensors")
    encoder = [name for name in before if name.split(".")[0] in ("input_block", "downsamples", "bottleneck")]
    assert encoder and all(torch.equal(before[name], after[name]) for name in encoder)
    decoder = [name for name in before if name.startswith("upsamples")]
    assert decoder and not any(torch.equal(before[name], after[name]) for name in decoder)
    messages = [event.get("message", "") for event in EventReader(tmp_path / "events.jsonl").read()]
    assert "the encoder is frozen in all steps" in messages


def test_killed_around_the_thaw_a_run_ends_with_the_same_model(
    blobs: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = {"labelled": str(blobs / "labelled"), "weights": str(weights), **tuned(frozen_steps=3)}
    whole = Path(finetune(**call, output=str(tmp_path / "whole"))["model"])
    losses: Callable[[_Finetuning, int], dict[str, Tensor]] = _Finetuning.losses
    with monkeypatch.context() as patch:

        def killed(self: _Finetuning, step: int) -> dict[str, Tensor]:
            if step == 4:
                raise KeyboardInterrupt
            return losses(self, step)

        patch.setattr(_Finetuning, "losses", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune(**call, output=str(tmp_path / "killed"))
    again = Path(finetune(**call, output=str(tmp_path / "killed"))["model"])
    one, other = ((model / "models" / "model.safetensors").read_bytes() for model in (whole, again))
    assert one == other


def test_an_encoder_that_learnt_nothing_is_not_frozen(blobs: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=re.escape("finetuning.frozen_steps is 5, and without weights")):
        finetune(labelled=str(blobs / "labelled"), output=str(tmp_path / "run"), **tuned(frozen_steps=5))
    nothing = {**TINY, "pretraining": {**TINY["pretraining"], "objective": "none"}}
    initial = pretrain(unlabelled=str(blobs / "unlabelled"), output=str(tmp_path / "none"), **nothing)["weights"]
    with pytest.raises(SettingsError, match=r"frozen_steps is -1, and in .* made with objective none"):
        finetune(
            labelled=str(blobs / "labelled"), weights=initial, output=str(tmp_path / "run"), **tuned(frozen_steps=-1)
        )


def test_what_is_frozen_at_its_initial_values_is_told(weights: Path) -> None:
    given, log = load_pretrained(weights), KeptLog()
    assert given.origin is not None
    tensors = {name: tensor for name, tensor in given.tensors.items() if not name.startswith("input_block")}
    part, plan = replace(given, tensors=tensors), given.origin.plan
    network = make_segmentation_network(given.origin.network, 1, 2, plan.crop)
    begin_with(network.backbone, part, True, log)
    assert not log.warnings, "what learns from the beginning may begin anyhow"
    begin_with(network.backbone, given, True, log, frozen=True)
    assert not log.warnings
    begin_with(network.backbone, part, True, log, frozen=True)
    (warning,) = log.warnings
    assert "frozen at their initial values" in warning and "input_block" in warning


@pytest.mark.parametrize(
    ("setting", "value"),
    [("frozen_steps", -2), ("layer_decay", 0.0), ("layer_decay", 1.5), ("labelled_fraction", 0.0), ("patience", -1),
     ("schedule", "linear"), ("start", "decoder"), ("precision", "double")],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=rf"finetuning\.{setting} is {re.escape(repr(value))}"):
        FinetuningSettings(**{setting: value})


def test_patience_needs_a_validation() -> None:
    with pytest.raises(SettingsError, match="hold out scans"):
        FinetuningSettings(patience=3, validation_cases=0)
