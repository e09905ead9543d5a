"""Raw data of nnU-Net."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_files import describe, names_of, regions_of, touch

from HybridMIMLib.data.layouts import open_dataset
from HybridMIMLib.errors import DataError

LABELS = {"background": 0, "whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing": [3]}


def two_channels(folder: Path) -> Path:
    touch(folder, *(f"imagesTr/{case}_000{channel}.nrrd" for case in "ab" for channel in (1, 0)))
    touch(folder, "labelsTr/a.nrrd", "labelsTr/b.nrrd", "imagesTs/c_0000.nrrd", "imagesTs/c_0001.nrrd")
    return describe(folder, channel_names={"0": "T1", "1": "FLAIR"}, labels=LABELS, file_ending=".nrrd",
                    numTraining=2, regions_class_order=[1, 2, 3])  # fmt: skip


def test_channels_names_and_regions(unicode_folder: Path) -> None:
    dataset = open_dataset(two_channels(unicode_folder), labelled=True)
    assert [case.name for case in dataset.cases] == ["a", "b"] and dataset.layout == "nnunet"
    assert [path.name for path in dataset.cases[0].images] == ["a_0000.nrrd", "a_0001.nrrd"]
    assert dataset.cases[0].label == unicode_folder / "labelsTr" / "a.nrrd"
    assert names_of(dataset) == {1: "class 1", 2: "class 2", 3: "enhancing"}
    assert regions_of(dataset) == {"whole tumour": {1, 2, 3}, "tumour core": {2, 3}}
    assert [case.name for case in open_dataset(unicode_folder, labelled=False).cases] == ["a", "b", "c"]


@pytest.mark.parametrize("described", [True, False])
def test_a_missing_channel_is_named(tmp_path: Path, described: bool) -> None:
    two_channels(tmp_path)
    if not described:
        (tmp_path / "dataset.json").unlink()
    (tmp_path / "imagesTr" / "b_0001.nrrd").unlink()
    with pytest.raises(DataError, match="imagesTr: there is no b_0001. Restore"):
        open_dataset(tmp_path, labelled=True)


def test_a_channel_that_the_description_does_not_know_is_named(tmp_path: Path) -> None:
    touch(two_channels(tmp_path), "imagesTr/b_0002.nrrd")
    with pytest.raises(DataError, match=r"names 2 channel\(s\), and there is b_0002"):
        open_dataset(tmp_path, labelled=True)


def test_files_with_another_ending_are_no_scans(tmp_path: Path) -> None:
    touch(two_channels(tmp_path), "imagesTr/sketch.nii.gz")
    assert len(open_dataset(tmp_path, labelled=True).cases) == 2
    describe(tmp_path, channel_names={"0": "T1"}, file_ending=".tif")
    with pytest.raises(DataError, match=r"no scan ends with \.tif"):
        open_dataset(tmp_path, labelled=True)


def test_a_file_without_channel_and_one_channel_twice(tmp_path: Path) -> None:
    touch(two_channels(tmp_path), "imagesTr/sketch.nrrd")
    with pytest.raises(DataError, match="sketch.nrrd: its name does not end with a channel"):
        open_dataset(tmp_path, labelled=True)
    (tmp_path / "imagesTr" / "sketch.nrrd").unlink()
    describe(tmp_path, channel_names={"0": "T1", "1": "FLAIR"})
    touch(tmp_path, "imagesTr/a_0001.nii.gz")
    with pytest.raises(DataError, match=r"a_0001\.\w+(\.gz)?: is there as a_0001"):
        open_dataset(tmp_path, labelled=True)


def test_a_label_that_is_missing_or_left_over(tmp_path: Path) -> None:
    (two_channels(tmp_path) / "labelsTr" / "b.nrrd").unlink()
    with pytest.raises(DataError, match="image b has no label in labelsTr/"):
        open_dataset(tmp_path, labelled=True)
    touch(tmp_path, "labelsTr/b.nrrd", "labelsTr/d.nrrd")
    with pytest.raises(DataError, match="label d has no image in imagesTr/"):
        open_dataset(tmp_path, labelled=True)


def test_files_that_the_description_lists(tmp_path: Path) -> None:
    touch(tmp_path, "far/a_t1.nii", "far/a_t2.nii", "far/a_seg.nii")
    files = {"images": ["far/a_t1.nii", "far/a_t2.nii"], "label": "far/a_seg.nii"}
    describe(tmp_path, channel_names={"0": "T1", "1": "T2"}, labels={"background": 0, "A": 1}, dataset={"a": files})
    (case,) = open_dataset(tmp_path, labelled=True).cases
    assert (case.name, len(case.images), case.label) == ("a", 2, tmp_path / "far" / "a_seg.nii")
    (tmp_path / "far" / "a_t2.nii").unlink()
    with pytest.raises(DataError, match="listed in dataset.json but missing"):
        open_dataset(tmp_path, labelled=True)
    describe(tmp_path, channel_names={"0": "T1"}, dataset={"a": 7})
    with pytest.raises(DataError, match="does not name one image"):
        open_dataset(tmp_path, labelled=True)


def test_a_label_to_ignore_is_refused(tmp_path: Path) -> None:
    describe(two_channels(tmp_path), channel_names={"0": "T1", "1": "T2"}, labels={"A": 1, "ignore": 2})
    with pytest.raises(DataError, match="to ignore is not supported"):
        open_dataset(tmp_path, labelled=True)


# --- numbers at the end that are no channels, and those that are ----------------------------------------------


def test_numbered_scans_of_one_name_are_scans_where_nothing_says_channels(tmp_path: Path) -> None:
    touch(tmp_path, *(f"imagesTr/scan_000{number}.nii.gz" for number in range(3)))
    dataset = open_dataset(tmp_path, labelled=False)
    assert dataset.layout == "images-labels"
    assert [(case.name, len(case.images)) for case in dataset.cases] == [(f"scan_000{n}", 1) for n in range(3)]


def test_labels_of_the_same_names_say_that_numbers_are_no_channels(tmp_path: Path) -> None:
    names = [f"{case}_000{number}" for case in ("a", "b") for number in range(2)]
    touch(tmp_path, *(f"{part}/{name}.nii.gz" for name in names for part in ("imagesTr", "labelsTr")))
    for labelled in (True, False):
        assert [case.name for case in open_dataset(tmp_path, labelled).cases] == names


def test_a_label_without_the_number_or_the_description_says_that_it_is_a_channel(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    touch(one, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")
    describe(touch(two, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"), channel_names={"0": "T1", "1": "T2"})
    for folder in (one, two):
        dataset = open_dataset(folder, labelled=False)
        assert dataset.layout == "nnunet" and [len(case.images) for case in dataset.cases] == [2]


def test_without_labels_several_cases_have_channels(tmp_path: Path) -> None:
    touch(tmp_path, *(f"imagesTr/{case}_000{number}.nii.gz" for case in "ab" for number in range(2)))
    assert [len(case.images) for case in open_dataset(tmp_path, labelled=False).cases] == [2, 2]


# --- version 1 ------------------------------------------------------------------------------------------------


def version_1(folder: Path, channels: int, **content: object) -> Path:
    names = [f"imagesTr/{case}_000{number}.nii.gz" for case in "ab" for number in range(channels)]
    touch(folder, *names, "labelsTr/a.nii.gz", "labelsTr/b.nii.gz", "imagesTs/c_0000.nii.gz")
    training = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in "ab"]
    return describe(folder, labels={"0": "background", "1": "A"}, training=training, **content)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("described", [True, False])
def test_version_1_lists_cases_and_keeps_channels(tmp_path: Path, channels: int, described: bool) -> None:
    modality = {"modality": {str(number): "MRI" for number in range(channels)}} if described else {}
    dataset = open_dataset(version_1(tmp_path, channels, **modality), labelled=True)
    expected = [[f"{case}_000{number}.nii.gz" for number in range(channels)] for case in "ab"]
    assert [case.name for case in dataset.cases] == ["a", "b"]
    assert [[path.name for path in case.images] for case in dataset.cases] == expected
    assert dataset.cases[0].label == tmp_path / "labelsTr" / "a.nii.gz" and names_of(dataset) == {1: "A"}


def test_version_1_with_a_test_image_and_with_a_missing_channel(tmp_path: Path) -> None:
    version_1(tmp_path, 1, test=["./imagesTs/c.nii.gz"], modality={"0": "CT"})
    assert [case.name for case in open_dataset(tmp_path, labelled=False).cases] == ["a", "b", "c"]
    version_1(tmp_path, 2, modality={"0": "T1", "1": "T2"})
    (tmp_path / "imagesTr" / "b_0001.nii.gz").unlink()
    with pytest.raises(DataError, match=r"b_0001\.nii\.gz: listed in dataset\.json but missing"):
        open_dataset(tmp_path, labelled=True)
