"""Who serves what in a study: nobody who is tested on serves anything else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import TINY, KeptLog, write_blobs

from HybridMIMLib.config import Run, make_run
from HybridMIMLib.data.scans import read_label_map, read_scan, write_label_map, write_nifti
from HybridMIMLib.errors import DataError, HybridMIMError, RunError, SettingsError
from HybridMIMLib.files import write_json
from HybridMIMLib.studies.protocol import Protocol, draw_protocol


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 labelled cases; 3 unlabelled scans of others."""
    folder = tmp_path_factory.mktemp("study")
    write_blobs(folder / "labelled", 12, labelled=True, seed=2)
    write_blobs(folder / "others", 3, labelled=False, seed=1)
    for index, file in enumerate(sorted((folder / "others" / "images").iterdir())):
        file.rename(folder / "others" / "images" / f"other_{index}.nii.gz")
    return folder


def run_of(scans: Path, unlabelled: str = "others", sections: dict[str, Any] | None = None, **study: Any) -> Run:
    settings = {
        "objectives": ["scratch", "simmim"],
        "labelled": [1, 3, "all"],
        "test_cases": -1 if "test" in study else 4,
        "validation_cases": 2,
        "seeds": [0, 1],
        "scratch_double": False,
        **study,
    }
    return make_run(None, {
        **TINY, "finetuning": {**TINY["finetuning"], "validation_cases": -1},
        "unlabelled": str(scans / unlabelled), "labelled": str(scans / "labelled"), "study": settings,
        **(sections or {}),
    })  # fmt: skip


def drawn(run: Run, log: KeptLog | None = None) -> Protocol:
    return draw_protocol(run, log or KeptLog())


def test_sides_do_not_meet_and_smaller_amounts_are_parts_of_larger_ones(scans: Path) -> None:
    found = drawn(run_of(scans))
    sides = [set(found.test), set(found.validation), set(found.pool)]
    assert [len(side) for side in sides] == [4, 2, 6] and len(set.union(*sides)) == 12
    for seed in (0, 1):
        one, three, everything = (set(found.training(seed, amount)) for amount in (1.0, 3.0, "all"))
        assert (len(one), len(three)) == (1, 3) and one < three < everything == sides[2]
    assert found.training(0, 3.0) != found.training(1, 3.0) or found.training(0, 1.0) != found.training(1, 1.0)
    assert drawn(run_of(scans)) == found, "the same draw again"
    other = drawn(run_of(scans, sections={"seed": 5}))
    assert set(other.test) != sides[0], "the draw of the test follows from the seed of the study"


def test_test_cases_are_kept_out_of_the_pretraining_whatever_they_are_called(scans: Path, tmp_path: Path) -> None:
    """All labelled scans lie among the unlabelled ones, under other names and in another type of number."""
    mixed = tmp_path / "mixed"
    shutil.copytree(scans / "others" / "images", mixed)
    for file in (scans / "labelled" / "images").iterdir():
        volume = read_scan(file)
        write_nifti(mixed / f"copy_of_{file.name.replace('.nii.gz', '.nii')}", volume.array[0].astype(np.float64),
                    volume.grid)  # fmt: skip
    log = KeptLog()
    found = drawn(run_of(tmp_path, "mixed", {"labelled": str(scans / "labelled")}), log)
    assert set(found.kept_out) == {f"copy_of_{name}" for name in found.test}
    assert len(found.pretraining) == 3 + 12 - 4 and not set(found.kept_out) & set(found.pretraining)
    assert any("4 of the 15 unlabelled scans are test cases" in str(event.get("message")) for event in log.events)


def test_test_scans_are_known_by_the_names_that_programs_give_them(scans: Path, tmp_path: Path) -> None:
    """Saved anew their voxels differ, and another program added a channel, capitals or a suffix."""
    mixed = tmp_path / "mixed"
    shutil.copytree(scans / "others" / "images", mixed)
    volume = read_scan(scans / "others" / "images" / "other_0.nii.gz")
    for index, name in enumerate(("blob_3_0000.nii", "BLOB_7.nii", "blob_8.nii", "blob_8.nii.gz", "blob_1_0000.nii")):
        write_nifti(mixed / name, volume.array[0] + index + 1, volume.grid)
    found = drawn(run_of(scans, sections={"unlabelled": str(mixed)}, test=["blob_3", "blob_7", "blob_8"]))
    assert set(found.kept_out) == {"blob_3_0000", "BLOB_7", "blob_8_nii", "blob_8_nii_gz"}
    assert "blob_1_0000" in found.pretraining, "no test case"


