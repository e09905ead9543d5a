"""What the settings of a network mean: sizes, strides, and which crops, regions and patches go with them.

No torch here: the plan of a set of scans, ``--help`` and the panels ask these questions before any network is made.

============  =====================================  ==============================  ==========================
architecture  tiny                                   small                           base
============  =====================================  ==============================  ==========================
unet,         16, 32, 64, 128 channels               32, 64, 128, 256                64, 64, 128, 256, 512, the
resunet                                                                              last at the same grid as
                                                                                     the one before
swinunetr     12 features, 1 block a stage           24 features, 2 blocks           48 features, 2 blocks
unetr         96 wide, 3 heads, 4 features           384 wide, 6 heads, 8 features   768 wide, 12 heads, 16
segresnet     8 filters, 1-1-1-1 blocks              16 filters, 1-2-2-4             32 filters, 1-2-2-4
============  =====================================  ==============================  ==========================

Base is what the papers used: HybridMIM's U-Net and SwinUNETR (arXiv:2303.10333), ViT-B (arXiv:2204.11716).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm, prod

from HybridMIMLib.errors import SettingsError
from HybridMIMLib.settings.network import NetworkSettings

Triple = tuple[int, int, int]

CONVOLUTIONAL = ("unet", "resunet", "segresnet")
U_NETS = ("unet", "resunet")
FEATURES = {"tiny": [16, 32, 64, 128], "small": [32, 64, 128, 256], "base": [64, 64, 128, 256, 512]}
HALVINGS = 3
"""Of the U-Nets that are named by size; the published one has a bottleneck at 1/8."""
_SWIN_STRIDE, _SWIN_TOKEN, _SEGRESNET_STRIDE = 32, 2, 8


@dataclass(frozen=True)
class SwinSize:
    """Numbers of a SwinUNETR."""

    features: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]


@dataclass(frozen=True)
class VitSize:
    """Numbers of a UNETR: its ViT, of twelve blocks, and the channels of its decoder's finest level."""

    width: int
    heads: int
    features: int


@dataclass(frozen=True)
class SegResNetSize:
    """Numbers of a SegResNet."""

    filters: int
    blocks: tuple[int, ...]


SWIN = {
    "tiny": SwinSize(12, (1, 1, 1, 1), (1, 2, 4, 8)),
    "small": SwinSize(24, (2, 2, 2, 2), (3, 6, 12, 24)),
    "base": SwinSize(48, (2, 2, 2, 2), (3, 6, 12, 24)),
}
VIT = {"tiny": VitSize(96, 3, 4), "small": VitSize(384, 6, 8), "base": VitSize(768, 12, 16)}
SEGRESNET = {
    "tiny": SegResNetSize(8, (1, 1, 1, 1)),
    "small": SegResNetSize(16, (1, 2, 2, 4)),
    "base": SegResNetSize(32, (1, 2, 2, 4)),
}


def settled(settings: NetworkSettings, spacing: Sequence[float]) -> NetworkSettings:
    """The same network with nothing left open: channels and strides of a U-Net follow from size and spacing.

    An axis is halved at a stage where its voxels are at most twice as long as the shortest, so that thick slices are
    kept until the others have caught up (nnU-Net's rule, Isensee et al., arXiv:1904.08128).

    Args:
        settings: as the user gave them.
        spacing: of the prepared scans, in mm along R, A, S.
    """
    if settings.architecture not in U_NETS or (settings.features and settings.strides):
        return settings
    features = settings.features or FEATURES[settings.size]
    halvings = len(features) - 1 if settings.features else HALVINGS
    return replace(settings, features=list(features), strides=_strides(len(features), halvings, spacing))


def _strides(stages: int, halvings: int, spacing: Sequence[float]) -> list[list[int]]:
    strides, lengths = [[1, 1, 1]], list(spacing)
    for stage in range(1, stages):
        shortest = min(lengths)
        step = [2 if stage <= halvings and length <= 2 * shortest else 1 for length in lengths]
        lengths = [length * s for length, s in zip(lengths, step)]
        strides.append(step)
    return strides


def total_stride(settings: NetworkSettings) -> Triple:
    """Voxels of the scan between voxels of the bottleneck, along each axis, of :func:`settled` settings."""
    if settings.architecture in U_NETS:
        assert settings.strides is not None, "settings that are not settled have no stride"
        d, h, w = (prod(step[axis] for step in settings.strides) for axis in range(3))
        return (d, h, w)
    side = {"swinunetr": _SWIN_STRIDE, "unetr": settings.token, "segresnet": _SEGRESNET_STRIDE}[settings.architecture]
    return (side, side, side)


def decoder_stages(settings: NetworkSettings) -> int:
    """Stages of a network's decoder, the last, on the grid of the scan, included."""
    if settings.architecture in U_NETS:
        return len(settings.features or FEATURES[settings.size]) - 1
    if settings.architecture == "segresnet":
        return len(SEGRESNET[settings.size].blocks) - 1
    # Each doubles the grid; SwinUNETR from its stride, UNETR from its tokens.
    return (settings.token if settings.architecture == "unetr" else _SWIN_STRIDE).bit_length() - 1


def token_size(settings: NetworkSettings) -> int:
    """Voxels along a side of what the encoder embeds as one: 1 for convolutions."""
    return {"swinunetr": _SWIN_TOKEN, "unetr": settings.token}.get(settings.architecture, 1)


