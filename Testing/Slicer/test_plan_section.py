"""The section Plan: presets, single settings, the text of a run.yaml, and an estimate by a real process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import qt
import slicer.util
import yaml
from SlicerHost import Host
from small_runs import TINY, write_blobs

from HybridMIMLib.cli import parse
from HybridMIMLib.config import Run, make_run, to_dict
from HybridMIMLib.presets import config_path
from HybridMIMLib.runs import load_settings, save_settings

UI = Path(__file__).resolve().parents[2] / "HybridMIMTraining" / "Resources" / "UI" / "Plan.ui"
HANGS = (
    "import sys, time, pathlib\nfrom HybridMIMLib.events import EventLog\n"
    "run = pathlib.Path(sys.argv[-1].split('=', 1)[1])\n"
    "EventLog(run / 'events.jsonl').phase('estimate', 4).progress(1.0)\n"
    "(run / 'probe').mkdir()\n(run / 'probe' / 'large').write_bytes(b'0' * 100)\ntime.sleep(60)"
)
SAYS = (
    "import sys, pathlib\nrun = pathlib.Path(sys.argv[-1].split('=', 1)[1])\n"
    "(run / 'result.json').write_text({result!r})"
)
STAGE = {
    "scans": 40, "steps": 2000, "batch": 4, "networks": 1, "step_seconds": 0.213, "seconds": 520.0, "memory": 2e9,
    "gpu_memory": None, "parts": {"preparing": 40.0, "steps": 426.0, "previews": 0.0},
    "disk": {"store": 3e8, "checkpoints": 4e7, "previews": 0}, "tried": {"scans": 4, "steps": 33},
}  # fmt: skip
RESULT = {
    "of": "train", "device": "cpu", "stages": {"pre-training": STAGE, "fine-tuning": {**STAGE, "networks": 5}},
    "seconds": 1040.0, "memory": 2e9, "memory_total": 16e9, "gpu_memory": None, "gpu_memory_total": None,
    "disk": 680e6, "free": 90e9, "folder": "/runs", "warnings": [],
    "notes": ["The fine-tuning may end earlier (finetuning.patience)."],
}  # fmt: skip


class Window(SimpleNamespace):
    """A panel of this section alone.

    Attributes:
        ui: its widgets.
        section: it.
        changes: how often it told of a change.
    """

    def show(self, unlabelled: Path | str = "", labelled: Path | str = "", elsewhere: str = "") -> None:
        self.section.update(str(unlabelled), str(labelled), elsewhere)

    def type(self, name: str, text: str) -> None:
        """As a user types into the line of a setting."""
        line = getattr(self, "editor")(name)  # noqa: B009
        line.text = text
        line.textEdited.emit(text)

    def choose(self, name: str, text: str) -> None:
        combo = self.editor(name)
        combo.setCurrentIndex(combo.findText(text))
        combo.activated.emit(combo.currentIndex)

    def editor(self, name: str) -> Any:
        return next(rows.editors[name] for rows in self.section._rows if name in rows.editors)

    def preset(self, start: str) -> None:
        combo = self.ui.planPresetComboBox
        number = next(n for n in range(combo.count) if combo.itemText(n).startswith(start))
        combo.setCurrentIndex(number)
        combo.activated.emit(number)


@pytest.fixture
def plan(host: Host, workspace: Path) -> Iterator[Window]:
    from HybridMIMLib.slicer_side.panels.plan_section import PlanSection

    area = qt.QScrollArea()
    widget = slicer.util.loadUI(str(UI))
    area.setWidgetResizable(True)
    area.setWidget(widget)
    area.resize(420, 900)
    area.show()
    window = Window(ui=slicer.util.childWidgetVariables(widget), changes=0, area=area, widget=widget)

    def count() -> None:
        window.changes += 1

    window.section = PlanSection(window.ui, count)
    window.show()
    host.wait_until(lambda: not window.section._reading.busy, 20, "the presets")
    yield window
    window.section.close()
    area.close()


@pytest.fixture
def shoot(host: Host, plan: Window, pictures: Path) -> Callable[[str], None]:
    """Save what the section looks like as ``build/pictures/plan NAME.png``."""

    def save(name: str) -> None:
        # As in Slicer's panel: no narrower than it can be.
        width = max(plan.widget.minimumSizeHint().width(), 400)
        assert width <= 420, "wider than Slicer's panel: something in it cannot be narrow"
        plan.widget.resize(width, plan.widget.layout().totalHeightForWidth(width))
        host.wait_until(lambda: True, 1, "a look")
        assert plan.widget.grab().save(str(pictures / f"plan {name}.png"))

    return save


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let estimates run a small program in place of the library."""

    def use(program: str) -> None:
        command = [sys.executable, "-c", program]
        monkeypatch.setattr("HybridMIMLib.slicer_side.jobs.library_command", lambda _, options: [*command, *options])

    return use


