"""Every layout is told from the others, and what fits none is told why."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_files import describe, touch

from HybridMIMLib.data.layouts import open_dataset
from HybridMIMLib.data.layouts.source import case_name
from HybridMIMLib.errors import DataError

LABELLED: dict[str, list[str]] = {
    "nnunet": ["imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii.gz", "labelsTr/b.nii.gz"],
    "btcv": ["img/img0001.nii.gz", "label/label0001.nii.gz"],
    "images-labels": ["images/a.nii.gz", "labels/a.nii.gz"],
    "brats": [f"c/c_{kind}.nii" for kind in ("t1", "t1ce", "t2", "flair", "seg")],
}


@pytest.mark.parametrize("layout", LABELLED)
@pytest.mark.parametrize("labelled", [True, False])
def test_each_is_told_by_itself(unicode_folder: Path, layout: str, labelled: bool) -> None:
    dataset = open_dataset(touch(unicode_folder, *LABELLED[layout], "notes.txt", "._x.nii.gz"), labelled)
    assert dataset.layout == layout and dataset.root == unicode_folder and not dataset.partial
    assert all((case.label is not None) == labelled for case in dataset.cases)


def test_a_list_of_cases_goes_before_folders(tmp_path: Path) -> None:
    touch(tmp_path, *LABELLED["nnunet"])
    training = [{"image": "imagesTr/a_0000.nii.gz", "label": "labelsTr/a.nii.gz"}]
    describe(tmp_path, training=training)
    assert open_dataset(tmp_path, labelled=True).layout == "msd"


def test_names_of_scans_say_nothing_where_folders_do(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{part}/case_{kind}.nii" for part in ("images", "labels") for kind in ("t1", "seg")))
    assert open_dataset(tmp_path, labelled=True).layout == "images-labels"


def test_what_fits_none_is_told_what_each_lacks(tmp_path: Path) -> None:
    touch(tmp_path, "img0001.nii.gz", "img0002_seg.nii.gz", "x/c_t1.nii", "x/c_t1ce.nii", "x/c_t2.nii", "x/c_seg.nii")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, labelled=True)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"{tmp_path}: has no labels that belong to images (MSD: there is no")
    for words in ("nnU-Net: there is no imagesTr/", "BTCV: img0002_seg is called neither",
                  "images/ and labels/: there", "BraTS: no case has the four images",
                  "a CSV with the columns image and label"):  # fmt: skip
        assert words in text
    assert open_dataset(tmp_path, labelled=False).layout == "folder"


def test_a_set_says_that_it_is_partially_labelled_or_the_user_does(tmp_path: Path) -> None:
    touch(tmp_path, *LABELLED["images-labels"])
    assert not open_dataset(tmp_path, True).partial
    assert open_dataset(tmp_path, True, missing_labels="unannotated").partial
    describe(tmp_path, "classes.json", **{"1": "Liver", "partially_labelled": True})
    dataset = open_dataset(tmp_path, True)
    assert dataset.partial and [one.name for one in dataset.classes] == ["Liver"]


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_partially_labelled_is_true_or_false(tmp_path: Path, value: object) -> None:
    touch(tmp_path, *LABELLED["images-labels"])
    describe(tmp_path, partially_labelled=value)
    with pytest.raises(DataError, match=r"dataset\.json: partially_labelled is"):
        open_dataset(tmp_path, True)


def test_what_was_annotated_in_a_case(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii")
    rows = "image,label,annotated\na.nii,b.nii,\nb.nii,a.nii,1;3\n"
    (tmp_path / "list.csv").write_text(rows)
    whole, partial = (open_dataset(tmp_path / "list.csv", True, how) for how in ("absent", "unannotated"))
    assert [whole.annotated_in(case, [0, 2]) for case in whole.cases] == [None, {1, 3}]
    assert [partial.annotated_in(case, [0, 2]) for case in partial.cases] == [{2}, {1, 3}]


def test_folders_that_are_links_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "far", *LABELLED["images-labels"])
    (tmp_path / "set").mkdir()
    for part in ("images", "labels"):
        (tmp_path / "set" / part).symlink_to(tmp_path / "far" / part, target_is_directory=True)
    assert [case.name for case in open_dataset(tmp_path / "set", True).cases] == ["a"]


def test_a_scan_is_named_after_its_folders_and_a_series_has_its_folder_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert case_name(tmp_path, tmp_path / "p1" / "ct.nii.gz") == "p1_ct"
    monkeypatch.setattr("HybridMIMLib.data.layouts.source.scan_name", lambda path: path.parent.name)
    assert case_name(tmp_path, tmp_path / "p1" / "t1" / "IM0001") == "p1_t1"
    assert case_name(tmp_path, tmp_path / "p1" / "IM0001.dcm") == "p1"
    assert case_name(tmp_path, tmp_path / "IM0001.dcm") == tmp_path.name
    monkeypatch.setattr("HybridMIMLib.data.layouts.source.scan_name", lambda path: f"{path.parent.name}_7")
    assert case_name(tmp_path, tmp_path / "p1" / "t1" / "IM0001") == "p1_t1_7"
    monkeypatch.setattr("HybridMIMLib.data.layouts.source.scan_name", lambda path: path.stem)
    assert case_name(tmp_path, tmp_path / "p1" / "alone.dcm") == "p1_alone"


def test_series_of_dicom_are_cases(shared_data: Path, tmp_path: Path) -> None:
    names = [path.name for path in sorted((shared_data / "dicom").iterdir()) if path.is_dir()]
    dataset = open_dataset(shared_data / "dicom", labelled=False)
    assert len(dataset.cases) == len(names) and all(len(case.images) == 1 for case in dataset.cases)
    (tmp_path / "images").mkdir()
    for name, case in zip(names, dataset.cases):
        (tmp_path / "images" / name).symlink_to(case.images[0].parent, target_is_directory=True)
        touch(tmp_path, f"labels/{name}.nii.gz")
    paired = open_dataset(tmp_path, labelled=True)
    assert [case.name for case in paired.cases] == names
    (tmp_path / "one.csv").write_text(f"image\n{case.images[0].parent}\n")
    assert open_dataset(tmp_path / "one.csv", labelled=False).cases[0].images == case.images


def test_ten_thousand_cases_are_listed_in_seconds(tmp_path: Path) -> None:
    import time

    touch(tmp_path, *(f"{part}/case_{number}.nii.gz" for part in ("images", "labels") for number in range(10_000)))
    began = time.monotonic()
    assert len(open_dataset(tmp_path, True).cases) == 10_000
    assert time.monotonic() - began < 30, (
        "seconds, though the machine may be busy: what grows with the square takes minutes"
    )
