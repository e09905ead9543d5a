"""The plan: how scans are brought to one form, derived from the scans where the settings leave it open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from HybridMIMLib.config import PlanSettings
from HybridMIMLib.data.survey import CaseFacts
from HybridMIMLib.errors import SettingsError

Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]

LARGEST_CROP = 96
"""Voxels along an axis; the crop of both papers."""


@dataclass(frozen=True)
class Plan:
    """How scans are prepared and cut; all triples along R, A, S.

    Attributes:
        channels: of a scan.
        spacing: mm.
        normalisation: ``window`` (fixed intensities become 0 and 1) or ``percentiles`` (of each scan).
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


def make_plan(found: Sequence[CaseFacts], settings: PlanSettings, stride: int) -> Plan:
    """Derive a plan: median spacing, a crop that fits the median scan, intensities as they look.

    Args:
        found: facts of the scans.
        settings: what the user decided.
        stride: of the network; patches and regions are multiples of it.

    Raises:
        SettingsError: the sizes in the settings do not fit each other or the network.
    """
    given = settings.spacing
    spacing = _triple(given or np.median([f.spacing for f in found], axis=0).round(4).tolist(), float)
    sizes = np.median([np.multiply(f.shape, f.spacing) / spacing for f in found], axis=0)
    patch = settings.patch or [_default_patch(size, stride) for size in sizes]
    region = settings.region or [-(-2 * p // stride) * stride for p in patch]
    crop = settings.crop or [_fit(size, r) for size, r in zip(sizes, region)]
    plan = Plan(
        found[0].channels,
        spacing,
        _normalisation(found, settings),
        (settings.window[0], settings.window[1]),
        _triple(crop, int),
        _triple(patch, int),
        _triple(region, int),
    )
    _check(plan, stride)
    return plan


def _normalisation(found: Sequence[CaseFacts], settings: PlanSettings) -> str:
    if settings.normalisation != "auto":
        return settings.normalisation
    # Air is near -1000 HU; no MR scan has such values.
    looks_like_ct = np.median([f.low for f in found]) <= -500
    return "window" if looks_like_ct else "percentiles"


def _default_patch(size: float, stride: int) -> int:
    """16 voxels as published where at least three regions of 32 fit, else 8; a thin axis has thinner patches."""
    if size < 8:
        return max(int(2 ** np.floor(np.log2(max(size, 1)))), 1)
    return max(16 if size >= LARGEST_CROP else 8, stride if size >= stride else 8)


def _fit(size: float, region: int) -> int:
    return max(int(min(size, LARGEST_CROP) // region), 1) * region


def _check(plan: Plan, stride: int) -> None:
    for name, value, unit in (("region", plan.region, plan.patch), ("crop", plan.crop, plan.region)):
        if any(v % u for v, u in zip(value, unit)):
            raise SettingsError(
                f"plan.{name} {list(value)} is not a multiple of {list(unit)}",
                cure="Choose crop, region and patch so that each divides the one before.",
            )
    if all(c == stride for c in plan.crop):
        raise SettingsError(
            f"plan.crop {list(plan.crop)} leaves a single voxel at the network's stride of {stride}",
            cure="Choose a larger crop, or fewer network.features.",
        )
    if any(r % stride for r in plan.region):
        raise SettingsError(
            f"plan.region {list(plan.region)} is not a multiple of the network's stride {stride}",
            cure="Choose a larger region, or fewer network.features.",
        )


def _triple(values: Sequence[Any], kind: Any) -> Any:
    first, second, third = (kind(value) for value in values)
    return (first, second, third)