def arguments(window: Window) -> list[str]:
    return [f"--{name}={value}" for name, value in window.section.options().items()]


def test_it_begins_with_what_follows_from_the_scans(plan: Window, shoot: Callable[[str], None]) -> None:
    assert plan.section.options() == {} and plan.section.why_not() == "" and not plan.section.busy
    assert plan.ui.planPresetComboBox.currentText == "Automatic"
    assert plan.ui.planChangesLabel.text == "No setting changed." and not plan.ui.planResetButton.enabled
    assert plan.editor("plan.crop").placeholderText == "automatic" and plan.editor("plan.crop").text == ""
    assert plan.editor("pretraining.steps").text == "2000"
    assert not plan.ui.planEstimateButton.enabled and "No scans" in plan.ui.planEstimateButton.toolTip
    assert not plan.ui.planFilePathLineEdit.isVisible() and not plan.ui.planTextEdit.isVisible()
    shoot("automatic")


def test_every_line_has_its_help_in_sight_and_a_tooltip(plan: Window) -> None:
    from HybridMIMLib.slicer_side.plan_choices import SETTINGS

    plan.ui.planAdvancedSection.collapsed = False
    shown = [label.text for label in plan.widget.findChildren(qt.QLabel) if label.objectName.endswith("Help")]
    assert shown and all(SETTINGS[name].help in shown for name in SETTINGS), "every setting has a row"
    assert len(shown) == len(SETTINGS)
    editors = [rows.editors[name] for rows in plan.section._rows for name in rows.editors]
    assert all(editor.toolTip and editor.objectName.startswith("plan") for editor in editors)
    assert len({editor.objectName for editor in editors}) == len(editors)


def test_a_preset_is_shown_with_its_values_and_what_differs_from_it(
    plan: Window, shoot: Callable[[str], None]
) -> None:
    plan.preset("ct-abdomen")
    preset = load_settings(config_path("ct-abdomen"))
    assert plan.section.options() == {"config": "ct-abdomen"}
    assert "abdomen" in plan.ui.planSummaryLabel.text
    assert plan.editor("plan.crop").text == "96, 96, 96" and plan.editor("plan.window").text == "-175, 250"
    assert plan.editor("plan.normalisation").currentText == "window"
    plan.type("plan.crop", "64 x 64 x 32")
    plan.type("finetuning.steps", "300")
    plan.choose("network.architecture", "resunet")
    assert plan.ui.planChangesLabel.text == "3 settings changed: Crop, Fine-tuning steps, Network"
    shoot("preset changed")
    assert parse("train", arguments(plan)) == make_run(
        preset,
        {
            "plan": {"crop": [64, 64, 32]},
            "finetuning": {"steps": 300},
            "network": {"architecture": "resunet"},
        },
    )
    plan.type("plan.crop", "96, 96, 96")
    assert plan.ui.planChangesLabel.text.startswith("2 settings changed"), "as in the preset again"
    # What a preset sets can be left to the scans.
    plan.type("plan.spacing", "")
    assert parse("train", arguments(plan)).plan.spacing is None
    plan.ui.planResetButton.click()
    assert plan.section.options() == {"config": "ct-abdomen"} and plan.editor("plan.spacing").text == "1.5, 1.5, 2"
    assert plan.editor("network.architecture").currentText == "unet" and plan.changes >= 6


