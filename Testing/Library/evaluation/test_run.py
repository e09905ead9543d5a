"""Two folders → CSV, JSON and a report: what counts, what is refused, and what a reader sees."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from HybridMIMLib import evaluate
from HybridMIMLib.cli import main
from HybridMIMLib.data.grid import Grid, to_canonical
from HybridMIMLib.data.layouts import open_dataset
from HybridMIMLib.data.scans import read_label_map, write_label_map, write_nifti
from HybridMIMLib.errors import DataError, SettingsError
from HybridMIMLib.report import report

NAME = '<i>Ca"se & $x$</i>'
GRID = Grid((16, 14, 12), np.array([[0, -1.5, 0, 3], [2, 0, 0, 4], [0, 0, 5, 5], [0, 0, 0, 1]]))
"""Neither along R, A, S, nor isotropic."""


def two_boxes(shift: int = 0, lost: bool = False) -> np.ndarray:
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[2 + shift : 7 + shift, 2:7, 2:8] = 1
    if not lost:
        labels[9:13, 8 + shift // 2 : 12, 3:9] = 2
    return labels


def write_set(folder: Path, count: int = 7) -> Path:
    """References as images/ + labels/ with names and a region; a class has a name that is awkward in HTML."""
    for index in range(count):
        image = np.random.default_rng(index).normal(size=GRID.shape).astype(np.float32)
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        write_nifti(folder / "images" / f"case_{index}.nii.gz", image, GRID)
        write_label_map(folder / "labels" / f"case_{index}.nii.gz", two_boxes(), GRID)
    (folder / "classes.json").write_text(json.dumps({"1": NAME, "2": "Spleen", "Both": [1, 2]}))
    return folder


def write_predictions(folder: Path, count: int = 7, lost: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        labels = two_boxes(index % 3, lost=lost and index == 1)
        write_label_map(folder / f"case_{index}_seg.nrrd", labels, GRID)
    return folder


class Page(HTMLParser):
    """What a browser would make of a page: tags in order, attributes, text."""

    VOID = frozenset({"meta", "br", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "tags are closed in their order"

    def handle_data(self, data: str) -> None:
        self.text += data


def table_of(result: dict[str, Any]) -> list[dict[str, str]]:
    with open(result["csv"], encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_references_without_any_class_are_told(tmp_path: Path) -> None:
    for part in ("references", "predictions"):
        (tmp_path / part).mkdir()
        labels = two_boxes() if part == "predictions" else np.zeros(GRID.shape, dtype=np.uint8)
        write_label_map(tmp_path / part / "case.nii.gz", labels, GRID)
    with pytest.raises(DataError, match="every reference holds background alone.*classes.json"):
        evaluate(references=tmp_path / "references", predictions=tmp_path / "predictions", output=tmp_path / "out")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two runs; the first finds no spleen in one case, and lacks another."""
    folder = tmp_path_factory.mktemp("Lékař 数 <i>")
    references = write_set(folder / "set")
    first = write_predictions(folder / "first", 6, lost=True)
    second = write_predictions(folder / "second & co")
    return evaluate(
        references=references, predictions=first, compare=second, output=folder / "out",
        evaluation={"tolerances": ["Spleen=4"], "resamples": 200, "pictures": 3},
    )  # fmt: skip


def test_rows_and_figures(compared: dict[str, Any]) -> None:
    rows = table_of(compared)
    assert len(rows) == 2 * 7 * 3 and {row["run"] for row in rows} == {"A", "B"}
    by_key = {(row["run"], row["case"], row["class"]): row for row in rows}
    perfect = by_key["A", "case_0", "Spleen"]
    assert (perfect["dice"], perfect["hd95_mm"], perfect["surface_dice"], perfect["status"]) == (
        "1",
        "0",
        "1",
        "both",
    )
    assert perfect["tolerance_mm"] == "4" and by_key["A", "case_0", NAME]["tolerance_mm"] == "2"
    moved = by_key["A", "case_2", NAME]
    # Two voxels of 2 mm; five long, so that three of five are shared.
    assert float(moved["dice"]) == pytest.approx(0.6) and float(moved["hd95_mm"]) == pytest.approx(4)
    lost = by_key["A", "case_1", "Spleen"]
    assert lost["status"] == "missed" and lost["dice"] == "0" and float(lost["hd95_mm"]) > 60
    assert by_key["A", "case_6", NAME]["status"] == "missed", "no prediction counts as nothing found"
    assert by_key["B", "case_6", NAME]["status"] == "both"
    assert by_key["A", "case_0", "Both"]["kind"] == "region"
    names = {one["name"]: one for one in compared["classes"]}
    assert names["Spleen"]["counts"]["missed"] == 2 and names["Both"]["is_region"]
    mean = [names[name]["figures"]["dice"]["mean"] for name in (NAME, "Spleen")]
    assert compared["mean"]["dice"]["mean"] == pytest.approx(np.mean(mean))
    assert compared["missing"] == ["case_6"]
    assert any("case_6" in text and "leave_out" in text for text in compared["warnings"])
    assert not any(text.startswith("skipped") for text in compared["warnings"])


