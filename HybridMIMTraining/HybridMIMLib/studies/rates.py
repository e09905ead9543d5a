"""The choice of a learning rate: the best validation in the mean over seeds, also where some trainings failed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from statistics import fmean

Scores = dict[float, float]


def mean_scores(found: Mapping[float, Mapping[Hashable, float]]) -> Scores:
    """The mean validation Dice of the learning rates that can be compared, each over the same seeds.

    A seed that failed at every rate, because its pre-training did or its cases are damaged, is left out; a rate that
    failed where another did not is no choice. If that leaves none, those that failed least are compared on the seeds
    that they have in common.

    Args:
        found: for each rate the validation Dice of the seeds that were trained with it.

    Returns:
        By rate; empty if no training was finished.
    """
    most = max((len(by_seed) for by_seed in found.values()), default=0)
    compared = {rate: by_seed for rate, by_seed in found.items() if by_seed and len(by_seed) == most}
    if not compared:
        return {}
    common = set.intersection(*(set(by_seed) for by_seed in compared.values()))
    if not common:
        # Each failed somewhere else; the first of them is as good as another.
        compared = dict([next(iter(compared.items()))])
        common = set(next(iter(compared.values())))
    return {rate: fmean(by_seed[seed] for seed in sorted(common, key=str)) for rate, by_seed in compared.items()}
