"""The stand-in started as Slicer is: ``python launcher.py --additional-module-path FOLDER --python-code CODE``.

Takes the arguments of Slicer's launcher that tests use, loads every module in the folders of modules, runs the code
or the script, and ends with 1 if that raised, if it asked for another status than 0 with ``slicer.util.exit``, or if
something went wrong unseen (:mod:`SlicerHost.problems`). The library is the one in the folders of modules, however
this Python finds another one.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import runpy
import sys
import traceback
import types
import unittest
from collections.abc import Sequence
from pathlib import Path

TESTING = Path(__file__).resolve().parents[1]
IGNORED = ("--no-splash", "--ignore-slicerrc", "--no-main-window", "--disable-cli-modules", "--testing")


def main(arguments: Sequence[str] | None = None) -> int:
    """Start, run, quit; returns the exit status."""
    given = _parse(arguments)
    folders = [folder.resolve() for folder in given.module_paths]
    _look_for_modules_in(folders)
    from SlicerHost import problems, start

    host = start()
    statuses: list[int] = []
    _offer_what_the_launcher_has(statuses)
    try:
        for file in _modules_in(folders):
            host.load_module(file)
        _run(given)
    except BaseException:
        traceback.print_exc()
        statuses.append(1)
    host.close()
    for one in problems.take():
        print(f"{one.kind}: {one.text}", file=sys.stderr)
        statuses.append(1)
    return max(statuses, default=0)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    for name in IGNORED:
        parser.add_argument(name, action="store_true", help="taken, and without effect")
    parser.add_argument("--additional-module-path", dest="module_paths", type=Path, action="append", default=[])
    parser.add_argument("--additional-module-paths", dest="module_paths", type=Path, nargs="+", action="extend")
    parser.add_argument("--python-code", default="")
    parser.add_argument("--python-script", type=Path)
    return parser.parse_args(arguments)


def _look_for_modules_in(folders: list[Path]) -> None:
    """Slicer knows its own folders of modules, and no checkout; the stand-in itself needs the library, too."""
    if not any(_has_library(folder) for folder in folders):
        sys.path = [*map(str, folders), str(TESTING), *sys.path[1:]]
        return
    sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
    others = [path for path in sys.path[1:] if not _has_library(Path(path or "."))]
    sys.path = [*map(str, folders), str(TESTING), *others]


def _has_library(folder: Path) -> bool:
    return (folder / "HybridMIMLib").is_dir()


def _modules_in(folders: list[Path]) -> list[Path]:
    """The files with a class of their own name."""
    files = (file for folder in folders for file in sorted(folder.glob("*.py")))
    return [file for file in files if file.stem in _classes_of(file)]


def _classes_of(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def _offer_what_the_launcher_has(statuses: list[int]) -> None:
    import slicer
    import slicer.util

    testing = types.ModuleType("slicer.testing")
    testing.runUnitTest = _run_unit_test  # type: ignore[attr-defined]
    sys.modules["slicer.testing"] = slicer.testing = testing
    slicer.util.exit = lambda status=0: statuses.append(int(status))


def _run_unit_test(path: str | list[str], name: str) -> None:
    sys.path.extend([path] if isinstance(path, str) else path)
    module = importlib.import_module(name)
    # Slicer's base class, which module files import, would be run too; in Slicer it passes and tests nothing.
    own = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == name]
    cases = [one for one in own if issubclass(one, unittest.TestCase)]
    suite = unittest.TestSuite(map(unittest.defaultTestLoader.loadTestsFromTestCase, cases))
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    if not result.testsRun:
        raise AssertionError(f"{name} has no test")
    if not result.wasSuccessful():
        raise AssertionError(f"tests of {name} failed")


def _run(given: argparse.Namespace) -> None:
    if given.python_code:
        exec(compile(given.python_code, "--python-code", "exec"), {"__name__": "__main__"})
    if given.python_script:
        runpy.run_path(str(given.python_script), run_name="__main__")


if __name__ == "__main__":
    sys.exit(main())
