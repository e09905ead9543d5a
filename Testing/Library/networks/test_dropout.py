"""Dropout: what is dropped follows from the sample and the layer, and from nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from HybridMIMLib.networks.dropout import SampleDropout, dropout_keys


def dropped(x: Tensor, keys: Sequence[int], share: float = 0.5, stage: int = 0, axis: int = 1) -> Tensor:
    """``x`` after a layer in training mode."""
    with dropout_keys(torch.tensor(keys, dtype=torch.int64)):
        result: Tensor = SampleDropout(share, stage, axis)(x)
    return result


def ones(samples: int, channels: int = 64) -> Tensor:
    """A batch in which every dropped channel shows."""
    return torch.ones(samples, channels, 2, 1, 3)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_whole_channels_are_dropped_and_the_rest_is_scaled(share: float) -> None:
    x = torch.rand(3, 400, 2, 3, 2) + 0.1
    result = dropped(x, [1, 2, 3], share)
    for sample, scaled in zip(x, result):
        for channel, after in zip(sample, scaled):
            assert bool((after == 0).all()) or torch.allclose(after, channel / (1 - share))
    gone = (result == 0).float().mean()
    assert abs(float(gone) - share) < 5 * np.sqrt(share * (1 - share) / 1200)


def test_the_mean_is_kept() -> None:
    assert float(dropped(ones(40, 500), list(range(40)), 0.3).mean()) == pytest.approx(1.0, abs=0.02)


def test_the_same_key_drops_the_same() -> None:
    assert torch.equal(dropped(ones(2), [5, 6]), dropped(ones(2), [5, 6]))
    one, other = dropped(ones(2), [7, 7])
    assert torch.equal(one, other)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    together = dropped(ones(4), [11, 12, 13, 14])
    assert torch.equal(dropped(ones(1), [13])[0], together[2])
    assert torch.equal(dropped(ones(4), [14, 13, 12, 11]), together.flip(0))


def test_keys_and_layers_are_apart() -> None:
    results = [dropped(ones(1), [key], stage=stage) for key in (1, 2, 2**63 - 1) for stage in (0, 1)]
    assert len({result.numpy().tobytes() for result in results}) == 6


def test_layers_draw_independently_of_the_order_they_run_in() -> None:
    first, second, x = SampleDropout(0.5, 1), SampleDropout(0.5, 2), ones(2)
    with dropout_keys(torch.tensor([1, 2])):
        one = first(x), second(x)
        other = second(x), first(x)
        again = first(x)
    assert torch.equal(one[0], other[1]) and torch.equal(one[1], other[0]) and torch.equal(one[0], again)


def test_nothing_is_dropped_without_training_or_share() -> None:
    x = ones(2)
    assert SampleDropout(0.0, 0)(x) is x
    assert SampleDropout(0.9, 0).eval()(x) is x


def test_earlier_stages_drop_nothing() -> None:
    x = ones(2)
    layers = [SampleDropout(0.5, stage) for stage in range(4)]
    for first in range(5):
        with dropout_keys(torch.tensor([1, 2]), from_stage=first):
            for stage, layer in enumerate(layers):
                assert torch.equal(layer(x), dropped(x, [1, 2], stage=stage) if stage >= first else x)


def test_channels_of_tokens_lie_along_the_last_axis() -> None:
    tokens = torch.rand(2, 5, 64) + 0.1
    grid = tokens.transpose(1, 2).reshape(2, 64, 5, 1, 1)
    assert torch.equal(dropped(tokens, [1, 2], axis=2), dropped(grid, [1, 2])[..., 0, 0].transpose(1, 2))


def test_no_key_or_another_number_of_keys_is_an_error() -> None:
    layer = SampleDropout(0.5, 0)
    with pytest.raises(RuntimeError, match="one key a sample"):
        layer(ones(2))
    for keys in ([], [1], [1, 2, 3]):
        with dropout_keys(torch.tensor(keys)), pytest.raises(RuntimeError, match="one key a sample"):
            layer(ones(2))


def test_keys_are_gone_after_the_block_even_after_an_error() -> None:
    layer = SampleDropout(0.5, 0)
    with pytest.raises(ZeroDivisionError), dropout_keys(torch.tensor([1, 2])):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError):
        layer(ones(2))


def test_blocks_nest() -> None:
    layer, x = SampleDropout(0.5, 0), ones(1)
    with dropout_keys(torch.tensor([1])):
        outer = layer(x)
        with dropout_keys(torch.tensor([2])):
            inner = layer(x)
        assert torch.equal(layer(x), outer) and not torch.equal(inner, outer)


def test_gradient_passes_kept_channels_alone() -> None:
    x = ones(2).requires_grad_()
    result = dropped(x, [1, 2], 0.25)
    result.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, result.detach())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_type_and_layout_are_kept(kind: torch.dtype) -> None:
    x = torch.ones(2, 8, 4, 4, 4, dtype=kind).contiguous(memory_format=torch.channels_last_3d)
    result = dropped(x, [1, 2])
    assert result.dtype == kind and result.is_contiguous(memory_format=torch.channels_last_3d)


def test_the_global_streams_stay_where_they_are() -> None:
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    dropped(ones(2), [1, 2])
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), repr(np.random.get_state()))


def test_the_global_stream_does_not_matter() -> None:
    torch.manual_seed(1)
    one = dropped(ones(2), [1, 2])
    torch.manual_seed(2)
    assert torch.equal(one, dropped(ones(2), [1, 2]))
