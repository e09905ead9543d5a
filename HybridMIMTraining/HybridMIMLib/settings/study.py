"""The section study."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, Optional, Union

from HybridMIMLib.settings.checks import require, require_positive, require_positive_triple
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.settings.tree import check_types, choices, setting

STUDY_OBJECTIVES = (
    "scratch",
    "hybridmim",
    *(f"hybridmim-{loss}" for loss in ("partial", "number", "location", "consistency", "contrast")),
    "simmim",
    "mae",
    "simclr",
)
"""What a study compares; ``hybridmim-number`` is HybridMIM without that loss."""


@dataclass
class StudySettings:
    """What a study crosses, by which protocol, and how it is worked off."""

    preset: Optional[Literal["quick", "paper"]] = setting(
        None,
        "quick: few steps and two seeds, to see that it works; paper: the axes of arXiv:2204.11716, each varied by "
        "itself, for a GPU. Either fills in what is left at its default",
    )
    objectives: list[str] = setting(
        ["scratch", "hybridmim", "simmim"],
        "scratch, hybridmim, simmim, mae, simclr, and hybridmim without one of its losses: hybridmim-partial, "
        "-number, -location, -consistency, -contrast",
    )
    networks: Optional[list[str]] = setting(
        None, "architectures, with a size if wanted, such as [unet-tiny, unetr-base]; without: that of --network"
    )
    mask_ratios: Optional[list[float]] = setting(None, "shares of the patches that are masked")
    patches: Optional[list[int]] = setting(None, "voxels along a side of a patch")
    head_depths: Optional[list[int]] = setting(None, "simmim, mae: transformer blocks of the head")
    spacings: Optional[list[Union[float, list[float]]]] = setting(
        None, "resolutions: mm along R, A, S, or a number: so many times the spacing of the plan"
    )
    vary: Literal["all", "one"] = setting(
        "all", "all: every value of an axis with every value of the others; one: each axis by itself"
    )
    labelled: list[Union[float, str]] = setting(
        ["all"], 'how many cases to fine-tune on: numbers from 1, shares below 1, or "all"'
    )
    steps: Optional[list[int]] = setting(
        None, "steps of the fine-tuning, one for each entry of study.labelled; without: finetuning.steps for all"
    )
    learning_rates: Optional[list[float]] = setting(
        None,
        "peak learning rates of the fine-tuning, of which each arm gets the one with the best validation; without: "
        "finetuning.learning_rate for all",
    )
    rate_seeds: Literal["all", "first"] = setting(
        "all",
        "whose validation chooses among the learning rates; all: the mean over the seeds; first: that of the first "
        "seed, which is quicker, and can prefer a rate by luck",
    )
    seeds: list[int] = setting([0, 1, 2], "seeds of the fine-tuning, of which the labelled cases are drawn too")
    pretraining_seeds: Optional[list[int]] = setting(
        None,
        "seeds of the pre-training; as many as study.seeds: one for each of them, else all pairs; without: as "
        "study.seeds",
    )
    scratch_double: bool = setting(True, "train from scratch for twice the steps too")
    test_cases: int = setting(-1, "labelled cases that are tested on and serve nothing else; -1: a quarter")
    test: Optional[list[str]] = setting(
        None, "names of the test cases, or of a JSON file with a list of them, in place of a draw"
    )
    validation_cases: int = setting(
        -1, "labelled cases that choose checkpoint and learning rate; -1: a fifth of the rest"
    )
    validations: int = setting(10, "how often a fine-tuning is validated, its last step included")
    jobs: int = setting(1, "pre-trainings or fine-tunings at once; the cores are divided among them")
    estimate_only: bool = setting(False, "try a few steps, tell how long the study will take, and end")

    def __post_init__(self) -> None:
        check_types("study.", self)
        self._check_objectives()
        self._check_lists()
        self._check_labelled()
        require_positive("study.validations", self.validations)
        require_positive("study.jobs", self.jobs)
        for name in ("test_cases", "validation_cases"):
            number = getattr(self, name)
            require(number > 0 or number == -1, f"study.{name} is {number}", "Give a number of cases above 0, or -1.")
        require(
            self.test is None or self.test_cases == -1,
            "study.test and study.test_cases both say which cases are tested on",
            "Set study.test_cases to -1, or leave out study.test.",
        )

    def _check_objectives(self) -> None:
        unknown = [name for name in self.objectives if name not in STUDY_OBJECTIVES]
        require(
            not unknown,
            f"study.objectives has {', '.join(map(repr, unknown))}",
            f"Objectives are: {', '.join(STUDY_OBJECTIVES)}.",
        )
        require(
            "scratch" in self.objectives and len(set(self.objectives)) > 1,
            f"study.objectives is {self.objectives}: a study compares scratch with something",
            "Name scratch and at least one other, such as [scratch, hybridmim].",
        )
        known = [f"{a}{s}" for a in choices(NetworkSettings, "architecture")
                 for s in ("", *(f"-{size}" for size in choices(NetworkSettings, "size")))]  # fmt: skip
        for name in self.networks or []:
            require(name in known, f"study.networks has {name!r}", f"Networks are: {', '.join(known)}.")

    def _check_lists(self) -> None:
        for one in fields(self):
            values = getattr(self, one.name)
            if not isinstance(values, list):
                continue
            require(len(values) > 0, f"study.{one.name} is empty", "Name at least one, or leave it out.")
            require(
                one.name == "steps" or all(value not in values[:index] for index, value in enumerate(values)),
                f"study.{one.name} is {values}: one is there twice",
                "Name each once.",
            )
        for name in ("patches", "steps", "learning_rates"):
            for value in getattr(self, name) or []:
                require_positive(f"a number in study.{name}", value)
        for spacing in self.spacings or []:
            if isinstance(spacing, list):
                require_positive_triple("a spacing in study.spacings", spacing)
            else:
                require_positive("a number in study.spacings", spacing)
        for ratio in self.mask_ratios or []:
            require(0 < ratio < 1, f"study.mask_ratios has {ratio}", "Give shares above 0 and below 1.")
        for depth in self.head_depths or []:
            require(0 <= depth <= 8, f"study.head_depths has {depth}", "Give numbers from 0 (one linear layer) to 8.")
        for seed in [*self.seeds, *(self.pretraining_seeds or [])]:
            require(seed >= 0, f"a seed of the study is {seed}", "Give whole numbers from 0.")

    def _check_labelled(self) -> None:
        for amount in self.labelled:
            fine = amount == "all" if isinstance(amount, str) else 0 < amount < 1 or (amount >= 1 and amount % 1 == 0)
            require(
                fine,
                f"study.labelled has {amount!r}",
                'Give whole numbers of cases from 1, shares between 0 and 1, or "all".',
            )
        require(
            self.steps is None or len(self.steps) == len(self.labelled),
            f"study.steps has {len(self.steps or [])} entries, and study.labelled has {len(self.labelled)}",
            "Give a number of steps for each, or leave out study.steps.",
        )
