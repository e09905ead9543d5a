"""A CSV or JSON file that lists the cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from layout_files import describe, names_of, regions_of, touch

from HybridMIMLib.data.layouts import open_dataset
from HybridMIMLib.errors import DataError


def csv(folder: Path, text: str, name: str = "cases.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def listed(folder: Path, content: Any) -> Path:
    (folder / "cases.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "cases.json"


# --- CSV ----------------------------------------------------------------------------------------------------


def test_every_column(unicode_folder: Path) -> None:
    touch(unicode_folder, "a.nii.gz", "far/b.nrrd", "a_seg.nii.gz", "far/b_seg.nrrd")
    describe(unicode_folder, "classes.json", **{"1": "Játra", "2": "Spleen", "7": "Left kidney"})
    file = csv(unicode_folder, "image,label,patient,name,annotated\n"
               f"a.nii.gz,a_seg.nii.gz,Nový,one,Játra; Left kidney\n\n{unicode_folder / 'far/b.nrrd'},"
               '"far/b_seg.nrrd", 12 ,,2\n')  # fmt: skip
    dataset = open_dataset(file, labelled=True)
    assert (dataset.layout, dataset.root, dataset.partial) == ("list", file, False)
    b, one = dataset.cases
    assert (one.name, one.patient, one.annotated) == ("one", "Nový", {1, 7})
    assert one.images == (unicode_folder / "a.nii.gz",) and one.label == unicode_folder / "a_seg.nii.gz"
    assert (b.name, b.patient, b.annotated) == ("b", "12", {2}) and b.label == unicode_folder / "far/b_seg.nrrd"
    assert names_of(dataset)[7] == "Left kidney"
    assert [(case.label, case.patient) for case in open_dataset(file, labelled=False).cases] == [
        (None, "12"), (None, "Nový")]  # fmt: skip


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("begin", ["", "\ufeff"])
def test_as_spreadsheets_write_it(tmp_path: Path, delimiter: str, begin: str) -> None:
    touch(tmp_path, "a1.nii", "a2.nii", "s.nii")
    rows = [["image_2", "image_1", "label", "annotated"], ["a2.nii", "a1.nii", "s.nii", '"1;2"']]
    file = csv(tmp_path, begin + "\r\n".join(delimiter.join(row) for row in rows))
    (case,) = open_dataset(file, labelled=True).cases
    assert [path.name for path in case.images] == ["a1.nii", "a2.nii"] and case.annotated == {1, 2}


def test_cases_may_have_less_channels_than_columns_and_no_annotation(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii", "s.nii")
    file = csv(tmp_path, "image_1,image_10,image_9,label,annotated\na.nii,,b.nii,s.nii,\n")
    (case,) = open_dataset(file, labelled=True).cases
    assert [path.name for path in case.images] == ["a.nii", "b.nii"] and case.annotated is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "its first line is ''"),
        ("picture,label\na.nii,s.nii\n", "its first line is 'picture, label'"),
        ("image,image\na.nii,s.nii\n", "its first line is"),
        ("image,label\n", "lists no case"),
        ("image,lable\na.nii,s.nii\n", "line 2: there is no 'lable' in a list"),
        ("image,label\na.nii,s.nii,x\n", "line 2: has 3 cells under 2 columns"),
        ("image,label\na.nii,s.nii\na.nii\n", "line 3: image a.nii has no label"),
        ("image,label\nmissing.nii,s.nii\n", r"missing.nii: listed in cases.csv, line 2, but missing"),
        ("image,label\na.nii,missing.nii\n", r"missing.nii: listed in cases.csv, line 2, but missing"),
        ("image,label\n,s.nii\n", "line 2: the entry .* does not name one image"),
        ("image,image_1,label\na.nii,a.nii,s.nii\n", "does not name one image"),
        ("image,label,annotated\na.nii,s.nii,Liver\n", "annotated names 'Liver'.*classes.json"),
        ("image,label,annotated\na.nii,s.nii,0\n", "annotated names '0'"),
        ("image,label,name\na.nii,s.nii,x/y\n", "'x/y' cannot name files"),
        ("image,label\na.nii,s.nii\na.nii,s.nii\n", "2 cases have the name a"),
    ],
)
def test_a_csv_that_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    touch(tmp_path, "a.nii", "s.nii")
    with pytest.raises(DataError, match=words) as caught:
        open_dataset(csv(tmp_path, text), labelled=True)
    assert "cases.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_a_name_that_is_no_class_is_answered_with_the_classes(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "s.nii")
    describe(tmp_path, "classes.json", Liver=1, Spleen=2)
    for wrong in ("Kidney", "3"):
        file = csv(tmp_path, f"image,label,annotated\na.nii,s.nii,1;{wrong}\n")
        with pytest.raises(DataError, match=f"annotated names '{wrong}'.*: Liver, Spleen"):
            open_dataset(file, labelled=True)


def test_text_in_another_encoding_and_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_bytes("image\ná.nii\n".encode("latin-1"))
    with pytest.raises(DataError, match="Save it as text in UTF-8"):
        open_dataset(tmp_path / "cases.csv", labelled=False)
    with pytest.raises(DataError, match="is no list of scans"):
        open_dataset(touch(tmp_path, "a.nii") / "a.nii", labelled=False)


def test_a_folder_in_a_list_is_the_one_scan_in_it(tmp_path: Path) -> None:
    touch(tmp_path, "p1/scan.nii", "p2/x.nii", "p2/y.nii")
    (case,) = open_dataset(csv(tmp_path, "image\np1\n"), labelled=False).cases
    assert case.images == (tmp_path / "p1" / "scan.nii",)
    with pytest.raises(DataError, match="line 2: .*p2 holds 2 scans"):
        open_dataset(csv(tmp_path, "image\np2\n"), labelled=False)


def test_resource_forks_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "._a.nii")
    assert len(open_dataset(csv(tmp_path, "image\na.nii\n._a.nii\n"), labelled=False).cases) == 1


# --- JSON ---------------------------------------------------------------------------------------------------


def test_a_json_list(tmp_path: Path) -> None:
    touch(tmp_path, "a1.nii", "a2.nii", "s.nii")
    row = {"image": ["a1.nii", "a2.nii"], "label": "s.nii", "patient": 7, "annotated": [1, "2"]}
    (case,) = open_dataset(listed(tmp_path, [row]), labelled=True).cases
    assert (case.name, case.patient, case.annotated, len(case.images)) == ("a1", "7", {1, 2}, 2)


def test_a_json_object_brings_names_regions_and_partial_labels(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "s.nii")
    content = {
        "cases": [{"image": "a.nii", "label": "s.nii", "annotated": "B"}],
        "labels": {"A": 1, "B": 2, "both": [1, 2]},
        "partially_labelled": True,
    }
    dataset = open_dataset(listed(tmp_path, content), labelled=True)
    assert dataset.partial and names_of(dataset) == {1: "A", 2: "B"} and regions_of(dataset) == {"both": {1, 2}}
    assert dataset.cases[0].annotated == {2}


def test_nothing_annotated_is_not_everything_annotated(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "s.nii")
    row = {"image": "a.nii", "label": "s.nii", "annotated": []}
    assert open_dataset(listed(tmp_path, [row]), labelled=True).cases[0].annotated == frozenset()


def test_a_list_of_monai(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}.nii" for name in "abcst"))
    content = {
        "training": [{"image": "a.nii", "label": "s.nii"}],
        "validation": [{"image": "b.nii", "label": "t.nii"}],
        "test": ["c.nii"],
        "labels": {"1": "Liver"},
    }
    dataset = open_dataset(listed(tmp_path, content), labelled=True)
    assert (dataset.layout, len(dataset.cases), names_of(dataset)) == ("msd", 2, {1: "Liver"})
    assert len(open_dataset(tmp_path / "cases.json", labelled=False).cases) == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "lists no cases"),
        (3, "lists no cases"),
        ([], "lists no case"),
        ([{"image": "a.nii", "label": "s.nii", "anotated": "1"}], "case 1: there is no 'anotated'"),
        ([{"image": 3}], "case 1: .* does not name one image"),
        (["a.nii"], "image a.nii has no label"),
        ([{"image": "a.nii", "label": ["s.nii"]}], "does not name one image and one label"),
    ],
)
def test_a_json_list_that_is_wrong(tmp_path: Path, content: Any, words: str) -> None:
    touch(tmp_path, "a.nii", "s.nii")
    with pytest.raises(DataError, match=words):
        open_dataset(listed(tmp_path, content), labelled=True)


def test_json_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "cases.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        open_dataset(tmp_path / "cases.json", labelled=False)
