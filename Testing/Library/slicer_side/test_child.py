"""Processes: started without a shell, followed, and ended with everything that they started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import HybridMIMLib
from HybridMIMLib.errors import RunError
from HybridMIMLib.runs import is_alive
from HybridMIMLib.slicer_side.child import Child, OtherProcess, last_lines, library_command, python_executable

PYTHON = sys.executable


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def python(program: str, log: Path) -> Child:
    return Child([PYTHON, "-c", program], log)


def test_output_of_both_kinds_goes_to_the_log_and_the_exit_code_is_told(tmp_path: Path) -> None:
    program = "import sys; print('däs hier'); print('und das', file=sys.stderr); sys.exit(7)"
    child = python(program, tmp_path / "a" / "log.txt")
    wait_until(lambda: not child.running)
    assert child.exit_code == 7
    assert last_lines(tmp_path / "a" / "log.txt", 5) == ["däs hier", "und das"]


def test_a_second_process_appends_to_the_log(tmp_path: Path) -> None:
    for word in ("first", "second"):
        python(f"print('{word}')", tmp_path / "log.txt").wait(20)
    assert last_lines(tmp_path / "log.txt", 5) == ["first", "second"]


def test_arguments_reach_the_process_as_they_are(tmp_path: Path) -> None:
    arguments = ["a b", "$HOME", '"', "数 Lékař", "; rm -rf /", "*"]
    child = Child([PYTHON, "-c", "import sys; print(ascii(sys.argv[1:]))", *arguments], tmp_path / "log.txt")
    wait_until(lambda: not child.running)
    assert last_lines(tmp_path / "log.txt", 1) == [ascii(arguments)]


def test_the_library_is_found_from_any_folder_and_output_is_utf8(tmp_path: Path) -> None:
    program = "import sys; print(*sys.path[:2], sys.flags.utf8_mode, sys.stdout.encoding, sep='|')"
    child = python(program, tmp_path / "log.txt")
    wait_until(lambda: not child.running)
    said = last_lines(tmp_path / "log.txt", 1)[0].split("|")
    assert str(Path(HybridMIMLib.__file__).parents[1]) in said, "not by the editable install, which Slicer has not"
    assert said[-2:] == ["1", "utf-8"]


def test_standard_input_is_empty(tmp_path: Path) -> None:
    # A child that asks something would wait for ever.
    child = python("import sys; print(repr(sys.stdin.read()))", tmp_path / "log.txt")
    wait_until(lambda: not child.running)
    assert last_lines(tmp_path / "log.txt", 1) == ["''"]


def test_asked_to_end_a_process_may_tidy_up(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time\n"
        "def end(*a): print('tidied'); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, end); print('ready'); time.sleep(60)"
    )
    child = python(program, tmp_path / "log.txt")
    wait_until(lambda: last_lines(tmp_path / "log.txt", 1) == ["ready"])
    child.ask_to_end()
    wait_until(lambda: not child.running)
    assert child.exit_code == 130
    assert last_lines(tmp_path / "log.txt", 1) == ["tidied"]
    child.ask_to_end()
    child.kill()


def test_killing_takes_the_children_of_the_child_along(tmp_path: Path) -> None:
    program = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(p.pid); time.sleep(60)"
    )
    child = python(program, tmp_path / "log.txt")
    wait_until(lambda: bool(last_lines(tmp_path / "log.txt", 1)))
    grandchild = int(last_lines(tmp_path / "log.txt", 1)[0])
    child.ask_to_end()
    time.sleep(0.2)
    assert child.running and is_alive(grandchild)
    child.kill()
    assert not child.running
    wait_until(lambda: not is_alive(grandchild))


def test_what_outlives_the_first_process_is_killed(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(p.pid)"
    )
    child = python(program, tmp_path / "log.txt")
    child.wait(20)
    orphan = int(last_lines(tmp_path / "log.txt", 1)[0])
    assert is_alive(orphan)
    assert not child.running
    wait_until(lambda: not is_alive(orphan))
    assert child.exit_code == 0


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no-such-python: cannot be started"):
        Child([str(tmp_path / "no-such-python")], tmp_path / "log.txt")


def test_another_process_is_known_by_the_run_folder(tmp_path: Path) -> None:
    other = subprocess.Popen([PYTHON, "-c", "import time; time.sleep(60)"], start_new_session=True)
    (tmp_path / "run.pid").write_text(f"{other.pid}\n\ncommand\n")
    (tmp_path / "heartbeat").touch()
    process = OtherProcess(tmp_path, other.pid)
    assert process.running and process.exit_code is None
    process.kill()
    other.wait()
    assert not process.running
    process.ask_to_end()
    process.kill()


def test_the_last_lines_of_any_bytes(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert last_lines(log, 3) == []
    log.write_bytes(b"\x00\xff\xfe one \r\n\n" + b"bar\rbar 2\r" + b"\x1b[K two\n")
    assert last_lines(log, 2) == ["bar 2", "[K two"]
    assert last_lines(log, 9, since=len(log.read_bytes())) == []
    log.write_bytes(b"x" * 10_000_000 + b"\nend")
    assert last_lines(log, 1) == ["end"]


def test_slicers_own_python_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert python_executable() == sys.executable
    program = tmp_path / "PythonSlicer"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert python_executable() == str(program)
    assert library_command("segment", ["--a=b"]) == [str(program), "-m", "HybridMIMLib", "segment", "--a=b"]


def test_slicer_itself_is_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "SlicerApp-real"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="PythonSlicer"):
        python_executable()
