"""Batches: a state for each scan, whatever happens to the process, and found again by a later Slicer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import finish, save_threshold_model, write_blobs

from HybridMIMLib import segment
from HybridMIMLib.config import make_run
from HybridMIMLib.data.layouts import Case
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.events import DONE, FAILED, SKIPPED, WAITING, WORKING, EventLog, EventReader
from HybridMIMLib.inference.cases import killers_last
from HybridMIMLib.runs import RunFolder
from HybridMIMLib.slicer_side import batch as batches
from HybridMIMLib.slicer_side.batch import (
    BatchSettings,
    BatchTable,
    attach_batch,
    label_file,
    read_table,
    recent_batches,
    start_batch,
)
from HybridMIMLib.slicer_side.jobs import FAILED as JOB_FAILED
from HybridMIMLib.slicer_side.jobs import FINISHED, STOPPED

STATES = (WAITING, WORKING, DONE, SKIPPED, FAILED)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "workspace"
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(folder))
    return folder


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let batches run a small program in place of the library; it finds its run folder in ``run``."""

    def use(program: str) -> None:
        begin = (
            "import sys, time, os, pathlib\nfrom HybridMIMLib.events import EventLog\n"
            "from HybridMIMLib.config import Run\nfrom HybridMIMLib.runs import RunFolder\n"
            "run = pathlib.Path(sys.argv[-1].split('=', 1)[1]); log = EventLog(run / 'events.jsonl')\n"
        )
        command = [sys.executable, "-c", begin + program]
        monkeypatch.setattr("HybridMIMLib.slicer_side.jobs.library_command", lambda _, options: [*command, *options])

    return use


def settings_for(folder: Path) -> BatchSettings:
    (folder / "scans").mkdir(exist_ok=True)
    return BatchSettings(str(folder / "scans"), "model", str(folder / "out"))


def states(table: BatchTable) -> dict[str, str]:
    return {row.name: row.state for row in table.rows}


