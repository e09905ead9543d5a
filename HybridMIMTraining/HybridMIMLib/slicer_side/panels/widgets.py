"""Small things that several sections do to widgets."""

from __future__ import annotations

from typing import Any

from HybridMIMLib.slicer_side.panels.explained import WORDS, explained


def allow(button: Any, reason: str, tip: str) -> None:
    """Enable a button, or say on it why it cannot be pressed.

    Args:
        reason: why not; empty if it can.
        tip: what it does; what its words mean is added.
    """
    button.enabled = not reason
    button.toolTip = reason or explained(tip, WORDS.get(str(button.objectName), ()))


def show(visible: bool, *widgets: Any) -> None:
    """Show widgets, or hide them."""
    for widget in widgets:
        widget.visible = visible


def say(label: Any, text: str) -> None:
    """Show a text, or, where there is none, not even an empty line."""
    label.text = text
    label.visible = bool(text)
