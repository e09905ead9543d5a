"""The glossary in the panels: which tooltips end with the meaning of a word, and that no word is written twice."""

from __future__ import annotations

import ast
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import qt
from SlicerHost import Host

from HybridMIMLib.glossary import TERMS, meaning, tooltip, words_of
from HybridMIMLib.settings.pretraining import PretrainingSettings
from HybridMIMLib.slicer_side.plan_choices import MAIN, SETTINGS

REPOSITORY = Path(__file__).resolve().parents[2]
PANELS = ("HybridMIMTraining", "HybridMIMSegmentation")


def words() -> dict[str, tuple[str, ...]]:
    """By widget; in a Slicer alone, as everything in ``panels``."""
    from HybridMIMLib.slicer_side.panels.explained import WORDS

    return WORDS


def unfolded(text: str) -> str:
    return " ".join(text.split())


def ends_with(tip: str, word: str) -> bool:
    return unfolded(tip).endswith(tooltip(word))


def widgets() -> set[str]:
    """The names of all widgets in .ui files."""
    files = [file for module in PANELS for file in (REPOSITORY / module).rglob("*.ui")]
    return {one.attrib["name"] for file in files for one in ElementTree.parse(file).iter("widget")}


def test_widgets_and_words_are_there(host: Host) -> None:
    assert set(words()) <= widgets()
    assert {word for some in words().values() for word in some} <= set(TERMS)


def test_the_words_that_a_newcomer_meets_first_are_explained(host: Host) -> None:
    shown = {word for some in words().values() for word in some} | {
        word for name in SETTINGS for word in words_of(name)[:1]
    }
    assert shown >= {
        "mask ratio", "patch", "region", "pre-training", "fine-tuning", "Dice", "crop", "objective", "model package",
        "unlabelled scan", "case", "class", "weights", "loss", "device", "uncertainty",
    }  # fmt: skip


@pytest.mark.parametrize("name", PANELS)
def test_tooltips_end_with_the_meaning(slicer_with_modules: Host, name: str) -> None:
    ui = slicer_with_modules.open_module(name).ui
    # What cannot be used now says why.
    looked_at = [name for name in words() if hasattr(ui, name) and getattr(ui, name).enabled]
    assert len(looked_at) > 10
    for widget in looked_at:
        assert ends_with(getattr(ui, widget).toolTip, words()[widget][-1]), widget
        # What it does comes before, in the words of the .ui file.
        assert max(map(len, getattr(ui, widget).toolTip.split("\n")[2:]), default=0) <= 90, widget


def test_a_button_says_why_it_cannot_be_pressed_and_then_what_it_is_about(
    slicer_with_modules: Host, workspace: Path, tmp_path: Path
) -> None:
    panel = slicer_with_modules.open_module("HybridMIMTraining")
    button = panel.ui.workPretrainButton
    assert not button.enabled and meaning("pre-training") not in unfolded(button.toolTip)
    (tmp_path / "scans").mkdir()
    panel.ui.dataUnlabelledPathLineEdit.currentPath = str(tmp_path / "scans")
    assert button.enabled and ends_with(button.toolTip, "pre-training")
    panel.content.update()
    assert unfolded(button.toolTip).count(meaning("pre-training")) == 1, "not once more at each look"


def test_settings_and_their_choices(slicer_with_modules: Host) -> None:
    panel = slicer_with_modules.open_module("HybridMIMTraining")
    [rows] = panel.content.plan._rows
    explained_ones = [name for name in MAIN if words_of(name)]
    assert len(explained_ones) >= 8
    for name in explained_ones:
        word = words_of(name)[0]
        assert ends_with(rows.editors[name].toolTip, word) and ends_with(rows.titles[name].toolTip, word), name
    combo = rows.editors["pretraining.objective"]
    tips = {combo.itemText(number): combo.itemData(number, qt.Qt.ToolTipRole) for number in range(combo.count)}
    for objective in set(get_args(get_type_hints(PretrainingSettings)["objective"])) - {"none"}:
        assert unfolded(tips[objective]) == tooltip(objective)


def test_the_dice_in_tables(slicer_with_modules: Host, workspace: Path, picture: Callable[[str], None]) -> None:
    training = slicer_with_modules.open_module("HybridMIMTraining")
    table = training.ui.runsTable
    heads = {table.horizontalHeaderItem(i).text(): table.horizontalHeaderItem(i) for i in range(table.columnCount)}
    assert ends_with(heads["Dice"].toolTip(), "Dice") and heads["Kind"].toolTip() == ""


def test_nothing_in_the_panels_repeats_a_meaning() -> None:
    """The words stand in the glossary alone."""
    for file in (REPOSITORY / "HybridMIMTraining" / "HybridMIMLib" / "slicer_side").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        texts = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not {one for one in texts for term in TERMS.values() if term.meaning in one}, file
    for module in PANELS:
        for file in (REPOSITORY / module).rglob("*.ui"):
            text = file.read_text(encoding="utf-8")
            assert not [term.name for term in TERMS.values() if term.meaning in text], file


def test_nothing_is_added_where_there_is_no_word(host: Host) -> None:
    from HybridMIMLib.slicer_side.panels.explained import explained

    assert explained("What it does.", ()) == "What it does." and explained("", ()) == ""
