"""Resuming, packing and deleting runs, with real processes; what is said of what cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_run_folders import make_dead, make_finished, make_run, start_at_work
from small_runs import TINY, UNICODE_NAME, finish, save_threshold_model, write_blobs

from HybridMIMLib.errors import DiskError, RunError
from HybridMIMLib.slicer_side import run_actions
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED, STOPPED, start_job
from HybridMIMLib.slicer_side.run_actions import (
    Packing,
    delete_run,
    describe,
    look_closer,
    resume_run,
    why_not_attach,
    why_not_delete,
    why_not_resume,
)
from HybridMIMLib.slicer_side.run_list import RunList, read_run, remember, remembered


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of runs of a workspace."""
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path / UNICODE_NAME))
    folder = tmp_path / UNICODE_NAME / "runs"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    (tmp_path / "scans").mkdir()
    return tmp_path / "scans"


# --- resuming ---------------------------------------------------------------------------------------------------


def test_a_killed_training_goes_on_where_it_was(runs: Path, tmp_path: Path) -> None:
    scans = write_blobs(tmp_path / "blobs", 3, labelled=False)
    tiny = {f"{part}.{key}": value for part, values in TINY.items() for key, value in values.items()}
    options = {"unlabelled": scans, **tiny, "pretraining.steps": 200_000, "pretraining.checkpoint_every": 5}
    job = start_job("pretrain", options, runs / "run")
    end = time.monotonic() + 60
    while job.update() and not (runs / "run" / "checkpoint.pt").exists():
        assert time.monotonic() < end, "it does not begin"
        time.sleep(0.02)
    job.kill()
    run = read_run(runs / "run")
    assert run.state == "died" and run.step > 0 and run.steps == 200_000 and run.command == "pretrain"
    assert why_not_resume(run, look_closer(run)) == ""
    before = (runs / "run" / "run.yaml").read_bytes()
    again = resume_run(runs / "run")
    try:
        while again.update() and not any("continued after step" in line for line in again.progress.lines):
            assert time.monotonic() < end + 60, again.progress.lines
            time.sleep(0.02)
        assert not again.ended, again.message
        assert (runs / "run" / "run.yaml").read_bytes() == before
        now = read_run(runs / "run")
        assert now.is_followable and why_not_attach(now) == ""
        assert why_not_resume(now) == f"Process {now.owner} is working on it."
        with pytest.raises(RunError, match="is working on it"):
            resume_run(runs / "run")
        again.cancel()
        assert finish(again).state == STOPPED
    finally:
        again.kill()
    assert read_run(runs / "run").state == "stopped"


