"""The model package: round trip, and packages that are not ours."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_packages import CLASSES, SMALL_PLAN, edit_json, entries_of, make_package, rehash, write_zip
from torch.overrides import TorchFunctionMode

from HybridMIMLib.data.clean_up import CleanUp
from HybridMIMLib.data.model_description import METADATA, WEIGHTS
from HybridMIMLib.data.model_store import add
from HybridMIMLib.errors import ModelError
from HybridMIMLib.model_package import CONFIG, LICENSE, README, check_shapes, load_model
from HybridMIMLib.settings.network import NetworkSettings


def test_round_trip_gives_the_same_scores(unicode_folder: Path) -> None:
    package = make_package()
    package.save(unicode_folder / "model")
    loaded = load_model(unicode_folder / "model")
    x = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(package.network(x), loaded.network(x))
    assert (loaded.plan, loaded.classes, loaded.settings) == (SMALL_PLAN, CLASSES, package.settings)
    assert (loaded.provenance, loaded.name) == ({"seed": 5}, "Léber und Milz")


def test_metadata_has_what_a_monai_bundle_needs(tmp_path: Path) -> None:
    make_package().save(tmp_path / "model")
    metadata = json.loads((tmp_path / "model" / METADATA).read_text(encoding="utf-8"))
    needed = {"name", "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "task",
              "description", "authors", "copyright", "network_data_format"}  # fmt: skip
    assert needed <= set(metadata)
    outputs = metadata["network_data_format"]["outputs"]["pred"]
    assert outputs["channel_def"] == {"0": "background", "1": "Léber", "2": "Milz"} and outputs["num_channels"] == 3


def test_everything_a_package_says_comes_back(tmp_path: Path) -> None:
    clean_up = CleanUp(frozenset({2}), frozenset({7}), {7: 1.5})
    package = make_package(overlapping=True, clean_up=clean_up, flip_axes=(1, 2), license="CC-BY-4.0")
    package.save(tmp_path / "model")
    found = load_model(tmp_path / "model")
    assert (found.overlapping, found.clean_up, found.flip_axes) == (True, clean_up, (1, 2))
    assert (found.license, found.classes) == ("CC-BY-4.0", CLASSES)
    assert found.network.head.out_channels == 2
    metadata = json.loads((tmp_path / "model" / METADATA).read_text(encoding="utf-8"))
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "Léber", "1": "Milz"}
    assert (tmp_path / "model" / LICENSE).read_text() == "CC-BY-4.0\n"


def test_people_read_what_it_is(tmp_path: Path) -> None:
    settings = NetworkSettings(features=[4, 8, 8])
    make_package(settings, license="MIT\nPermission …").save(tmp_path / "model")
    text = (tmp_path / "model" / README).read_text(encoding="utf-8")
    for words in ("Léber und Milz", "| 2 | Léber | Liver (SCT 10200004) |", "not for clinical use", "- seed: 5",
                  "python -m HybridMIMLib segment", "python -m monai.bundle run", "MIT (the whole text"):  # fmt: skip
        assert words in text
    make_package().save(tmp_path / "two")
    text = (tmp_path / "two" / README).read_text(encoding="utf-8")
    assert "does not run in plain MONAI" in text and "monai.bundle" not in text
    assert not (tmp_path / "two" / CONFIG).exists() and (tmp_path / "model" / CONFIG).exists()


def test_a_zip_is_loaded_without_unpacking_it(tmp_path: Path) -> None:
    package = make_package()
    package.save(tmp_path / "model")
    file = write_zip(tmp_path / "a.zip", entries_of(tmp_path / "model", "m/"))
    loaded, other = load_model(file), load_model(tmp_path / "model")
    x = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(package.network(x), loaded.network(x))
    assert loaded.digest == other.digest != "" and package.digest == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "model"]


def test_a_name_of_an_added_model_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path / "ws"))
    make_package(name="spleen").save(tmp_path / "model")
    add(tmp_path / "model")
    assert load_model("spleen").name == "spleen"
    with pytest.raises(ModelError, match="liver: is not a model package"):
        load_model("liver")


@pytest.mark.parametrize("architecture", ["unet", "resunet", "swinunetr", "unetr", "segresnet"])
def test_every_network_comes_back(architecture: str, tmp_path: Path) -> None:
    plan = replace(SMALL_PLAN, crop=(64, 32, 32))
    package = make_package(NetworkSettings(architecture=architecture, window=4), plan)  # type: ignore[arg-type]
    package.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model").network.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in package.network.state_dict().items())


@pytest.mark.parametrize(
    "network",
    [
        {"features": [4096] * 6, "strides": [[1, 1, 1], *[[2, 2, 2]] * 5]},
        {"architecture": "swinunetr", "size": "tiny", "window": 32, "features": None, "strides": None},
        {"architecture": "unetr", "size": "base", "features": None, "strides": None},
    ],
)
def test_a_network_larger_than_its_weights_takes_no_memory(tmp_path: Path, network: dict[str, object]) -> None:
    make_package().save(tmp_path / "model")
    metadata = tmp_path / "model" / METADATA
    edit_json(metadata, lambda content: content["hybridmim"]["network"].update(network))
    edit_json(metadata, lambda content: content["hybridmim"]["plan"].update(crop=[512, 512, 512]))
    rehash(tmp_path / "model")
    with pytest.raises(ModelError, match="has other shapes than the network"), _few_bytes():
        load_model(tmp_path / "model")


@contextmanager
def _few_bytes() -> Iterator[None]:
    """Fail where torch makes a large tensor that is really there."""

    class Counter(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor) and made.device.type != "meta":
                assert made.nelement() < 2**22, f"{func} made {made.nelement()} numbers"
            return made

    with Counter():
        yield


class Marker:
    """What a pickle runs when it is loaded: it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.ckpt", "model.pkl", "model.safetensors"])
