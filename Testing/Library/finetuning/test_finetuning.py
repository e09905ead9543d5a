"""Fine-tuning: who is held out, what is not annotated, and regions beside the classes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import TINY, write_blobs

from HybridMIMLib import __version__, finetune, train
from HybridMIMLib.config import make_run
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.layouts import named_for_labels, open_dataset
from HybridMIMLib.data.layouts.btcv import ORGANS
from HybridMIMLib.data.model_description import read_description
from HybridMIMLib.data.scans import read_label_map, read_scan, write_label_map, write_nifti
from HybridMIMLib.data.survey import survey
from HybridMIMLib.errors import DataError, LabelError, SettingsError
from HybridMIMLib.evaluation.dice import dice_by_class, mean_dice
from HybridMIMLib.events import EventLog, EventReader
from HybridMIMLib.files import read_json
from HybridMIMLib.finetuning.run import check_labelled
from HybridMIMLib.inference.engines import TorchEngine
from HybridMIMLib.inference.predictor import Predictor
from HybridMIMLib.model_package import load_model

NAMES = {"1": "Bright", "2": "Dark"}
GRID = Grid((20, 20, 20), np.eye(4))


def tuned(**changes: Any) -> dict[str, Any]:
    """Settings of a tiny fine-tuning."""
    return {**TINY, "finetuning": {**TINY["finetuning"], **changes}}


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def without(cases: Path, name: str, label: int) -> None:
    """Remove a label from a label map, as one who was not asked for it leaves it."""
    file = cases / "labels" / f"{name}.nii.gz"
    scan = read_scan(cases / "images" / f"{name}.nii.gz")
    labels = read_label_map(file, scan.grid).array
    write_label_map(file, np.where(labels == label, 0, labels), scan.grid)


def split_of(run: Path) -> dict[str, set[str]]:
    return {side: set(names) for side, names in read_json(run / "split.json").items()}


def test_what_is_dropped_is_a_setting_of_the_finetuning(blobs: Path, tmp_path: Path) -> None:
    """What a pre-training drops, for its contrast, does not touch it."""

    def losses(name: str, in_network: float, **chosen: Any) -> list[dict[str, float]]:
        settings = {**tuned(steps=2, **chosen), "network": {**TINY["network"], "dropout": in_network}}
        finetune(labelled=str(blobs / "labelled"), output=str(tmp_path / name), **settings)
        return [one["losses"] for one in EventReader(tmp_path / name / "events.jsonl").read() if "losses" in one]

    without = losses("without", 0.0)
    assert len(without) == 2
    assert losses("of the network", 0.5) == without
    assert losses("of the fine-tuning", 0.0, dropout=0.5) != without


# --- who is held out ----------------------------------------------------------------------------------------


def test_a_split_that_is_given_is_kept(blobs: Path, unicode_folder: Path) -> None:
    names = [f"blob_{n}" for n in range(5)]
    file = write_json(unicode_folder / "mine.json", {"training": names[:3], "validation": names[3:]})
    call = {"labelled": str(blobs / "labelled"), **tuned(validation_cases=-1, split=str(file))}
    finetune(**call, output=str(unicode_folder / "one"))
    assert split_of(unicode_folder / "one") == {"training": set(names[:3]), "validation": set(names[3:])}
    # What a run wrote serves another.
    again = tuned(validation_cases=-1, split=str(unicode_folder / "one" / "split.json"))
    finetune(labelled=str(blobs / "labelled"), output=str(unicode_folder / "two"), **again)
    assert split_of(unicode_folder / "two") == split_of(unicode_folder / "one")


def test_a_split_that_does_not_fit_is_told_before_the_pretraining(blobs: Path, tmp_path: Path) -> None:
    file = write_json(tmp_path / "s.json", {"training": [f"blob_{n}" for n in range(4)], "validation": ["blob_9"]})
    with pytest.raises(DataError, match="blob_9 is named, but"):
        train(
            unlabelled=str(blobs / "unlabelled"),
            labelled=str(blobs / "labelled"),
            output=str(tmp_path / "run"),
            **tuned(validation_cases=-1, split=str(file)),
        )
    phases = [event["phase"] for event in EventReader(tmp_path / "run" / "events.jsonl").read() if "phase" in event]
    assert "pretrain" not in phases


def test_a_split_and_a_number_contradict_each_other() -> None:
    with pytest.raises(SettingsError, match=r"finetuning\.split and finetuning\.validation_cases"):
        make_run(None, {"finetuning": {"split": "s.json", "validation_cases": 2}})


def by_patient(folder: Path, patients: str) -> Path:
    cases = write_blobs(folder / "cases", len(patients), labelled=True)
    rows = [f"images/blob_{n}.nii.gz,labels/blob_{n}.nii.gz,{name}" for n, name in enumerate(patients)]
    (cases / "my patients.csv").write_text("\n".join(["image,label,patient", *rows]))
    return cases / "my patients.csv"


def test_all_scans_of_a_patient_are_on_one_side_and_a_list_names_the_model(tmp_path: Path) -> None:
    file = by_patient(tmp_path, "AABBC")
    result = finetune(labelled=str(file), output=str(tmp_path / "run"), **tuned(validation_cases=2))
    validation = split_of(tmp_path / "run")["validation"]
    assert validation in ({"blob_0", "blob_1"}, {"blob_2", "blob_3"}) or validation == {"blob_4"}
    assert read_description(Path(result["model"])).name == "my patients"


def test_one_patient_alone_cannot_be_validated(tmp_path: Path) -> None:
    file = by_patient(tmp_path, "AAA")
    with pytest.raises(DataError, match="all 3 labelled scans are of one patient, A"):
        finetune(labelled=str(file), output=str(tmp_path / "run"), **TINY)


def test_a_patient_on_both_sides_of_a_given_split_is_told(tmp_path: Path) -> None:
    file = by_patient(tmp_path, "AAB")
    shares = write_json(tmp_path / "s.json", {"training": ["blob_0", "blob_2"], "validation": ["blob_1"]})
    settings = tuned(validation_cases=-1, split=str(shares))
    result = finetune(labelled=str(file), output=str(tmp_path / "run"), **settings)
    assert any("patient A are both trained on and validated on" in text for text in result["warnings"])


# --- what is not annotated ----------------------------------------------------------------------------------


def test_a_class_that_is_annotated_nowhere_is_refused(tmp_path: Path) -> None:
    cases = write_blobs(tmp_path / "cases", 3, labelled=True)
    write_json(cases / "classes.json", {**NAMES, "3": "Ghost", "partially_labelled": True})
    with pytest.raises(LabelError, match=r"class Ghost \(3\) is annotated in none of the 2 scans"):
        finetune(labelled=str(cases), output=str(tmp_path / "run"), **TINY)
    run = make_run(None, {"labelled": str(cases), **TINY})
    with pytest.raises(LabelError, match="class Ghost"):
        check_labelled(run, open_dataset(cases, labelled=True))
    # Absent, it is a class like any other.
    write_json(cases / "classes.json", {**NAMES, "3": "Ghost"})
    check_labelled(run, open_dataset(cases, labelled=True))


def test_a_class_annotated_among_the_held_out_alone_is_refused(tmp_path: Path) -> None:
    cases = write_blobs(tmp_path / "cases", 3, labelled=True)
    for name in ("blob_0", "blob_1"):
        without(cases, name, 2)
    split = write_json(tmp_path / "s.json", {"training": ["blob_0", "blob_1"], "validation": ["blob_2"]})
    settings = {**tuned(validation_cases=-1, split=str(split)), "missing_labels": "unannotated"}
    with pytest.raises(LabelError, match="class Dark .* choose who is trained on"):
        finetune(labelled=str(cases), output=str(tmp_path / "run"), **settings)


def test_a_class_that_was_not_annotated_does_not_count_in_the_validation(tmp_path: Path) -> None:
    cases = write_blobs(tmp_path / "cases", 4, labelled=True)
    without(cases, "blob_3", 2)
    split = write_json(tmp_path / "s.json", {"training": ["blob_0", "blob_1", "blob_2"], "validation": ["blob_3"]})
    settings = tuned(validation_cases=-1, split=str(split), steps=20, learning_rate=0.02)
    absent = finetune(labelled=str(cases), output=str(tmp_path / "absent"), **settings)["validation"]
    settings["missing_labels"] = "unannotated"
    unknown = finetune(labelled=str(cases), output=str(tmp_path / "unknown"), **settings)["validation"]
    assert absent["Dark"] == 0 and math.isnan(unknown["Dark"]) and unknown["mean"] == unknown["Bright"]


def test_a_class_that_was_annotated_in_a_few_scans_is_learnt_from_these(tmp_path: Path) -> None:
    """Were it absent from the others, they would outvote them."""
    cases = write_blobs(tmp_path / "cases", 6, labelled=True)
    test = write_blobs(tmp_path / "test", 3, labelled=True, seed=5)
    for number in range(5):
        without(cases, f"blob_{number}", 2)
    settings = tuned(steps=80, learning_rate=0.02, validation_cases=0, batch=6, foreground_share=0.5)
    scores = {}
    for how in ("absent", "unannotated"):
        result = finetune(labelled=str(cases), output=str(tmp_path / how), missing_labels=how, **settings)
        scores[how] = dice_on(test, Path(result["model"]))
    assert scores["unannotated"]["Dark"] > max(scores["absent"]["Dark"] + 0.2, 0.7), scores
    assert min(score["Bright"] for score in scores.values()) > 0.8, scores


def dice_on(cases: Path, model: Path) -> dict[str, float]:
    package = load_model(model)
    run = make_run(None, {})
    engine = TorchEngine(package.network, torch.device("cpu"))
    predictor = Predictor(engine, package.plan, package.classes, run.inference)
    rows = []
    for case in open_dataset(cases, labelled=True).cases:
        scan = read_scan(case.images[0])
        assert case.label is not None
        label = read_label_map(case.label, scan.grid)
        rows.append(dice_by_class(predictor.predict(scan.array, scan.grid).labels, label.array, package.classes))
    return mean_dice(rows)


def test_a_list_says_what_was_annotated(tmp_path: Path) -> None:
    cases = write_blobs(tmp_path / "cases", 3, labelled=True)
    file = cases / "labels" / "blob_2.nii.gz"
    label = read_label_map(file)
    rows = ["image,label,annotated", *(f"images/blob_{n}.nii.gz,labels/blob_{n}.nii.gz,{a}" for n, a in
            enumerate(("Bright;Dark", "", "Dark")))]  # fmt: skip
    (cases / "cases.csv").write_text("\n".join(rows))
    listed = open_dataset(cases / "cases.csv", labelled=True)
    with pytest.raises(LabelError, match=r"blob_2.nii.gz: holds label 1, which the list of cases says"):
        survey(listed.cases, EventLog())
    write_label_map(file, np.where(label.array == 2, 2, 0).astype(np.uint8), label.grid)
    found = survey(listed.cases, EventLog())
    assert [facts.annotated for facts in found] == [{1, 2}, None, {2}]
    result = finetune(labelled=str(cases / "cases.csv"), output=str(tmp_path / "run"), **TINY)
    assert set(result["validation"]) == {"Bright", "Dark", "mean"}


ORGANS_AT_RISK = {"1": "Brainstem", "2": "SpinalCord", "3": "RightParotid", "4": "LeftParotid", "5": "Esophagus",
                  "6": "Larynx", "7": "Mandible"}  # fmt: skip


def test_the_partially_labelled_heads_and_necks(shared_data: Path, tmp_path: Path) -> None:
    """OpenKBP (Babier et al., Med Phys 2021): an organ that is missing from a case was not contoured."""
    source = shared_data / "headneck_ct"
    listed = read_json(source / "cases.json")["cases"]
    names = sorted(listed)[:10]
    for part, folder in (("images", "images"), ("labels", "labels_oar")):
        (tmp_path / part).mkdir()
        for name in names:
            (tmp_path / part / f"{name}.nii.gz").symlink_to(source / folder / f"{name}.nii.gz")
    write_json(tmp_path / "classes.json", {**ORGANS_AT_RISK, "partially_labelled": True})
    dataset = open_dataset(tmp_path, labelled=True)
    assert dataset.partial and len(dataset.cases) == 10 and len(dataset.classes) == 7
    found = survey(dataset.cases, EventLog(), dataset.partial)
    labels = {name: int(label) for label, name in ORGANS_AT_RISK.items()}
    for facts in found:
        contoured = {labels[organ] for organ in listed[facts.case.name]["voxels"] if organ in labels}
        assert facts.annotated == contoured == facts.labels
    assert len({facts.annotated for facts in found}) > 1, "these are partially labelled"


# --- regions and layouts ------------------------------------------------------------------------------------


def test_regions_stand_beside_the_classes(tmp_path: Path) -> None:
    cases = write_blobs(tmp_path / "cases", 4, labelled=True)
    write_json(cases / "classes.json", {"Bright": 1, "Dark": 2, "Either": [1, 2]})
    settings = tuned(steps=30, learning_rate=0.02)
    result = finetune(labelled=str(cases), output=str(tmp_path / "run"), **settings)
    scores = result["validation"]
    assert list(scores) == ["Bright", "Dark", "Either", "mean"] and scores["Either"] > 0
    assert scores["mean"] == pytest.approx((scores["Bright"] + scores["Dark"]) / 2)
    made = read_description(Path(result["model"])).provenance
    assert made["validation_dice"] == scores and made["step"] == result["step"]
    assert (made["seed"], made["versions"]["HybridMIM"], made["fingerprint"]["scans"]) == (0, __version__, 4)
    assert sum(made["fingerprint"]["modalities"].values()) == 4
    assert {len(digest) for digest in made["data"].values()} == {64} and len(set(made["data"].values())) == 2


def write_brats(folder: Path, count: int, enhancing: int) -> Path:
    """Blobs in the layout of BraTS 2020: a shell of oedema, then core, then enhancing tumour."""
    distance = np.linalg.norm(np.stack(np.meshgrid(*[np.arange(20) - 9.5] * 3)), axis=0)
    for number in range(1, count + 1):
        name = f"BraTS20_Training_{number:03d}"
        label = np.select([distance < 2.5, distance < 4, distance < 6], [enhancing, 1, 2]).astype(np.uint8)
        (folder / name).mkdir(parents=True)
        for channel, kind in enumerate(("t1", "t1ce", "t2", "flair")):
            noise = np.random.default_rng([number, channel]).normal(0, 5, label.shape)
            image = (100 + 20 * (channel + 1) * (label > channel) + noise).astype(np.float32)
            write_nifti(folder / name / f"{name}_{kind}.nii", image, GRID)
        write_label_map(folder / name / f"{name}_seg.nii", label, GRID)
    return folder


@pytest.mark.parametrize("enhancing", [4, 3])
def test_brats_is_tuned_on_four_channels_and_measured_in_its_regions(tmp_path: Path, enhancing: int) -> None:
    cases = write_brats(tmp_path / "brats", 3, enhancing)
    result = finetune(labelled=str(cases), output=str(tmp_path / "run"), **TINY)
    description = read_description(Path(result["model"]))
    assert description.channels == 4 and [one.label for one in description.classes] == [1, 2, enhancing]
    assert {"enhancing tumor", "WT", "TC", "ET", "mean"} < set(result["validation"])
    assert result["validation"]["ET"] == pytest.approx(result["validation"]["enhancing tumor"], nan_ok=True)


def write_btcv(folder: Path, labels: int) -> Path:
    for number in (1, 2, 3):
        random = np.random.default_rng(number)
        label = np.zeros(GRID.shape, np.uint8)
        for organ in range(1, labels + 1):
            label[organ : organ + 2, 4:9, 4:9] = organ
        image = (label * 30 - 100 + random.normal(0, 10, label.shape)).astype(np.int16)
        for kind in ("img", "label"):
            (folder / "Training" / kind).mkdir(parents=True, exist_ok=True)
        write_nifti(folder / "Training" / "img" / f"img{number:04d}.nii.gz", image, GRID)
        write_label_map(folder / "Training" / "label" / f"label{number:04d}.nii.gz", label, GRID)
    return folder


@pytest.mark.parametrize(("labels", "names"), [(13, list(ORGANS)), (14, [f"class {n}" for n in range(1, 15)])])
def test_btcv_has_its_organs_where_the_labels_fit(tmp_path: Path, labels: int, names: list[str]) -> None:
    cases = write_btcv(tmp_path / "RawData", labels)
    result = finetune(labelled=str(cases), output=str(tmp_path / "run"), **TINY)
    assert [one.name for one in read_description(Path(result["model"])).classes] == names
    assert named_for_labels(open_dataset(cases, labelled=True), range(labels + 1)).regions == ()


def test_a_demo_shows_regions_beside_the_classes(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from HybridMIMLib import demo
    from HybridMIMLib.report import report

    monkeypatch.setattr("sys.executable", shutil.which("false"))
    cases = write_blobs(tmp_path / "cases", 5, labelled=True)
    write_json(cases / "classes.json", {"Bright": 1, "Dark": 2, "Either": [1, 2], "partially_labelled": True})
    result = demo(unlabelled=str(blobs / "unlabelled"), labelled=str(cases), output=str(tmp_path / "demo"), **TINY)
    assert list(result["dice"]) == ["Bright", "Dark", "Either", "mean"]
    for row in result["cases"].values():
        known = [row[name] for name in ("Bright", "Dark") if row[name] is not None and row[name] == row[name]]
        assert row["mean"] == pytest.approx(sum(known) / len(known))
    assert "Either" in report("demo", result)
