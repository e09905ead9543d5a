"""A small scripted module from loading to quitting, and what the host refuses."""

from __future__ import annotations

import gc
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import slicer
from SlicerHost import Host, dialogs, problems, start


def _volume(name: str = "CT") -> object:
    return slicer.util.addVolumeFromArray(np.zeros((3, 4, 5), dtype=np.int16), name=name)


def test_a_module_from_loading_to_quitting(host: Host, blur: Path, tmp_path: Path) -> None:
    host.load_module(blur)
    assert slicer.modules.blur.title == "Blur"
    panel = host.open_module("Blur")
    assert panel.calls == ["setup", "enter"]
    assert not panel.ui.applyButton.enabled
    assert (panel.ui.stepsBox.minimum, panel.ui.stepsBox.maximum, panel.ui.stepsBox.value) == (1, 9, 3)

    volume = _volume()
    panel.ui.inputSelector.setCurrentNode(volume)
    assert panel.ui.applyButton.enabled
    panel.ui.stepsBox.value = 5
    panel.ui.titleEdit.text = "Über 数"
    dialogs.announce("message", "OK")
    panel.ui.applyButton.click()
    assert slicer.util.arrayFromVolume(volume).max() == 5
    assert dialogs.shown() == ["Blur it?"]

    host.save_scene(tmp_path / "scene.mrb")
    host.close_scene()
    assert panel.calls[-1] == "scene"
    assert (panel.ui.inputSelector.currentNode(), panel.ui.stepsBox.value) == (None, 3)
    assert not panel.ui.applyButton.enabled
    host.load_scene(tmp_path / "scene.mrb")
    assert panel.ui.inputSelector.currentNode().GetName() == "CT"
    assert (panel.ui.stepsBox.value, panel.ui.titleEdit.text) == (5, "Über 数")
    assert slicer.util.arrayFromVolume(panel.ui.inputSelector.currentNode()).max() == 5

    blur.write_text(blur.read_text(encoding="utf-8").replace("VERSION = 1", "VERSION = 2"), encoding="utf-8")
    again = host.reload_module("Blur")
    assert again is not panel
    assert panel.calls[-1] == "cleanup"
    assert again.calls == ["setup"], "Slicer does not enter a reloaded module"
    assert sys.modules["Blur"].VERSION == 2
    assert (again.ui.stepsBox.value, again.ui.inputSelector.currentNode().GetName()) == (5, "CT")
    dialogs.announce("message", "Cancel")
    again.ui.applyButton.click()

    host.close()
    assert again.calls == ["setup", "exit", "cleanup"]
    assert panel.calls.count("cleanup") == 1
    assert "Blur" not in sys.modules


def test_an_error_in_a_slot_is_shown_and_is_a_problem(host: Host, blur: Path) -> None:
    host.load_module(blur)
    panel = host.open_module("Blur")
    panel.ui.inputSelector.setCurrentNode(_volume())
    panel.ui.stepsBox.value = 9
    dialogs.announce("message", "OK")
    dialogs.announce("message", "OK")
    panel.ui.applyButton.click()
    assert "nine is too many" in dialogs.shown()[-1]
    (problem,) = problems.take()
    assert problem.kind == "slot" and "nine is too many" in problem.text


def test_a_dialog_that_nobody_announced_fails(host: Host, blur: Path) -> None:
    host.load_module(blur)
    panel = host.open_module("Blur")
    panel.ui.inputSelector.setCurrentNode(_volume())
    panel.ui.applyButton.click()
    assert any("Blur it?" in problem.text for problem in problems.take())


def test_choosing_another_module_leaves_the_first(host: Host, blur: Path) -> None:
    other = blur.with_name("Other.py")
    text = blur.read_text(encoding="utf-8").replace("Blur", "Other").replace("UI/Other", "UI/Blur")
    other.write_text(text, encoding="utf-8")
    host.load_module(blur)
    host.load_module(other)
    first, second = host.open_module("Blur"), host.open_module("Other")
    assert first.calls == ["setup", "enter", "exit"]
    assert not first.parent.isVisible() and second.parent.isVisible()
    assert (first.parent.isEntered, second.parent.isEntered) == (False, True)
    slicer.util.selectModule("Blur")
    assert host.opened == "Blur"
    assert first.calls == ["setup", "enter", "exit", "enter"]
    slicer.util.selectModule(slicer.modules.blur)
    assert first.calls == ["setup", "enter", "exit", "enter"]


