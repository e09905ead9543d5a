"""A scan of a batch with its result comes into the scene, or nothing does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

import slicer
from small_runs import save_threshold_model, write_blobs

from HybridMIMLib import segment
from HybridMIMLib.data import labelled_job
from HybridMIMLib.errors import DataError, LabelError
from HybridMIMLib.slicer_side import batch_case
from HybridMIMLib.slicer_side.batch import BatchSettings, CaseRow
from HybridMIMLib.slicer_side.batch_case import describe, load_case
from HybridMIMLib.slicer_side.next_scan import SOURCE
from HybridMIMLib.slicer_side.provenance import made_by
from HybridMIMLib.slicer_side.scene import HeadlessScene, headless_scene
from HybridMIMLib.slicer_side.steps import Step, Steps, finish


@pytest.fixture
def held() -> HeadlessScene:
    return headless_scene()


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process of its own does is done in this one, which takes less time."""

    def do(module: str, job: Mapping[str, Any], folder: Path, text: str) -> Steps[dict[str, Any]]:
        assert module == "HybridMIMLib.data.labelled_job"
        yield Step(0.0, text)
        return json.loads(json.dumps(labelled_job.do_job(json.loads(json.dumps(job)), folder)))

    monkeypatch.setattr(batch_case, "in_child", do)


@pytest.fixture
def batch(unicode_folder: Path) -> BatchSettings:
    """Segmented: blob_0; not: blob_1, which came later."""
    scans = write_blobs(unicode_folder / "scans", 1, labelled=False) / "images"
    model = save_threshold_model(unicode_folder / "model")
    settings = BatchSettings(str(scans), str(model), str(unicode_folder / "out"), "cpu")
    segment(scans=settings.scans, model=settings.model, output=settings.output, device="cpu")
    write_blobs(unicode_folder / "scans", 2, labelled=False)
    return settings


def row(batch: BatchSettings, number: int = 0) -> CaseRow:
    return CaseRow(f"blob_{number}", str(Path(batch.scans) / f"blob_{number}.nii.gz"), "done")


def contents(held: HeadlessScene) -> list[str]:
    return [held.scene.GetNthNode(number).GetID() for number in range(held.scene.GetNumberOfNodes())]


def tree_items(held: HeadlessScene) -> int:
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(held.scene)
    return int(tree.GetNumberOfItems()) if tree is not None else 0


def test_scan_and_result_come_with_what_made_them(held: HeadlessScene, batch: BatchSettings) -> None:
    loaded = finish(load_case(batch, row(batch), held.scene))
    assert loaded.segmentation is not None
    assert loaded.volume.GetAttribute(SOURCE) == row(batch).scan
    content = loaded.segmentation.GetSegmentation()
    assert [content.GetNthSegment(n).GetName() for n in range(2)] == ["Bright", "Never"]
    [made] = made_by(loaded.segmentation)
    digest = json.loads((Path(batch.output) / "segmented.json").read_text())["made_with"]["model"]
    assert made.hash == digest and made.settings["package"] == batch.model
    assert describe(loaded).startswith("Loaded blob_0 with its segmentation")


def test_a_scan_without_a_result_comes_alone(held: HeadlessScene, batch: BatchSettings) -> None:
    loaded = finish(load_case(batch, row(batch, 1), held.scene))
    assert loaded.segmentation is None and describe(loaded) == "Loaded blob_1; it has no result."


def test_what_cannot_be_read_leaves_the_scene_as_it_was(held: HeadlessScene, batch: BatchSettings) -> None:
    before = contents(held)
    label = Path(batch.output) / "labels" / "blob_0.nii.gz"
    gone = BatchSettings(batch.scans, "gone", batch.output)
    with pytest.raises(DataError, match="model that made this result cannot be read"):
        finish(load_case(gone, row(batch), held.scene))
    with pytest.raises(DataError, match="its file is not known. Start the batch again"):
        finish(load_case(batch, CaseRow("blob_0"), held.scene))
    label.write_bytes(label.read_bytes()[:50])
    with pytest.raises(LabelError):
        finish(load_case(batch, row(batch), held.scene))
    assert contents(held) == before


def test_another_model_gives_no_names_to_a_result(
    held: HeadlessScene, batch: BatchSettings, unicode_folder: Path
) -> None:
    before = contents(held)
    other = save_threshold_model(unicode_folder / "other", "Another")
    with pytest.raises(DataError, match="made by another model than Another"):
        finish(load_case(BatchSettings(batch.scans, str(other), batch.output), row(batch), held.scene))
    assert contents(held) == before


def test_closed_at_any_piece_it_leaves_nothing(held: HeadlessScene, batch: BatchSettings) -> None:
    # The tree, once it has been asked for, has an item for the scene.
    tree_items(held)
    finish(load_case(batch, row(batch, 1), held.scene))
    before, items, count = contents(held), tree_items(held), 0
    while True:
        steps = load_case(batch, row(batch), held.scene)
        if len(list(islice(steps, count))) < count:
            break
        steps.close()
        assert (contents(held), tree_items(held)) == (before, items), count
        count += 1
    assert count > 4 and len(contents(held)) > len(before), "the last time it came to its end"


def test_masks_are_found_by_the_labels_of_their_classes(tmp_path: Path) -> None:
    folder = tmp_path / "layers" / "a"
    folder.mkdir(parents=True)
    for name in ("1-Liver.nrrd", "12-Tumour.nrrd"):
        (folder / name).touch()
    classes = [SimpleNamespace(name=name, label=label) for name, label in (("Liver", 1), ("Tumour", 12), ("No", 2))]
    found = batch_case._masks(tmp_path, "a", SimpleNamespace(classes=classes))  # type: ignore[arg-type]
    assert found == {"Liver": folder / "1-Liver.nrrd", "Tumour": folder / "12-Tumour.nrrd"}
