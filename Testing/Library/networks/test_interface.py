"""What every network promises: widths and strides, entry at any stage, boxes, dropout, names of MONAI's tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks import nets
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from HybridMIMLib.architectures import SEGRESNET, SWIN, VIT, SegResNetSize, SwinSize, VitSize, settled, total_stride
from HybridMIMLib.networks import (
    UNETR,
    EncoderDecoder,
    SegmentationNetwork,
    SegResNet,
    SwinUNETR,
    UNet,
    make_backbone,
    make_segmentation_network,
)
from HybridMIMLib.networks.dropout import SampleDropout, dropout_keys
from HybridMIMLib.networks.interface import Box, Pyramid, wholly_hidden
from HybridMIMLib.settings.network import NetworkSettings

EVEN, THICK = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 1, 1]], [[1, 1, 1], [2, 2, 1], [2, 2, 1], [2, 2, 2]]
SWIN_SIZE, VIT_SIZE = SwinSize(12, (1, 1, 1, 1), (1, 2, 4, 4)), VitSize(24, 2, 4)
Triple = tuple[int, int, int]
MAKERS: dict[str, Callable[[int, float, Triple], EncoderDecoder]] = {
    "unet": lambda channels, dropout, crop: UNet(channels, [8, 8, 10, 12, 16], EVEN, dropout),
    "thick unet": lambda channels, dropout, crop: UNet(channels, [8, 10, 12, 16], THICK, dropout),
    "resunet": lambda channels, dropout, crop: UNet(channels, [8, 8, 10, 12, 16], EVEN, dropout, residual=True),
    "two stages": lambda channels, dropout, crop: UNet(channels, [8, 12], EVEN[:2], dropout),
    "swinunetr": lambda channels, dropout, crop: SwinUNETR(channels, SWIN_SIZE, 4, dropout),
    "unetr": lambda channels, dropout, crop: UNETR(channels, VIT_SIZE, crop, 16, dropout),
    "unetr 8": lambda channels, dropout, crop: UNETR(channels, VIT_SIZE, crop, 8, dropout),
    "segresnet": lambda channels, dropout, crop: SegResNet(channels, SegResNetSize(8, (1, 2, 1, 1)), dropout),
}
TRANSFORMERS = ("swinunetr", "unetr", "unetr 8")
every = pytest.mark.parametrize("kind", MAKERS)


def crop_of(kind: str) -> Triple:
    """Three voxels at the coarsest bottleneck, so that a box of two has two places."""
    return (96, 32, 32) if kind == "swinunetr" else (48, 16, 16)


def network(kind: str, channels: int = 1, dropout: float = 0.0, crop: Triple | None = None) -> EncoderDecoder:
    """A small one, in evaluation mode."""
    torch.manual_seed(0)
    return MAKERS[kind](channels, dropout, crop or crop_of(kind)).eval()


def scans(crop: Triple, batch: int = 2, channels: int = 1) -> Tensor:
    """Noise, the same each time."""
    return torch.rand(batch, channels, *crop, generator=torch.Generator().manual_seed(1))


def boxes(kind: str) -> Box:
    """A box at another place in each of two samples, as thin as the bottleneck allows."""
    _, h, w = network(kind).strides[-1]
    deep, high, wide = crop_of(kind)
    return Box(torch.tensor([[deep // 3, 0, wide - w], [0, high - h, 0]]), (deep * 2 // 3, h, w))


def same(one: Pyramid, other: Pyramid, within: float = 1e-5) -> bool:
    """Whether all levels agree."""
    return len(one) == len(other) and all(torch.allclose(a, b, atol=within) for a, b in zip(one, other))


def cut(level: Tensor, box: Box, stride: Triple, sample: int) -> Tensor:
    """The box of one sample, cut by slices."""
    places = [slice(low // s, (low + n) // s) for low, n, s in zip(box.lower[sample].tolist(), box.size, stride)]
    return level[sample : sample + 1, :, places[0], places[1], places[2]]


def without_norms(backbone: EncoderDecoder) -> EncoderDecoder:
    """With every norm that looks at more than one voxel replaced by nothing."""
    for module in list(backbone.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.InstanceNorm3d | nn.GroupNorm):
                setattr(module, name, nn.Identity())
    return backbone


# Shapes


@every
@pytest.mark.parametrize("channels", [1, 4])
def test_levels_have_the_announced_widths_and_strides(kind: str, channels: int) -> None:
    backbone = network(kind, channels)
    with torch.no_grad():
        pyramid = backbone.encode(scans(crop_of(kind), 1, channels))
        for level, width, stride in zip(pyramid, backbone.widths, backbone.strides, strict=True):
            assert level.shape == (1, width, *(n // s for n, s in zip(crop_of(kind), stride)))
        assert backbone.decode(pyramid).shape == (1, backbone.out_width, *crop_of(kind))
        fill = torch.zeros(backbone.fill_width)
        hidden = backbone.encode_hidden(
            scans(crop_of(kind), 1, channels), torch.zeros(1, *crop_of(kind), dtype=torch.bool), fill
        )
        assert same(hidden, pyramid)


@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("architecture", ["unet", "resunet", "swinunetr", "unetr", "segresnet"])
def test_settings_reach_the_network(architecture: str, size: str) -> None:
    given: dict[str, Any] = {"token": 8} if architecture == "unetr" else {}
    chosen = settled(NetworkSettings(architecture=architecture, size=size, dropout=0.3, **given), (1, 1, 4))  # type: ignore[arg-type]
    backbone = make_backbone(chosen, 2, (64, 32, 32))
    assert total_stride(chosen) == backbone.strides[-1]
    shares = {module.share for module in backbone.modules() if isinstance(module, SampleDropout)}
    assert shares == {0.3}
    width = {
        "swinunetr": 16 * SWIN[size].features,
        "unetr": VIT[size].width,
        "segresnet": 8 * SEGRESNET[size].filters,
    }.get(architecture, (chosen.features or [0])[-1])
    assert backbone.widths[-1] == width


@every
def test_the_encoders_tensors_are_those_that_encoding_needs(kind: str) -> None:
    """Whatever the bottleneck's gradient reaches, and nothing else."""
    backbone = network(kind)
    (backbone.encode(scans(crop_of(kind), 1))[-1] ** 3).sum().backward()
    reached = {name for name, weight in backbone.named_parameters() if weight.grad is not None}
    unused = {name for name, weight in backbone.named_parameters() if not weight.requires_grad}
    assert reached == {name for name, _ in backbone.named_parameters() if backbone.is_of_encoder(name)} - unused