def test_a_wrong_value_is_told_at_once_in_the_words_of_the_library(
    plan: Window, shoot: Callable[[str], None]
) -> None:
    def hint() -> str:
        assert plan.section.why_not() == plan.ui.planHintLabel.text
        return str(plan.ui.planHintLabel.text)

    plan.type("pretraining.steps", "many")
    assert hint() == "Pre-training steps is 'many'. Give a whole number."
    plan.type("pretraining.steps", "0")
    assert "above 0" in hint()
    plan.type("pretraining.steps", "10")
    assert hint() == "" and not plan.ui.planHintLabel.isVisible()
    plan.type("plan.window", "250 -175")
    assert hint() == "Intensity window is [250.0, -175.0]. Give two intensities, the lower one first."
    shoot("wrong value")
    plan.ui.planResetButton.click()
    plan.choose("pretraining.objective", "mae")
    assert "Set Network to unetr" in hint(), "settings that contradict each other"
    plan.show(labelled="cases")
    assert hint() == "", "nothing is pre-trained"
    plan.show("scans")
    plan.preset("ct-abdomen")
    plan.choose("network.architecture", "unetr")
    plan.type("plan.crop", "100")
    assert "Crop [100, 100, 100] is not a multiple of Region" in hint()


def test_settings_that_are_seldom_needed_are_folded_away(
    host: Host, plan: Window, shoot: Callable[[str], None]
) -> None:
    assert len(plan.section._rows) == 1
    plan.ui.planAdvancedSection.collapsed = False
    groups = [
        one for one in plan.widget.findChildren(qt.QAbstractButton) if one.objectName.startswith("planAdvanced")
    ]
    texts = [one.text for one in groups if one is not plan.ui.planAdvancedSection]
    assert texts == ["Scans", "Network", "Pre-training", "Fine-tuning", "Run"]
    shoot("advanced folded")
    tuning = next(one for one in groups if one.text == "Fine-tuning")
    assert not plan.editor("finetuning.folds").isVisible()
    tuning.collapsed = False
    host.wait_until(lambda: plan.editor("finetuning.folds").isVisible(), 5, "the rows")
    plan.type("finetuning.folds", "5")
    plan.type("finetuning.flip_axes", "1 2")
    box = plan.editor("finetuning.augment")
    box.click()
    assert plan.section.options() == {
        "finetuning.folds": "5", "finetuning.flip_axes": "[1, 2]", "finetuning.augment": "false"
    }  # fmt: skip
    assert plan.ui.planChangesLabel.text.startswith("3 settings changed: Fine-tuning: folds, ")
    shoot("advanced open")
    plan.type("finetuning.patience", "3")
    plan.type("finetuning.folds", "")
    assert plan.section.why_not().startswith("Fine-tuning: folds is ''")
    plan.ui.planResetButton.click()
    assert box.checked and plan.editor("finetuning.folds").text == "0"


def test_own_settings_come_from_a_file_and_its_folders_do_not(
    host: Host, plan: Window, tmp_path: Path, shoot: Callable[[str], None]
) -> None:
    own = make_run(None, {**TINY, "seed": 7, "unlabelled": "/theirs", "output": "/theirs too"})
    save_settings(tmp_path / "run.yaml", own)
    plan.preset("Own")
    assert "No file of settings" in plan.section.why_not() and plan.ui.planFilePathLineEdit.isVisible()
    plan.ui.planFilePathLineEdit.currentPath = str(tmp_path / "nowhere.yaml")
    host.wait_until(lambda: not plan.section._opening.busy, 10, "the file")
    assert "nowhere.yaml: the settings cannot be read" in plan.ui.planHintLabel.text
    plan.ui.planFilePathLineEdit.currentPath = str(tmp_path / "run.yaml")
    host.wait_until(lambda: not plan.section._opening.busy, 10, "the file")
    assert plan.section.why_not() == "" and plan.editor("plan.crop").text == "16, 16, 16"
    shoot("own")
    kept = {name: value for name, value in to_dict(own).items() if name not in ("unlabelled", "output")}
    assert to_dict(parse("train", arguments(plan))) == {**to_dict(Run()), **kept}
    # The scene has all of it, whatever becomes of the file.
    text = plan.section.dump()
    (tmp_path / "run.yaml").unlink()
    plan.section.load("")
    assert plan.section.options() == {}
    before = plan.changes
    plan.section.load(text)
    assert to_dict(parse("train", arguments(plan))) == {**to_dict(Run()), **kept}
    host.wait_until(lambda: not plan.section._opening.busy, 10, "a look for a file that is not there any more")
    assert plan.section.why_not() == "" and plan.changes == before
    assert plan.ui.planFilePathLineEdit.currentPath == str(tmp_path / "run.yaml")


