"""Whether folders are fit for a training is found out by a process of its own, and told in time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

from small_runs import finish, has_ended, write_blobs

from HybridMIMLib.data import labelled_job
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.scans import read_label_map, read_scan, write_nifti
from HybridMIMLib.errors import DataError, RunError, SettingsError
from HybridMIMLib.finetuning.cases import choose_cases
from HybridMIMLib.slicer_side import data_check
from HybridMIMLib.slicer_side.data_check import (
    NEEDS,
    CheckJob,
    DataCheck,
    changed_since,
    describe,
    describe_notes,
    describe_problems,
    problems_first,
    start_check,
    why_no_folder,
    why_not,
)
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED, STOPPED

ALL = tuple(NEEDS)


def checked(folder: Path, unlabelled: Path | str = "", labelled: Path | str = "") -> DataCheck:
    """What the process would find, done in this one, which takes less time."""
    folder.mkdir(exist_ok=True)
    job = {"do": "check", "unlabelled": str(unlabelled), "labelled": str(labelled), "folder": ""}
    result = labelled_job.do_job(job, folder)
    return data_check._read(Path(result["checked"]))


def reasons(found: DataCheck, unlabelled: Path | str = "", labelled: Path | str = "") -> dict[str, str]:
    return {command: why_not(found, command, str(unlabelled), str(labelled)) for command in ALL}


def relabel(folder: Path, name: str, change: Any) -> None:
    file = folder / "labels" / f"{name}.nii.gz"
    label = read_label_map(file)
    write_nifti(file, change(label.array), label.grid)


# --- the process --------------------------------------------------------------------------------------------


def test_two_folders_are_checked_by_a_process_and_nothing_in_them_changes(unicode_folder: Path) -> None:
    unlabelled = write_blobs(unicode_folder / "scans", 2, labelled=False, seed=1)
    labelled = write_blobs(unicode_folder / "cases", 3, labelled=True, seed=2)
    damaged = unlabelled / "images" / "blob_1.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:200])
    scan = read_scan(labelled / "images" / "blob_2.nii.gz")
    write_nifti(unlabelled / "images" / "same.nii", scan.array[0], scan.grid)
    before = sorted((path, path.stat().st_mtime_ns) for path in unicode_folder.rglob("*"))
    job = finish(start_check(f"  {unlabelled} ", str(labelled)), 60)
    assert job.state == FINISHED and isinstance(job, CheckJob)
    assert job.progress.phase == "check scans" and job.progress.step == job.progress.steps == 3
    found = job.take()
    assert not job.folder.exists(), "no scan's name stays behind"
    scans, cases = found.folders["unlabelled"], found.folders["labelled"]
    assert [(row.name, row.status) for row in scans.rows] == [
        ("blob_0", "good"), ("blob_1", "skipped"), ("same", "good"),
    ]  # fmt: skip
    assert scans.rows[1].reason.startswith("the file is truncated") and scans.rows[1].cure
    assert scans.rows[1].images == (str(damaged),)
    assert (cases.layout, cases.usable, len(cases.rows)) == ("images-labels", 3, 3)
    assert cases.rows[0].label == str(labelled / "labels" / "blob_0.nii.gz") and cases.rows[0].labels == (1, 2)
    assert [(one.look.name, one.look.label, one.cases) for one in cases.classes] == [("Bright", 1, 3), ("Dark", 2, 3)]
    assert found.in_both == (("blob_2", "same"),)
    assert "1 scan in both folders (blob_2)" in describe_notes(found, cases)
    first, *rest = describe("unlabelled", scans).splitlines()
    assert first == "Unlabelled: 3 scans in images/, 2 can be used, 1 cannot."
    assert rest == ["Modality: not told by the files.", "Spacing (mm, R x A x S): 1 x 1 x 1.2."]
    assert set(reasons(found, unlabelled, labelled).values()) == {""}
    assert sorted((path, path.stat().st_mtime_ns) for path in unicode_folder.rglob("*")) == before
    with pytest.raises(RunError, match="Check again"):
        job.take()


def test_folders_that_are_not_there_are_told_before_a_process_is_started(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No folder of scans is chosen"):
        start_check(" ", "")
    with pytest.raises(SettingsError, match=r"labelled scans is not there: .*gone\. Choose another, or save cases"):
        start_check(str(tmp_path), str(tmp_path / "gone"))
    assert why_no_folder("unlabelled", "~nobody-of-this-name/x").endswith("Choose another.")


@pytest.mark.parametrize("end", ["cancelled", "killed", "no result"])
def test_a_check_that_does_not_finish_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    program = tmp_path / "program.py"
    waits = "import time, pathlib, sys; pathlib.Path(sys.argv[-1] + '.here').touch(); time.sleep(60)"
    program.write_text("print('error: it broke. Mend it.')\nraise SystemExit(1)" if end == "no result" else waits)
    child = data_check.Child
    monkeypatch.setattr(
        data_check, "Child", lambda command, log: child([sys.executable, str(program), command[-1]], log)
    )
    job = start_check(str(tmp_path), "")
    if end != "no result":
        wait_for(job.folder / "job.json.here")
        job.cancel() if end == "cancelled" else os.kill(job._process.pid, 9)  # type: ignore[attr-defined]
    finish(job, 20)
    wanted = {
        "cancelled": (STOPPED, "Stopped."),
        "killed": (FAILED, "memory ran out"),
        "no result": (FAILED, "it broke. Mend it."),
    }
    assert job.state == wanted[end][0] and wanted[end][1] in job.message
    assert has_ended(job._process.pid)  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while job.folder.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not job.folder.exists()


def wait_for(file: Path, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < end, f"{file} does not come"
        time.sleep(0.02)


def test_the_window_never_loads_what_reads_scans() -> None:
    program = (
        "import sys; from HybridMIMLib.slicer_side import data_check, scene_cases; "
        "print(*{'torch', 'monai', 'nibabel', 'pydicom', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- what would fail ----------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_used_does_not_hide_the_other(tmp_path: Path) -> None:
    scans, empty = write_blobs(tmp_path / "scans", 1, labelled=False), tmp_path / "empty"
    (empty / "images").mkdir(parents=True)
    shutil.copy(scans / "images" / "blob_0.nii.gz", empty / "images")
    found = checked(tmp_path / "job", scans, empty)
    assert found.folders["unlabelled"].usable == 1
    assert "has images/ but no labels/" in found.folders["labelled"].error
    told = reasons(found, scans, empty)
    assert told["pretrain"] == "" and all("no labels/" in told[one] for one in ("finetune", "train", "study"))
    assert describe("labelled", found.folders["labelled"]) == found.folders["labelled"].error


def test_a_folder_without_rights_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, listing = write_blobs(tmp_path / "closed", 1, labelled=False), os.scandir

    def refuse(path: Any = ".") -> Any:
        if os.fspath(path) == os.fspath(folder):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return listing(path)

    # The mode of a folder does not stop root.
    monkeypatch.setattr(os, "scandir", refuse)
    found = checked(tmp_path / "job", folder)
    assert "Permission denied" in why_not(found, "pretrain", str(folder), "")
    assert "Ask for the right to read it" in found.folders["unlabelled"].error
    assert changed_since(found) == frozenset()


def test_no_usable_scan(tmp_path: Path) -> None:
    scans = write_blobs(tmp_path / "scans", 2, labelled=False)
    for file in (scans / "images").iterdir():
        file.write_bytes(b"")
    found = checked(tmp_path / "job", scans)
    assert why_not(found, "pretrain", str(scans), "") == (
        "None of the 2 unlabelled scans can be used, most because: the file is empty (0 bytes)."
    )
    assert why_not(found, "pretrain", str(tmp_path), "") == "", "nothing is known of another folder"
    assert why_not(None, "train", str(scans), "") == ""


def test_a_wrong_label_map_stops_what_needs_labels(tmp_path: Path) -> None:
    cases = write_blobs(tmp_path / "cases", 3, labelled=True)
    relabel(cases, "blob_1", lambda array: np.where(array == 1, 7, array).astype(np.uint8))
    found = checked(tmp_path / "job", cases, cases)
    told = reasons(found, cases, cases)
    assert told["pretrain"] == "" and "label 7" in told["finetune"] == told["train"] == told["study"]
    assert "A training would stop: 1 label map(s) are wrong" in describe_problems(found.folders["labelled"])


def test_scans_of_different_channels_stop_everything(tmp_path: Path) -> None:
    scans = write_blobs(tmp_path / "scans", 3, labelled=False)
    make_two_channels(scans / "images" / "blob_1.nii.gz")
    told = reasons(checked(tmp_path / "job", scans), scans)
    assert "2 channel(s)" in told["pretrain"] == told["train"]


def test_a_study_needs_scans_of_one_kind_in_both_folders(tmp_path: Path) -> None:
    scans = write_blobs(tmp_path / "scans", 1, labelled=False, seed=5)
    make_two_channels(scans / "images" / "blob_0.nii.gz")
    cases = write_blobs(tmp_path / "cases", 2, labelled=True)
    told = reasons(checked(tmp_path / "job", scans, cases), scans, cases)
    assert "2 and 1 channels" in told.pop("study") and set(told.values()) == {""}


@pytest.mark.parametrize("case", ["one case", "one patient"])
def test_a_training_that_could_not_be_validated_is_refused_as_the_library_does(tmp_path: Path, case: str) -> None:
    cases = write_blobs(tmp_path / "cases", 1 if case == "one case" else 2, labelled=True)
    if case == "one patient":
        rows = [
            {"image": f"images/blob_{n}.nii.gz", "label": f"labels/blob_{n}.nii.gz", "patient": "P1"}
            for n in range(2)
        ]
        (cases / "cases.json").write_text(json.dumps(rows))
        cases = cases / "cases.json"
    found = checked(tmp_path / "job", "", cases)
    told = why_not(found, "finetune", "", str(cases))
    assert {"one case": "at least 2 are needed", "one patient": "are of one patient, P1"}[case] in told
    assert why_not(found, "pretrain", "", str(cases)) == ""
    assert_library_refuses(cases)


def assert_library_refuses(cases: Path) -> None:
    """What is refused here would end a training; else a user would be kept from one for nothing."""
    from HybridMIMLib.config import Run
    from HybridMIMLib.data.check import examine_dataset
    from HybridMIMLib.data.layouts import open_dataset
    from HybridMIMLib.events import EventLog

    looked = examine_dataset(open_dataset(cases, True), True, EventLog())
    with pytest.raises(DataError):
        choose_cases(Run(labelled=str(cases)), looked.dataset, looked.usable, looked.classes, EventLog())


def test_classes_that_are_rare_or_missing_are_told_and_stop_nothing(tmp_path: Path) -> None:
    cases = write_blobs(tmp_path / "cases", 3, labelled=True)
    (cases / "classes.json").write_text('{"1": "Bright", "2": "Dark", "5": "Never"}')
    for name in ("blob_0", "blob_1"):
        relabel(cases, name, lambda array: np.where(array == 2, 0, array).astype(np.uint8))
    found = checked(tmp_path / "job", "", cases)
    folder = found.folders["labelled"]
    assert [(one.look.name, one.cases) for one in folder.classes] == [("Bright", 3), ("Dark", 1), ("Never", 0)]
    told = describe_notes(found, folder)
    assert "class Dark is in one label map alone, that of blob_2" in told
    assert "class Never is in no label map" in told and "not every" not in told
    relabel(cases, "blob_1", lambda array: np.where(array == 0, 2, array).astype(np.uint8))
    found = checked(tmp_path / "job", "", cases)
    assert "not every label map has every class (Dark in 2 of 3)" in describe_notes(found, found.folders["labelled"])
    assert why_not(found, "finetune", "", str(cases)) == "" == describe_problems(folder)


def make_two_channels(file: Path) -> None:
    scan = read_scan(file)
    double = np.stack([scan.array[0], scan.array[0] + 1], axis=-1)[:, :, :, np.newaxis]
    nibabel.save(nibabel.Nifti1Image(double, scan.grid.affine), file)


# --- later --------------------------------------------------------------------------------------------------


def test_what_has_changed_since_is_known(tmp_path: Path) -> None:
    scans, cases = (write_blobs(tmp_path / name, 2, labelled=name == "cases") for name in ("scans", "cases"))
    found = checked(tmp_path / "job", scans, cases)
    assert changed_since(found) == frozenset()
    (cases / "images" / "new.nii.gz").write_bytes(b"x")
    assert changed_since(found) == {"labelled"}
    shutil.rmtree(scans)
    assert changed_since(found) == {"labelled", "unlabelled"}


def test_the_problems_come_with_the_worst_first(tmp_path: Path) -> None:
    scans = write_blobs(tmp_path / "scans", 3, labelled=False)
    (scans / "images" / "blob_2.nii.gz").write_bytes(b"")
    thin = Grid((20, 20, 2), np.diag([1.0, 1.0, 40.0, 1.0]))
    write_nifti(scans / "images" / "a.nii", np.arange(800, dtype=np.float32).reshape(20, 20, 2), thin)
    rows = checked(tmp_path / "job", scans).folders["unlabelled"].rows
    assert [(row.name, row.status) for row in problems_first(rows)] == [("blob_2", "skipped"), ("a", "warning")]


def test_what_was_found_and_cannot_be_read_is_told(tmp_path: Path) -> None:
    for content in ("{", "[]", '{"folders": {"labelled": {"path": "x"}}, "duplicates": []}'):
        (tmp_path / "checked.json").write_text(content)
        with pytest.raises(RunError, match="Check again"):
            data_check._read(tmp_path / "checked.json")


def test_a_folder_of_dicom_and_a_real_data_set(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "dicom" / "mr_hcrop_40slices"
    small = shared_data / "small_labelled_ct" / "msd_spleen_2_crop"
    if not (source.is_dir() and small.is_dir()):
        pytest.skip(f"the scans are not in {shared_data}")
    cases = tmp_path / "cases"
    for part, file in (("images", "image"), ("labels", "label")):
        (cases / part).mkdir(parents=True)
        (cases / part / "spleen.nii.gz").symlink_to(small / f"{file}.nii.gz")
    found = checked(tmp_path / "job", source, cases)
    series, spleen = found.folders["unlabelled"], found.folders["labelled"]
    assert len(series.rows) == 1 and series.modalities == (("MR", 1),)
    assert spleen.modalities == (("CT", 1),) and spleen.rows[0].labels == (1,)
