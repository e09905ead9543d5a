"""The files of the repository, for tests of what is no Python package."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[1]


def text_of(name: str) -> str:
    """What a file of the repository holds."""
    return (REPOSITORY / name).read_text(encoding="utf-8")


def files_in(*folders: str) -> list[Path]:
    """Every file in these folders of the repository, as paths from its top, without what tools leave behind."""
    left = re.compile(r"\..*|__pycache__|.*\.egg-info|build|hybridmim-demo")
    found: list[Path] = []
    for folder in folders:
        for place, inner, files in os.walk(REPOSITORY / folder):
            inner[:] = [name for name in inner if not left.fullmatch(name)]
            found += [Path(place, name).relative_to(REPOSITORY) for name in files if not left.fullmatch(name)]
    return found


def load_script(name: str) -> ModuleType:
    """A file of the repository as a module, such as ``Resources/render_icons.py``."""
    file = REPOSITORY / name
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module
