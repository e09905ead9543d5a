"""Packages: what is missing is found without importing anything, and nothing is installed without consent."""

from __future__ import annotations

import sys
import types
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

import slicer

from HybridMIMLib.errors import DiskError, HybridMIMError
from HybridMIMLib.slicer_side import environment
from HybridMIMLib.slicer_side.environment import (
    Package,
    constraints,
    install_packages,
    missing_packages,
    packages,
    requirements,
    size_of,
)
from HybridMIMLib.slicer_side.installed import log_lines, ours


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the list and the log of what was installed are kept."""
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path / "workspace"))
    return tmp_path / "workspace"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Questions that were put to the user, who agrees."""
    texts: list[str] = []

    def agree(text: str, **_: object) -> bool:
        texts.append(text)
        return True

    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", agree)
    return texts


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """What was installed, by whom."""
    calls: list[tuple[str, list[str]]] = []
    pip = types.ModuleType("slicer.packaging")

    def pip_ensure(packages: list[str], constraints: Path, prompt_install: bool, requester: str) -> None:
        assert not prompt_install and requester == "HybridMIM"
        calls.append(("pip", packages))
        calls.append(("constraints", constraints.read_text().splitlines()))

    pip.pip_ensure = pip_ensure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "slicer.packaging", pip)
    monkeypatch.setattr(slicer, "packaging", pip, raising=False)
    torch = types.ModuleType("PyTorchUtils")
    torch.__spec__ = ModuleSpec("PyTorchUtils", None)

    class PyTorchUtilsLogic:
        def installTorch(self, askConfirmation: bool, torchVersionRequirement: str) -> object:  # noqa: N802
            calls.append(("torch", [torchVersionRequirement]))
            return object()

    torch.PyTorchUtilsLogic = PyTorchUtilsLogic  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "PyTorchUtils", torch)
    return calls


def test_here_nothing_is_missing() -> None:
    assert missing_packages() == []


def test_the_library_imports_nothing_that_is_not_required() -> None:
    from packaging.requirements import Requirement

    names = {Requirement(one).name.lower() for one in requirements()}
    assert {"torch", "monai", "pytorch-ignite", "simpleitk", "nibabel", "safetensors", "jsonargparse"} <= names
    for one in requirements():
        assert metadata.version(Requirement(one).name) in Requirement(one).specifier


def test_what_is_absent_or_too_old_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = tmp_path / "requirements.txt"
    listed.write_text("# a comment\nnumpy>=1\nnumpy>=999  # too new\n\nno-such-package-anywhere\n")
    monkeypatch.setattr(environment, "REQUIREMENTS", listed)
    assert missing_packages() == ["numpy>=999", "no-such-package-anywhere"]


def test_what_slicer_ships_stays_as_it_is() -> None:
    assert f"numpy=={metadata.version('numpy')}" in constraints()
    assert all("==" in line for line in constraints())


def test_torch_comes_through_its_extension_and_the_rest_through_pip(
    asked: list[str], installed: list[tuple[str, list[str]]]
) -> None:
    install_packages(["torch>=2.6,!=2.9.*", "monai>=1.5", "einops"])
    assert "monai>=1.5" in asked[0] and "MB" in asked[0]
    assert installed == [
        ("torch", [">=2.6,!=2.9.*"]),
        ("pip", ["monai>=1.5", "einops"]),
        ("constraints", constraints()),
    ]


def test_who_declines_gets_nothing(monkeypatch: pytest.MonkeyPatch, installed: list[tuple[str, list[str]]]) -> None:
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_, **__: False)
    with pytest.raises(HybridMIMError, match="missing: monai. Press the button again and agree"):
        install_packages(["monai"])
    assert installed == []
    assert log_lines()[-1].endswith("declined to install monai")


def test_without_the_extension_its_name_is_told(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "PyTorchUtils", raising=False)
    with pytest.raises(HybridMIMError, match="install the extension PyTorch"):
        install_packages(["torch>=2.6"])


def test_a_failure_of_pip_is_an_error_with_a_cure(
    asked: list[str], installed: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(slicer.packaging, "pip_ensure", fail)
    with pytest.raises(HybridMIMError, match=r"could not be installed \(no network\). Check the connection"):
        install_packages(["monai"])


@pytest.mark.parametrize(
    "said",
    [
        "<urlopen error [Errno -3] Temporary failure in name resolution>",
        "HTTPSConnectionPool: Max retries exceeded (Caused by NewConnectionError('…'))",
        "[Errno 11001] getaddrinfo failed",
    ],
)
def test_without_a_connection_that_is_told(
    asked: list[str], installed: object, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(slicer.packaging, "pip_ensure", fail)
    with pytest.raises(HybridMIMError, match="no connection to the internet. Connect this computer"):
        install_packages(["monai"])
    assert "no connection" in log_lines()[-1]


def test_too_little_room_is_told_before_anything_is_asked(
    asked: list[str], installed: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=50e6))
    with pytest.raises(DiskError, match="50 MB are free, and the packages need about 915 MB. Free some space"):
        install_packages(["torch>=2.6", "monai>=1.5"])
    assert asked == [] and installed == []


def test_what_came_with_an_installation_is_ours_even_if_it_failed_half_way(
    asked: list[str], installed: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"numpy": "2.0", "einops": "0.7"}
    monkeypatch.setattr("HybridMIMLib.slicer_side.installed.installed_versions", lambda: dict(there))

    def half(*_: object, **__: object) -> None:
        there.update(monai="1.6", einops="0.8", helper="3")
        raise RuntimeError("the rest failed")

    monkeypatch.setattr(slicer.packaging, "pip_ensure", half)
    with pytest.raises(HybridMIMError, match="the rest failed"):
        install_packages(["monai", "einops>=0.8"])
    assert ours() == {"monai": "1.6", "helper": "3"}, "numpy and einops were there before"
    assert any("changed einops from 0.7 to 0.8" in line for line in log_lines())


def test_the_state_of_each_package_is_known_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "requirements.txt"
    listed.write_text("numpy>=1\nnumpy>=999\nno-such-package-anywhere\n")
    monkeypatch.setattr(environment, "REQUIREMENTS", listed)
    version = metadata.version("numpy")
    assert packages() == [
        Package("numpy", ">=1", version, "ready"),
        Package("numpy", ">=999", version, "other version"),
        Package("no-such-package-anywhere", "", "", "missing"),
    ]


def test_sizes_in_words() -> None:
    assert size_of(["einops", "monai>=1.5"]) == "about 16 MB"
    assert size_of(["scipy", "torch>=2.6"]) == "about 1.0 GB; with a graphics card of NVIDIA up to 5 GB"