def test_summary_as_json(compared: dict[str, Any]) -> None:
    content = json.loads(Path(compared["json"]).read_text(encoding="utf-8"))
    assert content["classes"] == json.loads(json.dumps(compared["classes"])) and content["cases"] == 7
    assert content["versions"]["monai"] and content["settings"]["resamples"] == 200
    assert content["compare"]["mean"]["dice"]["mean"] > content["mean"]["dice"]["mean"]
    first = content["comparison"][0]
    assert (first["name"], first["measure"], first["cases"], first["verdict"]) == ("mean", "dice", 7, "few")


def test_the_report_opens_offline_and_is_whole(compared: dict[str, Any]) -> None:
    text = Path(compared["report"]).read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open, "every tag is closed"
    assert not set(page.tags) & {"script", "link", "a", "iframe", "i"}, "nothing is loaded, no name is a tag"
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset")]
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    assert "http" not in re.sub(r"base64,[^\"]+", "", text) and "url(" not in text
    # Three box plots, volumes of both runs, the three worst cases.
    assert len(sources) == 3 + 2 + 3
    for source in sources:
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("L"))
        assert min(picture.shape) > 100 and len(np.unique(picture)) > 20
    assert NAME in page.text and "Spleen" in page.text, "names are told as they are"
    for words in ("too few to tell", "What the numbers mean", "2 mm, 4 mm for Spleen",
                  "counted as nothing found: case_6"):  # fmt: skip
        assert words in page.text
    assert page.text.index("case_6: Dice 0.000") < page.text.index("case_1: Dice"), "the worst comes first"
    assert "nan" not in re.sub(r"base64,[^\"]+", "", text).lower()


def test_the_terminal_shows_figures_and_files(compared: dict[str, Any]) -> None:
    text = report("evaluate", compared)
    tiny = {**compared, "comparison": [{**compared["comparison"][0], "p": 4e-8}]}
    assert ", p below 0.001, " in report("evaluate", tiny), "no p is 0"
    assert "Spleen" in text and compared["report"] in text and "too few" in text
    line = next(one for one in text.splitlines() if one.startswith("mean "))
    assert f"{compared['mean']['dice']['mean']:.3f}" in line


def test_references_that_have_no_prediction_may_be_left_out(tmp_path: Path) -> None:
    references, predictions = write_set(tmp_path / "set", 3), write_predictions(tmp_path / "p", 2)
    write_label_map(predictions / "stranger.nii.gz", two_boxes(), GRID)
    result = evaluate(
        references=references, predictions=predictions, output=tmp_path / "out",
        evaluation={"missing_predictions": "leave_out", "pictures": 0},
    )  # fmt: skip
    assert {row["case"] for row in table_of(result)} == {"case_0", "case_1"} and result["missing"] == ["case_2"]
    assert result["warnings"] == [w for w in result["warnings"] if "stranger" in w] and len(result["warnings"]) == 1


def test_the_same_voxels_in_another_order_are_one_grid(tmp_path: Path) -> None:
    references, predictions = write_set(tmp_path / "set", 1), tmp_path / "p"
    predictions.mkdir()
    turned, grid, _ = to_canonical(two_boxes(1), GRID)
    assert turned.shape != GRID.shape
    write_label_map(predictions / "case_0.nii.gz", turned, grid)
    result = evaluate(references=references, predictions=predictions, output=tmp_path / "turned")
    write_label_map(predictions / "case_0.nii.gz", two_boxes(1), GRID)
    straight = evaluate(references=references, predictions=predictions, output=tmp_path / "straight")
    assert table_of(result) == table_of(straight)


def test_another_grid_is_skipped_or_resampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    references, predictions = write_set(tmp_path / "set", 3), write_predictions(tmp_path / "p", 3)
    affine = GRID.affine.copy()
    affine[:3, 3] += 4.0
    write_label_map(predictions / "case_0_seg.nrrd", two_boxes(), Grid(GRID.shape, affine))
    (predictions / "case_1_seg.nrrd").write_bytes(b"NRRD0004\nnothing")
    options = [f"--references={references}", f"--predictions={predictions}"]
    assert main(["evaluate", *options, f"--output={tmp_path / 'out'}"]) == 3
    said = capsys.readouterr()
    assert "skipped" in said.err and "case_0_seg.nrrd" in said.err and "does not lie on the grid" in said.err
    assert "case_1_seg.nrrd" in said.err and "Spleen" in said.out
    (predictions / "case_1_seg.nrrd").unlink()
    assert main(["evaluate", *options, "--resample_labels=true", f"--output={tmp_path / 'other'}"]) == 0
    rows = csv.DictReader((tmp_path / "other" / "metrics.csv").read_text(encoding="utf-8").splitlines())
    assert {row["case"]: row["status"] for row in rows} == {"case_0": "both", "case_1": "missed", "case_2": "both"}


