"""``slicer.packaging`` and ``slicer.i18n``. Checks are real; nothing is ever installed.

A test says beforehand what an installation would come to::

    packages.pretend_missing("torch")
    packages.announce("installed")      # or "declined", or an exception to raise
    ...
    assert packages.calls() == [Call("pip_ensure", ("torch>=2.6",), "HybridMIM", None)]
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

Requirements = str | Requirement | Sequence[str | Requirement]


@dataclass(frozen=True)
class Call:
    """One call that would have changed Slicer's Python."""

    function: str
    requirements: tuple[str, ...]
    requester: str | None
    constraints: str | Path | None


_calls: list[Call] = []
_outcomes: list[str | BaseException] = []
_missing: set[str] = set()


def announce(outcome: str | BaseException) -> None:
    """Say what comes of the next installation: "installed", "declined" (by the user) or an exception."""
    if outcome not in ("installed", "declined") and not isinstance(outcome, BaseException):
        raise ValueError(f"{outcome!r} is neither 'installed' nor 'declined' nor an exception")
    _outcomes.append(outcome)


def pretend_missing(*names: str) -> None:
    """Let these packages count as not installed, until :func:`forget` or an announced installation."""
    _missing.update(canonicalize_name(name) for name in names)


def calls() -> list[Call]:
    return list(_calls)


def unanswered() -> list[str | BaseException]:
    """What was announced and never asked for."""
    return list(_outcomes)


def forget() -> None:
    for held in (_calls, _outcomes, _missing):
        held.clear()


# ---------------------------------------------------------------- what slicer.packaging offers


def load_requirements(path: str | Path) -> list[Requirement]:
    """The requirements of a file; like Slicer it skips comments and lines of pip options."""
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and line[0] not in "#-"]


def pip_check(req: Requirements) -> bool:
    """Whether the requirements are installed in versions that fit."""
    return all(_is_satisfied(requirement) for requirement in _parsed(req))


def pip_ensure(
    requirements: Requirements,
    constraints: str | Path | None = None,
    skip_packages: list[str] | None = None,
    prompt_install: bool = True,
    prompt_restart: bool = True,
    requester: str | None = None,
    skip_in_testing: bool = True,
    show_progress: bool = True,
) -> list[str] | None:
    """Nothing if all is there; otherwise what the test announced."""
    missing = [requirement for requirement in _parsed(requirements) if not _is_satisfied(requirement)]
    if missing:
        _install(Call("pip_ensure", tuple(map(str, missing)), requester, constraints))
    return None


def pip_install(requirements: Requirements, constraints: str | Path | None = None, **options: object) -> None:
    """What the test announced, even if all is there."""
    _install(Call("pip_install", tuple(map(str, _parsed(requirements))), None, constraints))


def _install(call: Call) -> None:
    _calls.append(call)
    if not _outcomes:
        names = ", ".join(call.requirements)
        raise AssertionError(f"{call.function} would install {names}; the test announced nothing")
    outcome = _outcomes.pop(0)
    if isinstance(outcome, BaseException):
        raise outcome
    if outcome == "declined":
        raise RuntimeError("User declined package installation")
    _missing.difference_update(canonicalize_name(Requirement(text).name) for text in call.requirements)


def _parsed(requirements: Requirements) -> list[Requirement]:
    if isinstance(requirements, str):
        # As in Slicer: several requirements in one text are parted by blanks, but a marker may have blanks, too.
        requirements = [requirements] if ";" in requirements else requirements.split()
    if isinstance(requirements, Requirement):
        return [requirements]
    return [Requirement(entry) if isinstance(entry, str) else entry for entry in requirements]


def _is_satisfied(requirement: Requirement, seen: frozenset[tuple[str, frozenset[str]]] = frozenset()) -> bool:
    key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
    if key in seen or (requirement.marker is not None and not requirement.marker.evaluate()):
        return True
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    if key[0] in _missing or not requirement.specifier.contains(version):
        return False
    return all(_is_satisfied(needed, seen | {key}) for needed in _of_extras(requirement))


def _of_extras(requirement: Requirement) -> list[Requirement]:
    """What the requirement's extras need beyond the package itself."""
    entries = map(Requirement, importlib.metadata.requires(requirement.name) or [])
    wanted = []
    for entry in entries:
        if entry.marker and any(entry.marker.evaluate({"extra": extra}) for extra in requirement.extras):
            entry.marker = None
            wanted.append(entry)
    return wanted


# ---------------------------------------------------------------- what slicer.i18n offers


def tr(text: str) -> str:
    return translate("", text)


def translate(context: str, text: str) -> str:
    """The text itself: no translation is loaded. Anything but text is an error, as it is in Slicer."""
    if not isinstance(text, str):
        raise TypeError(f"only text can be translated, not {text!r}")
    return text


PACKAGING = SimpleNamespace(
    load_requirements=load_requirements, pip_check=pip_check, pip_ensure=pip_ensure, pip_install=pip_install
)
I18N = SimpleNamespace(tr=tr, translate=translate)
