"""The section Runs: real buttons on real run folders, and runs that others work on."""

from __future__ import annotations

import shutil
import sys
import time
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
from small_run_folders import make_dead, make_finished, make_run, start_at_work

from HybridMIMLib.errors import RunError
from HybridMIMLib.files import write_json
from HybridMIMLib.slicer_side import run_actions


class Calls:
    """What the section asked the panel for."""

    def __init__(self) -> None:
        self.attached: list[Path] = []
        self.resumed: list[Path] = []
        self.used: list[Path] = []
        self.error: RunError | None = None

    def resume(self, folder: Path) -> None:
        self.resumed.append(folder)
        if self.error is not None:
            raise self.error


@pytest.fixture
def runs(workspace: Path) -> Path:
    """The folder of runs of the workspace."""
    folder = workspace / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def panel(host: Host, runs: Path) -> Iterator[SimpleNamespace]:
    """The section in a window of its own."""
    from HybridMIMLib.slicer_side.panels.runs_section import RunsSection

    window = qt.QWidget()
    layout = qt.QVBoxLayout(window)
    whole = ctk.ctkCollapsibleButton()
    whole.text, whole.objectName = "Runs", "runsSection"
    qt.QVBoxLayout(whole)
    whole.layout().addWidget(slicer.util.loadUI(str(REPOSITORY / "HybridMIMTraining/Resources/UI/Runs.ui")))
    layout.addWidget(whole)
    layout.addStretch(1)
    ui = slicer.util.childWidgetVariables(window)
    window.resize(420, 760)
    window.show()
    calls = Calls()
    section = RunsSection(ui, calls.attached.append, calls.resume, calls.used.append, lambda: None)
    section.update("")
    yield SimpleNamespace(window=window, ui=ui, section=section, calls=calls)
    section.close()
    window.close()


@pytest.fixture
def shot(host: Host, panel: SimpleNamespace, pictures: Path) -> Callable[[str], None]:
    """A picture of the section, to be looked at."""
    return lambda name: host.picture(pictures / f"{name}.png", panel.window) and None


def settle(host: Host, panel: SimpleNamespace, seconds: float = 20) -> None:
    """Until the list is read, drawn and counted."""
    section = panel.section
    section.refresh()
    waits = (section._deleting, section._reading, section._looks, section._closer)

    def is_settled() -> bool:
        return section._is_complete and not any(one.busy for one in waits) and section._view.draw()

    host.wait_until(is_settled, seconds, "the list")


def rows(panel: SimpleNamespace) -> list[list[str]]:
    table = panel.ui.runsTable
    return [[table.item(row, column).text() for column in range(table.columnCount)] for row in range(table.rowCount)]


def states(panel: SimpleNamespace) -> dict[str, str]:
    return {row[0]: row[1] for row in rows(panel)}


def choose(host: Host, panel: SimpleNamespace, *names: str) -> None:
    table = panel.ui.runsTable
    table.clearSelection()
    mode = qt.QItemSelectionModel
    for row, texts in enumerate(rows(panel)):
        if texts[0] in names:
            index = table.model().index(row, 0)
            table.selectionModel().select(index, mode.Select | mode.Rows)
    settle(host, panel)


def button(panel: SimpleNamespace, name: str) -> Any:
    return getattr(panel.ui, f"runs{name}Button")


def about(panel: SimpleNamespace) -> str:
    return str(panel.ui.runsDetailsTextEdit.toPlainText())


def said(panel: SimpleNamespace) -> str:
    return str(panel.ui.runsMessageLabel.text)


def test_an_empty_workspace_says_what_to_do(host: Host, panel: SimpleNamespace, shot: Any, runs: Path) -> None:
    settle(host, panel)
    assert not panel.ui.runsTable.isVisible() and "start one above" in panel.ui.runsHintLabel.text
    assert str(runs) in panel.ui.runsHintLabel.text
    for name in ("Attach", "Resume", "Compare", "Report", "Package", "Use", "Open", "Delete"):
        assert not button(panel, name).enabled
        assert button(panel, name).toolTip == "Choose a run in the list first."
    assert button(panel, "Add").enabled and not button(panel, "Forget").isVisible()
    shot("runs none")


