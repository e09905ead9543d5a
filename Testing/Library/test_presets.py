"""Presets and recipes: found by name, stacked, and each run for a few steps on a generated set in its layout."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from small_runs import TINY, hybridmim

from HybridMIMLib.architectures import check_sizes, settled, total_stride
from HybridMIMLib.cli import main, parse
from HybridMIMLib.config import Run, from_dict, make_run, to_dict
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.layouts.btcv import ORGANS
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.scans import write_label_map, write_nifti
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.files import read_json, write_json
from HybridMIMLib.information import info
from HybridMIMLib.presets import PRESETS, config_path, list_presets
from HybridMIMLib.runs import load_settings, save_settings

NAMES = [preset.name for preset in list_presets()]
RECIPES = [preset.name for preset in list_presets() if preset.kind == "recipe"]


def test_those_that_were_promised_are_there() -> None:
    kinds = {kind: {one.name for one in list_presets() if one.kind == kind} for kind in ("preset", "recipe")}
    assert kinds["preset"] == {"ct-abdomen", "ct-chest", "mr-brain"}
    assert kinds["recipe"] == {"btcv", "brats2020", "msd-liver", "msd-spleen"}
    assert len(NAMES) == 7 and all(one.summary for one in list_presets())


@pytest.mark.parametrize("name", NAMES)
def test_each_loads_and_sets_what_its_kind_promises(name: str) -> None:
    file = config_path(name)
    content, text = yaml.safe_load(file.read_text(encoding="utf-8")), file.read_text(encoding="utf-8")
    sections = {"plan"} if name not in RECIPES else {"plan", "network", "pretraining", "finetuning", "inference"}
    assert set(content) == sections
    assert {"spacing", "normalisation", "crop", "patch", "region"} <= set(content["plan"])
    assert ("window" in content["plan"]) == (content["plan"]["normalisation"] == "window")
    assert load_settings(file) == from_dict(content)
    # Whatever is said has a source: the head of the file, or a comment above or behind the value.
    assert "https://" not in text and re.search("MONAI|SyntheticTumors", text)


def test_msd_liver_cites_no_setting_that_its_source_does_not_use() -> None:
    lines = config_path("msd-liver").read_text(encoding="utf-8").split("finetuning:")[1].splitlines()
    ours = {line.split(":")[0].strip() for line in lines if line.endswith("# our choice")}
    assert ours == {"steps", "warmup_steps", "validate_every"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_together(name: str) -> None:
    """Crop, box and network: what would end a run only after its scans were prepared."""
    from HybridMIMLib.pretraining.choice import box_size
    from HybridMIMLib.pretraining.masking import PatchGrid

    run = load_settings(config_path(name))
    plan = run.plan
    assert plan.spacing and plan.crop and plan.patch and plan.region
    crop, patch, region = ((s[0], s[1], s[2]) for s in (plan.crop, plan.patch, plan.region))
    network = settled(run.network, plan.spacing)
    assert network.features == [64, 64, 128, 256, 512] and total_stride(network) == (8, 8, 8)
    check_sizes(network, crop, patch, region)
    box = box_size(PatchGrid(crop, patch, region), run.pretraining, total_stride(network))
    assert all(0.6 * c <= b <= 0.7 * c for b, c in zip(box, crop))


@pytest.mark.parametrize(
    ("name", "spacing", "window", "crop"),
    [
        ("btcv", [1.5, 1.5, 2.0], [-175, 250], 96),
        ("ct-abdomen", [1.5, 1.5, 2.0], [-175, 250], 96),
        ("msd-spleen", [1.5, 1.5, 2.0], [-57, 164], 96),
        ("msd-liver", [1.0, 1.0, 1.0], [-21, 189], 96),
        ("brats2020", [1.0, 1.0, 1.0], None, 128),
    ],
)
def test_the_values_are_those_that_the_community_uses(
    name: str, spacing: list[float], window: list[float] | None, crop: int
) -> None:
    plan = load_settings(config_path(name)).plan
    assert plan.spacing == spacing and plan.crop == [crop] * 3
    assert plan.window == window if window else plan.normalisation == "zscore"


# --- by name ---------------------------------------------------------------------------------------------------


def test_a_name_is_taken_like_a_file() -> None:
    assert parse("train", ["--config", "btcv"]) == load_settings(PRESETS / "btcv.yaml")
    assert (
        parse("train", ["--config", "BTCV"])
        == parse("train", ["--config", "Btcv"])
        == load_settings(PRESETS / "btcv.yaml")
    )
    assert parse("train", ["--config=btcv"]) == load_settings(PRESETS / "btcv.yaml")
    assert parse("demo", ["--config", "ct-chest"]).pretraining.steps == 100, "the demo's own defaults stay"


def test_several_are_stacked_and_options_win_over_all(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("plan:\n  window: [-100, 100]\npretraining:\n  steps: 7\n")
    run = parse("pretrain", ["--plan.crop=[64,64,64]", "--config", "btcv", f"--config={mine}", "--seed=3"])
    recipe = load_settings(config_path("btcv"))
    assert run.plan.window == [-100, 100] and run.pretraining.steps == 7 and run.seed == 3
    assert run.plan.crop == [64, 64, 64] and run.plan.spacing == recipe.plan.spacing
    assert run.finetuning == recipe.finetuning
    other_way = parse("pretrain", ["--config", str(mine), "--config", "btcv"])
    assert other_way.plan.window == [-175, 250] and other_way.pretraining.steps == 100000


def test_a_preset_over_a_recipe_changes_the_plan_alone() -> None:
    run, recipe = parse("train", ["--config", "btcv", "--config", "ct-chest"]), load_settings(config_path("btcv"))
    assert run.plan == load_settings(config_path("ct-chest")).plan
    assert (run.network, run.pretraining, run.finetuning) == (recipe.network, recipe.pretraining, recipe.finetuning)


def test_a_file_wins_over_a_name_and_a_folder_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "btcv").mkdir()
    assert config_path("btcv") == PRESETS / "btcv.yaml"
    (tmp_path / "msd-liver").write_text("seed: 5\n")
    assert parse("train", ["--config", "msd-liver"]).seed == 5


@pytest.mark.parametrize("text", ["btvc", "missing.yaml", "../presets", "btcv.yaml", ""])
def test_an_unknown_name_lists_the_known_ones(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match="ct-abdomen, ct-chest, mr-brain.*brats2020, btcv, msd-liver, msd-spleen"):
        config_path(text)
    assert main(["pretrain", "--config", text]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --config") and said.count("\n") == 1 and text in said


def test_info_knows_them() -> None:
    assert [one["name"] for one in info()["presets"]] == NAMES
    assert hybridmim("info").returncode == 0


def test_the_plan_of_a_run_goes_back_in_as_a_config(tmp_path: Path) -> None:
    from HybridMIMLib.data.plan import plan_yaml

    plan = Plan(1, (0.8, 0.8, 5.0), "zscore", (-1000.0, 1000.0), (64, 64, 16), (16, 16, 8), (32, 32, 16))
    (tmp_path / "plan.yaml").write_text(plan_yaml(plan))
    run = parse("pretrain", ["--config", "mr-brain", "--config", str(tmp_path / "plan.yaml")])
    assert run.plan.spacing == [0.8, 0.8, 5.0] and run.plan.crop == [64, 64, 16] and run.plan.region == [32, 32, 16]


def test_a_run_with_a_recipe_saves_all_of_it(tmp_path: Path) -> None:
    run = parse("train", ["--config", "msd-spleen", "--seed", "4"])
    save_settings(tmp_path / "run.yaml", run)
    assert to_dict(load_settings(tmp_path / "run.yaml")) == to_dict(run)


# --- a few steps of each ----------------------------------------------------------------------------------------

TINY_PLAN = {"spacing": [2.0, 2.0, 2.0], **TINY["plan"]}


def overridden(name: str) -> Run:
    """The preset or recipe with tiny sizes and steps; everything else as it stands in the file."""
    given = to_dict(load_settings(config_path(name)))
    tiny: dict[str, Any] = {**TINY, "plan": TINY_PLAN}
    tiny["pretraining"] = {**TINY["pretraining"], "steps": 3, "batch": 2, "box": [8, 8, 8]}
    tiny["finetuning"] = {**TINY["finetuning"], "steps": 3}
    return from_dict({**given, **{section: {**given[section], **values} for section, values in tiny.items()}})


def organs(index: int, labels: list[int], size: int = 40) -> tuple[np.ndarray, np.ndarray, Grid]:
    """A CT-like body (HU) with a ball for each label, its label map, and a grid of 1 mm."""
    random = np.random.default_rng(index)
    places = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), axis=-1)
    body = np.linalg.norm(places - size / 2 + 0.5, axis=-1) < 0.48 * size
    label = np.zeros((size,) * 3, np.uint8)
    cells = [np.array(place) for place in np.ndindex(3, 3, 3)]
    for value, cell in zip(labels, cells):
        label[np.linalg.norm(places - (cell * 12 + 8 + random.uniform(-1, 1, 3)), axis=-1) < 4] = value
    image = np.where(body | (label > 0), 20 + 12.0 * label, -1000) + random.normal(0, 8, label.shape)
    return image.astype(np.int16), label, Grid((size,) * 3, np.eye(4))


def write_btcv(folder: Path) -> None:
    """``img0001`` … in ``img/``, ``label0001`` … in ``label/``, with all 13 organs."""
    for index in range(1, 4):
        image, label, grid = organs(index, list(range(1, 14)))
        for part in ("img", "label"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        write_nifti(folder / "img" / f"img{index:04}.nii.gz", image, grid)
        write_label_map(folder / "label" / f"label{index:04}.nii.gz", label, grid)


def write_brats(folder: Path) -> None:
    """A folder a case with four sequences of unlike scales, and labels 1, 2, 4."""
    for index in range(1, 4):
        case = f"BraTS20_Training_{index:03}"
        (folder / case).mkdir(parents=True, exist_ok=True)
        image, label, grid = organs(index, [1, 2, 4])
        brain = np.where(image < -500, 0, image.astype(np.float32) + 200)
        for sequence, scale in (("t1", 1), ("t1ce", 3.5), ("t2", 0.02), ("flair", 5000)):
            write_nifti(folder / case / f"{case}_{sequence}.nii.gz", (brain * scale).astype(np.float32), grid)
        write_label_map(folder / case / f"{case}_seg.nii.gz", label, grid)


def write_msd(folder: Path, name: str, classes: list[str]) -> None:
    """``imagesTr``, ``labelsTr`` and ``dataset.json``."""
    labels = list(range(1, len(classes) + 1))
    training = []
    for index in range(1, 4):
        image, label, grid = organs(index, labels)
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        write_nifti(folder / "imagesTr" / f"{name}_{index}.nii.gz", image, grid)
        write_label_map(folder / "labelsTr" / f"{name}_{index}.nii.gz", label, grid)
        training.append({part[:5]: f"./{part}sTr/{name}_{index}.nii.gz" for part in ("image", "label")})
    names = {"0": "background", **{str(label): one for label, one in zip(labels, classes)}}
    write_json(folder / "dataset.json", {"labels": names, "modality": {"0": "CT"}, "training": training, "test": []})


def write_set(recipe: str, folder: Path) -> set[str]:
    """A generated set in the layout of a recipe; returns what is scored on it."""
    if recipe == "btcv":
        write_btcv(folder)
        return {*ORGANS, "mean"}
    if recipe == "brats2020":
        write_brats(folder)
        tumours = {"necrotic and non-enhancing tumor core", "edema", "enhancing tumor"}
        return {*tumours, "WT", "TC", "ET", "mean"}
    classes = ["liver", "cancer"] if recipe == "msd-liver" else ["spleen"]
    write_msd(folder, recipe, classes)
    return {*classes, "mean"}


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_prepares_pretrains_and_finetunes_on_a_set_in_its_layout(name: str, tmp_path: Path) -> None:
    from HybridMIMLib import train

    folder = tmp_path / name
    scored = write_set(name, folder)
    given = {"unlabelled": str(folder), "labelled": str(folder), "output": str(tmp_path / "run")}
    result = train(make_run(overridden(name), given))
    assert Path(result["model"]).is_dir() and set(result["validation"]) == scored
    # Three steps teach nothing; any other warning would be about the set or the recipe.
    assert all("was not found in any validation scan" in warning for warning in result["warnings"])
    recipe = load_settings(config_path(name)).plan
    plan = Plan.from_json(read_json(tmp_path / "run" / "pre-training" / "plan.json"))
    assert plan.normalisation == recipe.normalisation and plan.channels == (4 if name == "brats2020" else 1)
    assert plan.normalisation == "zscore" or list(plan.window) == recipe.window


def test_a_recipe_from_the_command_line_with_a_file_over_it(tmp_path: Path) -> None:
    scored = write_set("msd-spleen", tmp_path / "set")
    tiny = to_dict(overridden("msd-spleen"))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({name: tiny[name] for name in (*TINY, "inference")}))
    command = ["finetune", "--config", "msd-spleen", "--config", str(tmp_path / "tiny.yaml")]
    code = main([*command, f"--labelled={tmp_path / 'set'}", f"--output={tmp_path / 'run'}", "--finetuning.steps=2"])
    assert code == 0
    saved, recipe = load_settings(tmp_path / "run" / "run.yaml"), load_settings(config_path("msd-spleen"))
    assert saved.finetuning.steps == 2 and saved.plan.window == recipe.plan.window
    assert saved.finetuning.foreground_share == recipe.finetuning.foreground_share
    assert set(read_json(tmp_path / "run" / "result.json")["validation"]) == scored


@pytest.mark.parametrize("name", [name for name in NAMES if name not in RECIPES])
def test_each_preset_pretrains_a_few_steps(name: str, tmp_path: Path) -> None:
    from HybridMIMLib import pretrain

    for index in range(3):
        image, _, grid = organs(index, list(range(1, 20)))
        image = image if name != "mr-brain" else (np.maximum(image, -200) + 200) * 10**index
        write_nifti(tmp_path / "scans" / f"scan_{index}.nii.gz", image.astype(np.float32), grid)
    run = make_run(overridden(name), {"unlabelled": str(tmp_path / "scans"), "output": str(tmp_path / "run")})
    result = pretrain(run)
    assert Path(result["weights"]).is_file() and not result["warnings"]
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["normalisation"] == load_settings(config_path(name)).plan.normalisation
