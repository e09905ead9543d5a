"""The files of a package: names, sizes and hashes, from folders and zips that people made, and that attackers did."""

from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_packages import entries_of, make_package, rehash, write_zip

from HybridMIMLib.data import package_files
from HybridMIMLib.data.model_description import METADATA, WEIGHTS
from HybridMIMLib.data.package_check import check_package
from HybridMIMLib.data.package_files import (
    HASHES,
    MOST_FILES,
    file_name,
    open_package,
    pack,
    read_hashes,
    unpack,
    wrong_with_name,
)
from HybridMIMLib.errors import DiskError, ModelError


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package in a folder, to read and not to change."""
    folder = tmp_path_factory.mktemp("sound") / "model"
    make_package().save(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


def refused(path: Path, words: str) -> None:
    """The package is refused in one line that names it, and it says what to do."""
    with pytest.raises(ModelError, match=words) as caught:
        check_package(path)
    assert str(path) in caught.value.message and caught.value.cure and "\n" not in str(caught.value)


@pytest.mark.parametrize("top", ["", "liver/"])
def test_folder_and_zip_say_the_same(sound: Path, tmp_path: Path, top: str) -> None:
    file = write_zip(tmp_path / "a.zip", entries_of(sound, top))
    one, other = check_package(sound), check_package(file)
    assert one.digest == other.digest and one.hashes == other.hashes and one.weights == other.weights
    assert METADATA.as_posix() in one.hashes and HASHES.as_posix() not in one.hashes
    assert other.description.path == file


def test_packed_and_unpacked_it_is_the_same(sound: Path, tmp_path: Path) -> None:
    pack(sound, tmp_path / "a.zip", "Léber")
    pack(sound, tmp_path / "b.zip", "Léber")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with open_package(tmp_path / "a.zip") as files:
        unpack(files, read_hashes(files), tmp_path / "out")
    assert entries_of(tmp_path / "out") == entries_of(sound)


def test_any_other_folder_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "con.zip").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "docs")
    refused(tmp_path, "is not a model package")


def test_what_systems_litter_is_passed_over(folder: Path, tmp_path: Path) -> None:
    digest = check_package(folder).digest
    (folder / ".DS_Store").write_text("x")
    (folder / "docs" / "Thumbs.db").write_text("x")
    assert check_package(folder).digest == digest
    file = write_zip(tmp_path / "a.zip", [*entries_of(folder, "m/"), ("__MACOSX/m/._LICENSE", b"x"), ("m/", b"")])
    assert check_package(file).digest == digest


NAMES = {
    "../evil.md": "lead out",
    "docs/../../evil.md": "lead out",
    "/etc/evil.md": "lead out",
    "C:/evil.md": "lead out",
    "C:evil.md": "lead out",
    "docs\\..\\..\\evil.md": "lead out",
    "\\\\server\\share\\evil.md": "lead out",
    "docs//evil.md": "lead out",
    "./evil.md": "lead out",
    "docs/evil.md:stream": "lead out",
    "docs/a\nb.md": "no name",
    "docs/a\x1bb.md": "no name",
    "docs/\u202edm.exe.md": "no name",
    "a/b/c/d/e.md": "no name",
    f"{'x' * 200}.md": "no name",
    "CON.md": "Windows",
    "docs/aux": "Windows",
    "docs/LPT1.txt": "Windows",
    "docs/com¹.md": "Windows",
    "docs/evil.md.": "Windows",
    "docs /evil.md": "Windows",
    "LICENCE.md ": "Windows",
    "docs/readme.md": "one name",
    "license": "one name",
    "Configs/other.json": "one name",
    "LICENSE/inner.md": "one name",
    "docs/ＲＥＡＤＭＥ.md": "one name",
    "models/model.pt": "can run a program",
    "models/model.PKL": "can run a program",
    "scripts/start.py": "can run a program",
    "models/model.ts": "can run a program",
    "docs/run.exe": "does not belong",
    "docs/page.html": "does not belong",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_means_harm_is_refused_in_a_zip(sound: Path, tmp_path: Path, name: str) -> None:
    content = [*entries_of(sound), (name, b"x")]
    hashes = json.loads((sound / HASHES).read_text(encoding="utf-8"))
    # It is listed with its hash: that alone would not stop it.
    listed = json.dumps({**hashes, name: "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}).encode()
    entries = [(n, listed if n == HASHES.as_posix() else c) for n, c in content]
    refused(write_zip(tmp_path / "a.zip", entries), NAMES[name])
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize("name", ["docs/a\\b.md", "CON.md", "license", "models/model.pt", "docs/a\nb.md"])
def test_and_in_a_folder(folder: Path, name: str) -> None:
    if (folder / name).exists():
        pytest.skip("this file system does not tell the two names apart")
    (folder / name).write_text("x")
    refused(rehash(folder), NAMES.get(name, "lead out"))


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="abc./\\: C~", min_size=1, max_size=12))
def test_a_name_that_passes_stays_inside_on_every_system(name: str) -> None:
    if wrong_with_name(name):
        return
    from pathlib import PurePosixPath, PureWindowsPath

    for kind, root in ((PurePosixPath, "/in/side"), (PureWindowsPath, "C:\\in\\side")):
        joined = kind(root) / name  # type: ignore[operator]
        assert kind(root) in joined.parents and ".." not in joined.parts
        assert len(joined.parts) == len(kind(root).parts) + name.count("/") + 1


def test_a_zero_byte_hides_no_name(sound: Path, tmp_path: Path) -> None:
    file = write_zip(tmp_path / "a.zip", [*entries_of(sound), ("docs/aXb.md", b"x")])
    file.write_bytes(file.read_bytes().replace(b"docs/aXb.md", b"docs/a\0b.md"))
    refused(file, "no name")


def link(target: str) -> tuple[zipfile.ZipInfo, bytes]:
    entry = zipfile.ZipInfo("docs/link.md")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry, target.encode()


def test_a_link_is_refused(sound: Path, folder: Path, tmp_path: Path) -> None:
    refused(write_zip(tmp_path / "a.zip", [*entries_of(sound), link("/etc/passwd")]), "a link")
    (tmp_path / "secret.md").write_text("x")
    try:
        (folder / "docs" / "link.md").symlink_to(tmp_path / "secret.md")
    except OSError:
        pytest.skip("links may not be made here")
    refused(folder, "leads to another place")
    (folder / "docs" / "link.md").unlink()
    (folder / "more").symlink_to(tmp_path, target_is_directory=True)
    refused(folder, "leads to another place")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_a_pipe_does_not_make_us_wait(folder: Path) -> None:
    os.mkfifo(folder / "docs" / "pipe.md")
    refused(folder, "neither a file nor a folder")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name_are_refused(sound: Path, tmp_path: Path) -> None:
    refused(write_zip(tmp_path / "a.zip", [*entries_of(sound), ("LICENSE", b"other")]), "two files 'LICENSE'")


def test_files_beside_the_package_are_refused(sound: Path, tmp_path: Path) -> None:
    refused(write_zip(tmp_path / "a.zip", [*entries_of(sound, "m/"), ("evil.md", b"x")]), "beside the folder")


def patched(file: Path, change: Callable[[bytes], bytes]) -> Path:
    file.write_bytes(change(file.read_bytes()))
    return file


def directory_entry(content: bytes, name: bytes) -> int:
    """Where the central directory's entry for a file begins."""
    return content.rindex(name) - 46


