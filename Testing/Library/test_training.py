"""The training loop: exact continuation, schedule, and what ends it."""

from __future__ import annotations

import errno
import math
import pickle
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from HybridMIMLib.errors import DiskError, RunError
from HybridMIMLib.events import EventLog, EventReader, Phase
from HybridMIMLib.networks.dropout import SampleDropout, dropout_keys
from HybridMIMLib.randomness import random_stream, stream_key
from HybridMIMLib.training import Pace, Schedule, TrainingLoop, load_checkpoint


class PowerCutError(Exception):
    """Stands for a power cut: raised in the middle of a step."""


def make_loop(folder: Path, steps: int = 12, stop_at: int | None = None, rate: float = 0.01) -> TrainingLoop:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), SampleDropout(0.5, stage=0), nn.Conv3d(4, 1, 1))

    def losses(step: int) -> dict[str, Tensor]:
        if step == stop_at:
            raise PowerCutError
        image = torch.from_numpy(random_stream(1, step, "image").standard_normal((2, 1, 4, 4, 4), dtype="float32"))
        with dropout_keys(torch.tensor([stream_key(1, step, sample) for sample in range(2)])):
            return {"square": (module(image) - 1).square().mean()}

    return TrainingLoop(
        name="train",
        module=module,
        losses=losses,
        schedule=Schedule(steps, rate, warmup_steps=3, weight_decay=0.01),
        checkpoint=folder / "checkpoint.pt",
        checkpoint_every=4,
        events=EventLog(folder / "events.jsonl"),
    )


def weights(loop: TrainingLoop) -> list[Tensor]:
    return [p.detach().clone() for p in loop.module.parameters()]


@pytest.mark.parametrize("stop_at", [1, 4, 5, 7, 9, 12])
def test_a_run_stopped_anywhere_ends_with_the_same_weights(tmp_path: Path, stop_at: int) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    whole = make_loop(tmp_path / "whole")
    whole.run()
    with pytest.raises(PowerCutError):
        make_loop(tmp_path / "stopped", stop_at=stop_at).run()
    torch.rand(stop_at)  # the global stream is elsewhere now, as in another process
    continued = make_loop(tmp_path / "stopped")
    continued.run()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(continued)))


def test_a_finished_run_takes_no_step_more(tmp_path: Path) -> None:
    first = make_loop(tmp_path)
    first.run()
    again = make_loop(tmp_path, stop_at=1)
    again.run()
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(again)))


def test_progress_reaches_the_last_step(tmp_path: Path) -> None:
    make_loop(tmp_path).run()
    steps = [e["step"] for e in EventReader(tmp_path / "events.jsonl").read() if e["kind"] == "progress"]
    assert steps[-1] == 12 and steps == sorted(steps)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, steps=80, rate=0.05)
    before = float(loop.losses(1)["square"].detach())
    assert loop.run()["square"] < 0.7 * before


