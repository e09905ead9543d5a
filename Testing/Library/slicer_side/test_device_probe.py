"""Devices are seen by a process that computes on them; whatever becomes of it is told."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

import torch
from small_runs import finish

from HybridMIMLib.inference.probe import device_names, probe_devices
from HybridMIMLib.slicer_side import device_probe
from HybridMIMLib.slicer_side.device_probe import Device, DeviceProbe
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED, STOPPED


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Let a small program do the work; its folder is ``folder``."""

    def use(program: str) -> None:
        (tmp_path / "stub_probe.py").write_text(
            f"import sys, os, time, json, pathlib\nfolder = pathlib.Path(sys.argv[-1])\n{program}\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(device_probe, "_MODULE", "stub_probe")

    monkeypatch.setattr("HybridMIMLib.slicer_side.job_folder.temporary_root", lambda: tmp_path)
    return use


def test_a_real_process_computes_on_what_there_is() -> None:
    probe = DeviceProbe()
    folder = probe.folder
    assert finish(probe).state == FINISHED, probe.message
    assert [one.device for one in probe.devices] == device_names()
    cpu = probe.devices[-1]
    assert cpu.works and cpu.device == "cpu" and "cpu, CPU, " in probe.message
    if sys.platform == "linux":
        assert cpu.memory_total and cpu.memory_free and 0 < cpu.memory_free <= cpu.memory_total
        assert "GB free" in probe.message
    assert probe.versions["torch"] == torch.__version__.partition("+")[0] or "torch" in probe.versions
    assert not folder.exists()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("os.kill(os.getpid(), 11)", "crashed by the system"),
        ("os.kill(os.getpid(), 9)", "killed by the system"),
        ("sys.exit('error: no driver. Install one.')", "no driver. Install one."),
        ("sys.stdout.buffer.write(bytes(range(256)) * 99)", "no result"),
        ("(folder / 'result.json').write_text('{\"devices\": [1], \"versions\": {}}')", "makes no sense"),
        ("(folder / 'result.json').write_text('garbage')", "cannot be read"),
        ("import no_such_module", "No module named 'no_such_module'"),
    ],
)
def test_a_process_that_dies_is_told(instead: Callable[[str], None], program: str, words: str) -> None:
    instead(program)
    probe = finish(DeviceProbe())
    assert (probe.state, probe.devices) == (FAILED, [])
    assert words in probe.message
    assert not probe.folder.exists()


def test_a_driver_that_hangs_is_told(instead: Callable[[str], None]) -> None:
    instead("time.sleep(60)")
    probe = finish(DeviceProbe(seconds=0.3), 10)
    assert probe.state == FAILED
    assert "did not answer within 0.3 seconds: a driver may hang" in probe.message


def test_it_can_be_stopped(instead: Callable[[str], None]) -> None:
    instead("time.sleep(60)")
    probe = DeviceProbe()
    probe.cancel()
    assert finish(probe, 10).state == STOPPED


def test_a_device_that_fails_says_why_and_the_others_are_tried() -> None:
    def bench(device: torch.device) -> float:
        return {"cpu": 0.001}[device.type]

    def no_kernel(device: torch.device) -> float:
        raise RuntimeError("CUDA error: no kernel image\nis available")

    [cpu, there] = probe_devices(["cpu", "cuda:7"], bench)
    assert cpu["works"] and cpu["difference"] == 0.001
    assert not there["works"] and "cuda:7 is not there" in there["reason"]
    [broken] = probe_devices(["cpu"], no_kernel)
    assert (broken["works"], broken["reason"]) == (False, "CUDA error: no kernel image is available")
    for value in (math.nan, math.inf, 0.5):
        [wrong] = probe_devices(["cpu"], lambda device, value=value: value)  # type: ignore[misc]
        assert not wrong["works"] and "not what the CPU computes" in wrong["reason"]


def test_devices_in_words() -> None:
    assert Device("cuda:0", "A100", True, "", 80 * 10**9, 4 * 10**9).describe() == (
        "cuda:0, A100: works, 4.0 of 80.0 GB free"
    )
    assert Device("mps", "Apple GPU", True, "", 16 * 10**9).describe() == "mps, Apple GPU: works, 16.0 GB"
    assert Device("cuda:0", "K80", False, "no kernel.").describe() == "cuda:0, K80: does not work: no kernel"