def with_field(name: bytes, at: int, value: bytes) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        first = directory_entry(content, name) + at
        return content[:first] + value + content[first + len(value) :]

    return change


def test_an_encrypted_or_oddly_packed_file_is_refused(sound: Path, tmp_path: Path) -> None:
    file = write_zip(tmp_path / "a.zip", entries_of(sound))
    refused(patched(file, with_field(b"LICENSE", 8, b"\x01\x00")), "encrypted")
    file = write_zip(tmp_path / "b.zip", entries_of(sound), zipfile.ZIP_LZMA)
    refused(file, "unusual way")


def test_a_bomb_is_refused_by_what_it_says(sound: Path, tmp_path: Path) -> None:
    file = write_zip(tmp_path / "a.zip", [*entries_of(sound), ("docs/zeros.txt", bytes(24 * 2**20))])
    assert file.stat().st_size < 2**17
    refused(file, "would unpack to")


def test_and_one_that_lies_by_what_comes_out(sound: Path, tmp_path: Path) -> None:
    """The directory says 1 byte; 24 MB would come out."""
    entries = [*entries_of(sound), ("docs/zeros.txt", bytes(24 * 2**20))]
    hashes = json.loads((sound / HASHES).read_text(encoding="utf-8"))
    listed = json.dumps({**hashes, "docs/zeros.txt": "0" * 64}).encode()
    file = write_zip(tmp_path / "a.zip", [(n, listed if n == HASHES.as_posix() else c) for n, c in entries])
    lying = patched(file, with_field(b"docs/zeros.txt", 24, (1).to_bytes(4, "little")))
    refused(lying, "docs/zeros.txt")
    with open_package(lying) as files, pytest.raises(ModelError, match=r"zeros\.txt"):
        assert sum(map(len, files.blocks("docs/zeros.txt"))) <= 2**20


