"""The packages that the library needs and Slicer does not ship: which are missing, and installing them.

Nothing is installed before the user asked for work and agreed. PyTorch comes through Slicer's PyTorch extension,
which picks the build for the graphics card (and, having installed it, imports it once in Slicer's process: the only
time); what Slicer ships is never replaced. What was installed is written down, so that it can go again
(:mod:`~HybridMIMLib.slicer_side.repair`).

    >>> for one in packages():                                                                 # doctest: +SKIP
    ...     print(one.name, one.wanted, one.found, one.state)
    >>> ensure_packages()                    # asks, if something is missing; then installs it    # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from HybridMIMLib.errors import DiskError, HybridMIMError
from HybridMIMLib.slicer_side import installed

REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"

SHIPPED = ("numpy", "scipy", "SimpleITK", "vtk", "requests", "pydicom", "packaging", "setuptools", "pip")
"""Slicer is built against these: another version can break the whole application."""

READY, MISSING, OTHER = "ready", "missing", "other version"
"""States of a package."""

OFFLINE_CURE = "Connect this computer, or set the proxy of your network in pip, then try again."

_OFFLINE = (
    "Temporary failure in name resolution",
    "Name or service not known",
    "getaddrinfo failed",
    "NewConnectionError",
    "Network is unreachable",
    "nodename nor servname",
    "Connection refused",
)
"""What pip and Python say where nothing can be reached."""

_MEGABYTES = {
    "torch": 900, "monai": 15, "pytorch-ignite": 3, "einops": 1, "scipy": 145, "simpleitk": 280, "nibabel": 15,
    "pydicom": 15, "safetensors": 2, "jsonargparse": 2, "pyyaml": 4, "matplotlib": 100,
    "pillow": 23,
}  # fmt: skip
"""On the disk, with what each brings along, measured on Linux with a PyTorch for the CPU."""
_UNKNOWN = 20
_GRAPHICS_CARD = 4000
"""More, at most, with a PyTorch for graphics cards of NVIDIA, which brings their libraries."""


@dataclass(frozen=True)
class Package:
    """A package that the library needs.

    Attributes:
        name: of it.
        wanted: the versions that will do, as pip writes them; empty for any.
        found: the version that is installed, or empty.
        state: ready, missing, or other version.
        ours: whether this program has installed it.
    """

    name: str
    wanted: str
    found: str
    state: str
    ours: bool = False


def packages() -> list[Package]:
    """What the library needs and what is there, without importing any of it."""
    mine = installed.ours()
    return [_package(requirement, mine) for requirement in requirements()]


def size_of(missing: Iterable[str]) -> str:
    """How much room requirements take, in words."""
    megabytes, has_torch = _megabytes(missing)
    text = f"about {megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"about {megabytes} MB"
    if not has_torch:
        return text
    return f"{text}; with a graphics card of NVIDIA up to {(megabytes + _GRAPHICS_CARD) / 1000:.0f} GB"


def is_offline(text: str) -> bool:
    """Whether an error says that nothing can be reached."""
    return any(words in text for words in _OFFLINE)


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
        HybridMIMError: the user declined, pip failed, there is no connection, or PyTorch's extension is not there.
        DiskError: there is too little room.
    """
    import slicer

    missing = list(missing)
    torch = [one for one in missing if _name(one) == "torch"]
    others = [one for one in missing if one not in torch]
    _check_room(missing)
    needs = f"HybridMIM needs these packages in Slicer's Python ({size_of(missing)})"
    question = f"{needs}:\n\n{chr(10).join(missing)}\n\nInstall?"
    if not slicer.util.confirmOkCancelDisplay(question, windowTitle="HybridMIM"):
        installed.note(f"declined to install {', '.join(missing)}")
        raise HybridMIMError(
            f"These packages are missing: {', '.join(missing)}", cure="Press the button again and agree to install."
        )
    installed.note(f"installing {', '.join(missing)}")
    before = installed.installed_versions()
    try:
        _install(torch, others)
    except HybridMIMError as error:
        installed.note(f"failed: {error}")
        raise
    finally:
        # What came before a failure came, too.
        importlib.invalidate_caches()
        installed.note_change(before, installed.installed_versions())


def _install(torch: Sequence[str], others: list[str]) -> None:
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
        if is_offline(str(error)):
            raise HybridMIMError(
                "The packages could not be downloaded: there seems to be no connection to the internet",
                cure=OFFLINE_CURE,
            ) from error
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
    return _package(requirement, ()).state == READY


def _package(requirement: str, mine: Iterable[str]) -> Package:
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    is_ours = installed.plain(wanted.name) in mine
    try:
        found = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return Package(wanted.name, str(wanted.specifier), "", MISSING)
    fits = wanted.specifier.contains(found, prereleases=True)
    return Package(wanted.name, str(wanted.specifier), found, READY if fits else OTHER, is_ours)


def _megabytes(missing: Iterable[str]) -> tuple[int, bool]:
    """What requirements take, and whether PyTorch is among them."""
    names = [installed.plain(_name(one)) for one in missing]
    return sum(_MEGABYTES.get(name, _UNKNOWN) for name in names), "torch" in names


def _check_room(missing: Iterable[str]) -> None:
    megabytes, _ = _megabytes(missing)
    folder = Path(sysconfig.get_path("purelib"))
    place = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(place).free / 1e6
    if free < megabytes:
        raise DiskError(
            f"{folder}: {free:.0f} MB are free, and the packages need about {megabytes} MB",
            cure="Free some space on this disk, then try again.",
        )


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return found[0].lower() if found else ""
