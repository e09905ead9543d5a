"""The plan: how scans are brought to one form, derived from the scans where the settings leave it open.

Each value follows from a fingerprint of the set, and each can be set (``plan.*``):

=============  ======================================================================================
spacing        the median of each axis. Where slices are thick (the largest median more than 3 times the
               smallest), the 10th percentile along that axis, as nnU-Net does (Isensee et al.,
               arXiv:1904.08128), because the median would blur the scans with thinner slices. Never finer
               than along the other axes, nor than the finest scan
normalisation  ``window`` where most scans are CT, told by HU or by the header; else ``zscore``
window         -1000 to 1000 HU, in which lung, soft tissue and bone all have their place; the presets
               narrow it. It does not follow from the set, so that weights of one set fit another
crop           what fits the median scan in whole regions, 96 voxels at most; one region at least, padded where the
               scan is smaller, and two along the longest axis where one would be a single voxel at the bottleneck
patch, region  16 and 32 voxels as published where the axis, and the crop that was set, have 96 voxels, else 8 and
               16, or what the network's tokens and its stride ask for
=============  ======================================================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import lcm
from typing import Any

import numpy as np

from HybridMIMLib.architectures import check_sizes, default_region, settled, token_size, total_stride
from HybridMIMLib.data.survey import CaseFacts
from HybridMIMLib.events import EventLog
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.settings.plan import PlanSettings

Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]

LARGEST_CROP = 96
"""Voxels along an axis; the crop of both papers."""
ANISOTROPIC = 3.0
"""Largest spacing by smallest, above which slices count as thick."""
THICK_PERCENTILE = 10
AIR = -500.0
"""HU; where CT scans hold darker voxels, their air has told them apart, and not their headers alone."""


@dataclass(frozen=True)
class Plan:
    """How scans are prepared and cut; all triples along R, A, S.

    Attributes:
        channels: of a scan.
        spacing: mm.
        normalisation: ``window``, ``zscore`` or ``percentiles``; see :mod:`HybridMIMLib.data.normalisation`.
        window: the two intensities of ``window``.
        crop, patch, region: voxels.
    """

    channels: int
    spacing: Spacing
    normalisation: str
    window: tuple[float, float]
    crop: Triple
    patch: Triple
    region: Triple

    def to_json(self) -> dict[str, Any]:
        """A dictionary that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Plan:
        """The plan that :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is not one of ours.
        """
        return cls(
            int(content["channels"]),
            _triple(content["spacing"], float),
            str(content["normalisation"]),
            (float(content["window"][0]), float(content["window"][1])),
            _triple(content["crop"], int),
            _triple(content["patch"], int),
            _triple(content["region"], int),
        )

    @property
    def preparation(self) -> dict[str, Any]:
        """The part that decides what a prepared scan looks like; the crop does not."""
        return {name: getattr(self, name) for name in ("channels", "spacing", "normalisation", "window")}


@dataclass(frozen=True)
class Fingerprint:
    """What the scans of a set have in common; triples along R, A, S.

    Attributes:
        scans: how many there are.
        channels: of each.
        spacing: median in mm.
        thick: the 10th percentile in mm along the axis with the coarsest spacing, or None where no axis is much
            coarser than the others.
        finest: the smallest spacing of any scan, in mm.
        extent: median in mm.
        modalities: how many scans are ``"CT"``, ``"MR"``, or ``""`` (not told).
        by_air: whether CT is told by its air, and not by headers alone.
        body: medians over the scans of the percentiles 0.5, 50 and 99.5 of the first channel's body, or None.
    """

    scans: int
    channels: int
    spacing: Spacing
    thick: float | None
    finest: Spacing
    extent: Spacing
    modalities: Mapping[str, int]
    by_air: bool
    body: tuple[float, float, float] | None

    def to_json(self) -> dict[str, Any]:
        """A dictionary that JSON can hold."""
        return asdict(replace(self, modalities=dict(self.modalities)))

    @property
    def modality(self) -> str:
        """That of more than half of the scans, or empty."""
        name, count = max(self.modalities.items(), key=lambda item: item[1])
        return name if count > self.scans / 2 else ""

    @property
    def coarse_axis(self) -> int:
        """The axis with the largest spacing."""
        return int(np.argmax(self.spacing))

    @property
    def target_spacing(self) -> Spacing:
        """The spacing to bring the scans to, in mm; the rule is at the top of this file."""
        if self.thick is None:
            return self.spacing
        target, axis = list(self.spacing), self.coarse_axis
        others = [value for index, value in enumerate(target) if index != axis]
        target[axis] = max(self.thick, *others)
        return _triple(target, float)


