"""Which files belong to which case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from layout_files import describe, touch

from HybridMIMLib.data.layouts import classes_from_labels, open_dataset
from HybridMIMLib.errors import DataError


def msd(folder: Path, *names: str, labels: Any = None, test: list[Any] | None = None) -> Path:
    touch(folder, *(f"{kind}/{name}.nii.gz" for name in names for kind in ("imagesTr", "labelsTr")))
    training = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names]
    return describe(folder, training=training, labels=labels or {"0": "background"}, test=test or [])


# --- dataset.json -------------------------------------------------------------------------------------------


def test_msd(unicode_folder: Path) -> None:
    names = {"0": "background", "1": "Anterior", "10": "Játra", "2": "Posterior"}
    dataset = open_dataset(msd(unicode_folder, "b_10", "b_2", labels=names), labelled=True)
    assert dataset.layout == "msd"
    assert dataset.root == unicode_folder
    assert [case.name for case in dataset.cases] == ["b_2", "b_10"]
    assert dataset.cases[0].images == (unicode_folder / "imagesTr/b_2.nii.gz",)
    assert dataset.cases[0].label == unicode_folder / "labelsTr/b_2.nii.gz"
    assert [(c.label, c.name) for c in dataset.classes] == [(1, "Anterior"), (2, "Posterior"), (10, "Játra")]


def test_msd_for_pretraining_adds_the_test_images(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTs/c.nii.gz")
    dataset = open_dataset(msd(tmp_path, "a", test=["./imagesTs/c.nii.gz"]), labelled=False)
    assert [(case.name, case.label) for case in dataset.cases] == [("a", None), ("c", None)]
    assert len(open_dataset(tmp_path, labelled=True).cases) == 1


def test_msd_passes_over_resource_forks(tmp_path: Path) -> None:
    msd(tmp_path, "a", test=["./imagesTs/._a.nii.gz"])
    content = json.loads((tmp_path / "dataset.json").read_text())
    content["training"].append({"image": "./imagesTr/._a.nii.gz", "label": "./labelsTr/._a.nii.gz"})
    describe(tmp_path, **content)
    assert len(open_dataset(tmp_path, labelled=False).cases) == 1


@pytest.mark.parametrize("missing", ["imagesTr/b.nii.gz", "labelsTr/b.nii.gz"])
def test_msd_names_a_missing_file(tmp_path: Path, missing: str) -> None:
    msd(tmp_path, "a", "b")
    (tmp_path / missing).unlink()
    with pytest.raises(DataError, match=rf"{missing}.*listed in dataset.json but missing"):
        open_dataset(tmp_path, labelled=True)


def test_msd_names_a_missing_test_image(tmp_path: Path) -> None:
    msd(tmp_path, "a", test=["./imagesTs/z.nii.gz"])
    with pytest.raises(DataError, match=r"imagesTs/z\.nii\.gz"):
        open_dataset(tmp_path, labelled=False)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"training": []}, "lists no case"),
        ({"training": {}}, "is no list"),
        ({"training": [{"image": 3}]}, "does not name one image"),
        ({"training": [7]}, "does not name one image"),
        ({"training": ["a.nii.gz"]}, "a.nii.gz has no label"),
        (
            {"training": [{"image": "a.nii.gz", "label": "a.nii.gz"}], "labels": {"x": [0, 2]}},
            "classes cannot",
        ),
        ({"training": [{"image": "a.nii.gz", "label": "a.nii.gz"}], "labels": ["x"]}, "classes cannot"),
    ],
)
def test_msd_that_is_wrong(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    touch(tmp_path, "a.nii.gz")
    with pytest.raises(DataError, match=words) as caught:
        open_dataset(describe(tmp_path, **content), labelled=True)
    assert "\n" not in str(caught.value)
    assert "dataset.json" in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_description_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    touch(tmp_path, "a.nii.gz")
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json"):
        open_dataset(tmp_path, labelled=False)


def test_real_msd(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "hippocampus_mr", labelled=True)
    assert len(dataset.cases) == 156
    assert [c.name for c in dataset.classes] == ["Anterior", "Posterior"]


# --- images and labels --------------------------------------------------------------------------------------


def test_images_and_labels_match_by_name_not_by_format(tmp_path: Path) -> None:
    touch(tmp_path, "images/b.nrrd", "images/a.nii.gz", "labels/a.seg.nrrd", "labels/b.nii")
    dataset = open_dataset(tmp_path, labelled=True)
    assert dataset.layout == "images-labels"
    assert [(c.name, c.label and c.label.name) for c in dataset.cases] == [
        ("a", "a.seg.nrrd"),
        ("b", "b.nii"),
    ]
    assert dataset.classes == ()


def test_classes_json(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz")
    (tmp_path / "classes.json").write_text('{"2": "Slezina", "1": "Játra"}', encoding="utf-8")
    classes = open_dataset(tmp_path, labelled=True).classes
    assert [(c.label, c.name) for c in classes] == [(1, "Játra"), (2, "Slezina")]


@pytest.mark.parametrize("text", ["{", '{"1": 2.5}', '{"one": "Liver"}', '["Liver"]', '{"Liver": 1, "Spleen": 1}'])
def test_classes_json_that_is_wrong(tmp_path: Path, text: str) -> None:
    touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz")
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(DataError, match=r"classes\.json"):
        open_dataset(tmp_path, labelled=True)


def test_image_without_label(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz")
    with pytest.raises(DataError, match="image b has no label in labels/"):
        open_dataset(tmp_path, labelled=True)
    assert len(open_dataset(tmp_path, labelled=False).cases) == 2


def test_label_without_image(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz", "labels/b.nii.gz")
    with pytest.raises(DataError, match="label b has no image in images/"):
        open_dataset(tmp_path, labelled=True)


def test_many_images_without_label_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "labels/a.nii.gz", *(f"images/{name}.nii.gz" for name in "abcdef"))
    with pytest.raises(DataError, match="images b, c, d and 2 more have no label"):
        open_dataset(tmp_path, labelled=True)


def test_no_folder_of_labels(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.nii.gz")
    with pytest.raises(DataError, match="has images/ but no labels/"):
        open_dataset(tmp_path, labelled=True)


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_two_files_of_one_name(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz", f"{folder}/a.nrrd")
    with pytest.raises(DataError, match=r"2 (cases|label maps) have the name a"):
        open_dataset(tmp_path, labelled=True)


def test_nnunet_channels(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0001.nii.gz", "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    touch(tmp_path, "imagesTs/b_0000.nii.gz", "imagesTs/b_0001.nii.gz")
    describe(tmp_path, labels={"background": 0, "Tumour": 1}, channel_names={"0": "T1", "1": "T2"})
    dataset = open_dataset(tmp_path, labelled=True)
    assert [path.name for path in dataset.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert [(c.label, c.name) for c in dataset.classes] == [(1, "Tumour")]
    assert [case.name for case in open_dataset(tmp_path, labelled=False).cases] == ["a", "b"]


def test_numbered_images_are_no_channels(tmp_path: Path) -> None:
    names = [f"{folder}/case_{number:04d}.nii.gz" for folder in ("images", "labels") for number in (0, 1)]
    assert len(open_dataset(touch(tmp_path, *names), labelled=True).cases) == 2


# --- plain folders ------------------------------------------------------------------------------------------


def test_plain_folder(tmp_path: Path) -> None:
    touch(tmp_path, "p10/ct.nii.gz", "p2/ct.nii.gz", "p2/ct.seg.nrrd", "p2/labels/ct.nii.gz", "notes.txt")
    dataset = open_dataset(tmp_path, labelled=False)
    assert dataset.layout == "folder"
    assert [case.name for case in dataset.cases] == ["p2_ct", "p10_ct"]


def test_plain_folder_has_no_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no labels that belong to images \(.*\)\. Put the images into images/"):
        open_dataset(touch(tmp_path, "a.nii.gz"), labelled=True)


def test_folder_of_label_maps_only(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="label maps only"):
        open_dataset(touch(tmp_path, "a.seg.nrrd"), labelled=False)


@pytest.mark.parametrize("labelled", [True, False])
def test_missing_and_empty_folders(tmp_path: Path, labelled: bool) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(tmp_path / "x", labelled=labelled)
    with pytest.raises(DataError, match="no scan found"):
        open_dataset(tmp_path, labelled=labelled)


def test_classes_from_labels() -> None:
    classes = classes_from_labels([3, 0, 1, 3])
    assert [(c.label, c.name) for c in classes] == [(1, "class 1"), (3, "class 3")]
    assert classes[0].color != classes[1].color
