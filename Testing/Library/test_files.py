"""Files are there whole or not at all; a full disk is named."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from HybridMIMLib.errors import DiskError
from HybridMIMLib.files import atomic_path, disk_errors, read_json, write_json, write_text

_LIMITED = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))
from HybridMIMLib.errors import DiskError
try:
    {code}
except DiskError as error:
    print(error)
"""


def on_a_full_disk(code: str, *arguments: Path) -> str:
    """Run code in a process that may write 40 kB to a file; returns the DiskError's line."""
    program = _LIMITED.format(code=code)
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_is_written_comes_back(unicode_folder: Path) -> None:
    target = unicode_folder / "deeper" / "a.json"
    write_json(target, {"jméno": "数", "n": [1, float("nan")]})
    assert read_json(target) == {"jméno": "数", "n": [1, None]}
    assert "数" in target.read_text(encoding="utf-8")
    assert os.listdir(target.parent) == ["a.json"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_file_in_place_of_the_folder_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("mine")
    with pytest.raises(DiskError, match="labels: is a file"):
        write_text(tmp_path / "labels" / "a.txt", "new")
    assert (tmp_path / "labels").read_text() == "mine"


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.nii.gz"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert temporary.name.endswith("a.nii.gz") and temporary.parent == tmp_path
        assert target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize("name", ["n" * 248 + ".nii.gz", "数" * 82 + ".nii.gz"])
def test_the_longest_names_can_be_written(tmp_path: Path, name: str) -> None:
    with atomic_path(tmp_path / name) as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("x")
    assert (tmp_path / name).read_text() == "x"


@pytest.mark.parametrize(
    "code",
    [
        'from HybridMIMLib.files import write_text; write_text(Path(sys.argv[1]), "x" * 50000)',
        'from HybridMIMLib.files import write_json; write_json(Path(sys.argv[1]), ["x" * 50000])',
    ],
)
def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path: Path, code: str) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")
    line = on_a_full_disk(code, target)
    assert str(target) in line and "full" in line and "Free some space" in line
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["out.txt"]


def test_a_full_disk_met_by_numpy_is_recognised(tmp_path: Path) -> None:
    code = (
        "import numpy; from HybridMIMLib.files import atomic_path\n"
        "    with atomic_path(Path(sys.argv[1])) as t: numpy.save(t, numpy.zeros(50000))"
    )
    assert "full" in on_a_full_disk(code, tmp_path / "a.npy")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_met_by_torch_is_recognised(tmp_path: Path) -> None:
    code = (
        "import torch; from HybridMIMLib.files import atomic_path\n"
        "    with atomic_path(Path(sys.argv[1])) as t: torch.save(torch.zeros(50000), t)"
    )
    assert "full" in on_a_full_disk(code, tmp_path / "checkpoint.pt")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_found_behind_other_errors(tmp_path: Path, number: int) -> None:
    with pytest.raises(DiskError, match="full"), disk_errors(tmp_path / "a"):
        try:
            raise OSError(number, "no room")
        except OSError as error:
            raise ValueError("the writer failed") from error


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_missing_permission_is_named(tmp_path: Path, number: int) -> None:
    with pytest.raises(DiskError, match="not permitted"), disk_errors(tmp_path / "a"):
        raise OSError(number, "no")


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        (tmp_path / "nothing").read_bytes()
    with pytest.raises(ZeroDivisionError), disk_errors(tmp_path):
        _ = 1 // 0
    with pytest.raises(KeyboardInterrupt), disk_errors(tmp_path):
        raise KeyboardInterrupt


def test_the_inner_file_is_named_not_the_outer_one(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="inner"), disk_errors(tmp_path / "outer"), disk_errors(tmp_path / "inner"):
        raise OSError(errno.ENOSPC, "no room")
