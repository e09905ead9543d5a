"""A scan with its corrected segmentation becomes a case of a labelled folder: whole, checked, and never over another.

The checks are those of a preparation (:mod:`~HybridMIMLib.data.survey`), made on the very files that go into the
folder, and these are read back and compared with what was to be kept. Files are NRRD: it keeps an oblique or sheared
grid to the last digit, where NIfTI rounds to single precision. A case that is replaced is kept in :data:`REPLACED`.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from HybridMIMLib.data.changing import Move, move_all, staging_folder, take_back
from HybridMIMLib.data.classes import LabelClass, default_color
from HybridMIMLib.data.finding import files_of, scan_name
from HybridMIMLib.data.grid import Array, Grid
from HybridMIMLib.data.labelled_folder import KnownScan, LabelledFolder, hash_of, names_of
from HybridMIMLib.data.layouts import Case
from HybridMIMLib.data.layouts.cases import read_object
from HybridMIMLib.data.layouts.names import PARTIAL, naming_from
from HybridMIMLib.data.package_files import wrong_with_name
from HybridMIMLib.data.scans import Scan, read_label_map, read_scan, write_image, write_label_map
from HybridMIMLib.data.survey import CaseFacts, examine, unknown_label
from HybridMIMLib.errors import DataError, DiskError, LabelError, ScanError, SettingsError
from HybridMIMLib.events import EventLog

REPLACED = ".replaced"
"""Where cases are kept that were replaced, each in a folder of its own; training does not look there."""

State = Literal["added", "replaced", "unchanged", "exists", "strange"]

_SAME = 1e-6
"""Voxels by which a grid that was read back may be off."""


@dataclass(frozen=True)
class NewSegment:
    """A segment of the segmentation.

    Attributes:
        value: of its voxels in the label map that is handed in.
        name: as the user sees it.
        meaning: what its terminology says that it is, or empty.
        label: of its class in the model that made it, or 0: taken where the folder has no classes yet.
    """

    value: int
    name: str
    meaning: str = ""
    label: int = 0


@dataclass(frozen=True)
class NewCase:
    """What is to be added.

    Attributes:
        name: of the case.
        scan: its file, in any format that is read.
        labels: label map on the grid of the scan, with the values of the segments.
        segments: all that the label map holds.
        source: the file that the scan was loaded from, or empty.
    """

    name: str
    scan: Path
    labels: Path
    segments: tuple[NewSegment, ...]
    source: str = ""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> NewCase:
        """The case that a JSON object describes.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        segments = tuple(NewSegment(**one) for one in content["segments"])
        paths = {key: Path(content[key]) for key in ("scan", "labels")}
        return cls(name=str(content["name"]), segments=segments, source=str(content.get("source", "")), **paths)


@dataclass(frozen=True)
class Added:
    """What has become of a case.

    Attributes:
        state: added; replaced; unchanged: it was there just so; exists: the folder has other labels of this scan, and
            nothing was done because nobody asked to replace them; strange: segments are no classes of the folder,
            and nothing was done because nobody asked for new classes.
        name: of the case in the folder.
        image, label: its files, or those that it would have.
        kept: where the case is kept that was replaced, or None.
        notes: what the user should know of it.
        strangers: names of the segments that are no classes; where the state is strange, there are some.
        classes: names of those that the folder has, then.
    """

    state: State
    name: str
    image: Path
    label: Path
    kept: Path | None = None
    notes: tuple[str, ...] = field(default=())
    strangers: tuple[str, ...] = field(default=())
    classes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """A dictionary that JSON can hold."""
        paths = {key: str(getattr(self, key)) for key in ("image", "label")}
        kept = str(self.kept) if self.kept is not None else None
        lists = {key: list(getattr(self, key)) for key in ("notes", "strangers", "classes")}
        return {"state": self.state, "name": self.name, "kept": kept, **lists, **paths}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Added:
        """What :meth:`to_json` made."""
        kept = Path(content["kept"]) if content["kept"] is not None else None
        notes, strangers, classes = (tuple(content[key]) for key in ("notes", "strangers", "classes"))
        image, label = (Path(content[key]) for key in ("image", "label"))
        return cls(content["state"], content["name"], image, label, kept, notes, strangers, classes)


