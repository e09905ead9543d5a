"""Jobs as processes: what is done is not done again, what fails stops no other, nobody outlives the study."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small_runs import KeptLog

from HybridMIMLib.runs import is_alive
from HybridMIMLib.studies import jobs
from HybridMIMLib.studies.jobs import Job, Progress, Runner

FAKE = """
import json, os, pathlib, sys, time
spec = json.loads(pathlib.Path(sys.argv[1]).read_text())
folder = pathlib.Path(spec["folder"])
folder.mkdir(parents=True, exist_ok=True)
(folder / "pid").write_text(str(os.getpid()))
(folder / "threads").write_text(os.environ["OMP_NUM_THREADS"])
with open(folder / "times", "a") as times:
    times.write("begun\\n")
for step in range(5):
    with open(folder / "events.jsonl", "a") as events:
        events.write(json.dumps({"kind": "progress", "phase": "finetune", "step": step, "steps": 10}) + "\\n")
    time.sleep(spec["sleeps"] / 5)
if spec["fails"]:
    sys.exit("error: " + spec["fails"])
(folder / "made").touch()
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cells that write, sleep, fail."""
    (tmp_path / "fake_cell.py").write_text(FAKE)
    monkeypatch.setattr(jobs, "CELL", "fake_cell")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "jobs").mkdir()
    return tmp_path


def job(folder: Path, name: str, sleeps: float = 0.0, fails: str = "") -> Job:
    place = folder / name
    spec = {"folder": str(place), "sleeps": sleeps, "fails": fails}
    return Job(name, f"the job {name}", spec, place, 10.0, place / "made")


def test_a_failure_stops_no_other_is_named_and_tried_again(fake: Path) -> None:
    log = KeptLog()
    runner = Runner(fake / "jobs", 1, log)
    runner.run([job(fake, "a"), job(fake, "b", fails="the disk is full"), job(fake, "c")])
    assert (fake / "a" / "made").exists() and (fake / "c" / "made").exists()
    assert runner.failures == {"the job b": "the disk is full"}
    assert log.warnings == [
        "skipped: the job b failed and is tried again at the next start: the disk is full",
    ]
    runner.run([job(fake, "a"), job(fake, "b")])
    assert runner.failures == {}
    assert (fake / "a" / "times").read_text() == "begun\n", "what is done is not begun again"
    assert (fake / "b" / "times").read_text() == "begun\nbegun\n"


def test_several_work_at_once_and_share_the_cores(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    runner = Runner(fake / "jobs", 3, KeptLog())
    most = 0

    class Watch(Progress):
        def at(self, shares: object) -> None:
            nonlocal most
            most = max(most, len(list(shares)))  # type: ignore[call-overload]

    works = [job(fake, name, sleeps=0.5) for name in "abcd"]
    runner.run(works, Watch(KeptLog(), 40, 0))
    assert most == 3 and {(fake / name / "threads").read_text() for name in "abcd"} == {"2"}


def test_progress_goes_from_none_to_all_and_never_back(fake: Path) -> None:
    log = KeptLog()
    Runner(fake / "jobs", 2, log).run(
        [job(fake, "a", 0.6), job(fake, "b", 0.3, fails="no"), job(fake, "c", 0.6)], Progress(log, 30, 0)
    )
    steps = [event["step"] for event in log.events if event["kind"] in ("phase", "progress")]
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] == 30
    assert any(step % 10 for step in steps), "a job at work tells how far it is"


def test_whoever_stops_a_study_stops_its_jobs(fake: Path) -> None:
    runner = Runner(fake / "jobs", 1, KeptLog())

    class Stop(Progress):
        def at(self, shares: object) -> None:
            if (fake / "a" / "pid").exists():
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run([job(fake, "a", sleeps=60)], Stop(KeptLog(), 10, 0))
    assert not is_alive(int((fake / "a" / "pid").read_text()))


def test_a_job_that_was_killed_says_so(fake: Path) -> None:
    runner, work = Runner(fake / "jobs", 1, KeptLog()), job(fake, "a", sleeps=60)

    def kill() -> None:
        while not (fake / "a" / "pid").exists() or not (fake / "a" / "pid").read_text():
            time.sleep(0.02)
        os.kill(int((fake / "a" / "pid").read_text()), 9)

    threading.Thread(target=kill).start()
    runner.run([work])
    assert runner.failures == {"the job a": jobs._KILLED}


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_a_cell_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """The real cell, waiting for a file that blocks, under a parent that is killed."""
    os.mkfifo(tmp_path / "job.json")
    parent = subprocess.Popen(
        [
            sys.executable, "-c",
            "import subprocess, sys; c = subprocess.Popen([sys.executable, '-m', 'HybridMIMLib.studies.cell', "
            f"{str(tmp_path / 'job.json')!r}], start_new_session=True); print(c.pid, flush=True); c.wait()",
        ],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    # Whoever opens the other end knows that the cell has come so far.
    with open(tmp_path / "job.json", "w"):
        parent.kill()
        parent.wait()
        end = time.monotonic() + 30
        while is_alive(child) and time.monotonic() < end:
            time.sleep(0.05)
        assert not is_alive(child)


@pytest.mark.skipif(os.name == "nt", reason="makes a named pipe")
def test_a_cell_ends_whose_starter_ended_before_it_could_look(tmp_path: Path) -> None:
    """A study that is killed while a cell is being loaded must not leave one that nobody knows of."""
    os.mkfifo(tmp_path / "job.json")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    cell = subprocess.Popen([sys.executable, "-m", jobs.CELL, str(tmp_path / "job.json"), str(gone.pid)])
    try:
        assert cell.wait(30) == 1
    finally:
        cell.kill()


def test_a_wrong_job_is_an_error_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from HybridMIMLib.config import Run, to_dict
    from HybridMIMLib.errors import RunError
    from HybridMIMLib.studies.cell import work

    spec = {"kind": "pretrain", "run": to_dict(Run()), "protocol": str(tmp_path / "no.json"), "cases": [], "test": []}
    with pytest.raises(RunError, match="the protocol of the study cannot be read"):
        work(spec)
