"""Regions the whole way: train, validate, segment, evaluate, plain MONAI; and coarser heads in a whole run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from small_runs import TINY, write_blobs

from HybridMIMLib import demo, evaluate, finetune, segment
from HybridMIMLib.cli import main
from HybridMIMLib.config import make_run
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.layouts import open_dataset
from HybridMIMLib.data.model_description import read_description
from HybridMIMLib.data.scans import read_label_map, write_label_map, write_nifti
from HybridMIMLib.errors import LabelError, SettingsError
from HybridMIMLib.files import read_json
from HybridMIMLib.finetuning.run import _Finetuning, check_labelled
from HybridMIMLib.finetuning.targets import RegionTarget
from HybridMIMLib.model_package import CONFIG, load_model

GRID = Grid((20, 18, 16), np.array([[-1.0, 0, 0, 20], [0, 1.1, 0, 3], [0, 0, 1.2, -4], [0, 0, 0, 1]]))
REGIONS = {"WT": {1, 2, 4}, "TC": {1, 4}, "ET": {4}}
DEEP = {"features": [4, 6, 8], "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2]]}
"""A network with a coarser stage in its decoder, on which slices are as thick as on the scan."""


def tuned(network: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Settings of a tiny fine-tuning."""
    return {**TINY, **({"network": network} if network else {}), "finetuning": {**TINY["finetuning"], **changes}}


def write_brats(folder: Path, count: int = 4) -> Path:
    """BraTS 2020: enhancing tumour in the core in the edema, each seen in sequences of its own, here and there."""
    places = np.stack(np.meshgrid(*(np.arange(n) for n in GRID.shape), indexing="ij"), axis=-1)
    for number in range(1, count + 1):
        random = np.random.default_rng(number)
        centre = np.array(GRID.shape) / 2 + random.uniform(-2, 2, 3)
        distance = np.linalg.norm(places - centre, axis=-1)
        label = np.select([distance < 3, distance < 4.5, distance < 6.5], [4, 1, 2]).astype(np.uint8)
        name = f"BraTS20_Training_{number:03d}"
        (folder / name).mkdir(parents=True, exist_ok=True)
        for kind, seen in (("t1", {1}), ("t1ce", {4}), ("t2", {1, 2, 4}), ("flair", {2})):
            image = 100 + 60 * np.isin(label, list(seen)) + random.normal(0, 10, label.shape)
            write_nifti(folder / name / f"{name}_{kind}.nii.gz", image.astype(np.float32), GRID)
        write_label_map(folder / name / f"{name}_seg.nii.gz", label, GRID)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Path]:
    """The cases, what a training on their regions returned, and its run folder; to read and not to change."""
    folder = tmp_path_factory.mktemp("regions")
    cases = write_brats(folder / "brats")
    settings = tuned(DEEP, target="regions", deep_supervision=1, steps=60, learning_rate=0.02, validate_every=20)
    return cases, finetune(labelled=str(cases), output=str(folder / "run"), **settings), folder / "run"


def segmented(trained: tuple[Path, dict[str, Any], Path], output: Path) -> Path:
    """The held-out case, segmented as a user does it."""
    cases, result, run = trained
    (held_out,) = read_json(run / "split.json")["validation"]
    scans = output / "scans"
    scans.mkdir(parents=True)
    (scans / held_out).symlink_to(cases / held_out)
    segment(model=result["model"], scans=str(scans), output=str(output / "out"))
    return output / "out"


def test_the_package_has_one_output_a_region_and_the_labels_of_the_data_set(
    trained: tuple[Path, dict[str, Any], Path],
) -> None:
    _, result, _ = trained
    description = read_description(Path(result["model"]))
    assert description.overlapping
    assert [(one.name, one.label) for one in description.classes] == [("WT", 2), ("TC", 1), ("ET", 4)]
    package = load_model(result["model"])
    assert package.network.head.out_channels == 3
    outputs = read_json(Path(result["model"]) / "configs" / "metadata.json")["network_data_format"]["outputs"]["pred"]
    assert outputs["num_channels"] == 3 and outputs["channel_def"] == {"0": "WT", "1": "TC", "2": "ET"}


