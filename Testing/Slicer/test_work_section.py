"""The section of a run at work: real buttons, and processes that train, are paused, resumed, stopped and killed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
from SlicerHost import Host, dialogs
from SlicerHost.views import chart_picture
from small_runs import TINY, write_blobs

from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.itk import save_itk
from HybridMIMLib.runs import new_path
from HybridMIMLib.slicer_side.jobs import Job, attach_job, start_job
from HybridMIMLib.slicer_side.segments import image_array

UI = Path(__file__).resolve().parents[2] / "HybridMIMTraining" / "Resources" / "UI" / "Work.ui"

BEGIN = (
    "import sys, time, os, signal, pathlib, HybridMIMLib.runs as r\nfrom HybridMIMLib.config import Run\n"
    "from HybridMIMLib.errors import DiskError\n"
    "def stop(*_): raise KeyboardInterrupt\n"
    "signal.signal(signal.SIGTERM, stop)\n"
    "r._is_command = lambda: True\nrun = pathlib.Path(sys.argv[-1].split('=', 1)[1])\n"
    "try:\n"
    " with r.RunFolder.open('train', Run(unlabelled=str(run.parent), output=str(run))).at_work() as events:\n"
)
END = (
    "except KeyboardInterrupt: sys.exit(130)\n"
    "except DiskError as error: print(f'error: {error}', file=sys.stderr); sys.exit(1)\n"
    "(run / 'result.json').write_text('{}')"
)
TRAIN = (
    "  events.plan([('pretrain', 400), ('finetune', 200)])\n"
    "  phase = events.phase('pretrain', 400)\n"
    "  phase.SECONDS_BETWEEN = 0\n"
    "  heads = {'number_accuracy': 0.43, 'number_chance': 0.11, 'location_accuracy': 0.8, 'location_chance': 0.6}\n"
    "  memory = dict(process=1300000000, gpu=8200000000, gpu_used=10100000000, gpu_total=149000000000)\n"
    "  for step in range(1, 31):\n"
    "   time.sleep(0.002)\n"
    "   losses = {'partial': 3 / step, 'contrast': 2 / step}\n"
    "   phase.progress(step, losses, heads if step % 10 == 0 else None, memory)\n"
)
WAIT = "  while not (run / 'go on').exists(): time.sleep(0.01)\n"


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let runs be a small program in place of the library; it finds its run folder in ``run``."""

    def use(program: str) -> None:
        command = [sys.executable, "-c", BEGIN + program + END]
        monkeypatch.setattr("HybridMIMLib.slicer_side.jobs.library_command", lambda _, options: [*command, *options])

    return use


class Bench:
    """The section in a window of its own, and what it told of."""

    def __init__(self, folder: Path) -> None:
        from HybridMIMLib.slicer_side.panels.work_section import WorkSection

        self.window = slicer.util.loadUI(str(UI))
        self.ui = slicer.util.childWidgetVariables(self.window)
        self.started: list[str] = []
        self.ended: list[Job] = []
        self.changes = 0
        self.options: dict[str, object] = {"unlabelled": str(folder)}
        self.section = WorkSection(self.ui, self.start, self.change, self.end)
        self.window.show()

    def start(self, command: str) -> Job:
        self.started.append(command)
        return start_job(command, self.options, new_path(command))

    def change(self) -> None:
        self.changes += 1

    def end(self, job: Job) -> str:
        self.ended.append(job)
        return "The model is ready." if job.state == "finished" else ""

    def said(self) -> str:
        return str(self.ui.workMessageLabel.text)

    def close(self) -> None:
        job = self.section.job
        self.section.close()
        if job is not None:
            job.kill()
        self.window.close()


