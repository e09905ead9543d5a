"""The glossary in the panels: a tooltip ends with the plain-language line of the word that its widget is about.

The words themselves are in :mod:`HybridMIMLib.glossary`, and nowhere else.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import qt
from slicer.i18n import tr as _

from HybridMIMLib.glossary import tooltip, words_of

_LINE = 90
"""Characters: Qt does not break the lines of a tooltip."""

WORDS: dict[str, tuple[str, ...]] = {
    # HybridMIM Training
    "dataUnlabelledLabel": ("unlabelled scan",),
    "dataUnlabelledPathLineEdit": ("unlabelled scan",),
    "dataLabelledLabel": ("case",),
    "dataLabelledPathLineEdit": ("label map",),
    "dataClassesTable": ("class",),
    "dataSceneSection": ("case",),
    "planPresetLabel": ("plan",),
    "planPresetComboBox": ("plan",),
    "planTextButton": ("run",),
    "workPretrainButton": ("pre-training",),
    "workFinetuneButton": ("fine-tuning",),
    "workTrainButton": ("pre-training", "fine-tuning"),
    "workStudyButton": ("from scratch",),
    "workPauseButton": ("checkpoint",),
    "workResumeButton": ("checkpoint",),
    "startFromLabel": ("weights",),
    "startFromComboBox": ("weights",),
    "workHeadsLabel": ("mask", "patch", "region"),
    "workValuesTable": ("loss", "validation"),
    "workCurvesLabel": ("loss",),
    "workCurvesComboBox": ("step", "loss"),
    "workPreviewTitle": ("reconstruction",),
    "workPreviewComboBox": ("reconstruction",),
    "workPreviewButton": ("mask", "reconstruction"),
    "workPreviewShowComboBox": ("mask", "reconstruction"),
    "runsTable": ("run",),
    "runsPackageButton": ("model package",),
    "runsUseButton": ("segmentation",),
    "runsCompareButton": ("loss",),
    "runsCurveComboBox": ("loss", "Dice"),
    "elsewhereWhatComboBox": ("run",),
    "elsewhereStoreCheckBox": ("prepared store",),
    # HybridMIM Segmentation
    "modelLabel": ("model package",),
    "importButton": ("model package",),
    "detailsButton": ("class",),
    "inputVolumeLabel": ("scan",),
    "inputVolumeSelector": ("scan",),
    "outputSegmentationLabel": ("segmentation",),
    "qualityLabel": ("sliding window",),
    "qualityComboBox": ("sliding window",),
    "referenceLabel": ("reference", "Dice"),
    "referenceSelector": ("reference", "Dice"),
    "classesLabel": ("class",),
    "classesList": ("class",),
    "applyButton": ("segment",),
    "batchModelTitle": ("model package",),
    "batchOutputPathLineEdit": ("label map",),
    "learnAddButton": ("case",),
    "learnFolderPathLineEdit": ("case",),
    "rankButton": ("uncertainty",),
    "rankIntroLabel": ("uncertainty",),
    # Both
    "environmentTestButton": ("device",),
}
"""The words of the glossary that widgets are about, by the names of the widgets."""


def explained(tip: str, words: Iterable[str]) -> str:
    """A tooltip with the plain-language lines of some words at its end."""
    lines = [textwrap.fill(_(tooltip(word)), _LINE, break_on_hyphens=False) for word in words]
    return "\n\n".join(one for one in [tip, *lines] if one)


def explained_setting(tip: str, setting: str) -> str:
    """The same for what is said of a setting, such as ``plan.crop``; at most its closest word."""
    return explained(tip, words_of(setting)[:1])


def explain(ui: Any) -> None:
    """Complete the tooltips of a panel, as its ``.ui`` files have them.

    Args:
        ui: the widgets of either panel, as ``slicer.util.childWidgetVariables`` gives them.
    """
    for name, words in WORDS.items():
        widget = getattr(ui, name, None)
        if widget is not None:
            widget.toolTip = explained(widget.toolTip, words)


def explain_heads(table: Any, words: Mapping[str, str]) -> None:
    """Say on the heads of a table what their words mean; ``words``: of the glossary, by what a head is called."""
    for column in range(table.columnCount):
        head = table.horizontalHeaderItem(column)
        if head is not None and head.text() in words:
            head.setToolTip(explained("", [words[head.text()]]))


def explain_choices(combo: Any, words: Iterable[str | None]) -> None:
    """Say on the entries of a list what they mean; ``words``: of the glossary, one an entry, or None."""
    for number, word in enumerate(words):
        if word is not None:
            combo.setItemData(number, explained("", [word]), qt.Qt.ToolTipRole)
