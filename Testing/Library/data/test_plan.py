"""The plan that follows from the scans, and the one that the settings force."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_runs import KeptLog

from HybridMIMLib.architectures import check_sizes, settled, token_size, total_stride
from HybridMIMLib.config import from_dict
from HybridMIMLib.data.layouts import Case
from HybridMIMLib.data.plan import Plan, fingerprint, make_plan, plan_yaml
from HybridMIMLib.data.survey import CaseFacts
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.settings.plan import PlanSettings


def facts(
    shape: tuple[int, int, int] = (100, 100, 60),
    spacing: tuple[float, float, float] = (1.0, 1.0, 2.0),
    low: float = 0.0,
    channels: int = 1,
) -> CaseFacts:
    made = CaseFacts(Case("a", (Path("a.nii"),), None), "0", channels, shape, spacing, low, 100.0, frozenset())
    # As survey tells it where no header does.
    return replace(made, modality="CT" if low <= -500 else "")


U_NET = NetworkSettings()
"""Three halvings, so a stride of 8 where the spacing is even."""


def plan(found: list[CaseFacts] | None = None, network: NetworkSettings = U_NET, **settings: Any) -> Plan:
    return make_plan(found or [facts()], PlanSettings(**settings), network)


def test_spacing_is_the_median_of_each_axis() -> None:
    found = [facts(spacing=(1, 2, 3)), facts(spacing=(2, 1, 5)), facts(spacing=(9, 9, 4))]
    assert plan(found).spacing == (2, 2, 4)
    assert plan(found, spacing=[1, 1.5, 2]).spacing == (1, 1.5, 2)


def test_the_crop_fits_the_median_scan_in_whole_regions() -> None:
    made = plan([facts((100, 70, 30), (1, 1, 1))])
    assert made.patch == (16, 8, 8) and made.region == (32, 16, 16) and made.crop == (96, 64, 16)


def test_a_scan_smaller_than_a_region_still_gets_one() -> None:
    made = plan([facts((5, 10, 20), (1, 1, 1))])
    assert made.patch == (4, 8, 8) and made.crop == made.region == (8, 16, 16)


def test_a_coarser_spacing_makes_the_crop_smaller() -> None:
    assert plan([facts((96, 96, 96), (1, 1, 1))], spacing=[3, 3, 3]).crop == (32, 32, 32)


NETWORKS = {
    **{name: NetworkSettings(architecture=name) for name in ("unet", "resunet", "swinunetr", "unetr", "segresnet")},
    "unetr 8": NetworkSettings(architecture="unetr", token=8),
    "deep": NetworkSettings(features=[4] * 6),
    "shallow": NetworkSettings(features=[4, 8]),
    "flat": NetworkSettings(features=[4, 8], strides=[[1, 1, 1], [2, 2, 1]]),
}


@pytest.mark.parametrize("name", NETWORKS)
@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(*[st.integers(2, 300)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.5, 0.8, 1.0, 2.0, 5.0])] * 3),
)
@example(shape=(2, 3, 3), spacing=(0.5, 0.5, 0.8))  # Two longest axes, of which rounding must not choose one.
def test_what_is_derived_suits_every_network(
    name: str, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    made = plan([facts(shape, spacing)], NETWORKS[name])
    network = settled(NETWORKS[name], made.spacing)
    check_sizes(network, made.crop, made.patch, made.region)
    assert all(p % token_size(network) == 0 for p in made.patch)
    # No more padding than one region asks for, or a second one along the longest axis.
    fits = [c <= max(n, r) for c, n, r in zip(made.crop, shape, made.region)]
    longest = int(np.argmax(shape))
    only_region = all(
        c == s for c, s in zip(np.delete(made.crop, longest), np.delete(total_stride(network), longest))
    )
    assert all(fits) or (
        only_region and all(np.delete(fits, longest)) and made.crop[longest] == 2 * made.region[longest]
    )
    assert max(made.crop) <= 96


def test_a_scan_as_small_as_the_stride_is_padded_along_its_longest_axis() -> None:
    """A hippocampus with a SwinUNETR, whose stride of 32 would leave a single voxel of a crop of 32 voxels."""
    hippocampus = [facts((35, 50, 35), (1, 1, 1))]
    made = plan(hippocampus, NETWORKS["swinunetr"])
    assert (made.crop, made.region, made.patch) == ((32, 64, 32), (32, 32, 32), (8, 8, 8))
    text, _ = told(hippocampus, NETWORKS["swinunetr"])
    assert "crops are larger than the median scan (64 voxels of 50 along A), and the rest is padding" in text
    assert "padding" not in told(hippocampus)[0]
    assert plan(hippocampus, NETWORKS["unetr"]).crop == (32, 32, 32)
    assert plan(hippocampus, NETWORKS["unetr 8"]).crop == plan(hippocampus).crop == (32, 48, 32)


def test_patch_and_region_follow_from_a_crop_that_is_set() -> None:
    large = [facts((200, 200, 200), (1, 1, 1))]
    for crop, patch, region in ((96, 16, 32), (48, 8, 16), (8, 8, 8)):
        made = plan(large, crop=[crop, 96, 96])
        assert (made.patch[0], made.region[0]) == (patch, region) and made.crop == (crop, 96, 96)


def test_thick_slices_are_halved_later() -> None:
    made = plan([facts((100, 100, 12), (1, 1, 5))])
    assert total_stride(settled(U_NET, made.spacing)) == (8, 8, 2)
    assert made.patch == (16, 16, 8) and made.crop[2] == 16
    assert plan([facts((100, 100, 6), (1, 1, 5))]).crop[2] == 8


@pytest.mark.parametrize(
    ("sizes", "wrong", "nearest"),
    [
        ({"crop": [40, 40, 40], "region": [16, 16, 16], "patch": [8, 8, 8]}, "plan.crop", "[32, 32, 32]"),
        ({"region": [24, 24, 24], "patch": [16, 16, 16]}, "plan.region", "[32, 32, 32]"),
        ({"patch": [4, 4, 4], "region": [4, 4, 4], "crop": [12, 12, 12]}, "the stride of the network", "[8, 8, 8]"),
        ({"patch": [4, 4, 4], "region": [8, 8, 8], "crop": [8, 8, 8]}, "a single voxel", "[16, 16, 16]"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_nearest_that_do(
    sizes: dict[str, Any], wrong: str, nearest: str
) -> None:
    with pytest.raises(SettingsError, match=wrong) as caught:
        plan([facts(spacing=(1, 1, 1))], **sizes)
    assert nearest in caught.value.cure


@pytest.mark.parametrize(
    ("lows", "expected"),
    [([-1000, -1024, 0], "window"), ([0, 0, -1024], "zscore"), ([-100], "zscore"), ([-500], "window")],
)
def test_the_majority_of_scans_decides_what_they_are(lows: list[float], expected: str) -> None:
    found = [facts(low=low) for low in lows]
    assert plan(found).normalisation == expected
    assert plan(found, normalisation="percentiles").normalisation == "percentiles"


def test_a_plan_survives_json() -> None:
    made = plan(window=[-160, 240], normalisation="window")
    assert Plan.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize("spoil", [{}, {"crop": [1, 2]}, {"spacing": None}, {"channels": "many"}])
def test_a_plan_that_is_not_ours_is_refused(spoil: dict[str, Any]) -> None:
    content = {**plan().to_json(), **spoil} if spoil else {}
    with pytest.raises((KeyError, TypeError, ValueError)):
        Plan.from_json(content)


def test_the_crop_does_not_decide_what_a_prepared_scan_looks_like() -> None:
    assert plan().preparation == plan(crop=[32, 32, 16], region=[32, 32, 16], patch=[16, 16, 8]).preparation
    assert plan().preparation != plan(spacing=[1, 1, 1]).preparation


@pytest.mark.parametrize("name", ["window", "percentiles", "zscore"])
def test_plans_of_every_normalisation_load(name: str) -> None:
    content = {**plan().to_json(), "normalisation": name}
    assert Plan.from_json(content).normalisation == name


# --- the fingerprint, and what follows from it ---------------------------------------------------------------


def thick_set(*spacings: float, plane: float = 0.8) -> list[CaseFacts]:
    """Scans with slices along S of these spacings."""
    return [facts((320, 320, 40), (plane, plane, spacing)) for spacing in spacings]


def test_thick_slices_take_the_tenth_percentile_along_their_axis() -> None:
    spacings = [2.5, *[5.0] * 18, 7.0]
    assert plan(thick_set(*spacings)).spacing == (0.8, 0.8, 5.0)
    mixed = [2.5, 2.5, 3.0, *[5.0] * 7]
    assert plan(thick_set(*mixed)).spacing == (0.8, 0.8, float(np.percentile(mixed, 10)))


def test_slices_three_times_as_thick_do_not_count_as_thick_yet() -> None:
    assert plan(thick_set(1.0, 2.4, 2.4)).spacing == (0.8, 0.8, 2.4)
    assert plan(thick_set(1.0, 2.5, 2.5)).spacing[2] < 2.4


def test_the_thick_axis_never_gets_finer_than_the_others_or_the_finest_scan() -> None:
    assert plan(thick_set(0.5, *[3.0] * 4)).spacing == (0.8, 0.8, pytest.approx(1.5))
    assert plan(thick_set(0.5, 0.5, *[3.0] * 4)).spacing == (0.8, 0.8, 0.8)
    for seed in range(50):
        random = np.random.default_rng(seed)
        found = [facts(spacing=tuple(random.uniform(0.3, 6, 3))) for _ in range(random.integers(1, 9))]
        made, finest = plan(found).spacing, np.min([f.spacing for f in found], axis=0)
        assert all(made >= finest - 1e-4)
        assert all(made <= np.median([f.spacing for f in found], axis=0) + 1e-4)


def test_any_axis_may_be_the_thick_one() -> None:
    found = [facts(spacing=(4.0 + n, 0.9, 0.9)) for n in range(11)]
    assert plan(found).spacing == (5.0, 0.9, 0.9)


def test_patches_are_thin_where_slices_are_thick() -> None:
    """512 x 512 x 30 slices of 5 mm: the patch along S follows from the 30 slices, the others stay as published."""
    made = plan([facts((512, 512, 30), (0.8, 0.8, 5.0))])
    assert made.spacing == (0.8, 0.8, 5.0)
    assert made.patch == (16, 16, 8) and made.region == (32, 32, 16) and made.crop == (96, 96, 16)
    thinner = plan([facts((512, 512, 6), (0.8, 0.8, 5.0))])
    assert thinner.patch == (16, 16, 4) and thinner.crop == (96, 96, 8)


@pytest.mark.parametrize(
    ("modalities", "low", "expected"),
    [
        (["CT", "CT", "MR"], 0.0, "window"),
        (["MR", "MR", "CT"], 0.0, "zscore"),
        (["MR", "CT"], 0.0, "zscore"),
        (["", "", ""], 0.0, "zscore"),
        # Dark voxels alone say nothing: phase images of MR run from -4096 to 4095, and survey knows them.
        (["", "", ""], -4096.0, "zscore"),
        (["MR", "MR"], -1000.0, "zscore"),
    ],
)
def test_normalisation_follows_the_modality_of_most_scans(modalities: list[str], low: float, expected: str) -> None:
    found = [replace(facts(low=low), modality=modality) for modality in modalities]
    assert plan(found).normalisation == expected


def told(found: list[CaseFacts], network: NetworkSettings = U_NET, **settings: Any) -> tuple[str, list[str]]:
    """Everything that planning says, and its warnings."""
    said: list[str] = []
    events = KeptLog(on_event=lambda event: said.append(event["message"]))
    make_plan(found, PlanSettings(**settings), network, events)
    return " | ".join(said), events.warnings


def test_it_says_what_the_scans_look_like() -> None:
    body = (-150.0, -50.0, 30.0, 60.0, 310.0)
    text, _ = told([replace(facts(low=-1024.0), body=body)] * 3)
    assert "CT, told by HU in 3 of 3 scan(s), bodies from -150 to 310 HU" in text
    assert "intensities -1000 to 1000 become 0 to 1" in text and "spacing 1 x 1 x 2 mm" in text
    assert "told by the header" in told([replace(facts(low=-100.0), modality="CT")])[0]
    assert "MR, told by the header in 1 of 1" in told([replace(facts(), modality="MR")])[0]
    assert "treated as MR" in told([facts()])[0] and "z-score" in told([facts()])[0]
    assert "percentiles" in told([facts()], normalisation="percentiles")[0]


def test_it_warns_of_a_mixed_set_unless_the_user_chose() -> None:
    mixed = [replace(facts(), modality=kind) for kind in ("CT", "MR", "MR")]
    (warning,) = told(mixed)[1]
    assert "mixes 1 CT and 2 MR scans" in warning and "plan.normalisation" in warning
    assert not told(mixed, normalisation="zscore")[1] and not told(mixed[1:])[1]
    assert "no modality has most of the scans" in told(mixed[:2])[0]


def test_it_says_that_slices_are_thick_and_that_a_finer_grid_shows_nothing_more() -> None:
    found = thick_set(2.5, *[5.0] * 9)
    assert "thick along S: 5 mm in the median scan, prepared at 4.75 mm" in told(found)[0]
    assert "thick" not in told(found, spacing=[1.0, 1.0, 3.0])[0]
    assert "finer than any scan" in told(found, spacing=[0.5, 0.8, 3.0])[0]
    assert "finer than any scan" not in told(found, spacing=[0.8, 0.8, 2.5])[0]


def test_a_fingerprint_sums_up_a_set() -> None:
    bodies = [(float(n), 0.0, 10.0 * n, 0.0, 100.0 * n) for n in (1, 2, 9)]
    found = [
        replace(facts((10 * n, 20, 30), (1.0, 1.0, 1.0 + n)), body=body)
        for n, body in zip((1, 2, 3), bodies)
    ]  # fmt: skip
    made = fingerprint(found)
    assert (made.scans, made.channels, made.spacing) == (3, 1, (1.0, 1.0, 3.0))
    assert made.extent == (20.0, 20.0, 90.0) and made.finest == (1.0, 1.0, 2.0)
    assert made.body == (2.0, 20.0, 200.0) and made.thick is None


# --- every value can be set, and read ------------------------------------------------------------------------

GIVEN: dict[str, Any] = {
    "spacing": [1.5, 1.5, 2.0],
    "normalisation": "percentiles",
    "window": [-175.0, 250.0],
    "crop": [64, 64, 32],
    "patch": [8, 8, 8],
    "region": [16, 16, 16],
}


@pytest.mark.parametrize("name", GIVEN)
def test_every_value_can_be_set(name: str) -> None:
    together = {"crop", "patch", "region"} if name in ("crop", "patch", "region") else {name}
    made = plan(**{one: GIVEN[one] for one in together})
    value = getattr(made, name)
    assert (value if isinstance(value, str) else list(value)) == GIVEN[name]


def test_the_plan_as_yaml_is_readable_and_comes_back_as_settings() -> None:
    made = plan(thick_set(2.5, *[5.0] * 9))
    text = plan_yaml(made)
    assert all(line.startswith("#") or "#" in line or line == "plan:" for line in text.splitlines())
    settings = from_dict(yaml.safe_load(text)).plan
    assert make_plan([facts((50, 50, 50), (3.0, 3.0, 3.0))], settings, U_NET) == made


def test_the_plan_as_yaml_names_every_value_but_the_channels() -> None:
    content = yaml.safe_load(plan_yaml(plan(**GIVEN)))["plan"]
    assert content == GIVEN and set(content) == set(plan().to_json()) - {"channels"}


@pytest.mark.parametrize(("window", "warns"), [([-175.0, 250.0], True), ([0.0, 1.0], False), ([0.0, 40.0], True)])
def test_it_warns_of_a_window_that_leaves_nothing(window: list[float], warns: bool) -> None:
    found = [replace(one, body=(0.05, 0.2, 0.4, 0.7, 0.95)) for one in thick_set(1.0, 1.0, 1.0)]
    warnings = told(found, normalisation="window", window=window)[1]
    assert any("leaves next to nothing" in text for text in warnings) == warns
