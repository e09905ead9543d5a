"""Segmenting a scan, or every scan of a folder, with a model package."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from HybridMIMLib.config import Run, make_run
from HybridMIMLib.data.layouts import Case, open_dataset
from HybridMIMLib.data.model_description import WEIGHTS
from HybridMIMLib.data.scans import scan_name, write_label_map
from HybridMIMLib.data.survey import content_hash, read_case
from HybridMIMLib.errors import DataError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import read_json, write_json
from HybridMIMLib.inference.predictor import Labels, Predictor
from HybridMIMLib.model_package import load_model
from HybridMIMLib.networks.device import choose_device
from HybridMIMLib.runs import RunFolder


@dataclass(frozen=True)
class Segmented:
    """One case that was segmented.

    Attributes:
        case: the files.
        labels: (D, H, W) the result, on the scan's own grid.
        reference: (D, H, W) the case's own label map, or None.
        path: where the result was written.
    """

    case: Case
    labels: Labels
    reference: Labels | None
    path: Path


def segment(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """Segment ``scans`` with ``model``; label maps are written to ``output``/labels, named as the cases.

    They are .nrrd where the scan is, else .nii.gz. A scan that cannot be used is named, passed over and listed at the
    end. Scans that an earlier call with the same output finished are computed again only if they, or the model, have
    changed.

    Returns:
        ``labels``: scan → label map, ``seconds``: of all together, ``warnings``.

    Raises:
        HybridMIMError: there is no scan or no model, or none of the scans can be used.
    """
    run = make_run(run, settings)
    model, scans = run.folder("model", "the model to segment with"), run.folder("scans", "what to segment")
    folder = RunFolder.open("segment", run)
    # All of it at work, a model that cannot be read too: who follows the run folder must learn how it ended.
    with folder.at_work() as events:
        package = load_model(model)
        predictor = Predictor(
            package.network, package.plan, package.classes, run.inference, choose_device(run.device)
        )
        cases = _cases(scans, folder.path)
        began = time.monotonic()
        ledger = _Ledger(folder.path, content_hash([model / WEIGHTS]))
        todo = [case for case in cases if not ledger.has(case)]
        if len(todo) < len(cases):
            events.message(f"{len(cases) - len(todo)} scan(s) were segmented before and have not changed")
        for one in segment_cases(todo, predictor, ledger.labels, events):
            ledger.add(one.case)
        done = {str(case.images[0]): str(ledger.path_of(case)) for case in cases if ledger.has(case)}
        if not done:
            raise DataError(
                f"{scans}: none of the {len(cases)} scan(s) could be segmented", cure="See the reasons above."
            )
        return folder.finish({"labels": done, "seconds": round(time.monotonic() - began, 1)})


def segment_cases(cases: Iterable[Case], predictor: Predictor, output: Path, events: EventLog) -> Iterator[Segmented]:
    """Segment cases one after the other and write each label map; one that cannot be used becomes a warning.

    Raises:
        DiskError: a label map could not be written.
    """
    cases = list(cases)
    phase = events.phase("segment", len(cases))
    for done, case in enumerate(cases, 1):
        try:
            scan, reference = read_case(case)
            labels = predictor.predict(scan.array, scan.grid)
        except DataError as error:
            named = str(error) if str(case.images[0].name) in error.message else f"{case.images[0]}: {error}"
            events.warning(f"skipped: {named}")
        else:
            path = label_path(output, case)
            write_label_map(path, labels, scan.grid)
            yield Segmented(case, labels, None if reference is None else reference.array, path)
        phase.progress(done)


def label_path(output: Path, case: Case) -> Path:
    """Where the label map of a case goes; names of cases are unique in a data set, and so are these.

    It has the format of the scan where that is NRRD: NIfTI would round the grid to single precision.
    """
    is_nrrd = case.images[0].name.lower().endswith((".nrrd", ".nhdr"))
    return output / f"{case.name}{'.nrrd' if is_nrrd else '.nii.gz'}"


class _Ledger:
    """What was segmented into a folder, from which bytes, with which model: the existence of a file says neither."""

    def __init__(self, folder: Path, model: str) -> None:
        self.labels, self._file = folder / "labels", folder / "segmented.json"
        self._model = model
        self._hashes: dict[str, str] = {}
        self._made: dict[str, str] = {}
        try:
            content = read_json(self._file)
            if content["model"] == model:
                self._made = dict(content["scans"])
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def path_of(self, case: Case) -> Path:
        return label_path(self.labels, case)

    def has(self, case: Case) -> bool:
        return case.name in self._made and self._made[case.name] == self._hash(case) and self.path_of(case).exists()

    def add(self, case: Case) -> None:
        self._made[case.name] = self._hash(case)
        write_json(self._file, {"model": self._model, "scans": self._made})

    def _hash(self, case: Case) -> str:
        if case.name not in self._hashes:
            self._hashes[case.name] = content_hash(case.images)
        return self._hashes[case.name]


def _cases(scans: Path, output: Path) -> list[Case]:
    """A file as one case, or those of a folder; what this program wrote below ``output`` is no scan."""
    if scans.is_file():
        return [Case(scan_name(scans), (scans,), None)]
    cases = open_dataset(scans, labelled=False).cases
    own = output.resolve()
    kept = [case for case in cases if own not in case.images[0].resolve().parents]
    if not kept:
        raise DataError(f"{scans}: holds no scan but the results of this program", cure="Name the folder of scans.")
    return kept
