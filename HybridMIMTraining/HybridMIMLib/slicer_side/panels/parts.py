"""What the sections with a ``.ui`` file of their own have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import slicer.util

_HERE = Path(__file__).parent
SHARED = {"environmentSection": "Environment"}
"""Files beside this one, by the section that they fill: those of both panels."""
SEGMENTATION = {"batchSection": "FolderOfScans", "learnSection": "CorrectAndLearn"}
TRAINING = {
    "samplesSection": "Samples",
    "dataSection": "Data",
    "planSection": "Plan",
    "workSection": "Work",
    "runsSection": "Runs",
    "elsewhereSection": "Elsewhere",
}
"""Files of a module's folder ``UI``, by the section of its panel that they fill."""

_WIDGETS = ("cancelButton", "logTextEdit", "messageLabel", "progressBar", "statusLabel")
"""What :class:`~HybridMIMLib.slicer_side.panel.JobPanel` asks for."""


def load_parts(panel: Any, folder: str | Path, parts: Mapping[str, str]) -> None:
    """Fill the sections of a panel.

    Args:
        panel: the widget with the sections.
        folder: of the module's ``.ui`` files.
        parts: :data:`SEGMENTATION` or :data:`TRAINING`; those of both panels come along.
    """
    files = {section: Path(folder) / f"{name}.ui" for section, name in parts.items()}
    files |= {section: _HERE / f"{name}.ui" for section, name in SHARED.items()}
    for section, file in files.items():
        whole = slicer.util.findChild(panel, section)
        whole.layout().addWidget(slicer.util.loadUI(str(file)))
        whole.visible = True


def job_widgets(ui: Any, prefix: str) -> SimpleNamespace:
    """The widgets ``PREFIXProgressBar``, ``PREFIXCancelButton`` … under the names that a ``JobPanel`` knows."""
    return SimpleNamespace(**{name: getattr(ui, f"{prefix}{name[0].upper()}{name[1:]}") for name in _WIDGETS})


def show_in_slices(volume: Any) -> None:
    """Show a volume in the slice views, all of it in sight."""
    slicer.util.setSliceViewerLayers(background=volume)
    slicer.util.resetSliceViews()
