"""Pre-trained weights → a network: what is loaded, reshaped, left out and told, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_runs import TINY, KeptLog, write_blobs
from torch import Tensor

from HybridMIMLib import finetune, pretrain
from HybridMIMLib.architectures import settled
from HybridMIMLib.config import make_run
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.errors import ModelError, SettingsError
from HybridMIMLib.events import EventReader
from HybridMIMLib.finetuning.start import begin_with
from HybridMIMLib.model_package import load_model
from HybridMIMLib.networks import EncoderDecoder, make_backbone
from HybridMIMLib.pretrained import Origin, Pretrained, load_pretrained, save_pretrained
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.settings.pretraining import PretrainingSettings
from HybridMIMLib.transfer import Account, transfer
from HybridMIMLib.weights import load_weights, save_weights

WHOLE = ("encoder", "decoder")


def origin(channels: int = 1, crop: tuple[int, int, int] = (32, 32, 32), **network: Any) -> Origin:
    plan = Plan(channels, (1.0, 1.0, 1.0), "zscore", (0.0, 1.0), crop, (8, 8, 8), (16, 16, 16))
    return Origin(settled(NetworkSettings(**network), plan.spacing), plan, PretrainingSettings(), WHOLE, 5)


def backbone_of(made: Origin, seed: int = 0) -> EncoderDecoder:
    return make_backbone(made.network, made.plan.channels, made.plan.crop, seed)


def saved(folder: Path, made: Origin) -> tuple[Pretrained, dict[str, Tensor]]:
    """Weights of a pre-training, as read from disk, and the backbone's tensors."""
    backbone = backbone_of(made, seed=1)
    save_pretrained(folder / "w.safetensors", backbone, made)
    return load_pretrained(folder / "w.safetensors"), backbone.state_dict()


def checkpoint(folder: Path, tensors: dict[str, Tensor]) -> Pretrained:
    torch.save(tensors, folder / "w.pt")
    return load_pretrained(folder / "w.pt")


# --- what is written ----------------------------------------------------------------------------------------


def test_what_a_pretraining_leaves_rebuilds_its_network(unicode_folder: Path) -> None:
    made = origin(2, (32, 48, 32), architecture="resunet", features=[4, 8, 8])
    given, tensors = saved(unicode_folder, made)
    assert given.origin == made
    again = backbone_of(given.origin)
    account = transfer(again, given)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in again.state_dict().items())
    assert account.sentence() == (
        f"loaded {len(tensors)} of {len(tensors)} tensors (100 % of the encoder's numbers, 100 % of the decoder's) "
        f"from {unicode_folder / 'w.safetensors'}"
    )
    assert "pre-trained with hybridmim on 5 scan(s): encoder and decoder" in account.lines()


@pytest.mark.parametrize("architecture", ["unet", "swinunetr"])
def test_a_decoder_that_was_not_trained_is_neither_saved_nor_loaded(tmp_path: Path, architecture: str) -> None:
    made = origin(crop=(64, 64, 64), architecture=architecture)
    backbone, target = backbone_of(made, seed=1), backbone_of(made, seed=2)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    alone = Origin(made.network, made.plan, made.objective, ("encoder",), 5)
    save_pretrained(tmp_path / "w.safetensors", backbone, alone)
    account = transfer(target, load_pretrained(tmp_path / "w.safetensors"))
    for name, tensor in target.state_dict().items():
        source = backbone.state_dict() if target.is_of_encoder(name) else before
        assert torch.equal(tensor, source[name]), name
    encoder, decoder = account.parts
    assert (encoder.share, decoder.loaded) == (1, 0) and len(decoder.kept) == decoder.tensors > 0
    assert account.left_out == {}
    assert any(line.startswith("decoder: loaded 0 of") and "initial values" in line for line in account.lines())
    assert "pre-trained with hybridmim on 5 scan(s): encoder alone" in account.lines()


DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"kind": "model"}, "does not hold weights of a pre-training"),
    "format": ({"format": 9}, "made by another version"),
    "network": ({"network": {"features": [0]}}, "description is damaged"),
    "plan": ({"plan": {}}, "description is damaged"),
    "objective": ({"objective": "simmim"}, "description is damaged"),
    "scans": ({"scans": "many"}, "description is damaged"),
}


