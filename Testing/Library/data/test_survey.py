"""One pass over the cases: bad scans are named and passed over, wrong labels end it."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from pydicom.data.data_manager import DATA_ROOT
from small_runs import KeptLog

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.layouts import Case, open_dataset
from HybridMIMLib.data.phantom import make_phantom
from HybridMIMLib.data.scans import write_nifti
from HybridMIMLib.data.survey import CaseFacts, Verdict, classes_of, content_hash, examine, read_case, survey
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


# --- what is found ------------------------------------------------------------------------------------------

CT5N = Path(DATA_ROOT) / "test_files" / "dicomdirtests" / "98892001" / "CT5N"


def examined(cases: list[Case], **options: object) -> list[Verdict]:
    return list(examine(cases, EventLog(), **options))  # type: ignore[arg-type]


def saved_again(path: Path, target: Path) -> Path:
    """The image in another format, which knows the same grid."""
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(target))
    return target


def test_one_scan_in_several_formats_is_one_scan(tmp_path: Path) -> None:
    source = scan(tmp_path / "a.nii")
    others = [saved_again(source, tmp_path / name) for name in ("b.nii.gz", "c.nrrd", "d.mha", "e.mhd")]
    image = nibabel.load(source)
    nibabel.save(nibabel.Nifti1Image(image.get_fdata().astype(np.float32), image.affine), tmp_path / "f.nii")
    turned = np.ascontiguousarray(np.asanyarray(image.dataobj)[::-1].transpose(2, 0, 1))
    affine = image.affine @ np.array([[0, -1, 0, 8], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(turned, affine), tmp_path / "g.nii")
    paths = [source, *others, tmp_path / "f.nii", tmp_path / "g.nii"]
    first, *copies = examined([Case(path.name, (path,), None) for path in paths])
    assert first.status == "good" and first.facts is not None
    for copy in copies:
        assert copy.status == "skipped" and copy.facts is not None and copy.facts.voxels == first.facts.voxels
        assert copy.reasons[0].startswith(f"{copy.case.images[0]}: is a copy of {source}")
    assert len({copy.facts.content for copy in (first, *copies) if copy.facts}) == 7


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "nrrd", "mha", "mhd", "nhdr"])
def test_the_content_of_facts_is_the_hash_of_the_files(tmp_path: Path, suffix: str) -> None:
    image = scan(tmp_path / "a.nii")
    path = image if suffix == "nii" else saved_again(image, tmp_path / f"b.{suffix}")
    write_nifti(tmp_path / "label.nii.gz", blob(), GRID)
    one = Case("a", (path,), tmp_path / "label.nii.gz")
    (found,) = survey([one], EventLog())
    assert found.content == content_hash([path, tmp_path / "label.nii.gz"]) != content_hash([path])


def test_the_content_of_a_detached_file_counts(tmp_path: Path) -> None:
    path = saved_again(scan(tmp_path / "a.nii"), tmp_path / "b.mhd")
    before = content_hash([path])
    data = tmp_path / "b.raw"
    data.write_bytes(data.read_bytes()[::-1])
    assert content_hash([path]) != before


def test_a_series_is_hashed_with_all_its_slices() -> None:
    (found,) = survey([Case("ct", (CT5N / "3353",), None)], EventLog())
    digest = hashlib.sha256()
    for name in ("3353", "3023", "2693", "2392", "2062"):
        digest.update((CT5N / name).read_bytes() + b"\x00file\x00")
    assert found.content == content_hash([CT5N / "3353"]) == digest.hexdigest()
    assert (found.modality, found.patient, found.shape) == ("CT", "98890234", (16, 16, 5))
    assert len(found.body) == 5 and "only 5 voxels" in found.warnings[0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts the bytes that a process reads")
def test_a_check_reads_a_nifti_file_once(tmp_path: Path) -> None:
    cases = [Case(str(n), (scan(tmp_path / f"{n}.nii", grid=Grid((64, 64, 64), np.eye(4)), seed=n),), None)
             for n in range(4)]  # fmt: skip

    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    size, before = sum(one.images[0].stat().st_size for one in cases), read()
    assert len(survey(cases, EventLog())) == 4
    assert size <= read() - before < 1.02 * size


def test_patient_modality_and_what_was_annotated(tmp_path: Path) -> None:
    named = Case("b", (scan(tmp_path / "b.nii", seed=1),), None, "Eve")
    write_nifti(tmp_path / "label.nii", blob(3), GRID)
    label = tmp_path / "label.nii"
    partial = Case("c", (scan(tmp_path / "c.nii", seed=2),), label)
    said = Case("d", (scan(tmp_path / "d.nii", seed=3),), label, "", frozenset({1, 3}))
    cases = [Case("a", (scan(tmp_path / "a.nii"),), None), named, partial, said]
    found = survey(cases, EventLog(), partial=True)
    assert [one.patient for one in found] == ["a", "Eve", "c", "d"]
    assert [one.annotated for one in found] == [None, None, {3}, {1, 3}]
    assert [one.annotated for one in survey(cases, EventLog())] == [None, None, None, {1, 3}]
    assert all(one.modality == "" for one in found), "noise is nothing"


# --- threads ------------------------------------------------------------------------------------------------


class Reader:
    """Stands in for :func:`read_case`: slow, most so for the first, and counts how many read at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.005) -> None:
        self.now = self.most = self.calls = 0
        self._lock, self._read, self._seconds = threading.Lock(), read_case, seconds
        monkeypatch.setattr("HybridMIMLib.data.survey.read_case", self.read)

    def read(self, case: Case, content: object) -> object:
        with self._lock:
            self.calls += 1
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self._seconds * (4 if case.name == "0" else 1))
        result = self._read(case, content)  # type: ignore[arg-type]
        with self._lock:
            self.now -= 1
        return result


def many(folder: Path, count: int) -> list[Case]:
    return [Case(str(n), (scan(folder / f"{n}.nii", seed=n),), None) for n in range(count)]


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_verdicts_come_in_order_and_no_more_scans_than_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    cases = many(tmp_path, 12)
    expected = examined(cases)
    reader = Reader(monkeypatch)
    assert examined(cases, workers=workers) == expected
    assert reader.calls == 12 and 1 <= reader.most <= workers


def test_ctrl_c_ends_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(monkeypatch)

    def stop(event: dict[str, object]) -> None:
        if event["kind"] == "progress":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survey(many(tmp_path, 40), KeptLog(on_event=stop))
    time.sleep(0.2)
    assert reader.calls < 12, "what waited was not begun"


def test_who_stops_taking_verdicts_stops_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(monkeypatch)
    verdicts = examine(many(tmp_path, 40), EventLog(), workers=2)
    next(verdicts)
    verdicts.close()  # type: ignore[attr-defined]
    time.sleep(0.2)
    assert reader.calls < 8


def test_progress_is_told(tmp_path: Path) -> None:
    seen: list[dict[str, object]] = []
    survey(many(tmp_path, 3), KeptLog(on_event=seen.append))
    assert seen[0]["kind"] == "phase" and seen[0]["phase"] == "check scans" and seen[0]["steps"] == 3
    assert seen[-1]["step"] == 3


def test_what_is_kept_of_a_scan_is_small(tmp_path: Path) -> None:
    """10,000 scans are to take no more than 300 MB: 15 kB each, beside Python and its libraries."""
    cases = many(tmp_path, 200)
    survey(cases[:3], EventLog())
    tracemalloc.start()
    verdicts = examined(cases)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(verdicts) == 200 and kept / 200 < 5000
