"""Workflows, hooks and templates: they parse, call what exists, and cannot pass by testing nothing."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from repository import REPOSITORY, files_in, load_script, text_of

WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE))
check_report = load_script("Testing/check_report.py")


def read(file: Path) -> dict[str, Any]:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def steps(file: Path) -> list[dict[str, Any]]:
    return [step for job in read(file)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflows_are_whole(file: Path) -> None:
    content = read(file)
    # YAML takes the word "on" for a truth value.
    assert content["name"] == file.stem and set(content[True]) >= {"push", "pull_request"}
    assert content["permissions"] == {"contents": "read"}, "a token that can write is not needed"
    for job in content["jobs"].values():
        assert job["timeout-minutes"] and job["steps"]
        assert not job.get("continue-on-error") and not any(step.get("continue-on-error") for step in job["steps"])
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert "|| true" not in step.get("run", "")


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_actions_are_pinned_and_few(file: Path) -> None:
    for step in steps(file):
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]), step["uses"]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_what_they_call_exists(file: Path) -> None:
    for step in steps(file):
        run = step.get("run", "")
        for line in re.findall(r"^\s*make (.+)$", run, re.MULTILINE):
            asked = [word for word in shlex.split(line) if "=" not in word]
            assert asked and set(asked) <= TARGETS, line
        for name in re.findall(r"\b(?:Testing|HybridMIM\w+|Resources|\.github)/[\w./-]+", run):
            assert (REPOSITORY / name).exists(), name


def test_actions_and_systems_are_ones_that_github_still_has() -> None:
    """GitHub took Node 20, with which older actions run, and these systems out of its runners: jobs fail at once."""
    least = {"actions/checkout": 5, "actions/setup-python": 6, "actions/upload-artifact": 6}
    gone = {"ubuntu-20.04", "windows-2019", "macos-12", "macos-13", "macos-14"}
    for file in WORKFLOWS:
        for step in steps(file):
            name, _, version = step.get("uses", "").partition("@v")
            assert not name or int(version) >= least[name], step["uses"]
        assert not [system for system in gone if system in file.read_text(encoding="utf-8")]


def test_lines_end_as_make_and_the_shell_need_it() -> None:
    """Git would check out CRLF on Windows otherwise, where ``make setup`` ends at the first line with it."""
    assert "* text=auto eol=lf" in text_of(".gitattributes").splitlines()
    scripts = [REPOSITORY / "Makefile", REPOSITORY / ".ci" / "run", *(REPOSITORY / ".github").rglob("*.*")]
    assert [file.name for file in scripts if b"\r" in file.read_bytes()] == []


def test_torch_comes_without_cuda_where_there_is_no_graphics_card() -> None:
    content = read(REPOSITORY / ".github/workflows/tests.yml")
    assert content["env"]["PIP_EXTRA_INDEX_URL"].endswith("/whl/cpu")
    [install] = [
        step["run"]
        for step in steps(REPOSITORY / ".github/workflows/slicer.yml")
        if "requirements.txt" in step.get("run", "")
    ]
    assert "/whl/cpu" in install


def test_lint_types_and_tests_run_on_all_systems() -> None:
    jobs = read(REPOSITORY / ".github/workflows/tests.yml")["jobs"]
    said = " ".join(step.get("run", "") for step in jobs["lint"]["steps"])
    assert "make lint" in said and "make types" in said and "git diff --exit-code" in said
    systems = {one["system"].partition("-")[0] for one in jobs["tests"]["strategy"]["matrix"]["include"]}
    assert systems == {"ubuntu", "windows", "macos"}


POSIX = {
    "os": {"fork", "geteuid", "getuid", "killpg", "mkfifo", "setsid", "statvfs"},
    "signal": {"SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGSTOP", "SIGUSR1", "SIGUSR2", "SIGXFSZ"},
}
"""Names that Windows lacks; and so it does the modules fcntl, pwd and resource."""


def done_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Everything in a file that is evaluated when it is imported: not what is inside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in [*node.decorator_list, *node.args.defaults]:
                yield from ast.walk(part)
        elif not isinstance(node, ast.Lambda):
            yield node
            yield from done_at_import(node)


def lacking_on_windows(node: ast.AST) -> str:
    """What of it Windows does not have; empty if it has all."""
    modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    missing = {"fcntl", "pwd", "resource"} & set(modules)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        missing |= POSIX.get(node.value.id, set()) & {node.attr}
    return " ".join(missing)


def test_files_can_be_imported_on_windows() -> None:
    """One that cannot ends pytest there before the first test."""
    found = [
        f"{name.as_posix()}:{getattr(node, 'lineno', 0)}: {lacking_on_windows(node)}"
        for name in files_in("Testing", "HybridMIMTraining", "HybridMIMSegmentation")
        if name.suffix == ".py" and "Benchmarks" not in name.parts
        for node in done_at_import(ast.parse((REPOSITORY / name).read_text(encoding="utf-8")))
        if lacking_on_windows(node)
    ]
    assert not found


def test_no_workflow_passes_without_having_tested() -> None:
    outside = [step["run"] for step in steps(REPOSITORY / ".github/workflows/tests.yml") if "run" in step]
    assert any("make pytest" in run and "--junitxml=build/tests.xml" in run for run in outside)
    [check] = [run for run in outside if "check_report.py" in run]
    assert "build/tests.xml --least ${{ matrix.least }}" in check
    [matrix] = [
        job["strategy"]["matrix"]
        for job in read(REPOSITORY / ".github/workflows/tests.yml")["jobs"].values()
        if "strategy" in job
    ]
    assert all(one["least"] >= 2000 for one in matrix["include"])
    inside = [step["run"] for step in steps(REPOSITORY / ".github/workflows/slicer.yml") if "run" in step]
    assert any("run_in_slicer.py" in run and "xvfb-run" in run for run in inside)
    assert any('counts["ran"] >= 8' in run and 'not counts["skipped"]' in run for run in inside)


# ---------------------------------------------------------------- the check of a report

CASE = '<testcase name="{}">{}</testcase>'
SKIPPED = '<skipped message="{}"/>'


def report(tmp_path: Path, *cases: str) -> str:
    file = tmp_path / "tests.xml"
    file.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>", encoding="utf-8")
    return str(file)


def test_a_report_of_enough_tests_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    away = SKIPPED.format("real scans are not at /home/me/data (set HYBRIDMIM_SHARED_DATA to their folder)")
    file = report(tmp_path, CASE.format("a", ""), CASE.format("b", ""), CASE.format("c", away))
    assert check_report.main([file, "--least", "2"]) == 0
    said = capsys.readouterr().out
    assert "2 tests ran, 0 of them failed, 1 were skipped" in said
    assert "1 skipped: real scans are not at data (set" in said


@pytest.mark.parametrize(
    ("cases", "words"),
    [
        ([], "0 tests ran, and 1 are the least"),
        ([CASE.format("a", SKIPPED.format("no pipes here"))], "0 tests ran"),
        ([CASE.format("a", "<failure/>")], "1 tests failed"),
        ([CASE.format("a", "<error/>")], "1 tests failed"),
        ([CASE.format("a", ""), CASE.format("b", SKIPPED.format("needs slicer-core"))], "should be installed"),
        (
            [CASE.format("a", ""), CASE.format("b", SKIPPED.format("OpenVINO is not installed"))],
            "should be installed",
        ),
    ],
)
def test_a_report_that_hides_something_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cases: list[str], words: str
) -> None:
    assert check_report.main([report(tmp_path, *cases)]) == 1
    assert words in capsys.readouterr().err


def test_reasons_of_todays_tests_that_mean_a_broken_setup_are_refused() -> None:
    """importorskip takes its reason from here and there; each must be one that the check knows."""
    found = set()
    for file in (REPOSITORY / "Testing").rglob("*.py"):
        found |= set(re.findall(r'importorskip\(.*?reason="([^"]+)"', file.read_text(encoding="utf-8")))
    assert found and all(check_report.REFUSED.search(reason) for reason in found)


# ---------------------------------------------------------------- hooks, templates, make


def test_hooks_go_through_make() -> None:
    [local] = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
    assert local["repo"] == "local"
    entries = [hook["entry"] for hook in local["hooks"]]
    assert entries == ["make lint", "make types"]
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in local["hooks"])


@pytest.mark.parametrize("name", ["bug.yml", "idea.yml"])
def test_issue_templates_are_forms(name: str) -> None:
    form = yaml.safe_load(text_of(f".github/ISSUE_TEMPLATE/{name}"))
    assert form["name"] and form["description"]
    fields = [one for one in form["body"] if one["type"] != "markdown"]
    assert len({one["id"] for one in fields}) == len(fields) and all(one["attributes"]["label"] for one in fields)
    assert any(one.get("validations", {}).get("required") for one in fields)


def test_every_target_is_phony_and_explained() -> None:
    phony = set(re.findall(r"^\.PHONY: (.+)$", text_of("Makefile"), re.MULTILINE)[0].split())
    assert phony == TARGETS
    explained = set(re.findall(r"`make ([\w-]+)`", text_of("CONTRIBUTING.md") + text_of("README.md")))
    assert phony - explained <= {"pytest", "setup"}
    assert explained <= phony
