"""A run made ready for another machine: all that it needs, nothing half, and scripts that a shell understands."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from small_runs import TINY, write_blobs

from HybridMIMLib import exporting
from HybridMIMLib.config import Run, make_run
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.layouts import open_dataset
from HybridMIMLib.data.scans import read_scan, write_label_map, write_nifti
from HybridMIMLib.errors import DataError, DiskError, HybridMIMError
from HybridMIMLib.events import EventLog
from HybridMIMLib.export_texts import ways
from HybridMIMLib.exporting import COMMANDS, Export, export_run
from HybridMIMLib.files import read_json, write_json
from HybridMIMLib.runs import describe_run, load_settings, save_settings

OPTIONS = {f"{part}.{key}": str(value) for part, values in TINY.items() for key, value in values.items()}


def export(place: Path, **fields: object) -> Path:
    """Export to ``place/out ů``, after which nothing else is there."""
    place.mkdir(exist_ok=True)
    export_run(Export(place / "out ů", **fields), place / ".tmp-work", EventLog())  # type: ignore[arg-type]
    assert [one.name for one in place.iterdir()] == ["out ů"]
    return place / "out ů"


def test_a_planned_run_is_whole_and_can_be_moved(tmp_path: Path, blobs: Path) -> None:
    given = {**OPTIONS, "unlabelled": blobs / "unlabelled", "labelled": blobs / "labelled", "device": "cuda:3"}
    out = export(tmp_path / "a", command="train", options=given)
    run = load_settings(out / "run.yaml")
    assert (run.output, run.device, run.network.features, run.name) == ("run", "auto", [4, 8], "labelled")
    moved = out.rename(tmp_path / "moved")
    for name in ("unlabelled", "labelled"):
        place = moved / str(getattr(run, name))
        assert not Path(str(getattr(run, name))).is_absolute() and moved in place.resolve().parents
        mine, theirs = open_dataset(place, name == "labelled"), open_dataset(blobs / name, name == "labelled")
        assert [case.name for case in mine.cases] == [case.name for case in theirs.cases]
        assert mine.classes == theirs.classes
        for one, other in zip(mine.cases, theirs.cases):
            np.testing.assert_array_equal(read_scan(one.images[0]).array, read_scan(other.images[0]).array)
    assert (moved / "library" / "HybridMIMLib" / "presets" / "btcv.yaml").is_file()
    assert not (moved / "library" / "HybridMIMLib" / "slicer_side").exists()
    about = read_json(moved / "export.json")
    assert about["command"] == "train" and about["origin"]["labelled"] == str(blobs / "labelled")
    text = (moved / "README.md").read_text(encoding="utf-8")
    assert "bash start.sh" in text and "sbatch submit.sh" in text and "torchrun" not in text, (
        "train runs in one process"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_scripts_are_such_that_a_shell_can_read_them(command: str, tmp_path: Path) -> None:
    for kind, name, text in ways(command):
        file = tmp_path / name
        file.write_text(text)
        assert subprocess.run(["bash", "-n", str(file)], check=False, capture_output=True).stderr == b"", kind
        assert f"-m HybridMIMLib {command} --config run.yaml" in text and "\r" not in text


def test_a_preset_by_name_is_settled_into_the_settings(tmp_path: Path, blobs: Path) -> None:
    given = {"config": "ct-abdomen", "unlabelled": blobs / "unlabelled", "pretraining.steps": 7}
    run = load_settings(export(tmp_path / "a", command="pretrain", options=given) / "run.yaml")
    assert run.plan.normalisation == "window" and run.pretraining.steps == 7


@pytest.mark.parametrize("copy", [True, False])
def test_a_list_of_scans_keeps_names_patients_and_what_was_annotated(tmp_path: Path, copy: bool) -> None:
    folder = write_blobs(tmp_path / "scans", 3, labelled=True)
    rows = [
        {
            "name": f"case {n}",
            "image": f"images/blob_{n}.nii.gz",
            "label": f"labels/blob_{n}.nii.gz",
            "patient": f"p{n // 2}",
        }
        for n in range(3)
    ]
    rows[1]["annotated"] = [2]  # type: ignore[assignment]
    (folder / "classes.json").unlink()
    write_json(folder / "list.json", {"labels": {"1": "Bright", "2": "Dark"}, "cases": rows})
    out = export(
        tmp_path / "a", command="finetune", options={"labelled": folder / "list.json"}, copy_scans=copy
    ).rename(tmp_path / "moved")
    if copy:
        shutil.rmtree(folder)
    found = open_dataset(out / "data" / "labelled.json", labelled=True)
    assert [(case.name, case.patient, case.annotated) for case in found.cases] == [
        ("case 0", "p0", None), ("case 1", "p0", frozenset({2})), ("case 2", "p1", None),
    ]  # fmt: skip
    assert [one.name for one in found.classes] == ["Bright", "Dark"] and not found.partial
    assert all((out in case.images[0].resolve().parents) == copy for case in found.cases)


def test_folders_are_listed_with_their_whole_paths(tmp_path: Path, blobs: Path) -> None:
    out = export(tmp_path / "a", command="pretrain", options={"unlabelled": blobs / "unlabelled"}, copy_scans=False)
    cases = open_dataset(out / "data" / "unlabelled.json", labelled=False).cases
    assert [case.images for case in cases] == [
        case.images for case in open_dataset(blobs / "unlabelled", False).cases
    ]
    assert not (out / "data" / "unlabelled").exists() and "were not copied" in (out / "README.md").read_text()


def test_regions_come_along_in_a_list(tmp_path: Path) -> None:
    folder = write_blobs(tmp_path / "scans", 2, labelled=True)
    write_json(folder / "classes.json", {"Bright": 1, "Dark": 2, "Both": [1, 2]})
    out = export(tmp_path / "a", command="finetune", options={"labelled": folder}, copy_scans=False)
    found = open_dataset(out / "data" / "labelled.json", labelled=True)
    assert found.classes == open_dataset(folder, True).classes and found.regions == open_dataset(folder, True).regions


def test_files_with_their_data_beside_them_and_dicom_are_copied_whole(tmp_path: Path, shared_data: Path) -> None:
    series = next(p for p in sorted((shared_data / "dicom").iterdir()) if "hcrop" in p.name)
    (tmp_path / "list.csv").write_text(f"image,name\n{series},one\n", encoding="utf-8")
    out = export(tmp_path / "a", command="pretrain", options={"unlabelled": tmp_path / "list.csv"})
    [case] = open_dataset(out / "data" / "unlabelled.json", labelled=False).cases
    [first] = open_dataset(tmp_path / "list.csv", labelled=False).cases
    np.testing.assert_array_equal(read_scan(case.images[0]).array, read_scan(first.images[0]).array)
    assert out in case.images[0].parents and case.name == "one"


def unfinished(folder: Path, run: Run, finished: bool = False) -> Path:
    """A run folder as one that was stopped leaves it."""
    folder.mkdir(parents=True)
    write_json(folder / "about.json", describe_run("pretrain"))
    save_settings(folder / "run.yaml", run)
    (folder / "checkpoint.pt").write_bytes(b"weights")
    (folder / "run.pid").write_text("999999\n\ncommand\n")
    (folder / "store" / "a").mkdir(parents=True)
    (folder / "store" / "a" / "case.json").write_text("{}")
    if finished:
        write_json(folder / "result.json", {})
    return folder


@pytest.mark.parametrize("with_store", [True, False])
def test_a_run_to_be_continued_has_the_settings_of_its_new_place(
    tmp_path: Path, blobs: Path, with_store: bool
) -> None:
    here = make_run(None, {"unlabelled": str(blobs / "unlabelled"), "output": str(tmp_path / "r"), "seed": 5})
    folder = unfinished(tmp_path / "r", here)
    out = export(tmp_path / "a", run=folder, copy_store=with_store)
    assert load_settings(out / "run.yaml") == load_settings(out / "run" / "run.yaml")
    assert load_settings(out / "run.yaml").seed == 5
    assert (out / "run" / "checkpoint.pt").read_bytes() == b"weights"
    assert not (out / "run" / "run.pid").exists() and not (out / "run" / "store").exists()
    assert (out / "store" / "a" / "case.json").exists() == with_store
    assert load_settings(out / "run.yaml").store == ("store" if with_store else None)
    assert load_settings(folder / "run.yaml") == here, "the run itself is left as it is"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"command": "segment", "options": {}}, "cannot be exported"),
        ({"command": "pretrain", "options": {}}, "no scans"),
        ({"command": "pretrain", "options": {"unlabelled": "nowhere"}}, "no such folder"),
        ({"command": "pretrain", "options": {"pretraining.steps": 0}}, "pretraining.steps is 0"),
        ({"command": "finetune", "options": {"weights": "nowhere", "labelled": "BLOBS"}}, "weights to start from"),
        ({"command": "finetune", "options": {"finetuning.split": "no", "labelled": "BLOBS"}}, "file of the split"),
        ({"command": "finetune", "options": {"labelled": "BLOBS"}, "copy_store": True}, "no prepared scans yet"),
    ],
)
def test_what_cannot_be_exported_is_said_and_leaves_nothing(
    fields: dict[str, object], said: str, tmp_path: Path, blobs: Path
) -> None:
    options = {k: blobs / "labelled" if v == "BLOBS" else v for k, v in fields["options"].items()}  # type: ignore[attr-defined]
    place = tmp_path / "a"
    place.mkdir()
    with pytest.raises(HybridMIMError, match=said):
        export(place, **{**fields, "options": options})
    assert list(place.iterdir()) == []


def test_a_finished_run_and_a_folder_in_use_are_refused(tmp_path: Path, blobs: Path) -> None:
    run = make_run(None, {"unlabelled": str(blobs / "unlabelled")})
    with pytest.raises(HybridMIMError, match="is finished"):
        export(tmp_path / "a", run=unfinished(tmp_path / "r", run, finished=True))
    (tmp_path / "a" / "out ů").mkdir()
    (tmp_path / "a" / "out ů" / "mine").touch()
    with pytest.raises(HybridMIMError, match="not an empty folder"):
        export(tmp_path / "a", command="pretrain", options={"unlabelled": blobs / "unlabelled"})
    assert [one.name for one in (tmp_path / "a").rglob("*")] == ["out ů", "mine"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, blobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = exporting.shutil.copy2, iter(range(1000))

    def full(source: Path, target: Path) -> None:
        if next(count) == 4:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(exporting.shutil, "copy2", full)
    (tmp_path / "a").mkdir()
    with pytest.raises(DiskError, match="disk is full"):
        export(tmp_path / "a", command="pretrain", options={"unlabelled": blobs / "unlabelled"})
    assert list((tmp_path / "a").iterdir()) == []


def test_a_disk_that_is_too_small_is_told_before_anything_is_copied(
    tmp_path: Path, blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_SPARE", 10**18)
    (tmp_path / "a").mkdir()
    with pytest.raises(DiskError, match="are to be copied"):
        export(tmp_path / "a", command="pretrain", options={"unlabelled": blobs / "unlabelled"})
    assert list((tmp_path / "a").iterdir()) == []


def test_a_layout_whose_labels_have_customary_names_keeps_it(tmp_path: Path) -> None:
    folder = tmp_path / "BTCV"
    grid = Grid((9, 8, 7), np.eye(4))
    for kind, name in (("img", "img0001"), ("label", "label0001")):
        (folder / kind).mkdir(parents=True)
        file = folder / kind / f"{name}.nii.gz"
        if kind == "img":
            write_nifti(file, np.zeros(grid.shape, np.int16), grid)
        else:
            write_label_map(file, np.ones(grid.shape, np.uint8), grid)
    theirs = open_dataset(folder, labelled=True)
    assert theirs.customary
    listed = export(tmp_path / "a", command="finetune", options={"labelled": folder}, copy_scans=False)
    assert load_settings(listed / "run.yaml").labelled == str(folder)
    copied = export(tmp_path / "b", command="finetune", options={"labelled": folder})
    assert open_dataset(copied / "data" / "labelled", True).layout == theirs.layout == "btcv"


def test_a_scan_that_goes_meanwhile_is_told(tmp_path: Path, blobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(source: Path, target: Path) -> None:
        raise FileNotFoundError(2, "No such file")

    monkeypatch.setattr(exporting.shutil, "copy2", gone)
    with pytest.raises(DataError, match="has gone"):
        export(tmp_path / "a", command="pretrain", options={"unlabelled": blobs / "unlabelled"})
