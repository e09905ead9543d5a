"""The main job from end to end: pre-train, fine-tune, segment unseen scans, show the result in a MRML scene.

On the user's folders, or, when none are named, on synthetic scans (:mod:`HybridMIMLib.data.phantom`) so that it runs
offline. The MRML part runs in a process of its own, as it does beside Slicer: no process loads both torch and MRML.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from HybridMIMLib.config import DEMO_DEFAULTS, Run, make_run
from HybridMIMLib.data.classes import LabelClass, Region
from HybridMIMLib.data.layouts import Case, Dataset, dataset_of, named_for_labels, open_dataset
from HybridMIMLib.data.phantom import write_phantoms
from HybridMIMLib.data.splits import draw_cases
from HybridMIMLib.data.survey import content_hash
from HybridMIMLib.errors import DataError, RunError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import write_json
from HybridMIMLib.randomness import random_stream
from HybridMIMLib.runs import carry_out, keep_inputs
from HybridMIMLib.settings.plan import PlanSettings
from HybridMIMLib.stages import Stages

SYNTHETIC = {"unlabelled": 16, "labelled": 12, "unseen": 4}
SYNTHETIC_CROP = [48, 32, 32]
SYNTHETIC_WINDOW = [-300.0, 400.0]
"""HU; soft tissue and bone, as one would set it for these organs."""
SYNTHETIC_NAME = "Synthetic phantoms"

_SHOWN = ("segmentation", "scene", "picture")


@dataclass(frozen=True)
class Shares:
    """Which cases serve what; no scan of ``unseen`` is in the others."""

    unlabelled: Dataset
    labelled: Dataset
    unseen: Dataset
    synthetic: bool


def demo(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """Pre-train, fine-tune, segment unseen scans and show one; a demo that was stopped is continued.

    Without ``unlabelled`` and ``labelled`` folders it works on synthetic scans.

    Returns:
        ``dice`` (by class, and ``mean``), ``cases`` (Dice of each), ``seconds`` (by stage), ``files``, ``warnings``.

    Raises:
        HybridMIMError: settings, scans or disk do not allow it; the message names the cure.
    """
    run = make_run(run, settings) if run else make_run(make_run(None, DEMO_DEFAULTS), settings)
    if bool(run.unlabelled) != bool(run.labelled):
        missing = "labelled" if run.unlabelled else "unlabelled"
        run.folder(missing, "the demo needs both folders, or none for synthetic scans")
    return carry_out("demo", run, lambda folder, events: _Demo(run, folder, events).run())


class _Demo:
    """The stages of one demo: those of a training, and what follows it."""

    def __init__(self, run: Run, folder: Path, events: EventLog) -> None:
        self.folder, self.events, self.run_settings = folder, events, run
        self.stages = Stages(folder, events)

    def run(self) -> dict[str, Any]:
        shares = self._shares()
        self._keep_split(shares)
        run = for_phantoms(self.run_settings) if shares.synthetic else self.run_settings
        learnt = self.stages.learn(run, shares.unlabelled, shares.labelled)
        model = Path(learnt["model"])
        segmented = self.stages.do("segmentation", lambda path: self._segment(model, shares.unseen, path))
        shown = self._scene(segmented, shares)
        return {
            "synthetic": shares.synthetic,
            "scans": {name: len(getattr(shares, name).cases) for name in ("unlabelled", "labelled", "unseen")},
            "dice": segmented["dice"],
            "cases": segmented["cases"],
            "accuracies": learnt["accuracies"],
            "loaded": learnt["loaded"],
            "seconds": self.stages.seconds,
            "files": {"model": str(model), "labels": str(self.folder / "segmentation" / "labels"), **shown},
        }

    def _shares(self) -> Shares:
        run = self.run_settings
        if run.unlabelled is None or run.labelled is None:
            made = write_phantoms(self.folder / "scans", run.seed, **SYNTHETIC)
            return Shares(
                open_dataset(made.unlabelled, labelled=False),
                open_dataset(made.labelled, labelled=True),
                open_dataset(made.unseen, labelled=True),
                synthetic=True,
            )
        return share_out(
            dataset_of(run, "unlabelled"),
            dataset_of(run, "labelled"),
            run,
        )

    def _keep_split(self, shares: Shares) -> None:
        kinds = ("unlabelled", "labelled", "unseen")
        split = {kind: {c.name: content_hash(c.images) for c in getattr(shares, kind).cases} for kind in kinds}
        keep_inputs(self.folder / "split.json", split)

    def _segment(self, model: Path, unseen: Dataset, path: Path) -> dict[str, Any]:
        from HybridMIMLib.evaluation.dice import dice_by_class, dice_by_region, mean_dice
        from HybridMIMLib.inference.predictor import make_predictor
        from HybridMIMLib.inference.run import segment_cases
        from HybridMIMLib.model_package import load_model

        package, run = load_model(model), self.run_settings
        predictor = make_predictor(package, run.inference, run.device, self.events.message)
        named = named_for_labels(unseen, {one.label for one in package.classes})
        regions = _regions_of(unseen, package.classes)
        # A model of regions calls its outputs after them; in its label maps stand the labels of the data set.
        classes = [one for one in named.classes if package.overlapping] or package.classes
        found = {one.name for one in package.classes}
        names = [one.name for one in (*classes, *regions) if one.name not in found]
        rows, files = {}, {}
        for one in segment_cases(unseen.cases, predictor, path, self.events):
            assert one.reference is not None
            annotated = unseen.annotated_in(one.case, np.unique(one.reference))
            by_class = dice_by_class(one.labels, one.reference, classes, annotated)
            rows[one.case.name] = {**by_class, **dice_by_region(one.labels, one.reference, regions, annotated)}
            files[one.case.name] = str(one.path.relative_to(self.folder))
        if not rows:
            raise DataError(f"{unseen.root}: none of the unseen scans can be used", cure="See the reasons above.")
        return {
            "dice": mean_dice(list(rows.values()), names),
            "cases": {name: mean_dice([row], names) for name, row in rows.items()},
            "labels": files,
            "classes": [one.to_json() for one in package.classes],
        }

    def _scene(self, segmented: dict[str, Any], shares: Shares) -> dict[str, str]:
        """Scene and picture. A machine that cannot draw has still trained and segmented: that is not thrown away."""
        try:
            shown = self.stages.do("scene", lambda path: self._show(segmented, shares, path))
        except RunError as error:
            self.events.warning(f"skipped: {error}")
            return {}
        return {kind: str(self.folder / shown[kind]) for kind in _SHOWN}

    def _show(self, segmented: dict[str, Any], shares: Shares, path: Path) -> dict[str, Any]:
        name = typical_case({name: {"mean": row["mean"]} for name, row in segmented["cases"].items()})
        case = next(case for case in shares.unseen.cases if case.name == name)
        job: dict[str, Any] = {
            "scan": str(case.images[0]),
            "labels": str(self.folder / segmented["labels"][name]),
            "reference": str(case.label),
            "classes": segmented["classes"],
            "name": name,
            "segmentation": str(path / f"{name}.seg.nrrd"),
            "scene": str(path / f"{name}.mrb"),
            "picture": str(path / f"{name}.png"),
        }
        phase = self.events.phase("show", 1)
        write_json(path / "job.json", job)
        child = subprocess.run(
            [sys.executable, "-m", "HybridMIMLib.slicer_side.show", str(path / "job.json")],
            capture_output=True,
            check=False,
        )
        if child.returncode != 0:
            said = child.stderr.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
            why = said[-1].removeprefix("error: ")
            raise RunError(f"the scene of {name} could not be made: {why}", cure="See README, Troubleshooting.")
        phase.progress(1)
        return {kind: str(Path(job[kind]).relative_to(self.folder)) for kind in _SHOWN}


def for_phantoms(run: Run) -> Run:
    """What suits the phantoms, where the user did not say otherwise."""
    plan = PlanSettings(crop=SYNTHETIC_CROP, window=SYNTHETIC_WINDOW)
    return replace(run, plan=plan if run.plan == PlanSettings() else run.plan, name=run.name or SYNTHETIC_NAME)


def share_out(unlabelled: Dataset, labelled: Dataset, run: Run) -> Shares:
    """Keep unseen cases out of everything else, then take as many of the rest as the settings say.

    Cases are told apart by the bytes of their scans, so that a copy of a test scan under another name, in either
    folder, is left out as well; the same scan saved in another format is not recognised. Where the data set says
    whose the scans are, nobody who is in the test is in the rest. Scans to fine-tune on are taken for pre-training
    only where the others do not suffice.

    Raises:
        DataError: there are fewer scans than asked for.
    """
    wanted, seed = run.split, run.seed
    # Both may be one folder: each file is read once.
    files = {case.images for dataset in (labelled, unlabelled) for case in dataset.cases}
    hashes = {images: content_hash(images) for images in files}
    by_name = {case.name: case for case in labelled.cases}
    count = wanted.unseen if wanted.unseen > 0 else max(len(by_name) // 4, 1)
    patients = {case.name: case.patient for case in labelled.cases}
    others, drawn = draw_cases(patients, count, random_stream(seed, "unseen"))
    unseen = [by_name[name] for name in drawn]
    kept_out = {hashes[case.images] for case in unseen}
    known = {case.patient for case in unseen} - {""}

    def may_be_seen(case: Case) -> bool:
        return hashes[case.images] not in kept_out and case.patient not in known

    rest = [by_name[name] for name in others if may_be_seen(by_name[name])]
    to_label = _take(rest, wanted.labelled, labelled.root, "labelled", at_least=2)
    fine_tuned = {hashes[case.images] for case in to_label}
    mixed = [unlabelled.cases[i] for i in random_stream(seed, "unlabelled").permutation(len(unlabelled.cases))]
    free = [case for case in mixed if may_be_seen(case)]
    free.sort(key=lambda case: hashes[case.images] in fine_tuned)
    to_pretrain = _take(free, wanted.unlabelled, unlabelled.root, "unlabelled", at_least=2)
    return Shares(_part(unlabelled, to_pretrain), _part(labelled, to_label), _part(labelled, unseen), synthetic=False)


def typical_case(rows: Mapping[str, Mapping[str, float | None]]) -> str:
    """The case whose mean Dice is the median: a picture of the best would flatter."""

    def score(name: str) -> float:
        known = [value for value in rows[name].values() if value is not None and value == value]
        return sum(known) / len(known) if known else 0.0

    ordered = sorted(rows, key=score)
    return ordered[len(ordered) // 2]


def _regions_of(dataset: Dataset, classes: Sequence[LabelClass]) -> list[Region]:
    """The regions that can be measured with the classes of a model."""
    known = {one.label for one in classes}
    return [region for region in named_for_labels(dataset, known).regions if region.labels <= known]


def _take(cases: list[Case], count: int, root: Path, kind: str, at_least: int) -> list[Case]:
    needed = max(count, at_least)
    if len(cases) < needed:
        raise DataError(
            f"{root}: {len(cases)} {kind} scan(s) are left after the test scans were put aside, {needed} are needed",
            cure=f"Add scans, or lower split.{kind} or split.unseen.",
        )
    return cases if count < 0 else cases[:count]


def _part(dataset: Dataset, cases: list[Case]) -> Dataset:
    names = {case.name for case in cases}
    return replace(dataset, cases=tuple(case for case in dataset.cases if case.name in names))