@every
def test_every_weight_is_trained(kind: str) -> None:
    whole = SegmentationNetwork(network(kind, 2, dropout=0.2), 3).train()
    with dropout_keys(torch.arange(2)):
        scores = whole(scans(crop_of(kind), 2, 2))
    assert scores.shape == (2, 3, *crop_of(kind))
    scores.square().mean().backward()
    learning = {name: weight for name, weight in whole.named_parameters() if weight.requires_grad}
    assert [name for name, weight in learning.items() if weight.grad is None or not weight.grad.any()] == []


@every
def test_samples_do_not_mix(kind: str) -> None:
    backbone, x = network(kind), scans(crop_of(kind))
    box = boxes(kind)
    with torch.no_grad():
        together = backbone.decode(backbone.encode(x), box)
        for sample in range(2):
            alone = backbone.decode(
                backbone.encode(x[sample : sample + 1]), Box(box.lower[sample : sample + 1], box.size)
            )
            assert torch.allclose(alone[0], together[sample], atol=1e-4)


@every
def test_nothing_waits_for_the_device(kind: str) -> None:
    """Fake tensors have no values: whatever the host would have to wait for raises."""
    size = boxes(kind).size
    whole = SegmentationNetwork(network(kind, dropout=0.1), 2).train()
    fake = FakeTensorMode()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        whole._apply(fake.from_tensor)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    backbone = whole.backbone
    with fake, dropout_keys(torch.arange(2)):
        x, fill = torch.rand(2, 1, *crop_of(kind)), torch.rand(backbone.fill_width)
        pyramid = backbone.encode_hidden(x, torch.rand(2, *crop_of(kind)) > 0.5, fill)
        box = Box(torch.zeros(2, 3, dtype=torch.int64), size)
        again = backbone.encode_from(len(pyramid) - 1, pyramid[-2])
        (whole.head(backbone.decode(pyramid, box)).mean() + again[-1].mean()).backward()


# MONAI's names


