"""Which prediction belongs to which reference, whoever named them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from layout_files import describe, names_of, touch

from HybridMIMLib.data.layouts import Case
from HybridMIMLib.errors import DataError
from HybridMIMLib.evaluation.pairs import classes_for, match, naming_of, open_labels, own_scans, scans_by_case


def cases(*files: str) -> list[Case]:
    return [Case(Path(file).name.split(".")[0], (Path(file),), Path(file)) for file in files]


@pytest.mark.parametrize(
    ("reference", "prediction"),
    [
        ("a.nii.gz", "a.nrrd"),
        ("a.nii.gz", "a_seg.mha"),
        ("a_label.nrrd", "a.nii.gz"),
        ("a-seg.nii.gz", "a_prediction.nii.gz"),
        ("Case_A.nii.gz", "case_a_mask.nii.gz"),
        ("hippo_001.nii.gz", "hippo_001_0000.nii.gz"),
        ("hippo_001.nii.gz", "hippo_001_0000_seg.nii.gz"),
        ("label0003.nii.gz", "img0003.nii.gz"),
        ("DET0000101_avg_seg.nii.gz", "DET0000101_avg.nii.gz"),
        (unicodedata.normalize("NFC", "Lékař.nii.gz"), unicodedata.normalize("NFD", "Lékař.nii.gz")),
    ],
)
def test_names_that_mean_one_case(reference: str, prediction: str, tmp_path: Path) -> None:
    ours = open_labels(touch(tmp_path / "references", reference, "z.nii.gz"))
    theirs = open_labels(touch(tmp_path / "predictions", prediction, "z.nii.gz"))
    found = match(ours.cases, theirs.cases)
    assert len(found.found) == 2 and not found.missing and not found.left


def test_what_belongs_to_nothing_is_named() -> None:
    found = match(cases("a.nii", "b.nii"), cases("a.nii", "c.nii"))
    assert found.found == {"a": Path("a.nii")} and found.missing == ("b",) and found.left == (Path("c.nii"),)


def test_an_exact_name_goes_first_and_nobody_guesses() -> None:
    found = match(cases("a.nii", "a_seg.nii"), cases("a_seg.nii", "a.nii"))
    assert found.found == {"a": Path("a.nii"), "a_seg": Path("a_seg.nii")}
    found = match(cases("a.nii"), cases("a_seg.nii", "a_pred.nii"))
    assert not found.found and found.missing == ("a",) and len(found.left) == 2
    found = match(cases("A1.nii", "a1.nii"), cases("a1_seg.nii"))
    assert found.found == {"a1": Path("a1_seg.nii")}


def test_numbers_are_not_mixed_up() -> None:
    found = match(cases("a_1.nii", "a_10.nii", "a_0001.nii"), cases("a_10_seg.nii", "a_1_seg.nii"))
    assert found.found == {"a_1": Path("a_1_seg.nii"), "a_10": Path("a_10_seg.nii")}


def test_labels_of_a_data_set_have_its_names(unicode_folder: Path) -> None:
    """Of MSD and nnU-Net: the whole set, its labelsTr alone, and a copy of these elsewhere."""
    touch(unicode_folder / "set", "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    describe(unicode_folder / "set", channel_names={"0": "CT"}, labels={"background": 0, "liver": 1}, numTraining=1)
    whole, alone = open_labels(unicode_folder / "set"), open_labels(unicode_folder / "set" / "labelsTr")
    copied = open_labels(touch(unicode_folder / "copy", "a.nii.gz"))
    assert names_of(whole) == names_of(alone) == {1: "liver"} and names_of(copied) == {}
    assert [case.name for case in (*whole.cases, *alone.cases, *copied.cases)] == ["a"] * 3
    assert own_scans(whole) == {"a": unicode_folder / "set" / "imagesTr" / "a_0000.nii.gz"}
    assert own_scans(alone) == {}
    assert naming_of(copied, [alone]).classes == alone.classes


def test_results_of_nnunet_are_a_plain_folder_with_names(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "b.nii.gz", "plans.json")
    describe(tmp_path, channel_names={"0": "CT"}, labels={"background": 0, "liver": 1, "both": [1, 2]}, numTraining=9)
    dataset = open_labels(tmp_path)
    assert [case.name for case in dataset.cases] == ["a", "b"]
    assert names_of(dataset) == {1: "liver", 2: "class 2"} and [one.name for one in dataset.regions] == ["both"]


def test_what_segment_wrote(tmp_path: Path) -> None:
    touch(tmp_path, "labels/a.nii.gz", "layers/a/1-liver.nii.gz", "uncertainty/a.nii.gz", "segmented.json")
    assert [case.label for case in open_labels(tmp_path).cases] == [tmp_path / "labels" / "a.nii.gz"]


def test_scans_beside_label_maps_are_not_judged(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "a_seg.nii.gz", "sub/b.nrrd", "sub/b.seg.nrrd")
    dataset = open_labels(tmp_path)
    assert [case.label.name for case in dataset.cases if case.label] == ["a_seg.nii.gz", "b.seg.nrrd"]


def test_a_folder_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_labels(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no scan found"):
        open_labels(tmp_path)
    with pytest.raises(DataError, match="have the name a"):
        open_labels(touch(tmp_path / "twice", "a.nii.gz", "a.nrrd"))
    with pytest.raises(DataError, match="no label"):
        open_labels(touch(tmp_path / "images-only", "images/a.nii.gz", "labels/b.nii.gz"))


def test_scans_to_draw_on(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "b_0000.nii.gz")
    assert scans_by_case(cases("a.nii", "c.nii"), tmp_path) == {"a": tmp_path / "a_0000.nii.gz"}


def test_labels_without_a_name_have_their_number() -> None:
    named = classes_for((), {3})
    assert [one.name for one in classes_for(named, {3, 7, 0})] == ["class 3", "class 7"]
