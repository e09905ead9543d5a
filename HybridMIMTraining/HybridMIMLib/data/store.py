"""The prepared store: every scan resampled once, 16-bit, memory-mapped, so that a crop reads only its own rows.

One folder a case, named after the case and the hash of its name, its files and how it was prepared:

``image.npy`` (C, D, H, W) int16; ``label.npy`` (D, H, W) uint8 class numbers from 1; ``foreground.npy`` (N, 3) int32
positions sorted by class; ``case.json`` the rest. A folder is made under a temporary name and renamed when it is
whole, so a case that is there is a case that can be trusted.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.resampling import resample_image, resample_labels, resampled_grid
from HybridMIMLib.data.survey import CaseFacts, canonical_grid, read_case
from HybridMIMLib.errors import DiskError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import TEMPORARY, disk_errors, flush_to_disk, json_text, make_folder, read_json
from HybridMIMLib.randomness import random_stream

STORE_FORMAT = 1
POSITIONS_A_CLASS = 20000
_INT16 = np.iinfo(np.int16)
_SECONDS_TO_WRITE = 600


@dataclass(frozen=True)
class PreparedCase:
    """One case in the store; arrays are mapped when they are used, not for longer: each map holds a file open.

    Attributes:
        folder: where it lies.
        name: of the case.
        low, high: per channel, the stored values that become 0 and 1 for the network.
        counts: foreground positions of each class, in the order of the classes.
    """

    folder: Path
    name: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def image(self) -> npt.NDArray[np.int16]:
        """(C, D, H, W), memory-mapped."""
        return np.load(self.folder / "image.npy", mmap_mode="r", allow_pickle=False)

    @property
    def label(self) -> npt.NDArray[np.uint8]:
        """(D, H, W) class numbers, memory-mapped."""
        return np.load(self.folder / "label.npy", mmap_mode="r", allow_pickle=False)

    @property
    def foreground(self) -> npt.NDArray[np.int32]:
        """(N, 3) voxels of classes, sorted by class."""
        return np.load(self.folder / "foreground.npy", mmap_mode="r", allow_pickle=False)


def prepare_store(
    found: Sequence[CaseFacts], plan: Plan, classes: Sequence[LabelClass], store: Path, events: EventLog
) -> list[PreparedCase]:
    """Prepare the cases that the store does not hold yet.

    Raises:
        DiskError: the disk is full; what was prepared so far stays and is used again.
    """
    make_folder(store)
    _remove_leftovers(store)
    there = {facts.case.name: open_case(_folder(store, facts, plan, classes)) for facts in found}
    _check_room([facts for facts in found if there[facts.case.name] is None], plan, store)
    phase = events.phase("prepare scans", len(found))
    prepared = []
    for done, facts in enumerate(found, 1):
        case = there[facts.case.name]
        prepared.append(case or _prepare_case(facts, plan, classes, _folder(store, facts, plan, classes)))
        phase.progress(done)
    return prepared


def open_case(folder: Path) -> PreparedCase | None:
    """A case that :func:`prepare_store` made, or None where there is none or it is damaged."""
    try:
        content = read_json(folder / "case.json")
        low, high, counts = (tuple(content[key]) for key in ("low", "high", "counts"))
        case = PreparedCase(folder, str(content["name"]), low, high, counts)
        fits = case.image.shape[1:] == tuple(content["shape"])
        if counts:
            fits = fits and case.label.shape == tuple(content["shape"]) and len(case.foreground) == sum(counts)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return case if fits else None


def bring_to_plan(array: npt.NDArray[Any], grid: Grid, plan: Plan) -> tuple[npt.NDArray[np.float32], Grid]:
    """A scan (C, D, H, W) along R, A, S at the plan's spacing; intensities as they were."""
    turned, turned_grid = canonical_grid(array, grid)
    target = resampled_grid(turned_grid, plan.spacing)
    return resample_image(turned.astype(np.float32), target.shape), target


def intensity_range(array: npt.NDArray[np.float32], plan: Plan) -> list[tuple[float, float]]:
    """For each channel of (C, D, H, W), the intensities that become 0 and 1 for the network."""
    if plan.normalisation == "window":
        return [plan.window] * len(array)
    return [_useful_range(channel) for channel in array]


def _useful_range(channel: npt.NDArray[np.float32]) -> tuple[float, float]:
    low, high = (float(value) for value in np.percentile(channel, (0.5, 99.5)))
    if low == high:  # nearly all is background
        low, high = float(channel.min()), float(channel.max())
    return (low, high) if low < high else (low, low + max(abs(low), 1.0))


def _prepare_case(facts: CaseFacts, plan: Plan, classes: Sequence[LabelClass], folder: Path) -> PreparedCase:
    scan, label = read_case(facts.case)
    image, grid = bring_to_plan(scan.array, scan.grid, plan)
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
        values = np.rint((channel - offset) / scale)
        stored[index] = np.clip(values, _INT16.min, _INT16.max).astype(np.int16)
        scales.append((scale, offset))
    return stored, scales


def _class_numbers(labels: npt.NDArray[Any], classes: Sequence[LabelClass]) -> npt.NDArray[np.uint8]:
    table = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.uint8)
    for number, one in enumerate(classes, 1):
        if one.label < len(table):
            table[one.label] = number
    return table[labels]


def _foreground(labels: npt.NDArray[np.uint8], classes: int, content: str) -> tuple[npt.NDArray[np.int32], list[int]]:
    parts = []
    for number in range(1, classes + 1):
        places = np.argwhere(labels == number).astype(np.int32)
        if len(places) > POSITIONS_A_CLASS:
            random = random_stream(content, "foreground", number)
            places = places[np.sort(random.choice(len(places), POSITIONS_A_CLASS, replace=False))]
        parts.append(places)
    return np.concatenate(parts), [len(part) for part in parts]


def _write_case(folder: Path, arrays: dict[str, npt.NDArray[Any]], content: dict[str, Any]) -> None:
    temporary = folder.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}")
    with disk_errors(folder):
        try:
            temporary.mkdir()
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array, allow_pickle=False)
            text = json_text(content).encode("utf-8", "backslashreplace")
            (temporary / "case.json").write_bytes(text)
            for file in temporary.iterdir():
                flush_to_disk(file)
            _put_in_place(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


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


def _check_room(missing: Sequence[CaseFacts], plan: Plan, store: Path) -> None:
    voxels = sum(float(np.prod(np.multiply(f.shape, f.spacing) / plan.spacing)) for f in missing)
    needed = voxels * (2 * plan.channels + 1)
    free = shutil.disk_usage(store).free
    if needed > free:
        raise DiskError(
            f"{store}: {needed / 1e6:.0f} MB are needed for prepared scans, {free / 1e6:.0f} MB are free",
            cure="Free some space, or choose another folder with --store.",
        )


def _remove_leftovers(store: Path) -> None:
    """Folders of a process that was killed while it wrote; younger ones may be another run's that writes now."""
    for leftover in store.glob(f"{TEMPORARY}*"):
        # The other run may have renamed its folder since it was listed.
        with suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime > _SECONDS_TO_WRITE:
                shutil.rmtree(leftover, ignore_errors=True)
