"""Cases that are added to a labelled folder: checked, whole, and never over another one."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import write_blobs

from HybridMIMLib.data import adding, changing
from HybridMIMLib.data.adding import NewCase, NewSegment, add_case, match, plain
from HybridMIMLib.data.changing import STAGING, move_all, staging_folder, take_back
from HybridMIMLib.data.check import check_folder
from HybridMIMLib.data.classes import make_naming
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.layouts import open_dataset
from HybridMIMLib.data.next_scan import next_scan
from HybridMIMLib.data.scans import read_label_map, read_scan, write_image, write_label_map
from HybridMIMLib.errors import DataError, DiskError, HybridMIMError, LabelError, SettingsError

GRID = Grid((9, 8, 10), np.array([[1.0, 0.1, 0, 5], [0, 1.2, 0.3, -7.123456789], [0, 0, 2.5, 1 / 3], [0, 0, 0, 1]]))
BRIGHT, DARK = NewSegment(1, "Bright"), NewSegment(2, "Dark")


def new_case(
    folder: Path, name: str = "new", seed: int = 0, segments: Sequence[NewSegment] = (BRIGHT, DARK)
) -> NewCase:
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(seed)
    write_image(folder / f"{name}.nrrd", random.normal(size=GRID.shape).astype(np.float32), GRID)
    labels = random.integers(0, len(segments) + 1, GRID.shape).astype(np.uint8)
    write_label_map(folder / f"{name}-labels.nrrd", labels, GRID)
    return NewCase(name, folder / f"{name}.nrrd", folder / f"{name}-labels.nrrd", tuple(segments))


def with_labels(case: NewCase, seed: int) -> NewCase:
    labels = np.random.default_rng(seed).integers(0, 3, GRID.shape).astype(np.uint8)
    write_label_map(case.labels, labels, GRID)
    return case


def everything(folder: Path) -> dict[str, bytes]:
    """What is in a folder, but for what is merely noted of it."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".cases.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    return write_blobs(tmp_path / "Lékař ünï 数 a b", 2, labelled=True)


def test_a_new_folder_gets_all_that_a_training_needs(tmp_path: Path) -> None:
    segments = (NewSegment(1, "Leber", label=7), NewSegment(2, "Milz"))
    added = add_case(tmp_path / "cases", new_case(tmp_path / "x", segments=segments))
    assert (added.state, added.name, added.notes[:0]) == ("added", "new", ())
    assert json.loads((tmp_path / "cases" / "classes.json").read_text()) == {"7": "Leber", "8": "Milz"}
    dataset = open_dataset(tmp_path / "cases", labelled=True)
    assert [(one.label, one.name) for one in dataset.classes] == [(7, "Leber"), (8, "Milz")]
    [verdict] = check_folder(tmp_path / "cases", True)
    assert verdict.status == "warning" and "right angles" in verdict.reasons[0], "the shear is kept"
    source = new_case(tmp_path / "x", segments=segments)
    scan, there = read_scan(source.scan), read_scan(added.image)
    np.testing.assert_array_equal(there.array, scan.array)
    assert scan.grid.same_as(there.grid, 1e-12)
    labels = read_label_map(source.labels).array
    np.testing.assert_array_equal(read_label_map(added.label, there.grid).array, np.array([0, 7, 8])[labels])
    assert not (tmp_path / "cases" / STAGING).exists()


def test_a_case_joins_others_under_the_labels_of_the_folder(cases: Path, tmp_path: Path) -> None:
    before = everything(cases)
    turned = (NewSegment(1, " dark"), NewSegment(2, "BRIGHT"))
    new = new_case(tmp_path / "x", segments=turned)
    added = add_case(cases, new)
    labels = read_label_map(new.labels).array
    np.testing.assert_array_equal(read_label_map(added.label).array, np.array([0, 2, 1])[labels])
    after = everything(cases)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"images/new.nrrd", "labels/new.nrrd"}
    assert len(open_dataset(cases, labelled=True).cases) == 3


def test_the_same_case_again_changes_nothing(cases: Path, tmp_path: Path) -> None:
    new = new_case(tmp_path / "x")
    add_case(cases, new)
    before = everything(cases)
    assert add_case(cases, new, replace=True).state == "unchanged"
    assert everything(cases) == before


