"""Which arms, cells and seeds a study crosses."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from HybridMIMLib.config import Run, from_dict, make_run, to_dict
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.settings.study import STUDY_OBJECTIVES
from HybridMIMLib.studies.axes import (
    Arm,
    Finetuning,
    Pretraining,
    arms_of,
    finetunings,
    pretrainings,
    rates_of,
    seed_pairs,
    settings_of,
    trials,
)
from HybridMIMLib.studies.presets import PRESETS, with_preset


def run_of(**study: Any) -> Run:
    return make_run(None, {"study": study})


def names(**study: Any) -> list[str]:
    return [arm.name for arm in arms_of(run_of(**study))]


def test_scratch_comes_first_and_once_more_at_double_length() -> None:
    assert names() == ["scratch", "scratch, twice the steps", "hybridmim", "simmim"]
    assert names(scratch_double=False, objectives=["mae", "scratch"]) == ["scratch", "mae"]


def test_an_axis_that_means_nothing_to_an_objective_is_not_crossed() -> None:
    found = names(
        objectives=["scratch", "simclr", "hybridmim", "simmim"], mask_ratios=[0.3, 0.6], head_depths=[0, 2],
        scratch_double=False,
    )  # fmt: skip
    assert found == [
        "scratch", "simclr", "hybridmim, ratio 0.3", "hybridmim, ratio 0.6",
        "simmim, ratio 0.3, head 0", "simmim, ratio 0.3, head 2", "simmim, ratio 0.6, head 0",
        "simmim, ratio 0.6, head 2",
    ]  # fmt: skip


def test_each_network_and_resolution_has_a_scratch_of_its_own() -> None:
    arms = arms_of(run_of(networks=["unet-tiny", "segresnet"], spacings=[1.0, [2.0, 2.0, 3.0]]))
    assert {arm.group for arm in arms} == {
        "unet-tiny, spacing x1", "unet-tiny, spacing 2-2-3 mm", "segresnet, spacing x1", "segresnet, spacing 2-2-3 mm"
    }  # fmt: skip
    for group in {arm.group for arm in arms}:
        own = [arm for arm in arms if arm.group == group]
        assert sum(arm.is_scratch and not arm.twice for arm in own) == 1 == sum(arm.twice for arm in own)


def test_one_at_a_time_varies_each_axis_beside_what_is_usual() -> None:
    found = names(
        vary="one", objectives=["scratch", "hybridmim", "simmim"], mask_ratios=[0.4, 0.75], head_depths=[0, 4],
        scratch_double=False,
    )  # fmt: skip
    assert found == [
        "scratch",
        # Its own ratio is 0.4, and there is no head.
        "hybridmim, ratio 0.4", "hybridmim, ratio 0.75",
        "simmim, ratio 0.75, head 0", "simmim, ratio 0.4, head 0", "simmim, ratio 0.75, head 4",
    ]  # fmt: skip


def test_the_settings_of_an_arm_are_those_of_the_study_but_for_its_axes() -> None:
    run = make_run(None, {"pretraining": {"steps": 77}, "network": {"features": [4, 8]}})
    without = settings_of(run, Arm("a", "", "hybridmim-number", mask_ratio=0.2)).pretraining
    assert (without.objective, without.number_weight, without.mask_ratio, without.steps) == ("hybridmim", 0, 0.2, 77)
    assert without.location_weight == run.pretraining.location_weight
    other = settings_of(run, Arm("a", "", "simmim", network="segresnet-small", patch=4, head_depth=3))
    assert (other.network.architecture, other.network.size, other.network.features) == ("segresnet", "small", None)
    assert other.plan.patch == [4, 4, 4] and other.pretraining.head_depth == 3
    assert settings_of(run, Arm("a", "", "scratch")).network == run.network


@pytest.mark.parametrize("objective", STUDY_OBJECTIVES)
def test_every_objective_has_settings(objective: str) -> None:
    chosen = settings_of(Run(), Arm("a", "", objective)).pretraining
    assert chosen.objective == ("none" if objective == "scratch" else objective.partition("-")[0])
    assert (min(v for k, v in vars(chosen).items() if k.endswith("_weight")) == 0) == ("-" in objective)


def test_seeds_go_side_by_side_where_there_are_as_many_else_in_all_pairs() -> None:
    arm, scratch = Arm("a", "", "simmim"), Arm("b", "", "scratch")
    assert seed_pairs(run_of(seeds=[4, 5]).study, arm) == [(4, 4), (5, 5)]
    assert seed_pairs(run_of(seeds=[4, 5], pretraining_seeds=[0, 1]).study, arm) == [(0, 4), (1, 5)]
    assert seed_pairs(run_of(seeds=[4, 5], pretraining_seeds=[9]).study, arm) == [(9, 4), (9, 5)]
    assert seed_pairs(run_of(seeds=[4, 5], pretraining_seeds=[9]).study, scratch) == [(None, 4), (None, 5)]
    assert pretrainings(run_of(seeds=[4, 5], pretraining_seeds=[9]).study, [scratch, arm]) == [Pretraining(arm, 9)]


def test_steps_go_with_the_amount_and_are_doubled_for_the_double() -> None:
    run = run_of(labelled=[2, "all"], steps=[100, 600], seeds=[0, 1], learning_rates=[1e-3, 2e-3])
    arm, double = Arm("a", "", "scratch"), Arm("b", "", "scratch", twice=True)
    assert [cell.steps for cell in finetunings(run, arm, 2, [1e-3], only_first=True)] == [100]
    assert [cell.steps for cell in finetunings(run, double, "all", [1e-3])] == [1200, 1200]
    assert rates_of(run) == [1e-3, 2e-3] and rates_of(Run()) == [Run().finetuning.learning_rate]


@pytest.mark.parametrize(("seeds", "tried"), [("all", [(1e-3, 0), (1e-3, 1), (2e-3, 0), (2e-3, 1)]),
                                               ("first", [(1e-3, 0), (2e-3, 0)])])  # fmt: skip
def test_rates_are_tried_with_all_seeds_or_the_first(seeds: str, tried: list[tuple[float, int]]) -> None:
    run = run_of(seeds=[0, 1], learning_rates=[1e-3, 2e-3], rate_seeds=seeds)
    assert [(cell.learning_rate, cell.seed) for cell in trials(run, Arm("a", "", "simmim"), "all")] == tried


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.sampled_from(STUDY_OBJECTIVES[1:]), unique=True, min_size=1, max_size=4),
    st.lists(st.sampled_from([0.25, 0.5, 0.75]), unique=True, max_size=2),
    st.lists(st.sampled_from([4, 8, 16]), unique=True, max_size=2),
    st.lists(st.sampled_from(["unet-tiny", "unetr-small", "segresnet"]), unique=True, max_size=2),
    st.sampled_from(["all", "one"]),
)
def test_names_and_folders_tell_cells_apart(
    objectives: list[str], ratios: list[float], patches: list[int], networks: list[str], vary: str
) -> None:
    run = run_of(
        objectives=["scratch", *objectives], mask_ratios=ratios or None, patches=patches or None,
        networks=networks or None, vary=vary, labelled=[0.1, 1, "all"], learning_rates=[1e-3, 1e-2],
    )  # fmt: skip
    arms = arms_of(run)
    assert len({arm.name for arm in arms}) == len(arms) == len({(a.name, settings_key(run, a)) for a in arms})
    cells: list[Pretraining | Finetuning] = list(pretrainings(run.study, arms))
    for arm, amount in product(arms, run.study.labelled):
        cells += finetunings(run, arm, amount, rates_of(run))
    assert len({cell.id for cell in cells}) == len(cells) == len({cell.title for cell in cells})


def settings_key(run: Run, arm: Arm) -> str:
    return str(to_dict(settings_of(run, arm)))


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ({"objectives": ["scratch", "hybridmin"]}, "'hybridmin'.*Objectives are: scratch, hybridmim, hybridmim-part"),
        ({"objectives": ["hybridmim"]}, "compares scratch with something.*at least one other"),
        ({"objectives": ["scratch"]}, "compares scratch with something"),
        ({"networks": ["unet-huge"]}, "'unet-huge'.*unet-tiny"),
        ({"labelled": [1.5]}, "has 1.5.*whole numbers"),
        ({"labelled": [0]}, "has 0"),
        ({"labelled": ["some"]}, "has 'some'"),
        ({"labelled": [2, 6], "steps": [100]}, "study.steps has 1 entries, and study.labelled has 2"),
        ({"seeds": []}, "study.seeds is empty"),
        ({"seeds": [1, 1]}, "there twice"),
        ({"seeds": [-1]}, "a seed of the study is -1"),
        ({"mask_ratios": [1.0]}, "study.mask_ratios has 1.0"),
        ({"spacings": [[1.0, 2.0]]}, "three numbers"),
        ({"learning_rates": [0.0]}, "study.learning_rates is 0"),
        ({"test": ["a"], "test_cases": 3}, "both say which"),
        ({"jobs": 0}, "study.jobs is 0"),
        ({"labelled": "all"}, "study.labelled is 'all'. Give a list of numbers and names"),
    ],
)
def test_wrong_settings_name_the_cure(study: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        run_of(**study)


def test_equal_steps_for_different_amounts_are_fine() -> None:
    assert run_of(labelled=[2, 6], steps=[100, 100]).study.steps == [100, 100]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fills_in_what_was_left_at_its_default(name: str) -> None:
    run = with_preset(make_run(None, {"study": {"preset": name}}))
    for section, values in PRESETS[name].items():
        assert {key: getattr(getattr(run, section), key) for key in values} == values
    assert with_preset(run) == run and from_dict(to_dict(run)) == run


def test_what_was_set_wins_over_a_preset() -> None:
    run = with_preset(make_run(None, {"study": {"preset": "quick", "seeds": [7]}, "pretraining": {"steps": 9}}))
    assert run.study.seeds == [7] and run.pretraining.steps == 9 and run.finetuning.steps == 60
    own = with_preset(make_run(None, {"study": {"preset": "paper"}, "network": {"architecture": "segresnet"}}))
    assert (own.network.architecture, own.network.size) == ("segresnet", "tiny")


def test_the_paper_preset_varies_one_axis_at_a_time() -> None:
    arms = arms_of(with_preset(run_of(preset="paper")))
    assert sum(arm.objective == "mae" and arm.spacing == 1.0 for arm in arms) == 1 + 5 + 2 + 3
    assert {arm.mask_ratio for arm in arms if arm.spacing == 1.5} == {None, 0.4, 0.75}
