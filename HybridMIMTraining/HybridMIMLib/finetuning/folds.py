"""Cross-validation: a network for each fold, trained on all others, and one model of all of them.

=======================  =============================================================================================
``folds.json``           which cases are held out in which fold, and those that are trained on in every fold
``folds/1`` …            the fine-tuning for each fold: checkpoint, split, model package
``cross-validation/``    ``labels/``: a label map a case, by the network that did not see it; ``metrics.csv``,
                         ``summary.json``, ``report.html``: what they are worth, as ``evaluate`` has it
``model/``               all networks as one: the mean of their scores
=======================  =============================================================================================

The checkpoint of each network is chosen by the cases of its fold, on which it is measured afterwards, so that these
figures are a little too good, more so where folds are small. They are of single networks; what all of them together
are worth only cases can tell that none has seen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from HybridMIMLib import __version__
from HybridMIMLib.config import Run
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.layouts import Dataset
from HybridMIMLib.data.layouts.cases import some
from HybridMIMLib.data.plan import fingerprint
from HybridMIMLib.data.prepare import Prepared
from HybridMIMLib.data.splits import draw_folds
from HybridMIMLib.data.survey import CaseFacts
from HybridMIMLib.evaluation.dice import mean_dice
from HybridMIMLib.evaluation.measuring import Row
from HybridMIMLib.evaluation.run import judge
from HybridMIMLib.events import EventLog
from HybridMIMLib.finetuning.cases import Chosen, Fold, choose_cases, owner_of
from HybridMIMLib.finetuning.targets import Target
from HybridMIMLib.inference.predictor import make_predictor
from HybridMIMLib.inference.run import label_path, segment_cases
from HybridMIMLib.model_package import ModelPackage, ensemble_of, load_model
from HybridMIMLib.networks.device import choose_device
from HybridMIMLib.runs import keep_inputs, versions
from HybridMIMLib.settings.evaluation import EvaluationSettings
from HybridMIMLib.stage_folders import StageFolders

FOLDS, CROSS_VALIDATION = "folds", "cross-validation"


def run_folds(
    run: Run, folder: Path, events: EventLog, dataset: Dataset, prepared: Prepared, target: Target
) -> dict[str, Any]:
    """Train for all folds, measure each network on its fold, and write one model; or train for one fold alone.

    Args:
        run: the settings, with ``finetuning.folds``.
        folder: of the run, or of its stage.
        events: where progress goes.
        dataset: the cases.
        prepared: all of them.
        target: what is learnt.

    Returns:
        As :func:`~HybridMIMLib.finetuning.run.finetune`; ``validation`` is the Dice by class of the cross-validation,
        ``folds`` has the same for each fold with the names of its cases, ``csv``, ``json`` and ``report`` are files.

    Raises:
        HybridMIMError: there are fewer patients than folds, or as a fine-tuning for one fold.
    """
    chosen = choose(run, dataset, prepared.facts, prepared.classes, target, events)
    _keep_folds(folder, chosen, prepared.facts)
    work = _Folds(run, folder, events, dataset, [Fold(prepared, one) for one in chosen], target.measured)
    if run.finetuning.fold:
        return work.train(run.finetuning.fold, folder)
    return work.all()


class _Folds:
    """The folds of one run."""

    def __init__(
        self,
        run: Run,
        folder: Path,
        events: EventLog,
        dataset: Dataset,
        folds: Sequence[Fold],
        counted: Collection[str],
    ) -> None:
        # What one fold has prepared serves the others.
        self.run = replace(run, store=run.store or str(folder / "store"))
        self.folder, self.events, self.dataset, self.folds = folder, events, dataset, folds
        self.counted = counted

    def all(self) -> dict[str, Any]:
        """Train for every fold that is not done yet, then put together what they made."""
        stages = StageFolders(self.folder / FOLDS, self.events)
        open_ = [n for n in range(1, len(self.folds) + 1) if not stages.is_done(f"{n}")]
        self.events.plan([("finetune", self.run.finetuning.steps)] * len(open_))
        try:
            results = [stages.do(f"{n}", partial(self._fold, n)) for n in range(1, len(self.folds) + 1)]
        finally:
            # One that failed before it made anything must not be in the way of other settings.
            with suppress(OSError):
                (self.folder / FOLDS).rmdir()
        return self._together(results)

    def train(self, number: int, path: Path) -> dict[str, Any]:
        """Fine-tune for one fold, counted from 1, in a folder."""
        # Imported late: it imports this module, for those who ask for folds.
        from HybridMIMLib.finetuning.run import run_finetuning

        fold = self.folds[number - 1]
        self.events.message(
            f"fold {number} of {len(self.folds)}: {len(fold.chosen.training)} labelled scan(s) to train on, "
            f"{len(fold.chosen.validation)} held out"
        )
        return run_finetuning(self.run, path, self.events, self.dataset, fold)

    def _fold(self, number: int, path: Path) -> dict[str, Any]:
        """Fine-tune, and segment the cases that were held out as users will."""
        result = self.train(number, path)
        fold = self.folds[number - 1]
        held_out = [one.case for one in fold.prepared.facts if one.case.name in set(fold.chosen.validation)]
        settings = replace(self.run.inference, uncertainty=False)
        predictor = make_predictor(load_model(path / "model"), settings, self.run.device, self.events.message)
        for _ in segment_cases(held_out, predictor, self.folder / CROSS_VALIDATION, self.events):
            pass
        return result

    def _together(self, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Measure all cases, and write the model of all networks."""
        self._warn_of_missing()
        measured, rows = self._measured()
        beside = {row.name for row in rows} - set(self.counted)
        dice = mean_dice(list(_by_case(rows).values()), beside)
        by_fold = [
            {
                "validation": _dice_of(rows, fold.chosen.validation, beside),
                "held_out": fold.chosen.validation,
                **{name: result[name] for name in ("step", "steps", "seconds", "ended_early")},
            }
            for fold, result in zip(self.folds, results)
        ]
        made = {
            "steps": sum(one["steps"] for one in results),
            "seconds": round(sum(one["seconds"] for one in results), 1),
            "ended_early": any(one["ended_early"] for one in results),
        }
        members = [load_model(self.folder / FOLDS / f"{n}" / "model") for n in range(1, len(results) + 1)]
        loaded = str(results[0]["loaded"])
        about = {**self._provenance(loaded, members), "validation_dice": dice, **made}
        ensemble_of(members, members[0].name, about).save(self.folder / "model")
        return {
            "model": str(self.folder / "model"),
            "validation": dice,
            "step": None,
            **made,
            "trained_on": self._trained_on(),
            "loaded": loaded,
            "folds": by_fold,
            **{name: measured[name] for name in ("csv", "json", "report")},
        }

    def _warn_of_missing(self) -> None:
        """A label map that somebody removed, or that could not be made, is in no figure; that must not go unsaid."""
        place = self.folder / CROSS_VALIDATION / "labels"
        held_out = {name for fold in self.folds for name in fold.chosen.validation}
        cases = [facts.case for facts in self.folds[0].prepared.facts if facts.case.name in held_out]
        there = {path.name for path in place.glob("*")}
        names = {one.name: {label_path(place, one, t).name for t in (False, True)} for one in cases}
        if gone := [name for name, files in names.items() if there.isdisjoint(files)]:
            self.events.warning(
                f"{some(gone)}: not in the figures of the cross-validation, because there is no label map in "
                f"{place}. To have it made again, remove the result.json of its fold, in "
                f"{self.folder / FOLDS}, and that of the run."
            )

    def _trained_on(self) -> list[str]:
        """The cases that any of the networks has seen."""
        seen = {name for fold in self.folds for name in fold.chosen.training}
        return [facts.case.name for facts in self.folds[0].prepared.facts if facts.case.name in seen]

    def _measured(self) -> tuple[dict[str, Any], Sequence[Row]]:
        """Figures of the label maps of all folds, and a row a case and class."""
        place = self.folder / CROSS_VALIDATION
        asked = replace(
            self.run,
            predictions=str(place / "labels"),
            references=str(self.dataset.root),
            compare=None,
            scans=None,
            # Of a part of a folder the others have no prediction. A name that is wrong must not end the work here.
            evaluation=EvaluationSettings(missing_predictions="leave_out"),
        )
        return judge(asked, place, _Once(self.events))

    def _provenance(self, loaded: str, members: Sequence[ModelPackage]) -> dict[str, Any]:
        facts = self.folds[0].prepared.facts
        kept = ("labelled_scans", "validation_scans", "validation_dice", "step", "data")
        return {
            "trained": datetime.now().astimezone().isoformat(timespec="seconds"),
            "pretrained": loaded,
            "labelled_scans": len(self._trained_on()),
            "folds": len(self.folds),
            "settings": asdict(self.run.finetuning),
            "seed": self.run.seed,
            "device": choose_device(self.run.device).type,
            "versions": {"HybridMIM": __version__, **versions()},
            "fingerprint": fingerprint(facts).to_json(),
            "members": [{name: one.provenance.get(name) for name in kept} for one in members],
        }


