"""Sizes: what the settings of a network mean, and whether what an error suggests can be used."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from math import prod

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from HybridMIMLib.architectures import (
    FEATURES,
    SEGRESNET,
    SWIN,
    U_NETS,
    VIT,
    check_divides,
    check_sizes,
    default_region,
    settled,
    token_size,
    total_stride,
)
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.settings.network import NetworkSettings

ARCHITECTURES = ["unet", "resunet", "swinunetr", "unetr", "segresnet"]
SIZES = ["tiny", "small", "base"]
EVEN, THICK = (1.0, 1.0, 1.0), (1.0, 1.0, 5.0)
Sizes = dict[str, list[int]]


def network(architecture: str = "unet", spacing: tuple[float, ...] = EVEN, **given: object) -> NetworkSettings:
    """Settled settings."""
    return settled(NetworkSettings(architecture=architecture, **given), spacing)  # type: ignore[arg-type]


def cure(chosen: NetworkSettings, sizes: Sizes) -> str | None:
    """What the check says that could be done, None where nothing is wrong."""
    try:
        check_sizes(chosen, sizes["crop"], sizes["patch"], sizes["region"])
    except SettingsError as error:
        assert error.cure.startswith("Use ") and error.cure.endswith(".")
        return error.cure.removeprefix("Use ").rstrip(".")
    return None


def followed(chosen: NetworkSettings, sizes: Sizes, choice: str) -> tuple[NetworkSettings, Sizes]:
    """Settings changed as one choice of a cure says."""
    values = {
        name: [int(n) for n in text.split(",")] for name, text in re.findall(r"plan\.(\w+) \[([^]]*)\]", choice)
    }
    window = re.search(r"network\.window (\d+)", choice)
    assert values or window, choice
    return replace(chosen, window=int(window[1])) if window else chosen, {**sizes, **values}


def by_definition(chosen: NetworkSettings, sizes: Sizes) -> bool:
    """Whether sizes fit, said slowly."""
    stride = total_stride(chosen)
    for c, p, r, s in zip(sizes["crop"], sizes["patch"], sizes["region"], stride):
        if c % r != 0 or r % p != 0 or r % s != 0 or c < r or r < p:
            return False
    if chosen.architecture == "swinunetr" and any(c / 2 < chosen.window for c in sizes["crop"]):
        return False
    return prod(c // s for c, s in zip(sizes["crop"], stride)) > 1


side = st.integers(1, 130)
handy = st.sampled_from([4, 8, 12, 16, 24, 32, 40, 48, 64, 96])
triple = st.lists(st.one_of(side, handy), min_size=3, max_size=3)
networks = st.builds(
    network,
    st.sampled_from(ARCHITECTURES),
    st.sampled_from([EVEN, THICK, (3.0, 1.0, 1.0), (1.0, 2.0, 9.0)]),
    size=st.sampled_from(SIZES),
    window=st.integers(1, 40),
    token=st.sampled_from([8, 16]),
)


@settings(deadline=None, max_examples=600)
@given(networks, st.fixed_dictionaries({"crop": triple, "patch": triple, "region": triple}))
def test_sizes_fit_or_every_suggestion_does(chosen: NetworkSettings, sizes: Sizes) -> None:
    """The heart: what a cure names is valid, in one go."""
    suggested = cure(chosen, sizes)
    assert (suggested is None) == by_definition(chosen, sizes)
    for choice in (suggested or "").split(", or "):
        if choice and choice != "a network with a smaller stride":
            other, better = followed(chosen, sizes, choice)
            assert by_definition(other, better), choice
            assert cure(other, better) is None
            assert (other, better) != (chosen, sizes)


@settings(deadline=None, max_examples=300)
@given(networks, st.lists(st.tuples(handy, handy, st.integers(1, 6)), min_size=3, max_size=3))
def test_the_nearest_crops_are_the_nearest(chosen: NetworkSettings, axes: list[tuple[int, int, int]]) -> None:
    """Where the crop alone is wrong: each side of one suggestion is the nearest multiple from below or from above."""
    stride = total_stride(chosen)
    region = [r * s for (r, _, _), s in zip(axes, stride)]
    crop = [c for _, c, _ in axes]
    assume(chosen.architecture != "swinunetr" and any(c % r for c, r in zip(crop, region)))
    suggested = cure(chosen, {"crop": crop, "patch": region, "region": region})
    assert suggested is not None
    for choice in suggested.split(", or "):
        for c, r, n in zip(crop, region, followed(chosen, {}, choice)[1]["crop"]):
            assert abs(n - c) < r and (n <= c or n - r < c)


@pytest.mark.parametrize(
    ("crop", "patch", "region", "expected"),
    [
        ([100, 96, 96], [16] * 3, [32] * 3, "plan.crop [96, 96, 96], or plan.crop [128, 96, 96]"),
        ([96] * 3, [16] * 3, [8] * 3, "plan.region [16, 16, 16], or plan.patch [8, 8, 8]"),
        ([96] * 3, [16] * 3, [24] * 3,
         "plan.region [16, 16, 16], or plan.region [32, 32, 32], or plan.patch [12, 12, 12]"),
        ([96, 96, 12], [16, 16, 4], [32, 32, 4], "plan.region [32, 32, 8] and plan.crop [96, 96, 8]"),
        ([8] * 3, [8] * 3, [8] * 3, "plan.crop [16, 16, 16], or a network with a smaller stride"),
        ([96] * 3, [12] * 3, [12] * 3, "plan.region [24, 24, 24]"),
        ([96] * 3, [16] * 3, [72] * 3, "plan.region [48, 48, 48], or plan.region [96, 96, 96]"),
    ],
)  # fmt: skip
def test_the_cure_of_common_mistakes(crop: list[int], patch: list[int], region: list[int], expected: str) -> None:
    found = cure(network(), {"crop": crop, "patch": patch, "region": region})
    assert found == expected


def test_a_window_larger_than_the_map_names_a_window_and_a_crop() -> None:
    sizes = {"crop": [96, 96, 32], "patch": [16, 16, 16], "region": [32, 32, 32]}
    assert cure(network("swinunetr", window=16), sizes) is None
    assert cure(network("swinunetr", window=17), sizes) == "plan.crop [96, 96, 64], or network.window 16"


@pytest.mark.parametrize("architecture", U_NETS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spacing", [EVEN, (1.0, 1.0, 3.0)])
def test_published_and_thick_sizes_work_on_a_u_net(architecture: str, size: str, spacing: tuple[float, ...]) -> None:
    chosen = network(architecture, spacing, size=size)
    for crop, patch, region in [
        ([96] * 3, [16] * 3, [32] * 3),
        ([96] * 3, [8] * 3, [32] * 3),
        ([128] * 3, [32] * 3, [64] * 3),
        ([128] * 3, [16] * 3, [64] * 3),
        ([96, 96, 32], [16, 16, 8], [32, 32, 16]),
        ([96, 96, 32], [16, 16, 8], [32, 32, 8]),
        ([96, 96, 32], [16, 16, 8], [16, 16, 8]),
        ([96, 96, 32], [16, 16, 8], [96, 96, 32]),
        ([48, 48, 16], [2, 4, 1], [16, 8, 8]),
    ]:
        assert cure(chosen, {"crop": crop, "patch": patch, "region": region}) is None


def test_every_divisor_pair_works_on_a_u_net() -> None:
    """Crop a multiple of the region, the region one of patch and stride: nothing else is asked for."""
    divisors = [[n for n in range(1, side + 1) if side % n == 0] for side in (48, 32, 16)]
    regions = [[n for n in options if n % 8 == 0] for options in divisors]
    for region in product(*regions):
        for patch in product(*([n for n in options if r % n == 0] for options, r in zip(divisors, region))):
            assert cure(network(), {"crop": [48, 32, 16], "patch": [*patch], "region": [*region]}) is None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_strides_and_tokens(architecture: str, size: str) -> None:
    """As the papers have them: bottleneck at 1/8, Swin at 1/32 with tokens of 2."""
    chosen = network(architecture, size=size, token=8)
    assert total_stride(chosen) == {"swinunetr": (32, 32, 32)}.get(architecture, (8, 8, 8))
    assert token_size(chosen) == {"swinunetr": 2, "unetr": 8}.get(architecture, 1)
    assert token_size(replace(chosen, token=16)) == {"swinunetr": 2, "unetr": 16}.get(architecture, 1)


def test_sizes_can_be_built() -> None:
    """What the classes ask of their numbers."""
    assert set(FEATURES) == set(SWIN) == set(VIT) == set(SEGRESNET) == set(SIZES)
    assert all(size.features % 12 == 0 for size in SWIN.values())
    assert all(size.features * 2**n % h == 0 for size in SWIN.values() for n, h in enumerate(size.heads))
    assert all(size.width % size.heads == 0 for size in VIT.values())
    assert all(size.filters % 8 == 0 and len(size.blocks) == 4 for size in SEGRESNET.values())


def test_the_published_u_net_ends_at_an_eighth() -> None:
    chosen = network(size="base")
    assert chosen.features == [64, 64, 128, 256, 512]
    assert chosen.strides == [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 1, 1]]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.floats(0.2, 20), min_size=3, max_size=3),
    st.one_of(st.sampled_from(SIZES), st.lists(st.integers(1, 64), min_size=2, max_size=6)),
)
def test_an_axis_is_halved_while_its_voxels_are_at_most_twice_the_shortest(
    spacing: list[float], chosen: str | list[int]
) -> None:
    given = {"size": chosen} if isinstance(chosen, str) else {"features": chosen}
    strides = network(spacing=tuple(spacing), **given).strides
    assert strides is not None and strides[0] == [1, 1, 1]
    halvings = 3 if isinstance(chosen, str) else len(chosen) - 1
    for stage in range(1, len(strides)):
        before = [mm * prod(step[axis] for step in strides[:stage]) for axis, mm in enumerate(spacing)]
        for axis in range(3):
            halved = stage <= halvings and before[axis] <= 2 * min(before)
            assert strides[stage][axis] == (2 if halved else 1)


def test_settling_keeps_what_was_given_and_settles_once() -> None:
    given = NetworkSettings(features=[4, 8], strides=[[1, 1, 1], [1, 2, 1]])
    assert settled(given, THICK) == given
    once = network(spacing=THICK)
    assert once.strides == [[1, 1, 1], [2, 2, 1], [2, 2, 1], [2, 2, 2]]
    assert settled(once, EVEN) == once
    for architecture in ("swinunetr", "unetr", "segresnet"):
        assert network(architecture) == NetworkSettings(architecture=architecture)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 64), st.sampled_from([1, 2, 4, 8, 16, 32]), st.floats(1, 300))
def test_the_default_region_fits_patch_and_stride(patch: int, stride: int, size: float) -> None:
    region = default_region(patch, stride, size)
    assert region % patch == region % stride == 0
    smaller = [n for n in range(patch, region) if n % patch == n % stride == 0]
    # The smallest of all, or the smallest that holds two patches.
    assert not smaller or (region >= 2 * patch and all(n < 2 * patch for n in smaller))


@settings(deadline=None, max_examples=300)
@given(triple, triple)
def test_multiples_are_suggested_that_are_multiples(value: list[int], by: list[int]) -> None:
    if all(v % b == 0 for v, b in zip(value, by)):
        check_divides("this", value, "that", by)
        return
    with pytest.raises(SettingsError, match=re.escape(f"this {value} is not a multiple of that {by}")) as raised:
        check_divides("this", value, "that", by)
    for text in re.findall(r"\[([^]]*)\]", raised.value.cure):
        near = [int(n) for n in text.split(",")]
        check_divides("this", near, "that", by)
        assert all(abs(n - v) < b for n, v, b in zip(near, value, by))