def test_other_labels_of_a_scan_replace_the_old_ones_only_when_asked(cases: Path, tmp_path: Path) -> None:
    new = new_case(tmp_path / "x")
    first = add_case(cases, new)
    before = everything(cases)
    with_labels(new, seed=5)
    there = add_case(cases, NewCase("another name", new.scan, new.labels, new.segments))
    assert (there.state, there.name) == ("exists", "new"), "it is known by its voxels"
    assert everything(cases) == before
    added = add_case(cases, new, replace=True)
    assert (added.state, added.label) == ("replaced", first.label)
    np.testing.assert_array_equal(read_label_map(added.label).array, read_label_map(new.labels).array)
    assert added.kept is not None
    assert (added.kept / "labels" / "new.nrrd").read_bytes() == before["labels/new.nrrd"]
    after = everything(cases)
    assert after["images/new.nrrd"] == before["images/new.nrrd"]
    assert len(open_dataset(cases, labelled=True).cases) == 3
    assert len(open_dataset(cases, labelled=False).cases) == 3, "what was replaced is not learned from"


def test_a_nifti_case_is_known_and_its_labels_replaced(cases: Path, tmp_path: Path) -> None:
    old = read_scan(cases / "images" / "blob_0.nii.gz")
    labels = np.zeros(old.grid.shape, np.uint8)
    labels[2:5] = 1
    write_image(tmp_path / "loaded.nrrd", old.array[0], old.grid)
    write_label_map(tmp_path / "mine.nrrd", labels, old.grid)
    new = NewCase("loaded", tmp_path / "loaded.nrrd", tmp_path / "mine.nrrd", (BRIGHT,))
    added = add_case(cases, new, replace=True)
    assert (added.state, added.name, added.image.name, added.label.name) == (
        "replaced", "blob_0", "blob_0.nii.gz", "blob_0.nrrd",
    )  # fmt: skip
    assert added.notes == ("no voxels of Dark: they count as absent from this scan",)
    assert [one.status for one in check_folder(cases, True)] == ["good", "good"]
    # The scan was moved since: its labels are right only with it.
    shifted = old.grid.affine.copy()
    shifted[:3, 3] += 4
    moved = Grid(old.grid.shape, shifted)
    write_image(new.scan, old.array[0], moved)
    write_label_map(new.labels, labels, moved)
    again = add_case(cases, new, replace=True)
    assert (again.image.name, again.kept is not None and (again.kept / "images" / "blob_0.nii.gz").is_file()) == (
        "blob_0.nrrd", True,
    )  # fmt: skip
    assert read_scan(again.image).grid.same_as(moved, 1e-9)
    assert len(open_dataset(cases, labelled=True).cases) == 2


def test_another_scan_of_the_name_is_refused(cases: Path, tmp_path: Path) -> None:
    before = everything(cases)
    new = new_case(tmp_path / "x", "BLOB_1")
    with pytest.raises(DataError, match="another scan of the name blob_1. Give this scan a name of its own"):
        add_case(cases, new, replace=True)
    assert everything(cases) == before


@pytest.mark.parametrize(
    ("segments", "words"),
    [
        (
            (NewSegment(1, "Bright"), NewSegment(2, "Spleen")),
            r"Spleen are no classes of .*, which are Bright \(1\), Dark \(2\)",
        ),
        (
            (NewSegment(1, "Bright"), NewSegment(2, "bright ")),
            "Bright and bright +are both the class Bright",
        ),
        ((NewSegment(1, "Bright"), NewSegment(2, "x", meaning="Bright")), "are both the class Bright"),
        ((NewSegment(1, "Bright", meaning="Dark"), NewSegment(2, "x")), "its terminology says Dark"),
    ],
)
def test_segments_that_do_not_match_are_told(
    cases: Path, tmp_path: Path, segments: tuple[NewSegment, ...], words: str
) -> None:
    before = everything(cases)
    with pytest.raises(SettingsError, match=words):
        add_case(cases, new_case(tmp_path / "x", segments=segments))
    assert everything(cases) == before


def test_new_classes_join_the_old_ones_when_asked(cases: Path, tmp_path: Path) -> None:
    (cases / "classes.json").write_text('{"Bright": 1, "2": "Dark", "partially_labelled": true}')
    segments = (BRIGHT, NewSegment(2, "Spleen", label=2), NewSegment(3, "Liver", label=9))
    add_case(cases, new_case(tmp_path / "x", segments=segments), new_classes=True)
    content = json.loads((cases / "classes.json").read_text())
    assert content == {"Bright": 1, "2": "Dark", "partially_labelled": True, "9": "Liver", "10": "Spleen"}
    dataset = open_dataset(cases, labelled=True)
    assert dataset.partial and [one.label for one in dataset.classes] == [1, 2, 9, 10]


