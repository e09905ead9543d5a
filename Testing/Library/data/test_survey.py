"""One pass over the cases: bad scans are named and passed over, wrong labels end it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.layouts import Case, open_dataset
from HybridMIMLib.data.phantom import make_phantom
from HybridMIMLib.data.scans import write_nifti
from HybridMIMLib.data.survey import CaseFacts, classes_of, content_hash, read_case, survey
from HybridMIMLib.errors import DataError, HybridMIMError, LabelError, ScanError
from HybridMIMLib.events import EventLog

GRID = Grid((9, 10, 11), np.diag([-1.0, 2.0, 3.0, 1.0]))
SHIFTED = Grid(GRID.shape, GRID.affine + np.pad([[2.0]], ((0, 3), (3, 0))))


def scan(path: Path, channels: int = 1, grid: Grid = GRID, seed: int = 0) -> Path:
    shape = grid.shape if channels == 1 else (*grid.shape, 1, channels)
    array = np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)
    if channels == 1:
        write_nifti(path, array, grid)
    else:
        import nibabel

        nibabel.save(nibabel.Nifti1Image(array, grid.affine), path)
    return path


def case(folder: Path, name: str, label: np.ndarray | None = None, label_grid: Grid = GRID) -> Case:
    image = scan(folder / f"{name}.nii", seed=len(name))
    if label is None:
        return Case(name, (image,), None)
    write_nifti(folder / f"{name}_label.nii", label, label_grid)
    return Case(name, (image,), folder / f"{name}_label.nii")


def blob(value: float = 1, dtype: str = "uint8") -> np.ndarray:
    label = np.zeros(GRID.shape, dtype=dtype)
    label[2:5, 3:6, 4:7] = value
    return label


def one_line(error: HybridMIMError, *words: str) -> None:
    assert "\n" not in str(error) and error.cure
    for word in words:
        assert word in str(error)


def facts_with(*labels: int, name: str = "a") -> CaseFacts:
    labelled = Case(name, (Path(f"{name}.nii"),), Path(f"{name}_label.nii"))
    return CaseFacts(labelled, "0", 1, GRID.shape, (1, 1, 1), 0, 1, frozenset(labels))


def test_facts_are_along_r_a_s(tmp_path: Path) -> None:
    turned = Grid((9, 10, 11), np.array([[0, 0, 3.0, 0], [1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]]))
    (found,) = survey([Case("a", (scan(tmp_path / "a.nii", grid=turned),), None)], EventLog())
    assert found.shape == (11, 9, 10) and found.spacing == (3, 1, 2)
    array = read_case(found.case)[0].array
    assert (found.low, found.high, found.channels) == (array.min(), array.max(), 1)


def test_a_bad_scan_among_good_ones_is_named_and_passed_over(unicode_folder: Path) -> None:
    cases = [case(unicode_folder, name) for name in ("first", "bad one", "empty", "constant", "last")]
    cases[1].images[0].write_bytes(cases[1].images[0].read_bytes()[:700])
    cases[2].images[0].write_bytes(b"")
    write_nifti(cases[3].images[0], np.full(GRID.shape, 3, np.int16), GRID)
    events = EventLog()
    assert [found.case.name for found in survey(cases, events)] == ["first", "last"]
    skipped = [text for text in events.warnings if text.startswith("skipped")]
    assert len(skipped) == 3
    for text, bad in zip(skipped, cases[1:4]):
        assert str(bad.images[0]) in text and "\n" not in text


def test_a_copy_of_a_scan_is_named_with_its_twin(tmp_path: Path) -> None:
    cases = [case(tmp_path, "one"), case(tmp_path, "two"), case(tmp_path, "three")]
    events = EventLog()
    assert [found.case.name for found in survey(cases, events)] == ["one", "three"]
    (text,) = [text for text in events.warnings if text.startswith("skipped")]
    assert str(cases[1].images[0]) in text and f"copy of {cases[0].images[0]}" in text


def test_no_scan_left_ends_it(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"")
    with pytest.raises(DataError, match="none of the 1 scans") as caught:
        survey([Case("a", (tmp_path / "a.nii",), None)], EventLog())
    one_line(caught.value, str(tmp_path))


@pytest.mark.parametrize(
    ("label", "grid", "words"),
    [
        (blob(), SHIFTED, "does not lie on the grid"),
        (blob()[:-1], Grid((8, 10, 11), GRID.affine), "does not lie on the grid"),
        (blob(1.5, "float32"), GRID, "1.5 is no label"),
        (blob(float("nan"), "float32"), GRID, "no label"),
        (blob(-1, "int16"), GRID, "negative label"),
    ],
)
def test_a_wrong_label_map_ends_it_by_name(tmp_path: Path, label: np.ndarray, grid: Grid, words: str) -> None:
    cases = [case(tmp_path, "good", blob()), case(tmp_path, "wrong", label, grid)]
    with pytest.raises(LabelError) as caught:
        survey(cases, EventLog())
    one_line(caught.value, "wrong_label.nii", words)


def test_an_unreadable_label_map_ends_it_by_name(tmp_path: Path) -> None:
    broken = case(tmp_path, "wrong", blob())
    assert broken.label is not None
    broken.label.write_bytes(broken.label.read_bytes()[:400])
    with pytest.raises(LabelError, match="wrong_label.nii"):
        survey([broken], EventLog())


def test_whole_numbers_stored_as_floats_are_labels(tmp_path: Path) -> None:
    (found,) = survey([case(tmp_path, "a", blob(2.0, "float32"))], EventLog())
    assert found.labels == {2}


def test_a_label_that_no_class_is_named_for_is_refused() -> None:
    named = (LabelClass(1, "Liver", (1, 0, 0)), LabelClass(2, "Spleen", (0, 1, 0)))
    assert classes_of([facts_with(1), facts_with()], named) == named
    with pytest.raises(LabelError) as caught:
        classes_of([facts_with(1), facts_with(1, 7, name="odd")], named)
    one_line(caught.value, "odd_label.nii", "label 7", "[1, 2]")


def test_background_alone_is_refused() -> None:
    with pytest.raises(LabelError) as caught:
        classes_of([facts_with(), facts_with()], ())
    one_line(caught.value, "a_label.nii", "background alone")


def test_classes_that_nobody_named_get_numbers() -> None:
    assert [c.label for c in classes_of([facts_with(3), facts_with(1, 300)], ())] == [1, 3, 300]


def test_more_classes_than_a_byte_holds_are_refused() -> None:
    assert len(classes_of([facts_with(*range(1, 256))], ())) == 255
    with pytest.raises(LabelError) as caught:
        classes_of([facts_with(1), facts_with(*range(1, 257), name="objects")], ())
    one_line(caught.value, "objects_label.nii", "256 labels")


def test_the_scan_with_another_number_of_channels_is_named(tmp_path: Path) -> None:
    cases = [case(tmp_path, "a"), Case("odd", (scan(tmp_path / "odd.nii", 2),), None), case(tmp_path, "ccc")]
    with pytest.raises(DataError) as caught:
        survey(cases, EventLog())
    one_line(caught.value, "odd.nii", "2 channel(s)")


def test_channels_in_several_files_are_stacked_in_order(tmp_path: Path) -> None:
    files = tuple(scan(tmp_path / f"a_000{n}.nii", seed=n) for n in range(3))
    stacked, label = read_case(Case("a", files, None))
    singles = [read_case(Case("a", (file,), None))[0].array for file in files]
    assert np.array_equal(stacked.array, np.concatenate(singles)) and label is None


def test_channels_on_different_grids_are_refused(tmp_path: Path) -> None:
    files = (scan(tmp_path / "a.nii"), scan(tmp_path / "b.nii", grid=SHIFTED))
    with pytest.raises(ScanError, match="b.nii: lies on another grid than a.nii"):
        read_case(Case("a", files, None))


def test_the_hash_follows_from_the_bytes_and_where_a_file_ends(tmp_path: Path) -> None:
    a, b, c, d = (tmp_path / name for name in "abcd")
    for path, content in ((a, b"12"), (b, b"3"), (c, b"1"), (d, b"23")):
        path.write_bytes(content)
    hashes = {content_hash(paths) for paths in ([a, b], [c, d], [b, a], [a], [])}
    assert len(hashes) == 5
    assert content_hash([a]) == hashlib.sha256(b"12\x00file\x00").hexdigest()


def test_a_phantom_is_surveyed_like_a_scan(tmp_path: Path) -> None:
    phantom = make_phantom(1, "labelled", 0)
    write_nifti(tmp_path / "a.nii", phantom.image, phantom.grid)
    write_nifti(tmp_path / "l.nii", phantom.labels, phantom.grid)
    (found,) = survey([Case("a", (tmp_path / "a.nii",), tmp_path / "l.nii")], EventLog())
    assert found.labels == {1, 2, 3, 4} and found.low <= -500


def test_real_scans_are_surveyed(shared_data: Path) -> None:
    cases = [
        *open_dataset(shared_data / "hippocampus_mr", labelled=True).cases[:4],
        *open_dataset(shared_data / "sarcoma_ct_mr" / "CT", labelled=True).cases[:1],
    ]
    events = EventLog()
    found = survey(cases, events)
    assert len(found) == 5 and not [text for text in events.warnings if "skipped" in text]
    assert all(f.labels == {1, 2} for f in found[:4]) and found[4].labels == {1}


def test_a_copy_under_another_name_is_named_and_passed_over(tmp_path: Path) -> None:
    from small_runs import write_blobs

    folder = write_blobs(tmp_path, 2, labelled=False)
    (folder / "images" / "copy.nii.gz").write_bytes((folder / "images" / "blob_1.nii.gz").read_bytes())
    events = EventLog()
    found = survey(open_dataset(folder, labelled=False).cases, events)
    assert len(found) == 2 and "copy" in events.warnings[0] and "blob_1" in events.warnings[0]
