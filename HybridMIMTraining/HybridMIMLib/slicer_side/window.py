"""Slicer's window, where there is one: scripts with slicer-core alone have none."""

from __future__ import annotations

import slicer

__all__ = ["let_window_live"]


def let_window_live() -> None:
    """Let the window answer its user, who else thinks that Slicer hangs; for loops that wait."""
    application = getattr(slicer, "app", None)
    if application is not None:
        application.processEvents()
