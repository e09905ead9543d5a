"""One run in several processes, each with a share of every batch and a GPU of its own: ``torchrun … pretrain``.

The first process alone opens the run folder, surveys and prepares the scans, writes and measures. The others wait
for what it says, then compute. What a process draws follows from (seed, step, sample), and every loss is the one of
the whole batch, so that a run ends with the same weights however many processes share it, but for rounding, which
grows with the steps (6e-8 after 6 steps of a very small U-Net, 2e-3 after 16 of the tiny one).

While the first prepares, which may take hours, nobody is inside torch's collective operations, which would run out of
time or could not be interrupted: the others look again and again into the little store of names and values that
torchrun keeps for its processes to find each other (under SLURM, too: ``srun torchrun …``). A process that fails
leaves its reason there for the others.

``torch.distributed`` is used as it is. ``ignite.distributed`` wants the group of processes, and so the device, before
anything else, and leaves no room for this wait.
"""

from __future__ import annotations

import inspect
import json
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from HybridMIMLib import errors
from HybridMIMLib.errors import HybridMIMError, RunError, SettingsError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")

COMMANDS = ("pretrain",)
"""What can be shared by several processes so far."""
_SECONDS_BETWEEN_LOOKS = 0.05
_CHUNK = 1 << 20
"""Bytes of a value in the store, which takes no more than 8 MiB at once."""
_FAILURE, _STOPPED = "failure", "stopped"
_GONE = {"message": "another process of the run ended", "cure": "Look at what it printed; memory may have run out."}
_LOST = ("connection", "gloo", "nccl")
"""Words of which one is in every error of torch about a process that is no longer there."""

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)
_told = 0
"""How many values :func:`by_first` has handed on."""
_silent = False
"""Whether this process ends because another one did, and that one says why."""


def processes() -> int:
    """How many were started together; torchrun says it to each of them."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "WORLD_SIZE" in os.environ else 1


def number() -> int:
    """Of this process, from 0."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that writes; the only one, in most runs."""
    return number() == 0


def has_to_say() -> bool:
    """Whether this process should print why it ended: it is the first, or has a reason of its own."""
    return is_first() or not _silent


def check_command(command: str) -> None:
    """See whether a command can be shared.

    Raises:
        SettingsError: there are several processes, and it cannot.
    """
    if processes() > 1 and command not in COMMANDS:
        raise SettingsError(
            f"{command} was started in {processes()} processes and works in one",
            cure=f"Start it without torchrun; in several processes there is {', '.join(COMMANDS)}.",
        )


def check_batch(name: str, batch: int) -> None:
    """See whether a batch divides evenly among the processes; 0 is chosen so that it does.

    Raises:
        SettingsError: it does not; the cure names the nearest that do.
    """
    count = processes()
    if batch % count:
        below, above = batch // count * count, -(-batch // count) * count
        raise SettingsError(
            f"{name} {batch} does not divide among {count} processes",
            cure=f"The nearest that do: {f'{below} or ' if below else ''}{above}.",
        )


def own_device(device: torch.device) -> torch.device:
    """The device of this process: where there are several on a machine, each has a GPU of its own.

    Raises:
        SettingsError: there are fewer GPUs than processes, or one GPU is named for all of them.
    """
    import torch

    if processes() == 1 or device.type == "cpu":
        return device
    local, there = int(os.environ.get("LOCAL_RANK", number())), torch.cuda.device_count()
    if device.type != "cuda" or device.index is not None or local >= there:
        raise SettingsError(
            f"device {device} in {processes()} processes: each needs a GPU of its own, and PyTorch finds {there}",
            cure=f"Start torchrun with --nproc_per_node {max(there, 1)} and --device cuda, or with --device cpu.",
        )
    own = torch.device("cuda", local)
    torch.cuda.set_device(own)
    return own


def by_first(work: Callable[[], T]) -> T:
    """Let the first process do something, and give what came out to all.

    Inside, :func:`gathered` and :func:`averaged` look at the first process alone.

    Raises:
        HybridMIMError: the work failed; the others raise the same.
    """
    if processes() == 1:
        return work()
    global _told
    key, _told = f"value {_told}", _told + 1
    if not is_first():
        return pickle.loads(_received(key))  # type: ignore[no-any-return]  # sent by the first process of this run
    with failures_shared(), alone():
        value = work()
    _send(key, pickle.dumps(value))
    return value


def connect(device: torch.device) -> None:
    """Let the processes compute together from now on; every one must come here."""
    if processes() == 1:
        return
    import torch.distributed as dist

    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_store(), rank=number(), world_size=processes())


