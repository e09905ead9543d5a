"""Both modules in the stand-in for Slicer, with a workspace of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from SlicerHost import Host
from SlicerHost.fixtures import host
from small_runs import UNICODE_NAME

__all__ = ["host"]

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = ("HybridMIMTraining", "HybridMIMSegmentation")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs and models are kept; with a name that is hard on programs."""
    folder = tmp_path / UNICODE_NAME
    folder.mkdir()
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(folder))
    return folder


@pytest.fixture
def load_modules() -> Callable[[Host], Host]:
    """Load both modules into a Slicer."""

    def load(into: Host) -> Host:
        for name in MODULES:
            into.load_module(REPOSITORY / name / f"{name}.py")
        return into

    return load


@pytest.fixture
def slicer_with_modules(host: Host, workspace: Path, load_modules: Callable[[Host], Host]) -> Host:
    """Slicer with both modules loaded, none of them open."""
    return load_modules(host)


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Where pictures are kept, to be looked at."""
    folder = REPOSITORY / "build" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def picture(host: Host, pictures: Path) -> Callable[[str], None]:
    """Save the open panel as ``build/pictures/NAME.png``; it must show something."""

    def save(name: str) -> None:
        file = host.picture(pictures / f"{name}.png")
        pixels = np.asarray(Image.open(file).convert("L"))
        assert pixels.shape[1] <= 440, "wider than Slicer's panel: something in it cannot be narrow"
        assert len(np.unique(pixels)) > 10, "the picture is empty"

    return save