def add_case(
    path: Path, new: NewCase, replace: bool = False, new_classes: bool | None = False, events: EventLog | None = None
) -> Added:
    """Add a case to a labelled folder, which is made if it is not there.

    Args:
        path: the folder.
        new: the case.
        replace: if the folder has this scan with other labels, put these in their place; the old ones are kept.
        new_classes: let segments that the folder has no class for become new classes of it; None: say which they are
            and do nothing, for a window that asks its user.
        events: where progress goes.

    Raises:
        SettingsError: segments and classes do not match, or the name cannot be used.
        DataError: the folder, scan or label map cannot be used; another scan of the folder has the name.
        DiskError: a file could not be written. Whatever is raised, the folder is as it was.
    """
    events = events or EventLog()
    _check_name(new.name)
    if path.exists() and not path.is_dir():
        raise DataError(f"{path}: is a file", cure="Choose a folder, which may be new.")
    if path.is_dir():
        take_back(path)
    folder = LabelledFolder(path)
    if folder.cases and not folder.classes:
        raise DataError(
            f"{path}: has labelled scans, but does not say what the labels mean",
            cure='Write a file classes.json there, such as {"1": "Liver", "2": "Spleen"}.',
        )
    is_begun = bool(folder.classes) or not folder.is_new
    if new_classes is None and is_begun and (strangers := strangers_among(new.segments, folder.classes, path)):
        names = tuple(one.name for one in strangers)
        image, label = (place / f"{new.name}.nrrd" for place in (folder.images, folder.labels))
        known_names = tuple(one.name for one in folder.classes)
        return Added("strange", new.name, image, label, strangers=names, classes=known_names)
    labels = match(new.segments, folder.classes, path, bool(new_classes) or not is_begun)
    classes = (*folder.classes, *_new_classes(new.segments, labels, folder.classes))
    scan = read_scan(new.scan)
    array = _renumbered(new, labels, scan.grid)
    known = folder.known(events) if folder.cases else {}
    voxels = hash_of(scan)
    _check_channels(path, new, scan, known)
    there = _same_scan(path, new, voxels, known)
    notes = _notes(array, classes, folder)
    if there:
        case = folder.cases[there]
        assert case.label is not None
        if _is_same(case, scan, array):
            return Added("unchanged", there, case.images[0], case.label, None, tuple(notes))
        if not replace:
            return Added("exists", there, case.images[0], case.label, None, tuple(notes))
    change = _Change(folder, new, there, scan, array, classes)
    added = change.make(tuple(notes), events)
    folder = LabelledFolder(path)
    known[added.name] = folder.stamped(added.name, voxels, len(scan.array), new.source)
    folder.keep(known)
    return added


def match(
    segments: Sequence[NewSegment], classes: Sequence[LabelClass], place: Path, new_classes: bool
) -> dict[int, int]:
    """Which label each segment gets, by its value.

    A segment belongs to the class of its name, whatever capitals and blanks are in it; one whose name is no class, to
    the class that its terminology names. A new class keeps the label that it had in the model, if that is free.

    Args:
        segments: to be labelled.
        classes: of the folder.
        place: the folder, for messages.
        new_classes: whether others become new classes.

    Raises:
        SettingsError: one is no class; two are the same class; name and terminology name two different classes.
    """
    fitting = _fitting(segments, classes)
    found = {one.value: fits.label for one, fits in fitting if fits is not None}
    strangers = [one for one, fits in fitting if fits is None]
    if strangers and not new_classes:
        known = names_of(tuple(classes)) or "none"
        raise SettingsError(
            f"the segment(s) {', '.join(one.name for one in strangers)} are no classes of {place}, which are {known}",
            cure="Rename them after a class, leave them out, or have them added as new classes.",
        )
    taken = {one.label for one in classes}
    # Those that keep their label first, so that no other takes it.
    for one in sorted(strangers, key=lambda one: one.label == 0 or one.label in taken):
        label = one.label if one.label > 0 and one.label not in taken else max(taken, default=0) + 1
        taken.add(label)
        found[one.value] = label
    _check_clashes(segments, found, classes)
    return found


def strangers_among(segments: Sequence[NewSegment], classes: Sequence[LabelClass], place: Path) -> list[NewSegment]:
    """The segments that are no class, where nothing but that is in the way of labelling them.

    Args and errors are those of :func:`match`.
    """
    match(segments, classes, place, new_classes=True)
    return [one for one, fits in _fitting(segments, classes) if fits is None]


def _fitting(
    segments: Sequence[NewSegment], classes: Sequence[LabelClass]
) -> list[tuple[NewSegment, LabelClass | None]]:
    """Each segment with the class that it belongs to, or None."""
    by_name = {plain(one.name): one for one in classes}
    found = []
    for one in segments:
        named, meant = by_name.get(plain(one.name)), by_name.get(plain(one.meaning))
        if named is not None and meant is not None and named is not meant:
            raise SettingsError(
                f"the segment {one.name} is called like the class {named.name}, and its terminology says "
                f"{meant.name}",
                cure="Correct its name or its terminology (double-click its colour in Segment Editor).",
            )
        found.append((one, named or meant))
    return found