@pytest.mark.parametrize("part", DAMAGE)
def test_a_damaged_description_names_the_file(tmp_path: Path, part: str) -> None:
    saved(tmp_path, origin(features=[4, 8]))
    _, description = load_weights(tmp_path / "w.safetensors")
    change, words = DAMAGE[part]
    save_weights(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, {**description, **change})
    with pytest.raises(ModelError, match=rf"w\.safetensors: .*{words}"):
        load_pretrained(tmp_path / "w.safetensors")


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    (tmp_path / "folder").mkdir()
    cases = {
        "missing": "no such file",
        "missing.safetensors": "no such file",
        "folder": "no run folder of a finished",
        "foreign.safetensors": "not a weights file of HybridMIM",
    }
    for name, words in cases.items():
        with pytest.raises(ModelError, match=f"{name}: .*{words}"):
            Pretrained.of(make_run(None, {"weights": str(tmp_path / name)}))


# --- reshaping ----------------------------------------------------------------------------------------------


def fill(folder: Path, one: Origin, other: Origin) -> tuple[Account, EncoderDecoder, dict[str, Tensor]]:
    given, tensors = saved(folder, one)
    target = backbone_of(other)
    return transfer(target, given), target, tensors


@pytest.mark.parametrize("architecture", ["unet", "resunet", "swinunetr", "unetr", "segresnet"])
def test_more_channels_that_show_the_same_give_the_same_features(tmp_path: Path, architecture: str) -> None:
    """Nothing else may have been changed on the way. SwinUNETR and UNETR hand on the scan itself as level 0."""
    one, two = (origin(n, (64, 32, 32), architecture=architecture, window=4) for n in (1, 3))
    account, target, _ = fill(tmp_path, one, two)
    source = backbone_of(one, seed=1).eval()
    x = torch.randn(2, 1, 64, 32, 32)
    with torch.no_grad():
        expected, found = source(x), target.eval()(x.expand(-1, 3, -1, -1, -1))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert set(account.reshaped.values()) == {"channels 1 to 3"} and account.left_out == {}


def test_a_vit_takes_another_crop_token_and_number_of_channels(tmp_path: Path) -> None:
    one, two = (origin(n, c, architecture="unetr", token=t)
                for n, c, t in ((1, (32, 32, 64), 16), (2, (48, 32, 32), 8)))  # fmt: skip
    account, _, _ = fill(tmp_path, one, two)
    assert account.parts[0].share == 1
    assert account.reshaped["vit.patch_embedding.position_embeddings"] == "token grid 2×2×4 to 6×4×4"
    assert account.reshaped["vit.patch_embedding.patch_embeddings.weight"] == (
        "channels 1 to 2 and token side 16 to 8"
    )
    lost = {name for name, why in account.left_out.items() if why == "not in this network"}
    assert {name.partition(".")[0] for name in lost} == {"encoder2", "encoder3", "encoder4", "decoder5"}
    assert account.left_out["decoder4.transp_conv.conv.weight"] == "another shape"
    text = "\n".join(account.lines())
    assert "left out of the file, not in this network: decoder5 (4)" in text
    assert f"{len(account.left_out)} of the file left out" in account.sentence()


def test_positions_follow_the_places_and_not_the_count(tmp_path: Path) -> None:
    """2×2×4 and 4×2×2 tokens are as many, in another order."""
    one, two = (origin(1, crop, architecture="unetr") for crop in ((32, 32, 64), (64, 32, 32)))
    account, target, tensors = fill(tmp_path, one, two)
    name = "vit.patch_embedding.position_embeddings"
    found, given = target.state_dict()[name][0], tensors[name][0]
    assert account.reshaped[name] == "token grid 2×2×4 to 4×2×2" and not torch.equal(found, given)
    for corner in ((0, 0, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)):
        d, h, w = corner
        torch.testing.assert_close(found[3 * d * 4 + h * 2 + w], given[d * 8 + h * 4 + 3 * w])


