"""The Segmentation module without the library, as with a developer's module paths that lack the other folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {testing!r})
from SlicerHost import problems, start
host = start()
# What the stand-in itself uses of the library is forgotten: Slicer has never heard of it.
for name in [name for name in sys.modules if name.split(".")[0] == "HybridMIMLib"]:
    del sys.modules[name]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path = [path for path in sys.path if "HybridMIMTraining" not in path]
{more}
host.load_module(Path({module!r}))
panel = host.open_module("HybridMIMSegmentation")
label = panel.parent.findChild(qt.QLabel, "problemLabel") if (qt := sys.modules["qt"]) else None
print("PROBLEM:", " ".join(label.text.split()) if label else "none")
host.picture(Path({picture!r}))
host.open_module("HybridMIMSegmentation")
host.close_scene()
host.close()
print("LEFT:", problems.take())
"""


def run(tmp_path: Path, more: str = "") -> str:
    program = PROGRAM.format(
        testing=str(REPOSITORY / "Testing"),
        module=str(REPOSITORY / "HybridMIMSegmentation" / "HybridMIMSegmentation.py"),
        picture=str(tmp_path / "panel.png"),
        more=more,
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_clear_message_says_what_to_add(tmp_path: Path) -> None:
    said = run(tmp_path)
    assert f"add this folder to the additional module paths, then restart Slicer: {REPOSITORY}" in said
    assert f"{REPOSITORY / 'HybridMIMTraining'}\n" in said
    assert "LEFT: []" in said


def test_with_the_other_folder_on_the_path_there_is_none(tmp_path: Path) -> None:
    said = run(tmp_path, f"sys.path.append({str(REPOSITORY / 'HybridMIMTraining')!r})")
    assert "PROBLEM: none" in said and "LEFT: []" in said
