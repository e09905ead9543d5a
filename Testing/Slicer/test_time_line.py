"""What the panel says of the time that a segmentation will take: nothing at first, then what the last one took."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
from SlicerHost import Host
from small_panel import add_box, apply_and_wait, choose, model, panel

from HybridMIMLib.slicer_side.expected_time import TimeTaken, note_time, time_taken
from HybridMIMLib.slicer_side.warm_worker import warm_worker

__all__ = ["model", "panel"]


def said(host: Host, panel: Any) -> str:
    """The line, once the note was looked up; empty while it is hidden."""
    host.process_events(0.02)
    host.wait_until(lambda: not panel.content.time.lookup.busy, 20, "the note")
    label = panel.ui.timeLabel
    assert label.isVisible() == bool(label.text)
    return str(label.text)


def test_the_first_time_nothing_is_known_and_then_the_time_of_each_quality(host: Host, panel: Any) -> None:
    # Another test may have left it at work.
    warm_worker().close()
    choose(panel, add_box())
    assert said(host, panel) == ""
    panel.ui.applyButton.click()
    assert said(host, panel) == ""
    host.wait_until(lambda: not panel.content.jobs.busy, 60, "the segmentation")
    assert said(host, panel).startswith("About ") and " s in quality balanced" in said(host, panel)
    taken = time_taken(panel.content.models.chooser.model, "auto")
    assert isinstance(taken, TimeTaken) and set(taken.presets) == {"fast", "balanced", "best"}
    assert taken.cold is not None and taken.warm is None
    apply_and_wait(host, panel)
    taken = time_taken(panel.content.models.chooser.model, "auto")
    assert taken is not None and taken.warm is not None and taken.cold is not None
    # A worker that is there already saves its start.
    assert taken.warm < taken.cold
    large = slicer.util.addVolumeFromArray(np.zeros((60, 60, 60), np.int16), name="Of another kind")
    choose(panel, large)
    assert said(host, panel) == "", "five times as large as any that was seen"


def test_quality_and_region_change_what_is_said(host: Host, panel: Any) -> None:
    presets = {"fast": 4.0, "balanced": 31.0, "best": 200.0}
    answer = {"presets": presets, "seconds": {"load": 0.0, "total": 31.0}}
    volume = add_box()
    ml = np.prod(volume.GetImageData().GetDimensions()) / 1000
    note_time(panel.content.models.chooser.model, "auto", ml, [answer], 31.0, was_warm=warm_worker().running)
    panel.content.time.refresh()
    choose(panel, volume)
    assert said(host, panel) == "About 30 s in quality balanced (fast: 4 s, best: 3.5 min)."
    panel.ui.qualityComboBox.setCurrentIndex(0)
    assert said(host, panel) == "About 4 s in quality fast (balanced: 30 s, best: 3.5 min)."
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    roi.SetSize(8, 8, 8)
    roi.SetCenter(10, 10, 10)
    panel.ui.regionSelector.setCurrentNode(roi)
    assert said(host, panel).startswith("At most 4 s in quality fast")
    choose(panel, None)
    assert said(host, panel) == "", "nothing can be begun"