def plain(name: str) -> str:
    """A name as it is compared with others."""
    return " ".join(unicodedata.normalize("NFKC", name).split()).casefold()


class _Change:
    """The files of a case, on their way into the folder."""

    def __init__(
        self,
        folder: LabelledFolder,
        new: NewCase,
        there: str,
        scan: Scan,
        labels: Array,
        classes: tuple[LabelClass, ...],
    ) -> None:
        self.folder, self.new, self.there = folder, new, there
        self.scan, self.labels, self.classes = scan, labels, classes
        self.old = folder.cases[there] if there else None
        self.kept: Path | None = None

    def make(self, notes: tuple[str, ...], events: EventLog) -> Added:
        """Write, check and move."""
        staging = staging_folder(self.folder.path)
        try:
            image, label = staging / "image.nrrd", staging / "label.nrrd"
            write_image(image, self.scan.array[0], self.scan.grid)
            write_label_map(label, self.labels, self.scan.grid)
            facts = self._check(image, label, events)
            warnings = facts.warnings if facts is not None else ()
            added, moves = self._moves(image, label, (*notes, *warnings))
            move_all(self.folder.path, [*moves, *self._class_moves(staging)])
        except BaseException:
            take_back(self.folder.path)
            raise
        return added

    def _check(self, image: Path, label: Path, events: EventLog) -> CaseFacts | None:
        """As a preparation would, and that the files hold what was to be written."""
        [verdict] = examine([Case(self.new.name, (image,), label)], events, self.folder.partial)
        if verdict.error is not None:
            raise verdict.error
        if verdict.facts is not None and (odd := unknown_label(verdict.facts, self.classes)):
            raise odd
        scan, labels = read_scan(image), read_label_map(label)
        same = np.array_equal(scan.array, self.scan.array) and np.array_equal(labels.array, self.labels)
        for grid in (scan.grid, labels.grid):
            same = same and self.scan.grid.same_as(grid, _SAME)
        if not same:
            raise DiskError(
                f"{self.folder.path}: what was read back is not what was written", cure="Check the disk, try again."
            )
        return verdict.facts

    def _moves(self, image: Path, label: Path, notes: tuple[str, ...]) -> tuple[Added, list[Move]]:
        if self.old is None:
            # Accents as the layouts have them, so that it is found under its name.
            name = unicodedata.normalize("NFC", self.new.name)
            targets = self.folder.images / f"{name}.nrrd", self.folder.labels / f"{name}.nrrd"
            return Added("added", name, *targets, None, notes), list(zip((image, label), targets))
        assert self.old.label is not None
        name, old_image, old_label = self.there, self.old.images[0], self.old.label
        self.kept = self._place_for_old(name)
        new_label = old_label.with_name(f"{scan_name(old_label)}.nrrd")
        moves: list[Move] = [(file, self.kept / "labels" / file.name) for file in files_of(old_label)]
        new_image = old_image
        if not read_scan(old_image).grid.same_as(self.scan.grid, _SAME):
            # The scan was moved, and its labels are right where it is now.
            new_image = self._image_beside(old_image)
            moves += [(file, self.kept / "images" / file.name) for file in files_of(old_image)]
            moves.append((image, new_image))
        moves.append((label, new_label))
        return Added("replaced", name, new_image, new_label, self.kept, notes), moves

    def _image_beside(self, old: Path) -> Path:
        """Where the new file of a scan has the same name of a case: a DICOM series is named after its folder."""
        target = old.with_name(f"{scan_name(old)}.nrrd")
        return target if len(files_of(old)) == 1 else self.folder.images / f"{self.there}.nrrd"

    def _place_for_old(self, name: str) -> Path:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        base = self.folder.path / REPLACED / f"{name}-{stamp}"
        places = (base if n == 0 else base.with_name(f"{base.name}-{n}") for n in range(1000))
        return next(place for place in places if not place.exists())

    def _class_moves(self, staging: Path) -> list[Move]:
        """classes.json with the new classes; what else stands in it stays."""
        target = self.folder.path / "classes.json"
        added = [one for one in self.classes if one not in self.folder.classes]
        if not added:
            return []
        content: dict[str, Any] = read_object(target) if target.is_file() else {}
        if not content:
            # Names from dataset.json would no longer be looked at.
            added = list(self.classes)
        content.update({str(one.label): one.name for one in added})
        # Names that the folder could not be read with afterwards are told before anything is changed.
        naming_from(target, {key: value for key, value in content.items() if key != PARTIAL})
        (staging / "classes.json").write_text(
            json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
        old = [(target, staging / "classes before.json")] if target.is_file() else []
        return [*old, (staging / "classes.json", target)]


def _check_name(name: str) -> None:
    reason = "empty" if not name.strip() else wrong_with_name(f"{name}.nrrd")
    is_hidden = name.startswith(".") or ".tmp." in name.lower()
    # A case goes by the name of its file without what counts as a suffix: not by one that ends in .seg.
    if reason or "/" in name or is_hidden or scan_name(Path(f"{name}.nrrd")) != name:
        raise SettingsError(
            f"a case cannot be called {name!r} ({reason or 'it names no file'})",
            cure="Give the scan another name, of letters, numbers and hyphens.",
        )


def _check_clashes(segments: Sequence[NewSegment], found: Mapping[int, int], classes: Sequence[LabelClass]) -> None:
    names = {one.label: one.name for one in classes}
    first: dict[object, NewSegment] = {}
    for one in segments:
        label = found[one.value]
        for key in (label, plain(one.name)):
            other = first.setdefault(key, one)
            if other is not one:
                what = f"the class {names[label]}" if label in names else "one class"
                raise SettingsError(
                    f"the segments {other.name} and {one.name} are both {what}",
                    cure="Rename one of them, join them (Segment Editor, Logical operators), or leave one out.",
                )


def _new_classes(
    segments: Sequence[NewSegment], labels: Mapping[int, int], known: Sequence[LabelClass]
) -> list[LabelClass]:
    """The classes that the folder has not had, in the order of their labels."""
    had = {one.label for one in known}
    names = {labels[one.value]: " ".join(one.name.split()) for one in segments}
    return [LabelClass(label, names[label], default_color(label)) for label in sorted(names) if label not in had]


def _renumbered(new: NewCase, labels: Mapping[int, int], grid: Grid) -> Array:
    """(D, H, W) the label map with the labels of the folder."""
    array = read_label_map(new.labels, grid, scan_path=new.scan).array
    strangers = sorted(set(np.unique(array).tolist()) - {0, *labels})
    if strangers:
        raise LabelError(f"{new.labels}: holds {strangers}, which are no segments", cure="Add the case again.")
    table = np.zeros(max([*labels, 0]) + 1, np.uint16)
    for value, label in labels.items():
        table[value] = label
    return table[array]


def _check_channels(path: Path, new: NewCase, scan: Scan, known: Mapping[str, KnownScan]) -> None:
    if len(scan.array) != 1:
        raise ScanError(f"{new.name}: has {len(scan.array)} channels", cure="Only scans of one channel can be added.")
    others = {one.channels for one in known.values() if one.channels}
    if others and others != {1}:
        raise DataError(
            f"{path}: its scans have {max(others)} channels, {new.name} has 1", cure="Choose another folder."
        )


def _same_scan(path: Path, new: NewCase, voxels: str, known: Mapping[str, KnownScan]) -> str:
    """The name of the case that has this scan already, or nothing.

    Raises:
        DataError: another scan has its name.
    """
    same = [name for name, one in known.items() if one.voxels == voxels]
    if same:
        return new.name if new.name in same else same[0]
    # Some systems do not tell capitals apart.
    others = [name for name in known if plain(name) == plain(new.name)]
    if others:
        raise DataError(
            f"{path}: has another scan of the name {others[0]}", cure="Give this scan a name of its own, then add it."
        )
    return ""


def _is_same(case: Case, scan: Scan, labels: Array) -> bool:
    """Whether scan and labels are those of a case."""
    try:
        assert case.label is not None
        old, old_labels = read_scan(case.images[0]), read_label_map(case.label)
    except DataError:
        return False
    return old.grid.same_as(scan.grid, _SAME) and np.array_equal(old_labels.array, labels)


def _notes(labels: Array, classes: Sequence[LabelClass], folder: LabelledFolder) -> list[str]:
    present = set(np.unique(labels).tolist())
    if not present - {0}:
        return ["its label map is empty"]
    absent = [one.name for one in classes if one.label not in present]
    if not absent:
        return []
    means = "they count as not annotated" if folder.partial else "they count as absent from this scan"
    return [f"no voxels of {', '.join(absent)}: {means}"]