def test_a_loss_that_is_no_number_ends_the_run_and_spoils_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked for where something is told or kept, and the step at which it came first is named."""
    monkeypatch.setattr(Phase, "due", lambda phase, step: False)
    loop = make_loop(tmp_path)
    good = loop.losses
    loop.losses = lambda step: {name: loss * (float("nan") if step >= 6 else 1) for name, loss in good(step).items()}
    with pytest.raises(
        RunError,
        match="step 6: the loss or its gradient is not finite; what was learnt up to step 4 is kept in .*checkpoint",
    ):
        loop.run()
    kept = load_checkpoint(tmp_path / "checkpoint.pt")
    assert kept["step"] == 4 and all(tensor.isfinite().all() for tensor in kept["module"].values())


@pytest.mark.parametrize(("every", "expected"), [(5, [5, 10, 12]), (0, [12]), (6, [6, 12]), (99, [12])])
def test_looks_come_every_so_many_steps_and_at_the_end(tmp_path: Path, every: int, expected: list[int]) -> None:
    loop, seen = make_loop(tmp_path), []
    loop.looks = [(every, seen.append)]
    loop.run()
    assert seen == expected


def test_a_continued_run_looks_again_where_the_checkpoint_was_not_yet_written(tmp_path: Path) -> None:
    first, again, seen = make_loop(tmp_path, stop_at=7), make_loop(tmp_path), []
    first.looks = again.looks = [(2, seen.append)]
    with pytest.raises(PowerCutError):
        first.run()
    again.run()
    assert seen == [2, 4, 6, 6, 8, 10, 12]


def test_a_look_that_fails_is_done_before_its_step_counts_as_done(tmp_path: Path) -> None:
    def fail(step: int) -> None:
        raise PowerCutError

    loop, again, seen = make_loop(tmp_path), make_loop(tmp_path), []
    loop.looks, again.looks = [(4, fail)], [(4, seen.append)]
    with pytest.raises(PowerCutError):
        loop.run()
    again.run()
    assert seen == [4, 8, 12]


def test_nothing_is_shown_measured_or_kept_of_weights_that_are_no_numbers(tmp_path: Path) -> None:
    loop, seen = make_loop(tmp_path), []
    loop.looks, loop.validate, loop.validate_every = [(1, seen.append)], lambda step: seen.append(step) or {}, 1
    loop.losses = lambda step: {"bad": next(loop.module.parameters()).sum() * float("nan")}
    with pytest.raises(RunError, match="not finite"):
        loop.run()
    assert seen == [] and not loop.checkpoint.exists()


def test_learning_rate_rises_then_falls() -> None:
    schedule = Schedule(steps=100, learning_rate=1.0, warmup_steps=10, weight_decay=0.0)
    rates = [schedule.rate(step) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert all(a < b for a, b in zip(rates[:9], rates[1:10])) and all(a > b for a, b in zip(rates[9:], rates[10:]))
    assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize("shape", ["cosine", "poly"])
def test_learning_rate_of_one_single_step(shape: Any) -> None:
    assert Schedule(1, 1.0, warmup_steps=10, weight_decay=0.0, shape=shape).rate(1) > 0


def test_polynomial_of_nnu_net_after_the_warm_up() -> None:
    schedule = Schedule(steps=103, learning_rate=2.0, warmup_steps=3, weight_decay=0.0, shape="poly")
    assert [schedule.rate(step) for step in (1, 2, 3)] == pytest.approx([2 / 3, 4 / 3, 2])
    for after in range(1, 101):
        assert schedule.rate(3 + after) == pytest.approx(2 * (1 - after / 101) ** 0.9)


def test_a_tensor_that_comes_late_is_warmed_up_too() -> None:
    schedule = Schedule(steps=100, learning_rate=1.0, warmup_steps=4, weight_decay=0.0)
    late = Pace(share=0.5, after=20)
    assert [schedule.rate(20 + n, late) / schedule.rate(20 + n) for n in (0, 1, 2, 3, 4, 5)] == pytest.approx(
        [0, 0.125, 0.25, 0.375, 0.5, 0.5]
    )
    assert schedule.rate(50, Pace(after=math.inf)) == 0
    assert Schedule(9, 1.0, warmup_steps=0, weight_decay=0.0).rate(5, late) == 0


# --- paces --------------------------------------------------------------------------------------------------


def first_is_slow(name: str) -> Pace:
    return Pace(0.01) if name.startswith("0.") else Pace()


def test_a_share_of_the_rate_is_a_share_of_the_way(tmp_path: Path) -> None:
    """AdamW's first step goes as far as its learning rate, whatever the gradient."""
    loop = make_loop(tmp_path, steps=1)
    loop.schedule, loop.paces = Schedule(1, 0.1, warmup_steps=0, weight_decay=0.0), first_is_slow
    before = weights(loop)
    loop.run()
    moved = [float((a - b).abs().max()) for a, b in zip(before, weights(loop))]
    rate = loop.schedule.rate(1)
    assert moved == pytest.approx([0.01 * rate, 0.01 * rate, rate, rate], rel=5e-2)


@pytest.mark.parametrize("stop_at", [3, 6, 10])
def test_paces_go_on_where_they_were(tmp_path: Path, stop_at: int) -> None:
    loops = [make_loop(tmp_path / name, stop_at=stop) for name, stop in (("a", None), ("b", stop_at), ("b", None))]
    for loop in loops:
        loop.checkpoint.parent.mkdir(exist_ok=True)
        loop.paces = first_is_slow
    loops[0].run()
    with pytest.raises(PowerCutError):
        loops[1].run()
    loops[2].run()
    assert all(torch.equal(a, b) for a, b in zip(weights(loops[0]), weights(loops[2])))


# --- early end ----------------------------------------------------------------------------------------------


