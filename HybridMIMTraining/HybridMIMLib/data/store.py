"""The prepared store: every scan resampled once, 16-bit, memory-mapped, so that a crop reads only its own rows.

One folder a case, named after the case and the hash of its name, its files and how it was prepared:

``image.npy`` (C, D, H, W) int16; ``label.npy`` (D, H, W) uint8 class numbers from 1; ``foreground.npy`` (N, 3) int32
positions sorted by class; ``case.json`` the rest, with a SHA-256 of each array. A folder is made under a temporary
name and renamed when it is whole, so a case that is there is a case that can be trusted, and a run that was killed
goes on with what it had. A file that was changed or copied since is checked by its hash before it is used.

Intensities are kept as they are where 16 bit hold them, as Hounsfield units do, otherwise scaled for each channel,
the scale beside them. They are normalised on the training device, so that the store is half the size of float32.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.normalisation import intensity_range
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.resampling import resample_image, resample_labels, resampled_grid
from HybridMIMLib.data.survey import CaseFacts, canonical_grid, content_hash, read_case
from HybridMIMLib.errors import DataError, DiskError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import TEMPORARY, disk_errors, flush_to_disk, json_text, make_folder, read_json
from HybridMIMLib.randomness import random_stream

STORE_FORMAT = 2
POSITIONS_A_CLASS = 20000
_INT16 = np.iinfo(np.int16)
_SECONDS_TO_WRITE = 600
_DESCRIPTION = 4096
"""Bytes for ``case.json`` and the heads of the arrays."""
_SLAB = 16
"""Slices at a time: steps over a whole scan would each need another copy of it."""


@dataclass(frozen=True)
class PreparedCase:
    """One case in the store; arrays are mapped when they are used, not for longer: each map holds a file open.

    Attributes:
        folder: where it lies.
        name: of the case.
        low, high: per channel, the stored values that become 0 and 1 for the network.
        counts: foreground positions of each class, in the order of the classes.
        annotated: numbers of the classes that were annotated in this case; None: all.
        patient: who was scanned; empty where nobody says.
    """

    folder: Path
    name: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    counts: tuple[int, ...]
    annotated: tuple[int, ...] | None = None
    patient: str = ""

    @property
    def image(self) -> npt.NDArray[np.int16]:
        """(C, D, H, W), memory-mapped."""
        return self._mapped("image.npy")

    @property
    def label(self) -> npt.NDArray[np.uint8]:
        """(D, H, W) class numbers, memory-mapped."""
        return self._mapped("label.npy")

    @property
    def foreground(self) -> npt.NDArray[np.int32]:
        """(N, 3) voxels of classes, sorted by class."""
        return self._mapped("foreground.npy")

    def _mapped(self, name: str) -> npt.NDArray[Any]:
        try:
            return np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{self.folder / name}: the prepared scan cannot be read ({error})",
                cure="Run the command again: what is missing or damaged in the store is prepared anew.",
            ) from error


def prepare_store(
    found: Sequence[CaseFacts], plan: Plan, classes: Sequence[LabelClass], store: Path, events: EventLog
) -> list[PreparedCase]:
    """Prepare the cases that the store does not hold yet.

    Raises:
        DiskError: the disk is full; what was prepared so far stays and is used again.
    """
    make_folder(store)
    _remove_leftovers(store)
    folders = [_folder(store, facts, plan, classes) for facts in found]
    there = [open_case(folder) for folder in folders]
    _check_room([facts for facts, case in zip(found, there) if case is None], plan, store, events)
    phase = events.phase("prepare scans", len(found))
    prepared = []
    for done, (facts, folder, case) in enumerate(zip(found, folders, there), 1):
        # Another process that shares the store may have made it since.
        case = case or open_case(folder) or _prepare_case(facts, plan, classes, folder)
        prepared.append(replace(case, annotated=_annotated(facts, classes), patient=facts.patient))
        phase.progress(done)
    return prepared


def open_case(folder: Path) -> PreparedCase | None:
    """A case that :func:`prepare_store` made, or None where there is none or it is damaged.

    Who was scanned and what was annotated is not in the store: a data set can say it anew without new scans.
    """
    try:
        content = read_json(folder / "case.json")
        low, high, counts = (tuple(content[key]) for key in ("low", "high", "counts"))
        whole = all(_is_whole(folder / name, facts) for name, facts in content["files"].items())
        return PreparedCase(folder, str(content["name"]), low, high, counts) if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def place_of(case: PreparedCase) -> tuple[Grid, list[tuple[float, float]]]:
    """Where a prepared scan lies, and (scale, offset) a channel: intensity of the scan = stored · scale + offset.

    Raises:
        DataError: its description cannot be read any more.
    """
    file = case.folder / "case.json"
    try:
        content = read_json(file)
        (depth, height, width), affine = content["shape"], np.array(content["affine"], dtype=np.float64)
        return Grid((depth, height, width), affine), [(float(s), float(o)) for s, o in content["scale"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: cannot be read ({error})",
            cure="Run the command again: what is missing or damaged in the store is prepared anew.",
        ) from error


def disk_need(found: Sequence[CaseFacts], plan: Plan) -> int:
    """The bytes that cases take at most when they are prepared."""
    total = 0
    for facts in found:
        sizes = np.round(np.multiply(facts.shape, facts.spacing) / plan.spacing)
        voxels = int(np.prod(np.maximum(sizes, 1)))
        total += 2 * plan.channels * voxels + _DESCRIPTION
        if facts.case.label is not None:
            total += voxels + 12 * min(len(facts.labels) * POSITIONS_A_CLASS, voxels)
    return total


def bring_to_plan(array: npt.NDArray[Any], grid: Grid, plan: Plan) -> tuple[npt.NDArray[np.float32], Grid]:
    """A scan (C, D, H, W) along R, A, S at the plan's spacing; intensities as they were."""
    turned, turned_grid = canonical_grid(array, grid)
    target = resampled_grid(turned_grid, plan.spacing)
    return resample_image(turned, target.shape), target