def test_a_file_shorter_than_it_says_is_refused(sound: Path, tmp_path: Path) -> None:
    file = write_zip(tmp_path / "a.zip", entries_of(sound), zipfile.ZIP_STORED)
    size = (sound / "LICENSE").stat().st_size + 5
    refused(patched(file, with_field(b"LICENSE", 24, size.to_bytes(4, "little"))), "LICENSE")


def test_a_zip_that_is_cut_or_damaged_is_refused(sound: Path, tmp_path: Path) -> None:
    content = write_zip(tmp_path / "a.zip", entries_of(sound)).read_bytes()
    middle = content.index(WEIGHTS.as_posix().encode()) + 400
    for number, damaged in enumerate(
        (content[:-1], content[: len(content) // 2], b"", b"PK", content[:middle] + b"!!!!" + content[middle + 4 :])
    ):
        file = tmp_path / f"{number}.zip"
        file.write_bytes(damaged)
        refused(file, "is not a model package|cannot be read|changed")


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_whatever_bytes_are_changed_it_is_the_same_package_or_none(
    data: st.DataObject, sound: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = write_zip(tmp_path_factory.mktemp("noise") / "a.zip", entries_of(sound))
    content = bytearray(file.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[at] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    try:
        found = check_package(file)
    except ModelError:
        return
    assert found.digest == check_package(sound).digest


def test_a_directory_of_many_entries_is_refused_before_it_is_read(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [(f"docs/{number}.md", b"") for number in range(5 * MOST_FILES)]
    file = write_zip(tmp_path / "a.zip", [*entries_of(sound), *many])
    large = patched(
        write_zip(tmp_path / "b.zip", entries_of(sound)),
        lambda content: content[:-22] + b"PK\x06\x07" + bytes(16) + content[-22:],
    )

    def read(*_: object) -> None:
        raise AssertionError("the directory was read")

    monkeypatch.setattr(zipfile.ZipFile, "_RealGetContents", read)
    refused(file, f"more than {MOST_FILES} files")
    refused(large, "larger than a model can be")


def test_too_many_files_in_a_folder(folder: Path) -> None:
    for number in range(MOST_FILES):
        (folder / "docs" / f"{number}.md").write_text("x")
    refused(folder, f"more than {MOST_FILES} files")


def test_a_changed_a_missing_and_an_unlisted_file_are_refused(folder: Path) -> None:
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / WEIGHTS).write_bytes(weights)
    refused(folder, r"models/model\.safetensors was changed")
    rehash(folder)
    (folder / "docs" / "more.md").write_text("x")
    refused(folder, r"does not list, 'docs/more\.md'")
    (folder / "docs" / "more.md").unlink()
    (folder / "docs" / "README.md").unlink()
    refused(folder, r"lacks 'docs/README\.md'")


@pytest.mark.parametrize("content", ["", "[]", '{"LICENSE": 3}', "{", "[" * 100_000])
def test_a_damaged_list_of_hashes_is_refused(folder: Path, content: str) -> None:
    (folder / HASHES).write_text(content)
    refused(folder, r"sha256\.json")
    (folder / HASHES).unlink()
    refused(folder, r"has no configs/sha256\.json")


def test_what_was_changed_after_the_check_is_not_unpacked(folder: Path, tmp_path: Path) -> None:
    with open_package(folder) as files:
        hashes = read_hashes(files)
        text = (folder / "LICENSE").read_bytes()
        (folder / "LICENSE").write_bytes(b"!" + text[1:])
        with pytest.raises(ModelError, match="LICENSE was changed"):
            unpack(files, hashes, tmp_path / "out")
        (folder / "LICENSE").write_bytes(text + b"more")
        with pytest.raises(ModelError, match="not as long as it says"):
            unpack(files, hashes, tmp_path / "other")


def test_a_full_disk_is_seen_before_anything_is_written(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with open_package(sound) as files, pytest.raises(DiskError, match="MB are free"):
        unpack(files, read_hashes(files), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "part"),
    [("Liver", "Liver"), ("../../x", "x"), ("a/b\\c:d", "a-b-c-d"), ("...", "model"), ("x" * 99, "x" * 40)],
)
def test_a_model_name_as_part_of_a_path(name: str, part: str) -> None:
    assert file_name(name) == part and wrong_with_name(f"{part}-1") == ""
