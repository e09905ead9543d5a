"""One pass over the cases of a data set: which can be used, and the facts from which a plan is made.

Every case gets a verdict (:func:`examine`), in a few threads; a :func:`survey` for a training takes those that can be
used, and ends at a wrong label map.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from HybridMIMLib.data.alignment import align_labels
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.finding import files_of
from HybridMIMLib.data.grid import Grid, to_canonical
from HybridMIMLib.data.layouts import Case, classes_from_labels
from HybridMIMLib.data.measuring import body_percentiles, looks_like_ct, voxel_hash
from HybridMIMLib.data.scans import LabelMap, Scan, read_label_map, read_scan
from HybridMIMLib.data.volume import Content
from HybridMIMLib.errors import DataError, LabelError, ScanError
from HybridMIMLib.events import EventLog, Phase

MOST_CLASSES = 255
"""Class numbers are stored as 8 bit, 0 is background."""

MOST_WORKERS = 4
"""Threads that read; more do not help, as each unpacks faster than a disk delivers, and each holds a scan."""

Status = Literal["good", "warning", "skipped"]


@dataclass(frozen=True)
class CaseFacts:
    """What was found in one case; shape and spacing (mm) along R, A, S.

    Attributes:
        case: the files.
        content: SHA-256 of the files' bytes.
        channels: of the scan.
        shape: voxels.
        spacing: in mm.
        low, high: smallest and largest intensity.
        labels: values in the label map, without 0.
        voxels: SHA-256 of shape and voxel values along R, A, S: one scan in two formats has it twice.
        modality: ``"CT"``, ``"MR"``, or ``""`` where it cannot be told.
        body: per channel, one after the other, the percentiles 0.5, 25, 50, 75 and 99.5 of the intensities in the
            body.
        patient: who was scanned; the case's name where nobody says.
        annotated: the labels that were annotated here; None: all.
        warnings: what is odd about the files though they can be used.
    """

    case: Case
    content: str
    channels: int
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    low: float
    high: float
    labels: frozenset[int]
    voxels: str = ""
    modality: str = ""
    body: tuple[float, ...] = ()
    patient: str = ""
    annotated: frozenset[int] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Whether a case can be used, and why not.

    Attributes:
        case: the files.
        status: ``"good"``, ``"warning"`` (used, but odd) or ``"skipped"``.
        reasons: one line each; of a case that is skipped it begins with the file.
        facts: what was found in it; None where it could not be read.
        error: what was raised, of a case that is skipped.
    """

    case: Case
    status: Status
    reasons: tuple[str, ...]
    facts: CaseFacts | None
    error: DataError | None = None


def examine(
    cases: Iterable[Case], events: EventLog, partial: bool = False, workers: int | None = None
) -> Iterator[Verdict]:
    """A verdict a case, in the order of the cases; each file is read once.

    Several threads read, and no more scans than threads are in memory. Whoever stops taking verdicts stops the
    reading, as Ctrl+C does.

    Args:
        cases: to examine.
        events: where progress goes, as phase "check scans".
        partial: a label that is missing from a case was not annotated there, unless the case itself says.
        workers: threads; None: one a core, up to :data:`MOST_WORKERS`.
    """
    cases = list(cases)
    phase = events.phase("check scans", len(cases))
    count = max(workers or min(MOST_WORKERS, os.cpu_count() or 1), 1)
    pool = ThreadPoolExecutor(count, thread_name_prefix="check scans")
    waiting: deque[Future[Verdict]] = deque()
    seen: dict[str, Path] = {}
    try:
        for index, case in enumerate(cases):
            waiting.append(pool.submit(_examine_one, case, partial))
            if len(waiting) > count:
                yield _next(waiting, seen, phase, index + 1 - len(waiting))
        while waiting:
            yield _next(waiting, seen, phase, len(cases) - len(waiting))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def survey(
    cases: Iterable[Case], events: EventLog, partial: bool = False, workers: int | None = None
) -> list[CaseFacts]:
    """Read every case once; a scan that cannot be used is named in a warning and passed over, as is a copy.

    Args:
        cases, events, partial, workers: as for :func:`examine`.

    Raises:
        LabelError: a label map is wrong; training on the others would hide that.
        DataError: no case is left, or they have different numbers of channels.
    """
    cases = list(cases)
    found: list[CaseFacts] = []
    for verdict in examine(cases, events, partial, workers):
        if isinstance(verdict.error, LabelError):
            raise verdict.error
        if verdict.status == "skipped" or verdict.facts is None:
            events.warning(f"skipped: {verdict.reasons[0]}")
            continue
        for reason in verdict.reasons:
            events.warning(f"{verdict.case.images[0]}: {reason}")
        found.append(verdict.facts)
    if not found:
        raise DataError(
            f"{cases[0].images[0].parent}: none of the {len(cases)} scans can be used",
            cure="See the reason for each above.",
        )
    if odd := odd_channels(found):
        raise odd
    return found


def odd_channels(found: Sequence[CaseFacts]) -> DataError | None:
    """The error of scans of different kinds, naming one of the rarest; None where all have the same channels."""
    if len({facts.channels for facts in found}) < 2:
        return None
    odd = min(found, key=lambda f: sum(f.channels == other.channels for other in found))
    return DataError(
        f"{odd.case.images[0]}: has {odd.channels} channel(s), other scans have another number",
        cure="Keep scans of one kind in the folder.",
    )


