"""Judging a folder of segmentations by references, whoever made either.

=================  ===================================================================================================
``metrics.csv``    a row a case and class (and run, where two are compared)
``summary.json``   figures of each class and of all, with intervals; comparison, settings, versions
``report.html``    the same to read, with pictures; opens without a network
=================  ===================================================================================================

What is measured and what is empty: :mod:`HybridMIMLib.evaluation.measuring`. How cases are matched:
:mod:`HybridMIMLib.evaluation.pairs`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import HybridMIMLib
from HybridMIMLib.config import Run, make_run
from HybridMIMLib.data.alignment import align_labels
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.grid import from_canonical, to_canonical
from HybridMIMLib.data.layouts import Case, Dataset, named_for_labels
from HybridMIMLib.data.layouts.cases import some
from HybridMIMLib.data.scans import LabelMap, read_label_map, read_scan
from HybridMIMLib.errors import DataError, LabelError, SettingsError
from HybridMIMLib.evaluation.measuring import Row, case_dice, labels_in, measure_case
from HybridMIMLib.evaluation.page import NAMES, Content, Picture, number, page, verdict
from HybridMIMLib.evaluation.pairs import (
    Matching,
    classes_for,
    match,
    naming_of,
    open_labels,
    own_scans,
    scans_by_case,
)
from HybridMIMLib.evaluation.pictures import Shown, draw_boxes, draw_slice, draw_volumes, worst_slice
from HybridMIMLib.evaluation.summaries import COMPARED, Comparison, Summary, compare, summarise
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import write_json, write_text
from HybridMIMLib.runs import RunFolder, versions

COLUMNS = ("run", "case", "class", "kind", "status", "dice", "hd95_mm", "surface_dice", "tolerance_mm",
           "reference_ml", "prediction_ml", "difference_ml", "difference_percent")  # fmt: skip
"""Of ``metrics.csv``; a cell without a figure is empty."""


def evaluate(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """Judge ``predictions`` by ``references``, and compare with those of ``compare`` if asked.

    A case whose label maps cannot be read, or lie on different grids, is named, passed over and listed at the end.
    Everything is computed anew at each call.

    Returns:
        ``classes`` (figures and counts of each class and region), ``mean`` (over all classes), ``comparison`` (empty
        without ``compare``), ``cases`` (how many were measured), ``missing`` (references without a prediction),
        ``csv``, ``json`` and ``report`` (files), ``warnings``.

    Raises:
        HybridMIMError: a folder holds no label maps, no prediction belongs to a reference, or none can be used.
    """
    run = make_run(run, settings)
    run.folder("predictions", "the label maps to judge")
    run.folder("references", "the label maps that are held to be right")
    folder = RunFolder.open("evaluate", run, may_differ=("evaluation",))
    with folder.at_work() as events:
        return folder.finish(judge(run, folder.path, events)[0])


def judge(run: Run, folder: Path, events: EventLog) -> tuple[dict[str, Any], Sequence[Row]]:
    """The work of :func:`evaluate` in a folder, and the rows of ``predictions``: one a case and class."""
    work = _Evaluation(run, folder, events)
    return work.result(), work.judged[0].rows


@dataclass
class _Judged:
    """One run while it is measured."""

    title: str
    place: Path
    matching: Matching
    rows: list[Row] = field(default_factory=list)


@dataclass
class _Seen:
    """What was found in a case: the classes it was measured in, and what was annotated."""

    labels: frozenset[int]
    annotated: frozenset[int] | None


class _Evaluation:
    """One evaluation, from folders to files."""

    def __init__(self, run: Run, folder: Path, events: EventLog) -> None:
        self.run, self.folder, self.events = run, folder, events
        self.references = open_labels(run.folder("references", "references"), run.missing_labels)
        places = [run.folder(name, name) for name in ("predictions", "compare") if getattr(run, name)]
        predictions = [open_labels(place) for place in places]
        for one in dict.fromkeys(note for dataset in (self.references, *predictions) for note in dataset.notes):
            events.warning(one)
        self.judged = [
            _Judged(title, place, match(self.references.cases, dataset.cases))
            for title, place, dataset in zip(("A", "B"), places, predictions)
        ]
        self._check_matches()
        naming = naming_of(self._named(), predictions)
        self.named, self.regions = naming.classes, naming.regions
        self.scans = scans_by_case(self.references.cases, run.folder("scans", "")) if run.scans else None
        self.tolerances = run.evaluation.tolerance_by_name()
        self.seen: dict[str, _Seen] = {}
        self.worst: list[Shown] = []
        self.found: set[int] = set()
        if self.named:
            self._check_tolerances(self.named)

    def result(self) -> dict[str, Any]:
        """Measure every case, write the files, and tell what is in them."""
        for case in self._progress():
            self._measure(case)
        for one in self.judged:
            if not one.rows:
                raise DataError(f"{one.place}: none of the label maps can be used", cure="See the reasons above.")
        classes = self._classes()
        if not classes:
            raise DataError(
                f"{self.run.references}: every reference holds background alone, and no class has a name",
                cure="Check that these are the right files, or name the classes in a classes.json beside them.",
            )
        self._check_tolerances(classes)
        self._tell_of_unknown_labels(classes)
        for one in self.judged:
            one.rows = self._complete(one.rows, classes)
        resamples, seed = self.run.evaluation.resamples, self.run.seed
        summaries = [summarise(one.rows, resamples, seed) for one in self.judged]
        found = compare(self.judged[0].rows, self.judged[1].rows, resamples, seed) if len(self.judged) > 1 else []
        return self._write(classes, summaries, found)

    # --- before ---------------------------------------------------------------------------------------------------

    def _named(self) -> Dataset:
        """The references with the names that are customary for them, which depends on the labels that they hold."""
        if not self.references.customary:
            return self.references
        met: set[int] = set()
        for case in self.references.cases:
            try:
                met |= labels_in(_read(case.label).array)
            except LabelError:
                continue  # told when it is measured
        return named_for_labels(self.references, met)

    def _check_matches(self) -> None:
        """Name what belongs to nothing.

        Raises:
            DataError: no prediction belongs to a reference.
        """
        for one in self.judged:
            missing, left = one.matching.missing, [path.name for path in one.matching.left]
            if not one.matching.found:
                raise DataError(
                    f"{one.place}: no label map is called like a reference: there is {some(left)}, and the "
                    f"references are {some(list(missing))}",
                    cure="Name each prediction as the scan or the reference that it belongs to, such as "
                    f"{missing[0]}.nii.gz.",
                )
            if missing and self._missing_counts:
                self.events.warning(
                    f"{one.place}: {len(missing)} of {len(self.references.cases)} reference(s) have no prediction "
                    f"and count as nothing found: {some(list(missing))}. If they were not to be segmented, set "
                    "evaluation.missing_predictions to leave_out."
                )
            elif missing:
                self.events.message(f"{one.place}: {len(missing)} reference(s) without a prediction are left out")
            if left:
                self.events.warning(
                    f"{one.place}: {len(left)} prediction(s) have no reference and are not measured: {some(left)}"
                )

    @property
    def _missing_counts(self) -> bool:
        """Whether a reference without a prediction counts as one in which nothing was found."""
        return self.run.evaluation.missing_predictions == "empty"

    # --- case by case ---------------------------------------------------------------------------------------------

    def _progress(self) -> Iterator[Case]:
        count = self._missing_counts
        cases = [
            case for case in self.references.cases if count or any(case.name in j.matching.found for j in self.judged)
        ]
        phase = self.events.phase("evaluate", len(cases))
        for done, case in enumerate(cases, 1):
            yield case
            phase.progress(done)

    def _measure(self, case: Case) -> None:
        try:
            reference = _read(case.label)
        except LabelError as error:
            self.events.warning(f"skipped: {error}")
            return
        present = labels_in(reference.array)
        annotated = self.references.annotated_in(case, present)
        self.seen[case.name] = _Seen(present, annotated)
        for index, one in enumerate(self.judged):
            path = one.matching.found.get(case.name)
            if path is None and not self._missing_counts:
                continue
            try:
                prediction = None if path is None else self._on_grid(_read(path), reference)
            except LabelError as error:
                self.events.warning(f"skipped: {error}")
                continue
            found = frozenset() if prediction is None else labels_in(prediction)
            classes = classes_for(self.named, present | (frozenset() if self.named else found))
            self.found |= found
            rows = measure_case(
                reference.array, prediction, reference.grid, classes, self.regions,
                annotated=annotated, tolerances=self.tolerances, tolerance=self.run.evaluation.tolerance,
                case=case.name,
            )  # fmt: skip
            one.rows += rows
            if index == 0:
                self._show(case, reference, prediction, case_dice(rows), annotated, classes)

    def _on_grid(self, prediction: LabelMap, reference: LabelMap) -> Any:
        """The prediction's labels on the grid of the reference.

        Raises:
            LabelError: it lies on another, and nothing was said of resampling.
        """
        grid = reference.grid
        if grid.same_as(prediction.grid):
            return prediction.array
        # The same voxels in another order: some programs turn a scan to R, A, S before they save anything.
        turned, turned_grid, _ = to_canonical(prediction.array, prediction.grid)
        like, like_grid, _ = to_canonical(reference.array, grid)
        if like_grid.same_as(turned_grid):
            return _turned_back(turned, reference)
        if self.run.resample_labels:
            aligned = align_labels(prediction, grid)
            self.events.message(f"{prediction.path}: was resampled onto the grid of {reference.path.name}")
            return aligned.array
        return read_label_map(prediction.path, grid, scan_path=reference.path).array

    def _show(
        self,
        case: Case,
        reference: LabelMap,
        prediction: Any,
        dice: float,
        annotated: Collection[int] | None,
        classes: Sequence[LabelClass],
    ) -> None:
        """Keep a slice of the case if it is among the worst so far."""
        wanted = self.run.evaluation.pictures
        if not dice < 1 or (len(self.worst) == wanted and (not wanted or dice >= self.worst[-1].dice)):
            return
        labels = [one.label for one in classes if annotated is None or one.label in annotated]
        found = np.zeros_like(reference.array) if prediction is None else prediction
        shown = worst_slice(
            case.name, dice, reference.array, found, self._scan(case, reference), reference.grid, labels
        )
        self.worst = sorted([*self.worst, shown], key=lambda one: one.dice)[:wanted]

    def _scan(self, case: Case, reference: LabelMap) -> Any:
        """The scan below the labels, where there is one on their grid; pictures are not worth an error."""
        known = own_scans(self.references) if self.scans is None else self.scans
        path = known.get(case.name)
        if path is None:
            return None
        try:
            scan = read_scan(path)
        except DataError as error:
            self.events.warning(f"{path}: is not drawn: {error.message}")
            return None
        return scan.array[0] if scan.grid.same_as(reference.grid) else None

    # --- afterwards -----------------------------------------------------------------------------------------------

    def _tell_of_unknown_labels(self, classes: Sequence[LabelClass]) -> None:
        if unknown := sorted(self.found - {one.label for one in classes}):
            self.events.warning(
                f"label(s) {some([str(label) for label in unknown])} of the predictions are in no reference, and "
                "have no name: they are not measured"
            )

    def _check_tolerances(self, classes: Sequence[LabelClass]) -> None:
        names = [*(one.name for one in classes), *(one.name for one in self.regions)]
        if wrong := [name for name in self.tolerances if name not in names]:
            raise SettingsError(
                f"evaluation.tolerances names {wrong[0]!r}, and there is no such class",
                cure=f"Classes are: {', '.join(names)}.",
            )

    def _classes(self) -> tuple[LabelClass, ...]:
        """Those with a name, and those that a reference has."""
        return classes_for(self.named, set().union(*(one.labels for one in self.seen.values())))

    def _complete(self, rows: Sequence[Row], classes: Sequence[LabelClass]) -> list[Row]:
        """For every case a row of each class, in one order; classes that are in no reference are left out."""
        known = {(row.case, row.name): row for row in rows}
        tolerance = self.run.evaluation.tolerance
        complete = []
        for case in dict.fromkeys(row.case for row in rows):
            annotated = self.seen[case].annotated
            for one in classes:
                is_known = annotated is None or one.label in annotated
                empty = Row(case, one.name, False, "absent" if is_known else "not annotated",
                            tolerance=self.tolerances.get(one.name, tolerance))  # fmt: skip
                if is_known:
                    empty = replace(empty, reference_ml=0.0, prediction_ml=0.0, difference_ml=0.0)
                complete.append(known.get((case, one.name), empty))
            complete += [known[case, region.name] for region in self.regions]
        return complete

    def _write(
        self, classes: Sequence[LabelClass], summaries: Sequence[Summary], found: Sequence[Comparison]
    ) -> dict[str, Any]:
        files = {name: self.folder / file for name, file in
                 (("csv", "metrics.csv"), ("json", "summary.json"), ("report", "report.html"))}  # fmt: skip
        write_text(files["csv"], _sheet(self.judged))
        comparison = [{**asdict(one), "words": verdict(one)} for one in found]
        about = {
            "cases": summaries[0].cases,
            "missing": list(self.judged[0].matching.missing),
            **{key: value for key, value in summaries[0].to_json().items() if key != "cases"},
            "comparison": comparison,
        }
        others = {"compare": summaries[1].to_json()} if found else {}
        write_json(files["json"], {
            **about, **others, "predictions": self.run.predictions, "references": self.run.references,
            "compared_with": self.run.compare, "settings": asdict(self.run.evaluation), "seed": self.run.seed,
            "versions": {"hybridmim": HybridMIMLib.__version__, **versions()},
            "warnings": list(self.events.warnings),
        })  # fmt: skip
        write_text(files["report"], page(self._content(classes, summaries, found)))
        return {**about, **{name: str(path) for name, path in files.items()}}

    def _content(
        self, classes: Sequence[LabelClass], summaries: Sequence[Summary], found: Sequence[Comparison]
    ) -> Content:
        runs = {one.title: one.rows for one in self.judged}
        names = [one.name for one in summaries[0].classes]
        key = " Blue: A, orange: B." if found else ""
        boxes = [
            Picture(draw_boxes(runs, names, measure), f"{NAMES[measure]}, every case.{key}") for measure in COMPARED
        ]
        volumes = [
            Picture(draw_volumes(one.rows, classes), f"Volumes{f' of {one.title}' if found else ''}")
            for one in self.judged
        ]
        worst = [
            Picture(draw_slice(one, classes), f"{one.case}: Dice {number(one.dice)}, slice {one.place[0]} of "
                    f"{one.place[1]}, counted from the feet") for one in self.worst
        ]  # fmt: skip
        about = versions()
        made_with = [f"{name} {about[name]}" for name in ("monai", "scipy", "numpy", "SimpleITK") if name in about]
        return Content(
            self._facts(summaries),
            list(self.events.warnings),
            [(one.title if not found else f"{one.title} ({one.place})", summary)
             for one, summary in zip(self.judged, summaries)],
            _in_words(self.run.evaluation.tolerance, self.tolerances),
            boxes,
            volumes,
            worst,
            found,
            [(one.name, one.color) for one in classes],
            self.run.evaluation.resamples,
            f"Made with HybridMIM {HybridMIMLib.__version__}, {', '.join(made_with)}",
        )  # fmt: skip

    def _facts(self, summaries: Sequence[Summary]) -> list[tuple[str, str]]:
        facts = [("predictions" if len(self.judged) == 1 else f"predictions {one.title}", str(one.place))
                 for one in self.judged]  # fmt: skip
        facts.append(("references", str(self.run.references)))
        facts.append(("cases measured", str(summaries[0].cases)))
        for one in self.judged:
            if one.matching.missing:
                fate = "counted as nothing found" if self._missing_counts else "left out"
                what = "without a prediction" + (f" ({one.title})" if len(self.judged) > 1 else "")
                facts.append((what, f"{len(one.matching.missing)}, {fate}: {some(list(one.matching.missing))}"))
        return facts


def _read(path: Path | None) -> LabelMap:
    assert path is not None
    return read_label_map(path)


def _turned_back(turned: Any, reference: LabelMap) -> Any:
    """An array along R, A, S on the axes of the reference."""
    return from_canonical(turned, to_canonical(reference.array, reference.grid)[2])


def _in_words(tolerance: float, others: Mapping[str, float]) -> str:
    special = "".join(f", {value:g} mm for {name}" for name, value in others.items())
    return f"{tolerance:g} mm{special}"


def _sheet(judged: Sequence[_Judged]) -> str:
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in judged:
        for row in one.rows:
            figures = (row.dice, row.hd95, row.surface_dice, row.tolerance, row.reference_ml, row.prediction_ml,
                       row.difference_ml, row.difference_percent)  # fmt: skip
            writer.writerow([one.title, row.case, row.name, "region" if row.is_region else "class", row.status,
                             *("" if value != value else f"{value:.6g}" for value in figures)])  # fmt: skip
    return sheet.getvalue()
