"""All that a model package says of itself, as a page for people: HTML that suits a light and a dark window."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from slicer.i18n import tr as _

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.model_description import ModelDescription
from HybridMIMLib.events import duration
from HybridMIMLib.slicer_side.models import channel_names

_LONGEST_LICENSE = 1500
"""Letters of a licence that are shown; the whole text is in the package."""
_LONGEST_TRAINING = 1e8
"""Seconds; what is longer, or no number, is a damaged record."""


def model_page(model: ModelDescription) -> str:
    """The page: what it finds, in which scans, how well, how it was made, and who may use it."""
    # Each value is escaped where it is put in; these are the parts in their order.
    facts = [*_scans(model), *_making(model), *_afterwards(model)]
    return (
        f"<h3>{_text(model.name)}</h3>{_classes(model)}{_table(facts)}"
        f"<p><b>{_text(_('Licence'))}</b><br>{_license(model.license)}</p>"
        f"<p><b>{_text(_('Kept in'))}</b><br>{_text(str(model.path))}</p>"
    )


def _classes(model: ModelDescription) -> str:
    """A row a class: colour, name, meaning, and its Dice on the validation scans."""
    dice = model.provenance.get("validation_dice")
    scores = {name: _number(value) for name, value in dice.items()} if isinstance(dice, Mapping) else {}
    titles = ["", _("Class"), *([_("Validation Dice")] if any(scores.values()) else [])]
    rows = [[_swatch(one.color), _text(_class_name(one)), scores.get(one.name, "")] for one in model.classes]
    if scores.get("mean"):
        rows.append(["", f"<i>{_text(_('mean'))}</i>", scores["mean"]])
    head = "".join(f"<th align='left'>{_text(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row[: len(titles)])}</tr>" for row in rows)
    note = _("Classes may overlap: a voxel can be of several.") if model.overlapping else ""
    return f"<table cellpadding='2'><tr>{head}</tr>{body}</table>{f'<p>{_text(note)}</p>' if note else ''}"


def _scans(model: ModelDescription) -> Iterable[tuple[str, str]]:
    """Which scans it takes."""
    plan, fingerprint = model.plan, _section(model.provenance, "fingerprint")
    kinds = [str(name) for name in _section(fingerprint, "modalities") if str(name)]
    yield _("Modality"), ", ".join(kinds) or _("not recorded")
    if model.channels > 1:
        yield _("Channels"), ", ".join(channel_names(model))
    yield _("Works at"), f"{_by(plan['spacing'])} mm"
    sides = [side * size for side, size in zip(plan["crop"], plan["spacing"])]
    yield _("Sees at once"), _("{size} mm").format(size=_by([round(side) for side in sides]))
    yield _("Intensities"), _intensities(plan)


def _intensities(plan: Mapping[str, Any]) -> str:
    if plan["normalisation"] == "window":
        low, high = plan["window"]
        return _("from {low:g} to {high:g}, as they are in the scan (CT)").format(low=low, high=high)
    if plan["normalisation"] == "zscore":
        return _("relative to the median of the body in each scan (MR)")
    return _("between the darkest and the brightest of each scan")


def _making(model: ModelDescription) -> Iterable[tuple[str, str]]:
    """How it came about."""
    provenance = model.provenance
    if model.trained:
        yield _("Trained"), datetime.fromisoformat(model.trained).strftime("%Y-%m-%d %H:%M")
    labelled, validation = provenance.get("labelled_scans"), provenance.get("validation_scans")
    if isinstance(labelled, int):
        yield _("Labelled scans"), _scan_counts(labelled, validation)
    if isinstance(provenance.get("pretrained"), str):
        yield _("Began"), str(provenance["pretrained"])
    steps, seconds = provenance.get("steps"), provenance.get("seconds")
    if isinstance(steps, int) and isinstance(seconds, (int, float)) and 0 <= seconds < _LONGEST_TRAINING:
        took = _("{steps} steps in {time}").format(steps=steps, time=duration(float(seconds)))
        yield _("Training"), took
    size = getattr(model.network, "size", None)
    yield _("Network"), f"{model.network.architecture}{f', {size}' if size else ''}"
    if model.members > 1:
        yield _("Ensemble"), _("{count} networks, whose scores are averaged").format(count=model.members)
    versions = _section(provenance, "versions")
    if "HybridMIM" in versions:
        yield _("Made with"), f"HybridMIM {versions['HybridMIM']}"


def _scan_counts(labelled: int, validation: Any) -> str:
    if isinstance(validation, int) and validation:
        return _("{count}, and {more} to check it").format(count=labelled, more=validation)
    return _("{count}; it was not checked on others").format(count=labelled)


def _afterwards(model: ModelDescription) -> Iterable[tuple[str, str]]:
    """What is done to the result of the network."""
    clean_up, names = model.clean_up, {one.label: one.name for one in model.classes}
    if clean_up.largest:
        yield _("Largest part only"), ", ".join(names[label] for label in sorted(clean_up.largest))
    if clean_up.fill_holes:
        yield _("Holes filled"), ", ".join(names[label] for label in sorted(clean_up.fill_holes))
    if clean_up.smallest_ml:
        parts = (f"{names[label]} {ml:g} ml" for label, ml in sorted(clean_up.smallest_ml.items()))
        yield _("Smaller parts removed"), ", ".join(parts)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(f"<tr><td><b>{_text(name)}</b></td><td>{_text(value)}</td></tr>" for name, value in rows)
    return f"<table cellpadding='2'>{body}</table>"


def _license(text: str) -> str:
    shown = text.strip()
    if len(shown) > _LONGEST_LICENSE:
        shown = f"{shown[:_LONGEST_LICENSE]} … {_('(the whole text is in the package)')}"
    return _text(shown).replace("\n", "<br>")


def _class_name(one: LabelClass) -> str:
    """With its meaning, where the model tells one that says more."""
    parts = (one.terminology or "").split("~")
    meaning = parts[2].split("^")[-1] if len(parts) > 2 else ""
    return f"{one.name} ({meaning})" if meaning and meaning.casefold() != one.name.casefold() else one.name


def _swatch(color: tuple[float, float, float]) -> str:
    red, green, blue = (round(255 * part) for part in color)
    return f"<span style='background-color:#{red:02x}{green:02x}{blue:02x}'>&nbsp;&nbsp;&nbsp;&nbsp;</span>"


def _section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of the provenance, which may hold anything."""
    part = content.get(name)
    return part if isinstance(part, Mapping) else {}


def _by(values: Iterable[float]) -> str:
    return " × ".join(f"{value:g}" for value in values)


def _number(value: Any) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    return f"{value:.3f}" if is_number else ""


def _text(text: str) -> str:
    return html.escape(text)
