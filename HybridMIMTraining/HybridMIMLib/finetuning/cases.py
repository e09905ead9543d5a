"""Which labelled cases are trained on, which are held out, and whether every class can be learnt from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from HybridMIMLib.config import Run, user_path
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.layouts import Dataset
from HybridMIMLib.data.prepare import Prepared
from HybridMIMLib.data.splits import Split, draw_split, read_split, shared_patients
from HybridMIMLib.data.survey import CaseFacts
from HybridMIMLib.errors import DataError, LabelError, SettingsError
from HybridMIMLib.events import EventLog
from HybridMIMLib.randomness import random_stream

_SHOWN = 5


@dataclass(frozen=True)
class Chosen:
    """Names of cases.

    Attributes:
        training: to train on.
        validation: held out.
        left_out: of the training side, which a share of it does without (``finetuning.labelled_fraction``).
    """

    training: list[str]
    validation: list[str]
    left_out: list[str]

    @property
    def split(self) -> dict[str, list[str]]:
        """Who is on which side, whatever share is trained on: as ``finetuning.split`` takes it."""
        return {"training": self.training + self.left_out, "validation": self.validation}


@dataclass(frozen=True)
class Fold:
    """What is settled before the fine-tuning for a fold begins.

    Attributes:
        prepared: all cases, those of the other folds too.
        chosen: who is trained on, and who is held out.
    """

    prepared: Prepared
    chosen: Chosen


def choose_cases(
    run: Run,
    dataset: Dataset,
    found: Sequence[CaseFacts],
    classes: Sequence[LabelClass],
    events: EventLog,
    split: Split | None = None,
) -> Chosen:
    """Hold out the validation, then draw the share to train on; tell what cannot be learnt or measured.

    Args:
        run: the settings.
        dataset: the cases, those included that cannot be used.
        found: what was found in those that can.
        classes: to learn.
        events: where to tell.
        split: who may be trained on and who is held out; None: as the settings say.

    Raises:
        DataError: there are too few cases, or a split does not fit them.
        LabelError: a class was annotated in none of those to train on.
        SettingsError: the training is to end for want of a better validation, and there is none.
    """
    side, validation = _split(run, dataset, found, events) if split is None else split
    of_side = [facts for facts in found if facts.case.name in set(side)]
    training = draw_share(of_side, run.finetuning.labelled_fraction, run.seed)
    chosen = Chosen(training, validation, [name for name in side if name not in set(training)])
    if chosen.left_out:
        events.message(
            f"trained on {_count(len(training), 'labelled scan')} of {len(side)} (finetuning.labelled_fraction "
            f"{run.finetuning.labelled_fraction:g}): {_some(training)}"
        )
    by_name = {facts.case.name: facts for facts in found}
    trained_on, held_out = ([by_name[name] for name in names] for names in (training, validation))
    _check_annotated(run, trained_on, classes)
    _tell_of_classes(trained_on, held_out, classes, events)
    return chosen


def draw_share(found: Sequence[CaseFacts], share: float, seed: int) -> list[str]:
    """Names of a share of the cases, whole patients, in the order they came.

    The patients stand in an order that follows from the seed, and a share is the first of them: a smaller share is
    part of a larger one. In front are those who together have every class, whoever adds most first.

    Args:
        found: what was found in each case; those of one patient stay together.
        share: above 0, up to 1; at least one patient is drawn, and no more cases than the share where that can be.
        seed: of the run.
    """
    people = _by_patient(found)
    wanted = max(int(share * len(found) + 0.5), 1)
    drawn: set[str] = set()
    for person in _covering_order(people, seed):
        names = {facts.case.name for facts in people[person]}
        if drawn and len(drawn) + len(names) > wanted:
            break
        drawn |= names
    return [facts.case.name for facts in found if facts.case.name in drawn]


def _covering_order(people: Mapping[str, Sequence[CaseFacts]], seed: int) -> list[str]:
    # Sorted first: the order in which files were found must not decide.
    names = sorted(people)
    waiting = [names[index] for index in random_stream(seed, "labelled fraction").permutation(len(names))]
    labels = {person: set().union(*(facts.labels for facts in cases)) for person, cases in people.items()}
    missing, order = set().union(*labels.values()), []
    while waiting:
        # The first of several that add as much, and the next where nobody adds anything.
        person = max(waiting, key=lambda one: len(labels[one] & missing))
        waiting.remove(person)
        missing -= labels[person]
        order.append(person)
    return order


def _by_patient(found: Iterable[CaseFacts]) -> dict[str, list[CaseFacts]]:
    people: dict[str, list[CaseFacts]] = {}
    for facts in found:
        people.setdefault(owner_of(facts), []).append(facts)
    return people


def owner_of(facts: CaseFacts) -> str:
    """A name for the patient; where nobody says who it is, each scan is of another one."""
    return f"patient {facts.patient}" if facts.patient else f"scan {facts.case.name}"


def _split(run: Run, dataset: Dataset, found: Sequence[CaseFacts], events: EventLog) -> Split:
    """The cases to train on and those held out: as a file says, or drawn by patient."""
    patients = {facts.case.name: facts.patient for facts in found}
    if run.finetuning.split is None:
        return _drawn(found, patients, held_out(run, len(patients)), run.seed)
    file = user_path(run.finetuning.split)
    shares = read_split(file, list(patients), (case.name for case in dataset.cases))
    if both := shared_patients(shares, patients):
        events.warning(f"{file}: scans of patient {both[0]} are both trained on and validated on.")
    if run.finetuning.patience and not shares[1]:
        raise SettingsError(
            f"finetuning.patience waits for better validations, and {file} holds out no scan that can be used",
            cure="Set finetuning.patience to 0, or name scans under validation.",
        )
    return shares


def _drawn(found: Sequence[CaseFacts], patients: Mapping[str, str], held_out: int, seed: int) -> Split:
    """A draw in which no patient is held out who alone has a class, as long as there are enough others."""
    holders: dict[int, set[str]] = {}
    for facts in found:
        for label in facts.labels:
            holders.setdefault(label, set()).add(owner_of(facts))
    kept = set().union(*(owners for owners in holders.values() if len(owners) == 1))
    free = {facts.case.name: facts.patient for facts in found if owner_of(facts) not in kept}
    others = len({owner_of(facts) for facts in found if facts.case.name in free})
    if len(free) < held_out or others < 2:
        return draw_split(patients, held_out, seed)
    validation = set(draw_split(free, held_out, seed)[1])
    return [name for name in patients if name not in validation], [name for name in patients if name in validation]


def held_out(run: Run, count: int) -> int:
    """How many of so many labelled cases are drawn to be held out.

    Raises:
        DataError: none would be left to train on.
    """
    wanted = run.finetuning.validation_cases
    if wanted < 0:
        wanted = max(count // 5, 1)
    if wanted > count - 1:
        raise DataError(
            f"{run.labelled}: {count} labelled scans, of which {wanted} are to be held out for validation",
            cure="Add labelled scans, or lower finetuning.validation_cases.",
        )
    return wanted


def _check_annotated(run: Run, training: Sequence[CaseFacts], classes: Sequence[LabelClass]) -> None:
    """A class that is annotated nowhere would be learnt from nothing."""
    if any(facts.annotated is None for facts in training):
        return
    known = set().union(*(facts.annotated or () for facts in training))
    for one in classes:
        if one.label not in known:
            raise LabelError(
                f"{run.labelled}: class {one.name} ({one.label}) is annotated in none of the {len(training)} scans "
                "to train on",
                cure="Add scans in which it is annotated, remove it from the names of the classes, or choose who "
                "is trained on with finetuning.split.",
            )


def _tell_of_classes(
    training: Sequence[CaseFacts], validation: Sequence[CaseFacts], classes: Sequence[LabelClass], events: EventLog
) -> None:
    """Warn of classes that too few label maps have, and of those that some have and others do not."""
    partly = []
    for one in classes:
        learnt, measured = (_with_label(side, one.label) for side in (training, validation))
        if not learnt and not measured:
            events.warning(
                f"class {one.name} ({one.label}) is in no label map that is used, so nothing is learnt of it. Add "
                "scans in which it is labelled, or remove it from the names of the classes."
            )
        elif not learnt:
            events.warning(
                f"class {one.name} ({one.label}) is in no label map that is trained on, only in "
                f"{_some(measured)}, held out: nothing is learnt of it. Add scans in which it is labelled, or choose "
                "who is trained on with finetuning.split."
            )
        elif len(learnt) + len(measured) == 1:
            events.warning(
                f"class {one.name} ({one.label}) is in one label map alone, that of {learnt[0]}, trained on, so that "
                "no held-out scan can tell how well it is found. Add scans in which it is labelled."
            )
        if 0 < len(learnt) + len(measured) < len(_asked(training, one.label)) + len(_asked(validation, one.label)):
            partly.append(one)
    if partly:
        count = len(training) + len(validation)
        names = "; ".join(
            f"{one.name} in {len(_with_label([*training, *validation], one.label))} of {count}" for one in partly
        )
        events.message(
            f"not every label map has every class ({names}). Where one is missing it counts as absent; if nobody "
            "looked for it there, set --missing_labels unannotated."
        )


def _with_label(found: Iterable[CaseFacts], label: int) -> list[str]:
    return [facts.case.name for facts in found if label in facts.labels]


def _asked(found: Iterable[CaseFacts], label: int) -> list[CaseFacts]:
    """Those in which somebody looked for the class."""
    return [facts for facts in found if facts.annotated is None or label in facts.annotated]


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
