"""Which learning rates are compared, and on which seeds."""

from __future__ import annotations

import pytest

from HybridMIMLib.studies.rates import mean_scores

SLOW, FAST = 1e-3, 1e-2


@pytest.mark.parametrize(
    ("found", "scores"),
    [
        # The first seed alone would prefer the other one.
        ({SLOW: {0: 0.8, 1: 0.5}, FAST: {0: 0.7, 1: 0.7}}, {SLOW: 0.65, FAST: 0.7}),
        # A seed that failed everywhere, because its pre-training did.
        ({SLOW: {0: 0.8, 2: 0.6}, FAST: {0: 0.7, 2: 0.5}}, {SLOW: 0.7, FAST: 0.6}),
        # A rate that failed where the other did not, by a loss that was not finite, say.
        ({SLOW: {0: 0.5, 1: 0.5}, FAST: {0: 0.9}}, {SLOW: 0.5}),
        # Each failed once: on what they have in common.
        ({SLOW: {0: 0.5, 1: 0.5}, FAST: {1: 0.6, 2: 0.9}}, {SLOW: 0.5, FAST: 0.6}),
        ({SLOW: {0: 0.5}, FAST: {1: 0.9}}, {SLOW: 0.5}),
        ({SLOW: {}, FAST: {1: 0.9}}, {FAST: 0.9}),
        ({SLOW: {}, FAST: {}}, {}),
    ],
)
def test_scores_are_means_over_the_same_seeds(
    found: dict[float, dict[int, float]], scores: dict[float, float]
) -> None:
    assert mean_scores(found) == pytest.approx(scores)