def impatient(folder: Path, seen: list[int], stop_at: int | None = None) -> TrainingLoop:
    """Enough after two validations that were counted in the memory."""
    loop = make_loop(folder, stop_at=stop_at)

    def validate(step: int) -> dict[str, float]:
        seen.append(step)
        loop.memory["met"] = loop.memory.get("met", 0) + 1
        return {}

    loop.validate, loop.validate_every = validate, 3
    loop.enough = lambda: loop.memory["met"] >= 2
    return loop


def test_it_ends_when_it_is_enough_and_does_nothing_more(tmp_path: Path) -> None:
    seen: list[int] = []
    first, looks = impatient(tmp_path, seen), []
    first.looks = [(0, looks.append)]
    first.run()
    assert (seen, looks, first.done, first.ended_early) == ([3, 6], [6], 6, True) and first.seconds > 0
    assert load_checkpoint(first.checkpoint)["step"] == 6, "the last step is kept, though no checkpoint was due"
    again = impatient(tmp_path, seen, stop_at=7)
    again.run()
    assert (seen, again.done, again.ended_early, again.memory["met"]) == ([3, 6], 6, True, 2)
    assert again.seconds == first.seconds
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(again)))


def test_a_run_killed_before_its_early_end_ends_there_too(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole, seen = impatient(tmp_path / "whole", []), []
    whole.run()
    with pytest.raises(PowerCutError):
        impatient(tmp_path / "killed", seen, stop_at=6).run()
    again = impatient(tmp_path / "killed", seen)
    again.run()
    assert (seen, again.done, again.ended_early) == ([3, 6], 6, True)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again)))


def test_enough_at_the_last_step_is_no_early_end(tmp_path: Path) -> None:
    loop = impatient(tmp_path, [])
    loop.validate_every = 6
    loop.run()
    assert (loop.done, loop.ended_early) == (12, False)


# --- what goes wrong ----------------------------------------------------------------------------------------


def test_the_cases_of_the_step_that_went_wrong_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Phase, "due", lambda phase, step: False)
    loop, asked = make_loop(tmp_path), []
    good = loop.losses
    loop.losses = lambda step: {name: loss * (float("inf") if step == 3 else 1) for name, loss in good(step).items()}
    loop.cases = lambda step: asked.append(step) or ("scan 7", "scan 9", "scan 7")
    with pytest.raises(RunError, match="step 3: .* its crops are of scan 7, scan 9. Look at these scans") as caught:
        loop.run()
    assert asked == [3], "names are drawn where something is wrong alone"
    assert "is kept" not in str(caught.value)


def test_a_loss_that_is_no_number_ends_the_run_where_its_gradient_is_one(tmp_path: Path) -> None:
    loop = make_loop(tmp_path)
    good = loop.losses
    loop.losses = lambda step: {**good(step), "constant": torch.tensor(float("nan" if step == 2 else 0))}
    with pytest.raises(RunError, match="step 2: the loss"):
        loop.run()


def test_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    make_loop(tmp_path).run()
    other = make_loop(tmp_path)
    other.module = nn.Linear(2, 2)
    with pytest.raises(RunError, match=r"checkpoint\.pt"):
        other.run()


def test_checkpoint_with_code_in_it_is_not_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "exploded",))  # type: ignore[return-value]

    (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(RunError, match="cannot be read"):
        load_checkpoint(tmp_path / "checkpoint.pt")
    torch.save({"step": Bomb()}, tmp_path / "checkpoint.pt")
    with pytest.raises(RunError, match="cannot be read"):
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "exploded").exists()


def test_truncated_checkpoint_names_the_file(tmp_path: Path) -> None:
    make_loop(tmp_path).run()
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(RunError, match=r"checkpoint\.pt.*Delete the file"):
        make_loop(tmp_path).run()


# --- stopped, not killed --------------------------------------------------------------------------------------


def asked_to_stop(number: int = signal.SIGTERM) -> None:
    """As the system tells this process, in the middle of whatever it does."""
    signal.raise_signal(number)


def stop_in_the_middle_of(loop: TrainingLoop, step: int, number: int = signal.SIGTERM) -> None:
    """Ask for a stop while the losses of a step are computed."""
    whole = loop.losses

    def losses(now: int) -> dict[str, Tensor]:
        if now == step:
            asked_to_stop(number)
        return whole(now)

    loop.losses = losses


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [1, 6, 12])
def test_a_stop_saves_the_step_that_it_comes_in_and_the_run_goes_on_exactly(
    tmp_path: Path, terminable: None, step: int, number: int
) -> None:
    whole, stopped, again = (make_loop(folder) for folder in folders(tmp_path, "whole", "stopped", "stopped"))
    whole.run()
    stop_in_the_middle_of(stopped, step, number)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert load_checkpoint(stopped.checkpoint)["step"] == step, "no step is lost, though no checkpoint was due"
    told = [event for event in EventReader(tmp_path / "stopped" / "events.jsonl").read() if "losses" in event]
    assert told[-1]["step"] == step
    torch.rand(step)
    again.run()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again)))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "what was there before is there again"


