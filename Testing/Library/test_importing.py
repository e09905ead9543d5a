"""Runs from other machines: what is sound becomes a run of the workspace, and nothing else gets in."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from small_runs import UNICODE_NAME, KeptLog, save_threshold_model

from HybridMIMLib import importing
from HybridMIMLib.config import make_run
from HybridMIMLib.errors import DiskError, HybridMIMError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import read_json, write_json
from HybridMIMLib.importing import Imported, import_run
from HybridMIMLib.runs import describe_run, load_settings, save_settings

EVIL = "import os; os.system('touch /tmp/never')"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_threshold_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where runs are kept; whatever a test does, nothing half is left there."""
    folder = tmp_path / UNICODE_NAME
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(folder))
    yield folder
    assert not list(folder.glob(".tmp-*"))


@pytest.fixture
def came(tmp_path: Path, model: Path) -> Path:
    """An exported folder with its finished run, as it comes back: ``came/run``."""
    folder = tmp_path / "came"
    run = folder / "run"
    shutil.copytree(model, run / "model")
    save_settings(run / "run.yaml", make_run(None, {"labelled": "data/labelled", "output": "run", "seed": 3}))
    save_settings(folder / "run.yaml", make_run(None, {"labelled": "data/labelled", "output": "run", "seed": 3}))
    write_json(run / "about.json", describe_run("finetune"))
    (run / "events.jsonl").write_text('{"kind": "end", "outcome": "finished"}\nno json\n')
    torch.save({"phase": "finetune", "module": {"a": torch.zeros(3)}}, run / "checkpoint.pt")
    write_json(run / "result.json", {"model": "run/model", "step": 6, "files": ["run/a/b", "running/x", "run"]})
    write_json(folder / "export.json", {"name": "Läber 1", "origin": {"labelled": "/here/cases", "store": None}})
    (run / "run.pid").write_text("1\n\ncommand\n")
    (run / "store" / "a").mkdir(parents=True)
    (run / "store" / "a" / "image.npy").write_bytes(b"x" * 100)
    return folder


def take(source: Path, workspace: Path) -> Imported:
    return import_run(source, workspace / ".tmp-work", EventLog())


def packed(folder: Path, *others: tuple[str, bytes], top: str = "came/") -> Path:
    """A ``.zip`` of a folder, with other entries."""
    file = folder.with_suffix(".zip")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, f"{top}{path.relative_to(folder).as_posix()}")
        for name, content in others:
            archive.writestr(name, content)
    return file


@pytest.mark.parametrize("way", ["exported folder", "run folder", "zip", "zip of the run", "zip without a top"])
def test_a_finished_run_is_taken_with_its_model(came: Path, workspace: Path, way: str) -> None:
    sources: dict[str, Callable[[], Path]] = {
        "exported folder": lambda: came,
        "run folder": lambda: came / "run",
        "zip": lambda: packed(came),
        "zip of the run": lambda: packed(came / "run", top="run/"),
        "zip without a top": lambda: packed(came, top=""),
    }
    source = sources[way]()
    before = sorted(path.name for path in came.rglob("*"))
    found = take(source, workspace)
    knows_origin = way != "zip of the run"
    assert found.run.parent == workspace / "runs" and found.finished and found.notes == ()
    assert found.run.name == ("Läber-1" if knows_origin else "run")
    assert found.model == found.run / "model"
    run = load_settings(found.run / "run.yaml")
    assert run.seed == 3 and run.output == str(found.run)
    assert run.labelled == ("/here/cases" if knows_origin else "data/labelled")
    result = read_json(found.run / "result.json")
    assert result["model"] == str(found.run / "model") and result["step"] == 6
    assert result["files"] == [str(found.run / "a" / "b"), "running/x", str(found.run)]
    assert not (found.run / "run.pid").exists() and not (found.run / "store").exists()
    assert (found.run / "events.jsonl").read_text().endswith("no json\n"), "a damaged line harms nobody"
    assert [one for one in sorted(path.name for path in came.rglob("*")) if one in before] == before, "only read"


def test_one_that_is_not_finished_is_to_be_continued_and_a_second_gets_another_name(
    came: Path, workspace: Path
) -> None:
    (came / "run" / "result.json").unlink()
    shutil.rmtree(came / "run" / "model")
    first, second = take(came, workspace), take(came, workspace)
    assert [first.run.name, second.run.name] == ["Läber-1", "Läber-1-2"]
    assert not first.finished and first.model is None and "Resume" in first.notes[0]
    assert (first.run / "checkpoint.pt").exists()


def test_files_that_no_run_makes_are_left_out(came: Path, workspace: Path) -> None:
    (came / "run" / "run_me.py").write_text(EVIL)
    (came / "run" / "weights.pkl").write_bytes(pickle.dumps(1))
    found = take(came, workspace)
    assert not {one.suffix for one in found.run.rglob("*")} & {".py", ".pkl"}
    assert "2 file(s) that no run makes were left out, such as run_me.py" in found.notes[0]


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/hybridmim-was-here",)


def test_a_checkpoint_that_would_run_something_is_refused_and_not_run(came: Path, workspace: Path) -> None:
    torch.save({"phase": "finetune", "module": Evil()}, came / "run" / "checkpoint.pt")
    with pytest.raises(HybridMIMError, match=r"checkpoint.pt: cannot be read"):
        take(came, workspace)
    assert not Path("/tmp/hybridmim-was-here").exists()


def spoil_settings(run: Path) -> None:
    (run / "run.yaml").write_text("output: run\nno_such_setting: 1\n")