def test_who_would_ask_the_user_is_told_what_is_new_and_nothing_is_done(cases: Path, tmp_path: Path) -> None:
    before = everything(cases)
    segments = (BRIGHT, NewSegment(2, "Spleen"), NewSegment(3, "Liver"))
    found = add_case(cases, new_case(tmp_path / "x", segments=segments), new_classes=None)
    assert (found.state, found.strangers, found.classes) == ("strange", ("Spleen", "Liver"), ("Bright", "Dark"))
    assert adding.Added.from_json(json.loads(json.dumps(found.to_json()))) == found
    # What no answer of the user's would help with is told at once.
    twice = (NewSegment(1, "Spleen"), NewSegment(2, "spleen"))
    with pytest.raises(SettingsError, match="are both one class"):
        add_case(cases, new_case(tmp_path / "y", segments=twice), new_classes=None)
    assert everything(cases) == before
    assert add_case(cases, new_case(tmp_path / "z"), new_classes=None).state == "added"
    assert add_case(tmp_path / "new", new_case(tmp_path / "n", segments=segments), new_classes=None).state == "added"


def test_names_that_a_folder_cannot_have_are_told_before_it_is_changed(cases: Path, tmp_path: Path) -> None:
    before = everything(cases)
    with pytest.raises(DataError, match="called 'mean'"):
        add_case(cases, new_case(tmp_path / "x", segments=(BRIGHT, NewSegment(2, "mean"))), new_classes=True)
    assert everything(cases) == before


def test_folders_that_are_not_ours_to_change_are_refused(cases: Path, tmp_path: Path) -> None:
    new = new_case(tmp_path / "x")
    (cases / "classes.json").unlink()
    with pytest.raises(DataError, match="does not say what the labels mean. Write a file classes.json"):
        add_case(cases, new)
    (cases / "labels" / "blob_0.nii.gz").unlink()
    with pytest.raises(DataError, match="blob_0 has no label"):
        add_case(cases, new)
    (tmp_path / "plain").mkdir()
    write_image(tmp_path / "plain" / "a.nrrd", np.arange(720, dtype=np.float32).reshape(GRID.shape), GRID)
    with pytest.raises(DataError, match="has no labels that belong to images"):
        add_case(tmp_path / "plain", new)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="is a file. Choose a folder"):
        add_case(tmp_path / "thesis.txt", new_case(tmp_path))


def test_labels_of_another_grid_or_scan_are_refused(cases: Path, tmp_path: Path) -> None:
    before = everything(cases)
    new = new_case(tmp_path / "x")
    shifted = GRID.affine.copy()
    shifted[0, 3] += 1
    write_label_map(new.labels, np.ones(GRID.shape, np.uint8), Grid(GRID.shape, shifted))
    with pytest.raises(LabelError, match="does not lie on the grid"):
        add_case(cases, new)
    write_label_map(new.labels, np.full(GRID.shape, 9, np.uint8), GRID)
    with pytest.raises(LabelError, match=r"holds \[9\], which are no segments"):
        add_case(cases, new)
    assert everything(cases) == before


@pytest.mark.parametrize("name", ["", " ", "../x", "a/b", ".x", "x.seg", "con", "a:b", "x" * 300])
def test_names_that_are_no_files_are_refused(cases: Path, tmp_path: Path, name: str) -> None:
    new = new_case(tmp_path / "x")
    with pytest.raises(SettingsError, match="Give the scan another name"):
        add_case(cases, NewCase(name, new.scan, new.labels, new.segments))


@pytest.mark.parametrize("fails_at", range(1, 4))
@pytest.mark.parametrize("killed", [False, True])
def test_a_disk_that_fails_between_two_files_leaves_all_as_it_was(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int, killed: bool
) -> None:
    new = new_case(tmp_path / "x", segments=(BRIGHT, NewSegment(2, "Spleen")))
    before, rename, done = everything(cases), os.rename, []

    def fail(source: Path, target: Path) -> None:
        done.append(target)
        if len(done) == fails_at:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    if killed:
        # A process that is killed takes nothing back.
        monkeypatch.setattr(adding, "take_back", lambda folder: None)
        monkeypatch.setattr(changing, "take_back", lambda folder: None)
    with pytest.raises(DiskError, match="disk is full"):
        add_case(cases, new, new_classes=True)
    monkeypatch.undo()
    if killed:
        take_back(cases)
    assert everything(cases) == before
    assert add_case(cases, new, new_classes=True).state == "added"


