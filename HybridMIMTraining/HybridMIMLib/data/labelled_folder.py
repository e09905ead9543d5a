"""A labelled folder that grows: ``images/`` and ``labels/`` with ``classes.json``, and which scans are in it.

What is known of its scans is kept beside them in :data:`INDEX`, so that looking for a scan among hundreds means
reading those that were changed, and no others. A scan is known by its voxels, whatever its file is called, and by the
file that it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.finding import files_of
from HybridMIMLib.data.grid import to_canonical
from HybridMIMLib.data.layouts import Case, Dataset, open_dataset
from HybridMIMLib.data.layouts.names import DESCRIPTIONS
from HybridMIMLib.data.layouts.source import Source
from HybridMIMLib.data.measuring import voxel_hash
from HybridMIMLib.data.scans import Scan
from HybridMIMLib.data.survey import examine
from HybridMIMLib.data.walking import walk
from HybridMIMLib.errors import DataError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import read_json, write_json

INDEX = ".cases.json"
_LAYOUT = "images-labels"


@dataclass(frozen=True)
class KnownScan:
    """What is known of a scan of the folder.

    Attributes:
        stamp: size and time of its files; others mean that it was changed.
        voxels: as :func:`~HybridMIMLib.data.measuring.voxel_hash` has it; empty of a scan that cannot be used.
        channels: of it; 0 of a scan that cannot be used.
        source: the file that it came from, where that is known.
    """

    stamp: str
    voxels: str
    channels: int
    source: str = ""


class LabelledFolder:
    """A folder to which labelled scans are added; it may not be there yet.

    Args:
        path: of it.

    Attributes:
        cases: by name; none of a folder that is new.
        classes: as the folder names them; empty where it names none.
        partial: whether a class that is missing from a label map was not annotated there.
        images, labels: folders in which scans and label maps lie, or are going to.

    Raises:
        DataError: it is in another layout, lists cases that are not whole, or names its classes in a way that cannot
            be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cases: dict[str, Case] = {}
        self.is_new = not path.exists() or _holds_nothing(path)
        source = Source(path)
        self.classes, self.partial = source.naming.classes, source.partial
        part = source.images_folder or "images"
        self.images, self.labels = source.place(part), source.place(part.replace("images", "labels"))
        if not self.is_new:
            dataset = _opened(path)
            self.cases = {case.name: case for case in dataset.cases}

    def known(self, events: EventLog) -> dict[str, KnownScan]:
        """What is known of each scan, by the name of its case; scans that are new or changed are read.

        Args:
            events: where progress goes.
        """
        kept = _read_index(self.path / INDEX)
        stamps = {name: _stamp(case) for name, case in self.cases.items()}
        found = {name: kept[name] for name in self.cases if name in kept and kept[name].stamp == stamps[name]}
        unknown = [Case(name, case.images, None) for name, case in self.cases.items() if name not in found]
        if unknown:
            for verdict in examine(unknown, events):
                name, facts = verdict.case.name, verdict.facts
                voxels, channels = (facts.voxels, facts.channels) if facts else ("", 0)
                found[name] = KnownScan(stamps[name], voxels, channels, kept[name].source if name in kept else "")
            self.keep(found)
        return found

    def keep(self, known: Mapping[str, KnownScan]) -> None:
        """Write down what is known.

        Raises:
            DiskError: it could not be written.
        """
        write_json(self.path / INDEX, {name: one.__dict__ for name, one in sorted(known.items())})

    def stamped(self, name: str, voxels: str, channels: int, source: str) -> KnownScan:
        """What is known of a case that was just added."""
        return KnownScan(_stamp(self.cases[name]), voxels, channels, source)


def hash_of(scan: Scan) -> str:
    """The same for one scan in any format."""
    turned, _, _ = to_canonical(scan.array, scan.grid)
    return voxel_hash(turned)


def names_of(classes: tuple[LabelClass, ...]) -> str:
    """For messages."""
    return ", ".join(f"{one.name} ({one.label})" for one in classes)


def _opened(path: Path) -> Dataset:
    dataset = open_dataset(path, labelled=True)
    if dataset.layout != _LAYOUT:
        raise DataError(
            f"{path}: is a data set of another kind ({dataset.layout}), whose lists and names are not ours to change",
            cure="Choose a folder with images/ and labels/, or a new one.",
        )
    return dataset


def _holds_nothing(path: Path) -> bool:
    return not any(set(names) - DESCRIPTIONS for _, names in walk(path))


def _stamp(case: Case) -> str:
    files = [file for image in case.images for file in files_of(image)]
    stats = [file.stat() for file in files]
    return f"{files[0].name} {sum(one.st_size for one in stats)} {max(one.st_mtime_ns for one in stats)}"


def _read_index(file: Path) -> dict[str, KnownScan]:
    """What was kept; a file that is damaged, or of somebody else, holds nothing."""
    try:
        return {str(name): _entry(one) for name, one in read_json(file).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _entry(content: Any) -> KnownScan:
    return KnownScan(
        str(content["stamp"]), str(content["voxels"]), int(content["channels"]), str(content.get("source", ""))
    )
