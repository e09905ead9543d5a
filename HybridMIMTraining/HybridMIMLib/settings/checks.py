"""What sections of settings ask of their values: a check that fails is a SettingsError of one line, with the cure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from HybridMIMLib.errors import SettingsError


def is_name(text: str) -> bool:
    """Whether text can name a model or a class where people read it: one line, and not blank."""
    return bool(text.strip()) and text.splitlines() == [text]


def named_amount(text: str) -> tuple[str, float]:
    """What ``CLASS=AMOUNT`` says.

    Raises:
        ValueError: it has no number.
    """
    of, _, amount = text.rpartition("=")
    return of.strip(), float(amount)


def require(condition: bool, message: str, cure: str) -> None:
    """Refuse settings of which the condition does not hold; the message names them.

    Raises:
        SettingsError: the condition does not hold.
    """
    if not condition:
        raise SettingsError(message, cure=cure)


def require_positive(name: str, value: float) -> None:
    """Above 0."""
    require(value > 0, f"{name} is {value}", "Give a number above 0.")


def require_share(name: str, value: float, below_one: bool = False) -> None:
    """From 0 to 1, or to below 1."""
    within = 0 <= value < 1 if below_one else 0 <= value <= 1
    require(within, f"{name} is {value}", f"Give a share from 0 to {'below ' if below_one else ''}1.")


def require_share_or_range(name: str, value: float | Sequence[float] | None) -> None:
    """Above 0 and up to 1, or the lowest and the highest of such."""
    ends = [] if value is None else value if isinstance(value, Sequence) else [value, value]
    fine = not ends or (len(ends) == 2 and 0 < ends[0] <= ends[1] <= 1)
    require(fine, f"{name} is {value}", "Give a share above 0, up to 1, or two of them, the lower one first.")


def require_named_amount(name: str, text: str, wanted: str) -> None:
    """``CLASS=AMOUNT`` with an amount above 0; ``wanted`` says it with an example."""
    fine = False
    with suppress(ValueError):
        of, amount = named_amount(text)
        fine = bool(of) and math.isfinite(amount) and amount > 0
    require(fine, f"{name} has {text!r}", f"Give {wanted}.")


def require_positive_triple(name: str, value: Sequence[float] | None) -> None:
    """One number above 0 an axis, or nothing."""
    fine = value is None or (len(value) == 3 and all(part > 0 for part in value))
    require(fine, f"{name} is {value}", "Give three numbers above 0, one an axis.")


def require_multiple(name: str, value: Sequence[int] | None, of: str, unit: Sequence[int] | None) -> None:
    """Each part of the value is a multiple of that of the unit; the cure names the nearest that is."""
    if value is None or unit is None or all(v % u == 0 for v, u in zip(value, unit)):
        return
    below, above = ([max(v // u, 1) * u for v, u in zip(value, unit)], [-(-v // u) * u for v, u in zip(value, unit)])
    nearest = f"{above}" if below == above else f"{below} or {above}"
    raise SettingsError(
        f"{name} {value} is not a multiple of {of} {unit}", cure=f"The nearest for {name} is {nearest}."
    )


def require_training_numbers(name: str, values: Any) -> None:
    """What pre-training and fine-tuning have in common."""
    for part in ("steps", "learning_rate", "checkpoint_every"):
        require_positive(f"{name}.{part}", getattr(values, part))
    for part in ("batch", "weight_decay", "warmup_steps"):
        number = getattr(values, part)
        require(number >= 0, f"{name}.{part} is {number}", "Give 0 or a number above it.")
