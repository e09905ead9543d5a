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


def few_steps(text: str) -> str:
    """The README's settings with tiny networks and a few steps of each kind."""
    small = {name: TINY[name] for name in ("plan", "network")}
    pretraining, finetuning = {**TINY["pretraining"], "steps": 2}, {**TINY["finetuning"], "steps": 2}
    text = text.replace('pretraining={"steps": 2000}', f"pretraining={pretraining}, **{small}")
    assert str(small) in text
    changed = text.replace('name="Liver"', f'name="Liver", finetuning={finetuning}, **{small}')
    # Two steps are over before a script can pause; the README's are not.
    return changed.replace("run.pause()\nrun.resume()\n", "")


def test_the_console_trains(slicer_with_modules: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_blobs(tmp_path / "SCANS", 4, labelled=False, seed=1)
    write_blobs(tmp_path / "CASES", 4, labelled=True, seed=2)
    code = block('logic = slicer.util.getModuleLogic("HybridMIMTraining")')
    before, _, after = few_steps(code).partition("run = logic.attach(run.folder)")
    names: dict[str, Any] = {"slicer": slicer}
    exec(compile(before, "README.md", "exec"), names)
    if names["run"].state != "finished":
        after = f"run = logic.attach(run.folder){after}"
    exec(compile(after.partition("\n")[2] if after.startswith("  #") else after, "README.md", "exec"), names)
    assert names["run"].state == "finished" and names["run"].model.is_dir()


def test_the_console_segments(
    slicer_with_modules: Host, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "FINETUNED" / "model")
    volume = add_box()
    box = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    bounds = np.zeros(6)
    volume.GetRASBounds(bounds)
    box.SetCenter((bounds[::2] + bounds[1::2]) / 2)
    box.SetSize(bounds[1::2] - bounds[::2])
    # Model and class are called otherwise here.
    code = block('logic = slicer.util.getModuleLogic("HybridMIMSegmentation")')
    code = code.replace('classes=["Liver"]', 'classes=["Bright"]').replace('"Liver"', repr(os.fspath(model)))
    names: dict[str, Any] = {"slicer": slicer, "volumeNode": volume, "box": box}
    exec(compile(code, "README.md", "exec"), names)
    segmentation = names["node"].GetSegmentation()
    assert [segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())] == ["Bright"]


def test_a_scene_without_a_window(slicer_with_modules: Host, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = block("from HybridMIMLib.slicer_side").replace('"Liver"', repr(os.fspath(model)))
    names: dict[str, Any] = {"volume_node": add_box()}
    exec(compile(code, "README.md", "exec"), names)
    assert names["node"].GetSegmentation().GetNumberOfSegments() == 2
    assert capsys.readouterr().out, "progress is printed"