def plain(kind: str, channels: int, outputs: int) -> nn.Module:
    """MONAI's own class of the same sizes."""
    if "unet" in kind and kind not in TRANSFORMERS:
        features = [8, 10, 12, 16] if kind == "thick unet" else [8, 8, 10, 12, 16]
        strides = THICK if kind == "thick unet" else EVEN
        return nets.DynUNet(
            3, channels, outputs, [3] * len(strides), strides, strides[1:], features, res_block=kind == "resunet"
        )
    if kind == "swinunetr":
        return nets.SwinUNETR(
            channels, outputs, depths=SWIN_SIZE.depths, num_heads=SWIN_SIZE.heads, window_size=4, feature_size=12
        )
    if kind == "unetr":
        return nets.UNETR(channels, outputs, crop_of(kind), 4, hidden_size=24, mlp_dim=96, num_heads=2)
    return nets.SegResNet(3, 8, channels, outputs, blocks_down=(1, 2, 1, 1))


@pytest.mark.parametrize("kind", ["unet", "thick unet", "resunet", "swinunetr", "unetr", "segresnet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_plain_monai_gives_the_same_scores(kind: str, channels: int) -> None:
    whole, monai = SegmentationNetwork(network(kind, channels), 3).eval(), plain(kind, channels, 3).eval()
    with torch.no_grad():
        for weight in whole.parameters():
            weight.add_(0.02 * torch.randn(weight.shape))
        x = scans(crop_of(kind), 1, channels)
        assert not torch.allclose(monai(x), whole(x), atol=0.01)
        missing, unexpected = monai.load_state_dict(whole.monai_state(), strict=False)
        # DynUNet holds the same blocks a second time.
        assert unexpected == [] and all(name.startswith("skip_layers.") for name in missing)
        assert (missing == []) == (not isinstance(whole.backbone, UNet))
        assert torch.allclose(monai(x), whole(x), atol=1e-6)


# Stages and dropout


@every
def test_entering_at_a_stage_gives_the_same_levels(kind: str) -> None:
    backbone, x = network(kind, dropout=0.4).train(), scans(crop_of(kind))
    with dropout_keys(torch.tensor([1, 2])), torch.no_grad():
        whole = backbone.encode(x)
        for stage in range(1, len(whole)):
            assert same(backbone.encode_from(stage, whole[stage - 1]), whole[stage:])
        assert same(backbone.encode_from(0, x), whole)


@every
def test_no_level_changes_when_it_is_used(kind: str) -> None:
    """Activations work in place; neither the scan nor a level that is used again may change."""
    backbone, x = network(kind), scans(crop_of(kind))
    before = x.clone()
    with torch.no_grad():
        pyramid = backbone.encode(x)
        levels = [level.clone() for level in pyramid]
        backbone.encode_from(1, pyramid[0])
        backbone.decode(pyramid)
        backbone.decode(pyramid, boxes(kind))
        backbone.encode_hidden(x, x[:, 0] > 0.5, torch.ones(backbone.fill_width))
    assert torch.equal(x, before) and all(torch.equal(a, b) for a, b in zip(pyramid, levels))


@every
def test_dropout_begins_at_the_chosen_stage(kind: str) -> None:
    backbone, x = network(kind, dropout=0.4).train(), scans(crop_of(kind), 1)

    def passed(key: int, stage: int) -> Pyramid:
        with dropout_keys(torch.tensor([key]), from_stage=stage), torch.no_grad():
            return backbone.encode(x)

    for stage in range(len(backbone.widths)):
        one, other, again = passed(1, stage), passed(2, stage), passed(1, stage)
        assert all(torch.equal(a, b) for a, b in zip(one, again))
        # The scan is never touched: it has too few channels to drop one.
        first = max(stage, 1) if kind in TRANSFORMERS else stage
        for level in range(len(one)):
            assert torch.equal(one[level], other[level]) == (level < first)


@every
def test_the_dropout_of_a_sample_does_not_depend_on_its_batch(kind: str) -> None:
    backbone, x, keys = network(kind, dropout=0.4).train(), scans(crop_of(kind), 3), torch.tensor([5, 6, 7])
    with torch.no_grad():
        with dropout_keys(keys):
            together = backbone.encode(x)
        with dropout_keys(keys.flip(0)):
            turned = backbone.encode(x.flip(0))
        with dropout_keys(keys[1:2]):
            alone = backbone.encode(x[1:2])
    assert same([level.flip(0) for level in turned], together, 1e-4)
    assert same(alone, [level[1:2] for level in together], 1e-4)


@every
def test_dropout_leaves_evaluation_alone(kind: str) -> None:
    with torch.no_grad():
        assert same(
            network(kind, dropout=0.4).encode(scans(crop_of(kind), 1)),
            network(kind).encode(scans(crop_of(kind), 1)),
            0,
        )


@every
def test_no_two_stages_drop_the_same_channels(kind: str) -> None:
    stages = [m.stage for m in network(kind).modules() if isinstance(m, SampleDropout)]
    assert len(set(stages)) == len(stages) == len(network(kind).widths) - (kind in TRANSFORMERS)


# Boxes


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_box_is_cut_by_slices_at_every_level(data: st.DataObject) -> None:
    stride = tuple(data.draw(st.sampled_from([1, 2, 4])) for _ in range(3))
    step = tuple(s * data.draw(st.integers(1, 2)) for s in stride)
    counts = [data.draw(st.integers(1, 4)) for _ in range(3)]
    size = tuple(data.draw(st.integers(1, n)) * t for n, t in zip(counts, step))
    batch = data.draw(st.integers(1, 3))
    lower = [
        [data.draw(st.integers(0, (n * t - s) // t)) * t for n, t, s in zip(counts, step, size)] for _ in range(batch)
    ]
    box = Box(torch.tensor(lower), size)  # type: ignore[arg-type]
    level = torch.rand(batch, 2, *(n * t // s for n, t, s in zip(counts, step, stride)), requires_grad=True)
    found = box.crop(level, stride)  # type: ignore[arg-type]
    slow = torch.cat([cut(level, box, stride, sample) for sample in range(batch)])  # type: ignore[arg-type]
    assert torch.equal(found, slow)
    factor = torch.rand(found.shape)
    (gradient,) = torch.autograd.grad((found * factor).sum(), level)
    (expected,) = torch.autograd.grad((slow * factor).sum(), level)
    assert torch.equal(gradient, expected)


def test_a_box_for_another_number_of_samples_is_an_error() -> None:
    box = Box(torch.zeros(2, 3, dtype=torch.int64), (4, 4, 4))
    for batch in (1, 3, 4):
        with pytest.raises(ValueError, match="2 samples"):
            box.crop(torch.zeros(batch, 1, 8, 8, 8))


@every
def test_decoding_a_box_is_decoding_what_is_cut_out(kind: str) -> None:
    backbone = network(kind)
    box = boxes(kind)
    with torch.no_grad():
        pyramid = backbone.encode(scans(crop_of(kind)))
        result = backbone.decode(pyramid, box)
        assert result.shape == (2, backbone.out_width, *box.size)
        for sample in range(2):
            piece = [cut(level, box, stride, sample) for level, stride in zip(pyramid, backbone.strides)]
            assert torch.allclose(result[sample : sample + 1], backbone.decode(piece), atol=1e-4)
        whole = Box(torch.zeros(2, 3, dtype=torch.int64), crop_of(kind))
        assert torch.equal(backbone.decode(pyramid, whole), backbone.decode(pyramid))


@every
def test_outside_of_the_box_nothing_is_seen(kind: str) -> None:
    backbone = network(kind)
    box = boxes(kind)
    with torch.no_grad():
        pyramid = backbone.encode(scans(crop_of(kind)))
    pyramid = [level.requires_grad_() for level in pyramid]
    (backbone.decode(pyramid, box) ** 3).sum().backward()
    for level, stride in zip(pyramid, backbone.strides):
        assert level.grad is not None
        for sample in range(2):
            inside = cut(level.grad, box, stride, sample)
            assert bool(inside.any())
            inside.zero_()
        assert not level.grad.any()


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "swinunetr"])
def test_without_norms_a_box_is_as_in_the_whole_32_voxels_inside(kind: str) -> None:
    difference, _ = differences(kind, 112, 16, 80, norms=False)
    assert float(difference[32:-32].max()) < 1e-4


def test_without_norms_a_box_of_swinunetr_is_nearly_as_in_the_whole_32_voxels_inside() -> None:
    """Two convolutions at 1/32 alone reach 64 voxels, so that it takes 126 until nothing is left."""
    difference, spread = differences("swinunetr", 384, 64, 288, norms=False)
    assert float(difference[32:-32].max()) < 1e-4
    assert float(difference[128:-128].max()) < 1e-5 * spread
    assert float(difference[0:32].max()) > 1e-4


@pytest.mark.parametrize("kind", MAKERS)
def test_with_norms_a_box_differs_everywhere_but_a_little(kind: str) -> None:
    """Statistics of the box are not those of the whole; the figures are in the docstring of ``decode``."""
    length, low, size = (224, 64, 128) if kind == "swinunetr" else (112, 16, 80)
    difference, spread = differences(kind, length, low, size, norms=True)
    print(f"{kind}: {float(difference[32:-32].max()) / spread:.3f} of the spread at most, 32 voxels inside")
    assert 1e-3 < float(difference[32:-32].max()) / spread < 1


def differences(kind: str, length: int, low: int, size: int, norms: bool) -> tuple[Tensor, float]:
    """Largest difference of a partial decode from the full by place along the first axis; spread of the features."""
    sides = crop_of(kind)[1:]
    crop = (length, *sides)
    backbone = network(kind, crop=crop)
    backbone = backbone if norms else without_norms(backbone)
    with torch.no_grad():
        pyramid = backbone.encode(scans(crop, 1))
        whole = backbone.decode(pyramid)
        part = backbone.decode(pyramid, Box(torch.tensor([[low, 0, 0]]), (size, *sides)))
    inside = whole[:, :, low : low + size]
    return (part - inside).abs().amax(dim=(0, 1, 3, 4)), float(whole.std())


# What is hidden


@every
def test_nothing_hidden_is_seen(kind: str) -> None:
    backbone, x = network(kind, 2), scans(crop_of(kind), 2, 2)
    side = backbone.strides[1][0] if kind in TRANSFORMERS else 4
    tokens = torch.rand(2, 1, *(n // side for n in crop_of(kind)), generator=torch.Generator().manual_seed(2)) < 0.5
    hidden = torch.nn.functional.interpolate(tokens.float(), crop_of(kind))[:, 0] == 1
    other = torch.where(hidden[:, None], torch.rand(x.shape), x)
    fill = torch.rand(backbone.fill_width, requires_grad=True)
    one, two = backbone.encode_hidden(x, hidden, fill), backbone.encode_hidden(other, hidden, fill)
    assert all(torch.equal(a, b) for a, b in zip(one, two))
    (one[-1] ** 3).sum().backward()
    assert fill.grad is not None and bool((fill.grad != 0).all())


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([(1, 1, 1), (2, 2, 2), (2, 4, 1)]), st.floats(0, 1), st.integers(0, 1000))
def test_a_token_with_one_voxel_to_be_seen_is_not_hidden(token: Triple, share: float, seed: int) -> None:
    hidden = torch.rand(2, 4, 8, 2 * token[2], generator=torch.Generator().manual_seed(seed)) < share
    found = wholly_hidden(hidden, token)
    d, h, w = token
    for b, i, j, k in torch.cartesian_prod(*(torch.arange(n) for n in found.shape)).tolist():
        block = hidden[b, i * d : (i + 1) * d, j * h : (j + 1) * h, k * w : (k + 1) * w]
        assert bool(found[b, i, j, k]) == bool(block.all())


# Initial weights


@pytest.mark.parametrize("architecture", ["unet", "resunet", "swinunetr", "unetr", "segresnet"])
def test_initial_weights_follow_from_the_seed_alone(architecture: str) -> None:
    chosen = settled(NetworkSettings(architecture=architecture), (1, 1, 1))  # type: ignore[arg-type]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = make_segmentation_network(chosen, 1, 2, (64, 32, 32), seed=3).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again, other = (make_segmentation_network(chosen, 1, 2, (64, 32, 32), seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.items())
    drawn = [name for name, tensor in one.items() if tensor.is_floating_point() and tensor.numel() > tensor.shape[0]]
    assert drawn and not any(torch.equal(one[name], other[name]) for name in drawn)


@pytest.mark.parametrize("architecture", ["unet", "swinunetr", "unetr", "segresnet"])
def test_the_backbone_does_not_depend_on_the_classes(architecture: str) -> None:
    chosen = settled(NetworkSettings(architecture=architecture, dropout=0.3), (1, 1, 1))  # type: ignore[arg-type]
    backbone = make_backbone(chosen, 2, (64, 32, 32), seed=5).state_dict()
    for classes in (1, 4):
        whole = make_segmentation_network(chosen, 2, classes, (64, 32, 32), seed=5)
        assert whole.head.out_channels == classes + 1
        assert all(torch.equal(tensor, whole.backbone.state_dict()[name]) for name, tensor in backbone.items())
