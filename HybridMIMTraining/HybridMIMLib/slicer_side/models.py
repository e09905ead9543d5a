"""Trained models, as panels show them."""

from __future__ import annotations

from pathlib import Path

from HybridMIMLib.data.model_description import ModelDescription, read_description
from HybridMIMLib.data.model_store import all_models
from HybridMIMLib.errors import ModelError


def models() -> list[ModelDescription]:
    """The model packages of the workspace, those that were added and those of runs, newest first."""
    return all_models()


def model_name(folder: str | Path) -> str:
    """What to call the package in a list; one that cannot be read goes by its folder."""
    try:
        return read_description(Path(folder)).name
    except ModelError:
        return str(folder)


def check_model(folder: str | Path) -> tuple[ModelDescription | None, str, str]:
    """A package, what it is in words, and why it cannot be used; what does not apply is None or empty."""
    if not folder:
        return None, "", "Choose a model; if there is none, train one in the module HybridMIM Training."
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