def test_every_run_is_listed_and_says_what_can_be_done(
    host: Host, panel: SimpleNamespace, shot: Any, runs: Path, tmp_path: Path
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    make_finished(runs / "Liver 数", 0.93)
    make_run(runs / "Failed", error=RunError("the loss is not finite", cure="Lower the rate."), labelled=str(scans))
    make_run(runs / "Stopped", labelled="/gone/cases")
    child = start_at_work(runs / "Dead", scans)
    settle(host, panel)
    assert states(panel)["Dead"] == "at work"
    choose(host, panel, "Dead")
    assert "at work, process" in about(panel)
    assert "press Attach" in panel.ui.runsHintLabel.text
    assert not button(panel, "Delete").enabled and "stop it first" in button(panel, "Delete").toolTip
    assert not button(panel, "Resume").enabled
    shot("runs at work")
    button(panel, "Attach").click()
    assert panel.calls.attached == [runs / "Dead"]
    panel.ui.runsTable.cellDoubleClicked.emit([row[0] for row in rows(panel)].index("Dead"), 0)
    assert len(panel.calls.attached) == 2
    panel.section.update("", followed=runs / "Dead")
    assert button(panel, "Attach").toolTip == "It is shown above already."
    panel.section.update("")
    child.kill()
    child.wait()
    # Nobody asks for it: the section looks by itself, and what is marked stays marked.
    host.wait_until(lambda: states(panel)["Dead"] == "died", 20, "the death")
    host.wait_until(lambda: button(panel, "Resume").enabled, 20, "what it needs")
    assert "Did not come to an end: Dead" in panel.ui.runsHintLabel.text
    assert "killed" in about(panel) and "7 of 100" in about(panel)
    shot("runs died")
    button(panel, "Resume").click()
    assert panel.calls.resumed == [runs / "Dead"]
    panel.calls.error = RunError("It cannot be started", cure="Try again.")
    settle(host, panel)
    button(panel, "Resume").click()
    assert said(panel) == "It cannot be started. Try again."
    panel.section.update("Packages are being installed.")
    assert button(panel, "Resume").toolTip == "Packages are being installed."
    panel.section.update("")
    assert states(panel) == {"Dead": "died", "Stopped": "stopped", "Failed": "failed", "Liver 数": "finished"}
    choose(host, panel, "Stopped")
    assert not button(panel, "Resume").enabled and "/gone/cases" in button(panel, "Resume").toolTip
    assert "/gone/cases" in about(panel)
    choose(host, panel, "Failed")
    assert "Lower the rate" in about(panel) and button(panel, "Resume").enabled
    shot("runs failed")
    choose(host, panel, "Liver 数")
    assert button(panel, "Use").enabled and not button(panel, "Resume").enabled
    button(panel, "Use").click()
    assert panel.calls.used == [runs / "Liver 数" / "model"]
    host.wait_until(lambda: all(row[7].endswith(" MB") for row in rows(panel)), 20, "the sizes")
    assert "best Dice 0.930" in about(panel)
    shot("runs finished")
    choose(host, panel, "Failed", "Stopped")
    assert button(panel, "Resume").toolTip == "Choose one run only." and button(panel, "Compare").enabled


def test_what_comes_and_goes_moves_no_mark(host: Host, panel: SimpleNamespace, runs: Path) -> None:
    for name in ("a", "b", "c"):
        make_finished(runs / name)
    settle(host, panel)
    choose(host, panel, "b")
    shutil.rmtree(runs / "c")
    write_json(make_finished(runs / "new") / "about.json", {"command": "finetune", "began": "2990-01-01T00:00"})
    settle(host, panel)
    assert [row[0] for row in rows(panel)] == ["new", "b", "a"]
    assert panel.section._view.chosen == [runs / "b"]
    panel.section.choose(runs / "a")
    assert panel.section._view.chosen == [runs / "a"]
    shutil.rmtree(runs)
    settle(host, panel)
    assert not panel.ui.runsTable.isVisible() and not button(panel, "Open").enabled


def test_curves_of_several_are_one_chart(host: Host, panel: SimpleNamespace, shot: Any, runs: Path) -> None:
    make_run(runs / "one")
    make_run(runs / "two")
    make_run(runs / "silent", work=lambda _events: None)
    with open(runs / "two" / "events.jsonl", "ab") as file:
        file.write(b"\0\0 no JSON\n[]\n")
    settle(host, panel)
    choose(host, panel, "silent")
    button(panel, "Compare").click()
    settle(host, panel)
    assert said(panel) == "These runs have told no loss and no score yet."
    assert not panel.ui.runsCurveComboBox.isVisible() and not slicer.util.getNodesByClass("vtkMRMLPlotChartNode")
    choose(host, panel, "one", "two", "silent")
    button(panel, "Compare").click()
    settle(host, panel)
    combo = panel.ui.runsCurveComboBox
    assert combo.isVisible() and combo.currentText == "validation mean", "what they are judged by"
    [chart] = slicer.util.getNodesByClass("vtkMRMLPlotChartNode")
    lines = [chart.GetNthPlotSeriesNode(n).GetName() for n in range(chart.GetNumberOfPlotSeriesNodes())]
    assert sorted(lines) == ["one", "two"]
    assert said(panel) == "validation mean of 2 run(s) is drawn. Not known of: silent."
    shot("runs compared")
    combo.setCurrentIndex(combo.findText("loss: dice"))
    combo.activated.emit(combo.currentIndex)
    assert chart.GetTitle().endswith("loss: dice") and len(slicer.util.getNodesByClass("vtkMRMLPlotChartNode")) == 1
    host.close_scene()
    button(panel, "Compare").click()
    settle(host, panel)
    assert combo.currentText == "loss: dice" and len(slicer.util.getNodesByClass("vtkMRMLPlotChartNode")) == 1


def test_nothing_is_deleted_before_the_user_agreed(host: Host, panel: SimpleNamespace, shot: Any, runs: Path) -> None:
    first = make_run(runs / "first", "pretrain", result={"weights": "w"}, unlabelled=str(runs))
    make_finished(runs / "second 数", labelled=str(runs), weights=str(first))
    settle(host, panel)
    choose(host, panel, "first")
    dialogs.announce("message", "Cancel")
    button(panel, "Delete").click()
    question = dialogs.shown()[-1]
    assert str(first) in question and "cannot be undone" in question and "Other runs use it: second 数." in question
    assert " MB" in question or "not counted" in question
    settle(host, panel)
    assert first.is_dir()
    choose(host, panel, "first", "second 数")
    dialogs.announce("message", "OK")
    button(panel, "Delete").click()
    assert "models that were made there" in dialogs.shown()[-1] and str(runs / "second 数") in dialogs.shown()[-1]
    assert panel.section.busy
    shot("runs deleting")
    settle(host, panel)
    assert sorted(said(panel).splitlines()) == ["Deleted first.", "Deleted second 数."]
    assert list(runs.iterdir()) == [] and not panel.section.busy


def test_a_run_that_began_meanwhile_is_not_deleted(
    host: Host, panel: SimpleNamespace, runs: Path, tmp_path: Path
) -> None:
    make_dead(runs / "run", unlabelled=str(tmp_path))
    settle(host, panel)
    choose(host, panel, "run")
    child = start_at_work(runs / "run", tmp_path)
    try:
        dialogs.announce("message", "OK")
        button(panel, "Delete").click()
        settle(host, panel)
        assert f"Process {child.pid} is working on it" in said(panel) and (runs / "run" / "run.pid").exists()
    finally:
        child.kill()


def test_reports_and_folders_are_opened(host: Host, panel: SimpleNamespace, runs: Path) -> None:
    folder = make_finished(runs / "run")
    settle(host, panel)
    choose(host, panel, "run")
    assert button(panel, "Report").toolTip == "It has no report and no picture."
    dialogs.announce("desktop", True)
    button(panel, "Open").click()
    assert dialogs.shown()[-1] == str(folder)
    (folder / "cross-validation").mkdir()
    (folder / "cross-validation" / "report.html").touch()
    panel.ui.runsTable.clearSelection()
    settle(host, panel)
    panel.section._asked = (Path(), "")
    choose(host, panel, "run")
    dialogs.announce("desktop", True)
    button(panel, "Report").click()
    assert dialogs.shown()[-1].endswith("report.html")


def test_runs_elsewhere_come_and_go(
    host: Host, panel: SimpleNamespace, shot: Any, runs: Path, tmp_path: Path
) -> None:
    folder = make_finished(tmp_path / "elsewhere" / "Liver")
    settle(host, panel)
    dialogs.announce("folder", str(tmp_path))
    button(panel, "Add").click()
    assert "there is no run in this folder" in said(panel)
    dialogs.announce("folder", "")
    button(panel, "Add").click()
    dialogs.announce("folder", str(folder))
    button(panel, "Add").click()
    settle(host, panel)
    assert states(panel) == {"Liver": "finished"} and said(panel) == ""
    choose(host, panel, "Liver")
    assert str(folder) in about(panel) and button(panel, "Forget").isVisible()
    shutil.move(folder, tmp_path / "away")
    settle(host, panel)
    assert states(panel) == {"Liver": "not found"} and not button(panel, "Open").enabled
    assert not button(panel, "Delete").enabled and "drive" in about(panel)
    shot("runs not found")
    button(panel, "Forget").click()
    settle(host, panel)
    assert rows(panel) == [] and (tmp_path / "away").is_dir()


def test_a_package_is_made_and_may_be_cancelled(
    host: Host, panel: SimpleNamespace, shot: Any, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import sys, time, pathlib\ntarget = pathlib.Path(sys.argv[-1].split('=', 1)[1])\n"
        "if 'slow' in target.name: time.sleep(60)\n"
        "if 'bad' in target.name: sys.exit('error: the disk is full. Free some space.')\n"
        "target.write_text(sys.argv[-2])\n"
    )
    monkeypatch.setattr(run_actions, "library_command", lambda _, options: [sys.executable, "-c", program, *options])
    make_finished(runs / "run")
    settle(host, panel)
    choose(host, panel, "run")

    def make(name: str) -> None:
        dialogs.announce("save file", str(tmp_path / name) if name else "")
        button(panel, "Package").click()

    make("")
    assert not panel.section.busy
    make("Box")
    assert panel.section.busy and not button(panel, "Package").enabled and button(panel, "Cancel").isVisible()
    shot("runs packing")
    host.wait_until(lambda: not panel.section.busy, 30, "the package")
    assert said(panel) == f"The package is {tmp_path / 'Box.zip'}."
    assert (tmp_path / "Box.zip").read_text() == f"--model={runs / 'run' / 'model'}"
    make("Box")
    assert "is there already" in said(panel) and not panel.section.busy
    make("slow.zip")
    button(panel, "Cancel").click()
    host.wait_until(lambda: not panel.section.busy, 30, "the end")
    assert said(panel) == "Stopped." and not (tmp_path / "slow.zip").exists()
    make("bad.zip")
    host.wait_until(lambda: not panel.section.busy, 30, "the end")
    assert said(panel) == "the disk is full. Free some space." and panel.ui.runsLogTextEdit.isVisible()
    shot("runs packing failed")


def test_five_hundred_runs_do_not_hold_the_window_up(host: Host, panel: SimpleNamespace, runs: Path) -> None:
    make_run(runs / "0", result={"validation": {"mean": 0.5}})
    for number in range(1, 500):
        shutil.copytree(runs / "0", runs / str(number))
    panel.section.refresh()
    longest, rounds = 0.0, 0
    while not (panel.section._is_complete and len(rows_drawn(panel)) == 500 and rounds > 50):
        began = time.thread_time()
        host.process_events()
        longest, rounds = max(longest, time.thread_time() - began), rounds + 1
        time.sleep(0.005)
    print(f"longest {1000 * longest:.0f} ms")
    assert longest < 0.1, "it is 0.02; machines are slow at times"
    # In a panel that is closed nothing is read.
    panel.ui.runsSection.collapsed = True
    host.wait_until(lambda: not panel.section._looks.busy, 20, "the last look")
    asked = panel.section._looked_at
    host.process_events(2.5)
    assert panel.section._looked_at == asked
    panel.ui.runsSection.collapsed = False
    assert panel.section._looked_at > asked


def rows_drawn(panel: SimpleNamespace) -> list[int]:
    table = panel.ui.runsTable
    return [row for row in range(table.rowCount) if table.item(row, 0) is not None]