def test_a_swin_takes_another_window(tmp_path: Path) -> None:
    one, two = (origin(1, (64, 64, 64), architecture="swinunetr", window=w) for w in (7, 4))
    account, target, _ = fill(tmp_path, one, two)
    tables = [name for name in account.reshaped if name.endswith("relative_position_bias_table")]
    assert len(tables) == 4 and {account.reshaped[name] for name in tables} == {"window 7 to 4"}
    assert account.parts[0].share == 1 and "reshaped, window 7 to 4: swinViT (4)" in account.lines()
    index = target.state_dict()["swinViT.layers1.0.blocks.0.attn.relative_position_index"]
    assert index.shape == (64, 64) and int(index.max()) < 7**3, "the index fits the new table"


# --- too little ---------------------------------------------------------------------------------------------


def test_nothing_that_fits_is_an_error_with_or_without_leave(tmp_path: Path) -> None:
    given, _ = saved(tmp_path, origin(features=[4, 8]))
    target = backbone_of(origin(architecture="segresnet"))
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    for partial in (False, True):
        words = r"none of its 19 tensors fits .* bottleneck\S+ \[8, 4, 3, 3, 3\] .* convInit\S+ \[8, 1, 3, 3, 3\]"
        with pytest.raises(ModelError, match=rf"w\.safetensors: {words}"):
            transfer(target, given, partial)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_a_head_or_a_decoder_alone_is_nothing(tmp_path: Path) -> None:
    target = backbone_of(origin(features=[4, 8]))
    decoder = {name: tensor for name, tensor in target.state_dict().items() if not target.is_of_encoder(name)}
    with pytest.raises(ModelError, match="none of its .* fits the encoder"):
        transfer(target, checkpoint(tmp_path, {**decoder, "output_block.conv.conv.weight": torch.zeros(2, 4)}), True)


@pytest.mark.parametrize(("share", "enough"), [(0.905, True), (0.9, True), (0.895, False), (0.01, False)])
def test_less_than_nine_tenths_of_the_encoder_must_be_asked_for(tmp_path: Path, share: float, enough: bool) -> None:
    """The share counts numbers, not tensors."""
    source, target = _Parts(share), _Parts(share, seed=1)
    given = checkpoint(tmp_path, {"encoder.large": source.state_dict()["encoder.large"]})
    if not enough:
        with pytest.raises(ModelError, match=f"fills {int(100 * share)} % .*encoder.small.* partial_weights to true"):
            transfer(target, given)
        assert torch.equal(target.encoder.large, _Parts(share, seed=1).encoder.large), "nothing was copied"
    account = transfer(target, given, partial=not enough)
    assert torch.equal(target.encoder.large, source.encoder.large) and account.parts[0].share == share
    assert account.parts[0].kept == ("encoder.small",)


