"""Studies by name: settings that take the place of whatever was left at its default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from HybridMIMLib.config import Run, from_dict, to_dict

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # To see a study from end to end. The figures of so few steps say little.
    "quick": {
        "pretraining": {"steps": 60, "batch": 2, "warmup_steps": 10, "measure_every": 0, "preview_every": 0},
        "finetuning": {"steps": 60, "batch": 2, "warmup_steps": 10},
        "inference": {"preset": "fast"},
        "study": {"seeds": [0, 1], "validations": 4},
    },
    # What arXiv:2204.11716 varied: mask ratio, patch size, depth of the head, resolution, labelled share. It
    # published no configuration of these experiments, so the values and the steps are ours.
    "paper": {
        "network": {"architecture": "unetr", "size": "base"},
        "pretraining": {"steps": 10000, "warmup_steps": 200, "learning_rate": 1e-4, "measure_every": 1000,
                        "preview_every": 5000, "checkpoint_every": 500},
        "finetuning": {"steps": 4000, "warmup_steps": 200, "learning_rate": 3e-4, "checkpoint_every": 500},
        "study": {
            "objectives": ["scratch", "hybridmim", "simmim", "mae", "simclr"],
            "vary": "one",
            "mask_ratios": [0.15, 0.3, 0.45, 0.6, 0.75, 0.9],
            "patches": [16, 32],
            "head_depths": [0, 1, 4, 8],
            "spacings": [1.0, 1.5],
            "labelled": [0.1, 0.25, 0.5, "all"],
            "validations": 20,
        },
    },
}  # fmt: skip


def with_preset(run: Run) -> Run:
    """The settings with those of the preset that they name, wherever something was left at its default."""
    if run.study.preset is None:
        return run
    given, content, defaults = to_dict(run), to_dict(run), asdict(Run())
    for section, values in PRESETS[run.study.preset].items():
        for name, value in values.items():
            if given[section][name] == defaults[section][name] and not _is_decided(given, section, name):
                content[section][name] = value
    return from_dict(content)


def _is_decided(content: Mapping[str, Any], section: str, name: str) -> bool:
    """Whether something else that was set leaves the setting no room."""
    # As many steps as labelled amounts were given: the amounts are the user's.
    if (section, name) == ("study", "labelled"):
        return content["study"]["steps"] is not None
    if section == "network":
        return content["network"] != asdict(Run().network) or content["study"]["networks"] is not None
    return False
