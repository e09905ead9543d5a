"""Settings: every wrong value ends in one line, every right one comes back as it was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused

from HybridMIMLib.config import DEMO_DEFAULTS, Run, differences, from_dict, make_run, to_dict, workspace
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.settings.finetuning import FinetuningSettings
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.settings.plan import PlanSettings
from HybridMIMLib.settings.pretraining import PretrainingSettings

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("plan.spacing", [1, 2]),
        ("plan.spacing", [1, 2, 0]),
        ("plan.spacing", [1, 2, NAN]),
        ("plan.spacing", [1, 2, INFINITE]),
        ("plan.spacing", "1.5"),
        ("plan.spacing", 1.5),
        ("plan.normalisation", "z-score"),
        ("plan.normalisation", ["window"]),
        ("plan.window", [100, 100]),
        ("plan.window", [100, -100]),
        ("plan.window", [0, 1, 2]),
        ("plan.window", None),
        ("plan.crop", [32.5, 32, 32]),
        ("plan.crop", [32, 32, -32]),
        ("plan.crop", []),
        ("plan.patch", "abc"),
        ("network.architecture", "vit"),
        ("network.features", [16]),
        ("network.features", [16, 0]),
        ("network.features", [16, "32"]),
        ("network.features", 16),
        ("network.dropout", 1),
        ("network.dropout", -0.1),
        ("network.dropout", True),
        ("finetuning.dropout", 1),
        ("finetuning.dropout", -0.1),
        ("network.size", "huge"),
        ("network.strides", [[1, 1, 1]]),
        ("network.window", 0),
        ("network.token", 12),
        ("pretraining.objective", "moco"),
        ("pretraining.steps", "many"),
        ("pretraining.steps", 0),
        ("pretraining.steps", 1.5),
        ("pretraining.steps", None),
        ("pretraining.steps", True),
        ("pretraining.batch", -1),
        ("pretraining.learning_rate", "1e-3"),
        ("pretraining.learning_rate", NAN),
        ("pretraining.learning_rate", INFINITE),
        ("pretraining.weight_decay", -1e-9),
        ("pretraining.warmup_steps", -1),
        ("pretraining.checkpoint_every", 0),
        ("pretraining.mask_ratio", 0),
        ("pretraining.mask_ratio", 1.01),
        ("pretraining.mask_ratio", [0.3]),
        ("pretraining.mask_ratio", [0.6, 0.3]),
        ("pretraining.mask_ratio", [0.3, 0.4, 0.5]),
        ("pretraining.mask_ratio", [0, 0.5]),
        ("pretraining.mask_ratio", "0.4"),
        ("pretraining.mask_ratio", True),
        ("pretraining.mask_ratio", NAN),
        ("pretraining.region_ratio", 0.0),
        ("pretraining.region_ratio", None),
        ("pretraining.region_ratio", [0.5, 1.1]),
        ("pretraining.target", "voxels"),
        ("pretraining.reconstruction", "l3"),
        ("pretraining.head_depth", 9),
        ("pretraining.head_depth", -1),
        ("pretraining.head_width", 100),
        ("pretraining.head_width", 0),
        ("pretraining.box_placement", "corner"),
        ("pretraining.contrast_queue", -2),
        ("pretraining.measure_every", -1),
        ("pretraining.preview_every", -1),
        ("pretraining.box", [16, 16]),
        ("pretraining.contrast_temperature", 0),
        ("pretraining.contrast_stage", -1),
        ("pretraining.projection", 0),
        ("finetuning.steps", {}),
        ("finetuning.validate_every", 0),
        ("finetuning.validation_cases", -2),
        ("finetuning.foreground_share", 1.5),
        ("finetuning.flip_axes", [3]),
        ("finetuning.flip_axes", 0),
        ("finetuning.augment", "no"),
        ("finetuning.augment", 1),
        ("inference.overlap", 1.0),
        ("inference.window_batch", -1),
        ("split.unseen", 0),
        ("split.labelled", -2),
        ("split.unlabelled", 2.0),
    ],
)
def test_a_bad_value_in_a_section_is_named_in_one_line(name: str, value: Any) -> None:
    section, field = name.split(".")
    assert name in refused({section: {field: value}})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("seed", "3"),
        ("seed", 1.5),
        ("device", "gpu"),
        ("device", "cuda:"),
        ("device", "cuda:x"),
        ("device", "cpu:0"),
        ("device", ""),
        ("device", None),
        ("output", 3),
        ("scans", ["a", "b"]),
        ("plan", None),
        ("network", "unet"),
        ("finetuning", [1, 2]),
    ],
)
def test_a_bad_value_at_the_top_is_named_in_one_line(name: str, value: Any) -> None:
    assert name in refused({name: value})


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    assert "pretraining.step." in refused({"pretraining": {"step": 3}})
    assert "learning_rate" in refused({"pretraining": {"step": 3}})
    assert "no setting steps" in refused({"steps": 3})
    assert "no setting 1" in refused({1: 2})


@pytest.mark.parametrize("content", [[], "run.yaml", 3, None])
def test_settings_that_are_no_section_are_refused(content: Any) -> None:
    assert "the settings" in refused(content)


def test_a_section_checks_itself_when_it_is_made() -> None:
    with pytest.raises(SettingsError, match="pretraining.steps is 'many'. Give a whole number"):
        PretrainingSettings(steps="many")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="plan is {'spacing': None}"):
        Run(plan={"spacing": None})  # type: ignore[arg-type]


def test_the_tree_survives_a_round_trip() -> None:
    run = make_run(None, {"seed": 7, "plan": {"spacing": [1, 2, 3]}, "finetuning": {"flip_axes": [0, 2]}})
    assert from_dict(to_dict(run)) == run
    assert from_dict({}) == Run()


def test_tuples_paths_and_numpy_numbers_become_what_yaml_gives_back(tmp_path: Path) -> None:
    run = make_run(
        None,
        {
            "output": tmp_path,
            "seed": np.int64(3),
            "plan": {"spacing": (1, np.float32(1.5), 2)},
            "network": NetworkSettings(features=(8, 16)),  # type: ignore[arg-type]
        },
    )
    assert (run.output, run.plan.spacing, run.network.features) == (str(tmp_path), [1.0, 1.5, 2.0], [8, 16])
    assert type(run.seed) is int and all(type(part) is float for part in run.plan.spacing or [])


def test_replacing_one_field_of_a_section_keeps_the_others() -> None:
    first = make_run(None, {"pretraining": {"steps": 5, "batch": 2}})
    second = make_run(first, {"pretraining": {"steps": 6}, "seed": 1})
    assert (second.pretraining.steps, second.pretraining.batch, second.seed) == (6, 2, 1)
    assert first.pretraining.steps == 5 and first.seed == 0


def test_a_section_may_be_given_as_itself() -> None:
    run = make_run(None, {"plan": PlanSettings(window=[0, 80]), "finetuning": FinetuningSettings(steps=3)})
    assert run.plan.window == [0, 80] and run.finetuning.steps == 3


def test_a_folder_in_place_of_settings_ends_in_one_line() -> None:
    with pytest.raises(SettingsError, match="which is no Run"):
        make_run("scans", {})  # type: ignore[arg-type]


def test_trees_do_not_share_lists() -> None:
    Run().plan.window.append(3)
    assert Run().plan.window == PlanSettings().window == [-1000.0, 1000.0]


def test_differences_are_named_with_dots() -> None:
    one, other = make_run(None, {"seed": 1}), make_run(None, {"plan": {"spacing": [1, 1, 1]}})
    assert differences(to_dict(one), to_dict(other)) == ["plan.spacing", "seed"]
    assert differences(to_dict(one), to_dict(one)) == []


def test_a_missing_folder_names_its_option() -> None:
    with pytest.raises(SettingsError, match="--labelled is missing: the cases. Add --labelled PATH"):
        Run().folder("labelled", "the cases")
    assert Run(labelled="~/x").folder("labelled", "") == Path.home() / "x"


def test_the_defaults_of_the_demo_are_settings() -> None:
    assert from_dict(DEMO_DEFAULTS) != Run()


def test_the_workspace_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path))
    assert workspace() == tmp_path
    monkeypatch.delenv("HYBRIDMIM_WORKSPACE")
    assert workspace() == Path.home() / "HybridMIM"


@pytest.mark.parametrize("name", ["", "  ", "\t", "two\nlines", "ends\n", "a\r\nb", "a\u2028b", 3, ["a"]])
def test_a_name_that_is_none_is_refused(name: Any) -> None:
    assert "name is" in refused({"name": name})


@pytest.mark.parametrize("name", [None, "Leber und Milz", "Lékař ünï 数", "2024", "a: #b"])
def test_a_name_is_kept_as_it_is(name: str | None) -> None:
    assert make_run(None, {"name": name}).name == name