def test_what_cannot_be_learnt_or_does_not_fit_is_told(scans: Path, tmp_path: Path) -> None:
    """A label that a test case alone has, and unlabelled scans of two channels."""
    shutil.copytree(scans / "labelled", tmp_path / "labelled")
    (tmp_path / "labelled" / "classes.json").unlink()
    file = tmp_path / "labelled" / "labels" / "blob_3.nii.gz"
    label = read_label_map(file)
    write_label_map(file, np.where(label.array == 2, 7, label.array).astype(np.uint8), label.grid)
    images = tmp_path / "others" / "imagesTr"
    images.mkdir(parents=True)
    for index in range(3):
        volume = read_scan(scans / "others" / "images" / f"other_{index}.nii.gz")
        for number in (0, 1):
            write_nifti(images / f"other{index}_{number:04}.nii", volume.array[0] + number, volume.grid)
    names = {"channel_names": {"0": "a", "1": "b"}, "labels": {"background": 0}, "numTraining": 3,
             "file_ending": ".nii"}  # fmt: skip
    write_json(tmp_path / "others" / "dataset.json", names)
    paths = {"labelled": str(tmp_path / "labelled"), "unlabelled": str(tmp_path / "others")}
    log = KeptLog()
    drawn(run_of(scans, sections=paths, test=["blob_3", "blob_7"]), log)
    assert len(log.warnings) == 2
    assert "have 2 channel(s), the labelled ones 1" in log.warnings[0]
    assert "label(s) 7 are in test cases alone" in log.warnings[1]


def test_a_name_that_every_scan_has_keeps_nobody_out(scans: Path, tmp_path: Path) -> None:
    """Each case in a folder of its own, all scans called t1."""
    for kind, source in (("labelled", "labelled"), ("unlabelled", "others")):
        rows = ["name,image,label" if kind == "labelled" else "name,image"]
        for file in sorted((scans / source / "images").iterdir()):
            name = file.name.partition(".")[0]
            own = tmp_path / kind / name
            own.mkdir(parents=True)
            shutil.copy(file, own / "t1.nii.gz")
            label = f",{scans / source / 'labels' / file.name}" if kind == "labelled" else ""
            rows.append(f"{name},{own / 't1.nii.gz'}{label}")
        (tmp_path / f"{kind}.csv").write_text("\n".join(rows))
    paths = {kind: str(tmp_path / f"{kind}.csv") for kind in ("labelled", "unlabelled")}
    found = drawn(run_of(scans, sections=paths, test=["blob_3", "blob_7"]))
    assert found.kept_out == [] and len(found.pretraining) == 3


def test_all_scans_of_a_test_patient_are_kept_out(scans: Path, tmp_path: Path) -> None:
    rows = ["image,label,patient"]
    for index in range(12):
        name = scans / "labelled" / "{}" / f"blob_{index}.nii.gz"
        rows.append(f"{str(name).format('images')},{str(name).format('labels')},P{index // 2}")
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    others = ["image,patient", *(f"{scans}/others/images/other_{i}.nii.gz,P{4 * i}" for i in range(3))]
    (tmp_path / "others.csv").write_text("\n".join(others))
    paths = {"labelled": str(tmp_path / "cases.csv"), "unlabelled": str(tmp_path / "others.csv")}
    found = drawn(run_of(scans, sections=paths, test=["blob_0", "blob_5"]))
    # Their other scans, blob_1 and blob_4, serve nothing; nor does other_0, of P0.
    assert found.kept_out == ["other_0"]
    assert set(found.test) == {"blob_0", "blob_5"} and not {"blob_1", "blob_4"} & {*found.pool, *found.validation}
    assert len(found.pool) + len(found.validation) == 8


@pytest.fixture
def named(scans: Path, tmp_path: Path) -> Run:
    write_json(tmp_path / "test.json", ["blob_3", "blob_7"])
    return run_of(scans, test=[str(tmp_path / "test.json")])


