"""Descriptions of models: what is read, what is refused, which are found, and that no torch is needed for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_packages import edit_json, entries_of, rehash, write_zip

from HybridMIMLib.architectures import settled
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.clean_up import CleanUp
from HybridMIMLib.data.model_description import METADATA, NO_LICENSE, WEIGHTS, find_models, read_description
from HybridMIMLib.data.package_files import MOST_TEXT
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.errors import ModelError
from HybridMIMLib.model_package import ModelPackage, load_model
from HybridMIMLib.networks import make_segmentation_network
from HybridMIMLib.settings.network import NetworkSettings

PLAN = Plan(2, (1.0, 1.5, 2.0), "percentiles", (-1000.0, 1000.0), (16, 16, 16), (4, 4, 4), (8, 8, 8))
CLASSES = (LabelClass(2, "Léber", (0.1, 0.2, 0.3)), LabelClass(7, "Milz", (1.0, 0.0, 0.5), "a^b^c"))
TRAINED = "2026-03-01T12:00:00+01:00"


def save(folder: Path, name: str = "Bauch", trained: str | None = TRAINED) -> Path:
    settings = settled(NetworkSettings(features=[4, 8]), PLAN.spacing)
    network = make_segmentation_network(settings, PLAN.channels, len(CLASSES), PLAN.crop, seed=5)
    provenance = {"seed": 5} if trained is None else {"seed": 5, "trained": trained}
    ModelPackage(network, settings, PLAN, CLASSES, provenance, name).save(folder)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the metadata of a package in place, and the list of its files with it."""
    edit_json(folder / METADATA, change)
    rehash(folder)


def test_what_was_saved_is_read(unicode_folder: Path) -> None:
    found = read_description(save(unicode_folder / "model"))
    assert (found.path, found.name, found.classes) == (unicode_folder / "model", "Bauch", CLASSES)
    assert (found.channels, found.trained, found.provenance["seed"]) == (2, TRAINED, 5)
    assert found.network == settled(NetworkSettings(features=[4, 8]), PLAN.spacing)
    assert Plan.from_json(found.plan) == PLAN
    assert (found.overlapping, found.clean_up, found.flip_axes) == (False, CleanUp(), ())
    assert found.license == NO_LICENSE


