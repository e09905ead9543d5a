"""Training in stages, in one run folder and one process: pre-training without labels, then fine-tuning with them.

Each stage works in a subfolder (:mod:`HybridMIMLib.stage_folders`); all of them report to the ``events.jsonl`` of the
run. A stage that is finished is not done again when a stopped run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from HybridMIMLib.agreement import check_folders
from HybridMIMLib.config import Run, make_run
from HybridMIMLib.data.layouts import Dataset, dataset_of
from HybridMIMLib.runs import carry_out
from HybridMIMLib.stage_folders import StageFolders

PRETRAINING, FINETUNING = "pre-training", "fine-tuning"
_FOLDERS = ("unlabelled", "labelled")


def train(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """Pre-train on ``unlabelled`` scans, then fine-tune on ``labelled`` ones from what was learnt.

    Only ``labelled``: fine-tune from scratch, or from ``weights``. Only ``unlabelled``: pre-train. A scan may be in
    both folders. A run that was stopped is continued.

    Returns:
        ``model`` (path of the package, or None), ``weights`` (run folder of the pre-training it started from, or
        None), ``validation`` (Dice by class) with the ``step`` it was reached at, ``losses`` and ``accuracies`` of
        the pre-training, ``loaded`` (what came from the weights), ``seconds`` (by stage), ``warnings``. With
        ``finetuning.folds`` also ``folds``, ``csv``, ``json`` and ``report``, as ``finetune`` has them.

    Raises:
        HybridMIMError: settings, scans, weights or disk do not allow it; the message names the cure.
    """
    run = make_run(run, settings)
    check_folders(run)
    return carry_out("train", run, lambda folder, events: _train(run, Stages(folder, events)))


def _train(run: Run, stages: Stages) -> dict[str, Any]:
    # Both are opened before the first hours are spent: a wrong folder should be told now.
    unlabelled, labelled = (dataset_of(run, name) if getattr(run, name) else None for name in _FOLDERS)
    return {**stages.learn(run, unlabelled, labelled), "seconds": stages.seconds}


class Stages(StageFolders):
    """The stages of one training."""

    def learn(self, run: Run, unlabelled: Dataset | None, labelled: Dataset | None) -> dict[str, Any]:
        """Pre-train where there are unlabelled cases, fine-tune where there are labelled ones; see :func:`train`."""
        # Imported late: torch takes seconds, and a wrong folder should be told before them.
        from HybridMIMLib.finetuning.run import check_labelled, run_finetuning
        from HybridMIMLib.pretraining.run import run_pretraining

        run = replace(run, store=run.store or str(self.folder / "store"))
        if unlabelled and labelled and not self.is_done(PRETRAINING):
            self.events.message("the labelled scans are checked first, because a mistake in them should show now")
            check_labelled(run, labelled)
        if unlabelled and labelled:
            self._announce(run)
        weights = str(self.folder / PRETRAINING) if unlabelled else run.weights
        pretrained: dict[str, Any] = {}
        finetuned: dict[str, Any] = {}
        if unlabelled:
            first = replace(run, unlabelled=str(unlabelled.root))
            pretrained = self.do(PRETRAINING, lambda path: run_pretraining(first, path, self.events, unlabelled))
        if labelled:
            second = replace(run, labelled=str(labelled.root), weights=weights)
            finetuned = self.do(FINETUNING, lambda path: run_finetuning(second, path, self.events, labelled))
        return {
            # Not as the stages wrote them down: the run may have been moved since.
            "model": str(self.folder / FINETUNING / "model") if labelled else None,
            "weights": weights,
            "validation": finetuned.get("validation", {}),
            "step": finetuned.get("step"),
            "losses": pretrained.get("losses", {}),
            "accuracies": pretrained.get("accuracies", {}),
            "loaded": finetuned.get("loaded"),
            **self._cross_validated(finetuned),
        }

    def _announce(self, run: Run) -> None:
        """Tell what is to be trained, for who wants to know how long all of it will take."""
        folds = 1 if run.finetuning.fold else max(run.finetuning.folds, 1)
        first = [] if self.is_done(PRETRAINING) else [("pretrain", run.pretraining.steps)]
        self.events.plan([*first, *[("finetune", run.finetuning.steps)] * folds])

    def _cross_validated(self, finetuned: Mapping[str, Any]) -> dict[str, Any]:
        """What a fine-tuning in folds has to say besides."""
        if "folds" not in finetuned:
            return {}
        files = {name: Path(finetuned[name]).name for name in ("csv", "json", "report")}
        place = self.folder / FINETUNING / Path(finetuned["csv"]).parent.name
        return {"folds": finetuned["folds"], **{name: str(place / file) for name, file in files.items()}}