def default_region(patch: int, stride: int, size: float) -> int:
    """Two patches along an axis, in steps of patch and stride; one where the scan has no room for more."""
    step = lcm(patch, stride)
    return step * max(-(-2 * patch // step), 1) if size >= step else step


def check_sizes(settings: NetworkSettings, crop: Sequence[int], patch: Sequence[int], region: Sequence[int]) -> None:
    """See whether crop, region and patch fit each other and the network, of :func:`settled` settings.

    Raises:
        SettingsError: they do not; the cure names the nearest values that do, each time of all that must change.
    """
    stride = total_stride(settings)
    for by_name, by in (("plan.patch", patch), (f"the stride of the network ({settings.architecture})", stride)):
        if any(r % b for r, b in zip(region, by)):
            raise SettingsError(
                f"plan.region {list(region)} is not a multiple of {by_name} {list(by)}",
                cure=f"Use {_regions_that_fit(settings, crop, patch, region)}.",
            )
    wrong = _wrong_with_crop(settings, crop, region)
    if wrong:
        crops = ", or ".join(f"plan.crop {near}" for near in _nearest_crops(settings, crop, region))
        raise SettingsError(wrong, cure=f"Use {crops}{_instead_of_crop(settings, crop, region)}.")


def _wrong_with_crop(settings: NetworkSettings, crop: Sequence[int], region: Sequence[int]) -> str:
    """What is wrong with a crop, or nothing."""
    stride = total_stride(settings)
    if any(c % r for c, r in zip(crop, region)):
        return f"plan.crop {list(crop)} is not a multiple of plan.region {list(region)}"
    if all(c == s for c, s in zip(crop, stride)):
        return f"plan.crop {list(crop)} leaves a single voxel at the network's stride of {list(stride)}"
    if settings.architecture == "swinunetr" and settings.window > min(tokens := [c // _SWIN_TOKEN for c in crop]):
        return f"network.window {settings.window} is larger than the map of {tokens} tokens of plan.crop {list(crop)}"
    return ""


def _nearest_crops(settings: NetworkSettings, crop: Sequence[int], region: Sequence[int]) -> list[list[int]]:
    """The multiples of the region just below and just above a crop with which nothing is wrong."""
    least = _SWIN_TOKEN * settings.window if settings.architecture == "swinunetr" else 1
    smallest = [r * -(-least // r) for r in region]
    below = [max(c // r * r, m) for c, r, m in zip(crop, region, smallest)]
    above = [max(-(-c // r) * r, m) for c, r, m in zip(crop, region, smallest)]
    found = [near for near in (below, above) if not _wrong_with_crop(settings, near, region)]
    # None where both are a single voxel at the bottleneck.
    return [near for index, near in enumerate(found) if near not in found[:index]] or [[2 * r for r in region]]


def _instead_of_crop(settings: NetworkSettings, crop: Sequence[int], region: Sequence[int]) -> str:
    """What could be changed in place of a crop that the region divides."""
    if any(c % r for c, r in zip(crop, region)):
        return ""
    if all(c == s for c, s in zip(crop, total_stride(settings))):
        return ", or a network with a smaller stride"
    return f", or network.window {min(crop) // _SWIN_TOKEN}"


def _regions_that_fit(
    settings: NetworkSettings, crop: Sequence[int], patch: Sequence[int], region: Sequence[int]
) -> str:
    """What to use where a region does not fit patch and stride: other regions, or a patch where that is enough."""
    stride = total_stride(settings)
    choices = []
    for near in _nearest_regions(crop, region, [lcm(p, s) for p, s in zip(patch, stride)]):
        choice = f"plan.region {near}"
        if _wrong_with_crop(settings, crop, near):
            crops = _nearest_crops(settings, crop, near)
            choice += f" and plan.crop {min(crops, key=lambda n: sum(abs(a - c) for a, c in zip(n, crop)))}"
        choices.append(choice)
    if not any(r % s for r, s in zip(region, stride)) and not _wrong_with_crop(settings, crop, region):
        choices.append(f"plan.patch {_nearest_patch(patch, region, token_size(settings))}")
    return ", or ".join(dict.fromkeys(choices))


def _nearest_regions(crop: Sequence[int], region: Sequence[int], step: Sequence[int]) -> list[list[int]]:
    """The multiples of a step just below and just above a region, that divide the crop where there are any."""
    below, above = [], []
    for c, r, t in zip(crop, region, step):
        fitting = [n for n in range(t, c + 1, t) if c % n == 0] or [max(r // t, 1) * t, -(-r // t) * t]
        below.append(max((n for n in fitting if n <= r), default=fitting[0]))
        above.append(min((n for n in fitting if n >= r), default=fitting[-1]))
    return [below, above]


def _nearest_patch(patch: Sequence[int], region: Sequence[int], token: int) -> list[int]:
    """The patch nearest to one that divides the region into whole tokens."""
    return [
        min((n for n in range(1, r + 1) if r % n == 0 and (n % token == 0 or n == r)), key=lambda n: abs(n - p))
        for p, r in zip(patch, region)
    ]


def check_divides(name: str, value: Sequence[int], by_name: str, by: Sequence[int]) -> None:
    """See whether each part of a size is a multiple of a smaller size.

    Raises:
        SettingsError: it is not; the cure names the nearest multiples below and above.
    """
    if not any(v % b for v, b in zip(value, by)):
        return
    below = [max(v // b, 1) * b for v, b in zip(value, by)]
    above = [-(-v // b) * b for v, b in zip(value, by)]
    nearest = f"{above}" if below == above or any(v < b for v, b in zip(value, by)) else f"{below} or {above}"
    raise SettingsError(
        f"{name} {list(value)} is not a multiple of {by_name} {list(by)}",
        cure=f"The nearest for {name} is {nearest}.",
    )