def read_case(case: Case, content: Content | None = None) -> tuple[Scan, LabelMap | None]:
    """The scan of a case, its channels stacked, and its label map.

    Args:
        case: the files.
        content: gets the bytes of all of them, the label map's last.

    Raises:
        ScanError: a file cannot be used, or the channels lie on different grids.
        LabelError: the label map does not fit.
    """
    parts = [read_scan(path, content) for path in case.images]
    first = parts[0]
    for other in parts[1:]:
        if not first.grid.same_as(other.grid):
            raise ScanError(
                f"{other.path}: lies on another grid than {first.path.name}",
                cure="Resample all channels of a case onto one grid.",
            )
    if len(parts) > 1:
        warnings = tuple(dict.fromkeys(warning for part in parts for warning in part.warnings))
        first = replace(first, array=np.concatenate([part.array for part in parts]), warnings=warnings)
    label = None
    if case.label is not None:
        grid = None if case.resample else first.grid
        label = read_label_map(case.label, grid, scan_path=first.path, content=content)
        label = align_labels(label, first.grid)
    return first, label


def classes_of(found: Iterable[CaseFacts], named: tuple[LabelClass, ...]) -> tuple[LabelClass, ...]:
    """The classes to learn: those the data set names, else one for each label met.

    Raises:
        LabelError: a label map has a value that no class is named for, or none has any, or all together too many.
    """
    found = list(found)
    if not any(facts.labels for facts in found):
        raise LabelError(
            f"{found[0].case.label}: this label map, and every other, holds background alone",
            cure="Check that the label maps are the right files.",
        )
    met = set().union(*(facts.labels for facts in found))
    if len(met) > MOST_CLASSES:
        raise LabelError(
            f"{max(found, key=lambda f: len(f.labels)).case.label}: the label maps hold {len(met)} labels, "
            f"more than {MOST_CLASSES}",
            cure="Number the classes, not the single objects, in the label maps.",
        )
    if not named:
        return classes_from_labels(met)
    for facts in found:
        if unknown := unknown_label(facts, named):
            raise unknown
    return named


def unknown_label(facts: CaseFacts, named: Sequence[LabelClass]) -> LabelError | None:
    """The error of a label map with a value that no class is named for; None where all are."""
    known = {one.label for one in named}
    if not known or facts.labels <= known:
        return None
    return LabelError(
        f"{facts.case.label}: holds label {min(facts.labels - known)}, but only {sorted(known)} are named",
        cure="Add it to dataset.json or classes.json, or correct the label map.",
    )


def content_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over the bytes of scans and label maps, in their order, all slices of a DICOM series included."""
    content = Content()
    for path in paths:
        for file in files_of(path):
            content.add_file(file)
    return content.hexdigest()


def canonical_grid(array: npt.NDArray[np.generic], grid: Grid) -> tuple[npt.NDArray[np.generic], Grid]:
    """An array (…, D, H, W) and its grid with voxel axes along R, A, S."""
    turned, turned_grid, _ = to_canonical(array, grid)
    return turned, turned_grid


def _next(waiting: deque[Future[Verdict]], seen: dict[str, Path], phase: Phase, done: int) -> Verdict:
    """The verdict of the case that waits longest; a copy of an earlier scan is skipped."""
    first = waiting.popleft()
    while not first.done():
        # With a limit, because Windows hands on Ctrl+C only between waits.
        wait([first], timeout=0.2)
    verdict = first.result()
    phase.progress(done + 1)
    facts = verdict.facts
    if facts is None:
        return verdict
    image, twin = facts.case.images[0], seen.get(facts.voxels)
    if twin is None:
        seen[facts.voxels] = image
        return verdict
    error = ScanError(f"{image}: is a copy of {twin}", cure="Remove one of them.")
    return replace(verdict, status="skipped", reasons=(str(error),), error=error)


def _examine_one(case: Case, partial: bool) -> Verdict:
    try:
        facts = _facts(case, partial)
    except DataError as error:
        return Verdict(case, "skipped", (str(error),), None, error)
    return Verdict(case, "warning" if facts.warnings else "good", facts.warnings, facts)


def _facts(case: Case, partial: bool) -> CaseFacts:
    content = Content()
    scan, label = read_case(case, content)
    values = frozenset() if label is None else frozenset(np.unique(label.array).tolist()) - {0}
    if case.annotated is not None and (odd := values - case.annotated):
        raise LabelError(
            f"{case.label}: holds label {min(odd)}, which the list of cases says was not annotated here",
            cure="Add it to what was annotated, or correct the label map.",
        )
    turned, grid = canonical_grid(scan.array, scan.grid)
    return CaseFacts(
        case,
        content.hexdigest(),
        len(scan.array),
        grid.shape,
        grid.spacing,
        float(scan.array.min()),
        float(scan.array.max()),
        values,
        voxel_hash(turned),
        scan.modality or ("CT" if looks_like_ct(scan.array) else ""),
        body_percentiles(scan.array),
        case.patient or scan.patient or case.name,
        values if partial and label is not None and case.annotated is None else case.annotated,
        (*scan.warnings, *(label.warnings if label else ())),
    )
