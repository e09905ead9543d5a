"""What a study compares: arms, each a way to begin a fine-tuning, and the cells that they are worked off in.

An arm is an objective on a network at a resolution, with a mask ratio, a patch and a depth of the head where these
mean something to it:

=============  ==========================================================
axis           means something to
=============  ==========================================================
network        all
resolution     all
mask ratio     hybridmim and its variants, simmim, mae
patch          the same
head depth     simmim, mae
=============  ==========================================================

Each arm is compared with ``scratch`` on the same network at the same resolution, which is its group. A cell is one
pre-training (arm and seed) or one fine-tuning (arm, labelled amount, learning rate, seeds), and a job of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Union

from HybridMIMLib.config import Run
from HybridMIMLib.randomness import stream_key
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.settings.pretraining import Share
from HybridMIMLib.settings.study import StudySettings

SCRATCH, DOUBLE = "scratch", "scratch, twice the steps"
MASKED = ("hybridmim", "simmim", "mae")
WITH_HEAD = ("simmim", "mae")

Spacing = Union[float, list[float]]
Amount = Union[float, str]


@dataclass(frozen=True)
class Arm:
    """A way to begin a fine-tuning.

    Attributes:
        name: unique in its study.
        group: network and resolution; arms of one group are compared.
        objective: as in :data:`~HybridMIMLib.settings.study.STUDY_OBJECTIVES`.
        network: architecture, with a size if one was named; empty: as set.
        spacing: mm along R, A, S, or a multiple of the spacing of the plan; None: that of the plan.
        mask_ratio, patch, head_depth: None: as set, or of no meaning to it.
        twice: whether it is trained for twice the steps.
    """

    name: str
    group: str
    objective: str
    network: str = ""
    spacing: Spacing | None = None
    mask_ratio: Share | None = None
    patch: int | None = None
    head_depth: int | None = None
    twice: bool = False

    @property
    def is_scratch(self) -> bool:
        """Whether nothing was pre-trained."""
        return self.objective == SCRATCH

    @property
    def family(self) -> str:
        """The objective without what is left out of it."""
        return self.objective.partition("-")[0]


@dataclass(frozen=True)
class Pretraining:
    """One pre-training.

    Attributes:
        arm: whose it is.
        seed: of it.
    """

    arm: Arm
    seed: int

    @property
    def id(self) -> str:
        """Names its folder."""
        return _file_name(f"{self.arm.name} seed {self.seed}")

    @property
    def title(self) -> str:
        """Names it to people."""
        return f"pre-training {self.arm.name}, seed {self.seed}"


@dataclass(frozen=True)
class Finetuning:
    """One fine-tuning.

    Attributes:
        arm: how it begins.
        amount: of labelled cases, as asked for.
        steps: that it takes.
        learning_rate: peak.
        seed: of it.
        pretraining_seed: of the pre-training that it starts from; None from scratch.
    """

    arm: Arm
    amount: Amount
    steps: int
    learning_rate: float
    seed: int
    pretraining_seed: int | None

    @property
    def id(self) -> str:
        """Names its folder."""
        begin = "" if self.pretraining_seed is None else f" from {self.pretraining_seed}"
        return _file_name(f"{self.arm.name} {_plain(self.amount)} lr {self.learning_rate:g} seed {self.seed}{begin}")

    @property
    def title(self) -> str:
        """Names it to people."""
        begin = "" if self.pretraining_seed is None else f" from pre-training {self.pretraining_seed}"
        return (
            f"{self.arm.name}, {in_words(self.amount)}, learning rate {self.learning_rate:g}, seed {self.seed}{begin}"
        )

    @property
    def pretraining(self) -> Pretraining | None:
        """The pre-training that it starts from."""
        return None if self.pretraining_seed is None else Pretraining(self.arm, self.pretraining_seed)


def in_words(amount: Amount) -> str:
    """``2 labelled``, ``10 % labelled``, ``all labelled``."""
    return f"{_plain(amount)} labelled"


def arms_of(run: Run) -> list[Arm]:
    """Every arm that the settings ask for, whether a network can do it or not; scratch is first in its group."""
    study = run.study
    networks: list[str] = list(study.networks or [""])
    spacings: Sequence[Spacing | None] = study.spacings or (None,)
    found: dict[tuple[object, ...], Arm] = {}
    for number, (network, spacing) in enumerate(_pairs(networks, spacings, study.vary)):
        for objective in sorted(study.objectives, key=lambda name: name != SCRATCH):
            for ratio, patch, depth in _variations(run, objective, first=number == 0):
                name = _name(study, network, spacing, objective, ratio, patch, depth)
                arm = Arm(
                    name, _group(study, network, spacing), objective, network, spacing, ratio, patch, depth
                )  # fmt: skip
                found.setdefault((network, str(spacing), objective, str(ratio), patch, depth), arm)
            if objective == SCRATCH and study.scratch_double:
                group = _group(study, network, spacing)
                double = Arm(_joined(DOUBLE, group), group, SCRATCH, network, spacing, twice=True)
                found.setdefault((network, str(spacing), DOUBLE), double)
    return list(found.values())


def settings_of(run: Run, arm: Arm) -> Run:
    """The settings of a study's cells with what an arm changes in them; crop and seeds follow elsewhere.

    What the study as a whole does is none of theirs: one that was stopped goes on with more jobs at once.
    """
    changes: dict[str, Any] = {"objective": "none" if arm.is_scratch else arm.family}
    if arm.mask_ratio is not None:
        changes["mask_ratio"] = arm.mask_ratio
    if arm.head_depth is not None:
        changes["head_depth"] = arm.head_depth
    if without := arm.objective.partition("-")[2]:
        changes[f"{without}_weight"] = 0.0
    pretraining = replace(run.pretraining, **changes)
    plan = run.plan
    if arm.patch is not None:
        plan = replace(plan, patch=[arm.patch] * 3, region=None)
    return replace(
        run, pretraining=pretraining, plan=plan, network=network_of(run, arm.network), study=StudySettings()
    )


def network_of(run: Run, name: str) -> NetworkSettings:
    """The settings of a network by its name in ``study.networks``; empty: as set."""
    if not name:
        return run.network
    architecture, _, size = name.partition("-")
    content = {**asdict(run.network), "architecture": architecture, "features": None, "strides": None}
    return NetworkSettings(**{**content, **({"size": size} if size else {})})


def seed_pairs(study: StudySettings, arm: Arm) -> list[tuple[int | None, int]]:
    """(seed of the pre-training, seed of the fine-tuning) of an arm: side by side if there are as many, else all."""
    if arm.is_scratch:
        return [(None, seed) for seed in study.seeds]
    first = study.seeds if study.pretraining_seeds is None else study.pretraining_seeds
    if len(first) == len(study.seeds):
        return list(zip(first, study.seeds))
    return [(one, seed) for one in first for seed in study.seeds]


def pretrainings(study: StudySettings, arms: Iterable[Arm]) -> list[Pretraining]:
    """All of them, each once."""
    return [
        Pretraining(arm, seed)
        for arm in arms
        if not arm.is_scratch
        for seed in dict.fromkeys(first for first, _ in seed_pairs(study, arm) if first is not None)
    ]


def finetunings(
    run: Run, arm: Arm, amount: Amount, rates: Sequence[float], only_first: bool = False
) -> list[Finetuning]:
    """The fine-tunings of an arm on a labelled amount.

    Args:
        run: the settings.
        arm: how they begin.
        amount: one of ``study.labelled``.
        rates: learning rates.
        only_first: those of the first pair of seeds alone.
    """
    study = run.study
    pairs = seed_pairs(study, arm)[: 1 if only_first else None]
    steps = run.finetuning.steps if study.steps is None else study.steps[study.labelled.index(amount)]
    steps = 2 * steps if arm.twice else steps
    return [Finetuning(arm, amount, steps, rate, seed, first) for rate in rates for first, seed in pairs]


def trials(run: Run, arm: Arm, amount: Amount) -> list[Finetuning]:
    """The fine-tunings among which the learning rate of an arm on a labelled amount is chosen."""
    return finetunings(run, arm, amount, rates_of(run), only_first=run.study.rate_seeds == "first")


def rates_of(run: Run) -> list[float]:
    """Learning rates to choose from."""
    return list(run.study.learning_rates or [run.finetuning.learning_rate])


def arm_to_json(arm: Arm) -> dict[str, Any]:
    """A dictionary that JSON can hold."""
    return asdict(arm)


def _pairs(
    networks: Sequence[str], spacings: Sequence[Spacing | None], vary: str
) -> Iterator[tuple[str, Spacing | None]]:
    """Networks and resolutions, crossed or each by itself beside the first of the other."""
    for network in networks:
        for spacing in spacings:
            if vary == "all" or network == networks[0] or spacing == spacings[0]:
                yield network, spacing


def _variations(run: Run, objective: str, first: bool) -> Iterator[tuple[Share | None, int | None, int | None]]:
    """Mask ratio, patch and head depth of the arms of an objective.

    With ``vary: one`` the first is what an objective has by default, and beside the first network and resolution
    alone one of the three at a time is another.
    """
    study, family = run.study, objective.partition("-")[0]
    ratios: Sequence[Share | None] = (study.mask_ratios if family in MASKED else None) or (None,)
    patches: Sequence[int | None] = (study.patches if family in MASKED else None) or (None,)
    depths: Sequence[int | None] = (study.head_depths if family in WITH_HEAD else None) or (None,)
    if study.vary == "all":
        yield from ((ratio, patch, depth) for ratio in ratios for patch in patches for depth in depths)
        return
    base = (_ratio(run, family), None, _depth(run, family))
    yield base
    if first:
        yield from ((ratio, base[1], base[2]) for ratio in ratios if ratio not in (None, base[0]))
        yield from ((base[0], patch, base[2]) for patch in patches if patch is not None)
        yield from ((base[0], base[1], depth) for depth in depths if depth not in (None, base[2]))


def _ratio(run: Run, family: str) -> Share | None:
    if family not in MASKED:
        return None
    default = 0.40 if family == "hybridmim" else 0.75
    return default if run.pretraining.mask_ratio is None else run.pretraining.mask_ratio


def _depth(run: Run, family: str) -> int | None:
    if family not in WITH_HEAD:
        return None
    default = 0 if family == "simmim" else 4
    return default if run.pretraining.head_depth is None else run.pretraining.head_depth


def _name(
    study: StudySettings,
    network: str,
    spacing: Spacing | None,
    objective: str,
    ratio: Share | None,
    patch: int | None,
    depth: int | None,
) -> str:
    """Says of an arm what differs between the arms of a study, and nothing else."""
    parts = [objective]
    if study.mask_ratios and ratio is not None:
        parts.append(f"ratio {ratio:g}" if isinstance(ratio, (int, float)) else f"ratio {ratio[0]:g}-{ratio[1]:g}")
    if study.patches and patch is not None:
        parts.append(f"patch {patch}")
    if study.head_depths and depth is not None:
        parts.append(f"head {depth}")
    return _joined(", ".join(parts), _group(study, network, spacing))


def _group(study: StudySettings, network: str, spacing: Spacing | None) -> str:
    parts = [network] if study.networks and len(study.networks) > 1 else []
    if study.spacings and len(study.spacings) > 1 and spacing is not None:
        sides = spacing if isinstance(spacing, list) else None
        parts.append(f"spacing x{spacing:g}" if sides is None else f"spacing {'-'.join(f'{s:g}' for s in sides)} mm")
    return ", ".join(parts)


def _joined(name: str, group: str) -> str:
    return f"{name} ({group})" if group else name


def _plain(amount: Amount) -> str:
    if isinstance(amount, str):
        return amount
    return f"{amount:g}" if amount >= 1 else f"{100 * amount:g} %"


def _file_name(text: str) -> str:
    """Readable, short, and different for different texts."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", text.replace("%", "percent")).strip("-.")
    return words if len(words) <= 80 else f"{words[:70]}-{stream_key(text) % 10**8:08d}"
