"""Segmenting folders: which files are scans, what is computed again, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from small_runs import write_blobs

from HybridMIMLib import segment
from HybridMIMLib.architectures import settled
from HybridMIMLib.config import NetworkSettings
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.layouts import Case
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.scans import read_label_map, read_scan, write_nifti
from HybridMIMLib.errors import DataError, ModelError
from HybridMIMLib.events import EventReader
from HybridMIMLib.inference.run import label_path
from HybridMIMLib.model_package import ModelPackage
from HybridMIMLib.networks import make_segmentation_network


def save_model(folder: Path, seed: int = 0, channels: int = 1) -> Path:
    plan = Plan(channels, (1.0, 1.0, 1.2), "percentiles", (-1e3, 1e3), (16, 16, 16), (4, 4, 4), (8, 8, 8))
    settings = settled(NetworkSettings(features=[4, 8]), plan.spacing)
    classes = (LabelClass(1, "one", (1, 0, 0)), LabelClass(300, "many", (0, 1, 0)))
    network = make_segmentation_network(settings, channels, len(classes), plan.crop, seed).eval()
    ModelPackage(network, settings, plan, classes, {}, "two").save(folder / "model")
    return folder / "model"


def times(output: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (output / "labels").iterdir()}


def test_label_maps_beside_scans_and_own_results_are_no_scans(tmp_path: Path) -> None:
    scans, model = write_blobs(tmp_path / "scans", 2, labelled=True), save_model(tmp_path)
    for _ in range(2):
        result = segment(scans=str(scans), model=str(model), output=str(scans / "results"))
        assert [Path(p).name for p in result["labels"]] == ["blob_0.nii.gz", "blob_1.nii.gz"]
        assert result["warnings"] == []


def test_only_what_changed_is_computed_again(tmp_path: Path) -> None:
    scans, model = write_blobs(tmp_path / "scans", 3, labelled=False), save_model(tmp_path)
    call = {"scans": str(scans), "model": str(model), "output": str(tmp_path / "out")}
    segment(**call)
    first = times(tmp_path / "out")
    segment(**call)
    assert times(tmp_path / "out") == first
    shutil.copy(scans / "images" / "blob_1.nii.gz", scans / "images" / "blob_0.nii.gz")
    segment(**call)
    second = times(tmp_path / "out")
    assert {name for name in first if first[name] != second[name]} == {"blob_0.nii.gz"}
    save_model(tmp_path, seed=1)
    segment(**call)
    third = times(tmp_path / "out")
    assert all(second[name] != third[name] for name in second), "another model at the same place"


def test_labels_above_255_are_written(tmp_path: Path) -> None:
    scans, model = write_blobs(tmp_path / "scans", 1, labelled=False), save_model(tmp_path)
    result = segment(scans=str(scans), model=str(model), output=str(tmp_path / "out"))
    labels = read_label_map(Path(next(iter(result["labels"].values())))).array
    assert set(np.unique(labels)) <= {0, 1, 300}


def test_channels_in_files_of_their_own_are_one_case(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "imagesTr"
    folder.mkdir(parents=True)
    for number, case in enumerate(("case", "other")):
        for channel in range(2):
            image = np.random.default_rng([number, channel]).normal(size=(18, 18, 18)).astype(np.float32)
            write_nifti(folder / f"{case}_{channel:04}.nii.gz", image, Grid((18, 18, 18), np.eye(4)))
    (tmp_path / "set" / "labelsTr").mkdir()
    result = segment(
        scans=str(tmp_path / "set"), model=str(save_model(tmp_path, channels=2)), output=str(tmp_path / "out")
    )
    assert times(tmp_path / "out").keys() == {"case.nii.gz", "other.nii.gz"} and not result["warnings"]


def test_two_scans_of_one_name_get_names_of_their_own(tmp_path: Path) -> None:
    scans = write_blobs(tmp_path / "scans", 1, labelled=False) / "images"
    shutil.copy(scans / "blob_0.nii.gz", scans / "blob_0.nii")
    segment(scans=str(scans), model=str(save_model(tmp_path)), output=str(tmp_path / "out"))
    assert times(tmp_path / "out").keys() == {"blob_0_nii.nii.gz", "blob_0_nii_gz.nii.gz"}


def test_a_single_file(tmp_path: Path) -> None:
    scan = write_blobs(tmp_path / "scans", 1, labelled=False) / "images" / "blob_0.nii.gz"
    result = segment(scans=str(scan), model=str(save_model(tmp_path)), output=str(tmp_path / "out"))
    assert result["labels"] == {str(scan): str(tmp_path / "out" / "labels" / "blob_0.nii.gz")}


def test_no_scan_that_fits_is_an_error_with_the_reasons_before(tmp_path: Path) -> None:
    scans = write_blobs(tmp_path / "scans", 2, labelled=False)
    with pytest.raises(DataError, match="none of the 2"):
        segment(scans=str(scans), model=str(save_model(tmp_path, channels=2)), output=str(tmp_path / "out"))
    events = (tmp_path / "out" / "events.jsonl").read_text(encoding="utf-8")
    assert "blob_0.nii.gz" in events and "1 channel(s)" in events


ODD_SPACING, ODD_ORIGIN = (0.7123456789, 0.8123456789, 1.9123456789), (-123.4567890123, 77.7777777777, 1000 / 3)
TURNED = np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]]) / 3
SHEAR = np.array([[1, 0, 0.21], [0, 1, -0.13], [0, 0, 1]])


def write_nrrd(path: Path, directions: np.ndarray, seed: int = 0) -> np.ndarray:
    """Noise on a grid that single precision cannot hold; returns its affine, voxel to RAS."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions * ODD_SPACING, ODD_ORIGIN
    in_lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.random.default_rng(seed).normal(size=(20, 19, 18)).astype(np.float32))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((in_lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(in_lps[:3, 3].tolist())
    path.parent.mkdir(exist_ok=True)
    SimpleITK.WriteImage(image, str(path))
    return affine


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".NRRD"])
@pytest.mark.parametrize("directions", [TURNED, TURNED @ SHEAR], ids=["oblique", "sheared"])
def test_an_nrrd_scan_gets_an_nrrd_on_the_identical_grid(
    unicode_folder: Path, directions: np.ndarray, suffix: str
) -> None:
    scan = unicode_folder / f"scan{suffix}"
    affine = write_nrrd(scan, directions)
    assert np.abs(read_scan(scan).grid.affine - affine).max() < 1e-6, "the scan is read as it was written"
    result = segment(scans=str(scan), model=str(save_model(unicode_folder)), output=str(unicode_folder / "out"))
    written = Path(result["labels"][str(scan)])
    assert written == unicode_folder / "out" / "labels" / "scan.nrrd"
    labels = read_label_map(written)
    assert labels.grid.shape == (18, 19, 20) and np.abs(labels.grid.affine - affine).max() < 1e-6


