"""Repair and Remove: what is broken among the packages is installed anew, and what we have brought can go again.

    >>> check = PackageCheck()                                                                 # doctest: +SKIP
    >>> check.wait()
    >>> repair(check.broken).wait()

    >>> removal = plan_removal()                        # for a thread: it looks at every file   # doctest: +SKIP
    >>> if ask(removal.question()):
    ...     remove(removal).wait()

Each is a :class:`~HybridMIMLib.slicer_side.jobs.Work`: looked at by a window, or waited for by a script. pip is a
process of its own, and what it says goes to the log of :mod:`~HybridMIMLib.slicer_side.installed`, where a window
shows it. What Slicer ships, and what others have installed, is never touched.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from HybridMIMLib.config import workspace
from HybridMIMLib.data.model_store import models_folder
from HybridMIMLib.errors import HybridMIMError, RunError, SettingsError
from HybridMIMLib.events import EventReader
from HybridMIMLib.files import disk_errors, size_in_words, write_text
from HybridMIMLib.runs import runs_folder
from HybridMIMLib.slicer_side import installed
from HybridMIMLib.slicer_side.batch import BatchTable
from HybridMIMLib.slicer_side.child import Child, last_lines, python_executable
from HybridMIMLib.slicer_side.disk_use import bytes_in, bytes_of
from HybridMIMLib.slicer_side.environment import OFFLINE_CURE, SHIPPED, constraints, is_offline, packages
from HybridMIMLib.slicer_side.job_folder import JobFolder
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED, LOG, STOPPED, Job, ProcessWork, why_it_died

_MODULE = "HybridMIMLib.slicer_side.import_check"


def pip_command() -> list[str]:
    """How pip is called for the Python that shares Slicer's packages."""
    return [python_executable(), "-m", "pip", "--no-input", "--disable-pip-version-check"]


class PackageCheck(Job):
    """Looks whether the packages that are installed can be used; a crash of an import is the fault of its package.

    Args:
        names: of packages; None: all that the library needs and that are there.

    Attributes:
        broken: why, by name, once the state is finished.

    Raises:
        HybridMIMError: the process cannot be started.
    """

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self._temporary = JobFolder()
        folder = self._temporary.path
        wanted = [one.name for one in packages() if one.found] if names is None else list(names)
        command = [python_executable(), "-m", _MODULE, str(folder), *wanted]
        super().__init__(folder, Child(command, folder / LOG), EventReader(folder / "events.jsonl"))
        self.broken: dict[str, str] = {}

    def _end(self) -> None:
        table = BatchTable()
        for event in EventReader(self.folder / "events.jsonl").read():
            table.take(event)
        super()._end()
        table.end("failed", f"importing it ends the process: {self.message}")
        self.broken = {row.name: row.reason for row in table.rows if row.reason}
        if self.state == FAILED and self.broken:
            # The check has found what it looked for.
            self.state = FINISHED
        if self.state == FINISHED:
            told = [f"{name}: {reason}" for name, reason in self.broken.items()]
            self.message = "; ".join(told) or "All packages can be used."
        self._temporary.remove()


class PipWork(ProcessWork):
    """pip at work.

    Args:
        arguments: of pip.
        what: is done, for the log and the status line.
        on_end: called when pip has ended well; returns what to tell the user.

    Raises:
        RunError: pip cannot be started.
    """

    def __init__(self, arguments: Sequence[str], what: str, on_end: Callable[[], str]) -> None:
        self._before, self._on_end = installed.installed_versions(), on_end
        installed.note(what)
        super().__init__(installed.log_file().parent, Child([*pip_command(), *arguments], installed.log_file()))
        self.progress.take({"kind": "phase", "phase": what, "step": 0, "steps": 1})
        self._lines: list[str] = []

    def _listen(self) -> None:
        before = len(self._lines)
        self._lines = last_lines(installed.log_file(), 10_000, self._process.log_begins)
        for line in self._lines[before:]:
            self.progress.take({"kind": "message", "message": line})

    def _end(self) -> None:
        """What it has done is done, also if it was stopped; the list of what is ours follows it."""
        self.said = self._lines[-20:]
        code = self._process.exit_code
        try:
            installed.note_change(self._before, installed.installed_versions())
            if code == 0:
                self.message, self.state = self._on_end(), FINISHED
            elif self._asked:
                self.message, self.state = "Stopped.", STOPPED
            else:
                raise _why_pip_failed(code, self._lines)
        except HybridMIMError as error:
            self.message, self.state = str(error), FAILED
        installed.note(self.message)


