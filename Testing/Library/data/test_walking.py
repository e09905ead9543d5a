"""Whether anything below a folder has changed since it was looked at."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from HybridMIMLib.data.walking import folder_stamp
from HybridMIMLib.errors import DataError


@pytest.fixture
def folder(unicode_folder: Path) -> Path:
    (unicode_folder / "images").mkdir()
    for name in ("a.nrrd", "b.nrrd"):
        (unicode_folder / "images" / name).write_bytes(b"12345")
        os.utime(unicode_folder / "images" / name, (1e9, 1e9))
    return unicode_folder


CHANGES: dict[str, Callable[[Path], object]] = {
    "one more": lambda images: (images / "c.nrrd").touch(),
    "one less": lambda images: (images / "a.nrrd").unlink(),
    "renamed": lambda images: (images / "a.nrrd").rename(images / "z.nrrd"),
    "written anew": lambda images: (images / "a.nrrd").write_bytes(b"54321"),
    "moved": lambda images: images.rename(images.with_name("scans")),
    "a link to nowhere": lambda images: (images / "c.nrrd").symlink_to(images / "gone.nrrd"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_makes_another_stamp(folder: Path, change: Callable[[Path], object]) -> None:
    before = folder_stamp(folder)
    assert folder_stamp(folder) == before
    change(folder / "images")
    assert folder_stamp(folder) != before


def test_what_training_passes_over_changes_nothing(folder: Path) -> None:
    before = folder_stamp(folder)
    (folder / ".cases.json").write_text("{}")
    (folder / ".replaced").mkdir()
    (folder / ".replaced" / "a.nrrd").touch()
    (folder / "images" / ".tmp-1234-c.nrrd").touch()
    assert folder_stamp(folder) == before


def test_a_folder_within_itself_comes_to_an_end(folder: Path) -> None:
    (folder / "images" / "again").symlink_to(folder)
    assert folder_stamp(folder) == folder_stamp(folder)


def test_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        folder_stamp(tmp_path / "gone")
