"""Segmenting a scan, or every scan of a folder, with a model package."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from HybridMIMLib.config import Run, make_run
from HybridMIMLib.data.layouts import Case
from HybridMIMLib.data.scans import find_scans, read_scan, scan_name, write_label_map
from HybridMIMLib.data.survey import read_case
from HybridMIMLib.errors import DataError
from HybridMIMLib.events import EventLog
from HybridMIMLib.inference.predictor import Labels, Predictor
from HybridMIMLib.model_package import load_model
from HybridMIMLib.networks.device import choose_device
from HybridMIMLib.runs import RunFolder


def segment(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """Segment ``scans`` with ``model``; label maps are written to ``output``/labels as .nii.gz.

    A scan that cannot be used is named, passed over and listed at the end; scans that an earlier, interrupted call
    finished are not computed again.

    Returns:
        ``labels``: scan → label map, ``seconds``: scan → seconds, ``warnings``.

    Raises:
        HybridMIMError: there is no scan or no model, or none of the scans can be used.
    """
    run = make_run(run, settings)
    model, scans = run.folder("model", "the model to segment with"), run.folder("scans", "what to segment")
    files = [scans] if scans.is_file() else find_scans(scans)
    package = load_model(model)
    predictor = Predictor(package.network, package.plan, package.classes, run.inference, choose_device(run.device))
    folder = RunFolder.open("segment", run)
    with folder.at_work() as events:
        return folder.finish(segment_files(files, scans, predictor, folder.path / "labels", events))


def segment_files(
    files: list[Path], root: Path, predictor: Predictor, output: Path, events: EventLog
) -> dict[str, Any]:
    """Segment files, each into the place below ``output`` that it has below ``root``; see :func:`segment`."""
    labels, seconds = {}, {}
    phase = events.phase("segment", len(files))
    for done, file in enumerate(files, 1):
        target = label_path(file, root, output)
        try:
            if not target.exists():
                began = time.monotonic()
                scan = read_scan(file)
                write_label_map(target, predictor.predict(scan.array, scan.grid), scan.grid)
                seconds[str(file)] = round(time.monotonic() - began, 2)
            labels[str(file)] = str(target)
        except DataError as error:
            named = str(error) if str(file) in error.message else f"{file}: {error}"
            events.warning(f"skipped: {named}")
        phase.progress(done)
    if not labels:
        raise DataError(f"{root}: none of the {len(files)} scan(s) could be segmented", cure="See the reasons above.")
    return {"labels": labels, "seconds": seconds}


def label_path(file: Path, root: Path, output: Path) -> Path:
    """Where the label map of a scan goes: scans of one name in different folders must not meet."""
    below = file.parent.relative_to(root) if root.is_dir() else Path()
    return output / below / f"{scan_name(file)}.nii.gz"


def segment_case(case: Case, predictor: Predictor, target: Path) -> tuple[Labels, Labels]:
    """Segment a labelled case, write the label map, and return it with the reference.

    Raises:
        DataError: the scan or its label map cannot be used.
    """
    scan, reference = read_case(case)
    result = predictor.predict(scan.array, scan.grid)
    write_label_map(target, result, scan.grid)
    assert reference is not None
    return result, reference.array