def test_it_learns_and_is_judged_by_its_regions(trained: tuple[Path, dict[str, Any], Path]) -> None:
    scores = trained[1]["validation"]
    assert set(scores) == {"necrotic and non-enhancing tumor core", "edema", "enhancing tumor", *REGIONS, "mean"}
    assert scores["mean"] == pytest.approx(np.mean([scores[name] for name in REGIONS]))
    assert min(scores[name] for name in REGIONS) > 0.6, scores
    assert scores["ET"] == scores["enhancing tumor"]


def test_segmented_and_evaluated_it_has_the_dice_of_the_validation(
    trained: tuple[Path, dict[str, Any], Path], tmp_path: Path
) -> None:
    _, result, _ = trained
    out = segmented(trained, tmp_path)
    (labels,) = (out / "labels").iterdir()
    found = read_label_map(labels).array
    assert set(np.unique(found)) <= {0, 1, 2, 4}
    # The label map is what the masks of the regions come to, painted from the outside in.
    masks = {path.name.split("-")[1].split(".")[0]: read_label_map(path).array for path in out.glob("layers/*/*")}
    painted = np.zeros_like(found)
    for name, label in (("WT", 2), ("TC", 1), ("ET", 4)):
        painted[masks[name] > 0] = label
    np.testing.assert_array_equal(found, painted)
    measured = evaluate(
        references=str(tmp_path / "scans"), predictions=str(out / "labels"), output=str(tmp_path / "e")
    )
    dice = {one["name"]: one["figures"]["dice"]["mean"] for one in measured["classes"]}
    assert {name: dice[name] for name in dice} == pytest.approx({k: result["validation"][k] for k in dice})
    assert set(REGIONS) <= set(dice)


def test_plain_monai_gives_the_same_label_map(trained: tuple[Path, dict[str, Any], Path], tmp_path: Path) -> None:
    cases, result, run = trained
    out = segmented(trained, tmp_path)
    (held_out,) = read_json(run / "split.json")["validation"]
    config = ConfigParser.load_config_file(str(Path(result["model"]) / CONFIG))
    names = [str(cases / held_out / f"{held_out}_{kind}.nii.gz") for kind in ("t1", "t1ce", "t2", "flair")]
    config |= {"bundle_root": result["model"], "datalist": [names], "output_dir": str(tmp_path / "monai")}
    parser = ConfigParser(config)
    parser.parse()
    parser.get_parsed_content("initialize#0")
    parser.get_parsed_content("run#0")
    (theirs,) = (tmp_path / "monai").iterdir()
    (ours,) = (out / "labels").iterdir()
    one, other = read_label_map(ours).array, read_label_map(theirs).array
    assert (one != other).mean() < 1e-3 and one.any()


