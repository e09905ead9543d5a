"""The worker as a process: asked over its pipes, as Slicer does."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_packages import make_package
from small_runs import UNICODE_NAME, save_threshold_model

from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.scans import read_label_map, read_scan, write_nifti
from HybridMIMLib.inference.predictor import make_predictor
from HybridMIMLib.model_package import load_model
from HybridMIMLib.runs import is_alive
from HybridMIMLib.settings.inference import InferenceSettings
from HybridMIMLib.worker_protocol import LAST_EVENTS, MOST_BYTES

SECONDS = 60
TORCH = {"engine": "torch", "precision": "float32"}
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and parents of POSIX")


class Asked:
    """A worker, and what it answers.

    Args:
        environment: on top of this process's own.
        options: of serve.
    """

    def __init__(self, *options: str, log: Path, **environment: str) -> None:
        self.log = log
        with open(log, "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "HybridMIMLib", "serve", *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **environment},
            )
        self.answers: list[dict[str, Any]] = []
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._ids = iter(range(1, 10_000))
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def send(self, command: str, **content: Any) -> int:
        id_ = next(self._ids)
        self.write(json.dumps({"id": id_, "command": command, **content}, ensure_ascii=False).encode() + b"\n")
        return id_

    def next(self) -> dict[str, Any]:
        """The next answer; every line is one JSON object."""
        line = self._lines.get(timeout=SECONDS)
        assert line.endswith(b"\n"), f"it ended: {self.log.read_text(errors='replace')}"
        answer: dict[str, Any] = json.loads(line.decode("utf-8"))
        self.answers.append(answer)
        return answer

    def until(self, id_: int | None, *events: str) -> dict[str, Any]:
        while (answer := self.next())["id"] != id_ or answer["event"] not in events:
            pass
        return answer

    def ask(self, command: str, **content: Any) -> dict[str, Any]:
        """The last event of a request."""
        return self.until(self.send(command, **content), *LAST_EVENTS)

    def ends(self, seconds: float = 10) -> int:
        return self.process.wait(seconds)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models and two scans; its name has a space, accents and a Chinese character."""
    folder = tmp_path_factory.mktemp("worker") / UNICODE_NAME
    folder.mkdir()
    save_threshold_model(folder / "threshold model")
    make_package(name="noise").save(folder / "noise")
    grid = Grid((24, 26, 20), np.array([[0, -1.0, 0, 5], [1.2, 0, 0, -7], [0, 0, 1.5, 3], [0, 0, 0, 1]]))
    image = np.random.default_rng(1).normal(100, 10, grid.shape)
    image[5:15, 6:12, 4:13] += 400
    write_nifti(folder / "scan é.nii.gz", image.astype(np.float32), grid)
    large = np.random.default_rng(2).normal(0, 50, (150, 150, 150)).astype(np.float32)
    write_nifti(folder / "large.nii.gz", large, Grid(large.shape, np.eye(4)))
    return folder