def test_what_cannot_be_resumed_says_why(runs: Path, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def why(folder: Path) -> str:
        run = read_run(folder)
        reason = why_not_resume(run, look_closer(run))
        if reason:
            with pytest.raises(RunError):
                resume_run(folder)
        return reason

    assert why(make_finished(runs / "finished")) == "It is finished."
    assert why(make_run(runs / "fine", labelled=str(scans))) == ""
    gone = why(make_run(runs / "gone", labelled=str(scans), weights="/drive/HybridMIM/runs/first/pre-training"))
    assert gone.startswith("The pre-trained weights cannot be found: /drive/HybridMIM/runs/first/pre-training.")
    assert "connect its drive" in gone
    (runs / "first" / "pre-training").mkdir(parents=True)
    assert f"It may be {runs / 'first' / 'pre-training'} now" in why(runs / "gone"), "the workspace was moved"
    shutil.rmtree(runs / "first")
    assert "in a terminal there" in why(make_run(runs / "relative", labelled="cases"))
    model = why(make_run(runs / "segment", "segment", scans=str(scans), model="Hippo"))
    assert model == "The model cannot be found: Hippo. Import the model of that name again."
    (runs / "fine" / "run.yaml").write_text("seed: [")
    assert "settings cannot be read" in why(runs / "fine")
    (runs / "relative" / "about.json").write_text("{")
    assert "about.json" in why(runs / "relative")
    (runs / "segment" / "result.json").write_text("{")
    assert "Remove that file" in why(runs / "segment")
    for nothing in (runs / "nowhere", scans):
        with pytest.raises(RunError, match="there is no run in this folder"):
            resume_run(nothing)


def test_who_cannot_be_followed(runs: Path, scans: Path) -> None:
    child = start_at_work(runs / "session", scans, is_command=False)
    try:
        run = read_run(runs / "session")
        assert f"inside another program (process {child.pid})" in why_not_attach(run)
        assert "stop it first" in why_not_delete(run)
    finally:
        child.kill()
        child.wait()
    assert why_not_attach(read_run(runs / "session")) == "Nobody works on it."


# --- deleting ---------------------------------------------------------------------------------------------------


def names(runs: Path) -> list[str]:
    return sorted(os.listdir(runs))


def test_a_run_is_deleted_and_nothing_outside_it(runs: Path, tmp_path: Path, scans: Path) -> None:
    (scans / "scan.nii").write_text("mine")
    folder, other = make_finished(runs / "Liver 数"), make_finished(runs / "other")
    (folder / "link").symlink_to(scans, target_is_directory=True)
    (folder / "file link").symlink_to(scans / "scan.nii")
    assert delete_run(folder) == "Deleted Liver 数."
    assert names(runs) == ["other"] and (scans / "scan.nii").read_text() == "mine" and other.is_dir()


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder of somebody who is not root, as whom the test then works."""
    if not hasattr(os, "seteuid"):
        pytest.skip("permissions are others on this system")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        is_root = os.geteuid() == 0
        if is_root:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if is_root:
                os.seteuid(0)


def test_what_may_only_be_read_is_deleted_too(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(nobody))
    outside = nobody / "outside"
    outside.write_text("mine")
    outside.chmod(0o400)
    folder = make_finished(nobody / "runs" / "run")
    inner = folder / "store" / "locked" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "a").write_text("a")
    (inner / "link").symlink_to(outside)
    for one, mode in ((inner.parent / "a", 0o400), (inner, 0o500), (inner.parent, 0o500)):
        one.chmod(mode)
    assert delete_run(folder) == "Deleted run."
    assert outside.stat().st_mode & 0o777 == 0o400 and names(nobody / "runs") == []


def test_a_link_to_a_run_is_removed_and_the_run_is_not(runs: Path, tmp_path: Path) -> None:
    folder = make_finished(tmp_path / "elsewhere" / "real")
    (runs / "link").symlink_to(folder, target_is_directory=True)
    assert "what it led to is still there" in delete_run(runs / "link")
    assert names(runs) == [] and read_run(folder).state == "finished"


def test_what_may_not_be_deleted(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path, match: str) -> None:
        with pytest.raises(RunError, match=match):
            delete_run(folder)
        assert folder.is_dir() or "not there" in match

    refused(tmp_path / "nowhere", "not there")
    refused(tmp_path, "not there")
    # Somebody has put a run where all of them are, or began one in a home folder.
    for folder, what in ((runs, "the folder of all runs"), (runs.parent, "your workspace")):
        (folder / "run.yaml").write_text("seed: 1")
        os.utime(folder / "run.yaml", (1e9, 1e9))
        refused(folder, what)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    home = make_run(tmp_path / "home")
    refused(home, "your home folder")
    outer = make_run(tmp_path / "outer")
    inner = make_run(outer / "inner")
    remember(inner)
    refused(outer, "It holds another run")
    remember(outer)
    assert delete_run(inner) == "Deleted inner." and remembered() == [outer]

    def full(_folder: Path) -> None:
        raise DiskError("the disk is full", cure="Free some space.")

    monkeypatch.setattr(run_actions, "forget", full)
    assert delete_run(outer) == "Deleted outer.", "a full disk must not keep anybody from making room"
    assert not outer.exists()


def test_a_run_that_another_process_works_on_is_not_touched(runs: Path, scans: Path) -> None:
    child = start_at_work(runs / "run", scans)
    make_run(runs / "study", "study")
    cell = start_at_work(runs / "study" / "fine-tuning" / "cell", scans)
    try:
        with pytest.raises(RunError, match=f"Process {child.pid} is working on it"):
            delete_run(runs / "run")
        with pytest.raises(RunError, match=f"Process {cell.pid} is working in it"):
            delete_run(runs / "study")
        assert names(runs) == ["run", "study"]
        (runs / "run" / "go on").touch()
        (runs / "study" / "fine-tuning" / "cell" / "go on").touch()
        assert child.wait(10) == 0 and cell.wait(10) == 0, "their folders are where they were"
    finally:
        child.kill()
        cell.kill()


def test_two_programs_on_one_workspace(runs: Path, scans: Path) -> None:
    """What one is doing, another process sees, and can neither resume nor delete."""
    child = start_at_work(runs / "run", scans)
    program = (
        "import sys; from pathlib import Path\n"
        "from HybridMIMLib.slicer_side.run_list import RunList\n"
        "from HybridMIMLib.slicer_side import run_actions as a\n"
        "runs = RunList()\n"
        "while not runs.look(): pass\n"
        "[run] = runs.found\n"
        "print(run.state_in_words, '|', a.why_not_resume(run), '|', a.why_not_attach(run))\n"
        "for do in (a.resume_run, a.delete_run):\n"
        "    try: do(run.folder)\n"
        "    except Exception as error: print(error)\n"
    )
    try:
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        who = f"Process {child.pid} is working on it"
        assert other.stdout.splitlines() == [
            f"at work, process {child.pid} | {who}. | ",
            f"{runs / 'run'}: cannot be resumed. {who}.",
            f"{runs / 'run'}: is not deleted. {who}: stop it first.",
        ]
        assert child.poll() is None and (runs / "run" / "run.pid").exists()
    finally:
        child.kill()


def test_a_run_that_begins_while_it_is_deleted_is_put_back(runs: Path, scans: Path, monkeypatch: object) -> None:
    folder = make_dead(runs / "run", unlabelled=scans)
    started = []

    def resumed_just_now(folder: Path) -> Path:
        started.append(start_at_work(folder, scans))
        return put_away(folder)

    put_away = run_actions._put_away
    monkeypatch.setattr(run_actions, "_put_away", resumed_just_now)  # type: ignore[attr-defined]
    try:
        with pytest.raises(RunError, match=r"Process \d+ is working in it"):
            delete_run(folder)
        assert read_run(folder).owner == started[0].pid and names(runs) == ["run"]
    finally:
        started[0].kill()


def test_what_is_half_deleted_is_no_run(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_finished(runs / "run")
    monkeypatch.setattr(run_actions.shutil, "rmtree", lambda *_path, **_options: None)
    with pytest.raises(DiskError, match="some of its files could not be deleted"):
        delete_run(folder)
    monkeypatch.undo()
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(runs.parent))
    [rest] = runs.iterdir()
    known = RunList()
    assert known.look() and known.found == []
    # The next deletion does away with what was left long ago, and with nothing that is still being deleted.
    delete_run(make_finished(runs / "second"))
    assert rest.is_dir()
    os.rename(rest, runs / f"{run_actions._DELETED}1000000-abc")
    delete_run(make_finished(runs / "third"))
    assert names(runs) == []


def test_a_folder_that_cannot_be_renamed(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_finished(runs / "run")

    def refuse(*_paths: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run_actions.os, "replace", refuse)
    with pytest.raises(DiskError, match="cannot be deleted .Permission denied.. Close what uses its files"):
        delete_run(folder)
    assert read_run(folder).state == "finished"


# --- looking closer ---------------------------------------------------------------------------------------------


def test_reports_users_and_words(runs: Path, scans: Path) -> None:
    first = make_run(runs / "first", "pretrain", result={"weights": "w"}, unlabelled=str(scans))
    assert look_closer(read_run(first)).report is None
    for step in (5, 10):
        (first / "previews").mkdir(exist_ok=True)
        (first / "previews" / f"step_{step:06}.png").touch()
    make_run(runs / "second", labelled=str(scans), weights=str(first / "pretrained.safetensors"))
    (first / "pretrained.safetensors").touch()
    make_run(runs / "third", labelled=str(scans), weights=f"{first}-other")
    details = look_closer(read_run(first))
    assert details.report == first / "previews" / "step_000010.png" and details.used_by == ("second",)
    (first / "report.html").touch()
    assert look_closer(read_run(first)).report == first / "report.html"
    text = describe(read_run(first), details, 3_000_000)
    assert "first: pre-training, finished." in text and "3.0 MB" in text and "Other runs use it: second." in text
    second = read_run(runs / "second")
    words = describe(second, look_closer(second), None)
    assert "best Dice 0.900" in words and words.endswith("Resume goes on with it.")
    shutil.rmtree(first)
    assert "weights cannot be found" in describe(second, look_closer(second), None)
    kept = make_finished(runs / "no model")
    shutil.rmtree(kept / "model")
    assert "not in its folder any more" in describe(read_run(kept), look_closer(read_run(kept)), None)


# --- packages ---------------------------------------------------------------------------------------------------


def test_a_package_is_made_by_a_process(runs: Path, tmp_path: Path) -> None:
    model = save_threshold_model(runs / "run" / "model", "Box 数")
    target = tmp_path / "to hand on" / "Box.zip"
    target.parent.mkdir()
    work = finish(Packing(model, target))
    assert work.state == FINISHED and work.message == f"The package is {target}."
    assert any(name.endswith("metadata.json") for name in zipfile.ZipFile(target).namelist())
    assert not work.folder.exists() or not any(work.folder.iterdir())


def test_a_package_that_cannot_be_made_says_why(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys; print('error: the disk is full. Free some space.'); sys.exit(1)"
    monkeypatch.setattr(run_actions, "library_command", lambda _, options: [sys.executable, "-c", program, *options])
    work = finish(Packing(runs, tmp_path / "Box.zip"))
    assert (work.state, work.message) == (FAILED, "the disk is full. Free some space.") and work.said


def test_a_package_that_is_cancelled_leaves_nothing(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "Box.zip"
    target.write_text("of before")
    program = (
        "import sys, time; from pathlib import Path; from HybridMIMLib.files import atomic_path\n"
        "target = Path(sys.argv[-1].split('=', 1)[1])\n"
        "with atomic_path(target) as part: part.write_text('half'); time.sleep(60)\n"
    )
    monkeypatch.setattr(run_actions, "library_command", lambda _, options: [sys.executable, "-c", program, *options])
    work = Packing(runs, target)
    end = time.monotonic() + 30
    while not list(tmp_path.glob(".tmp-*")):
        assert work.update() and time.monotonic() < end
        time.sleep(0.02)
    work.cancel()
    assert finish(work).state == STOPPED and work.message == "Stopped."
    assert target.read_text() == "of before" and not list(tmp_path.glob(".tmp-*"))