def test_the_checkpoint_is_chosen_by_the_regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it by the classes, the first would be kept."""
    rows = {3: {"edema": 0.9, "WT": 0.1}, 6: {"edema": 0.0, "WT": 0.5}}
    now = {"step": 0}
    validate = _Finetuning.validate

    def validating(self: _Finetuning, step: int) -> dict[str, float]:
        now["step"] = step
        return validate(self, step)

    monkeypatch.setattr(_Finetuning, "validate", validating)
    others = dict.fromkeys(("TC", "ET"), 0.2)
    monkeypatch.setattr(_Finetuning, "_dice", lambda self, facts: {**rows[now["step"]], **others})
    cases = write_brats(tmp_path / "brats", 3)
    result = finetune(labelled=str(cases), output=str(tmp_path / "run"), **tuned(target="regions"))
    assert result["step"] == 6 and result["validation"]["mean"] == pytest.approx(0.3)


# --- what cannot be -----------------------------------------------------------------------------------------


def test_what_cannot_be_learnt_is_told_before_hours_are_spent(blobs: Path, tmp_path: Path) -> None:
    cases = blobs / "labelled"
    with pytest.raises(SettingsError, match="names no region of several labels"):
        finetune(labelled=str(cases), output=str(tmp_path / "a"), **tuned(target="regions"))
    with pytest.raises(SettingsError, match="has one stage alone"):
        finetune(labelled=str(cases), output=str(tmp_path / "b"), **tuned(deep_supervision=1))
    assert not (tmp_path / "b" / "store").exists()
    for settings in (tuned(target="regions"), tuned(deep_supervision=-1)):
        with pytest.raises(SettingsError):
            check_labelled(make_run(None, {"labelled": str(cases), **settings}), open_dataset(cases, labelled=True))


def test_a_region_whose_labels_nobody_annotated_together_is_refused(tmp_path: Path) -> None:
    cases = write_blobs(tmp_path / "cases", 4, labelled=True)
    (cases / "classes.json").write_text(json.dumps({"Bright": 1, "Dark": 2, "Either": [1, 2]}))
    rows = [f"images/blob_{n}.nii.gz,labels/blob_{n}.nii.gz,{('Bright', 'Dark')[n % 2]}" for n in range(4)]
    (cases / "cases.csv").write_text("\n".join(["image,label,annotated", *rows]))
    for number in range(4):
        file = cases / "labels" / f"blob_{number}.nii.gz"
        label = read_label_map(file)
        write_label_map(file, np.where(label.array == 1 + number % 2, label.array, 0).astype(np.uint8), label.grid)
    settings = tuned(target="regions")
    with pytest.raises(LabelError, match=r"region Either \(1, 2\) are annotated together in none of the 3 scans"):
        finetune(labelled=str(cases / "cases.csv"), output=str(tmp_path / "run"), **settings)


def test_an_unknown_region_does_not_count_in_the_validation(tmp_path: Path) -> None:
    cases = write_blobs(tmp_path / "cases", 4, labelled=True)
    (cases / "classes.json").write_text(json.dumps({"Bright": 1, "Dark": 2, "Either": [1, 2]}))
    rows = [f"images/blob_{n}.nii.gz,labels/blob_{n}.nii.gz,{'Dark' if n == 3 else ''}" for n in range(4)]
    (cases / "cases.csv").write_text("\n".join(["image,label,annotated", *rows]))
    file = cases / "labels" / "blob_3.nii.gz"
    label = read_label_map(file)
    write_label_map(file, np.where(label.array == 2, 2, 0).astype(np.uint8), label.grid)
    split = tmp_path / "s.json"
    split.write_text(json.dumps({"training": ["blob_0", "blob_1", "blob_2"], "validation": ["blob_3"]}))
    settings = tuned(target="regions", validation_cases=-1, split=str(split), steps=30, learning_rate=0.02)
    scores = finetune(labelled=str(cases / "cases.csv"), output=str(tmp_path / "run"), **settings)["validation"]
    assert np.isnan(scores["Either"]) and np.isnan(scores["Bright"])
    assert scores["mean"] == scores["Dark"], "trained as a region of its own, and known"


def test_what_was_not_annotated_reaches_the_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = write_blobs(tmp_path / "cases", 3, labelled=True)
    names = {"Bright": 1, "Dark": 2, "Either": [1, 2], "partially_labelled": True}
    (cases / "classes.json").write_text(json.dumps(names))
    file = cases / "labels" / "blob_1.nii.gz"
    label = read_label_map(file)
    write_label_map(file, np.where(label.array == 2, 2, 0).astype(np.uint8), label.grid)
    split = tmp_path / "s.json"
    split.write_text(json.dumps({"training": ["blob_0", "blob_1"], "validation": ["blob_2"]}))
    seen = []
    counted = RegionTarget.counted

    def kept(self: RegionTarget, annotated: torch.Tensor) -> torch.Tensor:
        seen.append(counted(self, annotated))
        return seen[-1]

    monkeypatch.setattr(RegionTarget, "counted", kept)
    settings = tuned(target="regions", validation_cases=-1, split=str(split), steps=3)
    finetune(labelled=str(cases), output=str(tmp_path / "run"), **settings)
    assert len(seen) == 3
    # Either and Dark, in a batch of a case with both and one without Bright.
    assert all(sorted(one.tolist()) == [[False, True], [True, True]] for one in seen)


# --- deep supervision ---------------------------------------------------------------------------------------


def interrupted(at: int) -> Callable[[_Finetuning, int], dict[str, torch.Tensor]]:
    losses = _Finetuning.losses

    def killed(self: _Finetuning, step: int) -> dict[str, torch.Tensor]:
        if step == at:
            raise KeyboardInterrupt
        return losses(self, step)

    return killed


@pytest.mark.parametrize("target", ["classes", "regions"])
def test_killed_with_coarse_heads_it_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Thick slices, partial annotations."""
    cases = write_blobs(tmp_path / "cases", 4, labelled=True)
    names = {"Bright": 1, "Dark": 2, "Either": [1, 2], "partially_labelled": True}
    (cases / "classes.json").write_text(json.dumps(names))
    file = cases / "labels" / "blob_1.nii.gz"
    label = read_label_map(file)
    write_label_map(file, np.where(label.array == 1, 1, 0).astype(np.uint8), label.grid)
    settings = tuned(DEEP, target=target, deep_supervision=-1, steps=8, checkpoint_every=3)
    whole = finetune(labelled=str(cases), output=str(tmp_path / "whole"), **settings)
    with monkeypatch.context() as patch:
        patch.setattr(_Finetuning, "losses", interrupted(6))
        with pytest.raises(KeyboardInterrupt):
            finetune(labelled=str(cases), output=str(tmp_path / "killed"), **settings)
    state = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)
    assert {"coarse_heads.0.weight", "coarse_heads.0.bias"} <= set(state["module"])
    killed = finetune(labelled=str(cases), output=str(tmp_path / "killed"), **settings)
    one, other = (Path(result["model"]) / "models" / "model.safetensors" for result in (whole, killed))
    assert one.read_bytes() == other.read_bytes()
    # Nothing of the heads is handed on, and they did teach.
    plain = finetune(labelled=str(cases), output=str(tmp_path / "plain"), **tuned(DEEP, target=target, steps=8))
    mine, theirs = (load_model(result["model"]).network.monai_state() for result in (whole, plain))
    assert list(mine) == list(theirs) and any(not torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_demo_measures_a_model_of_regions_in_regions(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.run", lambda *given, **more: type("", (), {"returncode": 1, "stderr": b"no"})())
    cases = write_blobs(tmp_path / "cases", 5, labelled=True)
    (cases / "classes.json").write_text(json.dumps({"Bright": 1, "Dark": 2, "Either": [1, 2]}))
    settings = tuned(target="regions", steps=30, learning_rate=0.02)
    result = demo(unlabelled=str(blobs / "unlabelled"), labelled=str(cases), output=str(tmp_path / "d"), **settings)
    assert list(result["dice"]) == ["Bright", "Dark", "Either", "mean"]
    assert result["dice"]["mean"] == pytest.approx((result["dice"]["Either"] + result["dice"]["Dark"]) / 2)
    assert result["dice"]["Bright"] > 0.3, "what is left of the region without Dark"


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = write_brats(tmp_path / "brats", 3)
    options = [f"--{name}.{key}={value}" for name, section in tuned(DEEP).items() for key, value in section.items()]
    options += ["--finetuning.target=regions", "--finetuning.deep_supervision=1", "--finetuning.steps=2"]
    assert main(["finetune", f"--labelled={cases}", f"--output={tmp_path / 'run'}", *options]) in (0, 3)
    assert "WT" in capsys.readouterr().out
    assert main(["finetune", f"--labelled={cases}", f"--output={tmp_path / 'b'}", *options,
                 "--finetuning.deep_supervision=7"]) == 2  # fmt: skip
    assert "Give a number from 0 (none) to 1" in capsys.readouterr().err
