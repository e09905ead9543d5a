"""The run folder: who may work in it, how it ends, and that its settings come back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from HybridMIMLib import runs
from HybridMIMLib.config import Run, make_run
from HybridMIMLib.errors import DataError, DiskError, RunError, SettingsError
from HybridMIMLib.events import EventReader
from HybridMIMLib.files import read_json, write_json
from HybridMIMLib.runs import RunFolder, ask_to_stop, is_command, living_owner, load_settings, new_path, save_settings


def settings(folder: Path, **others: Any) -> Run:
    return make_run(None, {"output": folder / "run", **others})


def begun(folder: Path, **others: Any) -> RunFolder:
    """A run that got as far as something to continue from."""
    run = RunFolder.open("pretrain", settings(folder, **others))
    (run.path / "checkpoint.pt").write_bytes(b"x")
    return run


def refused(folder: Path, command: str = "pretrain", **others: Any) -> str:
    with pytest.raises(RunError) as caught:
        RunFolder.open(command, settings(folder, **others))
    text = str(caught.value)
    assert str(folder / "run") in text and "--output" in text and "\n" not in text
    return text


def last_event(run: RunFolder) -> dict[str, Any]:
    return list(EventReader(run.path / "events.jsonl").read())[-1]


def test_a_new_folder_says_what_runs_in_it(unicode_folder: Path) -> None:
    run = begun(unicode_folder, seed=5)
    about = read_json(run.path / "about.json")
    assert about["command"] == "pretrain" and {"python", "torch", "numpy"} <= set(about["versions"])
    assert load_settings(run.path / "run.yaml") == run.settings


def test_the_same_settings_continue_a_run(tmp_path: Path) -> None:
    began = read_json(begun(tmp_path, seed=1).path / "about.json")["began"]
    again = RunFolder.open("pretrain", settings(tmp_path, seed=1, device="cpu", store=tmp_path / "elsewhere"))
    assert read_json(again.path / "about.json")["began"] == began


def test_a_tuple_given_again_is_the_same_setting(tmp_path: Path) -> None:
    begun(tmp_path, plan={"spacing": (1, 2, 3)})
    RunFolder.open("pretrain", settings(tmp_path, plan={"spacing": (1, 2, 3)}))


def test_a_run_that_was_moved_is_continued(tmp_path: Path) -> None:
    begun(tmp_path).path.rename(tmp_path / "moved")
    RunFolder.open("pretrain", Run(output=str(tmp_path / "moved")))


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    begun(tmp_path, seed=1)
    text = refused(tmp_path, seed=2, pretraining={"steps": 3}, device="cpu")
    assert "pretraining.steps, seed" in text and "device" not in text


def test_another_command_is_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    assert "the command (pretrain)" in refused(tmp_path, command="finetune")


def test_an_attempt_that_made_nothing_is_not_in_the_way(tmp_path: Path) -> None:
    first = RunFolder.open("pretrain", settings(tmp_path, seed=1))
    with pytest.raises(DataError), first.at_work():
        raise DataError("x", cure="y.")
    second = RunFolder.open("finetune", settings(tmp_path, seed=2))
    assert load_settings(second.path / "run.yaml").seed == 2
    assert read_json(second.path / "about.json")["command"] == "finetune"


def test_a_log_that_was_begun_before_the_run_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").write_text("starting")
    RunFolder.open("train", settings(tmp_path))
    assert (tmp_path / "run" / "log.txt").read_text() == "starting"


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.docx").write_text("x")
    assert "holds no run" in refused(tmp_path)
    assert os.listdir(tmp_path / "run") == ["thesis.docx"]


def test_temporary_files_of_a_killed_process_are_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".tmp-12345678-run.yaml").write_text("see")
    RunFolder.open("pretrain", settings(tmp_path))


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(DiskError, match="run: the folder cannot be made"):
        RunFolder.open("pretrain", settings(tmp_path))


@pytest.mark.parametrize("made_something", [True, False])
def test_a_folder_in_use_is_refused(tmp_path: Path, made_something: bool) -> None:
    run = begun(tmp_path) if made_something else RunFolder.open("pretrain", settings(tmp_path))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (run.path / "run.pid").write_text(f"{other.pid}\n\ncommand\n")
        (run.path / "heartbeat").touch()
        assert f"process {other.pid} is working" in refused(tmp_path)
        assert living_owner(run.path) == other.pid
        other.communicate(b"\n")
    assert living_owner(run.path) is None
    RunFolder.open("pretrain", settings(tmp_path))


@pytest.mark.skipif(os.name == "nt", reason="locks are asked for in another way there")
def test_of_two_that_begin_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    """Both have looked and found nobody; while one says that it works there, the other waits, and looks again."""
    import fcntl

    run, told = RunFolder.open("pretrain", settings(tmp_path)), []

    def begin() -> None:
        try:
            with run.at_work():
                told.append("at work")
        except RunError as error:
            told.append(str(error))

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        with open(run.path / "heartbeat", "ab") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            second = threading.Thread(target=begin)
            second.start()
            second.join(0.3)
            assert second.is_alive() and told == [], "it waits until the first has said who it is"
            (run.path / "run.pid").write_text(f"{other.pid}\n\ncommand\n")
        second.join(10)
        assert [f"process {other.pid} is working" in text for text in told] == [True], told
        assert living_owner(run.path) == other.pid, "the sign of the first is left alone"
        other.communicate(b"\n")


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "9" * 30, "12.5", "\x00"])
def test_a_pid_file_that_names_no_process_is_passed_over(tmp_path: Path, text: str) -> None:
    run = begun(tmp_path)
    (run.path / "run.pid").write_text(text)
    assert living_owner(run.path) is None
    RunFolder.open("pretrain", settings(tmp_path))


def test_a_damaged_description_does_not_lock_the_run(tmp_path: Path) -> None:
    run = begun(tmp_path)
    for content in ("", "[]", "{}", '{"comm'):
        (run.path / "about.json").write_text(content)
        RunFolder.open("pretrain", settings(tmp_path))


def test_a_finished_run_says_so(tmp_path: Path) -> None:
    run = begun(tmp_path)
    assert run.result is None
    with run.at_work() as events:
        assert (run.path / "run.pid").read_text().split()[0] == str(os.getpid())
        events.warning("one was odd")
        run.finish({"a": 1})
    assert last_event(run)["outcome"] == "finished"
    assert run.result == {"a": 1, "warnings": ["one was odd"]}
    assert not (run.path / "run.pid").exists() and (run.path / "heartbeat").exists()


@pytest.mark.parametrize(
    ("error", "outcome", "words"),
    [
        (KeyboardInterrupt(), "stopped", "the same command continues it"),
        (DataError("the scans are bad", cure="Mend them."), "failed", "the scans are bad. Mend them."),
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
        (SystemExit(3), "failed", "SystemExit: 3"),
    ],
)
def test_the_last_event_says_how_it_ended(tmp_path: Path, error: BaseException, outcome: str, words: str) -> None:
    run = begun(tmp_path)
    with pytest.raises(type(error)), run.at_work():
        raise error
    assert last_event(run)["outcome"] == outcome and words in last_event(run)["message"]
    assert not (run.path / "run.pid").exists() and run.result is None


def test_no_room_for_the_last_event_does_not_hide_the_error(tmp_path: Path) -> None:
    run = begun(tmp_path)

    def full(kind: str, **content: Any) -> None:
        raise DiskError("events.jsonl: full", cure="Free some space.")

    run.events.write = full  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError), run.at_work():
        _ = 1 // 0


def test_settings_survive_the_file(unicode_folder: Path) -> None:
    strange = b"L\xe9ka\xf8".decode("utf-8", "surrogateescape")
    run = make_run(
        None,
        {
            "scans": unicode_folder / "no: #'\"\t yes",
            "model": strange,
            "labelled": "null",
            "weights": "1e3",
            "plan": {"spacing": [0.1, 1e-5, 3]},
            "pretraining": {"learning_rate": 1e-30},
        },
    )
    save_settings(unicode_folder / "run.yaml", run)
    assert load_settings(unicode_folder / "run.yaml") == run


def test_an_empty_file_of_settings_means_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("")
    assert load_settings(tmp_path / "run.yaml") == Run()


@pytest.mark.parametrize(
    "content",
    [b"seed: [", b"\xff\xfe\x00", b"seeed: 3", b"- a", b"seed: many", b"text", b"!!python/object:os.x {}"],
)
def test_settings_that_cannot_be_read_end_in_one_line_naming_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(SettingsError, match="run.yaml") as caught:
        load_settings(tmp_path / "run.yaml")
    assert "\n" not in str(caught.value)


def test_runs_begun_in_the_same_second_get_folders_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path))
    paths = [RunFolder.open("prepare", Run()).path for _ in range(3)]
    assert len(set(paths)) == 3 and all(p.parent == tmp_path / "runs" for p in paths)
    assert not new_path("prepare").exists()


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = begun(tmp_path)
    write_json(run.path / "result.json", {"dice": float("nan")})
    assert run.result == {"dice": None}


def test_a_process_number_that_went_to_another_process_is_passed_over(tmp_path: Path) -> None:
    """The parent process lives, but it did not begin when the run's owner did."""
    (tmp_path / "run.pid").write_text(f"{os.getppid()}\n1\ncommand\n")
    (tmp_path / "heartbeat").touch()
    assert living_owner(tmp_path) is None


