"""When a training computes in bfloat16, and what that does to it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import TINY, KeptLog

from HybridMIMLib import finetune
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.events import EventLog, EventReader
from HybridMIMLib.files import read_json
from HybridMIMLib.finetuning import precision
from HybridMIMLib.finetuning.precision import StepBench, half_pays, is_faster, settle_precision
from HybridMIMLib.finetuning.run import _Finetuning
from HybridMIMLib.training import load_checkpoint

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
HALF, SINGLE = torch.bfloat16, torch.float32


class Ratios:
    """A bench with ratios made up for it; says which were asked for."""

    def __init__(self, tiny: float, usual: float) -> None:
        self.ratios, self.asked = {True: tiny, False: usual}, []

    def ratio(self, tiny: bool) -> float:
        self.asked.append(tiny)
        return self.ratios[tiny]


@pytest.mark.parametrize(
    ("tiny", "usual", "faster", "asked"),
    [
        (1.0, 0.5, True, [True, False]),
        (2.0, 0.7, True, [True, False]),
        (1.0, 0.9, False, [True, False]),
        (1.0, math.inf, False, [True, False]),
        (200.0, 0.1, False, [True]),
        (math.inf, 0.1, False, [True]),
    ],
)
def test_it_pays_where_it_is_clearly_faster(tiny: float, usual: float, faster: bool, asked: list[bool]) -> None:
    bench = Ratios(tiny, usual)
    assert is_faster(bench) == faster and bench.asked == asked


def test_a_device_is_tried_once_on_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path))
    benches: list[Ratios] = []

    def bench(device: torch.device) -> Ratios:
        benches.append(Ratios(1.0, 0.5))
        return benches[-1]

    assert [half_pays(CPU, bench) for _ in range(3)] == [True] * 3 and len(benches) == 1
    monkeypatch.setattr(precision.platform, "node", lambda: "elsewhere")
    assert half_pays(CPU, bench) and len(benches) == 2


def test_what_has_no_bfloat16_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path))

    def bench(device: torch.device) -> Ratios:
        raise AssertionError("it was tried")

    assert half_pays(MPS, bench) is False
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    assert half_pays(CUDA, bench) is False


def test_this_cpu_can_be_tried() -> None:
    bench = StepBench(CPU, repeats=1)
    bench._side = 16
    for tiny in (True, False):
        assert 0 < bench.ratio(tiny) < math.inf
    bench._timed = lambda crops, dtype: torch.empty(-1)  # type: ignore[assignment,return-value]
    assert bench.ratio(tiny=False) == math.inf, "what cannot be computed is no faster"


@pytest.mark.parametrize(
    ("wanted", "device", "has", "pays", "expected"),
    [
        ("float32", CUDA, True, True, SINGLE),
        ("auto", CUDA, True, True, HALF),
        ("auto", CUDA, True, False, SINGLE),
        ("auto", CPU, True, False, SINGLE),
        ("auto", CPU, True, True, HALF),
        ("half", CUDA, True, False, HALF),
        ("half", CUDA, False, False, None),
        ("half", MPS, False, False, None),
        ("half", CPU, True, True, HALF),
        ("half", CPU, True, False, None),
    ],
)
def test_what_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, device: torch.device, has: bool, pays: bool,
    expected: torch.dtype | None,
) -> None:  # fmt: skip
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: has)
    monkeypatch.setattr(precision, "device_in_words", lambda device: "the device")
    log = KeptLog()
    if expected is None:
        with pytest.raises(SettingsError, match=r"gains nothing by bfloat16. Set finetuning.precision to auto"):
            settle_precision(wanted, device, tmp_path, log, 4, lambda device: pays)
        return
    assert settle_precision(wanted, device, tmp_path, log, 4, lambda device: pays) == expected
    assert any("bfloat16" in event["message"] for event in log.events) == (expected == HALF)


def test_maps_that_the_cpu_computes_wrongly_are_left_in_single(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "device_in_words", lambda device: "the device")
    log = KeptLog()
    assert settle_precision("auto", CPU, tmp_path, log, 3, lambda device: True) == SINGLE
    assert settle_precision("auto", CUDA, tmp_path, log, 3, lambda device: True) == HALF
    with pytest.raises(SettingsError, match="3 voxel.* enlarge plan.crop"):
        settle_precision("half", CPU, tmp_path, log, 3, lambda device: True)


def test_a_run_goes_on_in_the_precision_it_began_with(tmp_path: Path) -> None:
    log = EventLog()
    assert settle_precision("auto", CPU, tmp_path, log, 4, lambda device: True) == HALF
    # Without a checkpoint there is nothing to go on with.
    assert settle_precision("auto", CPU, tmp_path, log, 4, lambda device: False) == SINGLE
    (tmp_path / "checkpoint.pt").touch()
    assert settle_precision("auto", CPU, tmp_path, log, 4, lambda device: True) == SINGLE
    (tmp_path / precision.FILE).write_text("torn")
    assert settle_precision("auto", CPU, tmp_path, log, 4, lambda device: True) == HALF


def run_in_half(blobs: Path, output: Path) -> dict[str, Any]:
    tuned = {**TINY, "finetuning": {**TINY["finetuning"], "precision": "auto"}}
    return finetune(labelled=str(blobs / "labelled"), output=str(output), **tuned)


def test_in_half_precision_losses_and_weights_stay_whole_and_a_killed_run_continues(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "half_pays", lambda device: True)
    made, losses = [], _Finetuning.losses

    def spying(self: _Finetuning, step: int) -> dict[str, torch.Tensor]:
        found = losses(self, step)
        made.extend((one.dtype, float(one.detach())) for one in found.values())
        return found

    monkeypatch.setattr(_Finetuning, "losses", spying)
    whole = run_in_half(blobs, tmp_path / "whole")
    assert {dtype for dtype, _ in made} == {SINGLE}
    state = load_checkpoint(tmp_path / "whole" / "checkpoint.pt")
    assert {tensor.dtype for tensor in state["module"].values()} == {SINGLE}
    assert read_json(tmp_path / "whole" / precision.FILE) == {"half": True}
    in_float32 = finetune(labelled=str(blobs / "labelled"), output=str(tmp_path / "float32"), **TINY)
    one, other = (Path(result["model"]) / "models" / "model.safetensors" for result in (whole, in_float32))
    assert one.read_bytes() != other.read_bytes(), "it was computed in half precision"

    def killed(self: _Finetuning, step: int) -> dict[str, torch.Tensor]:
        if step == 5:
            raise KeyboardInterrupt
        return losses(self, step)

    monkeypatch.setattr(_Finetuning, "losses", killed)
    with pytest.raises(KeyboardInterrupt):
        run_in_half(blobs, tmp_path / "killed")
    monkeypatch.setattr(_Finetuning, "losses", losses)
    # The verdict on the machine has changed since; the run has not.
    monkeypatch.setattr(precision, "half_pays", lambda device: False)
    again = run_in_half(blobs, tmp_path / "killed")
    assert (Path(again["model"]) / "models" / "model.safetensors").read_bytes() == one.read_bytes()
    messages = [event.get("message", "") for event in EventReader(tmp_path / "killed" / "events.jsonl").read()]
    assert "half precision (bfloat16) on the CPU" in messages
