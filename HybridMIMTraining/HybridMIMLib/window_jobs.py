"""Jobs that a window has done in a process of its own: a JSON file that says what, and ``result.json`` beside it.

An error is one line on standard error, and the exit code 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from HybridMIMLib.errors import HybridMIMError, SettingsError
from HybridMIMLib.files import write_json


def work_off(name: str, do: Callable[[Path], Mapping[str, Any]], arguments: Sequence[str] | None = None) -> int:
    """Do the job that the command line names; returns the exit code.

    Args:
        name: of the kind of job, for the message.
        do: reads the file and does it; what it returns becomes ``result.json``.
        arguments: of the command line; None: of this process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if len(arguments) != 1:
            raise SettingsError("no job is named", cure=f"Give one: {name} JOB.json.")
        file = Path(arguments[0])
        write_json(file.parent / "result.json", do(file))
    except HybridMIMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
