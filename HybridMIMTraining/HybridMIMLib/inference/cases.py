"""One case after the other through a predictor: what segmenting and ranking have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from HybridMIMLib.config import Run
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.layouts import Case, open_dataset
from HybridMIMLib.data.model_store import locate
from HybridMIMLib.data.scans import ScanItems, read_items, scan_name
from HybridMIMLib.data.survey import read_case
from HybridMIMLib.data.volume import NO_STEP, Step
from HybridMIMLib.errors import DataError, HybridMIMError, ScanError
from HybridMIMLib.events import DONE, FAILED, SKIPPED, WAITING, WORKING, EventLog, EventReader, Phase
from HybridMIMLib.inference.ladder import is_out_of_memory
from HybridMIMLib.inference.predictor import Labels, Prediction, Predictor
from HybridMIMLib.model_package import ModelPackage, load_model
from HybridMIMLib.runs import command_of

Result = TypeVar("Result")
ItemWatch = Callable[[int, int, int, int], None]
"""Called with the volume of a case that is at work, how many there are, its windows done, and of all."""


@dataclass(frozen=True)
class Found:
    """What a predictor found in a case; every array of a 4D scan has a first axis T more.

    Attributes:
        case: the files.
        grid: of the scan, or of each volume of a 4D scan.
        labels: (D, H, W).
        layers: (D, H, W) bool a class, where classes overlap; else None.
        uncertainty: (D, H, W) float32 from 0 to 1, or None if it was not asked for.
        reference: (D, H, W) the case's own label map, or None.
        is_4d: whether the scan has several volumes.
        step: from one volume to the next.
    """

    case: Case
    grid: Grid
    labels: Labels
    layers: list[npt.NDArray[np.bool_]] | None = None
    uncertainty: npt.NDArray[np.float32] | None = None
    reference: Labels | None = None
    is_4d: bool = False
    step: Step = NO_STEP

    def masks(self, classes: Iterable[LabelClass]) -> Iterator[tuple[LabelClass, npt.NDArray[np.bool_]]]:
        """Where each class was found."""
        for index, one in enumerate(classes):
            yield one, self.labels == one.label if self.layers is None else self.layers[index]


def find_in_cases(cases: Iterable[Case], predictor: Predictor, events: EventLog, phase: str) -> Iterator[Found]:
    """Segment cases one after the other; see :func:`each_case`.

    Progress counts cases, and of the one at work the share of its windows that are done.
    """
    return each_case(cases, lambda case, watch: _find(case, predictor, events, watch), events, phase)


def each_case(
    cases: Iterable[Case], take: Callable[[Case, ItemWatch], Result], events: EventLog, phase: str
) -> Iterator[Result]:
    """Take cases one after the other; one that cannot be used, or is too large, becomes a warning.

    A case is told to be done when the next one is asked for: what was made of it has been kept by then.

    Args:
        cases: to take.
        take: does the work; gets a case, and who may be told how far it is with one of its volumes.
        events: where progress and warnings go.
        phase: what this is called there.
    """
    cases = list(cases)
    progress = events.phase(phase, len(cases))
    for done, case in enumerate(cases):
        events.case(case.name, WORKING)
        try:
            found = _take_or_say_why(case, take, _Watch(progress, done))
        except DataError as error:
            named = str(error) if str(case.images[0].name) in error.message else f"{case.images[0]}: {error}"
            events.warning(f"skipped: {named}")
            is_too_large = error.__cause__ is not None and is_out_of_memory(error.__cause__)
            events.case(case.name, FAILED if is_too_large else SKIPPED, str(error))
        else:
            yield found
            events.case(case.name, DONE)
        progress.progress(done + 1)


def begin_cases(cases: Sequence[Case], todo: Sequence[Case], events: EventLog) -> None:
    """Tell of all cases which are to be done."""
    waiting = {case.name for case in todo}
    events.cases((case.name, str(case.images[0]), WAITING if case.name in waiting else DONE) for case in cases)


def killers_last(cases: Sequence[Case], log: Path) -> list[Case]:
    """The same cases; those at which an earlier attempt was killed come last, so that the others are done first.

    Args:
        cases: to be done.
        log: ``events.jsonl`` of the run folder, before this attempt writes to it.
    """
    killers, at_work = set(), ""
    for event in EventReader(log).read():
        if event.get("kind") == "end":
            # It said how it ended: it was not killed.
            at_work = ""
        elif event.get("kind") == "case":
            name, state = str(event.get("case")), event.get("state")
            killers |= {at_work} if state == WORKING else set()
            killers -= {name} if state == DONE else set()
            at_work = name if state == WORKING else ""
    killers.add(at_work)
    return sorted(cases, key=lambda case: case.name in killers)


def cases_in(scans: Path, output: Path | None = None) -> list[Case]:
    """A file as one case, or those of a folder; what this program wrote there, now or earlier, is no scan.

    Raises:
        DataError: there is none.
    """
    if scans.is_file():
        return [Case(scan_name(scans), (scans,), None)]
    cases = open_dataset(scans, labelled=False).cases
    own = _results_in(scans, cases) | ({output.resolve()} if output else set())
    kept = [case for case in cases if own.isdisjoint(case.images[0].resolve().parents)]
    if not kept:
        raise DataError(f"{scans}: holds no scan but the results of this program", cure="Name the folder of scans.")
    return kept


def _results_in(scans: Path, cases: Iterable[Case]) -> set[Path]:
    """Folders in ``scans`` that the command ``segment`` worked in: uncertainty is an image too."""
    top = scans.resolve()
    folders = {folder for case in cases for folder in case.images[0].resolve().parents if top in folder.parents}
    return {folder for folder in folders if command_of(folder) == "segment"}


def open_model(run: Run) -> ModelPackage:
    """The model that a run names: a folder, a ``.zip`` or the name of one that was added.

    Raises:
        SettingsError: none is named.
        ModelError: it cannot be used.
    """
    return load_model(locate(run.folder("model", "the model to use")))


def _take_or_say_why(case: Case, take: Callable[[Case, ItemWatch], Result], watch: ItemWatch) -> Result:
    """What comes of a case; the memory that it takes too much of is its fault, because others may be smaller.

    Raises:
        DataError: it cannot be used, or is too large for this machine.
    """
    try:
        return take(case, watch)
    except Exception as error:
        if isinstance(error, HybridMIMError) and error.__cause__ is not None and is_out_of_memory(error.__cause__):
            raise ScanError(f"{case.images[0]}: {error.message}", cure=error.cure) from error
        if not is_out_of_memory(error):
            raise
        raise ScanError(
            f"{case.images[0]}: too large for the memory of this machine",
            cure="Close other programs, crop or resample the scan, or use a machine with more memory.",
        ) from error


def _find(case: Case, predictor: Predictor, events: EventLog, watch: ItemWatch) -> Found:
    items, reference = read_volumes(case, predictor.plan.channels)
    tell_of(items, case, events)
    found = [
        predictor.predict(array, items.grid, partial(watch, index, len(items))) for index, array in enumerate(items)
    ]
    return joined(case, items, found, reference)


def tell_of(items: ScanItems, case: Case, events: EventLog) -> None:
    """Tell what is odd about a scan: sides that may be swapped, a strange unit; so it is about its result."""
    for text in items.warnings:
        events.warning(f"{case.images[0]}: {text}")
    if len(items) > 1:
        events.message(f"{case.images[0]}: {len(items)} volumes, each segmented by itself")


def read_volumes(case: Case, channels: int) -> tuple[ScanItems, Labels | None]:
    """What there is to segment in a case, and its own label map.

    4D and single slices are taken where the case is one file without a label map.

    Args:
        case: the files.
        channels: that the model takes.

    Raises:
        ScanError, LabelError: a file cannot be used.
    """
    if len(case.images) == 1 and case.label is None:
        return read_items(case.images[0], channels), None
    scan, label = read_case(case)
    items = ScanItems(scan.path, scan.array[np.newaxis], scan.grid, warnings=scan.warnings)
    return items, None if label is None else label.array


def joined(case: Case, items: ScanItems, found: list[Prediction], reference: Labels | None) -> Found:
    """What was found in each volume of a case as one again."""

    def join(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.stack(parts) if items.is_4d else parts[0]

    layers = [one.layers for one in found if one.layers is not None]
    uncertainty = [one.uncertainty for one in found if one.uncertainty is not None]
    return Found(
        case,
        items.grid,
        join([one.labels for one in found]),
        [join(list(parts)) for parts in zip(*layers)] if layers else None,
        join(uncertainty) if uncertainty else None,
        reference,
        items.is_4d,
        items.step,
    )


class _Watch:
    """Turns windows done into a share of a step: a scan that is one of three may be a third of the bar."""

    def __init__(self, progress: Phase, before: int) -> None:
        self._progress, self._before = progress, before

    def __call__(self, item: int, items: int, done: int, windows: int) -> None:
        # The last one is reported when the result is written, too.
        if done < windows:
            self._progress.progress(round(self._before + (item + done / windows) / items, 3))
