"""``prepare --check``: every scan of the folders with its verdict, and what a preparation would make of them.

Nothing is written. A label map that would end a preparation gets a verdict here like everything else, so that all
mistakes of a folder are seen at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from HybridMIMLib.config import Run
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.finding import files_of
from HybridMIMLib.data.layouts import Dataset, dataset_of, named_for_labels, open_dataset
from HybridMIMLib.data.layouts.names import DESCRIPTIONS
from HybridMIMLib.data.splits import FEWEST_CASES, draw_split
from HybridMIMLib.data.survey import (
    CaseFacts,
    Status,
    Verdict,
    classes_of,
    examine,
    odd_channels,
    unknown_label,
)
from HybridMIMLib.data.volume import times
from HybridMIMLib.data.walking import folder_stamp, walk
from HybridMIMLib.errors import DataError, LabelError, SettingsError
from HybridMIMLib.events import EventLog

__all__ = ["CheckedFolder", "Verdict", "check", "check_folder", "check_for_window", "examine_dataset"]

FOLDERS = ("unlabelled", "labelled")
_SHOWN = 3


@dataclass(frozen=True)
class CheckedFolder:
    """A folder of scans, looked through.

    Attributes:
        dataset: what was found without reading a scan.
        verdicts: one a case, in the order of the cases.
        classes: what the label maps hold; empty without labels, and where that is wrong.
        problems: what would end a preparation though single scans may be good.
        others: how many files belong to none of the cases.
        is_labelled: whether its label maps are wanted.
    """

    dataset: Dataset
    verdicts: list[Verdict]
    classes: tuple[LabelClass, ...]
    problems: tuple[str, ...]
    others: int
    is_labelled: bool

    @property
    def usable(self) -> list[CaseFacts]:
        """Facts of the cases that would be used."""
        return [one.facts for one in self.verdicts if one.facts is not None and one.status != "skipped"]

    def count(self, status: Status) -> int:
        """How many cases have this verdict."""
        return sum(one.status == status for one in self.verdicts)


def check(run: Run, events: EventLog) -> dict[str, Any]:
    """Look through the run's folders; nothing is written.

    Returns:
        ``folders``: a description of each, with its rows; ``duplicates``: pairs (labelled, unlabelled) of cases with
        the same scan; ``usable`` and ``skipped``: how many scans; ``problems``: how many things would end a
        preparation; ``plan`` (as JSON, None without a usable scan) and ``bytes``: what a preparation would do, and
        the room that it would take at most.

    Raises:
        SettingsError: no folder was named.
        DataError: a folder is not there, holds no scan, or its layout is broken.
    """
    names = [name for name in FOLDERS if getattr(run, name)]
    if not names:
        raise SettingsError("there is nothing to check", cure="Add --unlabelled DIR, --labelled DIR, or both.")
    checked = {name: examine_dataset(dataset_of(run, name), name == "labelled", events) for name in names}
    plan, room = _plan(run, [folder.usable for folder in checked.values()], events)
    return {
        "plan": plan,
        "bytes": room,
        "folders": {name: _describe(folder) for name, folder in checked.items()},
        "duplicates": _in_both(checked),
        "usable": sum(len(folder.usable) for folder in checked.values()),
        "skipped": sum(folder.count("skipped") for folder in checked.values()),
        "problems": sum(len(folder.problems) for folder in checked.values()),
    }


def check_for_window(places: Mapping[str, Path], events: EventLog) -> dict[str, Any]:
    """Look through folders for somebody who wants to see all of it; nothing is written, and no plan is made.

    Args:
        places: folders, by ``"unlabelled"`` and ``"labelled"``.
        events: where progress goes.

    Returns:
        ``folders``: a description of each, with its rows and ``stamp`` (see
        :func:`~HybridMIMLib.data.walking.folder_stamp`); of one that cannot be used, ``path`` and ``error`` alone.
        ``duplicates``: as :func:`check` has them.
    """
    found: dict[str, dict[str, Any]] = {}
    checked: dict[str, CheckedFolder] = {}
    for name, place in places.items():
        try:
            # First: what is changed while scans are read makes another stamp.
            stamp = folder_stamp(place)
            checked[name] = examine_dataset(open_dataset(place, name == "labelled"), name == "labelled", events)
            found[name] = {**_describe(checked[name]), "stamp": stamp}
        except DataError as error:
            found[name] = {"path": str(place), "error": str(error)}
    return {"folders": found, "duplicates": _in_both(checked)}


def check_folder(
    folder: Path, labelled: bool, events: EventLog | None = None, missing_labels: str = "absent"
) -> list[Verdict]:
    """A verdict on every case of a folder, or of a list.

    Raises:
        DataError: it is not there, holds no scan, or its layout is broken.
    """
    return examine_dataset(open_dataset(folder, labelled, missing_labels), labelled, events or EventLog()).verdicts


def examine_dataset(dataset: Dataset, labelled: bool, events: EventLog) -> CheckedFolder:
    """Look through the cases of a folder, or of a list of scans.

    Args:
        dataset: the cases, unread.
        labelled: whether its label maps are wanted.
        events: where progress goes.
    """
    verdicts = list(examine(dataset.cases, events, dataset.partial))
    if labelled:
        met = set().union(*(one.facts.labels for one in verdicts if one.facts), ())
        dataset = named_for_labels(dataset, met)
        verdicts = [_with_labels(one, dataset.classes) for one in verdicts]
    found = [one.facts for one in verdicts if one.facts is not None and one.status != "skipped"]
    classes, problems = _classes(found, dataset) if labelled else ((), [])
    wrong = [one.error for one in verdicts if isinstance(one.error, LabelError)]
    if wrong:
        # A training does not go on without them: that would hide a mistake.
        problems.append(f"{len(wrong)} label map(s) are wrong, the first: {wrong[0]}")
    if odd := odd_channels(found):
        problems.append(str(odd))
    return CheckedFolder(dataset, verdicts, classes, tuple(problems), _others(dataset), labelled)


def _plan(run: Run, usable: Sequence[list[CaseFacts]], events: EventLog) -> tuple[dict[str, Any] | None, int]:
    """What a preparation would do: the first folder decides, as it does there."""
    # Imported late: the store needs torch, which takes seconds, and a wrong folder should be told before them.
    from HybridMIMLib.data.plan import make_plan
    from HybridMIMLib.data.store import disk_need

    found = [facts for facts in usable if facts]
    if not found:
        return None, 0
    plan = make_plan(found[0], run.plan, run.network, events)
    return plan.to_json(), sum(disk_need(facts, plan) for facts in found)


def shared_scans(unlabelled: Iterable[CaseFacts], labelled: Iterable[CaseFacts]) -> list[tuple[str, str]]:
    """Names of the labelled and the unlabelled case of every scan that is in both; formats may differ."""
    known = {facts.voxels: facts.case.name for facts in unlabelled}
    return [(facts.case.name, known[facts.voxels]) for facts in labelled if facts.voxels in known]


def _in_both(checked: Mapping[str, CheckedFolder]) -> list[tuple[str, str]]:
    if len(checked) < len(FOLDERS):
        return []
    return shared_scans(*(checked[name].usable for name in FOLDERS))


def _with_labels(verdict: Verdict, classes: Sequence[LabelClass]) -> Verdict:
    """The same verdict, with what a label map alone does not show."""
    if verdict.facts is None or verdict.status == "skipped":
        return verdict
    if error := unknown_label(verdict.facts, classes):
        return replace(verdict, status="skipped", reasons=(str(error),), error=error)
    if not verdict.facts.labels:
        return replace(verdict, status="warning", reasons=(*verdict.reasons, "its label map is empty"))
    return verdict


def _classes(found: Sequence[CaseFacts], dataset: Dataset) -> tuple[tuple[LabelClass, ...], list[str]]:
    if not found:
        return (), []
    try:
        return classes_of(found, dataset.classes), []
    except LabelError as error:
        return (), [str(error)]


def _others(dataset: Dataset) -> int:
    """Files that belong to none of the cases and do not say what the labels mean; of a list, none."""
    if not dataset.root.is_dir():
        return 0
    known = {dataset.root / name for name in DESCRIPTIONS}
    for case in dataset.cases:
        for path in (*case.images, *([case.label] if case.label else [])):
            known.update(files_of(path))
    return sum(folder / name not in known for folder, names in walk(dataset.root) for name in names)


def _would_end_training(usable: Sequence[CaseFacts], classes: Sequence[LabelClass]) -> list[str]:
    """What would end a fine-tuning, as it is set up by default, though scans and labels can be prepared."""
    if len(usable) < FEWEST_CASES:
        return [
            f"{len(usable)} labelled scan(s) can be used, at least {FEWEST_CASES} are needed: one to learn from, and "
            "one to validate on"
        ]
    found = []
    try:
        draw_split({facts.case.name: facts.patient for facts in usable}, 1, 0)
    except DataError as error:
        found.append(str(error))
    if all(facts.annotated is not None for facts in usable):
        known = set().union(*(facts.annotated or () for facts in usable))
        found += [f"class {one.name} is annotated in none of the scans" for one in classes if one.label not in known]
    return found


def _weak_points(usable: Sequence[CaseFacts], classes: Sequence[LabelClass]) -> list[str]:
    """What ends nothing, but makes a model worse than it could be."""
    found, partly = [], []
    for one in classes:
        holders = [facts.case.name for facts in usable if one.label in facts.labels]
        if not holders:
            found.append(f"class {one.name} is in no label map, so nothing is learnt of it")
        elif len(holders) == 1:
            found.append(
                f"class {one.name} is in one label map alone, that of {holders[0]}: no other scan can tell how well "
                "it is found"
            )
        elif len(holders) < sum(facts.annotated is None or one.label in facts.annotated for facts in usable):
            partly.append(f"{one.name} in {len(holders)} of {len(usable)}")
    if partly:
        more = "; …" if len(partly) > _SHOWN else ""
        found.append(
            f"not every label map has every class ({'; '.join(partly[:_SHOWN])}{more}). Where one is missing it "
            "counts as absent; if nobody looked for it there, set missing_labels to unannotated"
        )
    kinds = Counter(facts.modality for facts in usable if facts.modality)
    if len(kinds) > 1:
        counts = " and ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        found.append(f"{counts} scans are mixed, and all are normalised in one way; better train on one kind")
    return found


def _range_of_spacings(usable: Sequence[CaseFacts]) -> list[list[float]]:
    """Smallest and largest spacing along R, A and S, in mm; nothing without a scan."""
    return [[min(axis), max(axis)] for axis in zip(*(facts.spacing for facts in usable))]


def _describe(folder: CheckedFolder) -> dict[str, Any]:
    usable = folder.usable
    present = Counter(label for facts in usable for label in facts.labels)
    return {
        "path": str(folder.dataset.root),
        "layout": folder.dataset.layout,
        "rows": [_row(one, folder.dataset.root) for one in folder.verdicts],
        "counts": {status: folder.count(status) for status in ("good", "warning", "skipped")},
        "others": folder.others,
        "modalities": dict(Counter(facts.modality or "unknown" for facts in usable)),
        "patients": len({facts.patient for facts in usable}),
        "spacings": _range_of_spacings(usable),
        "channels": usable[0].channels if usable else 0,
        "classes": [
            {
                **one.to_json(),
                "cases": present[one.label],
                "annotated": sum(facts.annotated is None or one.label in facts.annotated for facts in usable),
            }
            for one in folder.classes
        ],
        "notes": list(folder.dataset.notes),
        "problems": list(folder.problems),
        "training": _would_end_training(usable, folder.classes) if folder.is_labelled else [],
        "weak": _weak_points(usable, folder.classes),
        "cures": dict(Counter(one.error.cure for one in folder.verdicts if one.error is not None)),
    }


def _row(verdict: Verdict, root: Path) -> dict[str, Any]:
    facts = verdict.facts
    reasons = verdict.reasons if verdict.error is None else (_short(verdict, root),)
    return {
        "status": verdict.status,
        "name": verdict.case.name,
        "voxels": times(facts.shape) if facts else "",
        "mm": " x ".join(f"{size:.3g}" for size in facts.spacing) if facts else "",
        "channels": str(facts.channels) if facts else "",
        "modality": facts.modality if facts else "",
        "reason": "; ".join(reasons),
        "cure": verdict.error.cure if verdict.error is not None else "",
        "images": [str(path) for path in verdict.case.images],
        "label": str(verdict.case.label) if verdict.case.label is not None else "",
        "labels": sorted(facts.labels) if facts else [],
    }


def _short(verdict: Verdict, root: Path) -> str:
    """The reason without the path of the scan, which the row names, and with other paths from the folder on."""
    assert verdict.error is not None
    text = verdict.error.message
    for image in verdict.case.images[:1]:
        text = text.removeprefix(f"{image}: ")
    return text.replace(f"{root}/", "").replace(f"{root}\\", "")