def test_no_pickle_is_executed(tmp_path: Path, name: str) -> None:
    make_package().save(tmp_path / "model")
    (tmp_path / "model" / "models" / name).write_bytes(pickle.dumps(Marker(tmp_path / "evil")))
    rehash(tmp_path / "model")
    write_zip(tmp_path / "a.zip", entries_of(tmp_path / "model"))
    for path in (tmp_path / "model", tmp_path / "a.zip"):
        with pytest.raises(ModelError, match="can run a program|no safetensors file"):
            load_model(path)
    assert not (tmp_path / "evil").exists()


def test_no_expression_of_a_package_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path / "ws"))
    evil = f"$__import__('os').mkdir({str(tmp_path / 'evil')!r})"
    make_package(NetworkSettings(features=[4, 8, 8])).save(tmp_path / "model")

    def poison(content: dict[str, Any]) -> None:
        content.update({"imports": [evil], "name": evil, "initialize": [evil], "run": [evil], "license": evil})
        content.update({"_requires_": evil, "description": evil, "monai_version": evil, "task": evil})
        if "hybridmim" in content:
            content["hybridmim"]["provenance"] = {"pretrained": evil, "settings": {"_target_": "os.mkdir"}}
            content["hybridmim"]["classes"][0].update(name=evil, terminology=evil)

    for file in (METADATA, CONFIG):
        edit_json(tmp_path / "model" / file, poison)
    rehash(tmp_path / "model")
    found, _ = add(tmp_path / "model", check_shapes)
    loaded = load_model(found.name)
    assert loaded.name == evil and loaded.classes[0].name == evil
    loaded.save(tmp_path / "again")
    # What we hand on has our own expressions, and not theirs.
    assert evil not in (tmp_path / "again" / CONFIG).read_text()
    assert not (tmp_path / "evil").exists()


def test_weights_that_are_no_weights_are_named(tmp_path: Path) -> None:
    make_package().save(tmp_path / "model")
    (tmp_path / "model" / WEIGHTS).write_bytes(b"not weights at all")
    rehash(tmp_path / "model")
    with pytest.raises(ModelError, match="no safetensors file"):
        load_model(tmp_path / "model")


def test_a_save_that_is_broken_off_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_package(name="first").save(tmp_path / "model")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("HybridMIMLib.model_package.write_hashes", stop)
    with pytest.raises(KeyboardInterrupt):
        make_package(name="second").save(tmp_path / "model")
    assert load_model(tmp_path / "model").name == "first" and os.listdir(tmp_path) == ["model"]


def test_saving_again_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    make_package().save(tmp_path / "model")
    make_package().save(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_what_is_no_package_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    foreign = tmp_path / "foreign" / "configs"
    foreign.mkdir(parents=True)
    (foreign / "metadata.json").write_text('{"version": "1", "task": "someone else\'s"}')
    (tmp_path / "file.pt").write_text("x")
    for name in ("empty", "foreign", "file.pt", "missing"):
        with pytest.raises(ModelError, match=f"{name}: is not a"):
            load_model(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("format", 99, "later version"),
        ("network", {"features": "many"}, "damaged"),
        ("plan", {}, "damaged"),
        ("plan", {**SMALL_PLAN.to_json(), "window": []}, "damaged"),
        ("plan", {**SMALL_PLAN.to_json(), "crop": [float("inf"), 1, 1]}, "damaged"),
        ("classes", [{"label": 1}], "damaged"),
        ("network", {"features": [4, 9], "strides": [[1, 1, 1], [2, 2, 2]]}, "other shapes"),
        ("network", {"features": [4, 8]}, "damaged"),
        ("format", 2, "format 2.*packages were others. Train the model again"),
        ("format", 1, "format 1.*packages were others. Train the model again"),
    ],
)
def test_damaged_descriptions_are_named(tmp_path: Path, name: str, content: object, words: str) -> None:
    make_package().save(tmp_path / "model")
    edit_json(tmp_path / "model" / METADATA, lambda metadata: metadata["hybridmim"].update({name: content}))
    rehash(tmp_path / "model")
    with pytest.raises(ModelError, match=words):
        load_model(tmp_path / "model")


def test_missing_weights_are_named(tmp_path: Path) -> None:
    make_package().save(tmp_path / "model")
    (tmp_path / "model" / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: no such file"):
        load_model(tmp_path / "model")
