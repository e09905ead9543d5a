"""Segmenting folders: which files are scans, what is computed again, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_blobs

from HybridMIMLib import segment
from HybridMIMLib.config import NetworkSettings
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.scans import read_label_map, write_nifti
from HybridMIMLib.errors import DataError
from HybridMIMLib.model_package import ModelPackage
from HybridMIMLib.networks import make_segmentation_network


def save_model(folder: Path, seed: int = 0, channels: int = 1) -> Path:
    plan = Plan(channels, (1.0, 1.0, 1.2), "percentiles", (-1e3, 1e3), (16, 16, 16), (4, 4, 4), (8, 8, 8))
    settings = NetworkSettings(features=[4, 8])
    classes = (LabelClass(1, "one", (1, 0, 0)), LabelClass(300, "many", (0, 1, 0)))
    network = make_segmentation_network(settings, channels, len(classes), seed).eval()
    ModelPackage(network, settings, plan, classes, {}).save(folder / "model")
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
    for channel in range(2):
        image = np.random.default_rng(channel).normal(size=(18, 18, 18)).astype(np.float32)
        write_nifti(folder / f"case_{channel:04}.nii.gz", image, Grid((18, 18, 18), np.eye(4)))
    (tmp_path / "set" / "labelsTr").mkdir()
    result = segment(
        scans=str(tmp_path / "set"), model=str(save_model(tmp_path, channels=2)), output=str(tmp_path / "out")
    )
    assert [p.name for p in (tmp_path / "out" / "labels").iterdir()] == ["case.nii.gz"] and not result["warnings"]


def test_two_scans_of_one_name_are_refused_and_named(tmp_path: Path) -> None:
    scans = write_blobs(tmp_path / "scans", 1, labelled=False) / "images"
    shutil.copy(scans / "blob_0.nii.gz", scans / "blob_0.nii")
    with pytest.raises(DataError, match="blob_0"):
        segment(scans=str(scans), model=str(save_model(tmp_path)), output=str(tmp_path / "out"))


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
