"""The section Environment: real buttons, a real probe, and packages that are missing, broken and removed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from SlicerHost import Host, dialogs, packages
from small_panel import panel

from HybridMIMLib.slicer_side import device_probe, environment, installed, repair
from HybridMIMLib.slicer_side.environment import Package

__all__ = ["panel"]


@pytest.fixture
def model() -> None:
    """None is needed here."""


@pytest.fixture
def requirements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Let the library need these packages in place of its own."""

    def use(text: str) -> None:
        (tmp_path / "requirements.txt").write_text(text)
        monkeypatch.setattr(environment, "REQUIREMENTS", tmp_path / "requirements.txt")

    use("einops\npackaging>=20\n")
    return use


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a small program stand for pip, which finds its arguments in ``sys.argv``."""

    def use(program: str) -> None:
        monkeypatch.setattr(repair, "pip_command", lambda: [sys.executable, "-c", f"import sys\n{program}"])

    return use


def opened(host: Host, panel: Any) -> Any:
    """The section, open and filled."""
    panel.ui.modelSection.collapsed = panel.ui.inputSection.collapsed = True
    panel.ui.environmentSection.collapsed = False
    section = panel.content.environment
    settle(host, section)
    return section


def settle(host: Host, section: Any, seconds: float = 60) -> None:
    """Until nothing is at work any more, nor is a question open."""
    host.wait_until(lambda: not section.jobs.busy, seconds, "the end of the work")
    host.process_events(0.05)
    host.wait_until(lambda: not section.jobs.busy and not section.lookups.busy, seconds, "what is installed")


def rows(panel: Any) -> list[list[str]]:
    table = panel.ui.environmentTable
    return [[table.item(row, column).text() for column in range(3)] for row in range(table.rowCount)]


def said(panel: Any) -> str:
    return str(panel.ui.environmentMessageLabel.text)


def test_what_is_installed_is_listed_when_the_section_is_opened(
    host: Host, panel: Any, requirements: Any, picture: Callable[[str], None]
) -> None:
    requirements("einops\npackaging>=999\nnot-there>=2\n")
    assert panel.ui.environmentTable.rowCount == 0, "nothing is looked up before"
    opened(host, panel)
    assert [row[0] for row in rows(panel)] == ["einops", "packaging", "not-there"]
    assert rows(panel)[2] == ["not-there", "missing", ">=2"] and rows(panel)[0][2] == "any"
    assert panel.ui.environmentSummaryLabel.text == "Not ready: packaging, not-there. Press Install."
    assert panel.ui.environmentInstallButton.enabled
    assert "nothing that could be removed" in panel.ui.environmentRemoveButton.toolTip
    picture("environment missing")


def test_the_device_is_tested_by_a_process_of_its_own(host: Host, panel: Any, picture: Callable[[str], None]) -> None:
    section = opened(host, panel)
    assert not panel.ui.environmentInstallButton.enabled
    assert panel.ui.environmentInstallButton.toolTip == "Everything is installed."
    picture("environment idle")
    panel.ui.environmentTestButton.click()
    assert not panel.ui.environmentTestButton.enabled and panel.ui.environmentCancelButton.enabled
    assert not section.changes, "packages stay as they are: other sections may go on"
    picture("environment working")
    settle(host, section)
    assert "cpu, CPU" in panel.ui.environmentDeviceLabel.text and "works" in panel.ui.environmentDeviceLabel.text
    assert "GB free" in panel.ui.environmentDeviceLabel.text
    picture("environment done")


def test_a_driver_that_crashes_is_told(
    host: Host, panel: Any, requirements: Any, tmp_path: Path, monkeypatch: Any, picture: Callable[[str], None]
) -> None:
    (tmp_path / "stub_probe.py").write_text("import os; os.kill(os.getpid(), 11)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(device_probe, "_MODULE", "stub_probe")
    section = opened(host, panel)
    panel.ui.environmentTestButton.click()
    settle(host, section)
    assert "crashed by the system" in said(panel) and "not known" in panel.ui.environmentDeviceLabel.text
    picture("environment failed")


def test_without_pytorch_no_device_is_tested(
    host: Host, panel: Any, requirements: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from HybridMIMLib.slicer_side.panels import environment_section

    monkeypatch.setattr(environment_section, "packages", lambda: [Package("torch", ">=2", "", environment.MISSING)])
    opened(host, panel)
    assert "PyTorch is missing" in panel.ui.environmentTestButton.toolTip
    assert not panel.ui.environmentTestButton.enabled
    assert "Nothing is installed yet" in panel.ui.environmentRepairButton.toolTip


def test_install_asks_first(host: Host, panel: Any, requirements: Any) -> None:
    requirements("einops\nnot-there>=2\n")
    section = opened(host, panel)
    dialogs.announce("message", "Cancel")
    panel.ui.environmentInstallButton.click()
    settle(host, section)
    assert "These packages are missing: not-there>=2. Press the button again" in said(panel)
    assert packages.calls() == []
    dialogs.announce("message", "OK")
    packages.announce("installed")
    panel.ui.environmentInstallButton.click()
    settle(host, section)
    assert said(panel).startswith("Installed.") and packages.calls()[0].requirements == ("not-there>=2",)
    assert not panel.ui.environmentLogTextEdit.isVisible()
    panel.ui.environmentLogButton.click()
    assert "declined to install not-there>=2" in panel.ui.environmentLogTextEdit.plainText


def test_offline_is_told(host: Host, panel: Any, requirements: Any) -> None:
    requirements("not-there\n")
    section = opened(host, panel)
    dialogs.announce("message", "OK")
    packages.announce(RuntimeError("[Errno -3] Temporary failure in name resolution"))
    panel.ui.environmentInstallButton.click()
    settle(host, section)
    assert "no connection to the internet. Connect this computer" in said(panel)


def test_what_is_broken_is_found_and_installed_anew_after_a_question(
    host: Host, panel: Any, requirements: Any, pip: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    section = opened(host, panel)
    panel.ui.environmentRepairButton.click()
    assert "Wait until the packages" in section.changes == panel.ui.applyButton.toolTip
    settle(host, section)
    assert said(panel) == "All packages can be used."
    # Found before the real one, and broken.
    (tmp_path / "einops.py").write_text("raise RuntimeError('half a file')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(environment.__file__).parents[2]}")
    dialogs.announce("message", "Cancel")
    panel.ui.environmentRepairButton.click()
    settle(host, section)
    assert "half a file" in dialogs.shown()[-1]
    assert "broken" in rows(panel)[0][1] and "Broken: einops" in panel.ui.environmentSummaryLabel.text
    pip("print('did', sys.argv[1:])")
    dialogs.announce("message", "OK")
    panel.ui.environmentRepairButton.click()
    host.wait_until(lambda: "Repaired: einops" in said(panel), 30, "the repair")
    settle(host, section)
    assert "--force-reinstall" in "\n".join(installed.log_lines()), "pip was called, and what it said is kept"
    assert "broken" not in rows(panel)[0][1]


def test_only_what_we_brought_is_removed_after_a_question(
    host: Host, panel: Any, requirements: Any, pip: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    place = tmp_path / "packages"
    for name in ("mine", "einops", "packaging"):
        (place / f"{name}-1.dist-info").mkdir(parents=True)
        (place / f"{name}-1.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    monkeypatch.setattr(installed, "SEARCH_PATH", [str(place)])
    installed.note_change({"einops": "1", "packaging": "1"}, installed.installed_versions())
    section = opened(host, panel)
    assert panel.ui.environmentRemoveButton.enabled
    dialogs.announce("message", "Cancel")
    panel.ui.environmentRemoveButton.click()
    settle(host, section)
    assert "mine 1" in dialogs.shown()[-1] and "einops" not in dialogs.shown()[-1]
    assert said(panel) == "Nothing was removed."
    pip(f"import shutil; print(sys.argv); shutil.rmtree({str(place / 'mine-1.dist-info')!r})")
    dialogs.announce("message", "OK")
    panel.ui.environmentRemoveButton.click()
    host.wait_until(lambda: said(panel).startswith("Removed 1 package"), 30, "the removal")
    settle(host, section)
    assert "uninstall" in "\n".join(installed.log_lines())
    assert not panel.ui.environmentRemoveButton.enabled


def test_pip_that_fails_says_why(
    host: Host, panel: Any, requirements: Any, pip: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    place = tmp_path / "packages" / "mine-1.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    monkeypatch.setattr(installed, "SEARCH_PATH", [str(place.parent)])
    installed.note_change({}, installed.installed_versions())
    section = opened(host, panel)
    pip("print('ERROR: the file is in use'); sys.exit(1)")
    dialogs.announce("message", "OK")
    panel.ui.environmentRemoveButton.click()
    host.wait_until(lambda: "in use" in said(panel), 30, "the failure")
    settle(host, section)
    assert "color" in panel.ui.environmentMessageLabel.styleSheet and panel.ui.environmentRemoveButton.enabled
