"""``prepare --check``: every scan has its verdict, and nothing is written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom.data.data_manager import DATA_ROOT
from small_runs import write_blobs

from HybridMIMLib.config import Run
from HybridMIMLib.data.check import check, check_folder, examine_dataset
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.layouts import open_dataset
from HybridMIMLib.data.prepare import prepare
from HybridMIMLib.data.scans import read_label_map, read_scan, write_nifti
from HybridMIMLib.errors import DataError, SettingsError
from HybridMIMLib.events import EventLog
from HybridMIMLib.report import report

GRID = Grid((20, 18, 12), np.diag([2.0, 2.0, 3.0, 1.0]))


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Four good cases."""
    return write_blobs(tmp_path / "labelled", 4, labelled=True)


def statuses(folder: Path, is_labelled: bool = True) -> dict[str, str]:
    return {one.case.name: one.status for one in check_folder(folder, is_labelled)}


def reason(folder: Path, name: str, is_labelled: bool = True) -> str:
    return next("; ".join(one.reasons) for one in check_folder(folder, is_labelled) if one.case.name == name)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


# --- verdicts -----------------------------------------------------------------------------------------------


def test_good_scans_with_their_classes(labelled: Path) -> None:
    (labelled / "notes.txt").write_text("…")
    checked = examine_dataset(open_dataset(labelled, True), True, EventLog())
    assert {one.status for one in checked.verdicts} == {"good"} and not checked.problems
    assert [one.name for one in checked.classes] == ["Bright", "Dark"]
    assert checked.others == 1, "the notes; classes.json is read"
    assert all(one.facts is not None and one.facts.labels == {1, 2} for one in checked.verdicts)


def test_a_broken_label_map_has_a_verdict_and_the_others_too(labelled: Path) -> None:
    file = labelled / "labels" / "blob_1.nii.gz"
    file.write_bytes(file.read_bytes()[:200])
    assert statuses(labelled) == {"blob_0": "good", "blob_1": "skipped", "blob_2": "good", "blob_3": "good"}
    assert "labels/blob_1.nii.gz: the file is truncated" in reason(labelled, "blob_1").replace(os.sep, "/")


@pytest.mark.parametrize(
    ("value", "words"),
    [(7, "holds label 7, but only [1, 2] are named"), (1.5, "1.5 is no label"), (-1, "negative label -1")],
)
def test_labels_that_are_none_or_unknown(labelled: Path, value: float, words: str) -> None:
    file = labelled / "labels" / "blob_2.nii.gz"
    label = read_label_map(file)
    kind = np.float32 if value == 1.5 else np.int16
    write_nifti(file, np.where(label.array == 1, kind(value), label.array).astype(kind), label.grid)
    assert statuses(labelled)["blob_2"] == "skipped" and words in reason(labelled, "blob_2")


def test_an_empty_label_map_is_told(labelled: Path) -> None:
    file = labelled / "labels" / "blob_0.nii.gz"
    label = read_label_map(file)
    write_nifti(file, np.zeros_like(label.array), label.grid)
    assert statuses(labelled)["blob_0"] == "warning" and reason(labelled, "blob_0") == "its label map is empty"
    for file in (labelled / "labels").iterdir():
        label = read_label_map(file)
        write_nifti(file, np.zeros_like(label.array), label.grid)
    (problem,) = examine_dataset(open_dataset(labelled, True), True, EventLog()).problems
    assert "background alone" in problem


