"""Segmenting folders: which files are scans, what is computed again, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
import pytest
import SimpleITK
from scipy import ndimage
from small_runs import KeptLog, save_threshold_model, write_blobs

from HybridMIMLib import segment
from HybridMIMLib.architectures import settled
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.clean_up import CleanUp
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.layouts import Case
from HybridMIMLib.data.model_store import add
from HybridMIMLib.data.package_files import pack
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.scans import read_label_map, read_scan, write_image, write_nifti
from HybridMIMLib.errors import DataError, ModelError, RunError, SettingsError
from HybridMIMLib.events import EventLog, EventReader
from HybridMIMLib.inference.cleaning import clean
from HybridMIMLib.inference.predictor import Prediction, Predictor
from HybridMIMLib.inference.run import label_path, segment_cases
from HybridMIMLib.model_package import ModelPackage
from HybridMIMLib.networks import make_segmentation_network
from HybridMIMLib.report import report
from HybridMIMLib.runs import load_settings
from HybridMIMLib.settings.network import NetworkSettings


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


def test_results_of_earlier_runs_are_no_scans_unless_they_are_named(tmp_path: Path) -> None:
    """What was written beside label maps, uncertainty say, looks like a scan."""
    scans, model = write_blobs(tmp_path / "scans", 2, labelled=False), save_model(tmp_path)
    first = scans / "first"
    segment(scans=str(scans), model=str(model), output=str(first), inference={"uncertainty": True})
    assert len(list((first / "uncertainty").iterdir())) == 2
    for output in (scans / "second", tmp_path / "outside"):
        result = segment(scans=str(scans), model=str(model), output=str(output))
        assert [Path(p).name for p in result["labels"]] == ["blob_0.nii.gz", "blob_1.nii.gz"]
    named = segment(scans=str(first / "uncertainty"), model=str(model), output=str(tmp_path / "named"))
    assert len(named["labels"]) == 2


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


# --- what else is written -----------------------------------------------------------------------------------


class Brightness:
    """Stands in for a predictor: overlapping classes by brightness, and how bright a voxel is as its uncertainty."""

    classes = (
        LabelClass(2, "Grey/left", (1, 0, 0)),
        LabelClass(5, "white", (0, 1, 0)),
        LabelClass(9, "no", (0, 0, 1)),
    )
    plan = Plan(1, (1.0, 1.0, 1.0), "percentiles", (-1e3, 1e3), (16, 16, 16), (4, 4, 4), (8, 8, 8))

    def predict(self, array: np.ndarray, grid: Grid, watch: Callable[[int, int], None] | None = None) -> Prediction:
        layers = np.stack([array[0] > 30, array[0] > 70, array[0] > 1000])
        labels = np.select([layers[1], layers[0]], [5, 2], 0).astype(np.uint8)
        for done in range(1, 5):
            assert watch is not None
            watch(done, 4)
        return Prediction(labels, layers, (array[0] / 100).astype(np.float32), 4, 0)


BRIGHTNESS = cast("Predictor", Brightness())


def noise(path: Path, volumes: int, seed: int = 0) -> np.ndarray:
    """A scan of numbers from 0 to 100, 4D where there are several volumes; returns its voxels (T, D, H, W)."""
    array = np.random.default_rng(seed).integers(0, 101, (volumes, 6, 7, 5)).astype(np.uint8)
    write_image(path, array if volumes > 1 else array[0], Grid((6, 7, 5), np.diag([1, 2, 3, 1])), (1.5, "sec"))
    return array


def read_any(path: Path) -> np.ndarray:
    """(T, D, H, W) of a NIfTI."""
    array = np.asanyarray(nibabel.load(path).dataobj)
    return np.moveaxis(array if array.ndim == 4 else array[..., np.newaxis], -1, 0)


@pytest.mark.parametrize("volumes", [1, 3])
def test_layers_and_uncertainty_lie_beside_the_label_map(tmp_path: Path, volumes: int) -> None:
    array = noise(tmp_path / "a b.nii.gz", volumes)
    case = Case("a b", (tmp_path / "a b.nii.gz",), None)
    [one] = segment_cases([case], BRIGHTNESS, tmp_path / "out", EventLog())
    assert one.path == tmp_path / "out" / "labels" / "a b.nii.gz"
    assert np.array_equal(read_any(one.path), np.select([array > 70, array > 30], [5, 2], 0))
    assert one.uncertainty == tmp_path / "out" / "uncertainty" / "a b.nii.gz"
    assert np.array_equal(read_any(one.uncertainty), (array / 100).astype(np.float32))
    assert {name: path.name for name, path in one.layers.items()} == {
        "Grey/left": "2-Grey-left.nii.gz", "white": "5-white.nii.gz", "no": "9-no.nii.gz",
    }  # fmt: skip
    assert all(path.parent == tmp_path / "out" / "layers" / "a b" for path in one.layers.values())
    assert np.array_equal(read_any(one.layers["Grey/left"]), array > 30), "with what white painted over"
    assert one.empty == ("no",)
    for path in (one.path, one.uncertainty, *one.layers.values()):
        written = nibabel.load(path)
        assert np.allclose(written.affine, np.diag([1, 2, 3, 1])), path
        if volumes > 1:
            assert written.header.get_zooms()[3] == 1.5 and written.header.get_xyzt_units()[1] == "sec"


def test_the_bar_of_a_single_scan_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("HybridMIMLib.events.Phase.SECONDS_BETWEEN", 0.0)
    noise(tmp_path / "a.nii.gz", 2)
    noise(tmp_path / "b.nii.gz", 1)
    log = KeptLog()
    cases = [Case(name, (tmp_path / f"{name}.nii.gz",), None) for name in ("a", "b")]
    assert len(list(segment_cases(cases, BRIGHTNESS, tmp_path / "out", log))) == 2
    steps = [event["step"] for event in log.events if event["kind"] == "progress"]
    assert steps == [0.125, 0.25, 0.375, 0.625, 0.75, 0.875, 1, 1.25, 1.5, 1.75, 2]
    assert {event["steps"] for event in log.events if event["kind"] == "progress"} == {2}


def test_uncertainty_is_written_when_it_is_asked_for_and_other_settings_compute_anew(tmp_path: Path) -> None:
    scans, model = write_blobs(tmp_path / "scans", 2, labelled=False), save_model(tmp_path)
    call = {"scans": str(scans), "model": str(model), "output": str(tmp_path / "out")}
    plain = segment(**call)
    first = times(tmp_path / "out")
    assert not (tmp_path / "out" / "uncertainty").exists() and "uncertainty" not in plain
    asked = segment(**call, inference={"uncertainty": True})
    assert load_settings(tmp_path / "out" / "run.yaml").inference.uncertainty
    second = times(tmp_path / "out")
    assert all(first[name] != second[name] for name in first)
    segment(**call, inference={"uncertainty": True})
    assert times(tmp_path / "out") == second
    for scan, path in asked["uncertainty"].items():
        written, original = nibabel.load(path), nibabel.load(scan)
        values = np.asanyarray(written.dataobj)
        assert values.dtype == np.float32 and values.shape == original.shape
        assert np.allclose(written.affine, original.affine) and 0 <= values.min() < values.max() <= 1
    (tmp_path / "out" / "uncertainty" / "blob_1.nii.gz").unlink()
    segment(**call, inference={"uncertainty": True})
    third = times(tmp_path / "out")
    assert {name for name in second if second[name] != third[name]} == {"blob_1.nii.gz"}, "a file that is missing"
    with pytest.raises(RunError, match="other settings: seed"):
        segment(**call, seed=1)


def test_nothing_of_other_settings_stays_beside_a_new_label_map(tmp_path: Path) -> None:
    scans, out = write_blobs(tmp_path / "scans", 2, labelled=False), tmp_path / "out"
    call = {"scans": str(scans), "model": str(save_model(tmp_path)), "output": str(out)}
    segment(**call, inference={"uncertainty": True})
    kept = [tmp_path / "mine.txt", out / "uncertainty" / "mine.txt"]
    for file in kept:
        file.write_text("no file of the program")
    ledger = out / "segmented.json"
    ledger.write_text(ledger.read_text().replace('"files": [', '"files": ["../mine.txt",'))
    segment(**call)
    assert list((out / "uncertainty").iterdir()) == kept[1:] and all(file.is_file() for file in kept)
    assert set(times(out)) == {"blob_0.nii.gz", "blob_1.nii.gz"}


@pytest.mark.parametrize("files", ["5", "[5]", "null", '{"a": 5}', '["a\\u0000b"]'])
def test_a_ledger_that_is_damaged_counts_as_none(tmp_path: Path, files: str) -> None:
    scans, out = write_blobs(tmp_path / "scans", 1, labelled=False), tmp_path / "out"
    call = {"scans": str(scans), "model": str(save_model(tmp_path)), "output": str(out)}
    segment(**call)
    first, ledger = times(out), out / "segmented.json"
    content = json.loads(ledger.read_text())
    content["scans"]["blob_0"]["files"] = json.loads(files)
    ledger.write_text(json.dumps(content))
    segment(**call)
    assert times(out) != first


def test_a_run_that_is_stopped_on_new_settings_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, out = write_blobs(tmp_path / "scans", 2, labelled=False), tmp_path / "out"
    call = {"scans": str(scans), "model": str(save_model(tmp_path)), "output": str(out)}
    segment(**call)
    with monkeypatch.context() as stopping:
        stopping.setattr(Predictor, "predict", _stop)
        segment(**call)
        assert (out / "result.json").is_file(), "nothing was to be done"
        with pytest.raises(KeyboardInterrupt):
            segment(**call, inference={"preset": "fast"})
    assert not (out / "result.json").exists()
    segment(**call, inference={"preset": "fast"})
    assert (out / "result.json").is_file()


def _stop(*_: object) -> Prediction:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["predict", "_prepared"])
def test_a_scan_that_is_too_large_does_not_keep_others_from_being_segmented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    scans = write_blobs(tmp_path / "scans", 3, labelled=False)
    first = read_scan(scans / "images" / "blob_0.nii.gz").array
    original = getattr(Predictor, where)

    def full(self: Predictor, array: np.ndarray, *others: Any) -> Any:
        if array.shape == first.shape and np.array_equal(array, first):
            np.empty(1 << 58, dtype=np.uint8)
        return original(self, array, *others)

    monkeypatch.setattr(Predictor, where, full)
    result = segment(scans=str(scans), model=str(save_model(tmp_path)), output=str(tmp_path / "out"))
    assert set(times(tmp_path / "out")) == {"blob_1.nii.gz", "blob_2.nii.gz"}
    [text] = result["warnings"]
    assert text.startswith("skipped") and "blob_0.nii.gz" in text and "too large for the memory" in text


def test_a_scan_that_no_rung_can_hold_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = write_blobs(tmp_path / "scans", 1, labelled=False)
    monkeypatch.setattr(Predictor, "_attempt", lambda *_: np.empty(1 << 58, dtype=np.uint8))
    with pytest.raises(DataError, match="none of the 1"):
        segment(scans=str(scans), model=str(save_model(tmp_path)), output=str(tmp_path / "out"))
    events = (tmp_path / "out" / "events.jsonl").read_text(encoding="utf-8")
    assert "blob_0.nii.gz" in events and "out of memory" in events and "a smaller model" in events


def test_what_is_odd_about_a_scan_is_told(tmp_path: Path) -> None:
    scan = write_blobs(tmp_path / "scans", 1, labelled=False) / "images" / "blob_0.nii.gz"
    image = nibabel.load(scan)
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nibabel.save(image, scan)
    result = segment(scans=str(scan), model=str(save_model(tmp_path)), output=str(tmp_path / "out"))
    [text] = result["warnings"]
    assert text.startswith(str(scan)) and "left and right may be swapped" in text


def test_a_model_may_be_a_zip_or_have_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path / "workspace"))
    scans, model = (
        write_blobs(tmp_path / "scans", 1, labelled=False),
        save_threshold_model(tmp_path / "model", "Blobs"),
    )
    pack(model, tmp_path / "blobs.zip", "blobs")
    add(tmp_path / "blobs.zip")
    made = []
    for number, named in enumerate([model, tmp_path / "blobs.zip", "Blobs"]):
        result = segment(scans=str(scans), model=str(named), output=str(tmp_path / f"out {number}"))
        made.append(read_any(Path(next(iter(result["labels"].values())))))
    assert made[0].any() and np.array_equal(made[0], made[1]) and np.array_equal(made[0], made[2])


def test_classes_that_were_not_found_are_named(tmp_path: Path) -> None:
    scans, model = write_blobs(tmp_path / "scans", 1, labelled=False), save_threshold_model(tmp_path / "model")
    call = {"scans": str(scans), "model": str(model), "output": str(tmp_path / "out")}
    scan = str(scans / "images" / "blob_0.nii.gz")
    for _ in range(2):
        result = segment(**call)
        assert result["empty"] == {scan: ["Never"]}
        assert f"{result['labels'][scan]}  (not found: Never)" in report("segment", result)


def test_clean_up_is_off_until_it_is_asked_for(tmp_path: Path) -> None:
    scans, model = write_blobs(tmp_path / "scans", 1, labelled=False), save_threshold_model(tmp_path / "model")
    scan = scans / "images" / "blob_0.nii.gz"
    image = nibabel.load(scan)
    voxels = image.get_fdata().astype(np.float32)
    voxels[1, 1, 1] = 400
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), scan)

    def labels(name: str, **inference: object) -> np.ndarray:
        result = segment(scans=str(scans), model=str(model), output=str(tmp_path / name), inference=inference)
        return read_any(Path(result["labels"][str(scan)]))[0]

    plain, cleaned = labels("plain"), labels("cleaned", largest=["Bright"])
    assert plain[1, 1, 1] == 3 and ndimage.label(plain, np.ones((3, 3, 3)))[1] > 1
    assert np.array_equal(cleaned, clean(plain, read_scan(scan).grid, CleanUp(largest=frozenset({3}))))
    assert cleaned.any() and cleaned[1, 1, 1] == 0
    with pytest.raises(SettingsError, match="'Bride'"):
        labels("wrong", largest=["Bride"])


# --- 4D and single slices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_volumes_of_4d_are_segmented_as_if_they_were_alone(tmp_path: Path, suffix: str) -> None:
    alone = write_blobs(tmp_path / "alone", 1, labelled=False) / "images"
    blob = read_scan(alone / "blob_0.nii.gz")
    parts = [blob.array[0], blob.array[0, ::-1], abs(blob.array[0, :, ::-1]) ** 1.2]
    for number, part in enumerate(parts):
        write_nifti(alone / f"part_{number}.nii.gz", part, blob.grid)
    (tmp_path / "series").mkdir()
    series = tmp_path / "series" / f"series{suffix}"
    if suffix == ".nrrd":
        image = SimpleITK.JoinSeries([SimpleITK.ReadImage(str(alone / f"part_{n}.nii.gz")) for n in range(3)], 0, 1.5)
        SimpleITK.WriteImage(image, str(series))
    else:
        write_image(series, np.stack(parts), blob.grid, (1.5, "sec"))
    model = save_threshold_model(tmp_path / "model")
    one = segment(scans=str(alone), model=str(model), output=str(tmp_path / "one"))["labels"]
    all_of_them = segment(scans=str(tmp_path / "series"), model=str(model), output=str(tmp_path / "all"))
    path = Path(all_of_them["labels"][str(series)])
    assert path.name == "series.nii.gz"
    # 4D NRRD as SimpleITK writes it does not say which way its axes run.
    told = [text for text in all_of_them["warnings"] if "stores no orientation" not in text]
    assert not told and len(all_of_them["warnings"]) == (suffix == ".nrrd")
    expected = [read_any(Path(one[str(alone / f"part_{number}.nii.gz")]))[0] for number in range(3)]
    assert expected[0].any() and not np.array_equal(expected[0], expected[1])
    assert np.array_equal(read_any(path), np.stack(expected))
    written = nibabel.load(path)
    assert np.allclose(written.affine, blob.grid.affine, atol=1e-5) and written.header.get_zooms()[3] == 1.5
    before = path.stat().st_mtime_ns
    segment(scans=str(tmp_path / "series"), model=str(model), output=str(tmp_path / "all"))
    assert path.stat().st_mtime_ns == before


def test_volumes_that_are_channels_are_segmented_together(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(2, 18, 18, 18)).astype(np.float32)
    for name in ("apart/set/imagesTr", "apart/set/labelsTr", "joined"):
        (tmp_path / name).mkdir(parents=True)
    grid = Grid((18, 18, 18), np.eye(4))
    for channel in range(2):
        write_nifti(tmp_path / "apart/set/imagesTr" / f"case_{channel:04}.nii.gz", array[channel], grid)
        write_nifti(tmp_path / "apart/set/imagesTr" / f"other_{channel:04}.nii.gz", array[channel], grid)
    write_image(tmp_path / "joined" / "case.nii.gz", array, grid)
    model = str(save_model(tmp_path, channels=2))
    apart = segment(scans=str(tmp_path / "apart/set"), model=model, output=str(tmp_path / "a"))["labels"]
    joined = segment(scans=str(tmp_path / "joined"), model=model, output=str(tmp_path / "j"))["labels"]
    one, other = (read_any(Path(next(iter(paths.values())))) for paths in (apart, joined))
    assert one.shape == other.shape == (1, 18, 18, 18) and np.array_equal(one, other) and one.any()


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_single_slice_gets_a_label_map_of_one(tmp_path: Path, suffix: str) -> None:
    blob = read_scan(write_blobs(tmp_path / "blobs", 1, labelled=False) / "images" / "blob_0.nii.gz")
    depth, height, _ = blob.grid.shape
    scan = tmp_path / f"slice{suffix}"
    write_image(scan, blob.array[0, :, :, 5:6], Grid((depth, height, 1), blob.grid.affine))
    result = segment(
        scans=str(scan), model=str(save_threshold_model(tmp_path / "model")), output=str(tmp_path / "out")
    )
    written = SimpleITK.ReadImage(result["labels"][str(scan)])
    assert written.GetSize() == (depth, height, 1)
    assert np.allclose(written.GetSpacing(), blob.grid.spacing, atol=1e-5)
    assert any("single slice" in text for text in result["warnings"])
    # Bright is what is much brighter than the mean, and the brightest voxels of the slice are in the blob.
    labels = SimpleITK.GetArrayFromImage(written).T[:, :, 0]
    image = blob.array[0, :, :, 5]
    assert labels.any() and image[labels == 3].min() > image[labels == 0].mean()


def test_awkward_series_and_slices_have_results(shared_data: Path, tmp_path: Path) -> None:
    """A scan of phase contrast: one slice at three times."""
    scan = shared_data / "ugly" / "nifti" / "sct_4d_singleslice_venc.nii.gz"
    if not scan.is_file():
        pytest.skip(f"the awkward scan is not at {scan}")
    model = save_threshold_model(tmp_path / "model")
    result = segment(scans=str(scan), model=str(model), output=str(tmp_path / "out"), inference={"preset": "fast"})
    original, written = nibabel.load(scan), nibabel.load(result["labels"][str(scan)])
    assert written.shape == original.shape and np.allclose(written.affine, original.affine, atol=1e-4)
    assert np.isclose(written.header.get_zooms()[3], original.header.get_zooms()[3])


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
