"""Which scan of a ranking to label next: the first that is not in the labelled folder, made ready for a window.

Its voxels are written as they are laid out in memory, so that a window has nothing to read but an array.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from HybridMIMLib.data.changing import take_back
from HybridMIMLib.data.finding import scan_name
from HybridMIMLib.data.labelled_folder import LabelledFolder, hash_of
from HybridMIMLib.data.layouts import Case
from HybridMIMLib.data.measuring import body_percentiles
from HybridMIMLib.data.scans import LabelMap, Scan, read_scan
from HybridMIMLib.data.survey import read_case
from HybridMIMLib.errors import DataError, LabelError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import disk_errors, make_folder

VOXELS, LABELS = "voxels.npy", "labels.npy"


@dataclass(frozen=True)
class Next:
    """The scan to label next.

    Attributes:
        scan: it, or None where none is left.
        labelled: how many scans before it are labelled already.
        notes: a line for each that cannot be used.
    """

    scan: Scan | None
    labelled: int
    notes: tuple[str, ...]


def next_scan(
    ranked: Sequence[Path], labelled: Path, passed: Collection[str] = (), events: EventLog | None = None
) -> Next:
    """Find the first scan that is not labelled yet.

    Args:
        ranked: scans, the one to label first in front.
        labelled: the labelled folder, which may not be there yet.
        passed: files that are not wanted, because they are open already say.
        events: where progress goes.

    Raises:
        DataError: the labelled folder cannot be used.
    """
    if labelled.is_dir():
        take_back(labelled)
    folder = LabelledFolder(labelled)
    known = folder.known(events or EventLog()).values() if folder.cases else ()
    voxels, sources = {one.voxels for one in known}, {one.source for one in known}
    before, notes = 0, []
    for path in ranked:
        if str(path) in passed:
            continue
        if str(path) in sources:
            before += 1
            continue
        try:
            scan = read_scan(path)
            if len(scan.array) > 1:
                raise DataError(f"{path}: has {len(scan.array)} channels", cure="Label its channels by hand.")
        except DataError as error:
            notes.append(str(error))
            continue
        if hash_of(scan) not in voxels:
            return Next(scan, before, tuple(notes))
        before += 1
    return Next(None, before, tuple(notes))


def write_for_window(scan: Scan, folder: Path) -> dict[str, Any]:
    """Write the voxels of a scan of one channel, (k, j, i), to :data:`VOXELS`.

    Returns:
        ``scan``: file; ``name``; ``voxels``: file; ``affine``: 4x4, voxel (i, j, k) -> RAS, mm; ``window``: lowest
        and highest intensity to show.

    Raises:
        DiskError: it could not be written.
    """
    low, *_, high = body_percentiles(scan.array)
    voxels = folder / VOXELS
    array = np.ascontiguousarray(scan.array[0].T)
    # Slicer's volumes have no 64-bit whole numbers.
    array = array.astype(np.float64) if array.dtype.kind in "iu" and array.dtype.itemsize == 8 else array
    with disk_errors(voxels):
        np.save(voxels, array)
    return {
        "scan": str(scan.path),
        "name": scan_name(scan.path),
        "voxels": str(voxels),
        "affine": scan.grid.affine.tolist(),
        "window": [float(low), float(high)],
    }


def write_case_for_window(case: Case, folder: Path) -> dict[str, Any]:
    """Write the voxels of a scan, each channel in a subfolder of its own, and its labels as a training reads them.

    A label map that cannot be used is no reason not to show the scan.

    Returns:
        ``volumes``: what :func:`write_for_window` returns, one a channel; ``labels``: file with the label map
        (k, j, i) on the grid of the scan, or None; ``values``: the labels in it, without 0; ``note``: why there is no
        label map though the case has one.

    Raises:
        DataError: the scan cannot be read.
        DiskError: a file could not be written.
    """
    note = ""
    try:
        scan, label = read_case(case)
    except LabelError as error:
        (scan, label), note = read_case(replace(case, label=None)), str(error)
    volumes = []
    for number in range(len(scan.array)):
        place = folder / f"channel {number}"
        make_folder(place)
        path = case.images[number] if len(case.images) == len(scan.array) else scan.path
        channel = replace(scan, path=path, array=scan.array[number : number + 1])
        volumes.append(write_for_window(channel, place))
    about = {"volumes": volumes, "note": note, "labels": None, "values": []}
    return about if label is None else {**about, **_write_labels(label, folder / LABELS)}


def _write_labels(label: LabelMap, file: Path) -> dict[str, Any]:
    with disk_errors(file):
        np.save(file, np.ascontiguousarray(label.array.T))
    return {"labels": str(file), "values": [int(value) for value in np.unique(label.array) if value]}