class _Encoder(torch.nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.large = torch.nn.Parameter(torch.randn(round(1000 * share)))
        self.small = torch.nn.Parameter(torch.randn(1000 - round(1000 * share)))
        self.register_buffer("index", torch.zeros(5000, dtype=torch.int64))


class _Parts(EncoderDecoder):
    """A stand-in with two tensors of known sizes, and an index that counts for nothing."""

    encoder_parts = ("encoder",)

    def __init__(self, share: float, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = _Encoder(share)

    def encode_from(self, stage: int, x: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def decode_stages(self, pyramid: list[Tensor], box: object = None) -> Iterator[Tensor]:
        raise NotImplementedError

    def encode_hidden(self, x: Tensor, hidden: Tensor, fill: Tensor) -> list[Tensor]:
        raise NotImplementedError


def test_one_tensor_under_two_names_is_told(tmp_path: Path) -> None:
    source, target = (backbone_of(origin(features=[4, 8]), seed) for seed in (1, 2))
    name = "bottleneck.conv2.conv.weight"
    tensors = {**source.state_dict(), f"module.{name}": torch.zeros(8, 8, 3, 3, 3), "head.weight": torch.zeros(3)}
    account = transfer(target, checkpoint(tmp_path, tensors))
    assert torch.equal(target.state_dict()[name], source.state_dict()[name])
    assert account.left_out == {f"module.{name}": "under a name that was there before",
                                "head.weight": "not in this network"}  # fmt: skip


def test_half_precision_becomes_what_the_network_has(tmp_path: Path) -> None:
    source, target = (backbone_of(origin(features=[4, 8]), seed) for seed in (1, 2))
    transfer(target, checkpoint(tmp_path, {name: tensor.half() for name, tensor in source.state_dict().items()}))
    for name, tensor in target.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, source.state_dict()[name].half().float()), name


# --- in a run -----------------------------------------------------------------------------------------------


def test_settings_of_a_run_and_what_the_weights_bring(tmp_path: Path) -> None:
    given, _ = saved(tmp_path, origin(features=[4, 8]))
    assert given.origin is not None

    def run(**settings: Any) -> tuple[NetworkSettings, Plan]:
        made = make_run(None, settings)
        network = given.network_for(made)
        plan = given.plan_for(make_run(made, {"network": network}))
        assert plan is not None
        return network, plan

    assert run() == (given.origin.network, given.origin.plan)
    network, plan = run(network={"features": [4, 8], "dropout": 0.3}, plan={"crop": [48, 32, 16]})
    assert network.dropout == 0.3 and plan.crop == (48, 32, 16) and plan.region == given.origin.plan.region
    with pytest.raises(SettingsError, match="architecture is segresnet, and the weights .* of unet.*Leave out"):
        run(network={"architecture": "segresnet"})
    with pytest.raises(SettingsError, match=r"plan.crop \[40, 32, 32\] is not a multiple of plan.region"):
        run(plan={"crop": [40, 32, 32]})


def messages(run: Path) -> list[str]:
    return [event["message"] for event in EventReader(run / "events.jsonl").read() if event["kind"] == "message"]


def write_two_channels(folder: Path) -> Path:
    """Labelled blobs whose scans are listed twice, as two channels."""
    write_blobs(folder, 3, labelled=True)
    rows = [f"images/blob_{n}.nii.gz,images/blob_{n}.nii.gz,labels/blob_{n}.nii.gz" for n in range(3)]
    (folder / "cases.csv").write_text("\n".join(["image_0,image_1,label", *rows]))
    return folder / "cases.csv"


def test_one_channel_is_pretrained_and_two_are_tuned_in_another_crop(blobs: Path, tmp_path: Path) -> None:
    settings = {**TINY, "pretraining": {**TINY["pretraining"], "steps": 2}}
    pretrain(unlabelled=str(blobs / "unlabelled"), output=str(tmp_path / "pre"), **settings)
    cases = write_two_channels(tmp_path / "two")
    result = finetune(
        labelled=str(cases),
        weights=str(tmp_path / "pre"),
        output=str(tmp_path / "run"),
        finetuning={**TINY["finetuning"], "steps": 2},
        plan={"crop": [24, 16, 16]},
    )
    model = load_model(Path(result["model"]))
    assert (model.plan.channels, model.plan.crop, model.settings.features) == (2, (24, 16, 16), [4, 8])
    assert "1 of them reshaped" in result["loaded"] and model.provenance["pretrained"] == result["loaded"]
    said = messages(tmp_path / "run")
    assert "reshaped, channels 1 to 2: input_block.conv1.conv.weight" in said
    assert sum(line.startswith(("encoder: loaded", "decoder: loaded")) for line in said) == 2


def test_a_published_file_is_tuned_with_the_settings_of_the_run(blobs: Path, tmp_path: Path) -> None:
    source = backbone_of(origin(features=[4, 8]), seed=3)
    tensors = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "w.pt")
    call: dict[str, Any] = {"labelled": str(blobs / "labelled"), "weights": str(tmp_path / "w.pt"), **TINY}
    call["finetuning"] = {**TINY["finetuning"], "steps": 1, "learning_rate": 1e-9, "validate_every": 1}
    result = finetune(**call, output=str(tmp_path / "run"))
    tuned = load_model(Path(result["model"])).network.backbone.state_dict()
    assert all(torch.allclose(tuned[name], tensor, atol=1e-6) for name, tensor in source.state_dict().items())
    assert "beside the weights, not used: epoch" in messages(tmp_path / "run")
    with pytest.raises(ModelError, match="partial_weights to true"):
        finetune(**{**call, "network": {"features": [4, 8, 8]}}, output=str(tmp_path / "other"))


def test_events_are_a_few_lines(tmp_path: Path) -> None:
    given, _ = saved(tmp_path, origin(2, (64, 64, 64), architecture="swinunetr"))
    log = KeptLog()
    begin_with(backbone_of(origin(1, (64, 64, 64), architecture="swinunetr", window=5)), given, False, log)
    assert 4 <= len(log.events) <= 8 and all(len(event["message"]) < 400 for event in log.events)