def test_a_folder_with_a_bad_scan_and_again_with_it_mended(unicode_folder: Path, workspace: Path) -> None:
    scans = write_blobs(unicode_folder / "scans", 3, labelled=False) / "images"
    whole = (scans / "blob_1.nii.gz").read_bytes()
    (scans / "blob_1.nii.gz").write_bytes(whole[: len(whole) // 2])
    model, out = save_threshold_model(unicode_folder / "model"), unicode_folder / "out"
    # The first time in this process, which takes less time.
    segment(scans=str(scans), model=str(model), output=str(out), device="cpu")
    table = read_table(out)
    assert states(table) == {"blob_0": DONE, "blob_1": SKIPPED, "blob_2": DONE}
    assert table.describe() == "2 of 3 done, 1 skipped"
    row = table.rows[1]
    assert "truncated or damaged" in row.reason and row.scan == str(scans / "blob_1.nii.gz")
    first = label_file(out, "blob_0")
    assert first is not None and label_file(out, "blob_1") is None
    written = first.stat().st_mtime_ns
    (scans / "blob_1.nii.gz").write_bytes(whole)
    batch = start_batch(BatchSettings(str(scans), str(model), str(out), "cpu"))
    assert finish(batch).state == FINISHED, batch.message
    assert batch.message == f"3 of 3 done. The label maps are in {out / 'labels'}."
    assert set(states(batch.table).values()) == {DONE}
    assert first.stat().st_mtime_ns == written, "what is done is not done again"
    assert label_file(out, "blob_1") is not None
    assert states(read_table(out)) == states(batch.table)
    assert [note.folder for note in recent_batches()] == [out]


SLOW = (
    "with RunFolder.open('segment', Run(output=str(run))).at_work() as events:\n"
    "    events.cases([('a', 'a.nrrd', 'done'), ('b', 'b.nrrd', 'waiting'), ('c', 'c.nrrd', 'waiting')])\n"
    "    events.case('b', 'working')\n"
    "    while not (run / 'go on').exists(): time.sleep(0.01)\n"
    "    events.case('b', 'done')\n"
    "(run / 'result.json').write_text('{}')"
)


def test_it_outlives_the_slicer_that_began_it(tmp_path: Path, workspace: Path) -> None:
    (tmp_path / "scans").mkdir()
    out = tmp_path / "out"
    # A Slicer that starts a batch and is gone. The process passes for a command of ours.
    slicer = (
        "import sys\nfrom HybridMIMLib.slicer_side import jobs, batch\n"
        f"program = {SLOW!r}\n"
        "begin = 'import sys, time, pathlib, HybridMIMLib.runs as r; from HybridMIMLib.config import Run; "
        "from HybridMIMLib.runs import RunFolder; r._is_command = lambda: True; "
        'run = pathlib.Path(sys.argv[-1].split("=", 1)[1])\\n\'\n'
        "jobs.library_command = lambda _, options: [sys.executable, '-c', begin + program, *options]\n"
        f"b = batch.start_batch(batch.BatchSettings({str(tmp_path / 'scans')!r}, 'm', {str(out)!r}))\n"
        "while not b.table.rows: b.update()\n"
    )
    subprocess.run([sys.executable, "-c", slicer], check=True, timeout=60)
    [note] = recent_batches()
    batch = attach_batch(note.folder)
    assert batch is not None and batch.update()
    assert states(batch.table) == {"a": DONE, "b": WORKING, "c": WAITING}
    assert start_batch(note.settings).table.rows, "started again, it is joined and not disturbed"
    (out / "go on").touch()
    assert finish(batch, 20).state == FINISHED
    assert states(batch.table)["b"] == DONE
    assert attach_batch(note.folder) is None


def test_one_that_is_killed_blames_the_scan_that_was_at_work(tmp_path: Path, workspace: Path, instead) -> None:
    instead(SLOW)
    batch = start_batch(settings_for(tmp_path))
    while WORKING not in states(batch.table).values():
        assert batch.update()
    batch.kill()
    assert states(batch.table) == {"a": DONE, "b": WAITING, "c": WAITING}, "we killed it: nobody is to blame"
    instead("log.cases([('b', 'b', 'waiting')]); log.case('b', 'working'); os.kill(os.getpid(), 9)")
    batch = start_batch(settings_for(tmp_path))
    assert finish(batch).state == JOB_FAILED
    [row] = batch.table.rows
    assert row.state == FAILED and "memory ran out" in row.reason
    assert read_table(batch.folder).rows[0].state == FAILED


def test_stopped_by_the_user_nothing_has_failed(tmp_path: Path, workspace: Path, instead) -> None:
    instead(SLOW)
    batch = start_batch(settings_for(tmp_path))
    while WORKING not in states(batch.table).values():
        assert batch.update()
    batch.cancel()
    assert finish(batch, 10).state == STOPPED
    assert states(batch.table) == {"a": DONE, "b": WAITING, "c": WAITING}


def test_why_it_failed_stays_until_it_is_tried_again() -> None:
    table = BatchTable()
    listed = [{"name": "a", "scan": "x", "state": "waiting"}]
    table.take({"kind": "cases", "cases": listed})
    table.take({"kind": "case", "case": "a", "state": "failed", "message": "too large"})
    table.take({"kind": "cases", "cases": listed})
    assert (table.rows[0].state, table.rows[0].reason) == (WAITING, "too large")
    table.take({"kind": "case", "case": "a", "state": "working"})
    assert (table.rows[0].state, table.rows[0].reason) == (WORKING, "")


def test_only_rows_that_changed_are_drawn_again() -> None:
    table = BatchTable()
    table.take({"kind": "cases", "cases": [{"name": str(n), "state": "waiting"} for n in range(5)]})
    assert (table.take_changes(), table.lists) == ([0, 1, 2, 3, 4], 1)
    table.take({"kind": "case", "case": "3", "state": "done"})
    assert (table.take_changes(), table.take_changes(), table.lists) == ([3], [], 1)
    assert [table.text(3, column) for column in range(3)] == ["3", "done", ""]
    assert table.describe() == "1 of 5 done"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([*STATES, "a", "b", "finished", ""]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "state", "scan"]), inner, max_size=3)
    ),
    max_leaves=5,
)
EVENTS = st.dictionaries(
    st.sampled_from(["kind", "cases", "case", "state", "message", "outcome"]),
    ANYTHING | st.sampled_from(["cases", "case", "end"]),
)