def choose(
    run: Run,
    dataset: Dataset,
    found: Sequence[CaseFacts],
    classes: Sequence[LabelClass],
    target: Target,
    events: EventLog,
) -> list[Chosen]:
    """Who is trained on and who is held out: in each fold, or once where there are none.

    Args:
        run: the settings.
        dataset: the cases, those included that cannot be used.
        found: what was found in those that can.
        classes: of the label maps.
        target: what is learnt.
        events: where to tell.

    Raises:
        DataError: there are too few cases or patients, or a split does not fit them.
        LabelError: something was annotated in none of those to train on, if only for one fold.
    """
    chosen = (
        _choose_folds(run, dataset, found, classes, _Once(events))
        if run.finetuning.folds
        else [choose_cases(run, dataset, found, classes, events)]
    )
    for one in chosen:
        target.check_annotated(run, [facts for facts in found if facts.case.name in set(one.training)])
    return chosen


def _choose_folds(
    run: Run, dataset: Dataset, found: Sequence[CaseFacts], classes: Sequence[LabelClass], events: EventLog
) -> list[Chosen]:
    """Who is trained on and who is held out in each fold.

    Nobody is held out who alone has a class, or was alone looked at for it, as long as there are enough others: the
    network of that fold would learn nothing of it, and the model of all would find less of it.
    """
    count = run.finetuning.folds
    always = _alone_with_a_class(found)
    if len({owner_of(facts) for facts in found} - always) < count:
        always = set()
    free = [facts for facts in found if owner_of(facts) not in always]
    if len(free) < len(found):
        names = [facts.case.name for facts in found if owner_of(facts) in always]
        events.message(
            f"trained on in every fold, and not in the cross-validation, because alone with a class: {some(names)}"
        )
    labels = {facts.case.name: _held_by(facts) for facts in free}
    folds = draw_folds({facts.case.name: facts.patient for facts in free}, labels, count, run.seed)
    everybody = [facts.case.name for facts in found]
    splits = [([name for name in everybody if name not in set(fold)], fold) for fold in folds]
    return [choose_cases(run, dataset, found, classes, events, split) for split in splits]