@pytest.fixture
def bench(host: Host, workspace: Path, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    host.wait_until(lambda: not made.section.lookups.busy, 20, "the look for a paused run")
    yield made
    made.close()
    # A run outlives its panel: those that wait are let go.
    for folder in (workspace / "runs").glob("*"):
        (folder / "go on").touch()


@pytest.fixture
def look(host: Host, bench: Bench, pictures: Path) -> Callable[[str], None]:
    """Save a picture of the section as ``build/pictures/work NAME.png``."""

    def save(name: str) -> None:
        host.picture(pictures / f"work {name}.png", bench.window)

    return save


def wait(host: Host, bench: Bench, seconds: float = 60) -> None:
    host.wait_until(lambda: not bench.section.busy, seconds, f"the end of the run; {bench.said()}")


def at_work(host: Host, bench: Bench, step: int = 30) -> None:
    """Until so many steps are done."""
    host.wait_until(lambda: bench.section.jobs.job.progress.step >= step, 30, f"step {step}")


def charts() -> list[Any]:
    return slicer.util.getNodesByClass("vtkMRMLPlotChartNode")


# --- beginning and ending -----------------------------------------------------------------------------------


def test_why_nothing_can_be_started_is_said(bench: Bench, look: Callable[[str], None]) -> None:
    look("idle")
    bench.section.update(dict.fromkeys(("pretrain", "finetune", "train", "study"), "Choose a folder of scans."))
    assert bench.ui.workHintLabel.text == "Choose a folder of scans."
    assert not bench.ui.workTrainButton.enabled and bench.ui.workTrainButton.toolTip == "Choose a folder of scans."
    bench.section.update({"finetune": "Choose labelled scans.", "train": "Choose labelled scans.", "pretrain": ""})
    assert (
        bench.ui.workHintLabel.text
        == "\u201cFine-tune\u201d, \u201cPre-train, then fine-tune\u201d: Choose labelled scans."
    )
    assert bench.ui.workPretrainButton.enabled and not bench.ui.workFinetuneButton.enabled
    look("reasons")
    for button in ("Pause", "Resume", "Cancel", "Curves", "Preview"):
        one = getattr(bench.ui, f"work{button}Button")
        assert not one.enabled and one.toolTip, f"{button} says why not"


def test_each_button_starts_its_command(host: Host, bench: Bench, instead: Any) -> None:
    instead("  pass\n")
    for name in ("Pretrain", "Finetune", "Train", "Study"):
        getattr(bench.ui, f"work{name}Button").click()
        wait(host, bench)
    assert bench.started == ["pretrain", "finetune", "train", "study"]
    assert bench.said() == "The model is ready." and bench.changes >= 8 and len(bench.ended) == 4


def test_a_run_at_work_is_shown_and_paused_and_resumed(
    host: Host, bench: Bench, instead: Any, look: Callable[[str], None]
) -> None:
    instead(TRAIN + WAIT)
    bench.ui.workTrainButton.click()
    assert bench.section.busy and not bench.ui.workStudyButton.enabled
    assert "pause or cancel it first" in bench.ui.workStudyButton.toolTip
    at_work(host, bench)
    ui = bench.ui
    assert ui.workStatusLabel.text.startswith("Pre-training, step 30 of 400")
    assert ui.workWholeLabel.text.startswith("All that is to come, this included: about")
    assert "43 % right (11 % by guessing)" in ui.workHeadsLabel.text
    assert ui.workMemoryLabel.text.startswith("Memory of the run: 1.3 GB. GPU: 8.2 GB by the run, 10")
    rows = [ui.workValuesTable.item(row, 0).text() for row in range(ui.workValuesTable.rowCount)]
    assert rows == ["loss: partial", "loss: contrast"], "heads are told of in words"
    look("at work")
    folder = bench.section.job.folder
    ui.workPauseButton.click()
    assert not ui.workPauseButton.enabled and "stopping already" in ui.workPauseButton.toolTip
    wait(host, bench)
    assert bench.said().startswith("Paused at step 30 of 400. Resume goes on there")
    assert not (folder / "run.pid").exists() and not (folder / "stop").exists()
    assert ui.workResumeButton.enabled and folder.name in ui.workResumeButton.toolTip
    look("paused")
    (folder / "go on").touch()
    ui.workResumeButton.click()
    wait(host, bench)
    assert bench.said() == "The model is ready." and bench.ended[-1].folder == folder
    assert not ui.workResumeButton.enabled
    look("finished")


def test_losses_and_settings_are_called_as_people_call_them(host: Host, bench: Bench, instead: Any) -> None:
    program = "  events.warning('Train for more finetuning.steps.')\n  phase = events.phase('finetune', 9)\n"
    instead(program + "  phase.progress(1, {'cross_entropy': 0.5})\n")
    bench.ui.workFinetuneButton.click()
    wait(host, bench)
    assert bench.said().endswith("Warning: Train for more Fine-tuning steps.")
    assert bench.ui.workValuesTable.item(0, 0).text() == "loss: cross entropy"


def test_a_paused_run_is_offered_by_the_next_slicer(host: Host, bench: Bench, instead: Any, tmp_path: Path) -> None:
    instead(TRAIN + WAIT)
    bench.ui.workTrainButton.click()
    at_work(host, bench)
    bench.ui.workPauseButton.click()
    wait(host, bench)
    folder = bench.section.job.folder
    bench.section.close()
    again = Bench(tmp_path)
    try:
        host.wait_until(lambda: again.ui.workResumeButton.enabled, 20, "the paused run")
        assert again.ui.workRunLabel.text == f"Run: {folder.name}"
        (folder / "go on").touch()
        again.ui.workResumeButton.click()
        wait(host, again)
        assert again.said() == "The model is ready."
    finally:
        again.close()
    third = Bench(tmp_path)
    host.wait_until(lambda: not third.section.lookups.busy, 20, "the look")
    assert not third.ui.workResumeButton.enabled, "what is finished is not offered"
    third.close()


def test_cancel_asks_first_and_keeps_the_run(
    host: Host, bench: Bench, instead: Any, look: Callable[[str], None]
) -> None:
    instead(TRAIN + WAIT)
    bench.ui.workTrainButton.click()
    at_work(host, bench)
    folder = bench.section.job.folder
    dialogs.announce("message", "Cancel")
    bench.ui.workCancelButton.click()
    assert "stays in Runs" in dialogs.shown()[-1]
    host.process_events(0.3)
    assert bench.section.busy, "the user thought better of it"
    dialogs.announce("message", "OK")
    bench.ui.workCancelButton.click()
    wait(host, bench)
    assert bench.said() == "Stopped. The run is kept in Runs; Resume goes on with it."
    assert (folder / "run.yaml").is_file() and bench.ui.workResumeButton.enabled
    look("cancelled")


def test_a_run_that_ends_while_the_question_is_open_is_not_stopped(
    host: Host, bench: Bench, instead: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(TRAIN + WAIT)
    bench.ui.workTrainButton.click()
    at_work(host, bench)

    def answer(*_: Any, **__: Any) -> bool:
        (bench.section.job.folder / "go on").touch()
        wait(host, bench)
        return True

    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", answer)
    bench.ui.workCancelButton.click()
    assert bench.said() == "The model is ready." and "Nothing is at work" in bench.ui.workCancelButton.toolTip


def test_a_killed_process_is_told_and_can_be_resumed(
    host: Host, bench: Bench, instead: Any, look: Callable[[str], None]
) -> None:
    instead(TRAIN + "  os.kill(os.getpid(), 9)\n")
    bench.ui.workTrainButton.click()
    wait(host, bench)
    assert "memory ran out" in bench.said() and "color" in bench.ui.workMessageLabel.styleSheet
    assert "Resume" in bench.said() and bench.ui.workResumeButton.enabled
    look("killed")
    instead(TRAIN)
    bench.ui.workResumeButton.click()
    wait(host, bench)
    assert bench.said() == "The model is ready."


def test_the_log_of_a_failed_run_repeats_nothing(host: Host, bench: Bench, instead: Any) -> None:
    program = (
        "  events.message('from scratch')\n  print('from scratch')\n  print('finetune  [##......] 1/4  0:07 left')\n"
    )
    instead(program + "  print('who looks closer finds this', flush=True)\n  os.kill(os.getpid(), 9)\n")
    bench.ui.workFinetuneButton.click()
    wait(host, bench)
    log = bench.ui.workLogTextEdit.toPlainText()
    assert log.count("from scratch") == 1 and "[##" not in log and "who looks closer finds this" in log


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(host: Host, bench: Bench, instead: Any) -> None:
    instead(TRAIN + "  raise DiskError('checkpoint.pt: the disk is full', cure='Free some space.')\n")
    bench.ui.workTrainButton.click()
    wait(host, bench)
    assert "the disk is full" in bench.said() and "Resume" in bench.said()
    instead(TRAIN)
    bench.ui.workResumeButton.click()
    wait(host, bench)
    assert bench.said() == "The model is ready."


def test_what_cannot_be_started_or_resumed_says_why(host: Host, bench: Bench, tmp_path: Path) -> None:
    from HybridMIMLib.errors import SettingsError

    def refuse(_command: str) -> Job:
        raise SettingsError("the scans are gone", cure="Put them back.")

    bench.section._start = refuse
    bench.ui.workTrainButton.click()
    assert bench.said() == "the scans are gone. Put them back." and bench.ui.workTrainButton.enabled
    bench.section.resume(tmp_path / "no run")
    wait(host, bench)
    assert "cannot be resumed" in bench.said() and not bench.section.busy


# --- curves -------------------------------------------------------------------------------------------------


def test_curves_follow_the_run_in_a_plot(
    host: Host, bench: Bench, instead: Any, look: Callable[[str], None], pictures: Path
) -> None:
    instead(TRAIN + WAIT)
    bench.ui.workTrainButton.click()
    at_work(host, bench)
    assert charts() == [], "nothing is put into the scene unasked"
    bench.ui.workCurvesButton.click()
    host.wait_until(charts, 20, "the chart")
    [chart] = charts()
    assert chart.GetNumberOfPlotSeriesNodes() == 2 and bench.section.job.folder.name in chart.GetTitle()
    selection = slicer.app.applicationLogic().GetSelectionNode()
    assert selection.GetActivePlotChartID() == chart.GetID(), "it is shown"
    chart_picture(chart, pictures / "work chart losses.png")
    bench.ui.workCurvesComboBox.setCurrentIndex(2)
    bench.ui.workCurvesComboBox.activated.emit(2)
    host.wait_until(lambda: len(charts()) == 2, 20, "the chart of the heads")
    chart_picture(charts()[1], pictures / "work chart heads.png")
    bench.ui.workCurvesComboBox.setCurrentIndex(1)
    bench.ui.workCurvesComboBox.activated.emit(1)
    host.wait_until(lambda: "no Dice yet" in bench.ui.workCurvesHintLabel.text, 20, "the hint")
    look("no dice yet")
    log = bench.section.job.folder / "events.jsonl"
    event = {"kind": "progress", "phase": "finetune", "step": 5, "steps": 9, "metrics": {"validation mean": 0.5}}
    with log.open("a", encoding="utf-8") as handle:
        handle.write("{ torn\n" + json.dumps(event) + "\n")
    host.wait_until(lambda: len(charts()) == 3, 20, "the chart of the Dice, when there is one")
    assert bench.ui.workCurvesHintLabel.text == ""


def test_a_closed_scene_or_a_deleted_chart_stays_empty_until_asked_again(
    host: Host, bench: Bench, instead: Any, tmp_path: Path
) -> None:
    instead(TRAIN + WAIT)
    bench.ui.workTrainButton.click()
    at_work(host, bench)
    bench.ui.workCurvesButton.click()
    host.wait_until(charts, 20, "the chart")
    host.save_scene(tmp_path / "scene.mrb")
    host.close_scene()
    with (bench.section.job.folder / "events.jsonl").open("a", encoding="utf-8") as handle:
        handle.write(json.dumps({"kind": "progress", "phase": "pretrain", "step": 99, "steps": 400,
                                 "losses": {"partial": 1}}) + "\n")  # fmt: skip
    host.process_events(1.5)
    assert charts() == [], "it does not come back by itself"
    bench.ui.workCurvesButton.click()
    host.wait_until(charts, 20, "the chart")
    slicer.mrmlScene.RemoveNode(charts()[0])
    host.process_events(1.5)
    assert charts() == []
    host.load_scene(tmp_path / "scene.mrb")
    bench.ui.workCurvesButton.click()
    host.process_events(1.5)
    assert len(charts()) == 1, "that of the scene is gone on with"
    bench.section.close()
    host.close_scene()


def test_a_very_long_log_does_not_hold_the_window_up(host: Host, bench: Bench, instead: Any) -> None:
    instead(WAIT)
    folder = new_path("train")
    folder.mkdir(parents=True)
    with (folder / "events.jsonl").open("w", encoding="utf-8") as handle:
        for step in range(30_000):
            handle.write(json.dumps({"kind": "progress", "phase": "pretrain", "step": step, "steps": 30_000,
                                     "losses": dict.fromkeys("abcde", 1 / (step + 1))}) + "\n")  # fmt: skip
    bench.options = {}
    started = start_job("train", {}, folder)
    host.wait_until(lambda: attach_job(folder) is not None, 20, "the process")
    job = attach_job(folder)
    assert job is not None
    longest, began = 0.0, time.monotonic()
    bench.section.follow(job)
    bench.ui.workCurvesButton.click()
    while not (charts() and job.progress.step == 29_999):
        assert time.monotonic() - began < 60
        look = time.thread_time()
        host.process_events()
        longest = max(longest, time.thread_time() - look)
        time.sleep(0.005)
    print(f"longest block of the window: {1000 * longest:.0f} ms of computing")
    assert longest < 0.15, "it is 0.05, of two looks in one; machines are slow at times"
    (folder / "go on").touch()
    wait(host, bench)
    started.kill()


# --- previews -----------------------------------------------------------------------------------------------


def write_previews(folder: Path, *steps: int) -> None:
    grid = Grid((12, 12, 12), np.eye(4))
    names = [
        "original",
        *(f"step_{step:06}_{kind}" for step in steps for kind in ("masked", "reconstructed", "error")),
    ]
    for number, name in enumerate(names):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / f"{name}.nrrd").exists():
            array = np.random.default_rng(number).random((12, 12, 12)) + number
            save_itk(folder / f"{name}.nrrd", array.astype(np.float32), grid)


def background() -> str:
    composite = slicer.mrmlScene.GetNthNodeByClass(0, "vtkMRMLSliceCompositeNode")
    node = slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID() or "")
    return str(node.GetName()) if node is not None else ""


