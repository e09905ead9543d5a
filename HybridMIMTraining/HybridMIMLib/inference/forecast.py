"""``segment --check``: how long each preset would take for scans, from a window of each; nothing is written."""

from __future__ import annotations

from typing import Any

from HybridMIMLib.config import Run
from HybridMIMLib.data.layouts import Case
from HybridMIMLib.errors import DataError
from HybridMIMLib.events import EventLog
from HybridMIMLib.inference.cases import ItemWatch, cases_in, each_case, open_model, read_volumes, tell_of
from HybridMIMLib.inference.predictor import OVERLAPS, make_predictor


def forecast(run: Run, events: EventLog) -> dict[str, Any]:
    """Read ``scans``, and let one window of each go through ``model``.

    Returns:
        ``rows`` (of each scan its ``path``, the number of its ``volumes``, and ``seconds`` by preset), ``seconds``
        (by preset, of all scans), ``preset`` (the one of the settings), ``computes`` (what would compute),
        ``skipped`` (number of scans that cannot be used), ``warnings``.

    Raises:
        HybridMIMError: there is no scan or no model, or none of the scans can be used.
    """
    scans = run.folder("scans", "what to segment")
    package = open_model(run)
    predictor = make_predictor(package, run.inference, run.device, events.message)
    cases = cases_in(scans)

    def look(case: Case, watch: ItemWatch) -> dict[str, Any]:
        items, _ = read_volumes(case, predictor.plan.channels)
        tell_of(items, case, events)
        # Volumes of one file have one grid; the body in them may differ a little.
        seconds = predictor.forecast(next(iter(items)), items.grid)
        return {
            "path": str(case.images[0]),
            "volumes": len(items),
            "seconds": {preset: round(len(items) * value, 1) for preset, value in seconds.items()},
        }

    rows = list(each_case(cases, look, events, "check"))
    if not rows:
        raise DataError(
            f"{scans}: none of the {len(cases)} scan(s) can be segmented: {'; '.join(events.warnings)}",
            cure="Choose other scans, or correct these.",
        )
    return {
        "rows": rows,
        "seconds": {preset: round(sum(row["seconds"][preset] for row in rows), 1) for preset in OVERLAPS},
        "preset": run.inference.preset,
        "computes": predictor.engine.name,
        "skipped": len(cases) - len(rows),
        "warnings": list(events.warnings),
    }
