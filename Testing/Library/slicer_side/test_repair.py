"""Packages that are broken are found and repaired, and what we brought goes again; pip is real, its Python a copy."""

from __future__ import annotations

import base64
import hashlib
import shutil
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

from small_runs import finish

from HybridMIMLib.errors import RunError, SettingsError
from HybridMIMLib.slicer_side import import_check, installed, repair
from HybridMIMLib.slicer_side.environment import packages
from HybridMIMLib.slicer_side.installed import log_lines, note, note_change, ours
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED
from HybridMIMLib.slicer_side.repair import PackageCheck, PipWork, plan_removal, remove
from HybridMIMLib.slicer_side.repair import repair as start_repair


def make_wheel(folder: Path, name: str, version: str = "1.0", code: str = "", needs: tuple[str, ...] = ()) -> Path:
    """A wheel of one file."""
    info = f"{name}-{version}.dist-info"
    requires = "".join(f"Requires-Dist: {one}\n" for one in needs)
    files = {
        f"{name}.py": code or f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record.append(f"{path},sha256={digest},{len(text.encode())}")
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""])
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


class Slicer:
    """A Python of its own that stands for Slicer's, with the wheels that can be had."""

    def __init__(self, folder: Path) -> None:
        self.wheels = folder / "wheels"
        self.wheels.mkdir(parents=True)
        venv.create(folder / "python", with_pip=False)
        self.python = next(folder.glob("python/bin/python"))
        self.packages = next(folder.glob("python/lib/*/site-packages"))
        self.pip = [sys.executable, "-m", "pip", "--python", str(self.python), "--no-input"]

    def install(self, *names: str, version: str = "1.0") -> None:
        """As pip would, in no time."""
        for name in names:
            for old in self.packages.glob(f"{name}-*.dist-info"):
                shutil.rmtree(old)
            with zipfile.ZipFile(self.wheels / f"{name}-{version}-py3-none-any.whl") as wheel:
                wheel.extractall(self.packages)

    def versions(self) -> dict[str, str]:
        return {one.metadata["Name"]: one.version for one in metadata.distributions(path=[str(self.packages)])}


@pytest.fixture
def slicer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slicer]:
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path / "workspace"))
    made = Slicer(tmp_path / "slicer")
    monkeypatch.setattr(installed, "SEARCH_PATH", [str(made.packages)])
    monkeypatch.setattr(repair, "pip_command", lambda: made.pip)
    monkeypatch.setattr(repair, "constraints", lambda: [])
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.wheels))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    yield made


def test_only_what_we_brought_goes_and_nothing_that_others_need(slicer: Slicer, tmp_path: Path) -> None:
    make_wheel(slicer.wheels, "theirs", needs=("shared>=1",))
    for name in ("mine", "shared", "shipped"):
        make_wheel(slicer.wheels, name)
    make_wheel(slicer.wheels, "helper", needs=("mine", 'never; extra == "x"'))
    slicer.install("theirs", "shipped")
    before = installed.installed_versions()
    slicer.install("mine", "shared", "helper")
    note_change(before, installed.installed_versions())
    assert ours() == {"mine": "1.0", "shared": "1.0", "helper": "1.0"}
    (tmp_path / "workspace" / "runs" / "a").mkdir(parents=True)
    (tmp_path / "workspace" / "runs" / "a" / "checkpoint.pt").write_bytes(bytes(3_000_000))
    plan = plan_removal()
    assert set(plan.packages) == {"mine", "helper"} and plan.kept == {"shared": "theirs needs it"}
    assert plan.data == {tmp_path / "workspace" / "runs": 3_000_000} and plan.bytes > 100
    question = plan.question()
    assert "helper 1.0\nmine 1.0" in question and "shared stays: theirs needs it." in question
    assert "runs (3.0 MB)" in question
    work = remove(plan)
    assert finish(work, 60).state == FINISHED, work.message
    assert set(slicer.versions()) == {"theirs", "shared", "shipped"}
    assert (tmp_path / "workspace" / "runs" / "a" / "checkpoint.pt").exists()
    assert set(ours()) == {"shared"}
    log = "\n".join(log_lines())
    assert "Removing helper, mine" in log and "removed mine 1.0" in log and "Successfully uninstalled mine" in log
    with pytest.raises(SettingsError, match="nothing that could be removed"):
        remove(plan_removal())


