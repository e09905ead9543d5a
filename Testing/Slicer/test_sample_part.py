"""Sample data in the panel and in Slicer's module Sample Data: real buttons; nothing is downloaded from the net."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import slicer
from conftest import REPOSITORY
from SlicerHost import Host, dialogs
from small_runs import write_blobs

from HybridMIMLib.slicer_side import sample_data


@pytest.fixture
def samples(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """The sets; the public one comes from a file."""
    from HybridMIMLib.slicer_side.panels import sample_part

    folder = write_blobs(tmp_path / "Task04_Hippocampus", 1, labelled=True)
    with tarfile.open(tmp_path / "t.tar", "w") as packed:
        packed.add(folder, "Task04_Hippocampus")
    content = (tmp_path / "t.tar").read_bytes()
    own = replace(
        sample_data.SAMPLES[1],
        url=(tmp_path / "t.tar").as_uri(), bytes=len(content), sha256=hashlib.sha256(content).hexdigest(),
    )  # fmt: skip
    sets = (sample_data.SAMPLES[0], own)
    for module in (sample_data, sample_part):
        monkeypatch.setattr(module, "SAMPLES", sets)
    return sets


@pytest.fixture
def panel(host: Host, workspace: Path, samples: Any) -> Iterator[SimpleNamespace]:
    from HybridMIMLib.slicer_side.panels import sample_part

    window = slicer.util.loadUI(str(REPOSITORY / "HybridMIMTraining/Resources/UI/Samples.ui"))
    ui = slicer.util.childWidgetVariables(window)
    window.show()
    used: list[tuple[Path, Path]] = []
    part = sample_part.SamplePart(ui, lambda *folders: used.append(folders), lambda: None)
    yield SimpleNamespace(window=window, ui=ui, part=part, used=used)
    part.close()
    window.close()


def settle(host: Host, panel: SimpleNamespace) -> None:
    busy = lambda: panel.part.busy or panel.ui.sampleCancelButton.isVisible()  # noqa: E731
    host.wait_until(lambda: not busy(), 60, "the end of the work")


def test_a_set_is_got_used_shown_and_removed(
    host: Host, panel: SimpleNamespace, samples: Any, pictures: Path
) -> None:
    ui, sample = panel.ui, samples[1]
    host.picture(pictures / "samples none.png", panel.window)
    ui.sampleSetComboBox.setCurrentIndex(1)
    assert "CC-BY-SA 4.0" in ui.sampleAboutLabel.text and ui.sampleGetButton.enabled
    for button in (ui.sampleUseButton, ui.sampleOpenButton, ui.sampleRemoveButton):
        assert not button.enabled and button.toolTip == "Get it first."
    ui.sampleGetButton.click()
    assert not ui.sampleGetButton.enabled and "Cancel" in ui.sampleGetButton.toolTip
    settle(host, panel)
    assert ui.sampleMessageLabel.text.startswith("It is ready") and str(sample.folder) in ui.sampleAboutLabel.text
    assert not ui.sampleGetButton.enabled and ui.sampleGetButton.toolTip == "It is there already."
    host.picture(pictures / "samples there.png", panel.window)
    ui.sampleUseButton.click()
    assert panel.used == [sample.folders]
    dialogs.announce("desktop", True)
    ui.sampleOpenButton.click()
    assert dialogs.shown()[-1] == str(sample.folder)
    dialogs.announce("message", "Cancel")
    ui.sampleRemoveButton.click()
    settle(host, panel)
    assert sample.is_there and str(sample.folder) in dialogs.shown()[-1]
    dialogs.announce("message", "OK")
    ui.sampleRemoveButton.click()
    settle(host, panel)
    assert not sample.is_there and ui.sampleMessageLabel.text == "It is deleted." and ui.sampleGetButton.enabled


def test_a_set_that_cannot_be_got_says_why(
    host: Host, panel: SimpleNamespace, samples: Any, tmp_path: Path, pictures: Path
) -> None:
    (tmp_path / "t.tar").write_bytes(b"another")
    panel.ui.sampleSetComboBox.setCurrentIndex(1)
    panel.ui.sampleGetButton.click()
    settle(host, panel)
    assert "is not the file that is known" in panel.ui.sampleMessageLabel.text
    host.picture(pictures / "samples refused.png", panel.window)
    panel.part.update("A study is at work.")
    assert panel.ui.sampleGetButton.toolTip == "A study is at work."


def test_slicers_module_sample_data_has_both_and_hands_on_what_is_pressed(host: Host, panel: SimpleNamespace) -> None:
    asked: list[str] = []

    def at_start() -> None:
        sample_data.register(asked.append)

    slicer.app.connect("startupCompleted()", at_start)
    host.complete_startup()
    host.complete_startup()
    sources = slicer.modules.sampleDataSources["HybridMIM"]
    assert [one.sampleName for one in sources] == ["Synthetic phantoms", "MSD Hippocampus"], "once each"
    for source in sources:
        source.click()
    assert asked == ["phantoms", "hippocampus"]
    assert sources[1].checksums[0].startswith("SHA256:") and sources[0].uris == []
    panel.part.get("hippocampus")
    settle(host, panel)
    assert panel.ui.sampleSetComboBox.currentText == "MSD Hippocampus" and panel.ui.sampleMessageLabel.text