def disconnect() -> None:
    """Part, when all is computed."""
    if processes() > 1:
        import torch.distributed as dist

        dist.destroy_process_group()


def shared(module: nn.Module) -> nn.Module:
    """The module such that a backward pass through it gives every process the mean of all gradients.

    Buffers are left alone: all processes come to the same ones.
    """
    if processes() == 1:
        return module
    from torch.nn.parallel import DistributedDataParallel

    # torch is about to call it by another name.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    settings: dict[str, Any] = {name: False}
    return DistributedDataParallel(module, **settings)


def together() -> int:
    """How many processes compute together now, see :func:`connect`; 1 inside of :func:`alone`."""
    import torch.distributed as dist

    return dist.get_world_size() if not _ALONE.get() and dist.is_available() and dist.is_initialized() else 1


def place() -> int:
    """Of this process among those that compute together."""
    import torch.distributed as dist

    return dist.get_rank() if together() > 1 else 0


@contextmanager
def alone() -> Iterator[None]:
    """Compute something in one process that the others do not."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def gathered(x: Tensor) -> Tensor:
    """The rows of every process, one after another; gradients find their way back to where the rows came from."""
    if together() == 1:
        return x
    rows: Tensor = _gathering().apply(x.contiguous())
    return rows


@cache
def _gathering() -> Any:
    """torch's own one with a gradient is deprecated; made late, because torch is loaded late here."""
    import torch
    import torch.distributed as dist

    class Gathering(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            parts = [torch.empty_like(x) for _ in range(together())]
            dist.all_gather(parts, x)
            return torch.cat(parts)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            # Every process has looked at these rows: what all of them say is added up.
            total = gradient.contiguous().clone()
            dist.all_reduce(total)
            return total.chunk(together())[place()]

    return Gathering


def averaged(x: Tensor) -> Tensor:
    """The mean over the processes, without a gradient.

    For what a loss divides by: with the processes' mean of it in place of its own, the mean of their losses is the
    loss of the whole batch.
    """
    if together() == 1:
        return x
    import torch.distributed as dist

    total = x.detach().clone()
    dist.all_reduce(total)
    return total / together()


@contextmanager
def failures_shared() -> Iterator[None]:
    """Tell the others why this process fails in the block; where another failed first, fail for its reason.

    Raises:
        HybridMIMError: what ended another process, in place of the lost connection that this one sees.
    """
    try:
        yield
    except BaseException as error:
        if processes() > 1:
            _fail_together(error)
        raise


def _fail_together(error: BaseException) -> None:
    """Leave the reason, or raise the one that another left before."""
    reason = json.dumps({"by": number(), **_reason(error)})
    try:
        first = json.loads(_store().compare_set(_FAILURE, "", reason))
    except RuntimeError:  # torchrun, which keeps the store, is gone
        first = {"by": None, "kind": "RunError", **_GONE}
    if first["by"] != number():
        _raise_of_another(first, error)
    if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOST):
        # That process left no reason: it was killed.
        raise RunError(**_GONE) from error


def _reason(error: BaseException) -> dict[str, str]:
    if isinstance(error, KeyboardInterrupt):
        return {"kind": _STOPPED}
    if isinstance(error, HybridMIMError):
        return {"kind": type(error).__name__, "message": error.message, "cure": error.cure}
    words = f"process {number()} of the run ended: {type(error).__name__}: {error}"
    return {"kind": "RunError", "message": words, "cure": "Look at what it printed."}


def _raise_of_another(reason: dict[str, Any], error: BaseException | None = None) -> NoReturn:
    global _silent
    _silent = True
    if reason["kind"] == _STOPPED:
        raise KeyboardInterrupt from error
    kind: type[HybridMIMError] = getattr(errors, reason["kind"], RunError)
    raise kind(reason["message"], cure=reason["cure"]) from error


@cache
def _store() -> Any:
    """Where the processes of this run leave words for each other."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://"))
    return PrefixStore("HybridMIM", store)


def _send(key: str, value: bytes) -> None:
    parts = range(0, len(value), _CHUNK)
    for part, start in enumerate(parts):
        _store().set(f"{key} part {part}", value[start : start + _CHUNK])
    _store().set(key, str(len(parts)))


def _received(key: str) -> bytes:
    """What the first process sent, as soon as it is there."""
    with failures_shared():
        store = _store()
        while not store.check([key]):
            if store.check([_FAILURE]):
                _raise_of_another(json.loads(store.get(_FAILURE)))
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return b"".join(store.get(f"{key} part {part}") for part in range(int(store.get(key))))
