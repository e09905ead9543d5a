"""The protocol of a study, fixed before its first run: who is tested on, who validates, who is learnt from.

Test cases are drawn by patient, or named, and serve nothing else: no pre-training (a scan of theirs is recognised by
its voxels whatever it is called, by its patient, and by its name), no fine-tuning, no choice of a checkpoint or a
learning rate. Validation cases are the same for every arm. The rest are the cases to label: which of them a
fine-tuning gets follows from its seed and the amount alone, so that all arms learn from the same ones, and a smaller
amount is a part of a larger one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from HybridMIMLib.architectures import settled
from HybridMIMLib.config import Run, differences, to_dict, user_path
from HybridMIMLib.data.classes import LabelClass, Region
from HybridMIMLib.data.layouts import Case, Dataset, dataset_of, named_for_labels
from HybridMIMLib.data.layouts.cases import some
from HybridMIMLib.data.plan import Plan, make_plan
from HybridMIMLib.data.splits import draw_cases
from HybridMIMLib.data.survey import CaseFacts, classes_of, content_hash, survey
from HybridMIMLib.errors import DataError, HybridMIMError, RunError
from HybridMIMLib.evaluation.pairs import bare_names
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import read_json, write_json
from HybridMIMLib.finetuning.cases import draw_share
from HybridMIMLib.randomness import random_stream
from HybridMIMLib.runs import versions
from HybridMIMLib.settings.plan import PlanSettings
from HybridMIMLib.studies.axes import Amount, Arm, Spacing, arm_to_json, arms_of, in_words, settings_of

FORMAT = 2
_MAY_DIFFER = ("output", "store", "device", "study.jobs", "study.estimate_only", "study.preset")
"""Settings that are no part of a protocol: a preset stands in the settings that it fills in."""


@dataclass(frozen=True)
class Protocol:
    """What was fixed.

    Attributes:
        settings: all of them, as nested dictionaries.
        test, validation, pool: names of labelled cases with the SHA-256 of their files; ``pool`` is learnt from.
        pretraining: the same of the unlabelled scans that are learnt from.
        kept_out: unlabelled scans that are test cases, of their patients, or called as they are.
        drawn: by seed and by amount (in words) the cases of the pool to fine-tune on.
        classes, regions: of the label maps.
        arms: to be compared.
        plans: by the name of an arm, how scans are prepared and cut for it.
        refused: name of an arm that cannot be → why.
    """

    settings: dict[str, Any]
    test: dict[str, str]
    validation: dict[str, str]
    pool: dict[str, str]
    pretraining: dict[str, str]
    kept_out: list[str]
    drawn: dict[str, dict[str, list[str]]]
    classes: list[dict[str, Any]]
    regions: list[dict[str, Any]]
    arms: list[Arm]
    plans: dict[str, dict[str, Any]]
    refused: dict[str, str]

    def training(self, seed: int, amount: Amount) -> list[str]:
        """The cases that a seed draws for an amount."""
        return self.drawn[str(seed)][in_words(amount)]

    def save(self, file: Path) -> None:
        """Write it."""
        content = {**asdict(self), "arms": [arm_to_json(arm) for arm in self.arms]}
        write_json(file, {"format": FORMAT, **content, "versions": versions()})

    @classmethod
    def load(cls, file: Path) -> Protocol:
        """Read it.

        Raises:
            RunError: it cannot be read.
        """
        try:
            content = dict(read_json(file))
            if content.pop("format") != FORMAT:
                raise ValueError("made by another version")
            content.pop("versions")
            arms = [Arm(**one) for one in content.pop("arms")]
            return cls(**content, arms=arms)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(
                f"{file}: the protocol of the study cannot be read ({error})", cure="Choose another --output."
            ) from error

    def check_same(self, run: Run, file: Path) -> None:
        """See whether a study goes on with the settings that it began with.

        Raises:
            RunError: it does not; the differences are named.
        """
        if changed := [name for name in differences(self.settings, _fixed(run)) if name not in _MAY_DIFFER]:
            listed = "; ".join(
                f"{name} (was {_value(self.settings, name)!r}, is {_value(_fixed(run), name)!r})" for name in changed
            )
            raise RunError(
                f"{file.parent}: the protocol of this study was fixed with other settings: {listed}",
                cure="Give the same settings (--config) to continue it, or another --output for another study.",
            )

    def dataset(self, run: Run, name: str, cases: Iterable[str]) -> Dataset:
        """Some cases of a folder, with the classes of the study.

        Raises:
            RunError: a case is gone, or its files are others than when the study began.
        """
        everything, wanted = dataset_of(run, name), set(cases)
        known = self.pretraining if name == "unlabelled" else {**self.test, **self.validation, **self.pool}
        chosen = tuple(case for case in everything.cases if case.name in wanted)
        gone = sorted(wanted - {case.name for case in chosen})
        changed = gone or [one.name for one in chosen if _hash([*one.images, one.label]) != known[one.name]]
        if changed:
            raise RunError(
                f"{everything.root}: {some(changed)}: {'gone' if gone else 'changed'} since this study began",
                cure="Put the scans back to continue the study, or choose another --output.",
            )
        if name == "unlabelled":
            return replace(everything, cases=chosen, notes=())
        classes, regions = self.naming()
        return replace(everything, cases=chosen, notes=(), classes=classes, regions=regions, customary=())

    def naming(self) -> tuple[tuple[LabelClass, ...], tuple[Region, ...]]:
        """Classes and regions."""
        regions = (Region(str(one["name"]), frozenset(one["labels"])) for one in self.regions)
        return tuple(LabelClass.from_json(one) for one in self.classes), tuple(regions)


def draw_protocol(run: Run, events: EventLog) -> Protocol:
    """Read every scan once, and fix who serves what.

    Args:
        run: settings, with those of a preset filled in.
        events: where to tell.

    Raises:
        DataError: there are too few cases, or a named one is not there.
        SettingsError: no arm but scratch can be.
    """
    labelled, unlabelled = dataset_of(run, "labelled"), dataset_of(run, "unlabelled")
    for note in dict.fromkeys((*labelled.notes, *unlabelled.notes)):
        events.warning(note)
    found = survey(labelled.cases, events, labelled.partial)
    others = survey(unlabelled.cases, events)
    test, rest = _draw_test(run, found)
    validation, pool = _draw_validation(run, rest)
    kept, seen = _kept_out(others, test, labelled.cases)
    if seen:
        events.message(
            f"{len(seen)} of the {len(others)} unlabelled scans are test cases, of their patients, or called as "
            f"they are, and are kept out of every pre-training: {some(seen)}"
        )
    if others[0].channels != found[0].channels:
        events.warning(
            f"{run.unlabelled}: the unlabelled scans have {others[0].channels} channel(s), the labelled ones "
            f"{found[0].channels}. Pre-trained weights are fitted to that, which costs some of what was learnt. Give "
            "scans with the same channels if there are any."
        )
    if len(kept) < 2:
        raise DataError(
            f"{run.unlabelled}: {len(kept)} scan(s) are left to pre-train on after the test cases were kept out",
            cure="Add scans, or lower study.test_cases.",
        )
    met: set[int] = set().union(*(facts.labels for facts in (*pool, *validation)))
    named = named_for_labels(labelled, met)
    classes = classes_of([*pool, *validation], named.classes)
    tested: set[int] = set().union(*(facts.labels for facts in test))
    if alone := sorted(tested - {one.label for one in classes}):
        events.warning(
            f"{run.labelled}: label(s) {some([str(label) for label in alone])} are in test cases alone. Nothing "
            "learns them, and they are not measured"
        )
    drawn = _draw_training(run, pool, classes)
    arms, plans, refused = _plans(run, arms_of(run), kept, events)
    regions: list[dict[str, Any]] = [
        {"name": one.name, "labels": sorted(one.labels)} for one in named.regions if one.labels <= met
    ]
    contents = [
        {f.case.name: _hash([*f.case.images, f.case.label]) for f in part} for part in (test, validation, pool)
    ]
    return Protocol(
        _fixed(run),
        contents[0],
        contents[1],
        contents[2],
        {facts.case.name: _hash(facts.case.images) for facts in kept},
        seen,
        drawn,
        [one.to_json() for one in classes],
        regions,
        arms,
        {name: _as_read(plan) for name, plan in plans.items()},
        refused,
    )


def plan_settings(plan: Mapping[str, Any]) -> PlanSettings:
    """A plan as settings that leave nothing open."""
    return PlanSettings(**{name: value for name, value in plan.items() if name != "channels"})


# --- who serves what --------------------------------------------------------------------------------------------


def _draw_test(run: Run, found: Sequence[CaseFacts]) -> tuple[list[CaseFacts], list[CaseFacts]]:
    """The test cases, and the others; of a patient in the test nobody is among the others."""
    names = _named_tests(run)
    if names is None:
        count = run.study.test_cases if run.study.test_cases > 0 else max(len(found) // 4, 1)
        patients = {facts.case.name: facts.patient for facts in found}
        if count >= len(set(patients.values())):
            raise _too_few(run, len(found), f"{count} test cases are drawn by patient, and the rest is to learn from")
        names = draw_cases(patients, count, random_stream(run.seed, "study test"))[1]
    by_name = {facts.case.name: facts for facts in found}
    if unknown := [name for name in names if name not in by_name]:
        raise DataError(
            f"{run.labelled}: no usable labelled case is called {some(unknown)}, which study.test names",
            cure="Correct the names, which are those of the scans' files without their suffix.",
        )
    test = [by_name[name] for name in names]
    people, voxels = {facts.patient for facts in test}, {facts.voxels for facts in test}
    rest = [
        facts
        for facts in found
        if facts.case.name not in set(names) and facts.patient not in people and facts.voxels not in voxels
    ]
    return test, rest


def _named_tests(run: Run) -> list[str] | None:
    names = run.study.test
    if names is None or len(names) != 1 or not names[0].endswith(".json"):
        return names
    file = user_path(names[0])
    cure = 'Write a list of names: ["case_1", "case_2"].'
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: the test cases cannot be read ({error})", cure=cure) from error
    if not isinstance(content, list) or not content or not all(isinstance(name, str) for name in content):
        raise DataError(f"{file}: is no list of names", cure=cure)
    return list(dict.fromkeys(content))


def _draw_validation(run: Run, rest: Sequence[CaseFacts]) -> tuple[list[CaseFacts], list[CaseFacts]]:
    """Validation and pool, by patient."""
    wanted = run.study.validation_cases if run.study.validation_cases > 0 else max(len(rest) // 5, 1)
    patients = {facts.case.name: facts.patient for facts in rest}
    if wanted >= len(set(patients.values())):
        raise _too_few(run, len(rest), f"after the test cases were put aside, {wanted} are to validate")
    drawn = set(draw_cases(patients, wanted, random_stream(run.seed, "study validation"))[1])
    inside, outside = ([facts for facts in rest if (facts.case.name in drawn) == side] for side in (True, False))
    return inside, outside


def _draw_training(
    run: Run, pool: Sequence[CaseFacts], classes: Sequence[LabelClass]
) -> dict[str, dict[str, list[str]]]:
    """The cases to fine-tune on, by seed and amount."""
    most = max((amount for amount in run.study.labelled if not isinstance(amount, str)), default=0.0)
    if most > len(pool):
        raise _too_few(run, len(pool), f"these are left besides test and validation, and study.labelled has {most:g}")
    by_name = {facts.case.name: facts for facts in pool}
    drawn: dict[str, dict[str, list[str]]] = {}
    for seed in run.study.seeds:
        drawn[str(seed)] = {}
        for amount in run.study.labelled:
            share = 1.0 if isinstance(amount, str) else amount if amount < 1 else amount / len(pool)
            names = draw_share(pool, share, seed)
            _check_annotated(run, [by_name[name] for name in names], classes, amount, seed)
            drawn[str(seed)][in_words(amount)] = names
    return drawn


def _check_annotated(
    run: Run, chosen: Sequence[CaseFacts], classes: Sequence[LabelClass], amount: Amount, seed: int
) -> None:
    """A class that nobody annotated in what is learnt from would end a cell after the others have run."""
    if any(facts.annotated is None for facts in chosen):
        return
    known = set().union(*(facts.annotated or () for facts in chosen))
    for one in classes:
        if one.label not in known:
            raise DataError(
                f"{run.labelled}: with {in_words(amount)} of seed {seed}, class {one.name} is annotated in none of "
                f"the {len(chosen)} case(s) to learn from",
                cure="Raise the smallest number in study.labelled, or choose other study.seeds.",
            )


def _kept_out(
    others: Sequence[CaseFacts], test: Sequence[CaseFacts], labelled: Iterable[Case]
) -> tuple[list[CaseFacts], list[str]]:
    """The unlabelled scans to learn from, and the names of those that are in the test.

    Of the names of files only those of one labelled case tell it: each may have its ``t1.nii.gz``.
    """
    voxels, people = {facts.voxels for facts in test}, {facts.patient for facts in test}
    owners = Counter(name for case in labelled for name in bare_names(case))
    names = {name for facts in test for name in bare_names(facts.case) if owners[name] == 1}
    names |= {facts.case.name for facts in test}

    def is_tested(facts: CaseFacts) -> bool:
        called = {facts.case.name, *bare_names(facts.case)}
        return facts.voxels in voxels or facts.patient in people | names or not called.isdisjoint(names | people)

    return [f for f in others if not is_tested(f)], [f.case.name for f in others if is_tested(f)]


def _too_few(run: Run, count: int, why: str) -> DataError:
    return DataError(
        f"{run.labelled}: {count} usable labelled case(s) are too few: {why}",
        cure="Add labelled cases, or lower study.test_cases, study.validation_cases, or the numbers in "
        "study.labelled.",
    )


# --- which arms there can be ------------------------------------------------------------------------------------


def _plans(
    run: Run, arms: Sequence[Arm], scans: Sequence[CaseFacts], events: EventLog
) -> tuple[list[Arm], dict[str, Plan], dict[str, str]]:
    """A plan for each arm that its network can do; of one group all have the same crop.

    Raises:
        HybridMIMError: of no arm but scratch can there be one.
    """
    plans: dict[str, Plan] = {}
    refused: dict[str, str] = {}
    errors: list[HybridMIMError] = []
    made: dict[tuple[str, ...], str] = {}
    phase = events.phase("try arms", len(arms))
    for number, arm in enumerate(arms, 1):
        phase.progress(number)
        try:
            plan = _plan_of(run, arm, scans)
            twin = made.setdefault(_what_it_is(run, arm, plan), arm.name)
        except HybridMIMError as error:
            refused[arm.name] = str(error)
            errors.append(error)
            continue
        if twin != arm.name:
            refused[arm.name] = f"It is the same as {twin}."
        else:
            plans[arm.name] = plan
    kept = [arm for arm in arms if arm.name in plans]
    groups = {arm.group for arm in kept if arm.is_scratch}
    kept = [arm for arm in kept if arm.group in groups]
    if all(arm.is_scratch for arm in kept):
        raise errors[0]
    for name, why in refused.items():
        events.message(f"left out: {name}. {why}")
    return kept, plans, refused


def _plan_of(run: Run, arm: Arm, scans: Sequence[CaseFacts]) -> Plan:
    """How scans are prepared and cut for an arm.

    Raises:
        HybridMIMError: sizes, network and objective do not go together, or the scans are too few for it.
    """
    # Torch takes seconds, and wrong folders are told before.
    from HybridMIMLib.pretraining.choice import make_objective

    chosen = settings_of(run, arm)
    common = make_plan(scans, _at(run, arm.spacing, scans, chosen), chosen.network)
    plan = common
    if arm.patch is not None:
        sizes = replace(chosen.plan, spacing=list(common.spacing), crop=list(common.crop))
        plan = make_plan(scans, sizes, chosen.network)
    batch = chosen.pretraining.batch or 4
    trial = replace(
        chosen,
        network=settled(chosen.network, plan.spacing),
        pretraining=replace(chosen.pretraining, batch=batch),
    )
    make_objective(trial, plan, len({facts.patient for facts in scans}))
    return plan


def _at(run: Run, spacing: Spacing | None, scans: Sequence[CaseFacts], chosen: Run) -> PlanSettings:
    """The settings of the plan at a resolution; a crop that was set stays as many voxels."""
    if spacing is None:
        return run.plan
    if isinstance(spacing, list):
        return replace(run.plan, spacing=spacing)
    own = make_plan(scans, run.plan, chosen.network).spacing
    return replace(run.plan, spacing=[round(spacing * side, 4) for side in own])


def _what_it_is(run: Run, arm: Arm, plan: Plan) -> tuple[str, ...]:
    """All that tells an arm from another; the names of axes do not."""
    chosen = settings_of(run, arm)
    return (str(arm.twice), str(plan.to_json()), str(asdict(chosen.network)), str(asdict(chosen.pretraining)))


def _as_read(plan: Plan) -> dict[str, Any]:
    """As it comes back from a file."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plan.to_json().items()}


# --- settings ---------------------------------------------------------------------------------------------------


def _fixed(run: Run) -> dict[str, Any]:
    """The settings that a protocol holds."""
    content = to_dict(run)
    for name in _MAY_DIFFER:
        section, _, key = name.rpartition(".")
        del (content[section] if section else content)[key]
    return content


def _value(settings: Mapping[str, Any], name: str) -> Any:
    value: Any = settings
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _hash(files: Iterable[Path | None]) -> str:
    return content_hash([file for file in files if file is not None])