def folders(root: Path, *names: str) -> list[Path]:
    for name in names:
        (root / name).mkdir(exist_ok=True)
    return [root / name for name in names]


def measured(folder: Path, seen: list[str], stop_in: str = "") -> TrainingLoop:
    """Validates every 3 steps, which counts in the memory, and looks every 4; asked to stop in one of them."""
    loop = make_loop(folder)

    def validate(step: int) -> dict[str, float]:
        seen.append(f"validate {step}")
        loop.memory["met"] = loop.memory.get("met", 0) + 1
        if stop_in == f"validate {step}":
            asked_to_stop()
        return {"score": float(step)}

    def look(step: int) -> None:
        seen.append(f"look {step}")
        if stop_in == f"look {step}":
            asked_to_stop()

    loop.validate, loop.validate_every, loop.looks = validate, 3, [(4, look)]
    return loop


@pytest.mark.parametrize("stop_in", ["validate 3", "look 4", "validate 9", "look 12"])
def test_a_stop_does_not_wait_for_a_validation_which_is_done_when_the_run_goes_on(
    tmp_path: Path, terminable: None, stop_in: str
) -> None:
    first, second, third = folders(tmp_path, "whole", "stopped", "stopped")
    seen: list[str] = []
    whole, stopped, again = measured(first, []), measured(second, seen, stop_in), measured(third, seen)
    whole.run()
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    step = int(stop_in.split()[1])
    assert load_checkpoint(stopped.checkpoint)["step"] == step and seen[-1] == stop_in
    count = len(seen)
    again.run()
    assert int(seen[count].split()[1]) == step, "it is done before the next step"
    assert again.memory == whole.memory and again.memory["met"] == 4, "each validation counts once"
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again)))
    assert not load_checkpoint(again.checkpoint)["owed"]


def test_an_early_end_that_was_owed_ends_the_run_when_it_goes_on(tmp_path: Path, terminable: None) -> None:
    seen: list[int] = []
    stopped, again = impatient(tmp_path, []), impatient(tmp_path, seen, stop_at=7)
    stop_in_the_middle_of(stopped, 6)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    again.run()
    assert (seen, again.done, again.ended_early, again.memory["met"]) == ([6], 6, True, 2)


def test_who_asks_twice_does_not_wait(tmp_path: Path, terminable: None) -> None:
    loop, after = make_loop(tmp_path), []

    def losses(step: int) -> dict[str, Tensor]:
        asked_to_stop()
        asked_to_stop()
        after.append(step)
        return {}

    loop.losses = losses
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    assert after == [] and not loop.checkpoint.exists()


def test_a_stop_at_broken_weights_keeps_none_of_them(tmp_path: Path, terminable: None) -> None:
    loop = make_loop(tmp_path)
    good = loop.losses
    loop.losses = lambda step: {name: loss * (float("nan") if step == 6 else 1) for name, loss in good(step).items()}
    stop_in_the_middle_of(loop, 6)
    with pytest.raises(RunError, match="step 6"):
        loop.run()
    assert load_checkpoint(loop.checkpoint)["step"] == 4


def test_a_full_disk_at_a_checkpoint_is_told_and_the_run_goes_on_from_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, full, again = (make_loop(folder) for folder in folders(tmp_path, "whole", "full", "full"))
    whole.run()
    save, count = torch.save, []

    def no_room(*given: Any) -> None:
        count.append(given)
        if len(count) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*given)

    monkeypatch.setattr(torch, "save", no_room)
    with pytest.raises(DiskError, match=r"checkpoint\.pt: the disk is full"):
        full.run()
    assert load_checkpoint(full.checkpoint)["step"] == 4
    again.run()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again)))


def test_memory_is_told_every_few_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Phase, "due", lambda phase, step: True)
    make_loop(tmp_path).run()
    events = EventReader(tmp_path / "events.jsonl").read()
    told = [event.get("memory") for event in events if event["kind"] == "progress"]
    assert len(told) == 12 and told[0]["process"] > 50e6 and told[1:] == [None] * 11
