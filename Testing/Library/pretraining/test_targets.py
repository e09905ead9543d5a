"""Targets and errors: against loops over patches and voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from HybridMIMLib.networks.interface import Box
from HybridMIMLib.pretraining.masking import Triple, to_voxels
from HybridMIMLib.pretraining.targets import (
    masked_error,
    mean_over,
    normalised,
    patch_statistics,
    reconstruction_errors,
)


@st.composite
def images(draw: st.DrawFn) -> tuple[Tensor, Triple, Tensor]:
    """Images of a few samples and channels, the size of a patch, and which patches are hidden."""
    patch = tuple(draw(st.integers(1, 3)) for _ in range(3))
    count = tuple(draw(st.integers(1, 3)) for _ in range(3))
    stream = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    samples, channels = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    image = torch.rand(samples, channels, *(n * p for n, p in zip(count, patch)), generator=stream)
    mask = torch.rand(samples, *count, generator=stream) < draw(st.sampled_from([0.0, 0.4, 1.0]))
    return image, patch, mask  # type: ignore[return-value]


def places(mask: Tensor, patch: Triple) -> list[tuple[int, tuple[slice, ...]]]:
    """(sample, slices) of each hidden patch."""
    return [(b, tuple(slice(n * p, (n + 1) * p) for n, p in zip(at, patch))) for b, *at in mask.nonzero().tolist()]


def shown(mask: Tensor, patch: Triple) -> Tensor:
    """(B, 1, D, H, W) 1 for hidden voxels."""
    return to_voxels(mask, patch)[:, None].float()


@settings(max_examples=30, deadline=None)
@given(images())
def test_statistics_are_those_of_each_patch_and_channel(case: tuple[Tensor, Triple, Tensor]) -> None:
    image, patch, mask = case
    mean, deviation = patch_statistics(image, patch)
    target = normalised(image, patch)
    for b, place in places(torch.ones_like(mask), patch):
        for channel in range(image.shape[1]):
            at = (b, channel, *place)
            values = image[at].double().numpy()
            assert np.allclose(mean[at], values.mean(), atol=1e-6)
            assert np.allclose(deviation[at], np.sqrt(values.var() + 1e-6), rtol=1e-4, atol=1e-5)
            wanted = (values - values.mean()) / np.sqrt(values.var() + 1e-6)
            assert np.allclose(target[at], wanted, rtol=1e-3, atol=1e-3)


def test_a_patch_of_air_has_a_target_of_zeros() -> None:
    image = torch.full((1, 1, 4, 4, 4), 0.3)
    assert float(normalised(image, (2, 2, 2)).abs().max()) < 1e-3


@settings(max_examples=30, deadline=None)
@given(images(), st.sampled_from(["l1", "l2"]))
def test_the_error_is_the_mean_over_hidden_voxels(case: tuple[Tensor, Triple, Tensor], kind: str) -> None:
    image, patch, mask = case
    predicted = torch.rand(image.shape, generator=torch.Generator().manual_seed(1))
    errors: list[float] = []
    for b, place in places(mask, patch):
        for channel in range(image.shape[1]):
            off = (predicted[(b, channel, *place)] - image[(b, channel, *place)]).double().numpy()
            errors += (np.abs(off) if kind == "l1" else off**2).flatten().tolist()
    found = float(masked_error(predicted, image, shown(mask, patch), kind))
    assert found == pytest.approx(np.mean(errors) if errors else 0.0, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_what_is_not_hidden_has_no_gradient(kind: str) -> None:
    predicted = torch.rand(2, 2, 4, 4, 4, requires_grad=True)
    hidden = shown(torch.tensor([True, False, False, True]).reshape(2, 2, 1, 1).expand(2, 2, 2, 2), (2, 2, 2))
    masked_error(predicted, torch.rand(2, 2, 4, 4, 4), hidden, kind).backward()
    assert predicted.grad is not None
    assert torch.equal(predicted.grad != 0, hidden.bool().expand_as(predicted))


def test_nothing_hidden_gives_0_and_a_gradient_of_0() -> None:
    predicted = torch.rand(1, 1, 2, 2, 2, requires_grad=True)
    error = masked_error(predicted, torch.rand(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2), "l2")
    error.backward()
    assert float(error.detach()) == 0 and predicted.grad is not None and not predicted.grad.any()


def test_the_mean_of_what_is_used() -> None:
    used = torch.tensor([True, False, True, True])
    assert float(mean_over(torch.tensor([1.0, 9.0, 2.0, 6.0]), used)) == pytest.approx(3.0)
    assert float(mean_over(torch.tensor([True, True, False, False]), used)) == pytest.approx(1 / 3)
    assert float(mean_over(torch.tensor([1.0, 9.0]), torch.tensor([False, False]))) == 0
    # In half precision, a sum of a few thousand would no longer count single ones.
    many = torch.ones(5001, dtype=torch.float16)
    assert float(mean_over(many, many)) == pytest.approx(1.0, abs=1e-6)


def slow_ratio(predicted: Tensor, image: Tensor, mask: Tensor, patch: Triple, inside: Tensor) -> float:
    """Squared error over hidden voxels that lie inside, to that of the mean of each whole patch."""
    ours, floor = 0.0, 0.0
    for b, place in places(mask, patch):
        for channel in range(image.shape[1]):
            true, counts = image[(b, channel, *place)].double(), inside[(b, *place)]
            ours += float(((predicted[(b, channel, *place)] - true) ** 2)[counts].sum())
            floor += float(((true.mean() - true) ** 2)[counts].sum())
    return ours / floor


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.booleans())
def test_the_ratio_to_the_true_mean_of_each_patch(seed: int, boxed: bool) -> None:
    """Also in a box that cuts patches, and whose side is no multiple of theirs."""
    stream, patch = torch.Generator().manual_seed(seed), (2, 4, 3)
    image, predicted = torch.rand(2, 2, 2, 8, 12, 6, generator=stream).unbind(0)
    mask = torch.rand(2, 4, 3, 2, generator=stream) < 0.6
    hidden, inside = shown(mask, patch), torch.ones(2, 8, 12, 6, dtype=torch.bool)
    if not boxed:
        found = reconstruction_errors(predicted, image, hidden, patch)
    else:
        lower, size = torch.tensor([[1, 2, 0], [3, 5, 1]]), (5, 6, 5)
        box, inside = Box(lower, size), torch.zeros(2, 8, 12, 6, dtype=torch.bool)
        for b, (d, h, w) in enumerate(lower.tolist()):
            inside[b, d : d + 5, h : h + 6, w : w + 5] = True
        found = reconstruction_errors(box.crop(predicted), image, hidden, patch, box)
    assert found["error_to_patch_mean"] == pytest.approx(slow_ratio(predicted, image, mask, patch, inside), rel=1e-3)


def test_the_mean_itself_has_a_ratio_of_1_and_the_image_of_0() -> None:
    image, hidden = torch.rand(2, 1, 4, 4, 4), torch.ones(2, 1, 4, 4, 4)
    mean, _ = patch_statistics(image, (2, 2, 2))
    for predicted, ratio in ((mean, 1.0), (image, 0.0)):
        found = reconstruction_errors(predicted, image, hidden, (2, 2, 2))
        assert found["error_to_patch_mean"] == pytest.approx(ratio)
        assert found["hidden_error"] == pytest.approx(ratio * found["patch_mean_error"])


@pytest.mark.parametrize("value, hidden", [(0.0, 1.0), (0.5, 1.0), (None, 0.0)])
def test_where_nothing_hidden_varies_there_is_nothing_to_compare_with(value: float | None, hidden: float) -> None:
    image = torch.rand(2, 1, 4, 4, 4) if value is None else torch.full((2, 1, 4, 4, 4), value)
    found = reconstruction_errors(torch.rand_like(image), image, torch.full_like(image, hidden), (2, 2, 2))
    assert set(found) == {"hidden_error", "patch_mean_error"}
