"""A tree of settings out of dataclasses: how one is declared, built from plain values, and checked by its types."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import field, fields
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from HybridMIMLib.errors import SettingsError
from HybridMIMLib.settings.checks import require

Triple = list[int]


def setting(default: Any, help_text: str) -> Any:
    """A dataclass field with a default and the line that ``--help`` shows for it."""
    metadata = {"help": help_text}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type, help_text: str) -> Any:
    """A dataclass field that holds a section of settings."""
    return field(default_factory=kind, metadata={"help": help_text})


@functools.cache
def hints_of(kind: type) -> Mapping[str, Any]:
    """The types of the settings of a section; evaluated once, as a panel asks at every letter that somebody types."""
    return get_type_hints(kind)


def build(kind: type, content: Any, prefix: str) -> Any:
    """A section, and those inside it, from names and values; ``prefix`` stands before the names in errors.

    Raises:
        SettingsError: a name is unknown, or a value cannot work.
    """
    require(
        isinstance(content, Mapping),
        f"{prefix.rstrip('.') or 'the settings'} is {content!r}",
        "Give a section of names and values.",
    )
    hints = hints_of(kind)
    known = {f.name for f in fields(kind)}
    for name in content:
        require(
            name in known,
            f"there is no setting {prefix}{name}",
            f"Settings here are: {', '.join(sorted(known))}.",
        )
    values = {
        name: build(hints[name], value, f"{prefix}{name}.") if dataclasses.is_dataclass(hints[name]) else value
        for name, value in content.items()
    }
    return kind(**values)


def check_types(prefix: str, settings: Any) -> None:
    """Each value is of its field's type; tuples, paths and numpy's numbers become what YAML gives back.

    Raises:
        SettingsError: one is not.
    """
    kind: type = type(settings)
    for name, hint in hints_of(kind).items():
        value = getattr(settings, name)
        try:
            setattr(settings, name, _as_type(value, hint))
        except TypeError as error:
            raise SettingsError(f"{prefix}{name} is {value!r}", cure=f"Give {_in_words(hint)}.") from error


def _as_type(value: Any, hint: Any) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Union:
        return _as_one_of(value, parts)
    if origin is list and isinstance(value, Sequence) and not isinstance(value, str):
        return [_as_type(part, parts[0]) for part in value]
    if hint is str and isinstance(value, (str, os.PathLike)):
        return str(value)
    if hint is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if hint is float and isinstance(value, Real) and not isinstance(value, bool):
        # A whole number of hundreds of digits is too large for it.
        with suppress(OverflowError):
            if math.isfinite(value):
                return float(value)
    if origin is Literal and value in parts:
        return value
    if isinstance(hint, type) and (hint is bool or dataclasses.is_dataclass(hint)) and isinstance(value, hint):
        return value
    raise TypeError


def _as_one_of(value: Any, hints: Sequence[Any]) -> Any:
    for hint in hints:
        if value is None and hint is type(None):
            return None
        with suppress(TypeError):
            return _as_type(value, hint)
    raise TypeError


def _in_words(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Union:
        return " or ".join(_in_words(part) for part in parts if part is not type(None))
    if origin is list and get_origin(parts[0]) is list:
        return "a list of lists of whole numbers"
    if origin is list and str in (parts[0], *get_args(parts[0])):
        return "a list of names" if parts[0] is str else "a list of numbers and names"
    if origin is list:
        return "a list of whole numbers" if parts[0] is int else "a list of numbers"
    if origin is Literal:
        return " or ".join(parts)
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return words.get(hint, "a section of names and values")


def choices(kind: type, name: str) -> tuple[str, ...]:
    """The values that a setting may have."""
    return get_args(hints_of(kind)[name])
