"""``segment --check``: what it says of scans, and that it writes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_runs import save_threshold_model, write_blobs

from HybridMIMLib import segment
from HybridMIMLib.cli import main
from HybridMIMLib.data.scans import read_scan, write_image, write_nifti
from HybridMIMLib.errors import DataError


def files_in(folder: Path) -> set[Path]:
    return {file for file in folder.rglob("*") if file.is_file()}


def test_every_preset_is_forecast_and_nothing_is_written(tmp_path: Path) -> None:
    scans, model = write_blobs(tmp_path / "scans", 2, labelled=False), save_threshold_model(tmp_path / "model")
    blob = read_scan(scans / "images" / "blob_0.nii.gz")
    write_image(scans / "images" / "series.nii.gz", np.concatenate([blob.array] * 5), blob.grid, (1.5, "sec"))
    (scans / "images" / "broken.nii.gz").write_bytes(b"broken")
    before = files_in(tmp_path)
    found = segment(scans=str(scans), model=str(model), check=True, output=str(tmp_path / "out"))
    assert files_in(tmp_path) == before and not (tmp_path / "out").exists()
    rows = {Path(row["path"]).name: row for row in found["rows"]}
    assert {name: row["volumes"] for name, row in rows.items()} == {
        "blob_0.nii.gz": 1,
        "blob_1.nii.gz": 1,
        "series.nii.gz": 5,
    }
    assert all(list(row["seconds"]) == ["fast", "balanced", "best"] for row in rows.values())
    assert found["seconds"]["best"] == pytest.approx(sum(row["seconds"]["best"] for row in rows.values()), abs=0.2)
    assert found["skipped"] == 1 and any("broken.nii.gz" in text for text in found["warnings"])


def test_a_large_scan_is_forecast_to_take_longer_in_each_preset(tmp_path: Path) -> None:
    """Thirty-two times as many voxels: enough for the tenths of a second that are told."""
    scans, model = write_blobs(tmp_path / "scans", 1, labelled=False), save_threshold_model(tmp_path / "model")
    blob = read_scan(scans / "images" / "blob_0.nii.gz")
    write_nifti(scans / "images" / "large.nii.gz", np.tile(blob.array[0], (4, 4, 2)), blob.grid)
    rows = segment(scans=str(scans), model=str(model), check=True)["rows"]
    small, large = (row["seconds"] for row in sorted(rows, key=lambda row: "large" in row["path"]))
    assert all(large[preset] > small[preset] for preset in small)


def test_the_command_prints_a_table_and_says_what_was_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans, model = write_blobs(tmp_path / "scans", 2, labelled=False), save_threshold_model(tmp_path / "model")
    command = ["segment", "--check", "--scans", str(scans), "--model", str(model)]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["scan", "volumes", "fast", "balanced", "best"]
    assert lines[4].startswith("together") and lines[-1] == "Nothing was written."
    (scans / "images" / "broken.nii.gz").write_bytes(b"broken")
    assert main(command) == 3
    assert "1 scan(s) cannot be segmented" in capsys.readouterr().out


def test_without_a_scan_that_can_be_used_the_reasons_are_told(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"none of the 1 scan.*broken\.nii\.gz"):
        segment(scans=str(tmp_path / "scans"), model=str(save_threshold_model(tmp_path / "model")), check=True)
