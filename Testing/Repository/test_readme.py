"""The examples of the README: blocks of commands and code are run on tiny scans, or named with a reason."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from repository import text_of
from small_runs import TINY, write_blobs

import HybridMIMLib
from HybridMIMLib.cli import COMMANDS, main

NOT_RUN = {
    "make demo": "the tests of the demonstration run it; make test is what runs this test",
    "python -m HybridMIMLib train --config btcv": "the recipe is for a GPU; test_presets.py runs it on a small set",
    "python -m HybridMIMLib demo": "test_demonstration.py runs it",
    "python -m HybridMIMLib study": "many trainings; studies/test_run.py runs it",
    "logic = slicer.util": "in Slicer's console; Testing/Slicer/test_readme_console.py runs it",
    "from HybridMIMLib.slicer_side": "in a scene; Testing/Slicer/test_readme_console.py runs it",
}
"""Blocks by how they begin, and why this file does not run them."""

NO_LINE_RUN = {
    ". .venv/bin/activate": "the tests run in that environment",
    "python -m monai.bundle": "plain MONAI; test_plain_monai.py runs it",
}
"""Lines of blocks that are run otherwise."""

PROGRAM = "python -m HybridMIMLib "


def blocks() -> list[tuple[str, str]]:
    """Language and text of every block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text_of("README.md"), re.MULTILINE | re.DOTALL)


def reason_not_to_run(text: str) -> str:
    return next((why for begin, why in NOT_RUN.items() if text.startswith(begin)), "")


def command_lines() -> list[list[str]]:
    """The commands of this program that blocks give, as lists of arguments."""
    found = []
    for language, text in blocks():
        if language != "sh" or reason_not_to_run(text):
            continue
        for line in text.splitlines():
            if not any(line.startswith(begin) for begin in NO_LINE_RUN):
                assert line.startswith(PROGRAM), f"nobody runs: {line}"
                found.append(shlex.split(line.removeprefix(PROGRAM), comments=True))
    return found


def command_of(arguments: list[str]) -> str:
    return " ".join(arguments[:2]) if arguments[0] == "model" else arguments[0]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the examples are called: the folders that they name, with tiny scans, and settings for tiny runs."""
    write_blobs(tmp_path / "CASES", 4, labelled=True, seed=2)
    write_blobs(tmp_path / "SCANS", 4, labelled=False, seed=1)
    shutil.copytree(tmp_path / "SCANS", tmp_path / "UNLABELLED")
    (tmp_path / "NEW").mkdir()
    for number in (0, 1):
        shutil.copy(tmp_path / "CASES" / "images" / f"blob_{number}.nii.gz", tmp_path / "NEW")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny()), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path / "workspace"))
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


def tiny(**more: Any) -> dict[str, Any]:
    """Settings of a run of two steps."""
    whole: dict[str, Any] = {name: dict(section) for name, section in TINY.items()}
    for stage in ("pretraining", "finetuning"):
        whole[stage] |= {"steps": 2, **more}
    whole["evaluation"] = {"resamples": 100}
    return whole


def test_every_block_is_run_or_named_with_a_reason() -> None:
    assert len(blocks()) > 8
    used = {begin for begin in NOT_RUN if any(text.startswith(begin) for _, text in blocks())}
    assert used == set(NOT_RUN), "a block that is not there any more"
    for language, text in blocks():
        if not language:
            continue  # a picture of folders, or what a command printed
        assert reason_not_to_run(text) or language in ("sh", "python"), f"nobody runs: {text[:60]}"


def test_commands_in_the_text_exist() -> None:
    """In every block, those that are not run too, and in the text itself."""
    text = text_of("README.md")
    for found in re.findall(r"python -m HybridMIMLib (\w+)(?: (\w+))?", text):
        name = " ".join(found).strip() if found[0] == "model" else found[0]
        assert name in COMMANDS, name
    targets = set(re.findall(r"^make (?:\w+=\S+ )*(\w+)", "\n".join(text for _, text in blocks()), re.MULTILINE))
    assert targets and all(re.search(rf"^{target}:", text_of("Makefile"), re.MULTILINE) for target in targets)


def test_command_lines_do_what_they_say(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in command_lines():
        command = command_of(arguments)
        if command == "model ensemble":
            # Of a kind, and not the same.
            shutil.copytree("FINETUNED", "ONE")
            assert main(shlex.split("finetune --labelled CASES --output OTHER --seed 1 --config tiny.yaml")) == 0
        config = [] if command.startswith("model") or command in ("info", "serve") else ["--config", "tiny.yaml"]
        status = main([*arguments, *config])
        assert status == 0, f"{' '.join(arguments)}\n{capfd.readouterr().err}"
    for name in (
        "PRETRAINED/pretrained.safetensors",
        "FINETUNED/model",
        "SEGMENTED/labels/blob_0.nii.gz",
        "EVALUATED/report.html",
        "RANKED/ranking.csv",
        "BY-LIVER/labels/blob_0.nii.gz",
        "liver.zip",
        "both.zip",
    ):
        assert (folder / name).exists(), f"the README tells of {name}"
    # The line for plain MONAI, which test_plain_monai.py runs, is for the unpacked package.
    assert all(name.startswith("liver/") for name in zipfile.ZipFile("liver.zip").namelist())


def test_python_does_what_it_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = [text for language, text in blocks() if language == "python" and "import pretrain" in text]
    for name in ("pretrain", "finetune"):
        whole = getattr(HybridMIMLib, name)
        # What the example sets is taken, too, but for the number of steps.
        smaller = lambda whole=whole, **given: whole(**given | tiny())  # noqa: E731
        monkeypatch.setitem(vars(HybridMIMLib), name, smaller)
    exec(compile(code, "README.md", "exec"), {})
    assert (folder / "SEGMENTED" / "labels" / "blob_1.nii.gz").is_file()
