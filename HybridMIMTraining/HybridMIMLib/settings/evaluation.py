"""The section evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional

from HybridMIMLib.settings.checks import named_amount, require, require_named_amount, require_positive
from HybridMIMLib.settings.tree import check_types, setting


@dataclass
class EvaluationSettings:
    """Judging segmentations by references."""

    tolerance: float = setting(2.0, "mm that surfaces may be apart in the surface Dice (NSD)")
    tolerances: Optional[list[str]] = setting(
        None, 'the same for single classes or regions: CLASS=MM, such as ["liver=3", "aorta=1"]'
    )
    missing_predictions: Literal["empty", "leave_out"] = setting(
        "empty",
        "what a reference without a prediction means; empty: nothing was found in it, which counts; leave_out: it "
        "was not to be segmented",
    )
    resamples: int = setting(2000, "draws of the bootstrap that makes the 95 % intervals")
    pictures: int = setting(6, "cases with the lowest Dice that the report shows as pictures; 0: none")

    def tolerance_by_name(self) -> dict[str, float]:
        """``tolerances`` by the name of the class or region, in mm."""
        return dict(named_amount(text) for text in self.tolerances or [])

    def __post_init__(self) -> None:
        check_types("evaluation.", self)
        require_positive("evaluation.tolerance", self.tolerance)
        for text in self.tolerances or []:
            require_named_amount("evaluation.tolerances", text, "CLASS=MM, such as liver=3")
        require(self.resamples >= 100, f"evaluation.resamples is {self.resamples}", "Give 100 or more, such as 2000.")
        require(self.pictures >= 0, f"evaluation.pictures is {self.pictures}", "Give 0 or more.")
