"""The section Elsewhere: real buttons, real child processes, folders on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ctk
import pytest
import qt
import slicer
from conftest import REPOSITORY
from SlicerHost import Host, dialogs
from small_panel import import_entry
from small_runs import TINY

from HybridMIMLib.config import make_run
from HybridMIMLib.files import read_json, write_json
from HybridMIMLib.runs import describe_run, load_settings, save_settings

OPTIONS = {f"{part}.{key}": value for part, values in TINY.items() for key, value in values.items()}


@pytest.fixture
def given() -> dict[str, object]:
    """The options that the panel would start a command with."""
    return dict(OPTIONS)


@pytest.fixture
def panel(host: Host, workspace: Path, given: dict[str, object]) -> Iterator[SimpleNamespace]:
    """The section in a window of its own, closed."""
    from HybridMIMLib.slicer_side.panels.elsewhere_section import ElsewhereSection

    window = qt.QWidget()
    layout = qt.QVBoxLayout(window)
    whole = ctk.ctkCollapsibleButton()
    whole.text, whole.objectName = "Elsewhere", "elsewhereSection"
    qt.QVBoxLayout(whole)
    whole.layout().addWidget(slicer.util.loadUI(str(REPOSITORY / "HybridMIMTraining/Resources/UI/Elsewhere.ui")))
    whole.collapsed = True
    layout.addWidget(whole)
    layout.addStretch(1)
    ui = slicer.util.childWidgetVariables(window)
    window.resize(420, 560)
    window.show()
    imported: list[Path] = []
    section = ElsewhereSection(ui, lambda command: given, lambda: None, imported.append)
    section.update("")
    yield SimpleNamespace(window=window, ui=ui, section=section, imported=imported)
    section.close()
    window.close()


@pytest.fixture
def shot(host: Host, panel: SimpleNamespace, pictures: Path) -> Callable[[str], None]:
    """A picture of the section, to be looked at."""
    return lambda name: host.picture(pictures / f"{name}.png", panel.window) and None


def opened(host: Host, panel: SimpleNamespace, folder: Path | str = "") -> SimpleNamespace:
    panel.ui.elsewhereSection.collapsed = False
    panel.ui.elsewhereFolderPathLineEdit.currentPath = str(folder)
    settle(host, panel)
    return panel


def settle(host: Host, panel: SimpleNamespace, seconds: float = 60) -> None:
    section = panel.section
    busy = lambda: section.busy or section.lookups.busy or panel.ui.elsewhereCancelButton.isVisible()  # noqa: E731
    host.wait_until(lambda: not busy(), seconds, "the end of the work")


def choose(panel: SimpleNamespace, begin: str) -> None:
    combo = panel.ui.elsewhereWhatComboBox
    combo.setCurrentIndex(next(n for n in range(combo.count) if combo.itemText(n).startswith(begin)))


def hint(panel: SimpleNamespace) -> str:
    assert not panel.ui.elsewhereExportButton.enabled
    assert panel.ui.elsewhereExportButton.toolTip == panel.ui.elsewhereHintLabel.text
    return str(panel.ui.elsewhereHintLabel.text)


def message(panel: SimpleNamespace) -> str:
    return str(panel.ui.elsewhereMessageLabel.text)


def make_run_folder(folder: Path, blobs: Path, finished: bool) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "about.json", describe_run("pretrain"))
    save_settings(folder / "run.yaml", make_run(None, {"unlabelled": str(blobs / "unlabelled"), "output": "run"}))
    (folder / "events.jsonl").touch()
    if finished:
        write_json(folder / "result.json", {"weights": "run/w"})
    return folder


def test_why_nothing_can_be_exported_is_said(
    host: Host, panel: SimpleNamespace, given: dict[str, object], blobs: Path, tmp_path: Path, shot: Any
) -> None:
    opened(host, panel)
    assert "No folder to export to" in hint(panel)
    shot("elsewhere idle")
    panel.ui.elsewhereFolderPathLineEdit.currentPath = str(tmp_path / "out")
    assert "No folder of scans is chosen, under Data" in hint(panel)
    given["unlabelled"] = str(blobs / "unlabelled")
    panel.section.update("")
    assert panel.ui.elsewhereExportButton.enabled and not panel.ui.elsewhereHintLabel.isVisible()
    choose(panel, "Fine-tune")
    assert "No folder of labelled scans" in hint(panel)
    assert not panel.ui.elsewhereRunComboBox.isVisible()
    choose(panel, "Continue")
    assert "No run of the workspace can be continued" in hint(panel) and panel.ui.elsewhereRunComboBox.isVisible()
    shot("elsewhere no run")
    panel.section.update("A study is at work.")
    assert hint(panel) == "A study is at work." == panel.ui.elsewhereImportButton.toolTip
    assert not panel.ui.elsewhereImportButton.enabled
    assert not panel.ui.elsewhereOpenButton.enabled and panel.ui.elsewhereOpenButton.toolTip == "Export first."


def test_every_widget_says_what_it_is_for(host: Host, panel: SimpleNamespace) -> None:
    opened(host, panel)
    names = [name for name in vars(panel.ui) if name.endswith(("Button", "ComboBox", "CheckBox", "LineEdit"))]
    assert len(names) >= 9 and all(getattr(panel.ui, name).toolTip for name in names if "Group" not in name)
    others = [name for name in vars(panel.ui) if not name.lower().startswith(("elsewhere", "qt_", "_"))]
    assert set(others) <= {"_ctk", "ExpandableWidget"} or others == [], others


def test_a_run_is_exported_and_what_came_back_is_imported(
    host: Host,
    panel: SimpleNamespace,
    given: dict[str, object],
    blobs: Path,
    tmp_path: Path,
    workspace: Path,
    shot: Any,
) -> None:
    given["unlabelled"] = str(blobs / "unlabelled")
    out = tmp_path / "out"
    opened(host, panel, out)
    choose(panel, "Pre-train,")
    panel.ui.elsewhereScansComboBox.setCurrentIndex(1)
    panel.ui.elsewhereExportButton.click()
    assert panel.section.busy and "press Cancel" in panel.ui.elsewhereExportButton.toolTip
    assert panel.ui.elsewhereCancelButton.isVisible()
    shot("elsewhere exporting")
    settle(host, panel)
    assert message(panel).startswith(f"Exported to {out} (") and "bash start.sh" in message(panel)
    assert load_settings(out / "run.yaml").unlabelled == "data/unlabelled.json"
    assert "Choose another folder" in hint(panel), "the same folder is not written twice"
    shot("elsewhere exported")
    dialogs.announce("desktop", True)
    panel.ui.elsewhereOpenButton.click()
    assert dialogs.shown()[-1] == str(out)
    # What the other machine did.
    make_run_folder(out / "run", blobs, finished=True)
    dialogs.announce("folder", str(out))
    import_entry(
        SimpleNamespace(ui=SimpleNamespace(importButton=panel.ui.elsewhereImportButton)), "A folder"
    ).trigger()
    settle(host, panel)
    assert message(panel) == "Imported as the run out, finished."
    assert panel.imported == [workspace / "runs" / "out"]
    assert read_json(workspace / "runs" / "out" / "result.json")["weights"] == str(workspace / "runs" / "out" / "w")
    shot("elsewhere imported")
    # A damaged one, as a .zip.
    (out / "run" / "result.json").write_text("{")
    packed = shutil.make_archive(str(tmp_path / "back"), "zip", out)
    dialogs.announce("open file", packed)
    import_entry(SimpleNamespace(ui=SimpleNamespace(importButton=panel.ui.elsewhereImportButton)), "A .zip").trigger()
    settle(host, panel)
    assert "result.json: is damaged" in message(panel) and "Copy it again" in message(panel)
    assert "color" in panel.ui.elsewhereMessageLabel.styleSheet and len(panel.imported) == 1
    shot("elsewhere damaged")
    # And a question that is not answered changes nothing.
    dialogs.announce("folder", "")
    import_entry(
        SimpleNamespace(ui=SimpleNamespace(importButton=panel.ui.elsewhereImportButton)), "A folder"
    ).trigger()
    assert not panel.section.busy


def test_a_run_of_the_workspace_is_exported_to_go_on_and_cancel_leaves_nothing(
    host: Host, panel: SimpleNamespace, blobs: Path, tmp_path: Path, workspace: Path, shot: Any
) -> None:
    make_run_folder(workspace / "runs" / "Old", blobs, finished=True)
    mine = make_run_folder(workspace / "runs" / "Läber 数", blobs, finished=False)
    opened(host, panel, tmp_path / "out")
    choose(panel, "Continue")
    assert panel.ui.elsewhereRunComboBox.count == 1 and panel.ui.elsewhereRunComboBox.currentText == mine.name
    shot("elsewhere continue")
    panel.ui.elsewhereExportButton.click()
    panel.ui.elsewhereCancelButton.click()
    settle(host, panel)
    assert message(panel) == "Stopped." and not (tmp_path / "out").exists()
    host.wait_until(lambda: not list(tmp_path.glob(".tmp-*")), 10, "tidying up")
    assert panel.ui.elsewhereExportButton.enabled
    panel.ui.elsewhereStoreCheckBox.click()
    panel.ui.elsewhereExportButton.click()
    settle(host, panel)
    assert "no prepared scans yet" in message(panel)
    panel.ui.elsewhereStoreCheckBox.click()
    panel.ui.elsewhereExportButton.click()
    settle(host, panel)
    assert (tmp_path / "out" / "run" / "about.json").is_file()
