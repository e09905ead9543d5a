"""The section inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional

from HybridMIMLib.settings.checks import require, require_named_amount, require_positive_triple, require_share
from HybridMIMLib.settings.tree import Triple, check_types, setting


@dataclass
class InferenceSettings:
    """Segmenting whole scans with a sliding window."""

    preset: Literal["fast", "balanced", "best"] = setting(
        "balanced",
        "fast: windows overlap by a quarter and follow the body; balanced: by a half; best: by five eighths, and "
        "each is flipped too along the axes along which the model was trained to be flipped",
    )
    overlap: Optional[float] = setting(
        None, "share by which neighbouring windows overlap; without: what the preset says"
    )
    step: Optional[Triple] = setting(None, "voxels from a window to the next along R, A, S, in place of overlap")
    flips: Optional[list[int]] = setting(
        None,
        "axes (0: left-right, 1: front-back, 2: up-down) along which each window is flipped too, in every "
        "combination; without: what the preset says",
    )
    skip_air: bool = setting(
        True, "look at the body alone: no windows outside the box around it, none that hold air alone"
    )
    follow_body: bool = setting(
        False,
        "lay windows anew around the body in each slab of the scan: about half as many where neck and shoulders are "
        "in it, and labels that differ a little from those of plain MONAI",
    )
    window_batch: int = setting(0, "windows that go through the network together; 0: as suits the device")
    engine: Literal["auto", "torch", "openvino"] = setting(
        "auto", "what computes the network; auto: OpenVINO on a CPU where it is installed, else PyTorch"
    )
    precision: Literal["auto", "float32", "half"] = setting(
        "auto", "auto: half precision where a GPU is faster with it, and float32 elsewhere"
    )
    uncertainty: bool = setting(False, "write how uncertain each voxel is (entropy, 0 to 1) beside the label maps")
    largest: Optional[list[str]] = setting(
        None, "classes (or all) of which only the largest component is kept; without: what the model says"
    )
    fill_holes: Optional[list[str]] = setting(
        None, "classes (or all) whose holes are filled; without: what the model says"
    )
    smallest_ml: Optional[list[str]] = setting(
        None,
        'components smaller than this are removed: CLASS=ML or all=ML, such as ["liver=20"]; without: what the model '
        "says",
    )

    def __post_init__(self) -> None:
        check_types("inference.", self)
        if self.overlap is not None:
            require_share("inference.overlap", self.overlap, below_one=True)
        require_positive_triple("inference.step", self.step)
        require(
            self.overlap is None or self.step is None,
            f"inference.overlap is {self.overlap} and inference.step is {self.step}: both say the same",
            "Give one of them.",
        )
        require(
            self.flips is None or sorted(set(self.flips) & {0, 1, 2}) == sorted(self.flips),
            f"inference.flips is {self.flips}",
            "Give a list of different axes out of 0, 1, 2; empty for none.",
        )
        require(self.window_batch >= 0, f"inference.window_batch is {self.window_batch}", "Give 0 or more.")
        for text in self.smallest_ml or []:
            require_named_amount("inference.smallest_ml", text, "CLASS=ML, such as liver=20")