def _prepare_case(facts: CaseFacts, plan: Plan, classes: Sequence[LabelClass], folder: Path) -> PreparedCase:
    scan, label = read_case(facts.case)
    image, grid = bring_to_plan(scan.array, scan.grid, plan)
    del scan  # It may be large.
    ranges = intensity_range(image, plan)
    stored, scales = _to_int16(image, ranges)
    content: dict[str, Any] = {
        "name": facts.case.name,
        "source": [str(path) for path in facts.case.images],
        "shape": grid.shape,
        "affine": grid.affine.tolist(),
        "low": [(low - offset) / scale for (low, _), (scale, offset) in zip(ranges, scales)],
        "high": [(high - offset) / scale for (_, high), (scale, offset) in zip(ranges, scales)],
        "scale": scales,
        "counts": [],
    }
    arrays: dict[str, npt.NDArray[Any]] = {"image": stored}
    if label is not None:
        turned, _ = canonical_grid(label.array, label.grid)
        arrays["label"] = resample_labels(_class_numbers(turned, classes), grid.shape)
        arrays["foreground"], content["counts"] = _foreground(arrays["label"], len(classes), facts.content)
    _write_case(folder, arrays, content)
    case = open_case(folder)
    if case is None:
        raise DiskError(
            f"{folder}: what was written cannot be read back", cure="Check the disk, or use another --store."
        )
    return case


def _to_int16(
    image: npt.NDArray[np.float32], ranges: Sequence[tuple[float, float]]
) -> tuple[npt.NDArray[np.int16], list[tuple[float, float]]]:
    """Round to 16 bit; a channel whose useful range does not fit, or is too fine, is scaled.

    Returns:
        The stored values, and (scale, offset) a channel: intensity = stored · scale + offset.
    """
    stored, scales = np.empty(image.shape, dtype=np.int16), []
    for index, (channel, (low, high)) in enumerate(zip(image, ranges)):
        fits = _INT16.min <= channel.min() and channel.max() <= _INT16.max and high - low >= 200
        # Twice the useful range keeps some of the extremes; what lies beyond is cut off.
        scale, offset = (1.0, 0.0) if fits else (2 * (high - low) / 65000, (high + low) / 2)
        for start in range(0, len(channel), _SLAB):
            slab = (channel[start : start + _SLAB] - offset) / scale
            stored[index, start : start + _SLAB] = np.rint(slab).clip(_INT16.min, _INT16.max)
        scales.append((scale, offset))
    return stored, scales


def _class_numbers(labels: npt.NDArray[Any], classes: Sequence[LabelClass]) -> npt.NDArray[np.uint8]:
    table = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.uint8)
    for number, one in enumerate(classes, 1):
        if one.label < len(table):
            table[one.label] = number
    return table[labels]


