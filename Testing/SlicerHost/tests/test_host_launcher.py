"""The launcher: it loads modules by their folder, and ends with an error whenever something went wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).resolve().parents[1] / "launcher.py"

MODULE = """
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleTest


class Hello(ScriptedLoadableModule):
    def __init__(self, parent):
        super().__init__(parent)
        parent.title = "Hello"


class HelloTest(ScriptedLoadableModuleTest):
    def test_passes(self):
        pass
"""


def launch(tmp_path: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Slicer with a folder that holds the module Hello, and one file that is none."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "Hello.py").write_text(MODULE)
    (folder / "helper.py").write_text("raise RuntimeError('only modules are imported')")
    arguments = ["--no-splash", "--no-main-window", "--additional-module-path", str(folder), "--python-code", code]
    return subprocess.run([sys.executable, str(LAUNCHER), *arguments], capture_output=True, text=True, check=False)


def test_modules_of_the_folder_are_loaded_and_their_tests_run(tmp_path: Path) -> None:
    code = "import slicer.testing; print(slicer.modules.hello.title); slicer.testing.runUnitTest([], 'Hello')"
    done = launch(tmp_path, code)
    assert done.returncode == 0, done.stderr
    # Slicer's empty base class, which the module imports, is no test of it.
    assert "Hello" in done.stdout and "Ran 1 test" in done.stderr


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ValueError('what went wrong')", "what went wrong"),
        ("import slicer.testing; slicer.testing.runUnitTest([], 'json')", "json has no test"),
        ("import qt; qt.QTimer.singleShot(0, lambda: 1 / 0); import slicer; slicer.app.processEvents()", "division"),
    ],
)
def test_what_goes_wrong_is_an_error(tmp_path: Path, code: str, words: str) -> None:
    done = launch(tmp_path, code)
    assert done.returncode == 1 and words in done.stderr


def test_the_status_that_was_asked_for(tmp_path: Path) -> None:
    assert launch(tmp_path, "import slicer.util; slicer.util.exit(3)").returncode == 3
