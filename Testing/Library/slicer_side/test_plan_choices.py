"""Choices of a plan: what is typed reaches the command as a value, and what is wrong is told by the library."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from small_runs import TINY

from HybridMIMLib.cli import parse
from HybridMIMLib.config import Run, make_run, to_dict
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.presets import config_path, list_presets
from HybridMIMLib.runs import load_settings, save_settings
from HybridMIMLib.slicer_side.plan_choices import (
    AUTOMATIC,
    DEFAULTS,
    MAIN,
    OWN,
    SETTINGS,
    PlanChoices,
    bases,
    flat,
    for_user,
    groups,
    nested,
    read_own,
    read_preset,
    title_of,
)

PRESETS = [one.name for one in list_presets()]


def parsed(choices: PlanChoices) -> Run:
    """What the command makes of the options."""
    return parse("train", [f"--{name}={value}" for name, value in choices.options().items()])


def with_preset(name: str) -> PlanChoices:
    choices = PlanChoices()
    choices.take_base(name, read_preset(name))
    return choices


def test_every_setting_of_a_training_is_offered_once() -> None:
    offered = [*MAIN, *(one.name for group in groups().values() for one in group)]
    assert sorted(offered) == sorted(SETTINGS) and len(set(offered)) == len(offered)
    sections = ("plan", "network", "pretraining", "finetuning")
    assert {name for name in DEFAULTS if name.startswith(sections)} <= set(SETTINGS)
    assert {"seed", "device", "name", "finetuning.labelled_fraction"} <= set(SETTINGS)
    assert len({title_of(name) for name in SETTINGS}) == len(SETTINGS), "two settings are called the same"


def test_each_says_what_config_says_of_it() -> None:
    steps = SETTINGS["finetuning.steps"]
    assert steps.help.startswith("How often the network is adjusted") and steps.help.endswith(".")
    assert steps.kind == "text" and not steps.optional
    network = SETTINGS["network.architecture"]
    assert network.kind == "choice" and "swinunetr" in network.choices
    assert SETTINGS["network.size"].help.startswith("tiny: "), "a choice keeps its small letter"
    assert SETTINGS["finetuning.augment"].kind == "switch" and SETTINGS["plan.crop"].optional


@pytest.mark.parametrize("base", [AUTOMATIC, *PRESETS])
def test_what_is_shown_and_typed_again_is_no_change(base: str) -> None:
    choices = with_preset(base) if base != AUTOMATIC else PlanChoices()
    for name, one in SETTINGS.items():
        shown = one.show(choices.value(name))
        assert one.parse(shown) == choices.value(name), name
        choices.set(name, shown)
    assert choices.changes == {} and choices.why_not("scans", "cases") == ""


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("plan.crop", "64", [64, 64, 64]),
        ("plan.crop", "64 x 64 x 32", [64, 64, 32]),
        ("plan.crop", "64×64×32", [64, 64, 32]),
        ("plan.crop", "[64, 64,32]", [64, 64, 32]),
        ("plan.crop", " ", None),
        ("plan.spacing", "1.5; 1.5; 2", [1.5, 1.5, 2.0]),
        ("plan.window", "-175 250", [-175.0, 250.0]),
        ("pretraining.mask_ratio", "0.4", 0.4),
        ("pretraining.mask_ratio", "0.3, 0.6", [0.3, 0.6]),
        ("pretraining.learning_rate", "1e-4", 1e-4),
        ("network.features", "8 16", [8, 16]),
        ("network.strides", "[[1,1,1],[2,2,1]]", [[1, 1, 1], [2, 2, 1]]),
        ("finetuning.flip_axes", "0", [0]),
        ("finetuning.flip_axes", "", []),
        ("finetuning.augment", "false", False),
        ("finetuning.split", "/a b/null.json", "/a b/null.json"),
        ("network.architecture", "segresnet", "segresnet"),
        ("name", " Leber ů ", "Leber ů"),
        ("name", "12", "12"),
        ("name", "null", "null"),
        ("device", "cuda:1", "cuda:1"),
    ],
)
def test_what_is_typed_is_what_the_command_gets(name: str, text: str, value: Any) -> None:
    choices = with_preset("ct-abdomen")
    choices.set(name, text)
    if name == "network.strides":
        choices.set("network.features", "8 16")
    assert flat(to_dict(parsed(choices)))[name] == value
    assert flat(to_dict(choices.run()))[name] == value


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("plan.crop", "abc", "Crop is 'abc'. Give a list of whole numbers."),
        ("plan.crop", "64.5", "Crop is [64.5, 64.5, 64.5]"),
        ("plan.crop", "1 2", "Give three numbers above 0"),
        ("pretraining.steps", "", "Pre-training steps is ''. Give a whole number."),
        ("pretraining.learning_rate", "NaN", "Pre-training: learning rate is nan. Give a number."),
        ("finetuning.learning_rate", "-1", "Fine-tuning: learning rate is -1.0"),
        ("pretraining.steps", "true", "Pre-training steps is True. Give a whole number."),
        ("device", "tpu", "device is 'tpu'"),
        ("finetuning.folds", "1", "Fine-tuning: folds is 1. Give a number from 2 to 20"),
        ("pretraining.objective", "mae", "Pre-training task is mae"),
    ],
)
def test_what_cannot_work_is_told_with_the_words_of_the_library(name: str, text: str, words: str) -> None:
    choices = PlanChoices()
    choices.set(name, text)
    assert words in choices.why_not("scans")
    choices.reset()
    assert choices.why_not("scans") == ""


@pytest.mark.parametrize("name", ["pretraining.steps", "network.dropout", "plan.crop", "name"])
def test_a_number_that_no_computer_can_hold_is_refused_and_shown_as_it_was_typed(name: str) -> None:
    choices = PlanChoices()
    choices.changes[name] = 10**400
    assert SETTINGS[name].show(choices.value(name)) == str(10**400)
    assert name == "pretraining.steps" or choices.why_not("scans")
    assert PlanChoices.load(choices.dump()).changes == choices.changes


def test_folders_and_weights_are_looked_at_together() -> None:
    choices = PlanChoices()
    choices.set("weights", "run")
    reason = choices.why_not("scans", "cases")
    assert reason.startswith("Weights to start from are given") and "--" not in reason
    assert choices.why_not("", "cases") == choices.why_not() == ""


@pytest.mark.parametrize("command", ["pretrain", "finetune", "study"])
def test_what_a_command_does_not_know_is_not_in_its_way(command: str) -> None:
    choices = PlanChoices()
    choices.set("weights", "run")
    choices.set("pretraining.objective", "mae")
    reason = choices.why_not("scans", "cases", command)
    assert (reason == "") if command == "finetune" else reason.startswith("Pre-training task is mae")
    choices.set("pretraining.objective", "simmim")
    assert choices.why_not("scans", "cases", command) == ""


def test_no_setting_is_called_by_its_dotted_name_in_a_message() -> None:
    text = for_user("plan.crop [8] and plan.crop_other, finetuning.fold, finetuning.folds: see plan.cropped.")
    assert text == "Crop [8] and plan.crop_other, Fine-tuning: fold, Fine-tuning: folds: see plan.cropped."


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_reaches_the_command_by_name(name: str) -> None:
    choices, preset = with_preset(name), load_settings(config_path(name))
    assert choices.options() == {"config": name} and parsed(choices) == preset == choices.run()
    choices.set("plan.spacing", "")
    choices.set("pretraining.batch", "2")
    assert parsed(choices) == choices.run() and choices.run().plan.spacing is None


def test_what_is_taken_back_by_hand_is_no_change() -> None:
    choices = with_preset("ct-abdomen")
    choices.set("plan.window", "-1000 400")
    choices.switch("finetuning.augment", False)
    assert list(choices.changes) == ["plan.window", "finetuning.augment"]
    choices.set("plan.window", "-175, 250")
    choices.switch("finetuning.augment", True)
    assert choices.changes == {}


def test_a_change_stays_when_another_preset_is_chosen() -> None:
    choices = with_preset("ct-abdomen")
    choices.set("plan.window", "-1000 400")
    choices.set("seed", "3")
    choices.take_base("ct-chest", read_preset("ct-chest"))
    assert choices.options() == {"config": "ct-chest", "seed": "3"}, "the window is that of the preset now"


def test_own_settings_are_all_given_and_folders_are_not(tmp_path: Path) -> None:
    own = make_run(None, {**TINY, "unlabelled": "/theirs", "store": "/store", "inference": {"overlap": 0.25}})
    save_settings(tmp_path / "run.yaml", own)
    choices = PlanChoices()
    choices.take_base(OWN, read_own(tmp_path / "run.yaml"), str(tmp_path / "run.yaml"))
    choices.set("finetuning.steps", "77")
    expected = make_run(own, {"unlabelled": None, "store": None, "finetuning": {"steps": 77}})
    assert parsed(choices) == expected
    again = PlanChoices.load(choices.dump())
    assert again == choices and parsed(again) == expected
    (tmp_path / "run.yaml").write_text("plan: [1")
    with pytest.raises(SettingsError, match=re.escape("run.yaml: the settings cannot be read")):
        read_own(tmp_path / "run.yaml")


def test_a_damaged_scene_is_no_harm() -> None:
    for text in ("", "{", "[]", "3", '{"base": []}', '{"base": "own", "own": [1], "file": null}', "[" * 100000):
        choices = PlanChoices.load(text)
        assert choices.changes == {} and choices.file == "" and choices.base in (AUTOMATIC, OWN)
    odd = PlanChoices.load(
        json.dumps({"base": "own", "own": {"plan.gone": 1, "seed": 2}, "changes": {"plan.crop": {}}})
    )
    assert odd.values_of_base == {"seed": 2} and "Crop is {}" in odd.why_not()


def test_what_there_is_to_begin_with() -> None:
    found = {base.key: base for base in bases()}
    assert list(found) == [AUTOMATIC, *PRESETS, OWN] and all(base.summary.endswith(".") for base in found.values())
    assert nested(flat(to_dict(Run()))) == to_dict(Run())
