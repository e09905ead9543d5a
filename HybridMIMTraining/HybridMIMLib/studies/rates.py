"""The choice of a learning rate: the best validation in the mean over seeds, also where some trainings failed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from statistics import fmean


def mean_scores(found: Mapping[float, Mapping[Hashable, float]]) -> dict[float, float]:
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
    if most == 0:
        return {}
    rates = [rate for rate, by_seed in found.items() if len(by_seed) == most]
    common = set.intersection(*(set(found[rate]) for rate in rates))
    if not common:
        # Each failed somewhere else; the first of them is as good as another.
        rates = rates[:1]
        common = set(found[rates[0]])
    return {rate: fmean(score for seed, score in found[rate].items() if seed in common) for rate in rates}
