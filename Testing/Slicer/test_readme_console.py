"""What the README gives for Slicer's Python console, and for a scene without Slicer's window, in the stand-in."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
from repository import text_of
from SlicerHost import Host
from small_panel import add_box, model
from small_runs import TINY, write_blobs

__all__ = ["model"]


def block(begin: str) -> str:
    """The Python of the README that begins so."""
    found = re.findall(r"^```python\n(.*?)^```$", text_of("README.md"), re.MULTILINE | re.DOTALL)
    [text] = [text for text in found if text.startswith(begin)]
    return text


@pytest.fixture
def two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny networks, and two steps of each kind."""
    from HybridMIMLib.slicer_side.training import TrainingSettings

    whole = TrainingSettings.options
    small: dict[str, Any] = {f"{part}.{key}": value for part, values in TINY.items() for key, value in values.items()}
    small |= {"pretraining.steps": 2, "finetuning.steps": 2}
    monkeypatch.setattr(TrainingSettings, "options", lambda self: {**whole(self), **small})


def test_the_console(
    slicer_with_modules: Host, model: Path, two_steps: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_blobs(tmp_path / "SCANS", 4, labelled=False, seed=1)
    write_blobs(tmp_path / "CASES", 4, labelled=True, seed=2)
    shutil.copytree(model, tmp_path / "FINETUNED" / "model")
    volume = add_box()
    box = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    bounds = np.zeros(6)
    volume.GetRASBounds(bounds)
    box.SetCenter((bounds[::2] + bounds[1::2]) / 2)
    box.SetSize(bounds[1::2] - bounds[::2])
    # The class is called otherwise in the small model.
    code = block("job = slicer.util").replace('classes=["Liver"]', 'classes=["Bright"]')
    names: dict[str, Any] = {"slicer": slicer, "volumeNode": volume, "box": box}
    exec(compile(code, "README.md", "exec"), names)
    assert names["job"].state == "finished"
    segmentation = names["node"].GetSegmentation()
    assert [segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())] == ["Bright"]


def test_a_scene_without_a_window(slicer_with_modules: Host, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = block("from HybridMIMLib.slicer_side").replace('"Liver"', repr(os.fspath(model)))
    names: dict[str, Any] = {"volume_node": add_box()}
    exec(compile(code, "README.md", "exec"), names)
    assert names["node"].GetSegmentation().GetNumberOfSegments() == 2
    assert capsys.readouterr().out, "progress is printed"