def test_the_scene_brings_everything_back(plan: Window) -> None:
    plan.preset("mr-brain")
    plan.type("name", "Größe 数")
    plan.type("pretraining.mask_ratio", "0.3 0.6")
    plan.type("pretraining.steps", "no number yet")
    text, options = plan.section.dump(), plan.section.options()
    assert options["name"] == "Größe 数" and options["pretraining.mask_ratio"] == "[0.3, 0.6]"
    for damaged in ("", "no json", "[1]", '{"base": 3, "changes": 4}', '{"base": "gone", "changes": {"x.y": 1}}'):
        plan.section.load(damaged)
        assert plan.section.options() == {} and plan.ui.planPresetComboBox.currentText == "Automatic"
    plan.section.load(text)
    assert plan.section.options() == options and plan.section.dump() == text
    assert plan.editor("pretraining.steps").text == "no number yet" and plan.section.why_not()
    assert plan.editor("plan.spacing").text == "1, 1, 1"


def test_all_of_it_is_shown_as_run_yaml(
    host: Host, plan: Window, tmp_path: Path, shoot: Callable[[str], None]
) -> None:
    plan.preset("ct-chest")
    plan.type("finetuning.steps", "123")
    plan.show(tmp_path, "")
    plan.ui.planTextButton.click()
    host.wait_until(lambda: "123" in plan.ui.planTextEdit.plainText, 10, "the text")
    text = plan.ui.planTextEdit.plainText
    shown = make_run(None, yaml.safe_load(text))
    assert shown == parse("train", [*arguments(plan), f"--unlabelled={tmp_path}"])
    plan.type("finetuning.steps", "124")
    host.wait_until(lambda: "steps: 124" in plan.ui.planTextEdit.plainText, 10, "the change")
    plan.ui.planCopyButton.click()
    assert "steps: 124" in qt.QApplication.clipboard().text()
    shoot("as text")
    plan.ui.planTextButton.click()
    assert not plan.ui.planTextEdit.isVisible() and not plan.ui.planCopyButton.isVisible()


