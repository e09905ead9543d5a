"""The table that a benchmark prints, row by row."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

Sizes = TypeVar("Sizes")


class Result(NamedTuple):
    """A row of the table."""

    what: str
    target: str
    measured: str


class SkippedError(Exception):
    """What is needed for a row is not there; the text says what."""


def print_table(
    names: Iterable[str], rows: Mapping[str, Callable[[Sizes], Iterable[Result]]], sizes: Sizes, limit: float
) -> None:
    """Measure rows and print them; those for which there is no time left, or that miss something, say so.

    Args:
        names: of the rows.
        rows: what measures each.
        sizes: handed to it.
        limit: seconds of the monotonic clock at which no further row begins.
    """
    if hasattr(os, "getloadavg"):
        # Others on the machine count: on a busy one every time is too long.
        print(f"load of the last minute before the start: {os.getloadavg()[0]:.1f}", file=sys.stderr)
    print("| what | target | measured |\n|---|---|---|")
    for name in names:
        if time.monotonic() > limit:
            print(f"| {name} | | not measured: time is up; give its name, or more --minutes |")
            continue
        try:
            for row in rows[name](sizes):
                print(f"| {row.what} | {row.target} | {row.measured} |", flush=True)
        except SkippedError as reason:
            print(f"| {name} | | skipped: {reason} |")
