"""The model package: round trip, and packages that are not ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from HybridMIMLib.architectures import settled
from HybridMIMLib.config import NetworkSettings
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.model_description import METADATA, WEIGHTS
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.errors import ModelError
from HybridMIMLib.model_package import ModelPackage, load_model
from HybridMIMLib.networks import make_segmentation_network

PLAN = Plan(1, (1.0, 1.5, 2.0), "percentiles", (-1000.0, 1000.0), (16, 16, 16), (4, 4, 4), (8, 8, 8))
CLASSES = (LabelClass(2, "Léber", (0.1, 0.2, 0.3)), LabelClass(7, "Milz", (1.0, 0.0, 0.5), "a^b^c"))


def make_package() -> ModelPackage:
    settings = settled(NetworkSettings(features=[4, 8]), PLAN.spacing)
    network = make_segmentation_network(settings, 1, len(CLASSES), PLAN.crop, seed=5).eval()
    return ModelPackage(network, settings, PLAN, CLASSES, {"seed": 5}, "Léber und Milz")


def test_round_trip_gives_the_same_scores(unicode_folder: Path) -> None:
    package = make_package()
    package.save(unicode_folder / "model")
    loaded = load_model(unicode_folder / "model")
    x = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(package.network(x), loaded.network(x))
    assert (loaded.plan, loaded.classes, loaded.settings) == (PLAN, CLASSES, package.settings)
    assert (loaded.provenance, loaded.name) == ({"seed": 5}, "Léber und Milz")


def test_metadata_has_what_a_monai_bundle_needs(tmp_path: Path) -> None:
    make_package().save(tmp_path / "model")
    metadata = json.loads((tmp_path / "model" / METADATA).read_text(encoding="utf-8"))
    needed = {"name", "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "task",
              "description", "authors", "copyright", "network_data_format"}  # fmt: skip
    assert needed <= set(metadata)
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["2"] == "Milz"


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
        ("plan", {**PLAN.to_json(), "window": []}, "damaged"),
        ("plan", {**PLAN.to_json(), "crop": [float("inf"), 1, 1]}, "damaged"),
        ("classes", [{"label": 1}], "damaged"),
        ("network", {"features": [4, 9], "strides": [[1, 1, 1], [2, 2, 2]]}, "other shapes"),
        ("network", {"features": [4, 8]}, "damaged"),
        ("format", 1, "format 1.*networks were others. Train the model again"),
    ],
)
def test_damaged_descriptions_are_named(tmp_path: Path, name: str, content: object, words: str) -> None:
    make_package().save(tmp_path / "model")
    file = tmp_path / "model" / METADATA
    metadata = json.loads(file.read_text(encoding="utf-8"))
    metadata["hybridmim"][name] = content
    file.write_text(json.dumps(metadata))
    with pytest.raises(ModelError, match=words):
        load_model(tmp_path / "model")


def test_missing_weights_are_named(tmp_path: Path) -> None:
    make_package().save(tmp_path / "model")
    (tmp_path / "model" / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: no such file"):
        load_model(tmp_path / "model")
