"""The tables of README.md against the code: what is offered, what it is called, and where it lies."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from repository import REPOSITORY, text_of

from HybridMIMLib.agreement import check_settings
from HybridMIMLib.architectures import FEATURES, SEGRESNET, SWIN, VIT, settled, total_stride
from HybridMIMLib.commands import COMMANDS
from HybridMIMLib.config import Run, workspace
from HybridMIMLib.data.layouts.recognition import _LAYOUTS
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.presets import list_presets
from HybridMIMLib.settings.finetuning import FinetuningSettings
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.settings.pretraining import PretrainingSettings
from HybridMIMLib.settings.study import StudySettings

README = text_of("README.md")
LIBRARY = REPOSITORY / "HybridMIMTraining" / "HybridMIMLib"
OBJECTIVES = get_args(get_type_hints(PretrainingSettings)["objective"])
NETWORKS = get_args(get_type_hints(NetworkSettings)["architecture"])
SIZES = ("tiny", "small", "base")


def table(head: str) -> list[list[str]]:
    """The rows of the only table whose first line begins so."""
    found = re.findall(rf"^\| {re.escape(head)}.*\n\|[-|]+\|\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert len(found) == 1, f"{len(found)} tables begin with {head}"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines()]


def quoted(text: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", text)


def names(head: str) -> list[str]:
    """What the first cells of a table quote."""
    return [name for row in table(head) for name in quoted(row[0])]


def numbers(text: str) -> list[int]:
    return [int(one) for one in re.findall(r"\d+", text)]


# ---------------------------------------------------------------- objectives and networks


def test_every_objective_has_its_row() -> None:
    assert tuple(names("objective | what it does")) == OBJECTIVES
    [default] = [row for row in table("objective | what it does") if "(default)" in row[0]]
    assert quoted(default[0]) == [PretrainingSettings().objective]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_networks_mask_and_what_is_trained(objective: str) -> None:
    from small_objectives import small_objective

    [row] = [one for one in table("objective | what it does") if quoted(one[0]) == [objective]]
    said = NETWORKS if row[2] == "all" else tuple(quoted(row[2]))
    assert said == tuple(name for name in NETWORKS if goes_with(objective, name))
    made = small_objective(said[0], objective)
    assert row[3].partition(" ")[0] == default_ratio(objective)
    trains = {"encoder and decoder": True, "encoder": False}.get(row[4])
    assert trains == (made.trains_decoder if objective != "none" else None)


def goes_with(objective: str, network: str) -> bool:
    chosen = PretrainingSettings(objective=objective)  # type: ignore[arg-type]
    try:
        check_settings(Run(network=NetworkSettings(architecture=network), pretraining=chosen))  # type: ignore[arg-type]
    except SettingsError:
        return False
    return True


def default_ratio(objective: str) -> str:
    """In percent; empty where nothing is hidden."""
    from HybridMIMLib.pretraining import hybridmim, reconstruction

    ratios = {
        "hybridmim": hybridmim.MASK_RATIO,
        "simmim": reconstruction.MASK_RATIO,
        "mae": reconstruction.MASK_RATIO,
    }
    return f"{100 * ratios[objective]:.0f}" if objective in ratios else ""


def test_every_network_has_its_row_and_its_sizes() -> None:
    assert tuple(names("network | stride")) == NETWORKS
    rows = {quoted(row[0])[0]: row for row in table("network | stride")}
    assert [int(cell) for cell in rows["swinunetr"][2].split(" ")[:5:2]] == [SWIN[size].features for size in SIZES]
    assert [int(cell) for cell in rows["unetr"][2].split(" ")[:5:2]] == [VIT[size].width for size in SIZES]
    assert [int(cell) for cell in rows["segresnet"][2].split(" ")[:5:2]] == [SEGRESNET[one].filters for one in SIZES]
    tiny, small, base = rows["unet"][2].split(" / ")
    assert numbers(tiny) == [FEATURES["tiny"][0], FEATURES["tiny"][-1]]
    assert numbers(small) == [FEATURES["small"][0], FEATURES["small"][-1]]
    assert numbers(base) == FEATURES["base"]


@pytest.mark.parametrize("network", NETWORKS)
def test_the_stride_of_a_network(network: str) -> None:
    [row] = [one for one in table("network | stride") if network in quoted(one[0])]
    token = NetworkSettings().token
    if network == "unetr":
        assert str(token) in row[1] and quoted(row[1]) == ["token"]
        return
    chosen = settled(NetworkSettings(architecture=network), (1, 1, 1))  # type: ignore[arg-type]
    assert total_stride(chosen) == (numbers(row[1])[0],) * 3


# ---------------------------------------------------------------- presets, layouts, commands, settings


def test_every_preset_has_its_row_with_its_values() -> None:
    rows = {quoted(row[0])[0]: row for row in table("name | for | spacing")}
    assert set(rows) == {one.name for one in list_presets()}
    for one in list_presets():
        content = yaml.safe_load(one.path.read_text(encoding="utf-8"))
        _, purpose, spacing, intensities, crop = rows[one.name]
        assert purpose.startswith("plan only" if one.kind == "preset" else "whole run"), one.name
        told = [float(number) for number in spacing.split(" × ")]
        assert (told if len(told) == 3 else told * 3) == content["plan"]["spacing"], one.name
        assert content["plan"]["crop"] == [int(crop.removesuffix("³"))] * 3, one.name
        assert intensities == intensities_of(content["plan"]), one.name


def intensities_of(plan: dict[str, Any]) -> str:
    if plan["normalisation"] == "zscore":
        return "robust z-score"
    low, high = (f"{number:g}".replace("-", "−") for number in plan["window"])
    return f"{low}…{high} HU"


def test_every_layout_has_its_row() -> None:
    told = [row[0].replace("`", "").replace(" + ", " and ").replace(" v2", "") for row in table("layout | how")]
    assert set(told) == {*(layout.title for layout in _LAYOUTS), "plain folder", "list"}


def test_every_command_has_its_row() -> None:
    told: list[str] = []
    for name in names("command | what it does"):
        # The second and later ones of a group leave out its name.
        told.append(f"model {name}" if f"model {name}" in COMMANDS and name not in COMMANDS else name)
    assert sorted(told) == sorted(COMMANDS)


def test_settings_of_fine_tuning_exist() -> None:
    known = {one.name for one in dataclasses.fields(FinetuningSettings)}
    assert set(names("setting | what it does")) <= known


def test_what_a_study_compares_exists() -> None:
    known = {one.name for one in dataclasses.fields(StudySettings)}
    assert set(names("`--study.…`")) <= known


# ---------------------------------------------------------------- panels


@pytest.mark.parametrize(
    ("module", "section"),
    [("HybridMIMTraining", "### HybridMIM Training"), ("HybridMIMSegmentation", "### HybridMIM Segmentation")],
)
def test_the_sections_of_the_panels(module: str, section: str) -> None:
    file = REPOSITORY / module / "Resources" / "UI" / f"{module}.ui"
    buttons = [one for one in ElementTree.parse(file).iter("widget") if one.attrib["class"] == "ctkCollapsibleButton"]
    shown = {str(one.findtext("property[@name='text']/string")) for one in buttons}
    text = README.partition(f"\n{section}\n")[2].partition("\n## ")[0].partition("\n### ")[0]
    rows = re.findall(r"^\| (.+?) \| .+ \|$", text, re.MULTILINE)
    told = {re.sub(r"\[(.+?)\]\(.+?\)", r"\1", row) for row in rows}
    assert shown - {"Log"} <= told


# ---------------------------------------------------------------- what is written, and how it goes


def test_everything_in_the_workspace_is_told_of() -> None:
    """Each place in the code that names something in the workspace."""
    code = "\n".join(file.read_text(encoding="utf-8") for file in LIBRARY.rglob("*.py"))
    written = set(re.findall(r'workspace\(\) / "([^"]+)"', code))
    notes = re.findall(r'^NAME = "(.+)"$', (LIBRARY / "machine_notes.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(re.findall(r"workspace\(\) / (?!\")\w+", code)) == 1, "what is its name?"
    told = {name.rstrip("/") for name in names("in the workspace")}
    assert told == written | set(notes) and len(told) >= 9


def test_the_folder_of_the_workspace_is_the_one_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYBRIDMIM_WORKSPACE")
    assert workspace() == Path.home() / "HybridMIM" and "`~/HybridMIM`" in README
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", "other")
    assert workspace() == Path("other")


def test_slicers_settings_are_all_under_one_name() -> None:
    """What is noted there is told of as ``HybridMIM``."""
    code = "\n".join(file.read_text(encoding="utf-8") for file in LIBRARY.rglob("*.py"))
    keys = re.findall(r"QSettings\(\)\.(?:setValue|value)\((_\w+)", code)
    for key in set(keys):
        assert re.search(rf'{key}\b.*= .*"HybridMIM/', code), key
    for module in ("HybridMIMTraining", "HybridMIMSegmentation"):
        for file in (REPOSITORY / module).rglob("*.ui"):
            found = ElementTree.parse(file).iterfind(".//property[@name='settingKey']/string")
            assert all(str(one.text).startswith("HybridMIM/") for one in found), file


def test_buttons_that_remove_are_there() -> None:
    shown = "\n".join(file.read_text(encoding="utf-8") for file in REPOSITORY.glob("HybridMIM*/**/*.ui"))
    for words in ("Remove…", "Delete…", "Install…"):
        assert f">{words}<" in shown


# ---------------------------------------------------------------- the way in


def test_the_install_section_is_honest_and_its_folders_exist() -> None:
    text = README.partition("### Install\n")[2].partition("\n### ")[0]
    assert "not in Slicer's Extensions Index yet" in text
    for folder in ("HybridMIMTraining", "HybridMIMSegmentation"):
        assert f"`{folder}`" in text and (REPOSITORY / folder / f"{folder}.py").is_file()
    assert "PyTorch" in text and 'set(EXTENSION_DEPENDS "PyTorch")' in text_of("CMakeLists.txt")


@pytest.mark.parametrize("module", ["HybridMIMTraining", "HybridMIMSegmentation"])
def test_the_help_of_the_modules_links_to_pages_that_are_there(module: str) -> None:
    code = text_of(f"{module}/{module}.py")
    [pages] = re.findall(r'^PAGES = "(.+)"$', code, re.MULTILINE)
    [home] = re.findall(r'EXTENSION_HOMEPAGE "(.+)"\)', text_of("CMakeLists.txt"))
    assert pages.startswith(f"{home}/blob/main/")
    linked = re.findall(r"\{pages\}/([\w.]+)", code)
    assert {"glossary.md", "tutorial.md"} <= set(linked)
    for name in linked:
        assert (REPOSITORY / pages.removeprefix(f"{home}/blob/main/") / name).is_file()