def test_a_zip_says_the_same(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    edit(folder, ours(overlapping=True, flip_axes=[0, 2], clean_up=CleanUp(frozenset({7})).to_json()))
    file = write_zip(tmp_path / "a.zip", entries_of(folder, "top/"))
    found = read_description(file)
    assert found == replace(read_description(folder), path=file)
    assert (found.overlapping, found.clean_up, found.flip_axes) == (True, CleanUp(frozenset({7})), (0, 2))


def test_a_description_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    with (folder / METADATA).open("r+b") as file:
        file.truncate(2**33)
    for path in (folder, write_zip(tmp_path / "a.zip", [("configs/metadata.json", b" " * (MOST_TEXT + 1))])):
        with pytest.raises(ModelError, match="is not a HybridMIM model package|more than"):
            read_description(path)


@pytest.mark.skipif(os.name == "nt", reason="a file without end of POSIX")
def test_a_description_without_end_is_not_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    (folder / METADATA).unlink()
    os.mkfifo(folder / METADATA)
    with pytest.raises(ModelError, match="is not a HybridMIM model package"):
        read_description(folder)


def test_neither_torch_nor_monai_nor_nibabel_is_loaded(tmp_path: Path) -> None:
    save(tmp_path / "runs" / "one" / "model")
    program = (
        "import sys; from pathlib import Path; from HybridMIMLib.data.model_description import find_models\n"
        "print(*[model.name for model in find_models(Path(sys.argv[1]))])\n"
        "print(*sorted({'torch', 'monai', 'ignite', 'nibabel', 'safetensors', 'SimpleITK'} & set(sys.modules)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "runs")], capture_output=True, text=True, check=True
    )
    assert said.stdout == "Bauch\n\n"


@pytest.mark.parametrize(
    ("place", "name"),
    [("liver run/model", "liver run"), ("liver/fine-tuning/model", "liver"), ("from a friend", "from a friend")],
)
def test_an_old_package_is_called_as_its_run(tmp_path: Path, place: str, name: str) -> None:
    folder = save(tmp_path / place, trained=None)
    edit(folder, lambda content: content.pop("name"))
    edit(folder, lambda content: content["hybridmim"].pop("provenance"))
    found = read_description(folder)
    assert (found.name, found.trained, found.provenance) == (name, None, {})
    assert load_model(folder).name == name


def ours(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["hybridmim"].update(changes)


def plan(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["hybridmim"]["plan"].update(changes)


def network(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["hybridmim"]["network"].update(changes)


def first_class(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["hybridmim"]["classes"][0].update(changes)


DAMAGE = {
    "classes: no list": ours(classes={"1": "a"}),
    "classes: text": ours(classes="ab"),
    "classes: none": ours(classes=[]),
    "classes: a million": ours(classes=[{"label": n, "name": str(n), "color": [0, 0, 0]} for n in range(1, 1000)]),
    "classes: missing": lambda content: content["hybridmim"].pop("classes"),
    "class: no section": ours(classes=["Leber"]),
    "class: no name": lambda content: content["hybridmim"]["classes"][0].pop("name"),
    "class: no label": lambda content: content["hybridmim"]["classes"][0].pop("label"),
    "label: background": first_class(label=0),
    "label: negative": first_class(label=-1),
    "label: twice": first_class(label=7),
    "label: too high": first_class(label=65536),
    "label: text": first_class(label="2"),
    "label: fraction": first_class(label=2.5),
    "label: truth": first_class(label=True),
    "class name: twice": first_class(name="Milz"),
    "class name: blank": first_class(name=" "),
    "class name: number": first_class(name=3),
    "class name: a page": first_class(name="a" * 1000),
    "class name: backwards": first_class(name="\u202eevil"),
    "colour: two parts": first_class(color=[0.1, 0.2]),
    "colour: bytes": first_class(color=[255, 0, 0]),
    "colour: no number": first_class(color=[float("nan"), 0, 0]),
    "colour: missing": lambda content: content["hybridmim"]["classes"][0].pop("color"),
    "terminology: number": first_class(terminology=1),
    "terminology: a book": first_class(terminology="a" * 10_000),
    "plan: missing": lambda content: content["hybridmim"].pop("plan"),
    "plan: list": ours(plan=[1]),
    "plan: no channels": ours(plan={}),
    "plan: zero channels": lambda content: content["hybridmim"]["plan"].update(channels=0),
    "plan: channels as text": lambda content: content["hybridmim"]["plan"].update(channels="1"),
    "plan: a thousand channels": plan(channels=1000),
    "plan: crop of a million": plan(crop=[10**6, 16, 16]),
    "plan: crop that no memory holds": plan(crop=[1024, 1024, 1024]),
    "plan: crop with a fraction": plan(crop=[16.5, 16, 16]),
    "plan: crop of truth": plan(crop=[True, 16, 16]),
    "plan: crop that does not fit the network": plan(crop=[15, 16, 16]),
    "plan: crop of two": plan(crop=[16, 16]),
    "plan: no region": lambda content: content["hybridmim"]["plan"].pop("region"),
    "plan: spacing of nothing": plan(spacing=[0, 1, 1]),
    "plan: spacing without end": plan(spacing=[float("inf"), 1, 1]),
    "plan: spacing that is no number": plan(spacing=[float("nan"), 1, 1]),
    "plan: spacing as text": plan(spacing=["1", 1, 1]),
    "plan: window backwards": plan(window=[1000, -1000]),
    "plan: unknown normalisation": plan(normalisation="$import os"),
    "plan: normalisation as list": plan(normalisation=["window"]),
    "network: a million features": network(features=[10**6, 8]),
    "network: a thousand stages": network(features=[4] * 1000, strides=[[1, 1, 1], *[[2, 2, 2]] * 999]),
    "network: a window of a thousand": ours(network={"architecture": "swinunetr", "window": 1000}),
    "network: unknown architecture": ours(network={"architecture": "os.system"}),
    "overlapping: a number": ours(overlapping=1),
    "flip_axes: fourth axis": ours(flip_axes=[3]),
    "flip_axes: twice": ours(flip_axes=[1, 1]),
    "flip_axes: a number": ours(flip_axes=1),
    "clean_up: no section": ours(clean_up=[1]),
    "clean_up: unknown label": ours(clean_up={"largest": [5], "fill_holes": [], "smallest_ml": {}}),
    "license: a number": lambda content: content.update(license=3),
    "license: blank": lambda content: content.update(license=" "),
    "license: a library": lambda content: content.update(license="a" * 200_000),
    "network: missing": lambda content: content["hybridmim"].pop("network"),
    "network: list": ours(network=[1]),
    "network: unknown setting": ours(network={"feature": [4, 8]}),
    "network: left open": ours(network={"features": [4, 8]}),
    "network: wrong value": ours(network={"features": [4, 0]}),
    "provenance: list": ours(provenance=[]),
    "trained: no date": ours(provenance={"trained": "yesterday"}),
    "trained: no zone": ours(provenance={"trained": "2026-03-01T12:00:00"}),
    "trained: number": ours(provenance={"trained": 3}),
    "name: number": lambda content: content.update(name=3),
    "name: null": lambda content: content.update(name=None),
    "name: a page": lambda content: content.update(name="a" * 1000),
    "name: blank": lambda content: content.update(name=" "),
    "name: two lines": lambda content: content.update(name="a\nb"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_description_is_one_line_that_names_the_file(tmp_path: Path, damage: str) -> None:
    folder = save(tmp_path / "run" / "model")
    edit(folder, DAMAGE[damage])
    for read in (read_description, load_model):
        with pytest.raises(ModelError, match="the description is damaged") as caught:
            read(folder)
        assert str(folder / METADATA) in str(caught.value) and "\n" not in str(caught.value)
    assert find_models(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "null", "[" * 100_000, '{"hybridmim": 3}', '{"hybridmim": {"format": "1"}}',
     '{"hybridmim": {"format": true}}', '{"hybridmim": {"format": 0}}'],
)  # fmt: skip
def test_what_is_not_ours_is_refused(tmp_path: Path, content: str) -> None:
    folder = save(tmp_path / "model")
    (folder / METADATA).write_text(content)
    with pytest.raises(ModelError, match="model: is not a HybridMIM model package"):
        read_description(folder)


def test_a_later_format_and_missing_weights_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    (folder / WEIGHTS).rename(folder / "elsewhere")
    with pytest.raises(ModelError, match=r"model\.safetensors: no such file"):
        read_description(folder)
    edit(folder, ours(format=5))
    with pytest.raises(ModelError, match="later version"):
        read_description(folder)


def test_models_of_runs_are_found_newest_first_and_broken_ones_passed_over(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    save(runs / "b" / "model", "older", "2026-03-01T12:00:00+01:00")
    save(runs / "a" / "fine-tuning" / "model", "newest", "2026-03-01T11:30:00+00:00")
    old = save(runs / "c" / "stage" / "model", "by its file", trained=None)
    os.utime(old / METADATA, (0, 0))
    save(runs / "d" / "store" / "model", "prepared scans")
    save(runs / "e" / "deep" / "er" / "model", "too deep")
    (save(runs / "f" / "model", "no weights") / WEIGHTS).unlink()
    edit(save(runs / "g" / "model", "damaged"), ours(classes=3))
    (runs / "h" / "model").mkdir(parents=True)
    (runs / "i").write_text("a file")
    (runs / "j").mkdir()
    (runs / "j" / "model").write_text("a file")
    assert [model.name for model in find_models(runs)] == ["newest", "older", "by its file"]


def test_where_there_is_no_folder_there_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert find_models(tmp_path / "missing") == find_models(tmp_path / "file") == find_models(tmp_path) == []
