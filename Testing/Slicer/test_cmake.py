"""The lists of CMake against the tree: a file that is not listed is not shipped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = ("HybridMIMTraining", "HybridMIMSegmentation")
NOT_SHIPPED = {"CMakeLists.txt"}


def text_of(folder: Path) -> str:
    text = (folder / "CMakeLists.txt").read_text(encoding="utf-8")
    return re.sub(r"#.*", "", text)


def listed(module: str, variable: str) -> list[str]:
    found = re.search(rf"set\({variable}\s+([^)]*)\)", text_of(REPOSITORY / module))
    assert found, f"{module}/CMakeLists.txt sets no {variable}"
    return found[1].replace("${MODULE_NAME}", module).split()


def in_tree(module: str) -> set[str]:
    folder = REPOSITORY / module
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    # What tools leave behind is none of ours.
    left = re.compile(r"\..*|__pycache__|.*\.egg-info")
    ours = {file.as_posix() for file in files if not any(left.fullmatch(part) for part in file.parts)}
    return ours - NOT_SHIPPED


@pytest.mark.parametrize("module", MODULES)
def test_every_file_is_listed_once_and_every_listed_file_is_there(module: str) -> None:
    scripts, resources = listed(module, "MODULE_PYTHON_SCRIPTS"), listed(module, "MODULE_PYTHON_RESOURCES")
    assert sorted(scripts + resources) == sorted(in_tree(module))


@pytest.mark.parametrize("module", MODULES)
def test_python_files_are_scripts_and_others_resources(module: str) -> None:
    assert all(name.endswith(".py") for name in listed(module, "MODULE_PYTHON_SCRIPTS"))
    assert not any(name.endswith(".py") for name in listed(module, "MODULE_PYTHON_RESOURCES"))


@pytest.mark.parametrize("module", MODULES)
def test_the_macro_gets_both_lists(module: str) -> None:
    text = " ".join(text_of(REPOSITORY / module).split())
    assert f"set(MODULE_NAME {module})" in text
    assert (
        "slicerMacroBuildScriptedModule( NAME ${MODULE_NAME} SCRIPTS ${MODULE_PYTHON_SCRIPTS} "
        "RESOURCES ${MODULE_PYTHON_RESOURCES} WITH_GENERIC_TESTS )" in text
    )


def test_the_extension_adds_both_modules_and_says_what_it_is() -> None:
    text = text_of(REPOSITORY)
    assert re.findall(r"add_subdirectory\((\w+)\)", text) == list(MODULES)
    assert "project(HybridMIM)" in text
    assert 'set(EXTENSION_DEPENDS "PyTorch")' in text
    for name in ("HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS"):
        assert re.search(rf'set\(EXTENSION_{name} "[^"\n]+"\)', text), name


@pytest.mark.parametrize("module", MODULES)
def test_module_files_are_short(module: str) -> None:
    assert len((REPOSITORY / module / f"{module}.py").read_text(encoding="utf-8").splitlines()) < 250
