"""To another machine and back: real child processes, and the exported command really run from another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import TINY, UNICODE_NAME

from HybridMIMLib.config import make_run
from HybridMIMLib.errors import HybridMIMError, SettingsError
from HybridMIMLib.files import write_json
from HybridMIMLib.runs import describe_run, load_settings, save_settings
from HybridMIMLib.slicer_side.elsewhere import (
    COMMANDS,
    ExportSettings,
    export_steps,
    import_steps,
    unfinished_runs,
)
from HybridMIMLib.slicer_side.jobs import STOPPED
from HybridMIMLib.slicer_side.step_work import StepWork
from HybridMIMLib.slicer_side.steps import finish

OPTIONS: dict[str, object] = {
    f"{part}.{key}": value for part, values in TINY.items() for key, value in values.items()
}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / UNICODE_NAME
    folder.mkdir()
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(folder))
    return folder


def leftovers(*folders: Path) -> list[Path]:
    """What is half made; it is removed in a thread."""
    end = time.monotonic() + 10
    while (found := [one for folder in folders for one in folder.glob(".tmp-*")]) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def test_a_run_is_exported_computed_from_another_folder_and_taken_back(
    tmp_path: Path, workspace: Path, blobs: Path
) -> None:
    options = {**OPTIONS, "unlabelled": str(blobs / "unlabelled"), "pretraining.steps": 2}
    seen = []
    made = finish(
        export_steps(ExportSettings(str(tmp_path / "out ů"), "pretrain", options)),
        lambda step: seen.append(step.text),
    )
    assert made.folder == tmp_path / "out ů" and made.size > 100_000
    assert any(text.startswith("Copying") for text in seen) and "bash start.sh" in made.describe()
    # As on another machine: elsewhere, and with none of this one's library on the path.
    moved = shutil.move(str(made.folder), tmp_path / "other disk")
    environment = {**os.environ, "PYTHON": sys.executable, "HYBRIDMIM_WORKSPACE": str(tmp_path / "none")}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        ["bash", str(Path(moved) / "start.sh"), "--pretraining.measure_every=0"],
        cwd="/", env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "none").exists()
    back = finish(import_steps(Path(moved)))
    assert back.run == workspace / "runs" / "out-ů" and back.finished and back.command == "pretrain"
    assert (back.run / "pretrained.safetensors").is_file() and "Imported as the run out-ů" in back.describe()
    assert load_settings(back.run / "run.yaml").unlabelled == str(blobs / "unlabelled"), "as it is called here"
    assert unfinished_runs() == [] and leftovers(tmp_path, workspace) == []


def test_what_is_cancelled_leaves_nothing(tmp_path: Path, workspace: Path, blobs: Path) -> None:
    settings = ExportSettings(str(tmp_path / "out"), "pretrain", {"unlabelled": str(blobs / "unlabelled")})
    work = StepWork(export_steps(settings), lambda made: "done")
    while work.progress.describe().startswith("Starting"):
        assert work.update()
    work.cancel()
    assert work.state == STOPPED
    assert leftovers(tmp_path) == [] and not (tmp_path / "out").exists()


def test_errors_of_the_process_come_with_their_cure(tmp_path: Path, workspace: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(HybridMIMError, match="holds no run") as caught:
        finish(import_steps(tmp_path / "x"))
    assert "Choose the folder run" in str(caught.value)
    assert leftovers(workspace) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": " "}, "No folder to export to"),
        ({"command": "pretrain", "options": {"labelled": "x"}}, "No folder of unlabelled scans"),
        ({"command": "finetune", "options": {"unlabelled": "x"}}, "No folder of labelled scans"),
        ({"command": "study", "options": {"unlabelled": "x"}}, "No folder of labelled scans"),
        ({"command": "train", "options": {"name": "x"}}, "No folder of scans"),
        ({"target": "FULL"}, "is not empty"),
        ({"target": "FULL/file"}, "This is a file"),
        ({"target": "none/x"}, "no folder in which"),
        ({"target": "free"}, ""),
        ({"target": "x" * 3000}, "no folder in which|cannot be read|^$"),
    ],
)
def test_why_nothing_can_be_exported(
    changes: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "file").touch()
    monkeypatch.chdir(tmp_path)
    given = {"target": "free", "command": "train", "options": {"unlabelled": "x", "labelled": "x"}, **changes}
    settings = ExportSettings(**given)  # type: ignore[arg-type]
    if said:
        import re

        assert re.search(said, settings.why_not())
    else:
        assert settings.why_not() == ""
    if said == "No folder to export to":
        with pytest.raises(SettingsError, match="Choose a new or empty one"):
            finish(export_steps(settings))


def test_the_runs_that_can_go_on_elsewhere_are_found(workspace: Path) -> None:
    for number, (name, command, finished) in enumerate(
        [("a", "train", False), ("b", "train", True), ("c", "segment", False), ("d", "study", False)]
    ):
        folder = workspace / "runs" / name
        folder.mkdir(parents=True)
        write_json(folder / "about.json", describe_run(command))
        save_settings(folder / "run.yaml", make_run(None, {}))
        os.utime(folder / "run.yaml", (number, number))
        if finished:
            write_json(folder / "result.json", {})
    (workspace / "runs" / "e").mkdir()
    assert [one.name for one in unfinished_runs()] == ["d", "a"]
    (workspace / "runs" / "d" / "run.pid").write_text(f"{os.getpid()}\n\ncommand\n")
    (workspace / "runs" / "d" / "heartbeat").touch()
    assert [one.name for one in unfinished_runs()] == ["a"], "somebody works on the other"


def test_the_commands_are_those_that_the_library_exports() -> None:
    from HybridMIMLib import exporting

    assert tuple(COMMANDS) == exporting.COMMANDS