def spoil_yaml(run: Path) -> None:
    (run / "run.yaml").write_text("!!python/object/apply:os.system ['touch /tmp/hybridmim-was-here']")


def spoil_result(run: Path) -> None:
    (run / "result.json").write_text('{"model": ')


def spoil_about(run: Path) -> None:
    write_json(run / "about.json", {"command": "segment"})


def spoil_model(run: Path) -> None:
    file = run / "model" / "models" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


not_on_windows = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")


def spoil_checkpoint(run: Path) -> None:
    file = run / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:-200])


def spoil_weights(run: Path) -> None:
    (run / "best.safetensors").write_bytes((run / "model" / "models" / "model.safetensors").read_bytes()[:-8])


def link(run: Path) -> None:
    (run / "log.txt").symlink_to("/etc/passwd")


def link_folder(run: Path) -> None:
    (run / "previews").symlink_to("/etc")


def pipe(run: Path) -> None:
    os.mkfifo(run / "pipe")


def odd_name(run: Path) -> None:
    (run / "a\\..\\b.txt").touch()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (spoil_settings, r"run.yaml: there is no setting no_such_setting"),
        (spoil_yaml, r"run.yaml: the settings cannot be read"),
        (spoil_result, r"result.json: is damaged"),
        (spoil_about, r"about.json: names no command"),
        (spoil_model, r"models/model.safetensors was changed or damaged"),
        (spoil_checkpoint, r"checkpoint.pt: cannot be read"),
        (spoil_weights, r"best.safetensors: the weights are damaged"),
        (link, r"log.txt is a link to another place"),
        (link_folder, r"previews is a link to another place"),
        pytest.param(pipe, r"pipe is neither a file nor a folder", marks=not_on_windows),
        pytest.param(odd_name, r"could lead out of the folder", marks=not_on_windows),
    ],
)
def test_damage_and_traps_are_told_with_file_and_cure(
    came: Path, workspace: Path, harm: Callable[[Path], None], said: str
) -> None:
    harm(came / "run")
    with pytest.raises(HybridMIMError, match=said) as caught:
        take(came, workspace)
    assert caught.value.cure and str(workspace / ".tmp") not in str(caught.value), "it names what the user has"
    assert not list((workspace / "runs").glob("*")) if (workspace / "runs").exists() else True
    assert not Path("/tmp/hybridmim-was-here").exists()


@pytest.mark.parametrize("name", ["came/run/../../out.txt", "came/run/C:/out.txt", "came/run/a\\b.txt"])
def test_names_in_a_zip_cannot_lead_out_of_the_folder(came: Path, workspace: Path, name: str) -> None:
    with pytest.raises(HybridMIMError, match="could lead out"):
        take(packed(came, (name, b"x")), workspace)


def test_links_and_bombs_in_a_zip_are_refused(came: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = zipfile.ZipInfo("came/run/log.txt")
    entry.external_attr = 0o120777 << 16
    file = packed(came)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(HybridMIMError, match="is a link or a device"):
        take(file, workspace)
    monkeypatch.setattr(importing, "SMALL", 1000)
    with pytest.raises(HybridMIMError, match="would unpack to"):
        take(packed(came, ("came/run/log.txt", b"\0" * 20_000_000)), workspace)


def test_a_zip_that_was_cut_short_or_changed_is_told(came: Path, workspace: Path) -> None:
    file = packed(came)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(HybridMIMError, match=r"came.zip: cannot be read as a run"):
        take(file, workspace)
    stored = came.with_suffix(".zip")
    with zipfile.ZipFile(stored, "w") as archive:
        for path in (came / "run").rglob("*"):
            if path.is_file():
                archive.write(path, f"run/{path.relative_to(came / 'run').as_posix()}")
    content = stored.read_bytes()
    at = content.index(b"seed: 3")
    stored.write_bytes(content[:at] + b"seed: 4" + content[at + 7 :])
    with pytest.raises(HybridMIMError, match=r"run.yaml is damaged \(Bad CRC"):
        take(stored, workspace)


@pytest.mark.parametrize(
    ("name", "said"),
    [("nowhere", "no such folder or file"), ("", "holds no run"), ("x.txt", "cannot be read as a run")],
)
def test_what_is_no_run_is_told_as_such(tmp_path: Path, workspace: Path, name: str, said: str) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "x.txt").write_text("hello")
    with pytest.raises(HybridMIMError, match=said):
        take(tmp_path / "place" / name, workspace)


def test_an_exported_folder_that_was_not_started_is_told_as_such(came: Path, workspace: Path) -> None:
    shutil.rmtree(came / "run")
    for source in (came, packed(came)):
        with pytest.raises(HybridMIMError, match="nothing was run yet"):
            take(source, workspace)


def test_a_full_disk_leaves_nothing(came: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(importing, "flush_to_disk", full)
        with pytest.raises((DiskError, OSError)) as caught:
            take(came, workspace)
    assert isinstance(caught.value, DiskError) and "disk is full" in str(caught.value)
    monkeypatch.setattr(importing, "_SPARE", 10**18)
    with pytest.raises(DiskError, match="are free"):
        take(came, workspace)


def test_progress_is_told_in_bytes(came: Path, workspace: Path) -> None:
    log = KeptLog()
    import_run(came, workspace / ".tmp-work", log)
    phases = [event["phase"] for event in log.events if event["kind"] == "phase"]
    assert phases == ["Copying", "Checking"]
    last = [event for event in log.events if event.get("phase") == "Copying"][-1]
    assert last["step"] == last["steps"] > 1000
