"""The user's models: added once, whole or not at all, found by name, removed and nothing else with them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from small_packages import edit_json, entries_of, make_package, rehash, write_zip

from HybridMIMLib.data import model_store
from HybridMIMLib.data.model_description import METADATA
from HybridMIMLib.data.model_store import (
    add,
    added_models,
    all_models,
    damaged_models,
    is_added,
    locate,
    models_folder,
    remove,
)
from HybridMIMLib.data.package_check import CheckedPackage, check_package
from HybridMIMLib.data.package_files import HASHES, PackageFiles
from HybridMIMLib.errors import ModelError
from HybridMIMLib.files import TEMPORARY


@pytest.fixture(autouse=True)
def workspace(unicode_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(unicode_folder / "ws"))
    return unicode_folder / "ws"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    make_package(name="Liver/../Spleen").save(folder)
    return folder


def inside() -> list[str]:
    return sorted(path.name for path in models_folder().glob("*"))


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_is_added_is_the_same_and_is_found_by_its_name(source: Path, tmp_path: Path, kind: str) -> None:
    assert added_models() == [] == all_models()
    path = source if kind == "folder" else write_zip(tmp_path / "a.zip", entries_of(source, "m/"))
    found, new = add(path)
    assert new and found.path.parent == models_folder() and is_added(found)
    assert entries_of(found.path) == entries_of(source)
    assert locate("Liver/../Spleen") == found.path and [one.path for one in added_models()] == [found.path]
    assert inside() == [found.path.name] and found.path.name.startswith("Liver-Spleen-")


def test_added_twice_it_is_there_once(source: Path, tmp_path: Path) -> None:
    found, _ = add(source)
    changed = found.path.stat().st_mtime_ns
    again, new = add(write_zip(tmp_path / "a.zip", entries_of(source)))
    assert not new and again == found and found.path.stat().st_mtime_ns == changed
    assert not add(found.path)[1] and len(inside()) == 1


def test_one_that_was_damaged_there_is_replaced(source: Path) -> None:
    found, _ = add(source)
    (found.path / "LICENSE").write_text("changed")
    assert add(source) == (found, True)
    assert check_package(found.path).digest == check_package(source).digest


def test_two_of_one_name_are_refused(source: Path, tmp_path: Path) -> None:
    found, _ = add(source)
    other = Path(shutil.copytree(source, tmp_path / "other"))
    (other / "LICENSE").write_text("another license")
    with pytest.raises(ModelError, match="another model is called 'Liver/../Spleen' already") as caught:
        add(rehash(other))
    assert str(found.path) in str(caught.value) and "model remove" in caught.value.cure
    assert inside() == [found.path.name]


def test_what_is_wrong_leaves_nothing(source: Path, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(source, tmp_path / "bad"))
    (bad / "LICENSE").write_text("changed")
    for path in (bad, tmp_path / "missing.zip", tmp_path):
        with pytest.raises(ModelError):
            add(path)

    def refuse(found: CheckedPackage) -> None:
        assert inside() == [], "something was unpacked before all was checked"
        raise ModelError("no", cure="none")

    with pytest.raises(ModelError, match="no"):
        add(source, refuse)
    assert inside() == []


@pytest.mark.parametrize("at", ["check_package", "unpack", "os.replace"])
def test_what_is_broken_off_is_not_seen(source: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"HybridMIMLib.data.model_store.{at}", stop)
    with pytest.raises(KeyboardInterrupt):
        add(source)
    assert inside() == []
    monkeypatch.undo()


def test_a_kill_leaves_nothing_that_is_listed_and_is_tidied_up_later(source: Path) -> None:
    half = models_folder() / f"{TEMPORARY}killed"
    shutil.copytree(source, half)
    young = models_folder() / f"{TEMPORARY}at work"
    shutil.copytree(source, young)
    old = time.time() - 2 * model_store._SECONDS_TO_UNPACK
    os.utime(half, (old, old))
    assert added_models() == []
    found, _ = add(source)
    assert inside() == sorted([found.path.name, young.name])


def test_remove_takes_the_model_and_nothing_else(source: Path, workspace: Path) -> None:
    run = Path(shutil.copytree(source, workspace / "runs" / "one" / "model"))
    found, _ = add(source)
    assert {one.path for one in all_models()} == {run, found.path}
    for wrong in (run, source, "Liver", workspace / "runs", models_folder()):
        with pytest.raises(ModelError, match="is not a model that was added"):
            remove(wrong)
    with pytest.raises(ModelError, match=r"Did you mean 'Liver/\.\./Spleen'"):
        remove("Liver/../Spleeen")
    assert remove("Liver/../Spleen") == (found.name, found.path)
    assert inside() == [] and [one.path for one in all_models()] == [run]
    assert entries_of(run) == entries_of(source)
    with pytest.raises(ModelError, match="None was added yet"):
        remove("Liver/../Spleen")


def test_it_is_removed_by_its_folder_too(source: Path) -> None:
    found, _ = add(source)
    assert remove(str(found.path)) == (found.name, found.path) and inside() == []


def test_one_that_can_no_longer_be_read_is_told_and_removed(source: Path, workspace: Path) -> None:
    found, _ = add(source)
    assert damaged_models() == []
    (found.path / METADATA).write_text("{")
    others = [models_folder() / name for name in ("mine", f"{TEMPORARY}1-0123456789abcdef")]
    for other in others:
        other.mkdir()
        with pytest.raises(ModelError, match="is not a model that was added"):
            remove(other)
    assert added_models() == [] and damaged_models() == [found.path]
    assert remove(found.path) == (found.path.name, found.path)
    assert inside() == sorted(one.name for one in others) and damaged_models() == []


def test_two_who_add_one_model_at_once_both_have_it(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack, others = model_store.unpack, [source]

    def unpack_while_another_does(files: PackageFiles, hashes: Mapping[str, str], target: Path) -> None:
        unpack(files, hashes, target)
        if others:
            assert add(others.pop())[1]

    monkeypatch.setattr(model_store, "unpack", unpack_while_another_does)
    found, new = add(source)
    assert not new and inside() == [found.path.name]


def test_a_path_is_meant_before_a_name_unless_it_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_package(name="liver").save(tmp_path / "package")
    found, _ = add(tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "liver").mkdir()
    assert locate("liver") == found.path
    shutil.rmtree(tmp_path / "liver")
    (tmp_path / "liver").write_text("notes on livers")
    assert locate("liver") == found.path
    (tmp_path / "liver").unlink()
    (tmp_path / "package").rename("liver")
    assert locate("liver") == Path("liver")
    assert locate("nobody") == Path("nobody")


def test_copies_made_by_hand_are_not_guessed_between(source: Path) -> None:
    found, _ = add(source)
    shutil.copytree(found.path, found.path.with_name("copy"))
    with pytest.raises(ModelError, match="2 models are called"):
        locate("Liver/../Spleen")


def test_what_cannot_be_read_is_not_listed(source: Path) -> None:
    found, _ = add(source)
    edit_json(found.path / METADATA, lambda content: content.pop("hybridmim"))
    (models_folder() / "a file.txt").write_text("x")
    (models_folder() / "empty").mkdir()
    assert added_models() == []
    assert (found.path / HASHES).exists()
