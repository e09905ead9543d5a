"""What of the packages in Slicer's Python this program has brought, and the log of what was done with them.

Both are kept in the workspace, which no update touches; the list by the Python that it is about, for a user may have
several Slicers. What was there before, because Slicer ships it or another extension needs it, is never on the list.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path

from HybridMIMLib.config import workspace
from HybridMIMLib.errors import DiskError
from HybridMIMLib.files import make_folder, read_json, write_json
from HybridMIMLib.slicer_side.child import last_lines

SEARCH_PATH: list[str] | None = None
"""Where packages are looked for; None: where Python looks."""


def distributions() -> dict[str, metadata.Distribution]:
    """All installed packages by their plain names, without importing any."""
    found = metadata.distributions() if SEARCH_PATH is None else metadata.distributions(path=SEARCH_PATH)
    named = {plain(name): one for one in found if (name := one.metadata["Name"])}
    return named


def installed_versions() -> dict[str, str]:
    """Versions by plain names."""
    return {name: one.version for name, one in distributions().items()}


def plain(name: str) -> str:
    """A name as pip compares it: ``PyYAML`` is ``pyyaml``, ``typing_extensions`` is ``typing-extensions``."""
    return re.sub(r"[-_.]+", "-", name).lower()


def ours() -> dict[str, str]:
    """What this program has brought into this Python and is still there as it was, with versions."""
    there = installed_versions()
    return {name: version for name, version in _listed().items() if there.get(name) == version}


def note_change(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Bring the list up to date after an installation or a removal.

    Args:
        before, after: as :func:`installed_versions` gave them. What is new is ours; what only has another version
            now is as much ours as it was.
    """
    listed = {name: version for name, version in _listed().items() if name in before}
    kept = {name: after[name] for name in listed if name in after}
    new = {name: version for name, version in after.items() if name not in before}
    _write({**kept, **new})
    lines = [f"installed {name} {version}" for name, version in sorted(new.items())]
    lines += [f"removed {name} {before[name]}" for name in sorted(set(before) - set(after))]
    lines += [
        f"changed {name} from {before[name]} to {after[name]}"
        for name in sorted(set(before) & set(after))
        if before[name] != after[name]
    ]
    for line in lines:
        note(line)


def note(text: str) -> None:
    """Add a line to the log; that it cannot be written keeps nobody from working."""
    stamp = datetime.now().isoformat(sep=" ", timespec="seconds")
    with suppress(OSError, DiskError):
        make_folder(log_file().parent)
        with open(log_file(), "a", encoding="utf-8", errors="backslashreplace") as handle:
            handle.write(f"{stamp}  {' '.join(text.split())}\n")


def log_file() -> Path:
    """What was done with packages, and what pip said."""
    return workspace() / "environment.log"


def log_lines(count: int = 200) -> list[str]:
    """The last lines of the log."""
    return last_lines(log_file(), count)


def _listed() -> dict[str, str]:
    content = _read().get(sys.prefix, {})
    if not isinstance(content, dict):
        return {}
    return {str(name): str(version) for name, version in content.items()}


def _read() -> dict[str, object]:
    try:
        content = read_json(_file())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(packages: Mapping[str, str]) -> None:
    write_json(_file(), {**_read(), sys.prefix: dict(sorted(packages.items()))})


def _file() -> Path:
    return workspace() / "installed.json"