def repair(broken: Mapping[str, str]) -> PipWork:
    """Install broken packages anew, in the versions that they have; the window has asked the user.

    Args:
        broken: why, by name, as :class:`PackageCheck` found it.

    Raises:
        SettingsError: none is broken, or one of them is not ours to repair; the message says who can.
        HybridMIMError: pip cannot be started.
    """
    names = {installed.plain(name) for name in broken}
    if not names:
        raise SettingsError("No package is broken", cure="Nothing has to be done.")
    shipped = sorted(names & {installed.plain(one) for one in SHIPPED})
    if shipped:
        raise SettingsError(f"{', '.join(shipped)} came with Slicer and cannot be used", cure="Install Slicer again.")
    if "torch" in names:
        raise SettingsError(
            "PyTorch is broken", cure="In the module PyTorch, uninstall it, restart Slicer, and install it again."
        )
    versions = installed.installed_versions()
    wanted = [f"{name}=={versions[name]}" if name in versions else name for name in sorted(names)]
    kept = workspace() / "constraints.txt"
    write_text(kept, "\n".join(constraints()) + "\n")
    options = ["--force-reinstall", "--no-deps", "--only-binary=:all:", "-c", str(kept)]
    listed = ", ".join(wanted)
    return PipWork(["install", *options, *wanted], f"Repairing {listed}", lambda: f"Repaired: {listed}.")


@dataclass(frozen=True)
class Removal:
    """What would go.

    Attributes:
        packages: versions by name.
        bytes: that they take.
        kept: of what we have brought, what stays, and why, by name.
        data: bytes of the models and the runs of the user, by folder; they stay, unless the user wants them gone.
    """

    packages: dict[str, str]
    bytes: int
    kept: dict[str, str] = field(default_factory=dict)
    data: dict[Path, int] = field(default_factory=dict)

    def question(self) -> str:
        """What to ask the user before anything is removed."""
        listed = "\n".join(f"{name} {version}" for name, version in sorted(self.packages.items()))
        parts = [f"Remove these packages, which HybridMIM has installed ({size_in_words(self.bytes)})?\n\n{listed}"]
        if self.kept:
            parts.append("\n".join(f"{name} stays: {reason}." for name, reason in sorted(self.kept.items())))
        places = "\n".join(f"{folder} ({size_in_words(count)})" for folder, count in self.data.items())
        if places:
            parts.append(f"These stay as they are:\n{places}")
        return "\n\n".join(parts)


def plan_removal() -> Removal:
    """What can be removed; looks at every file of the packages, models and runs: for a thread."""
    there = installed.distributions()
    mine = installed.ours()
    go = set(mine) - {installed.plain(one) for one in SHIPPED}
    kept = dict.fromkeys(set(mine) - go, "it came with Slicer")
    # What stays may need what would go, and that what it needs.
    while True:
        needed = {name: user for user in set(there) - go for name in _needs(there[user]) & go}
        if not needed:
            break
        go -= set(needed)
        kept |= {name: f"{user} needs it" for name, user in needed.items()}
    total = sum(_bytes_of(there[name]) for name in go)
    data = {folder: bytes_in(folder) for folder in (models_folder(), runs_folder()) if folder.is_dir()}
    return Removal({name: mine[name] for name in go}, total, kept, data)


def remove(removal: Removal, data: Collection[Path] = ()) -> PipWork:
    """Remove packages; the window has asked the user (:meth:`Removal.question`).

    Args:
        removal: from :func:`plan_removal`.
        data: folders among its ``data`` that the user wants gone too; they go once the packages have gone.

    Raises:
        SettingsError: there is nothing to remove, or a folder is none of the plan.
        HybridMIMError: pip cannot be started.
    """
    if not removal.packages:
        raise SettingsError("HybridMIM has installed nothing that could be removed", cure="Nothing has to be done.")
    strangers = [folder for folder in data if folder not in removal.data]
    if strangers:
        raise SettingsError(f"{strangers[0]}: is not among what can be removed", cure="Leave it as it is.")
    names = sorted(removal.packages)

    def end() -> str:
        for folder in data:
            with disk_errors(folder):
                shutil.rmtree(folder)
            installed.note(f"removed {folder}")
        return f"Removed {len(names)} package(s). Restart Slicer before they are installed again."

    return PipWork(["uninstall", "-y", *names], f"Removing {', '.join(names)}", end)


def _why_pip_failed(code: int | None, lines: Sequence[str]) -> RunError:
    errors = [line.partition(":")[2].strip() for line in lines if line.upper().startswith("ERROR:")]
    if not errors:
        return why_it_died(code, lines[-4:])
    if any(is_offline(line) for line in lines):
        return RunError(
            "The packages could not be downloaded: there seems to be no connection to the internet",
            cure=OFFLINE_CURE,
        )
    return RunError(f"pip could not do it ({errors[-1].rstrip('.')})", cure="See the log for all that it said.")


def _needs(package: metadata.Distribution) -> set[str]:
    """What a package requires here, by plain names; extras, which nobody may have asked for, count as well."""
    from packaging.requirements import InvalidRequirement, Requirement

    found = set()
    for text in package.requires or []:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found.add(installed.plain(requirement.name))
    return found


def _bytes_of(package: metadata.Distribution) -> int:
    return sum(bytes_of(str(one.locate())) for one in package.files or [])
