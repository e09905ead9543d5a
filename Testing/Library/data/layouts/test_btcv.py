"""BTCV, in each of the forms in which it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_files import describe, names_of, touch

from HybridMIMLib.data.layouts import named_for_labels, open_dataset
from HybridMIMLib.errors import DataError

FORMS = {
    "one folder": ("img{}.nii.gz", "label{}.nii.gz", "test/img{}.nii.gz"),
    "img and label": ("img/img{}.nii.gz", "label/label{}.nii.gz", "testing/img{}.nii.gz"),
    "RawData": ("Training/img/img{}.nii.gz", "Training/label/label{}.nii.gz", "Testing/img/img{}.nii.gz"),
    "imagesTr": ("imagesTr/img{}.nii.gz", "labelsTr/label{}.nii.gz", "imagesTs/img{}.nii.gz"),
    "averaged": ("averaged-training-images/DET000{}01_avg.nii.gz",
                 "averaged-training-labels/DET000{}01_avg_seg.nii.gz",
                 "averaged-testing-images/DET000{}01_avg.nii.gz"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_each_form(unicode_folder: Path, form: str) -> None:
    image, label, test = FORMS[form]
    touch(unicode_folder, *(file.format(number) for number in ("0010", "0002") for file in (image, label)))
    touch(unicode_folder, test.format("0061"))
    dataset = open_dataset(unicode_folder, labelled=True)
    assert dataset.layout == "btcv" and len(dataset.cases) == 2
    first = dataset.cases[0]
    assert first.images == (unicode_folder / image.format("0002"),)
    assert first.label == unicode_folder / label.format("0002") and "0002" in first.patient
    assert len({case.patient for case in dataset.cases}) == 2
    whole = open_dataset(unicode_folder, labelled=False)
    assert [case.label for case in whole.cases] == [None] * 3


def btcv(folder: Path) -> Path:
    return touch(folder, *(f"{kind}/{kind}000{number}.nii.gz" for kind in ("img", "label") for number in (1, 2)))


def test_the_organs_are_named_where_the_labels_fit(tmp_path: Path) -> None:
    dataset = open_dataset(btcv(tmp_path), labelled=True)
    names = names_of(dataset)
    assert len(names) == 13 and names[1] == "spleen" and names[6] == "liver" and names[13] == "left adrenal gland"
    assert named_for_labels(dataset, range(14)).classes == dataset.classes
    assert named_for_labels(dataset, [1, 14]).classes == (), "some other set of that form"


def test_names_in_the_folder_go_before_the_customary_ones(tmp_path: Path) -> None:
    dataset = open_dataset(describe(btcv(tmp_path), "classes.json", **{"1": "Milz"}), labelled=True)
    assert names_of(dataset) == {1: "Milz"} and names_of(named_for_labels(dataset, [2])) == {1: "Milz"}


@pytest.mark.parametrize(
    ("missing", "words"),
    [("label/label0002.nii.gz", "img0002: there is no label of this number"),
     ("img/img0001.nii.gz", "label0001: there is no image of this number")],
)  # fmt: skip
def test_what_has_no_partner_is_named(tmp_path: Path, missing: str, words: str) -> None:
    (btcv(tmp_path) / missing).unlink()
    with pytest.raises(DataError, match=words):
        open_dataset(tmp_path, labelled=True)


def test_images_alone_serve_for_pretraining(tmp_path: Path) -> None:
    touch(tmp_path, "img0001.nii.gz", "img0002.nii.gz")
    assert open_dataset(tmp_path, labelled=False).layout == "btcv"
    with pytest.raises(DataError, match="has img#### but no label####"):
        open_dataset(tmp_path, labelled=True)


def test_a_number_that_is_there_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 scans have the name img0001: img/img0001\.nii\.gz, img/img0001\.nrrd"):
        open_dataset(touch(btcv(tmp_path), "img/img0001.nrrd"), labelled=True)
    names = [case.name for case in open_dataset(tmp_path, labelled=False).cases]
    assert names == ["img0001_nii_gz", "img0001_nrrd", "img0002"]


@pytest.mark.parametrize(
    ("met", "count"), [([1, 2], 0), (range(1, 10), 0), (range(1, 11), 13), (range(4, 14), 13), (range(12), 13)]
)
def test_a_set_with_few_labels_is_not_taken_for_btcv(tmp_path: Path, met: list[int], count: int) -> None:
    assert len(named_for_labels(open_dataset(btcv(tmp_path), labelled=True), met).classes) == count