@pytest.fixture(scope="module")
def worker(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    log, workspace = tmp_path_factory.mktemp("log") / "log.txt", str(tmp_path_factory.mktemp("workspace"))
    asked = Asked(log=log, LC_ALL="C", PYTHONIOENCODING="ascii", HYBRIDMIM_WORKSPACE=workspace)
    yield asked
    assert asked.ask("quit")["event"] == "done"
    assert asked.ends() == 0
    assert "Traceback" not in log.read_text(errors="replace")


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


def test_it_is_ready_before_torch_is(worker: Asked) -> None:
    first = worker.next()
    assert (first["id"], first["event"], first["protocol"], first["pid"]) == (None, "ready", 1, worker.process.pid)
    state = worker.ask("status")
    assert state["event"] == "done" and state["model"] is None and state["warm"] is False
    unloaded = worker.ask("segment", scan="/a.nii.gz", output=str(worker.log.parent / "b.nii.gz"))
    assert unloaded["event"] == "failed" and "no model is loaded" in unloaded["message"]


def test_a_scan_is_segmented_as_without_a_worker(worker: Asked, place: Path, tmp_path: Path) -> None:
    model, scan, label = (
        place / "threshold model",
        place / "scan é.nii.gz",
        tmp_path / UNICODE_NAME / "label é.nii.gz",
    )
    loaded = worker.ask("load", model=str(model), device="cpu", inference=TORCH)
    assert loaded["event"] == "done" and loaded["model"]["name"] == "Threshold" and loaded["warm"]
    id_ = worker.send("segment", scan=str(scan), output=str(label), uncertainty=str(tmp_path / "entropy.nii.gz"))
    answer = worker.until(id_, *LAST_EVENTS)
    told = [one for one in worker.answers if one["id"] == id_]
    assert [one["event"] for one in told] == ["accepted", *["progress"] * (len(told) - 2), "done"]
    phases = [one["phase"] for one in told if one["event"] == "progress"]
    assert list(dict.fromkeys(phases)) == ["load", "read", "segment", "write"]
    assert {"done": 1, "of": 1}.items() <= [one for one in told if one.get("done")][-1].items()

    package, read = load_model(model), read_scan(scan)
    settings = InferenceSettings(engine="torch", precision="float32", uncertainty=True)
    expected = make_predictor(package, settings, "cpu").predict(read.array, read.grid)
    found = read_label_map(Path(answer["label"]), read.grid)
    assert answer["label"] == str(label) and (found.array == expected.labels).all()
    entropy = read_scan(tmp_path / "entropy.nii.gz")
    assert expected.uncertainty is not None
    np.testing.assert_allclose(entropy.array[0], expected.uncertainty, atol=1e-6)
    # Voxels of 1 x 1.2 x 1.5 mm.
    voxels = int((expected.labels == 3).sum())
    assert voxels > 300 and answer["empty"] == ["Never"]
    assert answer["classes"] == [{"name": "Bright", "label": 3, "ml": pytest.approx(voxels * 1.8e-3, abs=1e-3)}]
    assert answer["model"] == {"name": "Threshold", "digest": package.digest, "path": str(model)}
    seconds = answer["seconds"]
    parts = seconds["load"] + seconds["read"] + seconds["segment"] + seconds["write"]
    assert parts == pytest.approx(seconds["total"], abs=0.01) and 0 < seconds["network"] <= seconds["segment"]


def test_the_second_segmentation_costs_no_start_up(worker: Asked, shared_data: Path, place: Path) -> None:
    scans = sorted((shared_data / "hippocampus_mr" / "imagesTr").glob("[!.]*.nii.gz"))[:4]
    above: list[float] = []
    for scan in scans:
        began = time.perf_counter()
        answer = worker.ask(
            "segment", model=str(place / "noise"), scan=str(scan), output=str(place / f"label of {scan.name}"),
            device="cpu", inference=TORCH,
        )  # fmt: skip
        above.append(time.perf_counter() - began - answer["seconds"]["network"])
        assert {one["name"] for one in answer["classes"]} == {"Léber", "Milz"}
    # The quickest of three: this machine may have other things to do.
    assert min(above[1:]) < 0.3


def test_nonsense_is_refused_and_the_worker_goes_on(worker: Asked) -> None:
    worker.write(b"not json\n[]\n\n\xff\xfe\n" + b"x" * (3 * MOST_BYTES) + b'\n{"id": 1, "command": "segment"}\n')
    refused = [worker.next() for _ in range(5)]
    assert [one["event"] for one in refused] == ["refused"] * 5 and all(one["cure"] for one in refused)
    assert [one["id"] for one in refused] == [None, None, None, None, 1] and "longer" in refused[3]["message"]
    assert worker.ask("cancel", job="no such job")["event"] == "refused"
    assert worker.ask("status")["event"] == "done"


@pytest.mark.parametrize("wrong", ["model", "scan", "missing", "folder", "output", "channels", "itself"])
def test_a_job_that_cannot_be_done_says_why_and_leaves_nothing(
    worker: Asked, place: Path, tmp_path: Path, wrong: str
) -> None:
    (tmp_path / "text.nii.gz").write_text("no scan")
    (tmp_path / "file").write_text("no folder")
    before = leftovers(tmp_path)
    scan, changes = str(place / "scan é.nii.gz"), {
        "model": {"model": str(place)},
        "scan": {"scan": str(tmp_path / "text.nii.gz")},
        "missing": {"scan": str(tmp_path / "nothing.nii.gz")},
        "folder": {"scan": str(tmp_path)},
        "output": {"output": str(tmp_path / "file" / "label.nii.gz")},
        "channels": {"scan": [str(place / "scan é.nii.gz"), str(place / "large.nii.gz")]},
        "itself": {"output": str(tmp_path / "link.nii.gz")},
    }  # fmt: skip
    if wrong == "itself":
        (tmp_path / "link.nii.gz").symlink_to(scan)
        before = leftovers(tmp_path)
    request = {"scan": scan, "output": str(tmp_path / "label.nii.gz"), "model": str(place / "threshold model")}
    answer = worker.ask("segment", **{**request, **changes[wrong]})
    assert answer["event"] == "failed" and answer["message"] and answer["cure"]
    assert leftovers(tmp_path) == before
    assert worker.ask("segment", **{**request, "output": str(tmp_path / "fine.nii.gz")})["event"] == "done"


def test_a_job_at_work_is_cancelled_between_windows_and_one_that_waits_at_once(
    worker: Asked, place: Path, tmp_path: Path
) -> None:
    request = {"model": str(place / "noise"), "scan": str(place / "large.nii.gz"), "inference": TORCH}
    first = worker.send("segment", output=str(tmp_path / "1.nii.gz"), **request)
    second = worker.send("segment", output=str(tmp_path / "2.nii.gz"), **request)
    while not (at := worker.until(first, "progress")).get("done"):
        pass
    assert at["done"] < at["of"] and at["seconds_left"] > 0
    state = worker.ask("status")
    assert state["working"]["id"] == first and state["working"]["done"] >= at["done"] and state["waiting"] == [second]
    began = time.monotonic()
    for job in (second, first):
        worker.send("cancel", job=job)
        worker.until(job, "cancelled")
    assert time.monotonic() - began < 5
    assert not leftovers(tmp_path)
    # Nothing of it is in the way of the next.
    answer = worker.ask("segment", scan=str(place / "scan é.nii.gz"), output=str(tmp_path / "3.nii.gz"))
    assert answer["event"] == "done" and leftovers(tmp_path) == ["3.nii.gz"]


# --- the end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "code"), [("eof", 0), ("quit", 0), ("sigterm", 130)])
def test_it_ends_quietly(tmp_path: Path, how: str, code: int) -> None:
    asked = Asked(log=tmp_path / "log.txt")
    asked.next()
    process = asked.process
    assert process.stdin is not None
    if how == "eof":
        process.stdin.close()
    elif how == "quit":
        assert asked.ask("quit")["event"] == "done"
    else:
        process.send_signal(signal.SIGTERM)
    assert asked.ends() == code
    assert (tmp_path / "log.txt").read_text() == ""


def test_it_ends_when_nobody_reads_its_answers(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with open(tmp_path / "log.txt", "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "HybridMIMLib", "serve"], stdin=subprocess.PIPE, stdout=writing, stderr=errors
        )
    os.close(writing)
    assert b"ready" in os.read(reading, 10_000)
    os.close(reading)
    assert process.stdin is not None
    process.stdin.write(b'{"id": 1, "command": "status"}\n')
    process.stdin.flush()
    assert process.wait(10) == 0 and (tmp_path / "log.txt").read_text() == ""


_PARENT = """
import subprocess, sys
options = ["--parent", sys.argv[1]] if len(sys.argv) > 1 else []
child = subprocess.Popen([sys.executable, "-m", "HybridMIMLib", "serve", *options])
child.wait()
"""


@pytest.mark.parametrize("dies", ["parent", "grandparent"])
def test_it_ends_with_its_parent_though_somebody_holds_the_pipe_open(dies: str, tmp_path: Path) -> None:
    # Slicer's launcher stands between: it does not end when Slicer does.
    grandparent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    options = [str(grandparent.pid)] if dies == "grandparent" else []
    with open(tmp_path / "log.txt", "wb") as errors:
        parent = subprocess.Popen(
            [sys.executable, "-c", _PARENT, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
    try:
        assert parent.stdout is not None
        ready = json.loads(parent.stdout.readline())
        victim = grandparent if dies == "grandparent" else parent
        victim.kill()
        victim.wait()
        end = time.monotonic() + 10
        while is_alive(ready["pid"]):
            assert time.monotonic() < end, "it does not end"
            time.sleep(0.05)
        assert (tmp_path / "log.txt").read_text() == ""
    finally:
        for process in (parent, grandparent):
            process.kill()
            process.wait()


def test_what_libraries_print_and_read_is_kept_off_the_pipes(tmp_path: Path) -> None:
    program = """
import os, subprocess, sys
from HybridMIMLib.worker_pipes import Pipes
pipes = Pipes(lambda: None)
print("noise of Python", flush=True)
os.write(1, b"noise of C\\n")
subprocess.run([sys.executable, "-c", "import sys; print('noise of a child', repr(sys.stdin.read()))"])
pipes.send({"id": None, "event": "数"})
for line in pipes.lines():
    pipes.send({"id": line.decode(), "event": "heard"})
"""
    done = subprocess.run([sys.executable, "-c", program], input=b"one\ntwo\ntorn", capture_output=True, check=True)
    answers = [json.loads(line) for line in done.stdout.decode("utf-8").splitlines()]
    assert answers == [{"id": None, "event": "数"}, *({"id": one, "event": "heard"} for one in ("one", "two"))]
    heard = done.stderr.decode()
    assert all(f"noise of {who}" in heard for who in ("Python", "C", "a child ''"))


@pytest.mark.parametrize(
    "options",
    [["--device", "gpu"], ["--idle_seconds", "0"], ["--parent", "0"], ["--wait", "3"], ["--idle_seconds=x"]],
)
def test_an_option_that_cannot_work_is_named(options: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "HybridMIMLib", "serve", *options], input=b"", capture_output=True, check=False
    )
    assert done.returncode == 2 and done.stdout == b""
    assert options[0].lstrip("-").partition("=")[0] in done.stderr.decode()
