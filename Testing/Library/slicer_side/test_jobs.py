"""Jobs: how they end is told rightly, whatever the process does. The processes are real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import finish, has_ended, tiny_options

from HybridMIMLib.config import Run
from HybridMIMLib.errors import RunError
from HybridMIMLib.events import EventLog, EventReader
from HybridMIMLib.runs import RunFolder
from HybridMIMLib.slicer_side import jobs
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED, RUNNING, STOPPED, STOPPING, Job, attach_job, start_job

READY = "import sys, time, json, os, pathlib; run = pathlib.Path(sys.argv[-1].split('=', 1)[1])\n"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """Let jobs run a small program in place of the library; it finds its run folder in ``run``."""

    def use(program: str) -> None:
        monkeypatch.setattr(
            jobs, "library_command", lambda _, options: [sys.executable, "-c", READY + program, *options]
        )

    return use


def test_the_library_itself_is_started_and_its_result_taken(tmp_path: Path, blobs: Path) -> None:
    options = {
        "unlabelled": blobs / "unlabelled",
        "labelled": None,
        "plan.crop": "[16,16,16]",
        "network.features": "[4,8]",
    }
    job = finish(start_job("prepare", options, tmp_path / "run"), 60)
    assert job.state == FINISHED, job.message
    assert job.progress.outcome == "finished"
    assert job.result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert job.ended and not job.update()


def test_an_error_of_the_library_comes_with_its_cure(tmp_path: Path) -> None:
    job = finish(start_job("prepare", {"unlabelled": tmp_path / "nothing here"}, tmp_path / "run"), 60)
    assert job.state == FAILED
    assert "nothing here" in job.message and job.message.count(". ") >= 1
    with pytest.raises(RunError) as caught:
        job.wait()
    assert str(caught.value) == job.message


def test_empty_options_are_left_out_and_others_passed_whole(tmp_path: Path, script) -> None:
    script("(run / 'result.json').write_text(json.dumps(sys.argv[1:]  and {'given': sys.argv[1:]}))")
    job = finish(start_job("any", {"a": None, "b": "", "c": 0, "d": "x y"}, tmp_path / "run"))
    assert job.result["given"] == ["--c=0", "--d=x y", f"--output={tmp_path / 'run'}"]


def test_events_are_followed_while_it_works(tmp_path: Path, script) -> None:
    script(
        "from HybridMIMLib.events import EventLog\n"
        "log = EventLog(run / 'events.jsonl'); phase = log.phase('pretrain', 3); phase.progress(1, {}, {'a': 1})\n"
        "while not (run / 'go on').exists(): time.sleep(0.01)\n"
        "(run / 'result.json').write_text('{}')"
    )
    job = start_job("any", {}, tmp_path / "run")
    end = time.monotonic() + 20
    while job.progress.step == 0 and time.monotonic() < end:
        assert job.update()
    assert (job.state, job.progress.step, job.progress.values["a"].now) == (RUNNING, 1, 1.0)
    (tmp_path / "run" / "go on").touch()
    assert finish(job).state == FINISHED


def test_what_an_earlier_attempt_told_is_over(tmp_path: Path, script) -> None:
    (tmp_path / "run").mkdir()
    log = EventLog(tmp_path / "run" / "events.jsonl")
    log.write("end", outcome="failed", message="of yesterday")
    script("sys.exit(5)")
    job = finish(start_job("any", {}, tmp_path / "run"))
    assert job.state == FAILED and "yesterday" not in job.message and "exit code 5" in job.message


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("os.kill(os.getpid(), 9)", "killed by the system, most often because memory ran out"),
        ("sys.exit(0)", "exit code 0 and no result. It said nothing"),
        ("print('a'); sys.exit(4)", "exit code 4 and no result. It said last: a"),
        ("os.write(1, bytes(range(256)) * 50); sys.exit(1)", "exit code 1"),
        ("print('error: disk full. Free some.'); print('x'); sys.exit(1)", "disk full. Free some."),
        ("(run / 'result.json').write_text('{half'); sys.exit(0)", "result.json: cannot be read"),
        ("(run / 'result.json').write_text('[]'); sys.exit(0)", "result.json: is not the result of a run"),
        ("(run / 'result.json').write_text('{}'); sys.exit(1)", "exit code 1"),
        (
            "(run / 'events.jsonl').write_bytes(bytes(range(256)) * 9 + b'\\n[1]\\n\"x\"\\n{}\\n'); sys.exit(0)",
            "no result",
        ),
    ],
)
def test_a_process_that_does_not_do_its_work_has_failed(tmp_path: Path, script, program: str, words: str) -> None:
    script(program)
    job = finish(start_job("any", {}, tmp_path / "run"))
    assert job.state == FAILED
    assert words in job.message
    assert job.message.isprintable()


def test_a_traceback_ends_in_its_last_line(tmp_path: Path, script) -> None:
    script("raise ValueError('boom')")
    job = finish(start_job("any", {}, tmp_path / "run"))
    assert "ValueError: boom" in job.message
    assert job.said[-1] == "ValueError: boom"


def test_some_scans_skipped_is_a_result(tmp_path: Path, script) -> None:
    script("(run / 'result.json').write_text('{\"warnings\": [1]}'); sys.exit(3)")
    assert finish(start_job("any", {}, tmp_path / "run")).state == FINISHED


def test_cancelled_it_ends_by_itself(tmp_path: Path, script) -> None:
    script("(run / 'ready').touch(); time.sleep(60)")
    job = start_job("any", {}, tmp_path / "run")
    while not (tmp_path / "run" / "ready").exists():
        time.sleep(0.01)
    job.cancel()
    assert job.state == STOPPING
    job.cancel()
    assert finish(job, 5).state == STOPPED
    assert job.message == "Stopped."


def test_one_that_will_not_end_is_killed_with_its_children(tmp_path: Path, script, monkeypatch) -> None:
    monkeypatch.setattr(Job, "SECONDS_TO_END", 0.3)
    script(
        "import signal, subprocess; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "(run / 'ready').write_text(str(p.pid)); time.sleep(60)"
    )
    job = start_job("any", {}, tmp_path / "run")
    ready = tmp_path / "run" / "ready"
    while not (ready.exists() and ready.read_text()):
        time.sleep(0.01)
    began = time.monotonic()
    job.cancel()
    assert finish(job, 5).state == STOPPED
    assert 0.25 < time.monotonic() - began < 3
    grandchild = int(ready.read_text())
    assert has_ended(grandchild, seconds=5)


def test_one_that_was_done_before_the_cancel_arrived_is_finished(tmp_path: Path, script) -> None:
    script("(run / 'result.json').write_text('{}')")
    job = start_job("any", {}, tmp_path / "run")
    time.sleep(0.5)
    job.cancel()
    assert finish(job).state == FINISHED


def test_a_command_of_somebody_else_is_followed_and_stopped(tmp_path: Path, blobs: Path) -> None:
    assert attach_job(tmp_path / "run") is None
    options = [f"--unlabelled={blobs / 'unlabelled'}", f"--output={tmp_path / 'run'}", *tiny_options()]
    command = [sys.executable, "-m", "HybridMIMLib", "train", *options, "--pretraining.steps=100000"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as other:
        try:
            end = time.monotonic() + 60
            job = None
            while (job is None or job.progress.phase != "pretrain") and time.monotonic() < end:
                job = job or attach_job(tmp_path / "run")
                if job:
                    job.update()
                time.sleep(0.05)
            assert job is not None and job.state == RUNNING
            job.cancel()
            assert finish(job, 20).state == STOPPED
        finally:
            other.kill()


def test_a_run_inside_another_program_is_left_alone(tmp_path: Path) -> None:
    with RunFolder.open("train", Run(output=str(tmp_path / "run"))).at_work():
        assert attach_job(tmp_path / "run") is None


def test_a_process_of_somebody_else_that_dies_has_failed(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (tmp_path / "run.pid").write_text(f"{other.pid}\n\ncommand\n")
    (tmp_path / "heartbeat").touch()
    job = attach_job(tmp_path)
    assert job is not None and job.update()
    other.kill()
    other.wait()
    assert finish(job).state == FAILED
    assert "ended without a result" in job.message


@pytest.mark.parametrize("free", [0, 10**9])
def test_one_that_could_not_even_say_that_the_disk_is_full(
    tmp_path: Path, script, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    monkeypatch.setattr(jobs, "free_bytes", lambda _folder: free)
    script("sys.exit(1)")
    message = finish(start_job("any", {}, tmp_path / "run")).message
    assert ("the disk is full" in message) == (free == 0) and ("memory ran out" in message) == (free > 0)


def test_an_error_of_an_earlier_attempt_is_not_why_this_one_died(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("error: The disk was full. Make room.\n")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        (tmp_path / "run.pid").write_text(f"{other.pid}\n\ncommand\n")
        (tmp_path / "heartbeat").touch()
        killed, told = attach_job(tmp_path), attach_job(tmp_path)
        other.kill()
    assert killed is not None and told is not None
    assert finish(killed).message.startswith("The process ended without a result")
    with open(tmp_path / "log.txt", "a") as log:
        log.write("error: A scan is gone. Put it back.\n")
    assert finish(told).message.startswith("A scan is gone")


def test_one_that_somebody_else_stopped_has_not_failed(tmp_path: Path, script) -> None:
    script("(run / 'ready').touch(); time.sleep(60)")
    job = start_job("any", {}, tmp_path / "run")
    while not (tmp_path / "run" / "ready").exists():
        time.sleep(0.01)
    os.kill(job._process.pid, signal.SIGTERM)
    assert finish(job).state == STOPPED


def test_an_error_of_an_earlier_attempt_is_over(tmp_path: Path, script) -> None:
    script("print('error: /old/place: the disk is full. Free some.'); sys.exit(1)")
    assert "disk is full" in finish(start_job("any", {}, tmp_path / "run")).message
    script("os.kill(os.getpid(), 9)")
    assert "memory ran out" in finish(start_job("any", {}, tmp_path / "run")).message


def test_a_disk_that_is_gone_for_a_moment_is_there_again(tmp_path: Path, script, monkeypatch) -> None:
    script("time.sleep(0.5); (run / 'result.json').write_text('{}')")
    job = start_job("any", {}, tmp_path / "run")
    read = job._events.read
    hiccups = iter([OSError("gone"), OSError("gone")])

    def sometimes():
        for error in hiccups:
            raise error
        return read()

    monkeypatch.setattr(job._events, "read", sometimes)
    assert job.update()
    assert finish(job).state == FINISHED


LAUNCHER = """
import subprocess, sys
# As Slicer's: hands no signal on, and makes 1 of every crash.
done = subprocess.run([sys.executable, *sys.argv[1:]])
sys.exit(done.returncode if done.returncode >= 0 else 1)
"""


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Let jobs run a small program behind a launcher, as Slicer's own Python is."""
    launcher = tmp_path / "launcher.py"
    launcher.write_text(LAUNCHER)

    def use(program: str) -> None:
        command = [sys.executable, str(launcher), "-c", READY + program]
        monkeypatch.setattr(jobs, "library_command", lambda _, options: [*command, *options])

    return use


