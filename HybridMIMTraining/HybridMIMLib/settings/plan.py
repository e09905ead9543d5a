"""The section plan: how scans are brought to one form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional

from HybridMIMLib.settings.checks import require, require_multiple, require_positive_triple
from HybridMIMLib.settings.tree import Triple, check_types, setting


@dataclass
class PlanSettings:
    """How scans are brought to one form; what is not given is derived from the scans themselves."""

    # Optional[...] and not "| None": get_type_hints must evaluate these on Python 3.10 for jsonargparse too.
    spacing: Optional[list[float]] = setting(
        None,
        "voxel size in mm along R, A, S that scans and crops are brought to, e.g. [1.5, 1.5, 2.0]; finer shows more "
        "and takes longer",
    )
    normalisation: Literal["auto", "window", "percentiles", "zscore"] = setting(
        "auto",
        "how intensities become alike; window: fixed ones (CT); zscore: by median and spread of each scan's body "
        "(MR); percentiles: of each scan; auto: window for CT, else zscore",
    )
    window: list[float] = setting(
        [-1000.0, 1000.0],
        "intensities that become 0 and 1 with normalisation=window, of a CT in HU; what lies outside is cut off",
    )
    crop: Optional[Triple] = setting(
        None,
        "voxels of the crops of scans that are trained on, along R, A, S (left-right, back-front, feet-head); a "
        "multiple of the region",
    )
    patch: Optional[Triple] = setting(None, "voxels of a patch, the unit that is masked")
    region: Optional[Triple] = setting(None, "voxels of a region (sub-volume), a multiple of the patch")

    def __post_init__(self) -> None:
        check_types("plan.", self)
        require_positive_triple("plan.spacing", self.spacing)
        for name in ("crop", "patch", "region"):
            require_positive_triple(f"plan.{name}", getattr(self, name))
        require(
            len(self.window) == 2 and self.window[0] < self.window[1],
            f"plan.window is {self.window}",
            "Give two intensities, the lower one first.",
        )
        require_multiple("plan.region", self.region, "plan.patch", self.patch)
        require_multiple("plan.crop", self.crop, "plan.region", self.region)
