"""The settings of everything: one typed tree that every command takes, saves and accepts back.

A :class:`Run` says what to work on (top level) and how (one section a stage). Each section checks itself when it
is made, so that a wrong value ends in one line before any work starts. ``run.yaml`` in every run folder is this
tree; it can be given back to any command with ``--config``.

This file imports the standard library alone, because panels and ``--help`` load it.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional

from HybridMIMLib.errors import SettingsError
from HybridMIMLib.settings.checks import is_name, require
from HybridMIMLib.settings.evaluation import EvaluationSettings
from HybridMIMLib.settings.finetuning import FinetuningSettings
from HybridMIMLib.settings.inference import InferenceSettings
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.settings.plan import PlanSettings
from HybridMIMLib.settings.pretraining import PretrainingSettings
from HybridMIMLib.settings.split import SplitSettings
from HybridMIMLib.settings.study import StudySettings
from HybridMIMLib.settings.tree import build, check_types, section, setting

DEMO_DEFAULTS: dict[str, Any] = {
    "pretraining": {"steps": 100},
    "finetuning": {"steps": 240, "validate_every": 80},
}
"""Where the demo differs from a real run: short enough for two cores."""


@dataclass
class Run:
    """What to work on, and how. Paths are text, so that the tree can be written as YAML."""

    unlabelled: Optional[str] = setting(None, "folder of scans without labels, or a CSV or JSON list of them")
    labelled: Optional[str] = setting(
        None, "folder of labelled scans (images/ + labels/, MSD, nnU-Net, BTCV, BraTS), or a CSV or JSON list of them"
    )
    missing_labels: Literal["absent", "unannotated"] = setting(
        "absent",
        "what it means that a class is missing from a label map; unannotated: nobody looked for it, learn nothing "
        "from it (always so where the scans say that they are partially labelled)",
    )
    resample_labels: bool = setting(
        False, "bring a label map that lies on another grid onto its scan (nearest neighbour) instead of refusing it"
    )
    check: bool = setting(
        False,
        "write nothing: tell of every scan whether it can be used, and why not; of scans to segment, how long each "
        "preset would take",
    )
    of: Literal["train", "pretrain", "finetune"] = setting(
        "train", "estimate: the command of which time, memory and disk are told"
    )
    scans: Optional[str] = setting(
        None, "scan, or folder of scans, to segment; evaluate draws its pictures on those of this folder"
    )
    predictions: Optional[str] = setting(None, "folder of label maps to judge, of this program or any other")
    references: Optional[str] = setting(
        None, "folder of label maps that are held to be right: a labelled data set, or label maps alone"
    )
    compare: Optional[str] = setting(None, "folder of other label maps of the same scans, to compare with")
    model: Optional[str] = setting(None, "model package: a folder, a .zip, or the name of one that was added")
    models: Optional[list[str]] = setting(
        None,
        "model packages to make one of: folders, .zip files or names; they may stand behind the command, without "
        "--models",
    )
    weights: Optional[str] = setting(
        None, "run folder of a pre-training to start from, or a published .pt file; without: from scratch"
    )
    partial_weights: bool = setting(
        False, "start from the weights also where they fill less than 90 % of the encoder, instead of refusing them"
    )
    name: Optional[str] = setting(None, "what the model is called; without: the name of the labelled folder")
    license: Optional[str] = setting(
        None, "license of a model to hand on, such as CC-BY-4.0, or a file with its text"
    )
    output: Optional[str] = setting(None, "run folder to write to; without: a new one where runs are kept")
    store: Optional[str] = setting(None, "folder for prepared scans, shared by runs; without: in the run folder")
    seed: int = setting(0, "number from which every random draw follows")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    plan: PlanSettings = section(PlanSettings, "how scans are brought to one form")
    network: NetworkSettings = section(NetworkSettings, "the network")
    pretraining: PretrainingSettings = section(PretrainingSettings, "pre-training without labels")
    finetuning: FinetuningSettings = section(FinetuningSettings, "training with labels")
    inference: InferenceSettings = section(InferenceSettings, "segmenting scans")
    evaluation: EvaluationSettings = section(EvaluationSettings, "judging segmentations")
    split: SplitSettings = section(SplitSettings, "sharing out cases in the demo")
    study: StudySettings = section(StudySettings, "what a study compares")

    def __post_init__(self) -> None:
        check_types("", self)
        require(self.name is None or is_name(self.name), f"name is {self.name!r}", "Give one line that is not blank.")
        require(self.seed >= 0, f"seed is {self.seed}", "Give a whole number from 0.")
        require(
            re.fullmatch("auto|cpu|mps|cuda(:[0-9]+)?", self.device) is not None,
            f"device is {self.device!r}",
            "Give auto, cpu, cuda, cuda:1 (a number) or mps.",
        )

    def folder(self, name: str, purpose: str) -> Path:
        """The path in field ``name``.

        Raises:
            SettingsError: it was not given; ``purpose`` says what it is needed for.
        """
        value = getattr(self, name)
        require(value is not None, f"--{name} is missing: {purpose}", f"Add --{name} PATH.")
        return user_path(value)


def to_dict(run: Run) -> dict[str, Any]:
    """The tree as nested dictionaries of plain values."""
    return dataclasses.asdict(run)


def from_dict(content: Mapping[str, Any]) -> Run:
    """The tree from nested dictionaries; fields that are not there keep their default.

    Raises:
        SettingsError: a field is unknown or has a value that cannot work.
    """
    built = build(Run, content, "")
    assert isinstance(built, Run)
    return built


def make_run(run: Run | None, settings: Mapping[str, Any]) -> Run:
    """The settings of a Python call: a tree, fields of a tree, or a tree with some fields replaced.

    Sections may be given as dictionaries: ``pretrain(unlabelled="scans", pretraining={"steps": 100})``.

    Raises:
        SettingsError: a field is unknown or has a value that cannot work.
    """
    require(
        run is None or isinstance(run, Run),
        f"the settings are {run!r}, which is no Run",
        "Say what it is, such as unlabelled=PATH.",
    )
    merged = to_dict(run) if run is not None else {}
    for name, value in settings.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        if isinstance(value, Mapping) and isinstance(merged.get(name), dict):
            value = {**merged[name], **value}
        merged[name] = value
    return from_dict(merged)


def differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names (dotted) of the settings that differ between two trees as dictionaries."""
    names: list[str] = []
    for key in sorted(set(one) | set(other)):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(prefix + key)
    return names


def workspace() -> Path:
    """The folder in which runs are kept when no output is named."""
    return user_path(os.environ.get("HYBRIDMIM_WORKSPACE") or "~/HybridMIM")


def user_path(text: str) -> Path:
    """A path as a user writes it, with ``~`` for the home folder.

    Raises:
        SettingsError: there is no such home folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise SettingsError(
            f"{text}: there is no such home folder",
            cure="Write the whole path, or set HYBRIDMIM_WORKSPACE to a folder.",
        ) from error