def fingerprint(found: Sequence[CaseFacts]) -> Fingerprint:
    """Sum up the scans of a set; there must be at least one."""
    spacings = np.array([facts.spacing for facts in found])
    median = np.median(spacings, axis=0).round(4)
    axis = int(np.argmax(median))
    is_thick = median[axis] > ANISOTROPIC * median.min()
    bodies = [(facts.body[0], facts.body[2], facts.body[4]) for facts in found if len(facts.body) >= 5]
    return Fingerprint(
        len(found),
        found[0].channels,
        _triple(median.tolist(), float),
        round(float(np.percentile(spacings[:, axis], THICK_PERCENTILE)), 4) if is_thick else None,
        _triple(spacings.min(axis=0).tolist(), float),
        _triple(np.median([np.multiply(f.shape, f.spacing) for f in found], axis=0).tolist(), float),
        Counter(facts.modality for facts in found),
        bool(np.median([facts.low for facts in found]) <= AIR),
        _triple(np.median(bodies, axis=0).tolist(), float) if bodies else None,
    )


def make_plan(
    found: Sequence[CaseFacts], settings: PlanSettings, network: NetworkSettings, events: EventLog | None = None
) -> Plan:
    """Derive a plan from the scans; the rules are at the top of this file.

    Args:
        found: facts of the scans, at least one.
        settings: what the user decided.
        network: its regions are multiples of the network's stride.
        events: where to say what the scans look like and what follows from that; None: nowhere.

    Raises:
        SettingsError: the sizes in the settings do not fit each other or the network.
    """
    common = fingerprint(found)
    spacing = _triple(settings.spacing or common.target_spacing, float)
    # Rounded, so that of equal axes the first is the longest on every machine.
    sizes = np.median([np.multiply(f.shape, f.spacing) / spacing for f in found], axis=0).round(4)
    network = settled(network, spacing)
    stride, token = total_stride(network), token_size(network)
    room = sizes if settings.crop is None else np.minimum(sizes, settings.crop)
    patch = settings.patch or [_default_patch(size, token) for size in room]
    region = settings.region or [default_region(*axis) for axis in zip(patch, stride, room)]
    if settings.crop is not None and settings.region is None:
        region = [_dividing(*axis) for axis in zip(settings.crop, region, patch, stride)]
    crop = settings.crop or _default_crop(sizes, region, stride)
    plan = Plan(
        common.channels,
        spacing,
        _normalisation(common, settings),
        (settings.window[0], settings.window[1]),
        _triple(crop, int),
        _triple(patch, int),
        _triple(region, int),
    )
    check_sizes(network, plan.crop, plan.patch, plan.region)
    if events is not None:
        _tell(events, plan, common, settings)
        _tell_padding(events, plan, sizes)
    return plan


def plan_yaml(plan: Plan) -> str:
    """The plan as YAML that a person can read, change, and give back with ``--config``."""
    lines = [
        "# How the scans of this run were prepared and cut; sizes along R, A, S.",
        f"# Channels: {plan.channels}. Change what you like and give this file to a new run with --config.",
        "plan:",
    ]
    for name, meaning in _MEANINGS.items():
        value = getattr(plan, name)
        shown = value if isinstance(value, str) else "[" + ", ".join(repr(part) for part in value) + "]"
        lines.append(f"  {name}: {shown}  # {meaning}")
    return "\n".join(lines) + "\n"


_MEANINGS = {
    "spacing": "mm",
    "normalisation": "window: fixed intensities; zscore, percentiles: of each scan",
    "window": "intensities that become 0 and 1 with normalisation: window",
    "crop": "voxels of a training crop",
    "patch": "voxels of the unit that is masked",
    "region": "voxels of a sub-volume",
}


def _normalisation(found: Fingerprint, settings: PlanSettings) -> str:
    if settings.normalisation != "auto":
        return settings.normalisation
    return "window" if found.modality == "CT" else "zscore"


