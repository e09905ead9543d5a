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

from HybridMIMLib.errors import HybridMIMError
from HybridMIMLib.slicer_side import environment
from HybridMIMLib.slicer_side.environment import constraints, install_packages, missing_packages, requirements


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
