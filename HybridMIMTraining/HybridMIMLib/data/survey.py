"""One pass over the cases of a data set: which can be used, and the facts from which a plan is made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.grid import Grid, to_canonical
from HybridMIMLib.data.layouts import Case, classes_from_labels
from HybridMIMLib.data.scans import LabelMap, Scan, read_label_map, read_scan
from HybridMIMLib.errors import DataError, LabelError, ScanError
from HybridMIMLib.events import EventLog

MOST_CLASSES = 255
"""Class numbers are stored as 8 bit, 0 is background."""


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
    """

    case: Case
    content: str
    channels: int
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    low: float
    high: float
    labels: frozenset[int]


def survey(cases: Iterable[Case], events: EventLog) -> list[CaseFacts]:
    """Read every case once; a scan that cannot be used is named in a warning and passed over.

    Raises:
        LabelError: a label map is wrong; training on the others would hide that.
        DataError: no case is left.
    """
    cases = list(cases)
    phase = events.phase("check scans", len(cases))
    found: list[CaseFacts] = []
    for done, case in enumerate(cases, 1):
        try:
            facts = _facts(case, events)
        except ScanError as error:
            events.warning(f"skipped: {error}")
        else:
            twin = next((other for other in found if other.content == facts.content), None)
            if twin is None:
                found.append(facts)
            else:
                events.warning(f"skipped: {case.images[0]}: is a copy of {twin.case.images[0]}. Remove one of them.")
        phase.progress(done)
    if not found:
        raise DataError(
            f"{cases[0].images[0].parent}: none of the {len(cases)} scans can be used",
            cure="See the reason for each above.",
        )
    channels = {facts.channels for facts in found}
    if len(channels) > 1:
        odd = min(found, key=lambda f: sum(f.channels == other.channels for other in found))
        raise DataError(
            f"{odd.case.images[0]}: has {odd.channels} channel(s), other scans have another number",
            cure="Keep scans of one kind in the folder.",
        )
    return found


def read_case(case: Case) -> tuple[Scan, LabelMap | None]:
    """The scan of a case, its channels stacked, and its label map.

    Raises:
        ScanError: a file cannot be used, or the channels lie on different grids.
        LabelError: the label map does not fit.
    """
    parts = [read_scan(path) for path in case.images]
    first = parts[0]
    for other in parts[1:]:
        if not first.grid.same_as(other.grid):
            raise ScanError(
                f"{other.path}: lies on another grid than {first.path.name}",
                cure="Resample all channels of a case onto one grid.",
            )
    if len(parts) > 1:
        warnings = tuple(warning for part in parts for warning in part.warnings)
        first = Scan(first.path, np.concatenate([part.array for part in parts]), first.grid, warnings)
    label = None
    if case.label is not None:
        label = read_label_map(case.label, first.grid, scan_path=first.path)
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
    known = {c.label for c in named}
    for facts in found:
        if unknown := facts.labels - known:
            raise LabelError(
                f"{facts.case.label}: holds label {min(unknown)}, but only {sorted(known)} are named",
                cure="Add it to dataset.json or classes.json, or correct the label map.",
            )
    return named


def content_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over the bytes of files, in their order; a file that cannot be read counts by its path."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as handle:
                for block in iter(lambda: handle.read(1 << 20), b""):
                    digest.update(block)
        except OSError:
            digest.update(str(path).encode("utf-8", "surrogateescape"))
        digest.update(b"\x00file\x00")
    return digest.hexdigest()


def canonical_grid(array: npt.NDArray[np.generic], grid: Grid) -> tuple[npt.NDArray[np.generic], Grid]:
    """An array (…, D, H, W) and its grid with voxel axes along R, A, S."""
    turned, turned_grid, _ = to_canonical(array, grid)
    return turned, turned_grid


def _facts(case: Case, events: EventLog) -> CaseFacts:
    scan, label = read_case(case)
    for warning in scan.warnings + (label.warnings if label else ()):
        events.warning(f"{scan.path}: {warning}")
    _, grid = canonical_grid(scan.array, scan.grid)
    files = case.images if case.label is None else (*case.images, case.label)
    values = frozenset() if label is None else frozenset(int(v) for v in np.unique(label.array) if v)
    return CaseFacts(
        case,
        content_hash(files),
        len(scan.array),
        grid.shape,
        grid.spacing,
        float(scan.array.min()),
        float(scan.array.max()),
        values,
    )
