"""The sliding window's scores, against MONAI's and slow obvious code, and the memory they take."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from HybridMIMLib.data.body import Body, find_body
from HybridMIMLib.inference.sliding import Computing, Slab, Watch, scores_of_air, sliding_scores
from HybridMIMLib.inference.windows import Windows, plan_windows, step_of

Triple = tuple[int, int, int]
CPU = torch.device("cpu")
SHAPES = st.tuples(*[st.integers(1, 26)] * 3)
SIZES = st.tuples(*[st.integers(3, 12)] * 3)


def network(channels: int = 1, outputs: int = 3) -> nn.Module:
    """Sees its neighbourhood, and knows left from right."""
    torch.manual_seed(0)
    return nn.Conv3d(channels, outputs, 3, padding=1)


def computing(forward: Any, batch: int = 2, outputs: int = 3, **others: Any) -> Computing:
    def without_gradients(windows: Tensor) -> Tensor:
        with torch.no_grad():
            return forward(windows)

    return Computing(without_gradients, CPU, batch, CPU, outputs, **others)


def noise(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def padded(image: Tensor, windows: Windows) -> Tensor:
    """The box of an image with its padding, as slow obvious code puts it there."""
    box = torch.zeros((len(image), *windows.shape))
    from_ = [slice(at, at + n) for at, n in zip(windows.lower, windows.box)]
    to = [slice(at, at + n) for at, n in zip(windows.before, windows.box)]
    box[:, to[0], to[1], to[2]] = image[:, from_[0], from_[1], from_[2]]
    return box


def whole(slabs: list[Slab], windows: Windows) -> Tensor:
    """(K, D, H, W) scores of the box; the slabs must come in order and leave nothing out."""
    firsts = [slab.first for slab in slabs]
    lengths = [slab.scores.shape[1] for slab in slabs]
    assert firsts == [sum(lengths[:number]) for number in range(len(lengths))]
    others = [n for axis, n in enumerate(windows.box) if axis != windows.axis]
    assert all(list(slab.scores.shape[2:]) == others for slab in slabs)
    return torch.cat([slab.scores for slab in slabs], dim=1).movedim(1, windows.axis + 1)


def ours(image: Tensor, windows: Windows, how: Computing, watch: Watch | None = None) -> Tensor:
    return whole(list(sliding_scores(padded(image, windows), windows, how, watch)), windows)


@settings(deadline=None, max_examples=50)
@given(SHAPES, SIZES, st.sampled_from([0.0, 0.25, 0.5, 0.7]), st.integers(1, 5), st.integers(1, 2))
def test_scores_are_monais(shape: Triple, size: Triple, overlap: float, batch: int, channels: int) -> None:
    """Of every shape, so that every axis is the longest at times, and smaller than a window too."""
    image, how = noise((channels, *shape)), computing(network(channels), batch)
    expected = sliding_window_inference(image[None], size, batch, how.forward, overlap, mode="gaussian")[0]
    got = ours(image, plan_windows(shape, size, step_of(size, overlap), None), how)
    assert got.shape == expected.shape and (got - expected).abs().max() < 1e-5


@pytest.mark.parametrize("axis", range(3))
def test_long_scans_along_every_axis(axis: int) -> None:
    """The ring goes around several times, and slabs end inside of it and at its end."""
    shape, size = [11, 10, 9], (7, 6, 5)
    shape[axis] = 67
    windows = plan_windows((shape[0], shape[1], shape[2]), size, step_of(size, 0.4), None)
    assert windows.axis == axis
    image, how = noise((1, *shape)), computing(network())
    expected = sliding_window_inference(image[None], size, 3, how.forward, 0.4, mode="gaussian")[0]
    assert (ours(image, windows, how) - expected).abs().max() < 1e-5


@settings(deadline=None, max_examples=25)
@given(st.tuples(*[st.integers(8, 20)] * 3), st.data())
def test_a_body_box_is_looked_at_as_if_it_were_the_scan(shape: Triple, data: st.DataObject) -> None:
    lower = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    box = tuple(data.draw(st.integers(1, n - at)) for n, at in zip(shape, lower))
    windows = plan_windows(
        shape, (8, 8, 8), (4, 4, 4), Body(lower, box, torch.ones(5, 5, 5, dtype=torch.bool).numpy())
    )
    image, how = noise((1, *shape)), computing(network())
    d, h, w = (slice(at, at + n) for at, n in zip(windows.lower, windows.box))
    expected = sliding_window_inference(image[None, :, d, h, w], (8, 8, 8), 2, how.forward, 0.5, mode="gaussian")[0]
    assert (ours(image, windows, how) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("flips", [(0,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_flips_in_every_combination_are_undone(flips: tuple[int, ...]) -> None:
    image, one = noise((1, 13, 9, 11)), computing(network())

    def slowly(windows: Tensor) -> Tensor:
        scores = []
        for chosen in product(*[(False, True)] * len(flips)):
            turned = windows
            for axis, yes in zip(flips, chosen):
                turned = torch.flip(turned, [axis + 2]) if yes else turned
            answer = one.forward(turned)
            for axis, yes in zip(flips, chosen):
                answer = torch.flip(answer, [axis + 2]) if yes else answer
            scores.append(answer)
        return torch.stack(scores).mean(dim=0)

    windows = plan_windows((13, 9, 11), (8, 6, 7), (4, 3, 4), None)
    got = ours(image, windows, replace(one, flips=flips))
    assert (got - ours(image, windows, replace(one, forward=slowly))).abs().max() < 1e-5
    assert (got - ours(image, windows, one)).abs().max() > 1e-2, "this network minds being flipped"


def image_with_air() -> tuple[Tensor, Body]:
    """Air on one side, and a hole of it in the body that is open to the outside."""
    image = torch.zeros((1, 60, 40, 20))
    image[0, 24:] = 0.5 + noise((36, 40, 20)) / 2
    image[0, 36:52, :28] = 0
    return image, find_body(image.numpy(), 0.25)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("overlapping", [False, True])
def test_voxels_that_kept_windows_alone_cover_do_not_change_and_others_are_air(batch: int, overlapping: bool) -> None:
    image, body = image_with_air()
    size, step, how = (8, 8, 8), (4, 4, 4), computing(network(), batch, overlapping=overlapping)
    skipping = plan_windows((60, 40, 20), size, step, body)
    every = plan_windows((60, 40, 20), size, step, replace(body, cells=torch.ones(15, 10, 5).bool().numpy()))
    assert skipping.skipped > 50 and skipping.skipped + len(skipping.starts) == len(every.starts)
    by_kept, by_skipped = (torch.zeros(skipping.shape, dtype=torch.bool) for _ in range(2))
    for start in every.starts:
        covered = by_kept if start in skipping.starts else by_skipped
        d, h, w = (slice(at, at + 8) for at in start)
        covered[d, h, w] = True
    got, full = ours(image, skipping, how), ours(image, every, how)
    alone, nothing = by_kept & ~by_skipped, ~by_kept
    assert alone.any() and nothing.any() and (by_kept & by_skipped).any()
    assert (got - full)[:, alone].abs().max() < 1e-6
    air = scores_of_air(3, overlapping)
    assert torch.equal(got[:, nothing], air[:, None].expand(-1, int(nothing.sum())))
    assert torch.isfinite(got).all()


def test_air_is_background_or_no_class() -> None:
    assert torch.softmax(scores_of_air(4, False), dim=0).tolist() == pytest.approx([1, 0, 0, 0], abs=1e-6)
    assert torch.sigmoid(scores_of_air(4, True)).tolist() == pytest.approx([0, 0, 0, 0], abs=1e-6)


def test_a_scan_of_air_needs_no_network() -> None:
    image = torch.zeros((1, 20, 10, 10))
    windows = plan_windows((20, 10, 10), (8, 8, 8), (4, 4, 4), find_body(image.numpy(), 0.25))

    def never(windows: Tensor) -> Tensor:
        raise AssertionError("there is nothing to compute")

    assert (ours(image, windows, computing(never)).argmax(dim=0) == 0).all()


class Memory(TorchDispatchMode):
    """The most bytes that tensors made while it looks had at one time, and the largest one; views are none."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.peak, self.largest, self._alive, self._image = 0, 0, WeakIdKeyDictionary(), image.data_ptr()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() != self._image:
                self._alive[one.untyped_storage()] = one.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(self._alive.values()))
        self.largest = max(self.largest, *self._alive.values(), 0)
        return result


