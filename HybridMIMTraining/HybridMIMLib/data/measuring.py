"""What is measured of a scan while it is in memory: its voxels' hash, the intensities in the body, its modality."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from HybridMIMLib.data.grid import Array

BODY_PERCENTILES = (0.5, 25.0, 50.0, 75.0, 99.5)
"""Of the intensities in the body; the middle three say where it lies and how far it spreads."""

_SAMPLES = 400_000
_BINS = 256
_SMALLEST_BODY = 0.01
_HIGHEST_AIR = -500
_LOWEST_HU = -10_000
_INT16, _INT32 = np.iinfo(np.int16), np.iinfo(np.int32)


def voxel_hash(array: Array) -> str:
    """SHA-256 of shape and values of (C, D, H, W) along R, A, S, whatever the type in which they are stored.

    One scan in several formats, compressed or not, as integers or as floats of whole numbers, has one hash. It is
    computed slab by slab, so that a large scan is not copied.
    """
    kind = _smallest_type(array)
    digest = hashlib.sha256(f"{array.shape} {kind.str}".encode())
    for channel in array:
        for slab in channel:
            # Adding 0 makes -0.0 the same as 0.0.
            digest.update(np.ascontiguousarray(slab.astype(kind) + kind.type(0)).data)
    return digest.hexdigest()


def body_percentiles(array: Array) -> tuple[float, ...]:
    """For each channel of (C, D, H, W), the :data:`BODY_PERCENTILES` of the body, one channel behind the other.

    The body is what lies above Otsu's threshold; where that parts off next to nothing, it is the whole channel. Large
    scans are sampled on a regular grid of about 400,000 voxels.
    """
    values: list[float] = []
    for channel in array:
        sample = _sample(channel)
        body = sample[sample > otsu_threshold(sample)]
        if len(body) < _SMALLEST_BODY * len(sample):
            body = sample
        values += np.percentile(body, BODY_PERCENTILES).tolist()
    return tuple(values)


def otsu_threshold(sample: npt.NDArray[np.float32]) -> float:
    """The intensity that parts dark from bright so that both vary least (Otsu 1979, doi:10.1109/TSMC.1979.4310076).

    Extremes beyond the percentiles 0.5 and 99.5 are left out, because a single hot voxel would stretch the histogram
    until all else falls into one bin.

    Returns:
        The threshold; minus infinity where the intensities are all the same.
    """
    low, high = np.percentile(sample, (0.5, 99.5))
    if low == high:
        low, high = float(sample.min()), float(sample.max())
    if low == high:
        return -np.inf
    counts, edges = np.histogram(sample, bins=_BINS, range=(float(low), float(high)))
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = counts.cumsum(), counts[::-1].cumsum()[::-1]
    sums = (counts * centres).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        means_below, means_above = sums[:-1] / below[:-1], (sums[-1] - sums[:-1]) / above[1:]
        between = below[:-1] * above[1:] * (means_below - means_above) ** 2
    return float(edges[1:-1][int(np.nan_to_num(between).argmax())])


def looks_like_ct(array: Array) -> bool:
    """Whether the values of (C, D, H, W) are Hounsfield units: air far below 0, and mostly air, lung, fat and tissue.

    The second half keeps out MR phase images, which run from -4096 to 4095. A CT without air, or moved to values
    from 0, cannot be told.
    """
    if len(array) > 1 or not _LOWEST_HU <= array.min() <= _HIGHEST_AIR:
        return False
    sample = _sample(array[0])
    known = (sample < _HIGHEST_AIR) & (sample > -1100) | (np.abs(sample) < 300)
    padding = sample <= -1100
    return bool(known.sum() > 0.7 * (len(sample) - padding.sum()))


def _sample(channel: Array) -> npt.NDArray[np.float32]:
    step = max(int(np.ceil((channel.size / _SAMPLES) ** (1 / 3))), 1)
    return np.asarray(channel[::step, ::step, ::step], dtype=np.float32).ravel()


def _smallest_type(array: Array) -> np.dtype[Any]:
    """16-bit or 32-bit integers where the values are whole numbers that fit, else 32-bit floats."""
    if array.dtype.kind == "f" and not all((slab == np.rint(slab)).all() for channel in array for slab in channel):
        return np.dtype("<f4")
    low, high = array.min(), array.max()
    for limits in (_INT16, _INT32):
        if limits.min <= low and high <= limits.max:
            return np.dtype("<i2") if limits is _INT16 else np.dtype("<i4")
    return np.dtype("<f4")
