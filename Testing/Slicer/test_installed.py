"""The extension configured and installed by CMake against the stand-in of Slicer's macros, then used from there."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from repository import REPOSITORY, files_in

HOST = REPOSITORY / "Testing" / "SlicerHost"
SCRIPTED = Path("lib/Slicer-5.12/qt-scripted-modules")
MODULES = ("HybridMIMTraining", "HybridMIMSegmentation")
ENTRIES = (
    *(f"py_{module}" for module in MODULES),
    *(f"py_nomainwindow_qSlicer{module}ModuleGenericTest" for module in MODULES),
    "py_HybridMIMInsideSlicerTest",
)
"""What CTest knows: self-tests, generic tests, and those of InsideSlicer."""


def cmake(*arguments: object, program: str = "cmake", **variables: str) -> subprocess.CompletedProcess[str]:
    """CMake, or CTest, of the test requirements, or of the machine; without one the test fails.

    Args:
        variables: of the environment.
    """
    # Of the wheel, and not its script beside Python, which does not bear that a virtual environment was moved.
    of_wheel = importlib.util.find_spec("cmake")
    folder = Path(str(of_wheel.origin)).parent / "data" / "bin" if of_wheel else None
    found = (folder and shutil.which(program, path=str(folder))) or shutil.which(program)
    assert found, f"{program} is neither in the environment nor on the machine: pip install cmake"
    command, environment = [found, *map(str, arguments)], {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def configure(source: Path, build: Path) -> subprocess.CompletedProcess[str]:
    """Nothing is compiled, so neither a compiler nor a build tool is looked for."""
    return cmake(
        *("-S", source, "-B", build, "-G", "Unix Makefiles", f"-DCMAKE_MAKE_PROGRAM={sys.executable}"),
        *(f"-DSlicer_DIR={HOST / 'cmake'}", f"-DCMAKE_TOOLCHAIN_FILE={HOST / 'cmake' / 'toolchain.cmake'}"),
        *("-DBUILD_TESTING=ON", f"-DSlicer_LAUNCHER_EXECUTABLE={sys.executable};{HOST / 'launcher.py'}"),
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    done = configure(REPOSITORY, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extension")
    done = cmake("--install", built, "--prefix", folder)
    assert done.returncode == 0, done.stderr
    return folder


def shipped() -> dict[str, Path]:
    """Every file of the modules, by the path at which Slicer has it."""
    files = [file for file in files_in(*MODULES) if file.name != "CMakeLists.txt"]
    return {file.relative_to(file.parts[0]).as_posix(): REPOSITORY / file for file in files}


def test_every_file_lands_where_slicer_has_it(installed: Path) -> None:
    found = {file.relative_to(installed).as_posix() for file in installed.rglob("*") if file.is_file()}
    expected = {(SCRIPTED / name).as_posix() for name in shipped()}
    assert found == expected | {"share/Slicer-5.12/HybridMIM.s4ext"}
    assert all((installed / SCRIPTED / name).read_bytes() == file.read_bytes() for name, file in shipped().items())


def test_what_the_extensions_manager_reads(installed: Path) -> None:
    text = (installed / "share/Slicer-5.12/HybridMIM.s4ext").read_text(encoding="utf-8")
    lines = dict(line.split(" ", 1) for line in text.splitlines())
    assert lines["depends"] == "PyTorch" and lines["contributors"] == "The HybridMIM contributors"
    assert lines["description"].startswith("Train your own 3D segmentation")


def test_ctest_knows_the_tests_of_the_modules(built: Path) -> None:
    done = cmake("--test-dir", built, "--show-only=json-v1", program="ctest")
    tests = {one["name"]: one["command"] for one in json.loads(done.stdout)["tests"]}
    assert set(tests) == set(ENTRIES)
    for name, command in tests.items():
        assert command[command.index("--additional-module-path") + 1] == str(built / SCRIPTED), name


def run_ctest(built: Path, *arguments: object, **variables: str) -> tuple[str, dict[str, str]]:
    """Run registered tests as a build of Slicer does; what was said, and the state of each test by its name."""
    report = built / "report.xml"
    asked = ("--test-dir", built, "--output-junit", report, "--output-on-failure", "--timeout", 600, *arguments)
    done = cmake(*asked, program="ctest", **variables)
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return done.stdout + done.stderr, {case.attrib["name"]: case.attrib["status"] for case in cases}


@pytest.mark.parametrize("name", ENTRIES)
def test_what_ctest_knows_runs_and_passes(built: Path, tmp_path: Path, name: str) -> None:
    """From the build tree."""
    said, states = run_ctest(built, "-R", f"^{name}$", HYBRIDMIM_WORKSPACE=str(tmp_path / "workspace"))
    assert states == {name: "run"}, said
    assert not (tmp_path / "workspace" / "runs").exists(), "it works in a workspace of its own"


def test_ctest_says_of_a_test_that_it_was_skipped(built: Path, tmp_path: Path) -> None:
    """In a Slicer without PyTorch, such as that of the machines that build extensions."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_TORCH)
    said, states = run_ctest(built, "-R", "py_HybridMIM", PYTHONPATH=str(tmp_path))
    assert len(states) == 3 and set(states.values()) == {"notrun"}, said
    assert said.count("***Skipped") == 3


