"""Who is trained on, and who is held out: drawn by patient, or as a file says."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from HybridMIMLib.errors import DataError
from HybridMIMLib.files import read_json
from HybridMIMLib.randomness import random_stream

Split = tuple[list[str], list[str]]
"""Names of the cases to train on, and of those that are held out, each in the order they came."""

Owner = tuple[str, str]
"""A patient, or a case of whom nobody knows whose it is."""

FEWEST_CASES = 2
"""Labelled cases for a training: one to learn from, and one to validate on."""

_SIDES = ("training", "validation")
_SHOWN = 3
_DRAWS = 100


def draw_split(patients: Mapping[str, str], held_out: int, seed: int) -> Split:
    """Hold out patients at random, following from the seed, with all their cases.

    Args:
        patients: patient by name of the case; an empty one is nobody else's.
        held_out: cases, as in :func:`draw_cases`; fewer than there are.
        seed: of the run.

    Raises:
        DataError: all cases are of one patient, and some are to be held out.
    """
    if held_out > 0 and len(set(_owners(patients).values())) == 1:
        raise DataError(
            f"all {len(patients)} labelled scans are of one patient, {next(iter(patients.values()))}, so that none "
            "can be held out for validation",
            cure="Add scans of others, set finetuning.validation_cases to 0, or give a finetuning.split.",
        )
    drawn = set(draw_cases(patients, held_out, random_stream(seed, "validation split"))[1])
    return [name for name in patients if name not in drawn], [name for name in patients if name in drawn]


def draw_cases(patients: Mapping[str, str], count: int, random: np.random.Generator) -> Split:
    """Draw patients until ``count`` cases are together; one who has more than are still wanted is passed over.

    Where everyone has more, the one with the fewest is drawn.

    Args:
        patients: patient by name of the case; an empty one is nobody else's.
        count: cases to draw.
        random: decides.

    Returns:
        The cases that were not drawn, and those that were, each in the order of the draw.
    """
    owners = _owners(patients)
    sizes = Counter(owners.values())
    people = list(sizes)
    order = [people[index] for index in random.permutation(len(people))]
    drawn, wanted = set(), count
    for person in order:
        if sizes[person] <= wanted:
            drawn.add(person)
            wanted -= sizes[person]
    if count > 0 and not drawn:
        drawn = {min(order, key=lambda person: sizes[person])}
    cases = _by_owner(owners)
    others, chosen = ([p for p in order if (p in drawn) == side] for side in (False, True))
    return [name for p in others for name in cases[p]], [name for p in chosen for name in cases[p]]


def draw_folds(
    patients: Mapping[str, str], labels: Mapping[str, Collection[int]], count: int, seed: int
) -> list[list[str]]:
    """Divide cases into folds for a cross-validation: each case is in one, all cases of a patient are in the same.

    Patients come in a random order, those with most cases first, and each goes to the fold with the fewest cases, so
    that folds differ by no more cases than the largest patient has. That is drawn many times, and the best draw is
    taken: the one in which the fewest classes have all their holders in one fold, because of these the network that
    is validated there would learn nothing; of several such the one with the most equal folds.

    Args:
        patients: patient by name of the case; an empty one is nobody else's.
        labels: classes that the label map of each case has.
        count: of folds.
        seed: of the run.

    Returns:
        The names of each fold, in the order they came.

    Raises:
        DataError: there are fewer patients than folds.
    """
    owners = _owners(patients)
    # Sorted first: the order in which files were found must not decide.
    sizes = dict(sorted(Counter(owners.values()).items()))
    if len(sizes) < count:
        raise DataError(
            f"{len(patients)} labelled scan(s) of {len(sizes)} patient(s) cannot be divided into {count} folds, "
            "because all scans of a patient stay together",
            cure="Lower finetuning.folds, or add scans of others.",
        )
    held = {owner: {label for name in names for label in labels[name]} for owner, names in _by_owner(owners).items()}
    draws = [_one_draw(sizes, count, random_stream(seed, "folds", number)) for number in range(_DRAWS)]
    best = min(draws, key=lambda fold_of: _worth(fold_of, sizes, held, count))
    return [[name for name, owner in owners.items() if best[owner] == fold] for fold in range(count)]


def _one_draw(sizes: Mapping[Owner, int], count: int, random: np.random.Generator) -> dict[Owner, int]:
    """A fold for each owner."""
    people = list(sizes)
    mixed = [people[index] for index in random.permutation(len(people))]
    filled = [(0, fold) for fold in range(count)]
    fold_of = {}
    # Sorting keeps the order of equals.
    for owner in sorted(mixed, key=lambda one: -sizes[one]):
        cases, fold = heapq.heappop(filled)
        fold_of[owner] = fold
        heapq.heappush(filled, (cases + sizes[owner], fold))
    return fold_of


def _worth(
    fold_of: Mapping[Owner, int], sizes: Mapping[Owner, int], held: Mapping[Owner, set[int]], count: int
) -> tuple[int, int]:
    """Classes whose holders are all in one fold, and by how many cases folds differ: less is better."""
    folds_of: dict[int, set[int]] = {}
    filled = [0] * count
    for owner, fold in fold_of.items():
        filled[fold] += sizes[owner]
        for label in held[owner]:
            folds_of.setdefault(label, set()).add(fold)
    return sum(len(folds) == 1 for folds in folds_of.values()), max(filled) - min(filled)


def read_split(file: Path, names: Sequence[str], unusable: Iterable[str] = ()) -> Split:
    """The split that a file gives: ``{"training": [names], "validation": [names]}``.

    Objects with the names as keys are lists, too, as ``split.json`` of a run has them.

    Args:
        file: JSON.
        names: the cases that can be used.
        unusable: cases of the data set that cannot: the file may name them, and they are left out.

    Raises:
        DataError: the file cannot be read, or a name is unknown, missing, or there twice.
    """
    sides = _sides(file)
    listed = [name for side in sides for name in side]
    usable, known = set(names), {*names, *unusable}
    _refuse(file, [name for name, count in Counter(listed).items() if count > 1], "named twice")
    _refuse(file, [name for name in listed if name not in known], "named, but no labelled scan is called so")
    _refuse(file, [name for name in names if name not in set(listed)], "named in neither list")
    training, validation = ([name for name in names if name in set(side) & usable] for side in sides)
    if not training:
        raise DataError(f"{file}: no scan is left to train on", cure="Name some under training.")
    return training, validation


def shared_patients(split: Split, patients: Mapping[str, str]) -> list[str]:
    """Patients who are on both sides of a split, in order; unknown ones are nobody's."""
    training, validation = ({patients.get(name, "") for name in side} for side in split)
    return sorted((training & validation) - {""})


