"""What is installed, what it can compute on, and where runs are kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from HybridMIMLib import __version__
from HybridMIMLib.config import Run, make_run, to_dict, workspace
from HybridMIMLib.files import read_json
from HybridMIMLib.presets import list_presets
from HybridMIMLib.runs import runs_folder, versions


def info(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """Versions, devices, presets and recipes, the folder of runs with the runs in it, and the settings.

    Returns:
        ``version``, ``versions``, ``devices``, ``presets``, ``workspace``, ``free_gb``, ``runs``, ``settings``.
    """
    folder = workspace()
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    return {
        "version": __version__,
        "versions": versions(),
        "devices": devices(),
        "presets": [{"name": one.name, "kind": one.kind, "summary": one.summary} for one in list_presets()],
        "workspace": str(folder),
        "free_gb": round(shutil.disk_usage(existing).free / 1e9, 1),
        "runs": [_describe(path) for path in sorted(runs_folder().glob("*/run.yaml"))],
        "settings": to_dict(make_run(run, settings)),
    }


def devices() -> list[str]:
    """Names of what torch can compute on here."""
    try:
        import torch
    except ImportError:
        return ["none: PyTorch is not installed"]
    found = [f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} used"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index}: {properties.name}, {properties.total_memory / 1e9:.0f} GB")
    if torch.backends.mps.is_available():
        found.append("mps: Apple GPU")
    return found


def _describe(settings_file: Path) -> dict[str, str]:
    path = settings_file.parent
    try:
        about = read_json(path / "about.json")
        command, began = str(about["command"]), str(about["began"])
    except (OSError, ValueError, KeyError):
        command, began = "?", "?"
    state = "finished" if (path / "result.json").exists() else "unfinished"
    return {"path": str(path), "command": command, "began": began, "state": state}
