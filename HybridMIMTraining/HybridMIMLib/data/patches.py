"""Crops for training: drawn from the store by (seed, step, sample), put together on the training device.

Which crops a step has follows from the seed and the step alone. Threads may cut those of the next steps ahead; a run
without them, inside Slicer say, or one that was continued, sees the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from HybridMIMLib.data.store import PreparedCase
from HybridMIMLib.randomness import random_stream, stream_key

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class CropBatch:
    """Crops of one step.

    Attributes:
        image: (B, C, D, H, W), intensities from 0 to 1; padding is 0.
        label: (B, D, H, W) class numbers, 0 where there is background or padding; None without labels.
        sizes: for each sample, voxels along each axis that hold scan; the rest, at the far end, is padding.
        keys: one number a sample, from which further draws follow.
        cases: the names of the cases.
        patients: a number for each sample, the same for scans of one patient in every batch.
        annotated: (B, K) whether class k + 1 was annotated in the sample's case; None without labels.
    """

    image: Tensor
    label: Tensor | None
    sizes: tuple[Triple, ...]
    keys: tuple[int, ...]
    cases: tuple[str, ...]
    patients: tuple[int, ...]
    annotated: Tensor | None = None


class CropSampler:
    """Draws the crops of any step, whichever was drawn before.

    Args:
        cases: prepared scans.
        crop: voxels along each axis; a smaller scan is padded at its far end.
        seed: of the run.
        purpose: tells streams apart, such as ``"pretrain"``.
        foreground_share: share of the crops that are centred on a voxel of a class; needs labels.
        workers: threads that cut the next steps' crops while the network computes; 0 cuts when asked. Threads, not
            processes: these hang inside Slicer, and what is slow here (reading, copying) runs without Python's lock.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        crop: Triple,
        seed: int,
        purpose: str,
        foreground_share: float = 0.0,
        workers: int = 0,
    ) -> None:
        self.seed, self.purpose = seed, purpose
        self._cutter = _Cutter(tuple(cases), crop, seed, purpose, foreground_share)
        self._workers = workers
        self._ahead = _Ahead(self._cutter.step, workers) if workers else None
        self._patients = {who: number for number, who in enumerate(dict.fromkeys(map(who_is, cases)))}

    @property
    def patients(self) -> int:
        """How many different patients the crops come from."""
        return len(self._patients)

    def part(self, which: int, parts: int) -> CropSampler:
        """The same, but of every batch draws one of several equal parts alone: the samples that it has there."""
        part = copy(self)
        part._cutter = replace(self._cutter, part=(which, parts))
        part._ahead = _Ahead(part._cutter.step, self._workers) if self._workers else None
        return part

    def batch(self, step: int, size: int, device: torch.device, labels: bool = False) -> CropBatch:
        """The crops of a step, each of another patient where there are enough, else of another scan.

        Args:
            step: which one.
            size: of the whole batch, a multiple of the parts.
            device: where to put them.
            labels: whether to cut the label maps too.

        Raises:
            DataError: a prepared scan cannot be read any more.
        """
        cut = (self._ahead or self._cutter).step(step, size, labels)
        image, label, annotated = to_device(cut.image, device), None, None
        if cut.label is not None:
            label = to_device(cut.label, device).long()
            annotated = to_device(_annotated(cut.cases), device)
        return CropBatch(
            _normalise(image, cut.cases, cut.sizes),
            label,
            cut.sizes,
            tuple(stream_key(self.seed, self.purpose, step, sample) for sample in self._cutter.samples(size)),
            tuple(case.name for case in cut.cases),
            tuple(self._patients[who_is(case)] for case in cut.cases),
            annotated,
        )

    def close(self) -> None:
        """Let the threads end; without it they end with the sampler."""
        if self._ahead:
            self._ahead.close()


def crop_at(case: PreparedCase, lower: Triple, crop: Triple, device: torch.device) -> tuple[Tensor, Triple]:
    """The crop of a scan that begins at voxel ``lower``, as training sees it.

    Returns:
        (1, C, D, H, W) intensities from 0 to 1; padding, at the far end, is 0. And how many voxels along each axis
        hold scan.

    Raises:
        DataError: the prepared scan cannot be read any more.
    """
    out = np.empty((1, len(case.low), *crop), dtype=np.int16)
    size = _cut(case.image, lower, out[0])
    return _normalise(to_device(out, device), [case], [size]), size


@dataclass(frozen=True)
class _Cut:
    """The crops of a step as they are stored: image (B, C, D, H, W) int16, label (B, D, H, W) uint8 or None."""

    image: npt.NDArray[np.int16]
    label: npt.NDArray[np.uint8] | None
    sizes: tuple[Triple, ...]
    cases: list[PreparedCase]


