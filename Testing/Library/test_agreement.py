"""Settings that contradict each other are told before any scan is read."""

from __future__ import annotations

from typing import Any

import pytest

from HybridMIMLib.agreement import check_agreement, check_folders
from HybridMIMLib.config import make_run
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.presets import list_presets
from HybridMIMLib.runs import load_settings

SIZES = {"crop": [96, 96, 96], "patch": [16, 16, 16], "region": [32, 32, 32]}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pretraining": {"objective": "mae"}}, "network.architecture is unet"),
        ({"network": {"dropout": 0.0}}, "two passes that differ by dropout"),
        ({"pretraining": {"objective": "simclr", "contrast_queue": 0, "batch": 1}}, "nothing to contrast with"),
        ({"plan": {**SIZES, "region": [16] * 3}, "network": {"architecture": "swinunetr"}}, "stride of the network"),
        ({"plan": {**SIZES, "patch": [8] * 3, "region": [8] * 3, "crop": [8] * 3, "spacing": [1.0] * 3}}, "single"),
        ({"plan": {**SIZES, "crop": [64] * 3}, "network": {"architecture": "swinunetr", "window": 40}}, "window 40"),
    ],
)
def test_what_would_end_every_training_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        check_agreement(make_run(None, settings))


def test_what_is_wrong_with_a_pre_training_matters_to_nobody_without_one() -> None:
    run = make_run(None, {"pretraining": {"objective": "mae"}})
    check_agreement(run, pretrains=False)


def test_what_follows_from_the_scans_is_left_to_them() -> None:
    check_agreement(make_run(None, {}))
    # How often thin slices are halved depends on their spacing.
    thin = {"crop": [32, 32, 4], "patch": [8, 8, 2], "region": [16, 16, 4]}
    check_agreement(make_run(None, {"plan": thin}))
    check_agreement(make_run(None, {"plan": {**thin, "spacing": [1.0, 1.0, 9.0]}}))
    with pytest.raises(SettingsError, match="stride of the network"):
        check_agreement(make_run(None, {"plan": {**thin, "spacing": [1.0, 1.0, 1.0]}}))


@pytest.mark.parametrize("preset", list_presets(), ids=lambda preset: preset.name)
def test_every_preset_agrees_with_itself(preset: Any) -> None:
    check_agreement(load_settings(preset.path))


def test_a_training_has_scans_and_one_thing_to_start_from() -> None:
    check_folders(make_run(None, {"labelled": "cases", "weights": "run"}))
    with pytest.raises(SettingsError, match="nothing to train on"):
        check_folders(make_run(None, {"weights": "run"}))
    with pytest.raises(SettingsError, match="both given"):
        check_folders(make_run(None, {"unlabelled": "scans", "weights": "run"}))
