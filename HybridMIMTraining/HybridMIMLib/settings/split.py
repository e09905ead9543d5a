"""The section split."""

from __future__ import annotations

from dataclasses import dataclass

from HybridMIMLib.settings.checks import require
from HybridMIMLib.settings.tree import check_types, setting


@dataclass
class SplitSettings:
    """How the demo shares out cases when the folders are the user's own."""

    unseen: int = setting(-1, "labelled scans kept for the test, never trained on; -1: a quarter of them")
    labelled: int = setting(-1, "labelled scans to fine-tune on; -1: all that are not kept for the test")
    unlabelled: int = setting(-1, "scans to pre-train on; -1: all that are not kept for the test")

    def __post_init__(self) -> None:
        check_types("split.", self)
        for name in ("unseen", "labelled", "unlabelled"):
            number = getattr(self, name)
            require(number >= -1 and number != 0, f"split.{name} is {number}", "Give a number above 0, or -1.")
        for name in ("labelled", "unlabelled"):
            require(getattr(self, name) != 1, f"split.{name} is 1", "Give 2 or more: one alone cannot be compared.")
