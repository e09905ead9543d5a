"""The model whose answer is known: as a function, and as a job for a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from HybridMIMLib.data.model_description import read_description
from HybridMIMLib.known_model import SIDE, main, save_known_model
from HybridMIMLib.model_package import load_model


def job(folder: Path, **content: object) -> str:
    file = folder / "job.json"
    whole = {"folder": str(folder / "model"), "name": "Known", "spacing": [10, 10, 8], "threshold": 0, **content}
    file.write_text(json.dumps(whole), encoding="utf-8")
    return str(file)


def test_a_job_writes_a_package(unicode_folder: Path) -> None:
    assert main([job(unicode_folder)]) == 0
    result = json.loads((unicode_folder / "result.json").read_text(encoding="utf-8"))
    found = read_description(Path(result["model"]))
    assert found.name == "Known" and found.plan["spacing"] == [10, 10, 8]
    assert [one.name for one in found.classes] == ["Bright", "Never"]


@pytest.mark.parametrize("wrong", [{"spacing": [1, 2]}, {"threshold": "much"}, {"spacing": None}])
def test_what_is_no_job_is_told(tmp_path: Path, wrong: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([job(tmp_path, **wrong)]) == 1
    assert "job.json: is no job" in capsys.readouterr().err and not (tmp_path / "model").exists()


def test_it_finds_what_is_above_the_mean(tmp_path: Path) -> None:
    scan = torch.zeros(1, 1, SIDE, SIDE, SIDE)
    scan[..., 5:20, 7:25, 6:22] = 1
    network = load_model(save_known_model(tmp_path / "model", "Known", threshold=0)).network.eval()
    with torch.no_grad():
        found = network(scan).argmax(1)
    np.testing.assert_array_equal(found, scan[:, 0].long())
