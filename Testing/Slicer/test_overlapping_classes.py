"""A model whose classes overlap, through the panel: each segment is the whole mask of its class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
from SlicerHost import Host
from small_packages import CLASSES, make_package
from small_panel import apply_and_wait, choose, panel, segmentations

from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.model_description import read_description
from HybridMIMLib.inference.predictor import make_predictor
from HybridMIMLib.model_package import load_model
from HybridMIMLib.settings.inference import InferenceSettings
from HybridMIMLib.slicer_side.segments import ijk_to_ras, label_array

__all__ = ["panel"]

SHAPE = (24, 20, 22)


@pytest.fixture
def model(workspace: Path) -> Path:
    """Each of its two classes holds about half of all voxels, whatever the other holds."""
    folder = workspace / "runs" / "Both" / "fine-tuning" / "model"
    folder.parent.mkdir(parents=True)
    make_package(overlapping=True, name="Both").save(folder)
    return folder


def test_each_segment_is_the_whole_mask_of_its_class(host: Host, panel: Any, model: Path) -> None:
    array = np.random.default_rng(3).normal(100, 30, SHAPE).astype(np.float32)
    volume = slicer.util.addVolumeFromArray(array.transpose(2, 1, 0), name="Scan")
    volume.SetSpacing(1.0, 1.5, 2.0)
    choose(panel, volume)
    apply_and_wait(host, panel)
    predictor = make_predictor(load_model(model), InferenceSettings(), "cpu")
    wanted = predictor.predict(array[None], Grid(SHAPE, ijk_to_ras(volume))).layers
    assert wanted is not None and np.logical_and(*wanted).sum() > 500, "they do overlap"
    [node] = segmentations()
    for one, mask in zip(read_description(model).classes, wanted):
        # Computed in another process, and perhaps by another engine.
        assert (label_array(node, volume, (one,)) != mask * one.label).mean() < 0.002
    table = panel.ui.resultTable
    rows = [[table.item(row, column).text() for column in range(3)] for row in range(table.rowCount)]
    assert [row[0] for row in rows] == [one.name for one in CLASSES]
    voxels = [int(row[2]) for row in rows]
    assert voxels == pytest.approx([mask.sum() for mask in wanted], rel=0.01), "and so are the volumes of the table"