def test_formats_side_by_side_are_computed_once_and_again_when_they_change(tmp_path: Path) -> None:
    scans = write_blobs(tmp_path / "scans", 1, labelled=False) / "images"
    write_nrrd(scans / "a.nrrd", TURNED)
    write_nrrd(scans / "b.nhdr", TURNED)
    call = {"scans": str(scans), "model": str(save_model(tmp_path)), "output": str(tmp_path / "out")}
    segment(**call)
    first = times(tmp_path / "out")
    assert set(first) == {"a.nrrd", "b.nrrd", "blob_0.nii.gz"}
    segment(**call)
    assert times(tmp_path / "out") == first
    write_nrrd(scans / "a.nrrd", TURNED, seed=1)
    segment(**call)
    second = times(tmp_path / "out")
    assert {name for name in first if first[name] != second[name]} == {"a.nrrd"}


def test_no_two_cases_share_a_path(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    write_nrrd(scans / "a.nrrd", TURNED)
    write_nrrd(scans / "a.nhdr", TURNED, seed=1)
    result = segment(scans=str(scans), model=str(save_model(tmp_path)), output=str(tmp_path / "out"))
    assert len(set(result["labels"].values())) == len(times(tmp_path / "out")) == 2


def test_names_that_end_like_a_format_keep_their_paths_apart() -> None:
    files = ["a.nii.gz", "a.nrrd.nii.gz", "a.nii.gz.nrrd", "a.b.nhdr", "a.mha.nii"]
    names = ["a", "a.nrrd", "a.nii.gz", "a.b", "a.mha"]
    paths = [label_path(Path("labels"), Case(name, (Path(file),), None)) for name, file in zip(names, files)]
    assert [path.name for path in paths] == [
        "a.nii.gz", "a.nrrd.nii.gz", "a.nii.gz.nrrd", "a.b.nrrd", "a.mha.nii.gz",
    ]  # fmt: skip


def no_model(folder: Path) -> None:
    shutil.rmtree(folder / "model")


def no_scans(folder: Path) -> None:
    shutil.rmtree(folder / "scans")


@pytest.mark.parametrize(("spoil", "error"), [(no_model, ModelError), (no_scans, DataError)])
def test_the_run_folder_says_so_when_model_or_scans_are_not_there(
    tmp_path: Path, spoil: Callable[[Path], None], error: type[Exception]
) -> None:
    scans, model = write_blobs(tmp_path / "scans", 1, labelled=False), save_model(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error) as caught:
        segment(scans=str(scans), model=str(model), output=str(tmp_path / "out"))
    *_, last = EventReader(tmp_path / "out" / "events.jsonl").read()
    assert (last["kind"], last["outcome"], last["message"]) == ("end", "failed", str(caught.value))
