"""The demo: shares without leaks, everything written, continued where it stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_runs import TINY, write_blobs

from HybridMIMLib import demo
from HybridMIMLib.config import Run, make_run
from HybridMIMLib.data.layouts import open_dataset
from HybridMIMLib.data.model_description import read_description
from HybridMIMLib.data.scans import read_label_map, read_scan
from HybridMIMLib.data.survey import content_hash
from HybridMIMLib.demonstration import SYNTHETIC_CROP, SYNTHETIC_NAME, for_phantoms, share_out, typical_case
from HybridMIMLib.errors import DataError, RunError, SettingsError
from HybridMIMLib.report import report
from HybridMIMLib.settings.plan import PlanSettings


def test_a_copy_of_a_test_scan_is_kept_out_of_pretraining(tmp_path: Path) -> None:
    labelled = write_blobs(tmp_path / "labelled", 8, labelled=True)
    unlabelled = write_blobs(tmp_path / "unlabelled", 3, labelled=False, seed=9)
    for index in range(8):
        shutil.copy(labelled / "images" / f"blob_{index}.nii.gz", unlabelled / "images" / f"renamed_{index}.nii.gz")
    shares = share_out(
        open_dataset(unlabelled, labelled=False), open_dataset(labelled, labelled=True), make_run(None, {"seed": 4})
    )
    hashes = {
        name: {content_hash(c.images) for c in getattr(shares, name).cases}
        for name in ("unlabelled", "labelled", "unseen")
    }
    assert [len(hashes[name]) for name in ("unlabelled", "labelled", "unseen")] == [9, 6, 2]
    assert not hashes["unseen"] & (hashes["unlabelled"] | hashes["labelled"])


def test_numbers_of_the_split_are_kept_and_too_many_are_refused(tmp_path: Path) -> None:
    both = write_blobs(tmp_path / "both", 10, labelled=True)
    sets = open_dataset(both, labelled=False), open_dataset(both, labelled=True)
    run = make_run(None, {"split": {"unseen": 3, "labelled": 2, "unlabelled": 5}})
    shares = share_out(*sets, run)
    names = [{c.name for c in part.cases} for part in (shares.unlabelled, shares.labelled, shares.unseen)]
    assert [len(n) for n in names] == [5, 2, 3] and len(set.union(*names)) == 10, "no scan serves twice"
    with pytest.raises(DataError, match="8 are needed"):
        share_out(*sets, make_run(None, {"split": {"unseen": 3, "labelled": 8}}))


def test_nobody_who_is_in_the_test_is_in_the_rest(tmp_path: Path) -> None:
    scans = write_blobs(tmp_path, 12, labelled=True)
    rows = [f"images/blob_{n}.nii.gz,labels/blob_{n}.nii.gz,patient {n // 2}" for n in range(12)]
    (scans / "cases.csv").write_text("\n".join(["image,label,patient", *rows]))
    sets = [open_dataset(scans / "cases.csv", labelled) for labelled in (False, True)]
    for seed in range(5):
        shares = share_out(*sets, make_run(None, {"seed": seed, "split": {"unseen": 3}}))
        names = {part: [c.name for c in getattr(shares, part).cases] for part in ("unlabelled", "labelled", "unseen")}
        patients = {part: {c.patient for c in getattr(shares, part).cases} for part in names}
        assert len(patients["unseen"]) == 1 and len(names["unseen"]) == 2, "a third scan would part a patient"
        assert not patients["unseen"] & (patients["labelled"] | patients["unlabelled"])
        assert len(names["labelled"]) == 10 == len(names["unlabelled"])


def test_the_picture_is_of_the_median_case() -> None:
    rows = {"a": {"x": 0.9}, "b": {"x": 0.1}, "c": {"x": 0.5, "y": float("nan")}}
    assert typical_case(rows) == "c"


def test_what_the_user_says_wins_over_what_suits_the_phantoms() -> None:
    run = for_phantoms(Run())
    assert (run.name, run.plan.crop) == (SYNTHETIC_NAME, SYNTHETIC_CROP)
    own = Run(name="mine", plan=PlanSettings(crop=[16, 16, 16]))
    assert for_phantoms(own) == own


def test_one_folder_alone_is_refused(blobs: Path) -> None:
    with pytest.raises(SettingsError, match="--labelled is missing"):
        demo(unlabelled=str(blobs / "unlabelled"))


def test_the_whole_demo_writes_what_it_says_and_continues(blobs: Path, unicode_folder: Path) -> None:
    settings = {
        "unlabelled": str(blobs / "unlabelled"),
        "labelled": str(blobs / "labelled"),
        "output": str(unicode_folder / "demo"),
        **TINY,
        "finetuning": {**TINY["finetuning"], "steps": 60, "validate_every": 20, "learning_rate": 0.01},
    }
    result = demo(**settings)
    assert not result["synthetic"] and result["warnings"] == []
    assert set(result["seconds"]) == {"pre-training", "fine-tuning", "segmentation", "scene"}
    assert all(Path(path).exists() for path in result["files"].values())
    picture = Path(result["files"]["picture"]).read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000
    name = next(iter(result["cases"]))
    scan = read_scan(blobs / "labelled" / "images" / f"{name}.nii.gz")
    written = read_label_map(Path(result["files"]["labels"]) / f"{name}.nii.gz", scan.grid)
    assert set(np.unique(written.array)) <= {0, 1, 2}
    assert read_description(Path(result["files"]["model"])).name == "labelled", "that of the folder"
    text = report("demo", result)
    assert all(word in text for word in ("Bright", "Dark", "mean", "together", "your folders", name))
    # A demo that was stopped before its last stage does that stage alone.
    folder = unicode_folder / "demo"
    trained = (folder / "fine-tuning" / "result.json").stat().st_mtime_ns
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "scene")
    again = demo(**settings)
    assert again["dice"] == pytest.approx(result["dice"], nan_ok=True)
    assert (folder / "fine-tuning" / "result.json").stat().st_mtime_ns == trained
    assert Path(again["files"]["scene"]).exists()
    assert json.loads((folder / "split.json").read_text(encoding="utf-8"))["unseen"].keys() == result["cases"].keys()


def test_a_copy_of_a_test_scan_among_the_labelled_is_not_trained_on(tmp_path: Path) -> None:
    labelled = write_blobs(tmp_path / "labelled", 4, labelled=True)
    for index in range(4):
        for part in ("images", "labels"):
            shutil.copy(labelled / part / f"blob_{index}.nii.gz", labelled / part / f"copy_{index}.nii.gz")
    sets = open_dataset(labelled, labelled=False), open_dataset(labelled, labelled=True)
    shares = share_out(*sets, make_run(None, {"split": {"unseen": 1}}))
    unseen = {content_hash(c.images) for c in shares.unseen.cases}
    trained = {content_hash(c.images) for part in (shares.labelled, shares.unlabelled) for c in part.cases}
    assert not unseen & trained


def test_a_demo_goes_on_with_the_same_scans_or_not_at_all(tmp_path: Path) -> None:
    scans = write_blobs(tmp_path / "scans", 5, labelled=True)
    settings = {"unlabelled": str(scans), "labelled": str(scans), "output": str(tmp_path / "demo"), **TINY}
    demo(**settings)
    for file in ("result.json", "segmentation/result.json", "scene/result.json"):
        (tmp_path / "demo" / file).unlink()
    write_blobs(scans, 6, labelled=True)
    with pytest.raises(RunError, match="scans have changed"):
        demo(**settings)


def test_a_scene_that_cannot_be_made_does_not_throw_the_rest_away(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    result = demo(
        unlabelled=str(blobs / "unlabelled"), labelled=str(blobs / "labelled"), output=str(tmp_path / "demo"), **TINY
    )
    assert "scene" not in result["files"] and any("could not be made" in text for text in result["warnings"])
    assert "mean" in report("demo", result)
