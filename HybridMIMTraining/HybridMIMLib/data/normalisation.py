"""Which intensities of a scan become 0 and 1 for the network.

Three ways, chosen by the plan; in each the network sees ``clip((intensity - low) / (high - low), 0, 1)``, and the
store keeps the intensities themselves, so that normalising is one multiplication on the training device:

``window``
    fixed intensities. For CT, whose numbers mean the same in every scan.
``zscore``
    robust z-score of each scan and channel: 2.5 sigma below the median of the body become 0, 3.5 sigma above it 1.
    For MR, whose numbers mean nothing by themselves: one set may hold maxima from 112 to 1.7 million. More room is
    left above, because what is odd in MR (vessels, contrast agent, fat near the coil) is bright. A wider range leaves
    less of it to the contrast of tissues: on hippocampus scans -4 to 6 sigma gave a Dice of 0.854, -2.5 to 3.5 one of
    0.860 (one seed).
``percentiles``
    percentiles 0.5 and 99.5 of each scan and channel.

The body is what lies above a tenth of the range between those percentiles, sigma is the interquartile range
/ 1.349. Both were chosen by measuring. Otsu's threshold falls between muscle and fat in T1-weighted scans of the
thigh, and would cut a third to two thirds of their voxels to 0, all muscle among them. The median absolute deviation
jumps with the shares of muscle and fat, by a factor of 5 between six thighs, the interquartile range by 1.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from HybridMIMLib.data.plan import Plan

LOWEST_SIGMA, HIGHEST_SIGMA = -2.5, 3.5
BODY_SHARE = 0.1
IQR_OF_NORMAL = 1.349
"""Interquartile range of a normal distribution, in standard deviations."""
MOST_VOXELS = 2_000_000
"""A scan with more is looked at in every second, third … voxel along each axis: its quartiles hardly change."""

Array = npt.NDArray[Any]


def intensity_range(array: npt.NDArray[np.float32], plan: Plan) -> list[tuple[float, float]]:
    """For each channel of (C, D, H, W), the intensities that become 0 and 1 for the network; low < high."""
    if plan.normalisation == "window":
        return [plan.window] * len(array)
    if plan.normalisation == "zscore":
        return [_robust_range(channel) for channel in array]
    return [_useful_range(channel) for channel in array]


def body_of(channel: Array) -> Array:
    """The intensities (N,) of the body in one channel (D, H, W): all of them where no background can be told."""
    values = _thinned(channel).ravel()
    low, high = np.percentile(values, (0.5, 99.5))
    if low == high:  # nearly all is background
        low, high = values.min(), values.max()
    return values[values > low + BODY_SHARE * (high - low)] if low < high else values


def _robust_range(channel: Array) -> tuple[float, float]:
    lower, median, upper = (float(value) for value in np.percentile(body_of(channel), (25, 50, 75)))
    sigma = (upper - lower) / IQR_OF_NORMAL
    low, high = median + LOWEST_SIGMA * sigma, median + HIGHEST_SIGMA * sigma
    # A body of one intensity, a mask say, has no spread to measure by; nor has one too narrow for its numbers.
    return (low, high) if np.float32(low) < np.float32(high) else _useful_range(channel)


def _useful_range(channel: Array) -> tuple[float, float]:
    low, high = (float(value) for value in np.percentile(channel, (0.5, 99.5)))
    if low == high:  # nearly all is background
        low, high = float(channel.min()), float(channel.max())
    return (low, high) if low < high else (low, low + max(abs(low), 1.0))


def _thinned(channel: Array) -> Array:
    step = int(np.ceil((channel.size / MOST_VOXELS) ** (1 / 3)))
    return channel[::step, ::step, ::step]
