"""Which tensors a network has, told from its settings alone: whether weights fit is seen without torch.

A package that somebody else made is imported in Slicer's process, where there is no torch. Of a U-Net, plain or
residual, every tensor is known here; of the other networks those that say how many channels, classes, stages, blocks
and features there are. What runs a package compares all tensors of every network once more
(:func:`HybridMIMLib.model_package.check_shapes`). Names are those of MONAI's classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod

from HybridMIMLib.architectures import SEGRESNET, SWIN, U_NETS, VIT
from HybridMIMLib.settings.network import NetworkSettings

Shape = tuple[int, ...]
_Named = Iterator[tuple[str, Shape]]

_VIT_BLOCKS = 12
_SWIN_TOKEN = 2


def known_shapes(settings: NetworkSettings, channels: int, outputs: int, crop: Sequence[int]) -> dict[str, Shape]:
    """Shapes of tensors that a network must have, by name; of a U-Net those of all.

    Args:
        settings: settled ones (:func:`HybridMIMLib.architectures.settled`).
        channels: of a scan.
        outputs: of the network: a class each, and the background where classes do not overlap.
        crop: voxels along each axis.
    """
    return dict(_SHAPES[settings.architecture](settings, channels, outputs, crop))


def why_not_these(
    shapes: Mapping[str, Shape], settings: NetworkSettings, channels: int, outputs: int, crop: Sequence[int]
) -> str:
    """Why weights of these shapes are not those of a network; empty where nothing is seen to be wrong."""
    known = known_shapes(settings, channels, outputs, crop)
    for name, shape in known.items():
        if name not in shapes:
            return f"{name} is missing"
        if shapes[name] != shape:
            return f"{name} is {_in_words(shapes[name])}, and should be {_in_words(shape)}"
    unknown = sorted(set(shapes) - set(known)) if settings.architecture in U_NETS else []
    return f"{unknown[0]} is no part of it" if unknown else ""


def _in_words(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _u_net(settings: NetworkSettings, channels: int, outputs: int, crop: Sequence[int]) -> _Named:
    assert settings.features and settings.strides, "the settings are not settled"
    features, strides, is_residual = settings.features, settings.strides, settings.architecture == "resunet"
    last = len(features) - 1
    names = ["input_block", *(f"downsamples.{number}" for number in range(last - 1)), "bottleneck"]
    before = channels
    for name, after, step in zip(names, features, strides):
        has_shortcut = is_residual and (before != after or max(step) > 1)
        yield from _block(name, before, after, has_shortcut)
        before = after
    for number, stage in enumerate(range(last, 0, -1)):
        coarse, fine = features[stage], features[stage - 1]
        yield f"upsamples.{number}.transp_conv.conv.weight", (coarse, fine, *strides[stage])
        # What comes from below, and what the encoder had there.
        yield from _block(f"upsamples.{number}.conv_block", 2 * fine, fine, False)
    yield from _head("output_block.conv.conv", features[0], outputs)


def _block(name: str, before: int, after: int, has_shortcut: bool) -> _Named:
    """Two convolutions, each with a norm; the shortcut past them is a third."""
    yield f"{name}.conv1.conv.weight", (after, before, 3, 3, 3)
    yield f"{name}.conv2.conv.weight", (after, after, 3, 3, 3)
    if has_shortcut:
        yield f"{name}.conv3.conv.weight", (after, before, 1, 1, 1)
    for number in range(1, 3 + has_shortcut):
        yield f"{name}.norm{number}.weight", (after,)
        yield f"{name}.norm{number}.bias", (after,)


def _head(name: str, features: int, outputs: int) -> _Named:
    yield f"{name}.weight", (outputs, features, 1, 1, 1)
    yield f"{name}.bias", (outputs,)


def _swin_unetr(settings: NetworkSettings, channels: int, outputs: int, crop: Sequence[int]) -> _Named:
    size = SWIN[settings.size]
    places = (2 * settings.window - 1) ** 3
    yield "swinViT.patch_embed.proj.weight", (size.features, channels, *(_SWIN_TOKEN,) * 3)
    yield "encoder1.layer.conv1.conv.weight", (size.features, channels, 3, 3, 3)
    for stage, (depth, heads) in enumerate(zip(size.depths, size.heads)):
        width = size.features * 2**stage
        for block in range(depth):
            attention = f"swinViT.layers{stage + 1}.0.blocks.{block}.attn"
            yield f"{attention}.relative_position_bias_table", (places, heads)
            yield f"{attention}.qkv.weight", (3 * width, width)
    yield from _head("out.conv.conv", size.features, outputs)


def _unetr(settings: NetworkSettings, channels: int, outputs: int, crop: Sequence[int]) -> _Named:
    size, token = VIT[settings.size], settings.token
    yield "vit.patch_embedding.position_embeddings", (1, prod(side // token for side in crop), size.width)
    yield "vit.patch_embedding.patch_embeddings.weight", (size.width, channels, token, token, token)
    yield "encoder1.layer.conv1.conv.weight", (size.features, channels, 3, 3, 3)
    for block in range(_VIT_BLOCKS):
        yield f"vit.blocks.{block}.attn.qkv.weight", (3 * size.width, size.width)
    yield from _head("out.conv.conv", size.features, outputs)


def _segresnet(settings: NetworkSettings, channels: int, outputs: int, crop: Sequence[int]) -> _Named:
    size = SEGRESNET[settings.size]
    yield "convInit.conv.weight", (size.filters, channels, 3, 3, 3)
    for stage, blocks in enumerate(size.blocks):
        filters = size.filters * 2**stage
        if stage:
            yield f"down_layers.{stage}.0.conv.weight", (filters, filters // 2, 3, 3, 3)
        for block in range(1, blocks + 1):
            yield f"down_layers.{stage}.{block}.conv1.conv.weight", (filters, filters, 3, 3, 3)
    yield from _head("conv_final.2.conv", size.filters, outputs)


_SHAPES: dict[str, Callable[[NetworkSettings, int, int, Sequence[int]], _Named]] = {
    "unet": _u_net,
    "resunet": _u_net,
    "swinunetr": _swin_unetr,
    "unetr": _unetr,
    "segresnet": _segresnet,
}