def test_models_and_runs_go_only_when_asked(slicer: Slicer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "pip_command", lambda: [sys.executable, "-c", "print('all right')"])
    make_wheel(slicer.wheels, "mine")
    slicer.install("mine")
    note_change({}, installed.installed_versions())
    for name in ("runs", "models"):
        (tmp_path / "workspace" / name / "a").mkdir(parents=True)
    plan = plan_removal()
    with pytest.raises(SettingsError, match="not among what can be removed"):
        remove(plan, [tmp_path])
    assert finish(remove(plan, [tmp_path / "workspace" / "runs"]), 60).state == FINISHED
    assert not (tmp_path / "workspace" / "runs").exists() and (tmp_path / "workspace" / "models" / "a").exists()


def test_what_somebody_else_has_upgraded_is_not_ours_any_more(slicer: Slicer) -> None:
    make_wheel(slicer.wheels, "mine")
    slicer.install("mine")
    note_change({}, installed.installed_versions())
    make_wheel(slicer.wheels, "mine", "2.0")
    slicer.install("mine", version="2.0")
    assert ours() == {} and plan_removal().packages == {}


def test_a_broken_package_is_installed_anew(slicer: Slicer) -> None:
    make_wheel(slicer.wheels, "mine")
    slicer.install("mine")
    note_change({}, installed.installed_versions())
    (slicer.packages / "mine.py").unlink()
    work = start_repair({"mine": "a file is missing"})
    assert finish(work, 60).state == FINISHED, work.message
    assert (slicer.packages / "mine.py").is_file() and work.message == "Repaired: mine==1.0."
    assert ours() == {"mine": "1.0"}, "it is still ours"
    assert any("mine" in line for line in work.progress.lines)


def test_pip_that_fails_says_why(slicer: Slicer, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(slicer.wheels, "mine")
    slicer.install("mine")
    (slicer.wheels / "mine-1.0-py3-none-any.whl").unlink()
    work = finish(start_repair({"mine": "x"}), 60)
    assert work.state == FAILED and "pip could not do it (No matching distribution found" in work.message
    assert slicer.versions() == {"mine": "1.0"}, "and what is there stays"
    lost = "import sys; print('WARNING: Temporary failure in name resolution'); sys.exit('ERROR: nothing found')"
    monkeypatch.setattr(repair, "pip_command", lambda: [sys.executable, "-c", lost])
    work = finish(start_repair({"mine": "x"}), 60)
    assert work.state == FAILED and "no connection to the internet. Connect this computer" in work.message


def test_what_is_not_ours_to_repair_is_told(slicer: Slicer) -> None:
    with pytest.raises(SettingsError, match="numpy came with Slicer and cannot be used. Install Slicer again"):
        start_repair({"numpy": "x", "monai": "y"})
    with pytest.raises(SettingsError, match="In the module PyTorch"):
        start_repair({"torch": "x"})
    with pytest.raises(SettingsError, match="No package is broken"):
        start_repair({})


def test_pip_can_be_stopped(slicer: Slicer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "pip_command", lambda: [sys.executable, "-c", "import time; time.sleep(60)"])
    work = PipWork([], "sleeping", lambda: "never")
    assert work.update()
    work.cancel()
    with pytest.raises(RunError, match="Stopped"):
        work.wait()


def test_packages_are_imported_in_a_process_that_may_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in {
        "fine": "",
        "lost": "",
        "wrong": "raise RuntimeError('no kernel')",
        "leaves": "import sys; sys.exit(3)",
        "deadly": "import os; os.kill(os.getpid(), 11)",
    }.items():
        with zipfile.ZipFile(make_wheel(tmp_path, name, code=code)) as archive:
            archive.extractall(tmp_path / "site")
    (tmp_path / "site" / "lost.py").unlink()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    check = PackageCheck(["fine", "lost", "wrong", "leaves", "absent"])
    assert finish(check, 60).state == FINISHED
    assert set(check.broken) == {"lost", "wrong", "leaves", "absent"}
    assert check.broken["lost"] == "1 of its files are missing, such as lost.py"
    assert "RuntimeError: no kernel" in check.broken["wrong"] and check.broken["absent"] == "it is not installed"
    check = PackageCheck(["fine", "deadly", "wrong"])
    assert finish(check, 60).state == FINISHED
    assert set(check.broken) == {"deadly"} and "importing it ends the process" in check.broken["deadly"]


def test_here_no_file_is_missing() -> None:
    for one in ("nibabel", "einops", "PyYAML"):
        assert import_check.missing_files(one) == []
    states = {one.name: (one.found != "", one.state) for one in packages()}
    assert states["torch"] == (True, "ready") and set(states.values()) == {(True, "ready")}


def test_a_damaged_list_claims_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path))
    for damage in ("", "[", "[1]", f'{{"{sys.prefix}": 3}}', '{"/another/slicer": {"numpy": "1"}}'):
        (tmp_path / "installed.json").write_text(damage)
        assert ours() == {}
    note("a\nb")
    assert log_lines()[-1].endswith("a b")
