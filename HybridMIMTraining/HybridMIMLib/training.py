"""The training loop that every stage shares: steps, learning rate, checkpoints, progress.

An ignite engine runs the steps. It is not asked for reproducibility: a step's draws follow from (seed, step, sample),
the learning rate from the step, and everything else that a step depends on is in the checkpoint. A run that was
stopped anywhere therefore ends with the same weights, on the same kind of device. One that is asked to stop, and not
killed, finishes its step and saves it.
"""

from __future__ import annotations

import logging
import math
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from HybridMIMLib import distributed
from HybridMIMLib.errors import RunError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import atomic_path
from HybridMIMLib.networks.memory import memory_in_use
from HybridMIMLib.stopping import StopLater

_SECONDS_BETWEEN_LOOKS_AT_MEMORY = 5.0

LARGEST_GRADIENT = 5.0
POWER = 0.9
"""Of the polynomial schedule; that of nnU-Net (Isensee et al., arXiv:1904.08128)."""


@dataclass(frozen=True)
class Pace:
    """How fast a tensor learns beside the others.

    Attributes:
        share: of the learning rate.
        after: steps in which it does not learn yet, infinite where it never does; its rate then rises in as many
            steps as that of the others did, because the optimizer knows nothing of it before.
    """

    share: float = 1.0
    after: float = 0


EVEN = Pace()


@dataclass(frozen=True)
class Schedule:
    """How long to train, and the learning rate at each step.

    Attributes:
        steps: optimizer steps.
        learning_rate: peak.
        warmup_steps: steps in which it rises linearly.
        weight_decay: of AdamW, of all tensors alike.
        shape: how it falls afterwards, as half a cosine or as a polynomial; it never reaches 0.
    """

    steps: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    shape: Literal["cosine", "poly"] = "cosine"

    def rate(self, step: int, pace: Pace = EVEN) -> float:
        """Learning rate of ``step``, counted from 1, for tensors of a pace."""
        late = min((step - pace.after) / max(self.warmup_steps, 1), 1.0) if pace.after else 1.0
        return self._common(step) * pace.share * max(late, 0.0)

    def _common(self, step: int) -> float:
        warmup = min(self.warmup_steps, self.steps - 1)
        if step <= warmup:
            return self.learning_rate * step / warmup
        if self.shape == "poly":
            return self.learning_rate * max(1 - (step - warmup) / (self.steps - warmup + 1), 0.0) ** POWER
        passed = (step - warmup) / max(self.steps - warmup, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(passed, 1.0)) * 0.999)