def test_unloading_cleans_up_once(host: Host, blur: Path) -> None:
    host.load_module(blur)
    panel = host.open_module("Blur")
    host.unload("Blur")
    assert panel.calls == ["setup", "enter", "exit", "cleanup"]
    assert host.opened is None
    with pytest.raises(AttributeError, match="no blur"):
        slicer.modules.blur  # noqa: B018
    host.load_module(blur)
    assert host.open_module("Blur") is not panel


def test_a_module_that_nobody_opened_is_not_cleaned_up(host: Host, blur: Path) -> None:
    host.load_module(blur)
    assert not slicer.modules.blur.has_widget()
    host.unload("Blur")


def test_a_reloaded_panel_forgets_the_old_widgets(host: Host, blur: Path) -> None:
    host.load_module(blur)
    old = host.open_module("Blur").ui
    host.reload_module("Blur")
    _volume()
    gc.collect()
    assert not old.applyButton.isVisible()


def test_the_self_test_can_be_run(host: Host, blur: Path) -> None:
    host.load_module(blur)
    slicer.selfTests["Blur"]()
    assert slicer.selfTests["ran"]


def test_what_is_not_loaded_cannot_be_opened(host: Host) -> None:
    for action in (host.open_module, host.unload):
        with pytest.raises(ValueError, match="Nothing"):
            action("Nothing")
    with pytest.raises(AttributeError, match="nothing"):
        host.reload_module("Nothing")


def test_waiting_names_what_did_not_come(host: Host) -> None:
    problems.record("timer", "the clock stood still")
    with pytest.raises(AssertionError, match=r"for the train(.|\n)*timer: the clock stood still"):
        host.wait_until(lambda: False, seconds=0.05, what="the train")


def test_waiting_lets_timers_run(host: Host) -> None:
    import qt

    done: list[int] = []
    qt.QTimer.singleShot(30, lambda: done.append(1))
    assert host.wait_until(lambda: done, seconds=5, what="the timer") == [1]


def test_a_picture_is_as_wide_as_the_panel(host: Host, blur: Path, tmp_path: Path) -> None:
    import qt

    host.load_module(blur)
    with pytest.raises(ValueError, match="no module is open"):
        host.picture(tmp_path / "panel.png")
    host.open_module("Blur")
    image = qt.QImage(str(host.picture(tmp_path / "panel.png")))
    assert image.width() == 420
    assert 100 < image.height() < 400
    colors = {image.pixel(x, y) for x in range(0, 420, 3) for y in range(0, image.height(), 3)}
    assert len(colors) > 5, "nothing is drawn"
    with pytest.raises(OSError, match="could not be written"):
        host.picture(tmp_path / "no folder" / "panel.png")


def test_a_file_that_is_no_scene_fails(host: Host, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"missing\.mrb"):
        host.load_scene(tmp_path / "missing.mrb")


def test_settings_outlive_slicer_with_its_profile(host: Host, tmp_path: Path) -> None:
    import qt

    host.close()
    first = start(tmp_path / "profile")
    qt.QSettings().setValue("HybridMIM/Device", "cuda")
    with pytest.raises(RuntimeError, match="runs already"):
        start(tmp_path / "other")
    first.close()
    start(tmp_path / "profile")
    assert slicer.util.settingsValue("HybridMIM/Device", "cpu") == "cuda"
    start().close()
    start()
    assert slicer.util.settingsValue("HybridMIM/Device", "cpu") == "cpu"


def test_logging_is_left_alone(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        dialogs.announce("message", "OK")
        slicer.util.errorDisplay("too bad")
    assert "too bad" in caplog.text
