"""Segmenting a scan, or every scan of a folder, with a model package.

====================  ================================================================================
``labels/``           a label map a scan, named as the case
``layers/NAME/``      where classes overlap, a mask a class too
``uncertainty/``      where it was asked for: the entropy of each voxel, from 0 to 1
``segmented.json``    what was made from which bytes, with which model and which settings
====================  ================================================================================

All of it is on the scan's own grid, as .nrrd where the scan is NRRD, else as .nii.gz. Of a 4D scan each volume is
segmented by itself, and the results are 4D with the same step in time, as .nii.gz always.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from HybridMIMLib.config import Run, make_run
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.layouts import Case
from HybridMIMLib.data.package_files import file_name
from HybridMIMLib.data.scans import write_image, write_label_map
from HybridMIMLib.errors import DataError
from HybridMIMLib.events import EventLog
from HybridMIMLib.inference.cases import Found, begin_cases, cases_in, find_in_cases, killers_last, open_model
from HybridMIMLib.inference.forecast import forecast
from HybridMIMLib.inference.ledger import Ledger
from HybridMIMLib.inference.predictor import Labels, Predictor, make_predictor
from HybridMIMLib.runs import RunFolder


@dataclass(frozen=True)
class Segmented:
    """One case that was segmented; every array of a 4D scan has a first axis T more.

    Attributes:
        case: the files.
        labels: (D, H, W) the result, on the scan's own grid.
        reference: (D, H, W) the case's own label map, or None.
        path: where the result was written.
        uncertainty: where that was written, or None.
        layers: class → file, where classes overlap.
        empty: names of the classes that were not found.
    """

    case: Case
    labels: Labels
    reference: Labels | None
    path: Path
    uncertainty: Path | None = None
    layers: dict[str, Path] = field(default_factory=dict)
    empty: tuple[str, ...] = ()


def segment(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """Segment ``scans`` with ``model``; label maps are written to ``output``/labels, named as the cases.

    They are .nrrd where the scan is, else .nii.gz. A scan that cannot be used is named, passed over and listed at the
    end. Scans that an earlier call with the same output finished are computed again only if they, the model or the
    settings of ``inference`` have changed.

    With ``check=True`` nothing is segmented or written, and what is returned tells how long each preset would take;
    see :func:`HybridMIMLib.inference.forecast.forecast`.

    Returns:
        ``labels``: scan → label map; ``uncertainty``: scan → file, if it was asked for; ``layers``: scan → class →
        file, where classes overlap; ``empty``: scan → names of the classes that were not found in it, if any;
        ``seconds``: of all together; ``warnings``.

    Raises:
        HybridMIMError: there is no scan or no model, or none of the scans can be used.
    """
    run = make_run(run, settings)
    run.folder("model", "the model to segment with")
    scans = run.folder("scans", "what to segment")
    if run.check:
        return forecast(run, EventLog())
    folder = RunFolder.open("segment", run, may_differ=("inference",))
    # All of it at work, a model that cannot be read too: who follows the run folder must learn how it ended.
    with folder.at_work() as events:
        package = open_model(run)
        predictor = make_predictor(package, run.inference, run.device, events.message)
        cases = cases_in(scans, folder.path)
        began = time.monotonic()
        ledger = Ledger(folder.path / "segmented.json", {"model": package.digest, "inference": asdict(run.inference)})
        todo = killers_last([case for case in cases if ledger.get(case) is None], folder.path / "events.jsonl")
        begin_cases(cases, todo, events)
        if len(todo) < len(cases):
            events.message(f"{len(cases) - len(todo)} scan(s) were segmented before and have not changed")
        if todo:
            folder.reopen()
        for one in segment_cases(todo, predictor, folder.path, events):
            _keep(ledger, one, folder.path)
        done = {str(case.images[0]): made for case in cases if (made := ledger.get(case)) is not None}
        if not done:
            raise DataError(
                f"{scans}: none of the {len(cases)} scan(s) could be segmented", cure="See the reasons above."
            )
        return folder.finish({**_listed(done, folder.path), "seconds": round(time.monotonic() - began, 1)})


def segment_cases(cases: Iterable[Case], predictor: Predictor, output: Path, events: EventLog) -> Iterator[Segmented]:
    """Segment cases one after the other and write what was found; one that cannot be used becomes a warning.

    Args:
        cases: to segment.
        predictor: of the model.
        output: the folder in which ``labels`` is made, and ``layers`` and ``uncertainty`` where there are any.
        events: where progress and warnings go.

    Raises:
        DiskError: a file could not be written.
    """
    for found in find_in_cases(cases, predictor, events, "segment"):
        yield _write(found, predictor.classes, output)


def label_path(output: Path, case: Case, is_4d: bool = False) -> Path:
    """Where the label map of a case goes; names of cases are unique in a data set, and so are these.

    It has the format of the scan where that is NRRD: NIfTI would round the grid to single precision. Several volumes
    are NIfTI always, because their place in time has none in an NRRD that others would understand.
    """
    return output / f"{case.name}{_suffix(case, is_4d)}"


def _suffix(case: Case, is_4d: bool) -> str:
    is_nrrd = case.images[0].name.lower().endswith((".nrrd", ".nhdr"))
    return ".nrrd" if is_nrrd and not is_4d else ".nii.gz"


def _write(found: Found, classes: Sequence[LabelClass], output: Path) -> Segmented:
    case, suffix = found.case, _suffix(found.case, found.is_4d)
    path = label_path(output / "labels", case, found.is_4d)
    write_label_map(path, found.labels, found.grid, found.step)
    uncertainty, layers, empty = None, {}, []
    if found.uncertainty is not None:
        uncertainty = label_path(output / "uncertainty", case, found.is_4d)
        write_image(uncertainty, found.uncertainty, found.grid, found.step)
    for one, mask in found.masks(classes):
        if not mask.any():
            empty.append(one.name)
        if found.layers is not None:
            # With the label, because names may differ in what no file name has.
            layers[one.name] = output / "layers" / case.name / f"{one.label}-{file_name(one.name)}{suffix}"
            write_label_map(layers[one.name], mask.view(np.uint8), found.grid, found.step)
    return Segmented(case, found.labels, found.reference, path, uncertainty, layers, tuple(empty))


def _keep(ledger: Ledger, one: Segmented, folder: Path) -> None:
    """Paths are kept as they are from the folder on, so that it can be moved."""

    def inside(path: Path) -> str:
        return path.relative_to(folder).as_posix()

    about: dict[str, Any] = {"labels": inside(one.path), "empty": list(one.empty)}
    about["uncertainty"] = inside(one.uncertainty) if one.uncertainty else None
    about["layers"] = {name: inside(path) for name, path in one.layers.items()}
    files = [path for path in (one.path, one.uncertainty, *one.layers.values()) if path is not None]
    ledger.add(one.case, about, files)


def _listed(done: dict[str, dict[str, Any]], folder: Path) -> dict[str, Any]:
    """From scan → what was made of it to kind → scan → file; a kind of which there is nothing is left out."""
    layers = {
        scan: {name: str(folder / path) for name, path in made["layers"].items()}
        for scan, made in done.items()
        if made["layers"]
    }
    others = {
        "uncertainty": {
            scan: str(folder / made["uncertainty"]) for scan, made in done.items() if made["uncertainty"]
        },
        "layers": layers,
        "empty": {scan: made["empty"] for scan, made in done.items() if made["empty"]},
    }
    labels = {scan: str(folder / made["labels"]) for scan, made in done.items()}
    return {"labels": labels, **{kind: listed for kind, listed in others.items() if listed}}