def _foreground(labels: npt.NDArray[np.uint8], classes: int, content: str) -> tuple[npt.NDArray[np.int32], list[int]]:
    """Voxels of each class, at most POSITIONS_A_CLASS at random, and how many of each."""
    wanted = [_chosen(int(total), content, number) for number, total in enumerate(_totals(labels, classes), 1)]
    seen, parts = [0] * classes, [[np.empty((0, 3), dtype=np.int32)] for _ in range(classes)]
    # All positions of an organ, as 64-bit numbers, would be many times the scan.
    for start in range(0, len(labels), _SLAB):
        slab = labels[start : start + _SLAB].ravel()
        places = np.flatnonzero(slab)
        places = places[np.argsort(slab[places], kind="stable")]
        numbers, firsts, counts = np.unique(slab[places], return_index=True, return_counts=True)
        for number, first, count in zip(numbers - 1, firsts, counts):
            low, high = np.searchsorted(wanted[number], (seen[number], seen[number] + count))
            taken = places[first + wanted[number][low:high] - seen[number]]
            voxels = np.stack(np.unravel_index(taken, (_SLAB, *labels.shape[1:])), axis=1).astype(np.int32)
            parts[number].append(voxels + np.array([start, 0, 0], dtype=np.int32))
            seen[number] += int(count)
    return np.concatenate([voxels for part in parts for voxels in part]), [len(ranks) for ranks in wanted]


def _chosen(total: int, content: str, number: int) -> npt.NDArray[np.int64]:
    """Which of a class's ``total`` voxels are kept, in order."""
    if total <= POSITIONS_A_CLASS:
        return np.arange(total)
    return np.sort(random_stream(content, "foreground", number).choice(total, POSITIONS_A_CLASS, replace=False))


def _totals(labels: npt.NDArray[np.uint8], classes: int) -> npt.NDArray[np.int64]:
    slabs = (labels[start : start + _SLAB].ravel() for start in range(0, len(labels), _SLAB))
    return np.sum([np.bincount(slab, minlength=classes + 1)[1:] for slab in slabs], axis=0)


def _annotated(facts: CaseFacts, classes: Sequence[LabelClass]) -> tuple[int, ...] | None:
    if facts.annotated is None:
        return None
    return tuple(number for number, one in enumerate(classes, 1) if one.label in facts.annotated)


def _write_case(folder: Path, arrays: dict[str, npt.NDArray[Any]], content: dict[str, Any]) -> None:
    temporary = folder.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}")
    with disk_errors(folder):
        try:
            temporary.mkdir()
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array, allow_pickle=False)
                flush_to_disk(temporary / f"{name}.npy")
            files = {f"{name}.npy": _file_facts(temporary / f"{name}.npy") for name in arrays}
            text = json_text({**content, "files": files}).encode("utf-8", "backslashreplace")
            (temporary / "case.json").write_bytes(text)
            flush_to_disk(temporary / "case.json")
            _put_in_place(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _file_facts(file: Path) -> dict[str, Any]:
    status = file.stat()
    return {"bytes": status.st_size, "changed": status.st_mtime_ns, "sha256": content_hash([file])}


def _is_whole(file: Path, facts: dict[str, Any]) -> bool:
    """Whether a file is the one that was written; its content is looked at only where its date is another."""
    status = file.stat()
    if status.st_size != facts["bytes"]:
        return False
    if status.st_mtime_ns == facts["changed"]:
        return True
    if content_hash([file]) != facts["sha256"]:
        return False
    # A copy of the store: with the old date it need not be read again. It may not be ours to change.
    with suppress(OSError):
        os.utime(file, ns=(status.st_atime_ns, facts["changed"]))
    return True


def _put_in_place(temporary: Path, folder: Path) -> None:
    try:
        os.replace(temporary, folder)
    except OSError:
        # A folder cannot be replaced: it may be whole, from another run that shares the store, or damaged.
        if open_case(folder) is not None:
            return
        if not folder.exists():
            raise
        shutil.rmtree(folder)
        os.replace(temporary, folder)


def _folder(store: Path, facts: CaseFacts, plan: Plan, classes: Sequence[LabelClass]) -> Path:
    labels = [c.label for c in classes] if facts.case.label is not None else []
    made_of = json.dumps([STORE_FORMAT, facts.case.name, facts.content, plan.preparation, labels])
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", facts.case.name)[:60].strip("._")
    return store / f"{readable or 'case'}-{digest}"


def _check_room(missing: Sequence[CaseFacts], plan: Plan, store: Path, events: EventLog) -> None:
    needed, free = disk_need(missing, plan), shutil.disk_usage(store).free
    if needed > free:
        raise DiskError(
            f"{store}: {needed / 1e6:.0f} MB are needed for prepared scans, {free / 1e6:.0f} MB are free",
            cure="Free some space, or choose another folder with --store.",
        )
    if missing:
        events.message(f"{len(missing)} scans to prepare, at most {needed / 1e6:.0f} MB in {store}")


def _remove_leftovers(store: Path) -> None:
    """Folders of a process that was killed while it wrote; younger ones may be another run's that writes now."""
    for leftover in store.glob(f"{TEMPORARY}*"):
        # The other run may have renamed its folder since it was listed.
        with suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime > _SECONDS_TO_WRITE:
                shutil.rmtree(leftover, ignore_errors=True)