def test_previews_are_loaded_on_request_and_replaced(
    host: Host, bench: Bench, instead: Any, look: Callable[[str], None]
) -> None:
    instead(TRAIN + WAIT)
    bench.ui.workTrainButton.click()
    at_work(host, bench)
    folder, ui = bench.section.job.folder, bench.ui
    assert not ui.workPreviewButton.enabled and "no preview yet" in ui.workPreviewButton.toolTip
    assert not ui.workPreviewShowComboBox.isVisible()
    write_previews(folder / "pre-training" / "previews", 500)
    host.wait_until(lambda: ui.workPreviewComboBox.count == 1, 20, "the preview")
    ui.workPreviewButton.click()
    host.wait_until(lambda: not bench.section.loads.busy, 20, "the volumes")
    assert background() == f"{folder.name} reconstructed (step 500)"
    assert ui.workPreviewShowComboBox.count == 4
    look("preview")
    number = ui.workPreviewShowComboBox.findText("masked")
    ui.workPreviewShowComboBox.setCurrentIndex(number)
    ui.workPreviewShowComboBox.activated.emit(number)
    assert background() == f"{folder.name} masked (step 500)"
    write_previews(folder / "pre-training" / "previews", 500, 1000)
    host.wait_until(lambda: ui.workPreviewComboBox.currentText == "step 1000", 20, "the newer one is offered")
    ui.workPreviewButton.click()
    host.wait_until(lambda: not bench.section.loads.busy, 20, "the volumes")
    assert background() == f"{folder.name} masked (step 1000)", "what was looked at is looked at still"
    volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    assert len(volumes) == 4 and image_array(volumes[1].GetImageData()).max() > 1
    (folder / "pre-training" / "previews" / "step_001000_error.nrrd").write_bytes(b"NRRD0004\n")
    ui.workPreviewButton.click()
    host.wait_until(lambda: not bench.section.loads.busy, 20, "the damaged one")
    assert "step_001000_error.nrrd" in ui.workPreviewMessageLabel.text
    host.close_scene()
    assert not ui.workPreviewShowComboBox.isVisible() and bench.section.busy


