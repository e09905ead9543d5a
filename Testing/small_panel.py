"""The panel HybridMIM Segmentation, opened with one small model whose answer is known; what tests do with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
from SlicerHost import Host
from small_runs import save_threshold_model

SHAPE = (20, 24, 22)
BOX = (slice(5, 12), slice(6, 15), slice(4, 18))


@pytest.fixture
def model(workspace: Path) -> Path:
    """It finds the class Bright, and never the class Never."""
    return save_threshold_model(workspace / "runs" / "Box" / "fine-tuning" / "model", "Box 数")


@pytest.fixture
def panel(slicer_with_modules: Host, model: Path) -> Any:
    """The open panel; one model is in the workspace, no volume in the scene."""
    return slicer_with_modules.open_module("HybridMIMSegmentation")


def add_box(name: str = "Scan 1") -> Any:
    """A volume with a bright box in it."""
    array = np.zeros(SHAPE, dtype=np.int16)
    array[BOX] = 400
    # slicer.util counts k, j, i.
    return slicer.util.addVolumeFromArray(array.transpose(2, 1, 0), name=name)


def segmentations() -> list[Any]:
    return slicer.util.getNodesByClass("vtkMRMLSegmentationNode")


def contents() -> list[str]:
    """The IDs of all nodes."""
    scene = slicer.mrmlScene
    return sorted(scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes()))


def choose(panel: Any, volume: Any) -> None:
    panel.ui.inputVolumeSelector.setCurrentNode(volume)


def apply_and_wait(host: Host, panel: Any, seconds: float = 60) -> None:
    assert panel.ui.applyButton.enabled, panel.ui.hintLabel.text
    panel.ui.applyButton.click()
    wait(host, panel, seconds)


def wait(host: Host, panel: Any, seconds: float = 60) -> None:
    """Until what is at work has ended."""
    host.wait_until(lambda: not panel.content.jobs.busy, seconds, "the end of the work")


def import_entry(panel: Any, begin: str) -> Any:
    """An entry of the button Import."""
    [found] = [one for one in panel.ui.importButton.menu().actions() if one.text.startswith(begin)]
    return found