def _owners(patients: Mapping[str, str]) -> dict[str, Owner]:
    return {name: ("patient", patient) if patient else ("case", name) for name, patient in patients.items()}


def _by_owner(owners: Mapping[str, Owner]) -> dict[Owner, list[str]]:
    cases: dict[Owner, list[str]] = {}
    for name, owner in owners.items():
        cases.setdefault(owner, []).append(name)
    return cases


def _sides(file: Path) -> list[list[str]]:
    cure = 'Write {"training": ["case_1", "case_2"], "validation": ["case_3"]}.'
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: the split cannot be read ({error})", cure=cure) from error
    if not isinstance(content, dict) or set(content) != set(_SIDES):
        raise DataError(f"{file}: does not have the two lists training and validation", cure=cure)
    sides = [content[side] for side in _SIDES]
    for side in sides:
        if not isinstance(side, (list, dict)) or not all(isinstance(name, str) for name in side):
            raise DataError(f"{file}: training and validation are not lists of names", cure=cure)
    return [list(side) for side in sides]


def _refuse(file: Path, names: list[str], why: str) -> None:
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        verb = "is" if len(names) == 1 else "are"
        raise DataError(
            f"{file}: {', '.join(names[:_SHOWN])}{more} {verb} {why}",
            cure="Name each labelled scan once, under training or validation.",
        )
