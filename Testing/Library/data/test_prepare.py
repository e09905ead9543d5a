"""Folders of scans → plan and store, as a command."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from HybridMIMLib.config import Run, make_run
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.prepare import prepare, prepare_folder, store_of
from HybridMIMLib.data.scans import write_nifti
from HybridMIMLib.errors import DataError, DiskError, LabelError, SettingsError
from HybridMIMLib.events import EventLog, EventReader
from HybridMIMLib.files import read_json

SHAPE = (20, 18, 12)
GRID = Grid(SHAPE, np.diag([2.0, 2.0, 3.0, 1.0]))


def write_cases(folder: Path, count: int, labels: bool = True) -> Path:
    for index in range(count):
        image = np.random.default_rng(index).normal(100, 30, SHAPE).astype(np.float32)
        label = np.zeros(SHAPE, np.uint8)
        label[4:10, 4:10, 3:8], label[12:16, 4:10, 3:8] = 1, 2
        write_nifti(folder / ("images" if labels else "") / f"case_{index}.nii.gz", image, GRID)
        if labels:
            write_nifti(folder / "labels" / f"case_{index}.nii.gz", label, GRID)
    return folder


def store_folders(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_both_folders_follow_one_plan_and_share_a_store(unicode_folder: Path) -> None:
    unlabelled = write_cases(unicode_folder / "u", 3, labels=False)
    labelled = write_cases(unicode_folder / "l", 2)
    result = prepare(unlabelled=unlabelled, labelled=labelled, output=unicode_folder / "run")
    assert result["cases"] == {"unlabelled": 3, "labelled": 2} and result["warnings"] == []
    assert len(store_folders(Path(result["store"]))) == 5
    plan = Plan.from_json(read_json(Path(result["plan"])))
    assert plan.spacing == (2, 2, 3) and plan.crop == (16, 16, 16)
    readable = yaml.safe_load((unicode_folder / "run" / "plan.yaml").read_text(encoding="utf-8"))
    assert readable["plan"]["spacing"] == [2, 2, 3]


def test_scans_that_are_in_both_folders_are_told(tmp_path: Path) -> None:
    unlabelled = write_cases(tmp_path / "u", 3, labels=False)
    prepare(unlabelled=unlabelled, labelled=write_cases(tmp_path / "l", 2), output=tmp_path / "run")
    said = [event.get("message", "") for event in EventReader(tmp_path / "run" / "events.jsonl").read()]
    (text,) = [text for text in said if "among the unlabelled" in text]
    assert text.startswith("2 labelled scan(s)") and "case_0" in text


def test_a_class_that_is_missing_was_not_annotated_when_the_setting_says_so(tmp_path: Path) -> None:
    source = write_cases(tmp_path / "l", 2)
    label = np.zeros(SHAPE, np.uint8)
    label[4:10, 4:10, 3:8] = 1
    write_nifti(source / "labels" / "case_1.nii.gz", label, GRID)
    for setting, expected in (("absent", [None, None]), ("unannotated", [{1, 2}, {1}])):
        run = make_run(None, {"labelled": source, "missing_labels": setting})
        prepared = prepare_folder(run, "labelled", tmp_path / setting, EventLog())
        assert [facts.annotated for facts in prepared.facts] == expected


def test_prepared_again_nothing_is_written(tmp_path: Path) -> None:
    source = write_cases(tmp_path / "l", 2)
    first = prepare(labelled=source, output=tmp_path / "one", store=tmp_path / "store")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*")}
    assert prepare(labelled=source, output=tmp_path / "one", store=tmp_path / "store") == first
    prepare(labelled=source, output=tmp_path / "two", store=tmp_path / "store")
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*")}


def test_a_bad_scan_is_named_in_the_result(tmp_path: Path) -> None:
    source = write_cases(tmp_path / "u", 3, labels=False)
    (source / "case_1.nii.gz").write_bytes(b"junk")
    result = prepare(unlabelled=source, output=tmp_path / "run")
    assert result["cases"] == {"unlabelled": 2}
    assert any(text.startswith("skipped") and "case_1.nii.gz" in text for text in result["warnings"])


def test_nothing_to_prepare_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--unlabelled DIR, --labelled DIR"):
        prepare(output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_folder_ends_in_the_last_event(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        prepare(unlabelled=tmp_path / "nothing", output=tmp_path / "run")
    *_, last = EventReader(tmp_path / "run" / "events.jsonl").read()
    assert last["outcome"] == "failed" and "no such folder" in last["message"]


def test_too_few_cases_are_counted(tmp_path: Path) -> None:
    run = make_run(None, {"labelled": write_cases(tmp_path / "l", 2)})
    with pytest.raises(DataError, match=r"2 labelled scan\(s\) can be used, at least 3 are needed"):
        prepare_folder(run, "labelled", tmp_path / "run", EventLog(), at_least=3)


def test_other_channels_than_the_plan_has_are_refused(tmp_path: Path) -> None:
    run = make_run(None, {"unlabelled": write_cases(tmp_path / "u", 1, labels=False)})
    plan = Plan(2, (2, 2, 3), "percentiles", (0, 1), (16, 16, 16), (8, 8, 8), (16, 16, 16))
    with pytest.raises(DataError, match=r"1 channel\(s\), the plan has 2"):
        prepare_folder(run, "unlabelled", tmp_path / "run", EventLog(), plan)


def test_an_unknown_label_is_refused(tmp_path: Path) -> None:
    source = write_cases(tmp_path / "l", 2)
    (source / "classes.json").write_text('{"1": "Liver"}')
    with pytest.raises(LabelError, match="holds label 2, but only .1. are named"):
        prepare(labelled=source, output=tmp_path / "run")


def test_background_alone_is_refused(tmp_path: Path) -> None:
    source = write_cases(tmp_path / "l", 2)
    for path in (source / "labels").iterdir():
        write_nifti(path, np.zeros(SHAPE, np.uint8), GRID)
    with pytest.raises(LabelError, match="background alone"):
        prepare(labelled=source, output=tmp_path / "run")


def test_a_spacing_that_fits_no_disk_is_refused_before_it_is_tried(tmp_path: Path) -> None:
    source = write_cases(tmp_path / "u", 1, labels=False)
    with pytest.raises(DiskError, match="MB are needed"):
        prepare(unlabelled=source, output=tmp_path / "run", plan={"spacing": [0.001, 0.001, 0.001]})


def test_a_changed_scan_is_prepared_anew_beside_the_others(tmp_path: Path) -> None:
    source = write_cases(tmp_path / "u", 2, labels=False)
    prepare(unlabelled=source, output=tmp_path / "one", store=tmp_path / "store")
    before = set(store_folders(tmp_path / "store"))
    write_nifti(source / "case_1.nii.gz", np.random.default_rng(9).random(SHAPE, np.float32), GRID)
    prepare(unlabelled=source, output=tmp_path / "two", store=tmp_path / "store")
    assert len(set(store_folders(tmp_path / "store")) - before) == 1


def test_the_store_lies_in_the_run_unless_it_is_named(tmp_path: Path) -> None:
    assert store_of(Run(), tmp_path) == tmp_path / "store"
    assert store_of(Run(store="~/s"), tmp_path) == Path.home() / "s"