def _alone_with_a_class(found: Sequence[CaseFacts]) -> set[str]:
    """The patients without whom a class, or whoever looked for it, is in no label map."""
    holders: dict[int, set[str]] = {}
    for facts in found:
        for label in _held_by(facts):
            holders.setdefault(label, set()).add(owner_of(facts))
    # Whoever was looked at for everything was looked at for each class.
    looked_at_all = {owner_of(facts) for facts in found if facts.annotated is None}
    return {
        next(iter(owners))
        for label, owners in holders.items()
        if len(owners if label > 0 else owners | looked_at_all) == 1
    }


def _held_by(facts: CaseFacts) -> set[int]:
    """The labels of a case, and, below 0, those that somebody looked for where not all were looked for."""
    return {*facts.labels, *(-label for label in facts.annotated or ())}


def _keep_folds(folder: Path, chosen: Sequence[Chosen], found: Sequence[CaseFacts]) -> None:
    """Write down who is in which fold; a run that goes on must go on with the same folds."""
    contents = {facts.case.name: facts.content for facts in found}
    held_out = {name for one in chosen for name in one.validation}
    folds = {f"fold {n}": {name: contents[name] for name in one.validation} for n, one in enumerate(chosen, 1)}
    always = {name: content for name, content in contents.items() if name not in held_out}
    keep_inputs(folder / "folds.json", {**folds, "trained on in every fold": always})


def _by_case(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    cases: dict[str, dict[str, float]] = {}
    for row in rows:
        cases.setdefault(row.case, {})[row.name] = row.dice
    return cases


def _dice_of(rows: Sequence[Row], names: Sequence[str], beside: Collection[str]) -> dict[str, float]:
    """Mean Dice of the cases of a fold; nothing where none of them could be segmented.

    ``beside`` names what does not count for the mean.
    """
    own = [dice for name, dice in _by_case(rows).items() if name in set(names)]
    return mean_dice(own, beside) if own else {}


class _Once(EventLog):
    """Hands on to another log what was not said before: every fold has the same to say of classes."""

    def __init__(self, log: EventLog) -> None:
        super().__init__(log.path)
        self.warnings, self._log = log.warnings, log
        self._said = set(log.warnings)

    def write(self, kind: str, **content: Any) -> None:
        """See :meth:`EventLog.write`."""
        self._log.write(kind, **content)

    def message(self, text: str) -> None:
        """See :meth:`EventLog.message`."""
        if text not in self._said:
            self._said.add(text)
            super().message(text)

    def warning(self, text: str) -> None:
        """See :meth:`EventLog.warning`."""
        if text not in self._said:
            self._said.add(text)
            super().warning(text)