def test_without_the_packages_presets_can_be_used_all_the_same(
    host: Host, plan: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    plan.section._read_presets()
    host.wait_until(lambda: not plan.section._reading.busy, 10, "the presets")
    plan.preset("btcv")
    assert plan.section.options() == {"config": "btcv"} and plan.section.why_not() == ""
    assert "once the packages are installed" in plan.ui.planSummaryLabel.text
    monkeypatch.undo()
    plan.preset("ct-chest")
    plan.preset("btcv")
    host.wait_until(lambda: plan.editor("finetuning.steps").text == "30000", 10, "the values")
    assert "packages" not in plan.ui.planSummaryLabel.text


def test_a_few_real_steps_tell_what_a_training_takes(
    host: Host, plan: Window, tmp_path: Path, shoot: Callable[[str], None]
) -> None:
    scans = write_blobs(tmp_path / "scans ů", 4, labelled=True)
    changes = {f"{part}.{name}": value for part, values in TINY.items() for name, value in values.items()}
    plan.section.load(json.dumps({"base": "automatic", "changes": changes}))
    plan.show("", scans)
    assert plan.ui.planEstimateButton.enabled and not plan.ui.planEstimateCancelButton.isVisible()
    plan.ui.planEstimateButton.click()
    assert plan.section.busy and not plan.ui.planEstimateButton.enabled
    folder = plan.section.jobs.job.folder
    host.wait_until(lambda: not plan.section.busy, 120, "the estimate")
    assert plan.ui.planEstimateMessageLabel.text.startswith("About "), plan.ui.planEstimateMessageLabel.text
    assert plan.ui.planEstimateTable.rowCount == 1 and plan.ui.planEstimateTable.item(0, 0).text() == "Fine-tuning"
    host.wait_until(lambda: not folder.exists(), 10, "the trial to be removed")
    assert sorted(path.name for path in scans.parent.iterdir() if path.name.startswith("scans")) == ["scans ů"]
    shoot("estimated")


def test_an_estimate_grows_stale(
    host: Host, plan: Window, instead: Callable[[str], None], shoot: Callable[[str], None]
) -> None:
    instead(SAYS.format(result=json.dumps(RESULT)))
    plan.show("scans", "cases")
    plan.ui.planEstimateButton.click()
    host.wait_until(lambda: not plan.section.busy, 20, "the estimate")
    message = plan.ui.planEstimateMessageLabel.text
    assert message.startswith("About 17 min in all, on cpu. Memory: 2.0 GB of 16.0 GB. Disk: 680 MB, of 90.0 GB")
    assert message.endswith("The fine-tuning may end earlier (Fine-tuning: patience).")
    table = plan.ui.planEstimateTable
    cells = [[table.item(row, column).text() for column in range(table.columnCount)] for row in range(2)]
    assert cells == [
        ["Pre-training", "2000 × 0.21 s", "9 min", "2.0 GB", "340 MB"],
        ["Fine-tuning", "5 × 2000 × 0.21 s", "9 min", "2.0 GB", "340 MB"],
    ]
    assert "preparing: 40 s" in table.item(0, 2).toolTip() and "previews" not in table.item(0, 2).toolTip()
    assert not plan.ui.planStaleLabel.isVisible() and table.enabled
    shoot("estimate of both")
    plan.type("name", "another")
    assert not plan.ui.planStaleLabel.isVisible(), "a name takes no time"
    plan.type("pretraining.steps", "5000")
    assert plan.ui.planStaleLabel.isVisible() and not table.enabled
    shoot("estimate stale")
    plan.type("pretraining.steps", "2000")
    assert not plan.ui.planStaleLabel.isVisible()
    plan.show("scans", "other cases")
    assert plan.ui.planStaleLabel.isVisible()


def test_an_estimate_is_cancelled_and_leaves_nothing(
    host: Host, plan: Window, instead: Callable[[str], None], shoot: Callable[[str], None]
) -> None:
    instead(HANGS)
    plan.show("scans")
    plan.ui.planEstimateButton.click()
    folder = plan.section.jobs.job.folder
    host.wait_until(lambda: "Trying a few steps" in plan.ui.planEstimateStatusLabel.text, 20, "progress")
    host.wait_until(lambda: (folder / "probe" / "large").exists(), 20, "its files")
    shoot("estimating")
    plan.ui.planEstimateCancelButton.click()
    host.wait_until(lambda: not plan.section.busy, 20, "the end")
    assert plan.ui.planEstimateMessageLabel.text == "Stopped." and not plan.ui.planEstimateTable.isVisible()
    assert plan.ui.planEstimateButton.enabled
    host.wait_until(lambda: not folder.exists(), 10, "the trial to be removed")


def test_what_ends_the_trial_is_told_with_the_names_of_the_panel(
    host: Host, plan: Window, instead: Callable[[str], None], shoot: Callable[[str], None]
) -> None:
    instead("import sys; sys.exit('error: plan.crop [8, 8, 8] leaves a single voxel. Use plan.crop [16, 16, 16].')")
    plan.show("scans", elsewhere="Something else is at work.")
    assert plan.ui.planEstimateButton.toolTip == "Something else is at work."
    plan.show("scans")
    plan.ui.planEstimateButton.click()
    host.wait_until(lambda: not plan.section.busy, 20, "the end")
    assert plan.ui.planEstimateMessageLabel.text == "Crop [8, 8, 8] leaves a single voxel. Use Crop [16, 16, 16]."
    assert "color" in plan.ui.planEstimateMessageLabel.styleSheet
    shoot("estimate failed")