def test_a_list_of_moves_has_no_say_over_other_places(tmp_path: Path) -> None:
    folder, mine = tmp_path / "cases", tmp_path / "mine.txt"
    mine.write_text("mine")
    staging = staging_folder(folder)
    (staging / "moves.json").write_text(json.dumps([["gone.txt", "../mine.txt"], ["../gone.txt", "a"]]))
    (folder / "a").write_text("a")
    take_back(folder)
    assert mine.read_text() == "mine" and (folder / "a").exists() and not (tmp_path / "gone.txt").exists()
    for damage in ("[", "[1]", "{}", '[["a"]]'):
        (staging_folder(folder) / "moves.json").write_text(damage)
        take_back(folder)
        assert not (folder / STAGING).exists()


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
def test_moves_are_made_all_or_none(tmp_path_factory: pytest.TempPathFactory, targets: list[str]) -> None:
    folder = tmp_path_factory.mktemp("moves")
    staging = staging_folder(folder)
    moves = []
    for number, target in enumerate(targets):
        (staging / str(number)).write_text(str(number))
        moves.append((staging / str(number), folder / "deep" / target))
    if len(set(targets)) == len(targets):
        move_all(folder, moves)
        assert {path.name: path.read_text() for path in (folder / "deep").iterdir()} == {
            target: str(number) for number, target in enumerate(targets)
        }
    else:
        with pytest.raises(DiskError, match="is there already"):
            move_all(folder, moves)
        assert list(folder.iterdir()) == []


NAMES = st.sampled_from(["Liver", "liver ", "LIVER", "Spleen", "Gall\u0301", "Gál", "Gál", "x"])


@given(st.lists(st.tuples(NAMES, NAMES | st.just(""), st.integers(0, 3)), max_size=4), st.booleans())
@settings(deadline=None, max_examples=200)
def test_matching_never_gives_two_segments_one_label(drawn: list[tuple[str, str, int]], new_classes: bool) -> None:
    classes = make_naming({1: "Liver", 3: "Gál"}).classes
    segments = [NewSegment(number, *one) for number, one in enumerate(drawn, 1)]
    try:
        found = match(segments, classes, Path("cases"), new_classes)
    except HybridMIMError:
        return
    assert len(set(found.values())) == len(found) == len(segments)
    for one in segments:
        by_label = {entry.label: plain(entry.name) for entry in classes}
        if found[one.value] in by_label:
            assert by_label[found[one.value]] in (plain(one.name), plain(one.meaning))
        else:
            assert new_classes and plain(one.name) not in by_label.values()


def test_the_next_scan_is_the_first_that_is_not_labelled(cases: Path, tmp_path: Path) -> None:
    pool = write_blobs(tmp_path / "pool", 3, labelled=False, seed=4) / "images"
    ranked = [pool / f"blob_{number}.nii.gz" for number in (2, 0, 1)]
    assert next_scan(ranked, tmp_path / "not there").scan.path == ranked[0]
    # The first of them was labelled, under another name and in another format.
    scan = read_scan(ranked[0])
    write_image(tmp_path / "s.nrrd", scan.array[0], scan.grid)
    write_label_map(tmp_path / "l.nrrd", np.ones(scan.grid.shape, np.uint8), scan.grid)
    add_case(cases, NewCase("other", tmp_path / "s.nrrd", tmp_path / "l.nrrd", (BRIGHT,)))
    found = next_scan(ranked, cases)
    assert found.scan is not None and (found.scan.path, found.labelled) == (ranked[1], 1)
    # The second is open, and the third damaged.
    ranked[2].write_bytes(b"nothing")
    found = next_scan(ranked, cases, {str(ranked[1])})
    assert found.scan is None and "blob_1" in found.notes[0]


def test_a_scan_that_was_labelled_from_its_file_is_not_read_again(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = new_case(tmp_path / "x")
    add_case(cases, NewCase("n", new.scan, new.labels, new.segments, source="/pool/a.nrrd"))
    monkeypatch.setattr("HybridMIMLib.data.next_scan.read_scan", None)
    assert next_scan([Path("/pool/a.nrrd")], cases).labelled == 1


def test_scans_that_did_not_change_are_not_read_again(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_case(cases, new_case(tmp_path / "x"))
    read: list[str] = []
    real = adding.LabelledFolder.known

    def watched(self, events):  # type: ignore[no-untyped-def]
        monkeypatch.setattr(
            "HybridMIMLib.data.labelled_folder.examine",
            lambda some, events: read.extend(c.name for c in some) or [],
        )
        return real(self, events)

    monkeypatch.setattr(adding.LabelledFolder, "known", watched)
    assert add_case(cases, new_case(tmp_path / "x")).state == "unchanged" and read == []
    os.utime(cases / "images" / "blob_1.nii.gz")
    with pytest.raises(KeyError):
        adding.LabelledFolder(cases).known(None)["blob_1"]  # type: ignore[arg-type]
    assert read == ["blob_1"]
