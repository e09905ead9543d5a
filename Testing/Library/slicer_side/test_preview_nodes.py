"""Previews of a run as volumes: found, loaded where they belong, replaced in place, or not touched at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.itk import save_itk
from HybridMIMLib.errors import RunError
from HybridMIMLib.slicer_side.preview_nodes import find_previews, in_order, load_previews, shown_previews
from HybridMIMLib.slicer_side.scene import headless_scene
from HybridMIMLib.slicer_side.segments import ijk_to_ras, image_array
from HybridMIMLib.slicer_side.steps import finish

SHAPE = (5, 6, 7)
OBLIQUE = np.array([[0.8, 0.6, 0, 10], [-0.6, 0.8, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])
KINDS = ("masked", "reconstructed", "error")


def write(folder: Path, *steps: int, channels: int = 1, level: float = 0.0) -> Path:
    """Previews as a pre-training writes them; each volume has a value of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    grid = Grid(SHAPE, OBLIQUE)
    names = ["original", *(f"step_{step:06}_{kind}" for step in steps for kind in KINDS)]
    for number, name in enumerate(names):
        for channel in range(1, channels + 1):
            end = "" if channels == 1 else f"_channel_{channel}"
            array = np.random.default_rng(number).normal(level + 100 * number + channel, 1, SHAPE)
            save_itk(folder / f"{name}{end}.nrrd", array.astype(np.float32), grid)
    return folder


def volumes(scene: Any) -> list[Any]:
    count = scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    return [scene.GetNthNodeByClass(number, "vtkMRMLScalarVolumeNode") for number in range(count)]


def load(run: Path, step: int, scene: Any) -> dict[str, Any]:
    return finish(load_previews(find_previews(run), step, scene))


def test_steps_are_found_when_all_of_their_volumes_are_there(tmp_path: Path) -> None:
    assert find_previews(tmp_path).steps == ()
    write(tmp_path / "previews", 500, 1000)
    (tmp_path / "previews" / "step_000500.png").touch()
    assert find_previews(tmp_path).steps == (500, 1000)
    (tmp_path / "previews" / "step_001000_error.nrrd").unlink()
    assert find_previews(tmp_path).steps == (500,), "one that is being written is not offered"


@pytest.mark.parametrize("place", ["previews", "pre-training/previews", "pre-training/simmim-seed-0/previews"])
def test_they_are_found_in_runs_of_every_kind(tmp_path: Path, place: str) -> None:
    write(tmp_path / place, 3)
    assert find_previews(tmp_path).steps == (3,)


def test_of_a_study_the_latest_is_shown(tmp_path: Path) -> None:
    early, late = (write(tmp_path / "pre-training" / name / "previews", step) for name, step in (("b", 1), ("a", 2)))
    os.utime(early, (1, 1))
    assert find_previews(tmp_path).folder == late


def test_volumes_lie_where_the_scan_is_with_its_intensities(tmp_path: Path) -> None:
    write(tmp_path / "Liver" / "previews", 500)
    scene = headless_scene().scene
    nodes = load(tmp_path / "Liver", 500, scene)
    assert list(nodes) == ["original", "masked", "reconstructed", "error"] == in_order(nodes)
    assert [node.GetName() for node in nodes.values()] == [
        "Liver original", "Liver masked (step 500)", "Liver reconstructed (step 500)", "Liver error (step 500)",
    ]  # fmt: skip
    for number, node in enumerate(nodes.values()):
        np.testing.assert_allclose(ijk_to_ras(node), OBLIQUE, atol=1e-6)
        expected = np.random.default_rng(number).normal(100 * number + 1, 1, SHAPE)
        np.testing.assert_allclose(image_array(node.GetImageData()), expected, rtol=1e-4)
    windows = [node.GetDisplayNode().GetWindowLevelMin() for node in nodes.values()]
    assert windows[0] == windows[1] == windows[2] != windows[3], "what is compared is shown alike"


def test_a_newer_step_replaces_volumes_in_place(tmp_path: Path) -> None:
    held = headless_scene()
    write(tmp_path / "previews", 500, 1000)
    first = load(tmp_path, 500, held.scene)
    first["masked"].GetDisplayNode().SetWindowLevelMinMax(-3, 3)
    before = image_array(first["masked"].GetImageData()).mean()
    again = load(tmp_path, 1000, held.scene)
    assert len(volumes(held.scene)) == 4 and {n: v.GetID() for n, v in again.items()} == {
        n: v.GetID() for n, v in first.items()
    }
    assert again["masked"].GetName().endswith("masked (step 1000)")
    assert image_array(again["masked"].GetImageData()).mean() > before + 100
    assert again["masked"].GetDisplayNode().GetWindowLevelMax() == 3, "the user's window stays"


def test_another_run_gets_a_window_of_its_own(tmp_path: Path) -> None:
    held = headless_scene()
    write(tmp_path / "a" / "previews", 1)
    write(tmp_path / "b" / "previews", 1, level=5000)
    load(tmp_path / "a", 1, held.scene)
    nodes = load(tmp_path / "b", 1, held.scene)
    assert nodes["original"].GetDisplayNode().GetWindowLevelMin() > 4000
    assert len(volumes(held.scene)) == 4


def test_each_channel_has_volumes_and_those_of_a_run_with_fewer_go(tmp_path: Path) -> None:
    held = headless_scene()
    write(tmp_path / "two" / "previews", 1, channels=2)
    write(tmp_path / "one" / "previews", 1)
    nodes = load(tmp_path / "two", 1, held.scene)
    assert len(nodes) == 8 and in_order(nodes)[:3] == ["original channel 1", "original channel 2", "masked channel 1"]
    load(tmp_path / "one", 1, held.scene)
    assert in_order(shown_previews(held.scene)) == ["original", "masked", "reconstructed", "error"]
    assert len(volumes(held.scene)) == 4


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_a_damaged_file_leaves_the_scene_as_it_was(tmp_path: Path, damage: str) -> None:
    held = headless_scene()
    folder = write(tmp_path / "previews", 500, 1000)
    load(tmp_path, 500, held.scene)
    found, file = find_previews(tmp_path), folder / "step_001000_error.nrrd"
    file.unlink() if damage == "gone" else file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(RunError, match="step 1000|step_001000_error.nrrd"):
        finish(load_previews(found, 1000, held.scene))
    assert all("1000" not in node.GetName() for node in volumes(held.scene)) and len(volumes(held.scene)) == 4


def test_other_volumes_are_left_alone_and_a_closed_scene_begins_anew(tmp_path: Path) -> None:
    held = headless_scene()
    mine = held.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "original")
    write(tmp_path / "previews", 1)
    load(tmp_path, 1, held.scene)
    assert mine.GetImageData() is None and len(volumes(held.scene)) == 5
    held.scene.Clear(0)
    load(tmp_path, 1, held.scene)
    assert len(volumes(held.scene)) == 4