def test_classes_without_names_are_those_of_the_references(tmp_path: Path) -> None:
    references, predictions = tmp_path / "r", tmp_path / "p"
    for folder in (references, predictions):
        folder.mkdir()
    first, second = two_boxes(), two_boxes(lost=True)
    for name, labels in (("a", first), ("b", second)):
        write_label_map(references / f"{name}.nii.gz", labels, GRID)
        found = labels.copy()
        found[0, 0, 0] = 9
        write_label_map(predictions / f"{name}.nii.gz", found, GRID)
    result = evaluate(references=references, predictions=predictions, output=tmp_path / "out")
    status = {(row["case"], row["class"]): row["status"] for row in table_of(result)}
    assert status == {
        ("a", "class 1"): "both", ("a", "class 2"): "both", ("b", "class 1"): "both", ("b", "class 2"): "absent",
    }  # fmt: skip
    assert any("label(s) 9" in text for text in result["warnings"])
    partial = evaluate(
        references=references, predictions=predictions, output=tmp_path / "partial", missing_labels="unannotated"
    )
    assert {row["status"] for row in table_of(partial)} == {"both", "not annotated"}


def test_customary_names_and_regions_of_brats(tmp_path: Path) -> None:
    labels = np.where(two_boxes() == 2, 4, two_boxes()).astype(np.uint8)
    for kind in ("t1", "t1ce", "t2", "flair"):
        (tmp_path / "set" / "c").mkdir(parents=True, exist_ok=True)
        write_nifti(tmp_path / "set" / "c" / f"c_{kind}.nii.gz", np.arange(2688.0).reshape(GRID.shape), GRID)
    write_label_map(tmp_path / "set" / "c" / "c_seg.nii.gz", labels, GRID)
    (tmp_path / "p").mkdir()
    write_label_map(tmp_path / "p" / "c.nii.gz", np.where(labels == 4, 1, labels), GRID)
    result = evaluate(references=tmp_path / "set", predictions=tmp_path / "p", output=tmp_path / "out")
    dice = {one["name"]: one["figures"]["dice"]["mean"] for one in result["classes"]}
    assert dice["WT"] == dice["TC"] == 1 and dice["ET"] == dice["enhancing tumor"] == 0
    assert np.isnan(dice["edema"]), "neither has it"
    assert result["mean"]["dice"]["mean"] == pytest.approx(dice["necrotic and non-enhancing tumor core"] / 2)


def test_nothing_to_compare_is_an_error_that_names_both(tmp_path: Path) -> None:
    references = write_set(tmp_path / "set", 1)
    (tmp_path / "p").mkdir()
    write_label_map(tmp_path / "p" / "other.nii.gz", two_boxes(), GRID)
    with pytest.raises(DataError, match=r"other\.nii\.gz.*case_0"):
        evaluate(references=references, predictions=tmp_path / "p", output=tmp_path / "out")
    with pytest.raises(SettingsError, match="predictions is missing"):
        evaluate(references=references)
    shutil.rmtree(tmp_path / "p")
    write_predictions(tmp_path / "p", 1)
    with pytest.raises(SettingsError, match="names 'Liver'"):
        evaluate(references=references, predictions=tmp_path / "p", output=tmp_path / "o",
                 evaluation={"tolerances": ["Liver=3"]})  # fmt: skip
    (tmp_path / "p" / "case_0_seg.nrrd").write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of the label maps"):
        evaluate(references=references, predictions=tmp_path / "p", output=tmp_path / "o2")


@pytest.mark.parametrize("section", [{"tolerance": 0}, {"tolerances": ["liver"]}, {"resamples": 5}, {"pictures": -1}])
def test_settings_that_cannot_work(section: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=r"evaluation\."):
        evaluate(predictions="p", references="r", evaluation=section)


def test_real_labels_against_moved_copies(shared_data: Path, unicode_folder: Path) -> None:
    """Hippocampi of MSD, moved by one voxel of 1 mm; the names of the classes are those of the data set."""
    dataset = open_dataset(shared_data / "hippocampus_mr", labelled=True)
    (unicode_folder / "p").mkdir()
    for case in dataset.cases[:4]:
        assert case.label is not None
        label = read_label_map(case.label)
        write_label_map(unicode_folder / "p" / f"{case.name}.nrrd", np.roll(label.array, 1, axis=1), label.grid)
    result = evaluate(
        references=shared_data / "hippocampus_mr", predictions=unicode_folder / "p", output=unicode_folder / "out",
        evaluation={"missing_predictions": "leave_out", "pictures": 1},
    )  # fmt: skip
    assert [one["name"] for one in result["classes"]] == ["Anterior", "Posterior"] and result["cases"] == 4
    assert result["warnings"] == []
    for one in result["classes"]:
        figures = one["figures"]
        assert 0.75 < figures["dice"]["mean"] < 0.97 and figures["surface_dice"]["mean"] == 1
        assert figures["hd95"]["mean"] == pytest.approx(1, abs=1e-4) and figures["difference_ml"]["mean"] == 0