@dataclass
class TrainingLoop:
    """Trains a module and can go on where it was stopped.

    Attributes:
        name: of the phase in the events.
        module: what is trained.
        losses: step → losses by name; their sum is minimised.
        schedule: steps and learning rate.
        checkpoint: file to continue from; written every ``checkpoint_every`` steps.
        validate: step → metrics, called every ``validate_every`` steps and at the end; 0 = at the end only.
        looks: pairs of (every, function of the step): what else is to be done every so many steps and at the end,
            such as drawing; 0 = at the end only. It comes before the checkpoint of that step, so that a run which is
            continued leaves none out.
        memory: numbers that the validation keeps, such as the best score; saved with the checkpoint.
        paces: name of a parameter → how fast it learns; None: all learn alike.
        enough: asked after each validation, in one process alone: whether to end the training there.
        cases: step → names of the cases that its crops are of, to be named where a step goes wrong.
        serves_as_weights: whether the command takes a checkpoint as ``--weights``, as other settings need it.
        done: steps that were done, of this run and of those that it continues.
        seconds: that these took, with validations and looks.
        ended_early: whether ``enough`` ended it.
    """

    name: str
    module: nn.Module
    losses: Callable[[int], dict[str, Tensor]]
    schedule: Schedule
    checkpoint: Path
    checkpoint_every: int
    events: EventLog
    validate: Callable[[int], Mapping[str, float]] | None = None
    validate_every: int = 0
    looks: Sequence[tuple[int, Callable[[int], None]]] = ()
    memory: dict[str, float] = field(default_factory=dict)
    paces: Callable[[str], Pace] | None = None
    enough: Callable[[], bool] | None = None
    cases: Callable[[int], Sequence[str]] | None = None
    serves_as_weights: bool = False
    done: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)
    ended_early: bool = field(default=False, init=False)

    def run(self) -> dict[str, float]:
        """Train to the last step, or until it is enough.

        Returns:
            The losses of the last step.

        Raises:
            RunError: the checkpoint does not belong to this run, or the losses are no numbers any more.
            DiskError: a checkpoint could not be written.
            KeyboardInterrupt: it was stopped, and the step that it was at is saved; of several processes that share
                the run none waits for its step, for they would not all be at the same.
        """
        groups = self._groups()
        self._paces = list(groups)
        self._optimizer = torch.optim.AdamW(
            [{"params": parameters} for parameters in groups.values()], weight_decay=self.schedule.weight_decay
        )
        self._last: dict[str, float] = {}
        self._is_owed = False
        self._looked_at_memory = -math.inf
        self.done = self._saved = self._continue()
        self._broken_at: Tensor | None = None
        self._began = time.monotonic() - self.seconds
        self._phase = self.events.phase(self.name, self.schedule.steps, self.done)
        engine = Engine(lambda engine, _: self._step(engine.state.iteration))
        # ignite logs every exception that passes through; who called this says it once, in words.
        engine.logger.setLevel(logging.CRITICAL)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: self._after(e, e.state.output))
        self._stop = StopLater()
        with self._stop if distributed.processes() == 1 else nullcontext():
            if self._is_owed and distributed.is_first():
                self._measure(self.done)
            if self.done < self.schedule.steps and not self.ended_early:
                engine.load_state_dict({"iteration": self.done, "max_epochs": 1, "epoch_length": self.schedule.steps})
                engine.run()
        return self._last

    def _groups(self) -> dict[Pace, list[nn.Parameter]]:
        """The parameters by their pace. One that has no gradient yet has no place in the optimizer's state either."""
        groups: dict[Pace, list[nn.Parameter]] = {}
        for name, parameter in self.module.named_parameters():
            groups.setdefault(self.paces(name) if self.paces else EVEN, []).append(parameter)
        return groups

    def _step(self, step: int) -> dict[str, Tensor]:
        for group, pace in zip(self._optimizer.param_groups, self._paces):
            group["lr"] = self.schedule.rate(step, pace)
        self.module.train()
        losses = self.losses(step)
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        # A step with a gradient that is not finite destroys the weights; the run is stopped before they are kept.
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), LARGEST_GRADIENT)
        self._remember_if_broken(step, torch.stack([norm, total.detach()]))
        self._optimizer.step()
        means = distributed.averaged(torch.stack([loss.detach() for loss in losses.values()]))
        return dict(zip(losses, means))

    def _remember_if_broken(self, step: int, numbers: Tensor) -> None:
        """Note on the device whether one of them is not finite; to look at once, the host would wait every step."""
        broken = torch.where(torch.isfinite(numbers).all(), 0, step)
        earlier = broken if self._broken_at is None else self._broken_at
        self._broken_at = torch.where(earlier > 0, earlier, broken)

    def _check_not_broken(self) -> None:
        step = 0 if self._broken_at is None else int(self._broken_at)
        if step:
            raise self._broken(step)

    def _broken(self, step: int) -> RunError:
        names = dict.fromkeys(self.cases(step)) if self.cases else {}
        crops = f"; its crops are of {', '.join(names)}" if names else ""
        kept = f"; what was learnt up to step {self._saved} is kept in {self.checkpoint}" if self._saved else ""
        look = "Look at these scans and their label maps, lower" if names else "Lower"
        cure = f"{look} the learning rate (now {self.schedule.learning_rate}), or try another --seed."
        if self._saved and self.serves_as_weights:
            cure += " What is kept can be gone on from in another --output, with that file as --weights."
        return RunError(f"{self.name}, step {step}: the loss or its gradient is not finite{crops}{kept}", cure=cure)

    def _after(self, engine: Engine, losses: dict[str, Tensor]) -> None:
        step = self.done = engine.state.iteration
        # Looked at once: a stop that is asked for from here on waits for the next step.
        measures, stops = self._measures(step), self._stop.asked
        saves = stops or self._turn(step, self.checkpoint_every)
        if self._phase.due(step) or measures or saves:
            self._check_not_broken()
        if stops or self._phase.due(step):
            self._last = {name: float(loss) for name, loss in losses.items()}
            self._phase.progress(step, self._last, memory=self._memory_now(), always=stops)
        # Of several processes one measures, draws and writes, on whole batches.
        if distributed.is_first():
            if measures:
                self._measure(step)
            elif saves:
                self._save(step)
        if self.ended_early:
            engine.terminate()
        elif stops:
            raise KeyboardInterrupt

    def _measures(self, step: int) -> bool:
        """Whether there is anything to be validated or looked at after a step."""
        validates = self.validate is not None and self._turn(step, self.validate_every)
        return validates or any(self._turn(step, every) for every, _ in self.looks)

    def _measure(self, step: int) -> None:
        """Validate and look, as it is due after a step, and save; a stop does not wait for the end of that.

        It is done again then when the run goes on, before the next step.
        """
        memory = dict(self.memory)
        try:
            with self._stop.at_once(), distributed.alone():
                validates = self.validate is not None and self._turn(step, self.validate_every)
                if self.validate is not None and validates:
                    self._phase.progress(step, metrics=self.validate(step))
                    self.ended_early = step < self.schedule.steps and self.enough is not None and self.enough()
                for every, look in self.looks:
                    if self.ended_early or self._turn(step, every):
                        look(step)
        except KeyboardInterrupt:
            self.memory.clear()
            self.memory.update(memory)
            self.ended_early = False
            self._save(step, is_owed=True)
            self._phase.progress(step, always=True)
            raise
        # What a validation keeps, such as the best weights, must not be newer than the checkpoint that tells of it.
        if validates or self._is_owed or self._turn(step, self.checkpoint_every):
            self._save(step)
        self._is_owed = False

    def _turn(self, step: int, every: int) -> bool:
        """Whether what is done ``every`` so many steps is done after this one; at the end everything is."""
        return step == self.schedule.steps or (every > 0 and step % every == 0)

    def _memory_now(self) -> dict[str, int] | None:
        """What is in use, every few seconds."""
        now = time.monotonic()
        if now - self._looked_at_memory < _SECONDS_BETWEEN_LOOKS_AT_MEMORY:
            return None
        self._looked_at_memory = now
        return memory_in_use(next(self.module.parameters()).device)

    def _save(self, step: int, is_owed: bool = False) -> None:
        """Write the checkpoint.

        Args:
            step: that is done.
            is_owed: whether what is to be measured after it is still to be done.
        """
        self._note_seconds()
        state = {
            "phase": self.name,
            "step": step,
            "module": self.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "memory": self.memory,
            "losses": self._last,
            "seconds": self.seconds,
            "ended_early": self.ended_early,
            "owed": is_owed,
        }
        with atomic_path(self.checkpoint) as temporary:
            torch.save(state, temporary)
        self._saved = step

    def _note_seconds(self) -> None:
        self.seconds = time.monotonic() - self._began

    def _continue(self) -> int:
        """Load the checkpoint, if there is one; the step it was made after."""
        if not self.checkpoint.exists():
            return 0
        state = load_checkpoint(self.checkpoint)
        try:
            if state["phase"] != self.name:
                raise KeyError(f"made by {state['phase']}")
            self.module.load_state_dict(state["module"])
            self._optimizer.load_state_dict(state["optimizer"])
            self.memory.update(state["memory"])
            self._last = dict(state["losses"])
            self.seconds, self.ended_early = float(state.get("seconds", 0)), bool(state.get("ended_early"))
            self._is_owed = bool(state.get("owed"))
            step = int(state["step"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RunError(
                f"{self.checkpoint}: does not belong to this run ({error})",
                cure="Choose another folder with --output.",
            ) from error
        self.events.message(f"{self.name}: continued after step {step}")
        return step


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint; tensors and plain values alone, nothing in it is executed.

    Raises:
        RunError: the file is damaged or holds anything else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path}: cannot be read ({first_line})", cure="Delete the file to begin again.") from error
    if not isinstance(state, dict):
        raise RunError(f"{path}: is no checkpoint", cure="Delete the file to begin again.")
    return state
