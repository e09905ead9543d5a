"""Packages of several networks: the same checks for each member, and used like any other model."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_packages import CLASSES, SMALL_PLAN, edit_json, entries_of, make_package, rehash, write_zip
from small_runs import write_blobs

from HybridMIMLib import add_model, ensemble_models, list_models, pack_model, remove_model, segment
from HybridMIMLib.cli import main
from HybridMIMLib.data.clean_up import CleanUp
from HybridMIMLib.data.model_description import METADATA, MOST_MEMBERS, WEIGHTS, read_description, weights_files
from HybridMIMLib.data.model_store import add
from HybridMIMLib.data.package_check import check_package
from HybridMIMLib.data.scans import read_label_map, read_scan
from HybridMIMLib.errors import ModelError, SettingsError
from HybridMIMLib.model_package import CONFIG, README, ModelPackage, check_shapes, ensemble_of, load_model
from HybridMIMLib.networks.ensemble import Ensemble, members_of
from HybridMIMLib.settings.finetuning import MOST_FOLDS
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.slicer_side.models import describe

THREE = NetworkSettings(features=[4, 8, 8])


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path / "ws"))
    return tmp_path / "ws"


def one(number: int = 0, settings: NetworkSettings | None = None, **others: Any) -> ModelPackage:
    """A package with weights of its own."""
    package = make_package(settings, **others)
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in package.network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return replace(package, provenance={"seed": number})


def several(count: int = 3, settings: NetworkSettings | None = None, **others: Any) -> ModelPackage:
    return ensemble_of([one(n, settings, **others) for n in range(count)], "Léber und Milz", {"seed": 5})


def test_round_trip_gives_the_mean_of_the_members(unicode_folder: Path) -> None:
    members = [one(n) for n in range(3)]
    ensemble_of(members, "Drei", {"seed": 5}).save(unicode_folder / "model")
    loaded = load_model(unicode_folder / "model")
    assert isinstance(loaded.network, Ensemble) and not loaded.network.training
    assert (loaded.name, loaded.plan, loaded.classes) == ("Drei", SMALL_PLAN, CLASSES)
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        mean = sum(member.network(x) for member in members) / 3
        torch.testing.assert_close(loaded.network(x), mean)
    for member, kept in zip(members, members_of(loaded.network)):
        own = kept.state_dict()
        assert all(torch.equal(tensor, own[name]) for name, tensor in member.network.state_dict().items())


def test_a_folder_and_its_zip_are_one_model(tmp_path: Path) -> None:
    several().save(tmp_path / "model")
    file = write_zip(tmp_path / "a.zip", entries_of(tmp_path / "model", "top/"))
    assert check_package(file).digest == check_package(tmp_path / "model").digest == load_model(file).digest
    assert read_description(file) == replace(read_description(tmp_path / "model"), path=file)


def test_what_is_in_a_package_of_one_and_of_several(tmp_path: Path) -> None:
    """A program of before must refuse several, and take one as ever."""
    one(settings=THREE).save(tmp_path / "one")
    several(settings=THREE).save(tmp_path / "three")
    files = {name: {path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*") if path.is_file()}
             for name in ("one", "three")}  # fmt: skip
    assert files["one"] - files["three"] == {WEIGHTS} == set(weights_files(1))
    assert files["three"] - files["one"] == set(weights_files(3))
    ours = {name: json.loads((tmp_path / name / METADATA).read_text())["hybridmim"] for name in files}
    assert (ours["one"]["format"], ours["three"]["format"]) == (3, 4)
    assert "members" not in ours["one"] and ours["three"]["members"] == 3
    config = json.loads((tmp_path / "one" / CONFIG).read_text())
    assert config["network"] == "$@network_def.to(@device)" and "network_defs" not in config
    assert (read_description(tmp_path / "one").members, read_description(tmp_path / "three").members) == (1, 3)


def test_people_read_how_many_there_are(tmp_path: Path) -> None:
    package = several()
    dice = {"Milz": 0.75, "mean": 0.75}
    replace(package, provenance={"folds": 3, "validation_dice": dice}).save(tmp_path / "model")
    text = (tmp_path / "model" / README).read_text(encoding="utf-8")
    assert "an ensemble of 3 networks" in text and "in a cross-validation of 3 folds: Milz 0.750" in text
    assert "3 networks as one" in describe(read_description(tmp_path / "model"))
    one().save(tmp_path / "one")
    assert "ensemble" not in (tmp_path / "one" / README).read_text(encoding="utf-8")
    assert "networks" not in describe(read_description(tmp_path / "one"))


# --- each member is checked -----------------------------------------------------------------------------------------

SECOND = weights_files(3)[1]


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / SECOND).read_bytes())
    content[-1] ^= 1
    (folder / SECOND).write_bytes(content)


def other_shape(folder: Path) -> None:
    tensors = load_file(folder / SECOND)
    name = max(tensors, key=lambda key: tensors[key].numel())
    save_file({**tensors, name: tensors[name][:-1].contiguous()}, folder / SECOND)
    rehash(folder)


def lacks_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / SECOND)
    del tensors[next(iter(tensors))]
    save_file(tensors, folder / SECOND)
    rehash(folder)


def a_pickle(folder: Path) -> None:
    (folder / SECOND).write_bytes(pickle.dumps({"a": 1}))
    rehash(folder)


def a_pickle_beside(folder: Path) -> None:
    (folder / SECOND.with_suffix(".pt")).write_bytes(pickle.dumps({"a": 1}))
    rehash(folder)


def missing(folder: Path) -> None:
    (folder / SECOND).unlink()
    rehash(folder)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (flip_a_bit, r"model_2\.safetensors was changed or damaged"),
        (other_shape, r"model_2\.safetensors: has other shapes"),
        (lacks_a_tensor, r"model_2\.safetensors: has other shapes"),
        (a_pickle, r"model_2\.safetensors is no safetensors file"),
        (a_pickle_beside, r"model_2\.pt, which can run a program"),
        (missing, r"model_2\.safetensors: no such file"),
    ],
)
def test_harm_in_one_member_is_found(tmp_path: Path, harm: Callable[[Path], None], words: str) -> None:
    several().save(tmp_path / "model")
    harm(tmp_path / "model")
    with pytest.raises(ModelError, match=words):
        load_model(tmp_path / "model")
    with pytest.raises(ModelError, match=words):
        add(tmp_path / "model", check_shapes)
    assert not list((tmp_path / "ws" / "models").glob("*"))


@pytest.mark.parametrize("members", [0, 1, -2, 2.0, "3", True, None, [3], MOST_MEMBERS + 1, 10**9])
def test_a_number_of_networks_that_cannot_be_is_damage(tmp_path: Path, members: object) -> None:
    several().save(tmp_path / "model")
    edit_json(tmp_path / "model" / METADATA, lambda content: content["hybridmim"].update(members=members))
    rehash(tmp_path / "model")
    with pytest.raises(ModelError, match="damaged"):
        read_description(tmp_path / "model")


def test_more_networks_than_files_are_missing(tmp_path: Path) -> None:
    several().save(tmp_path / "model")
    edit_json(tmp_path / "model" / METADATA, lambda content: content["hybridmim"].update(members=4))
    rehash(tmp_path / "model")
    with pytest.raises(ModelError, match=r"model_4\.safetensors: no such file"):
        load_model(tmp_path / "model")


def test_as_many_folds_as_a_package_holds() -> None:
    assert MOST_FOLDS == MOST_MEMBERS


def test_what_no_package_holds_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = several()
    size = sum(tensor.nbytes for member in members_of(package.network) for tensor in member.monai_state().values())
    monkeypatch.setattr("HybridMIMLib.model_package.MOST_BYTES", size + 2**24 - 1)
    with pytest.raises(ModelError, match=r"3 network\(s\) are .* GB.*fewer networks"):
        package.save(tmp_path / "model")
    assert not list(tmp_path.glob("*model*"))
    monkeypatch.setattr("HybridMIMLib.model_package.MOST_BYTES", size + 2**24)
    package.save(tmp_path / "model")


# --- what is no ensemble --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"plan": replace(SMALL_PLAN, spacing=(1.0, 1.5, 2.1))}, "the plan"),
        ({"plan": replace(SMALL_PLAN, crop=(32, 16, 16))}, "the plan"),
        ({"classes": (CLASSES[1], CLASSES[0])}, "the classes"),
        ({"classes": (CLASSES[0], replace(CLASSES[1], label=8))}, "the classes"),
        ({"settings": THREE}, "the network"),
        ({"overlapping": True}, "whether classes overlap"),
        ({"clean_up": CleanUp(frozenset({7}))}, "the clean-up"),
        ({"license": "MIT"}, "the licence"),
    ],
)
def test_models_of_another_kind_are_refused(other: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=f"Léber und Milz and Other cannot be one model.*{words}.*one data set"):
        ensemble_of([one(0), one(1), one(2, name="Other", **other)], "x", {})


def test_too_many_are_refused_and_ensembles_are_taken_apart() -> None:
    ensemble = several(3)
    joined = ensemble_of([ensemble, one(9)], "x", {})
    assert len(members_of(joined.network)) == 4
    with pytest.raises(ModelError, match=f"24 networks in one model, and there may be {MOST_MEMBERS}"):
        ensemble_of([ensemble] * 8, "x", {})


def test_flips_are_those_that_all_have_seen() -> None:
    found = ensemble_of([one(0, flip_axes=(0, 2)), one(1, flip_axes=(1, 2)), one(2, flip_axes=(2,))], "x", {})
    assert found.flip_axes == (2,)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    for n in range(3):
        # "null" and a blank: nothing that YAML would take for something else.
        one(n, THREE).save(tmp_path / "a b" / f"null {n}")
    return [str(tmp_path / "a b" / f"null {n}") for n in range(3)]


def test_from_models_to_label_maps(models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "three.zip"
    assert main(["model", "ensemble", *models, "--output", str(file), "--name", "Three", "--license=MIT"]) == 0
    said = capsys.readouterr().out
    assert "networks     3" in said and "in_monai     yes" in said
    assert main(["model", "add", "--model", str(file)]) == 0
    (row,) = [row for row in list_models()["models"] if row["added"]]
    assert row["name"] == "Three" and row["classes"] == ["Léber", "Milz"]
    blobs = write_blobs(tmp_path / "scans", 1, labelled=False)
    result = segment(scans=str(blobs), model="Three", output=str(tmp_path / "out"), inference={"skip_air": False})
    (labels,) = result["labels"].values()
    # The members on their own do not agree, and the mean of their scores says what the package does.
    scan = read_scan(blobs / "images" / "blob_0.nii.gz")
    found = read_label_map(Path(labels), scan.grid).array
    alone = []
    for n, model in enumerate(models):
        own = segment(scans=str(blobs), model=model, output=str(tmp_path / f"{n}"), inference={"skip_air": False})
        alone.append(read_label_map(Path(*own["labels"].values()), scan.grid).array)
    assert all((found != one).any() for one in alone)
    agreed = np.logical_and(alone[0] == alone[1], alone[1] == alone[2])
    assert (found == alone[0])[agreed].mean() > 0.999
    assert remove_model(model="Three")["name"] == "Three"


def test_a_package_of_several_can_be_packed_anew_and_paths_do_not_go_along(models: list[str], tmp_path: Path) -> None:
    for model in models:
        found = load_model(model)
        made = {"settings": {"split": "/home/me/s.json"}, "pretrained": "loaded 1 from /home/me/run; 2 left"}
        replace(found, provenance=made).save(Path(model))
    ensemble_models(models=models, output=str(tmp_path / "folder"))
    packed = pack_model(model=str(tmp_path / "folder"), output=str(tmp_path / "b.zip"), name="Other")
    assert packed["in_monai"] == "yes" and add_model(model=str(tmp_path / "b.zip"))["new"]
    for file in (path for path in (tmp_path / "folder").rglob("*") if path.is_file()):
        assert b"/home/me" not in file.read_bytes(), file
    assert read_description(tmp_path / "b.zip").members == 3
    assert len(read_description(tmp_path / "b.zip").provenance["members"]) == 3


def test_what_the_command_refuses(models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "x.zip")
    for given in ([], [models[0]]):
        with pytest.raises(SettingsError, match="an ensemble is of two models or more"):
            ensemble_models(models=given, output=output)
    with pytest.raises(SettingsError, match="null 0: is there twice"):
        ensemble_models(models=[models[0], models[1], models[0]], output=output)
    with pytest.raises(SettingsError, match="--output is missing"):
        ensemble_models(models=models)
    one(4, THREE, license="MIT").save(tmp_path / "mit")
    with pytest.raises(ModelError, match="the licence"):
        ensemble_models(models=[models[0], str(tmp_path / "mit")], output=output)
    assert main(["model", "ensemble", models[0], str(tmp_path / "nowhere"), "--output", output]) == 1
    assert "nowhere: is not a model package" in capsys.readouterr().err
    assert not Path(output).exists()
    # Whoever says under which licence both are, may.
    done = ensemble_models(models=[models[0], str(tmp_path / "mit")], output=output, license="MIT")
    assert done["license"] == "MIT" and done["networks"] == 2