def test_ctest_says_that_a_test_failed_when_another_was_skipped(built: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_TORCH)
    script = built / SCRIPTED / "HybridMIMTraining.py"
    before = script.read_text(encoding="utf-8")
    script.write_text(before.replace("refuse_without_scans(self", "refuse_without_scans(None"), encoding="utf-8")
    try:
        said, states = run_ctest(built, "-R", "py_HybridMIMTraining", PYTHONPATH=str(tmp_path))
    finally:
        script.write_text(before, encoding="utf-8")
    assert states == {"py_HybridMIMTraining": "fail"}, said


WITHOUT_TORCH = """
from importlib import metadata
whole = metadata.version
def version(name):
    if name == "torch":
        raise metadata.PackageNotFoundError(name)
    return whole(name)
metadata.version = version
"""
"""As ``sitecustomize.py``: the packages are looked up without importing them."""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ("HybridMIMSegmentation", "Resources/UI/FolderOfScans.ui", "Resources/UI/Gone.ui"),
            "Gone.ui, which does not",
        ),
        (("HybridMIMSegmentation", "  NAME ", "  NAMED "), "unknown keywords: NAMED"),
        ((".", 'set(EXTENSION_DEPENDS "PyTorch")', ""), "EXTENSION_DEPENDS is not set"),
        ((".", "/LICENSE.txt", "/LICENCE.txt"), "EXTENSION_LICENSE_FILE points to"),
    ],
)
def test_what_slicer_would_not_take_is_refused(tmp_path: Path, change: tuple[str, str, str], words: str) -> None:
    source = tmp_path / "source"
    for name in ("CMakeLists.txt", "README.md", "LICENSE.txt", "Testing/InsideSlicer", *MODULES):
        file, copy = REPOSITORY / name, source / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(file, copy) if file.is_dir() else shutil.copy(file, copy)
    folder, old, new = change
    lists = source / folder / "CMakeLists.txt"
    text = lists.read_text(encoding="utf-8")
    assert old in text
    lists.write_text(text.replace(old, new, 1), encoding="utf-8")
    done = configure(source, tmp_path / "build")
    assert done.returncode != 0 and words in " ".join(done.stderr.split())


def test_two_modules_bring_no_file_of_one_name(tmp_path: Path) -> None:
    """In Slicer the resources of both meet in one folder."""
    lists = (
        "cmake_minimum_required(VERSION 3.16)\nproject(Two)\nfind_package(Slicer REQUIRED)\n"
        "include(${Slicer_USE_FILE})\nadd_subdirectory(One)\nadd_subdirectory(Other)\n"
    )
    (tmp_path / "CMakeLists.txt").write_text(lists)
    for name in ("One", "Other"):
        (tmp_path / name / "Resources").mkdir(parents=True)
        (tmp_path / name / "Resources" / "Same.ui").touch()
        call = f"slicerMacroBuildScriptedModule(NAME {name} RESOURCES Resources/Same.ui)\n"
        (tmp_path / name / "CMakeLists.txt").write_text(call)
    done = configure(tmp_path, tmp_path / "build")
    assert done.returncode != 0 and "Other and One both bring Resources/Same.ui" in done.stderr


SCRIPT = REPOSITORY / "Testing" / "InsideSlicer" / "run_in_slicer.py"


def launch(installed: Path, summary: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Start the stand-in with the installed modules, and the source tree out of reach."""
    command = [sys.executable, HOST / "launcher.py", "--no-splash", "--no-main-window"]
    command += ["--additional-module-paths", installed / SCRIPTED, *arguments]
    environment = {**os.environ, **variables, "HYBRIDMIM_TEST_SUMMARY": str(summary)}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)


def test_both_modules_work_from_the_installed_folder(installed: Path, tmp_path: Path) -> None:
    """The tests for a running Slicer, in the stand-in; CTest has run the self-tests above, from the same files."""
    summary, whole_way = tmp_path / "summary.json", {"HYBRIDMIM_TEST_FILES": "HybridMIMInsideSlicerTest"}
    done = launch(installed, summary, "--python-script", SCRIPT, **whole_way)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(summary.read_text(encoding="utf-8"))
    assert counts["ran"] >= 6 and not counts["failed"] and not counts["skipped"]


def test_a_test_that_is_skipped_in_slicer_is_a_failure(installed: Path, tmp_path: Path) -> None:
    code = (
        "import runpy; from HybridMIMLib.slicer_side import environment; "
        f"environment.missing_packages = lambda: ['torch']; runpy.run_path({str(SCRIPT)!r})"
    )
    done = launch(installed, tmp_path / "summary.json", "--python-code", code)
    assert done.returncode == 1
    counts = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert counts["ran"] >= 10 and "these packages are missing: torch" in counts["skipped"].values()