def test_another_grid_a_copy_and_other_channels(labelled: Path) -> None:
    images, labels = labelled / "images", labelled / "labels"
    label = read_label_map(labels / "blob_0.nii.gz")
    write_nifti(labels / "blob_0.nii.gz", label.array[:-1], Grid(label.array[:-1].shape, label.grid.affine))
    shutil.copy(images / "blob_1.nii.gz", images / "copy.nii.gz")
    shutil.copy(labels / "blob_1.nii.gz", labels / "copy.nii.gz")
    scan = read_scan(images / "blob_3.nii.gz")
    import nibabel

    double = np.stack([scan.array[0], scan.array[0] + 1], axis=-1)[:, :, :, np.newaxis]
    nibabel.save(nibabel.Nifti1Image(double, scan.grid.affine), images / "blob_3.nii.gz")
    assert statuses(labelled) == {
        **{"blob_0": "skipped", "blob_1": "good", "blob_2": "good", "blob_3": "good", "copy": "skipped"},
    }
    assert "does not lie on the grid" in reason(labelled, "blob_0")
    assert "is a copy of" in reason(labelled, "copy") and "blob_1" in reason(labelled, "copy")
    wrong, odd = examine_dataset(open_dataset(labelled, True), True, EventLog()).problems
    assert wrong.startswith("1 label map(s) are wrong, the first: ") and "blob_0" in wrong
    assert "blob_3" in odd and "2 channel(s)" in odd


def test_what_was_not_annotated_is_counted(labelled: Path) -> None:
    file = labelled / "labels" / "blob_0.nii.gz"
    label = read_label_map(file)
    write_nifti(file, np.where(label.array == 1, 1, 0).astype(np.uint8), label.grid)
    for missing, annotated in (("absent", 4), ("unannotated", 3)):
        result = check(Run(labelled=str(labelled), missing_labels=missing), EventLog())
        dark = result["folders"]["labelled"]["classes"][1]
        assert (dark["name"], dark["cases"], dark["annotated"]) == ("Dark", 3, annotated)


def test_a_layout_that_is_broken_ends_it(labelled: Path) -> None:
    (labelled / "labels" / "blob_0.nii.gz").unlink()
    with pytest.raises(DataError, match="blob_0 has no label"):
        check_folder(labelled, True)
    with pytest.raises(DataError, match="no such folder"):
        check_folder(labelled / "none", False)
    with pytest.raises(SettingsError, match="nothing to check"):
        check(Run(), EventLog())


# --- the command --------------------------------------------------------------------------------------------


def test_nothing_is_written(labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path / "workspace"))
    before = listing(tmp_path)
    result = prepare(labelled=labelled, output=tmp_path / "run", check=True)
    assert result["usable"] == 4 and listing(tmp_path) == before


def test_scans_in_both_folders_are_found_whatever_their_format(labelled: Path, tmp_path: Path) -> None:
    scan = read_scan(labelled / "images" / "blob_2.nii.gz")
    (tmp_path / "unlabelled").mkdir()
    write_nifti(tmp_path / "unlabelled" / "other name.nii", scan.array[0], scan.grid)
    result = check(Run(unlabelled=str(tmp_path / "unlabelled"), labelled=str(labelled)), EventLog())
    assert result["duplicates"] == [("blob_2", "other name")] and result["skipped"] == 0
    text = report("check", result)
    assert "in both folders" in text and "other name" in text and "5 scan(s) can be used, 0 cannot" in text


def test_the_table_names_every_scan_and_its_reason(labelled: Path) -> None:
    (labelled / "images" / "blob_1.nii.gz").write_bytes(b"")
    text = report("check", check(Run(labelled=str(labelled)), EventLog()))
    rows = text.splitlines()
    (bad,) = [row for row in rows if row.startswith("skipped")]
    assert bad.split() == ["skipped", "blob_1", "the", "file", "is", "empty", "(0", "bytes)"]
    assert sum(row.startswith("good") for row in rows) == 3
    assert "layout: images-labels" in rows[0] and "3 good, 0 with a warning, 1 skipped" in text
    assert any(row.split() == ["Bright", "1", "3", "3"] for row in rows)
    assert "what helps (1): Copy or download the file again" in text


