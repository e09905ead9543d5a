"""The glossary: every word that a user meets, in few and plain words, and true to the settings."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest

from HybridMIMLib.config import Run
from HybridMIMLib.glossary import CHAPTERS, TERMS, meaning, tooltip, words_of
from HybridMIMLib.settings.pretraining import PretrainingSettings


def settings() -> set[str]:
    """Names of all settings and sections, as the command line calls them."""
    hints, found = get_type_hints(Run), set()
    for one in dataclasses.fields(Run):
        found.add(one.name)
        if dataclasses.is_dataclass(hints[one.name]):
            found |= {f"{one.name}.{part.name}" for part in dataclasses.fields(hints[one.name])}
    return found


@pytest.mark.parametrize("name", TERMS)
def test_a_meaning_is_short_and_does_not_begin_with_its_word(name: str) -> None:
    text = meaning(name)
    assert 20 < len(text) <= 220 and text[0].isupper() and text.endswith(".")
    assert not text.lower().startswith(name.lower())
    # Two sentences at most, such that it fits into a tooltip.
    assert len(re.findall(r"[.!?](?: |$)", text)) <= 3


def test_every_word_is_there_once() -> None:
    assert sum(len(terms) for terms in CHAPTERS.values()) == len(TERMS)


def test_settings_that_it_names_exist() -> None:
    named = {setting for term in TERMS.values() for setting in term.settings}
    assert named <= settings(), named - settings()


def test_every_objective_and_the_words_of_the_panels_are_explained() -> None:
    objectives = set(get_args(get_type_hints(PretrainingSettings)["objective"])) - {"none"}
    words = {
        "mask",
        "patch",
        "region",
        "crop",
        "encoder",
        "decoder",
        "objective",
        "pre-training",
        "fine-tuning",
        "Dice",
    }
    assert objectives | words <= set(TERMS)


def test_a_tooltip_begins_with_the_word() -> None:
    assert tooltip("mask").startswith("Mask: The patches")
    assert tooltip("HD95").startswith("HD95: ")
    with pytest.raises(KeyError):
        tooltip("no such word")


def test_the_closest_word_of_a_setting_comes_first() -> None:
    assert words_of("pretraining.objective")[0] == "objective" and "hybridmim" in words_of("pretraining.objective")
    assert words_of("pretraining.mask_ratio") == ["mask ratio"] and words_of("plan.window") == ["normalisation"]
    assert words_of("plan.region") == ["region"] and words_of("no.such") == []


def test_it_loads_no_torch() -> None:
    code = "import sys, HybridMIMLib.glossary; print({'torch', 'monai', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
