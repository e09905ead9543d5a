"""Folders of scans without labels: what is passed over, whose scans they are, and names that are there twice."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from layout_files import touch

from HybridMIMLib.data.finding import find_scans
from HybridMIMLib.data.layouts import Dataset, open_dataset
from HybridMIMLib.data.walking import walk
from HybridMIMLib.errors import DataError


def listed(folder: Path) -> list[str]:
    """The files that are cases."""
    cases = open_dataset(folder, labelled=False).cases
    return sorted(path.relative_to(folder).as_posix() for case in cases for path in case.images)


# --- label maps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["label", "labels", "Segmentation", "label_liver", "label_auto_aorta", "label_auto117", "mask", "seg", "a_seg",
     "a-seg", "a_Label", "a_labels", "a_mask", "a_segmentation", "a_label_auto117", "a.label", "a_mask_2",
     "label0001", "Segmentation-label", "a_labelmap", "a_label_map"],
)  # fmt: skip
def test_a_label_map_beside_a_scan_is_passed_over(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a.nii.gz", f"{name}.nii.gz")
    dataset = open_dataset(tmp_path, labelled=False)
    assert listed(tmp_path) == ["a.nii.gz"]
    assert dataset.notes == (f"{tmp_path}: 1 file(s) were passed over as label maps, going by their names",)


@pytest.mark.parametrize("name", ["image_unlabelled", "segovia", "b", "masked", "a_unmasked", "a_2", "labelled_scan"])
def test_other_names_are_scans(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a.nii.gz", f"{name}.nii.gz")
    assert len(listed(tmp_path)) == 2 and open_dataset(tmp_path, labelled=False).notes == ()


def test_a_folder_in_which_everything_is_called_a_label_map_is_kept(tmp_path: Path) -> None:
    touch(tmp_path, "p1/a_mask.nii.gz", "p1/b_mask.nii.gz", "p2/ct.nii.gz", "p2/ct_mask.nii.gz")
    assert listed(tmp_path) == ["p1/a_mask.nii.gz", "p1/b_mask.nii.gz", "p2/ct.nii.gz"]
    assert listed(tmp_path / "p1") == ["a_mask.nii.gz", "b_mask.nii.gz"]


def test_folders_of_label_maps_are_passed_over_unless_there_is_nothing_else(tmp_path: Path) -> None:
    touch(tmp_path, "s1/ct.nii.gz", "s1/segmentations/liver.nii.gz", "s1/Masks/x.nii.gz", "s1/label/ct.nii.gz")
    assert listed(tmp_path) == ["s1/ct.nii.gz"]
    assert listed(tmp_path / "s1" / "segmentations") == ["liver.nii.gz"], "the folder itself was chosen"
    (tmp_path / "s1" / "ct.nii.gz").unlink()
    assert len(listed(tmp_path)) == 3


def test_label_maps_of_real_folders_are_passed_over(shared_data: Path) -> None:
    assert listed(shared_data / "small_labelled_ct") == [
        "msd_spleen_2_crop/image.nii.gz", "msd_spleen_8/image.nii.gz", "slicerio_ctchest_nrrd/CTChest4.nrrd",
        "totalseg_abdomen_full/image_unlabelled.nii.gz", "totalseg_abdomen_sm/image.nii.gz",
        "totalseg_aorta_cta/image.nii.gz", "totalseg_mr_sm/image.nii.gz",
    ]  # fmt: skip


def test_scans_beside_images_are_listed_and_label_maps_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz", "labels_auto/a.nii.gz", "extra/z.nii.gz", "y.nii.gz")
    touch(tmp_path, "y_seg.nii.gz", "imagesVal/v.nii.gz")
    cases = open_dataset(tmp_path, labelled=False).cases
    assert [case.name for case in cases] == ["a", "extra_z", "imagesVal_v", "y"]
    touch(tmp_path / "2", "imagesTr/a.nii", "imagesTs/b.nii", "labelsTr/a.nii", "c.nii")
    assert [case.name for case in open_dataset(tmp_path / "2", labelled=False).cases] == ["a", "b", "c"]


def test_label_maps_within_images_are_passed_over_unless_there_is_nothing_else(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.nii.gz", "images/a_seg.nii.gz", "images/b.seg.nrrd")
    assert listed(tmp_path) == ["images/a.nii.gz"]
    touch(tmp_path / "2", "images/a_mask.nii.gz", "images/b_mask.nii.gz")
    assert len(listed(tmp_path / "2")) == 2


# --- patients -------------------------------------------------------------------------------------------------


def patients(dataset: Dataset) -> list[str]:
    return [case.patient for case in dataset.cases]


@pytest.mark.parametrize("labelled", [True, False])
def test_subfolders_are_patients(tmp_path: Path, labelled: bool) -> None:
    scans = [f"P{patient}/{scan}.nii.gz" for patient in range(2) for scan in "ab"]
    touch(tmp_path, *(f"{part}/{scan}" for part in ("images", "labels") for scan in scans))
    dataset = open_dataset(tmp_path, labelled)
    assert [case.name for case in dataset.cases] == ["P0_a", "P0_b", "P1_a", "P1_b"]
    assert patients(dataset) == ["P0", "P0", "P1", "P1"]


def test_subfolders_of_a_plain_folder_and_of_channels_are_patients(tmp_path: Path) -> None:
    touch(tmp_path / "plain", "P0/day1/a.nii.gz", "P0/day2/a.nii.gz", "P1/a.nii.gz")
    assert patients(open_dataset(tmp_path / "plain", labelled=False)) == ["P0", "P0", "P1"]
    scans = [f"P{patient}/{scan}" for patient in range(2) for scan in "ab"]
    touch(tmp_path / "nn", *(f"imagesTr/{scan}_0000.nii" for scan in scans), *(f"labelsTr/{s}.nii" for s in scans))
    for labelled in (True, False):
        dataset = open_dataset(tmp_path / "nn", labelled)
        assert dataset.layout == "nnunet" and patients(dataset) == ["P0", "P0", "P1", "P1"]


@pytest.mark.parametrize(
    "names",
    [["P0/a", "P0/b"], ["P0/a", "P1/a", "c"], ["train/a", "test/a"], ["CT/a", "MR/a"], ["T1/a", "T2/a"], ["a", "b"]],
)
def test_other_subfolders_are_no_patients(tmp_path: Path, names: list[str]) -> None:
    touch(tmp_path, *(f"{name}.nii.gz" for name in names))
    assert set(patients(open_dataset(tmp_path, labelled=False))) == {""}


def test_dicom_names_its_patient_itself(shared_data: Path) -> None:
    assert set(patients(open_dataset(shared_data / "dicom", labelled=False))) == {""}


# --- names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.nii", "a.nii.gz", "b.nii"], ["a_nii", "a_nii_gz", "b"]),
        (["a/b.nii.gz", "a_b.nii.gz"], ["a_b", "a_b_2"]),
        (["a/b.nii", "a_b.nii", "a_b_2.nii"], ["a_b", "a_b_2", "a_b_3"]),
        (["a.nii", "a.nrrd", "a_nii.nii"], ["a", "a_2", "a_nii"]),
        (["a/b/c.nii", "a/b_c.nii", "a_b_c.nrrd"], ["a_b_c", "a_b_c_2", "a_b_c_3"]),
    ],
)
def test_scans_of_one_name_are_told_apart(tmp_path: Path, files: list[str], names: list[str]) -> None:
    cases = open_dataset(touch(tmp_path, *files), labelled=False).cases
    assert [case.name for case in cases] == names and len({case.images for case in cases}) == len(files)
    again = open_dataset(tmp_path, labelled=False).cases
    assert again == cases


def test_labelled_scans_of_one_name_are_refused_with_their_files(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.nii", "images/a.nii.gz", "labels/a.nii.gz")
    with pytest.raises(DataError, match=r"2 cases have the name a: images/a\.nii, images/a\.nii\.gz\. Rename"):
        open_dataset(tmp_path, labelled=True)
    (tmp_path / "images" / "a.nii").unlink()
    touch(tmp_path, "labels/a.nrrd")
    with pytest.raises(DataError, match=r"2 label maps have the name a: labels/a\.nii\.gz, labels/a\.nrrd"):
        open_dataset(tmp_path, labelled=True)


def test_a_list_with_two_cases_of_one_name(tmp_path: Path) -> None:
    touch(tmp_path, "p1/ct.nii", "p2/ct.nii")
    (tmp_path / "list.csv").write_text("image,label\np1/ct.nii,p1/ct.nii\np2/ct.nii,p2/ct.nii\n")
    assert [case.name for case in open_dataset(tmp_path / "list.csv", labelled=False).cases] == ["ct", "ct_2"]
    with pytest.raises(DataError, match=r"list\.csv: 2 cases have the name ct: .*p1/ct\.nii, .*p2/ct\.nii"):
        open_dataset(tmp_path / "list.csv", labelled=True)


def test_accents_match_however_they_are_written(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "Lékař č") for form in ("NFC", "NFD"))
    touch(tmp_path, f"images/{apart}.nii.gz", f"labels/{composed}.nii.gz")
    (case,) = open_dataset(tmp_path, labelled=True).cases
    assert case.name == composed and case.images[0].is_file() and case.label is not None
    (tmp_path / "list.csv").write_text(f"image\nimages/{composed}.nii.gz\n", encoding="utf-8")
    assert open_dataset(tmp_path / "list.csv", labelled=False).cases[0].images[0].is_file()


@pytest.mark.parametrize("labelled", [True, False])
def test_capitals_of_folders_do_not_matter(tmp_path: Path, labelled: bool) -> None:
    dataset = open_dataset(touch(tmp_path, "Images/a.nii.gz", "Labels/a.nii.gz"), labelled)
    assert dataset.layout == "images-labels" and [case.name for case in dataset.cases] == ["a"]
    touch(tmp_path, "images/b.nii.gz", "labels/b.nii.gz")
    if len(list(tmp_path.iterdir())) == 4 and labelled:
        assert [case.name for case in open_dataset(tmp_path, True).cases] == ["b"], "the exact name goes first"


def test_folders_that_seem_to_hold_labels_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.nii.gz", "labels_oar/a.nii.gz", "labels_tumour/a.nii.gz", "other/a.nii.gz")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, labelled=True)
    assert "has images/ and labels_oar/, labels_tumour/ but no labels/. Rename the folder" in str(caught.value)


# --- folders that may not be read ---------------------------------------------------------------------------


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that the system refuses to list; the mode of a folder does not stop root."""
    folder, listing = tmp_path / "set" / "closed", os.scandir

    def refuse(path: Any = ".") -> Any:
        if os.fspath(path) == os.fspath(folder):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return listing(path)

    touch(folder, "b.nii")
    monkeypatch.setattr(os, "scandir", refuse)
    yield folder


def test_a_folder_that_cannot_be_read_is_passed_over_and_told(closed: Path) -> None:
    root = touch(closed.parent, "a.nii")
    unreadable: list[str] = []
    told = f"{closed}: the folder cannot be read (Permission denied)"
    assert find_scans(root, unreadable) == [root / "a.nii"] == find_scans(root) and unreadable == [told]
    assert [place for place, _ in walk(root)] == [root]
    dataset = open_dataset(root, labelled=False)
    assert [case.name for case in dataset.cases] == ["a"] and dataset.notes == (told,)


def test_a_folder_that_cannot_be_read_is_an_error_where_nothing_else_is_found(closed: Path) -> None:
    for folder in (closed, closed.parent):
        with pytest.raises(DataError, match=r"closed: the folder cannot be read \(Permission denied\)\. Ask for"):
            find_scans(folder)
