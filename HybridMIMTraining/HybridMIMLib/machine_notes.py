"""What was found out about this machine and need not be found out again: a small JSON file in the workspace.

It saves time and nothing depends on it: a file that is damaged, foreign or of another version counts as empty, and
where none can be written, things are found out anew each time. Of two processes that write at once the last wins.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from HybridMIMLib.config import workspace
from HybridMIMLib.errors import HybridMIMError
from HybridMIMLib.files import read_json, write_json

NAME = "capabilities.json"
MOST = 200
"""Notes of a section."""
_FORMAT = "HybridMIM capabilities 1"


def recall(section: str, key: str) -> Any:
    """What was kept under a key; None where nothing was. It may be anything: who asks must check it."""
    return _content().get(section, {}).get(key)


def remember(section: str, key: str, value: Any) -> None:
    """Keep a JSON value, if the workspace can be written to; the oldest of many are dropped."""
    content = _content()
    notes = {name: note for name, note in content.get(section, {}).items() if name != key}
    content[section] = dict([*notes.items(), (key, value)][-MOST:])
    with suppress(OSError, HybridMIMError):
        write_json(_file(), {"format": _FORMAT, **content})


def _content() -> dict[str, dict[str, Any]]:
    """The sections of the file."""
    with suppress(OSError, ValueError, HybridMIMError, RecursionError):
        content = read_json(_file())
        if isinstance(content, dict) and content.get("format") == _FORMAT:
            return {name: section for name, section in content.items() if isinstance(section, dict)}
    return {}


def _file() -> Path:
    return workspace() / NAME
