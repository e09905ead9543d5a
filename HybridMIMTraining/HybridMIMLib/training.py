"""The training loop that every stage shares: steps, learning rate, checkpoints, progress.

An ignite engine runs the steps. It is not asked for reproducibility: a step's draws follow from (seed, step, sample),
the learning rate from the step, and everything else that a step depends on is in the checkpoint. A run that was
stopped anywhere therefore ends with the same weights, on the same kind of device.
"""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from HybridMIMLib import distributed
from HybridMIMLib.errors import RunError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import atomic_path

LARGEST_GRADIENT = 5.0


@dataclass(frozen=True)
class Schedule:
    """How long to train, and the learning rate at each step.

    Attributes:
        steps: optimizer steps.
        learning_rate: peak.
        warmup_steps: steps in which it rises linearly; it falls as half a cosine afterwards.
        weight_decay: of AdamW.
    """

    steps: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float

    def rate(self, step: int) -> float:
        """Learning rate of ``step``, counted from 1."""
        warmup = min(self.warmup_steps, self.steps - 1)
        if step <= warmup:
            return self.learning_rate * step / warmup
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

    def run(self) -> dict[str, float]:
        """Train to the last step.

        Returns:
            The losses of the last step.

        Raises:
            RunError: the checkpoint does not belong to this run, or the losses are no numbers any more.
            DiskError: a checkpoint could not be written.
        """
        self._optimizer = torch.optim.AdamW(self.module.parameters(), weight_decay=self.schedule.weight_decay)
        self._last: dict[str, float] = {}
        done = self._continue()
        self._broken_at: Tensor | None = None
        self._phase = self.events.phase(self.name, self.schedule.steps, done)
        engine = Engine(lambda engine, _: self._step(engine.state.iteration))
        # ignite logs every exception that passes through; who called this says it once, in words.
        engine.logger.setLevel(logging.CRITICAL)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: self._after(e.state.iteration, e.state.output))
        if done < self.schedule.steps:
            engine.load_state_dict({"iteration": done, "max_epochs": 1, "epoch_length": self.schedule.steps})
            engine.run()
        return self._last

    def _step(self, step: int) -> dict[str, Tensor]:
        for group in self._optimizer.param_groups:
            group["lr"] = self.schedule.rate(step)
        self.module.train()
        losses = self.losses(step)
        self._optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        # A step with a gradient that is not finite destroys the weights; the run is stopped before they are kept.
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), LARGEST_GRADIENT)
        self._remember_if_broken(step, norm)
        self._optimizer.step()
        means = distributed.averaged(torch.stack([loss.detach() for loss in losses.values()]))
        return dict(zip(losses, means))

    def _remember_if_broken(self, step: int, norm: Tensor) -> None:
        """Note on the device whether a gradient was not finite; to look at once, the host would wait every step."""
        broken = torch.where(torch.isfinite(norm), 0, step)
        earlier = broken if self._broken_at is None else self._broken_at
        self._broken_at = torch.where(earlier > 0, earlier, broken)

    def _check_not_broken(self) -> None:
        step = 0 if self._broken_at is None else int(self._broken_at)
        if step:
            raise RunError(
                f"{self.name}, step {step}: the gradient is not finite",
                cure=f"Lower the learning rate (now {self.schedule.learning_rate}), or try another --seed.",
            )

    def _after(self, step: int, losses: dict[str, Tensor]) -> None:
        validates = self.validate is not None and self._turn(step, self.validate_every)
        looks = [look for every, look in self.looks if self._turn(step, every)]
        saves = self._turn(step, self.checkpoint_every)
        if self._phase.due(step) or validates or looks or saves:
            self._check_not_broken()
        if self._phase.due(step):
            self._last = {name: float(loss) for name, loss in losses.items()}
            self._phase.progress(step, self._last)
        if not distributed.is_first():
            return
        # Of several processes one measures, draws and writes, on whole batches.
        with distributed.alone():
            if self.validate is not None and validates:
                self._phase.progress(step, metrics=self.validate(step))
            for look in looks:
                look(step)
        if saves:
            self._save(step)

    def _turn(self, step: int, every: int) -> bool:
        """Whether what is done ``every`` so many steps is done after this one; at the end everything is."""
        return step == self.schedule.steps or (every > 0 and step % every == 0)

    def _save(self, step: int) -> None:
        state = {
            "phase": self.name,
            "step": step,
            "module": self.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "memory": self.memory,
            "losses": self._last,
        }
        with atomic_path(self.checkpoint) as temporary:
            torch.save(state, temporary)

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
