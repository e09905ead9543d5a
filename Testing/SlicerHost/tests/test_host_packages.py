"""slicer.packaging and slicer.i18n."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import slicer
from SlicerHost import Host, packages
from SlicerHost.packages import Call


def test_requirements_are_read_as_slicer_reads_them(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("# a comment\n\n-c constraints.txt\nnumpy>=1\n torch >= 2.6 ; python_version > '3'\n", "utf-8")
    assert [one.name for one in slicer.packaging.load_requirements(file)] == ["numpy", "torch"]


@pytest.mark.parametrize(
    ("requirements", "fits"),
    [
        ("numpy", True),
        ("numpy>=1 pytest", True),
        ("numpy>=999", False),
        (["numpy", "surely-no-such-package"], False),
        ("surely-no-such-package; sys_platform == 'nowhere'", True),
        ("numpy>=1; python_version > '3'", True),
        ([], True),
    ],
)
def test_checks_are_real(host: Host, requirements: object, fits: bool) -> None:
    assert slicer.packaging.pip_check(requirements) is fits


def test_what_extras_need_is_checked_too(host: Host) -> None:
    assert slicer.packaging.pip_check("hypothesis[numpy]")
    packages.pretend_missing("numpy")
    assert slicer.packaging.pip_check("hypothesis")
    assert not slicer.packaging.pip_check("hypothesis[numpy]")


def test_what_is_there_is_not_installed(host: Host) -> None:
    assert slicer.packaging.pip_ensure("numpy", requester="Test") is None
    assert packages.calls() == []


def test_an_installation_that_nobody_announced_fails(host: Host) -> None:
    for call in (slicer.packaging.pip_ensure, slicer.packaging.pip_install, slicer.util.pip_install):
        with pytest.raises(AssertionError, match="surely-no-such-package"):
            call("surely-no-such-package")


def test_an_announced_installation_is_recorded_and_counts(host: Host) -> None:
    packages.pretend_missing("NumPy")
    assert not slicer.packaging.pip_check("numpy")
    packages.announce("installed")
    slicer.packaging.pip_ensure(["numpy>=1", "pytest"], constraints="c.txt", requester="Test")
    assert packages.calls() == [Call("pip_ensure", ("numpy>=1",), "Test", "c.txt")]
    assert slicer.packaging.pip_check("numpy")


def test_a_user_can_decline_and_pip_can_fail(host: Host) -> None:
    packages.announce("declined")
    with pytest.raises(RuntimeError, match="declined"):
        slicer.packaging.pip_ensure("surely-no-such-package")
    packages.announce(subprocess.CalledProcessError(1, "pip"))
    with pytest.raises(subprocess.CalledProcessError):
        slicer.packaging.pip_ensure("surely-no-such-package")
    with pytest.raises(ValueError, match="maybe"):
        packages.announce("maybe")


def test_other_names_are_named(host: Host) -> None:
    with pytest.raises(AttributeError, match=r"no slicer\.packaging\.pip_freeze"):
        slicer.packaging.pip_freeze()
    with pytest.raises(ImportError, match="pip_freeze"):
        from slicer.packaging import pip_freeze  # noqa: F401


def test_translation_gives_the_text_back_and_takes_nothing_else(host: Host) -> None:
    from slicer.i18n import tr, translate

    assert tr("Train {count}").format(count=3) == "Train 3"
    assert translate("Any", "Text") == "Text"
    with pytest.raises(TypeError, match="only text"):
        tr(3)  # type: ignore[arg-type]
