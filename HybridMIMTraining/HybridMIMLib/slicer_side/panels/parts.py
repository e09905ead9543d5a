"""What the sections with a ``.ui`` file of their own have in common."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import slicer.util

PARTS = {"batchSection": "FolderOfScans", "learnSection": "CorrectAndLearn", "environmentSection": "Environment"}
"""Files of the folder ``UI``, by the section that they fill."""

_WIDGETS = ("cancelButton", "logTextEdit", "messageLabel", "progressBar", "statusLabel")
"""What :class:`~HybridMIMLib.slicer_side.panel.JobPanel` asks for."""


def load_parts(panel: Any, folder: str | Path) -> None:
    """Fill the sections of a panel.

    Args:
        panel: the widget with the sections.
        folder: of the ``.ui`` files.
    """
    for section, name in PARTS.items():
        whole = slicer.util.findChild(panel, section)
        whole.layout().addWidget(slicer.util.loadUI(str(Path(folder) / f"{name}.ui")))
        whole.visible = True


def job_widgets(ui: Any, prefix: str) -> SimpleNamespace:
    """The widgets ``PREFIXProgressBar``, ``PREFIXCancelButton`` … under the names that a ``JobPanel`` knows."""
    return SimpleNamespace(**{name: getattr(ui, f"{prefix}{name[0].upper()}{name[1:]}") for name in _WIDGETS})


def show_in_slices(volume: Any) -> None:
    """Show a volume in the slice views, all of it in sight."""
    slicer.util.setSliceViewerLayers(background=volume)
    slicer.util.resetSliceViews()
