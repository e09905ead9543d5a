"""Previews: the right crop at the right place, what is in each file, and the sheet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import SimpleITK
import torch
from small_runs import TINY, write_blobs
from torch import Tensor

from HybridMIMLib import pretrain
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.layouts import Case
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.scans import read_scan, write_nifti
from HybridMIMLib.data.store import PreparedCase, prepare_store
from HybridMIMLib.data.survey import survey
from HybridMIMLib.events import EventLog
from HybridMIMLib.pretraining import run as pretraining_run
from HybridMIMLib.pretraining.crops import Crops
from HybridMIMLib.pretraining.objective import Objective, Preview
from HybridMIMLib.pretraining.previews import Previews, preview_crop
from HybridMIMLib.pretraining.sheets import Sheet, draw_sheet, slice_to_show

CPU = torch.device("cpu")
PLAN = Plan(1, (1.0, 1.0, 2.0), "window", (-100.0, 300.0), (16, 16, 8), (4, 4, 4), (8, 8, 8))
# Axes that run to L, P and S, turned by 30 degrees about S, with slices twice as far apart.
TURNED = np.array([[-0.866, -0.5, 0, 40], [0.5, -0.866, 0, -7], [0, 0, 2.0, 3], [0, 0, 0, 1]])


def prepared(folder: Path, *shapes: tuple[int, int, int], channels: int = 1) -> list[PreparedCase]:
    """Scans of noise around a number of their own, from -200 to 400."""
    cases = []
    for index, shape in enumerate(shapes):
        paths = []
        for channel in range(channels):
            noise = np.random.default_rng([index, channel]).integers(-200, 400, shape)
            paths.append(folder / f"scan_{index}_{channel}.nii.gz")
            write_nifti(paths[-1], noise.astype(np.int16), Grid(shape, TURNED))
        cases.append(Case(f"scan_{index}", tuple(paths), None))
    plan = replace(PLAN, channels=channels)
    return prepare_store(survey(cases, EventLog()), plan, (), folder / "store", EventLog())


class Half(Objective):
    """Hides the first half along the first axis, and predicts 3/4 everywhere."""

    def losses(self, crops: Crops) -> dict[str, Tensor]:
        return {}

    def measures(self, crops: Crops) -> dict[str, float]:
        return {}

    def preview(self, crops: Crops) -> Preview:
        hidden = torch.zeros(crops.image.shape[0], *crops.image.shape[2:], dtype=torch.bool)
        hidden[:, :8] = True
        return Preview(crops.image.masked_fill(hidden[:, None], 0), torch.full_like(crops.image, 0.75), hidden)


def volumes(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: read_scan(path).array for path in folder.glob("*.nrrd")}


# --- the crop ---------------------------------------------------------------------------------------------------


def test_it_shows_the_middle_of_the_scan_that_fills_most_of_a_crop(tmp_path: Path) -> None:
    # The second is the largest, but flat; the third fills the crop, and the fourth does with more around it.
    cases = prepared(tmp_path, (12, 16, 8), (60, 60, 4), (16, 16, 9), (21, 20, 8))
    shown = preview_crop(cases, PLAN.crop, 0, CPU)
    assert shown.name == "scan_3" and shown.size == PLAN.crop
    assert preview_crop(cases[::-1], PLAN.crop, 0, CPU).name == "scan_3"
    stored = cases[3].image[:, 2:18, 2:18, :]
    expected = np.clip((stored + 100.0) / 400, 0, 1)
    assert np.allclose(shown.crops.image[0], expected, atol=1e-6)
    assert preview_crop(cases, PLAN.crop, 1, CPU).crops.keys != shown.crops.keys


def test_padding_is_not_shown(tmp_path: Path) -> None:
    shown = preview_crop(prepared(tmp_path, (10, 20, 5)), PLAN.crop, 0, CPU)
    assert shown.size == (10, 16, 5) == shown.grid.shape and shown.crops.sizes.tolist() == [[10, 16, 5]]
    assert shown.in_units(shown.crops.image).shape == (1, 10, 16, 5)


# --- the files --------------------------------------------------------------------------------------------------


def test_files_hold_intensities_of_the_scan_at_their_place_in_it(tmp_path: Path) -> None:
    (case,) = prepared(tmp_path, (21, 18, 8))
    previews = Previews(Half(), preview_crop([case], PLAN.crop, 0, CPU), PLAN, "half", tmp_path / "previews")
    previews.write(500)
    assert sorted(path.name for path in previews.folder.iterdir()) == [
        "original.nrrd",
        "step_000500.png",
        "step_000500_error.nrrd",
        "step_000500_masked.nrrd",
        "step_000500_reconstructed.nrrd",
    ]
    found = volumes(previews.folder)
    # By another way: the scan as it was, each voxel of the crop looked up by where it lies.
    whole = read_scan(tmp_path / "scan_0_0.nii.gz")
    image = SimpleITK.ReadImage(str(previews.folder / "original.nrrd"))
    assert image.GetSize() == PLAN.crop and np.allclose(image.GetSpacing(), (1, 1, 2), atol=1e-4)
    for voxel in ((0, 0, 0), (15, 15, 7), (3, 9, 5)):
        ras = np.array(image.TransformIndexToPhysicalPoint(voxel)) * (-1, -1, 1)
        place = np.rint(np.linalg.solve(whole.grid.affine, (*ras, 1))).astype(int)
        assert np.allclose(whole.grid.affine @ place, (*ras, 1), atol=1e-3)
        expected = np.clip(whole.array[0][tuple(place[:3])], -100, 300)
        assert found["original"][(0, *voxel)] == pytest.approx(expected, abs=1e-3)
    original, hidden = found["original"], np.zeros(found["original"].shape, bool)
    hidden[:, :8] = True
    assert np.allclose(found["step_000500_masked"], np.where(hidden, -100, original))
    assert np.allclose(found["step_000500_reconstructed"], np.where(hidden, 200, original), atol=1e-3)
    assert np.allclose(found["step_000500_error"], np.where(hidden, abs(200 - original), 0), atol=1e-3)


def test_each_channel_has_a_file_and_a_row(tmp_path: Path) -> None:
    cases = prepared(tmp_path, (16, 16, 8), channels=3)
    previews = Previews(Half(), preview_crop(cases, PLAN.crop, 0, CPU), PLAN, "half", tmp_path / "previews")
    previews.write(1)
    found = volumes(previews.folder)
    assert {name for name in found if "error" in name} == {f"step_000001_error_channel_{n}" for n in (1, 2, 3)}
    whole = [read_scan(tmp_path / f"scan_0_{n}.nii.gz").array[0, ::-1, ::-1] for n in range(3)]
    for number, channel in enumerate(whole, 1):
        assert np.allclose(found[f"original_channel_{number}"][0], np.clip(channel, -100, 300), atol=1e-3)


def test_intensities_that_were_scaled_for_the_store_are_those_of_the_scan_again(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(0, 0.01, (16, 16, 8)).astype(np.float32)
    write_nifti(tmp_path / "scan.nii.gz", noise, Grid(noise.shape, np.diag([1.0, 1.0, 2.0, 1.0])))
    plan = replace(PLAN, window=(0.0, 0.01))
    found = survey([Case("scan", (tmp_path / "scan.nii.gz",), None)], EventLog())
    shown = preview_crop(prepare_store(found, plan, (), tmp_path / "store", EventLog()), PLAN.crop, 0, CPU)
    assert shown.ends == (pytest.approx((0.0, 0.01), abs=1e-9),)
    assert np.allclose(shown.in_units(shown.crops.image)[0], noise, atol=1e-6)


def test_an_objective_without_a_picture_writes_none(tmp_path: Path) -> None:
    class Blind(Half):
        def preview(self, crops: Crops) -> Preview | None:  # type: ignore[override]
            return None

    cases = prepared(tmp_path, (16, 16, 8))
    Previews(Blind(), preview_crop(cases, PLAN.crop, 0, CPU), PLAN, "x", tmp_path / "previews").write(1)
    assert not (tmp_path / "previews").exists()


# --- the sheet --------------------------------------------------------------------------------------------------


def sheet(channels: int = 1, **given: Any) -> Sheet:
    shape = (12, 16, 8)
    original = np.random.default_rng(0).uniform(0, 1, (channels, *shape)).astype(np.float32)
    hidden = np.zeros(shape, bool)
    hidden[4:8, 8:12, 0:4] = True
    made = np.where(hidden, 0.5, original)
    contents = {"original": original, "masked": original * ~hidden, "reconstructed": made, "hidden": hidden, **given}
    return Sheet(
        "title", **contents, ends=((0.0, 1.0),) * channels, grid=Grid(shape, np.eye(4)), error_to_patch_mean=1
    )


def test_slices_go_through_what_is_hidden_where_there_is_something_to_see() -> None:
    original = np.zeros((1, 12, 16, 8), np.float32)
    original[0, 6, 10, 2], original[0, 0, 0, 7] = 1, 50  # the brighter one is not hidden
    assert [slice_to_show(sheet(original=original), axis) for axis in range(3)] == [6, 10, 2]


def test_right_is_on_the_left_and_the_face_is_on_the_left() -> None:
    from HybridMIMLib.pretraining.sheets import _turned

    volume = np.zeros((12, 16, 8))
    volume[11, 15, 7] = 1  # right, front, top
    for axis, at in ((0, 11), (1, 15), (2, 7)):
        shown = _turned(volume, axis, at)
        # Row 0 is drawn lowest, column 0 leftmost.
        assert np.argwhere(shown).tolist() == [[shown.shape[0] - 1, 0]]


@pytest.mark.parametrize("channels", [1, 2])
def test_the_sheet_shows_what_was_hidden_in_blue_and_the_rest_of_the_errors_in_grey(
    tmp_path: Path, channels: int
) -> None:
    draw_sheet(tmp_path / "sheet.png", sheet(channels))
    picture = matplotlib.image.imread(tmp_path / "sheet.png")[..., :3]
    assert min(picture.shape[:2]) > 300
    # A patch of 4 x 4 in the axial slice of 12 x 16, so a twelfth of it, is blue; the others show more of it.
    blue = (abs(picture - (0.16, 0.32, 0.55)) < 0.01).all(axis=-1).sum()
    grey = (abs(picture - 0.25) < 0.01).all(axis=-1).sum()
    slices = 4 * channels * 250 * 300
    assert 0.005 * slices < blue < 0.2 * slices and grey > 4 * blue


def test_nothing_hidden_is_said() -> None:
    from HybridMIMLib.pretraining.sheets import _figures

    whole = sheet()
    assert "nothing is hidden" in _figures(replace(whole, hidden=np.zeros_like(whole.hidden)))
    error = np.abs(whole.original[0][whole.hidden] - 0.5).mean()
    assert f"off by {error:.4g} on average, {100 * error:.1f} % of the range" in _figures(whole)


# --- in a run ---------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_that_was_continued_has_the_pictures_of_one_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_blobs(tmp_path / "scans", 3, labelled=False)
    tiny = {**TINY, "pretraining": {**TINY["pretraining"], "preview_every": 2, "checkpoint_every": 4}}
    settings = {"unlabelled": str(tmp_path / "scans"), **tiny}
    pretrain(output=str(tmp_path / "whole"), **settings)
    draw = pretraining_run.CropSource.draw

    def stop_at_6(source: Any, step: int) -> Crops:
        if step == 6:
            raise KeyboardInterrupt
        return draw(source, step)

    monkeypatch.setattr(pretraining_run.CropSource, "draw", stop_at_6)
    with pytest.raises(KeyboardInterrupt):
        pretrain(output=str(tmp_path / "stopped"), **settings)
    assert (tmp_path / "stopped" / "previews" / "step_000004.png").exists()
    # As if it had been killed while it drew.
    (tmp_path / "stopped" / "previews" / "step_000006.png").write_bytes(b"half")
    monkeypatch.setattr(pretraining_run.CropSource, "draw", draw)
    pretrain(output=str(tmp_path / "stopped"), **settings)
    whole, stopped = files_of(tmp_path / "whole" / "previews"), files_of(tmp_path / "stopped" / "previews")
    assert whole == stopped and len(whole) == 1 + 3 * 4
    assert whole["step_000002_masked.nrrd"] == whole["step_000006_masked.nrrd"]
    assert whole["step_000002_reconstructed.nrrd"] != whole["step_000006_reconstructed.nrrd"]