TIDY = (
    "import signal\n"
    "def end(*a): time.sleep(0.5); (run / 'tidied').touch(); sys.exit(130)\n"
    "signal.signal(signal.SIGTERM, end)\n"
    "(run / 'ready').write_text(str(os.getpid())); time.sleep(60)"
)


def wait_for_pid(file: Path) -> int:
    while not (file.exists() and file.read_text()):
        time.sleep(0.01)
    return int(file.read_text())


def test_behind_a_launcher_a_cancelled_one_may_tidy_up(tmp_path: Path, launched) -> None:
    launched(TIDY)
    job = start_job("any", {}, tmp_path / "run")
    pid = wait_for_pid(tmp_path / "run" / "ready")
    job.cancel()
    assert finish(job, 5).state == STOPPED
    assert (tmp_path / "run" / "tidied").exists() and has_ended(pid)


def test_behind_a_launcher_a_killed_one_is_told_as_such(tmp_path: Path, launched) -> None:
    launched("(run / 'ready').write_text(str(os.getpid())); time.sleep(60)")
    job = start_job("any", {}, tmp_path / "run")
    os.kill(wait_for_pid(tmp_path / "run" / "ready"), 9)
    assert finish(job, 5).state == FAILED
    assert "memory ran out" in job.message


def test_behind_a_launcher_that_died_nothing_goes_on(tmp_path: Path, launched) -> None:
    launched("(run / 'ready').write_text(str(os.getpid())); time.sleep(60)")
    job = start_job("any", {}, tmp_path / "run")
    pid = wait_for_pid(tmp_path / "run" / "ready")
    os.kill(job._process.pid, 9)
    assert finish(job, 5).state == FAILED
    assert has_ended(pid)


