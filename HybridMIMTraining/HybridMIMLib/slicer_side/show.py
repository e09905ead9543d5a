"""Turn a segmented scan into what people look at: ``python -m HybridMIMLib.slicer_side.show JOB.json``.

The job is a JSON object::

    {"scan": "scan.nii.gz", "labels": "labels.nii.gz", "reference": null, "name": "Case 1",
     "classes": [{"label": 1, "name": "Spleen", "color": [0.9, 0.3, 0.2], "terminology": null}],
     "segmentation": "out.seg.nrrd", "scene": "out.mrb", "picture": "out.png"}

One line of JSON on standard output says what was written; an error is one line on standard error and the exit
code 1.
Run it as a process of its own: drawing needs nothing of torch and training nothing of Slicer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.scans import read_label_map, read_scan
from HybridMIMLib.errors import HybridMIMError, SettingsError
from HybridMIMLib.slicer_side.pictures import result_picture
from HybridMIMLib.slicer_side.scene import (
    headless_scene,
    show_in_slice_views,
    write_scene,
    write_segmentation,
)
from HybridMIMLib.slicer_side.segments import segmentation_node, volume_node


@dataclass(frozen=True)
class ShowJob:
    """What to show and where to write it; the fields are those of the JSON object."""

    scan: Path
    labels: Path
    reference: Path | None
    classes: tuple[LabelClass, ...]
    name: str
    segmentation: Path
    scene: Path
    picture: Path

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ShowJob:
        """The job that a JSON object describes.

        Raises:
            KeyError, TypeError, ValueError: it is not one.
        """
        paths = {key: Path(content[key]) for key in ("scan", "labels", "segmentation", "scene", "picture")}
        reference = Path(content["reference"]) if content.get("reference") else None
        classes = tuple(LabelClass.from_json(entry) for entry in content["classes"])
        return cls(reference=reference, classes=classes, name=str(content["name"]), **paths)


def read_job(path: Path) -> ShowJob:
    """Read a job file.

    Raises:
        SettingsError: the file is missing or is not a job.
    """
    try:
        return ShowJob.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError(
            f"{path}: not a job to show ({type(error).__name__}: {error})",
            cure="Give a JSON file with scan, labels, classes, name, segmentation, scene and picture.",
        ) from error


def show(job: ShowJob) -> dict[str, Any]:
    """Do the job; return what was written, ready for JSON.

    Raises:
        HybridMIMError: a file cannot be read or written, or the labels do not fit scan or classes.
    """
    scan = read_scan(job.scan)
    labels = read_label_map(job.labels, scan.grid, scan_path=job.scan).array
    held = headless_scene()
    volume = volume_node(held.scene, scan.array[0], scan.grid.affine, job.scan.name.split(".")[0])
    result = segmentation_node(held.scene, volume, labels, job.classes, job.name)
    reference = None
    if job.reference is not None:
        truth = read_label_map(job.reference, scan.grid, scan_path=job.scan).array
        # A class that the model was never taught cannot be compared with anything.
        truth = np.where(np.isin(truth, [entry.label for entry in job.classes]), truth, 0).astype(truth.dtype)
        reference = segmentation_node(held.scene, volume, truth, job.classes, f"{job.name} reference")
    result_picture(job.picture, volume, result, reference, title=job.name)
    write_segmentation(result, job.segmentation)
    if reference is not None:
        # In Slicer both would cover each other; the reference is one click away.
        reference.GetDisplayNode().SetVisibility(False)
    show_in_slice_views(held.scene, volume)
    write_scene(held.scene, job.scene)
    return _report(job, labels)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1:
        print("error: give one job: python -m HybridMIMLib.slicer_side.show JOB.json", file=sys.stderr)
        return 1
    try:
        report = show(read_job(Path(arguments[0])))
    except HybridMIMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    # ASCII only, because the reader's end of a pipe may not be UTF-8.
    print(json.dumps(report), flush=True)
    return 0


def _report(job: ShowJob, labels: np.ndarray) -> dict[str, Any]:
    counts = np.bincount(labels.ravel(), minlength=256)
    return {
        "segmentation": str(job.segmentation),
        "scene": str(job.scene),
        "picture": str(job.picture),
        "segments": [entry.name for entry in job.classes],
        "voxels": {str(entry.label): int(counts[entry.label]) for entry in job.classes},
    }


if __name__ == "__main__":
    sys.exit(main())
