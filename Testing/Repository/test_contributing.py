"""The recipes of CONTRIBUTING.md, followed: what they say to write is written, and their tests are run."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from repository import REPOSITORY, files_in, text_of
from small_runs import TINY

from HybridMIMLib.data.layouts import recognition
from HybridMIMLib.pretraining import choice
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.settings.pretraining import PretrainingSettings
from HybridMIMLib.settings.tree import hints_of

TEXT = text_of("CONTRIBUTING.md")


def block(name: str) -> str:
    """The code below ``<!-- recipe: NAME -->``."""
    found = re.search(rf"<!-- recipe: {name} -->\n *```\w+\n(.*?)\n *```", TEXT, re.DOTALL)
    assert found, f"CONTRIBUTING.md has no recipe {name}"
    return textwrap.dedent(found[1])


def make_module(name: str, file: Path, code: str) -> ModuleType:
    """A file with this code, imported under a name."""
    file.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def module_of(tmp_path: Path) -> Iterator[Callable[[str, str], ModuleType]]:
    """Make modules, forgotten at the end."""
    made: list[str] = []

    def make(name: str, code: str) -> ModuleType:
        made.append(name)
        return make_module(name, tmp_path / f"{name.rpartition('.')[2]}.py", code)

    yield make
    for name in made:
        sys.modules.pop(name, None)


def run_tests(module: ModuleType) -> int:
    """Run the functions of a file of tests; how many there were."""
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    for test in tests:
        test()
    return len(tests)


@pytest.fixture
def denoising(module_of: Callable[[str, str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The objective, added as the recipe says."""
    made = module_of("HybridMIMLib.pretraining.denoising", block("objective file"))
    names = dict(vars(choice), Denoising=made.Denoising)
    for name, value in eval(f"{{{block('objective line')}}}", names).items():
        monkeypatch.setitem(choice._OBJECTIVES, name, value)
    wider = str(PretrainingSettings.__annotations__["objective"]).replace("'none'", "'none', 'denoising'")
    with monkeypatch.context() as patched:
        patched.setitem(PretrainingSettings.__annotations__, "objective", wider)
        # The types are read once; whoever edits the file starts Python anew.
        hints_of.cache_clear()
        yield
    hints_of.cache_clear()


def test_the_recipe_for_an_objective(denoising: None, module_of: Callable[[str, str], ModuleType]) -> None:
    assert run_tests(module_of("test_denoising", block("objective test"))) == 3


def test_the_new_objective_pretrains(denoising: None, blobs: Path, tmp_path: Path) -> None:
    from HybridMIMLib import pretrain

    settings: dict[str, Any] = {**TINY, "pretraining": {**TINY["pretraining"], "objective": "denoising", "steps": 2}}
    result = pretrain(unlabelled=str(blobs / "unlabelled"), output=str(tmp_path / "run"), device="cpu", **settings)
    assert (tmp_path / "run" / "pretrained.safetensors").is_file() and set(result["losses"]) == {"denoising"}


def test_the_recipe_for_a_layout(
    module_of: Callable[[str, str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = module_of("HybridMIMLib.data.layouts.side_by_side", block("layout file"))
    [added] = eval(f"[{block('layout line')}]", dict(vars(recognition), side_by_side=made))
    monkeypatch.setattr(recognition, "_LAYOUTS", (*recognition._LAYOUTS, added))
    assert run_tests(module_of("test_side_by_side", block("layout test"))) == 2


def names_of(node: ast.expr | None) -> set[str]:
    """The texts in an expression: the entries of a list, the keys of a dictionary, the parts of a Literal."""
    parts = node.keys if isinstance(node, ast.Dict) else list(ast.walk(node)) if node else []
    return {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def value_of(file: str, name: str) -> ast.expr | None:
    """What a name of a file of the library is set to."""
    tree = ast.parse((REPOSITORY / "HybridMIMTraining" / "HybridMIMLib" / file).read_text(encoding="utf-8"))
    assigned = (node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign))
    for node in assigned:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node.value
    raise AssertionError(f"{file} has no {name}")


@pytest.mark.parametrize(
    ("file", "table"), [("networks/__init__.py", "_BACKBONES"), ("data/weights_shapes.py", "_SHAPES")]
)
def test_every_network_is_in_the_tables_that_the_recipe_names(file: str, table: str) -> None:
    """One that is missing in a table fails only when a package of it is imported or run."""
    assert names_of(value_of(file, table)) == set(get_args(hints_of(NetworkSettings)["architecture"]))


def test_files_and_names_that_it_speaks_of_are_there() -> None:
    made = {"denoising.py", "test_denoising.py", "test_side_by_side.py", "test_NAME.py"}
    named = {
        name for name in re.findall(r"`([\w/.]+\.(?:py|md|txt|yaml|json))`", TEXT) if Path(name).name not in made
    }
    known = [file.as_posix() for file in files_in(".")]
    missing = {name for name in named if not any(f"/{one}".endswith(f"/{name}") for one in known)}
    assert not missing
    library = REPOSITORY / "HybridMIMTraining" / "HybridMIMLib"
    for file, name in (
        (library / "settings" / "study.py", "STUDY_OBJECTIVES"),
        (library / "bundle.py", "def network_config"),
        (library / "networks" / "__init__.py", "_BACKBONES"),
        (library / "data" / "layouts" / "recognition.py", "_LAYOUTS"),
        (library / "pretraining" / "choice.py", "_OBJECTIVES"),
        (library / "data" / "weights_shapes.py", "_SHAPES"),
        (library / "slicer_side" / "data_check.py", "_LAYOUTS"),
        (REPOSITORY / "Testing" / "Library" / "data" / "test_weights_shapes.py", "NETWORKS"),
        (REPOSITORY / "Testing" / "Library" / "test_plain_monai.py", "MAKERS"),
    ):
        assert name in file.read_text(encoding="utf-8")
