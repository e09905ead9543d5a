"""Raw data of nnU-Net, version 2 (documentation/dataset_format.md of MIC-DKFZ/nnUNet).

``imagesTr/CASE_0000.nii.gz`` is the first channel of a case, ``labelsTr/CASE.nii.gz`` its label map. A
``dataset.json`` names channels and labels, and may list the files of each case as ``dataset``. Without it, too, the
number at the end of a file counts as channel where every file has one and the label maps are called without it, or,
without label maps, where there are several cases: ``scan_0000``, ``scan_0001`` alone are two scans.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from HybridMIMLib.data.layouts.cases import Case, some
from HybridMIMLib.data.layouts.pairs import with_labels
from HybridMIMLib.data.layouts.rows import CaseList
from HybridMIMLib.data.layouts.source import Source, patients_by_folder
from HybridMIMLib.errors import DataError

_NAME = re.compile(r"(.+)_([0-9]{4})")


def lacks(source: Source) -> str:
    """What keeps a folder from being in this layout; nothing if it is."""
    if isinstance(source.description.get("dataset"), dict):
        return ""
    if source.images_folder != "imagesTr":
        return "there is no imagesTr/"
    if "channel_names" in source.description or _all_have_channels(source):
        return ""
    return "its dataset.json names no channels, and not every file in imagesTr/ ends with a channel as in _0000"


def read(source: Source, labelled: bool) -> list[Case]:
    """The cases; without labels, those in ``imagesTs`` too.

    Raises:
        DataError: a channel is missing, or a file without channel is among the images.
    """
    if "dataset" in source.description:
        return _listed(source, labelled)
    if labelled:
        return with_labels(source, _cases(source, "imagesTr"))
    return [case for part in ("imagesTr", "imagesTs") if source.has(part) for case in _without_labels(source, part)]


def _without_labels(source: Source, part: str) -> list[Case]:
    found = _cases(source, part)
    patients = patients_by_folder(source.place(part), [files[0] for _, files in found])
    return [Case(name, files, None, patient) for (name, files), patient in zip(found, patients)]


def _listed(source: Source, labelled: bool) -> list[Case]:
    cases = CaseList(source.folder / "dataset.json", source.naming.classes, labelled)
    rows = [(name, row if isinstance(row, dict) else {}) for name, row in source.description["dataset"].items()]
    return [cases.case({"name": name, "image": row.get("images"), "label": row.get("label")}) for name, row in rows]


def _all_have_channels(source: Source) -> bool:
    names = [name for name, _ in _images(source, "imagesTr")]
    cases = {name[:-5] for name in names if name.endswith("_0000")}
    if not all(_NAME.fullmatch(name) and name[:-5] in cases for name in names):
        return False
    if not source.has("labelsTr") or not any(source.place("labelsTr").iterdir()):
        return len(cases) > 1
    labels = {name for name, _ in source.named("labelsTr")}
    return not cases.isdisjoint(labels) and labels.isdisjoint(names)


def _images(source: Source, part: str) -> list[tuple[str, Path]]:
    ending = source.description.get("file_ending")
    named = source.named(part)
    if isinstance(ending, str):
        named = [(name, path) for name, path in named if path.name.lower().endswith(ending.lower())]
    if not named:
        raise DataError(
            f"{source.place(part)}: no scan ends with {ending}, the file_ending in dataset.json",
            cure="Correct file_ending, or convert the scans.",
        )
    return named


def _cases(source: Source, part: str) -> list[tuple[str, tuple[Path, ...]]]:
    groups: dict[str, dict[int, Path]] = {}
    for name, path in _images(source, part):
        match = _NAME.fullmatch(name)
        if match is None:
            raise DataError(
                f"{path}: its name does not end with a channel", cure="Rename it as nnU-Net does: CASE_0000."
            )
        channels = groups.setdefault(match[1], {})
        if int(match[2]) in channels:
            raise DataError(
                f"{path}: is there as {channels[int(match[2])].name} too", cure="Rename or remove all but one."
            )
        channels[int(match[2])] = path
    wanted = source.description.get("channel_names")
    count = len(wanted) if isinstance(wanted, dict) else max(len(channels) for channels in groups.values())
    for name, channels in groups.items():
        _check_channels(source.place(part), name, channels, count)
    return [(name, tuple(channels[key] for key in sorted(channels))) for name, channels in groups.items()]


def _check_channels(folder: Path, name: str, channels: Iterable[int], count: int) -> None:
    missing = [f"{name}_{channel:04d}" for channel in range(count) if channel not in set(channels)]
    if missing:
        raise DataError(f"{folder}: there is no {some(missing)}", cure="Restore the file, or remove the case.")
    beyond = [f"{name}_{channel:04d}" for channel in channels if channel >= count]
    if beyond:
        raise DataError(
            f"{folder}: dataset.json names {count} channel(s), and there is {some(beyond)}",
            cure="Name every channel in channel_names, or remove the file.",
        )
