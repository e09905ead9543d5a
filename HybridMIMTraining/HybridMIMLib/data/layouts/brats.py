"""BraTS, tumours of the brain in four MR images a case (arXiv:1811.02629; with the later names arXiv:2405.18368).

Up to BraTS 2021 a case has ``CASE_t1``, ``_t1ce``, ``_t2``, ``_flair`` and the labels ``_seg``; afterwards
``CASE-t1n``, ``-t1c``, ``-t2w``, ``-t2f`` and ``-seg``. The channels are T1, T1 with contrast agent, T2, FLAIR.
"""

from __future__ import annotations

import re
from pathlib import Path

from HybridMIMLib.data.classes import Naming, make_naming
from HybridMIMLib.data.layouts.cases import Case
from HybridMIMLib.data.layouts.source import Source
from HybridMIMLib.data.scans import scan_name
from HybridMIMLib.errors import DataError

_EARLIER = ("t1", "t1ce", "t2", "flair")
_LATER = ("t1n", "t1c", "t2w", "t2f")
_LABELS = "seg"
_FILE = re.compile(rf"(.+)[_-]({'|'.join((*_EARLIER, *_LATER, _LABELS))})", re.IGNORECASE)
_TIME_POINT = re.compile(r"(BraTS-[A-Z]+-[0-9]+)-[0-9]+", re.IGNORECASE)

_PARTS = {1: "necrotic and non-enhancing tumor core", 2: "edema"}
_BY_4 = make_naming({**_PARTS, 4: "enhancing tumor"}, {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)})
_REGIONS = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
_BY_3 = make_naming({**_PARTS, 3: "enhancing tumor"}, _REGIONS)
_TREATED = make_naming({**_PARTS, 3: "enhancing tumor", 4: "resection cavity"}, {**_REGIONS, "RC": (4,)})

Files = dict[str, Path]
"""The files of a case by what they are, in small letters."""


def lacks(source: Source) -> str:
    """What keeps a folder from being in this layout; nothing if it is."""
    groups, _ = _groups(source)
    if any(_channels(files) for files in groups.values()):
        return ""
    return "no case has the four images _t1, _t1ce, _t2 and _flair (or -t1n, -t1c, -t2w and -t2f)"


def customary(source: Source) -> tuple[Naming, ...]:
    """What labels mean: 1, 2, 4 up to 2021, and 1, 2, 3 later; there, 4 is the cavity after treatment.

    The regions are whole tumour, tumour core, enhancing tumour and resection cavity.
    """
    groups, _ = _groups(source)
    later = any(kind in _LATER for files in groups.values() for kind in files)
    return (_BY_3, _TREATED) if later else (_BY_4, _BY_3)


def read(source: Source, labelled: bool) -> list[Case]:
    """The cases.

    Raises:
        DataError: a case lacks an image or its labels, or a scan belongs to no case.
    """
    groups, others = _groups(source)
    if others:
        raise DataError(
            f"{others[0]}: {len(others)} scan(s) such as this are called unlike BraTS calls its images and labels",
            cure="Rename it, as to CASE_seg if it is the label map of a case, or move it away.",
        )
    return [_case(case, files, labelled) for case, files in groups.items()]


def _groups(source: Source) -> tuple[dict[Path, Files], list[Path]]:
    """The files of each case, which is named by folder and common beginning, and the scans that belong to none."""
    groups: dict[Path, Files] = {}
    others = []
    for path in source.scans():
        match = _FILE.fullmatch(scan_name(path))
        files = groups.setdefault(path.parent / match[1], {}) if match else {}
        if match is None or match[2].lower() in files:
            others.append(path)
        else:
            files[match[2].lower()] = path
    return groups, others


def _channels(files: Files) -> tuple[Path, ...]:
    """The four images, or nothing where one is missing."""
    for kinds in (_EARLIER, _LATER):
        if all(kind in files for kind in kinds):
            return tuple(files[kind] for kind in kinds)
    return ()


def _case(case: Path, files: Files, labelled: bool) -> Case:
    images = _channels(files)
    if not images:
        kinds = _LATER if any(kind in _LATER for kind in files) else _EARLIER
        missing = [kind for kind in kinds if kind not in files]
        raise DataError(f"{case}: its image {missing[0]} is missing", cure="Restore it, or remove the case.")
    if labelled and _LABELS not in files:
        raise DataError(
            f"{case}: its label map seg is missing", cure="Restore it, or move the case out of the labelled folder."
        )
    patient = _TIME_POINT.fullmatch(case.name)
    label = files[_LABELS] if labelled else None
    return Case(case.name, images, label, patient[1] if patient else case.name)
