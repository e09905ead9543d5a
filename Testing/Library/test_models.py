"""``model pack, add, list, remove``, as a user meets them."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from small_packages import make_package

from HybridMIMLib import add_model, list_models, pack_model, remove_model
from HybridMIMLib.cli import main
from HybridMIMLib.data.clean_up import CleanUp
from HybridMIMLib.data.model_description import METADATA, NO_LICENSE
from HybridMIMLib.data.package_check import check_package
from HybridMIMLib.errors import ModelError, SettingsError
from HybridMIMLib.model_package import LICENSE, load_model
from HybridMIMLib.settings.network import NetworkSettings


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path / "ws"))
    return tmp_path / "ws"


@pytest.fixture
def model(workspace: Path) -> Path:
    folder = workspace / "runs" / "liver run" / "model"
    make_package(NetworkSettings(features=[4, 8, 8]), name="Léber").save(folder)
    return folder


def test_from_a_run_to_somebody_else(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_model(model=model, output=tmp_path / "liver.zip", license="CC-BY-4.0")
    assert packed == {
        "package": str(tmp_path / "liver.zip"), "name": "Léber", "license": "CC-BY-4.0", "in_monai": "yes",
        "bytes": (tmp_path / "liver.zip").stat().st_size,
    }  # fmt: skip
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(tmp_path / "somebody else"))
    assert list_models()["models"] == []
    added = add_model(model=tmp_path / "liver.zip")
    assert added["new"] and (added["name"], added["classes"]) == ("Léber", ["Léber", "Milz"])
    assert not add_model(model=tmp_path / "liver.zip")["new"]
    (row,) = list_models()["models"]
    assert (row["name"], row["path"], row["added"]) == ("Léber", added["path"], True)
    assert load_model("Léber").license == "CC-BY-4.0"
    assert remove_model(model="Léber")["path"] == added["path"]
    assert list_models()["models"] == [] and not Path(added["path"]).exists()


def test_a_zip_has_one_folder_and_can_be_packed_again_under_another_name(model: Path, tmp_path: Path) -> None:
    pack_model(model=model, output=tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"Léber"}
    pack_model(model=tmp_path / "a.zip", output=tmp_path / "b.zip", name="Spleen")
    pack_model(model=tmp_path / "b.zip", output=tmp_path / "folder")
    assert json.loads((tmp_path / "folder" / METADATA).read_text())["name"] == "Spleen"
    assert check_package(tmp_path / "folder").digest == check_package(tmp_path / "b.zip").digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b.zip", "folder", "ws"]


def test_a_license_is_a_text_or_a_file(model: Path, tmp_path: Path) -> None:
    (tmp_path / "license.txt").write_text("MIT Licénse\n\nPermission is …", encoding="utf-8")
    assert pack_model(model=model, output=tmp_path / "a")["license"] == NO_LICENSE
    packed = pack_model(model=model, output=tmp_path / "a", license=tmp_path / "license.txt")
    assert packed["license"] == "MIT Licénse"
    assert (tmp_path / "a" / LICENSE).read_text(encoding="utf-8") == "MIT Licénse\n\nPermission is …\n"
    (tmp_path / "other.txt").write_bytes(b"\xff\xfe")
    for wrong in (tmp_path / "other.txt", " ", "no-such-license.txt", tmp_path / "no such.md"):
        with pytest.raises(SettingsError, match="license"):
            pack_model(model=model, output=tmp_path / "a", license=wrong)
    for words in ("https://example.org/LICENSE.txt", "See LICENSE.txt"):
        assert pack_model(model=model, output=tmp_path / "a", license=words)["license"] == words


def test_clean_up_goes_with_the_package_and_paths_do_not(model: Path, tmp_path: Path) -> None:
    origin = "loaded 3 of 4 tensors (90 % of the encoder's numbers) from /home/me/secret run; 1 of the file left out"
    made = {"pretrained": origin, "settings": {"split": "/home/me/split.json", "steps": 5}, "seed": 1}
    replace(load_model(model), provenance=made).save(model)
    pack_model(model=model, output=tmp_path / "a.zip", inference={"largest": ["Milz"], "smallest_ml": ["all=2"]})
    package = load_model(tmp_path / "a.zip")
    assert package.clean_up == CleanUp(frozenset({7}), frozenset(), {2: 2.0, 7: 2.0})
    words = "loaded 3 of 4 tensors (90 % of the encoder's numbers) from a pre-training; 1 of the file left out"
    assert package.provenance == {"pretrained": words, "settings": {"steps": 5}, "seed": 1}
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert not any(b"/home/me" in archive.read(name) for name in archive.namelist())
        assert b"not cleaned up" in archive.read("L\u00e9ber/docs/README.md")
    with pytest.raises(SettingsError, match="Leber"):
        pack_model(model=model, output=tmp_path / "b.zip", inference={"largest": ["Leber"]})


def test_only_packages_are_overwritten(model: Path, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("x")
    for output in (thesis, thesis / "chapter.txt"):
        with pytest.raises(SettingsError, match="is no model package"):
            pack_model(model=model, output=output)
    (tmp_path / "folder.zip").mkdir()
    with pytest.raises(SettingsError, match="is a folder"):
        pack_model(model=model, output=tmp_path / "folder.zip")
    assert (thesis / "chapter.txt").read_text() == "x"
    assert pack_model(model=model, output=model)["name"] == "Léber"


def test_two_stages_are_not_for_monai(tmp_path: Path) -> None:
    make_package().save(tmp_path / "model")
    assert "3 stages" in pack_model(model=tmp_path / "model", output=tmp_path / "a.zip")["in_monai"]


def test_what_a_run_made_is_not_removed(model: Path) -> None:
    with pytest.raises(ModelError, match="is not a model that was added"):
        remove_model(model=model)
    assert load_model(model).name == "Léber"


def test_the_commands(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "liver.zip"
    assert main(["model", "pack", "--model", str(model), "--output", str(file), "--name=Liver", "--license=MIT"]) == 0
    assert main(["model", "add", "--model", str(file)]) == 0
    said = capsys.readouterr().out
    assert "added: Liver" in said and "license      MIT" in said and "segment --scans NEW --model 'Liver'" in said
    assert main(["model", "add", f"--model={file}"]) == 0
    assert "was there already: Liver" in capsys.readouterr().out
    assert main(["model", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:4]] == [["Liver", "added"], ["Léber", "run"]]
    assert main(["model", "remove", "--model", "Liver"]) == 0
    assert main(["model", "remove", "--model", "Liver"]) == 1
    assert "Liver: is not a model that was added" in capsys.readouterr().err
    assert main(["model", "add"]) == 2 and main(["model", "lend"]) == 2
    said = capsys.readouterr().err
    assert "--model is missing" in said and "no command 'model lend'" in said and "model pack" in said
    assert main(["model"]) == main(["model", "--help"]) == 0
    assert "model remove" in capsys.readouterr().out


def test_a_damaged_package_is_one_line_and_exit_code_1(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack_model(model=model, output=tmp_path / "a.zip")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "a.zip").write_bytes(content)
    assert main(["model", "add", f"--model={tmp_path / 'a.zip'}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'a.zip'}: ") and said.count("\n") == 1


@pytest.mark.parametrize("name", ["con", "NUL", "lpt1", "\U00020000" * 60, "肝" * 60, "..."])
def test_what_was_packed_can_be_added_whatever_it_is_called(model: Path, tmp_path: Path, name: str) -> None:
    pack_model(model=model, output=tmp_path / "a.zip", name=name)
    assert add_model(model=tmp_path / "a.zip")["name"] == name


@pytest.mark.parametrize("inside", ["liver.zip", "copy", "docs/liver.zip"])
def test_nothing_is_packed_into_the_model_itself(model: Path, inside: str) -> None:
    with pytest.raises(SettingsError, match="is inside the model itself"):
        pack_model(model=model, output=model / inside)
    assert load_model(model).name == "Léber"


def test_one_that_can_no_longer_be_read_is_listed_and_removed(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(add_model(model=model)["path"])
    (path / METADATA).write_text("{")
    assert list_models()["damaged"] == [str(path)]
    assert main(["model", "list"]) == 0 and str(path) in capsys.readouterr().out
    assert main(["model", "remove", "--model", str(path)]) == 0 and not path.exists()
