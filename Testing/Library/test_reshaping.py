"""Tensors brought to other shapes: what they compute must stay, as far as it can."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from HybridMIMLib.architectures import settled
from HybridMIMLib.networks import make_backbone
from HybridMIMLib.reshaping import POSITIONS, SEE_SCAN, TOKENS, Grids, cube_side, fitted
from HybridMIMLib.settings.network import NetworkSettings

CHANNELS = st.integers(1, 5)
SIDES = st.tuples(*[st.integers(1, 4)] * 3)
BIASES = "layers1.0.blocks.0.attn.relative_position_bias_table"


def reshaped(name: str, tensor: Tensor, shape: tuple[int, ...], grids: Grids | None = None) -> Tensor:
    found = fitted(name, tensor, torch.zeros(shape), grids or Grids())
    assert found is not None and found[0].shape == shape
    return found[0]


@pytest.mark.parametrize("architecture", ["unet", "resunet", "swinunetr", "unetr", "segresnet"])
def test_the_tensors_that_see_the_scan_are_those_whose_shape_follows_its_channels(architecture: str) -> None:
    network = settled(NetworkSettings(architecture=architecture), (1.0, 1.0, 1.0))  # type: ignore[arg-type]
    one, two = (make_backbone(network, channels, (32, 32, 32)).state_dict() for channels in (1, 2))
    differ = {name for name in one if one[name].shape != two[name].shape}
    assert differ and differ == set(SEE_SCAN) & set(one)


@settings(deadline=None, max_examples=30)
@given(before=CHANNELS, after=CHANNELS, seed=st.integers(0, 99))
def test_the_answer_to_the_same_image_in_every_channel_stays(before: int, after: int, seed: int) -> None:
    torch.manual_seed(seed)
    weight, image = torch.randn(4, before, 3, 3, 3), torch.randn(1, 1, 5, 5, 5)
    other = reshaped(SEE_SCAN[0], weight, (4, after, 3, 3, 3))
    expected = F.conv3d(image.expand(-1, before, -1, -1, -1), weight)
    torch.testing.assert_close(F.conv3d(image.expand(-1, after, -1, -1, -1), other), expected, atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=20)
@given(sides=st.sampled_from([(8, 16), (16, 8)]), channels=st.tuples(CHANNELS, CHANNELS), seed=st.integers(0, 99))
def test_a_token_of_another_side_answers_to_even_grey_as_before(
    sides: tuple[int, int], channels: tuple[int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    (before, after), (old, new) = sides, channels
    weight = torch.randn(2, old, before, before, before)
    other = reshaped(TOKENS, weight, (2, new, after, after, after))
    torch.testing.assert_close(other.sum(dim=(1, 2, 3, 4)), weight.sum(dim=(1, 2, 3, 4)), atol=1e-2, rtol=1e-4)


def test_a_token_of_half_the_side_adds_up_its_neighbours() -> None:
    weight = torch.randn(1, 1, 16, 16, 16)
    other = reshaped(TOKENS, weight, (1, 1, 8, 8, 8))
    for d, h, w in product((0, 3, 7), repeat=3):
        block = weight[0, 0, 2 * d : 2 * d + 2, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2]
        assert other[0, 0, d, h, w] == pytest.approx(float(block.sum()), abs=1e-4)


def linear(grid: tuple[int, int, int], slope: Tensor) -> Tensor:
    """(places, len(slope)) a straight ramp from 0 to 1 along each axis, at every place of a grid."""
    places = product(*(torch.linspace(0, 1, n).tolist() if n > 1 else [0.0] for n in grid))
    return torch.tensor(list(places)) @ slope


@settings(deadline=None, max_examples=30)
@given(before=SIDES, after=SIDES, seed=st.integers(0, 99))
def test_positions_on_a_ramp_lie_on_it_in_another_grid(
    before: tuple[int, int, int], after: tuple[int, int, int], seed: int
) -> None:
    """Also where both grids have as many tokens. An axis of one token has no slope to hand on."""
    torch.manual_seed(seed)
    slope = torch.randn(3, 6)
    slope[[axis for axis in range(3) if before[axis] == 1 or after[axis] == 1]] = 0
    given_, own = linear(before, slope)[None], linear(after, slope)[None]
    result = reshaped(POSITIONS, given_, tuple(own.shape), Grids(before, after))
    torch.testing.assert_close(result, own, atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=20)
@given(before=st.integers(1, 7), after=st.integers(2, 7), seed=st.integers(0, 99))
def test_biases_on_a_ramp_lie_on_it_in_another_window(before: int, after: int, seed: int) -> None:
    torch.manual_seed(seed)
    slope = torch.randn(3, 4) if before > 1 else torch.zeros(3, 4)
    old, new = 2 * before - 1, 2 * after - 1
    result = reshaped(BIASES, linear((old,) * 3, slope), (new**3, 4))
    torch.testing.assert_close(result, linear((new,) * 3, slope), atol=1e-5, rtol=1e-4)


def test_no_distance_keeps_its_bias() -> None:
    table = torch.randn(13**3, 2)
    result = reshaped(BIASES, table, (7**3, 2))
    torch.testing.assert_close(result[7**3 // 2], table[13**3 // 2])


def test_an_index_is_taken_where_it_fits_and_else_computed_anew() -> None:
    given_, own = torch.arange(4).reshape(2, 2), torch.zeros(2, 2, dtype=torch.int64)
    same, other = (fitted("index", given_, wanted, Grids()) for wanted in (own, own[:1]))
    assert same is not None and torch.equal(same[0], given_)
    assert other is not None and torch.equal(other[0], own[:1])


NO_WAY = {
    "another width": (SEE_SCAN[0], (4, 1, 3, 3, 3), (5, 1, 3, 3, 3), Grids()),
    "another kernel": (SEE_SCAN[0], (4, 1, 3, 3, 3), (4, 1, 5, 5, 5), Grids()),
    "sees no scan": ("bottleneck.conv1.conv.weight", (4, 1, 3, 3, 3), (4, 2, 3, 3, 3), Grids()),
    "flat tokens": (TOKENS, (8, 64), (8, 1, 4, 4, 4), Grids()),
    "other heads": (BIASES, (27, 2), (125, 3), Grids()),
    "no cube": (BIASES, (28, 2), (125, 2), Grids()),
    "unknown grid": (POSITIONS, (1, 8, 2), (1, 8, 2), Grids(None, (2, 2, 2))),
    "wrong grid": (POSITIONS, (1, 9, 2), (1, 8, 2), Grids((2, 2, 2), (2, 2, 2))),
    "other positions' width": (POSITIONS, (1, 8, 3), (1, 8, 2), Grids((2, 2, 2), (2, 2, 2))),
}


@pytest.mark.parametrize("case", NO_WAY)
def test_where_there_is_no_way_nothing_is_made_up(case: str) -> None:
    name, before, after, grids = NO_WAY[case]
    assert fitted(name, torch.randn(before), torch.zeros(after), grids) is None


def test_sides_of_cubes() -> None:
    assert [cube_side(n**3) for n in range(1, 60)] == list(range(1, 60))
    assert all(cube_side(n) is None for n in (2, 7, 9, 26, 28, 2196, 2198))
