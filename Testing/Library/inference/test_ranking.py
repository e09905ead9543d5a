"""Ranking scans by uncertainty: what the score is, where scans stand, and what is computed again."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import save_threshold_model, write_blobs

from HybridMIMLib import rank
from HybridMIMLib.cli import main
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.layouts import Case
from HybridMIMLib.data.scans import read_scan, write_nifti
from HybridMIMLib.errors import DataError
from HybridMIMLib.inference.cases import Found
from HybridMIMLib.inference.ranking import FLOOR, measured, ranked
from HybridMIMLib.report import report

CLASSES = (LabelClass(1, "one", (1, 0, 0)), LabelClass(4, "four", (0, 1, 0)))
SHEARED = np.array([[1.0, 0.3, 0.2, 5], [0, 2.0, -0.4, 6], [0, 0, 5.0, 7], [0, 0, 0, 1]])
"""Its voxels are of 0.01 ml."""


def found(labels: np.ndarray, uncertainty: np.ndarray, layers: list[np.ndarray] | None = None) -> Found:
    grid = Grid((labels.shape[-3], labels.shape[-2], labels.shape[-1]), SHEARED)
    return Found(Case("a", (), None), grid, labels, layers, uncertainty.astype(np.float32), is_4d=labels.ndim == 4)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(3, 4, 2), (2, 3, 4, 2)]))
def test_the_score_is_the_mean_over_voxels_that_matter(seed: int, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(seed)
    labels = random.choice([0, 0, 0, 1, 4], size=shape).astype(np.uint8)
    uncertainty = (random.random(shape) * random.choice([0.08, 1.0])).astype(np.float32)
    row = measured(found(labels, uncertainty), CLASSES)
    kept = [float(u) for label, u in zip(labels.flat, uncertainty.flat) if label or u >= np.float32(FLOOR)]
    assert math.isclose(row["score"], sum(kept) / len(kept) if kept else 0, abs_tol=1e-6)
    volumes = {one.name: sum(label == one.label for label in labels.flat) * 0.01 for one in CLASSES}
    times = 2 if len(shape) == 4 else 1
    assert all(math.isclose(row["volumes_ml"][name], ml / times, abs_tol=6e-4) for name, ml in volumes.items())
    assert row["found"] == bool(labels.any())


def test_more_background_changes_nothing() -> None:
    """The same organ in a scan with ten times as much air around it."""
    labels, uncertainty = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4))
    labels[1:3, 1:3, 1:3], uncertainty[0:3, 1:3, 1:3] = 1, 0.4
    wide = [np.pad(array, 4) for array in (labels, uncertainty)]
    assert measured(found(labels, uncertainty), CLASSES) == measured(found(*wide), CLASSES)


def test_classes_that_overlap_count_each_for_itself() -> None:
    labels = np.full((2, 2, 2), 4, np.uint8)
    row = measured(found(labels, np.zeros((2, 2, 2)), [labels > 0, labels > 0]), CLASSES)
    assert row["volumes_ml"] == {"one": 0.08, "four": 0.08}


def test_uncertain_scans_stand_first_and_those_with_nothing_found_last() -> None:
    def row(score: float, is_found: bool = True) -> dict[str, object]:
        return {"score": score, "found": is_found, "volumes_ml": {}}

    measures = {"b": row(0.2), "empty": row(0.0, False), "c": row(0.7), "odd": row(0.9, False), "a": row(0.2)}
    rows = ranked(measures)
    assert [one["scan"] for one in rows] == ["c", "a", "b", "odd", "empty"]
    assert [one["rank"] for one in rows] == [1, 2, 3, 4, 5]


def blurred(folder: Path) -> tuple[Path, Path]:
    """Scans of blobs, and one whose blob is hardly brighter than the rest of it: the model is less sure of it."""
    scans = write_blobs(folder / "scans", 2, labelled=False) / "images"
    blob = read_scan(scans / "blob_0.nii.gz")
    image = np.random.default_rng(0).normal(100, 10, blob.grid.shape).astype(np.float32)
    write_nifti(scans / "noise.nii.gz", image, blob.grid)
    return scans, save_threshold_model(folder / "model")


def test_a_folder_is_ranked_and_only_what_changed_is_computed_again(tmp_path: Path) -> None:
    scans, model = blurred(tmp_path)
    call = {"scans": str(scans), "model": str(model), "output": str(tmp_path / "out")}
    result = rank(**call)
    rows = result["ranking"]
    scores = [row["score"] for row in rows if row["found"]]
    assert len(rows) == 3 and scores == sorted(scores, reverse=True) and len(set(scores)) == len(scores)
    assert all(0 < row["score"] < 1 and set(row["volumes_ml"]) == {"Bright", "Never"} for row in rows)
    assert json.loads(Path(result["json"]).read_text(encoding="utf-8")) == rows
    with open(result["csv"], encoding="utf-8", newline="") as handle:
        table = list(csv.DictReader(handle))
    assert [one["scan"] for one in table] == [row["scan"] for row in rows]
    assert [float(one["Bright (ml)"]) for one in table] == [row["volumes_ml"]["Bright"] for row in rows]
    assert not (tmp_path / "out" / "labels").exists(), "no label maps are written"
    text = report("rank", result)
    assert [line.split()[0] for line in text.splitlines() if ".nii.gz" in line] == ["1", "2", "3"]

    (scans / "noise.nii.gz").unlink()
    again = rank(**call)
    assert [row["scan"] for row in again["ranking"]] == [r["scan"] for r in rows if "noise" not in r["scan"]]
    events = (tmp_path / "out" / "events.jsonl").read_text(encoding="utf-8")
    assert "2 scan(s) were looked at before" in events
    assert rank(**call, inference={"overlap": 0.25})["ranking"], "other settings are computed anew"


def test_scans_that_cannot_be_used_are_named_by_the_command(
    unicode_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    scans, model = blurred(unicode_folder)
    (scans / "broken.nii.gz").write_bytes(b"\x1f\x8bnothing")
    options = {"scans": scans, "model": model, "output": unicode_folder / "out"}
    assert main(["rank", *(f"--{name}={value}" for name, value in options.items())]) == 3
    said = capsys.readouterr()
    assert "warning: skipped" in said.err and "broken.nii.gz" in said.err
    assert said.out.count(".nii.gz") == 3 and (unicode_folder / "out" / "ranking.csv").is_file()


def test_no_scan_that_can_be_used_is_an_error(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "broken.nii.gz").write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(DataError, match="none of the 1"):
        rank(scans=str(scans), model=str(save_threshold_model(tmp_path / "model")), output=str(tmp_path / "out"))
