"""Sample data: drawn in a real child, downloaded from a file of the test, refused where it is another."""

from __future__ import annotations

import hashlib
import io
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import UNICODE_NAME, write_blobs

from HybridMIMLib.data.layouts import open_dataset
from HybridMIMLib.errors import DataError, DiskError
from HybridMIMLib.files import write_json
from HybridMIMLib.slicer_side import sample_data
from HybridMIMLib.slicer_side.sample_data import SAMPLES, Sample, get_steps, remove, samples_folder, size_of
from HybridMIMLib.slicer_side.steps import finish

PHANTOMS, HIPPOCAMPUS = SAMPLES


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / UNICODE_NAME
    monkeypatch.setenv("HYBRIDMIM_WORKSPACE", str(folder))
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set, laid out and packed as the public one is."""
    place = tmp_path_factory.mktemp("archive")
    folder = write_blobs(place / "Task04_Hippocampus", 2, labelled=True)
    for part in ("images", "labels"):
        (folder / part).rename(folder / f"{part}Tr")
    write_blobs(place / "test", 1, labelled=False, seed=9)
    (place / "test" / "images").rename(folder / "imagesTs")
    (folder / "imagesTs" / "blob_0.nii.gz").rename(folder / "imagesTs" / "blob_9.nii.gz")
    (folder / "classes.json").unlink()
    rows = [{"image": f"./imagesTr/blob_{n}.nii.gz", "label": f"./labelsTr/blob_{n}.nii.gz"} for n in range(2)]
    write_json(
        folder / "dataset.json",
        {
            "name": "Hippocampus", "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
            "training": rows, "test": ["./imagesTs/blob_9.nii.gz"],
        },
    )  # fmt: skip
    (folder / "imagesTr" / "._blob_0.nii.gz").write_bytes(b"of macOS")
    with tarfile.open(place / "t.tar", "w") as packed:
        packed.add(folder, "Task04_Hippocampus")
    return place / "t.tar"


def public(archive: Path, **changes: object) -> Sample:
    """The public set, from a file."""
    content = archive.read_bytes()
    fields = {"url": archive.as_uri(), "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    return replace(HIPPOCAMPUS, **{**fields, **changes})  # type: ignore[arg-type]


def is_clean() -> bool:
    end = time.monotonic() + 10
    while list(samples_folder().glob(".tmp-*")) and time.monotonic() < end:
        time.sleep(0.02)
    return not list(samples_folder().glob(".tmp-*"))


def test_the_synthetic_set_is_drawn_found_and_removed(workspace: Path) -> None:
    seen = []
    folder = finish(get_steps(PHANTOMS), lambda step: seen.append(step.text))
    assert folder == workspace / "sample data" / "phantoms" == PHANTOMS.folder and PHANTOMS.is_there
    unlabelled, labelled = (open_dataset(one, n == 1) for n, one in enumerate(PHANTOMS.folders))
    assert (len(unlabelled.cases), len(labelled.cases)) == (16, 12)
    assert [one.name for one in labelled.classes] == ["Liver", "Spleen", "Kidneys", "Spine"]
    assert size_of(PHANTOMS) <= PHANTOMS.size and str(folder) in PHANTOMS.describe()
    assert any("of 32" in text for text in seen), "progress"
    assert finish(get_steps(PHANTOMS)) == folder, "which takes no time"
    remove(PHANTOMS)
    assert not samples_folder().exists() and not PHANTOMS.is_there


def test_the_public_set_is_downloaded_and_unpacked(archive: Path) -> None:
    sample = public(archive)
    steps = []
    finish(get_steps(sample), steps.append)
    labelled, unlabelled = open_dataset(sample.folders[1], True), open_dataset(sample.folders[0], False)
    assert (len(labelled.cases), len(unlabelled.cases)) == (2, 3) and labelled.layout == "msd"
    assert [one.name for one in labelled.classes] == ["Anterior", "Posterior"]
    names = [one.name for one in sample.folder.rglob("*")]
    assert not [name for name in names if name.startswith(".")], "neither the archive nor what macOS left"
    assert [step.fraction for step in steps] == sorted(step.fraction for step in steps) and is_clean()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sha256": "0" * 64}, "is not the file that is known"),
        ({"bytes": 100}, "is not the file that is known"),
        ({"url": "file:///nowhere/at/all.tar"}, "could not be downloaded"),
        ({"url": "http://127.0.0.1:9/x.tar"}, "could not be downloaded"),
    ],
)
def test_another_file_is_refused_and_leaves_nothing(
    archive: Path, changes: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One that is longer than it should be is not read to its end.
    monkeypatch.setattr(sample_data, "_BLOCK", 64)
    sample = public(archive, **changes)
    with pytest.raises(DataError, match=said):
        finish(get_steps(sample))
    assert not sample.is_there and is_clean()


@pytest.mark.parametrize("name", ["../out.txt", "/abs.txt", "Task04_Hippocampus/../../out.txt"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as packed:
        member = tarfile.TarInfo(name)
        member.size = 1
        packed.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(DataError, match="does not belong there"):
        finish(get_steps(public(tmp_path / "t.tar")))
    assert is_clean() and not list(tmp_path.rglob("out.txt"))


def test_links_in_it_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as packed:
        member = tarfile.TarInfo("Task04_Hippocampus/link")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(member)
    sample = public(tmp_path / "t.tar")
    finish(get_steps(sample))
    assert list(sample.folder.rglob("*")) == []


def test_cancelled_or_without_room_nothing_is_left(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = get_steps(PHANTOMS)
    next(steps)
    steps.close()
    assert is_clean() and not PHANTOMS.is_there
    monkeypatch.setattr(sample_data, "free_bytes", lambda place: 1000)
    with pytest.raises(DiskError, match="are free"):
        finish(get_steps(public(archive)))
    assert is_clean()


def test_what_is_known_of_the_sets() -> None:
    assert HIPPOCAMPUS.licence == "CC-BY-SA 4.0" and HIPPOCAMPUS.licence in HIPPOCAMPUS.describe()
    for sample in SAMPLES:
        assert sample.picture.stat().st_size < 40_000
    assert len(HIPPOCAMPUS.sha256) == 64 and HIPPOCAMPUS.url.endswith("Task04_Hippocampus.tar")