def test_what_is_left_after_a_graceful_end_is_killed(tmp_path: Path, script) -> None:
    script(
        "import signal, subprocess\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import signal, time; "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)'])\n"
        "signal.signal(signal.SIGTERM, lambda *a: sys.exit(130)); time.sleep(0.5)\n"
        "(run / 'ready').write_text(str(p.pid)); time.sleep(60)"
    )
    Job.SECONDS_TO_END, before = 0.5, Job.SECONDS_TO_END
    try:
        job = start_job("any", {}, tmp_path / "run")
        grandchild = wait_for_pid(tmp_path / "run" / "ready")
        job.cancel()
        assert finish(job, 8).state == STOPPED
        assert has_ended(grandchild)
    finally:
        Job.SECONDS_TO_END = before


def test_a_script_waits_and_may_stop(tmp_path: Path, script) -> None:
    script("time.sleep(60)")
    seen = []

    def stop(job: Job) -> None:
        seen.append(job.state)
        job.cancel()

    with pytest.raises(RunError, match=r"Stopped\."):
        start_job("any", {}, tmp_path / "run").wait(stop)
    assert seen[0] == RUNNING


# --- pauses, and long logs ----------------------------------------------------------------------------------

PAUSABLE = (
    "import HybridMIMLib.runs as r, signal\nfrom HybridMIMLib.config import Run\n"
    "def stop(*_): raise KeyboardInterrupt\n"
    "signal.signal(signal.SIGTERM, stop); r._is_command = lambda: True\n"
    "try:\n"
    " with r.RunFolder.open('train', Run(output=str(run))).at_work() as events:\n"
    "  phase = events.phase('pretrain', 9); phase.progress(4)\n"
    "  try: time.sleep(60)\n"
    "  finally: AT_END\n"
    "except KeyboardInterrupt: sys.exit(130)\n"
)