def _tell(events: EventLog, plan: Plan, found: Fingerprint, settings: PlanSettings) -> None:
    """What the scans look like, so that a wrong guess is seen before hours of training."""
    events.message(f"{_looks_like(found)}; {_in_words(plan)}")
    if len(kinds := {kind for kind in found.modalities if kind}) > 1 and settings.normalisation == "auto":
        counts = " and ".join(f"{found.modalities[kind]} {kind}" for kind in sorted(kinds))
        events.warning(
            f"the set mixes {counts} scans, and all are normalised by {plan.normalisation}. Train on one kind at a "
            "time, or choose plan.normalisation yourself."
        )
    if plan.normalisation == "window" and found.body is not None and not _window_fits(plan, found.body):
        events.warning(
            f"the window {plan.window[0]:g} to {plan.window[1]:g} leaves next to nothing of these scans, whose "
            f"bodies go from {found.body[0]:.4g} to {found.body[2]:.4g}. Choose plan.normalisation auto, or another "
            "plan.window."
        )
    axis = found.coarse_axis
    if found.thick is not None and settings.spacing is None:
        events.message(
            f"slices are thick along {'RAS'[axis]}: {found.spacing[axis]:g} mm in the median scan, prepared at "
            f"{plan.spacing[axis]:g} mm (10th percentile)"
        )
    if settings.spacing and any(s < 0.999 * f for s, f in zip(plan.spacing, found.finest)):
        events.message(
            f"plan.spacing {list(plan.spacing)} is finer than any scan ({list(found.finest)} mm): this takes room "
            "and time, and shows nothing more"
        )


def _tell_padding(events: EventLog, plan: Plan, sizes: Sequence[float]) -> None:
    """Say where crops are larger than scans: it costs time, and nothing is learnt from padding."""
    axes = [axis for axis in range(3) if plan.crop[axis] > np.ceil(sizes[axis])]
    if axes:
        where = " and ".join(f"{plan.crop[axis]} voxels of {sizes[axis]:.0f} along {'RAS'[axis]}" for axis in axes)
        events.message(
            f"crops are larger than the median scan ({where}), and the rest is padding: these sizes suit the "
            "network. A network.architecture or network.token with a smaller stride would need less of it"
        )


def _window_fits(plan: Plan, body: Sequence[float]) -> bool:
    """Whether the bodies' intensities cover at least a twentieth of the window, and lie in it for a good part."""
    low, high = plan.window
    covered = min(body[2], high) - max(body[0], low)
    return covered > 0.05 * (high - low) and covered > 0.05 * (body[2] - body[0])


def _looks_like(found: Fingerprint) -> str:
    count = f"{found.modalities.get(found.modality, 0)} of {found.scans} scan(s)"
    if found.modality == "CT":
        body = "" if found.body is None else f", bodies from {found.body[0]:.0f} to {found.body[2]:.0f} HU"
        return f"CT, told by {'HU' if found.by_air else 'the header'} in {count}{body}"
    if found.modality == "MR":
        return f"MR, told by the header in {count}"
    if set(found.modalities) != {""}:
        return "no modality has most of the scans: treated as MR"
    return "neither HU nor a header tells the modality: treated as MR"


def _in_words(plan: Plan) -> str:
    ways = {
        "window": f"intensities {plan.window[0]:g} to {plan.window[1]:g} become 0 to 1",
        "zscore": "intensities by robust z-score of each scan",
        "percentiles": "intensities by percentiles of each scan",
    }
    spacing, crop = (" x ".join(f"{value:g}" for value in values) for values in (plan.spacing, plan.crop))
    return f"{ways[plan.normalisation]}; spacing {spacing} mm, crop {crop} voxels"


def _default_patch(size: float, token: int) -> int:
    """16 voxels as published where at least three regions of 32 fit, else 8; a thin axis has thinner patches."""
    if size < 8:
        thin = max(int(2 ** np.floor(np.log2(max(size, 1)))), 1)
        return max(thin, token)
    return max(16 if size >= LARGEST_CROP else 8, token)


def _dividing(crop: int, region: int, patch: int, stride: int) -> int:
    """The region, or a smaller one where that divides a crop that was set."""
    step = lcm(patch, stride)
    return max((n for n in range(step, region + 1, step) if crop % n == 0), default=region)


def _default_crop(sizes: Sequence[float], region: Sequence[int], stride: Sequence[int]) -> list[int]:
    """Whole regions that fit the median scan, at least one; two along its longest axis where one is not enough."""
    crop = [max(int(min(size, LARGEST_CROP) // r), 1) * r for size, r in zip(sizes, region)]
    if all(c == s for c, s in zip(crop, stride)):
        # A single voxel at the bottleneck has no spread that an instance norm could divide by.
        longest = int(np.argmax(sizes))
        crop[longest] += region[longest]
    return crop


def _triple(values: Sequence[Any], kind: Any) -> Any:
    first, second, third = (kind(value) for value in values)
    return (first, second, third)