# --- the library itself -------------------------------------------------------------------------------------


def test_a_real_training_is_paused_resumed_and_looked_at(
    host: Host, bench: Bench, tmp_path: Path, look: Callable[[str], None], pictures: Path
) -> None:
    scans = write_blobs(tmp_path / "scans", 5, labelled=True)
    small = {f"{part}.{key}": value for part, values in TINY.items() for key, value in values.items()}
    slow = {"pretraining.steps": 100_000, "pretraining.checkpoint_every": 100_000, "pretraining.measure_every": 5,
            "pretraining.preview_every": 10}  # fmt: skip
    bench.options = {"unlabelled": str(scans / "images"), **small, **slow}
    bench.ui.workPretrainButton.click()
    host.wait_until(lambda: bench.section.job.progress.step >= 12 or not bench.section.busy, 120, "some steps")
    bench.ui.workCurvesButton.click()
    host.wait_until(charts, 20, "the chart")
    assert "by guessing" in bench.ui.workHeadsLabel.text and "Memory of the run" in bench.ui.workMemoryLabel.text
    look("real at work")
    chart_picture(charts()[0], pictures / "work chart real.png")
    folder = bench.section.job.folder
    bench.ui.workPauseButton.click()
    wait(host, bench)
    assert bench.said().startswith("Paused at step"), bench.said()
    assert (folder / "checkpoint.pt").is_file(), "though none was due"
    bench.ui.workPreviewButton.click()
    host.wait_until(lambda: not bench.section.loads.busy, 20, "the preview")
    assert "reconstructed" in background()
    look("real paused")
    bench.ui.workResumeButton.click()
    host.wait_until(lambda: any("continued after step" in line for line in bench.section.job.progress.lines), 120)
    dialogs.announce("message", "OK")
    bench.ui.workCancelButton.click()
    wait(host, bench)
    assert bench.said().startswith("Stopped.")
