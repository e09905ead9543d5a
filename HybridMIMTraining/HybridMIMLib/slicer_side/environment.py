"""The packages that the library needs and Slicer does not ship: which are missing, and installing them.

Nothing is installed before the user asked for work and agreed. PyTorch comes through Slicer's PyTorch extension,
which picks the build for the graphics card (and, having installed it, imports it once in Slicer's process: the only
time); what Slicer ships is never replaced.
"""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from HybridMIMLib.errors import HybridMIMError

REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"

SHIPPED = ("numpy", "scipy", "SimpleITK", "vtk", "requests", "pydicom", "packaging", "setuptools", "pip")
"""Slicer is built against these: another version can break the whole application."""

_SIZE = "about 300 MB, with a graphics card 3 GB"


def missing_packages() -> list[str]:
    """Requirements that are not installed, or not in a version that will do; looked up without importing any."""
    return [requirement for requirement in requirements() if not _is_satisfied(requirement)]


def requirements() -> list[str]:
    """What the library needs, as pip writes it."""
    lines = (line.split("#")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def ensure_packages() -> None:
    """Install what is missing, if anything is; raises as :func:`install_packages`."""
    if missing := missing_packages():
        install_packages(missing)


def install_packages(missing: Iterable[str]) -> None:
    """Ask, then install; for Slicer's GUI.

    Raises:
        HybridMIMError: the user declined, pip failed, or PyTorch's extension is not there.
    """
    import slicer

    missing = list(missing)
    torch = [one for one in missing if _name(one) == "torch"]
    others = [one for one in missing if one not in torch]
    question = f"HybridMIM needs these packages in Slicer's Python ({_SIZE}):\n\n{chr(10).join(missing)}\n\nInstall?"
    if not slicer.util.confirmOkCancelDisplay(question, windowTitle="HybridMIM"):
        raise HybridMIMError(
            f"These packages are missing: {', '.join(missing)}", cure="Press the button again and agree to install."
        )
    try:
        with tempfile.TemporaryDirectory(prefix="hybridmim-") as folder:
            kept = Path(folder) / "constraints.txt"
            kept.write_text("\n".join(constraints()) + "\n", encoding="utf-8")
            if torch:
                _install_torch(torch[0], kept)
            if others:
                _pip_install(others, kept)
    except HybridMIMError:
        raise
    except Exception as error:
        raise HybridMIMError(
            f"The packages could not be installed ({error})",
            cure="Check the connection to the internet and the free disk space, then try again. Slicer's Python "
            "console shows what pip said.",
        ) from error


def constraints() -> list[str]:
    """Lines for pip that keep what Slicer ships at the versions it ships."""
    kept = []
    for package in SHIPPED:
        try:
            kept.append(f"{package}=={metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return kept


def _install_torch(requirement: str, kept: Path) -> None:
    if importlib.util.find_spec("PyTorchUtils") is None:
        raise HybridMIMError(
            "PyTorch is missing, and so is the extension that installs it",
            cure="Open the Extensions Manager, install the extension PyTorch, restart Slicer, then try again.",
        )
    import PyTorchUtils

    version = requirement[len("torch") :]
    before = os.environ.get("PIP_CONSTRAINT")
    # Its installer has no argument for that; pip reads it from here.
    os.environ["PIP_CONSTRAINT"] = str(kept)
    try:
        logic = PyTorchUtils.PyTorchUtilsLogic()
        installed = logic.installTorch(askConfirmation=False, torchVersionRequirement=version)
    finally:
        os.environ.pop("PIP_CONSTRAINT")
        if before is not None:
            os.environ["PIP_CONSTRAINT"] = before
    if installed is None:
        raise HybridMIMError("PyTorch was not installed", cure="Open the module PyTorch and install it there.")


def _pip_install(packages: list[str], kept: Path) -> None:
    import slicer

    try:
        from slicer import packaging
    except ImportError:
        # Slicer 5.10
        slicer.util.pip_install(["--only-binary=:all:", "-c", str(kept), *packages])
    else:
        packaging.pip_ensure(packages, constraints=kept, prompt_install=False, requester="HybridMIM")


def _is_satisfied(requirement: str) -> bool:
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        return wanted.specifier.contains(metadata.version(wanted.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return found[0].lower() if found else ""