def test_a_pause_waits_for_a_slow_process_and_needs_no_signal(
    tmp_path: Path, script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where none can be sent; longer than a cancelled one would have had."""
    script(PAUSABLE.replace("AT_END", "time.sleep(1); phase.progress(5, always=True)"))
    monkeypatch.setattr(Job, "SECONDS_TO_END", 0.1)
    monkeypatch.setattr("HybridMIMLib.slicer_side.child._ask_group_to_end", None)
    job = start_job("any", {}, tmp_path / "run")
    job.pause()
    assert job.state == STOPPING and job.pausing, "at once, though it is not at work yet"
    finish(job, 60)
    assert (job.state, job.progress.step, job.progress.outcome) == (STOPPED, 5, "stopped")
    assert not (tmp_path / "run" / "stop").exists()


def test_what_fails_while_it_is_paused_has_failed(tmp_path: Path, script) -> None:
    script(PAUSABLE.replace("AT_END", "raise OSError('no room')"))
    job = start_job("any", {}, tmp_path / "run")
    job.pause()
    assert finish(job, 60).state == FAILED and "no room" in job.message


def test_who_has_no_patience_cancels_a_pause(tmp_path: Path, script) -> None:
    script(PAUSABLE.replace("AT_END", "time.sleep(60)"))
    job = start_job("any", {}, tmp_path / "run")
    end = time.monotonic() + 30
    while job.progress.step == 0 and time.monotonic() < end:
        job.update()
    job.pause()
    job.update()
    job.SECONDS_TO_END = 0.2
    job.cancel()
    assert finish(job).state == STOPPED


def test_the_log_of_a_long_run_is_taken_in_over_several_looks(tmp_path: Path) -> None:
    class Over:
        running, exit_code, log_begins = False, 0, 0

    log = EventLog(tmp_path / "events.jsonl")
    event = json.dumps({"kind": "progress", "phase": "pretrain", "step": 7, "steps": 9, "losses": {"a": 1}})
    (tmp_path / "events.jsonl").write_text((event + "\n") * 30_000)
    log.write("end", outcome="finished", message="")
    (tmp_path / "result.json").write_text("{}")
    job, looks, longest = Job(tmp_path, Over(), EventReader(tmp_path / "events.jsonl")), 0, 0.0
    more = True
    while more:
        began = time.thread_time()
        more, looks = job.update(), looks + 1
        longest = max(longest, time.thread_time() - began)
    assert (job.state, job.progress.outcome, job.progress.step) == (FINISHED, "finished", 7), "not before it is heard"
    assert looks > 3 and longest < 0.06, "it is 0.02; machines are slow at times"