@given(st.lists(EVENTS, max_size=6))
@settings(deadline=None, max_examples=150)
def test_a_damaged_log_breaks_nothing(events: list[dict[str, object]]) -> None:
    table = BatchTable()
    for event in events:
        table.take(event)
    table.end("failed")
    assert all(row.state in STATES and row.state != WORKING for row in table.rows)
    assert sum(table.counts().values()) == len(table.rows)
    table.describe()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scans": ""}, "No folder of scans is chosen. Choose one"),
        ({"model": " "}, "No model is chosen. Choose one"),
        ({"output": ""}, "No output folder is chosen"),
        ({"scans": "/nowhere at all"}, "not there: /nowhere at all. Choose another"),
        ({"output": "FULL"}, "is not empty: .*. Choose a new or empty one"),
        ({"output": "FILE"}, "is a file: .*. Choose a folder"),
    ],
)
def test_what_cannot_start_says_why_and_writes_nothing(
    tmp_path: Path, workspace: Path, change: dict[str, str], words: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    places = {"FULL": str(tmp_path / "full"), "FILE": str(tmp_path / "full" / "thesis.txt")}
    changed = {name: places.get(value, value) for name, value in change.items()}
    before = sorted(path.name for path in tmp_path.rglob("*"))
    good = {"scans": str(tmp_path), "model": "m", "output": str(tmp_path / "out")}
    with pytest.raises(SettingsError, match=words):
        start_batch(BatchSettings(**{**good, **changed}))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_results_of_another_model_are_not_gone_on_with(
    tmp_path: Path, workspace: Path, instead: Callable[[str], None]
) -> None:
    instead("(run / 'run.yaml').touch()")
    models = [str(save_threshold_model(tmp_path / name, name)) for name in ("one", "two")]
    first, second = (replace(settings_for(tmp_path), model=model) for model in models)
    finish(start_batch(first))
    with pytest.raises(SettingsError, match=r"results of another model .*one\). Choose that model"):
        start_batch(second)
    assert recent_batches()[0].settings.model == first.model, "by which its results are read"
    finish(start_batch(first))


def test_a_list_of_batches_that_is_damaged_is_begun_anew(tmp_path: Path, workspace: Path) -> None:
    workspace.mkdir()
    for damage in ("", "[", "{}", "[1]", '[{"settings": {}, "began": 1}]', '[{"settings": {"x": 1}, "began": "y"}]'):
        (workspace / "batches.json").write_text(damage)
        assert recent_batches() == []
    batches._keep_note(settings_for(tmp_path))
    assert len(json.loads((workspace / "batches.json").read_text())) == 1
    assert recent_batches() == [], "its folder is not there"


def test_scans_that_kill_the_process_come_last(tmp_path: Path) -> None:
    cases = [Case(name, (Path(name),), None) for name in "abcd"]

    def order() -> str:
        return "".join(case.name for case in killers_last(cases, tmp_path / "events.jsonl"))

    log = EventLog(tmp_path / "events.jsonl")
    assert order() == "abcd"
    log.case("a", WORKING)
    assert order() == "bcda", "the process died at a"
    log.case("b", WORKING)
    assert order() == "cdab", "and then at b"
    log.case("c", WORKING)
    log.write("end", outcome="stopped")
    assert order() == "cdab", "it was stopped at c, and not killed"
    log.case("a", WORKING)
    log.case("a", DONE)
    assert order() == "acdb"


def test_segmenting_goes_on_past_a_scan_that_killed_it(tmp_path: Path) -> None:
    scans = write_blobs(tmp_path / "scans", 2, labelled=False) / "images"
    call = {"scans": str(scans), "model": str(save_threshold_model(tmp_path / "model")), "device": "cpu"}
    out = tmp_path / "out"
    RunFolder.open("segment", make_run(None, {**call, "output": str(out)}), may_differ=("inference",))
    EventLog(out / "events.jsonl").case("blob_0", WORKING)
    segment(**call, output=str(out))
    told = [event for event in EventReader(out / "events.jsonl").read() if event["kind"] in ("case", "cases")]
    assert [(one["case"], one["state"]) for one in told if one["kind"] == "case"][1:] == [
        ("blob_1", WORKING),
        ("blob_1", DONE),
        ("blob_0", WORKING),
        ("blob_0", DONE),
    ]
    listed = next(one["cases"] for one in told if one["kind"] == "cases")
    assert [(one["name"], one["state"]) for one in listed] == [("blob_0", WAITING), ("blob_1", WAITING)]