@dataclass(frozen=True)
class _Cutter:
    """The part of the sampler that threads need: which crops a step has, and cutting them."""

    cases: tuple[PreparedCase, ...]
    crop: Triple
    seed: int
    purpose: str
    foreground_share: float
    part: tuple[int, int] = (0, 1)

    def samples(self, size: int) -> range:
        """Numbers of the samples to cut, of a batch of ``size``."""
        which, parts = self.part
        return range(which * size // parts, (which + 1) * size // parts)

    def step(self, step: int, size: int, labels: bool) -> _Cut:
        """The crops of a step, as they are stored."""
        order = random_stream(self.seed, self.purpose, step, "cases")
        # Fewer cases than samples come round as evenly as they can.
        drawn = _patients_apart([self.cases[index] for index in order.permutation(len(self.cases))])
        samples = self.samples(size)
        cases = [drawn[index % len(drawn)] for index in samples]
        image = np.empty((len(cases), len(cases[0].low), *self.crop), dtype=np.int16)
        label = np.empty((len(cases), *self.crop), dtype=np.uint8) if labels else None
        sizes = []
        for row, (sample, case) in enumerate(zip(samples, cases)):
            stored = case.image
            at = self._place(case, (stored.shape[1], stored.shape[2], stored.shape[3]), step, sample)
            sizes.append(_cut(stored, at, image[row]))
            if label is not None:
                _cut(case.label, at, label[row])
        return _Cut(image, label, tuple(sizes), cases)

    def _place(self, case: PreparedCase, shape: Triple, step: int, sample: int) -> Triple:
        random = random_stream(self.seed, self.purpose, step, sample, "place")
        room = [max(n - c, 0) for n, c in zip(shape, self.crop)]
        present = np.flatnonzero(case.counts)
        if len(present) and random.random() < self.foreground_share:
            number = random.choice(present)
            first = sum(case.counts[:number])
            voxel = case.foreground[first + random.integers(case.counts[number])]
            lower = [int(np.clip(v - c // 2, 0, r)) for v, c, r in zip(voxel, self.crop, room)]
        else:
            lower = [int(random.integers(r + 1)) for r in room]
        return (lower[0], lower[1], lower[2])


def _patients_apart(cases: Sequence[PreparedCase]) -> list[PreparedCase]:
    """The first scan of each patient, then the second of those who have one, and so on."""
    met: Counter[str] = Counter()
    turns = []
    for case in cases:
        who = who_is(case)
        turns.append(met[who])
        met[who] += 1
    return [case for _, case in sorted(zip(turns, cases), key=lambda pair: pair[0])]


def who_is(case: PreparedCase) -> str:
    """A name for the patient; where nobody says who it is, each scan is of another one."""
    return f"patient {case.patient}" if case.patient else f"scan {case.name}"


class _Ahead:
    """Has threads cut the steps that come next, as many as there are threads."""

    def __init__(self, cut: Callable[[int, int, bool], _Cut], workers: int) -> None:
        self.cut, self.workers = cut, workers
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="crops")
        self.waiting: dict[tuple[int, int, bool], Future[_Cut]] = {}

    def step(self, step: int, size: int, labels: bool) -> _Cut:
        """The crops of a step; from now on the steps after it are cut."""
        wanted = [(step + ahead, size, labels) for ahead in range(self.workers + 1)]
        for key in self.waiting.keys() - set(wanted):
            self.waiting.pop(key).cancel()
        for key in wanted:
            if key not in self.waiting:
                self.waiting[key] = self.pool.submit(self.cut, *key)
        return self.waiting.pop(wanted[0]).result()

    def close(self) -> None:
        """Forget what was cut ahead."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.waiting.clear()


def keys_on(keys: Sequence[int], device: torch.device) -> Tensor:
    """Keys of samples as (B) int64, for draws on the device."""
    return to_device(np.array(keys, dtype=np.int64), device)


def sizes_on(sizes: Sequence[Triple], device: torch.device) -> Tensor:
    """Voxels that hold scan as (B, 3) int64."""
    return to_device(np.array(sizes, dtype=np.int64), device)


def inside_mask(sizes: Tensor, crop: Triple) -> Tensor:
    """(B, D, H, W) True where the crop holds scan, for scans that fill the first ``sizes`` (B, 3) voxels."""
    d, h, w = (torch.arange(n, device=sizes.device)[None, :] < sizes[:, axis, None] for axis, n in enumerate(crop))
    return d[:, :, None, None] & h[:, None, :, None] & w[:, None, None, :]


def _cut(array: npt.NDArray[Any], lower: Triple, out: npt.NDArray[Any]) -> Triple:
    """Copy a crop of (…, D, H, W) to ``out``, with zeros beyond the far end; returns the voxels that hold scan.

    Reads only the rows of the crop: the array is a map of a file.
    """
    crop = out.shape[-3:]
    d, h, w = (slice(start, start + size) for start, size in zip(lower, crop))
    part = array[..., d, h, w]
    depth, height, width = part.shape[-3:]
    if part.shape != out.shape:
        out.fill(0)
    out[..., :depth, :height, :width] = part
    return (depth, height, width)


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A copy of the array on the device, which may still be under way when this returns."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        # From pinned memory the copy goes on while the host does something else.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _annotated(cases: Sequence[PreparedCase]) -> npt.NDArray[np.bool_]:
    """(B, K) whether class k + 1 was annotated."""
    table = np.ones((len(cases), len(cases[0].counts)), dtype=bool)
    for row, case in zip(table, cases):
        if case.annotated is not None:
            row[:] = [number in case.annotated for number in range(1, len(row) + 1)]
    return table


def _normalise(stored: Tensor, cases: Sequence[PreparedCase], sizes: Sequence[Triple]) -> Tensor:
    ends = np.array([[case.low, case.high] for case in cases], dtype=np.float32)
    low, high = to_device(ends, stored.device)[..., None, None, None].unbind(dim=1)
    # In place: each step of it would allocate the batch anew.
    image = stored.float().sub_(low).div_(high - low).clamp_(0, 1)
    crop = (stored.shape[2], stored.shape[3], stored.shape[4])
    if any(size != crop for size in sizes):
        image.mul_(inside_mask(sizes_on(sizes, stored.device), crop)[:, None])
    return image