@pytest.mark.parametrize("told", [True, False])
def test_where_the_system_does_not_tell_the_heart_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    monkeypatch.setattr(runs, "_start_of", lambda _: "")
    (tmp_path / "run.pid").write_text(f"{os.getppid()}\n{'1' if told else ''}\ncommand\n")
    assert living_owner(tmp_path) is None
    (tmp_path / "heartbeat").touch()
    assert living_owner(tmp_path) == os.getppid()
    os.utime(tmp_path / "heartbeat", (0, time.time() - 3600))
    assert living_owner(tmp_path) is None


def test_a_process_that_has_ended_and_waits_for_its_parent_owns_nothing(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as other:
        while Path(f"/proc/{other.pid}/stat").exists() and " Z " not in Path(f"/proc/{other.pid}/stat").read_text():
            time.sleep(0.01)
        (tmp_path / "run.pid").write_text(f"{other.pid}\n\ncommand\n")
        (tmp_path / "heartbeat").touch()
        assert living_owner(tmp_path) is None


def test_ps_tells_when_a_process_began() -> None:
    if shutil.which("ps") is None:
        pytest.skip("there is no ps here")
    assert runs._start_by_ps(os.getpid()) == runs._start_by_ps(os.getpid()) != ""
    assert runs._start_by_ps(2**30) == ""


def test_the_heart_beats_while_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_SECONDS_BETWEEN_BEATS", 0.05)
    run = begun(tmp_path)
    with run.at_work():
        os.utime(run.path / "heartbeat", (0, 0))
        end = time.monotonic() + 10
        while (run.path / "heartbeat").stat().st_mtime == 0:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_a_run_in_a_python_session_is_marked_as_one(tmp_path: Path) -> None:
    run = begun(tmp_path)
    with run.at_work():
        assert living_owner(run.path) == os.getpid()
        assert not is_command(run.path)


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    run = begun(tmp_path)
    (run.path / "result.json").write_text("{")
    with pytest.raises(RunError, match=r"result\.json: is damaged"):
        _ = run.result


# --- asked to stop ------------------------------------------------------------------------------------------


def test_a_command_at_work_ends_when_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_is_command", lambda: True)
    monkeypatch.setattr(runs, "_SECONDS_BETWEEN_LOOKS", 0.01)
    run, done = begun(tmp_path), []
    with pytest.raises(KeyboardInterrupt), run.at_work():
        ask_to_stop(run.path)
        for _ in range(500):
            time.sleep(0.01)
        done.append("the whole")
    assert done == [] and last_event(run)["outcome"] == "stopped"
    assert not (run.path / "stop").exists() and not (run.path / "run.pid").exists()


def test_what_was_asked_of_an_earlier_process_is_not_for_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_is_command", lambda: True)
    monkeypatch.setattr(runs, "_SECONDS_BETWEEN_LOOKS", 0.01)
    run = begun(tmp_path)
    for text in (f"{os.getpid() + 1}\n", "", "all\n"):
        (run.path / "stop").write_text(text)
        with run.at_work():
            time.sleep(0.1)
        assert last_event(run)["outcome"] == "finished" and not (run.path / "stop").exists()


def test_a_library_in_somebodys_session_is_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_SECONDS_BETWEEN_LOOKS", 0.01)
    run = begun(tmp_path)
    with run.at_work():
        ask_to_stop(run.path)
        time.sleep(0.1)
    assert last_event(run)["outcome"] == "finished"


def test_nobody_is_asked_where_nobody_works(tmp_path: Path) -> None:
    run = begun(tmp_path)
    ask_to_stop(run.path)
    assert not (run.path / "stop").exists()
    # And an attempt that was asked before it made anything is not in the way of the next.
    (run.path / "checkpoint.pt").unlink()
    (run.path / "stop").write_text("1\n")
    RunFolder.open("pretrain", settings(tmp_path, seed=7))
