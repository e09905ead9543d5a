"""Which scans to label next: scans without labels, ranked by how uncertain a model is about them.

A scan is worth labelling where the model that there is cannot yet tell. Its score is the mean uncertainty, from 0 to
1, of the voxels that matter: those that are labelled, and those that are at least :data:`FLOOR` uncertain. Over the
whole scan the mean would tell how much background there is, and a sum how large the patient is.

The uncertainty of a voxel is the entropy of what the model says about it, as a share of the highest there can be
(uncertainty sampling by entropy: B. Settles, Active Learning Literature Survey, University of Wisconsin-Madison,
2009, section 3.1). That a model is certain does not make it right: what it has never seen it may be sure of.

A scan in which no class was found has no voxels to compare with, and its score follows from a few uncertain ones, or
is 0. These stand at the end, by their scores, and are marked: where one should hold a class, it is the one to label
first.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from HybridMIMLib.config import Run, make_run
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.errors import DataError
from HybridMIMLib.files import write_json, write_text
from HybridMIMLib.inference.cases import Found, begin_cases, cases_in, find_in_cases, killers_last, open_model
from HybridMIMLib.inference.ledger import Ledger
from HybridMIMLib.inference.predictor import make_predictor
from HybridMIMLib.runs import RunFolder

FLOOR = 0.05
"""An uncertainty below this is that of voxels nobody would look at."""

Row = dict[str, Any]


def rank(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """Rank ``scans`` by how uncertain ``model`` is about them, into ``output``/ranking.csv and ranking.json.

    No label maps are written. A scan that cannot be used is named, passed over and listed at the end. Scans that an
    earlier call with the same output has looked at are computed again only if they, the model or the settings of
    ``inference`` have changed.

    Returns:
        ``ranking``: a row a scan, the one to label first in front, with ``rank``, ``scan``, ``score``, ``found``
        (whether there is any class in it) and ``volumes_ml`` (class → ml; of a 4D scan the mean of its volumes);
        ``csv``, ``json``: files; ``warnings``.

    Raises:
        HybridMIMError: there is no scan or no model, or none of the scans can be used.
    """
    run = make_run(run, settings)
    run.folder("model", "the model to rank with")
    scans = run.folder("scans", "what to rank")
    folder = RunFolder.open("rank", run, may_differ=("inference",))
    with folder.at_work() as events:
        package = open_model(run)
        inference = replace(run.inference, uncertainty=True)
        predictor = make_predictor(package, inference, run.device, events.message)
        cases = cases_in(scans, folder.path)
        made_with = {"model": package.digest, "inference": asdict(inference), "floor": FLOOR}
        ledger = Ledger(folder.path / "ranked.json", made_with)
        todo = killers_last([case for case in cases if ledger.get(case) is None], folder.path / "events.jsonl")
        begin_cases(cases, todo, events)
        if len(todo) < len(cases):
            events.message(f"{len(cases) - len(todo)} scan(s) were looked at before and have not changed")
        if todo:
            folder.reopen()
        for found in find_in_cases(todo, predictor, events, "rank"):
            ledger.add(found.case, measured(found, package.classes))
        rows = ranked({str(case.images[0]): about for case in cases if (about := ledger.get(case)) is not None})
        if not rows:
            raise DataError(f"{scans}: none of the {len(cases)} scan(s) can be used", cure="See the reasons above.")
        return folder.finish({"ranking": rows, **_write(folder.path, rows, package.classes)})


def measured(found: Found, classes: Sequence[LabelClass]) -> Row:
    """The score of a scan, and how much of each class was found in it; see the top of this file."""
    assert found.uncertainty is not None
    voxel_ml = abs(float(np.linalg.det(found.grid.affine[:3, :3]))) / 1000
    volumes = found.labels.size // int(np.prod(found.grid.shape))
    is_labelled = found.labels > 0
    matters = found.uncertainty[is_labelled | (found.uncertainty >= FLOOR)]
    return {
        "score": round(float(matters.mean(dtype=np.float64)), 6) if matters.size else 0.0,
        "found": bool(is_labelled.any()),
        "volumes_ml": {
            one.name: round(np.count_nonzero(mask) * voxel_ml / volumes, 3) for one, mask in found.masks(classes)
        },
    }


def ranked(measured: Mapping[str, Row]) -> list[Row]:
    """Rows in the order in which to label, from what was measured in each scan; equal scores by name."""
    order = sorted(measured, key=lambda scan: (not measured[scan]["found"], -measured[scan]["score"], scan))
    return [{"rank": number, "scan": scan, **measured[scan]} for number, scan in enumerate(order, 1)]


def _write(folder: Path, rows: Sequence[Row], classes: Sequence[LabelClass]) -> dict[str, str]:
    table, sheet = folder / "ranking.csv", io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(["rank", "scan", "score", "found", *(f"{one.name} (ml)" for one in classes)])
    for row in rows:
        volumes = [row["volumes_ml"][one.name] for one in classes]
        writer.writerow([row["rank"], row["scan"], row["score"], "yes" if row["found"] else "nothing", *volumes])
    write_text(table, sheet.getvalue())
    write_json(folder / "ranking.json", rows)
    return {"csv": str(table), "json": str(folder / "ranking.json")}
