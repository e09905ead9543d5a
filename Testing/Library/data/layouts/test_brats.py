"""BraTS: four images a case, by its earlier and later names."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_files import names_of, regions_of, touch

from HybridMIMLib.data.layouts import named_for_labels, open_dataset
from HybridMIMLib.errors import DataError

EARLIER = ("_flair", "_seg", "_t1", "_t1ce", "_t2")
LATER = ("-seg", "-t1c", "-t1n", "-t2f", "-t2w")


def brats(folder: Path, *cases: str, kinds: tuple[str, ...] = EARLIER, ending: str = ".nii.gz") -> Path:
    return touch(folder, *(f"{case}/{case.split('/')[-1]}{kind}{ending}" for case in cases for kind in kinds))


def test_brats_2020(unicode_folder: Path) -> None:
    names = ("BraTS20_Training_002", "BraTS20_Training_001")
    dataset = open_dataset(brats(unicode_folder, *names, ending=".nii"), labelled=True)
    assert [case.name for case in dataset.cases] == ["BraTS20_Training_001", "BraTS20_Training_002"]
    first = dataset.cases[0]
    assert [path.name[21:-4] for path in first.images] == ["t1", "t1ce", "t2", "flair"]
    assert first.label is not None and first.label.name == "BraTS20_Training_001_seg.nii"
    assert first.patient == first.name and dataset.layout == "brats"
    assert set(names_of(dataset)) == {1, 2, 4} and names_of(dataset)[4] == "enhancing tumor"
    assert regions_of(dataset) == {"WT": {1, 2, 4}, "TC": {1, 4}, "ET": {4}}


def test_later_names_and_time_points_of_one_patient(tmp_path: Path) -> None:
    cases = ("BraTS-GLI-00005-000", "BraTS-GLI-00005-001", "BraTS-GLI-00006-000")
    dataset = open_dataset(brats(tmp_path, *cases, kinds=LATER), labelled=True)
    assert [path.name[20:-7] for path in dataset.cases[0].images] == ["t1n", "t1c", "t2w", "t2f"]
    assert [case.patient for case in dataset.cases] == ["BraTS-GLI-00005"] * 2 + ["BraTS-GLI-00006"]
    assert set(names_of(dataset)) == {1, 2, 3}
    assert regions_of(dataset) == {"WT": {1, 2, 3}, "TC": {1, 3}, "ET": {3}}


@pytest.mark.parametrize(
    ("kinds", "met", "labels", "core"),
    [
        (EARLIER, {1, 2, 4}, {1, 2, 4}, {1, 4}),
        (EARLIER, {1, 2, 3}, {1, 2, 3}, {1, 3}),
        (EARLIER, {1, 2, 3, 4}, set(), None),
        (LATER, {1, 2, 3}, {1, 2, 3}, {1, 3}),
        (LATER, {2, 3, 4}, {1, 2, 3, 4}, {1, 3}),
        (LATER, {5}, set(), None),
    ],
)
def test_names_follow_from_the_labels_met(
    tmp_path: Path, kinds: tuple[str, ...], met: set[int], labels: set[int], core: set[int] | None
) -> None:
    dataset = named_for_labels(open_dataset(brats(tmp_path, "c", kinds=kinds), labelled=True), met)
    assert set(names_of(dataset)) == labels and regions_of(dataset).get("TC") == core


def test_grades_in_folders_of_their_own(tmp_path: Path) -> None:
    dataset = open_dataset(brats(tmp_path, "HGG/Brats18_a", "LGG/Brats18_b"), labelled=True)
    assert [case.name for case in dataset.cases] == ["Brats18_a", "Brats18_b"]


def test_cases_without_labels_serve_for_pretraining(tmp_path: Path) -> None:
    brats(tmp_path, "a")
    brats(tmp_path, "b", kinds=("_t1", "_t1ce", "_t2", "_flair"))
    dataset = open_dataset(tmp_path, labelled=False)
    assert [(len(case.images), case.label) for case in dataset.cases] == [(4, None)] * 2
    with pytest.raises(DataError, match="b: its label map seg is missing"):
        open_dataset(tmp_path, labelled=True)


@pytest.mark.parametrize(("kinds", "missing"), [(EARLIER, "_flair"), (EARLIER, "_t1"), (LATER, "-t2w")])
def test_a_missing_image_is_named(tmp_path: Path, kinds: tuple[str, ...], missing: str) -> None:
    (brats(tmp_path, "a", "b", kinds=kinds) / f"b/b{missing}.nii.gz").unlink()
    with pytest.raises(DataError, match=f"b: its image {missing[1:]} is missing"):
        open_dataset(tmp_path, labelled=True)


def test_the_label_map_of_case_355_has_to_be_renamed(tmp_path: Path) -> None:
    """In BraTS 2020 the label map of one case has kept the name that its hospital gave it."""
    case = "BraTS20_Training_355"
    brats(tmp_path, case)
    odd = tmp_path / case / "W39_1998.09.19_Segm.nii"
    (tmp_path / case / f"{case}_seg.nii.gz").rename(odd)
    with pytest.raises(DataError, match=r"W39_1998\.09\.19_Segm\.nii: 1 scan\(s\) such as this.*CASE_seg"):
        open_dataset(tmp_path, labelled=True)


def test_an_image_that_is_there_twice_belongs_to_no_case(tmp_path: Path) -> None:
    touch(brats(tmp_path, "a"), "a/a_t1.nrrd")
    with pytest.raises(DataError, match=r"a_t1\..*: 1 scan\(s\)"):
        open_dataset(tmp_path, labelled=True)
