"""The study: scratch against pre-trained, on the user's own scans, by a protocol that is fixed before the first run.

======================  =============================================================================================
``protocol.json``       who is tested on, validates and is learnt from, all arms, seeds and steps (:mod:`.protocol`)
``estimate.json``       how long each kind of step took in a probe, and what follows from it (:mod:`.estimate`)
``pre-training/``       a run folder for each pre-training
``fine-tuning/``        one for each fine-tuning, with ``test.json``: what it reached on the test cases
``rates.json``          the learning rate of each arm, chosen on the validation before anything was tested
``jobs/``               what each job was told, and what it printed
``study.json``          all figures; ``cells.csv`` and ``cases.csv``: every cell, and every test case in each
``report.html``         the same to read: verdict, tables, curves; opens without a network
======================  =============================================================================================
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from HybridMIMLib.config import Run, make_run, to_dict, user_path
from HybridMIMLib.errors import RunError, SettingsError
from HybridMIMLib.events import EventLog, duration
from HybridMIMLib.files import make_folder, read_json, write_json
from HybridMIMLib.runs import RunFolder
from HybridMIMLib.studies.axes import (
    Amount,
    Arm,
    Finetuning,
    Pretraining,
    finetunings,
    in_words,
    pretrainings,
    rates_of,
    settings_of,
    trials,
)
from HybridMIMLib.studies.cell import TEST
from HybridMIMLib.studies.curves import best, trace
from HybridMIMLib.studies.estimate import Estimate, estimate
from HybridMIMLib.studies.jobs import Job, Progress, Runner
from HybridMIMLib.studies.presets import with_preset
from HybridMIMLib.studies.protocol import Protocol, draw_protocol, plan_settings
from HybridMIMLib.studies.rates import mean_scores
from HybridMIMLib.studies.results import Cell, write_results

PRETRAINING, FINETUNING = "pre-training", "fine-tuning"
_MADE_ANEW = ("study.json", "report.html")


def study(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """See whether pre-training on ``unlabelled`` scans helps to segment those like ``labelled`` ones.

    A study that was stopped goes on where it was; cells that failed are tried again.

    Args:
        run: all settings; or
        settings: some of them by name, e.g. ``study(unlabelled="scans", labelled="cases", study={"seeds": [0, 1]})``.

    Returns:
        ``verdicts`` (a sentence a labelled amount), ``arms`` (figures of each arm on each amount), ``pretrainings``
        (what each cost), ``failed`` (cells, with the reason), ``left_out`` (arms that cannot be), ``estimate``,
        ``seconds`` (estimated, with ``estimate_only``), ``json``, ``cells``, ``cases`` and ``report`` (files),
        ``warnings``.

    Raises:
        HybridMIMError: settings, scans or disk do not allow it, or no arm could be compared.
    """
    run = with_preset(make_run(run, settings))
    for name in ("unlabelled", "labelled"):
        run.folder(name, f"a study needs {name} scans")
    _check_settings(run)
    if run.output is not None:
        fixed = run.folder("output", "") / "protocol.json"
        if fixed.exists():
            Protocol.load(fixed).check_same(run, fixed)
    folder = RunFolder.open("study", run, may_differ=("study",))
    with folder.at_work() as events:
        folder.reopen()
        path = Path(os.path.abspath(folder.path))
        work = _Study(replace(run, output=str(path)), path, events)
        if run.study.estimate_only:
            return {**work.estimate_only(), "warnings": list(events.warnings)}
        return folder.finish(work.carry_out())


def _check_settings(run: Run) -> None:
    """Refuse what a study decides itself."""
    for name, value, default in (
        ("finetuning.split", run.finetuning.split, None),
        ("finetuning.validation_cases", run.finetuning.validation_cases, -1),
        ("finetuning.labelled_fraction", run.finetuning.labelled_fraction, 1.0),
        ("finetuning.folds", run.finetuning.folds, 0),
        ("weights", run.weights, None),
    ):
        if value != default:
            raise SettingsError(
                f"{name} is {value}, and a study decides itself what is learnt from",
                cure="Leave it out, and set study.labelled, study.validation_cases or study.test.",
            )


@dataclass(frozen=True)
class _Part:
    """Work that is done when one of some files is there."""

    files: Sequence[Path]
    seconds: float


class _Study:
    """One study: protocol, estimate, cells, results."""

    def __init__(self, run: Run, folder: Path, events: EventLog) -> None:
        self.run, self.folder, self.events = run, folder, events
        self.estimate: Estimate
        self.protocol: Protocol
        self.store = os.path.abspath(user_path(run.store)) if run.store else str(folder / "store")
        self.runner = Runner(folder / "jobs", run.study.jobs, events)
        self.file = folder / "protocol.json"

    def estimate_only(self) -> dict[str, Any]:
        """Try a few steps; nothing is fixed."""
        protocol, found = self._tried()
        return {"estimate": self._told(protocol, found), "seconds": round(self._total(protocol, found))}

    def _tried(self) -> tuple[Protocol, Estimate]:
        """The protocol and how long it takes; written only where it cannot be in the way of another."""
        protocol = Protocol.load(self.file) if self.file.exists() else draw_protocol(self.run, self.events)
        file = self.folder / "probe" / "protocol.json"
        make_folder(file.parent)
        protocol.save(file)
        return protocol, self._estimated(protocol, file)

    def carry_out(self) -> dict[str, Any]:
        """Fix the protocol, work the cells off, and tell what came of it."""
        for name in _MADE_ANEW:
            (self.folder / name).unlink(missing_ok=True)
        self.protocol, self.estimate = self._tried()
        if not self.file.exists():
            self.protocol.save(self.file)
        told = self._told(self.protocol, self.estimate)
        self.events.message(told)
        make_folder(self.runner.folder)
        progress = self._progress()
        self.runner.run([self._pretraining_job(one) for one in pretrainings(self.run.study, self.arms)], progress)
        rates = self._choose_rates(progress)
        cells = self._chosen_cells(rates)
        self.runner.run(self._ready(cells, test=True), progress)
        finished = self._finished(cells, rates)
        if not any(cell.rows for cell in finished):
            raise RunError(
                f"{self.folder}: no cell of the study could be finished: "
                f"{next(iter(self.runner.failures.items()), ('', 'see the folder jobs'))[1]}",
                cure="Remove the cause, then give the same command.",
            )
        result = write_results(self.run, self.protocol, finished, self._costs(), self.runner.failures, self.folder)
        return {**result, "estimate": told}

    @property
    def arms(self) -> list[Arm]:
        """Those that are compared."""
        return self.protocol.arms

    # --- how long -------------------------------------------------------------------------------------------------

    def _estimated(self, protocol: Protocol, file: Path) -> Estimate:
        def job(cell: Pretraining | Finetuning, steps: int, folder: Path) -> Job:
            return self._probe(protocol, file, cell, steps, folder)

        return estimate(self.run, protocol, self.folder, job, self.events)

    def _probe(self, protocol: Protocol, file: Path, cell: Pretraining | Finetuning, steps: int, folder: Path) -> Job:
        """A cell of few steps, with one case to validate and one to test on."""
        if isinstance(cell, Pretraining):
            run = self._pretraining_run(protocol, cell, folder)
            run = replace(run, pretraining=replace(run.pretraining, steps=steps, preview_every=0, measure_every=0))
            cases, test = list(protocol.pretraining), []
        else:
            # All of them: of partial labels a few might lack a class, and be refused.
            training = protocol.training(cell.seed, cell.amount)
            cases, test = [*training, next(iter(protocol.validation))], [next(iter(protocol.test))]
            run = self._finetuning_run(protocol, replace(cell, steps=steps), folder, training, cases[-1:], None)
            run = replace(run, finetuning=replace(run.finetuning, validate_every=steps))
        spec = {"kind": "pretrain" if isinstance(cell, Pretraining) else "finetune", "run": to_dict(run),
                "protocol": str(file), "cases": cases, "test": test}  # fmt: skip
        return Job(folder.name, f"trying {cell.title}", spec, folder, 0.0, folder / (TEST if test else "result.json"))

    def _total(self, protocol: Protocol, found: Estimate) -> float:
        """Seconds for all cells, however many are done."""
        return sum(part.seconds for part in self._parts(protocol, found)) / self.run.study.jobs

    def _told(self, protocol: Protocol, found: Estimate) -> str:
        first = pretrainings(self.run.study, protocol.arms)
        others = [cell for arm, amount in self._amounts(protocol.arms) for cell in self._trained(arm, amount)]
        return (
            f"{len(protocol.arms)} arms, {len(first)} pre-trainings and {len(others)} fine-tunings with "
            f"{len(protocol.test)} test and {len(protocol.validation)} validation cases: about "
            f"{duration(self._total(protocol, found))} with {self.run.study.jobs} at once"
        )

    def _trained(self, arm: Arm, amount: Amount) -> list[Finetuning]:
        """What is trained of an arm on a labelled amount; where the rate is to be chosen first, any stands for it."""
        tried = trials(self.run, arm, amount)
        compared = finetunings(self.run, arm, amount, rates_of(self.run)[:1])
        return list({cell.id: cell for cell in (*tried, *compared)}.values())

    def _parts(self, protocol: Protocol, found: Estimate) -> list[_Part]:
        """All work, the trainings first, and then the tests of those that are compared."""
        parts = [
            _Part([self._place(cell) / "result.json"], found.training(cell))
            for cell in pretrainings(self.run.study, protocol.arms)
        ]
        for arm, amount in self._amounts(protocol.arms):
            tried = trials(self.run, arm, amount)
            for cell in self._trained(arm, amount):
                rates = [cell.learning_rate] if cell in tried else rates_of(self.run)
                parts.append(_Part(self._files(cell, rates, "result.json"), found.training(cell)))
            for cell in finetunings(self.run, arm, amount, rates_of(self.run)[:1]):
                parts.append(_Part(self._files(cell, rates_of(self.run), TEST), found.testing(cell)))
        return parts

    def _files(self, cell: Finetuning, rates: Iterable[float], name: str) -> list[Path]:
        return [self._place(replace(cell, learning_rate=rate)) / name for rate in rates]

    def _progress(self) -> Progress:
        parts = self._parts(self.protocol, self.estimate)
        done = sum(part.seconds for part in parts if any(file.exists() for file in part.files))
        return Progress(self.events, sum(part.seconds for part in parts), done)

    def _is_done(self, cell: Pretraining | Finetuning) -> bool:
        return (self._place(cell) / ("result.json" if isinstance(cell, Pretraining) else TEST)).exists()

    # --- cells ----------------------------------------------------------------------------------------------------

    def _place(self, cell: Pretraining | Finetuning) -> Path:
        return self.folder / (PRETRAINING if isinstance(cell, Pretraining) else FINETUNING) / cell.id

    def _amounts(self, arms: Iterable[Arm]) -> list[tuple[Arm, Amount]]:
        return [(arm, amount) for amount in self.run.study.labelled for arm in arms]

    def _pretraining_run(self, protocol: Protocol, cell: Pretraining, folder: Path) -> Run:
        plan = plan_settings(protocol.plans[cell.arm.name])
        return replace(
            settings_of(self.run, cell.arm), plan=plan, seed=cell.seed, output=str(folder), store=self.store,
            labelled=None,
        )  # fmt: skip

    def _finetuning_run(
        self,
        protocol: Protocol,
        cell: Finetuning,
        folder: Path,
        training: Sequence[str],
        validation: Sequence[str],
        weights: Path | None,
    ) -> Run:
        # Beside the run folder, which must hold nothing when the run begins.
        split = folder.with_name(f"{folder.name}-split.json")
        write_json(split, {"training": list(training), "validation": list(validation)})
        run, chosen = settings_of(self.run, cell.arm), self.run.finetuning
        # What protects learnt weights would only slow down what has learnt nothing.
        gentle: dict[str, Any] = (
            {"frozen_steps": 0, "layer_decay": 1.0, "start": "all"} if cell.arm.is_scratch else {}
        )
        finetuning = replace(
            chosen,
            steps=cell.steps,
            learning_rate=cell.learning_rate,
            # As long in all arms; a rise as long as the whole training would be none.
            warmup_steps=min(chosen.warmup_steps, max(cell.steps // (8 if cell.arm.twice else 4), 1)),
            validate_every=max(cell.steps // (self.run.study.validations * (2 if cell.arm.twice else 1)), 1),
            split=str(split),
            **gentle,
        )
        return replace(
            run, plan=plan_settings(protocol.plans[cell.arm.name]), finetuning=finetuning, seed=cell.seed,
            output=str(folder), store=self.store, unlabelled=None, name=self.run.name or "study",
            weights=None if weights is None else str(weights),
        )  # fmt: skip

    def _pretraining_job(self, cell: Pretraining) -> Job:
        place = self._place(cell)
        spec = {"kind": "pretrain", "run": to_dict(self._pretraining_run(self.protocol, cell, place)),
                "protocol": str(self.file), "cases": list(self.protocol.pretraining), "test": []}  # fmt: skip
        return Job(cell.id, cell.title, spec, place, self.estimate.training(cell), place / "result.json")

    def _finetuning_job(self, cell: Finetuning, test: bool) -> Job:
        place, training = self._place(cell), self.protocol.training(cell.seed, cell.amount)
        validation = list(self.protocol.validation)
        weights = None if cell.pretraining is None else self._place(cell.pretraining)
        run = self._finetuning_run(self.protocol, cell, place, training, validation, weights)
        spec = {"kind": "finetune", "run": to_dict(run), "protocol": str(self.file),
                "cases": [*training, *validation], "test": list(self.protocol.test) if test else []}  # fmt: skip
        # What was trained to choose a learning rate has been counted.
        seconds = 0.0 if (place / "result.json").exists() else self.estimate.training(cell)
        seconds += self.estimate.testing(cell) if test else 0.0
        return Job(cell.id, cell.title, spec, place, seconds, place / (TEST if test else "result.json"))

    def _ready(self, cells: Iterable[Finetuning], test: bool) -> list[Job]:
        """Jobs of those whose pre-training is there; the others fail with it."""
        jobs = []
        for cell in cells:
            if cell.pretraining is not None and not self._is_done(cell.pretraining):
                self.runner.failures[cell.title] = "its pre-training failed"
                continue
            jobs.append(self._finetuning_job(cell, test))
        return jobs

    def _choose_rates(self, progress: Progress) -> dict[str, dict[str, float]]:
        """The learning rate of each arm on each amount: that with the best validation, by ``study.rate_seeds``.

        A choice among all of them stays. One that a failure narrows is made anew at the next start.
        """
        rates, file = rates_of(self.run), self.folder / "rates.json"
        if len(rates) == 1:
            return {arm.name: {in_words(a): rates[0] for a in self.run.study.labelled} for arm in self.arms}
        known: dict[str, dict[str, float]] = read_json(file) if file.exists() else {}
        settled = {name: dict(amounts) for name, amounts in known.items()}
        open_ = [(a, n) for a, n in self._amounts(self.arms) if in_words(n) not in known.get(a.name, {})]
        tried = {(arm.name, in_words(amount)): trials(self.run, arm, amount) for arm, amount in open_}
        self.runner.run(self._ready([cell for cells in tried.values() for cell in cells], test=False), progress)
        for (name, amount), cells in tried.items():
            missing = [cell for cell in cells if not self._is_trained(cell)]
            found: dict[float, dict[Hashable, float]] = {rate: {} for rate in rates}
            for cell in cells:
                if cell not in missing:
                    found[cell.learning_rate][cell.pretraining, cell.seed] = self._validation(cell)
            scores = mean_scores(found)
            if missing:
                failed_at = sorted({cell.learning_rate for cell in missing})
                self.events.warning(
                    f"{name}, {amount}: no learning rate is settled yet: {len(missing)} of {len(cells)} "
                    f"trainings failed, with {', '.join(f'{rate:g}' for rate in failed_at)}"
                )
            if not scores:
                continue
            # The first of equals.
            chosen = max(scores, key=lambda rate: scores[rate])
            known.setdefault(name, {})[amount] = chosen
            if not missing:
                settled.setdefault(name, {})[amount] = chosen
            self.events.message(
                f"{name}, {amount}: learning rate {chosen:g} (validation Dice "
                f"{', '.join(f'{rate:g}: {score:.3f}' for rate, score in scores.items())})"
            )
        write_json(file, settled)
        return known

    def _chosen_cells(self, rates: dict[str, dict[str, float]]) -> list[Finetuning]:
        """The cells that are compared."""
        cells = []
        for arm, amount in self._amounts(self.arms):
            rate = rates.get(arm.name, {}).get(in_words(amount))
            if rate is not None:
                cells += finetunings(self.run, arm, amount, [rate])
        return cells

    def _is_trained(self, cell: Finetuning) -> bool:
        return (self._place(cell) / "result.json").exists()

    def _validation(self, cell: Finetuning) -> float:
        return best(trace(self._place(cell) / "events.jsonl", "finetune").points).dice

    # --- results --------------------------------------------------------------------------------------------------

    def _finished(self, chosen: Sequence[Finetuning], rates: dict[str, dict[str, float]]) -> list[Cell]:
        """Every fine-tuning that was trained, those included that only tried a learning rate."""
        tried = [
            cell
            for arm, amount in self._amounts(self.arms)
            for cell in trials(self.run, arm, amount)
            if in_words(amount) in rates.get(arm.name, {})
        ]
        cells = {cell.id: cell for cell in (*chosen, *tried)}
        known = {cell.id for cell in chosen}
        return [
            Cell.read(cell, self._place(cell), len(self.protocol.training(cell.seed, cell.amount)), cell.id in known)
            for cell in cells.values()
        ]

    def _costs(self) -> list[tuple[Pretraining, float]]:
        """Seconds that each finished pre-training took."""
        return [
            (cell, trace(self._place(cell) / "events.jsonl", "pretrain").seconds)
            for cell in pretrainings(self.run.study, self.arms)
            if self._is_done(cell)
        ]
