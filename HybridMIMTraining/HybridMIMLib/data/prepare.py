"""Folders of scans → plan and prepared store: the first stage of every training, and a command of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from HybridMIMLib.config import Run, make_run, user_path
from HybridMIMLib.data.check import check, shared_scans
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.layouts import Dataset, dataset_of, named_for_labels
from HybridMIMLib.data.plan import Plan, make_plan, plan_yaml
from HybridMIMLib.data.store import PreparedCase, prepare_store
from HybridMIMLib.data.survey import CaseFacts, classes_of, survey
from HybridMIMLib.errors import DataError, SettingsError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import write_json, write_text
from HybridMIMLib.runs import RunFolder


@dataclass(frozen=True)
class Prepared:
    """Prepared scans and how they were prepared.

    Attributes:
        plan: spacing, normalisation, crop.
        cases: the prepared scans.
        facts: what was found in each, in the same order.
        classes: what the label maps hold; empty without labels.
    """

    plan: Plan
    cases: list[PreparedCase]
    facts: list[CaseFacts]
    classes: tuple[LabelClass, ...]


def prepare(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """Prepare the unlabelled and the labelled folder, so that training can start at once.

    With ``check=True`` nothing is prepared or written: every scan gets a verdict; see
    :func:`HybridMIMLib.data.check.check`.

    Returns:
        The paths of store and plan, and how many cases there are.

    Raises:
        HybridMIMError: see :func:`prepare_folder`.
    """
    run = make_run(run, settings)
    if not (run.unlabelled or run.labelled):
        raise SettingsError("there is nothing to prepare", cure="Add --unlabelled DIR, --labelled DIR, or both.")
    if run.check:
        return check(run, EventLog())
    folder = RunFolder.open("prepare", run)
    with folder.at_work() as events:
        plan, prepared = None, {}
        for name in ("unlabelled", "labelled"):
            if getattr(run, name):
                prepared[name] = prepare_folder(run, name, folder.path, events, plan)
                plan = prepared[name].plan
        if len(prepared) == 2:
            _tell_shared(prepared["unlabelled"].facts, prepared["labelled"].facts, events)
        return folder.finish(
            {
                "store": str(store_of(run, folder.path)),
                "plan": str(folder.path / "plan.json"),
                "cases": {name: len(one.cases) for name, one in prepared.items()},
            }
        )


def prepare_folder(
    run: Run,
    name: str,
    folder: Path,
    events: EventLog,
    plan: Plan | None = None,
    at_least: int = 1,
    dataset: Dataset | None = None,
    any_channels: bool = False,
    suits: Callable[[Plan, Sequence[CaseFacts]], None] | None = None,
) -> Prepared:
    """Survey, plan and prepare one of the run's folders.

    Args:
        run: the settings.
        name: ``"unlabelled"`` or ``"labelled"``.
        folder: the run folder, where ``plan.json`` is written, and ``plan.yaml`` to read.
        events: where progress goes.
        plan: one to follow, e.g. that of pre-trained weights; None makes one from the scans.
        at_least: how many usable cases are needed.
        dataset: a part of the folder's cases; None takes all.
        any_channels: whether the scans may have other channels than ``plan``, which then takes theirs.
        suits: raises if plan and scans do not suit what they are prepared for; called before any scan is prepared.

    Raises:
        DataError: the folder has too few cases that can be used, or scans that do not fit the plan.
        LabelError: a label map is wrong.
        DiskError: the store could not be written.
    """
    source = run.folder(name, f"the folder of {name} scans")
    if dataset is None:
        dataset = dataset_of(run, name)
    for note in dataset.notes:
        events.warning(note)
    facts = survey(dataset.cases, events, dataset.partial)
    if len(facts) < at_least:
        raise DataError(
            f"{source}: {len(facts)} {name} scan(s) can be used, at least {at_least} are needed",
            cure="Add scans to the folder.",
        )
    classes = _classes(facts, dataset) if name == "labelled" else ()
    plan = make_plan(facts, run.plan, run.network, events) if plan is None else plan
    if any_channels:
        plan = replace(plan, channels=facts[0].channels)
    if facts[0].channels != plan.channels:
        raise DataError(
            f"{source}: scans have {facts[0].channels} channel(s), the plan has {plan.channels}",
            cure="Use scans with the same channels for all stages.",
        )
    if suits is not None:
        suits(plan, facts)
    write_json(folder / "plan.json", plan.to_json())
    write_text(folder / "plan.yaml", plan_yaml(plan))
    return Prepared(plan, prepare_store(facts, plan, classes, store_of(run, folder), events), facts, classes)


def store_of(run: Run, folder: Path) -> Path:
    """Where the prepared scans of a run lie."""
    return user_path(run.store) if run.store else folder / "store"


def _classes(facts: list[CaseFacts], dataset: Dataset) -> tuple[LabelClass, ...]:
    met = set().union(*(one.labels for one in facts))
    return classes_of(facts, named_for_labels(dataset, met).classes)


def _tell_shared(unlabelled: list[CaseFacts], labelled: list[CaseFacts], events: EventLog) -> None:
    """A scan may be in both folders; whoever holds it out for a test should know."""
    if shared := shared_scans(unlabelled, labelled):
        events.message(
            f"{len(shared)} labelled scan(s) are among the unlabelled ones too, such as {shared[0][0]}: whoever "
            "learns from the unlabelled ones has seen them"
        )
