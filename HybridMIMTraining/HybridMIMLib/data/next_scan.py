"""Which scan of a ranking to label next: the first that is not in the labelled folder, made ready for a window.

Its voxels are written as they are laid out in memory, so that a window has nothing to read but an array.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from HybridMIMLib.data.changing import take_back
from HybridMIMLib.data.finding import scan_name
from HybridMIMLib.data.labelled_folder import LabelledFolder, hash_of
from HybridMIMLib.data.measuring import body_percentiles
from HybridMIMLib.data.scans import Scan, read_scan
from HybridMIMLib.errors import DataError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import disk_errors

VOXELS = "voxels.npy"


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