def test_memory_does_not_grow_with_the_length_of_the_scan() -> None:
    """The largest tensor is the ring: classes x depth of a window x the other two sides of the scan."""
    outputs, size = 8, (8, 10, 12)
    measured = {}
    for length in (50, 200):
        image = noise((1, length, 20, 24))
        windows = plan_windows((length, 20, 24), size, (6, 10, 12), None)
        how = computing(lambda crops: crops.expand(-1, outputs, -1, -1, -1).clone(), batch=1, outputs=outputs)
        with Memory(image) as memory:
            count = sum(slab.scores.shape[1] for slab in sliding_scores(image, windows, how))
        assert count == length
        measured[length] = memory
    ring = 4 * outputs * 8 * 20 * 24
    assert measured[50].largest == measured[200].largest == ring
    # Not to the byte: how many planes a slab has depends on where windows begin.
    assert measured[200].peak < 1.2 * measured[50].peak < 5 * ring


@pytest.mark.parametrize(("batch", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_watch_is_told_of_every_batch(batch: int, expected: list[int]) -> None:
    windows = plan_windows((40, 8, 8), (8, 8, 8), (8, 8, 8), None)
    told: list[tuple[int, int]] = []
    ours(noise((1, 40, 8, 8)), windows, computing(network(), batch), lambda *counts: told.append(counts))
    assert told == [(done, 5) for done in expected]


def test_what_watch_raises_ends_the_work() -> None:
    class CancelledError(Exception):
        pass

    seen = []

    def forward(windows: Tensor) -> Tensor:
        seen.append(len(windows))
        return windows.expand(-1, 3, -1, -1, -1)

    def watch(done: int, of: int) -> None:
        if done >= 3:
            raise CancelledError

    windows = plan_windows((40, 8, 8), (8, 8, 8), (8, 8, 8), None)
    with pytest.raises(CancelledError):
        ours(noise((1, 40, 8, 8)), windows, computing(forward, batch=1), watch)
    assert len(seen) == 3


def test_the_last_batch_is_as_small_as_what_is_left() -> None:
    sizes = []

    def forward(windows: Tensor) -> Tensor:
        sizes.append(len(windows))
        return windows.expand(-1, 3, -1, -1, -1)

    ours(noise((1, 40, 8, 8)), plan_windows((40, 8, 8), (8, 8, 8), (8, 8, 8), None), computing(forward, batch=2))
    assert sizes == [2, 2, 1]
