"""A plain folder of scans without labels; label maps, told by their names, are passed over."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from HybridMIMLib.data.layouts.cases import Case
from HybridMIMLib.data.layouts.source import Source, case_name, patients_by_folder
from HybridMIMLib.data.scans import scan_name
from HybridMIMLib.errors import DataError

_WORD = "(?:labels?|labelmap|seg|segm|segmentations?|masks?)"
_MARKED = re.compile(
    # label, label_liver, mask-2, or label0001, but not label alone within a word, as in "unlabelled".
    rf"{_WORD}[0-9]*(?:[_. -].*)?"
    # case_seg, case-label, case_label_auto117, case_mask_2
    rf"|.+[_. -]{_WORD}(?:[_. -]?(?:auto.*|[0-9]+|map))?",
    re.IGNORECASE,
)
_MARKED_FOLDER = re.compile(r"labels.*|label|seg|segs|segmentations?|masks?", re.IGNORECASE)


def read(source: Source) -> list[Case]:
    """Every scan as a case.

    Raises:
        DataError: there are label maps only.
    """
    scans = without_labels(source, source.scans())
    if not scans:
        raise DataError(f"{source.folder}: holds label maps only", cure="Choose the folder with the images.")
    return cases_of(source.folder, scans)


def cases_of(folder: Path, scans: Sequence[Path]) -> list[Case]:
    """A case without label for each scan, named after the subfolders of ``folder``."""
    patients = patients_by_folder(folder, scans)
    return [Case(case_name(folder, path), (path,), None, patient) for path, patient in zip(scans, patients)]


def without_labels(source: Source, scans: Sequence[Path]) -> list[Path]:
    """Scans that are no label maps, going by their names; how many were passed over is noted.

    Slicer's ``.seg.nrrd`` and folders ``labels…`` hold nothing to learn from, wherever they are. Other names only
    say so beside scans that are called otherwise: a folder in which everything is a ``mask`` is kept.
    """
    kept = [path for path in scans if not _is_known_label(path.relative_to(source.folder))]
    kept = _outside_marked_folders(source.folder, kept)
    left = [path for group in _by_folder(kept).values() for path in _unmarked(group)]
    if len(left) < len(scans) and left:
        count = len(scans) - len(left)
        source.notes.append(f"{source.folder}: {count} file(s) were passed over as label maps, going by their names")
    wanted = set(left)
    return [path for path in scans if path in wanted]


def _is_known_label(path: Path) -> bool:
    """A segmentation of Slicer, or a file in a folder labels…: it is no image to learn from."""
    folders = (part.lower() for part in path.parts[:-1])
    return path.name.lower().endswith(".seg.nrrd") or any(part.startswith("labels") for part in folders)


def _outside_marked_folders(root: Path, scans: list[Path]) -> list[Path]:
    folders = [path.relative_to(root).parts[:-1] for path in scans]
    marked = [any(map(_MARKED_FOLDER.fullmatch, parts)) for parts in folders]
    return [path for path, passed in zip(scans, marked) if not passed] or scans


def _by_folder(scans: Sequence[Path]) -> dict[Path, list[Path]]:
    groups: dict[Path, list[Path]] = defaultdict(list)
    for path in scans:
        groups[path.parent].append(path)
    return groups


def _unmarked(scans: list[Path]) -> list[Path]:
    """Of the scans of one folder those not called label maps; all, where that leaves none."""
    return [path for path in scans if not _MARKED.fullmatch(scan_name(path))] or scans
