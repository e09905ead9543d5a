"""Trained models, as panels show them."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from HybridMIMLib.config import user_path
from HybridMIMLib.data.model_description import METADATA, ModelDescription, read_description
from HybridMIMLib.data.model_store import all_models
from HybridMIMLib.errors import ModelError


def models() -> list[ModelDescription]:
    """The model packages of the workspace, those that were added and those of runs, newest first."""
    return all_models()


def find_model(model: str | Path) -> ModelDescription:
    """The model that a user means: a folder, a ``.zip``, or the name of one of :func:`models`, whatever its case.

    Raises:
        ModelError: there is none, several have the name, or it cannot be used; the message lists what there is.
    """
    text, there = str(model).strip(), models()
    if not text:
        raise ModelError("no model is named", cure=_what_there_is(text, [one.name for one in there]))
    path = user_path(text)
    if path.is_file() or (path / METADATA).is_file():
        return read_description(path)
    named = [one for one in there if one.name == text] or [
        one for one in there if one.name.casefold() == text.casefold()
    ]
    if len(named) == 1:
        return named[0]
    if named:
        listed = "; ".join(f"{one.path} ({age(one)})" for one in named)
        raise ModelError(f"{len(named)} models are called {text}: {listed}", cure="Give the folder of one.")
    if path.exists() or len(path.parts) > 1:
        # Says what is wrong with it.
        return read_description(path)
    raise ModelError(f"there is no model {text!r}", cure=_what_there_is(text, [one.name for one in there]))


def channel_names(model: ModelDescription) -> tuple[str, ...]:
    """What to call the channels of the scans that a model takes, in its order; each is called differently."""
    names = model.channel_names
    if len(names) == model.channels and len(set(names)) == len(names):
        return names
    return tuple(f"channel {number}" for number in range(model.channels))


def model_name(folder: str | Path) -> str:
    """What to call the package in a list; one that cannot be read goes by its folder."""
    try:
        return read_description(Path(folder)).name
    except ModelError:
        return str(folder)


def check_model(folder: str | Path) -> tuple[ModelDescription | None, str, str]:
    """A package, what it is in words, and why it cannot be used; what does not apply is None or empty."""
    if not folder:
        cure = "if there is none, import one, or train one in the module HybridMIM Training."
        return None, "", f"Choose a model; {cure}"
    try:
        model = read_description(Path(folder))
    except ModelError as error:
        return None, "", f"{error.message}. Choose another model, or browse for a folder that a training wrote."
    return model, describe(model), ""


def age(model: ModelDescription) -> str:
    """When it was trained, to the minute; its folder where that is not known."""
    return model.trained[:16].replace("T", " ") if model.trained else str(model.path)


def describe(model: ModelDescription) -> str:
    """One or two lines: classes, and how it was made."""
    classes = ", ".join(one.name for one in model.classes)
    facts = []
    if model.members > 1:
        facts.append(f"{model.members} networks as one")
    if model.trained:
        facts.append(f"trained {model.trained[:10]}")
    scans = model.provenance.get("labelled_scans")
    if isinstance(scans, int):
        facts.append(f"on {scans} labelled scans")
    dice = mean_dice(model)
    if dice is not None:
        facts.append(f"validation Dice {dice:.2f}")
    made = ", ".join(facts)
    return f"Finds {classes}." + (f"\n{made[0].upper()}{made[1:]}." if made else "")


def mean_dice(model: ModelDescription) -> float | None:
    """Mean Dice over the classes on the validation scans, or None where it is not known."""
    dice = model.provenance.get("validation_dice")
    value = dice.get("mean") if isinstance(dice, dict) else None
    return float(value) if isinstance(value, (int, float)) and value == value else None


def _what_there_is(wanted: str, names: list[str]) -> str:
    if not names:
        return "None is there yet: train one in the module HybridMIM Training, or give the folder of a package."
    near = get_close_matches(wanted, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Models are: {', '.join(sorted(set(names)))}."
