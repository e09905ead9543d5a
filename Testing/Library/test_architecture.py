"""The floors of the house: who may import whom, and what may not be loaded."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import HybridMIMLib

PACKAGE = Path(HybridMIMLib.__file__).parent
SLICER_SIDE = 7
FLOORS = {
    1: (
        "agreement",
        "architectures",
        "commands",
        "config",
        "distributed",
        "draws",
        "events",
        "runs",
        "settings",
        "stage_folders",
        "stopping",
        "errors",
        "files",
        "measures",
        "machine_notes",
        "glossary",
        "presets",
        "randomness",
        "parents",
        "window_jobs",
        "worker_pipes",
        "worker_protocol",
    ),
    2: ("data",),
    3: (
        "networks",
        "bundle",
        "known_model",
        "model_package",
        "model_readme",
        "models",
        "weights",
        "checkpoints",
        "pretrained",
        "reshaping",
        "transfer",
    ),
    4: ("training", "pretraining", "finetuning", "inference", "evaluation"),
    5: ("studies", "stages", "trial", "estimating"),
    6: (
        "cli",
        "__main__",
        "worker",
        "worker_queue",
        "worker_tasks",
        "demonstration",
        "elsewhere_job",
        "export_texts",
        "exporting",
        "importing",
        "information",
        "terminal",
        "report",
    ),
    SLICER_SIDE: ("slicer_side",),
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
TORCH = {"torch", "monai", "ignite"}
SLICER = {"slicer", "qt", "ctk", "vtk", "vtkmodules", "MRMLCorePython", "vtkSegmentationCore"}


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    """The first name under the package: ``data`` for ``HybridMIMLib.data.scans``."""
    return module.split(".")[1]


def imports_of(module: str, *, at_start: bool = False) -> set[str]:
    """Everything a file imports, inside functions too; with ``at_start`` only what importing the file imports."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    nodes = _run_at_start(tree) if at_start else ast.walk(tree)
    return {name for node in nodes for name in _imported(node, module)}


def _run_at_start(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _run_at_start(child)


def _imported(node: ast.AST, module: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module}: write imports in full, without dots"
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            yield full if full in FILES else str(node.module)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
        yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def inside(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith("HybridMIMLib.")}


def outside(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names} - {"HybridMIMLib"}


def loaded_with(module: str) -> set[str]:
    """The modules of the package that importing ``module`` brings with it, itself included."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen and name in FILES:
            seen.add(name)
            waiting += [name.rpartition(".")[0], *imports_of(name, at_start=True)]
    return seen


def loads_torch(module: str) -> bool:
    return any(outside(imports_of(name, at_start=True)) & TORCH for name in loaded_with(module))


def rooms() -> list[str]:
    return [name for name in FILES if name != "HybridMIMLib"]


def test_every_file_has_a_floor() -> None:
    unknown = {room_of(name) for name in rooms()} - set(FLOOR_OF)
    assert not unknown, f"assign a floor in FLOORS to: {', '.join(sorted(unknown))}"


@pytest.mark.parametrize("module", rooms())
def test_a_file_imports_from_its_own_floor_or_below(module: str) -> None:
    floor = FLOOR_OF[room_of(module)]
    above = {name for name in inside(imports_of(module)) if FLOOR_OF[room_of(name)] > floor}
    assert not above, f"{module} (floor {floor}) imports from above: {sorted(above)}"


@pytest.mark.parametrize("module", [name for name in rooms() if room_of(name) == "slicer_side"])
def test_the_slicer_side_imports_only_what_loads_no_torch(module: str) -> None:
    names = imports_of(module)
    assert not outside(names) & TORCH, f"{module} imports torch or monai into Slicer"
    for name in inside(names):
        assert FLOOR_OF[room_of(name)] in (1, 2, SLICER_SIDE), f"{module} imports {name}, which belongs to the child"
        assert not loads_torch(name), f"{module} imports {name}, which loads torch"


@pytest.mark.parametrize("module", [name for name in FILES if "slicer_side" not in name])
def test_only_the_slicer_side_knows_slicer(module: str) -> None:
    found = outside(imports_of(module)) & SLICER
    assert not found, f"{module} imports {sorted(found)}: only slicer_side may"


def test_no_two_files_import_each_other_when_loaded() -> None:
    needs = {name: inside(imports_of(name, at_start=True)) & set(FILES) for name in FILES}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"import cycle: {' -> '.join((*way[way.index(name) :], name))}"
        if name not in done:
            for other in needs[name]:
                visit(other, (*way, name))
            done.add(name)

    for name in FILES:
        visit(name, ())


def test_settings_import_the_standard_library_alone() -> None:
    loaded = loaded_with("HybridMIMLib.config")
    assert {room_of(name) for name in loaded - {"HybridMIMLib"}} == {"config", "settings", "errors"}
    assert set().union(*(outside(imports_of(name)) for name in loaded)) <= sys.stdlib_module_names


@pytest.mark.parametrize(
    "module", ["HybridMIMLib", "HybridMIMLib.config", "HybridMIMLib.runs", "HybridMIMLib.slicer_side"]
)
def test_importing_it_loads_neither_torch_nor_monai(module: str) -> None:
    program = f"import sys, {module}; print(*sorted({{'torch', 'monai', 'ignite'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_public_name_has_its_home() -> None:
    for name in HybridMIMLib.__all__:
        assert getattr(HybridMIMLib, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        HybridMIMLib.nothing  # noqa: B018