def test_a_file_may_name_the_test_cases(named: Run) -> None:
    assert list(drawn(named).test) == ["blob_3", "blob_7"]


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ({"labelled": [7]}, "6 usable labelled case.*study.labelled has 7.*Add labelled cases, or lower"),
        ({"test_cases": 12}, "12 usable labelled case.*12 test cases"),
        ({"validation_cases": 8}, "after the test cases were put aside, 8 are to validate"),
        ({"test": ["blob_3", "blob_99"]}, "is called blob_99, which study.test names"),
        ({"test": ["none.json"]}, "none.json: the test cases cannot be read"),
    ],
)
def test_what_cannot_be_is_said_at_once_with_the_cure(scans: Path, study: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        drawn(run_of(scans, **study))


def test_too_few_scans_to_pretrain_on_are_told(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(scans / "others" / "images" / "other_0.nii.gz", tmp_path / "one")
    with pytest.raises(DataError, match=r"1 scan\(s\) are left to pre-train on"):
        drawn(run_of(tmp_path, "one", {"labelled": str(scans / "labelled")}))


# --- arms ---------------------------------------------------------------------------------------------------------


def test_what_a_network_cannot_do_is_left_out_and_told(scans: Path) -> None:
    log = KeptLog()
    found = drawn(run_of(scans, objectives=["scratch", "mae", "simmim"], patches=[4, 8, 3]), log)
    assert [arm.name for arm in found.arms] == ["scratch", "simmim, patch 4", "simmim, patch 8"]
    # MAE needs a ViT; no region of patches of 3 is a multiple of the stride and divides the crop.
    assert set(found.refused) == {f"mae, patch {p}" for p in (4, 8, 3)} | {"simmim, patch 3"}
    assert sum("left out: " in str(event.get("message")) for event in log.events) == 4
    with pytest.raises(SettingsError, match="mae.*network.architecture to unetr"):
        drawn(run_of(scans, objectives=["scratch", "mae"]))


def test_arms_of_a_group_have_one_crop_and_spacing_and_resolutions_differ(scans: Path) -> None:
    found = drawn(run_of(scans, patches=[4, 8], spacings=[1.0, 2.0]))
    for times, spacing in (("x1", [1.0, 1.0, 1.2]), ("x2", [2.0, 2.0, 2.4])):
        plans = [plan for name, plan in found.plans.items() if times in name]
        assert len(plans) == 3 and all(plan["spacing"] == pytest.approx(spacing) for plan in plans)
        assert {tuple(plan["crop"]) for plan in plans} == {(16, 16, 16)}
        assert {plan["patch"][0] for plan in plans} == {4, 8}


def test_arms_that_come_out_the_same_are_done_once(scans: Path) -> None:
    found = drawn(run_of(scans, vary="one", patches=[4, 8]))
    assert found.refused == {"simmim, patch 4": "It is the same as simmim."}


# --- kept ---------------------------------------------------------------------------------------------------------


def test_it_is_read_back_and_tells_what_has_changed(scans: Path, tmp_path: Path) -> None:
    run, file = run_of(scans), tmp_path / "protocol.json"
    found = drawn(run)
    found.save(file)
    again = Protocol.load(file)
    assert again == found
    again.check_same(make_run(run, {"output": "elsewhere", "device": "cpu", "study": {"jobs": 3}}), file)
    other = make_run(run, {"finetuning": {"steps": 99}, "study": {"seeds": [0, 1, 2]}})
    with pytest.raises(RunError, match=r"finetuning.steps \(was 6, is 99\); study.seeds \(was \[0, 1\], is"):
        again.check_same(other, file)
    file.write_text("{}")
    with pytest.raises(RunError, match="cannot be read"):
        Protocol.load(file)


def test_a_scan_that_has_changed_or_gone_is_named(scans: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(scans / "labelled", mine)
    run = run_of(scans, sections={"labelled": str(mine)})
    found = drawn(run)
    assert {case.name for case in found.dataset(run, "labelled", found.test).cases} == set(found.test)
    name = next(iter(found.test))
    shutil.copy(mine / "labels" / f"{next(iter(found.pool))}.nii.gz", mine / "labels" / f"{name}.nii.gz")
    with pytest.raises(RunError, match=f"{name}: changed since this study began"):
        found.dataset(run, "labelled", found.test)
    for part in ("images", "labels"):
        (mine / part / f"{name}.nii.gz").unlink()
    with pytest.raises(RunError, match=f"{name}: gone since this study began"):
        found.dataset(run, "labelled", found.test)


def test_a_class_that_nobody_annotated_in_what_is_learnt_from_ends_it_before_it_begins(
    scans: Path, tmp_path: Path
) -> None:
    """With one case of a partially labelled set, a class may have been annotated in none."""
    mine = tmp_path / "partial"
    shutil.copytree(scans / "labelled", mine)
    from HybridMIMLib.data.scans import read_label_map, write_label_map

    for index in range(12):
        file = mine / "labels" / f"blob_{index}.nii.gz"
        found = read_label_map(file)
        kept = np.where(found.array == 1 + index % 2, found.array, 0).astype(np.uint8)
        write_label_map(file, kept, found.grid)
    partial = {"labelled": str(mine), "missing_labels": "unannotated"}
    with pytest.raises(HybridMIMError, match="is annotated in none of the 1 case.*Raise the smallest number"):
        drawn(run_of(scans, sections=partial))
    assert len(drawn(run_of(scans, sections=partial, labelled=[2, "all"])).training(0, 2.0)) == 2
