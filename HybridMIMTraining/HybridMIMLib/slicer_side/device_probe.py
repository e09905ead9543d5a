"""What can be computed on, as seen by a process that ran a real network on each device.

    >>> probe = DeviceProbe()                                                                  # doctest: +SKIP
    >>> while probe.update():                                                                  # doctest: +SKIP
    ...     time.sleep(0.2)
    >>> probe.message                                                                          # doctest: +SKIP
    'cuda:0, NVIDIA H200: works, 138.9 of 139.8 GB free. cpu, 16 cores: works, …'

A driver that hangs, or ends the process, does so far away from Slicer, and is told.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from HybridMIMLib.errors import RunError
from HybridMIMLib.events import EventReader
from HybridMIMLib.slicer_side.child import Child, python_executable
from HybridMIMLib.slicer_side.job_folder import JobFolder
from HybridMIMLib.slicer_side.jobs import FAILED, LOG, Job

_MODULE = "HybridMIMLib.inference.probe"


@dataclass(frozen=True)
class Device:
    """A device.

    Attributes:
        device: cpu, cuda:0, mps.
        name: what people call it.
        works: whether it computes what the CPU does.
        reason: why it does not.
        memory_total, memory_free: bytes, or None where nobody can tell.
    """

    device: str
    name: str
    works: bool
    reason: str = ""
    memory_total: int | None = None
    memory_free: int | None = None

    def describe(self) -> str:
        """One line, without a full stop."""
        if not self.works:
            return f"{self.device}, {self.name}: does not work: {self.reason.rstrip('.')}"
        total, free = (None if one is None else f"{one / 1e9:.1f}" for one in (self.memory_total, self.memory_free))
        memory = f"{free} of {total} GB free" if free and total else f"{total} GB" if total else ""
        return ", ".join(filter(None, [f"{self.device}, {self.name}: works", memory]))


class DeviceProbe(Job):
    """Looks at the devices; a :class:`~HybridMIMLib.slicer_side.jobs.Job`.

    Args:
        seconds: after which a device counts as hanging.

    Attributes:
        devices: what was seen, once the state is finished; the first that works is the one that ``auto`` takes.
        versions: of Python, PyTorch and the other packages that the process saw.

    Raises:
        HybridMIMError: the process cannot be started.
    """

    def __init__(self, seconds: float = 120.0) -> None:
        self._temporary = JobFolder()
        folder = self._temporary.path
        command = [python_executable(), "-m", _MODULE, str(folder)]
        super().__init__(folder, Child(command, folder / LOG), EventReader(folder / "events.jsonl"))
        self.devices: list[Device] = []
        self.versions: dict[str, str] = {}
        self._seconds, self._began, self._hangs = seconds, time.monotonic(), False

    def update(self) -> bool:
        """Take in what happened since the last call; returns whether it goes on."""
        if not self.ended and time.monotonic() - self._began > self._seconds and not self._asked:
            self._hangs = True
            self._process.kill()
        return super().update()

    def _end(self) -> None:
        try:
            super()._end()
        finally:
            self._temporary.remove()
        if self.state == FAILED and self._hangs:
            self.message = (
                f"The devices did not answer within {self._seconds:g} seconds: a driver may hang. "
                "Restart the computer; if it happens again, update the driver of the graphics card."
            )

    def _take_result(self) -> str:
        try:
            self.devices = [_device(one) for one in self.result["devices"]]
            self.versions = {str(name): str(version) for name, version in self.result["versions"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"what the devices said makes no sense ({error!r})", cure="Look at them again.") from error
        return " ".join(f"{one.describe()}." for one in self.devices)


def _device(content: dict[str, Any]) -> Device:
    names = ("device", "name", "works", "reason", "memory_total", "memory_free")
    return Device(**{name: content[name] for name in names})