def test_a_dicom_series_is_checked_like_a_file(tmp_path: Path) -> None:
    source = Path(DATA_ROOT) / "test_files" / "dicomdirtests"
    for name in ("CT5N", "CT2N"):
        shutil.copytree(source / "98892001" / name, tmp_path / "scans" / name)
    shutil.copy(source / "DICOMDIR", tmp_path / "scans")
    checked = examine_dataset(open_dataset(tmp_path / "scans", False), False, EventLog())
    assert [(one.case.name, one.status) for one in checked.verdicts] == [("CT2N", "skipped"), ("CT5N", "warning")]
    assert checked.others == 1 and checked.usable[0].modality == "CT"


def test_label_maps_of_series(tmp_path: Path) -> None:
    source = Path(DATA_ROOT) / "test_files" / "dicomdirtests" / "98892001" / "CT5N"
    shutil.copytree(source, tmp_path / "images" / "Ann")
    scan = read_scan(tmp_path / "images" / "Ann" / "2062")
    label = np.zeros(scan.grid.shape, np.uint8)
    label[3:9, 3:9, 1:4] = 1
    write_nifti(tmp_path / "labels" / "Ann.nii.gz", label, scan.grid)
    (verdict,) = check_folder(tmp_path, True)
    assert verdict.case.name == "Ann" and verdict.facts is not None and verdict.facts.labels == {1}


# --- awkward files ------------------------------------------------------------------------------------------

GOOD = ("good", "")
UGLY = {
    "FLAIR": GOOD,
    "bad_sform_scales_image": GOOD,
    "ct_head_uint8_pitched": GOOD,
    "git_lfs_pointer_pretending_nifti": ("skipped", "a git-LFS pointer"),
    "image_without_label_hippocampus_118": GOOD,
    "mpld_asl": ("skipped", "25 volumes (4D)"),
    "pcasl": ("skipped", "10 volumes (4D)"),
    "rgb24": ("skipped", "colour"),
    "sct_4d_singleslice_venc": ("skipped", "3 volumes (4D)"),
    "sct_fmri_4d_oblique_16.8mm": ("skipped", "30 volumes (4D)"),
    "sct_t2_AIL_axes": GOOD,
    "sct_t2_AIL_axes_label_cord": GOOD,
    "sct_t2s_oblique_7.5mm": GOOD,
    "sct_t2s_oblique_7.5mm_label_gm": GOOD,
    "shear": ("warning", "not at right angles, by 18.5 degrees"),
    "t2_oblique_5.5mm": GOOD,
    "truncated_gzip_spleen_8": ("skipped", "truncated or damaged"),
    "two_slices_37.5mm": ("warning", "only 2 voxels"),
    "zero_bytes": ("skipped", "is empty"),
}


def test_every_ugly_file_has_its_verdict(shared_data: Path) -> None:
    folder = shared_data / "ugly" / "nifti"
    if not folder.is_dir():
        pytest.skip(f"the awkward scans are not at {folder}")
    found = {one.case.name: (one.status, "; ".join(one.reasons)) for one in check_folder(folder, False)}
    # One is a label map beside its scan, which is not learnt from.
    assert set(found) == set(UGLY) and len(found) == len(list(folder.iterdir())) - 1
    for name, (status, words) in UGLY.items():
        assert found[name][0] == status and words in found[name][1], name


def test_label_maps_of_ugly_scans(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "ugly" / "nifti"
    if not folder.is_dir():
        pytest.skip(f"the awkward scans are not at {folder}")
    pairs = {"bad_sform_scales_image": "bad_sform_scales_label", "sct_t2_AIL_axes": "sct_t2_AIL_axes_label_cord",
             "sct_t2s_oblique_7.5mm": "sct_t2s_oblique_7.5mm_label_gm"}  # fmt: skip
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for image, label in pairs.items():
        shutil.copy(folder / f"{image}.nii.gz", tmp_path / "images")
        shutil.copy(folder / f"{label}.nii.gz", tmp_path / "labels" / f"{image}.nii.gz")
    assert statuses(tmp_path) == {
        **{"bad_sform_scales_image": "skipped", "sct_t2_AIL_axes": "good", "sct_t2s_oblique_7.5mm": "good"}
    }
    assert "does not lie on the grid" in reason(tmp_path, "bad_sform_scales_image")
